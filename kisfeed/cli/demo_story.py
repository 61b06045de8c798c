"""What happens in ``kisfeed demo``, and when: real programs on a real socket."""

from __future__ import annotations

import functools
import math
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

import attrs
import trio

from kisfeed import config, feed, simulator
from kisfeed.cli.demo_view import Program
from kisfeed.cli.i18n import _
from kisfeed.client.structured import open_client
from kisfeed.kfp import events
from kisfeed.kfp.messages import Code

if TYPE_CHECKING:
    from types import TracebackType

    from kisfeed.cli.demo_view import Show

SCALE: Final = 20.0
SHOWN: Final = "trade.krx.005930"
SYMBOLS: Final = ("005930", "000660", "035420", "005380", "035720", "068270")
RATE_HZ: Final = 12.0
STALL_S: Final = 3.5  # the slow program does not read for so long,
CATCH_UP_S: Final = 1.5  # then reads for so long
CUT_AT: Final = 0.35  # of the whole time, as the next ones
CROWD_AT: Final = 0.6
LEAVE_AT: Final = 0.85
PICTURE_S: Final = 0.125
SLOTS: Final = 41
SCANNER_PRIO: Final = 5


class Screen(Protocol):
    """Where the show is shown."""

    def __enter__(self) -> None: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

    def update(self) -> None:
        """Show what has changed."""


def rules() -> config.Session:
    """The session's rules with shorter times; what waits for this machine keeps its own."""
    default = config.Session()
    return attrs.evolve(
        default.scaled(SCALE),
        dial_timeout_s=default.dial_timeout_s,
        send_timeout_s=default.send_timeout_s,
        close_timeout_s=default.close_timeout_s,
        ack_timeout_s=default.ack_timeout_s,
        probe_timeout_s=default.probe_timeout_s,
    )


def profile(folder: Path, simulated: simulator.Simulator) -> config.Config:
    """A profile of its own, with its state in a folder that goes away."""
    key = config.Secret("simulated-demo")
    return config.Config(
        environment=config.Environment.SIM,
        profile="demo",
        credentials=config.Credentials(key, key),
        endpoints=config.Endpoints(simulated.rest_url, simulated.ws_url),
        # Short queues: a slow program shows within seconds what else takes it a minute.
        gateway=config.Gateway(queue_bytes=16_384, max_age_s=2.0),
        state=config.State(str(folder)),
        session=rules(),
    )


async def run(show: Show, screen: Screen) -> None:
    """Play the whole story; ends by itself after ``show.seconds``."""
    options = simulator.Options(
        rate_hz=RATE_HZ, pingpong_s=2.0, rules=simulator.Rules(hold_s=18.0 / SCALE)
    )
    with tempfile.TemporaryDirectory(prefix="kisfeed-demo-") as name:
        folder = Path(name)
        async with simulator.open_simulator(options) as simulated, trio.open_nursery() as nursery:
            daemon = functools.partial(
                feed.run_daemon, profile(folder, simulated), runtime_dir=folder
            )
            socket = await nursery.start(daemon)
            await _Story(show, screen, simulated, socket).play()
            nursery.cancel_scope.cancel()


