"""The outbox: bounds, order, and the law that every loss is counted and told."""

from __future__ import annotations

import math
import sys
from collections import Counter
from typing import Any, TypeAlias

import attrs
import pytest
from hypothesis import given, settings, strategies as st

from kisfeed.core.outbox import RUN_BYTES, Outbox, Tick, runs
from kisfeed.kfp.messages import Mode


@attrs.frozen
class Row:
    sid: int
    sseq: int
    size: int
    after: int = 0  # controls queued before it


@attrs.frozen
class Lost:
    sid: int
    first: int
    last: int
    n: int


@attrs.frozen
class Baseline:
    sid: int
    sseq: int
    mode: Mode
    hz: float


@attrs.frozen
class Word:
    number: int
    size: int


Item: TypeAlias = Row | Lost | Baseline | Word


def size_of(item: Item) -> int:
    return item.size if isinstance(item, Row | Word) else 20


def outbox(
    queue_bytes: int = 1000, max_age_s: float = 10.0, max_age_latest_s: float = 1.0
) -> Outbox[Item]:
    return Outbox(
        size=size_of,
        lost=lambda sid, first, last, n, _code: Lost(sid, first, last, n),
        queue_bytes=queue_bytes,
        protected_bytes=1000,
        max_age_s=max_age_s,
        max_age_latest_s=max_age_latest_s,
    )


class ModelClient:
    """Reads what the outbox hands over, the way a client author would read kfp1."""

    def __init__(self) -> None:
        self.position: dict[int, int] = {}
        self.rules: dict[int, Baseline] = {}
        self.last_at: dict[int, float] = {}
        self.asked: dict[int, None] = {}  # it sent SET or UNSUB: hz holds nothing back any more
        self.jumps = self.lost = self.ticks = self.words = 0
        self.baselines = 0

    def read(self, items: list[Item], now: float) -> None:
        for item in items:
            match item:
                case Baseline(sid, sseq):
                    self.position[sid] = sseq
                    self.rules[sid] = item
                    self.last_at.pop(sid, None)
                    self.asked.pop(sid, None)
                    self.baselines += 1
                case Row(sid, sseq, _, after):
                    assert after <= self.words + self.baselines, "overtook a control item"
                    jump = sseq - self.position[sid] - 1
                    assert jump >= 0, "went back"
                    rule = self.rules[sid]
                    if rule.mode is Mode.ALL:
                        assert jump == 0, "a jump that no LOST covers"
                    if rule.mode is Mode.HZ and sid in self.last_at and sid not in self.asked:
                        assert now - self.last_at[sid] >= 1 / rule.hz - 1e-9
                    self.last_at[sid] = now
                    self.jumps += jump
                    self.position[sid] = sseq
                    self.ticks += 1
                case Lost(sid, first, last, n):
                    assert first == self.position[sid] + 1
                    assert 0 < n <= last - first + 1
                    self.jumps += last - first + 1
                    self.lost += n
                    self.position[sid] = last
                case Word(number, _):
                    assert number == self.words, "control items out of order"
                    self.words += 1

    def check(self, box: Outbox[Item]) -> None:
        assert self.ticks == box.sent
        assert self.lost == box.dropped
        assert self.jumps == box.dropped + box.conflated


Step: TypeAlias = tuple[Any, ...]

SIDS = st.integers(1, 4)
STEPS = st.one_of(
    st.tuples(
        st.just("open"),
        SIDS,
        st.sampled_from(Mode),
        st.sampled_from([0.5, 2.0, 10.0]),
        st.booleans(),
    ),
    st.tuples(st.just("close"), SIDS),
    st.tuples(st.just("tick"), SIDS, st.integers(1, 30), st.integers(1, 120)),
    st.tuples(st.just("run"), st.lists(SIDS, min_size=2, max_size=30), st.integers(1, 120)),
    st.tuples(st.just("word"), st.integers(1, 60)),
    st.tuples(st.just("notice"), st.integers(1, 60)),
    st.tuples(st.just("again"), st.integers(0, 5), st.integers(1, 60)),
    st.tuples(st.just("take"), st.sampled_from([1, 50, 300, 65536])),
    st.tuples(st.just("wait"), st.sampled_from([0.01, 0.2, 0.7, 1.5, 12.0])),
)


