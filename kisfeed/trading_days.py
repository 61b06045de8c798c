"""Closed dates of the exchanges, for :class:`kisfeed.kis.sessions.Calendar`.

They come from the ``holidays`` package. It reads translation files and takes a few tenths of a
second to import and fill, so it stays out of the pure rooms and off the event loop: call this at
the start, in a thread, and again when the year changes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Iterable

EXCHANGES: Final = ("XKRX", "XNYS", "XJPX", "XHKG", "XSHG")


def market_holidays(
    years: Iterable[int], exchanges: Iterable[str] = EXCHANGES
) -> dict[str, frozenset[dt.date]]:
    """The dates in *years* on which each exchange stays closed, weekends aside, by its MIC.

    Half days are not told apart: only Korea's late days matter here, and they are data.

    Raises:
        NotImplementedError: an exchange the package does not know.
    """
    import holidays  # noqa: PLC0415 -- slow to import, and only the shell needs it

    wanted = list(years)
    return {
        mic: frozenset(holidays.financial_holidays(mic, years=wanted, language="en_US"))
        for mic in exchanges
    }
