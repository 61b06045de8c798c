"""JSON text messages: what we send to register, and what KIS answers.

KIS identifies an answer only by (tr_id, tr_key); there is no request id, and an answer may lack
its header, its output or a usable tr_id.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import attrs

from kisfeed.kis.rejects import Reject, Rejected

if TYPE_CHECKING:
    from kisfeed.kis.catalogue import RegKey

MAX_CONTROL: Final = 65_536
"""Bytes of one control message; real ones have a few hundred."""

_KEY_BYTES: Final = 32
_IV_BYTES: Final = 16


@attrs.frozen(repr=False)
class AesKey:
    """Key and iv of one ACK: AES-256-CBC over the bytes of the texts as sent, never hex."""

    key: bytes
    iv: bytes

    def __repr__(self) -> str:
        return "AesKey(***)"


@attrs.frozen
class Ack:
    """KIS's answer to one subscribe or unsubscribe, or an error about the whole session.

    Attributes:
        key: as KIS wrote it; ``("(null)", "")`` comes with OPSP8996, ``("", "")`` means no header.
        rt_cd: ``0`` ok, ``1`` error, ``9`` session error.
        msg_cd: ``OPSP....``; act on this (``codes``), never on the text.
        text: KIS's own text.
        aes: comes with plain TRs too; None when absent or not of the right lengths.
    """

    key: RegKey
    rt_cd: str
    msg_cd: str
    text: str
    aes: AesKey | None


@attrs.frozen
class Pingpong:
    """The application keep-alive.

    Attributes:
        text: echo exactly these bytes as a text message.
    """

    text: bytes


def parse(frame: bytes) -> Ack | Pingpong | Rejected:
    """Read one control message; every odd form seen from KIS is accepted, and nothing raises."""
    if len(frame) > MAX_CONTROL:
        return Rejected(Reject.BAD_JSON, f"{len(frame)} bytes of control message")
    try:
        message = json.loads(frame.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return Rejected(Reject.BAD_JSON, "not JSON")
    if not isinstance(message, dict):
        return Rejected(Reject.BAD_JSON, "not an object")
    header = _map(message, "header")
    tr_id = _text(header, "tr_id")
    if tr_id == "PINGPONG":
        return Pingpong(frame)
    body = _map(message, "body")
    if not body:
        return Rejected(Reject.BAD_JSON, "no body")
    return Ack(
        key=(tr_id, _text(header, "tr_key")),
        rt_cd=_text(body, "rt_cd"),
        msg_cd=_text(body, "msg_cd"),
        text=_text(body, "msg1"),
        aes=_aes(_map(body, "output")),
    )


def subscribe(approval_key: str, key: RegKey, custtype: str = "P") -> str:
    """The text message that registers *key*; *custtype* is P (person) or B (company)."""
    return _request("1", approval_key, key, custtype)


def unsubscribe(approval_key: str, key: RegKey, custtype: str = "P") -> str:
    """The text message that removes the registration of *key*."""
    return _request("2", approval_key, key, custtype)


def _request(tr_type: str, approval_key: str, key: RegKey, custtype: str) -> str:
    message = {
        "header": {
            "approval_key": approval_key,
            "custtype": custtype,
            "tr_type": tr_type,
            "content-type": "utf-8",
        },
        "body": {"input": {"tr_id": key[0], "tr_key": key[1]}},
    }
    return json.dumps(message, ensure_ascii=False, separators=(",", ":"))


def _map(parent: dict[str, Any], name: str) -> dict[str, Any]:
    value = parent.get(name)
    return value if isinstance(value, dict) else {}


def _text(parent: dict[str, Any], name: str) -> str:
    value = parent.get(name)
    if not isinstance(value, str | int) or isinstance(value, bool):
        return ""
    # A lone surrogate is valid JSON but cannot be encoded again.
    return str(value).strip().encode("utf-8", "replace").decode("utf-8")


def _aes(output: dict[str, Any]) -> AesKey | None:
    key, iv = _text(output, "key").encode("utf-8"), _text(output, "iv").encode("utf-8")
    return AesKey(key, iv) if len(key) == _KEY_BYTES and len(iv) == _IV_BYTES else None
