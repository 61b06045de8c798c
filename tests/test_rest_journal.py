from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any

import pytest
import trio
from hypothesis import given, strategies as st

from kisfeed.errors import LocalRefusal, StateError
from kisfeed.rest.journal import decode, encode, open_journal
from kisfeed.seams import DirectDisk

if TYPE_CHECKING:
    from pathlib import Path

RECORDS: list[dict[str, Any]] = [{"order": {"id": f"주문-{n}", "qty": n}} for n in range(6)]


@given(st.lists(st.dictionaries(st.text(max_size=5), st.text() | st.integers()), max_size=8))
def test_what_was_encoded_is_decoded(records: list[dict[str, Any]]) -> None:
    data = b"".join(encode(record) for record in records)
    assert decode(data) == (records, len(data))


def test_a_journal_cut_at_any_byte_gives_a_prefix() -> None:
    data = b"".join(encode(record) for record in RECORDS)
    ends = [len(b"".join(encode(r) for r in RECORDS[:n])) for n in range(len(RECORDS) + 1)]
    for cut in range(len(data) + 1):
        records, end = decode(data[:cut])
        whole = sum(1 for e in ends if e <= cut) - 1
        assert records == RECORDS[:whole]
        assert end == ends[whole]


@pytest.mark.parametrize("tail", [b"\0" * 100, b"\0" * 8, b"\0\0\0\x10", encode(RECORDS[0])[:-1]])
def test_the_torn_end_of_an_append_is_left_out(tail: bytes) -> None:
    head = encode(RECORDS[0])
    assert decode(head + tail) == (RECORDS[:1], len(head))


def test_a_last_record_with_a_wrong_checksum_is_a_torn_one() -> None:
    head, last = encode(RECORDS[0]), bytearray(encode(RECORDS[1]))
    last[-1] ^= 1
    assert decode(head + last) == (RECORDS[:1], len(head))


@given(st.data())
def test_damage_before_whole_records_is_never_read_over(data: st.DataObject) -> None:
    whole = bytearray(b"".join(encode(record) for record in RECORDS))
    last = len(encode(RECORDS[-1]))
    at = data.draw(st.integers(0, len(whole) - last - 1))
    whole[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(ValueError, match="more behind it"):
        decode(bytes(whole))


async def test_appended_records_are_there_when_it_is_opened_again(tmp_path: Path) -> None:
    path = tmp_path / "orders"
    with open_journal(path, DirectDisk()) as first:
        await first.append(RECORDS[0])
        await first.append(*RECORDS[1:3])
    assert path.stat().st_mode & 0o777 == 0o600
    with open_journal(path, DirectDisk()) as second:
        assert second.records == RECORDS[:3]


async def test_appending_goes_on_behind_a_cut(tmp_path: Path) -> None:
    path = tmp_path / "orders"
    whole = b"".join(encode(record) for record in RECORDS[:3])
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        with open_journal(path, DirectDisk()) as opened:
            before = opened.records
            await opened.append(RECORDS[5])
        with open_journal(path, DirectDisk()) as opened:
            assert opened.records == [*before, RECORDS[5]]


def test_a_damaged_journal_is_not_opened_and_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "orders"
    damaged = bytearray(encode(RECORDS[0]) + encode(RECORDS[1]))
    damaged[10] ^= 0xFF
    path.write_bytes(damaged)
    with pytest.raises(StateError, match=r"damaged.*byte 0"), open_journal(path, DirectDisk()):
        pass
    assert path.read_bytes() == damaged


def test_one_process_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "orders"
    with open_journal(path, DirectDisk()):
        with pytest.raises(LocalRefusal, match="another process"):
            with open_journal(path, DirectDisk()):
                pass


class FullDisk(DirectDisk):
    """Writes *room* bytes more, then nothing."""

    def __init__(self, room: int) -> None:
        self.room = room

    async def append(self, fd: int, data: bytes) -> None:
        await trio.lowlevel.checkpoint()
        os.write(fd, data[: self.room])
        if len(data) > self.room:
            raise OSError(errno.ENOSPC, "No space left on device")


async def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path) -> None:
    path = tmp_path / "orders"
    disk = FullDisk(10_000)
    with open_journal(path, disk) as opened:
        await opened.append(RECORDS[0])
        disk.room = 9
        with pytest.raises(StateError, match="No space"):
            await opened.append(RECORDS[1])
        disk.room = 10_000
        await opened.append(RECORDS[2])
    assert decode(path.read_bytes())[0] == [RECORDS[0], RECORDS[2]]


