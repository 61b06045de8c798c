"""Breaks: whether a program was told that rows of an open topic, or notices, may be missing."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import attrs

from kisfeed.chaos.run import NOTICES, key_of
from kisfeed.core.connection import Reason, State
from kisfeed.kfp import events
from kisfeed.kfp.messages import Source, Stream
from kisfeed.kis.codes import SUBSCRIBED
from kisfeed.simulator import Happening

if TYPE_CHECKING:
    from kisfeed.chaos.run import Program
    from kisfeed.chaos.seen import Seen

_DOWN: Final = (State.IDLE, State.CONNECTING, State.RECONNECT_BACKOFF)
REASONS: Final = {str(reason) for reason in Reason}
"""What the daemon says of its session; any other text is the client's own, of its connection."""

_AT_ONCE_S: Final = 5.0  # from the word that notices come again to the word of what is missed
_TOLD_S: Final = 60.0  # a row that comes so long after the answer of KIS was sent behind it


@attrs.define(eq=False)
class _Watcher:
    """Which topics of one program were open, and which went away and are not told of yet."""

    open: dict[str, None] = attrs.field(factory=dict)
    away: dict[str, None] = attrs.field(factory=dict)
    due: float = math.inf  # by when the break of the notices is told
    told: int = 0
    faults: list[str] = attrs.field(factory=list)

    def see(self, at: float, event: events.Event | None, name: str) -> None:
        if at > self.due:
            self._fault(at, NOTICES)
        match event:
            case None:
                self._forget(name)
            case events.Session() if event.text not in REASONS:
                # The program's own connection was cut, of which its client tells.
                self.open.clear()
                self.away.clear()
                self.due = math.inf
            case events.Session() if event.state in _DOWN:
                self.away.update(self.open)
                self.open.clear()
            case events.Status() if event.stream == Stream.OPEN:
                self.open[event.topic] = None
                if event.topic == NOTICES and NOTICES in self.away:
                    self.due = at + _AT_ONCE_S
            case events.Status() if event.topic in self.open:
                del self.open[event.topic]
                self.away[event.topic] = None
            case events.Gap() if event.topic in self.away:
                self.told += 1
                self._tell(event.topic)
            case events.Trade() | events.Book() if event.topic in self.away:
                if not event.image and event.source is Source.WEBSOCKET:
                    self._fault(at, event.topic)

    def _fault(self, at: float, name: str) -> None:
        self.faults.append(f"{at:.3f}: {name} was away, goes on, and no GAP was told")
        self._tell(name)

    def _tell(self, name: str) -> None:
        del self.away[name]
        if name == NOTICES:
            self.due = math.inf

    def _forget(self, name: str) -> None:
        self.open.pop(name, None)
        if name in self.away:
            self._tell(name)


def breaks(seen: Seen) -> tuple[int, list[str]]:
    """Breaks that programs who get every row were told of, and those that they were not."""
    run = seen.run
    told, faults = 0, []
    # What is conflated comes late: a row from before a break may come behind the word of it.
    for program in (program for program in run.programs if program.mode == "all"):
        watcher = _Watcher()
        for at, event, name in program.log:
            watcher.see(at, event, name)
        told += watcher.told
        faults += [f"{program.name}: {fault}" for fault in watcher.faults]
    return told, faults + _forgotten(seen, run.programs[0])


def _forgotten(seen: Seen, program: Program) -> list[str]:
    """Registrations that KIS let go without a word, took anew in the same session, and no GAP."""
    run, faults = seen.run, []
    if any(step.kind == "stall" for step in run.case.steps):
        return []  # what the program sees late may have been sent before
    let_go = {name for _, event, name in program.log if event is None}
    names = {key_of(name): name for name in program.topics if name not in let_go}
    since: dict[tuple[int, tuple[str, str]], float] = {}
    for line in run.exchange.history:
        if line.key not in names or line.key is None:
            continue
        place = (line.session, line.key)
        if line.what is Happening.FORGOTTEN:
            since[place] = line.at
        elif line.what is Happening.UNSUBSCRIBE:
            since.pop(place, None)
        elif line.what is Happening.SUBSCRIBE and line.code == SUBSCRIBED and place in since:
            if not _answered(seen, line.key, since[place], line.at):
                continue
            name = names[line.key]
            told = [at for at, e, _ in program.log if isinstance(e, events.Gap) and e.topic == name]
            rows = [
                at
                for at, e, _ in program.log
                if isinstance(e, events.Trade | events.Book) and e.topic == name and not e.image
            ]
            had = any(at < since[place] for at in rows)
            goes_on = any(at > line.at + _TOLD_S for at in rows)
            if had and goes_on and not any(at >= since[place] for at in told):
                faults.append(f"{line.at:.3f}: KIS took {name} anew, and no GAP was told")
    return faults


def _answered(seen: Seen, key: tuple[str, str], let_go_at: float, renewed_at: float) -> bool:
    """The daemon got the answer, and knew by the one before it that this was no first one."""
    return any(
        any(a.key == key and a.at < let_go_at for a in line.answers)
        and any(
            a.key == key and a.code == SUBSCRIBED and renewed_at <= a.at < renewed_at + _TOLD_S
            for a in line.answers
        )
        for line in seen.lines
    )
