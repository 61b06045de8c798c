"""Mistakes put into the program on purpose, to see that the harness finds them.

Each is a patch of one place, in force for the length of a block and never outside a rehearsal.
"""

from __future__ import annotations

import math
from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import attrs
import trio

from kisfeed.client.core import ClientCore
from kisfeed.core import engine, outbox
from kisfeed.core.breaker import Breaker
from kisfeed.core.connection import Close, Connection, DialFailure
from kisfeed.core.engine import Engine
from kisfeed.core.gaps import Missed, VolumeAccount
from kisfeed.core.liveness import Liveness
from kisfeed.core.orders import Book
from kisfeed.core.pacing import Backoff, DialBudget, SlidingWindows
from kisfeed.core.registrations import Operation, ProbePassed, Registrations, State
from kisfeed.core.streams import TopicStream
from kisfeed.errors import UnknownOutcome
from kisfeed.kfp.messages import Data, Mode, Type
from kisfeed.kis import frames
from kisfeed.kis.codes import Meaning
from kisfeed.rest.halt import HaltSwitch
from kisfeed.rest.journal import Journal
from kisfeed.rest.requests import Kis
from kisfeed.texts import Phrase
from kisfeed.upstream.actor import Upstream
from kisfeed.upstream.lease import Lease

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@attrs.frozen
class Bug:
    """One mistake.

    Attributes:
        target: the class or module that has it; name: its attribute.
        wrong: makes the wrong attribute from the right one.
    """

    says: str
    target: Any
    name: str
    wrong: Callable[[Any], Any]


def _reset_at_connect(right: Any) -> Any:
    def opened(self: Connection, epoch: int, now: float) -> Any:
        self._backoff.reset()
        return right(self, epoch, now)

    return opened


def _freed_when_sent(right: Any) -> Any:
    def _unsubscribe(self: Registrations, step: Any, now: float) -> Any:
        found = right(self, step, now)
        slot = self._slots.pop(step.key, None)
        if slot is not None:
            self._flight = None
        return found

    return _unsubscribe


def _any_ack(right: Any) -> Any:
    def ack(self: Registrations, key: Any, meaning: Meaning, *args: Any, **more: Any) -> Any:
        slot = self._slots.get(key)
        if meaning is Meaning.HELD and slot is not None and slot.state is not State.HELD:
            self._unanswered[key] = deque([Operation.SUBSCRIBE])
        return right(self, key, meaning, *args, **more)

    return ack


def _uncapped(right: Any) -> Any:
    def made(self: Registrations, rules: Any, cap: int, *args: Any, **more: Any) -> None:
        del cap
        right(self, rules, 1000, *args, **more)

    return made


def _in_memory(_: Any) -> Any:
    async def save(self: Lease, record: Any) -> None:
        del self, record
        await trio.lowlevel.checkpoint()

    return save


def _conflated(right: Any) -> Any:
    def open_(self: Any, sid: int, mode: Mode, hz: float, sseq: int, *, trades: bool) -> None:
        right(self, sid, Mode.LATEST if mode is Mode.ALL else mode, hz, sseq, trades=trades)

    return open_


def _nothing(_: Any) -> Any:
    return lambda *_args, **_more: None


def _none_at_all(_: Any) -> Any:
    return lambda *_args, **_more: []


def _gap_swallowed(_: Any) -> Any:
    def _tell_gap(self: TopicStream, gap: Missed, rts: int, now: float) -> None:
        del gap, rts, now
        self.broken_at = None

    return _tell_gap


def _sure_of_the_doubtful(right: Any) -> Any:
    def break_off(self: TopicStream, rts: int) -> None:
        if self.last is None and self.data is Data.SUSPECT:
            self.held = False
        right(self, rts)

    return break_off


def _as_if_held(right: Any) -> Any:
    def ack(self: Registrations, *args: Any, **more: Any) -> Any:
        return [
            attrs.evolve(output, renewed=False) if isinstance(output, ProbePassed) else output
            for output in right(self, *args, **more)
        ]

    return ack


def _own_shares_missed(right: Any) -> Any:
    def trade(self: VolumeAccount, qty: int, cum: int, day: int | None, *, broken: bool) -> Any:
        missed, correction = right(self, qty, cum, day, broken=broken)
        if missed is not None and missed.qty is not None:
            missed = Missed(missed.qty + qty, missed.jump)
        return missed, correction

    return trade


