"""Kills a program that places an order at chosen system calls, and counts what KIS executed."""

from __future__ import annotations

import collections
import datetime as dt
import json
import re
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import trio

from kisfeed.seams import SystemClock
from kisfeed.simulator.brokerage import Dealing
from kisfeed.testing import Options, Rules

if TYPE_CHECKING:
    import subprocess

    from kisfeed.simulator import Simulator

PROGRAM = Path(__file__).parent / "clients" / "orderer.py"
STRACE = shutil.which("strace")
KST = dt.timezone(dt.timedelta(hours=9))
LINE = re.compile(r"^(\d+) +(\d+\.\d+) (\w+)\((.*)$")


def options() -> Options:
    """A KIS at this date and time, whose list is quick: the program asks for today's."""
    return Options(
        notice_s=1e9,
        dealing=Dealing(lag_s=(0.1, 0.4)),
        rules=Rules(token_gap_s=0.0, rest_per_s=1_000),
        start=dt.datetime.fromtimestamp(SystemClock().wall_ns() // 10**9, KST),
    )


@attrs.frozen
class Call:
    """One system call of a trace: by which thread, its number among that thread's calls."""

    thread: int
    name: str
    nth: int
    text: str


@attrs.frozen
class Outcome:
    """What became of one killed order."""

    where: str
    killed: bool
    executed: int
    state: str
    right: bool


def command(sim: Simulator, state: Path, name: str, mode: str) -> list[str]:
    return [sys.executable, str(PROGRAM), sim.rest_url, str(state), name, mode]


async def run(arguments: list[str]) -> subprocess.CompletedProcess[bytes]:
    return await trio.run_process(arguments, capture_stdout=True, capture_stderr=True, check=False)


async def trace(sim: Simulator, folder: Path, name: str) -> list[Call]:
    """Every system call of the program from the order on to its end, in order."""
    assert STRACE is not None
    log = folder / "trace"
    done = await run(
        [STRACE, "-f", "-ttt", "-s", "64", "-o", str(log), *command(sim, folder, name, "place")]
    )
    assert done.returncode == 0, done.stderr.decode()
    counts: collections.Counter[tuple[int, str]] = collections.Counter()
    calls, inside = [], False
    for line in log.read_text("utf-8", "replace").splitlines():
        found = LINE.match(line)
        if found is None:
            continue
        thread, call, text = int(found[1]), found[3], found[4]
        counts[thread, call] += 1
        inside = (inside or "/order-begins" in text) and "/order-ends" not in text
        if inside:
            calls.append(Call(thread, call, counts[thread, call], text))
    return calls


async def kill(sim: Simulator, folder: Path, name: str, call: Call) -> Outcome:
    """Place an order and kill the program at *call*; start it again and look."""
    assert STRACE is not None
    inject = f"inject={call.name}:signal=SIGKILL:when={call.nth}"
    quiet = ["-f", "-qq", "-o", "/dev/null", "-e", f"trace={call.name}", "-e", inject]
    died = await run([STRACE, *quiet, *command(sim, folder, name, "place")])
    back = await run(command(sim, folder, name, "recover"))
    assert back.returncode == 0, back.stderr.decode()
    answer = json.loads(back.stdout)
    orders = sim.brokerage.orders[:]
    state, number = answer["state"], answer["order_no"]
    sim.brokerage.orders.clear()
    right = len(orders) == 1 and number == str(orders[0].number)
    if state == "human":
        right = not orders
    return Outcome(f"{call.name}#{call.nth}", died.returncode != 0, len(orders), str(state), right)
