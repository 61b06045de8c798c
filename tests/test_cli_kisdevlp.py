from __future__ import annotations

import pytest
import yaml
from hypothesis import given, strategies as st

from kisfeed.cli import kisdevlp
from kisfeed.config import Environment

APPKEY, APPSECRET = "PS" + "r" * 34, "r" * 180
PAPER_APPKEY, PAPER_APPSECRET = "PS" + "p" * 34, "p" * 180

FILLED = f"""\
# 실전투자
my_app: "{APPKEY}"
my_sec: "{APPSECRET}"
paper_app: {PAPER_APPKEY}
paper_sec: '{PAPER_APPSECRET}'
my_htsid: "user1"
my_acct_stock: 01234567
my_acct_future: "선물옵션계좌 8자리"
my_paper_stock: "50001234"
my_paper_future: "모의투자 선물옵션계좌 8자리"
my_prod: 01 # 종합계좌
prod: "https://openapi.koreainvestment.com:9443"
ops: "ws://ops.koreainvestment.com:21000"
vps: "https://openapivts.koreainvestment.com:29443"
vops: "ws://ops.koreainvestment.com:31000"
my_token: ""
my_agent: "Mozilla/5.0"
"""

OFFICIAL = """\
my_app: "앱키"
my_sec: "앱키 시크릿"
paper_app: "모의투자 앱키"
paper_sec: "모의투자 앱키 시크릿"
my_htsid: "사용자 HTS ID"
my_acct_stock: "증권계좌 8자리"
my_prod: "01"
"""


def findings(text: str) -> dict[str, kisdevlp.Finding]:
    return {finding.key: finding for finding in kisdevlp.read(text).findings}


def test_a_filled_file_becomes_two_profiles_without_a_word() -> None:
    imported = kisdevlp.read(FILLED)
    assert imported.findings == ()
    real, paper = imported.profiles
    assert real.environment is Environment.REAL
    assert real.appkey.reveal() == APPKEY
    assert real.appsecret.reveal() == APPSECRET
    assert real.hts_id == "user1"
    assert real.account.reveal() == "01234567-01"  # text, not an octal number
    assert paper.environment is Environment.PAPER
    assert paper.account.reveal() == "50001234-01"


def test_the_untouched_file_is_told_placeholder_by_placeholder() -> None:
    imported = kisdevlp.read(OFFICIAL)
    assert imported.profiles == ()
    assert {f.key for f in imported.findings} >= {"my_app", "paper_app", "my_htsid"}
    assert [f.line for f in imported.findings] == sorted(f.line for f in imported.findings)


def test_one_environment_alone_is_enough() -> None:
    text = FILLED.replace(APPKEY, "앱키").replace(APPSECRET, "앱키 시크릿")
    imported = kisdevlp.read(text)
    assert [p.environment for p in imported.profiles] == [Environment.PAPER]
    assert not any(f.fatal for f in imported.findings)


@pytest.mark.parametrize(
    ("old", "new", "key", "line", "fatal"),
    [
        (APPKEY, "앱키", "my_app", 2, True),
        (APPKEY, "short", "my_app", 2, True),
        (f'my_sec: "{APPSECRET}"\n', "", "my_sec", 0, True),
        ("user1", "사용자 HTS ID", "my_htsid", 6, False),
        ('my_htsid: "user1"\n', "", "my_htsid", 0, False),
        ("01234567", "012345678", "my_acct_stock", 7, False),
        ("01234567", "12345678-01", "my_acct_stock", 7, False),
        ("my_prod: 01", "my_prod: 1", "my_prod", 11, False),
        ("my_prod: 01", "my_prd: 01", "my_prd", 11, False),
        ("koreainvestment.com:9443", "example.com", "prod", 12, False),
        ('my_token: ""', "my_token: [1]", "my_token", 16, True),
        ('my_token: ""', "my_prod: 01", "my_prod", 16, False),
    ],
)
def test_each_mistake_is_told_with_its_line(
    old: str, new: str, key: str, line: int, fatal: bool
) -> None:
    assert old in FILLED
    finding = findings(FILLED.replace(old, new, 1))[key]
    assert (finding.line, finding.fatal) == (line, fatal)
    assert finding.what


def test_swapped_keys_are_recognised_by_their_length() -> None:
    text = FILLED.replace(APPKEY, "X").replace(APPSECRET, APPKEY).replace('"X"', f'"{APPSECRET}"')
    found = findings(text)
    assert "swapped" in found["my_app"].what
    assert [p.environment for p in kisdevlp.read(text).profiles] == [Environment.PAPER]


def test_the_same_key_twice_is_refused() -> None:
    text = FILLED.replace(PAPER_APPKEY, APPKEY)
    assert findings(text)["paper_app"].fatal
    assert kisdevlp.read(text).profiles == ()


def test_futures_accounts_go_with_their_product_code() -> None:
    text = FILLED.replace("my_prod: 01", "my_prod: 03").replace("선물옵션계좌 8자리", "87654321", 1)
    assert kisdevlp.read(text).profiles[0].account.reveal() == "87654321-03"


def test_all_mistakes_are_told_at_once() -> None:
    text = FILLED.replace(APPKEY, "short").replace("my_htsid", "my_hts").replace("01234567", "1")
    assert {"my_app", "my_hts", "my_htsid", "my_acct_stock"} <= findings(text).keys()


@given(
    st.text(max_size=200)
    | st.dictionaries(
        st.sampled_from(kisdevlp.KNOWN) | st.text(max_size=5),
        st.text(max_size=5) | st.integers() | st.lists(st.none()),
    ).map(lambda tree: yaml.safe_dump(tree, allow_unicode=True))
)
def test_any_text_gives_profiles_or_findings(text: str) -> None:
    imported = kisdevlp.read(text)
    assert imported.profiles or imported.findings


def test_secrets_are_not_in_what_is_told() -> None:
    text = FILLED.replace(APPSECRET, APPSECRET[:100])
    assert "rrrr" not in repr(kisdevlp.read(text))