class Run:
    """An outbox, what its engine knows, and the client at its other end."""

    def __init__(self) -> None:
        self.box = outbox()
        self.client = ModelClient()
        self.now = 100.0
        self.sseq: Counter[int] = Counter()
        self.opened: dict[int, None] = {}
        self.offered = self.words = self.controls = 0

    def tick(self, sid: int, size: int) -> None:
        self.sseq[sid] += 1
        if sid in self.opened:
            row = Row(sid, self.sseq[sid], size, self.controls)
            self.box.put((sid, row.sseq, row, self.now), size if row.sseq % 2 else 0)
            self.offered += 1

    def run(self, sids: list[int], size: int) -> None:
        ticks: list[Tick[Item]] = []
        for sid in sids:
            self.sseq[sid] += 1
            if sid in self.opened:
                row = Row(sid, self.sseq[sid], size, self.controls)
                ticks.append((sid, row.sseq, row, self.now))
        self.offered += len(ticks)
        if ticks:
            for run in runs(ticks, size_of, None):
                self.box.put_run(run)

    def open(self, sid: int, mode: Mode, hz: float, trades: bool) -> None:
        self.client.asked[sid] = None
        self.box.open(sid, mode, hz, self.sseq[sid], trades=trades)
        kept = Mode.ALL if mode is Mode.TRADE_SAFE and trades else mode
        self.box.control(Baseline(sid, self.sseq[sid], kept, hz), self.now)
        self.opened[sid] = None
        self.controls += 1

    def take(self, most: int) -> None:
        self.client.read(self.box.take(self.now, most), self.now)
        self.client.check(self.box)
        assert not (self.box.drained and self.box.ready)

    def do(self, step: Step) -> None:
        match step:
            case ("open", sid, mode, hz, trades):
                self.open(sid, mode, hz, trades)
            case ("close", sid):
                self.client.asked[sid] = None
                self.box.close(sid)
                self.opened.pop(sid, None)
            case ("tick", sid, n, size):
                for _ in range(n):
                    self.tick(sid, size)
            case ("run", sids, size):
                self.run(sids, size)
            case ("word" | "notice" as how, size):
                put = self.box.control if how == "word" else self.box.notice
                put(Word(self.words, size), self.now)
                self.words += 1
                self.controls += 1
            case ("again", n, size):
                words = [Word(number, size) for number in range(self.words, self.words + n)]
                self.box.again(words, 0, self.now)
                self.words += n
                self.controls += n
            case ("take", most):
                self.take(most)
            case ("wait", dt):
                self.now += dt
            case _:
                raise AssertionError(step)

    def drain(self) -> None:
        self.take(1 << 20)
        while (due := self.box.next_due()) < math.inf:
            self.now = max(self.now, due)
            self.take(1 << 20)


@settings(max_examples=500, deadline=None)
@given(st.lists(STEPS, max_size=60))
def test_jumps_are_lost_plus_conflated_whatever_happens(plan: list[Step]) -> None:
    run = Run()
    for step in plan:
        run.do(step)
        assert run.box._tick_bytes <= 1000
        if run.box.overflowed:
            return
    run.drain()
    box = run.box
    assert (box.queued_bytes, box.untold, box.age_ms(run.now)) == (0, 0, 0)
    assert run.client.words == run.words
    assert run.offered == box.sent + box.dropped + box.conflated


def filled(mode: Mode, n: int, *, queue_bytes: int = 1000, hz: float = 0) -> Outbox[Item]:
    box = outbox(queue_bytes)
    box.open(7, mode, hz, 0, trades=True)
    for sseq in range(1, n + 1):
        box.tick(7, sseq, Row(7, sseq, 100), 0.0)
    return box


def test_all_drops_the_oldest_and_tells_before_the_next_tick() -> None:
    items = filled(Mode.ALL, 15).take(0.0)
    assert items[0] == Lost(7, 1, 5, 5)
    assert [i.sseq for i in items if isinstance(i, Row)] == list(range(6, 16))


def test_latest_never_grows_and_tells_nothing() -> None:
    box = filled(Mode.LATEST, 10_000)
    assert box.queued_bytes == 100
    assert box.take(0.0) == [Row(7, 10_000, 100)]
    assert (box.conflated, box.dropped) == (9_999, 0)


def test_a_pending_tick_that_got_too_old_is_lost_not_conflated() -> None:
    box = filled(Mode.LATEST, 3)
    assert box.take(1.5) == [Lost(7, 1, 3, 1)]
    assert (box.conflated, box.dropped) == (2, 1)


