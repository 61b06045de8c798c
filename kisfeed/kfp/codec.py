"""KFP/1 on the wire: ``u32 big-endian length``, then one msgpack array ``[type, ...]``."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, Final, NoReturn

import msgpack

from kisfeed.errors import BadFrame
from kisfeed.kfp.messages import MAX_FRAME, Type

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

MAX_DEPTH: Final = 16  # arrays and maps inside each other, in every frame but TICK and IMAGE
MAX_ITEMS: Final = 16_384  # elements of one array or map: bounds what a forged count allocates
MAX_VALUES: Final = 10_000  # of a client's frame, with room for 512 topics and all their options

_HEADER: Final = struct.Struct(">I")
_length: Final = _HEADER.unpack_from
_unpack: Final = msgpack.unpackb
_pack: Final = msgpack.Packer(autoreset=True).pack
_pack_as_text: Final = msgpack.Packer(autoreset=True, use_bin_type=False).pack
_HOT: Final = frozenset({int(Type.TICK), int(Type.IMAGE)})
# How a msgpack timestamp starts: the one extension that the decoder builds without asking a hook.
_TIMESTAMPS: Final = (b"\xd6\xff", b"\xd7\xff", b"\xc7\x0c\xff")
_BEFORE_LAST: Final = tuple(mark[:-1] for mark in _TIMESTAMPS)
_FEW: Final = 64  # of the last byte in one read; more are looked for another way


def frame(*message: object) -> bytes:
    """One frame that holds *message*, its type first.

    Raises:
        TypeError: an element is not nil, a boolean, a number, text, bytes, an array or a map.
        ValueError: the message is larger than a frame may be, or nests too deeply.
    """
    if not _shallow(message):
        raise ValueError(f"a KFP/1 message nests at most {MAX_DEPTH} deep")
    body: bytes = msgpack.packb(message)
    if len(body) > MAX_FRAME:
        raise ValueError(f"a KFP/1 message of {len(body)} bytes; at most {MAX_FRAME} fit a frame")
    return _HEADER.pack(len(body)) + body


def tick_frame(
    kind: int, sid: int, sseq: int, flags: int, xts: int | None, rts: int, row: Sequence[object]
) -> bytes:
    """A TICK or IMAGE frame (*kind* says which) of one row: the hot path's encoder."""
    body: bytes = _pack([kind, sid, sseq, flags, xts, rts, *row])
    return _HEADER.pack(len(body)) + body


def text_frame(
    kind: int, sid: int, sseq: int, flags: int, xts: int | None, rts: int, row: Sequence[bytes]
) -> bytes:
    """:func:`tick_frame` of texts that are at hand as UTF-8; whether they are is not looked at."""
    body: bytes = _pack_as_text([kind, sid, sseq, flags, xts, rts, *row])
    return _HEADER.pack(len(body)) + body


def _no_extensions(_code: int, _data: bytes) -> NoReturn:
    raise ValueError("KFP/1 has no msgpack extension types")


def _shallow(message: Iterable[object]) -> bool:
    """Whether arrays and maps, *message* among them, nest at most ``MAX_DEPTH`` deep."""
    inside: list[Iterable[object]] = [message]
    for _ in range(MAX_DEPTH):
        inside = [
            value.values() if isinstance(value, dict) else value
            for values in inside
            for value in values
            if isinstance(value, (list, dict, tuple))
        ]
        if not inside:
            return True
    return False


def _widths() -> bytes:
    """How many bytes a value takes by its first one; 0 where more than that has to be looked at.

    Of an array or map it is the head: its elements are values of their own.
    """
    fixed = {0xCA: 5, 0xCB: 9, 0xCC: 2, 0xCD: 3, 0xCE: 5, 0xCF: 9, 0xD0: 2, 0xD1: 3, 0xD2: 5}
    fixed |= {0xD3: 9, 0xDC: 3, 0xDD: 5, 0xDE: 3, 0xDF: 5}
    texts = {0xA0 + size: 1 + size for size in range(32)}
    longer = dict.fromkeys((*_HEADS, 0xC7, 0xC8, 0xC9, *range(0xD4, 0xD9)), 0)
    return bytes((fixed | texts | longer).get(first, 1) for first in range(256))


