"""When which market trades: hours as data, holidays passed in, codes on the wire observed.

The hours come from ``schemas/kis/sessions.json``. Times are nanoseconds since 1970 UTC; Korea is
UTC+9 all year, and the one market with summer time follows a rule of dates, so no time zone
database is needed.
"""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Any, Final

import attrs

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Mapping

NS: Final = 1_000_000_000
DAY_NS: Final = 86_400 * NS
_EPOCH: Final = dt.date(1970, 1, 1).toordinal()
_HORIZON_DAYS: Final = 30  # the longest closure of any exchange is far shorter
_KEPT_DAYS: Final = 256  # timetables remembered, all markets together


@attrs.frozen
class Phase:
    """What a market does at one instant.

    Attributes:
        name: as in the data, or ``closed``, or ``halted``.
        open: the market does something, so a session is worth having.
        flows: topic channels whose silence would be odd.
        until: when the timetable next changes; None if it does not within a month.
        observed: the wire told so, against the timetable.
    """

    name: str
    open: bool
    flows: frozenset[str]
    until: int | None
    observed: bool = False


@attrs.frozen
class _Row:
    """One phase of the data; times are nanoseconds from the trading date's midnight."""

    name: str
    start: int
    end: int
    first: dt.date
    last: dt.date
    flows: frozenset[str]
    late: Mapping[str, str]


@attrs.frozen
class _Span:
    """A phase on one trading date, in absolute time; *end* is excluded."""

    name: str
    start: int
    end: int
    flows: frozenset[str]


@attrs.frozen(eq=False)
class _Market:
    name: str
    calendar: str
    offset: int
    summer_time: bool
    weekdays: frozenset[int]
    rows: tuple[_Row, ...]


@attrs.frozen
class _Special:
    kind: str
    calendar: str
    shift: int
    dates: frozenset[dt.date]  # empty: the first business day of a year


@attrs.frozen
class _Observed:
    """What the wire said, good until *expires* in the timetable's phase that ends at *until*."""

    name: str
    flows: frozenset[str]
    until: int | None
    expires: int | None


