"""One engine, its disk, its network and a model KIS on one virtual timeline.

Pure: no Trio, no socket, no clock. The engine is the daemon's own; the server is the simulator's
:class:`~kisfeed.simulator.Exchange`, which counts for itself; the network between them
delays, breaks and falls silent as the schedule says. Hours pass in milliseconds.
"""

from __future__ import annotations

import enum
import functools
import heapq
import itertools
import json
import math
from bisect import bisect_right
from typing import TYPE_CHECKING, Final

import attrs

from kisfeed import schemas
from kisfeed.config import Environment, Session as SessionRules
from kisfeed.core.connection import Close, Dial, DialFailure, FetchKey, Reason, SaveHygiene
from kisfeed.core.engine import Engine, Instant, SendRegistration, SendText
from kisfeed.core.outbox import Outbox
from kisfeed.core.pacing import Hygiene
from kisfeed.core.registrations import State as SlotState
from kisfeed.core.streams import Subscriber
from kisfeed.kfp.events import Event, Gap, Lost, Trade
from kisfeed.kis import control, server
from kisfeed.kis.codes import Codes
from kisfeed.kis.sessions import Calendar, always_open
from kisfeed.limits import resolve
from kisfeed.simulator import Exchange, Fault, Kind, Rules
from kisfeed.simulator.exchange import Drop, Send, Session
from kisfeed.simulator.market import MarketClock, is_open

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from kisfeed.core.subscriptions import SubSpec
    from kisfeed.kis.catalogue import RegKey
    from kisfeed.limits import Limits
    from kisfeed.seams import Seeded

APPKEY: Final = "an appkey"
TRADE: Final = "H0STCNT0"
_WIDTH: Final = 46
_UNBOUNDED: Final = 1 << 40
_SPIN: Final = 1000  # timers in a row that moved no deadline
_DEAD_PEER_S: Final = (10.0, 90.0)  # how long a server keeps a line that answers nothing


class Weather(enum.StrEnum):
    """What dials and sessions meet for a while. ``value`` is the number of seconds meant."""

    FINE = "fine"
    QUIET = "quiet"  # PINGPONG and no data
    REFUSED = "refused"
    TIMED_OUT = "timed_out"
    NO_ROUTE = "no_route"
    DNS = "dns"
    UPGRADE_FAILED = "upgrade_failed"
    HANG = "hang"  # TCP is accepted, and nothing more happens
    KICKED = "kicked"  # dropped *value* after the open
    KICKED_LATE = "kicked_late"  # dropped a minimum lifetime and *value* after the open
    FROZEN = "frozen"  # half-open from *value* after the open on
    IN_USE = "in_use"
    KEY_REFUSED = "key_refused"
    KEY_UNAVAILABLE = "key_unavailable"
    ACKS_LOST = "acks_lost"
    ACKS_LATE = "acks_late"
    ACKS_TWICE = "acks_twice"
    ACKS_ASTRAY = "acks_astray"  # they name another key
    NACKS = "nacks"


DEAD: Final = (Weather.REFUSED, Weather.TIMED_OUT, Weather.NO_ROUTE, Weather.DNS)
_ACK_FAULTS: Final[Mapping[Weather, Kind]] = {
    Weather.ACKS_LOST: Kind.ACK_LOST,
    Weather.ACKS_LATE: Kind.ACK_LATE,
    Weather.ACKS_TWICE: Kind.ACK_TWICE,
    Weather.ACKS_ASTRAY: Kind.ACK_WRONG_KEY,
    Weather.NACKS: Kind.NACK,
}


@attrs.frozen
class Spell:
    """One stretch of weather.

    Attributes:
        since: when it begins, seconds.
        weather: what it is.
        value: see :class:`Weather`.
        code: the NACK's code.
    """

    since: float
    weather: Weather
    value: float = 0.0
    code: str = ""


