"""Programs as a user starts them: own processes, a private home, JSON lines out."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs
import trio

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Mapping

    from kisfeed.simulator import Simulator

KISFEED: Final = (sys.executable, "-m", "kisfeed")
FOLLOWER: Final = Path(__file__).with_name("clients") / "follower.py"

# KIS's patience, sixty times as fast, for the rules that hold a dial back. What judges a live
# session keeps its pace: a busy machine is not a dead line.
QUICK_SESSION: Final = """
[session]
time_scale = 60.0
min_lifetime_s = 1.0
backoff_base_s = 0.1
local_backoff_base_s = 0.1
in_use_hold_s = 0.3
in_use_waits_s = [0.5]
"""


@attrs.define(eq=False)
class Program:
    """A running program and what it has said so far.

    Attributes:
        said: its stdout, one JSON value a line; a line that is not JSON is a text.
        code: how it ended; None while it runs.
        hear: takes each value in place of ``said``.
    """

    process: trio.Process
    errors: Path
    said: list[Any] = attrs.field(factory=list)
    code: int | None = None
    hear: Callable[[Any], object] | None = None
    _by_type: defaultdict[str, list[Any]] = attrs.field(factory=lambda: defaultdict(list))
    _news: trio.Event = attrs.field(factory=trio.Event)

    @property
    def talk(self) -> str:
        """Its stderr so far."""
        return self.errors.read_text("utf-8")

    def of(self, kind: str) -> list[Any]:
        """The events of this type that it has printed."""
        return self._by_type[kind]

    async def until(self, done: Callable[[Program], object], within: float = 20.0) -> None:
        """Wait for more output, or the end, until *done*; what it said is told if it never is."""
        with trio.move_on_after(within):
            while self.code is None and not done(self):
                await self._news.wait()
        if not done(self):
            tail = "\n".join(str(line)[:200] for line in self.said[-8:])
            raise AssertionError(f"exit code {self.code}\n{tail}\n{self.talk}")

    async def says(self, count: int, kind: str | None = None) -> list[Any]:
        """Wait for *count* lines, of this type if one is given."""
        lines = self.said if kind is None else self.of(kind)
        await self.until(lambda _: len(lines) >= count)
        return lines

    async def ends(self, within: float = 20.0) -> int:
        """Wait for the end; returns the exit code."""
        await self.until(lambda _: self.code is not None, within)
        assert self.code is not None
        return self.code

    async def listen(self) -> None:
        pending = b""
        assert self.process.stdout is not None
        with contextlib.suppress(trio.ClosedResourceError):
            async for data in self.process.stdout:
                *lines, pending = (pending + data).split(b"\n")
                for line in lines:
                    value = _value(line)
                    if self.hear is not None:
                        self.hear(value)
                        continue
                    self.said.append(value)
                    if isinstance(value, dict):
                        self._by_type[value.get("type", "")].append(value)
                self._tell()
        self.code = await self.process.wait()
        self._tell()

    def _tell(self) -> None:
        news, self._news = self._news, trio.Event()
        news.set()


def _value(line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return line.decode()


@attrs.define(eq=False)
class Place:
    """A home of its own for daemons and clients; whatever still runs at its end is killed."""

    folder: Path
    nursery: trio.Nursery
    environ: Mapping[str, str]
    programs: list[Program] = attrs.field(factory=list)

    @property
    def runtime(self) -> Path:
        return self.folder / "run" / "kisfeed"

    def socket(self, profile: str = "test") -> Path:
        return self.runtime / f"{profile}.sock"

    def configure(self, text: str, profile: str = "test") -> Path:
        """Write a profile."""
        path = self.folder / "config" / "kisfeed" / f"{profile}.toml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
        path.chmod(0o600)
        return path

    def configure_for(self, simulator: Simulator, more: str = "", profile: str = "test") -> None:
        """Write a profile for *simulator*; all such profiles share one appkey."""
        self.configure(
            f"""environment = "sim"
[credentials]
appkey = "an appkey"
appsecret = "its secret"
[endpoints]
rest = "{simulator.rest_url}"
ws = "{simulator.ws_url}"
{QUICK_SESSION}{more}""",
            profile,
        )

    async def start(
        self, *command: str | Path, hear: Callable[[Any], object] | None = None
    ) -> Program:
        """Start a program and listen to it."""
        errors = self.folder / f"stderr-{len(self.programs)}"
        with errors.open("wb") as stderr:
            process = await trio.lowlevel.open_process(
                [str(part) for part in command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=self.environ,
                cwd=self.folder,
            )
        program = Program(process, errors, hear=hear)
        self.programs.append(program)
        self.nursery.start_soon(program.listen)
        return program

    async def kisfeed(self, *arguments: str | Path) -> Program:
        """Start one of kisfeed's commands."""
        return await self.start(*KISFEED, *arguments)

    async def serve(self, *arguments: str | Path, profile: str = "test") -> Program:
        """Start a daemon and wait until clients can connect."""
        daemon = await self.kisfeed("serve", "--json", "--profile", profile, *arguments)
        (ready,) = await daemon.says(1)
        assert ready["type"] == "ready", ready
        return daemon

    async def follow(self, kind: str, *topics: str, profile: str = "test") -> Program:
        """Start a client: ``sync``, ``asyncio`` or ``stream``."""
        if kind == "stream":
            return await self.kisfeed("stream", *topics, "--profile", profile)
        return await self.start(sys.executable, FOLLOWER, kind, self.socket(profile), *topics)


@contextlib.asynccontextmanager
async def open_place(**environment: str) -> AsyncGenerator[Place]:
    # The path of a Unix socket has hardly more than a hundred bytes.
    with tempfile.TemporaryDirectory(prefix="kf-", dir="/tmp") as name:
        folder = Path(name)
        for part in ("run", "state", "config", "home"):
            (folder / part).mkdir(mode=0o700)
        environ = {k: v for k, v in os.environ.items() if not k.startswith(("KISFEED_", "LC_"))}
        environ |= {
            "HOME": str(folder / "home"),
            "XDG_RUNTIME_DIR": str(folder / "run"),
            "XDG_STATE_HOME": str(folder / "state"),
            "XDG_CONFIG_HOME": str(folder / "config"),
            "KISFEED_LANG": "en",
            **environment,
        }
        async with trio.open_nursery() as nursery:
            place = Place(folder, nursery, environ)
            try:
                yield place
            finally:
                with trio.CancelScope(shield=True):
                    for program in place.programs:
                        program.process.send_signal(signal.SIGKILL)
                        await program.process.wait()
                nursery.cancel_scope.cancel()
