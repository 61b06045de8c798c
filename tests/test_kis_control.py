from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st

from kisfeed import schemas
from kisfeed.kis import control
from kisfeed.kis.codes import Codes, Meaning
from kisfeed.kis.control import Ack, AesKey, Pingpong
from kisfeed.kis.rejects import Rejected

LINES = Path(__file__).with_name("data").joinpath("frames.jsonl").read_text("utf-8").splitlines()
GOLDEN: dict[str, dict[str, Any]] = {g["id"]: g for g in map(json.loads, LINES)}
CODES = schemas.load("kis/codes.json")

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(st.binary())
def test_parse_never_raises(frame: bytes) -> None:
    control.parse(frame)


@given(
    st.dictionaries(
        st.sampled_from(["header", "body"]),
        st.dictionaries(
            st.sampled_from(["tr_id", "tr_key", "rt_cd", "msg_cd", "msg1", "output"]), JSON
        )
        | JSON,
    )
)
def test_any_json_in_any_place_gives_an_ack_of_encodable_texts_or_a_refusal(message: Any) -> None:
    found = control.parse(json.dumps(message).encode())
    if isinstance(found, Ack):
        json.dumps([*found.key, found.rt_cd, found.msg_cd, found.text]).encode()
        " ".join([*found.key, found.rt_cd, found.msg_cd, found.text]).encode()


@pytest.mark.parametrize(
    ("name", "key", "rt_cd", "msg_cd", "has_aes"),
    [
        ("ack-stasp0-a", ("H0STASP0", "066570"), "0", "OPSP0000", True),
        ("ack-portal", ("H0STCNI0", "HTSID"), "0", "OPSP0000", True),
        ("ifcnt0-ack", ("H0IFCNT0", "A05608"), "0", "OPSP0000", False),
        ("err-8996", ("(null)", ""), "9", "OPSP8996", False),
        ("err-0011-live", ("", ""), "1", "OPSP0011", False),
        ("err-0002-test", ("H0STASP0", "005930"), "1", "OPSP0002", False),
    ],
)
def test_every_odd_form_of_ack_is_read(
    name: str, key: tuple[str, str], rt_cd: str, msg_cd: str, has_aes: bool
) -> None:
    found = control.parse(GOLDEN[name]["raw"].encode())
    assert isinstance(found, Ack)
    assert (found.key, found.rt_cd, found.msg_cd) == (key, rt_cd, msg_cd)
    assert (found.aes is not None) is has_aes


def test_a_pingpong_keeps_its_exact_bytes() -> None:
    text = GOLDEN["pingpong-2024"]["raw"].encode().replace(b":", b": ")
    assert control.parse(text) == Pingpong(text)


def test_a_key_of_the_wrong_length_is_no_key() -> None:
    text = GOLDEN["ack-portal"]["raw"].replace("0123456789abcdef", "0123")
    found = control.parse(text.encode())
    assert isinstance(found, Ack)
    assert found.aes is None


def test_a_text_that_is_not_utf8_spoils_only_itself() -> None:
    frame = b'{"header":{"tr_id":"A","tr_key":"b"},"body":{"rt_cd":"1","msg_cd":"X","msg1":"\xff"}}'
    assert control.parse(frame) == Ack(("A", "b"), "1", "X", "�", None)


@pytest.mark.parametrize("frame", [b"[]", b"1", b'{"body":1}', b'{"header":{"tr_id":"A"}}'])
def test_what_is_no_ack_is_refused(frame: bytes) -> None:
    assert isinstance(control.parse(frame), Rejected)


def test_a_key_never_shows_itself() -> None:
    ack = control.parse(GOLDEN["ack-portal"]["raw"].encode())
    assert "abcdefgh" not in repr(ack)
    assert "01234567" not in repr(ack)
    assert repr(AesKey(b"k", b"i")) == "AesKey(***)"


@pytest.mark.parametrize(
    ("build", "name"),
    [(control.subscribe, "sub-template"), (control.unsubscribe, "unsub-template")],
)
def test_a_registration_message_is_the_documented_one(build: Any, name: str) -> None:
    assert build("<approval_key>", ("H0STCNT0", "005930")) == GOLDEN[name]["raw"]


def test_every_code_has_one_meaning_and_a_text() -> None:
    codes = Codes(CODES)
    listed = [entry["code"] for part in ("websocket", "rest") for entry in CODES[part]]
    assert len(set(listed)) == len(listed)
    assert sum(code.startswith("OPSP") for code in listed) == 28
    for entry in CODES["websocket"]:
        # A code decides alone; rt_cd does not.
        assert codes.meaning(entry["code"], "0") is codes.meaning(entry["code"], "1")
        assert codes.meaning(entry["code"], "1") is Meaning(entry["meaning"])
    assert all(codes.text(code) for code in listed)


@pytest.mark.parametrize(
    ("code", "meaning"),
    [
        ("OPSP0000", Meaning.HELD),
        ("OPSP0002", Meaning.HELD),
        ("OPSP0001", Meaning.FREE),
        ("OPSP0003", Meaning.FREE),
        ("OPSP0008", Meaning.OVER_CAP),
        ("OPSP0009", Meaning.PERMANENT),
        ("OPSP8991", Meaning.PERMANENT),
        ("OPSP0007", Meaning.TRANSIENT),
        ("OPSP0011", Meaning.KEY_REFUSED),
        ("OPSP8996", Meaning.IN_USE),
        ("OPSP9999", Meaning.CLIENT_BUG),
    ],
)
def test_a_code_means_what_kis_documents(code: str, meaning: Meaning) -> None:
    assert Codes(CODES).meaning(code, "1") is meaning


def test_an_unknown_code_is_a_success_only_with_rt_cd_0() -> None:
    codes = Codes(CODES)
    assert codes.meaning("OPSP4711", "0") is Meaning.HELD
    assert codes.meaning("OPSP4711", "1") is Meaning.UNKNOWN
    assert codes.meaning("", "9") is Meaning.UNKNOWN
    assert codes.text("OPSP4711") == ""