@attrs.define(eq=False)
class Wire:
    """One TCP connection, as both ends know it."""

    epoch: int
    session: Session | None = None
    opened: bool = False
    ours_gone: bool = False
    ended_at: float = math.inf  # by our own end
    silent: bool = False
    neutral: bool = False  # closed by our clean stop, or dialled by a person's order
    unheard: dict[RegKey, None] = attrs.field(factory=dict)  # released, and we do not know it yet

    @property
    def theirs_gone(self) -> bool:
        return self.session is not None and self.session.closed_at is not None

    @property
    def stands(self) -> bool:
        return self.opened and not (self.ours_gone or self.theirs_gone or self.silent)


@attrs.define(eq=False)
class Account:
    """What one subscriber was told of one topic: base + delivered + missed must be the last."""

    base: int | None = None
    delivered: int = 0
    missed: int = 0
    last: int = 0
    unmeasured: int = 0

    def take(self, event: Trade | Gap) -> None:
        if isinstance(event, Gap):
            if self.base is not None:
                self.missed += event.missed_qty or 0
                self.unmeasured += event.missed_qty is None
            return
        assert event.qty is not None
        assert event.cum_qty is not None
        if self.base is None:
            self.base = event.cum_qty - event.qty
        self.delivered += event.qty
        self.last = event.cum_qty

    @property
    def exact(self) -> bool:
        """Nothing is unexplained."""
        if self.base is None:
            return True
        return self.base + self.delivered + self.missed == self.last and not self.unmeasured


@functools.cache
def _codes() -> Codes:
    return Codes(schemas.load("kis/codes.json"))


@functools.cache
def _row_fields() -> dict[str, list[str]]:
    found = schemas.load("kfp1/rows.json")["schemas"]
    return {name: [field["name"] for field in schema["fields"]] for name, schema in found.items()}


@functools.cache
def _calendar(hours: bool) -> Calendar:
    # One for all: this market says nothing that a calendar would learn from.
    data = schemas.load("kis/sessions.json")
    return Calendar(data if hours else always_open(data), {})


@functools.cache
def limits_in_force(today: dt.date) -> Limits:
    """Those of the real KIS."""
    return resolve(schemas.load("limits.kis.json"), "real", today)