@attrs.define(eq=False)
class _Story:
    show: Show
    screen: Screen
    simulated: simulator.Simulator
    socket: Path
    start: float = attrs.Factory(trio.current_time)
    _slot_changes: dict[tuple[str, int], None] = attrs.field(factory=dict, init=False)

    async def play(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._draw)
            self.show.tell(_("a simulated KIS and the daemon are running"))
            for program, kinds, stalls in (
                (Program("strategy", _("trades"), "all"), ("trade",), False),
                (Program("recorder", _("trades and books"), "all"), ("trade", "book"), False),
                (Program("slow", _("the same, stops reading"), "all"), ("trade", "book"), True),
            ):
                self.show.programs.append(program)
                topics = [f"{kind}.krx.{symbol}" for kind in kinds for symbol in SYMBOLS]
                nursery.start_soon(self._program, program, topics, stalls)
            await self._until(CUT_AT)
            self.show.tell(_("the line to KIS is cut"))
            self.simulated.inject(simulator.Kind.CUT)
            await self._until(CROWD_AT)
            await self._crowd(nursery)
            await self._until(1.0)
            nursery.cancel_scope.cancel()

    async def _until(self, part: float) -> None:
        await trio.sleep_until(self.start + part * self.show.seconds)

    async def _draw(self) -> None:
        async with open_client(socket=self.socket, client="kisfeed demo") as viewer:
            while True:
                slots = (await viewer.status())["slots"]
                self.show.slots_used, self.show.slots_cap = slots["used"], slots["cap"]
                self.show.elapsed = trio.current_time() - self.start
                self.screen.update()
                await trio.sleep(PICTURE_S)

    async def _program(self, program: Program, topics: list[str], stalls: bool) -> None:
        """One local program: a client like any other."""
        async with open_client(socket=self.socket, client=program.name) as kf:
            await kf.subscribe(*topics, mode=program.mode)
            program.topics = len(topics)
            first = program is self.show.programs[0]
            stall_at = trio.current_time() if stalls else math.inf
            async for event in kf:
                self._count(program, event)
                if first:
                    self._follow(event)
                if trio.current_time() >= stall_at:
                    await trio.sleep(STALL_S)
                    stall_at = trio.current_time() + CATCH_UP_S

    def _count(self, program: Program, event: events.Event) -> None:
        match event:
            case events.Row():
                program.ticks += not event.image
            case events.Lost(n=n):
                if not program.lost:
                    self.show.tell(
                        _("{name} does not read: what it loses is counted and told").format(
                            name=program.name
                        )
                    )
                program.lost += n
            case events.Gap(missed_qty=missed):
                program.gaps += 1
                program.missed_qty += missed or 0
            case events.Status():
                self._tell_slot(event)
            case _:
                pass

    def _follow(self, event: events.Event) -> None:
        """What the first program hears is what the picture shows."""
        show = self.show
        if isinstance(event, events.Trade):
            show.account(event)
        match event:
            case events.Trade(topic=topic) if topic == SHOWN:
                show.trade(event)
            case events.Session(state=state, text=text) if state != show.session:
                show.session, show.why = state, text
                show.tell(_("KIS session: {state} ({why})").format(state=state, why=text))
            case events.Gap(topic=topic, missed_qty=missed) if topic == SHOWN:
                show.tell(
                    _("back: {topic} missed {shares} shares; told").format(
                        topic=topic, shares="?" if missed is None else f"{missed:,}"
                    )
                )
            case _:
                pass

    async def _crowd(self, nursery: trio.Nursery) -> None:
        """A fourth program wants more than there are slots."""
        wanted = SLOTS + 1 - self.show.slots_used
        program = Program("scanner", _("{n} more symbols").format(n=wanted), "latest")
        self.show.programs.append(program)
        self.show.tell(
            _("scanner asks for {n} more, priority {prio}: 42 wanted, KIS allows {slots}").format(
                n=wanted, prio=SCANNER_PRIO, slots=SLOTS
            )
        )
        topics = [f"expected.krx.{100_010 + 10 * n:06}" for n in range(wanted)]
        await nursery.start(self._scanner, program, topics)

    async def _scanner(
        self,
        program: Program,
        topics: list[str],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        task_status.started()
        leave = self.start + LEAVE_AT * self.show.seconds
        with trio.move_on_at(leave):
            async with open_client(socket=self.socket, client=program.name) as kf:
                await kf.subscribe(*topics, mode=program.mode, prio=SCANNER_PRIO)
                program.topics = len(topics)
                async for event in kf:
                    self._count(program, event)
        self.show.tell(_("scanner leaves: its slots are free again"))

    def _tell_slot(self, status: events.Status) -> None:
        """A slot changed hands; every program that has the topic hears it, the reader once."""
        texts = {
            Code.PREEMPTED: _("{topic} yields its slot to a higher priority; told"),
            Code.PROMOTED: _("{topic} has a slot again; told"),
        }
        seen = (status.topic, status.since_ts)
        if status.code in texts and seen not in self._slot_changes:
            self._slot_changes[seen] = None
            self.show.yielded += status.code == Code.PREEMPTED
            self.show.tell(texts[Code(status.code)].format(topic=status.topic))
