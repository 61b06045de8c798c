from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import example, given, strategies as st

from kisfeed.kis import control, frames, server

AES = control.AesKey(key=b"abcdefghijklmnopabcdefghijklmnop", iv=b"0123456789abcdef")


def message(**changes: Any) -> dict[str, Any]:
    whole: dict[str, Any] = json.loads(control.subscribe("key", ("H0STCNT0", "005930")))
    header, entry = whole["header"], whole["body"]["input"]
    for name, value in changes.items():
        part = header if name in header else entry
        if value is None:
            del part[name]
        else:
            part[name] = value
    return whole


def code_of(text: str) -> str:
    found = server.read_message(text)
    assert isinstance(found, server.Refusal)
    return found.msg_cd


@given(st.text())
@example("[" * 100_000)
@example("null")
@example("0|pingpong")
def test_reading_any_text_gives_a_verdict_and_never_raises(text: str) -> None:
    assert isinstance(server.read_message(text), server.Request | server.Echo | server.Refusal)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=3),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    ["header", "body", "input", "tr_id", "tr_key", "tr_type", "custtype"]
                ),
                inner,
                max_size=4,
            )
        ),
        max_leaves=12,
    )
)
def test_reading_any_json_never_raises(value: Any) -> None:
    server.read_message(json.dumps(value))


@given(st.booleans(), st.text(min_size=1), st.text(max_size=8), st.text(min_size=1, max_size=8))
def test_what_a_client_builds_is_read_back(
    subscribe: bool, approval: str, tr_id: str, tr_key: str
) -> None:
    build = control.subscribe if subscribe else control.unsubscribe
    assert server.read_message(build(approval, (tr_id, tr_key))) == server.Request(
        subscribe=subscribe, approval_key=approval, key=(tr_id, tr_key)
    )


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"tr_type": "0"}, "OPSP8997"),
        ({"tr_type": 1}, "OPSP8997"),
        ({"tr_type": None}, "OPSP8997"),
        ({"custtype": None}, "OPSP9997"),
        ({"custtype": "X"}, "OPSP8998"),
        ({"approval_key": None}, "OPSP9996"),
        ({"approval_key": ""}, "OPSP9996"),
        ({"tr_key": None}, "OPSP9990"),
        ({"tr_key": ""}, "OPSP9990"),
        ({"tr_key": 5930}, "OPSP8993"),
    ],
)
def test_a_missing_or_wrong_part_has_its_own_code(changes: dict[str, Any], code: str) -> None:
    assert code_of(json.dumps(message(**changes))) == code


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("{", "OPSP9999"),
        ("[]", "OPSP9999"),
        ("{}", "OPSP9998"),
        ('{"header":{}}', "OPSP9992"),
        ('{"header":{},"body":{}}', "OPSP9991"),
    ],
)
def test_a_missing_level_has_its_own_code(text: str, code: str) -> None:
    assert code_of(text) == code


def test_every_text_reply_to_pingpong_is_an_echo() -> None:
    text = server.pingpong("20261118100000")
    parsed = frames.parse(text.encode())
    assert isinstance(parsed, control.Pingpong)
    for reply in (text, json.dumps(json.loads(text)), "0|pingpong"):
        assert isinstance(server.read_message(reply), server.Echo)


@given(st.sampled_from(sorted(server.TEXTS)), st.sampled_from([None, AES]))
def test_an_ack_says_what_it_was_built_from(code: str, aes: control.AesKey | None) -> None:
    text = server.build_ack(("H0STCNT0", "005930"), code, aes=aes)
    ack = control.parse(text.encode())
    assert isinstance(ack, control.Ack)
    assert (ack.key, ack.msg_cd, ack.aes) == (("H0STCNT0", "005930"), code, aes)
    assert ack.rt_cd == {"OPSP0000": "0", "OPSP0001": "0", "OPSP8996": "9"}.get(code, "1")


def test_an_ack_is_byte_for_byte_the_captured_one() -> None:
    aes = control.AesKey(key=b"tvldhmfplvgcovaqrspclzhdotfzzequ", iv=b"55ce3d099479ce11")
    assert server.build_ack(("H0STCNT0", "005930"), "OPSP0000", aes=aes) == (
        '{"header":{"tr_id":"H0STCNT0","tr_key":"005930","encrypt":"N"},"body":{"rt_cd":"0",'
        '"msg_cd":"OPSP0000","msg1":"SUBSCRIBE SUCCESS","output":{"iv":"55ce3d099479ce11",'
        '"key":"tvldhmfplvgcovaqrspclzhdotfzzequ"}}}'
    )
    assert server.build_ack(("(null)", ""), "OPSP8996") == (
        '{"header":{"tr_id":"(null)","tr_key":"","encrypt":"N"},"body":{"rt_cd":"9",'
        '"msg_cd":"OPSP8996","msg1":"ALREADY IN USE appkey"}}'
    )


def test_encryption_gives_the_published_vector() -> None:
    plain = (
        "HTS ID^1234567801^0000002891^^02^0^00^0^136480^0000000001^000003190^094941^0^2^2^06010"
        "^000000001^김한투^하림^10^^하림^000000000"
    )
    assert server.encrypt(plain, AES).startswith("xsMoYyDTWbGs63kmP1nFy6qsvHuihYnTjKDkKTLy1mKvdVLU")


@given(
    st.lists(
        st.lists(st.sampled_from(["", "1", "-nan", "가"]), min_size=2, max_size=2),
        min_size=1,
        max_size=12,
    ),
    st.booleans(),
)
def test_a_data_frame_carries_its_rows(rows: list[list[str]], encrypted: bool) -> None:
    text = server.data_frame("H0STCNT0", rows, AES if encrypted else None)
    frame = frames.parse(text.encode())
    assert isinstance(frame, frames.DataFrame)
    assert (frame.encrypted, frame.tr_id, frame.count) == (encrypted, "H0STCNT0", len(rows))
    if encrypted:
        base64.b64decode(frame.payload, validate=True)
    else:
        assert frame.payload.decode().split("^") == [value for row in rows for value in row]


def test_a_request_never_shows_its_key() -> None:
    assert "secret" not in repr(server.Request(True, "secret", ("H0STCNT0", "005930")))


def test_error_bodies_have_the_measured_shapes() -> None:
    assert server.gateway_error("EGW00201") == {
        "rt_cd": "1",
        "msg1": "초당 거래건수를 초과하였습니다.",
        "msg_cd": "EGW00201",
        "message": "EGW00201",
    }
    assert server.oauth_error("EGW00133") == {
        "error_code": "EGW00133",
        "error_description": "접근토큰 발급 잠시 후 다시 시도하세요(1분당 1회)",
    }
    assert server.revoke_reply()["code"] == 200
