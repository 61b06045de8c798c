"""Encrypted frames, and what an order notice says.

Anybody on the path can write a plain frame into the unencrypted session: on an encrypted TR only
a payload that decrypts is believed. Keys come with the ACK of the notice's own registration and
are valid for that session only.
"""

from __future__ import annotations

import base64
import binascii
from typing import TYPE_CHECKING, Any, Final

import attrs
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.padding import PKCS7

from kisfeed.kis import values
from kisfeed.kis.rejects import Reject, Rejected

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from kisfeed.kis.catalogue import Layout, Tr
    from kisfeed.kis.control import AesKey

_BLOCK: Final = 16

_COLUMNS: Final[Mapping[str, tuple[str, ...]]] = {
    "account": ("ACNT_NO", "ACCT_NO"),
    "order_no": ("ODER_NO", "ODNO"),
    "original_order_no": ("OODER_NO", "ORGN_ODNO"),
    "side": ("SELN_BYOV_CLS", "SLL_BUY_DVSN_CD"),
    "symbol": ("STCK_SHRN_ISCD", "SERIES"),
    "name": ("CNTG_ISNM40", "CNTG_ISNM"),
    "qty": ("CNTG_QTY", "CCLD_QTY", "ORD_QTY"),
    "px": ("CNTG_UNPR", "FM_CCLD_PRIC", "FM_LMT_PRIC"),
    "order_qty": ("ODER_QTY", "ORD_QTY"),
    "order_px": ("ODER_PRC", "ORDER_PRC", "FM_LMT_PRIC"),
    "time": ("STCK_CNTG_HOUR",),
    "revision": ("RCTF_CLS", "RVSE_CNCL_DVSN_CD"),
    "order_type": ("ODER_KIND", "ODER_KIND2", "PRCE_TP"),
    "condition": ("ODER_COND", "TRD_COND"),
    "acceptance": ("ACPT_YN",),
    "exchange": ("ORD_EXG_GB",),
    "branch": ("BRNC_NO",),
    "customer": ("CUST_ID", "USER_ID"),
}

FIELDS: Final = ("kind", "scale", "px_text", *_COLUMNS)
"""Names of a notice's values, in the order of ``notice.v1``."""

_NUMBERS: Final = frozenset({"qty", "order_qty"})
_PRICES: Final = frozenset({"px", "order_px"})
_SIDES: Final = {b"01": -1, b"1": -1, b"02": 1, b"2": 1}
_REVISIONS: Final = {b"0": "accepted", b"1": "amended", b"2": "cancelled"}
# Decimals implied by the market of an overseas order, which ODER_COND names.
_MARKET_SCALE: Final = {
    **dict.fromkeys((b"6", b"7", b"8", b"9"), 4),
    **dict.fromkeys((b"4", b"5", b"A", b"B", b"C"), 3),
    b"D": 1,
    b"E": 0,
    b"F": 0,
}


class KeyRing:
    """The AES keys of encrypted TRs, by session epoch and TR id."""

    __slots__ = ("_keys",)

    def __init__(self) -> None:
        self._keys: dict[tuple[int, str], AesKey] = {}

    def __repr__(self) -> str:
        return f"KeyRing({list(self._keys)})"

    def put(self, epoch: int, tr_id: str, aes: AesKey, *, replace: bool = True) -> None:
        """Keep the key that an ACK of *tr_id* brought, in place of an earlier one if *replace*."""
        if replace or (epoch, tr_id) not in self._keys:
            self._keys[epoch, tr_id] = aes

    def drop_epoch(self, epoch: int) -> None:
        """Forget the keys of a session that ended."""
        for held in [held for held in self._keys if held[0] == epoch]:
            del self._keys[held]

    def open(self, epoch: int, tr_id: str, payload: bytes) -> bytes | Rejected:
        """Decrypt the payload of a frame of *tr_id*: Base64, AES-256-CBC, PKCS7; never raises."""
        aes = self._keys.get((epoch, tr_id))
        if aes is None:
            return Rejected(Reject.UNDECRYPTABLE, f"{tr_id}: no key in this session")
        try:
            sealed = base64.b64decode(payload, validate=True)
        except binascii.Error:
            return Rejected(Reject.BAD_BASE64, f"{tr_id}: payload is not Base64")
        if not sealed or len(sealed) % _BLOCK:
            return Rejected(Reject.UNDECRYPTABLE, f"{tr_id}: {len(sealed)} bytes, not whole blocks")
        unpadder = PKCS7(_BLOCK * 8).unpadder()
        try:
            decryptor = Cipher(algorithms.AES(aes.key), modes.CBC(aes.iv)).decryptor()
            padded = decryptor.update(sealed) + decryptor.finalize()
            return unpadder.update(padded) + unpadder.finalize()
        except ValueError:
            return Rejected(Reject.UNDECRYPTABLE, f"{tr_id}: wrong key or padding")


