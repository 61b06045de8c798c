"""Orders that cannot happen twice: what is asked, what was sent, what is known of it.

The book decides and remembers; the shell writes its records down and makes the calls. Whatever a
process does or does not live to see, one rule holds: an order whose intent is written may have
been executed, and only KIS's answer or its list of the day says otherwise. It is never sent
again; until its fate is known nothing like it is sent either.
"""

from __future__ import annotations

import datetime as dt
import heapq
import math
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

import attrs

from kisfeed.core.ordercheck import Ask, Checked, Situation, check, refusal
from kisfeed.errors import OrderRefused
from kisfeed.kfp.orders import DOUBTFUL, FINAL, Action, Evidence, Order, OrderState, Side
from kisfeed.kis.orders import same_number
from kisfeed.seoul import KST, date_of
from kisfeed.texts import Phrase

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from kisfeed.config import Orders
    from kisfeed.core.engine import Instant
    from kisfeed.kis.orders import DayRow, OrderRules, Receipt

Key = tuple[str, str, str]
"""(client, day, id)."""

_EARLIER_NS: Final = 3 * 10**9  # how far KIS's clock may be behind ours
_LATER_NS: Final = 60 * 10**9  # ORD_TMD this long after the last moment to send is still ours
_POLLS_S: Final = (1.0, 2.0, 3.0)  # after an order came into doubt; the last one repeats
_SLOW_POLL_S: Final = 60.0  # what a person has to decide is looked at this often
_CANCELLED_NS: Final = 10 * 10**9  # the list may show an order as open this long after its end
_PAST_S: Final = 86_400.0  # a wall clock that was wrong is put right within this
_MAX_PREVIEWS: Final = 1_000
_MAX_ID: Final = 64
_NOT_COUNTED: Final = frozenset({OrderState.EXPIRED, OrderState.NOT_SENT, OrderState.PREVIEWED})
_WAITING: Final = frozenset({OrderState.QUEUED, OrderState.SENDING})


def named(orders: Iterable[Order], name: str, client: str, *, day: str | None = None) -> Order:
    """The order of this id among *orders*: the client's own newest, else the only one that has it.

    Raises:
        OrderRefused: there is none, or several programs have one (``target``).
    """
    same = [order for order in orders if order.id == name and day in {None, order.day}]
    if not same:
        raise refusal("target", Phrase("there is no order {id}", id=name))
    newest = max(order.day for order in same)
    same = [order for order in same if order.day == newest]
    own = [order for order in same if order.client == client]
    if not own and len(same) > 1:
        who = ", ".join(sorted(order.client for order in same))
        text = Phrase("several programs have an order {id}: {clients}", id=name, clients=who)
        raise refusal("target", text)
    return (own or same)[0]


def day_of(wall_ns: int) -> str:
    """The date in Seoul, YYYYMMDD."""
    return f"{date_of(wall_ns):%Y%m%d}"


@attrs.frozen
class Hint:
    """What a notice told of a number. The socket it came by is open to anybody: it proves nothing.

    Attributes:
        original: the number it changes; empty on others.
        filled: shares in its fills so far.
    """

    number: str
    original: str
    symbol: str
    side: str
    filled: int
    ended: bool


@attrs.define(eq=False)
class _Preview:
    order: Order
    until: float


