"""What a share costs now, by its stream, and by polling where there is none."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from kisfeed.core import quoting
from kisfeed.core.pollplan import Want
from kisfeed.kfp.messages import Code, Data, Stream
from kisfeed.seoul import day_number

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from kisfeed.core.engine import Instant
    from kisfeed.core.interest import Interest
    from kisfeed.core.subscriptions import Subscriptions
    from kisfeed.core.topics import Topics
    from kisfeed.kfp.models import Price
    from kisfeed.kis.catalogue import RegKey
    from kisfeed.kis.sessions import Calendar


@attrs.define(eq=False)
class Prices:
    """Polled prices on their way to programs, and streamed ones for those who ask for a quote."""

    _topics: Topics
    _subscriptions: Subscriptions
    _interest: Interest
    _calendar: Calendar

    def to_poll(self, wall_ns: int) -> list[Want]:
        """Topics that somebody wants, that KIS does not stream, and whose price REST can tell."""
        found = []
        for route in self._topics.routes():
            stream = route.typed
            if (
                stream is not None
                and not route.held
                and stream.stream is not Stream.CLOSED
                and self._topics.pollable(route.key)
                and any(not spec.passive for spec in self._subscriptions.takers(stream).values())
            ):
                tr, symbol = stream.topic.tr, route.key[1]
                trading = self._calendar.phase(tr.venue, wall_ns, symbol).open
                found.append(Want(route.key, tr.venue, symbol, trading))
        return found

    def polled(self, prices: Mapping[RegKey, Price], failed: Sequence[RegKey], at: Instant) -> None:
        """Prices that KIS was asked for, as images; *failed* had none.

        They take no number, are no trades and move no account: the gap after them is measured
        from the last row of the stream. A topic that streams again meanwhile, or was closed for
        good, takes none.
        """
        for key, price in prices.items():
            route = self._topics.route(key)
            stream = route.typed
            if stream is None or route.held or stream.stream is Stream.CLOSED:
                continue
            takers = self._subscriptions.takers(stream)
            if stream.code is not Code.SOURCE_POLL:
                before = stream.waits_as
                stream.set_state(
                    Stream.SNAPSHOT, Data.OK, Code.SOURCE_POLL, at.wall_ns, at.now, tell=False
                )
                stream.stood_in = before
                stream.tell_status(takers, at.now)
            stream.poll(quoting.trade_of_price(price), price.ts, at.now, takers)
        for key in failed:
            stream = self._topics.route(key).typed
            if stream is not None and stream.code is Code.SOURCE_POLL:
                stream.set_state(
                    Stream.RECOVERING, Data.SUSPECT, stream.waits_as, at.wall_ns, at.now
                )

    def live(self, venue: str, symbol: str, wall_ns: int) -> Price | None:
        """What *symbol* costs by its stream; None unless a row of today came since the last break.

        A quiet symbol's last row is its price while its feed is not in doubt.
        """
        stream = self._topics.streams.get(f"trade.{venue}.{symbol}")
        if stream is None or not stream.held or stream.data is not Data.OK:
            return None
        last = stream.last
        if last is None or stream.broken_at is not None:
            return None
        if day_number(last.rts) != day_number(wall_ns):
            return None
        return quoting.price_of_trade(last.row, venue, symbol, stream.scale, last.xts, last.rts)

    def symbols(self) -> list[str]:
        """Every share that somebody wants or that is pinned."""
        keys = dict.fromkeys(self._interest.all_wanted())
        return list(dict.fromkeys(key[1] for key in keys if self._topics.pollable(key)))
