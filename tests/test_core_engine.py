"""The engine: what comes in decides what is done and told, in one step and in one order."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import attrs
import pytest
from hypothesis import given, settings, strategies as st

from kisfeed.config import Session
from kisfeed.core import engine
from kisfeed.core.connection import (
    Close,
    Dial,
    DialFailure,
    FetchKey,
    Reason,
    SaveHygiene,
    State,
)
from kisfeed.core.engine import Count, SendRegistration, SendText
from kisfeed.core.subscriptions import SubResult, SubSpec
from kisfeed.errors import UnknownTopic
from kisfeed.kfp import codec, events
from kisfeed.kfp.events import Gap, Raw, Status, Trade
from kisfeed.kfp.messages import Code, Data, ErrorCode, Mode, Stream, Type
from kisfeed.kis import server
from kisfeed.kis.codes import Meaning
from kisfeed.kis.control import AesKey
from kisfeed.schemas import load
from kisfeed.simulator.faults import GARBAGE
from tests.engine_bench import (
    AES,
    BOOK,
    CATALOGUE,
    CODES,
    NOTICE,
    TRADE,
    WALL,
    Bench,
    exchange_hours,
    gaps,
    notice,
    record,
    rows_of,
    statuses,
    trade,
)

if TYPE_CHECKING:
    from kisfeed.core.streams import Subscriber

KEY = ("H0STCNT0", "005930")
BOOK_KEY = ("H0STASP0", "005930")
NOTICE_KEY = ("H0STCNI0", "someone")
PING = server.pingpong("20261120110000")


def book() -> list[str]:
    return record("H0STASP0", MKSC_SHRN_ISCD="005930")


def symbols(count: int) -> list[str]:
    return [f"trade.krx.{100_000 + n}" for n in range(count)]


# From a subscription to a tick.


def test_a_subscription_leads_to_one_dial_and_one_registration() -> None:
    bench = Bench()
    began = bench.rts
    subscriber = bench.subscribe(TRADE)
    assert bench.sent == [(True, KEY)]
    bench.rows(trade(100))
    told = bench.take(subscriber)
    assert told[0] == Status(TRADE, 1, Stream.RECOVERING, Data.NONE, Code.PENDING, began, "")
    (row,) = rows_of(told)
    assert isinstance(row, Trade)
    assert (row.px, row.qty, row.cum_qty, row.sseq) == (71_000, 10, 100, 1)
    states = [e.state for e in told if isinstance(e, events.Session)]
    assert states == ["CONNECTING", "AUTHENTICATED", "SUBSCRIBED", "STREAMING"]


def test_a_session_is_told_before_any_row_of_its_epoch() -> None:
    bench = Bench()
    subscriber = bench.subscribe(TRADE)
    bench.rows(trade(100))
    bench.lose()
    bench.reconnect()
    bench.rows(trade(200))
    epoch = 0
    row_epochs: list[int] = []
    for event in bench.take(subscriber):
        if isinstance(event, events.Session):
            epoch = event.epoch
        elif isinstance(event, Trade):
            row_epochs.append(epoch)
    assert row_epochs == [1, 2]


def test_the_answer_comes_before_any_frame_of_its_sids() -> None:
    bench = Bench()
    bench.subscribe(TRADE)
    bench.rows(trade(100))
    second = bench.subscriber(encode=True)

    def reply(results: list[SubResult]) -> bytes:
        return codec.frame(Type.RES, 7, {"sids": [r.sid for r in results]})

    bench.engine.subscribe(second, [SubSpec(TRADE), SubSpec(BOOK)], bench.at(), reply)
    bench.rows(trade(110))
    decoder = codec.Decoder()
    messages = decoder.feed(b"".join(second.outbox.take(bench.now)))
    assert messages[0] == [Type.RES, 7, {"sids": [1, 2]}]
    # The image has sseq q, the tick behind it q + 1.
    assert [m[:3] for m in messages if m[0] in {Type.IMAGE, Type.TICK}] == [
        [Type.IMAGE, 1, 1],
        [Type.TICK, 1, 2],
    ]


def test_an_image_is_left_out_where_it_is_not_wanted() -> None:
    bench = Bench()
    bench.subscribe(TRADE)
    bench.rows(trade(100))
    second = bench.subscribe(TRADE, image=False)
    assert [type(e).__name__ for e in bench.take(second)] == ["Status"]


def test_programs_and_subscriptions_in_process_get_the_same_rows() -> None:
    bench = Bench()
    inside = bench.subscribe(TRADE)
    outside = bench.subscriber(encode=True)
    bench.engine.subscribe(outside, [SubSpec(TRADE)], bench.at())
    bench.rows(trade(100), trade(110))
    bench.rows(trade(140))
    messages = codec.Decoder().feed(b"".join(outside.outbox.take(bench.now)))
    ticks = [m for m in messages if m[0] == Type.TICK]
    got = rows_of(bench.take(inside))
    assert [(t[2], t[6], t[7], t[8]) for t in ticks] == [
        (r.sseq, r.px, r.qty, r.cum_qty) for r in got if isinstance(r, Trade)
    ]
    assert [s.conn for s in bench.engine.take_dirty()] == [1, 2]
    assert bench.engine.take_dirty() == []


# Interest.


def test_one_topic_twice_is_one_interest() -> None:
    bench = Bench()
    subscriber = bench.subscribe(TRADE, TRADE)
    bench.engine.subscribe(subscriber, [SubSpec(TRADE)], bench.at())
    bench.settle()
    assert bench.sent == [(True, KEY)]
    bench.rows(trade(100))
    assert len(rows_of(bench.take(subscriber))) == 1
    assert bench.engine.unsubscribe(subscriber, [1], bench.at()) == [1]
    assert not bench.engine.interest.any_active()
    bench.rows(trade(110))
    assert rows_of(bench.take(subscriber)) == []


def test_unsubscribing_names_only_what_was_subscribed() -> None:
    bench = Bench()
    subscriber = bench.subscribe(TRADE, BOOK)
    assert bench.engine.unsubscribe(subscriber, [2, 2, 9], bench.at()) == [2]
    assert bench.engine.unsubscribe(subscriber, None, bench.at()) == [1]
    assert bench.engine.unsubscribe(subscriber, None, bench.at()) == []
    bench.settle()
    # A warm registration stays, and a session inside hours too.
    assert bench.sent == [(True, KEY), (True, BOOK_KEY)]
    assert bench.closes() == []


def test_who_goes_takes_its_interest_along() -> None:
    bench = Bench()
    one, two = bench.subscribe(TRADE), bench.subscribe(TRADE)
    bench.engine.detach(one, bench.at())
    assert bench.engine.interest.any_active()
    bench.engine.detach(two, bench.at())
    assert not bench.engine.interest.any_active()
    assert bench.engine.subscriptions.clients(bench.now) == []


def test_retuning_gives_a_new_baseline_and_keeps_what_is_not_named() -> None:
    bench = Bench()
    subscriber = bench.subscribe(TRADE, mode=Mode.HZ, hz=2.0, prio=3)
    bench.rows(trade(100))
    assert bench.engine.retune(subscriber, 1, bench.at(), prio=7) == 1
    (slot,) = bench.engine.slots(bench.now)
    assert slot["priority"] == 7
    assert bench.engine.retune(subscriber, 1, bench.at(), mode=Mode.ALL) == 1
    bench.rows(trade(110), trade(120))
    assert [r.sseq for r in rows_of(bench.take(subscriber))][-2:] == [2, 3]
    assert bench.engine.retune(subscriber, 9, bench.at(), prio=1) is None


def test_an_unknown_topic_is_refused_beside_good_ones() -> None:
    bench = Bench()
    subscriber = bench.subscriber()
    results = bench.engine.subscribe(
        subscriber, [SubSpec("trade.mars.1"), SubSpec(TRADE), SubSpec("x")], bench.at()
    )
    assert [(r.sid, r.code) for r in results] == [
        (None, ErrorCode.UNKNOWN_TOPIC),
        (1, Code.PENDING),
        (None, ErrorCode.UNKNOWN_TOPIC),
    ]
    assert results[0].stream == Stream.CLOSED


def test_a_raw_topic_shares_its_registration_with_the_typed_one() -> None:
    bench = Bench()
    raw = "raw.H0STCNT0.005930"
    subscriber = bench.subscribe(TRADE, raw)
    late = bench.subscribe(raw)
    assert bench.sent == [(True, KEY)]
    assert statuses(bench.take(late), raw)[0].stream == Stream.OPEN
    bench.rows(trade(100))
    typed, untouched = rows_of(bench.take(subscriber))
    assert isinstance(typed, Trade)
    assert isinstance(untouched, Raw)
    assert untouched.fields == tuple(trade(100))
    assert bench.engine.fields("raw.H0STCNT0")[:2] == ["MKSC_SHRN_ISCD", "STCK_CNTG_HOUR"]
    assert bench.engine.fields("trade.v1")[:3] == ["px", "qty", "cum_qty"]
    assert bench.engine.fields("notice.v1") == []
    bench.engine.unsubscribe(subscriber, None, bench.at())
    assert bench.engine.interest.any_active()


def test_a_topic_beyond_the_last_slot_is_told_and_takes_no_slot() -> None:
    bench = Bench(cap=3)
    bench.subscribe(*symbols(3), prio=5)
    late = bench.subscribe("trade.krx.999998")
    assert bench.engine.slots_map() == {"cap": 3, "used": 3, "reserved": 0}
    assert [s.code for s in statuses(bench.take(late), "trade.krx.999998")][-1] == Code.OVER_LIMIT
    assert len(bench.sent) == 3


def test_who_wants_no_polled_rows_is_refused_with_the_holders_names() -> None:
    bench = Bench(cap=2)
    bench.subscribe(*symbols(2), prio=5)
    subscriber = bench.subscriber()
    spec = SubSpec("trade.krx.999998", poll=False)
    # Asked for twice in one message, so refused twice.
    refused = bench.engine.subscribe(subscriber, [spec, spec], bench.at())
    assert [(r.sid, r.code) for r in refused] == [(None, ErrorCode.OVER_LIMIT)] * 2
    assert all(topic in refused[0].text for topic in symbols(2))
    assert subscriber.streams == {}
    bench.settle()
    assert len(bench.sent) == 2
    # With a better claim there is a slot.
    spec = attrs.evolve(spec, prio=9)
    assert bench.engine.subscribe(subscriber, [spec], bench.at())[0].sid is not None


def test_a_better_topic_takes_a_slot_and_its_loser_is_told_and_comes_back() -> None:
    bench = Bench(cap=1)
    loser = bench.subscribe(TRADE)
    bench.rows(trade(100))
    bench.wait(61)
    winner = bench.subscribe("trade.krx.000660", prio=9)
    bench.rows(trade(500, symbol="000660"))
    assert [s.code for s in statuses(bench.take(loser))][-1] == Code.PREEMPTED
    assert len(rows_of(bench.take(winner))) == 1
    late_before = bench.engine.counts[Count.LATE]
    bench.rows(trade(150))  # KIS sends on for a moment
    assert bench.engine.counts[Count.LATE] == late_before + 1
    bench.wait(61)
    bench.engine.detach(winner, bench.at())
    bench.settle()
    bench.wait(61)
    bench.rows(trade(300))
    told = bench.take(loser)
    assert Code.PROMOTED in [s.code for s in statuses(told)]
    (gap,) = gaps(told)
    assert (gap.missed_qty, gap.code) == (300 - 100 - 10, Code.PROMOTED)
    assert [r.sseq for r in rows_of(told)] == [2]


# Gaps.


def test_a_break_is_told_before_the_row_that_ends_it() -> None:
    bench = Bench()
    subscriber = bench.subscribe(TRADE, BOOK)
    bench.rows(trade(100))
    bench.frames(server.data_frame("H0STASP0", [book()]))
    before = bench.rts
    bench.take(subscriber)
    bench.lose()
    bench.reconnect()
    bench.rows(trade(250, qty=30))
    bench.frames(server.data_frame("H0STASP0", [book()]))
    told = [e for e in bench.take(subscriber) if isinstance(e, Gap | events.Row)]
    assert [type(e).__name__ for e in told] == ["Gap", "Trade", "Gap", "Book"]
    gap, row, book_gap, _ = told
    assert isinstance(gap, Gap)
    assert isinstance(book_gap, Gap)
    assert isinstance(row, Trade)
    assert (gap.missed_qty, gap.code) == (120, Code.GAP_DETECTED)
    assert (gap.last_sseq, gap.next_sseq) == (1, 2) == (row.sseq - 1, row.sseq)
    assert (gap.from_rts, gap.to_rts) == (before, row.rts)
    assert row.after_gap
    assert book_gap.missed_qty is None
    counts = bench.engine.counts
    assert (counts[Count.GAPS], counts[Count.MISSED_QTY], counts[Count.JUMPS]) == (2, 120, 0)


def test_a_jump_inside_a_session_is_told_and_counted_apart() -> None:
    bench = Bench()
    subscriber = bench.subscribe(TRADE)
    bench.rows(trade(100), trade(160, qty=20))
    told = bench.take(subscriber)
    (gap,) = gaps(told)
    assert (gap.missed_qty, gap.code) == (40, Code.VOLUME_JUMP)
    assert told.index(gap) == told.index(rows_of(told)[1]) - 1
    counts = bench.engine.counts
    assert (counts[Count.JUMPS], counts[Count.JUMPED_QTY]) == (1, 40)
    assert (counts[Count.GAPS], counts[Count.MISSED_QTY]) == (0, 0)


def test_a_correction_and_a_new_day_are_no_gaps() -> None:
    bench = Bench()
    subscriber = bench.subscribe(TRADE)
    bench.rows(trade(100), trade(90), trade(5, qty=5, BSOP_DATE="20261121"))
    told = bench.take(subscriber)
    assert gaps(told) == []
    assert [r.correction for r in rows_of(told)] == [False, True, False]


@settings(max_examples=50)
@given(st.lists(st.sampled_from(["row", "hidden", "lose", "reset"]), min_size=1, max_size=25))
def test_received_and_missed_add_up_to_what_was_traded(plan: list[str]) -> None:
    bench = Bench(rules=Session(min_lifetime_s=0.0))
    subscriber = bench.subscribe(TRADE)
    cum = 1000
    bench.rows(trade(cum))
    for number, step in enumerate([*plan, "row"], 1):
        qty = number * 7
        if step in {"row", "hidden"}:
            cum += qty
            if step == "row":
                bench.rows(trade(cum, qty=qty))
        else:
            bench.lose(Reason.LOST if step == "lose" else Reason.RESET)
            bench.reconnect()
    told = bench.take(subscriber)
    first, *rest = [r for r in rows_of(told) if isinstance(r, Trade)]
    received = sum(r.qty or 0 for r in rest)
    missed = sum(g.missed_qty or 0 for g in gaps(told))
    assert first.cum_qty is not None
    assert first.cum_qty + received + missed == cum
    assert [r.sseq for r in [first, *rest]] == list(range(1, len(rest) + 2))
    counts = bench.engine.counts
    assert counts[Count.MISSED_QTY] + counts[Count.JUMPED_QTY] == missed


# States.


def test_a_lost_session_makes_everything_suspect_and_each_topic_tells_its_recovery() -> None:
    bench = Bench()
    subscriber = bench.subscribe(TRADE)
    bench.rows(trade(100))
    bench.take(subscriber)
    bench.lose()
    told = bench.take(subscriber)
    assert statuses(told) == []
    down = [e for e in told if isinstance(e, events.Session)]
    assert down[-1].data == Data.SUSPECT
    assert down[-1].state == State.RECONNECT_BACKOFF
    image = bench.engine.subscriptions.image(TRADE, bench.at())[0]
    assert (image.stream, image.data) == (Stream.RECOVERING, Data.SUSPECT)
    bench.reconnect()
    told = bench.take(subscriber)
    assert [(s.stream, s.data, s.code) for s in statuses(told)] == [
        (Stream.OPEN, Data.OK, Code.REALTIME_RESUMED)
    ]
    assert [e.data for e in told if isinstance(e, events.Session)][-1] == Data.OK


def test_a_stalled_feed_is_told_and_its_next_row_repairs_it() -> None:
    bench = Bench()
    subscriber = bench.subscribe(TRADE, "trade.krx.000660")
    for second in range(200):
        bench.rows(trade(100 + second * 10))
        if second < 20:
            bench.rows(trade(100 + second * 10, symbol="000660"))
        bench.answers[("H0STCNT0", "000660")] = None  # nor does KIS answer for it
        bench.wait(1)
    told = bench.take(subscriber)
    quiet = statuses(told, "trade.krx.000660")
    assert (quiet[-1].data, quiet[-1].code) == (Data.SUSPECT, Code.RESYNCING)
    assert all(s.data != Data.SUSPECT for s in statuses(told))
    bench.rows(trade(2000, symbol="000660"))
    told = bench.take(subscriber)
    assert [(s.data, s.code) for s in statuses(told, "trade.krx.000660")] == [
        (Data.OK, Code.REALTIME_RESUMED)
    ]
    assert bench.engine.connection.epoch == 1


def test_a_silent_link_is_suspect_and_one_byte_heals_it() -> None:
    bench = Bench()
    subscriber = bench.subscribe(TRADE)
    bench.rows(trade(100))
    bench.answers[KEY] = None
    bench.take(subscriber)
    bench.wait(46)
    silent = [e for e in bench.take(subscriber) if isinstance(e, events.Session)]
    assert (silent[-1].state, silent[-1].data) == (State.DEGRADED, Data.SUSPECT)
    bench.now += 1
    assert bench.engine.heard(bench.now) is True
    assert bench.engine.heard(bench.now) is False
    told = bench.take(subscriber)
    healed = [e for e in told if isinstance(e, events.Session)]
    assert (healed[-1].state, healed[-1].data) == (State.STREAMING, Data.OK)
    assert abs(healed[-1].since_ts - bench.rts) < 1e6
    assert [s.code for s in statuses(told)] == [Code.REALTIME_RESUMED]


def test_a_dead_link_is_aborted_and_dialled_again() -> None:
    bench = Bench()
    bench.subscribe(TRADE)
    bench.rows(trade(100))
    bench.answers[KEY] = None
    bench.wait(120)
    (close,) = bench.closes()
    assert close == Close(1, Reason.LINK_DEAD, abort=True)


def test_stopping_closes_what_stands() -> None:
    bench = Bench()
    bench.subscribe(TRADE)
    bench.engine.stop(bench.at())
    bench.settle()
    assert bench.closes() == [Close(1, Reason.STOPPED, abort=False)]
    assert bench.engine.connection.state is State.IDLE


def test_nothing_dials_after_a_stop() -> None:
    bench = Bench(pinned=(TRADE,))
    bench.settle()
    bench.engine.stop(bench.at())
    bench.subscribe(BOOK)
    bench.engine.reconnect(bench.at())
    bench.wait(3600)
    assert bench.engine.connection.state is State.IDLE
    assert bench.engine.connection.epoch == 1


def test_pinned_topics_are_held_without_any_program() -> None:
    bench = Bench(pinned=(TRADE,))
    bench.settle()
    assert bench.sent == [(True, KEY)]
    bench.engine.pin(TRADE, bench.at(), pinned=False)
    bench.engine.pin(BOOK, bench.at(), pinned=True)
    bench.settle()
    assert bench.sent[1:] == [(True, BOOK_KEY)]
    with pytest.raises(UnknownTopic):
        bench.engine.pin("trade.mars.1", bench.at(), pinned=True)


# PINGPONG.


def test_a_pingpong_is_echoed_as_it_is_and_first() -> None:
    bench = Bench()
    bench.subscribe(TRADE)
    bench.subscribe(BOOK, settle=False)  # a registration is waiting to go out
    bench.engine.on_frames([PING.encode()], bench.rts, bench.now)
    first, *rest = bench.engine.take_actions()
    assert first == SendText(1, PING)
    assert any(isinstance(action, SendRegistration) for action in rest)
    assert bench.engine.counts[Count.PINGPONGS] == 1


# What is not delivered.


def test_a_row_nobody_registered_is_counted_and_not_delivered() -> None:
    bench = Bench()
    subscriber = bench.subscribe(TRADE)
    bench.rows(trade(100, symbol="000660"))
    bench.frames(server.data_frame("H0STASP0", [book()]))
    assert rows_of(bench.take(subscriber)) == []
    assert bench.engine.counts[Count.LATE] == 2


def test_data_before_its_answer_is_proof_enough() -> None:
    bench = Bench()
    bench.answers[KEY] = None
    subscriber = bench.subscribe(TRADE)
    bench.rows(trade(100))
    told = bench.take(subscriber)
    assert [r.sseq for r in rows_of(told)] == [1]
    assert statuses(told)[-1].stream == Stream.OPEN
    assert told.index(statuses(told)[-1]) < told.index(rows_of(told)[0])
    bench.ack(KEY, server.SUBSCRIBED)
    assert bench.engine.registrations.settled


def test_frames_behind_the_end_of_their_session_are_not_delivered() -> None:
    bench = Bench()
    subscriber = bench.subscribe(TRADE)
    bench.rows(trade(100))
    bench.take(subscriber)
    stranger = server.build_ack(("(null)", ""), server.IN_USE)
    bench.frames(stranger, PING, server.data_frame("H0STCNT0", [trade(110)]))
    told = bench.take(subscriber)
    assert rows_of(told) == []
    assert bench.engine.counts[Count.LATE] == 2
    assert [e.code for e in told if isinstance(e, events.Session)][-1] == Code.IN_USE
    bench.settle()
    assert bench.echoes() == []
    assert [c.reason for c in bench.closes()] == [Reason.IN_USE]


@pytest.mark.parametrize("piece", GARBAGE, ids=range(len(GARBAGE)))
def test_garbage_is_counted_and_harms_nobody(piece: str | bytes) -> None:
    bench = Bench()
    subscriber = bench.subscribe(TRADE)
    state = bench.engine.connection.state
    bench.frames(piece)
    counts = bench.engine.counts
    assert counts[Count.REJECTED] + counts[Count.LATE] + counts[Count.ACKS] >= 2
    assert sum(bench.engine.rejects.values()) == counts[Count.REJECTED]
    assert bench.engine.connection.state is state
    bench.rows(trade(100))
    assert len(rows_of(bench.take(subscriber))) == 1


@given(st.lists(st.one_of(st.binary(max_size=60), st.text(max_size=60).map(str.encode))))
def test_no_bytes_stop_the_engine(pieces: list[bytes]) -> None:
    bench = Bench()
    subscriber = bench.subscribe(TRADE)
    bench.frames(*pieces)
    bench.rows(trade(100))
    assert len(rows_of(bench.take(subscriber))) == 1


def test_a_forged_notice_is_rejected_and_counted() -> None:
    bench = Bench()
    subscriber = bench.subscribe(NOTICE)
    bench.frames(server.data_frame("H0STCNI0", [notice()]))
    bench.frames(server.data_frame("H0STCNI0", [notice()], AesKey(key=b"x" * 32, iv=b"y" * 16)))
    bench.frames(server.data_frame("H0STCNT0", [trade(1)], AES))
    assert not [e for e in bench.take(subscriber) if isinstance(e, events.Notice)]
    assert bench.engine.counts[Count.REJECTED] == 3
    assert bench.engine.rejects == {"forged": 2, "undecryptable": 1}


def test_a_longer_record_is_read_and_told_once_a_tr_and_width() -> None:
    bench = Bench()
    subscriber = bench.subscribe(TRADE)
    other = bench.subscribe("trade.krx.000660")
    longest = CATALOGUE.trs["H0STCNT0"].longest.width
    for cum in (100, 110):
        bench.rows([*trade(cum), *["7"] * (longest + 3 - len(trade(cum)))])
    bench.rows([*trade(120), *["7"] * (longest + 5 - len(trade(120)))])
    told = bench.take(subscriber)
    assert [r.cum_qty for r in rows_of(told) if isinstance(r, Trade)] == [100, 110, 120]
    drifts = [s for s in statuses(told) if s.code == Code.SCHEMA_DRIFT]
    assert [str(longest + n) in s.text for n, s in zip((3, 5), drifts, strict=True)] == [True] * 2
    assert all(s.data == Data.OK for s in drifts)
    others = statuses(bench.take(other), "trade.krx.000660")
    assert [s.code for s in others].count(Code.SCHEMA_DRIFT) == 2
    assert bench.engine.counts[Count.DRIFTS] == 2


def test_values_that_cannot_be_read_are_counted() -> None:
    bench = Bench()
    subscriber = bench.subscribe(TRADE)
    bench.rows(trade(100, STCK_PRPR="x", ASKP1="1.5"))
    (row,) = rows_of(bench.take(subscriber))
    assert isinstance(row, Trade)
    assert (row.px, row.ask) == (None, None)
    counts = bench.engine.status(bench.now)["counts"]
    assert isinstance(counts, dict)
    assert counts["unreadable"] + counts["inexact"] == 2


# Answers.


@pytest.mark.parametrize("code", [entry["code"] for entry in load("kis/codes.json")["websocket"]])
@pytest.mark.parametrize("asked", [True, False])
def test_every_code_is_survived_asked_for_or_not(code: str, asked: bool) -> None:
    bench = Bench()
    good = bench.subscribe("trade.krx.000660")
    meaning = CODES.meaning(code, server.rt_cd(code))
    if asked:
        bench.answers[KEY] = code
        bench.subscribe(TRADE)
    else:
        for key in (KEY, ("H0STCNT0", "000660"), ("(null)", ""), ("", ""), ("H0NOSUCH", "1")):
            if bench.engine.connection.live:
                bench.ack(key, code)
        bench.settle()
    assert bench.engine.counts[Count.ACKS] >= 2
    if bench.engine.connection.live:
        before = len(rows_of(bench.take(good)))
        bench.rows(trade(100, symbol="000660"))
        assert len(rows_of(bench.take(good))) == before + 1
    else:
        assert meaning is Meaning.IN_USE
    bench.wait(30)
    assert json.dumps(bench.engine.status(bench.now))
    assert json.dumps(bench.engine.slots(bench.now))


def test_a_refusal_for_good_closes_the_topic_with_kis_own_words() -> None:
    bench = Bench()
    bench.answers[KEY] = "OPSP8992"
    subscriber = bench.subscribe(TRADE)
    last = statuses(bench.take(subscriber))[-1]
    assert (last.stream, last.code) == (Stream.CLOSED, Code.REJECTED)
    assert last.text.startswith("OPSP8992 ")
    for _ in range(100):
        bench.wait(10)
        bench.frames(PING)
    assert bench.sent == [(True, KEY)]
    late = bench.subscribe(TRADE)
    assert statuses(bench.take(late))[0].stream == Stream.CLOSED
    assert bench.engine.connection.epoch == 1


def test_a_refused_key_is_fetched_anew_and_the_registration_repeated() -> None:
    bench = Bench()
    bench.subscribe("trade.krx.000660")
    bench.rows(trade(100, symbol="000660"))
    bench.answers[KEY] = "OPSP0011"
    subscriber = bench.subscribe(TRADE, settle=False)
    bench.perform()
    del bench.answers[KEY]
    bench.settle()
    assert bench.sent[-2:] == [(True, KEY), (True, KEY)]
    assert statuses(bench.take(subscriber))[-1].stream == Stream.OPEN
    assert bench.closes() == []


# Notices.


def test_notices_are_opened_numbered_and_told_to_who_asked() -> None:
    bench = Bench(hts_id="someone")
    trader, reader = bench.subscribe(NOTICE), bench.subscribe(TRADE)
    assert bench.sent[0] == (True, NOTICE_KEY)
    bench.rows(notice("1"), tr_id="H0STCNI0")
    bench.rows(notice("2"), tr_id="H0STCNI0")
    got = [e for e in bench.take(trader) if isinstance(e, events.Notice)]
    assert [n.nseq for n in got] == [1, 2]
    assert got[0].topic == NOTICE
    assert not [e for e in bench.take(reader) if isinstance(e, events.Notice)]


def test_notices_of_the_day_are_sent_again_after_a_number() -> None:
    bench = Bench()
    bench.subscribe(NOTICE)
    for order in ("1", "2", "3"):
        bench.rows(notice(order), tr_id="H0STCNI0")

    def numbers(after: int | None) -> list[int]:
        told = bench.take(bench.subscribe(NOTICE, after=after))
        return [e.nseq for e in told if isinstance(e, events.Notice)]

    assert (numbers(0), numbers(2), numbers(None)) == ([1, 2, 3], [3], [])
    bench.now += 86_400
    bench.rows(notice("4"), tr_id="H0STCNI0")
    assert numbers(0) == [4]


def test_notices_that_may_be_missed_are_told_when_the_topic_is_held_again() -> None:
    bench = Bench()
    trader = bench.subscribe(NOTICE)
    bench.wait(70)
    bench.take(trader)
    bench.lose()
    bench.reconnect()
    (gap,) = gaps(bench.take(trader))
    assert (gap.topic, gap.missed_qty, gap.code) == (NOTICE, None, Code.GAP_DETECTED)
    assert gap.from_rts is not None
    assert gap.to_rts is not None
    assert gap.from_rts < gap.to_rts
    assert bench.engine.counts[Count.GAPS] == 1


@pytest.mark.parametrize("topic", [NOTICE, TRADE])
def test_what_had_no_row_yet_is_missed_over_a_link_that_died_silently_too(topic: str) -> None:
    bench = Bench()
    program = bench.subscribe(topic)
    bench.answers = {KEY: None, NOTICE_KEY: None}
    while bench.engine.connection.live:
        bench.wait(10)
    bench.answers = {}
    bench.reconnect()
    if topic == TRADE:
        bench.rows(trade(100))
    told = bench.take(program)
    assert Data.SUSPECT in {e.data for e in told if isinstance(e, events.Session)}
    assert {(gap.topic, gap.missed_qty) for gap in gaps(told)} == {(topic, None)}


AAPL = "trade.overseas.DNASAAPL"


def aapl(day: str, seoul: str, cum: int, qty: int) -> list[str]:
    """A trade of the New York day *day*, at the date and time *seoul*."""
    named = {"RSYM": "DNASAAPL", "TYMD": day, "KYMD": seoul[:8], "KHMS": seoul[8:]}
    return record("HDFSCNT0", **named, TVOL=cum, EVOL=qty)


def after_a_break(first: list[str], second: list[str], topic: str, tr_id: str) -> int | None:
    """The shares told as missed where a session was lost between two rows."""
    bench = Bench()
    program = bench.subscribe(topic)
    bench.rows(first, tr_id=tr_id)
    bench.lose()
    bench.wait(16 * 3600)
    assert bench.engine.connection.live
    bench.take(program)
    bench.rows(second, tr_id=tr_id)
    (gap,) = gaps(bench.take(program))
    return gap.missed_qty


def test_one_date_in_seoul_is_two_trading_days_in_new_york() -> None:
    night = aapl("20261119", "20261120050000", 1000, 10)
    evening = aapl("20261120", "20261120233000", 5000, 10)
    assert after_a_break(night, evening, AAPL, "HDFSCNT0") is None


def test_midnight_in_seoul_ends_no_trading_day_in_new_york() -> None:
    bench = Bench()
    program = bench.subscribe(AAPL)
    bench.rows(aapl("20261119", "20261119235959", 1000, 10), tr_id="HDFSCNT0")
    bench.rows(aapl("20261119", "20261120000000", 1510, 10), tr_id="HDFSCNT0")
    assert [(g.missed_qty, g.code) for g in gaps(bench.take(program))] == [(500, Code.VOLUME_JUMP)]


def future(cum: int, qty: int) -> list[str]:
    return record("H0IFCNT0", FUTS_SHRN_ISCD="A05612", ACML_VOL=cum, LAST_CNQN=qty)


def test_a_record_without_a_date_counts_on_the_day_it_was_received() -> None:
    told = after_a_break(future(1000, 10), future(5000, 10), "trade.idxfut.A05612", "H0IFCNT0")
    assert told is None, "another day"


def test_a_night_of_futures_is_one_trading_day() -> None:
    bench = Bench()
    bench.now += 12 * 3600 + 59 * 60 - 1000  # 23:59
    night = "trade.nightfut.101W9000"
    program = bench.subscribe(night)
    for cum in (1000, 1510):
        row = record("H0MFCNT0", FUTS_SHRN_ISCD="101W9000", ACML_VOL=cum, LAST_CNQN=10)
        bench.rows(row, tr_id="H0MFCNT0")
        bench.now += 120
    assert [g.missed_qty for g in gaps(bench.take(program))] == [500]


def quiet_book(*, forgotten: bool) -> tuple[Bench, list[events.Event]]:
    """A book that had a row, then none for long enough to be asked about, then one."""
    bench = Bench()
    program = bench.subscribe(TRADE, BOOK)
    bench.rows(book(), tr_id="H0STASP0")
    if forgotten:
        del bench.registered[BOOK_KEY]
    for second in range(200):
        bench.rows(trade(100 + second * 10))
        bench.wait(1)
    assert bench.sent[-1] == (True, BOOK_KEY), "asked about"
    bench.rows(book(), tr_id="H0STASP0")
    return bench, bench.take(program)


def test_a_registration_that_kis_had_let_go_and_takes_anew_is_a_gap() -> None:
    bench, seen = quiet_book(forgotten=True)
    assert [e["topic"] for e in told(bench, "registration_renewed")] == [BOOK]
    (gap,) = gaps(seen)
    assert (gap.topic, gap.missed_qty, gap.code) == (BOOK, None, Code.GAP_DETECTED)


def test_a_registration_taken_anew_is_a_gap_though_the_answer_comes_late() -> None:
    bench = Bench()
    program = bench.subscribe(TRADE, BOOK)
    bench.rows(book(), tr_id="H0STASP0")
    bench.answers[BOOK_KEY] = None
    for second in range(200):
        bench.rows(trade(100 + second * 10))
        bench.wait(1)
    assert bench.sent[-1] == (True, BOOK_KEY), "asked about"
    bench.ack(BOOK_KEY, server.SUBSCRIBED)
    bench.rows(book(), tr_id="H0STASP0")
    (gap,) = gaps(bench.take(program))
    assert gap.topic == BOOK


def test_a_registration_that_kis_still_has_is_no_gap() -> None:
    bench, seen = quiet_book(forgotten=False)
    assert told(bench, "registration_renewed") == []
    assert gaps(seen) == []


def test_notices_that_kis_had_let_go_are_missed_since_it_last_said_that_it_has_them() -> None:
    bench = Bench()
    trader = bench.subscribe(NOTICE)
    acked = bench.rts
    bench.wait(5)
    del bench.registered[NOTICE_KEY]
    bench.engine.recovered("fill", {}, bench.at())  # by the list of the day, and KIS is asked
    bench.settle()
    (gap,) = gaps(bench.take(trader))
    assert (gap.topic, gap.from_rts, gap.missed_qty) == (NOTICE, acked, None)
    assert gap.to_rts is not None
    assert gap.to_rts >= acked + 5 * 10**9
    assert bench.engine.counts[Count.GAPS] == 1


def test_an_already_subscribed_answer_does_not_replace_the_key_in_use() -> None:
    bench = Bench()
    trader = bench.subscribe(NOTICE)
    bench.ack(NOTICE_KEY, server.ALREADY_SUBSCRIBED, AesKey(key=b"x" * 32, iv=b"y" * 16))
    bench.rows(notice(), tr_id="H0STCNI0")
    assert [e.nseq for e in bench.take(trader) if isinstance(e, events.Notice)] == [1]


def test_keys_of_an_earlier_session_open_nothing() -> None:
    bench = Bench()
    trader = bench.subscribe(NOTICE)
    bench.lose()
    bench.answers[NOTICE_KEY] = None
    bench.reconnect()
    bench.rows(notice(), tr_id="H0STCNI0")
    assert not [e for e in bench.take(trader) if isinstance(e, events.Notice)]
    assert bench.engine.rejects == {"undecryptable": 1}


# What it says of itself.


def test_what_is_shown_is_json() -> None:
    bench = Bench(cap=2, hts_id="someone", pinned=(BOOK,))
    shown: list[object] = []

    def look() -> None:
        engine = bench.engine
        shown.extend(
            [
                engine.status(bench.now),
                engine.slots(bench.now),
                engine.subscriptions.clients(bench.now),
            ]
        )
        shown.extend([engine.session_map(), engine.slots_map()])

    look()
    bench.subscribe(TRADE, "trade.krx.000660", "status.krx.005930")
    bench.rows(trade(100))
    look()
    bench.lose()
    look()
    assert "NaN" not in json.dumps(shown)
    assert "Infinity" not in json.dumps(shown)


def test_an_image_is_given_without_an_interest() -> None:
    bench = Bench()
    result, frame = bench.engine.subscriptions.image(TRADE, bench.at())
    assert (result.sid, frame) == (1, None)
    bench.subscribe(TRADE)
    bench.rows(trade(100))
    result, frame = bench.engine.subscriptions.image(TRADE, bench.at())
    assert frame is not None
    assert codec.Decoder().feed(frame)[0][:3] == [Type.IMAGE, 1, 1]
    with pytest.raises(UnknownTopic):
        bench.engine.subscriptions.image("trade.mars.1", bench.at())


def test_a_suspended_machine_doubts_its_session() -> None:
    bench = Bench()
    subscriber = bench.subscribe(TRADE)
    bench.rows(trade(100))
    bench.take(subscriber)
    bench.engine.suspended(600.0, bench.at())
    told = [e for e in bench.take(subscriber) if isinstance(e, events.Session)]
    assert told[-1].data == Data.SUSPECT
    bench.settle()
    assert bench.sent[-1] == (True, KEY)  # probed, and answered
    assert bench.engine.connection.state is State.STREAMING


def told(bench: Bench, what: str) -> list[dict[str, object]]:
    return [entry for entry in bench.engine.history if entry["event"] == what]


def test_what_came_is_counted_by_kind() -> None:
    bench = Bench()
    bench.subscribe(TRADE)
    counts = bench.engine.counts
    before = counts[Count.FRAMES], counts[Count.RECORDS], counts[Count.ACKS]
    one, two = server.data_frame("H0STCNT0", [trade(10)]), [trade(20), trade(30)]
    bench.frames(one, server.data_frame("H0STCNT0", two))
    bench.ack(KEY, server.SUBSCRIBED)
    after = counts[Count.FRAMES], counts[Count.RECORDS], counts[Count.ACKS]
    assert after == (before[0] + 3, before[1] + 3, before[2] + 1)


def test_the_history_tells_states_and_refusals_in_plain_values() -> None:
    bench = Bench()
    bench.answers[KEY] = server.OVER_CAP
    bench.subscribe(TRADE)
    (refused, *_) = told(bench, "refused")
    assert (refused["tr_id"], refused["tr_key"], refused["msg_cd"]) == (*KEY, server.OVER_CAP)
    (first, *_) = told(bench, "state")
    assert (first["old"], first["new"], first["epoch"]) == ("IDLE", "CONNECTING", 0)
    assert isinstance(first["epoch"], int)
    bench.engine.suspended(2.5, bench.at())
    assert told(bench, "suspended")[0]["seconds"] == 2.5
    assert bench.engine.take_log()[-1] == bench.engine.history[-1]


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (True, True),
        (3, 3),
        (2.5, 2.5),
        (None, None),
        (float("inf"), None),
        (float("nan"), None),
        ((1, State.IDLE, [None]), [1, "IDLE", [None]]),
        (Reason.RESYNC, str(Reason.RESYNC)),
    ],
)
def test_details_of_an_event_are_json(value: object, plain: object) -> None:
    found = engine._plain(value)
    assert found == plain
    assert type(found) is type(plain)


@pytest.mark.parametrize(
    ("state", "reason", "code"),
    [
        (State.IDLE, Reason.STOPPED, Code.SESSION_CLOSED),
        (State.IDLE, Reason.BREAKER, Code.SESSION_CLOSED),
        (State.CONNECTING, Reason.RETRY, Code.PENDING),
        (State.CONNECTING, Reason.BREAKER, Code.PENDING),
        (State.AUTHENTICATED, Reason.OPENED, Code.PENDING),
        (State.SUBSCRIBED, Reason.SETTLED, Code.NONE),
        (State.STREAMING, Reason.DATA, Code.NONE),
        (State.STREAMING, Reason.IN_USE, Code.NONE),
        (State.DEGRADED, Reason.LINK_SILENT, Code.RESYNCING),
        (State.RECONNECT_BACKOFF, Reason.BREAKER, Code.PARKED),
        (State.RECONNECT_BACKOFF, Reason.BUDGET, Code.PARKED),
        (State.RECONNECT_BACKOFF, Reason.IN_USE, Code.IN_USE),
        (State.RECONNECT_BACKOFF, Reason.LOST, Code.UPSTREAM_DOWN),
    ],
)
def test_what_programs_are_told_of_a_state(state: State, reason: Reason, code: Code) -> None:
    assert engine._session_code(state, reason) is code


def verdict(bench: Bench) -> object:
    found = bench.engine.liveness.status(bench.now)["feeds"]
    assert isinstance(found, dict)
    return found["H0STCNT0.005930"]["verdict"]


def test_a_halt_is_read_from_the_rows_and_so_is_its_end() -> None:
    bench = Bench()
    bench.subscribe(TRADE)
    bench.rows(trade(10))
    assert verdict(bench) == "ok"
    bench.rows(trade(20, TRHT_YN="Y"))
    assert verdict(bench) == "halted"
    bench.wait(300.0)
    assert told(bench, "feed_stalled") == []
    bench.rows(trade(30))
    assert verdict(bench) == "ok"


def test_a_topic_that_lost_its_slot_is_not_called_stalled() -> None:
    bench = Bench(cap=1)
    bench.subscribe(TRADE)
    bench.wait(100.0)
    stalls = len(told(bench, "feed_stalled"))
    bench.subscribe(BOOK, prio=5)
    bench.wait(2.0)
    assert bench.sent[-1] == (True, BOOK_KEY)
    feeds = bench.engine.liveness.status(bench.now)["feeds"]
    assert isinstance(feeds, dict)
    assert list(feeds) == ["H0STASP0.005930"]
    assert len(told(bench, "feed_stalled")) == stalls


def test_who_waited_for_a_slot_is_told_when_one_is_coming() -> None:
    bench = Bench(cap=1)
    first = bench.subscribe(TRADE)
    second = bench.subscribe(BOOK)
    assert statuses(bench.take(second), BOOK)[-1].code is Code.OVER_LIMIT
    bench.wait(120.0)
    bench.take(second)
    bench.engine.unsubscribe(first, None, bench.at())
    assert statuses(bench.take(second), BOOK)[0].code is Code.PENDING
    bench.settle()
    assert statuses(bench.take(second), BOOK)[-1].data is Data.OK


def give_way(bench: Bench, mine: Subscriber, other: Subscriber, topic: str) -> None:
    """*mine* lets its trades go for *other*'s *topic* and takes them up again."""
    bench.wait(100.0)
    bench.engine.unsubscribe(mine, None, bench.at())
    bench.engine.subscribe(other, [SubSpec(topic)], bench.at())
    bench.wait(700.0)
    bench.engine.unsubscribe(other, None, bench.at())
    bench.engine.subscribe(mine, [SubSpec(TRADE)], bench.at())
    bench.settle()