def test_all_keeps_ticks_ten_seconds() -> None:
    assert len(filled(Mode.ALL, 3).take(10.0)) == 3
    assert filled(Mode.ALL, 3).take(10.5) == [Lost(7, 1, 3, 3)]


def test_hz_sends_the_first_at_once_and_the_newest_when_due() -> None:
    box = outbox()
    box.open(7, Mode.HZ, 0.25, 0, trades=True)
    box.tick(7, 1, Row(7, 1, 10), 0.0)
    assert box.take(0.0) == [Row(7, 1, 10)]
    for sseq in (2, 3):
        box.tick(7, sseq, Row(7, sseq, 10), 0.1)
    assert box.ready
    assert box.take(0.2) == []
    assert box.next_due() == 4.0
    # It waited 3.9 s because that was asked for: no age.
    assert box.take(4.0) == [Row(7, 3, 10)]
    assert box.next_due() == math.inf


def test_a_rate_of_nothing_is_no_rate() -> None:
    box = outbox()
    for hz in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="hz"):
            box.open(7, Mode.HZ, hz, 0, trades=True)
    with pytest.raises(KeyError):
        box.tick(7, 1, Row(7, 1, 10), 0.0)


def test_one_tick_is_handed_over_once_and_counted() -> None:
    for age, expected in ((10.0, [Row(7, 1, 100)]), (10.5, [Lost(7, 1, 1, 1)])):
        box = filled(Mode.ALL, 1)
        assert (box.queued_bytes, box.age_ms(age)) == (100, int(age * 1000))
        assert box.take(age) == expected
        assert (box.queued_bytes, box.age_ms(age), box.ready) == (0, 0, False)
        assert box.sent + box.dropped == 1
        assert box.take(age) == []


def pair() -> list[Tick[Item]]:
    return [(7, n, Row(7, n, 10), 0.0) for n in (1, 2)]


def test_a_run_is_kept_as_long_as_a_tick() -> None:
    for age, expected in ((10.0, 2), (10.5, 1)):
        box = outbox()
        box.open(7, Mode.ALL, 0, 0, trades=True)
        (run,) = runs(pair(), size_of, None)
        box.put_run(run)
        assert len(box.take(age)) == expected
        assert (box.queued_bytes, box.ready) == (0, False)


def test_what_fills_the_queue_exactly_is_kept() -> None:
    box = filled(Mode.ALL, 10)
    assert (box.queued_bytes, box.dropped) == (1000, 0)
    box.tick(7, 11, Row(7, 11, 1), 0.0)
    assert (box.queued_bytes, box.untold) == (901, 1)
    box = outbox(20)
    box.open(7, Mode.ALL, 0, 0, trades=True)
    (run,) = runs(pair(), size_of, None)
    box.put_run(run)
    assert (box.queued_bytes, box.dropped) == (20, 0)


def test_the_age_is_that_of_the_first_that_still_stands() -> None:
    box = outbox()
    box.open(7, Mode.LATEST, 0, 0, trades=True)
    box.open(8, Mode.ALL, 0, 0, trades=True)
    box.tick(7, 1, Row(7, 1, 10), 5.0)
    box.notice(Word(0, 10), 6.0)
    box.tick(7, 2, Row(7, 2, 10), 7.0)
    assert box.age_ms(8.0) == 2_000, "the notice's"
    assert box.take(8.0) == [Word(0, 10), Row(7, 2, 10)]


def test_trade_safe_keeps_trades_and_conflates_quotes() -> None:
    box = outbox()
    box.open(1, Mode.TRADE_SAFE, 0, 0, trades=True)
    box.open(2, Mode.TRADE_SAFE, 0, 0, trades=False)
    for sseq in (1, 2, 3):
        box.tick(1, sseq, Row(1, sseq, 10), 0.0)
        box.tick(2, sseq, Row(2, sseq, 10), 0.0)
    assert box.take(0.0) == [Row(1, 1, 10), Row(2, 3, 10), Row(1, 2, 10), Row(1, 3, 10)]


def test_a_pending_tick_moves_behind_a_state_change_that_precedes_its_value() -> None:
    box = outbox()
    box.open(7, Mode.LATEST, 0, 0, trades=True)
    box.tick(7, 1, Row(7, 1, 10), 0.0)
    box.control(Word(0, 10), 0.0)
    box.tick(7, 2, Row(7, 2, 10), 0.0)
    assert box.take(0.0) == [Word(0, 10), Row(7, 2, 10)]