async def test_what_cannot_be_taken_back_ends_ordering(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(fd: int, size: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with open_journal(tmp_path / "orders", FullDisk(3)) as opened:
        monkeypatch.setattr(os, "ftruncate", broken)
        for _ in range(2):
            with pytest.raises(StateError):
                await opened.append(RECORDS[0])
        with pytest.raises(StateError, match="nothing can be ordered"):
            await opened.append(RECORDS[0])


async def test_what_is_put_aside_is_in_the_archive_and_what_is_needed_stays(
    tmp_path: Path,
) -> None:
    path = tmp_path / "k.orders"
    with open_journal(path, DirectDisk()) as opened:
        await opened.append(*RECORDS[:4])
        await opened.put_aside(RECORDS[2:3], "20261121")
        await opened.append(RECORDS[5])
        assert opened.archived("20261120") == RECORDS[:4]
        assert opened.archived("20261121") == []
    assert {p.name for p in tmp_path.iterdir()} == {
        "k.orders", "k.orders.20261121", "k.orders.lock",
    }  # fmt: skip
    assert all(p.stat().st_mode & 0o777 == 0o600 for p in tmp_path.iterdir())
    with open_journal(path, DirectDisk()) as opened:
        assert opened.records == [RECORDS[2], RECORDS[5]]
        await opened.put_aside([], "20261121")
        assert opened.archived("20261120") == [*RECORDS[:4], RECORDS[2], RECORDS[5]]
        assert opened.archived("20261121") == []


class Dies(Exception):
    """The process ends here."""


class DyingDisk(DirectDisk):
    """Ends the process in the middle of a replacement: before it, or right behind it."""

    def __init__(self, *, done: bool) -> None:
        self.done = done

    async def write(self, path: Path, data: bytes) -> None:
        path.with_name(f".{path.name}.1").write_bytes(data[: len(data) // 2])
        if self.done:
            await super().write(path, data)
        raise Dies


@pytest.mark.parametrize("done", [False, True])
async def test_a_death_while_putting_aside_loses_nothing(tmp_path: Path, *, done: bool) -> None:
    path = tmp_path / "k.orders"
    with open_journal(path, DirectDisk()) as opened:
        await opened.append(*RECORDS[:4])
    with pytest.raises(Dies), open_journal(path, DyingDisk(done=done)) as opened:
        await opened.put_aside(RECORDS[3:4], "20261121")
    with open_journal(path, DirectDisk()) as opened:
        assert opened.records == (RECORDS[3:4] if done else RECORDS[:4])
        await opened.put_aside(RECORDS[3:4], "20261121")
        archived = opened.archived("20261120")
    assert archived[:4] == RECORDS[:4]
    assert archived[4:] == (RECORDS[3:4] if done else [])


async def test_a_disk_that_cannot_replace_the_journal_leaves_it_in_use(tmp_path: Path) -> None:
    class Full(DirectDisk):
        async def write(self, path: Path, data: bytes) -> None:  # noqa: ARG002
            raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "k.orders"
    with open_journal(path, Full()) as opened:
        await opened.append(*RECORDS[:2])
        with pytest.raises(StateError, match="No space"):
            await opened.put_aside([], "20261121")
        await opened.append(RECORDS[2])
    with open_journal(path, DirectDisk()) as opened:
        assert opened.records == RECORDS[:3]


async def test_a_replaced_journal_is_still_one_process_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "k.orders"
    with open_journal(path, DirectDisk()) as opened:
        await opened.append(RECORDS[0])
        await opened.put_aside([], "20261121")
        with pytest.raises(LocalRefusal, match="another process"):
            with open_journal(path, DirectDisk()):
                pass
