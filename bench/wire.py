"""What every benchmark shares: the frames of KIS, and the C helper that sends and counts them."""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Final

from kisfeed.config import Environment
from kisfeed.schemas import load_catalogue

if TYPE_CHECKING:
    from collections.abc import Sequence

HERE: Final = Path(__file__).parent
OUT: Final = HERE / "out"
TR_ID: Final = "H0STCNT0"
RING: Final = 2000  # frames before the values repeat
_PAGE: Final = mmap.PAGESIZE


def load_generator() -> ctypes.CDLL:
    """The C helper, built from ``load.c`` when that is newer."""
    OUT.mkdir(exist_ok=True)
    source, built = HERE / "load.c", OUT / "libload.so"
    if not built.exists() or built.stat().st_mtime < source.stat().st_mtime:
        fresh = OUT / f"libload.{os.getpid()}.so"
        command = ["cc", "-O2", "-shared", "-fPIC", "-o", str(fresh), str(source)]
        subprocess.run(command, check=True)
        fresh.replace(built)
    lib = ctypes.CDLL(str(built))
    size, u64, i32 = ctypes.c_size_t, ctypes.c_uint64, ctypes.c_int32
    pointer = ctypes.c_void_p
    lib.blast.argtypes = [
        i32,
        ctypes.c_char_p,
        size,
        size,
        ctypes.c_double,
        u64,
        u64,
        pointer,
    ]
    lib.blast.restype = u64
    lib.pace.argtypes = [
        i32,
        ctypes.c_char_p,
        size,
        size,
        ctypes.c_double,
        ctypes.c_uint32,
        u64,
        pointer,
    ]
    lib.pace.restype = u64
    lib.peer_bytes.restype = size
    lib.drain.argtypes = [i32, pointer, u64, pointer, pointer, pointer, u64]
    lib.drain.restype = None
    return lib


def symbols(count: int) -> list[str]:
    """*count* made-up symbols."""
    return [f"{100_000 + n}" for n in range(count)]


def trade_values(symbol: str, n: int) -> list[str]:
    """The *n*-th trade of *symbol*: 46 values as KIS sends them, the same length for every n."""
    px, qty = 70_000 + 100 * (n % 9), 10 + n % 80
    # The volume of a day in which every trade had 50 shares on average: it only has to rise.
    cum_qty = 20_000_000 + sum(10 + i % 80 for i in range(n % 80 + 1)) + n // 80 * 3960
    return [
        symbol, f"{100000 + n % 60:06}", str(px), "2", "1500", "2.16", "70312.24", "70000",
        "71900", "69800", str(px + 100), str(px), str(qty), str(cum_qty), "1406244800000",
        "113664", "103131", "-10533", "95.51", "7129195", "6813943", "1", "0.48", "73.08",
        "090025", "2", "1000", "090025", "5", "-1000", "114825", "2", "1200", "20261120", "20",
        "N", "89301", "67892", "101158", "466092", "0.20", "8331745", "140.44", "0", "", "70000",
    ]  # fmt: skip


def trade_frame(symbol: str, n: int, records: int = 1) -> bytes:
    """A frame of *records* trades, the first of which is the *n*-th."""
    values = "^".join("^".join(trade_values(symbol, n + k)) for k in range(records))
    return f"0|{TR_ID}|{records:03}|{values}".encode()


def websocket(payload: bytes) -> bytes:
    """One unmasked text frame."""
    size = len(payload)
    if size < 126:
        return bytes((0x81, size)) + payload
    if size < 65_536:
        return b"\x81\x7e" + size.to_bytes(2, "big") + payload
    return b"\x81\x7f" + size.to_bytes(8, "big") + payload


def trades(count: int, records: int = 1, ring: int = RING) -> list[bytes]:
    """*ring* frames that go round *count* symbols, each symbol's trades following one another."""
    names = symbols(count)
    return [trade_frame(names[i % count], i // count * records, records) for i in range(ring)]


def field_names() -> Sequence[str]:
    """The columns of a trade."""
    catalogue = load_catalogue(Environment.SIM)
    return catalogue.trs[TR_ID].usual.fields


class Shared:
    """Memory that several processes see: one word that says stop, then a stamp for each frame."""

    def __init__(self, path: str, stamps: int, *, create: bool = False) -> None:
        size = _PAGE + 8 * stamps
        flags = os.O_RDWR | (os.O_CREAT if create else 0)
        fd = os.open(path, flags, 0o600)
        if create:
            os.ftruncate(fd, size)
        self._map = mmap.mmap(fd, size)
        os.close(fd)
        self._view = (ctypes.c_uint64 * (size // 8)).from_buffer(self._map)
        self.stop_at = ctypes.addressof(self._view)
        self.stamps_at = self.stop_at + _PAGE

    def stop(self, *, really: bool = True) -> None:
        """Make the helper's loops return, or let the next ones run."""
        self._view[1] = 0
        self._view[0] = int(really)
