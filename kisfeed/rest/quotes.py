"""Prices and symbols for any number of callers: makes the calls that the desk decides on."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar

import attrs
import trio

from kisfeed.core import quotes as desks, quoting
from kisfeed.core.quotes import Desk, Flight, Key, Kind, Model, Ticket
from kisfeed.errors import (
    KisBusy,
    KisError,
    KisRefused,
    LocalRefusal,
    UsageError,
)
from kisfeed.kfp.models import Answers, DailyPrice, Price, SymbolInfo
from kisfeed.kis.rest import Priority
from kisfeed.seams import SleepWatch
from kisfeed.seoul import date_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

    from kisfeed.config import Quotes as Rules
    from kisfeed.core.pollplan import PollPlan, Want
    from kisfeed.kis.catalogue import RegKey
    from kisfeed.kis.rest import Answer
    from kisfeed.kis.sessions import Calendar
    from kisfeed.rest.requests import Kis
    from kisfeed.seams import Clock

M = TypeVar("M", Price, DailyPrice, SymbolInfo)

MOST_SYMBOLS: Final = 500
"""Symbols in one question; what is known of them fits a frame."""

MOST_DAYS: Final = quoting.DAYS
_HOW: Final[Mapping[Kind, Mapping[str, type]]] = {
    Kind.PRICE: {"venue": str, "fresh": bool},
    Kind.DAILY: {"venue": str, "fresh": bool, "days": int},
    Kind.INFO: {"fresh": bool},
}
_NOTHING_FOUND: Final = frozenset({"KIOK0560", "APBK0656"})
_CALL: Final[Mapping[Kind, str]] = {
    Kind.PRICE: "inquire_price",
    Kind.DAILY: "inquire_daily_itemchartprice",
    Kind.INFO: "search_stock_info",
}
_MULTI: Final = "intstock_multprice"
_VENUES: Final = ("krx", "nxt")
_LOOK_AGAIN_S: Final = 600.0
_SUSPENDED_S: Final = 2.0  # a shorter sleep harms nothing

_Made: TypeAlias = tuple[dict[str, Model], float]
"""Answers by symbol, and for how many seconds from now they are good."""


@attrs.define(eq=False)
class Quotes:
    """Answers questions about prices and symbols, with as few calls as it takes.

    Args:
        kis: makes the calls.
        rules: lifetimes, windows and bounds.
        live: the price of a symbol (venue, symbol) that streams at this moment.
        shaped: whether a text can be a symbol at all.
    """

    _kis: Kis
    _rules: Rules
    _clock: Clock
    _live: Callable[[str, str], Price | None]
    _shaped: Callable[[str], bool]
    _desk: Desk = attrs.field(init=False)
    _wake: trio.Event = attrs.field(factory=trio.Event, init=False)
    _answered: dict[Ticket, trio.Event] = attrs.field(factory=dict, init=False)

    def __attrs_post_init__(self) -> None:
        endpoints = self._kis.endpoints
        most: dict[tuple[Kind, str], int] = {}
        for venue in quoting.VENUES:
            multi = venue in quoting.MULTI_VENUES and _MULTI in endpoints
            most[Kind.PRICE, venue] = endpoints[_MULTI].most if multi else 1
            most[Kind.DAILY, venue] = 1
        most[Kind.INFO, "krx"] = 1
        self._desk = Desk(self._rules, most, self._live)

    async def get_current_prices(
        self, *symbols: str, venue: str = "krx", fresh: bool = False
    ) -> Answers[Price]:
        """What *symbols* cost; see :meth:`kisfeed.client.sync.Client.get_current_prices`."""
        ticket = await self._ask(Kind.PRICE, symbols, venue=venue, fresh=fresh)
        return _picked(Price, ticket, symbols)

    async def get_daily_prices(
        self, *symbols: str, venue: str = "krx", days: int = 30, fresh: bool = False
    ) -> Answers[DailyPrice]:
        """The last *days* finished trading days of *symbols*, at most 100."""
        if not 1 <= days <= MOST_DAYS:
            raise UsageError(f"days must be 1 to {MOST_DAYS}")
        ticket = await self._ask(Kind.DAILY, symbols, venue=venue, fresh=fresh)
        answers = _picked(DailyPrice, ticket, symbols)
        cut = {s: attrs.evolve(p, bars=p.bars[:days]) for s, p in answers.items()}
        return Answers(cut, answers.missing)

    async def get_symbol_infos(self, *symbols: str, fresh: bool = False) -> Answers[SymbolInfo]:
        """What *symbols* are."""
        ticket = await self._ask(Kind.INFO, symbols, fresh=fresh)
        return _picked(SymbolInfo, ticket, symbols)

    async def answer(self, kind: Kind, arguments: Mapping[str, Any]) -> dict[str, object]:
        """One of the KFP/1 calls ``quotes``, ``daily`` and ``symbols``: its result as a JSON map.

        Raises:
            UsageError: *arguments* do not fit.
        """
        symbols = arguments.get("symbols")
        if not isinstance(symbols, list) or not all(isinstance(s, str) for s in symbols):
            raise UsageError("symbols is a list of texts")
        how = {name: arguments[name] for name in _HOW[kind] if name in arguments}
        for name, value in how.items():
            if type(value) is not _HOW[kind][name]:
                raise UsageError(f"{name} is a {_HOW[kind][name].__name__}")
        asks: Mapping[Kind, Callable[..., Awaitable[Answers[Any]]]] = {
            Kind.PRICE: self.get_current_prices,
            Kind.DAILY: self.get_daily_prices,
            Kind.INFO: self.get_symbol_infos,
        }
        answers = await asks[kind](*symbols, **how)
        items = {symbol: item.to_map() for symbol, item in answers.items()}
        return {"items": items, "missing": dict(answers.missing)}

    def status(self) -> dict[str, object]:
        """Counters and queue lengths, JSON-able."""
        return self._desk.status()

    async def run(self) -> None:
        """Make the calls until cancelled; without it nothing is answered but from what is known."""
        async with trio.open_nursery() as nursery:
            while True:
                for flight in self._desk.take(self._clock.boot()):
                    nursery.start_soon(self._fly, flight)
                # Where every flight is taken, a landing wakes us.
                wait_s = max(0.0, self._desk.next_deadline() - self._clock.boot())
                with trio.move_on_after(wait_s):
                    await self._wake.wait()
                self._wake = trio.Event()

    async def keep_ready(self, calendar: Calendar, known: Callable[[], Iterable[str]]) -> None:
        """Before each open, fetch the days and names that will be asked for; until cancelled.

        Those are the ones that were asked for before, and those of *known*.
        """
        while True:
            wall_ns = self._clock.wall_ns()
            opens = calendar.next_open(_VENUES, wall_ns)
            wait_s = math.inf if opens is None else (opens - wall_ns) / 1e9 - self._rules.preload_s
            if wait_s > 0:
                # The wall clock may step, so no look is far away.
                await trio.sleep(min(wait_s, _LOOK_AGAIN_S))
                continue
            await self._preload(known)
            await trio.sleep(self._rules.preload_s)

    async def _preload(self, known: Callable[[], Iterable[str]]) -> None:
        for kind in (Kind.DAILY, Kind.INFO):
            lapsed = self._desk.lapsed(kind, self._clock.boot())
            wanted = dict.fromkeys([*lapsed, *(Key(kind, "krx", s) for s in known())])
            for key in wanted:
                ticket = self._desk.ask(
                    kind, key.venue, [key.symbol], self._clock.boot(), background=True
                )
                await self._await(ticket, math.inf)

    async def poll(
        self,
        plan: PollPlan,
        wanted: Callable[[], Sequence[Want]],
        deliver: Callable[[Mapping[RegKey, Price], Sequence[RegKey]], None],
    ) -> None:
        """Fetch the prices of topics that have no stream, in *plan*'s turns, until cancelled.

        Args:
            plan: whose turn it is.
            wanted: the topics that live on polling now.
            deliver: takes the prices, and the registrations for which there was none.
        """
        while True:
            turn = plan.pick(wanted(), self._clock.now())
            worked = True
            if turn:
                found = await self._poll_once(turn)
                deliver(found, [want.key for want in turn if want.key not in found])
                worked = bool(found)
            await trio.sleep(plan.pause(worked=worked))

    async def _poll_once(self, turn: Sequence[Want]) -> dict[RegKey, Price]:
        tickets = []
        for venue in dict.fromkeys(want.venue for want in turn):
            symbols = [want.symbol for want in turn if want.venue == venue]
            now = self._clock.boot()
            tickets.append(
                self._desk.ask(Kind.PRICE, venue, symbols, now, fresh=True, background=True)
            )
        for ticket in tickets:
            await self._await(ticket, self._rules.patience_s)
        prices = {
            (key.venue, key.symbol): value
            for ticket in tickets
            for key, value in ticket.found.items()
            if isinstance(value, Price) and not value.stale
        }
        return {
            want.key: prices[want.venue, want.symbol]
            for want in turn
            if (want.venue, want.symbol) in prices
        }

    async def _ask(
        self, kind: Kind, symbols: Sequence[str], *, venue: str = "krx", fresh: bool
    ) -> Ticket:
        if venue not in quoting.VENUES:
            raise UsageError(f"venue must be one of {', '.join(quoting.VENUES)}")
        if not 1 <= len(symbols) <= MOST_SYMBOLS:
            raise UsageError(f"ask for 1 to {MOST_SYMBOLS} symbols")
        shaped = [symbol for symbol in symbols if self._shaped(symbol)]
        ticket = self._desk.ask(kind, venue, shaped, self._clock.boot(), fresh=fresh)
        for symbol in symbols:
            if not self._shaped(symbol):
                ticket.missing[Key(kind, venue, symbol)] = desks.UNKNOWN_SYMBOL
        await self._await(ticket, self._rules.patience_s)
        return ticket

    async def _await(self, ticket: Ticket, patience_s: float) -> None:
        """Wait until *ticket* is done, or its time is up; a caller that leaves hurts nobody."""
        if ticket.done:
            if self._desk.down:
                self._wake.set()  # the answer may have come with a question of the desk's own
            await trio.lowlevel.checkpoint()
            return
        answered = self._answered[ticket] = trio.Event()
        self._wake.set()
        try:
            with trio.move_on_after(patience_s):
                await answered.wait()
            self._desk.give_up(ticket)
        finally:
            del self._answered[ticket]
            self._desk.withdraw(ticket)

    # Calls.

    async def _fly(self, flight: Flight) -> None:
        try:
            done = await self._result(flight)
        finally:
            self._wake.set()
        for ticket in done:
            waiter = self._answered.get(ticket)
            if waiter is not None:
                waiter.set()

    async def _result(self, flight: Flight) -> list[Ticket]:
        make = {
            Kind.PRICE: self._prices,
            Kind.DAILY: self._days,
            Kind.INFO: self._info,
        }[flight.kind]
        limiter = self._kis.gate.limiter
        refused = limiter.throttled_count
        try:
            values, good_for_s = await self._awake(make, flight)
        except (KisBusy, LocalRefusal):
            return self._desk.failed(flight, desks.RATE_LIMITED)
        except KisRefused as exc:
            code = desks.UNKNOWN_SYMBOL if exc.code in _NOTHING_FOUND else desks.REJECTED
            return self._desk.refused(flight, code, self._clock.boot())
        except KisError:
            return self._desk.failed(flight, desks.UPSTREAM_DOWN)
        now = self._clock.boot()
        if limiter.throttled_count > refused:
            self._desk.press(flight.kind)
        return self._desk.answered(flight, values, now + good_for_s, now)

    async def _awake(self, make: Callable[[Flight], Awaitable[_Made]], flight: Flight) -> _Made:
        """What KIS answers without a suspend in between: one over which it fell may be as old."""
        while True:
            sleep = SleepWatch(self._clock, _SUSPENDED_S)
            made = await make(flight)
            if not sleep.slept():
                return made

    async def _prices(self, flight: Flight) -> _Made:
        values: dict[str, Model] = {}
        venue, symbols = flight.venue, flight.symbols
        if len(symbols) > 1:
            answer = await self._call(flight, _MULTI, quoting.prices_values(venue, symbols))
            values.update(quoting.prices(answer.body, venue, self._clock.wall_ns()))
        else:
            query = quoting.price_values(venue, symbols[0])
            answer = await self._call(flight, _CALL[Kind.PRICE], query)
            found = quoting.price(answer.body, venue, symbols[0], self._clock.wall_ns())
            if found is not None:
                values[symbols[0]] = found
        return values, self._rules.price_ttl_s

    async def _days(self, flight: Flight) -> _Made:
        (symbol,) = flight.symbols
        asked = self._clock.wall_ns()
        answer = await self._call_days(flight)
        last = quoting.last_finished_day(asked)
        found = quoting.daily(answer.body, flight.venue, symbol, self._clock.wall_ns(), last)
        return {} if found is None else {symbol: found}, self._reference_s(asked)

    async def _info(self, flight: Flight) -> _Made:
        (symbol,) = flight.symbols
        asked = self._clock.wall_ns()
        if _CALL[Kind.INFO] in self._kis.endpoints:
            answer = await self._call(flight, _CALL[Kind.INFO], quoting.info_values(symbol))
            found = quoting.info(answer.body, symbol, self._clock.wall_ns())
        else:
            answer = await self._call_days(flight)
            found = quoting.info_of_daily(answer.body, symbol, self._clock.wall_ns())
        return {} if found is None else {symbol: found}, self._reference_s(asked)

    async def _call_days(self, flight: Flight) -> Answer:
        today = date_of(self._clock.wall_ns())
        query = quoting.daily_values(flight.venue, flight.symbols[0], today)
        return await self._call(flight, _CALL[Kind.DAILY], query)

    async def _call(self, flight: Flight, name: str, query: Mapping[str, str]) -> Answer:
        priority = Priority.PRICE if flight.kind is Kind.PRICE else Priority.REFERENCE
        return await self._kis.call(self._kis.endpoints.call(name, query, priority=priority))

    def _reference_s(self, asked: int) -> float:
        """How much longer an answer is good to a question of *asked* (wall clock)."""
        return (quoting.reference_until(asked) - self._clock.wall_ns()) / 1e9


def _picked(kind: type[M], ticket: Ticket, symbols: Sequence[str]) -> Answers[M]:
    """The answers of one kind, in the order of *symbols*."""
    found = {k.symbol: v for k, v in ticket.found.items() if isinstance(v, kind)}
    missing = {k.symbol: code for k, code in ticket.missing.items()}
    return Answers(
        {symbol: found[symbol] for symbol in symbols if symbol in found},
        {symbol: missing[symbol] for symbol in symbols if symbol in missing},
    )