class Book:
    """Every order of one account, by (client, day, id).

    Methods that change orders note them for :meth:`take_changed`, and those whose change must
    outlive the process for :meth:`take_records`. The shell appends the record of :meth:`intend`
    durably before a byte is sent (but for a cancellation of all that is left, on a full disk), and
    all others as soon as it can.

    Args:
        rules: what KIS takes.
        caps: what the user allows.
        ttl_s: how long an order may wait unless its caller says.

    Attributes:
        orders: by (client, day, id).
        outlived: the journal holds orders that were forgotten here.
    """

    def __init__(self, rules: OrderRules, caps: Orders, ttl_s: float) -> None:
        self._rules = rules
        self._caps = caps
        self._ttl_s = ttl_s
        self.orders: dict[Key, Order] = {}
        self.outlived = False
        # What was forgotten, and when: the clock that said it was of a past day may be put back.
        self._past: dict[Key, tuple[Order, float]] = {}
        self._previews: dict[Key, _Preview] = {}
        self._queue: list[tuple[bool, int, int, Key]] = []
        self._deadlines: dict[Key, float] = {}
        self._numbers = 0
        self._owners: dict[tuple[str, str], Key] = {}  # (day, number) -> order
        self._rows: dict[str, dict[str, DayRow]] = {}
        # When the reading that brought a row began, and when it ended.
        self._first_seen: dict[tuple[str, str], tuple[Instant, Instant]] = {}
        self._ended: dict[tuple[str, str], float] = {}  # when the list first showed nothing open
        self._channels: set[str] = set()  # how orders that KIS answered had been entered
        self._hints: dict[tuple[str, str], Hint] = {}
        self._heard: dict[tuple[str, str], int] = {}
        self._doubted_at: dict[Key, float] = {}
        self._reads: dict[Key, int] = {}
        self._due: dict[Key, float] = {}
        self._changed: dict[Key, None] = {}
        self._records: list[dict[str, Any]] = []

    # What the shell takes away.

    def take_changed(self) -> list[Order]:
        """Orders that changed since the last call."""
        changed, self._changed = [self.orders[key] for key in self._changed], {}
        return changed

    def take_records(self) -> list[dict[str, Any]]:
        """Records to append to the journal, in order."""
        records, self._records = self._records, []
        return records

    def give_back(self, records: Sequence[dict[str, Any]]) -> None:
        """They could not be written: :meth:`take_records` gives them again, before newer ones."""
        self._records[:0] = records

    # Asking.

    def known(self, ask: Ask, at: Instant) -> Order | None:
        """The order that already has this id today, if it is the same one.

        Raises:
            OrderRefused: the id belongs to another order (``id_used``).
        """
        self._recall(at)
        order = self.orders.get(_key(ask, at))
        if order is not None and not _same(ask, order):
            raise refusal(
                "id_used", Phrase("{id} is another order already", id=ask.id), order.to_map()
            )
        return order

    def preview(self, ask: Ask, at: Instant, now: Situation) -> Order:
        """Check *ask* and remember that it was checked; nothing is written or sent.

        Returns:
            The order as it would be placed, or as it is if this id was placed today.

        Raises:
            OrderRefused: why it would be refused.
        """
        order = self.known(ask, at)
        if order is not None:
            return order
        checked, wanted = self._check(ask, at, now)
        order = attrs.evolve(wanted, warnings=checked.warnings, value=checked.value)
        for key in [k for k, p in self._previews.items() if p.until <= at.now]:
            del self._previews[key]
        if len(self._previews) >= _MAX_PREVIEWS:
            text = Phrase("{count} previews wait to be placed", count=_MAX_PREVIEWS)
            raise refusal("queue_full", text)
        self._previews[order.key] = _Preview(order, at.now + self._caps.preview_s)
        return order

    def place(self, ask: Ask, at: Instant, now: Situation) -> Order:
        """Queue *ask*; the same id on the same day is the same order, and is never sent twice.

        Raises:
            OrderRefused: it was not previewed, or does not pass now.
        """
        order = self.known(ask, at)
        if order is not None:
            return order
        key = _key(ask, at)
        preview = self._previews.get(key)
        if ask.action is Action.NEW and (
            preview is None or preview.until <= at.now or not _same(ask, preview.order)
        ):
            raise refusal("preview", Phrase("{id} must be previewed first, as it is", id=ask.id))
        checked, order = self._check(ask, at, now)
        if ask.action is not Action.CANCEL and not now.open and not ask.allow_closed:
            text = Phrase(
                "{exchange} is closed (allow_closed places it anyway)", exchange=ask.exchange
            )
            raise refusal("closed", text)
        later = ask.action is not Action.CANCEL
        waiting = sum(1 for other in self._queue if other[0] is later)
        if waiting >= self._caps.queue:
            text = Phrase("{count} orders wait already (orders.queue)", count=self._caps.queue)
            raise refusal("queue_full", text)
        self._previews.pop(key, None)
        self._numbers += 1
        heapq.heappush(self._queue, (later, -ask.priority, self._numbers, key))
        self._deadlines[key] = at.now + (self._ttl_s if ask.ttl_s is None else ask.ttl_s)
        queued = attrs.evolve(
            order, state=OrderState.QUEUED, warnings=checked.warnings, value=checked.value
        )
        self._put(queued, at)
        return self.orders[key]

    def cancel_id(self, client: str, target: Order, qty: int, at: Instant, number: str = "") -> str:
        """An id for a cancellation of *qty* (0: all of it) whose caller gave none.

        The last one is asked for again while it stands. A new one follows one that came to
        nothing; of all that is open also one that came to doubt, for to cancel that twice does
        no harm. Some shares twice are twice as many: who wants these has to give an id.

        Args:
            client: who cancels.
            target: the order.
            qty: shares.
            at: this moment.
            number: that it is to name; that of :meth:`intend` unless told.
        """
        day = day_of(at.wall_ns)
        # One that waits has no number yet, unless it was told which.
        fitting = {number} if number else {"", self._next_to_cancel(target, at)}
        n = 0
        while True:
            n += 1
            ending = f".cancel{n if n > 1 else ''}"
            name = target.id[: _MAX_ID - len(ending)] + ending
            order = self.orders.get((client, day, name))
            if order is None:
                return name
            if (order.action, order.target_key, order.qty) != (Action.CANCEL, target.key, qty):
                continue  # another order's, such as one whose long id begins alike
            if not qty and target.open_qty != 0 and order.original_no not in fitting:
                continue  # of another number, of which there may be several
            fresh = at.wall_ns - order.updated_ts < _CANCELLED_NS
            again = not qty and not fresh and target.open_qty != 0
            stands = order.state is OrderState.ACCEPTED and not again
            if stands or order.state in _WAITING or (qty and order.state in DOUBTFUL):
                return name

    def _check(self, ask: Ask, at: Instant, now: Situation) -> tuple[Checked, Order]:
        if not ask.id or len(ask.id) > _MAX_ID or not ask.id.isprintable():
            raise refusal("id", Phrase("an id is 1 to {most} printable characters", most=_MAX_ID))
        if ask.action is Action.CANCEL:
            target = self._target(ask)
            ask = attrs.evolve(ask, type=target.type)
            if not 0 <= ask.qty <= target.qty:
                text = Phrase(
                    "{qty:,}: the order has {most:,} shares", qty=ask.qty, most=target.qty
                )
                raise refusal("qty", text)
            return Checked(0, ()), _order(ask, at, target)
        if now.halted:
            raise refusal("halted", Phrase("ordering is halted; only cancellations go out"))
        found = None
        if ask.action is Action.AMEND:
            found = self._target(ask)
            left = found.qty if found.open_qty is None else found.open_qty
            if not left:
                raise refusal("target", Phrase("nothing of {id} is open any more", id=ask.target))
            ask = attrs.evolve(
                ask,
                symbol=found.symbol,
                side=found.side,
                exchange=found.exchange,
                type=ask.type or found.type,
                qty=left,
            )
        checked = check(ask, self._rules, self._caps, now)
        self._check_day(checked.value, at)
        self._check_frozen(ask.symbol, ask.side)
        return checked, _order(ask, at, found)

    def _target(self, ask: Ask) -> Order:
        target = self.find(ask.target, ask.client)
        if target.action is not Action.NEW:
            raise refusal("target", Phrase("{id} is itself a change of an order", id=ask.target))
        if not target.live_number:
            text = Phrase(
                "{id} has no order number ({state})", id=ask.target, state=str(target.state)
            )
            raise refusal("target", text)
        return target

    def _check_day(self, value: int, at: Instant) -> None:
        today = day_of(at.wall_ns)
        counted = [
            order
            for order in self.orders.values()
            if order.day == today
            and order.action is not Action.CANCEL
            and order.state not in _NOT_COUNTED
        ]
        if len(counted) >= self._caps.max_day_orders:
            text = Phrase(
                "{count} orders today; orders.max_day_orders is the limit", count=len(counted)
            )
            raise refusal("day_orders_cap", text)
        spent = sum(order.value for order in counted)
        if spent + value > self._caps.max_day_value:
            text = Phrase(
                "{value:,} won today; orders.max_day_value is the limit", value=spent + value
            )
            raise refusal("day_value_cap", text)

    def _check_frozen(self, symbol: str, side: Side) -> None:
        doubtful = self.doubtful()
        for order in doubtful:
            if order.symbol == symbol and order.side is side:
                text = Phrase(
                    "{id} ({side} {symbol}) may have been executed; until that is settled"
                    " nothing like it goes out",
                    id=order.id,
                    side=str(side),
                    symbol=symbol,
                )
                raise refusal("frozen", text, order.to_map())
        if side is Side.BUY and len(doubtful) >= self._caps.max_unknown:
            ids = ", ".join(order.id for order in doubtful)
            text = Phrase(
                "{count} orders are in doubt ({ids}): no new buys", count=len(doubtful), ids=ids
            )
            raise refusal("frozen", text)

    def doubtful(self) -> list[Order]:
        """New orders and amendments of which nobody knows whether KIS executed them."""
        return [
            order
            for order in self.orders.values()
            if order.state in DOUBTFUL and order.action is not Action.CANCEL
        ]

    def find(self, name: str, client: str, *, day: str | None = None) -> Order:
        """The order of this id: the client's own newest, else the only one that has it.

        Raises:
            OrderRefused: there is none, or several programs have one (``target``).
        """
        return named(self.orders.values(), name, client, day=day)

    def target(self, change: Order) -> Order:
        """What *change*, which was not sent by an earlier process, amends or cancels.

        Not looked up by its name: whoever asks may by now have an order of that name itself.
        """
        return self.orders[change.target_key]

    # The queue.

    def waiting(self) -> int:
        """Orders whose turn has not come."""
        return len(self._queue)

    def next_deadline(self) -> float:
        """When the next waiting order expires; infinity for none."""
        waiting = (self._deadlines[key] for *_, key in self._queue)
        return min(waiting, default=float("inf"))

    def slept(self, seconds: float) -> None:
        """The machine was suspended so long, and the scheduler's clock stood still meanwhile."""
        for preview in self._previews.values():
            preview.until -= seconds
        for key in self._deadlines:
            self._deadlines[key] -= seconds

    def expire(self, at: Instant) -> None:
        """Let go of the orders whose time is up before their turn came."""
        late = [entry for entry in self._queue if self._deadlines[entry[3]] <= at.now]
        if not late:
            return
        self._queue = [entry for entry in self._queue if entry not in late]
        heapq.heapify(self._queue)
        for *_, key in late:
            self._end(
                key, OrderState.EXPIRED, "expired", Phrase("its time was up before its turn"), at
            )

    def deadline(self, order: Order) -> float:
        """Until when *order* may begin to be sent, on the scheduler's clock."""
        return self._deadlines[order.key]

    def take(self, at: Instant, *, halted: bool) -> Order | None:
        """The order whose turn it is; those that may not go out any more end here."""
        self.expire(at)
        while self._queue:
            *_, key = heapq.heappop(self._queue)
            order = self.orders[key]
            if order.action is not Action.CANCEL:
                if halted:
                    self._end(key, OrderState.NOT_SENT, "halted", Phrase("ordering is halted"), at)
                    continue
                try:
                    self._check_frozen(order.symbol, order.side)
                except OrderRefused as exc:
                    self._end(key, OrderState.NOT_SENT, exc.reason, str(exc), at)
                    continue
            return order
        return None

    def number_to_cancel(self, order: Order, tried: Collection[str] = ()) -> str:
        """The number that a cancellation of all of *order* should name; empty for none.

        A cancellation reaches one number. Where some shares were amended in an app there are more:
        cancel again, with those that were *tried*, until there is none.
        """
        left = self._open_numbers(order)
        if not left and order.open_qty != 0:
            left = [order.live_number]
        return next((number for number in reversed(left) if number not in tried), "")

    def _open_numbers(self, order: Order) -> list[str]:
        """Where some of *order* is open, or may be: the list is late with what it has not shown."""
        known = self._rows.get(order.day, {})
        chain = [known[number] for number in order.numbers if number in known]
        ended = {row.number for row in chain if not _left(row, chain)} | self._moved(order)
        return [number for number in order.numbers if number not in ended]

    def _moved(self, order: Order) -> set[str]:
        """Numbers that an amendment of ours ended: it moves all that is left."""
        return {
            o.original_no
            for o in self.orders.values()
            if o.action is Action.AMEND
            and o.target_key == order.key
            and o.state is OrderState.ACCEPTED
        }

    def _number_for(self, change: Order, at: Instant) -> str:
        """The number that *change* is to name."""
        target = self.target(change)
        if change.original_no and change.original_no not in self._moved(target):
            return change.original_no
        if change.action is Action.CANCEL and not change.qty:
            return self._next_to_cancel(target, at)
        return target.live_number

    def _next_to_cancel(self, target: Order, at: Instant) -> str:
        """Another one than was named just now, if there is one."""
        named = {
            o.original_no
            for o in self.orders.values()
            if o.action is Action.CANCEL
            and o.target_key == target.key
            and not o.qty
            and at.wall_ns - o.sent_ts < _CANCELLED_NS
        }
        return self.number_to_cancel(target, named) or target.live_number

    # What became of it.

    def intend(self, order: Order, at: Instant) -> dict[str, Any]:
        """The record to make durable before a byte of *order* leaves; see :meth:`intended`."""
        original = self._number_for(order, at) if order.target else ""
        return _record(
            attrs.evolve(
                order,
                state=OrderState.SENDING,
                original_no=original,
                sent_ts=at.wall_ns,
                updated_ts=at.wall_ns,
            )
        )

    def intended(self, record: Mapping[str, Any]) -> Order:
        """The intent is on disk, or need not be."""
        order = Order.from_map(record["order"])
        self.orders[order.key] = order
        self._changed[order.key] = None
        return order

    def accepted(self, key: Key, receipt: Receipt, at: Instant) -> None:
        """KIS took it."""
        self._accept(key, receipt.number, receipt.branch, receipt.time, Evidence.ANSWER, at)

    def refused(self, key: Key, code: str, text: str, at: Instant) -> None:
        """KIS answered that it did nothing."""
        self._end(key, OrderState.REJECTED, code, text, at, Evidence.ANSWER)

    def not_sent(self, key: Key, reason: str, text: str, at: Instant) -> None:
        """Provably nothing left; *reason* ``expired`` means that its time was up."""
        state = OrderState.EXPIRED if reason == "expired" else OrderState.NOT_SENT
        self._end(key, state, reason, text, at)

    def doubt(self, key: Key, text: str, at: Instant) -> None:
        """It may have been executed."""
        self._end(key, OrderState.UNKNOWN, "unknown", text, at)
        self._doubted_at[key] = at.now
        self._due[key] = at.now + _POLLS_S[0]

    def resolve(self, key: Key, *, number: str | None, reason: str, at: Instant) -> Order:
        """A person settles an order in doubt.

        Args:
            key: which.
            number: KIS's number for it; None: it was not executed.
            reason: why, for the journal.
            at: this moment.

        Raises:
            OrderRefused: the order is not in doubt, or the number belongs to another one.
        """
        order = self.orders[key]
        if order.state not in DOUBTFUL:
            text = Phrase(
                "{id} is not in doubt: it is {state}", id=order.id, state=str(order.state)
            )
            raise refusal("target", text)
        if number is None:
            self._end(key, OrderState.NOT_EXECUTED, "human", reason, at, Evidence.HUMAN)
            return self.orders[key]
        number = same_number(number)
        row = self._rows.get(order.day, {}).get(number)
        owner = self._owners.get((order.day, number))
        # What its order was followed to may be the amendment, if it is of the same number.
        changes = row is not None and row.original == order.original_no
        if owner is not None and (not changes or self._taken(order, number)):
            text = Phrase("number {number} belongs to {id}", number=number, id=owner[2])
            raise refusal("target", text)
        if not number.isdecimal():
            raise refusal("target", Phrase("{number} is no order number", number=number))
        if row is not None and (row.symbol, row.side) != (order.symbol, order.side):
            text = Phrase(
                "number {number} is another order: {side} {symbol}",
                number=number,
                side=str(row.side),
                symbol=row.symbol,
            )
            raise refusal("target", text)
        branch, time = (row.branch, row.time) if row is not None else ("", "")
        self._accept(key, number, branch, time, Evidence.HUMAN, at, text=reason)
        self._confirm_all(at)
        return self.orders[key]

    # The day's list and the notices.

    def days(self, at: Instant) -> list[str]:
        """The days whose lists matter: today, and those of orders in doubt."""
        doubtful = (o.day for o in self.orders.values() if o.state in DOUBTFUL)
        return list(dict.fromkeys([day_of(at.wall_ns), *sorted(doubtful)]))

    def next_read(self) -> float:
        """When the list should be read next for an order's sake; infinity for never."""
        return min(self._due.values(), default=float("inf"))

    def notice(self, hint: Hint, at: Instant) -> Key | None:
        """A notice spoke of a number: read the list soon. Nothing else follows from it.

        Returns:
            Whose number it is; None where that is not known.
        """
        day = day_of(at.wall_ns)
        before = self._hints.get((day, hint.number))
        if before is not None:
            hint = attrs.evolve(
                hint, filled=hint.filled + before.filled, ended=hint.ended or before.ended
            )
        self._hints[day, hint.number] = hint
        self._heard.setdefault((day, hint.number), at.wall_ns)
        key = self._owners.get((day, hint.number))
        if key is None and hint.original:
            key = self._owners.get((day, hint.original))
        for one in self._concerned(key, hint):
            self._due[one] = min(self._due.get(one, float("inf")), at.now + _POLLS_S[0])
            self._reads.pop(one, None)
        return key

    def _concerned(self, key: Key | None, hint: Hint) -> list[Key]:
        if key is not None:
            return [key]
        return [
            o.key
            for o in self.orders.values()
            if o.state in DOUBTFUL and (o.symbol, o.side) == (hint.symbol, hint.side)
        ]

    def rows(
        self, day: str, rows: Sequence[DayRow], at: Instant, *, answered: Instant | None = None
    ) -> None:
        """Take the whole list of *day*, read after *at*.

        Args:
            day: YYYYMMDD.
            rows: all pages.
            at: when the reading began.
            answered: when it ended; at once unless told.
        """
        known = self._rows.setdefault(day, {})
        for row in rows:
            known[row.number] = row
            self._first_seen.setdefault((day, row.number), (at, answered or at))
            if row.open:
                self._ended.pop((day, row.number), None)
            else:
                self._ended.setdefault((day, row.number), at.now)
            owner = self.owner(day, row.number)
            if (
                owner is not None
                and self._answered(owner, row)
                and row.channel not in self._channels
            ):
                self._channels.add(row.channel)
                self._records.append({"channel": row.channel})
        for order in list(self.orders.values()):
            if order.day == day and order.state in DOUBTFUL:
                self._settle(order, at)
        self._confirm_all(at)
        for key in [k for k in self._due if self._due[k] <= at.now and k[1] == day]:
            self._schedule(key, at)

    def row(self, day: str, number: str) -> DayRow | None:
        """What the day's list last said of *number*."""
        return self._rows.get(day, {}).get(number)

    def owner(self, day: str, number: str) -> Order | None:
        """Whose number it is."""
        key = self._owners.get((day, number))
        return None if key is None else self.orders[key]

    def _schedule(self, key: Key, at: Instant) -> None:
        order = self.orders[key]
        if order.state not in DOUBTFUL and not self._behind(order):
            del self._due[key]
            self._reads.pop(key, None)
            return
        done = self._reads[key] = self._reads.get(key, 0) + 1
        pause = _POLLS_S[min(done, len(_POLLS_S) - 1)]
        if order.state is OrderState.HUMAN or done * _POLLS_S[-1] > self._caps.human_after_s:
            pause = _SLOW_POLL_S
        self._due[key] = at.now + pause

    def _behind(self, order: Order) -> bool:
        """A notice told more of an accepted order than the list has shown yet."""
        for number in order.numbers:
            hint, row = self._hints.get((order.day, number)), self.row(order.day, number)
            if row is None:
                return True
            if hint is not None and (hint.filled > row.filled or (hint.ended and row.open)):
                return True
        return False

    def _settle(self, order: Order, at: Instant) -> None:
        """Find *order* in the list: one row that fits is it, two are a person's to tell apart."""
        fitting = [row for row in self._rows[order.day].values() if self._fits(order, row)]
        candidates = tuple(row.number for row in fitting)
        if candidates != order.candidates:
            order = attrs.evolve(order, candidates=candidates)
            self._put(order, at)
        age = at.now - self._doubted_at.get(order.key, at.now)
        if order.action is Action.CANCEL and not fitting:
            self._settle_cancel(order, at, age)
            return
        if len(fitting) > 1:
            self._hand_over(order, Phrase("several orders in the day's list may be this one"), at)
            return
        if fitting and order.state is OrderState.UNKNOWN and not self._announced(order):
            row = fitting[0]
            seen_s = at.now - self._first_seen[order.day, row.number][0].now
            # The list shows today's orders late: another candidate may still be on its way.
            if min(age, seen_s) < self._caps.settle_s:
                return
            if self._foreign(row):
                self._hand_over(order, Phrase("the one that may be it came by another way"), at)
            else:
                receipt = (row.number, row.branch, row.time)
                self._accept(order.key, *receipt, Evidence.LIST, at)
            return
        if age >= self._caps.human_after_s:
            self._hand_over(order, Phrase("the day's list does not settle it"), at)

    def _foreign(self, row: DayRow) -> bool:
        """Entered otherwise than every order that is known to be ours: perhaps by a person."""
        return bool(row.channel and self._channels) and row.channel not in self._channels

    @staticmethod
    def _answered(order: Order, row: DayRow) -> bool:
        """*row* is *order* beyond doubt, and says how it was entered."""
        proven = order.evidence is Evidence.ANSWER and order.order_no == row.number
        return proven and bool(row.channel)

    def _announced(self, order: Order) -> bool:
        """A notice told of a number that would fit and is not in the list yet."""
        rows = self._rows[order.day]
        return any(
            day == order.day
            and number not in rows
            and (day, number) not in self._owners
            and (hint.symbol, hint.side) == (order.symbol, order.side)
            and hint.original == order.original_no
            and self._heard[day, number] >= order.sent_ts
            for (day, number), hint in self._hints.items()
        )

    def _settle_cancel(self, order: Order, at: Instant, age: float) -> None:
        numbers = self._continued(order)
        rows = [row for n in numbers if (row := self.row(order.day, n)) is not None]
        if len(rows) == len(numbers) and not any(_left(row, rows) for row in rows):
            ended = max(self._ended.get((order.day, n), -math.inf) for n in numbers)
            # What ended may have been amended in an app, and its new number is listed late.
            if min(age, at.now - ended) < self._caps.settle_s:
                return
            text = Phrase("nothing is open any more under the number that it named")
            self._end(order.key, OrderState.ACCEPTED, "", text, at, Evidence.LIST)
        elif age >= self._caps.human_after_s:
            self._hand_over(order, Phrase("the order is still open: cancel it again"), at)

    def _alive(self, day: str) -> list[DayRow]:
        """Rows under which shares are open or were executed, or went on: no cancellation's."""
        known = self._rows[day].values()
        # What was amended again is listed with nothing left.
        amended = {row.original for row in known if row.original != row.number}
        return [
            row
            for row in known
            if row.open or row.filled or (row.number in amended and not _bounced(row))
        ]

    def _continued(self, change: Order) -> list[str]:
        """The number that *change* names, and those under which its shares went on."""
        numbers = [change.original_no]
        alive = self._alive(change.day)
        for number in numbers:
            listed = [row.number for row in alive if row.original == number]
            amended = [
                o.order_no
                for o in self.orders.values()
                if o.action is Action.AMEND
                and (o.day, o.original_no, o.state) == (change.day, number, OrderState.ACCEPTED)
            ]
            numbers += [n for n in dict.fromkeys(listed + amended) if n not in numbers]
        return numbers

    def _hand_over(self, order: Order, why: str, at: Instant) -> None:
        if order.state is not OrderState.HUMAN:
            self._put(attrs.evolve(order, state=OrderState.HUMAN, text=why), at, write=True)

    def _fits(self, order: Order, row: DayRow) -> bool:
        """Whether *row* can be *order*; when in doubt it can."""
        if (row.symbol, row.side) != (order.symbol, order.side):
            return False
        if row.original != order.original_no or self._taken(order, row.number):
            return False
        order_type = self._rules.types[order.type]
        if order.action is not Action.CANCEL:
            if order.action is Action.NEW and row.qty != order.qty:
                return False
            if order_type.priced and row.price != order.price:
                return False
            if row.type_code and row.type_code != order_type.code:
                return False
        # An order that was sent while a list was read may be in it.
        if self._first_seen[order.day, row.number][1].wall_ns < order.sent_ts:
            return False
        taken = _moment(order.day, row.time)
        if taken is None:
            return True
        last = order.sent_ts + int(self._ttl_s * 1e9) + _LATER_NS
        return order.sent_ts - _EARLIER_NS <= taken <= last

    def _taken(self, order: Order, number: str) -> bool:
        """Whether *number* is known to be another order than *order*."""
        owner = self._owners.get((order.day, number))
        if owner is None:
            return False
        target = self._owners.get((order.day, order.original_no))
        if order.action is not Action.AMEND or owner != target:
            return True
        # The order that is amended was followed to this number; who amended it is the question.
        return any(o.order_no == number and o.day == order.day for o in self.orders.values())

    def _confirm_all(self, at: Instant) -> None:
        amending = {
            (order.day, order.original_no)
            for order in self.orders.values()
            if order.action is Action.AMEND
            and (order.state in DOUBTFUL or order.state is OrderState.SENDING)
        }
        for order in list(self.orders.values()):
            if order.action is not Action.NEW:
                row = self.row(order.day, order.order_no)
                if order.state is OrderState.ACCEPTED and _bounced(row):
                    why = Phrase("the exchange refused it")
                    self._end(order.key, OrderState.REJECTED, "exchange", why, at, Evidence.LIST)
            elif order.numbers and order.day in self._rows:
                self._confirm(order, amending, at)

    def _confirm(self, order: Order, amending: set[tuple[str, str]], at: Instant) -> None:
        """Take over what the list says of an order with a number.

        Args:
            order: which.
            amending: (day, number) that may live on under a number that is not known yet.
            at: this moment.
        """
        known = self._rows[order.day]
        numbers = list(order.numbers)
        # An amendment made elsewhere continues the order under a number that we never gave out,
        # all of it or some of its shares.
        alive = self._alive(order.day)
        follow = True
        while follow:
            follow = False
            for row in alive:
                if row.original in numbers and row.number not in numbers:
                    numbers.append(row.number)
                    follow = True
                    break
        # A change that the exchange refused left the order as it was, under the number before.
        numbers = [n for n in numbers if n == order.order_no or not _bounced(known.get(n))]
        chain = [known[number] for number in numbers if number in known]
        if not chain:
            return
        filled = sum(row.filled for row in chain)
        live = known.get(numbers[-1])
        left = {row.number: _left(row, chain) for row in chain}
        open_qty = None if len(chain) < len(numbers) else sum(left.values())
        if live is not None and not live.open:
            still = [row for row in chain if left[row.number]]
            # The list shows the end of a number that was amended before it shows the new one.
            if (order.day, live.number) in amending:
                if live.filled + live.rejected < live.qty:
                    open_qty = None
            elif still:
                # Some of its shares were amended elsewhere, and only the others are left.
                live = still[-1]
                numbers.remove(live.number)
                numbers.append(live.number)
        found = attrs.evolve(
            order,
            numbers=tuple(numbers),
            filled_qty=filled,
            open_qty=open_qty,
            cancelled_qty=sum(_cancelled(row, chain) for row in chain),
            rejected_qty=0 if live is None else live.rejected,
            avg_price=_average(chain),
            branch=order.branch or chain[0].branch,
            order_time=order.order_time or chain[0].time,
        )
        if not filled and _bounced(live) and order.state is OrderState.ACCEPTED:
            found = attrs.evolve(
                found,
                state=OrderState.REJECTED,
                evidence=Evidence.LIST,
                code="exchange",
                text=Phrase("the exchange refused it"),
            )
        if found != order:
            lasting = (found.state, found.numbers) != (order.state, order.numbers)
            for number in numbers:
                self._owners.setdefault((order.day, number), order.key)
            self._put(found, at, write=lasting)

    # The journal.

    def replay(self, records: Iterable[Mapping[str, Any]], at: Instant) -> None:
        """Take up what earlier processes wrote; what they were about to send is in doubt.

        Any prefix of what they wrote can be replayed, and any of it twice.

        Raises:
            ValueError, KeyError, TypeError: a record of another program.
        """
        records = list(records)
        self.orders.update(journaled(records))
        self._channels.update(str(r["channel"]) for r in records if "channel" in r)
        self._own()
        for order in list(self.orders.values()):
            if order.state is OrderState.SENDING:
                self._end(order.key, OrderState.UNKNOWN, "unknown", Phrase("the process ended"), at)
            if self.orders[order.key].state in DOUBTFUL:
                self._doubted_at[order.key] = at.now
                self._due[order.key] = at.now

    def _own(self) -> None:
        """Give the orders their numbers."""
        for order in self.orders.values():
            if order.order_no:
                self._owners.setdefault((order.day, order.order_no), order.key)
        for order in self.orders.values():
            for number in order.numbers:
                self._owners[order.day, number] = order.key

    def needed(self) -> list[dict[str, Any]]:
        """All that a journal has to hold: what was sent, as it is now, and how ours are entered."""
        channels = [{"channel": channel} for channel in sorted(self._channels)]
        return channels + [_record(order) for order in self.orders.values() if order.sent_ts]

    def forget(self, at: Instant) -> None:
        """Drop from memory what neither today nor a doubt needs."""
        self._recall(at)
        today = day_of(at.wall_ns)
        changing = [o.target_key for o in self.orders.values() if o.state in _WAITING]
        for key in [k for k, o in self.orders.items() if o.day < today]:
            order = self.orders[key]
            if order.state in DOUBTFUL or order.state in _WAITING or key in self._changed:
                continue
            if key in changing:
                continue
            if order.sent_ts:
                self.outlived = True
                self._records.append(_record(order))  # fills as well, which nobody wrote down
                self._past[key] = (order, at.now)
            del self.orders[key]
            for memory in (self._deadlines, self._due, self._reads, self._doubted_at):
                memory.pop(key, None)
        days = {order.day for order in self.orders.values()} | {today}
        self._rows = {day: rows for day, rows in self._rows.items() if day in days}
        self._first_seen = {k: v for k, v in self._first_seen.items() if k[0] in days}
        self._ended = {k: v for k, v in self._ended.items() if k[0] in days}
        self._hints = {k: v for k, v in self._hints.items() if k[0] in days}
        self._heard = {k: v for k, v in self._heard.items() if k[0] in days}
        self._owners = {k: v for k, v in self._owners.items() if v in self.orders}

    def _recall(self, at: Instant) -> None:
        """Take up again what was forgotten and is of today: the clock was put back."""
        today = day_of(at.wall_ns)
        self._past = {k: v for k, v in self._past.items() if at.now - v[1] < _PAST_S}
        back = [key for key in self._past if key[1] >= today]
        for key in back:
            order, _ = self._past.pop(key)
            if self.orders.setdefault(key, order) is order:
                self._records.append(_record(order))  # it may have left the journal
        if back:
            self._own()

    # Small parts.

    def _accept(
        self,
        key: Key,
        number: str,
        branch: str,
        time: str,
        evidence: Evidence,
        at: Instant,
        *,
        text: str = "",
    ) -> None:
        order = self.orders[key]
        numbers = (*order.numbers, number) if order.action is Action.NEW else ()
        self._owners[order.day, number] = key
        self._put(
            attrs.evolve(
                order,
                state=OrderState.ACCEPTED,
                order_no=number,
                branch=branch,
                order_time=time,
                numbers=numbers,
                evidence=evidence,
                candidates=(),
                code="",
                text=text,
            ),
            at,
            write=True,
        )
        target = order if order.action is Action.NEW else self._amended(order)
        if target is None:
            return
        self._due[target.key] = at.now + _POLLS_S[0]
        if order.action is Action.AMEND:
            self._owners[target.day, number] = target.key
            # The list may have had it followed to this number already, and further.
            if number not in target.numbers:
                numbers = (*target.numbers, number)
                self._put(attrs.evolve(target, numbers=numbers, open_qty=None), at, write=True)

    def _amended(self, order: Order) -> Order | None:
        key = self._owners.get((order.day, order.original_no))
        target = None if key is None else self.orders[key]
        return target if target is not None and target.action is Action.NEW else None

    def _end(
        self,
        key: Key,
        state: OrderState,
        code: str,
        text: str,
        at: Instant,
        evidence: Evidence = Evidence.NONE,
    ) -> None:
        order = self.orders[key]
        # What was never written down needs no end there: after a restart it never was.
        written = bool(order.sent_ts)
        ended = attrs.evolve(
            order, state=state, code=code, text=text, evidence=evidence, candidates=()
        )
        self._put(ended, at, write=written)

    def _put(
        self,
        order: Order,
        at: Instant,
        *,
        write: bool = False,
    ) -> None:
        order = attrs.evolve(order, updated_ts=at.wall_ns)
        self.orders[order.key] = order
        self._changed[order.key] = None
        if write:
            self._records.append(_record(order))
        if order.state in FINAL:
            self._deadlines.pop(order.key, None)


