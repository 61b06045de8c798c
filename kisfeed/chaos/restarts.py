"""A real daemon, killed without a word again and again, against a simulator that counts.

The daemon is a process of its own with its state on disk; the simulator lives in the caller's.
Nothing is virtual here.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs
import cattrs
import trio

from kisfeed.chaos.checks import most_within
from kisfeed.config import (
    Config,
    Credentials,
    Endpoints,
    Secret,
    Session,
    State as StateFolder,
    Subscriptions,
)
from kisfeed.feed import run_daemon
from kisfeed.seams import seeded_rng
from kisfeed.simulator import Options, open_simulator

if TYPE_CHECKING:
    from collections.abc import Callable

_SOCKET: Final = "kisfeed.sock"
_READY_S: Final = 60.0  # a busy machine may take its time
TOPIC: Final = "trade.krx.005930"
_MINUTE, _HOUR, _DAY = 60.0, 3600.0, 86_400.0


@attrs.frozen
class Loop:
    """What a crash loop came to, as the server counted.

    Attributes:
        kills: how often the daemon was killed.
        seconds: how long it all took.
        connects: how many there were.
        minute, hour, day: the most in any of these windows, scaled as the rules were.
        shortest_gap_s: between two connects.
    """

    kills: int
    seconds: float
    connects: int
    minute: int
    hour: int
    day: int
    shortest_gap_s: float


def rules(scale: float) -> Session:
    """The rules with every pause and window of dialling divided by *scale*.

    What judges a live session keeps its pace: a busy machine is not a dead line.
    """
    real, quick = Session(), Session().scaled(scale)
    return attrs.evolve(
        real,
        time_scale=scale,
        min_lifetime_s=quick.min_lifetime_s,
        backoff_base_s=quick.backoff_base_s,
        backoff_cap_s=quick.backoff_cap_s,
        local_backoff_base_s=quick.local_backoff_base_s,
        local_backoff_cap_s=quick.local_backoff_cap_s,
        breaker_pauses_s=quick.breaker_pauses_s,
        in_use_hold_s=quick.in_use_hold_s,
        in_use_waits_s=quick.in_use_waits_s,
    )


async def crash_loop(
    kills: int,
    life_s: tuple[float, float],
    *,
    scale: float = 1.0,
    watch_s: float = 0.0,
    seed: int = 1,
    killed: Callable[[], object] = lambda: None,
) -> Loop:
    """Start the daemon and kill it, *kills* times, then let one live for *watch_s*.

    Args:
        kills: how often.
        life_s: the shortest and the longest life, from the moment on in which clients can
            connect; of every fourth process from its start.
        scale: divides every pause and window of dialling.
        watch_s: how long the last one lives.
        seed: of the lives.
        killed: called after each.
    """
    rng = seeded_rng(seed)
    # A loopback server is told of a kill by its kernel, at once.
    options = Options(rate_hz=5.0, pingpong_s=10.0 / min(scale, 20.0))
    options = attrs.evolve(
        options, rules=attrs.evolve(options.rules, hold_s=options.rules.hold_s / scale)
    )
    # The path of a Unix socket has hardly more than a hundred bytes.
    with tempfile.TemporaryDirectory(prefix="kf-", dir="/tmp") as name:
        folder = Path(name)
        async with open_simulator(options) as simulator:
            started = trio.current_time()
            config = {
                "state": str(folder / "state"),
                "socket": str(folder / _SOCKET),
                "rest": simulator.rest_url,
                "ws": simulator.ws_url,
                "session": cattrs.unstructure(rules(scale)),
            }
            (folder / "config.json").write_text(json.dumps(config), "utf-8")
            socket = folder / _SOCKET
            for nth in range(kills + 1):
                socket.unlink(missing_ok=True)
                process = await trio.lowlevel.open_process(
                    [sys.executable, "-m", __name__, str(folder / "config.json")],
                    stdin=subprocess.DEVNULL,
                )
                life = rng.uniform(*life_s) if nth < kills else watch_s
                if nth == kills or nth % 4:
                    with trio.fail_after(_READY_S):
                        while not socket.exists():  # noqa: ASYNC110  # another process makes it
                            await trio.sleep(0.02)
                with trio.move_on_after(life):
                    await process.wait()
                    raise AssertionError(f"the daemon ended by itself: {process.returncode}")
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
                killed()
            connects = simulator.exchange.connects
            return Loop(
                kills,
                trio.current_time() - started,
                len(connects),
                most_within(connects, _MINUTE / scale),
                most_within(connects, _HOUR / scale),
                most_within(connects, _DAY / scale),
                min((b - a for a, b in itertools.pairwise(connects)), default=0.0),
            )


def _daemon(path: Path) -> None:
    told = json.loads(path.read_text("utf-8"))
    config = Config(
        credentials=Credentials(Secret("an appkey"), Secret("its secret")),
        endpoints=Endpoints(told["rest"], told["ws"]),
        state=StateFolder(told["state"]),
        subscriptions=Subscriptions((TOPIC,)),
        session=cattrs.structure(told["session"], Session),
    )
    config = attrs.evolve(config, gateway=attrs.evolve(config.gateway, socket=told["socket"]))
    trio.run(functools.partial(run_daemon, config, runtime_dir=path.parent))


if __name__ == "__main__":
    _daemon(Path(sys.argv[1]))
