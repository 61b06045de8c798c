"""Gap accounting: what nobody got, measured in shares.

KIS numbers nothing, but every trade carries its own quantity and the day's cumulative volume,
so a hole is ``cum_now - cum_before - qty_now`` shares, exactly, also inside a live session.
"""

from __future__ import annotations

import attrs


@attrs.frozen
class Missed:
    """A hole before the row that was just accounted.

    Attributes:
        qty: shares missed; None where it cannot be measured.
        jump: no break of the session explains it (KFP/1 code ``volume_jump``).
    """

    qty: int | None
    jump: bool


@attrs.define
class VolumeAccount:
    """The cumulative volume of one trade topic.

    Attributes:
        cum_qty: the volume after the last row; None before the first.
        missed: shares missed in all, by every hole so far.
        corrections: rows whose volume fell or stood still on the same day.
    """

    cum_qty: int | None = None
    missed: int = 0
    corrections: int = 0
    _day: int | None = None

    def trade(
        self, qty: int | None, cum_qty: int | None, day: int | None, *, broken: bool
    ) -> tuple[Missed | None, bool]:
        """Account one trade.

        Args:
            qty: shares of this trade.
            cum_qty: the day's volume, this trade included.
            day: the exchange's date as a number that changes with it; None where the row has none,
                and then it is the last row's.
            broken: the session broke, or the registration was away, since the last row.

        Returns:
            The hole before this row, if any, and whether the row corrects an earlier one
            (its volume does not follow from the last one upwards).
        """
        before, day_before = self.cum_qty, self._day
        unmeasured = Missed(None, jump=False) if broken else None
        if cum_qty is None or qty is None:
            return unmeasured, False
        self.cum_qty = cum_qty
        if day is not None:
            self._day = day
        another_day = day is not None and day_before is not None and day != day_before
        if before is None or another_day or cum_qty == qty < before:
            # A new day or session starts the account again; what it missed cannot be told.
            return unmeasured, False
        hole = cum_qty - before - qty
        if hole < 0:
            self.corrections += 1
            return unmeasured, True
        if hole == 0 and not broken:
            return None, False
        self.missed += hole
        return Missed(hole, jump=not broken), False