def barren_loops(bench: Bench) -> object:
    breaker = bench.engine.connection.status(bench.now)["breaker"]
    assert isinstance(breaker, dict)
    return breaker["barren_loops"]


@pytest.mark.parametrize("quiet", [True, False])
def test_a_topic_given_up_without_data_and_taken_again_is_a_loop(*, quiet: bool) -> None:
    bench = Bench(cap=1)
    mine, other = bench.subscribe(TRADE), bench.subscriber()
    if not quiet:
        bench.rows(trade(10))
    give_way(bench, mine, other, BOOK)
    assert bench.sent[-1] == (True, KEY)
    assert barren_loops(bench) == int(quiet)


# The hours of the exchange.

MONDAY = WALL + (2 * 24 + 21) * 3_600 * 10**9 + 20 * 60 * 10**9  # 2026-11-23 08:20, pre-open
BEFORE_S = Session().before_open_s - Session().settle_timeout_s


def before_monday(seconds: float) -> Bench:
    return Bench(now=(MONDAY - WALL) / 1e9 - seconds, calendar=exchange_hours())


@pytest.mark.parametrize("answered", [True, False])
@pytest.mark.parametrize("early_s", [600.0, 613.0])  # with the looks at the market, and between
def test_once_before_the_open_it_is_told_whether_all_is_ready(
    early_s: float, *, answered: bool
) -> None:
    bench = before_monday(BEFORE_S + early_s)
    if not answered:
        bench.answers[KEY] = None
    bench.subscribe(TRADE)
    bench.wait(early_s - 1)
    words = ("ready", "not_ready")
    assert [e for e in bench.engine.history if e["event"] in words] == []
    bench.wait(130.0)
    (entry,) = [e for e in bench.engine.history if e["event"] in words]
    assert entry["event"] == ("ready" if answered else "not_ready")
    assert isinstance(entry["ts"], int)
    assert abs(entry["ts"] - MONDAY + BEFORE_S * 1e9) < 1e6


