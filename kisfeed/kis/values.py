"""Single values of a record: numbers, codes and times as KIS writes them.

Numbers come zero padded, with a leading ``+``, empty, as ``(null)`` or as ``nan``. Columns such
as PRDY_VRSS carry their own sign: the sign column beside them is never applied again.
"""

from __future__ import annotations

import datetime as dt
import struct
from typing import TYPE_CHECKING, Final

from kisfeed.seoul import DAY_NS, KST_NS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

NOTHING: Final = frozenset({b"", b"(null)", b"nan", b"-nan", b"+nan"})
"""Texts, lower-case, that mean the value is absent."""

MAX_DIGITS: Final = 18
"""So many digits always fit 64 bits."""

_LIMIT: Final = (1 << 63) - 1
_SECOND_NS: Final = 1_000_000_000
_EPOCH: Final = dt.date(1970, 1, 1).toordinal()
_MAX_SEEN: Final = 8192
_MAX_SEEN_BYTES: Final = 20
_MAX_CODES: Final = 4096
_MAX_CODE_BYTES: Final = 32


class Numbers:
    """Reads numbers exactly, and counts those it cannot.

    Attributes:
        inexact: values with more decimals than the scale, or outside 64 bits; read as None.
        unreadable: values that are neither numbers nor absent; read as None.
    """

    __slots__ = ("inexact", "unreadable")

    def __init__(self) -> None:
        self.inexact = 0
        self.unreadable = 0

    def tolerant(self, value: bytes, scale: int) -> int | None:
        """*value* times ``10**scale``, never rounded; None where that is not an integer."""
        text = value.strip()
        if text.lower() in NOTHING:
            return None
        digits = text[1:] if text[:1] in (b"-", b"+") else text
        whole, _, decimals = digits.partition(b".")
        if not (whole + decimals).isdigit():
            self.unreadable += 1
            return None
        whole = whole.lstrip(b"0")
        if len(whole) > 19 or decimals[scale:].strip(b"0"):
            self.inexact += 1
            return None
        number = int(whole + decimals[:scale].ljust(scale, b"0") or b"0")
        if number > _LIMIT:
            self.inexact += 1
            return None
        return -number if text[:1] == b"-" else number

    def one(self, scale: int) -> Callable[[bytes], int | None]:
        """A reader of one value at *scale*."""
        tolerant = self.tolerant
        after = -scale or None
        dot = -scale - 1

        def whole(value: bytes) -> int | None:
            if value.isdigit() and len(value) <= MAX_DIGITS:
                return int(value)
            try:
                number = int(value)
            except ValueError:
                return tolerant(value, 0)
            # int() passes over underscores between digits.
            plain = -_LIMIT <= number <= _LIMIT and b"_" not in value
            return number if plain else tolerant(value, 0)

        def scaled(value: bytes) -> int | None:
            if value[dot:after] == b"." and value[after:].isdigit() and b"_" not in value:
                try:
                    number = int(value[:dot] + value[after:])
                except ValueError:
                    return tolerant(value, scale)
                if -_LIMIT <= number <= _LIMIT:
                    return number
            return tolerant(value, scale)

        return scaled if scale else whole

    def seen(self) -> Callable[[bytes], int | None]:
        """As :meth:`one` at scale 0, for values that come again and again: prices, book levels."""
        return _Seen(self.one(0)).__getitem__

    def many(
        self, pick: Callable[[Sequence[bytes]], Sequence[bytes]], count: int, scale: int
    ) -> Callable[[Sequence[bytes]], list[int | None]]:
        """A reader of the *count* values that *pick* takes from a record."""
        read = self.one(scale)
        # Fails when a value does not fit 64 bits, in one call for all of them.
        fits = struct.Struct(f"{count}q").pack

        def whole(fields: Sequence[bytes]) -> list[int | None]:
            values = pick(fields)
            try:
                numbers: list[int | None] = [*map(int, values)]
                fits(*numbers)
            except (ValueError, struct.error):
                return [read(value) for value in values]
            # int() passes over signs, blanks and underscores; what has some is looked at closely.
            return numbers if b"".join(values).isdigit() else [read(value) for value in values]

        def scaled(fields: Sequence[bytes]) -> list[int | None]:
            return [read(value) for value in pick(fields)]

        return scaled if scale else whole


class _Seen(dict[bytes, int]):
    """Numbers by their bytes, each read once; what is odd in any way is read every time."""

    __slots__ = ("_read",)

    def __init__(self, read: Callable[[bytes], int | None]) -> None:
        super().__init__()
        self._read = read

    def __missing__(self, value: bytes) -> int | None:
        number = self._read(value)
        # A value that was not read as it stands may have been counted, and counts every time.
        if number is not None and len(value) <= _MAX_SEEN_BYTES:
            if len(self) >= _MAX_SEEN:
                self.clear()
            self[value] = number
        return number


def text(value: bytes) -> str | None:
    """A code or name; invalid UTF-8 becomes U+FFFD; None where KIS sent nothing."""
    return None if value.strip().lower() in NOTHING else value.decode("utf-8", "replace")


class Codes(dict[bytes, "str | None"]):
    """Texts of codes by their bytes, each decoded once; subscript it with any bytes."""

    __slots__ = ("_width",)

    def __init__(self, width: int | None = None) -> None:
        """Keep only the first *width* characters of a code."""
        super().__init__()
        self._width = width

    def __missing__(self, value: bytes) -> str | None:
        decoded = text(value)
        if decoded is not None:
            decoded = decoded[: self._width]
        # Codes are an open set, but what an attacker may send is not worth remembering.
        if len(self) < _MAX_CODES and len(value) <= _MAX_CODE_BYTES:
            self[value] = decoded
        return decoded


SIDES: Final[dict[bytes, int]] = {b"1": 1, b"5": -1, b"3": 0}
"""Buy, sell and pre-open by CCLD_DVSN or CNTG_CLS_CODE."""

FLAGS: Final[dict[bytes, bool]] = {b"Y": True, b"N": False}


def stamp_ns(date: bytes, time: bytes) -> int | None:
    """Nanoseconds since 1970 UTC of YYYYMMDD and HHMMSS in Korea.

    None where they are neither, and for days outside what 64 bits of nanoseconds hold.
    """
    if not (len(date) == 8 and date.isdigit() and len(time) == 6 and time.isdigit()):
        return None
    hours, minutes, seconds = int(time[:2]), int(time[2:4]), int(time[4:])
    if hours > 23 or minutes > 59 or seconds > 59:
        return None
    try:
        day = dt.date(int(date[:4]), int(date[4:6]), int(date[6:])).toordinal() - _EPOCH
    except ValueError:
        return None
    moment = day * DAY_NS + (hours * 3600 + minutes * 60 + seconds) * _SECOND_NS - KST_NS
    return moment if 0 <= moment <= _LIMIT else None


def stamper(date_at: int, time_at: int) -> Callable[[Sequence[bytes]], int | None]:
    """A reader of a record's own time; records of one second are computed once."""
    seen: tuple[bytes, bytes] = (b"", b"")
    known: int | None = None

    def stamp(fields: Sequence[bytes]) -> int | None:
        nonlocal seen, known
        here = (fields[date_at], fields[time_at])
        if here != seen:
            known = stamp_ns(*here)
            seen = here
        return known

    return stamp