def test_moved_entries_do_not_pile_up() -> None:
    box = outbox()
    box.open(7, Mode.LATEST, 0, 0, trades=True)
    for sseq in range(1, 10_000):
        box.tick(7, sseq, Row(7, sseq, 10), 0.0)
        box.control(Word(0, 0), 0.0)
    assert len(box._queue) < 20_200


def test_nor_do_those_of_many_topics() -> None:
    box = outbox(1 << 20)
    for sid in range(50):
        box.open(sid, Mode.LATEST, 0, 0, trades=True)
    for sseq in range(1, 500):
        for sid in range(50):
            box.tick(sid, sseq, Row(sid, sseq, 10), 0.0)
        box.control(Word(0, 0), 0.0)
    assert len(box._queue) < 2 * (500 + 50) + 66
    assert len(box.take(0.0, 1 << 20)) == 499 + 50
    assert box._void == 0


def test_control_items_are_never_dropped_by_age() -> None:
    box = outbox()
    box.control(Word(0, 10), 0.0)
    box.notice(Word(1, 10), 0.0)
    assert [box.age_ms(now) for now in (-1.0, 0.0, 3600.0)] == [0, 0, 3_600_000]
    assert box.queued_bytes == 20
    assert box.take(3600.0) == [Word(0, 10), Word(1, 10)]


def test_control_items_over_the_bound_overflow_and_cost_no_tick() -> None:
    box = filled(Mode.ALL, 10)
    overflowed = []
    for size in (900, 900, 1):
        box.control(Word(0, size), 0.0)
        overflowed.append(box.overflowed)
    assert overflowed == [False, False, True]
    assert len(box.take(0.0)) == 12


def test_one_answer_may_be_larger_than_the_bound() -> None:
    box = outbox()
    box.control(Word(0, 1_000_000), 0.0)
    assert not box.overflowed
    assert box.take(0.0) == [Word(0, 1_000_000)]


def test_notices_have_a_bound_of_their_own() -> None:
    box = outbox()
    overflowed = []
    for put in (box.control, box.control, box.notice, box.notice, box.notice):
        put(Word(0, 600), 0.0)
        overflowed.append(box.overflowed)
    assert overflowed == [False, False, False, False, True]


def test_notices_told_again_are_over_no_bound_and_leave_that_of_the_others_alone() -> None:
    box = outbox()
    again: list[Item] = [Word(number, 600) for number in range(10)]
    box.again(again, 6000, 0.0)
    box.notice(Word(10, 600), 0.0)
    box.notice(Word(11, 600), 0.0)
    assert (box.overflowed, box.queued_bytes, box.age_ms(1.0)) == (False, 7200, 1000)
    assert box.take(3600.0) == [*again, Word(10, 600), Word(11, 600)]
    assert box.queued_bytes == 0


@pytest.mark.parametrize(("whole", "fit"), [(0, 2), (1000, 2), (1199, 2), (1200, 3), (5000, 9)])
def test_who_asks_over_and_over_and_reads_nothing_is_over_the_bound(whole: int, fit: int) -> None:
    box = outbox()
    asked = 0
    while not box.overflowed:
        box.again([Word(asked, 600)], whole, 0.0)
        asked += 1
    assert asked - 1 == fit
    assert len(box.take(0.0)) == fit


def test_take_stops_at_the_item_that_reaches_the_bound() -> None:
    box = filled(Mode.ALL, 10)
    assert [len(box.take(0.0, 250)) for _ in range(5)] == [3, 3, 3, 1, 0]
    assert [len(filled(Mode.ALL, 10).take(0.0, most)) for most in (199, 200, 201)] == [2, 2, 3]
    for size, expected in ((300, [2, 1]), (500, [1, 1, 1])):
        box = outbox()
        box.control(Word(0, size), 0.0)
        box.notice(Word(1, size), 0.0)
        box.control(Word(2, size), 0.0)
        assert [len(box.take(0.0, 500)) for _ in expected] == expected


def test_a_take_is_64_kib_unless_told() -> None:
    box = outbox(1 << 20)
    box.open(7, Mode.ALL, 0, 0, trades=True)
    for sseq in range(1, 5):
        box.tick(7, sseq, Row(7, sseq, 32_768), 0.0)
    assert [len(box.take(0.0)) for _ in range(2)] == [2, 2]