def test_silence_of_a_closed_market_is_nobodys_stall() -> None:
    bench = Bench(calendar=exchange_hours())
    bench.subscribe(TRADE)
    bench.rows(trade(10))
    assert verdict(bench) == "ok"
    bench.now += 10 * 3_600
    bench.engine.timer(bench.at())
    assert verdict(bench) == "closed"
    assert told(bench, "feed_stalled") == []


def test_what_is_newly_wanted_has_its_market_judged_at_once() -> None:
    bench = Bench()
    bench.subscribe(TRADE)
    assert bench.engine.next_deadline() > bench.now
    bench.subscribe("trade.nxt.005930", passive=True, settle=False)
    assert bench.engine.next_deadline() <= bench.now


def test_what_rows_say_of_the_market_is_looked_at_once_a_second() -> None:
    def phase_after(seconds: float, *rows_at: float) -> str:
        bench = Bench(calendar=exchange_hours())
        bench.subscribe(TRADE)
        start = bench.now
        for cum, at in enumerate(rows_at):
            bench.now = start + at
            bench.rows(trade(cum, NEW_MKOP_CLS_CODE="10"))
        return bench.calendar.phase("krx", WALL + int((start + seconds) * 1e9)).name

    # Such a row's word holds for 30 s.
    assert phase_after(29.9, 0.0) == "preopen"
    assert phase_after(30.1, 0.0) == "regular"
    assert phase_after(30.1, 0.0, 0.5) == "regular"
    assert phase_after(30.9, 0.0, 0.5, 1.0) == "preopen"
    assert phase_after(31.1, 0.0, 0.5, 1.0, 1.5) == "regular"
    assert phase_after(31.9, 0.0, 1.0, 2.0) == "preopen"


