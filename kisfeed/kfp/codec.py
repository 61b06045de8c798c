"""KFP/1 on the wire: ``u32 big-endian length``, then one msgpack array ``[type, ...]``."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, Final, NoReturn

import msgpack

from kisfeed.errors import BadFrame
from kisfeed.kfp.messages import MAX_FRAME, Type

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_DEPTH: Final = 16  # arrays and maps inside each other, in every frame but TICK and IMAGE
MAX_ITEMS: Final = 16_384  # elements of one array or map: bounds what a forged count allocates

_HEADER: Final = struct.Struct(">I")
_pack: Final = msgpack.Packer(autoreset=True).pack
_HOT: Final = frozenset({int(Type.TICK), int(Type.IMAGE)})
# How a msgpack timestamp starts: the one extension that the decoder builds without asking a hook.
_TIMESTAMPS: Final = (b"\xd6\xff", b"\xd7\xff", b"\xc7\x0c\xff")


def frame(*message: object) -> bytes:
    """One frame that holds *message*, its type first.

    Raises:
        TypeError: an element is not nil, a boolean, a number, text, bytes, an array or a map.
        ValueError: the message is larger than a frame may be, or nests too deeply.
    """
    if not _shallow(message, MAX_DEPTH):
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


def _no_extensions(_code: int, _data: bytes) -> NoReturn:
    raise ValueError("KFP/1 has no msgpack extension types")


def _shallow(value: object, depth: int) -> bool:
    if isinstance(value, dict):
        return depth > 0 and all(_shallow(item, depth - 1) for item in value.values())
    if isinstance(value, (list, tuple)):
        return depth > 0 and all(_shallow(item, depth - 1) for item in value)
    return True


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

    __slots__ = ("_needed", "_rest")

    def __init__(self) -> None:
        self._rest: bytearray | None = None
        self._needed = 0  # a shorter rest cannot hold a whole frame

    def feed(self, data: bytes) -> list[list[Any]]:
        """Every message that *data* completes, in order; each starts with its integer type.

        Raises:
            BadFrame: a length of 0 or over 1 MiB (before anything of it is kept), no msgpack
                array that starts with an integer, an extension type, too deep a nesting. The
                complete messages before it in *data* are lost with the stream.
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
        # One search through everything that arrived, instead of a walk through every message.
        suspicious = any(mark in buffer for mark in _TIMESTAMPS)
        while end - start >= 4:
            (length,) = _HEADER.unpack_from(buffer, start)
            if not 1 <= length <= MAX_FRAME:
                raise BadFrame(f"a frame of {length} bytes; 1 to {MAX_FRAME} are allowed")
            stop = start + 4 + length
            if stop > end:
                needed = 4 + length
                break
            message = _unpack(buffer[start + 4 : stop])
            if suspicious and _has_timestamp(message):
                raise BadFrame("KFP/1 has no msgpack extension types")
            messages.append(message)
            start = stop
        self._rest = bytearray(buffer[start:]) if start < end else None
        self._needed = needed
        return messages


def _unpack(body: bytes) -> list[Any]:
    try:
        message = msgpack.unpackb(
            body, ext_hook=_no_extensions, max_array_len=MAX_ITEMS, max_map_len=MAX_ITEMS
        )
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise BadFrame(f"not msgpack: {error}") from error
    if type(message) is not list or not message or type(message[0]) is not int:
        raise BadFrame("a frame holds one array that starts with its integer type")
    if message[0] not in _HOT and not _shallow(message, MAX_DEPTH):
        raise BadFrame(f"nested more than {MAX_DEPTH} deep")
    return message
