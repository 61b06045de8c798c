"""Which order news programs have been told, so that what was missed can be told late, once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import attrs

from kisfeed.kis.orders import NUMBER_WIDTH

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kisfeed.kfp.orders import Order
    from kisfeed.kis.orders import DayRow

GRACE_S: Final = 3.0
"""What the list knows and no notice has told this long after is told as recovered: notices come
within a second, and the list is slower than they are."""


@attrs.frozen
class Missed:
    """News that no notice brought: *qty* shares of *kind*, as ``notice.v1`` names kinds."""

    kind: str
    qty: int
    row: DayRow


@attrs.define(eq=False)
class _Told:
    taken: bool = False
    rejected: bool = False
    cancelled: bool = False
    filled: int = 0
    missing: dict[str, tuple[int, float]] = attrs.field(factory=dict)  # kind -> qty, since


class Ledger:
    """What has been told of each order number, today's and older ones."""

    def __init__(self) -> None:
        self._told: dict[tuple[str, str], _Told] = {}

    def notice(self, day: str, number: str, kind: str, qty: int) -> None:
        """A notice was passed on."""
        told = self._told.setdefault((day, number), _Told())
        if kind == "fill":
            told.filled += qty
        elif kind == "rejected":
            told.rejected = True
        elif kind == "cancelled":
            told.cancelled = True
        told.taken = True

    def review(self, rows: Iterable[DayRow], now: float) -> list[Missed]:
        """What the list of a day says that has been missing for :data:`GRACE_S`; it counts as told.

        Args:
            rows: the list.
            now: when it was read, seconds of the scheduler's clock.
        """
        found = []
        for row in rows:
            told = self._told.setdefault((row.day, row.number), _Told())
            missing = dict(_missing(told, row))
            for kind in [kind for kind in told.missing if kind not in missing]:
                del told.missing[kind]
            for kind, qty in missing.items():
                known, since = told.missing.setdefault(kind, (qty, now))
                if now - since < GRACE_S:
                    continue
                # Only what was missing all the while: newer news may have a notice on its way.
                late = min(known, qty)
                found.append(Missed(kind, late, row))
                if qty > late:
                    told.missing[kind] = qty - late, now
                else:
                    del told.missing[kind]
                self.notice(row.day, row.number, kind, late)
        return found

    def pending(self) -> bool:
        """Something is missing and not old enough to be told: the list is to be read again."""
        return any(told.missing for told in self._told.values())

    def forget(self, day: str) -> None:
        """Drop the days before *day*."""
        self._told = {key: told for key, told in self._told.items() if key[0] >= day}


def _missing(told: _Told, row: DayRow) -> Iterable[tuple[str, int]]:
    if not told.taken and not row.original:
        yield "accepted", row.qty
    if not told.taken and row.original:
        # The list does not say what a change was: one that left something to trade amended.
        yield "amended" if row.open or row.filled else "cancelled", row.qty
    if row.filled > told.filled:
        yield "fill", row.filled - told.filled
    if row.rejected and not told.rejected:
        yield "rejected", row.rejected
    if row.cancelled and not row.original and not told.cancelled:
        yield "cancelled", row.cancelled


def notice_fields(missed: Missed, order: Order | None) -> dict[str, Any]:
    """*missed* in the names of ``notice.v1``; *order* is the one that was placed here, if any.

    The list has no time and price of single fills: ``px_text`` is the average of all of them.
    """
    row = missed.row
    found: dict[str, Any] = {
        "scale": 0,
        "px_text": row.avg_price or None,
        "order_no": row.number.zfill(NUMBER_WIDTH),
        "original_order_no": row.original.zfill(NUMBER_WIDTH) if row.original else None,
        "side": 1 if row.side == "buy" else -1,
        "symbol": row.symbol,
        "qty": missed.qty,
        "order_qty": row.qty,
        "order_px": row.price,
        "time": row.time,
        "order_type": row.type_code,
        "branch": row.branch,
    }
    if order is not None:
        found |= {"client": order.client, "client_order_id": order.id}
    return found
