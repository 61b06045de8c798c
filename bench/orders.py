"""Orders that cannot happen twice, measured: ``python -m bench.orders [--every N]``.

A program that places an order is killed at every system call between its decision and KIS's
answer, started again, and asked for the same order once more. KIS is the simulator, in this
process. Needs strace.
"""

from __future__ import annotations

import argparse
import collections
import statistics
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import trio

from kisfeed.cli import settings
from kisfeed.errors import OrderRefused
from kisfeed.feed import open_feed
from kisfeed.rest.journal import open_journal
from kisfeed.seams import DirectDisk, ThreadDisk
from kisfeed.simulator import open_simulator
from tests import killing

if TYPE_CHECKING:
    from kisfeed.feed import Feed
    from kisfeed.seams import Disk

RECORD = {"order": {"id": "x" * 40, "text": "y" * 600}}


async def kills(every: int) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        async with open_simulator(killing.options()) as sim:
            folder = Path(temporary) / "trace"
            folder.mkdir()
            calls = await killing.trace(sim, folder, "traced")
            sim.brokerage.orders.clear()
            points = list(dict.fromkeys((c.name, c.nth) for c in calls))[::every]
            byte = next(i for i, c in enumerate(calls) if "POST /uapi" in c.text)
            synced = [i for i, c in enumerate(calls) if c.name == "fdatasync"]
            print(f"system calls on the path: {len(calls)}, distinct points: {len(points)}")
            print(f"fdatasync before the first byte of the POST: {synced[0] < byte}")
            outcomes = []
            for n, (call, nth) in enumerate(points):
                state = Path(temporary) / str(n)
                state.mkdir()
                point = killing.Call(0, call, nth, "")
                outcome = await killing.kill(sim, state, f"o{n}", point)
                outcomes.append(outcome)
                if outcome.executed > 1 or not outcome.right:
                    print("WRONG", outcome)
    states = collections.Counter((o.state, o.executed) for o in outcomes)
    print(f"killed: {sum(o.killed for o in outcomes)} of {len(outcomes)}")
    print(f"most executed for one id: {max(o.executed for o in outcomes)}")
    print(f"wrongly settled: {sum(not o.right for o in outcomes)}")
    for (ended, executed), count in sorted(states.items()):
        print(f"  {count:4} ended {ended}, executed {executed}")


async def journal() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        disks: tuple[Disk, ...] = (DirectDisk(), ThreadDisk())
        for disk in disks:
            with open_journal(Path(temporary) / type(disk).__name__, disk) as opened:
                took = []
                for _ in range(500):
                    began = trio.current_time()
                    await opened.append(RECORD)
                    took.append((trio.current_time() - began) * 1000)
            p50, p99 = statistics.median(took), sorted(took)[494]
            print(f"journal append ({type(disk).__name__}): p50 {p50:.2f} ms, p99 {p99:.2f} ms")


CONFIG = """environment = "sim"
[endpoints]
rest = "{rest}"
ws = "ws://127.0.0.1:9"
[credentials]
appkey = "AK"
appsecret = "AS"
account = "12345678-01"
[state]
dir = "{folder}"
[orders]
enabled = true
"""


async def halts(runs: int) -> None:
    """A flood of orders, and ``kisfeed halt`` from another process that knows no daemon."""
    after, took = 0, []
    for n in range(runs):
        with tempfile.TemporaryDirectory() as temporary:
            async with open_simulator(killing.options()) as sim:
                file = Path(temporary) / "flood.toml"
                file.touch(0o600)
                file.write_text(CONFIG.format(rest=sim.rest_url, folder=temporary))
                config = settings.load(purpose=settings.Purpose.SERVE, file=file, environ={})
                caps = attrs.evolve(config.orders, queue=1_000, max_day_orders=10_000)
                async with (
                    open_feed(attrs.evolve(config, orders=caps)) as feed,
                    trio.open_nursery() as nursery,
                ):
                    for k in range(200):
                        nursery.start_soon(flood, feed, f"o{k}")
                    while not sim.trading.posts:  # noqa: ASYNC110
                        await trio.sleep(0.01)
                    await trio.sleep(0.3 + 0.1 * n)
                    began = trio.current_time()
                    command = [sys.executable, "-m", "kisfeed", "halt", "--config", str(file)]
                    await trio.run_process(command, capture_stdout=True, capture_stderr=True)
                    returned = trio.current_time()
                    took.append(returned - began)
                    await trio.sleep(1.5)
                    after += sum(1 for at, *_ in sim.trading.posts if at > returned)
                    print(f"  {len(sim.trading.posts)} orders out before the halt")
    print(f"orders after `kisfeed halt` returned, {runs} floods: {after}")
    print(f"`kisfeed halt` as a process: at most {max(took):.2f} s")


async def flood(feed: Feed, name: str) -> None:
    asked = {"client_order_id": name, "symbol": "005930", "side": "buy", "qty": 1}
    asked |= {"price": 60_000, "ttl_s": 30}
    try:
        await feed.orders.calls.call("order.preview", asked, "flood")
        await feed.orders.calls.call("order.place", asked, "flood")
    except OrderRefused:
        return


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--every", type=int, default=1, help="only every Nth point")
    every = parser.parse_args().every
    await journal()
    await halts(5)
    if killing.STRACE is None:
        print("no strace here: nothing was killed")
        return
    await kills(every)


if __name__ == "__main__":
    trio.run(main)