def journaled(records: Iterable[Mapping[str, Any]]) -> dict[Key, Order]:
    """What *records* last say of each order.

    Raises:
        ValueError, KeyError, TypeError: a record of another program.
    """
    orders = (Order.from_map(record["order"]) for record in records if "order" in record)
    return {order.key: order for order in orders}


def _record(order: Order) -> dict[str, Any]:
    return {"order": order.to_map()}


def _key(ask: Ask, at: Instant) -> Key:
    return (ask.client, day_of(at.wall_ns), ask.id)


def _order(ask: Ask, at: Instant, target: Order | None) -> Order:
    order = Order(
        client=ask.client,
        id=ask.id,
        day=day_of(at.wall_ns),
        action=ask.action,
        symbol=ask.symbol,
        side=ask.side,
        qty=ask.qty,
        price=ask.price,
        type=ask.type,
        exchange=ask.exchange,
        target=ask.target,
        stop_price=ask.stop_price,
        original_no=ask.number,
        created_ts=at.wall_ns,
    )
    if target is None:
        return order
    return attrs.evolve(
        order,
        symbol=target.symbol,
        side=target.side,
        exchange=target.exchange,
        target_client=target.client,
        target_day=target.day,
    )


def _same(ask: Ask, order: Order) -> bool:
    """Whether *ask* is *order* again."""
    if ask.action is not order.action or ask.target != order.target:
        return False
    if ask.action is Action.CANCEL:
        return ask.qty == order.qty
    if (ask.price, ask.stop_price) != (order.price, order.stop_price):
        return False
    if ask.action is Action.AMEND:
        return ask.type in {"", order.type}
    asked = (ask.symbol, ask.side, ask.qty, ask.type, ask.exchange)
    return asked == (order.symbol, order.side, order.qty, order.type, order.exchange)