def test_a_row_that_does_not_say_ends_no_halt() -> None:
    bench = Bench()
    bench.subscribe(TRADE)
    bench.rows(trade(10, TRHT_YN="Y"))
    bench.rows(trade(20, TRHT_YN=""))
    assert verdict(bench) == "halted"
    bench.rows(trade(30, TRHT_YN="N"))
    bench.now += 2
    bench.rows(trade(40, TRHT_YN="Y"))
    assert verdict(bench) == "halted"


def test_a_halt_told_by_one_topic_is_one_of_all_topics_of_the_symbol_and_no_other() -> None:
    bench = Bench()
    bench.subscribe(TRADE, BOOK, "trade.krx.000660")
    bench.rows(trade(10, TRHT_YN="Y"))
    feeds = bench.engine.liveness.status(bench.now)["feeds"]
    assert isinstance(feeds, dict)
    assert {name: feed["verdict"] == "halted" for name, feed in feeds.items()} == {
        "H0STCNT0.005930": True,
        "H0STASP0.005930": True,
        "H0STCNT0.000660": False,
    }


# Doubts.

OTHER = "trade.krx.000660"
OTHER_KEY = ("H0STCNT0", "000660")


def state(bench: Bench) -> State:
    return bench.engine.connection.state


def shown(bench: Bench, topic: str = TRADE) -> tuple[int, int, str]:
    image = bench.engine.subscriptions.image(topic, bench.at())[0]
    return image.stream, image.data, image.code