_HEADS: Final = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4}  # bytes of a length
_WIDTHS: Final = _widths()


def _walk(body: bytes, most: int) -> None:
    """Look at every value of *body* without making one.

    Raises:
        BadFrame: there are more than *most*, or one is of an extension type.
    """
    at, end, widths, heads = 0, len(body), _WIDTHS, _HEADS
    for _ in range(most):
        if at >= end:
            return
        width = widths[body[at]]
        if not width:
            head = heads.get(body[at])
            if head is None:
                raise BadFrame("KFP/1 has no msgpack extension types")
            at += head
            width = 1 + int.from_bytes(body[at - head + 1 : at + 1], "big")
        at += width
    if at < end:
        raise BadFrame(f"a frame of more than {most} values")


def _marked(data: bytes) -> bool:
    """Whether a timestamp may be in *data*."""
    # One byte is found many times as fast as two, and among ticks it is rare.
    at = -1
    for _ in range(_FEW):
        at = data.find(b"\xff", at + 1)
        if at < 0:
            return False
        if data.endswith(_BEFORE_LAST, 0, at):
            return True
    return any(mark in data for mark in _TIMESTAMPS)


def _has_timestamp(value: object) -> bool:
    if isinstance(value, dict):
        return any(_has_timestamp(item) for item in value.values())
    if isinstance(value, list):
        return any(_has_timestamp(item) for item in value)
    return isinstance(value, msgpack.Timestamp)


class Decoder:
    """Cuts a byte stream, however it was chunked, into messages.

    After :exc:`~kisfeed.errors.BadFrame` the stream has no known frame boundary: drop it.
    """

    __slots__ = ("_most", "_needed", "_rest")

    def __init__(self, most: int = MAX_FRAME) -> None:
        """Take frames of at most *most* values: a megabyte of tiny ones is half a second's work."""
        self._most = most
        self._rest: bytearray | None = None
        self._needed = 0  # a shorter rest cannot hold a whole frame

    def feed(self, data: bytes) -> list[list[Any]]:
        """Every message that *data* completes, in order; each starts with its integer type.

        Raises:
            BadFrame: a length of 0 or over 1 MiB (before anything of it is kept), too many
                values, no msgpack array that starts with an integer, an extension type, too deep
                a nesting. The complete messages before it in *data* are lost with the stream.
        """
        buffer = data
        if self._rest is not None:
            self._rest += data
            if len(self._rest) < self._needed:
                return []
            buffer = bytes(self._rest)
        messages: list[list[Any]] = []
        end = len(buffer)
        start = 0
        needed = 4
        most = self._most
        # One search through everything that arrived, instead of a walk through every message.
        long = end > most
        suspicious = not long and _marked(buffer)
        while end - start >= 4:
            (length,) = _length(buffer, start)
            if not 1 <= length <= MAX_FRAME:
                raise BadFrame(f"a frame of {length} bytes; 1 to {MAX_FRAME} are allowed")
            stop = start + 4 + length
            if stop > end:
                needed = 4 + length
                break
            body = buffer[start + 4 : stop]
            if length > most:
                _walk(body, most)
            elif long:
                suspicious = _marked(body)
            try:
                message = _unpack(
                    body, ext_hook=_no_extensions, max_array_len=MAX_ITEMS, max_map_len=MAX_ITEMS
                )
            except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
                raise BadFrame(f"not msgpack: {error}") from error
            if type(message) is not list or not message or type(message[0]) is not int:
                raise BadFrame("a frame holds one array that starts with its integer type")
            if message[0] not in _HOT and not _shallow(message):
                raise BadFrame(f"nested more than {MAX_DEPTH} deep")
            if suspicious and _has_timestamp(message):
                raise BadFrame("KFP/1 has no msgpack extension types")
            messages.append(message)
            start = stop
        self._rest = bytearray(buffer[start:]) if start < end else None
        self._needed = needed
        return messages
