"""The engine: everything that is decided, in one place and without waiting.

It takes what happened (frames, ACKs, dials that opened or failed, time that passed, programs
that subscribe) and returns what to do (:meth:`Engine.take_actions`) and whom to send to
(:meth:`Engine.take_dirty`). The path of a tick is :meth:`Engine.on_frames` to the last line of
:meth:`kisfeed.core.streams.TopicStream.row`, with no wait in between.
"""

from __future__ import annotations

import enum
import math
from collections import Counter, deque
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

import attrs

from kisfeed.core import connection as conn, liveness as live, registrations as regs
from kisfeed.core.connection import Connection, Reason, State
from kisfeed.core.interest import Interest
from kisfeed.core.liveness import Liveness
from kisfeed.core.market import TELLING, Market
from kisfeed.core.noticelog import NOTICE, NoticeLog
from kisfeed.core.prices import Prices
from kisfeed.core.registrations import Registrations
from kisfeed.core.streams import Subscriber, TopicStream, Touched, tell
from kisfeed.core.subscriptions import Subscriptions
from kisfeed.core.topics import Topics
from kisfeed.kfp import events
from kisfeed.kfp.messages import Code, Data, Mode, Stream, Type
from kisfeed.kis import frames, notices, rows
from kisfeed.kis.codes import SUBSCRIBED, Meaning

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from kisfeed.config import Session
    from kisfeed.core.gaps import Missed
    from kisfeed.core.pacing import Hygiene
    from kisfeed.core.subscriptions import SubResult, SubSpec
    from kisfeed.core.topics import Route
    from kisfeed.kis.catalogue import Catalogue, Layout, RegKey, Tr
    from kisfeed.kis.codes import Codes
    from kisfeed.kis.control import Ack
    from kisfeed.kis.sessions import Calendar
    from kisfeed.limits import Limits

_LIVE: Final = frozenset({State.AUTHENTICATED, State.SUBSCRIBED, State.STREAMING, State.DEGRADED})
_READY: Final = frozenset({State.SUBSCRIBED, State.STREAMING})
_BY_LINK: Final = frozenset({Reason.LINK_SILENT, Reason.SUSPENDED})
_EVENTS_KEPT: Final = 50
_MOST_LANES: Final = 1024
_LOOK_AGAIN_S: Final = 1.0  # rows that say the same of the market are not looked at more often


class Instant(NamedTuple):
    """One moment on two clocks: seconds of the scheduler, nanoseconds since 1970 UTC."""

    now: float
    wall_ns: int


@attrs.frozen
class SendText:
    """Send this text on the session of *epoch*, before anything else that waits."""

    epoch: int
    text: str


@attrs.frozen
class SendRegistration:
    """Register or unregister *key* on the session of *epoch*, signed with its approval key."""

    epoch: int
    key: RegKey
    register: bool


Action = SendText | SendRegistration | conn.FetchKey | conn.Dial | conn.Close | conn.SaveHygiene


class Count(enum.StrEnum):
    """What the engine counts; the names of ``kisfeed status``."""

    FRAMES = "frames"
    RECORDS = "records"
    REJECTED = "rejected"
    LATE = "late"
    PINGPONGS = "pingpongs"
    ACKS = "acks"
    GAPS = "gaps"
    JUMPS = "jumps"
    MISSED_QTY = "missed_qty"
    JUMPED_QTY = "jumped_qty"
    DRIFTS = "drifts"
    INEXACT = "inexact"
    UNREADABLE = "unreadable"


class _Lane(NamedTuple):
    """The short way of frames that begin alike: no parsing of what is known.

    Attributes:
        route: where their first record goes.
        tr_key: that record's key.
        width: values of a record.
        values: values of the frame.
    """

    route: Route
    tr_key: bytes
    maker: rows.RowMaker
    width: int
    values: int


def _no_more(_kind: str, _fields: Mapping[str, Any]) -> Mapping[str, object]:
    return {}


def _no_matter() -> None:
    pass


