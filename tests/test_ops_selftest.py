"""What is wrong before the first dial is told before it."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING

import attrs
import pytest
import structlog
from hypothesis import given, strategies as st

from kisfeed import cli, schemas
from kisfeed.cli import i18n, startup
from kisfeed.config import (
    HOSTS,
    Config,
    Credentials,
    Endpoints,
    Environment,
    Secret,
    Subscriptions,
)
from kisfeed.kis import symbols
from kisfeed.kis.catalogue import Catalogue
from kisfeed.ops import selftest
from kisfeed.ops.selftest import Check, Finding, Problem

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

TRS = schemas.load("kis/realtime.json")
REAL, PAPER, SIM = Environment.REAL, Environment.PAPER, Environment.SIM
CATALOGUES = {environment: Catalogue(TRS, environment) for environment in Environment}
APPKEY, APPSECRET = "PSm3d8Qh2Lx7Zr5Tn9Wc1Vb6Yg4Kf0Ja8Es2", "aB3+/x" * 30


def config(environment: Environment = PAPER, **changes: object) -> Config:
    base = Config(
        environment=environment,
        credentials=Credentials(Secret(APPKEY), Secret(APPSECRET)),
    )
    return attrs.evolve(base, **changes)  # type: ignore[arg-type]  # field by field


def problems(findings: Sequence[Finding]) -> list[tuple[Problem, str]]:
    return [(finding.problem, finding.setting) for finding in findings]


def listing(symbol: str, market: str = "kospi", *, halted: bool = False) -> symbols.Listing:
    return symbols.Listing(symbol, market, "name", "", "ST", halted, liquidation=False)


def master(*listings: symbols.Listing) -> symbols.Master:
    """Master files of every domestic board, so that "not listed" can be said."""
    padding = [listing("000000", board.value) for board in symbols.Board]
    return symbols.Master([symbols.MasterFile((*listings, *padding), ())])


@pytest.mark.parametrize("environment", Environment)
def test_what_is_right_finds_nothing(environment: Environment) -> None:
    right = config(
        environment,
        endpoints=HOSTS[environment],
        subscriptions=Subscriptions(("trade.krx.005930", "book.krx.005930")),
    )
    found = selftest.examine(right, TRS, 41, master(listing("005930")))
    assert list(found) == list(Check)
    assert not any(found.values())


@pytest.mark.parametrize(("mine", "other"), [(REAL, PAPER), (PAPER, REAL)])
def test_the_other_environments_address_is_refused(mine: Environment, other: Environment) -> None:
    both = selftest.check_hosts(mine, HOSTS[other])
    assert problems(both) == [
        (Problem.OTHER_ENVIRONMENT, "endpoints.rest"),
        (Problem.OTHER_ENVIRONMENT, "endpoints.ws"),
    ]
    assert all(finding.refuses for finding in both)
    # The paper key's REST host with the real one's port is still the other host.
    host = HOSTS[other].rest.rpartition(":")[0]
    (one,) = selftest.check_hosts(mine, Endpoints(rest=f"{host}:1"))
    assert one.problem is Problem.OTHER_ENVIRONMENT


def test_an_address_nobody_knows_is_worth_a_warning() -> None:
    (found,) = selftest.check_hosts(REAL, Endpoints(rest="https://proxy.example:443"))
    assert found.problem is Problem.UNKNOWN_ADDRESS
    assert not found.refuses
    (port,) = selftest.check_hosts(REAL, Endpoints(ws="ws://ops.koreainvestment.com:4"))
    assert port.problem is Problem.UNKNOWN_ADDRESS


@pytest.mark.parametrize("environment", [REAL, PAPER])
def test_no_address_is_the_environments_own(environment: Environment) -> None:
    assert selftest.check_hosts(environment, Endpoints()) == []
    assert selftest.check_hosts(SIM, Endpoints("http://127.0.0.1:1", "ws://127.0.0.1:2")) == []


@pytest.mark.parametrize(
    "key", ["x" * 36, "여기에 앱키", "YOUR_APPKEY_IS_36_CHARACTERS_LONG__", "a b"]
)
def test_a_key_that_nobody_was_given_is_told_and_not_shown(key: str) -> None:
    found = selftest.check_keys(PAPER, Credentials(Secret(key), Secret(APPSECRET)))
    assert problems(found) == [(Problem.PLACEHOLDER, "credentials.appkey")]
    assert key not in repr(found)
    assert selftest.check_keys(SIM, Credentials(Secret(key), Secret(key))) == []


def test_an_appkey_inside_the_secret_is_a_slip_of_the_clipboard() -> None:
    credentials = Credentials(Secret(APPKEY), Secret(APPKEY * 5))
    assert Problem.SAME_KEYS in [f.problem for f in selftest.check_keys(REAL, credentials)]


@given(st.text("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/", min_size=180))
def test_a_random_secret_is_hardly_ever_called_a_placeholder(secret: str) -> None:
    run = max((len(part) for part in _runs(secret)), default=0)
    found = selftest.check_keys(REAL, Credentials(Secret(APPKEY), Secret(secret)))
    assert run >= 12 or "app" in secret.lower() or not found


def _runs(text: str) -> list[str]:
    runs: list[str] = []
    for letter in text:
        if runs and runs[-1][0] == letter:
            runs[-1] += letter
        else:
            runs.append(letter)
    return runs


@pytest.mark.parametrize("environment", Environment)
def test_every_tr_id_is_the_environments_own(environment: Environment) -> None:
    assert selftest.check_tr_ids(environment, CATALOGUES[environment]) == []
    if environment is PAPER:
        wrong = selftest.check_tr_ids(REAL, CATALOGUES[PAPER])
        assert {f.details["tr_id"] for f in wrong} == {"H0STCNI9", "H0IFCNI9", "H0GSCNI9"}


@pytest.mark.parametrize(
    ("topic", "problem", "meant"),
    [
        ("trade.nxt.005930", Problem.NOT_ON_PAPER, ""),
        ("trade.overseas.DNASAAPL", Problem.NOT_ON_PAPER, ""),
        ("trade.krx.5930", Problem.BAD_SYMBOL, "trade.krx.005930"),
        ("trade.krx.A005930", Problem.BAD_SYMBOL, "trade.krx.005930"),
        ("trade.krx.005930.KS", Problem.BAD_SYMBOL, "trade.krx.005930"),
        ("trade.krx.samsung electronics", Problem.BAD_SYMBOL, ""),
        ("trade.mars.1", Problem.UNKNOWN_TOPIC, ""),
        ("005930", Problem.UNKNOWN_TOPIC, ""),
        ("raw.H0NOSUCH.005930", Problem.UNKNOWN_TOPIC, ""),
    ],
)
def test_a_pinned_topic_that_cannot_be_is_refused_with_what_was_meant(
    topic: str, problem: Problem, meant: str
) -> None:
    (found,) = selftest.check_topics(
        ["trade.krx.000660", topic], CATALOGUES[PAPER], CATALOGUES[REAL], 41
    )
    assert (found.problem, found.details["topic"], found.details["meant"]) == (
        problem,
        topic,
        meant,
    )
    assert found.refuses


def test_more_pins_than_slots_are_worth_a_warning() -> None:
    pins = [f"trade.krx.{n:06}" for n in range(42)]
    (found,) = selftest.check_topics(pins, CATALOGUES[REAL], CATALOGUES[REAL], 41)
    assert (found.problem, found.refuses) == (Problem.TOO_MANY_PINNED, False)
    assert selftest.check_topics(pins[:41] * 2, CATALOGUES[REAL], CATALOGUES[REAL], 41) == []


@pytest.mark.parametrize(
    ("hts_id", "problem"),
    [
        ("", None),
        ("trader01", None),
        ("한글", Problem.BAD_HTS_ID),
        ("two words", Problem.BAD_HTS_ID),
        ("12345678-01", Problem.ACCOUNT_AS_HTS_ID),
        ("1234567801", Problem.ACCOUNT_AS_HTS_ID),
    ],
)
def test_an_hts_id_that_is_none_is_told(hts_id: str, problem: Problem | None) -> None:
    found = selftest.check_hts_id(hts_id, CATALOGUES[PAPER])
    assert [f.problem for f in found] == ([] if problem is None else [problem])
    assert hts_id == "" or hts_id not in repr(found)


def test_a_symbol_the_master_files_do_not_list_is_a_warning_only() -> None:
    pinned = ("trade.krx.005930", "trade.krx.123456", "trade.krx.000660", "trade.mars.1")
    found = selftest.examine(
        config(REAL, subscriptions=Subscriptions(pinned)),
        TRS,
        41,
        master(listing("005930"), listing("000660", halted=True)),
    )[Check.MASTER]
    assert [(f.problem, f.details["topic"]) for f in found] == [
        (Problem.NOT_LISTED, "trade.krx.123456"),
        (Problem.HALTED, "trade.krx.000660"),
    ]
    assert not any(f.refuses for f in found)


def test_without_a_master_file_nothing_is_checked_against_it(tmp_path: Path) -> None:
    assert selftest.cached_master([tmp_path / "none", tmp_path]) == (None, [])
    assert Check.MASTER not in selftest.examine(config(), TRS, 41, None)


def test_master_files_are_taken_from_the_first_folder_that_has_any(tmp_path: Path) -> None:
    line = b"005930   KR7005930003" + "삼성전자".encode("cp949").ljust(40) + b"ST" + b"N" * 225
    (tmp_path / "kospi_code.mst").write_bytes(line + b"\n")
    (tmp_path / "kosdaq_code.mst").write_bytes(b"<html>404</html>\n")
    found, unreadable = selftest.cached_master([tmp_path / "none", tmp_path])
    assert found is not None
    assert found.knows("krx", "005930") is True
    assert found.knows("krx", "123456") is None
    assert [f.problem for f in unreadable] == [Problem.MASTER_UNREADABLE]
    assert unreadable[0].details["file"].endswith("kosdaq_code.mst")


@pytest.mark.parametrize("language", i18n.LANGUAGES)
def test_every_refusal_has_a_text_of_its_own(
    language: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LANGUAGE", "")
    i18n.use(language)
    details = dict.fromkeys(("address", "other", "topic", "why", "meant", "tr_id"), "something")
    for problem in Problem:
        finding = Finding(Check.TOPICS, problem, "x", details)
        if finding.refuses:
            assert startup.text(finding) != problem.value


@pytest.fixture
def logging_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


@pytest.mark.usefixtures("logging_as_before")
def test_serve_refuses_before_it_dials_and_names_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KISFEED_LANG", "en")
    for name in ("CONFIG_HOME", "STATE_HOME", "CACHE_HOME", "RUNTIME_DIR"):
        monkeypatch.setenv(f"XDG_{name}", str(tmp_path))
    path = tmp_path / "wrong.toml"
    path.write_text(
        f"""environment = "paper"
[credentials]
appkey = "{APPKEY}"
appsecret = "{APPSECRET}"
[endpoints]
rest = "{HOSTS[REAL].rest}"
[subscriptions]
pinned = ["trade.krx.5930", "trade.nxt.005930"]
"""
    )
    path.chmod(0o600)
    assert cli.run(["serve", "--config", str(path), "--json"]) == 78
    told = capsys.readouterr()
    answer = json.loads(told.out)
    assert [p["key"] for p in answer["problems"]] == [
        "endpoints.rest",
        "subscriptions.pinned",
        "subscriptions.pinned",
    ]
    assert "Did you mean trade.krx.005930?" in answer["problems"][1]["problem"]
    log = [json.loads(line) for line in told.err.splitlines() if line.startswith("{")]
    results = {line["check"]: line.get("result") for line in log if line["event"] == "selftest"}
    assert results["tr_ids"] == "ok"
    assert results["hosts"] is None
    assert APPKEY not in told.err + told.out