def test_closing_delivers_what_is_queued_and_leaves_nothing() -> None:
    box = filled(Mode.ALL, 2)
    box.close(7)
    box.control(Word(0, 10), 0.0)
    assert box.take(0.0) == [Row(7, 1, 100), Row(7, 2, 100), Word(0, 10)]
    box.close(7)
    assert box.take(0.0) == []
    box.open(7, Mode.ALL, 0, 2, trades=True)
    box.close(7)
    assert (box.ready, box.next_due()) == (False, math.inf), "nothing has to be settled"


def test_closing_delivers_the_ticks_of_a_run() -> None:
    box = outbox()
    box.open(1, Mode.ALL, 0, 0, trades=True)
    box.open(2, Mode.ALL, 0, 0, trades=True)
    rows = [Row(1, 1, 10), Row(2, 1, 10), Row(1, 2, 10)]
    ticks: list[Tick[Item]] = [(row.sid, row.sseq, row, 0.0) for row in rows]
    for run in runs(ticks, size_of, None):
        box.put_run(run)
    box.close(1)
    box.open(1, Mode.ALL, 0, 7, trades=True)
    box.tick(1, 8, Row(1, 8, 10), 0.0)
    assert box.take(0.0) == [*rows, Row(1, 8, 10)]
    assert (box.queued_bytes, box.conflated, box.dropped, box.sent) == (0, 0, 0, 4)


def test_what_hz_held_back_goes_at_once_when_it_is_closed_and_only_once() -> None:
    box = outbox()
    box.open(7, Mode.HZ, 0.5, 0, trades=True)
    box.tick(7, 1, Row(7, 1, 10), 0.0)
    box.take(0.0)
    box.tick(7, 2, Row(7, 2, 10), 0.1)
    box.close(7)
    assert box.take(0.2) == [Row(7, 2, 10)]
    assert box.take(2.0) == []
    assert not box.ready


def test_what_was_shed_is_told_in_the_take_that_empties_it() -> None:
    box = outbox(100)
    for sid in (1, 2):
        box.open(sid, Mode.ALL, 0, 0, trades=True)
        box.tick(sid, 1, Row(sid, 1, 100), 0.0)
    assert box.take(0.0) == [Row(2, 1, 100), Lost(1, 1, 1, 1)]
    assert not box.ready


def test_losses_of_the_old_baseline_are_told_before_the_new_one() -> None:
    box = filled(Mode.ALL, 12)
    box.retune(7, Mode.ALL, 0, 12)
    box.control(Word(0, 10), 0.0)
    for sseq in range(13, 23):
        box.tick(7, sseq, Row(7, sseq, 100), 0.0)
    items = box.take(0.0)
    assert items[:2] == [Lost(7, 1, 12, 12), Word(0, 10)]
    assert len(items) == 12


def test_a_thousand_outboxes_share_the_ticks() -> None:
    boxes = [outbox(1 << 20) for _ in range(1000)]
    ticks: list[Tick[Item]] = [(7, n, Row(7, n, 100), 0.0) for n in range(1, 1025)]
    for box in boxes:
        box.open(7, Mode.ALL, 0, 0, trades=True)
        for tick in ticks:
            box.put(tick)
    one = boxes[-1]
    assert all(mine is shared for mine, shared in zip(one._queue, ticks, strict=True))
    own = sum(
        sys.getsizeof(part)
        for part in (one, one._queue, one._front, one._states, one._states[7], one._waiting)
    )
    assert own < 12_000


def test_a_run_is_one_item_joined_once_for_everybody() -> None:
    def made() -> Outbox[bytes]:
        box: Outbox[bytes] = Outbox(
            size=len,
            lost=lambda *_: b"lost",
            queue_bytes=1000,
            max_age_s=10.0,
            max_age_latest_s=1.0,
        )
        box.open(1, Mode.ALL, 0, 0, trades=True)
        box.open(2, Mode.ALL, 0, 0, trades=True)
        return box

    one, other = made(), made()
    ticks: list[Tick[bytes]] = [(1, 1, b"a", 5.0), (2, 1, b"b", 5.0), (1, 2, b"c", 5.0)]
    (run,) = runs(ticks, len, b"".join)
    one.put_run(run)
    other.put_run(run)
    (first,), (second,) = one.take(5.0), other.take(5.0)
    assert first == b"abc"
    assert first is second
    assert one.sent == 3
    assert one.queued_bytes == 0
    assert one.take(5.0) == []
    assert not one.ready