@attrs.define(eq=False, repr=False)  # notices, with account numbers, are in it
class Engine:
    """The daemon's mind. Every method is synchronous and waits for nothing.

    Args:
        instance: names this run; sids and sequence numbers belong to it.
        catalogue: the TRs of this environment.
        codes: what KIS's answer codes mean.
        row_fields: row schema -> field names, in order.
        rules: the session's discipline.
        limits: what KIS allows.
        jitter: uniform in [0, 1).
        hygiene: what earlier runs left behind, aged to *started*.
        started: this moment.
        calendar: when each venue trades.
        pinned: topics held whether or not a program wants them.
        hts_id: the order notice's key; empty reserves no slot for it.

    Attributes:
        subscriptions: who is connected and what each asked for.
        prices: for those who poll where KIS does not stream, and for quotes.
        join: given each notice's kind and fields, tells what else belongs into it.
        notices_resumed: called when notices come, after they may not have come for a while.
        stopped: the process ends; nothing dials any more.
    """

    instance: str
    catalogue: Catalogue
    _codes: Codes
    _row_fields: Mapping[str, Sequence[str]]
    _rules: Session
    limits: Limits
    _jitter: Callable[[], float]
    _hygiene: Hygiene
    _started: Instant
    _calendar: Calendar
    _pinned: Sequence[str] = ()
    _hts_id: str = ""
    join: Callable[[str, Mapping[str, Any]], Mapping[str, object]] = attrs.field(
        default=_no_more, init=False
    )
    notices_resumed: Callable[[], None] = attrs.field(default=_no_matter, init=False)
    counts: Counter[str] = attrs.field(factory=Counter, init=False)
    rejects: Counter[str] = attrs.field(factory=Counter, init=False)
    connection: Connection = attrs.field(init=False)
    interest: Interest = attrs.field(init=False)
    registrations: Registrations = attrs.field(init=False)
    subscriptions: Subscriptions = attrs.field(init=False)
    prices: Prices = attrs.field(init=False)
    liveness: Liveness = attrs.field(init=False)
    _market: Market = attrs.field(init=False)
    _keyring: notices.KeyRing = attrs.field(factory=notices.KeyRing, init=False)
    _topics: Topics = attrs.field(init=False)
    _makers: dict[Layout, rows.RowMaker] = attrs.field(factory=dict, init=False)
    _lanes: dict[bytes, _Lane] = attrs.field(factory=dict, init=False)
    _touched: Touched = attrs.field(factory=Touched, init=False)
    _actions: deque[Action] = attrs.field(factory=deque, init=False)
    _drifted: dict[tuple[str, int], None] = attrs.field(factory=dict, init=False)
    _notices: NoticeLog = attrs.field(factory=NoticeLog, init=False)
    _heard_rts: int = attrs.field(default=0, init=False)
    _looked: Instant = attrs.field(init=False)
    _since_ts: int = attrs.field(init=False)
    _ready_at: float = attrs.field(default=math.inf, init=False)
    _settled: bool = attrs.field(default=False, init=False)
    stopped: bool = attrs.field(default=False, init=False)
    _crowded: dict[RegKey, None] = attrs.field(factory=dict, init=False)
    _stalled: dict[RegKey, None] = attrs.field(factory=dict, init=False)
    # Of notices, of which one at least did not come.
    _unsure: dict[RegKey, None] = attrs.field(factory=dict, init=False)
    _refused_key: RegKey | None = attrs.field(default=None, init=False)
    _unlogged: list[dict[str, object]] = attrs.field(factory=list, init=False)
    history: deque[dict[str, object]] = attrs.field(
        factory=lambda: deque(maxlen=_EVENTS_KEPT), init=False
    )

    def __attrs_post_init__(self) -> None:
        self.connection = Connection(
            self._rules, self.limits, self._jitter, self._hygiene, self._started.now
        )
        self._since_ts = self._started.wall_ns
        self._looked = self._started
        self.interest = Interest(self._rules)
        self._topics = Topics(self.catalogue, self._touched)
        reserved = [self.catalogue.topic(f"notice.krx.{self._hts_id}")] if self._hts_id else []
        self.registrations = Registrations(
            self._rules,
            self.limits.registrations,
            self.limits.ws_control_ops,
            self.interest,
            reserved=[topic.key for topic in reserved],
            pollable=self._topics.pollable,
        )
        for topic in reserved:
            self._topics.stream(topic, self._started.wall_ns)
        self.subscriptions = Subscriptions(
            self.catalogue, self._topics, self.interest, self.registrations, self._notices
        )
        self.prices = Prices(self._topics, self.subscriptions, self.interest, self._calendar)
        self.liveness = Liveness(self._rules)
        self._market = Market(self._calendar, self.catalogue.trs)

    # What the shell does next.

    def take_actions(self) -> list[Action]:
        """What to perform now, in order; each is handed out once."""
        if not self._actions:
            return []
        actions = list(self._actions)
        self._actions.clear()
        return actions

    def take_dirty(self) -> list[Subscriber]:
        """Subscribers whose outbox was put something into since the last call."""
        return self._touched.take()

    def take_log(self) -> list[dict[str, object]]:
        """What happened since the last call, for the log: ``ts``, ``event`` and its details."""
        entries, self._unlogged = self._unlogged, []
        return entries

    def next_deadline(self) -> float:
        """When :meth:`timer` wants to be called; ``math.inf`` when nothing is pending."""
        return min(
            self.connection.next_deadline(),
            self.registrations.next_deadline(),
            self.liveness.next_deadline(),
            self._market.due,
            self._ready_at,
        )

    # What happened upstream.

    def start(self, at: Instant) -> None:
        """Take up the pinned topics; call once, before anything else."""
        for name in self._pinned:
            stream = self._topics.named(name, at.wall_ns)
            self.interest.pin(stream.topic.key, at.now)
        self._interest_changed(at)

    def stop(self, at: Instant) -> None:
        """The process ends: close what stands. Nothing dials after this."""
        self.stopped = True
        self._connection(self.connection.unwant(at.now, Reason.STOPPED), at)

    def timer(self, at: Instant) -> None:
        """Time has passed: call at :meth:`next_deadline`."""
        now = at.now
        self._looked = at
        if self._ready_at <= now:
            self._ready_at = math.inf
            ready = self.connection.state in _READY
            self._log(at, "ready" if ready else "not_ready", state=self.connection.state)
        if self._market.due <= now:  # behind what it sets: both may be due at once
            self._judge_market(at)
        if self.connection.next_deadline() <= now:
            self._connection(self.connection.timer(now), at)
        if self.registrations.next_deadline() <= now:
            self._registrations(self.registrations.timer(now), at)
        if self.liveness.next_deadline() <= now:
            self._liveness(self.liveness.timer(now), at)

    def key_ready(self, at: Instant) -> None:
        """The approval key is in hand."""
        self._connection(self.connection.key_ready(at.now), at)
        refused, self._refused_key = self._refused_key, None
        if refused is not None and self.connection.state in _LIVE:
            self._registrations(self.registrations.retry(refused, at.now), at)

    def key_failed(self, at: Instant, *, refused: bool) -> None:
        """No approval key: KIS refused it, or could not be asked."""
        self._connection(self.connection.key_failed(at.now, refused=refused), at)

    def opened(self, epoch: int, at: Instant) -> None:
        """The WebSocket of *epoch* stands."""
        self._heard_rts = at.wall_ns
        self._connection(self.connection.opened(epoch, at.now), at)

    def dial_failed(self, epoch: int, how: conn.DialFailure, at: Instant) -> None:
        """The dial of *epoch* came to nothing."""
        self._connection(self.connection.dial_failed(epoch, how, at.now), at)

    def lost(self, epoch: int, how: Reason, at: Instant) -> None:
        """The session of *epoch* is over: ``LOST`` with a close frame, ``RESET`` without one."""
        self._connection(self.connection.lost(epoch, how, at.now), at)

    def suspended(self, seconds: float, at: Instant) -> None:
        """The machine slept *seconds* that the scheduler's clock did not see."""
        self._log(at, "suspended", seconds=seconds)
        self._connection(self.connection.suspended(seconds, at.now), at)
        self._liveness(self.liveness.doubt(at.now), at)
        self._market.due = at.now

    def reconnect(self, at: Instant) -> None:
        """A person wants a session now: past breaker, backoff and hours, never past the budget."""
        self._log(at, "reconnect")
        self._connection(self.connection.override(at.now), at)

    def release(self, for_s: float, at: Instant) -> None:
        """Lend the session to another program for *for_s* seconds."""
        self._log(at, "release", for_s=for_s)
        self._connection(self.connection.release(for_s, at.now), at)

    def pin(self, name: str, at: Instant, *, pinned: bool) -> None:
        """Hold a topic whether or not a program wants it, or no longer.

        Raises:
            UnknownTopic: there is no such topic.
        """
        key = self._topics.named(name, at.wall_ns).topic.key
        if pinned:
            self.interest.pin(key, at.now)
            self._registrations(self.registrations.reopen(key, at.now), at)
        else:
            self.interest.unpin(key, at.now)
        self._interest_changed(at)

    def heard(self, now: float) -> bool:
        """Bytes arrived; once a read. Returns whether that ended a doubt."""
        outputs = self.liveness.heard(now)
        if outputs:
            since_look = int((now - self._looked.now) * 1e9)
            self._liveness(outputs, Instant(now, self._looked.wall_ns + since_look))
        return bool(outputs)

    def on_frames(self, batch: Sequence[bytes], rts: int, now: float) -> None:
        """Take the text frames of one read, in arrival order, to the outboxes.

        Args:
            batch: whole frames, data and control alike.
            rts: when the read returned, nanoseconds since 1970 UTC.
            now: the same on the scheduler's clock.
        """
        self._heard_rts = rts
        self.counts[Count.FRAMES] += len(batch)
        records = 0
        proved = False
        lanes = self._lanes
        for frame in batch:
            fields = frame.split(b"^")
            lane = lanes.get(fields[0])
            if lane is not None:
                route, tr_key, maker, width, total = lane
                fields[0] = tr_key
                if len(fields) == total and (
                    total == width or fields[::width].count(tr_key) * width == total
                ):
                    if not proved:
                        proved = True
                        self._proved(rts, now)
                    if route.data_at != now:
                        self._flowing(route, rts, now)
                    plain = frame.isascii()
                    if total == width:
                        records += 1
                        self._deliver(route, maker, fields, rts, now, plain)
                        continue
                    records += total // width
                    for start in range(0, total, width):
                        record = fields[start : start + width]
                        self._deliver(route, maker, record, rts, now, plain)
                    continue
            proved = False
            self._on_frame(frame, rts, now)
        self.counts[Count.RECORDS] += records
        self._touched.settle()

    def _on_frame(self, frame: bytes, rts: int, now: float) -> None:
        if not self.connection.live:
            # Decided within this read: what still comes belongs to no session.
            self.counts[Count.LATE] += 1
            return
        parsed = frames.parse(frame)
        kind = type(parsed)
        if kind is frames.DataFrame:
            self._on_data(parsed, rts, now)  # type: ignore[arg-type]  # told by kind
        elif isinstance(parsed, frames.Pingpong):
            self._on_pingpong(parsed, Instant(now, rts))
        elif isinstance(parsed, frames.Rejected):
            self._reject(parsed)
        else:
            self._on_ack(parsed, Instant(now, rts))  # type: ignore[arg-type]  # what is left

    def _on_pingpong(self, ping: frames.Pingpong, at: Instant) -> None:
        self.counts[Count.PINGPONGS] += 1
        # Echoed as text, ahead of whatever else waits to be sent.
        echo = SendText(self.connection.epoch, ping.text.decode("utf-8", "replace"))
        self._actions.appendleft(echo)
        self._connection(self.connection.pingpong(at.now), at)

    def _on_data(self, frame: frames.DataFrame, rts: int, now: float) -> None:
        tr = self.catalogue.trs.get(frame.tr_id)
        if tr is None:
            self._reject(frames.Rejected(frames.Reject.UNKNOWN_TR, frame.tr_id))
            return
        if tr.encrypted != frame.encrypted:
            # The socket is plaintext: a plain frame on an encrypted TR can be anybody's.
            self._reject(frames.Rejected(frames.Reject.FORGED, frame.tr_id))
            return
        payload = frame.payload
        if frame.encrypted:
            opened = self._keyring.open(self.connection.epoch, frame.tr_id, payload)
            if isinstance(opened, frames.Rejected):
                self._reject(opened)
                return
            payload = opened
        found = frames.records(tr, frame.count, payload)
        if isinstance(found, frames.Rejected):
            self._reject(found)
            return
        if found.drift is not None:
            self._on_drift(tr, frame.tr_id, found.drift, Instant(now, rts))
        self._proved(rts, now)
        self.counts[Count.RECORDS] += len(found.rows)
        by_key = self._topics.by_tr.get(frame.tr_id)
        if by_key is None:
            self.counts[Count.LATE] += len(found.rows)
            return
        layout = found.layout
        maker = self._makers.get(layout) or self._maker(tr, layout)
        at_key = layout.key_index
        for fields in found.rows:
            route = by_key.get(fields[at_key]) if at_key is not None else self._only(by_key)
            if route is None or not (route.held or self._confirm(route, Instant(now, rts))):
                self.counts[Count.LATE] += 1
                continue
            if route.data_at != now:
                self._flowing(route, rts, now)
            self._deliver(route, maker, fields, rts, now, False)
        if at_key == 0 and found.drift is None and not frame.encrypted:
            self._learn(frame, by_key.get(found.rows[0][0]), maker, layout.width)

    def _learn(
        self, frame: frames.DataFrame, route: Route | None, maker: rows.RowMaker, width: int
    ) -> None:
        """Let frames that begin as this one take the short way."""
        if route is not None and route.held:
            if len(self._lanes) >= _MOST_LANES:
                self._lanes.clear()
            tr_key = route.key[1].encode()
            start = b"0|%s|%03d|%s" % (frame.tr_id.encode(), frame.count, tr_key)
            self._lanes[start] = _Lane(route, tr_key, maker, width, width * frame.count)

    def _proved(self, rts: int, now: float) -> None:
        """Data came: the session works."""
        outputs = self.connection.data(now)
        if outputs:
            self._connection(outputs, Instant(now, rts))

    def _flowing(self, route: Route, rts: int, now: float) -> None:
        """Data of *route* came, the first of this moment."""
        route.data_at = now
        route.had_data = True
        verdict = self.liveness.data(route.key, now)
        if verdict:
            self._liveness(verdict, Instant(now, rts))

    def _deliver(
        self,
        route: Route,
        maker: rows.RowMaker,
        fields: Sequence[bytes],
        rts: int,
        now: float,
        plain: bool,  # all of it is known to be ASCII
    ) -> None:
        typed = route.typed
        if typed is not None:
            if typed.schema == NOTICE:
                self._on_notice(typed, fields, rts, now)
            else:
                row, xts = maker.typed(fields) if typed.typed else (fields, None)
                days = maker.trading_day
                day = None if days is None else days(fields)
                gap = typed.row(row, xts, rts, now, False, day)
                telling = TELLING.get(typed.schema)
                if telling is not None:
                    said = telling(row)
                    if said != route.said or now >= route.look_again:
                        route.said = said
                        route.look_again = now + _LOOK_AGAIN_S
                        self._observe(route, typed.schema, row, Instant(now, rts))
                if gap is not None:
                    self._count(gap)
        if route.raw is not None:
            gap = route.raw.row(fields, None, rts, now, plain)
            if gap is not None and typed is None:
                self._count(gap)

    def _count(self, gap: Missed) -> None:
        self.counts[Count.JUMPS if gap.jump else Count.GAPS] += 1
        self.counts[Count.JUMPED_QTY if gap.jump else Count.MISSED_QTY] += gap.qty or 0

    def _confirm(self, route: Route, at: Instant) -> bool:
        """Data before its ACK: the data is the proof, if we did ask for it in this epoch."""
        self._registrations(self.registrations.data(route.key, at.now), at)
        return route.held

    def _only(self, by_key: Mapping[bytes, Route]) -> Route | None:
        """The one held registration of a TR whose records do not name their key."""
        held = [route for route in by_key.values() if route.held]
        return held[0] if len(held) == 1 else None

    def _maker(self, tr: Tr, layout: Layout) -> rows.RowMaker:
        maker = self._makers[layout] = rows.RowMaker(tr, layout)
        return maker

    def _on_notice(
        self, stream: TopicStream, fields: Sequence[bytes], rts: int, now: float
    ) -> None:
        notice = notices.decode_notice(stream.topic.tr, fields)
        more = self.join(notice.kind, notice.fields)
        told = {**notice.fields, **more}
        self._notices.tell(stream, notice.kind, notice.xts, told, rts, now)

    def recovered(self, kind: str, fields: Mapping[str, Any], at: Instant) -> None:
        """Tell order news that no notice brought, on every domestic notice topic there is.

        KIS is asked for their registrations too: that it forgot one shows in nothing else.
        """
        told = {**dict.fromkeys(notices.FIELDS), **fields, "kind": kind, "recovered": True}
        for stream in self._topics.streams.values():
            if stream.schema == NOTICE and stream.topic.tr.venue == "krx":
                self._notices.tell(stream, kind, None, told, at.wall_ns, at.now)
                self._unsure[stream.topic.key] = None
                self._registrations(self.registrations.probe(at.now, (stream.topic.key,)), at)

    def _on_drift(self, tr: Tr, tr_id: str, width: int, at: Instant) -> None:
        if (tr_id, width) in self._drifted:
            return
        self._drifted[tr_id, width] = None
        self.counts[Count.DRIFTS] += 1
        known = tr.longest.width
        text = f"{tr_id}: {width} fields, {known} known; the extra ones are in the raw rows"
        self._log(at, "schema_drift", tr_id=tr_id, width=width, known=known)
        for route in self._topics.by_tr.get(tr_id, {}).values():
            for stream in route.streams():
                told = (stream.sid, stream.stream, stream.data, Code.SCHEMA_DRIFT, at.wall_ns, text)
                event = events.Status(stream.topic.name, *told)
                tell(stream.subscribers.values(), Type.STATUS, told, event, at.now)

    def _reject(self, rejected: frames.Rejected) -> None:
        self.counts[Count.REJECTED] += 1
        self.rejects[rejected.reason] += 1

    def _on_ack(self, ack: Ack, at: Instant) -> None:
        self.counts[Count.ACKS] += 1
        meaning = self._codes.meaning(ack.msg_cd, ack.rt_cd)
        if meaning not in {Meaning.HELD, Meaning.FREE}:
            self._log(at, "refused", tr_id=ack.key[0], tr_key=ack.key[1], msg_cd=ack.msg_cd)
        if meaning is Meaning.HELD:
            tr = self.catalogue.trs.get(ack.key[0])
            if tr is not None and tr.encrypted and ack.aes is not None:
                # "Already subscribed" may bring a key that the running stream does not use.
                fresh = ack.msg_cd == SUBSCRIBED
                self._keyring.put(self.connection.epoch, ack.key[0], ack.aes, replace=fresh)
            self._connection(self.connection.acked(at.now), at)
        overdue = ack.key in self._stalled or ack.key in self._unsure
        outputs = self.registrations.ack(ack.key, meaning, ack.msg_cd, at.now, overdue=overdue)
        self._registrations(outputs, at)
        if meaning is Meaning.IN_USE:
            self._connection(self.connection.in_use(at.now), at)
        elif meaning is Meaning.KEY_REFUSED:
            self._refused_key = ack.key
            self._connection(self.connection.key_refused(at.now), at)

    def _judge_market(self, at: Instant) -> None:
        """Tell the machines what the market does, for every topic somebody wants or KIS holds."""
        keys = dict.fromkeys(
            [*self.interest.all_wanted(), *(r.key for r in self._topics.routes() if r.held)]
        )
        judged = self._market.judge(keys, at.now, at.wall_ns)
        self._liveness(self.liveness.market(judged.flows, at.now), at)
        self._connection(self.connection.market(judged.open, judged.next_open, at.now), at)
        # Dialled before_open_s ahead, so settled, if at all, by then.
        before = self._rules.before_open_s - self._rules.settle_timeout_s
        self._ready_at = math.inf
        if not judged.open and judged.next_open is not None and judged.next_open - before > at.now:
            self._ready_at = judged.next_open - before

    def _observe(self, route: Route, schema: str, row: Sequence[Any], at: Instant) -> None:
        self._market.observe(route.key, schema, row, at.wall_ns)
        halted = self._market.halted(schema, row)
        if halted is None or halted == route.halted:
            return
        # Trading in a symbol stops on every registration of it, whichever told.
        symbol = route.key[1].encode()
        for by_key in self._topics.by_tr.values():
            same = by_key.get(symbol)
            if same is not None:
                same.halted = halted
                same.said = None
                self._liveness(self.liveness.halted(same.key, halted, at.now), at)

    # Outputs of the machines.

    def _connection(self, outputs: Sequence[conn.Output], at: Instant) -> None:
        for output in outputs:
            if isinstance(output, conn.Change):
                self._on_change(output, at)
            else:
                self._actions.append(output)

    def _on_change(self, change: conn.Change, at: Instant) -> None:
        self._log(
            at, "state", old=change.old, new=change.new, reason=change.reason, epoch=change.epoch
        )
        self._since_ts = at.wall_ns
        was_live, is_live = change.old in _LIVE, change.new in _LIVE
        body, event = self._session_of(change.new, change.reason, change.epoch)
        tell(self.subscriptions.subscribers.values(), Type.SESSION, body, event, at.now)
        if was_live and not is_live:
            self.liveness.session_down(at.now)
            self._stalled.clear()
            self._unsure.clear()
            self._keyring.drop_epoch(change.epoch)
            self._settled = False
            self._crowded.clear()
            excused = change.reason not in {Reason.LOST, Reason.RESET}
            outputs = self.registrations.session_down(at.now, excused=excused)
            self._registrations(outputs, at)
            for route in self._topics.routes():
                self._unhold(route, at, Code.UPSTREAM_DOWN, tell=False)
        elif is_live and not was_live:
            self.liveness.session_up(at.now)
            self._registrations(self.registrations.session_up(change.epoch, at.now), at)
        elif change.new is State.DEGRADED:
            if self._group_suspect():
                self._mark_held(Data.SUSPECT, Code.RESYNCING, at, tell=False)
            elif change.reason is Reason.NO_DATA and not self.registrations.used:
                # Every topic was refused: nothing is there that could have data.
                self._connection(self.connection.repaired(at.now), at)
            else:
                # Also asked for again and again while what is missing does not come.
                self._registrations(self.registrations.probe(at.now, self._stalled), at)
        elif change.old is State.DEGRADED:
            self._mark_held(Data.OK, Code.REALTIME_RESUMED, at, tell=True)

    def _mark_held(self, data: Data, code: Code, at: Instant, *, tell: bool) -> None:
        for route in self._topics.routes():
            for stream in route.streams():
                if route.held and stream.data is not data and route.key not in self._stalled:
                    self._set(stream, Stream.OPEN, data, code, at, tell=tell)

    def _registrations(self, outputs: Sequence[regs.Output], at: Instant) -> None:
        for output in outputs:
            match output:
                case regs.Subscribe(key=key):
                    self._actions.append(SendRegistration(self.connection.epoch, key, True))
                case regs.Unsubscribe(key=key):
                    self._actions.append(SendRegistration(self.connection.epoch, key, False))
                case regs.Held(key=key):
                    self._on_held(key, at)
                case regs.Freed(key=key):
                    # Its streams were told when the slot was given away.
                    route = self._topics.route(key)
                    flows = self.liveness.flows(key)
                    route.quiet_before = flows and not route.had_data
                case regs.ProbePassed():
                    self._on_probe_passed(output, at)
                case regs.Preempted(key=key):
                    self._unhold(self._topics.route(key), at, Code.PREEMPTED, tell=True)
                case regs.Promoted(key=key):
                    for stream in self._topics.route(key).streams():
                        stream.break_code = Code.PROMOTED
                        self._set(stream, Stream.OPEN, Data.OK, Code.PROMOTED, at)
                case regs.Refused():
                    self._on_refused(output, at)
                case regs.Resync():
                    self._log(at, "resync", reason=output.reason)
                    self._connection(self.connection.resync(at.now), at)
                case _:
                    self._log(
                        at, type(output).__name__.lower(), **attrs.asdict(output, recurse=False)
                    )
        self._tell_crowded(at)
        settled = self.registrations.settled
        if settled != self._settled and self.connection.state in _LIVE:
            self._settled = settled
            now = at.now
            change = self.connection.settled(now) if settled else self.connection.unsettled(now)
            self._connection(change, at)

    def _tell_crowded(self, at: Instant) -> None:
        """Tell who wants a slot and gets none, and who is next after all."""
        before = self._crowded
        self._crowded = dict.fromkeys(self.registrations.crowded_out(at.now))
        cap = self.registrations.cap
        for key in self._crowded:
            if key not in before:
                self._wait(key, Code.OVER_LIMIT, f"{cap} of {cap} slots are taken", at)
        for key in before:
            if key not in self._crowded:
                self._wait(key, Code.PENDING, "", at)

    def _wait(self, key: RegKey, code: Code, text: str, at: Instant) -> None:
        for stream in self._topics.route(key).streams():
            # Who lost a slot to a better topic has been told, and is told when it is back.
            recovering = stream.stream is Stream.RECOVERING and not stream.held
            if recovering and stream.code is not Code.PREEMPTED:
                data = Data.NONE if stream.last is None else Data.SUSPECT
                self._set(stream, Stream.RECOVERING, data, code, at, text=text)

    def _on_held(self, key: RegKey, at: Instant) -> None:
        if self.catalogue.trs[key[0]].encrypted:
            self.notices_resumed()
        route = self._topics.route(key)
        route.held = True
        route.had_data = False
        route.data_at = -math.inf
        route.acked_rts = at.wall_ns
        self.liveness.watch(key, at.now)
        for stream in route.streams():
            stream.held = True
            was = stream.waits_as
            returned = was is Code.UPSTREAM_DOWN or was is Code.RESYNCING
            code = Code.REALTIME_RESUMED if returned else Code.NONE
            if was is Code.PREEMPTED:
                code = Code.PROMOTED
            self._set(stream, Stream.OPEN, Data.OK, code, at)
            self._tell_break(stream, at)
        if route.quiet_before:
            route.quiet_before = False
            self._connection(self.connection.looped(at.now), at)

    def _on_probe_passed(self, passed: regs.ProbePassed, at: Instant) -> None:
        route = self._topics.route(passed.key)
        self._unsure.pop(route.key, None)
        if passed.renewed:
            # It was let go without a word, some time after KIS last said that it has it.
            self._log(at, "registration_renewed", key=route.key)
            for stream in route.streams():
                stream.break_off(route.acked_rts)
                stream.held = True
                self._tell_break(stream, at)
        route.acked_rts = at.wall_ns
        self._liveness(self.liveness.quiet_explained(route.key, at.now), at)
        if self.connection.reason in {Reason.NO_DATA, Reason.SUSPENDED}:
            self._connection(self.connection.repaired(at.now), at)

    def _tell_break(self, stream: TopicStream, at: Instant) -> None:
        # The next order may be long in coming, so what may be missed is not told with it.
        if stream.schema == NOTICE and stream.tell_break(at.wall_ns, at.now):
            self.counts[Count.GAPS] += 1

    def _unhold(self, route: Route, at: Instant, code: Code, *, tell: bool) -> None:
        route.held = False
        self._unsure.pop(route.key, None)
        self._lanes.clear()
        self._liveness(self.liveness.unwatch(route.key, at.now), at)
        for stream in route.streams():
            if stream.stream is Stream.CLOSED:
                continue
            stream.break_off(self._heard_rts)
            data = Data.NONE if stream.last is None else Data.SUSPECT
            self._set(stream, Stream.RECOVERING, data, code, at, tell=tell)

    def _on_refused(self, refused: regs.Refused, at: Instant) -> None:
        route = self._topics.route(refused.key)
        text = f"{refused.msg_cd} {self._codes.text(refused.msg_cd)}"
        if route.held:
            self._unhold(route, at, Code.REJECTED, tell=False)
        for stream in route.streams():
            data = Data.NONE if stream.last is None else Data.SUSPECT
            kind = Stream.CLOSED if refused.permanent else Stream.RECOVERING
            self._set(stream, kind, data, Code.REJECTED, at, text=text)

    def _set(
        self,
        stream: TopicStream,
        kind: Stream,
        data: Data,
        code: Code,
        at: Instant,
        *,
        text: str = "",
        tell: bool = True,
    ) -> None:
        stream.set_state(kind, data, code, at.wall_ns, at.now, text=text, tell=tell)

    def _liveness(self, outputs: Sequence[live.Output], at: Instant) -> None:
        for output in outputs:
            match output:
                case live.LinkSuspect():
                    if self.connection.reason is not Reason.SUSPENDED:
                        self._connection(self.connection.degraded(Reason.LINK_SILENT, at.now), at)
                case live.LinkOk():
                    if self._group_suspect():
                        self._connection(self.connection.repaired(at.now), at)
                case live.Probe():
                    self._registrations(self.registrations.probe(at.now), at)
                case live.LinkDead():
                    self._connection(self.connection.link_dead(at.now), at)
                case live.FeedStalled(key=key):
                    self._log(at, "feed_stalled", key=key)
                    self._stalled[key] = None
                    self._doubt(key, Data.SUSPECT, Code.RESYNCING, at)
                    if self.connection.state is not State.DEGRADED:
                        self._connection(self.connection.degraded(Reason.FEED_STALLED, at.now), at)
                    self._registrations(self.registrations.probe(at.now, (key,)), at)
                case live.FeedOk(key=key):
                    self._log(at, "feed_ok", key=key)
                    self._stalled.pop(key, None)
                    self._doubt(key, Data.OK, Code.REALTIME_RESUMED, at)
                    if not self._stalled and self.connection.reason is Reason.FEED_STALLED:
                        self._connection(self.connection.repaired(at.now), at)

    def _doubt(self, key: RegKey, data: Data, code: Code, at: Instant) -> None:
        """A held feed became doubtful, or is proven again."""
        route = self._topics.route(key)
        if route.held:
            for stream in route.streams():
                self._set(stream, Stream.OPEN, data, code, at)

    # What local programs ask.

    def detach(self, subscriber: Subscriber, at: Instant) -> None:
        """Let *subscriber* go, with every interest it has."""
        self.unsubscribe(subscriber, None, at)
        del self.subscriptions.subscribers[subscriber.conn]

    def subscribe(
        self,
        subscriber: Subscriber,
        specs: Sequence[SubSpec],
        at: Instant,
        reply: Callable[[list[SubResult]], Any] | None = None,
    ) -> list[SubResult]:
        """Register *subscriber*'s interest; returns at once and does not wait for KIS.

        *reply* is as in :meth:`Subscriptions.answer`.
        """
        wanted = self.subscriptions.want(subscriber, specs, at)
        outputs = self.registrations.changed(at.now)
        # Before the outputs: what they change comes behind the answer.
        results = self.subscriptions.answer(subscriber, wanted, reply, at)
        self._registrations(outputs, at)
        self._want(at)
        return results

    def unsubscribe(
        self, subscriber: Subscriber, sids: Sequence[int] | None, at: Instant
    ) -> list[int]:
        """End interest in *sids* (all of them for None); returns those that were subscribed."""
        ended = self.subscriptions.leave(subscriber, sids, at)
        self._interest_changed(at)
        return ended

    def retune(
        self,
        subscriber: Subscriber,
        sid: int,
        at: Instant,
        *,
        mode: Mode | None = None,
        hz: float | None = None,
        prio: int | None = None,
    ) -> int | None:
        """Change how *subscriber* gets *sid*; its new baseline, None where it does not get it."""
        stream = subscriber.streams.get(sid)
        if stream is None:
            return None
        if self.subscriptions.retune(subscriber, stream, at, mode=mode, hz=hz, prio=prio):
            self._interest_changed(at)
        return stream.sseq

    def limits_changed(self, limits: Limits, at: Instant) -> None:
        """Other limits are in force; the budget of dials, which is kisfeed's own, stays."""
        self.limits = limits
        self._registrations(
            self.registrations.limits_changed(limits.registrations, limits.ws_control_ops, at.now),
            at,
        )

    def fields(self, schema: str) -> list[str]:
        """The field names of a row schema, in order; empty where it has no rows (notices)."""
        if schema == NOTICE:
            return []
        if schema.startswith("raw."):
            tr_id = schema.removeprefix("raw.")
            tr = next(tr for tr in self.catalogue.trs.values() if tr.tr_id == tr_id)
            return list(tr.usual.fields)
        return list(self._row_fields[schema])

    def session(self) -> tuple[Sequence[object], events.Session]:
        """The elements of a SESSION frame, and the same as an event."""
        connection = self.connection
        return self._session_of(connection.state, connection.reason, connection.epoch)

    def session_map(self) -> dict[str, object]:
        """SESSION as a map, as in WELCOME."""
        return attrs.asdict(self.session()[1])

    def _session_of(
        self, state: State, reason: Reason, epoch: int
    ) -> tuple[Sequence[object], events.Session]:
        each_its_own = state in {State.SUBSCRIBED, State.STREAMING} or (
            state is State.DEGRADED and reason not in _BY_LINK
        )
        data = Data.OK if each_its_own else Data.SUSPECT
        code = _session_code(state, reason)
        body = (epoch, str(state), data, code, self._since_ts, str(reason))
        return body, events.Session(*body)

    def _group_suspect(self) -> bool:
        """DEGRADED by the link: every topic is suspect, not one of them."""
        return self.connection.reason in _BY_LINK

    def slots_map(self) -> dict[str, int]:
        """``{"cap", "used", "reserved"}`` as in WELCOME."""
        return {
            "cap": self.registrations.cap,
            "used": self.registrations.used,
            "reserved": self.registrations.reserved,
        }

    def status(self, now: float) -> dict[str, object]:
        """Everything ``kisfeed status`` shows, JSON-able."""
        makers = self._makers.values()
        self.counts[Count.INEXACT] = sum(maker.inexact for maker in makers)
        self.counts[Count.UNREADABLE] = sum(maker.unreadable for maker in makers)
        return {
            "instance": self.instance,
            "session": self.session_map(),
            "connection": self.connection.status(now),
            "liveness": self.liveness.status(now),
            "slots": self.slots_map(),
            "counts": {str(name): self.counts[name] for name in Count},
            "rejects": {str(reason): n for reason, n in sorted(self.rejects.items())},
            "clients": len(self.subscriptions.subscribers),
            "topics": len(self._topics.streams),
            "limits": self.limits.version,
            "events": list(self.history),
        }

    def slots(self, now: float) -> list[dict[str, object]]:
        """Every slot with its topic, state, score and users, JSON-able."""
        listed = []
        for slot in self.registrations.status(now):
            key, by = slot["key"], slot["by"]
            assert isinstance(key, list)
            assert by is None or isinstance(by, list)
            stream = self._topics.route((key[0], key[1])).streams()[0]
            listed.append(
                {
                    "topic": self.catalogue.name_of((key[0], key[1])),
                    **slot,
                    "code": str(stream.code),
                    "text": stream.text,
                    "by": None if by is None else self.catalogue.name_of((by[0], by[1])),
                }
            )
        return listed

    # Small parts.

    def _interest_changed(self, at: Instant) -> None:
        self._registrations(self.registrations.changed(at.now), at)
        self._want(at)

    def _want(self, at: Instant) -> None:
        self._market.due = at.now  # other venues may be wanted
        if self.stopped:
            return  # programs that leave, or come, while the session ends
        if self.interest.any_active():
            self._connection(self.connection.want(at.now), at)
        else:
            # Inside hours a session that stands stays all the same.
            self._connection(self.connection.unwant(at.now, Reason.NO_INTEREST), at)

    def _log(self, at: Instant, what: str, **details: object) -> None:
        entry: dict[str, object] = {"ts": at.wall_ns, "event": what}
        for name, value in details.items():
            if name == "key":  # a registration, by the name people know; logs hide what is a "key"
                entry["topic"] = self.catalogue.name_of(cast("RegKey", value))
            else:
                entry[name] = _plain(value)
        self.history.append(entry)
        self._unlogged.append(entry)


def _plain(value: object) -> object:
    if isinstance(value, (int, float)) or value is None:
        return None if isinstance(value, float) and not math.isfinite(value) else value
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return str(value)


def _session_code(state: State, reason: Reason) -> Code:
    if state in {State.SUBSCRIBED, State.STREAMING}:
        return Code.NONE
    if reason is Reason.IN_USE:
        return Code.IN_USE
    if state is State.DEGRADED:
        return Code.RESYNCING
    if state is State.RECONNECT_BACKOFF and reason in {Reason.BREAKER, Reason.BUDGET}:
        return Code.PARKED
    if state is State.IDLE:
        return Code.SESSION_CLOSED
    if state is State.CONNECTING or state is State.AUTHENTICATED:
        return Code.PENDING
    return Code.UPSTREAM_DOWN
