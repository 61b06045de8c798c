from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.padding import PKCS7
from hypothesis import given, strategies as st

from kisfeed import schemas
from kisfeed.config import Environment
from kisfeed.kis import frames, notices
from kisfeed.kis.control import AesKey
from kisfeed.kis.notices import KeyRing, Notice
from kisfeed.kis.rejects import Reject, Rejected

REAL = schemas.load_catalogue(Environment.REAL)
LINES = Path(__file__).with_name("data").joinpath("frames.jsonl").read_text("utf-8").splitlines()
GOLDEN: dict[str, dict[str, Any]] = {g["id"]: g for g in map(json.loads, LINES)}
SEALED = [g for g in GOLDEN.values() if g["form"] == "encrypted"]
AES = AesKey(b"k" * 32, b"i" * 16)


def ring(aes: AesKey = AES) -> KeyRing:
    keys = KeyRing()
    keys.put(1, "H0STCNI0", aes)
    return keys


def seal(plain: bytes, aes: AesKey = AES) -> bytes:
    padder = PKCS7(128).padder()
    encryptor = Cipher(algorithms.AES(aes.key), modes.CBC(aes.iv)).encryptor()
    padded = padder.update(plain) + padder.finalize()
    return base64.b64encode(encryptor.update(padded) + encryptor.finalize())


def golden_notice(name: str) -> Notice:
    tr = REAL.trs[GOLDEN[name]["tr"]]
    text = GOLDEN[name].get("plaintext", GOLDEN[name]["raw"])
    found = frames.records(tr, 1, text.encode())
    assert isinstance(found, frames.Records)
    return notices.decode_notice(tr, found.rows[0])


@pytest.mark.parametrize("golden", SEALED, ids=[g["id"] for g in SEALED])
def test_a_golden_payload_decrypts_to_its_text(golden: dict[str, Any]) -> None:
    frame = frames.parse(golden["raw"].encode())
    assert isinstance(frame, frames.DataFrame)
    assert frame.encrypted
    keys = ring(AesKey(golden["key"].encode(), golden["iv"].encode()))
    assert keys.open(1, frame.tr_id, frame.payload) == golden["plaintext"].encode()


@given(st.binary(max_size=200))
def test_what_was_sealed_opens(plain: bytes) -> None:
    assert ring().open(1, "H0STCNI0", seal(plain)) == plain


@given(st.binary())
def test_open_never_raises(payload: bytes) -> None:
    ring().open(1, "H0STCNI0", payload)
    ring().open(1, "H0STCNI0", base64.b64encode(payload))


@pytest.mark.parametrize(
    ("epoch", "tr_id", "payload", "reason"),
    [
        (1, "H0STCNI0", b"not base64!", Reject.BAD_BASE64),
        (1, "H0STCNI0", b"", Reject.UNDECRYPTABLE),
        (1, "H0STCNI0", base64.b64encode(b"15 bytes only.."), Reject.UNDECRYPTABLE),
        (1, "H0STCNI0", base64.b64encode(bytes(16)), Reject.UNDECRYPTABLE),
        (2, "H0STCNI0", seal(b"x"), Reject.UNDECRYPTABLE),
        (1, "H0IFCNI0", seal(b"x"), Reject.UNDECRYPTABLE),
    ],
)
def test_what_does_not_open_is_refused_with_its_reason(
    epoch: int, tr_id: str, payload: bytes, reason: Reject
) -> None:
    found = ring().open(epoch, tr_id, payload)
    assert isinstance(found, Rejected)
    assert found.reason is reason


def test_keys_end_with_their_session_and_never_show() -> None:
    keys = ring()
    keys.put(2, "H0STCNI0", AES)
    assert "kkkk" not in repr(keys)
    assert "iiii" not in repr(keys)
    keys.drop_epoch(1)
    assert isinstance(keys.open(1, "H0STCNI0", seal(b"x")), Rejected)
    assert keys.open(2, "H0STCNI0", seal(b"x")) == b"x"


def test_a_later_ack_replaces_the_key() -> None:
    keys = ring()
    keys.put(1, "H0STCNI0", AesKey(b"n" * 32, b"i" * 16))
    assert keys.open(1, "H0STCNI0", seal(b"x", AesKey(b"n" * 32, b"i" * 16))) == b"x"


def test_a_fill_says_what_was_filled() -> None:
    for name in ("stcni0-old-fill", "aes-portal-key-26"):
        notice = golden_notice(name)
        assert notice.kind == "fill"
        fields = notice.fields
        assert (fields["qty"], fields["px"], fields["scale"], fields["side"]) == (1, 3190, 0, 1)
        assert (fields["symbol"], fields["order_no"]) == ("136480", "0000002891")
        assert (fields["name"], fields["time"]) == ("하림", "094941")


def test_an_accepted_order_is_not_a_fill() -> None:
    assert golden_notice("stcni0-old-accept").kind == "accepted"


def test_an_overseas_price_has_the_decimals_of_its_market() -> None:
    notice = golden_notice("gscni0-accept")
    assert notice.kind == "accepted"
    assert (notice.fields["px"], notice.fields["scale"]) == (32200, 1)  # 3,220.0 yen


def test_a_derivative_price_has_two_implied_decimals() -> None:
    notice = golden_notice("ifcni0-fill")
    assert notice.kind == "fill"
    assert (notice.fields["px"], notice.fields["scale"]) == (7_840_000, 2)  # 78,400.00 won


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"CNTG_YN": "1", "RFUS_YN": "1"}, "rejected"),
        ({"CNTG_YN": "1", "RCTF_CLS": "1"}, "amended"),
        ({"CNTG_YN": "1", "RCTF_CLS": "2"}, "cancelled"),
        ({"CNTG_YN": "1", "ACPT_YN": "3"}, "cancelled"),
        ({"CNTG_YN": "2"}, "fill"),
        ({"CNTG_YN": "1", "RCTF_CLS": "x"}, "unknown"),
    ],
)
def test_the_kind_follows_from_the_codes(changes: dict[str, str], kind: str) -> None:
    tr = REAL.trs["H0STCNI0"]
    fields = [changes.get(name, "").encode() for name in tr.usual.fields]
    assert notices.decode_notice(tr, fields).kind == kind


def test_a_notice_never_shows_the_account() -> None:
    assert "1234567801" not in repr(golden_notice("stcni0-old-fill"))