@given(st.lists(st.integers(1, RUN_BYTES + 9), min_size=1, max_size=12))
def test_runs_hold_every_tick_in_order_and_fit_one_write(sizes: list[int]) -> None:
    ticks: list[Tick[Item]] = [
        (i % 3, i // 3, Row(i % 3, i // 3, size), 1.0) for i, size in enumerate(sizes)
    ]
    made = runs(list(ticks), size_of, None)
    assert [tick for run in made for tick in run.ticks] == ticks
    for run in made:
        assert run.size == sum(size_of(tick[2]) for tick in run.ticks)
        assert run.size <= RUN_BYTES or len(run.ticks) == 1
        seen: dict[int, list[int]] = {}
        for sid, sseq, _, _ in run.ticks:
            seen.setdefault(sid, []).append(sseq)
        assert run.spans == tuple((sid, s[0], s[-1]) for sid, s in seen.items())


def test_a_run_is_64_kib_at_most() -> None:
    def count(*sizes: int) -> int:
        ticks: list[Tick[Item]] = [(7, n, Row(7, n, size), 0.0) for n, size in enumerate(sizes)]
        return len(runs(ticks, size_of, None))

    assert [count(32_768, 32_768), count(32_768, 32_769), count(70_000, 1)] == [1, 2, 2]


def test_what_is_taken_of_a_broken_run_counts_what_it_is() -> None:
    box = outbox(100)
    box.open(7, Mode.ALL, 0, 0, trades=True)
    box.tick(7, 1, Row(7, 1, 100), 0.0)
    ticks: list[Tick[Item]] = [(7, n, Row(7, n, 10), 0.0) for n in (2, 3, 4)]
    (run,) = runs(ticks, size_of, None)
    box.put_run(run)
    # Not as one: its ticks come behind a loss.
    assert box.take(0.0, 21) == [Lost(7, 1, 1, 1), *(Row(7, n, 10) for n in (2, 3, 4))]


def test_a_tick_that_is_due_stands_before_what_comes_behind_it() -> None:
    box = outbox()
    box.open(7, Mode.HZ, 0.25, 0, trades=True)
    box.tick(7, 1, Row(7, 1, 10), 0.0)
    box.take(0.0)
    box.tick(7, 2, Row(7, 2, 10), 4.0)
    box.control(Word(0, 10), 4.0)
    assert box.take(4.0) == [Row(7, 2, 10), Word(0, 10)]


@pytest.mark.parametrize("sids", [10, 200])
def test_moved_entries_go_when_they_are_half_of_what_is_queued_and_not_sooner(sids: int) -> None:
    box = outbox(1 << 20)
    for sid in range(sids):
        box.open(sid, Mode.LATEST, 0, 0, trades=True)
    gone = 0
    for sseq in range(1, 30):
        for sid in range(sids):
            before, queued = box._void, len(box._queue)
            box.tick(sid, sseq, Row(sid, sseq, 10), 0.0)
            if box._void < before:
                gone += 1
                assert before + 1 > max(64, (queued + 1) // 2)
            else:
                assert box._void <= max(64, len(box._queue) // 2)
        box.control(Word(0, 0), 0.0)
    assert gone > 2


@pytest.mark.parametrize("age", [0.0, 10.0])
def test_who_keeps_up_needs_no_deque_and_no_other_list(age: float) -> None:
    box = outbox()
    box.open(7, Mode.ALL, 0, 0, trades=True)
    queue = box._queue
    for sseq in (1, 4):
        box.tick(7, sseq, Row(7, sseq, 10), 0.0)
        assert box.take(age) == [Row(7, sseq, 10)]
        ticks: list[Tick[Item]] = [(7, n, Row(7, n, 10), 0.0) for n in (sseq + 1, sseq + 2)]
        (run,) = runs(ticks, size_of, None)
        box.put_run(run)
        assert len(box.take(age)) == 2
        assert box._queue is queue
    assert type(queue) is list


def test_who_conflates_keeps_its_deque() -> None:
    box = outbox()
    box.open(7, Mode.LATEST, 0, 0, trades=True)
    queues = []
    for sseq in (1, 2):
        box.tick(7, sseq, Row(7, sseq, 10), 0.0)
        assert box.take(0.0) == [Row(7, sseq, 10)]
        queues.append(box._queue)
    assert queues[0] is queues[1]