def stall(bench: Bench, *topics: str, seconds: int = 200) -> None:
    """The first of three topics streams, *topics* do not any more."""
    for second in range(seconds):
        bench.rows(trade(100 + second * 10))
        if second < 20:
            for topic in topics:
                bench.rows(trade(100 + second * 10, symbol=topic[-6:]))
        bench.wait(1)


def test_a_doubtful_feed_is_shown_so_and_the_others_are_not() -> None:
    bench = Bench()
    bench.answers[OTHER_KEY] = None
    bench.subscribe(TRADE)
    del bench.answers[OTHER_KEY]
    bench.subscribe(OTHER)
    bench.answers[OTHER_KEY] = None
    stall(bench, OTHER)
    assert bench.engine.connection.reason is Reason.FEED_STALLED
    assert shown(bench, OTHER)[1:] == (Data.SUSPECT, Code.RESYNCING)
    assert shown(bench)[1] == Data.OK


def test_a_quiet_that_kis_answers_for_is_no_doubt_any_more() -> None:
    bench = Bench()
    subscriber = bench.subscribe(TRADE, OTHER)
    stall(bench, OTHER)
    told_of = [(s.data, s.code) for s in statuses(bench.take(subscriber), OTHER)]
    assert told_of[-2:] == [
        (Data.SUSPECT, Code.RESYNCING),
        (Data.OK, Code.REALTIME_RESUMED),
    ]
    assert state(bench) is State.STREAMING
    assert told(bench, "feed_ok")[0]["topic"] == OTHER


