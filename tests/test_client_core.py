from __future__ import annotations

import math
from typing import Any

import attrs
import pytest
from hypothesis import given, settings, strategies as st

from kisfeed.client import core as core_module
from kisfeed.client.core import (
    BACKOFF_CAP_S,
    GREETING_S,
    REQUEST_S,
    SILENCE_S,
    ClientCore,
    Phase,
    Spec,
    specs,
)
from kisfeed.core.outbox import Outbox
from kisfeed.errors import BadFrame, Disconnected, NoDaemon, ServerRefused
from kisfeed.kfp import codec, events
from kisfeed.kfp.messages import Code, Data, Mode, Source, Stream, Type
from kisfeed.seoul import DAY_NS, KST_NS, day_number

_T = 1_763_600_400 * 10**9
_SESSION = {
    "epoch": 3, "state": "STREAMING", "data": 1, "code": "none", "since_ts": _T, "text": "",
}  # fmt: skip
TRADE = "trade.krx.005930"
OTHER = "trade.krx.000660"
BOOK = "book.krx.005930"
NOTICE = "notice.krx.USER"


class Daemon:
    """The daemon's side of one core, byte by byte."""

    def __init__(
        self, *, jitter: float = 0.0, wait: bool = False, heartbeats: bool = False
    ) -> None:
        self.core = ClientCore("test", jitter=lambda: jitter, wait=wait, heartbeats=heartbeats)
        self.now = 0.0
        self.sids: dict[str, int] = {}
        self.sseqs: dict[str, int] = {}
        self.instance = "one"
        self.heard: list[list[Any]] = []

    def linked(self) -> bool:
        return self.core.linked

    def read(self) -> list[list[Any]]:
        """What the client sent since the last call."""
        messages = codec.Decoder().feed(self.core.outgoing())
        self.heard += messages
        return messages

    def say(self, *message: object) -> None:
        self.core.received(codec.frame(*message), self.now)

    def welcome(self, **more: object) -> None:
        """Take a new connection as far as READY."""
        self.now = max(self.now, self.core.deadline)
        self.core.connected(self.now)
        (hello,) = self.read()
        body = {"proto": 1, "instance": self.instance, "epoch": 3, "session": _SESSION, **more}
        self.say(Type.WELCOME, hello[1], body)

    def grant(self) -> None:
        """Answer every SUB that is waiting."""
        for message in self.read():
            assert message[0] == Type.SUB
            items = [self.item(sub["topic"]) for sub in message[2]["subs"]]
            self.say(Type.RES, message[1], {"items": items, "schemas": {}})

    def item(self, topic: str) -> dict[str, object]:
        return {
            "topic": topic,
            "sid": self.sids.setdefault(topic, len(self.sids) + 1),
            "schema": topic.partition(".")[0] + ".v1",
            "scale": 0,
            "sseq": self.sseqs.setdefault(topic, 0),
            "stream": 1,
            "data": 1,
            "code": "none",
        }

    def trade(
        self,
        qty: int | None,
        cum: int | None,
        *,
        image: bool = False,
        at: int = 0,
        topic: str = TRADE,
        dated: bool = True,
    ) -> None:
        if not image:
            self.sseqs[topic] += 1
        kind = Type.IMAGE if image else Type.TICK
        row = [71000, qty, cum]
        ts = _T + at * 10**9
        xts = ts if dated else None
        self.say(kind, self.sids[topic], self.sseqs[topic], 0, xts, ts, *row)

    def taken(self) -> list[events.Event]:
        happened = list(self.core.events)
        self.core.events.clear()
        return happened

    def gaps(self) -> list[events.Gap]:
        return [event for event in self.taken() if isinstance(event, events.Gap)]


def subscribed(*topics: str, jitter: float = 0.0) -> Daemon:
    daemon = Daemon(jitter=jitter)
    daemon.welcome()
    daemon.core.subscribe(specs(topics), daemon.now)
    daemon.grant()
    daemon.taken()
    return daemon


# A program that does not take its events.


def _lives_through(steps: list[tuple[str, str]], *, takes_all: bool) -> list[events.Event]:
    """What a program gets that takes all at once, or two events wherever *steps* say."""
    daemon = subscribed(TRADE, OTHER)
    got: list[events.Event] = []
    room = core_module.MAX_EVENTS
    for what, topic in steps:
        sid, sseq = daemon.sids[topic], daemon.sseqs[topic]
        match what:
            case "tick" | "image":
                daemon.trade(1, 7, image=what == "image", topic=topic)
            case "lost":
                daemon.sseqs[topic] += 2
                daemon.say(Type.LOST, sid, sseq + 1, sseq + 2, 2, "over_limit")
            case "gap":
                daemon.say(Type.GAP, sid, sseq, sseq + 1, _T, _T, 0, "resyncing")
            case "status":
                daemon.say(Type.STATUS, sid, 1, 1, "none", _T, "")
            case "away":
                daemon.core.received(b"", daemon.now)
                daemon.welcome()
                daemon.grant()
            case _:
                waiting = daemon.core.events
                got += [waiting.popleft() for _ in range(min(2, len(waiting)))]
        if takes_all:
            got += daemon.taken()
        waiting = daemon.core.events
        ticks = sum(isinstance(e, events.Row) and not e.image for e in waiting)
        assert ticks <= room
        if what == "take":  # what was kept may have been taken, and its room is used
            room = max(room, core_module.MAX_EVENTS + len(got))
    got += daemon.taken()
    for topic, subscription in daemon.core.subscriptions().items():
        lost = [e.n for e in got if isinstance(e, events.Lost) and e.topic == topic]
        assert subscription.lost == sum(lost)
    return got


def _of(topic: str, happened: list[events.Event]) -> list[events.Event]:
    return [e for e in happened if getattr(e, "topic", topic) == topic]


def _is_image(event: events.Event) -> bool:
    return isinstance(event, events.Row) and event.image