@attrs.frozen
class Notice:
    """One order or fill notice.

    Attributes:
        kind: ``accepted``, ``amended``, ``cancelled``, ``rejected``, ``fill`` or ``unknown``.
        xts: None; notices carry a time of day and no date.
        fields: the ``notice.v1`` map, *kind* included; holds account numbers.
    """

    kind: str
    xts: int | None
    fields: Mapping[str, Any] = attrs.field(repr=False)


def decode_notice(tr: Tr, fields: Sequence[bytes]) -> Notice:
    """What one notice record of *tr*, as ``frames.records`` cut it, says.

    Raises:
        ValueError: the record is shorter than every layout of *tr*, so it never came from there.
    """
    layout = tr.layout_for(len(fields))
    if layout is None:
        raise ValueError(f"{tr.tr_id}: {len(fields)} values are no record")
    read, xts = row(tr, layout, fields, values.Numbers())
    return Notice(read[0], xts, dict(zip(FIELDS, read, strict=True)))


def row(
    tr: Tr, layout: Layout, fields: Sequence[bytes], numbers: values.Numbers
) -> tuple[tuple[Any, ...], None]:
    """The ``notice.v1`` row of one record, and its exchange time, which no notice has."""
    record = dict(zip(layout.fields, fields, strict=False))
    scale = _scale(tr, record)
    price = _first(record, _COLUMNS["px"])
    found: dict[str, Any] = {
        "kind": _kind(tr, record),
        "scale": scale,
        "px_text": values.text(price),
    }
    for name, columns in _COLUMNS.items():
        value = _first(record, columns)
        if name in _NUMBERS:
            found[name] = numbers.tolerant(value, 0)
        elif name in _PRICES:
            found[name] = None if scale is None else _price(value, scale, numbers)
        elif name == "side":
            found[name] = _SIDES.get(value)
        else:
            found[name] = values.text(value)
    return tuple(found[name] for name in FIELDS), None


def _first(record: Mapping[str, bytes], columns: Sequence[str]) -> bytes:
    return next((record[column] for column in columns if column in record), b"")


def _scale(tr: Tr, record: Mapping[str, bytes]) -> int | None:
    if tr.scale is None and tr.venue == "overseas":
        return _MARKET_SCALE.get(record.get("ODER_COND", b""))
    return tr.scale


def _price(value: bytes, scale: int, numbers: values.Numbers) -> int | None:
    """Digits without a point have *scale* decimals implied."""
    return numbers.tolerant(value, scale if b"." in value else 0)


def _kind(tr: Tr, record: Mapping[str, bytes]) -> str:
    if tr.venue == "osfut-fill" or record.get("CNTG_YN") == b"2":
        return "fill"
    if record.get("RFUS_YN") == b"1":
        return "rejected"
    if record.get("ACPT_YN") == b"3":
        return "cancelled"
    revision = _first(record, _COLUMNS["revision"]).lstrip(b"0") or b"0"
    return _REVISIONS.get(revision, "unknown")