def test_of_two_doubtful_feeds_the_last_one_ends_the_doubt() -> None:
    bench = Bench()
    third = "trade.krx.000270"
    bench.subscribe(TRADE, OTHER, third)
    bench.answers[OTHER_KEY] = bench.answers["H0STCNT0", "000270"] = None
    stall(bench, OTHER, third)
    assert state(bench) is State.DEGRADED
    bench.rows(trade(9000, symbol="000660"))
    assert state(bench) is State.DEGRADED
    bench.rows(trade(9000, symbol="000270"))
    assert state(bench) is State.STREAMING
    assert shown(bench, third)[1:] == (Data.OK, Code.REALTIME_RESUMED)


def test_a_stall_ends_with_its_session() -> None:
    bench = Bench()
    subscriber = bench.subscribe(TRADE, OTHER)
    bench.answers[OTHER_KEY] = None
    stall(bench, OTHER)
    del bench.answers[OTHER_KEY]
    bench.lose()
    bench.reconnect()
    bench.take(subscriber)
    bench.engine.suspended(600.0, bench.at())
    assert shown(bench, OTHER)[1:] == (Data.SUSPECT, Code.RESYNCING)
    bench.settle()
    assert [s.code for s in statuses(bench.take(subscriber), OTHER)] == [Code.REALTIME_RESUMED]