@given(
    st.lists(
        st.tuples(
            st.sampled_from(
                ["tick", "tick", "tick", "image", "lost", "gap", "status", "away", "take"]
            ),
            st.sampled_from([TRADE, OTHER]),
        ),
        min_size=12,
        max_size=60,
    )
)
@settings(max_examples=200)
def test_what_a_program_does_not_take_is_bounded_and_told(steps: list[tuple[str, str]]) -> None:
    """As if all had been taken, but for ticks that Lost tells of and images that are replaced."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(core_module, "MAX_EVENTS", 4)
        whole = _lives_through(steps, takes_all=True)
        got = _lives_through(steps, takes_all=False)
    for topic in (TRADE, OTHER):
        rest = iter(_of(topic, whole))
        for event in _of(topic, got):
            if not isinstance(event, events.Lost):
                assert repr(event) == next(
                    repr(e) for e in rest if not _is_image(e) or repr(e) == repr(event)
                )
                continue
            spans: list[tuple[int, int, int]] = []
            while sum(n for _, _, n in spans) < event.n:
                one = next(e for e in rest if not _is_image(e))
                if isinstance(one, events.Lost):
                    spans.append((one.from_sseq, one.to_sseq, one.n))
                else:
                    assert isinstance(one, events.Row)
                    spans.append((one.sseq, one.sseq, 1))
            told = (event.from_sseq, event.to_sseq, event.n)
            assert told == (spans[0][0], spans[-1][1], sum(n for _, _, n in spans))
        assert all(_is_image(e) for e in rest)


# Handshake.


def test_the_client_speaks_first_and_is_ready_after_welcome() -> None:
    daemon = Daemon()
    assert daemon.core.deadline <= 0
    daemon.core.connected(0)
    ((kind, number, body),) = daemon.read()
    assert (kind, body["proto"], body["client"], body["role"]) == (1, [1, 1], "test", "reader")
    assert daemon.linked()
    daemon.say(Type.WELCOME, number, {"instance": "one", "session": _SESSION})
    assert daemon.core.phase is Phase.READY
    assert daemon.taken() == [events.Session(3, "STREAMING", 1, "none", _T, "")]


def test_no_daemon_at_first_is_an_error_and_later_it_is_not() -> None:
    first = Daemon()
    first.core.dial_failed("nobody listens at x", 0)
    assert first.core.phase is Phase.FAILED
    assert isinstance(first.core.failure, NoDaemon)
    later = Daemon()
    later.welcome()
    later.core.received(b"", 1)
    for attempt in range(100):
        assert later.core.phase is Phase.WAITING
        assert later.core.deadline - attempt * 10 <= BACKOFF_CAP_S + 10
        later.core.dial_failed("nobody", attempt * 10)


def test_told_to_wait_the_first_dial_may_fail_for_ever() -> None:
    daemon = Daemon(wait=True)
    for attempt in range(100):
        daemon.core.dial_failed("nobody", attempt)
    assert daemon.core.phase is Phase.WAITING


def test_a_daemon_that_never_greets_is_no_daemon() -> None:
    daemon = Daemon()
    daemon.core.connected(0)
    assert daemon.core.deadline == GREETING_S
    daemon.core.timer(GREETING_S)
    assert isinstance(daemon.core.failure, NoDaemon)


@pytest.mark.parametrize("code", ["proto_mismatch", "unauthorized"])
def test_a_hopeless_refusal_is_an_error_also_after_a_reconnect(code: str) -> None:
    daemon = subscribed(TRADE)
    daemon.core.received(b"", daemon.now)
    daemon.core.connected(daemon.core.deadline)
    daemon.say(Type.ERR, daemon.read()[0][1], code, True, "no", {})
    assert daemon.core.phase is Phase.FAILED
    assert isinstance(daemon.core.failure, ServerRefused)
    assert daemon.core.failure.code == code


@pytest.mark.parametrize("code", ["slow_consumer", "draining", "bad_frame", "code_of_the_future"])
def test_another_fatal_error_is_a_reconnect(code: str) -> None:
    daemon = subscribed(TRADE)
    daemon.say(Type.ERR, None, code, True, "bye", {})
    assert daemon.core.phase is Phase.WAITING
    assert not daemon.linked()


def test_what_is_no_kfp_is_an_error_at_first() -> None:
    daemon = Daemon()
    daemon.core.connected(0)
    daemon.core.received(b"HTTP/1.1 400 Bad Request\r\n\r\n", 0)
    assert isinstance(daemon.core.failure, BadFrame)


# Silence, and dialling again.


def test_fifteen_seconds_without_a_frame_are_a_dead_daemon() -> None:
    daemon = subscribed(TRADE)
    daemon.now = 10
    daemon.say(Type.SESSION, 9, "STREAMING", 1, "none", _T, "")
    daemon.taken()
    daemon.say(Type.HB, _T, {})
    assert daemon.core.deadline == 10 + SILENCE_S
    daemon.core.timer(24.9)
    assert daemon.linked()
    daemon.core.timer(25)
    assert not daemon.linked()
    (session,) = daemon.taken()
    assert isinstance(session, events.Session)
    assert (session.data, session.code) == (Data.SUSPECT, Code.UPSTREAM_DOWN)
    assert (session.epoch, session.since_ts) == (9, _T)


@given(st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=30))
def test_dials_are_apart_and_never_far_apart(jitters: list[float]) -> None:
    draws = iter(jitters)
    core = ClientCore("t", jitter=lambda: next(draws), wait=True)
    now = 0.0
    for attempt, _ in enumerate(jitters):
        core.dial_failed("nobody", now)
        pause = core.deadline - now
        full = min(BACKOFF_CAP_S, 0.2 * 2**attempt)
        assert full / 2 - 1e-9 <= pause <= full + 1e-9
        now = core.deadline


def test_a_daemon_that_dies_at_once_again_and_again_is_not_hammered() -> None:
    daemon = subscribed(TRADE)
    dials = 0
    while daemon.now < 60:
        daemon.core.received(b"", daemon.now)
        daemon.welcome()
        dials += 1
    assert dials < 40


def test_a_good_connection_makes_the_next_dial_quick() -> None:
    daemon = Daemon(wait=True)
    for _ in range(10):
        daemon.core.dial_failed("nobody", daemon.now)
    daemon.welcome()
    daemon.core.received(b"", daemon.now + 60)
    assert daemon.core.deadline - daemon.now - 60 <= 0.2


def test_goaway_is_told_and_ends_in_a_reconnect_within_its_deadline() -> None:
    daemon = subscribed(TRADE)
    daemon.say(Type.GOAWAY, "draining", 2000, {})
    assert daemon.taken() == [events.Goaway("draining", 2000, {})]
    assert daemon.linked()
    assert daemon.core.deadline == daemon.now + 2
    daemon.core.timer(daemon.now + 2)
    assert daemon.core.phase is Phase.WAITING


# Subscriptions over reconnects.


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(0, 100)), min_size=1, max_size=8))
def test_a_reconnect_yields_one_session_and_one_gap_with_the_exact_shares(
    outages: list[tuple[int, int]],
) -> None:
    daemon = subscribed(TRADE)
    cum = received = 1000
    daemon.trade(0, cum)
    start = cum
    received = 0
    gaps: list[events.Gap] = []
    for number, (qty, missed) in enumerate(outages):
        daemon.taken()
        daemon.core.received(b"", daemon.now)
        daemon.instance = f"instance {number}"
        daemon.sseqs[TRADE] = 0
        daemon.welcome()
        daemon.grant()
        cum += missed + qty
        daemon.trade(qty, cum, at=number + 1)
        received += qty
        cum += qty
        daemon.trade(qty, cum, at=number + 1)
        received += qty
        happened = daemon.taken()
        lost = [e for e in happened if isinstance(e, events.Session) and e.data == Data.SUSPECT]
        assert len(lost) == 1
        (gap,) = (e for e in happened if isinstance(e, events.Gap))
        assert happened.index(lost[0]) < happened.index(gap)
        assert gap.topic == TRADE
        assert gap.missed_qty == missed
        gaps.append(gap)
    assert start + received + sum(gap.missed_qty or 0 for gap in gaps) == cum


def test_the_gap_is_told_before_the_first_row_and_says_its_range() -> None:
    daemon = subscribed(TRADE)
    daemon.trade(10, 100)
    daemon.core.received(b"", daemon.now)
    daemon.welcome()
    daemon.grant()
    daemon.taken()
    daemon.trade(5, 120, at=60)
    gap, trade = daemon.taken()
    assert gap == events.Gap(TRADE, 1, 1, 2, _T, _T + 60 * 10**9, 15, "gap_detected")
    assert isinstance(trade, events.Trade)


def test_an_image_first_leaves_its_own_shares_missed() -> None:
    daemon = subscribed(TRADE)
    daemon.trade(10, 100)
    daemon.core.received(b"", daemon.now)
    daemon.welcome()
    daemon.grant()
    daemon.taken()
    daemon.sseqs[TRADE] = 7
    daemon.trade(30, 150, image=True)
    daemon.trade(5, 155)
    gap, image, tick = daemon.taken()
    assert isinstance(gap, events.Gap)
    assert gap.missed_qty == 50
    assert isinstance(image, events.Trade)
    assert image.image
    assert isinstance(tick, events.Trade)


@pytest.mark.parametrize(
    ("before", "qty", "cum", "at"),
    [
        (100, 5, 90, 0),  # a new day starts at zero
        (100, 5, 200, 86_400),  # a new day by its date
        (None, 5, 200, 0),
        (100, None, 200, 0),
        (100, 5, None, 0),
    ],
)
def test_shares_that_nobody_can_know_are_nil(
    before: int | None, qty: int | None, cum: int | None, at: int
) -> None:
    daemon = subscribed(TRADE)
    daemon.trade(10, before)
    daemon.core.received(b"", daemon.now)
    daemon.welcome()
    daemon.grant()
    daemon.taken()
    daemon.trade(qty, cum, at=at)
    (gap,) = daemon.gaps()
    assert gap.missed_qty is None


def test_two_outages_before_a_row_are_one_gap() -> None:
    daemon = subscribed(TRADE)
    daemon.trade(10, 100)
    for _ in range(2):
        daemon.core.received(b"", daemon.now)
        daemon.welcome()
        daemon.grant()
    daemon.taken()
    daemon.trade(5, 120)
    (gap,) = daemon.gaps()
    assert (gap.last_sseq, gap.missed_qty) == (1, 15)


def test_each_topic_has_its_own_gap_and_one_that_never_began_has_none() -> None:
    daemon = subscribed(TRADE, BOOK)
    daemon.trade(10, 100)
    daemon.core.received(b"", daemon.now)
    daemon.core.subscribe(specs(["trade.krx.000660"]), daemon.now)
    daemon.welcome()
    daemon.grant()
    daemon.taken()
    for topic in (TRADE, BOOK, "trade.krx.000660"):
        daemon.say(Type.TICK, daemon.sids[topic], daemon.sseqs[topic] + 1, 0, _T, _T, None)
    gaps = daemon.gaps()
    assert [gap.topic for gap in gaps] == [TRADE, BOOK]
    assert gaps[1].from_rts is None
    assert all(gap.missed_qty is None for gap in gaps)


def test_a_polled_price_neither_ends_a_cut_nor_moves_the_account() -> None:
    daemon = subscribed(TRADE)
    daemon.trade(10, 100)
    daemon.core.received(b"", daemon.now)
    daemon.welcome()
    daemon.grant()
    daemon.taken()
    polled: list[int | None] = [None] * 15
    polled[0], polled[2] = 70_000, 130
    daemon.say(
        Type.IMAGE, daemon.sids[TRADE], daemon.sseqs[TRADE], int(Source.POLL), None, _T, *polled
    )
    (image,) = daemon.taken()
    assert isinstance(image, events.Trade)
    daemon.trade(5, 150)
    (gap,) = daemon.gaps()
    assert gap.missed_qty == 45


def test_a_gap_of_the_daemon_inside_our_own_is_not_told_twice() -> None:
    daemon = subscribed(TRADE)
    daemon.trade(10, 100)
    daemon.core.received(b"", daemon.now)
    daemon.welcome()
    daemon.grant()
    daemon.taken()
    daemon.say(Type.GAP, 1, 1, 2, _T, _T, 15, "gap_detected")
    daemon.trade(5, 120)
    (gap,) = daemon.gaps()
    assert gap.missed_qty == 15
    daemon.say(Type.GAP, 1, 2, 3, _T, _T, 7, "volume_jump")
    assert [gap.missed_qty for gap in daemon.gaps()] == [7]


def test_shares_that_were_told_before_a_cut_are_not_told_again_behind_it() -> None:
    daemon = subscribed(TRADE)
    daemon.trade(10, 100)
    for missed in (15, 4):
        daemon.say(Type.GAP, 1, 1, 2, _T, _T, missed, "gap_detected")
    daemon.core.received(b"", daemon.now)  # and the row that was to follow is gone
    daemon.welcome()
    daemon.grant()
    daemon.trade(5, 150)
    gaps = [gap.missed_qty for gap in daemon.gaps()]
    assert gaps == [15, 4, 26]
    assert sum(filter(None, gaps)) == 150 - 100 - 5
    daemon.core.received(b"", daemon.now)
    daemon.welcome()
    daemon.grant()
    daemon.trade(1, 160)
    assert [gap.missed_qty for gap in daemon.gaps()] == [9]


@pytest.mark.parametrize(
    ("topic", "apart_s", "known"),
    [
        ("trade.overseas.DNASAAPL", 50 * 60, True),  # over midnight in Seoul
        ("trade.overseas.DNASAAPL", 18 * 3600, False),  # another day in New York
        ("trade.nightfut.101W9000", 13 * 3600, False),
        ("trade.idxfut.A05612", 50 * 60, False),
        ("trade.idxfut.A05612", 10 * 60, True),
        (TRADE, 10 * 60, True),
    ],
)
@pytest.mark.parametrize("dated", [True, False])
def test_shares_are_counted_over_a_cut_within_one_trading_day(
    topic: str, apart_s: int, known: bool, dated: bool
) -> None:
    daemon = subscribed(topic)
    to_midnight = 86_400 - (_T // 10**9 + 9 * 3600) % 86_400
    at = to_midnight - 20 * 60  # twenty minutes before, in Seoul
    daemon.trade(10, 1000, topic=topic, at=at, dated=dated)
    daemon.core.received(b"", daemon.now)
    daemon.welcome()
    daemon.grant()
    daemon.trade(10, 5000, topic=topic, at=at + apart_s, dated=dated)
    (gap,) = daemon.gaps()
    assert gap.missed_qty == (3990 if known else None)


def test_what_is_wanted_survives_and_what_is_not_does_not() -> None:
    daemon = subscribed(TRADE, BOOK)
    request = daemon.core.unsubscribe([BOOK], daemon.now)
    assert daemon.read()[-1][2] == {"sids": [2]}
    daemon.say(Type.TICK, 2, 1, 0, _T, _T, None)
    assert daemon.taken() == []
    daemon.core.received(b"", daemon.now)
    assert request.done
    daemon.core.subscribe([Spec(TRADE, Mode.HZ, hz=2.0, prio=3)], daemon.now)
    daemon.welcome()
    ((kind, _, body),) = daemon.read()
    assert kind == Type.SUB
    assert body == {"subs": [{"topic": TRADE, "mode": "hz", "hz": 2.0, "prio": 3}]}


def test_a_topic_unsubscribed_before_its_answer_is_given_back_unless_it_is_wanted_anew() -> None:
    daemon = Daemon()
    daemon.welcome()
    daemon.core.subscribe(specs([BOOK, TRADE]), 0)
    daemon.core.unsubscribe([BOOK, TRADE], 0)
    daemon.core.subscribe(specs([TRADE]), 0)
    (_, first, _), _, (_, second, _) = daemon.read()
    items = [daemon.item(BOOK), daemon.item(TRADE)]
    daemon.say(Type.RES, first, {"items": items, "schemas": {}})
    daemon.say(Type.RES, second, {"items": items[1:], "schemas": {}})
    ((kind, _, body),) = daemon.read()
    assert (kind, body) == (Type.UNSUB, {"sids": [daemon.sids[BOOK]]})
    assert list(daemon.core.subscriptions()) == [TRADE]
    daemon.taken()
    daemon.trade(10, 1000)
    assert [event.type for event in daemon.taken()] == ["trade"]


def test_every_topic_begins_with_a_status_and_recovers_with_one() -> None:
    daemon = Daemon()
    daemon.welcome()
    daemon.core.subscribe(specs([TRADE]), 0)
    daemon.grant()
    assert [type(e) for e in daemon.taken()] == [events.Session, events.Status]
    assert daemon.core.subscriptions()[TRADE].data == Data.OK
    daemon.core.received(b"", 1)
    held = daemon.core.subscriptions()[TRADE]
    assert (held.sid, held.stream, held.data) == (None, Stream.RECOVERING, Data.SUSPECT)
    daemon.welcome()
    daemon.grant()
    kinds = [type(e) for e in daemon.taken()]
    assert kinds == [events.Session, events.Session, events.Status]
    assert daemon.core.subscriptions()[TRADE].data == Data.OK


def test_a_refused_topic_is_an_error_for_the_caller_and_the_others_stay() -> None:
    daemon = Daemon()
    daemon.welcome()
    request = daemon.core.subscribe(specs([TRADE, "trade.mars.1"]), 0)
    ((_, number, _),) = daemon.read()
    refused = {"topic": "trade.mars.1", "sid": None, "stream": 4, "code": "unknown_topic"}
    daemon.say(Type.RES, number, {"items": [daemon.item(TRADE), refused]})
    with pytest.raises(ServerRefused, match="mars") as caught:
        request.outcome()
    assert caught.value.code == "unknown_topic"
    assert list(daemon.core.subscriptions()) == [TRADE]


def test_a_topic_refused_after_a_reconnect_is_told_and_asked_for_again() -> None:
    daemon = subscribed(TRADE)
    for _ in range(2):
        daemon.core.received(b"", daemon.now)
        daemon.welcome()
        daemon.taken()
        ((kind, number, _),) = daemon.read()
        assert kind == Type.SUB
        refused = {"topic": TRADE, "sid": None, "stream": 4, "data": 3, "code": "over_limit"}
        daemon.say(Type.RES, number, {"items": [refused]})
        (status,) = daemon.taken()
        assert isinstance(status, events.Status)
        assert (status.topic, status.stream, status.code) == (TRADE, 4, "over_limit")


def test_what_was_refused_is_not_asked_for_again_after_a_reconnect() -> None:
    daemon = subscribed(TRADE, BOOK)
    asked = [
        daemon.core.retune(TRADE, daemon.now, prio=7),
        daemon.core.subscribe(specs([BOOK], mode="latest"), daemon.now),
        daemon.core.retune(TRADE, daemon.now, hz=3),
    ]
    set_, sub, another = daemon.read()
    for number in (set_[1], sub[1]):
        daemon.say(Type.ERR, number, "bad_request", False, "not today", {})
    daemon.say(Type.RES, another[1], {"sid": daemon.sids[TRADE], "sseq": 0})
    assert [request.error is None for request in asked] == [False, False, True]
    daemon.core.received(b"", daemon.now)
    daemon.welcome()
    ((_, _, body),) = daemon.read()
    assert body == {"subs": [{"topic": TRADE, "mode": "hz", "hz": 3}, {"topic": BOOK}]}


def test_a_topic_whose_new_options_were_not_understood_goes_on_with_the_old_ones() -> None:
    daemon = subscribed(TRADE)
    request = daemon.core.subscribe([Spec(TRADE, after=-1, prio=3), Spec(BOOK)], daemon.now)
    ((_, number, _),) = daemon.read()
    refused = {**daemon.item(TRADE), "sid": None, "code": "bad_request", "text": "not this way"}
    daemon.say(Type.RES, number, {"items": [refused, daemon.item(BOOK)], "schemas": {}})
    with pytest.raises(ServerRefused, match="not this way"):
        request.outcome()
    daemon.core.received(b"", daemon.now)
    daemon.welcome()
    assert daemon.read()[0][2] == {"subs": [{"topic": TRADE}, {"topic": BOOK}]}


@pytest.mark.parametrize(
    "wrong",
    [
        {"prio": 10}, {"prio": -1}, {"prio": True}, {"prio": 1.0},
        {"hz": -1}, {"hz": math.nan}, {"hz": 1001}, {"hz": "3"}, {"mode": "hz"},
    ],
)  # fmt: skip
def test_a_value_that_no_daemon_takes_is_never_asked_for(wrong: dict[str, Any]) -> None:
    daemon = subscribed(TRADE)
    with pytest.raises(ValueError, match="is a"):
        specs([BOOK], **wrong)
    with pytest.raises(ValueError, match="is a"):
        daemon.core.retune(TRADE, daemon.now, **wrong)
    daemon.core.received(b"", daemon.now)
    daemon.welcome()
    assert daemon.read()[0][2] == {"subs": [{"topic": TRADE}]}


def test_all_topics_refused_at_once_after_a_reconnect_are_told() -> None:
    daemon = subscribed(TRADE, BOOK)
    daemon.core.received(b"", daemon.now)
    daemon.welcome()
    daemon.taken()
    ((_, number, _),) = daemon.read()
    daemon.say(Type.ERR, number, "over_limit", False, "too many", {})
    assert [(e.topic, e.code) for e in daemon.taken() if isinstance(e, events.Status)] == [
        (TRADE, "over_limit"),
        (BOOK, "over_limit"),
    ]


# Notices.


def notice(daemon: Daemon, nseq: int) -> None:
    daemon.say(Type.NOTICE, nseq, None, _T + nseq, "fill", {"topic": NOTICE, "qty": 1})


def test_notices_of_the_same_daemon_are_sent_again_from_the_last_one_on() -> None:
    daemon = subscribed(NOTICE)
    notice(daemon, 41)
    assert daemon.taken() == [events.Notice(NOTICE, 41, None, _T + 41, "fill", {"qty": 1})]
    daemon.core.received(b"", daemon.now)
    daemon.welcome()
    ((_, _, body),) = daemon.read()
    assert body == {"subs": [{"topic": NOTICE, "after": 41}]}
    assert daemon.gaps() == []


def test_notices_of_another_daemon_are_a_gap_and_all_of_its_own() -> None:
    daemon = subscribed(NOTICE)
    notice(daemon, 41)
    daemon.core.received(b"", daemon.now)
    daemon.instance = "two"
    daemon.welcome()
    ((_, _, body),) = daemon.read()
    assert body == {"subs": [{"topic": NOTICE, "after": 0}]}
    (gap,) = daemon.gaps()
    assert (gap.topic, gap.from_rts, gap.to_rts) == (NOTICE, _T + 41, None)


def back(daemon: Daemon) -> object:
    """Cut the connection and come back; what the client asks for of its one topic."""
    daemon.core.received(b"", daemon.now)
    daemon.welcome()
    ((_, number, body),) = daemon.read()
    items = [daemon.item(sub["topic"]) for sub in body["subs"]]
    daemon.say(Type.RES, number, {"items": items, "schemas": {}})
    (sub,) = body["subs"]
    return sub.get("after")


def test_a_cut_before_the_first_notice_is_a_gap_each_time() -> None:
    daemon = subscribed(NOTICE)
    for _ in range(2):
        assert back(daemon) is None
        ((topic, before, behind),) = [(g.topic, g.from_rts, g.to_rts) for g in daemon.gaps()]
        assert (topic, before, behind) == (NOTICE, None, None)
    notice(daemon, 1)
    assert back(daemon) == 1
    assert daemon.gaps() == []


def test_notices_asked_for_by_number_are_asked_for_again_until_one_comes() -> None:
    daemon = Daemon()
    daemon.welcome()
    daemon.core.subscribe(specs([NOTICE], after=7), 0)
    daemon.grant()
    daemon.say(Type.HB, _T, {})
    assert [back(daemon), back(daemon)] == [7, 7]
    notice(daemon, 9)
    assert back(daemon) == 9
    daemon.core.subscribe(specs([NOTICE], after=0), 0)
    daemon.grant()
    assert back(daemon) == 0
    assert daemon.gaps() == []


_MIDNIGHT = (day_number(_T) + 1) * DAY_NS - KST_NS


def at(daemon: Daemon, nseq: int, rts: int) -> None:
    daemon.say(Type.NOTICE, nseq, None, rts, "fill", {"topic": NOTICE})


@pytest.mark.parametrize("heartbeat", [False, True])
@pytest.mark.parametrize(
    ("heard", "first", "gaps"),
    [
        (_MIDNIGHT - 1, _MIDNIGHT, 1),
        (_MIDNIGHT - 1, _MIDNIGHT - 1, 0),
        (_MIDNIGHT, _MIDNIGHT, 0),
        (_MIDNIGHT, _MIDNIGHT + DAY_NS, 1),
    ],
)
def test_a_cut_across_midnight_is_a_gap_of_the_notices_before_the_first_one(
    heartbeat: bool, heard: int, first: int, gaps: int
) -> None:
    daemon = subscribed(NOTICE)
    at(daemon, 10, _MIDNIGHT - 2)
    daemon.say(Type.HB, heard, {})
    assert back(daemon) == 10
    daemon.taken()
    if heartbeat:
        daemon.say(Type.HB, first, {})
    else:
        at(daemon, 13, first)
    happened = daemon.taken()
    told = [event for event in happened if isinstance(event, events.Gap)]
    assert [(gap.topic, gap.from_rts, gap.to_rts) for gap in told] == [
        (NOTICE, _MIDNIGHT - 2, None)
    ] * gaps
    assert happened[:gaps] == told
    daemon.say(Type.HB, _MIDNIGHT + 9 * DAY_NS, {})
    at(daemon, 14, _MIDNIGHT + 9 * DAY_NS)
    assert daemon.gaps() == []


def test_a_midnight_within_two_cuts_is_one_gap() -> None:
    daemon = subscribed(NOTICE)
    at(daemon, 10, _MIDNIGHT - 1)
    back(daemon)
    daemon.say(Type.SESSION, 3, "STREAMING", 1, "none", _MIDNIGHT, "")
    back(daemon)
    assert daemon.gaps() == []
    at(daemon, 13, _MIDNIGHT)
    assert len(daemon.gaps()) == 1
    back(daemon)
    at(daemon, 14, _MIDNIGHT)
    assert daemon.gaps() == []


def test_a_heartbeat_before_the_notices_are_asked_for_proves_no_day() -> None:
    daemon = subscribed(NOTICE)
    at(daemon, 10, _MIDNIGHT - 1)
    daemon.core.received(b"", daemon.now)
    daemon.welcome()
    daemon.say(Type.HB, _MIDNIGHT - 1, {})
    daemon.grant()
    at(daemon, 13, _MIDNIGHT)
    assert len(daemon.gaps()) == 1


def test_a_cut_before_the_day_was_known_may_have_been_across_midnight() -> None:
    daemon = Daemon()
    daemon.welcome()
    daemon.core.subscribe(specs([NOTICE], after=0), 0)
    daemon.grant()
    back(daemon)
    assert daemon.gaps() == []
    daemon.say(Type.HB, _T, {})
    assert len(daemon.gaps()) == 1


def test_what_still_waited_at_a_heartbeat_was_not_heard() -> None:
    daemon = subscribed(NOTICE)
    at(daemon, 10, _MIDNIGHT - 3 * 10**9)
    daemon.say(Type.HB, _MIDNIGHT + 10**9, {"q_age_ms": 2000})
    back(daemon)
    at(daemon, 13, _MIDNIGHT)
    assert len(daemon.gaps()) == 1


def test_a_gap_of_the_daemon_behind_a_cut_of_notices_is_told() -> None:
    daemon = subscribed(NOTICE)
    back(daemon)
    assert len(daemon.gaps()) == 1
    daemon.say(Type.GAP, daemon.sids[NOTICE], 0, 1, _T, _T + 1, None, Code.GAP_DETECTED)
    assert [gap.to_rts for gap in daemon.gaps()] == [_T + 1]


def test_a_number_of_one_daemon_is_never_asked_of_another() -> None:
    daemon = subscribed(NOTICE)
    notice(daemon, 41)
    daemon.instance = "two"
    assert [back(daemon), back(daemon)] == [0, 0]
    assert len(daemon.gaps()) == 1
    notice(daemon, 1)
    assert back(daemon) == 1


def test_a_daemon_that_died_before_it_answered_may_have_had_notices_too() -> None:
    daemon = subscribed(NOTICE)
    for daemon.instance in ("two", "three"):
        daemon.core.received(b"", daemon.now)
        daemon.welcome()
        ((_, _, body),) = daemon.read()
        assert body == {"subs": [{"topic": NOTICE, "after": 0}]}
        assert len(daemon.gaps()) == 1


# Sequence numbers.

_MODES = st.sampled_from([Mode.ALL, Mode.LATEST, Mode.HZ, Mode.TRADE_SAFE])


@given(
    st.lists(st.tuples(_MODES, st.integers(0, 5)), min_size=1, max_size=3),
    st.lists(
        st.tuples(st.integers(0, 2), st.sampled_from([0.0, 0.01, 0.3, 2.0]), st.booleans()),
        max_size=60,
    ),
    st.sampled_from([60, 400, 100_000]),
)
@settings(max_examples=60, deadline=None)
def test_jumps_are_told_as_lost_or_conflated_and_nothing_else(
    topics: list[tuple[Mode, int]], steps: list[tuple[int, float, bool]], room: int
) -> None:
    """Against the daemon's own outbox: its counters and this client's agree at every point."""
    box: Outbox[bytes] = Outbox(
        size=len,
        lost=lambda *body: codec.frame(Type.LOST, *body),
        queue_bytes=room,
        max_age_s=1.0,
        max_age_latest_s=0.5,
    )
    names = [f"trade.krx.{number}" for number in range(len(topics))]
    daemon = Daemon()
    for name, (_, baseline) in zip(names, topics, strict=True):
        daemon.sseqs[name] = baseline
    daemon.welcome()
    daemon.core.subscribe(specs(names), 0)
    daemon.grant()
    sseqs = {}
    for name, (mode, baseline) in zip(names, topics, strict=True):
        sid = daemon.sids[name]
        box.open(sid, mode, 2.0, baseline, trades=True)
        sseqs[sid] = baseline
    now = 0.0
    # The last pass drains whatever is held back.
    for which, pause, take in [*steps, (0, 10.0, True), (0, 10.0, True)]:
        now += pause
        sid = list(sseqs)[which % len(sseqs)]
        sseqs[sid] += 1
        frame = codec.tick_frame(Type.TICK, sid, sseqs[sid], 0, None, _T, [1, 1, 1])
        box.tick(sid, sseqs[sid], frame, now)
        if take:
            for item in box.take(now):
                daemon.core.received(item, now)
            held = daemon.core.subscriptions().values()
            assert sum(s.lost for s in held) == box.dropped
            assert sum(s.conflated for s in held) == box.conflated
    told = [e for e in daemon.taken() if isinstance(e, events.Lost)]
    assert sum(lost.n for lost in told) == box.dropped


def test_an_image_never_makes_a_jump_and_retuning_restarts_the_count() -> None:
    daemon = subscribed(TRADE)
    daemon.say(Type.IMAGE, 1, 40, 1, _T, _T, 71000)
    daemon.trade(1, 1)
    assert daemon.core.subscriptions()[TRADE].conflated == 0
    request = daemon.core.retune(TRADE, 0, mode="latest")
    ((kind, number, body),) = daemon.read()
    assert (kind, body) == (Type.SET, {"sid": 1, "mode": "latest"})
    daemon.say(Type.RES, number, {"sid": 1, "sseq": 10})
    assert request.done
    daemon.sseqs[TRADE] = 10
    daemon.trade(1, 2)
    assert daemon.core.subscriptions()[TRADE].conflated == 0
    daemon.sseqs[TRADE] = 14
    daemon.trade(1, 3)
    assert daemon.core.subscriptions()[TRADE].conflated == 3
    daemon.core.retune(TRADE, 0, hz=2)
    assert daemon.read()[0][2] == {"sid": 1, "mode": "hz", "hz": 2}


# Requests.


def test_a_call_is_answered_refused_or_too_late() -> None:
    daemon = subscribed(TRADE)
    answered, refused, late = (daemon.core.call("status", {}, 0) for _ in range(3))
    numbers = [message[1] for message in daemon.read()]
    daemon.say(Type.RES, numbers[0], {"result": {"a": 1}})
    daemon.say(Type.ERR, numbers[1], "not_entitled", False, "no", {})
    assert answered.outcome() == {"a": 1}
    with pytest.raises(ServerRefused, match="not_entitled"):
        refused.outcome()
    daemon.now = REQUEST_S - 1
    daemon.say(Type.HB, _T, {})
    assert daemon.core.deadline == REQUEST_S
    daemon.core.timer(REQUEST_S)
    with pytest.raises(ServerRefused, match="timeout"):
        late.outcome()
    daemon.say(Type.RES, numbers[2], {"result": 1})
    assert daemon.linked()


def test_a_subscription_without_an_answer_is_made_anew_on_the_next_connection() -> None:
    daemon = subscribed(TRADE)
    request = daemon.core.subscribe(specs([OTHER]), daemon.now)
    daemon.read()
    for _ in range(4):
        daemon.now += 10
        daemon.trade(10, 100)
        daemon.core.timer(daemon.now)
    with pytest.raises(ServerRefused, match="timeout"):
        request.outcome()
    assert not daemon.core.linked
    daemon.welcome()
    (sub,) = daemon.read()
    assert {item["topic"] for item in sub[2]["subs"]} == {TRADE, OTHER}


def test_a_call_is_too_late_though_ticks_never_stop_but_not_before_a_backlog_was_read() -> None:
    daemon = subscribed(TRADE)
    answered = daemon.core.call("status", {}, daemon.now)
    ((_, number, _),) = daemon.read()
    never = daemon.core.call("never", {}, daemon.now)
    young = daemon.core.call("never", {}, REQUEST_S * 2)
    daemon.now = REQUEST_S * 2  # the caller was busy for so long
    for _ in range(20):
        daemon.trade(10, 1000)
    daemon.say(Type.RES, number, {"result": 1})
    assert answered.outcome() == 1
    while not never.done:
        assert daemon.now < REQUEST_S * 2 + 2
        daemon.now += 0.05
        daemon.trade(10, 1000)
    with pytest.raises(ServerRefused, match="timeout"):
        never.outcome()
    assert not young.done


def test_a_call_cut_off_is_never_sent_again() -> None:
    daemon = subscribed(TRADE)
    request = daemon.core.call("order.place", {}, 0)
    daemon.read()
    daemon.core.received(b"", 0)
    with pytest.raises(Disconnected):
        request.outcome()
    with pytest.raises(NoDaemon):
        daemon.core.call("status", {}, 0).outcome()
    daemon.welcome()
    assert [message[0] for message in daemon.read()] == [Type.SUB]


def test_get_gives_the_last_value_without_an_interest() -> None:
    daemon = Daemon()
    daemon.welcome()
    daemon.taken()
    request = daemon.core.get(TRADE, 0)
    ((_, number, _),) = daemon.read()
    daemon.say(Type.RES, number, {"items": [daemon.item(TRADE)], "image": True})
    assert not request.done
    daemon.say(Type.IMAGE, 1, 5, 0, _T, _T, 71000, 1, 2)
    row = request.outcome()
    assert isinstance(row, events.Trade)
    assert (row.topic, row.px, row.image) == (TRADE, 71000, True)
    assert daemon.taken() == []
    assert daemon.core.subscriptions() == {}


def test_get_of_what_nobody_knows_is_none() -> None:
    daemon = Daemon()
    daemon.welcome()
    request = daemon.core.get(TRADE, 0)
    ((_, number, _),) = daemon.read()
    daemon.say(Type.RES, number, {"items": [daemon.item(TRADE)], "image": False})
    assert request.outcome() is None


def test_closing_ends_every_wait_and_dials_no_more() -> None:
    daemon = subscribed(TRADE)
    request = daemon.core.ping(0)
    daemon.core.close()
    with pytest.raises(Disconnected):
        request.outcome()
    with pytest.raises(Disconnected):
        daemon.core.subscribe(specs([BOOK]), 0).outcome()
    assert not daemon.linked()
    assert daemon.core.deadline == math.inf
    daemon.core.received(b"", 1)
    daemon.core.lost("x", 1)
    assert daemon.core.phase is Phase.CLOSED


# Frames of the future, and of a broken daemon.


@pytest.mark.parametrize("somebody_listens", [False, True])
def test_a_dial_that_ends_behind_the_close_changes_nothing(somebody_listens: bool) -> None:
    daemon = subscribed(TRADE)
    daemon.core.lost("gone", 1.0)
    daemon.core.close()
    if somebody_listens:
        daemon.core.connected(9.0)
    else:
        daemon.core.dial_failed("gone", 9.0)
    assert daemon.core.phase is Phase.CLOSED
    assert daemon.core.deadline == math.inf
    assert not daemon.core.has_outgoing


def test_heartbeats_are_kept_and_yielded_only_on_request() -> None:
    body = {"sent": 5, "dropped": 1, "conflated": 2, "q_bytes": 3, "q_age_ms": 4, "up": {"a": 1}}
    beat = events.Heartbeat(_T, 5, 1, 2, 3, 4, {"a": 1})
    quiet, loud = Daemon(), Daemon(heartbeats=True)
    for daemon in (quiet, loud):
        daemon.welcome()
        daemon.taken()
        daemon.say(Type.HB, _T, {**body, "later": 1})
        assert daemon.core.heartbeat == beat
    assert quiet.taken() == []
    assert loud.taken() == [beat]


def test_unknown_types_elements_and_keys_are_ignored() -> None:
    daemon = subscribed(TRADE)
    daemon.say(29, "what")
    daemon.say(99)
    daemon.say(Type.STATUS, 1, 2, 1, "source_poll", _T, "text", "later", {})
    daemon.say(Type.STATUS, 77, 2, 1, "none", _T, "a sid that is not ours")
    assert daemon.taken() == [events.Status(TRADE, 1, 2, 1, "source_poll", _T, "text")]
    assert daemon.linked()


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 50) | st.sampled_from(["", "none", TRADE]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ["items", "topic", "sid", "sseq", "schema", "scale", "schemas", "session", "image"]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=6,
)


@given(st.lists(st.tuples(st.sampled_from(list(Type)), st.lists(_VALUES, max_size=9)), max_size=6))
@settings(deadline=None, max_examples=60)
def test_whatever_a_daemon_says_a_client_stays_or_dials_again(
    messages: list[tuple[Type, list[Any]]],
) -> None:
    daemon = subscribed(TRADE, BOOK)
    daemon.core.get(TRADE, 0)
    daemon.core.call("status", {}, 0)
    daemon.core.subscribe(specs(["trade.krx.000660"]), 0)
    for kind, body in messages:
        daemon.say(kind, *body)
        daemon.core.timer(0)
    assert daemon.core.phase in {Phase.READY, Phase.WAITING, Phase.FAILED}
    for event in daemon.taken():
        assert event.to_map()["type"] == event.type


@pytest.mark.parametrize(
    "message",
    [
        [Type.TICK, 1, 2],
        [Type.TICK, 1, "x", 0, None, _T],
        [Type.TICK, [1], 1, 0, None, _T],
        [Type.STATUS, 1],
        [Type.GAP, 1, 2, 3, 4, 5, "6", "code"],
        [Type.RES, 3, []],
        [Type.WELCOME, 3, {}],
    ],
)
def test_a_frame_that_cannot_be_is_a_reconnect(message: list[Any]) -> None:
    daemon = subscribed(TRADE)
    daemon.say(*message)
    assert daemon.core.phase is Phase.WAITING


# Small things.


def test_an_hz_alone_means_mode_hz_and_no_topic_is_an_error() -> None:
    (spec,) = specs(["a"], hz=3)
    assert (spec.mode, spec.hz) == (Mode.HZ, 3)
    with pytest.raises(ValueError, match="at least one"):
        specs([])
    with pytest.raises(ValueError, match="sometimes"):
        specs(["a"], mode="sometimes")


def test_a_spec_says_only_what_differs_from_the_default() -> None:
    assert Spec("t").to_map() == {"topic": "t"}
    full = Spec("t", Mode.HZ, 2, 3, passive=True, image=False, poll=False, after=0)
    assert set(full.to_map()) == {field.name for field in attrs.fields(core_module.Spec)}
