from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import pytest

from kisfeed.locks import LockFile

if TYPE_CHECKING:
    from pathlib import Path


def test_one_holds_it_and_says_who_until_it_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "x.lock"
    with LockFile(path) as first, LockFile(path) as second:
        assert first.acquire()
        first.write(b"a longer word")
        first.write(b"me")
        assert not second.acquire()
        assert second.read() == b"me"
        first.close()
        assert second.acquire()
    with LockFile(path) as third:
        assert third.acquire()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_link_in_its_place_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "x.lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic links"):
        LockFile(tmp_path / "x.lock")
    assert not (tmp_path / "elsewhere").exists()


def test_a_forked_child_neither_holds_it_nor_takes_it_from_its_parent(tmp_path: Path) -> None:
    path = tmp_path / "x.lock"
    # Raw pipes, whose ends the child has too: it lives until the parent closes the second one.
    forked, told = os.pipe()
    ends, end = os.pipe()
    with LockFile(path) as held, LockFile(path) as other:
        assert held.acquire()
        child = os.fork()
        if child == 0:
            os.close(end)
            os.write(told, b"!")
            os.read(ends, 1)
            os._exit(0)
        try:
            os.close(ends)
            os.read(forked, 1)
            assert not other.acquire()
            held.close()
            assert other.acquire()
        finally:
            os.close(end)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            os.close(forked)
            os.close(told)
