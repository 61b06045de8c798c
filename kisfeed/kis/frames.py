"""Bytes from KIS to frames and records.

``flag|TR_ID|count|payload`` with values joined by ``^``; *count* records follow one another with
no separator of their own, so the width of a record is the number of values divided by *count*.
KIS appends columns without notice: a record wider than known is read by its known prefix and
keeps the rest. Bytes are split before they are decoded, so one bad UTF-8 value harms only itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs

from kisfeed.kis import control
from kisfeed.kis.control import Ack, Pingpong
from kisfeed.kis.rejects import Reject, Rejected

if TYPE_CHECKING:
    from kisfeed.kis.catalogue import Layout, Tr

__all__ = [
    "Ack",
    "DataFrame",
    "Pingpong",
    "Records",
    "Reject",
    "Rejected",
    "parse",
    "records",
]

_FLAGS: Final = (b"0", b"1")


# The two classes below are made once a frame: a frozen one costs three times as much to make.
@attrs.define
class DataFrame:
    """One data frame, not yet cut into records. Never changed.

    Attributes:
        encrypted: the frame's own flag; the payload goes through ``notices`` first.
        tr_id: as on the wire.
        count: how many records, 1 to 999.
        payload: values joined by ``^``, or Base64 of the encrypted values.
    """

    encrypted: bool
    tr_id: str
    count: int
    payload: bytes


@attrs.define
class Records:
    """The records of one frame. Never changed.

    Attributes:
        layout: names the first ``layout.width`` values of every row.
        rows: all values of each record, those beyond the layout included.
        drift: the width on the wire when the catalogue does not know it, else None.
    """

    layout: Layout
    rows: list[list[bytes]]
    drift: int | None


def parse(frame: bytes) -> DataFrame | Ack | Pingpong | Rejected:
    """Read one message from KIS. Linear in its length; never raises, whatever the bytes are."""
    parts = frame.split(b"|", 3)
    if len(parts) == 4 and parts[0] in _FLAGS:
        flag, tr_id, count, payload = parts
        if not tr_id.isalnum():
            return Rejected(Reject.GARBAGE, "no TR id")
        if count == b"001":
            return DataFrame(flag == b"1", tr_id.decode("ascii"), 1, payload)
        if len(count) <= 3 and count.isdigit() and (number := int(count)):
            return DataFrame(flag == b"1", tr_id.decode("ascii"), number, payload)
        return Rejected(Reject.BAD_COUNT, "the record count is no number from 1 to 999")
    if frame.startswith(b"{"):
        return control.parse(frame)
    return Rejected(Reject.GARBAGE, f"{len(frame)} bytes that are neither data nor JSON")


def records(tr: Tr, count: int, payload: bytes) -> Records | Rejected:
    """Cut a plain payload into *count* records of *tr*.

    *count* is 1 or more; *payload* is what :func:`parse` gave, decrypted where it was encrypted.
    """
    values = payload.split(b"^")
    width, rest = divmod(len(values), count)
    layout = tr.layouts.get(width)
    drift = None
    if layout is None or rest:
        if rest:
            return Rejected(
                Reject.BAD_WIDTH, f"{tr.tr_id}: {len(values)} values for {count} records"
            )
        layout = tr.layout_for(width)
        if layout is None:
            return Rejected(Reject.TOO_SHORT, f"{tr.tr_id}: {width} values in a record")
        drift = width
    if count == 1:
        return Records(layout, [values], drift)
    rows = [values[start : start + width] for start in range(0, len(values), width)]
    return Records(layout, rows, drift)
