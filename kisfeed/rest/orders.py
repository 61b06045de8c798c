"""The order desk: one executor, one reader of the day's list, and the calls that programs make.

What may be sent and what became of it is decided in :mod:`kisfeed.core.orders`. Here an intent is
put on disk, then the order goes out once, on a connection of its own; nothing sends it again. Only
a cancellation of all that is left goes without an intent where the disk takes none: done twice, it
does no harm, and kept back it does.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from typing import TYPE_CHECKING, Any, Final

import attrs
import trio

from kisfeed.core.engine import Instant
from kisfeed.core.ordercheck import SYMBOL, Ask, Situation, refusal
from kisfeed.core.orders import Hint, day_of, journaled, named
from kisfeed.core.told import Ledger
from kisfeed.errors import (
    KisError,
    KisRefused,
    LocalRefusal,
    NoToken,
    NotSent,
    OrderRefused,
    StateError,
    UnknownOutcome,
)
from kisfeed.kfp.orders import DOUBTFUL, Action, Order, OrderState
from kisfeed.kis import orders as wire
from kisfeed.kis.rest import Priority
from kisfeed.rest.halt import Halt
from kisfeed.seams import SleepWatch
from kisfeed.seoul import date_of
from kisfeed.texts import Phrase

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from kisfeed.config import Orders
    from kisfeed.core.orders import Book, Key
    from kisfeed.core.told import Missed
    from kisfeed.kis.orders import Account, Facts, OrderRules
    from kisfeed.kis.rest import Answer, Call
    from kisfeed.kis.sessions import Calendar
    from kisfeed.rest.halt import HaltSwitch
    from kisfeed.rest.journal import Journal
    from kisfeed.rest.requests import Kis
    from kisfeed.seams import Clock

_log: Final = logging.getLogger("kisfeed.orders")

_SETTLED: Final = frozenset(OrderState) - {OrderState.QUEUED, OrderState.SENDING}
_UNSENT: Final = frozenset({OrderState.EXPIRED, OrderState.NOT_SENT})
_SWEEP_TTL_S: Final = 60.0  # others' answers are waited for ahead of it, and late does no harm
_RETRY_S: Final = 5.0  # the list could not be read
_OPEN_READ_S: Final = 30.0  # while something is open, whether or not notices come
_IDLE_READ_S: Final = 600.0
_GAP_READS_S: Final = (0.0, 3.5, 7.0, 12.0)  # after notices may have been missed: the list is late
_QUIET_POLL_S: Final = 0.005
_SUSPENDED_S: Final = 0.1  # a shorter sleep of the machine makes no order late
_FACTS_S: Final = 600.0
_FACTS_WAIT_S: Final = 3.0
_MAX_PAGES: Final = 100
_NOTHING: Final = "KIOK0560"


class _Halted(Exception):
    """Ordering was halted between the queue and the first byte."""


@attrs.define(eq=False)
class Swept:
    """What became of cancelling all that is open.

    Attributes:
        cancellations: as they ended; KIS did not take every one for sure.
        refused: orders whose cancellation was not even queued, and why; those in doubt too, which
            may be open and have no number to cancel them by.
        done: set when no more comes.
    """

    cancellations: list[Order] = attrs.field(factory=list)
    refused: list[tuple[Order, OrderRefused]] = attrs.field(factory=list)
    done: trio.Event = attrs.field(factory=trio.Event)


@attrs.define(eq=False)
class OrderDesk:
    """Takes orders from programs, and sees to it that none happens twice.

    Args:
        kis: makes the calls.
        book: decides; already replayed.
        journal: open.
        switch: the kill switch.
        account: whose orders.
        rules: what KIS takes.
        calendar: when it takes them.
        caps: what the user allows.
        clock: for deadlines and stamps.
        paper: the paper host.
        missed: told what no notice brought, as recovered notices are to be sent.
    """

    _kis: Kis
    _book: Book
    _journal: Journal
    _switch: HaltSwitch
    _account: Account
    _rules: OrderRules
    _calendar: Calendar
    _caps: Orders
    _clock: Clock
    _paper: bool
    _missed: Callable[[Missed, Order | None], None]
    _ledger: Ledger = attrs.field(factory=Ledger, init=False)
    _wake: trio.Event = attrs.field(factory=trio.Event, init=False)
    _queued: trio.Event = attrs.field(factory=trio.Event, init=False)
    _sweeps: deque[Swept] = attrs.field(factory=deque, init=False)
    _asked: trio.Event = attrs.field(factory=trio.Event, init=False)
    _look: trio.Event = attrs.field(factory=trio.Event, init=False)
    _changed: dict[Key, trio.Event] = attrs.field(factory=dict, init=False)
    _ready: trio.Event = attrs.field(factory=trio.Event, init=False)
    _reading: trio.Lock = attrs.field(factory=trio.Lock, init=False)
    _writing: trio.Lock = attrs.field(factory=trio.Lock, init=False)
    _gap_reads: list[float] = attrs.field(factory=list, init=False)
    _read_at: float = attrs.field(default=-math.inf, init=False)
    _sleep: SleepWatch = attrs.field(init=False)
    _facts: dict[str, tuple[float, Facts | None]] = attrs.field(factory=dict, init=False)

    def __attrs_post_init__(self) -> None:
        self._sleep = SleepWatch(self._clock, _SUSPENDED_S)

    # Life.

    async def run(self) -> None:
        """Execute orders and follow what becomes of them, until cancelled.

        Nothing is sent before today's list was read once: an earlier process may have left orders
        of which only the list can tell.
        """
        self.gap()
        await self._write()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._follow)
            nursery.start_soon(self._expire)
            nursery.start_soon(self._execute)
            nursery.start_soon(self._sweep)

    async def _execute(self) -> None:
        await self._ready.wait()
        while True:
            order = self._book.take(self._at(), halted=self._switch.halted() is not None)
            self._tell_unsent()
            await self._write()
            if order is None:
                await self._wake.wait()
                self._wake = trio.Event()
            else:
                await self._send(order)

    async def _expire(self) -> None:
        """Tell in time those whose turn does not come in time."""
        while True:
            with trio.move_on_at(self._book.next_deadline()):
                await self._queued.wait()
            self._queued = trio.Event()
            self._book.expire(self._at())
            self._tell_unsent()

    async def _sweep(self) -> None:
        """Cancel all that is open for whoever asked: not in his task, which ends when he leaves."""
        while True:
            while self._sweeps:
                sweep = self._sweeps.popleft()
                await self._cancel_all(sweep)
                sweep.done.set()
            await self._asked.wait()
            self._asked = trio.Event()

    async def _cancel_all(self, sweep: Swept) -> None:
        for key in list(self._book.orders):
            order = self._book.orders.get(key)
            if order is None:
                continue  # forgotten since
            order = await self._settled(order)  # what is being sent may be open then
            if order.state in DOUBTFUL and order.action is not Action.CANCEL:
                sweep.refused.append((order, _doubt(order)))
                continue
            # Yesterday's ended with the day, and its numbers are others' today.
            today = order.day == day_of(self._clock.wall_ns())
            if not (today and order.live_number) or order.open_qty == 0:
                continue
            try:
                await self._cancel_each_number(order, sweep)
            except OrderRefused as exc:
                sweep.refused.append((order, exc))

    async def _cancel_each_number(self, order: Order, sweep: Swept) -> None:
        tried: set[str] = set()
        while number := self._book.number_to_cancel(order, tried):
            # As its own program would: by that one's name the id is this order's alone.
            ask = Ask(
                order.client,
                self.cancel_id(order.client, order, 0, number),
                Action.CANCEL,
                order.symbol,
                order.side,
                0,
                None,
                order.type,
                order.exchange,
                target=order.id,
                number=number,
                ttl_s=_SWEEP_TTL_S,
            )
            done = await self._placed(ask)
            sweep.cancellations.append(done)
            tried |= {number, done.original_no}
            order = self._book.orders.get(order.key, order)

    async def _send(self, order: Order) -> None:
        """One order, from its intent to whatever is known of it."""
        key = order.key
        try:
            order = await self._intend(order)
        except StateError as exc:
            self._book.not_sent(key, "journal", str(exc), self._at())
            self._note("order_not_sent", self._book.orders[key])
            self._tell()
            return
        self._note("order_intended", order)
        began, passed, why = self._clock.now(), False, ""

        def check() -> None:
            nonlocal passed
            if self._at().now > self._book.deadline(order):
                raise NotSent("its time was up before it could be sent")
            if order.action is not Action.CANCEL and not self._switch.begin_sending():
                raise _Halted
            passed = True

        try:
            answer = await self._kis.post_once(
                self._call(order), until=self._book.deadline(order), check=check
            )
        except _Halted:
            self._book.not_sent(key, "halted", Phrase("ordering is halted"), self._at())
        except (NotSent, NoToken, LocalRefusal) as exc:
            late = self._clock.now() >= self._book.deadline(order)
            why = str(exc)
            if passed:
                self._book.doubt(key, Phrase("KIS gave no answer that can be read"), self._at())
            elif late:
                text = Phrase("its time was up before it could be sent")
                self._book.not_sent(key, "expired", text, self._at())
            else:
                self._book.not_sent(key, "not_sent", str(exc), self._at())
        except KisRefused as exc:
            self._book.refused(key, exc.code, exc.text, self._at())
        except UnknownOutcome as exc:
            why = str(exc)
            if passed:
                self._book.doubt(key, Phrase("KIS gave no answer that can be read"), self._at())
            else:
                self._book.not_sent(key, "not_sent", str(exc), self._at())
        else:
            self._take(key, answer)
        finally:
            self._switch.end_sending()
        order, took_ms = self._book.orders[key], round((self._clock.now() - began) * 1000, 1)
        self._note(f"order_{order.state}", order, ms=took_ms, why=why)
        # What a caller was told is still so after a restart.
        await self._write()
        self._tell()
        self._look.set()  # what is in doubt or open now is due earlier

    async def _intend(self, order: Order) -> Order:
        """Put on disk what is about to be sent.

        Raises:
            StateError: the disk does not take it, and *order* must not go without.
        """
        record = self._book.intend(order, self._at())
        async with self._writing:
            try:
                await self._journal.append(record)
            except StateError as exc:
                if order.action is not Action.CANCEL or order.qty:
                    raise
                self._unwritten(exc)
            return self._book.intended(record)

    def _take(self, key: Key, answer: Answer) -> None:
        receipt = wire.receipt(answer.body)
        if receipt is None:
            self._book.doubt(key, Phrase("KIS took it and gave no order number"), self._at())
        else:
            self._book.accepted(key, receipt, self._at())

    def _call(self, order: Order) -> Call:
        order_type = self._rules.types[order.type]
        if order.action is Action.NEW:
            values = wire.new_order(
                self._account,
                order.symbol,
                order.qty,
                order_type,
                order.exchange,
                order.price,
                order.stop_price,
            )
            return self._kis.endpoints.call(f"order_cash_{order.side}", values)
        target, number = self._book.target(order), order.original_no
        if order.action is Action.AMEND:
            values = wire.amendment(
                self._account,
                number,
                target.branch,
                order_type,
                order.exchange,
                order.price,
                order.stop_price,
            )
        else:
            values = wire.cancellation(
                self._account, number, target.branch, order_type, order.exchange, order.qty
            )
        return self._kis.endpoints.call("order_rvsecncl", values)

    # Following: the day's list.

    def gap(self) -> None:
        """Notices may have been missed: read the list, now and until it has caught up."""
        now = self._clock.now()
        self._gap_reads = [now + pause for pause in _GAP_READS_S]
        self._look.set()

    def notice(self, kind: str, fields: Mapping[str, Any]) -> dict[str, object]:
        """A notice came: returns what it has to do with the orders placed here.

        It changes no order: the socket it came by is open to anybody. It makes the list be read.
        """
        if not self._account.owns(str(fields.get("account") or "")):
            return {}
        at = self._at()
        number = wire.same_number(fields.get("order_no"))
        qty = fields.get("qty") or 0
        self._ledger.notice(day_of(at.wall_ns), number, kind, qty)
        hint = Hint(
            number,
            wire.same_number(fields.get("original_order_no")),
            str(fields.get("symbol") or ""),
            "buy" if fields.get("side") == 1 else "sell",
            qty if kind == "fill" else 0,
            kind in {"rejected", "cancelled"},
        )
        key = self._book.notice(hint, at)
        self._look.set()
        return {} if key is None else {"client": key[0], "client_order_id": key[2]}

    async def _follow(self) -> None:
        while True:
            due = self._next_read()
            if due > self._clock.now():
                with trio.move_on_at(due):
                    await self._look.wait()
                self._look = trio.Event()
                if self._next_read() > self._clock.now():
                    await trio.lowlevel.checkpoint()
                    continue
            try:
                await self._read()
            except (KisError, LocalRefusal, ValueError) as exc:
                _log.warning("day_list_unread", extra={"why": str(exc), **self._limits()})
                await trio.sleep(_RETRY_S)

    def _next_read(self) -> float:
        wanted = [self._book.next_read(), *self._gap_reads[:1]]
        if self._ledger.pending():
            wanted.append(self._read_at + _GAP_READS_S[1])
        is_open = any(o.numbers and o.open_qty != 0 for o in self._book.orders.values())
        wanted.append(self._read_at + (_OPEN_READ_S if is_open else _IDLE_READ_S))
        return min(wanted)

    async def _read(self) -> None:
        """Read the lists that matter and act on what they say.

        Raises:
            KisError: KIS did not give them.
            ValueError: it gave something else.
        """
        async with self._reading:
            began = self._at()
            self._gap_reads = [due for due in self._gap_reads if due > began.now]
            for day in self._book.days(began):
                started = self._at()
                rows = await self._pages(day)
                self._book.rows(day, rows, started, answered=self._at())
                if day == day_of(began.wall_ns):
                    for missed in self._ledger.review(rows, started.now):
                        self._missed(missed, self._book.owner(day, missed.row.number))
            self._read_at = began.now
            self._book.forget(began)
            self._ledger.forget(day_of(began.wall_ns))
        self._ready.set()
        # What waits is of a day that is put aside, perhaps: it goes first, or nothing does.
        if await self._write() and self._book.outlived:
            await self._put_aside(day_of(began.wall_ns))
        for order in self._tell():
            if order.state in _SETTLED:
                self._note("order_followed", order)

    async def _pages(self, day: str) -> list[wire.DayRow]:
        exchange = "KRX" if self._paper else "ALL"
        rows: dict[str, wire.DayRow] = {}
        cursor, more = ("", ""), False
        for _ in range(_MAX_PAGES):
            values = wire.day_list(self._account, day, exchange, cursor=cursor)
            try:
                answer = await self._kis.call(
                    self._kis.endpoints.call("inquire_daily_ccld", values, more=more)
                )
            except KisRefused as exc:
                if exc.code != _NOTHING:
                    raise
                return list(rows.values())
            rows.update((row.number, row) for row in wire.day_rows(answer.body))
            if not answer.more:
                return list(rows.values())
            cursor, more = wire.cursor(answer.body), True
        raise ValueError(f"the list of {day} has more than {_MAX_PAGES} pages")

    # What programs ask.

    async def preview(self, ask: Ask) -> Order:
        """Check *ask*; nothing is written or sent.

        Raises:
            OrderRefused: why it would be refused.
        """
        return self._book.preview(ask, self._at(), await self._situation(ask))

    async def place(self, ask: Ask) -> Order:
        """Place *ask*, which was previewed, and wait for what becomes of it.

        An amendment or a cancellation needs no preview. The same id on the same day gives the
        first result again.

        Returns:
            The order as KIS took it.

        Raises:
            OrderRefused: it was refused, here or by KIS, was not sent, or its outcome is unknown
                (code ``unknown_outcome``; do not send it again).
        """
        return _result(await self._placed(ask))

    async def _placed(self, ask: Ask) -> Order:
        """Place *ask*, and wait until it is settled one way or another.

        Raises:
            OrderRefused: it was not even queued.
        """
        came = self._at()  # its time runs while its quote is fetched
        order = self._book.known(ask, came)
        if order is None:
            situation = await self._situation(ask)
            order = self._book.place(ask, came, situation)
            self._note("order_queued", order)
            self._wake.set()
            self._queued.set()
        # The caller may leave: the order goes on, and its id gives its result to whoever asks.
        return await self._settled(order)

    async def _settled(self, order: Order) -> Order:
        """*order* when its turn has come and gone."""
        while order.state not in _SETTLED:
            await self._changed.setdefault(order.key, trio.Event()).wait()
            found = self._book.orders.get(order.key)
            if found is None:
                break  # settled and forgotten, at midnight
            order = found
        return order

    def show(self, name: str, client: str, day: str | None = None) -> Order:
        """The order of this id: the program's own, else the only one that has it.

        Args:
            name: the id.
            client: the program.
            day: YYYYMMDD; None for the newest that today or a doubt needs.

        Raises:
            OrderRefused: there is none, or several.
            StateError: an earlier day's orders cannot be read.
        """
        if day is None:
            return self._book.find(name, client)
        return named(self.of_day(day), name, client)

    def of_day(self, day: str | None = None) -> list[Order]:
        """The orders of *day* (today unless told), the oldest first.

        Raises:
            StateError: an earlier day's cannot be read.
        """
        today = day_of(self._clock.wall_ns())
        wanted = day or today
        orders = [order for order in self._book.orders.values() if order.day == wanted]
        if wanted >= today:
            return orders
        known = journaled(self._journal.archived(wanted)) | {o.key: o for o in orders}
        of_it = [order for order in known.values() if order.day == wanted]
        return sorted(of_it, key=lambda order: order.created_ts)

    def cancel_id(self, client: str, target: Order, qty: int, number: str = "") -> str:
        """The id of a cancellation of *qty* whose caller gave none."""
        return self._book.cancel_id(client, target, qty, self._at(), number)

    async def resolve(
        self, name: str, client: str, *, number: str | None, reason: str, day: str | None = None
    ) -> Order:
        """A person settles an order in doubt; it is on disk before this returns.

        Args:
            name: its id.
            client: whose, where several programs have it.
            number: KIS's number for it; None: it was not executed.
            reason: why.
            day: YYYYMMDD, where it is not the newest of this id.

        Raises:
            OrderRefused: it is not in doubt, or the number is another order's.
            StateError: it could not be written.
        """
        order = self._book.find(name, client, day=day)
        settled = self._book.resolve(order.key, number=number, reason=reason, at=self._at())
        self._note("order_resolved", settled, why=reason)
        self._tell()
        await self._write(strict=True)
        return settled

    async def refresh(self) -> None:
        """Read the day's list now.

        Raises:
            KisError: KIS did not give it.
        """
        try:
            await self._read()
        except ValueError as exc:
            raise KisError(str(exc)) from exc

    async def halt(self, reason: str, *, cancel_open: bool = False) -> tuple[dict[str, Any], Swept]:
        """Stop all ordering; once this returns, no order leaves any more. Cancellations may.

        Args:
            reason: why.
            cancel_open: cancel everything that was placed here and is open. That goes on when
                the caller leaves.

        Returns:
            The halt that holds, and what was cancelled.

        Raises:
            StateError: the halt file cannot be written. All the rest is done or goes on, but a
                restart ends the halt.
        """
        wall_ns = self._clock.wall_ns()
        unkept: StateError | None = None
        try:
            found = self._switch.halt(reason, wall_ns)
        except StateError as exc:
            found, unkept = Halt(reason, wall_ns), exc
        _log.warning("orders_halted", extra={"why": found.reason, **self._limits()})
        self._wake.set()
        sweep = Swept()
        if cancel_open:
            self._sweeps.append(sweep)
            self._asked.set()
        while not self._switch.quiet():  # noqa: ASYNC110  # the lock is a file's
            await trio.sleep(_QUIET_POLL_S)
        try:
            await self._append({"halt": found.to_map()})
        except StateError as exc:
            self._unwritten(exc)
        if unkept is not None:
            raise unkept
        if cancel_open:
            await sweep.done.wait()
        return found.to_map(), sweep

    async def resume(self, reason: str, by: str) -> None:
        """Allow ordering again.

        Raises:
            StateError: the halt file cannot be removed, or the reason not written.
        """
        await self._append({"resume": {"reason": reason, "by": by, "ts": self._clock.wall_ns()}})
        self._switch.resume()
        _log.warning("orders_resumed", extra={"why": reason, "by": by, **self._limits()})

    def status(self) -> dict[str, Any]:
        """What ``status`` tells of orders; JSON-able."""
        halted = self._switch.halted()
        today = self.of_day()
        return {
            "halted": None if halted is None else halted.to_map(),
            "waiting": self._book.waiting(),
            "today": len(today),
            "open": sum(1 for o in today if o.numbers and o.open_qty != 0),
            "in_doubt": [o.id for o in self._book.doubtful()],
            "ready": self._ready.is_set(),
        }

    # Small parts.

    def _at(self) -> Instant:
        """This moment; a suspend, which the scheduler's clock missed, is told to the book first."""
        slept = self._sleep.slept()
        if slept:
            self._book.slept(slept)
        return Instant(self._clock.now(), self._clock.wall_ns())

    async def _situation(self, ask: Ask) -> Situation:
        if ask.action is Action.CANCEL:
            exchange, facts = ask.exchange, None
        elif ask.action is Action.AMEND:
            target = self._book.find(ask.target, ask.client)
            exchange, facts = target.exchange, await self._quote(target.symbol)
        else:
            exchange, facts = ask.exchange, await self._quote(ask.symbol)
        known = self._rules.exchanges.get(exchange)
        at = self._at()
        phase = None if known is None else self._calendar.phase(known.venue, at.wall_ns, ask.symbol)
        return Situation(
            date=date_of(at.wall_ns),
            paper=self._paper,
            facts=facts,
            open=phase is not None and phase.open,
            halted=self._switch.halted() is not None,
        )

    async def _quote(self, symbol: str) -> Facts | None:
        """The facts of *symbol*, read at most every ten minutes; None where KIS does not give them.

        Raises:
            OrderRefused: KIS does not know it.
        """
        until, facts = self._facts.get(symbol, (-math.inf, None))
        if until > self._clock.now():
            return facts
        if SYMBOL.fullmatch(symbol) is None:
            return None  # the check says what is wrong with it
        values = {"FID_COND_MRKT_DIV_CODE": "J", "FID_INPUT_ISCD": symbol}
        call = self._kis.endpoints.call("inquire_price", values, priority=Priority.ACCOUNT)
        facts, why = None, "no answer in time"
        try:
            with trio.move_on_after(_FACTS_WAIT_S):
                facts = wire.facts((await self._kis.call(call)).body)
        except (KisError, LocalRefusal, ValueError) as exc:
            if isinstance(exc, KisRefused) and exc.code == _NOTHING:
                text = Phrase("KIS does not know {symbol}", symbol=symbol)
                raise refusal("unknown_symbol", text) from exc
            why = str(exc)
        if facts is None:
            _log.warning("no_quote", extra={"symbol": symbol, "why": why, **self._limits()})
        else:
            self._facts[symbol] = (self._clock.now() + _FACTS_S, facts)
        return facts

    def _tell(self) -> list[Order]:
        """Wake whoever waits for an order that changed."""
        changed = self._book.take_changed()
        for order in changed:
            waiting = self._changed.pop(order.key, None)
            if waiting is not None:
                waiting.set()
        return changed

    def _tell_unsent(self) -> None:
        for order in self._tell():
            if order.state in _UNSENT and not order.sent_ts:
                self._note(f"order_{order.state}", order)

    async def _write(self, *, strict: bool = False) -> bool:
        """Put what must outlive this process on disk; whether it is there.

        What cannot be written is tried again with what comes next. After a restart it would be in
        doubt and found out anew: nothing is wrong about it now, so only a *strict* caller hears.
        """
        async with self._writing:
            records = self._book.take_records()
            if not records:
                return True
            try:
                await self._journal.append(*records)
            except StateError as exc:
                self._book.give_back(records)
                self._unwritten(exc)
                if strict:
                    raise
                return False
            except BaseException:
                self._book.give_back(records)  # cancelled, with the caller that asked
                raise
            return True

    async def _put_aside(self, day: str) -> None:
        """What is of no use to this day any more goes from the journal to an archive."""
        async with self._writing:
            self._book.outlived = False
            try:
                await self._journal.put_aside(self._book.needed(), day)
            except StateError as exc:
                self._book.outlived = True
                self._unwritten(exc)
            except BaseException:
                self._book.outlived = True
                raise

    async def _append(self, record: Mapping[str, Any]) -> None:
        async with self._writing:
            await self._journal.append(record)

    def _unwritten(self, exc: StateError) -> None:
        _log.critical("journal_not_written", extra={"why": str(exc), **self._limits()})

    def _limits(self) -> dict[str, str]:
        return {"limit_version": self._kis.limits.version}

    def _note(self, what: str, order: Order, **more: object) -> None:
        details = {
            "client": order.client,
            "id": order.id,
            "action": str(order.action),
            "symbol": order.symbol,
            "side": str(order.side),
            "qty": order.qty,
            "price": order.price,
            "state": str(order.state),
            "order_no": order.order_no,
            "code": order.code,
            "text": order.text,
        }
        _log.info(what, extra={**details, **more, **self._limits()})


def _result(order: Order) -> Order:
    """*order* if KIS took it.

    Raises:
        OrderRefused: anything else.
    """
    if order.state is OrderState.ACCEPTED:
        return order
    if order.state in DOUBTFUL:
        raise _doubt(order)
    told = order.to_map()
    if order.state is OrderState.REJECTED:
        raise refusal("kis", Phrase("{code}: {text}", code=order.code, text=order.text), told)
    if order.state is OrderState.NOT_EXECUTED:
        text = Phrase("a person settled that it was not executed: {why}", why=order.text)
        raise refusal("kis", text, told)
    raise refusal(order.code, order.text, told)


def _doubt(order: Order) -> OrderRefused:
    text = Phrase(
        "whether {id} was executed is not known ({why}): do not send it again",
        id=order.id,
        why=order.text,
    )
    return refusal("unknown", text, order.to_map())
