"""An engine with a KIS of a few words around it: pure, and timed by hand."""

from __future__ import annotations

import datetime as dt
import math
from typing import TYPE_CHECKING, Any

import attrs

from kisfeed import limits
from kisfeed.config import Environment, Session
from kisfeed.core.connection import Close, Dial, FetchKey, Reason
from kisfeed.core.engine import Engine, Instant, SendRegistration, SendText
from kisfeed.core.outbox import Outbox
from kisfeed.core.pacing import Hygiene
from kisfeed.core.streams import Subscriber
from kisfeed.core.subscriptions import SubSpec
from kisfeed.kfp.events import Event, Gap, Lost, Row, Status
from kisfeed.kis import server
from kisfeed.kis.codes import Codes
from kisfeed.kis.control import AesKey
from kisfeed.kis.sessions import Calendar, always_open
from kisfeed.schemas import load, load_catalogue

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from kisfeed.kis.catalogue import RegKey

WALL = 1_795_140_000 * 10**9  # 2026-11-20 11:00 in Seoul, a Friday
TODAY = dt.date(2026, 11, 20)
TRADE, BOOK, NOTICE = "trade.krx.005930", "book.krx.005930", "notice.krx.someone"
AES = AesKey(key=b"k" * 32, iv=b"i" * 16)

CATALOGUE = load_catalogue(Environment.SIM)
CODES = Codes(load("kis/codes.json"))
ROWS = {
    name: [field["name"] for field in schema["fields"]]
    for name, schema in load("kfp1/rows.json")["schemas"].items()
}
_SESSIONS = load("kis/sessions.json")


def exchange_hours() -> Calendar:
    """The exchanges' own hours, without holidays."""
    return Calendar(_SESSIONS, {})


def record(tr_id: str, **values: object) -> list[str]:
    """One record of a TR: *values* by KIS's field names, ``1`` everywhere else."""
    return [str(values.get(name, 1)) for name in CATALOGUE.trs[tr_id].usual.fields]


def trade(cum: int, qty: int = 10, symbol: str = "005930", **values: object) -> list[str]:
    """One trade of 2026-11-20; *cum* is the day's volume behind it."""
    named: dict[str, object] = {
        "MKSC_SHRN_ISCD": symbol,
        "STCK_CNTG_HOUR": "110000",
        "STCK_PRPR": 71_000,
        "CNTG_VOL": qty,
        "ACML_VOL": cum,
        "BSOP_DATE": "20261120",
        "NEW_MKOP_CLS_CODE": "20",
        "TRHT_YN": "N",
    }
    return record("H0STCNT0", **(named | values))


def notice(order: str = "0000000001") -> list[str]:
    return record(
        "H0STCNI0", CUST_ID="someone", ODER_NO=order, STCK_SHRN_ISCD="005930", CNTG_YN="2"
    )