class Calendar:
    """The phases of every venue.

    A venue whose market depends on the symbol (``overseas``) takes the tr_key; asked without one it
    is open while any of its markets is.
    """

    def __init__(self, data: Mapping[str, Any], holidays: Mapping[str, Container[dt.date]]) -> None:
        """Read the parsed ``kis/sessions.json``.

        Args:
            data: fits ``sessions.schema.json``.
            holidays: closed dates besides weekends, by the calendar's name in *data* (``XKRX``);
                a calendar that is not there knows no holiday.
        """
        self._holidays = holidays
        self._markets = {name: _market(name, entry) for name, entry in data["markets"].items()}
        self._venues: dict[str, dict[str, _Market]] = {
            venue: {
                prefix: self._markets[market]
                for prefix, market in entry.get("by_key", {"": entry.get("market")}).items()
            }
            for venue, entry in data["venues"].items()
        }
        self._specials = [_special(entry) for entry in data["specials"]]
        self._row_codes: Mapping[str, list[str]] = data["observed"]["rows"]
        self._event_codes: Mapping[str, list[str]] = data["observed"]["events"]
        self._row_valid = round(data["observed"]["row_valid_s"] * NS)
        self._observed: dict[str, _Observed] = {}
        self._agreed: dict[tuple[str, str], tuple[str, int]] = {}
        self._days: dict[tuple[str, int], tuple[_Span, ...]] = {}
        # A span without a break in which a market is open; a market that never closes has many.
        self._open: dict[str, tuple[int, int]] = {}
        # What was told last, and for which instant: topics of one venue are asked for in a row.
        self._told: dict[tuple[str, str], tuple[int, Phase]] = {}

    def phase(self, venue: str, wall_ns: int, tr_key: str = "") -> Phase:
        """What *venue* does at *wall_ns*; an observation on the wire outweighs the timetable.

        Raises:
            KeyError: no such venue.
        """
        place = (venue, tr_key[1:4])
        at, chosen = self._told.get(place, (None, None))
        if at != wall_ns or chosen is None:
            phases = [self._phase(market, wall_ns) for market in self._of(venue, tr_key)]
            chosen = next((phase for phase in phases if phase.open), phases[0])
            if len(phases) > 1:
                changes = [phase.until for phase in phases if phase.until is not None]
                chosen = attrs.evolve(chosen, until=min(changes, default=None))
            self._told[place] = (wall_ns, chosen)
        return chosen

    def flows(self, venue: str, channel: str, wall_ns: int, tr_key: str = "") -> bool:
        """Whether silence of this channel would be odd at *wall_ns* (see ``Liveness.market``)."""
        return channel in self.phase(venue, wall_ns, tr_key).flows

    def next_open(self, venues: Iterable[str], wall_ns: int) -> int | None:
        """When the first of *venues* goes from closed to open after *wall_ns*; None: not in sight.

        Only the timetable is asked.
        """
        openings = [
            opening
            for venue in venues
            for market in self._venues[venue].values()
            if (opening := self._next_opening(market, wall_ns)) is not None
        ]
        return min(openings, default=None)

    def next_change(self, venues: Iterable[str], wall_ns: int) -> int | None:
        """When the phase of any of *venues* next changes, observations that lapse included."""
        changes: list[int] = []
        for venue in venues:
            for market in self._venues[venue].values():
                scheduled = self._scheduled(market, wall_ns)
                observed = self._valid(market, scheduled, wall_ns)
                changes += [
                    at
                    for at in (scheduled.until, observed.expires if observed else None)
                    if at is not None
                ]
        return min(changes, default=None)

    def observe(self, venue: str, code: str, wall_ns: int, tr_key: str = "") -> bool:
        """A row of *venue* carried this market code; cheap enough for every row.

        Args:
            venue: the topic's.
            code: NEW_MKOP_CLS_CODE of a trade, book or expected row (its first character tells),
                or the three characters of MKOP_CLS_CODE of a status row. Others mean nothing.
            wall_ns: when the row was received.
            tr_key: the registration's.

        Returns:
            Whether the phase differs from what it was, so that feeds are to be judged again. A
            row's word holds for some seconds after the last such row, an event's until the
            timetable's next change.
        """
        # Nearly every row says what the one before it said and what the timetable says.
        place = (venue, tr_key[1:4])
        agreed, until = self._agreed.get(place, ("", 0))
        if agreed == code and wall_ns < until:
            return False
        self._agreed.pop(place, None)
        event = len(code) == 3
        names = self._event_codes.get(code) if event else self._row_codes.get(code[:1])
        if names is None:
            return False
        changed = False
        self._told.clear()
        for market in self._of(venue, tr_key):
            scheduled = self._scheduled(market, wall_ns)
            standing = self._valid(market, scheduled, wall_ns)
            before = standing.name if standing else scheduled.name
            if scheduled.name in names:
                # A row tells what its own market does, so it lifts a row's word, but a halt
                # of the whole market only an event or the timetable.
                if standing and (event or standing.expires is not None):
                    del self._observed[market.name]
            elif event or standing is None or standing.expires is not None:
                known = self._known(market, names)
                if known is not None:
                    name, flows = known
                    expires = None if event else wall_ns + self._row_valid
                    self._observed[market.name] = _Observed(name, flows, scheduled.until, expires)
            standing = self._valid(market, scheduled, wall_ns)
            changed = changed or before != (standing.name if standing else scheduled.name)
            if standing is None and not event and scheduled.until is not None:
                self._agreed[place] = (code, scheduled.until)
        return changed

    def _of(self, venue: str, tr_key: str) -> list[_Market]:
        markets = self._venues[venue]
        chosen = markets.get("") or markets.get(tr_key[1:4])
        return [chosen] if chosen else list({m.name: m for m in markets.values()}.values())

    def _phase(self, market: _Market, wall_ns: int) -> Phase:
        scheduled = self._scheduled(market, wall_ns)
        observed = self._valid(market, scheduled, wall_ns)
        if observed is None:
            return scheduled
        return Phase(observed.name, True, observed.flows, scheduled.until, observed=True)

    def _valid(self, market: _Market, scheduled: Phase, wall_ns: int) -> _Observed | None:
        observed = self._observed.get(market.name)
        if observed is None or observed.until != scheduled.until:
            return None
        lapsed = observed.expires is not None and wall_ns >= observed.expires
        return None if lapsed else observed

    @staticmethod
    def _known(market: _Market, names: list[str]) -> tuple[str, frozenset[str]] | None:
        if "halted" in names:
            return "halted", frozenset()
        for name in names:
            for row in reversed(market.rows):
                if row.name == name:
                    return name, row.flows
        return None

    def _scheduled(self, market: _Market, wall_ns: int) -> Phase:
        day = (wall_ns + market.offset) // DAY_NS
        for trading_day in (day - 1, day):
            for span in self._timetable(market, trading_day):
                if span.start <= wall_ns < span.end:
                    return Phase(span.name, True, span.flows, span.end)
        return Phase("closed", False, frozenset(), self._next_start(market, wall_ns))

    def _next_start(self, market: _Market, wall_ns: int) -> int | None:
        day = (wall_ns + market.offset) // DAY_NS
        for trading_day in range(day - 1, day + _HORIZON_DAYS):
            for span in self._timetable(market, trading_day):
                if span.start > wall_ns:
                    return span.start
        return None

    def _next_opening(self, market: _Market, wall_ns: int) -> int | None:
        since, until = self._open.get(market.name, (0, 0))
        if not since <= wall_ns < until:
            since = until = wall_ns
        horizon = wall_ns + _HORIZON_DAYS * DAY_NS
        opening = None
        while until < horizon:
            phase = self._scheduled(market, until)
            if not phase.open or phase.until is None:
                opening = phase.until
                break
            until = phase.until
        self._open[market.name] = (since, until)
        return opening

    def _timetable(self, market: _Market, day: int) -> tuple[_Span, ...]:
        known = self._days.get((market.name, day))
        if known is None:
            if len(self._days) >= _KEPT_DAYS:
                self._days.clear()
            known = self._days[market.name, day] = self._make_timetable(market, day)
        return known

    def _make_timetable(self, market: _Market, day: int) -> tuple[_Span, ...]:
        date = dt.date.fromordinal(_EPOCH + day)
        if not self._trades(market, date):
            return ()
        midnight = day * DAY_NS - market.offset
        if market.summer_time and _us_summer_time(date):
            midnight -= DAY_NS // 24
        special = next((s for s in self._specials if self._applies(s, market, date)), None)
        spans = []
        for row in market.rows:
            if not row.first <= date <= row.last:
                continue
            start, end = row.start, row.end
            if special is not None:
                how = row.late.get(special.kind)
                if how == "off":
                    continue
                start += special.shift if how is not None else 0
                end += special.shift if how == "moves" else 0
            spans.append(_Span(row.name, midnight + start, midnight + end, row.flows))
        return tuple(sorted(spans, key=lambda span: span.start))

    def _trades(self, market: _Market, date: dt.date) -> bool:
        holidays = self._holidays.get(market.calendar, ())
        return date.weekday() in market.weekdays and date not in holidays

    def _applies(self, special: _Special, market: _Market, date: dt.date) -> bool:
        if special.calendar != market.calendar:
            return False
        if special.dates:
            return date in special.dates
        earlier = (date.replace(day=day) for day in range(1, date.day))
        return date.month == 1 and not any(self._trades(market, day) for day in earlier)


