"""What a subscriber receives, in another process or in this one: frozen, ``match``-able values.

Every time that ends in ``ts`` is nanoseconds since 1970 UTC. A price is an integer; its value is
``price * 10 ** -scale`` (:meth:`Row.price`). A value that KIS left empty is ``None``.
"""

from __future__ import annotations

import datetime as dt
import inspect
from decimal import Decimal
from typing import TYPE_CHECKING, Any, ClassVar, Final

import attrs

from kisfeed.kfp.messages import FLAG_AFTER_GAP, FLAG_CORRECTION, Source, Type
from kisfeed.seoul import KST

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from attrs import frozen as _row

_EPOCH: Final = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


def _in_seoul(ts: int) -> dt.datetime:
    return (_EPOCH + dt.timedelta(microseconds=ts // 1000)).astimezone(KST)


@attrs.frozen
class Event:
    """Base of every event; ``type`` names the class in JSON."""

    type: ClassVar[str] = "event"

    def to_map(self) -> dict[str, Any]:
        """This event for one JSON line: ``type``, then every attribute by its name."""
        return {"type": self.type} | {
            name: getattr(self, name) for name in attrs.fields_dict(self.__class__)
        }


_OF_TOPIC: Final = ("topic", "scale", "image", "schema", "names")  # many rows share them
_SIDES: Final = frozenset({"asks", "ask_qtys", "bids", "bid_qtys"})


def _lookup(name: str, at: int) -> property:
    """The attribute *name*; its value stands at *at* of the row's message or is its topic's."""
    if name in _OF_TOPIC:
        of_topic = _OF_TOPIC.index(name)
        return property(lambda row: row._message[0][of_topic])  # noqa: SLF001  # a row's method
    if name not in _SIDES:
        return property(lambda row: row._message[at])  # noqa: SLF001

    def side(row: Any) -> Any:
        message = row._message  # noqa: SLF001
        levels = message[at]
        if type(levels) is not tuple:
            levels = message[at] = tuple(levels) if type(levels) is list else ()
        return levels

    return property(side)


def _initializer(fields: Sequence[attrs.Attribute[Any]]) -> Callable[..., None]:
    """``__init__`` of a row with these attributes."""
    either = inspect.Parameter.POSITIONAL_OR_KEYWORD
    given = [inspect.Parameter(f.name, either, annotation=f.type) for f in fields]
    signature = inspect.Signature(
        [inspect.Parameter("self", either), *given], return_annotation=None
    )

    def init(*values: Any, **named: Any) -> None:
        row, *found = signature.bind(*values, **named).arguments.items()
        of_topic = tuple([value for name, value in found if name in _OF_TOPIC])
        _set_message(row[1], [of_topic, *(v for name, v in found if name not in _OF_TOPIC)])

    init.__signature__ = signature  # type: ignore[attr-defined]  # what inspect looks for
    return init


if not TYPE_CHECKING:

    def _row(cls: type[Any]) -> type[Any]:
        """``attrs.frozen`` for rows: nothing is set, every attribute is looked up when asked for.

        A row is the message that it came as, with what its topic has for all of them in place of
        the message type. Of most rows a program reads few values.
        """
        made = attrs.frozen(cls, slots=False, init=False)  # the slots are in the class's body
        fields = attrs.fields(made)
        at = 0
        for field in fields:
            at += field.name not in _OF_TOPIC
            if not field.inherited:
                setattr(made, field.name, _lookup(field.name, at))
        made.__init__ = _initializer(fields)
        return made


@_row
class Row(Event):
    """What all rows of market data have in common.

    Attributes:
        topic: what was subscribed, such as ``trade.krx.005930``.
        scale: prices are ``integer * 10 ** -scale``.
        image: this is the last value (a snapshot or a polled row), not a tick of its own.
        sid: the topic's number in this daemon instance; 0 where there is none.
        sseq: dense per sid; restarts with the daemon.
        flags: bits 0-1 the source, bit 2 first after a gap, bit 3 a correction.
        xts: the exchange's time, in the resolution that KIS gives (1 s).
        rts: when this machine received it.
    """

    __slots__ = ("_message",)

    topic: str
    scale: int
    image: bool
    sid: int
    sseq: int
    flags: int
    xts: int | None
    rts: int

    @property
    def source(self) -> Source:
        """Where the row came from."""
        return Source(self.flags & 3)

    @property
    def after_gap(self) -> bool:
        """True for the first row after something was missed upstream."""
        return bool(self.flags & FLAG_AFTER_GAP)

    @property
    def correction(self) -> bool:
        """True for a row that corrects an earlier one."""
        return bool(self.flags & FLAG_CORRECTION)

    @property
    def exchange_time(self) -> dt.datetime | None:
        """``xts`` in Seoul's time."""
        return None if self.xts is None else _in_seoul(self.xts)

    @property
    def received_time(self) -> dt.datetime:
        """``rts`` in Seoul's time, cut to microseconds."""
        return _in_seoul(self.rts)

    def price(self, price: int | None) -> Decimal | None:
        """One of this row's integer prices as its exact value."""
        return None if price is None else Decimal(price).scaleb(-self.scale)

    def __reduce__(self) -> tuple[type[Row], tuple[Any, ...]]:
        cls = self.__class__
        return cls, tuple([getattr(self, field.name) for field in attrs.fields(cls)])


_set_message: Final = vars(Row)["_message"].__set__  # past what keeps it frozen


@_row
class Trade(Row):
    """One trade (schema ``trade.v1``)."""

    __slots__ = ()
    type = "trade"

    px: int | None
    qty: int | None
    cum_qty: int | None
    ask: int | None
    bid: int | None
    side: int | None
    change: int | None
    open: int | None
    high: int | None
    low: int | None
    cum_value: int | None
    session: str | None
    time_class: str | None
    halted: bool | None
    vi_ref_px: int | None


@_row
class Book(Row):
    """An order book, best price first (schema ``book.v1``)."""

    __slots__ = ()
    type = "book"

    time_class: str | None
    asks: tuple[int | None, ...]
    ask_qtys: tuple[int | None, ...]
    bids: tuple[int | None, ...]
    bid_qtys: tuple[int | None, ...]
    total_ask: int | None
    total_bid: int | None
    expected_px: int | None
    expected_qty: int | None


@_row
class Expected(Row):
    """An expected execution of a call auction (schema ``expected.v1``)."""

    __slots__ = ()
    type = "expected"

    px: int | None
    qty: int | None
    cum_qty: int | None
    ask: int | None
    bid: int | None
    change: int | None
    session: str | None
    time_class: str | None
    halted: bool | None
    vi_ref_px: int | None
    cum_value: int | None
    operation: str | None


@_row
class MarketStatus(Row):
    """The market operation state of one symbol (schema ``status.v1``)."""

    __slots__ = ()
    type = "market_status"

    halted: bool | None
    halt_reason: str | None
    session: str | None
    expected_session: str | None
    extension: str | None
    allocation: str | None
    symbol_state: str | None
    vi: str | None
    after_hours_vi: str | None
    venue: str | None


@_row
class Raw(Row):
    """A row without a class of its own: KIS's untouched fields, or a schema not known here.

    Attributes:
        schema: such as ``raw.H0STCNT0``.
        names: the schema's field names, in order; empty where the receiver was not told.
        fields: their values; text as KIS sent it for a ``raw.`` schema.
    """

    __slots__ = ()
    type = "raw"

    schema: str
    names: tuple[str, ...]
    fields: tuple[Any, ...]

    def by_name(self) -> dict[str, Any]:
        """The values by their names; a value without a name is left out."""
        return dict(zip(self.names, self.fields, strict=False))


@attrs.frozen
class Notice(Event):
    """An order or fill notice: never dropped, told once.

    Attributes:
        topic: the notice topic.
        nseq: dense over the notices of this daemon instance's day.
        kind: ``accepted``, ``amended``, ``cancelled``, ``rejected``, ``fill`` or ``unknown``.
        fields: the notice by field name (schema ``notice.v1``); holds account numbers, and is
            therefore not part of the ``repr``.
    """

    type = "notice"

    topic: str
    nseq: int
    xts: int | None
    rts: int
    kind: str
    fields: Mapping[str, Any] = attrs.field(repr=False)


@attrs.frozen
class Status(Event):
    """What became of one topic. Act on ``stream``, ``data`` and ``code``, never on ``text``.

    Attributes:
        stream: 1 open, 2 snapshot only, 3 closed and will recover, 4 closed (messages.Stream).
        data: 1 ok, 2 suspect, 3 none yet (messages.Data).
        code: why (messages.Code).
        since_ts: since when.
    """

    type = "status"

    topic: str
    sid: int
    stream: int
    data: int
    code: str
    since_ts: int
    text: str


@attrs.frozen
class Gap(Event):
    """Something was missed upstream, or while this program had no daemon; nobody has it.

    Of a notice topic it says that notices may have been missed and will not come any more.

    Attributes:
        last_sseq, next_sseq: the rows around the hole; after a change of daemon they are
            numbers of two instances.
        from_rts: the last row before it; None if there was none.
        to_rts: the first row after it; None where that is still to come.
        missed_qty: shares traded in between and not received; None where it cannot be known.
        code: why (messages.Code).
    """

    type = "gap"

    topic: str
    sid: int
    last_sseq: int
    next_sseq: int
    from_rts: int | None
    to_rts: int | None
    missed_qty: int | None
    code: str


@attrs.frozen
class Lost(Event):
    """This subscriber was too slow: *n* ticks of one topic were dropped for it alone.

    By the daemon, or in this process where 100,000 events waited for a program that took none.

    Attributes:
        from_sseq, to_sseq: the first and the last dropped tick.
        n: how many.
        code: why (messages.Code).
    """

    type = "lost"

    topic: str
    sid: int
    from_sseq: int
    to_sseq: int
    n: int
    code: str


@attrs.frozen
class Session(Event):
    """The state of the daemon's session with KIS, or of this client's link to the daemon.

    Attributes:
        epoch: numbers KIS sessions; 0 before the first.
        state: the state's name.
        data: 2 every topic is suspect from ``since_ts`` on, 1 each topic keeps its own state.
        code: why (messages.Code).
    """

    type = "session"

    epoch: int
    state: str
    data: int
    code: str
    since_ts: int
    text: str


@attrs.frozen
class Heartbeat(Event):
    """The daemon lives; what it did for this client since the connection began.

    Attributes:
        now_ts: the daemon's wall clock.
        sent: ticks sent.
        dropped: ticks dropped because this client was slow; the sum of ``Lost.n``.
        conflated: ticks passed over because the mode asked for it.
        q_bytes, q_age_ms: what waits for this client.
        up: the KIS session in brief.
    """

    type = "heartbeat"

    now_ts: int
    sent: int
    dropped: int
    conflated: int
    q_bytes: int
    q_age_ms: int
    up: Mapping[str, Any]


@attrs.frozen
class Goaway(Event):
    """The daemon is about to end; a client comes back by itself.

    Attributes:
        code: why.
        deadline_ms: it closes the connection within this.
    """

    type = "goaway"

    code: str
    deadline_ms: int
    detail: Mapping[str, Any]


ROWS: Final[Mapping[str, type[Row]]] = {
    "trade.v1": Trade,
    "book.v1": Book,
    "expected.v1": Expected,
    "status.v1": MarketStatus,
}
"""The class of each typed row schema; its own attributes are the schema's fields, in order."""

_HEAD: Final = 6  # elements of a TICK before the row
_OWN: Final = len(attrs.fields(Row))
_LENGTHS: Final = {s: _HEAD + len(attrs.fields(row)) - _OWN for s, row in ROWS.items()}
_IMAGE: Final = int(Type.IMAGE)
_new: Final = object.__new__


def row_maker(
    schema: str, topic: str, scale: int, names: tuple[str, ...] = ()
) -> Callable[[list[Any]], Row]:
    """Makes the events of one topic's TICK and IMAGE messages.

    Elements beyond the schema's known fields are ignored; missing ones (an older daemon) are
    None. A schema that has no class becomes :class:`Raw`.

    Args:
        schema: the topic's row schema.
        topic: its name.
        scale: of its prices.
        names: the schema's field names, for :class:`Raw`.

    Returns:
        A function of a message of at least six elements, which it takes for its own.
    """
    cls = ROWS.get(schema)
    if cls is None:
        return _raw_maker((topic, scale, False, schema, names), (topic, scale, True, schema, names))
    length = _LENGTHS[schema]
    of_tick, of_image = (topic, scale, False), (topic, scale, True)

    def make(message: list[Any]) -> Row:
        if len(message) != length:
            message[length:] = [None] * (length - len(message))
        message[0] = of_image if message[0] == _IMAGE else of_tick
        event = _new(cls)
        _set_message(event, message)
        return event

    return make


def _raw_maker(of_tick: tuple[Any, ...], of_image: tuple[Any, ...]) -> Callable[[list[Any]], Row]:
    def make(message: list[Any]) -> Row:
        message[_HEAD:] = (tuple(message[_HEAD:]),)
        message[0] = of_image if message[0] == _IMAGE else of_tick
        event = _new(Raw)
        _set_message(event, message)
        return event

    return make