def _moment(day: str, time: str) -> int | None:
    """HHMMSS in Seoul on *day* as nanoseconds since 1970 UTC; None where it is no time."""
    try:
        moment = dt.datetime.strptime(day + time, "%Y%m%d%H%M%S").replace(tzinfo=KST)
    except ValueError:
        return None
    return int(moment.timestamp()) * 10**9


def _bounced(row: DayRow | None) -> bool:
    """The exchange refused all of it."""
    return row is not None and bool(row.rejected) and not row.open and not row.filled


def _left(row: DayRow, chain: Iterable[DayRow]) -> int:
    """What is open under *row*; the list may show what went on under another number there too."""
    return max(0, min(row.open, row.qty - row.filled - _gone_on(row, chain)))


def _cancelled(row: DayRow, chain: Iterable[DayRow]) -> int:
    """What of *row* was cancelled; the list may count there what went on under another number."""
    ended = row.qty - row.filled - row.rejected - _left(row, chain) - _gone_on(row, chain)
    return max(0, min(row.cancelled, ended))


def _gone_on(row: DayRow, chain: Iterable[DayRow]) -> int:
    """Shares of *row* that were amended and live, or have lived, under another number."""
    return sum(r.qty - r.rejected for r in chain if r.original == row.number and r is not row)


def _average(chain: Sequence[DayRow]) -> str:
    fills = [row for row in chain if row.filled and row.avg_price]
    if len(fills) == 1:
        return fills[0].avg_price
    if not fills:
        return ""
    cost = sum(Decimal(row.avg_price) * row.filled for row in fills)
    return str(round(cost / sum(row.filled for row in fills), 2))
