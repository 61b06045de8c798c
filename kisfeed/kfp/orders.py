"""Orders as callers see them: the Order map of the ``order.*`` calls."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Any, Final

import attrs

if TYPE_CHECKING:
    from collections.abc import Mapping


class Side(enum.StrEnum):
    """Which way."""

    BUY = "buy"
    SELL = "sell"


class Action(enum.StrEnum):
    """What an order does; an amendment and a cancellation are orders with ids of their own."""

    NEW = "new"
    AMEND = "amend"
    CANCEL = "cancel"


class OrderState(enum.StrEnum):
    """How far an order has come. :data:`FINAL` ones do not change any more."""

    PREVIEWED = "previewed"  # checked; nothing written, nothing sent
    QUEUED = "queued"  # waits for its turn; nothing written, nothing sent
    SENDING = "sending"  # its intent is on disk; bytes may have left
    ACCEPTED = "accepted"  # KIS gave it a number; fills follow
    REJECTED = "rejected"  # KIS or the exchange refused it
    NOT_SENT = "not_sent"  # provably nothing left
    EXPIRED = "expired"  # its time was up before it could be sent; nothing left
    UNKNOWN = "unknown"  # no evidence yet; being resolved from the day's list
    HUMAN = "human"  # the evidence does not decide; a person does, with order.resolve
    NOT_EXECUTED = "not_executed"  # a person found that it never reached KIS


FINAL: Final = frozenset(
    {
        OrderState.REJECTED,
        OrderState.NOT_SENT,
        OrderState.EXPIRED,
        OrderState.NOT_EXECUTED,
    }
)
DOUBTFUL: Final = frozenset({OrderState.UNKNOWN, OrderState.HUMAN})
"""Whether KIS executed it is not known."""


class Evidence(enum.StrEnum):
    """What an order's state rests on."""

    NONE = ""
    ANSWER = "answer"  # KIS's answer to it
    LIST = "list"  # the day's list
    HUMAN = "human"  # a person said so


@attrs.frozen
class Order:
    """One order.

    Attributes:
        client, id, day: what it is known by: the program's name, its own id, the date in Seoul
            (YYYYMMDD).
        target: id of the order that is amended or cancelled; empty for a new one.
        target_client, target_day: what else that order is known by; empty as well in what an
            earlier version wrote.
        qty: shares; of a cancellation 0 means all that is open.
        price: won; None where the type has none.
        type, exchange: as in ``schemas/kis/orders.json``.
        original_no: the number that an amendment or a cancellation is sent against.
        order_no: KIS's number, without leading zeros; of a new order the one it was given first.
        numbers: every number under which it stood; the last one is what is open now.
        evidence: what :attr:`state` rests on.
        code, text: KIS's own, or kisfeed's reason.
        filled_qty, open_qty, cancelled_qty, rejected_qty: from the day's list; ``open_qty`` is
            None until the list has shown the order.
        avg_price: of the fills, as KIS wrote it.
        candidates: numbers in the day's list that may be this order, while that is in doubt.
        warnings: what a person should know before it is placed.
        value: won it may cost at most, as the caps count it.
        created_ts, sent_ts, updated_ts: nanoseconds since 1970 UTC; ``sent_ts`` is when its intent
            was to be written.
    """

    client: str
    id: str
    day: str
    action: Action
    symbol: str
    side: Side
    qty: int
    price: int | None
    type: str
    exchange: str
    target: str = ""
    target_client: str = ""
    target_day: str = ""
    stop_price: int | None = None
    state: OrderState = OrderState.PREVIEWED
    original_no: str = ""
    order_no: str = ""
    branch: str = ""
    order_time: str = ""
    numbers: tuple[str, ...] = ()
    evidence: Evidence = Evidence.NONE
    code: str = ""
    text: str = ""
    filled_qty: int = 0
    open_qty: int | None = None
    cancelled_qty: int = 0
    rejected_qty: int = 0
    avg_price: str = ""
    candidates: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    value: int = 0
    created_ts: int = 0
    sent_ts: int = 0
    updated_ts: int = 0

    @property
    def key(self) -> tuple[str, str, str]:
        """(client, day, id)."""
        return (self.client, self.day, self.id)

    @property
    def target_key(self) -> tuple[str, str, str]:
        """:attr:`key` of the order that it changes."""
        return (self.target_client, self.target_day, self.target)

    @property
    def live_number(self) -> str:
        """The number under which it is open now; empty for none."""
        return self.numbers[-1] if self.numbers else ""

    def to_map(self) -> dict[str, Any]:
        """The Order map of KFP/1; JSON-able."""
        return {
            name: list(value) if isinstance(value, tuple) else _plain(value)
            for name, value in attrs.asdict(self, recurse=False).items()
        }

    @classmethod
    def from_map(cls, data: Mapping[str, Any]) -> Order:
        """Read what :meth:`to_map` wrote; keys that this version does not know are ignored.

        Raises:
            TypeError, ValueError: it is no Order map.
        """
        known = {f.name for f in attrs.fields(cls)}
        values: dict[str, Any] = {name: data[name] for name in data if name in known}
        for name, kind in _ENUMS.items():
            if name in values:
                values[name] = kind(values[name])
        for name in ("numbers", "candidates", "warnings"):
            values[name] = tuple(values.get(name, ()))
        return cls(**values)


def _plain(value: object) -> object:
    return str(value) if isinstance(value, enum.StrEnum) else value


_ENUMS: Final[Mapping[str, type[enum.StrEnum]]] = {
    "action": Action,
    "side": Side,
    "state": OrderState,
    "evidence": Evidence,
}
