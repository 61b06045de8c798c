from __future__ import annotations

import contextlib
import struct
from typing import Any

import msgpack
import pytest
from hypothesis import example, given, settings, strategies as st

from kisfeed.errors import BadFrame
from kisfeed.kfp import codec
from kisfeed.kfp.messages import MAX_FRAME, Type

_TEXT = st.text("aZ0 가😀\x00", max_size=5)
_SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | _TEXT
    | st.binary(max_size=8)
    | st.floats(allow_nan=False)
)
_VALUES = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_TEXT, inner, max_size=4),
    max_leaves=10,
)
_MESSAGES = st.lists(_VALUES, max_size=6).flatmap(
    lambda rest: st.integers(1, 40).map(lambda kind: [kind, *rest])
)


def _framed(body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + body


@given(st.lists(_MESSAGES, max_size=4))
def test_what_is_framed_comes_back_whole(messages: list[list[Any]]) -> None:
    stream = b"".join(codec.frame(*m) for m in messages)
    assert codec.Decoder().feed(stream) == messages


@given(st.lists(_MESSAGES, max_size=4), st.data())
def test_chunks_do_not_matter(messages: list[list[Any]], data: st.DataObject) -> None:
    stream = b"".join(codec.frame(*m) for m in messages)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    decoder = codec.Decoder()
    decoded = []
    for start, stop in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        decoded += decoder.feed(stream[start:stop])
    assert decoded == messages


@given(st.lists(_MESSAGES, min_size=1, max_size=3))
@settings(max_examples=25)
def test_a_cut_at_every_byte_loses_nothing(messages: list[list[Any]]) -> None:
    stream = b"".join(codec.frame(*m) for m in messages)
    for cut in range(len(stream) + 1):
        decoder = codec.Decoder()
        assert decoder.feed(stream[:cut]) + decoder.feed(stream[cut:]) == messages
    decoder = codec.Decoder()
    assert [m for i in range(len(stream)) for m in decoder.feed(stream[i : i + 1])] == messages


@given(st.lists(st.binary(max_size=40), max_size=4))
@example([_framed(b"\xc1")])
@example([_framed(b"\x91\x81\x90\x01")])  # an array as the key of a map
@example([_framed(b"\x92\x05\xa1\xff")])  # text that is not UTF-8
@example([_framed(b"\x92\x05\xd6\xff\x00\x00\x00\x00")])  # a timestamp
@example([_framed(b"\x92\x05\xc7\x00\x07")])  # another extension
def test_any_bytes_give_messages_or_bad_frame(chunks: list[bytes]) -> None:
    decoder = codec.Decoder()
    try:
        for chunk in chunks:
            for message in decoder.feed(chunk):
                assert type(message) is list
                assert type(message[0]) is int
    except BadFrame:
        pass


@given(st.binary(max_size=60))
def test_any_body_gives_a_message_or_bad_frame(body: bytes) -> None:
    with contextlib.suppress(BadFrame):
        codec.Decoder().feed(_framed(body))


@pytest.mark.parametrize("length", [0, MAX_FRAME + 1, 0x7B226F70, 0xFFFFFFFF])
def test_an_impossible_length_is_refused_before_its_bytes_come(length: int) -> None:
    with pytest.raises(BadFrame):
        codec.Decoder().feed(struct.pack(">I", length))


def test_the_largest_frame_passes() -> None:
    body = msgpack.packb([5, 1, b"x" * (MAX_FRAME - 8)])
    assert len(body) == MAX_FRAME
    assert len(codec.Decoder().feed(_framed(body))) == 1


def test_a_message_over_the_largest_frame_is_not_made() -> None:
    with pytest.raises(ValueError, match="at most"):
        codec.frame(Type.RES, 1, {"blob": b"x" * MAX_FRAME})


@pytest.mark.parametrize("body", [b"\x90", b"\x80", b"\x07", b"\xc0", b"\x91\xc3", b"\x91\xa1x"])
def test_only_an_array_with_an_integer_type_is_a_message(body: bytes) -> None:
    with pytest.raises(BadFrame):
        codec.Decoder().feed(_framed(body))


def test_bytes_behind_the_array_are_refused() -> None:
    with pytest.raises(BadFrame):
        codec.Decoder().feed(_framed(b"\x91\x05\x00"))


@pytest.mark.parametrize(
    "extension",
    [msgpack.ExtType(7, b"x"), msgpack.Timestamp(1, 0), msgpack.Timestamp(1 << 40, 5)],
    ids=["unknown", "short timestamp", "long timestamp"],
)
@pytest.mark.parametrize("kind", [Type.PING, Type.TICK])
def test_extension_types_are_refused_wherever_they_stand(extension: Any, kind: Type) -> None:
    for message in ([kind, 1, extension], [kind, 1, [{"a": extension}]]):
        with pytest.raises(BadFrame):
            codec.Decoder().feed(_framed(msgpack.packb(message)))


def test_bytes_that_look_like_a_timestamp_are_not_one() -> None:
    stream = codec.frame(Type.PING, 1, b"\xd6\xff\xd7\xff\xc7\x0c\xff")
    assert codec.Decoder().feed(stream) == [[5, 1, b"\xd6\xff\xd7\xff\xc7\x0c\xff"]]


_TELLING = st.lists(st.sampled_from([b"\xd6", b"\xd7", b"\xc7\x0c", b"\xff", b"\xff" * 40, b"a"]))


@given(st.lists(_TELLING.map(b"".join), max_size=6), st.integers(0, 6))
def test_a_timestamp_is_found_among_bytes_that_look_like_one(texts: list[bytes], at: int) -> None:
    message: list[Any] = [int(Type.TICK), *texts]
    assert codec.Decoder().feed(_framed(msgpack.packb(message))) == [message]
    message.insert(at + 1, msgpack.Timestamp(1, 0))
    with pytest.raises(BadFrame):
        codec.Decoder().feed(_framed(msgpack.packb(message)))


def _count(value: object) -> int:
    if isinstance(value, dict):
        return 1 + sum(_count(key) + _count(item) for key, item in value.items())
    return 1 + sum(map(_count, value)) if isinstance(value, list) else 1


@given(_MESSAGES)
@example([5, 1, "x" * 40, "x" * 300, "x" * 70_000, b"x" * 40, b"x" * 300, b"x" * 70_000])
@example([5, *range(20), list(range(16)), {str(n): n for n in range(16)}, [0] * 70_000])
def test_a_frame_may_have_as_many_values_as_were_allowed(message: list[Any]) -> None:
    stream, values = _framed(msgpack.packb(message)), _count(message)
    if values < codec.MAX_ITEMS:
        assert codec.Decoder(values).feed(stream) == [message]
    with pytest.raises(BadFrame, match=f"more than {values - 1} values"):
        codec.Decoder(values - 1).feed(stream)


@pytest.mark.parametrize("mark", [b"\xd6\xff", b"\xd7\xff", b"\xc7\x0c\xff"])
def test_a_timestamp_is_refused_whether_or_not_values_are_counted(mark: bytes) -> None:
    body = b"\x93\x05\x01" + mark + bytes(12)
    for most in (1, 5, 100, MAX_FRAME):
        with pytest.raises(BadFrame):
            codec.Decoder(most).feed(_framed(b"\x92\x05\x01") + _framed(body[: 5 + len(mark)]))
        alike = _framed(msgpack.packb([5, 1, mark]))
        assert codec.Decoder(max(most, 4)).feed(alike * 3) == [[5, 1, mark]] * 3


@given(st.binary(min_size=1, max_size=80))
@example(b"\x92\x05\xc6\xff\xff\xff\xff")
@example(b"\x92\x05\xd9")
def test_counting_values_stumbles_over_nothing(body: bytes) -> None:
    def outcome(decoder: codec.Decoder) -> object:
        try:
            return repr(decoder.feed(_framed(body)))
        except BadFrame as exc:
            return "too many" if "values" in str(exc) else "bad"

    assert outcome(codec.Decoder(0)) == "too many"
    counted, free = outcome(codec.Decoder(3)), outcome(codec.Decoder())
    assert counted in {free, "too many"}


@pytest.mark.parametrize("depth", [codec.MAX_DEPTH + 1, 500, 2000, 100_000])
@pytest.mark.parametrize("opening", [b"\x91", b"\x81\xa1k"], ids=["arrays", "maps"])
def test_a_depth_bomb_is_refused(depth: int, opening: bytes) -> None:
    with pytest.raises(BadFrame):
        codec.Decoder().feed(_framed(b"\x92\x05" + opening * depth + b"\x01"))


def test_forged_counts_inside_each_other_allocate_little() -> None:
    bomb = b"\x92\x05" + b"\xdd\x00\x0f\xff\xff" * 1000
    with pytest.raises(BadFrame):
        codec.Decoder().feed(_framed(bomb.ljust(MAX_FRAME, b"\x00")))


def test_a_message_too_deep_to_be_read_is_not_made() -> None:
    deep: Any = 1
    for _ in range(codec.MAX_DEPTH + 1):
        deep = [deep]
    with pytest.raises(ValueError, match="deep"):
        codec.frame(Type.PING, 1, deep)


@given(
    sid=st.integers(1, 2**16),
    sseq=st.integers(0, 2**40),
    flags=st.integers(0, 15),
    xts=st.none() | st.integers(0, 2**62),
    rts=st.integers(0, 2**62),
    row=st.lists(st.none() | st.integers(-(2**40), 2**40) | _TEXT, max_size=20),
)
def test_a_tick_frame_is_the_same_bytes_as_any_frame(
    sid: int, sseq: int, flags: int, xts: int | None, rts: int, row: list[Any]
) -> None:
    frame = codec.tick_frame(Type.TICK, sid, sseq, flags, xts, rts, row)
    assert frame == codec.frame(Type.TICK, sid, sseq, flags, xts, rts, *row)