def _row_twice(right: Any) -> Any:
    def row(self: TopicStream, *args: Any, **more: Any) -> Any:
        found = right(self, *args, **more)
        if self.sseq % 50 == 0:
            right(self, *args, **more)
        return found

    return row


def _no_sessions(right: Any) -> Any:
    def tell(subscribers: Any, kind: Type, *args: Any) -> None:
        if kind is not Type.SESSION:
            right(subscribers, kind, *args)

    return tell


def _uncounted(right: Any) -> Any:
    def charge(self: DialBudget, now: float) -> None:
        right(self, now)
        self.refund()

    return charge


def _as_if_lost(right: Any) -> Any:
    def in_use(self: Connection, now: float) -> Any:
        found = right(self, now)
        self._in_use, self._in_use_at = 0, -math.inf
        return found

    return in_use


def _always(value: Any) -> Callable[[Any], Any]:
    return lambda _: property(lambda _self: value)


def _constantly(value: Any) -> Callable[[Any], Any]:
    return lambda _: lambda *_args, **_more: value


def _fresh_keys(right: Any) -> Any:
    def _go(self: Connection, now: float, out: Any) -> None:
        self._key_at = None
        self._key_must_be_fresh = True
        right(self, now, out)

    return _go


def _strict_text(right: Any) -> Any:
    def parse(frame: bytes) -> Any:
        frame.decode("utf-8")
        return right(frame)

    return parse


def _frames_lost(right: Any) -> Any:
    def on_frames(self: Engine, batch: Any, rts: int, now: float) -> None:
        # The last frame of a read that brought more than one is forgotten.
        right(self, batch[:-1] if len(batch) > 2 else batch, rts, now)

    return on_frames


def _one_too_few(right: Any) -> Any:
    def _tell(self: Any, state: Any) -> Any:
        state.lost = max(1, state.lost - 1)
        return right(self, state)

    return _tell


def _asks_once(right: Any) -> Any:
    """A client that forgets a topic when its connection breaks."""

    def lost(self: ClientCore, why: str, now: float) -> None:
        right(self, why, now)
        for wanted in self._wanted.values():
            wanted.cut_sseq = None

    return lost


def _sent_again(right: Any) -> Any:
    async def post_once(self: Kis, call: Any, *, until: float, check: Callable[[], None]) -> Any:
        try:
            return await right(self, call, until=until, check=check)
        except UnknownOutcome:
            return await right(self, call, until=math.inf, check=lambda: None)

    return post_once


def _unjournaled(_: Any) -> Any:
    async def append(self: Journal, *records: Any) -> None:
        del self, records
        await trio.lowlevel.checkpoint()

    return append


def _certain(_: Any) -> Any:
    def doubt(self: Book, key: Any, text: str, at: Any) -> None:
        self.not_sent(key, "not_sent", text, at)

    return doubt


def _not_looked_up(right: Any) -> Any:
    def doubt(self: Book, key: Any, text: str, at: Any) -> None:
        right(self, key, text, at)
        self._due.pop(key)

    return doubt


def _left_open(right: Any) -> Any:
    def _perform(self: Upstream, action: Any) -> None:
        if not isinstance(action, Close):
            right(self, action)

    return _perform


