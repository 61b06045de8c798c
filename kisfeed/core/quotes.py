"""Which questions about prices and symbols reach KIS, and in which calls.

Many callers, few calls: the stream answers first, then what was fetched lately, then a call that
is on its way already, then the next batch. The shell (:mod:`kisfeed.rest.quotes`) makes the calls.
"""

from __future__ import annotations

import enum
import math
from collections import Counter, OrderedDict, deque
from typing import TYPE_CHECKING, Final

import attrs

from kisfeed.kfp.models import DailyPrice, Price, SymbolInfo

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from kisfeed.config import Quotes as Rules

Model = Price | DailyPrice | SymbolInfo

UNKNOWN_SYMBOL: Final = "unknown_symbol"
UPSTREAM_DOWN: Final = "upstream_down"
RATE_LIMITED: Final = "rate_limited"
REJECTED: Final = "rejected"
TIMEOUT: Final = "timeout"
NOT_ENTITLED: Final = "not_entitled"

_UNKNOWN_S: Final = 600.0  # a symbol that KIS does not know is asked for again after this
_MOST_KEPT: Final = 5_000
_LEAST_BATCH: Final = 5
_GROWTH: Final = 2
_PRICE_FLIGHTS: Final = 4
_REFERENCE_FLIGHTS: Final = 2


class Kind(enum.StrEnum):
    """What is asked; the names of the KFP/1 calls."""

    PRICE = "quotes"
    DAILY = "daily"
    INFO = "symbols"


@attrs.frozen
class Key:
    """One question.

    Attributes:
        venue: of prices and days; a symbol is the same everywhere, so ``krx`` for INFO.
    """

    kind: Kind
    venue: str
    symbol: str


@attrs.define(eq=False)
class Ticket:
    """One caller's questions, and the answers so far.

    Attributes:
        waiting: what is not answered yet.
        missing: why there is no answer, by question.
    """

    waiting: dict[Key, None] = attrs.field(factory=dict)
    found: dict[Key, Model] = attrs.field(factory=dict)
    missing: dict[Key, str] = attrs.field(factory=dict)

    @property
    def done(self) -> bool:
        """Nothing is waited for any more."""
        return not self.waiting


@attrs.define(eq=False)
class Flight:
    """One call to make.

    Attributes:
        symbols: what to ask for; more than one goes in one call.
        background: nobody waits for it.
        tickets: who waits for each question; the desk's own.
    """

    kind: Kind
    venue: str
    symbols: tuple[str, ...]
    background: bool
    tickets: dict[Key, list[Ticket]] = attrs.field(repr=False)


class Count(enum.StrEnum):
    """What is counted: questions (symbols), and calls."""

    ASKED = "asked"
    STREAMED = "streamed"
    CACHED = "cached"
    JOINED = "joined"
    STALE = "stale"
    REFUSED = "refused"
    CALLS = "calls"
    FILLED = "filled"


@attrs.define(eq=False)
class _Entry:
    """What KIS said last; ``value`` is None for a symbol that it does not know."""

    value: Model | None
    until: float
    asked: float


@attrs.define(eq=False)
class _Waiting:
    since: float
    background: bool
    tickets: list[Ticket] = attrs.field(factory=list)


@attrs.define(eq=False)
class _Lane:
    """Questions that can share a call.

    Attributes:
        most: symbols one call takes.
        size: as many are asked for in one call, fewer after calls without an answer.
        filled: a call is filled up to so many, fewer after KIS refused the rate. What callers
            wait for still shares a call then: it is calls that KIS counts, not symbols.
        known: answers, the one asked for least lately first.
        apart: questions that a batch did not answer, to be asked in these smaller ones.
        flights: on their way, the newest last; a fresh question may fly beside an older one.
    """

    kind: Kind
    venue: str
    most: int
    size: int
    filled: int
    known: OrderedDict[Key, _Entry] = attrs.field(factory=OrderedDict)
    waiting: dict[Key, _Waiting] = attrs.field(factory=dict)
    apart: deque[dict[Key, list[Ticket]]] = attrs.field(factory=deque)
    flights: dict[Flight, None] = attrs.field(factory=dict)


