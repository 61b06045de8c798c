"""What the daemon's calls answer with: prices and symbols in domain words, never KIS's columns.

A price is an integer; its value is ``price * 10 ** -scale``. Every time that ends in ``ts`` is
nanoseconds since 1970 UTC. A value that KIS left empty, or does not tell here, is ``None``.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final, Generic, Self, TypeVar

import attrs

if TYPE_CHECKING:
    from collections.abc import Iterator

T_co = TypeVar("T_co", covariant=True)

STREAM: Final = "stream"
"""``source`` of a price that came over the WebSocket."""

REST: Final = "rest"
"""``source`` of a price that KIS was asked for."""


@attrs.frozen
class _Model:
    def to_map(self) -> dict[str, Any]:
        """This as a JSON map, every attribute by its name."""
        return attrs.asdict(self)

    @classmethod
    def from_map(cls, body: Mapping[str, Any]) -> Self:
        """The model that *body* describes; keys that are not known here are ignored.

        Raises:
            TypeError: something is missing.
        """
        known = attrs.fields_dict(cls)
        return cls(**{name: value for name, value in body.items() if name in known})


@attrs.frozen
class Price(_Model):
    """What one symbol costs.

    Attributes:
        venue: ``krx``, ``nxt`` or ``unified``.
        change: against the previous close, with its sign.
        open, high, low: of today.
        volume: shares traded so far today.
        value: money traded so far today, KRW.
        upper_limit, lower_limit: the prices beyond which nothing trades today.
        source: ``stream`` or ``rest``.
        xts: the exchange's time of it; None where KIS does not tell.
        ts: when this machine received it.
        stale: KIS could not be asked; this is the last value known.
    """

    symbol: str
    venue: str
    scale: int
    price: int | None
    change: int | None
    previous_close: int | None
    open: int | None
    high: int | None
    low: int | None
    volume: int | None
    value: int | None
    ask: int | None
    bid: int | None
    upper_limit: int | None
    lower_limit: int | None
    source: str
    xts: int | None
    ts: int
    stale: bool = False

    def decimal(self, price: int | None) -> Decimal | None:
        """One of the integer prices as its exact value."""
        return None if price is None else Decimal(price).scaleb(-self.scale)


@attrs.frozen
class Bar(_Model):
    """One trading day.

    Attributes:
        date: ``YYYY-MM-DD`` in Seoul.
        volume: shares.
        value: KRW.
    """

    date: str
    open: int | None
    high: int | None
    low: int | None
    close: int | None
    volume: int | None
    value: int | None


@attrs.frozen
class DailyPrice(_Model):
    """The finished trading days of one symbol, prices adjusted for splits and the like.

    Attributes:
        bars: the newest day first; today is among them once every venue has closed.
        ts: when KIS was asked.
        stale: KIS could not be asked; these are the last days known.
    """

    symbol: str
    venue: str
    scale: int
    bars: tuple[Bar, ...]
    ts: int
    stale: bool = False

    @classmethod
    def from_map(cls, body: Mapping[str, Any]) -> Self:
        """As of every model; the bars become :class:`Bar`."""
        bars = tuple(Bar.from_map(bar) for bar in body["bars"])
        return super().from_map({**body, "bars": bars})


@attrs.frozen
class SymbolInfo(_Model):
    """What one symbol is.

    Attributes:
        name: in Korean; on some accounts KIS answers in English.
        market: ``kospi``, ``kosdaq``, ``konex``, or KIS's own word for another.
        kind: ``stock``, ``etf``, ``etn``, ``elw``, ``reit``, or KIS's own code.
        isin: the standard code.
        listed_shares: how many there are.
        halted: trading is halted.
        supervised: an issue under administration.
        on_nxt: it trades on NXT too.
        delisted: the day it was delisted, ``YYYY-MM-DD``; None while it is listed.
        ts: when KIS was asked.
        stale: KIS could not be asked; this is what was last known.
    """

    symbol: str
    name: str | None
    english_name: str | None
    market: str | None
    kind: str | None
    isin: str | None
    listed_shares: int | None
    previous_close: int | None
    halted: bool | None
    supervised: bool | None
    on_nxt: bool | None
    delisted: str | None
    ts: int
    stale: bool = False


@attrs.frozen
class Answers(Mapping[str, T_co], Generic[T_co]):
    """What was found, by symbol, in the order in which it was asked for.

    Attributes:
        missing: why there is nothing for a symbol: ``unknown_symbol``, ``upstream_down`` (KIS
            could not be asked and nothing is known from earlier), ``rate_limited`` (too much was
            waiting already), ``timeout``, ``not_entitled`` (this environment has no such call)
            or ``rejected``.
    """

    found: Mapping[str, T_co]
    missing: Mapping[str, str]

    def __getitem__(self, symbol: str) -> T_co:
        return self.found[symbol]

    def __iter__(self) -> Iterator[str]:
        return iter(self.found)

    def __len__(self) -> int:
        return len(self.found)