@attrs.define(eq=False)
class Bench:
    """Drives an engine. Every call moves the clock by as little as the engine's pacing needs.

    Attributes:
        sent: registrations as handed out, ``(subscribe, key)``.
        actions: everything else that was handed out.
        answers: what KIS says to a registration of a key; ``None`` for nothing.
        registered: what KIS holds in this session, by its usual answers.
    """

    rules: Session = attrs.field(factory=Session)
    pinned: tuple[str, ...] = ()
    hts_id: str = ""
    cap: int = 41
    now: float = 1000.0
    calendar: Calendar = attrs.field(factory=lambda: Calendar(always_open(_SESSIONS), {}))
    sent: list[tuple[bool, RegKey]] = attrs.field(factory=list)
    actions: list[object] = attrs.field(factory=list)
    answers: dict[RegKey, str | None] = attrs.field(factory=dict)
    registered: dict[RegKey, None] = attrs.field(factory=dict)
    engine: Engine = attrs.field(init=False)
    _conns: int = 0

    def __attrs_post_init__(self) -> None:
        in_force = limits.resolve(load("limits.kis.json"), Environment.SIM, TODAY)
        self.engine = Engine(
            "01J",
            CATALOGUE,
            CODES,
            ROWS,
            self.rules,
            attrs.evolve(in_force, registrations=self.cap),
            lambda: 0.5,
            Hygiene(),
            self.at(),
            self.calendar,
            self.pinned,
            self.hts_id,
        )
        self.engine.start(self.at())

    def at(self) -> Instant:
        return Instant(self.now, self.rts)

    @property
    def rts(self) -> int:
        return WALL + int(self.now * 1e9)

    def subscriber(self, *, encode: bool = False, queue_bytes: int = 1 << 20) -> Subscriber:
        self._conns += 1

        def lost(sid: int, first: int, last: int, n: int, code: str) -> Any:
            return Lost(f"sid {sid}", sid, first, last, n, code)

        outbox: Outbox[Any] = Outbox(
            size=len if encode else lambda _: 256,
            lost=lost,
            queue_bytes=queue_bytes,
            max_age_s=math.inf,
            max_age_latest_s=math.inf,
        )
        subscriber = Subscriber(f"test {self._conns}", self._conns, "reader", outbox, encode=encode)
        self.engine.subscriptions.attach(subscriber)
        return subscriber

    def subscribe(self, *topics: str, settle: bool = True, **spec: Any) -> Subscriber:
        """A new subscriber of *topics*; KIS has answered everything if *settle*."""
        subscriber = self.subscriber()
        self.engine.subscribe(subscriber, [SubSpec(topic, **spec) for topic in topics], self.at())
        if settle:
            self.settle()
        return subscriber

    def settle(self) -> None:
        """Perform what the engine wants, KIS answering, until there is nothing left to do now."""
        for _ in range(1000):
            if not self.perform():
                soon = self.engine.next_deadline()
                # Pacing is in fractions of a second, everything else in seconds.
                if soon > self.now + 0.6:
                    return
                self.now = max(self.now, soon)
                self.engine.timer(self.at())
        raise AssertionError("it never settles")

    def perform(self) -> bool:
        """Perform what the engine wants now; False if there was nothing."""
        actions = self.engine.take_actions()
        for action in actions:
            match action:
                case FetchKey():
                    self.engine.key_ready(self.at())
                case Dial(epoch=epoch):
                    self.registered.clear()
                    self.engine.opened(epoch, self.at())
                case SendRegistration(key=key, register=register):
                    self.sent.append((register, key))
                    code = self.answers.get(key, self._usual(key, register=register))
                    if code == server.SUBSCRIBED:
                        self.registered[key] = None
                    elif code == server.UNSUBSCRIBED:
                        self.registered.pop(key, None)
                    if code is not None:
                        self.ack(key, code)
                case _:
                    self.actions.append(action)
        return bool(actions)

    def _usual(self, key: RegKey, *, register: bool) -> str:
        if not register:
            return server.UNSUBSCRIBED
        return server.ALREADY_SUBSCRIBED if key in self.registered else server.SUBSCRIBED

    def ack(self, key: RegKey, code: str, aes: AesKey | None = None) -> None:
        encrypted = key[0] in CATALOGUE.trs and CATALOGUE.trs[key[0]].encrypted
        if encrypted and aes is None and code == server.SUBSCRIBED:
            aes = AES
        self.frames(server.build_ack(key, code, aes=aes, encrypt=encrypted))

    def frames(self, *frames: str | bytes) -> None:
        """One read with these frames."""
        batch = [frame.encode() if isinstance(frame, str) else frame for frame in frames]
        self.engine.heard(self.now)
        self.engine.on_frames(batch, self.rts, self.now)

    def rows(self, *rows: Sequence[str], tr_id: str = "H0STCNT0") -> None:
        """One frame with these records."""
        aes = AES if CATALOGUE.trs[tr_id].encrypted else None
        self.frames(server.data_frame(tr_id, rows, aes))

    def wait(self, seconds: float) -> None:
        """Let time pass, KIS answering."""
        until = self.now + seconds
        while True:
            self.settle()
            soon = max(self.engine.next_deadline(), self.now)
            if soon >= until:
                break
            self.now = max(soon, math.nextafter(self.now, math.inf))
            self.engine.timer(self.at())
        self.now = until
        self.engine.timer(self.at())
        self.settle()

    def lose(self, how: Reason = Reason.LOST) -> None:
        """The session ends."""
        self.engine.lost(self.engine.connection.epoch, how, self.at())

    def reconnect(self) -> None:
        """Wait until there is a session again, and everything in it is answered."""
        epoch = self.engine.connection.epoch
        for _ in range(100):
            self.settle()
            if self.engine.connection.live and self.engine.connection.epoch > epoch:
                return
            self.now = max(self.engine.next_deadline(), math.nextafter(self.now, math.inf))
            self.engine.timer(self.at())
        raise AssertionError("it never comes back")

    def take(self, subscriber: Subscriber) -> list[Event]:
        """What *subscriber* gets."""
        taken: list[Event] = subscriber.outbox.take(self.now, 1 << 30)
        return taken

    def closes(self) -> list[Close]:
        return [action for action in self.actions if isinstance(action, Close)]

    def echoes(self) -> list[str]:
        return [action.text for action in self.actions if isinstance(action, SendText)]


def rows_of(events: Iterable[Event]) -> list[Row]:
    return [event for event in events if isinstance(event, Row) and not event.image]


def statuses(events: Iterable[Event], topic: str = TRADE) -> list[Status]:
    return [event for event in events if isinstance(event, Status) and event.topic == topic]


def gaps(events: Iterable[Event]) -> list[Gap]:
    return [event for event in events if isinstance(event, Gap)]