class Desk:
    """Takes questions, hands out flights, and gives every caller its answers.

    Every method returns at once. Those that may answer somebody return the tickets that are done.
    Every moment is of the clock that counts a suspend: an answer grows old in it too.

    Args:
        rules: lifetimes, windows and bounds.
        most: symbols that one call takes, by kind and venue; a kind that is not there at all
            cannot be asked for in this environment.
        live: the price of a symbol (venue, symbol) that streams at this moment.

    Attributes:
        down: KIS could not be asked the last time.
    """

    def __init__(
        self,
        rules: Rules,
        most: Mapping[tuple[Kind, str], int],
        live: Callable[[str, str], Price | None],
    ) -> None:
        self._rules = rules
        self._live = live
        self._lanes = {where: _Lane(*where, count, count, count) for where, count in most.items()}
        self._order = sorted(self._lanes.values(), key=lambda lane: lane.kind is not Kind.PRICE)
        self.down = False
        self.counts: Counter[str] = Counter()

    # Callers.

    def ask(
        self,
        kind: Kind,
        venue: str,
        symbols: Iterable[str],
        now: float,
        *,
        fresh: bool = False,
        background: bool = False,
    ) -> Ticket:
        """Ask for *symbols*; what is not answered at once is in ``waiting``.

        Args:
            kind: what is asked.
            venue: where.
            symbols: of the right shape.
            now: seconds.
            fresh: only an answer to a call that begins after this will do.
            background: goes behind the questions of callers that wait, and is refused sooner.
        """
        ticket = Ticket()
        lane = self._lanes.get((kind, venue))
        for symbol in dict.fromkeys(symbols):
            key = Key(kind, venue, symbol)
            self.counts[Count.ASKED] += 1
            if lane is None:
                ticket.missing[key] = NOT_ENTITLED
            elif fresh or not self._answer_now(lane, ticket, key, now):
                self._enqueue(lane, ticket, key, now, fresh=fresh, background=background)
        return ticket

    def withdraw(self, ticket: Ticket) -> None:
        """Its caller has left: what nobody else waits for is not asked."""
        for key in ticket.waiting:
            lane = self._lanes[key.kind, key.venue]
            for tickets in self._queues_of(lane, key):
                if ticket in tickets:
                    tickets.remove(ticket)
            queued = lane.waiting.get(key)
            if queued is not None and not queued.tickets and not queued.background:
                del lane.waiting[key]
        ticket.waiting.clear()

    def give_up(self, ticket: Ticket) -> None:
        """Its time is up: it gets the last values known, and ``timeout`` for the rest."""
        left = list(ticket.waiting)
        self.withdraw(ticket)
        for key in left:
            self._settle(ticket, key, self._lanes[key.kind, key.venue], TIMEOUT)

    def lapsed(self, kind: Kind, now: float) -> list[Key]:
        """What has been asked of this kind and has to be asked again, the least lately first."""
        return [
            key
            for lane in self._order
            if lane.kind is kind
            for key, entry in lane.known.items()
            if entry.until <= now and entry.value is not None
        ]

    # Calls.

    def take(self, now: float) -> list[Flight]:
        """The calls to begin now."""
        flights = []
        for lane in self._order:
            while self._has_room(lane) and (lane.apart or self._ripe(lane) <= now):
                flights.append(self._begin(lane, now))
        return flights

    def next_deadline(self) -> float:
        """When :meth:`take` wants to be called; ``math.inf`` when nothing is waited for."""
        due = math.inf
        for lane in self._order:
            if self._has_room(lane):
                due = min(due, -math.inf if lane.apart else self._ripe(lane))
        return due

    def answered(
        self, flight: Flight, values: Mapping[str, Model], until: float, now: float
    ) -> list[Ticket]:
        """KIS answered with *values* by symbol, good until *until*."""
        lane = self._land(flight)
        self.down = False
        lane.size = min(lane.most, lane.size + _GROWTH)
        lane.filled = min(lane.most, lane.filled + _GROWTH)
        done: list[Ticket] = []
        for key, tickets in flight.tickets.items():
            value = values.get(key.symbol)
            if value is None and len(flight.symbols) > 1:
                # What a batch does with a symbol it does not know is not documented: ask alone.
                if tickets:
                    lane.apart.append({key: tickets})
                continue
            ends = now + _UNKNOWN_S if value is None else until
            self._keep(lane, key, value, ends, now)
            for ticket in tickets:
                if value is None:
                    ticket.missing[key] = UNKNOWN_SYMBOL
                else:
                    ticket.found[key] = value
                done += self._tick_off(ticket, key)
        return done

    def refused(self, flight: Flight, code: str, now: float) -> list[Ticket]:
        """KIS understood the call and said no, for *code*.

        A batch is asked again in halves, which finds the symbol that spoils it.
        """
        lane = self._land(flight)
        self.down = False
        tickets = {key: waiting for key, waiting in flight.tickets.items() if waiting}
        if len(flight.symbols) > 1:
            keys = list(tickets)
            middle = (len(keys) + 1) // 2
            halves = (keys[:middle], keys[middle:])
            lane.apart.extend({key: tickets[key] for key in half} for half in halves if half)
            return []
        if code == UNKNOWN_SYMBOL:
            (key,) = flight.tickets
            self._keep(lane, key, None, now + _UNKNOWN_S, now)
        return self._settle_all(lane, tickets, code)

    def failed(self, flight: Flight, code: str) -> list[Ticket]:
        """KIS could not be asked (``upstream_down``), or not at this rate (``rate_limited``)."""
        lane = self._land(flight)
        if code == UPSTREAM_DOWN:
            self.down = True
            lane.size = _halved(lane.size, lane.most)
        else:
            self.press(flight.kind)
        return self._settle_all(lane, flight.tickets, code)

    def press(self, kind: Kind) -> None:
        """KIS refused a call because of its rate: less is asked along for a while."""
        for lane in self._order:
            if lane.kind is kind:
                lane.filled = _halved(lane.filled, lane.most)

    def status(self) -> dict[str, object]:
        """Counters, and how much waits and flies, by kind; JSON-able."""
        return {
            "counts": {str(name): self.counts[name] for name in Count},
            "waiting": {str(kind): self._waiting(kind) for kind in Kind},
            "in_flight": {str(kind): self._flights(kind) for kind in Kind},
            "down": self.down,
        }

    # Inside.

    def _answer_now(self, lane: _Lane, ticket: Ticket, key: Key, now: float) -> bool:
        if lane.kind is Kind.PRICE:
            streamed = self._live(key.venue, key.symbol)
            if streamed is not None:
                self.counts[Count.STREAMED] += 1
                ticket.found[key] = streamed
                return True
        entry = lane.known.get(key)
        if entry is None:
            return False
        entry.asked = now
        lane.known.move_to_end(key)
        if now < entry.until:
            self.counts[Count.CACHED] += 1
            if entry.value is None:
                ticket.missing[key] = UNKNOWN_SYMBOL
            else:
                ticket.found[key] = entry.value
            return True
        if self.down and entry.value is not None:
            self.counts[Count.STALE] += 1
            ticket.found[key] = attrs.evolve(entry.value, stale=True)
            if not lane.flights and not lane.waiting:
                # Somebody has to find out that KIS is back, without anybody waiting for it.
                lane.waiting[key] = _Waiting(now, background=True)
            return True
        return False

    def _enqueue(
        self, lane: _Lane, ticket: Ticket, key: Key, now: float, *, fresh: bool, background: bool
    ) -> None:
        queued = lane.waiting.get(key)
        tickets = None if queued is None else queued.tickets
        if tickets is None and not fresh:
            tickets = next(iter(self._queues_of(lane, key)), None)
        if tickets is not None:
            self.counts[Count.JOINED] += 1
        else:
            room = self._rules.max_waiting // (2 if background else 1)
            if self._waiting(lane.kind) >= room:
                self.counts[Count.REFUSED] += 1
                self._settle(ticket, key, lane, RATE_LIMITED)
                return
            queued = lane.waiting[key] = _Waiting(now, background)
            tickets = queued.tickets
        if queued is not None and not background:
            queued.background = False
        tickets.append(ticket)
        ticket.waiting[key] = None

    def _queues_of(self, lane: _Lane, key: Key) -> list[list[Ticket]]:
        """Everywhere where tickets wait for *key*: the newest flight, then what flies next."""
        queues = [f.tickets[key] for f in reversed(lane.flights) if key in f.tickets]
        queues += [part[key] for part in lane.apart if key in part]
        queued = lane.waiting.get(key)
        if queued is not None:
            queues.append(queued.tickets)
        return queues

    def _has_room(self, lane: _Lane) -> bool:
        if lane.kind is Kind.PRICE:
            return self._flights(Kind.PRICE) < _PRICE_FLIGHTS
        return self._flights(Kind.DAILY) + self._flights(Kind.INFO) < _REFERENCE_FLIGHTS

    def _flights(self, kind: Kind) -> int:
        lanes = [lane for lane in self._order if lane.kind is kind]
        return sum(len(lane.flights) for lane in lanes)

    def _waiting(self, kind: Kind) -> int:
        lanes = [lane for lane in self._order if lane.kind is kind]
        return sum(len(lane.waiting) + sum(map(len, lane.apart)) for lane in lanes)

    def _ripe(self, lane: _Lane) -> float:
        """When the questions that wait here make a call."""
        if not lane.waiting:
            return math.inf
        if len(lane.waiting) >= lane.size:
            return -math.inf
        oldest = next(iter(lane.waiting.values()))
        return oldest.since + self._rules.window_s

    def _begin(self, lane: _Lane, now: float) -> Flight:
        if lane.apart:
            tickets, background = lane.apart.popleft(), False
        else:
            # Stable: in each of the two classes who came first goes first.
            keys = sorted(lane.waiting, key=lambda key: lane.waiting[key].background)
            taken = {key: lane.waiting.pop(key) for key in keys[: lane.size]}
            tickets = {key: waiting.tickets for key, waiting in taken.items()}
            background = all(waiting.background for waiting in taken.values())
            for key in self._filling(lane, tickets, now):
                tickets[key] = []
        self.counts[Count.CALLS] += 1
        symbols = tuple(key.symbol for key in tickets)
        flight = Flight(lane.kind, lane.venue, symbols, background, tickets)
        lane.flights[flight] = None
        return flight

    def _filling(self, lane: _Lane, taken: Mapping[Key, object], now: float) -> list[Key]:
        """Others that were asked lately, nearest to their end: in this call they cost nothing."""
        room = min(lane.size, lane.filled) - len(taken)
        if room <= 0:
            return []
        soon = now + self._rules.price_ttl_s / 2
        flying = {key for flight in lane.flights for key in flight.tickets}
        candidates = []
        for key in reversed(lane.known):
            entry = lane.known[key]
            if entry.asked < now - self._rules.recent_s:
                break
            wanted = entry.value is not None and entry.until <= soon
            if wanted and key not in taken and key not in flying:
                candidates.append(key)
        candidates.sort(key=lambda key: lane.known[key].until)
        self.counts[Count.FILLED] += len(candidates[:room])
        return candidates[:room]

    def _land(self, flight: Flight) -> _Lane:
        lane = self._lanes[flight.kind, flight.venue]
        del lane.flights[flight]
        return lane

    def _keep(self, lane: _Lane, key: Key, value: Model | None, until: float, now: float) -> None:
        entry = lane.known.get(key)
        if entry is None:
            lane.known[key] = _Entry(value, until, now)
            if len(lane.known) > _MOST_KEPT:
                lane.known.popitem(last=False)
        else:
            entry.value, entry.until = value, until

    def _settle_all(
        self, lane: _Lane, tickets: Mapping[Key, list[Ticket]], code: str
    ) -> list[Ticket]:
        done: list[Ticket] = []
        for key, waiting in tickets.items():
            for ticket in waiting:
                self._settle(ticket, key, lane, code)
                done += self._tick_off(ticket, key)
        return done

    def _settle(self, ticket: Ticket, key: Key, lane: _Lane, code: str) -> None:
        """No answer of KIS for *code*: the last value known has to do."""
        entry = lane.known.get(key)
        refused = code in {UNKNOWN_SYMBOL, REJECTED}
        if refused or entry is None or entry.value is None:
            ticket.missing[key] = code
        else:
            self.counts[Count.STALE] += 1
            ticket.found[key] = attrs.evolve(entry.value, stale=True)

    @staticmethod
    def _tick_off(ticket: Ticket, key: Key) -> list[Ticket]:
        ticket.waiting.pop(key, None)
        return [ticket] if ticket.done else []


def _halved(size: int, most: int) -> int:
    return max(min(_LEAST_BATCH, most), size // 2)