BUGS: Final[dict[str, Bug]] = {
    "backoff-reset-at-connect": Bug(
        Phrase("the backoff starts over when a connection opens"),
        Connection,
        "opened",
        _reset_at_connect,
    ),
    "slot-freed-at-send": Bug(
        Phrase("a slot is free when its unsubscribe is sent"),
        Registrations,
        "_unsubscribe",
        _freed_when_sent,
    ),
    "any-ack": Bug(
        Phrase("an answer nobody waits for is believed"), Registrations, "ack", _any_ack
    ),
    "budget-in-memory": Bug(Phrase("the dial budget is not written"), Lease, "save", _in_memory),
    "budget-uncounted": Bug(Phrase("dials are not charged"), DialBudget, "charge", _uncounted),
    "conflated-all": Bug(
        Phrase("mode all keeps only the latest"), outbox.Outbox, "open", _conflated
    ),
    "gap-not-told": Bug(Phrase("a gap is not told"), TopicStream, "_tell_gap", _gap_swallowed),
    "gap-with-own-shares": Bug(
        Phrase("a gap counts the row behind it"), VolumeAccount, "trade", _own_shares_missed
    ),
    "row-twice": Bug(
        Phrase("every fiftieth row is delivered twice"), TopicStream, "row", _row_twice
    ),
    "session-not-told": Bug(
        Phrase("programs are not told of the session"), engine, "tell", _no_sessions
    ),
    "in-use-as-lost": Bug(
        Phrase("OPSP8996 is a loss like any other"), Connection, "in_use", _as_if_lost
    ),
    "breaker-never-opens": Bug(
        Phrase("young deaths are not counted"), Breaker, "died_young", _nothing
    ),
    "no-backoff": Bug(Phrase("the pause is always nothing"), Backoff, "failed", _constantly(0.0)),
    "nothing-silent": Bug(Phrase("silence is never suspected"), Liveness, "_suspect", _none_at_all),
    "no-pace": Bug(
        Phrase("registrations go out at once"), SlidingWindows, "wait", _constantly(0.0)
    ),
    "upgrade-not-charged": Bug(
        Phrase("a failed upgrade is refunded"), DialFailure, "reached_tcp", _always(value=False)
    ),
    "cap-ignored": Bug(Phrase("the cap is a thousand"), Registrations, "__init__", _uncapped),
    "key-always-fresh": Bug(Phrase("each dial asks for a new key"), Connection, "_go", _fresh_keys),
    "strict-utf8": Bug(
        Phrase("a byte that is no UTF-8 ends it all"), frames, "parse", _strict_text
    ),
    "frames-lost": Bug(
        Phrase("the last frame of a long read is lost"), Engine, "on_frames", _frames_lost
    ),
    "queue-without-bound": Bug(
        Phrase("nothing is dropped for a slow program"), outbox.Outbox, "_shed", _nothing
    ),
    "lost-off-by-one": Bug(Phrase("LOST says one less"), outbox.Outbox, "_tell", _one_too_few),
    "cut-forgotten": Bug(Phrase("a client forgets its own outage"), ClientCore, "lost", _asks_once),
    "sleep-unnoticed": Bug(Phrase("a suspend is not noticed"), Engine, "suspended", _nothing),
    "held-forever": Bug(
        Phrase("what a dead session held is still held"),
        Registrations,
        "session_down",
        _none_at_all,
    ),
    "doubt-hides-a-break": Bug(
        Phrase("a break behind a suspicion is not told"),
        TopicStream,
        "break_off",
        _sure_of_the_doubtful,
    ),
    "renewed-as-held": Bug(
        Phrase("what KIS let go and took anew is no break"), Registrations, "ack", _as_if_held
    ),
    "order-sent-again": Bug(
        Phrase("an order without an answer is sent again"), Kis, "post_once", _sent_again
    ),
    "intent-unwritten": Bug(Phrase("an intent is not written"), Journal, "append", _unjournaled),
    "doubt-as-failure": Bug(
        Phrase("no answer means that nothing was done"), Book, "doubt", _certain
    ),
    "doubt-left-alone": Bug(Phrase("nobody looks for a lost order"), Book, "doubt", _not_looked_up),
    "twin-beside-doubt": Bug(
        Phrase("orders go out beside their twin in doubt"), Book, "_check_frozen", _nothing
    ),
    "halt-overlooked": Bug(Phrase("a halt stops nothing"), HaltSwitch, "halted", _nothing),
    "order-late": Bug(
        Phrase("an order goes out however old"), Book, "deadline", _constantly(math.inf)
    ),
    "close-not-done": Bug(Phrase("a Close is not performed"), Upstream, "_perform", _left_open),
}
"""By name."""


@contextmanager
def plant(name: str) -> Iterator[None]:
    """Have the bug *name* for the length of the block.

    Raises:
        KeyError: there is no such bug.
    """
    bug = BUGS[name]
    right = vars(bug.target)[bug.name]
    setattr(bug.target, bug.name, bug.wrong(right))
    try:
        yield
    finally:
        setattr(bug.target, bug.name, right)