@attrs.define(eq=False)
class World:
    """See the module.

    Args:
        spells: the weather, by time.
        rng: every draw.
        start: the date and time in Seoul at 0.
        rules: the session's.
        cap: what the server allows.
        hours: trade by the timetable of schemas/kis/sessions.json, not at any hour.
        delay: seconds a byte travels.
        beat: seconds between two PINGPONG; data come with them.
        busy: registrations with data at each beat, at most.
        hts_id: of the order notice; empty reserves none.
        server_hts_id: the only one that the server knows; empty accepts any.
    """

    spells: Sequence[Spell]
    rng: Seeded
    start: dt.datetime
    rules: SessionRules = attrs.field(factory=SessionRules)
    cap: int = 41
    hours: bool = False
    delay: float = 0.02
    beat: float = 20.0
    busy: int = 4
    hts_id: str = ""
    server_hts_id: str = ""
    now: float = attrs.field(default=0.0, init=False)
    engine: Engine = attrs.field(init=False)
    exchange: Exchange = attrs.field(init=False)
    limits: Limits = attrs.field(init=False)
    wires: list[Wire] = attrs.field(factory=list, init=False)
    dials: list[float] = attrs.field(factory=list, init=False)
    swaps: list[float] = attrs.field(factory=list, init=False)
    events: int = attrs.field(default=0, init=False)
    gaps: int = attrs.field(default=0, init=False)
    missed_qty: int = attrs.field(default=0, init=False)
    faults: list[str] = attrs.field(factory=list, init=False)
    wanted: dict[str, SubSpec] = attrs.field(factory=dict, init=False)
    alive: bool = attrs.field(default=False, init=False)
    watch: Callable[[Event], None] = attrs.field(default=lambda _event: None, init=False)
    _disk: tuple[Hygiene, float] = attrs.field(init=False)
    _process: int = attrs.field(default=0, init=False)
    _shift: float = attrs.field(default=0.0, init=False)
    _key: str = attrs.field(default="", init=False)
    _ordered: bool = attrs.field(default=False, init=False)
    _subscriber: Subscriber = attrs.field(init=False)
    _accounts: dict[str, Account] = attrs.field(factory=dict, init=False)
    _volumes: dict[RegKey, int] = attrs.field(factory=dict, init=False)
    _queue: list[tuple[float, int, Callable[[], None]]] = attrs.field(factory=list, init=False)
    _order: Iterator[int] = attrs.field(factory=itertools.count, init=False)
    _wall0: int = attrs.field(init=False)
    _clock: MarketClock = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._wall0 = int(self.start.timestamp()) * 10**9
        self._clock = MarketClock(self.start, 0.0)
        self.limits = limits_in_force(self.start.date())
        self._disk = (Hygiene(), 0.0)
        self.exchange = Exchange(
            Rules(cap=self.cap, hts_id=self.server_hts_id),
            schemas.load_catalogue(Environment.SIM).trs,
            self.rng,
            self._clock.at,
        )
        for nth, spell in enumerate(self.spells):
            after = self.spells[nth + 1 :]
            self.at(spell.since, functools.partial(self._enter, spell, after[:1]))

    # The timeline.

    def at(self, when: float, what: Callable[[], None]) -> None:
        """Let *what* happen at *when*."""
        heapq.heappush(self._queue, (max(when, self.now), next(self._order), what))

    def after(self, seconds: float, what: Callable[[], None]) -> None:
        """Let *what* happen *seconds* from now."""
        self.at(self.now + seconds, what)

    def run(self, until: float, stop: Callable[[], bool] = lambda: False) -> None:
        """Let time pass up to *until*, or until *stop*."""
        spun = 0
        while not stop():
            due = self.engine.next_deadline() - self._shift if self.alive else math.inf
            queued = self._queue[0][0] if self._queue else math.inf
            at = min(due, queued)
            if at > until:
                self.now = max(self.now, until)
                return
            spun = spun + 1 if at <= self.now else 0
            if spun > _SPIN:
                raise AssertionError(f"the timeline spins at {self.now}")
            self.now = max(self.now, at)
            self.events += 1
            if queued <= due:
                heapq.heappop(self._queue)[2]()
            else:
                # The two zeros of time cost a bit of the float; a deadline is never missed by it.
                deadline = self.engine.next_deadline()
                self.engine.timer(self._instant(max(self.now + self._shift, deadline)))
                self._perform()

    def _instant(self, now: float | None = None) -> Instant:
        wall = self._wall0 + int(self.now * 1e9)
        return Instant(self.now + self._shift if now is None else now, wall)

    # The process.

    def boot(self) -> None:
        """A process starts: it reads the disk, and its clock has a zero of its own."""
        assert not self.alive
        self._process += 1
        self.alive = True
        self._shift = float(self.rng.randrange(1 << 20))
        saved, written = self._disk
        record = Hygiene.from_map(json.loads(json.dumps(saved.to_map()))).aged(self.now - written)
        self.engine = Engine(
            f"instance {self._process}",
            schemas.load_catalogue(Environment.SIM),
            _codes(),
            _row_fields(),
            self.rules,
            self.limits,
            self.rng.random,
            record,
            self._instant(),
            _calendar(self.hours),
            (),
            self.hts_id,
        )
        outbox: Outbox[Event] = Outbox(
            size=lambda _event: 1,
            lost=lambda sid, first, last, n, code: Lost("", sid, first, last, n, code),
            queue_bytes=_UNBOUNDED,
            max_age_s=math.inf,
            max_age_latest_s=math.inf,
        )
        self._subscriber = Subscriber("world", 1, "reader", outbox, encode=False)
        self._accounts = {}
        self.engine.subscriptions.attach(self._subscriber)
        self.engine.start(self._instant())
        if self.wanted:
            self.engine.subscribe(self._subscriber, list(self.wanted.values()), self._instant())
        self._perform()

    def want(self, *specs: SubSpec) -> None:
        """The one local program subscribes."""
        self.wanted.update({spec.topic: spec for spec in specs})
        if self.alive:
            self.engine.subscribe(self._subscriber, list(specs), self._instant())
            self._perform()

    def unwant(self, *topics: str) -> None:
        """The one local program unsubscribes."""
        for topic in topics:
            del self.wanted[topic]
        if self.alive:
            sids = [sid for sid, s in self._subscriber.streams.items() if s.topic.name in topics]
            self.engine.unsubscribe(self._subscriber, sids, self._instant())
            self._perform()
            for topic in topics:
                self._accounts.pop(topic, None)

    def do(self, call: Callable[[Engine, Instant], None]) -> None:
        """Call the engine as the shell does, and perform what it decided."""
        if self.alive:
            call(self.engine, self._instant())
            self._perform()

    def stop(self) -> None:
        """The process ends cleanly."""
        wire = self.wire
        if wire is not None:
            wire.neutral = True
        self.do(lambda engine, at: engine.stop(at))
        self._gone()

    def kill(self) -> None:
        """The process is gone without a word; the kernel ends its connection."""
        wire = self.wire
        if wire is not None:
            self._hang_up(wire, clean=False)
        self._gone()

    def order(self) -> None:
        """A person says ``kisfeed reconnect``."""
        self._ordered |= not self.engine.connection.live
        self.do(lambda engine, at: engine.reconnect(at))

    def _gone(self) -> None:
        self.alive = False
        self._process += 1

    def _mine(self, what: Callable[[], None]) -> Callable[[], None]:
        """*what* if this process still runs then."""
        process = self._process

        def check() -> None:
            if self.alive and process == self._process:
                what()

        return check

    @property
    def wire(self) -> Wire | None:
        """The connection that this process has or is making."""
        wire = self.wires[-1] if self.wires else None
        return None if wire is None or wire.ours_gone else wire

    # What the shell does.

    def _perform(self) -> None:
        while actions := self.engine.take_actions():
            for action in actions:
                match action:
                    case SaveHygiene(record=record):
                        self._disk = (record, self.now)
                    case FetchKey():
                        self.after(self.rng.uniform(0, 2), self._mine(self._fetch_key))
                    case Dial(epoch=epoch):
                        self._dial(epoch)
                    case Close(epoch=epoch, abort=abort):
                        wire = self.wire
                        if wire is not None and wire.epoch == epoch:
                            self._hang_up(wire, clean=wire.opened and not abort)
                    case SendText(epoch=epoch):
                        pass  # this server punishes no missing echo
                    case SendRegistration(epoch=epoch, key=key, register=register):
                        build = control.subscribe if register else control.unsubscribe
                        self._send(epoch, build(self._key, key))
        self.engine.take_dirty()
        for event in self._subscriber.outbox.take(self.now + self._shift, _UNBOUNDED):
            self.watch(event)
            if isinstance(event, (Trade, Gap)) and not (isinstance(event, Trade) and event.image):
                self._accounts.setdefault(event.topic, Account()).take(event)
                if isinstance(event, Gap):
                    self.gaps += 1
                    self.missed_qty += event.missed_qty or 0

    def _fetch_key(self) -> None:
        weather = self.weather.weather
        if weather is Weather.KEY_UNAVAILABLE:
            refused = self.rng.random() < 0.2
            self.do(lambda engine, at: engine.key_failed(at, refused=refused))
            return
        if weather is Weather.KEY_REFUSED:
            self._key = "not a key"
        else:
            self._key = self.exchange.approval_key(APPKEY, self.now)
        self.do(lambda engine, at: engine.key_ready(at))

    @property
    def weather(self) -> Spell:
        """What dials meet at this moment."""
        past = bisect_right(self.spells, self.now, key=lambda spell: spell.since)
        return self.spells[past - 1] if past else Spell(0.0, Weather.FINE)

    def _enter(self, spell: Spell, following: Sequence[Spell]) -> None:
        lasts = following[0].since - self.now if following else math.inf
        if spell.weather in DEAD:
            wire = self.wire
            if wire is not None and wire.opened:
                if self.rng.random() < 0.7:
                    self.server_ends(wire, clean=False)
                else:
                    self.fall_silent(wire)
        elif spell.weather is Weather.IN_USE:
            self.exchange.inject(Fault(Kind.STRANGER, lasts=lasts), self.now)
        elif spell.weather is Weather.KEY_REFUSED:
            self.exchange.inject(Fault(Kind.KEY_EXPIRED), self.now)
        elif spell.weather in _ACK_FAULTS:
            kind = _ACK_FAULTS[spell.weather]
            fault = Fault(kind, lasts=lasts, value=spell.value, text="005935", code=spell.code)
            self.exchange.inject(fault, self.now)

    # The network.

    def _dial(self, epoch: int) -> None:
        self.dials.append(self.now)
        spell = self.weather
        wire = Wire(epoch)
        self.wires.append(wire)
        took = self.rng.choice([0.0, 0.05, self.rng.uniform(0, 9.9)])
        if spell.weather in DEAD:
            how = DialFailure(spell.weather.value)
            self.after(took, self._mine(lambda: self._dial_failed(wire, how)))
            return
        # A dial travels as the close before it does, and does not overtake it.
        self.after(self.delay + self.rng.uniform(0, took), lambda: self._accept(wire))
        took += 2 * self.delay
        if spell.weather is Weather.HANG:
            took = self.rules.dial_timeout_s
        if spell.weather in (Weather.HANG, Weather.UPGRADE_FAILED):
            self.after(
                took, self._mine(lambda: self._dial_failed(wire, DialFailure.UPGRADE_FAILED))
            )
        else:
            self.after(took, self._mine(lambda: self._open(wire, spell)))

    def _accept(self, wire: Wire) -> None:
        wire.session = self.exchange.connect(self.now)
        # An order is for one dial that the server sees.
        wire.neutral |= self._ordered
        self._ordered = False
        if wire.ours_gone:  # on the way while its end was given up
            self.exchange.disconnect(wire.session, self.now, clean=False)

    def _dial_failed(self, wire: Wire, how: DialFailure) -> None:
        if wire.ours_gone:
            return
        wire.ours_gone, wire.ended_at = True, self.now
        if wire.session is not None:
            self.exchange.disconnect(wire.session, self.now, clean=False)
        self.do(lambda engine, at: engine.dial_failed(wire.epoch, how, at))

    def _open(self, wire: Wire, spell: Spell) -> None:
        if wire.ours_gone:
            return
        wire.opened = True
        assert wire.session is not None
        self.exchange.handshake(wire.session, self.now)
        self.after(self.beat * self.rng.random(), lambda: self._beat(wire))
        match spell.weather:
            case Weather.KICKED:
                self.after(spell.value, lambda: self.server_ends(wire))
            case Weather.KICKED_LATE:
                lived = self.rules.min_lifetime_s + spell.value
                self.after(lived, lambda: self.server_ends(wire))
            case Weather.FROZEN:
                self.after(spell.value, lambda: self.fall_silent(wire))
            case _:
                pass
        self.do(lambda engine, at: engine.opened(wire.epoch, at))

    def server_ends(self, wire: Wire, *, clean: bool | None = None) -> None:
        """The server ends this connection, with a close frame or without."""
        if wire.session is None or wire.theirs_gone:
            return
        clean = self.rng.random() < 0.5 if clean is None else clean
        self.exchange.disconnect(wire.session, self.now, clean=clean)
        if not wire.silent:
            how = Reason.LOST if clean else Reason.RESET
            self.after(self.delay, self._mine(lambda: self._lost(wire, how)))

    def _lost(self, wire: Wire, how: Reason) -> None:
        if not wire.ours_gone:
            wire.ours_gone, wire.ended_at = True, self.now
            self.do(lambda engine, at: engine.lost(wire.epoch, how, at))

    def _hang_up(self, wire: Wire, *, clean: bool) -> None:
        wire.ours_gone, wire.ended_at = True, self.now
        session = wire.session
        if session is None:
            return
        heard = self.rng.uniform(*_DEAD_PEER_S) if wire.silent else self.delay
        clean = clean and not wire.silent
        self.after(heard, lambda: self.exchange.disconnect(session, self.now, clean=clean))

    def fall_silent(self, wire: Wire) -> None:
        """Nothing passes from here on, either way, and nothing is closed."""
        wire.silent = True

    def _send(self, epoch: int, text: str) -> None:
        wire = self.wire
        if wire is not None and wire.epoch == epoch and wire.opened:
            self.after(self.delay, lambda: self._arrive(wire, text))

    def _arrive(self, wire: Wire, text: str) -> None:
        if wire.silent or wire.theirs_gone:
            return
        session = wire.session
        assert session is not None
        before = dict(session.registrations)
        actions = self.exchange.message(session, text, self.now)
        for key in before:
            if key not in session.registrations:
                wire.unheard[key] = None
        if any(key not in before for key in session.registrations):
            counted = {**session.registrations, **dict.fromkeys(wire.unheard)}
            if len(counted) > self.cap:
                self.faults.append(f"{self.now}: {len(counted)} slots of {self.cap}")
        for action in actions:
            match action:
                case Send(text=answer, delay=late):
                    hear = functools.partial(self._hear, wire, answer)
                    self.after(self.delay + late, self._mine(hear))
                case Drop():
                    self.server_ends(wire, clean=False)

    def _hear(self, wire: Wire, *texts: str) -> None:
        """The client reads *texts*."""
        if wire.ours_gone or wire.silent:
            return
        for text in texts:
            if '"OPSP000' in text:
                parsed = json.loads(text)
                if parsed["body"]["msg_cd"] in (server.UNSUBSCRIBED, server.NOT_SUBSCRIBED):
                    head = parsed["header"]
                    wire.unheard.pop((head["tr_id"], head["tr_key"]), None)
        at = self._instant()
        self.engine.heard(at.now)
        self.engine.on_frames([text.encode() for text in texts], at.wall_ns, at.now)
        self._perform()
        self.check()

    def _beat(self, wire: Wire) -> None:
        """PINGPONG, and some data of what is registered."""
        session = wire.session
        if session is None or wire.ours_gone or wire.theirs_gone or wire.silent:
            return
        self.after(self.beat, lambda: self._beat(wire))
        texts = [server.pingpong(f"{self.seoul:%Y%m%d%H%M%S}")]
        if self.weather.weather is not Weather.QUIET and self.trading:
            keys = [key for key in session.registrations if key[0] == TRADE]
            if len(keys) > self.busy:
                keys = self.rng.sample(keys, self.busy)
            texts += [frame for key in keys if (frame := self._trade(key))]
        self.after(self.delay, self._mine(lambda: self._hear(wire, *texts)))

    @property
    def seoul(self) -> dt.datetime:
        """The time in Seoul."""
        return self._clock.at(self.now)

    @property
    def trading(self) -> bool:
        """Whether anything trades."""
        return not self.hours or is_open("krx", self.seoul)

    def _trade(self, key: RegKey) -> str:
        """One trade, after others that nobody saw; or nothing but those."""
        volume = self._volumes.get(key, 0)
        if self.rng.random() < 0.2:
            volume += 1 + self.rng.randrange(500)
        quantity = 1 + self.rng.randrange(300)
        self._volumes[key] = volume + quantity
        if self.rng.random() < 0.1:
            return ""
        row = [""] * _WIDTH
        row[0], row[1], row[2] = key[1], f"{self.seoul:%H%M%S}", "71900"
        row[12], row[13] = str(quantity), str(volume + quantity)
        row[35] = "N"
        # One date for all: what a new day does to the account is not the matter here.
        row[33] = f"{self.start:%Y%m%d}"
        return server.data_frame(key[0], [row])

    # What must be true at every instant.

    @property
    def held(self) -> list[RegKey]:
        """What the engine calls active."""
        found = self.engine.registrations.holders()
        return [holder.key for holder in found if holder.state is SlotState.HELD]

    def check(self) -> None:
        """Active with us means registered at the server."""
        wire = self.wire
        if wire is None or not wire.stands or wire.session is None:
            return
        wrong = [key for key in self.held if key not in wire.session.registrations]
        if wrong:
            self.faults.append(f"{self.now}: active and not registered: {wrong[:3]}")

    def settle_accounts(self) -> None:
        """What each subscriber was told adds up."""
        for topic, account in self._accounts.items():
            if not account.exact:
                self.faults.append(f"{self.now}: {topic} does not add up: {account}")