def always_open(data: Mapping[str, Any]) -> dict[str, Any]:
    """The same venues with one phase round the clock, every day: for a simulated market."""
    flows = ["trade", "book", "program", "member", "nav"]
    phase = {"name": "regular", "start": "00:00", "end": "24:00", "flows": flows}
    market = {"calendar": "", "utc_offset": "+09:00", "weekdays": [0, 1, 2, 3, 4, 5, 6]}
    return {
        **data,
        "specials": [],
        "markets": {"simulated": {**market, "phases": [phase]}},
        "venues": {venue: {"market": "simulated"} for venue in data["venues"]},
    }


def _market(name: str, entry: Mapping[str, Any]) -> _Market:
    return _Market(
        name=name,
        calendar=entry["calendar"],
        offset=_offset(entry["utc_offset"]),
        summer_time=entry.get("dst") == "us",
        weekdays=frozenset(entry.get("weekdays", range(5))),
        rows=tuple(_row(row) for row in entry["phases"]),
    )


def _row(entry: Mapping[str, Any]) -> _Row:
    return _Row(
        name=entry["name"],
        start=_clock(entry["start"]),
        end=_clock(entry["end"]),
        first=dt.date.fromisoformat(entry["from"]) if "from" in entry else dt.date.min,
        last=dt.date.fromisoformat(entry["until"]) if "until" in entry else dt.date.max,
        flows=frozenset(entry["flows"]),
        late={kind: entry[kind] for kind in ("late_open", "late_day") if kind in entry},
    )


def _special(entry: Mapping[str, Any]) -> _Special:
    dates = frozenset(dt.date.fromisoformat(date) for date in entry.get("dates", ()))
    return _Special(entry["kind"], entry["calendar"], _clock(entry["shift"]), dates)


def _clock(text: str) -> int:
    """``HH:MM`` or ``HH:MM:SS`` as nanoseconds; hours may pass 24."""
    hours, minutes, seconds = [*map(int, text.split(":")), 0][:3]
    return ((hours * 60 + minutes) * 60 + seconds) * NS


def _offset(text: str) -> int:
    return -_clock(text[1:]) if text[0] == "-" else _clock(text[1:])


def _us_summer_time(date: dt.date) -> bool:
    """From the second Sunday of March until the first Sunday of November; changes fall at night."""
    return _sunday(date.year, 3, 2) <= date < _sunday(date.year, 11, 1)


def _sunday(year: int, month: int, which: int) -> dt.date:
    first = dt.date(year, month, 1)
    return first + dt.timedelta(days=(6 - first.weekday()) % 7 + 7 * (which - 1))