def test_a_link_in_doubt_is_every_topics_until_it_is_heard() -> None:
    bench = Bench()
    subscriber = bench.subscribe(TRADE, OTHER)
    bench.rows(trade(100))
    bench.answers[KEY] = bench.answers[OTHER_KEY] = None
    bench.take(subscriber)
    bench.wait(46)
    assert [e for e in bench.take(subscriber) if isinstance(e, Status)] == []
    assert len(bench.sent) == 3, "and it is asked"
    for topic in (TRADE, OTHER):
        assert shown(bench, topic) == (Stream.OPEN, Data.SUSPECT, Code.RESYNCING)
    bench.engine.heard(bench.now)
    for topic in (TRADE, OTHER):
        assert shown(bench, topic) == (Stream.OPEN, Data.OK, Code.REALTIME_RESUMED)
    assert [s.topic for s in bench.take(subscriber) if isinstance(s, Status)] == [TRADE, OTHER]


def test_a_session_without_any_data_is_probed() -> None:
    bench = Bench()
    bench.subscribe(TRADE)
    bench.answers[KEY] = None
    for _ in range(4):
        bench.wait(15.2)
        bench.frames(PING)
    assert (bench.engine.connection.state, bench.engine.connection.reason) == (
        State.DEGRADED,
        Reason.NO_DATA,
    )
    assert bench.sent == [(True, KEY)] * 2
    assert bench.engine.session_map()["data"] == Data.OK, "each topic for itself"
    bench.ack(KEY, server.ALREADY_SUBSCRIBED)
    assert state(bench) is State.SUBSCRIBED


def test_where_every_topic_was_refused_no_data_is_missing() -> None:
    bench = Bench()
    bench.answers[KEY] = "OPSP8992"
    bench.subscribe(TRADE)
    for _ in range(7):
        bench.wait(10)
        bench.frames(PING)
    changes = [(e["new"], e["reason"]) for e in told(bench, "state")]
    assert (State.DEGRADED, Reason.NO_DATA) in changes
    assert state(bench) is State.SUBSCRIBED


def test_a_suspended_machine_says_so_and_not_that_the_link_is_silent() -> None:
    bench = Bench()
    bench.subscribe(TRADE)
    bench.engine.suspended(600.0, bench.at())
    assert bench.engine.connection.reason is Reason.SUSPENDED
    assert shown(bench)[1:] == (Data.SUSPECT, Code.RESYNCING)
    bench.now += 0.5
    assert bench.engine.heard(bench.now)
    assert shown(bench)[1:] == (Data.OK, Code.REALTIME_RESUMED)
    assert state(bench) is State.SUBSCRIBED


def test_pauses_go_on_while_the_machine_sleeps() -> None:
    bench = Bench()
    bench.subscribe(TRADE)
    bench.lose()
    assert state(bench) is State.RECONNECT_BACKOFF
    bench.engine.suspended(3_600.0, bench.at())
    assert state(bench) is State.CONNECTING


def test_a_byte_before_the_first_look_at_the_clock_is_dated() -> None:
    bench = Bench()
    subscriber = bench.subscribe(TRADE, settle=False)
    while bench.perform():
        pass
    bench.engine.suspended(600.0, bench.at())
    bench.now += 1
    assert bench.engine.heard(bench.now)
    healed = [e for e in bench.take(subscriber) if isinstance(e, events.Session)][-1]
    assert abs(healed.since_ts - bench.rts) < 1e6


# Dials and slots.


def test_a_dial_that_fails_is_followed_by_a_pause() -> None:
    bench = Bench()
    bench.subscribe(TRADE, settle=False)
    for action in bench.engine.take_actions():
        assert isinstance(action, FetchKey)
        bench.engine.key_ready(bench.at())
    (dial,) = [a for a in bench.engine.take_actions() if isinstance(a, Dial)]
    bench.engine.dial_failed(dial.epoch, DialFailure.REFUSED, bench.at())
    assert state(bench) is State.RECONNECT_BACKOFF
    bench.reconnect()
    assert bench.sent == [(True, KEY)]


def test_a_person_may_have_a_refused_topic_tried_again() -> None:
    bench = Bench()
    bench.answers[KEY] = "OPSP8992"
    subscriber = bench.subscribe(TRADE)
    del bench.answers[KEY]
    bench.engine.pin(TRADE, bench.at(), pinned=True)
    bench.settle()
    assert bench.sent == [(True, KEY)] * 2
    assert statuses(bench.take(subscriber))[-1].stream == Stream.OPEN


def test_a_better_claim_counts_at_once_and_the_loser_is_shown_with_its_winner() -> None:
    bench = Bench(cap=1)
    loser, winner = bench.subscribe(TRADE), bench.subscribe(BOOK)
    bench.wait(61)
    bench.engine.take_actions()
    bench.engine.retune(winner, 2, bench.at(), prio=9)
    assert bench.engine.take_actions() == [SendRegistration(1, KEY, False)]
    assert [s.code for s in statuses(bench.take(loser))][-1] == Code.PREEMPTED
    shown_as = {slot["topic"]: slot["by"] for slot in bench.engine.slots(bench.now)}
    assert shown_as[TRADE] == BOOK


def test_who_finds_no_slot_in_the_next_session_is_told_what_its_last_row_is_worth() -> None:
    bench = Bench(cap=1)
    subscriber = bench.subscribe(TRADE)
    bench.rows(trade(100))
    bench.lose()
    bench.take(subscriber)
    bench.subscribe("trade.krx.000660", "trade.krx.000270", prio=9, settle=False)
    bench.reconnect()
    last = statuses(bench.take(subscriber))[-1]
    assert (last.stream, last.data, last.code) == (
        Stream.RECOVERING,
        Data.SUSPECT,
        Code.OVER_LIMIT,
    )
    assert shown(bench, "trade.krx.000270")[1:] == (Data.NONE, Code.OVER_LIMIT)


def test_that_notices_come_again_is_said_to_who_asked() -> None:
    bench = Bench()
    resumed: list[None] = []
    bench.engine.notices_resumed = lambda: resumed.append(None)
    bench.subscribe(TRADE)
    assert resumed == []
    bench.subscribe(NOTICE)
    assert len(resumed) == 1
    bench.lose()
    bench.reconnect()
    assert len(resumed) == 2


def test_a_sessions_keys_go_with_it() -> None:
    bench = Bench()
    bench.subscribe(NOTICE)
    assert "H0STCNI0" in repr(bench.engine._keyring)
    bench.lose()
    assert repr(bench.engine._keyring) == "KeyRing([])"


# The short way.


def test_what_goes_the_short_way_is_counted_and_proves_the_session() -> None:
    bench = Bench()
    bench.subscribe(TRADE)
    counts = bench.engine.counts
    for cum in (100, 200, 300):
        bench.rows(*(trade(cum + n * 10) for n in range(4)))
    assert counts[Count.RECORDS] == 12
    bench.rows(trade(500))
    bench.engine.take_actions()
    bench.now += Session().min_lifetime_s
    bench.rows(trade(510))
    assert counts[Count.RECORDS] == 14
    assert [type(action) for action in bench.engine.take_actions()] == [SaveHygiene]


def test_beginnings_of_frames_are_known_up_to_a_bound() -> None:
    bench = Bench()
    bench.subscribe(TRADE)
    bench.rows(trade(100))
    lanes = bench.engine._lanes
    (known,) = lanes.values()
    lanes.update({b"%d" % number: known for number in range(1022)})
    bench.rows(trade(110), trade(120))
    assert len(lanes) == 1024
    bench.rows(trade(130), trade(140), trade(150))
    assert list(lanes) == [b"0|H0STCNT0|003|005930"]


def test_a_session_that_ends_leaves_each_topic_as_it_was_worth() -> None:
    bench = Bench(cap=2)
    bench.answers["H0STCNT0", "000270"] = "OPSP8992"
    closed, late = "trade.krx.000270", "trade.krx.000001"
    subscriber = bench.subscribe(closed)
    bench.subscribe(TRADE, BOOK)
    bench.rows(trade(100))
    waiting = bench.subscribe(late)
    bench.take(waiting)
    bench.lose()
    assert [e for e in bench.take(waiting) if isinstance(e, Status)] == []
    assert shown(bench) == (Stream.RECOVERING, Data.SUSPECT, Code.UPSTREAM_DOWN)
    assert shown(bench, BOOK) == (Stream.RECOVERING, Data.NONE, Code.UPSTREAM_DOWN)
    assert shown(bench, closed) == (Stream.CLOSED, Data.NONE, Code.REJECTED)
    bench.take(subscriber)
    bench.reconnect()
    assert shown(bench, late)[2] == Code.OVER_LIMIT
    bench.wait(10)
    assert shown(bench, late)[2] == Code.OVER_LIMIT
    assert statuses(bench.take(subscriber), closed) == []


def test_a_refusal_for_now_keeps_the_topic_waiting() -> None:
    code = next(c["code"] for c in load("kis/codes.json")["websocket"] if transient(c["code"]))
    bench = Bench()
    subscriber = bench.subscribe(TRADE)
    bench.rows(trade(100))
    bench.lose()
    bench.answers[KEY] = code
    bench.take(subscriber)
    bench.reconnect()
    bench.wait(5)
    last = statuses(bench.take(subscriber))[-1]
    assert (last.stream, last.data, last.code) == (
        Stream.RECOVERING,
        Data.SUSPECT,
        Code.REJECTED,
    )
    assert last.text.startswith(f"{code} ")


def transient(code: str) -> bool:
    return CODES.meaning(code, server.rt_cd(code)) is Meaning.TRANSIENT


def test_a_doubtful_topic_that_loses_its_slot_is_not_called_good_again() -> None:
    bench = Bench(cap=2)
    subscriber = bench.subscribe(TRADE, OTHER)
    bench.answers[OTHER_KEY] = None
    stall(bench, OTHER)
    bench.take(subscriber)
    bench.answers[OTHER_KEY] = server.UNSUBSCRIBED
    bench.engine.pin(TRADE, bench.at(), pinned=True)
    bench.subscribe(BOOK, prio=9)
    assert [s.code for s in statuses(bench.take(subscriber), OTHER)] == [Code.PREEMPTED]
    assert state(bench) is State.STREAMING


def test_without_any_interest_nothing_is_dialled() -> None:
    bench = Bench()
    subscriber = bench.subscribe(TRADE)
    bench.lose()
    bench.engine.detach(subscriber, bench.at())
    assert state(bench) is State.IDLE
    assert bench.engine.connection.reason is Reason.NO_INTEREST
    bench.wait(600)
    assert bench.engine.connection.epoch == 1


def test_a_key_that_kis_refuses_is_asked_for_again_later() -> None:
    bench = Bench()
    bench.subscribe(TRADE, settle=False)
    assert [type(action) for action in bench.engine.take_actions()] == [FetchKey]
    bench.engine.key_failed(bench.at(), refused=True)
    assert state(bench) is State.RECONNECT_BACKOFF
    bench.reconnect()
    assert bench.sent == [(True, KEY)]


def test_a_session_is_lent_and_taken_back() -> None:
    bench = Bench()
    bench.subscribe(TRADE)
    bench.wait(61)
    bench.engine.release(600.0, bench.at())
    bench.settle()
    assert [close.reason for close in bench.closes()] == [Reason.RELEASED]
    assert told(bench, "release")[0]["for_s"] == 600.0
    assert state(bench) is State.IDLE
    bench.engine.reconnect(bench.at())
    assert len(told(bench, "reconnect")) == 1
    assert state(bench) is not State.IDLE


def test_other_limits_are_in_force_at_once() -> None:
    bench = Bench()
    bench.subscribe(TRADE, BOOK)
    fewer = attrs.evolve(bench.engine.limits, registrations=7, version="other")
    bench.engine.limits_changed(fewer, bench.at())
    assert bench.engine.slots_map()["cap"] == 7
    assert bench.engine.status(bench.now)["limits"] == "other"


def test_the_history_is_the_last_fifty() -> None:
    bench = Bench()
    for number in range(60):
        bench.engine.suspended(float(number), bench.at())
    assert [entry["seconds"] for entry in bench.engine.history] == list(range(10, 60))


def test_a_gap_of_a_registration_is_counted_once() -> None:
    for topics in ((TRADE,), ("raw.H0STCNT0.005930",), (TRADE, "raw.H0STCNT0.005930")):
        bench = Bench()
        subscriber = bench.subscribe(*topics)
        bench.rows(trade(100))
        bench.lose()
        bench.reconnect()
        bench.rows(trade(200))
        assert bench.engine.counts[Count.GAPS] == 1
        assert len(gaps(bench.take(subscriber))) == len(topics)


def test_the_notice_of_the_account_has_its_slot_and_its_log_before_anybody_asks() -> None:
    bench = Bench(hts_id="someone")
    assert bench.engine.slots_map() == {"cap": 41, "used": 0, "reserved": 1}
    assert Bench().engine.slots_map()["reserved"] == 0
    bench.subscribe("notice.overseas.someone", TRADE)
    bench.engine.recovered("fill", {"order_no": "7"}, bench.at())
    told_again = bench.take(bench.subscribe(NOTICE, "notice.overseas.someone", after=0))
    (only,) = [e for e in told_again if isinstance(e, events.Notice)]
    assert (only.topic, only.kind, only.xts, only.rts) == (NOTICE, "fill", None, bench.rts)
    assert (only.fields["order_no"], only.fields["recovered"], only.fields["kind"]) == (
        "7",
        True,
        "fill",
    )


def test_order_news_that_no_notice_brought_makes_kis_be_asked_for_the_notices() -> None:
    bench = Bench(hts_id="someone")
    bench.subscribe(TRADE)
    bench.settle()
    before = len(bench.sent)
    for number in range(3):
        bench.engine.recovered("fill", {"order_no": str(number)}, bench.at())
    bench.settle()
    assert set(bench.sent[before:]) == {(True, NOTICE_KEY)}


def test_a_loop_is_counted_once() -> None:
    bench = Bench(cap=1)
    mine, other = bench.subscribe(TRADE), bench.subscriber()
    give_way(bench, mine, other, BOOK)
    bench.lose()
    bench.reconnect()
    assert barren_loops(bench) == 1


def test_a_topic_that_had_data_once_is_a_loop_when_it_has_none_any_more() -> None:
    bench = Bench(cap=1)
    mine, other = bench.subscribe(TRADE), bench.subscriber()
    bench.rows(trade(10))
    for number in range(2):
        give_way(bench, mine, other, f"book.krx.{number:06}")
    assert barren_loops(bench) == 1


def test_answers_that_do_not_come_are_in_the_history() -> None:
    bench = Bench()
    bench.answers[KEY] = None
    bench.subscribe(TRADE)
    bench.wait(10)
    assert told(bench, "ackmissing")[0]["topic"] == TRADE


def test_a_byte_is_dated_by_the_wall_clock_as_it_was_last_seen() -> None:
    bench = Bench()
    subscriber = bench.subscribe(TRADE)
    an_hour = 3_600 * 10**9
    bench.engine.timer(engine.Instant(bench.now, bench.rts + an_hour))  # it was set
    bench.engine.suspended(600.0, bench.at())
    bench.now += 1
    assert bench.engine.heard(bench.now)
    healed = [e for e in bench.take(subscriber) if isinstance(e, events.Session)][-1]
    assert abs(healed.since_ts - bench.rts - an_hour) < 1e6
