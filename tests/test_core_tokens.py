"""Tokens: how often they are asked for, and whether a valid one is ever not used."""

from __future__ import annotations

import datetime as dt
import itertools
import math
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from kisfeed.config import Secret
from kisfeed.core.tokens import Life, Token, TokenBook, TokenRecord, life, renew_at
from kisfeed.limits import Window
from kisfeed.seoul import KST

MINUTE = Window(1, 60.0)
NOON = dt.datetime(2026, 11, 20, 12, tzinfo=KST).timestamp()
DAY = Life(86_400.0, 84_600.0)


def book(record: TokenRecord = TokenRecord(), now: float = 0.0) -> TokenBook:  # noqa: B008  # frozen
    return TokenBook(record, MINUTE, now)


def answer(expires: str, expires_in: Any = 86_400) -> dict[str, Any]:
    return {"access_token": "t", "access_token_token_expired": expires, "expires_in": expires_in}


@given(st.integers(0, 2 * 86_400))
def test_no_token_expires_in_trading_hours(after: int) -> None:
    """Day after day of renewals, from whatever moment the first token was issued."""
    issued = NOON + after
    for _ in range(20):
        expires = issued + 86_400
        renewed = renew_at(expires)
        assert issued + 6 * 3600 < renewed < expires, "earlier, KIS would give the same token"
        end = dt.datetime.fromtimestamp(expires, KST)
        if dt.time(8) <= end.time() <= dt.time(20):
            assert dt.datetime.fromtimestamp(renewed, KST).time() <= dt.time(7)
        issued = renewed


@pytest.mark.parametrize(
    ("expires", "renewed"),
    [
        ("07:59:59", "07:29:59"),
        ("08:00:00", "07:00:00"),
        ("15:30:15", "07:00:00"),
        ("20:00:00", "07:00:00"),
        ("20:00:01", "19:30:01"),
        ("02:30:00", "02:00:00"),
    ],
)
def test_a_token_is_renewed_half_an_hour_early_or_before_the_trading_hours_it_ends_in(
    expires: str, renewed: str
) -> None:
    def at(clock: str) -> float:
        return dt.datetime.fromisoformat(f"2026-11-21 {clock}+09:00").timestamp()

    assert renew_at(at(expires)) == at(renewed)


def test_the_expiry_is_seouls_whatever_the_time_zone(monkeypatch: pytest.MonkeyPatch) -> None:
    import time  # noqa: PLC0415

    found = []
    for zone in ("UTC", "Asia/Seoul", "America/New_York", "Pacific/Kiritimati"):
        monkeypatch.setenv("TZ", zone)
        time.tzset()
        found.append(life(answer("2026-11-21 02:30:00"), NOON).left_s)
    monkeypatch.undo()
    time.tzset()
    assert found == [14.5 * 3600] * 4


@pytest.mark.parametrize(
    ("body", "left"),
    [
        (answer("", 4_000), 4_000.0),
        (answer("tomorrow", 4_000), 4_000.0),
        (answer("", "86400"), 3_600.0),
        (answer("", 0), 3_600.0),
        (answer("", 1), 1.0),
        (answer("", True), 3_600.0),
        ({}, 3_600.0),
        (answer("2026-11-20 11:00:00"), 86_400.0),  # gone already: the clock is wrong
        (answer("2026-12-20 11:00:00", 10**9), 86_400.0),
        (answer("9999-99-99 11:00:00", -5), 3_600.0),
    ],
)
def test_a_life_that_cannot_be_read_is_short(body: dict[str, Any], left: float) -> None:
    of = life(body, NOON)
    assert of.left_s == left
    assert 0 <= of.renew_s <= left


def test_a_life_of_a_day_and_five_minutes_is_believed_and_no_longer_one() -> None:
    assert life(answer("2026-11-21 12:05:00"), NOON) == Life(
        86_700.0, 19 * 3600.0, "2026-11-21 12:05:00"
    )
    assert life(answer("2026-11-21 12:05:01"), NOON).clock_off
    assert life(answer("2026-11-20 12:00:00"), NOON).clock_off
    assert not life(answer("2026-11-20 12:00:01"), NOON).clock_off


@pytest.mark.parametrize("expires", ["", "2026-11-20 11:00:00"])
def test_a_token_without_a_date_is_renewed_half_an_hour_before_its_assumed_end(
    expires: str,
) -> None:
    of = life(answer(expires, 4_000), NOON)
    assert (of.left_s, of.renew_s) == (4_000.0, 2_200.0)
    assert life(answer(expires, 600), NOON).renew_s == 0.0
    assert life(answer("2026-11-20 12:10:00"), NOON).renew_s == 0.0


STEPS = st.lists(
    st.tuples(
        st.floats(0.0, 4_000.0),
        st.sampled_from(
            ["ask", "ask", "ask", "refuse", "work", "restart", "renew", "crash", "change"]
        ),
        st.sampled_from(["new", "same", "failed", "unsent"]),
        st.floats(0.0, 0.99),
    ),
    max_size=60,
)


@given(STEPS)
@settings(max_examples=200)
def test_kis_is_asked_once_a_minute_at_most_whatever_happens(
    steps: list[tuple[float, str, str, float]],
) -> None:
    now, asked, number = 0.0, [], 0
    under_test = book()
    for pause, what, outcome, jitter in steps:
        now += pause
        token = under_test.usable(now)
        if what == "ask" and under_test.due(now) and under_test.ready(now) <= now:
            under_test.begin(now)
            if outcome == "unsent":
                under_test.unsent(now)
                continue
            asked.append(now)
            now += jitter * 10
            number += outcome == "new"
            if outcome == "failed":
                under_test.failed("no", now, jitter)
            else:
                under_test.issued(Secret(f"t{number}"), DAY, now)
                assert under_test.usable(now) is not None
        elif what == "crash" and under_test.ready(now) <= now:
            # Killed between the record's write and the answer: only the record is left.
            under_test.begin(now)
            record = under_test.record(now)
            asked.append(now)
            now += jitter * 100
            under_test = book(record.aged(jitter * 100), now)
        elif what == "refuse" and token is not None:
            under_test.refused(token, now, now, jitter, certain=True)
            assert under_test.usable(now) is None
        elif what == "work" and token is not None:
            under_test.worked(token, now)
        elif what == "restart":
            again = TokenRecord.from_map(under_test.record(now).to_map())
            under_test = book(again.aged(jitter * 5), now + jitter * 5)
            now += jitter * 5
        elif what == "renew":
            under_test.renew()
        elif what == "change":
            under_test.change(MINUTE, now)
    assert all(b - a >= 60.0 for a, b in itertools.pairwise(asked))


@given(st.lists(st.tuples(st.floats(0.0, 7_200.0), st.floats(0.0, 0.99)), max_size=30))
def test_a_valid_token_is_used_while_its_renewal_fails(steps: list[tuple[float, float]]) -> None:
    under_test = book()
    under_test.begin(0.0)
    under_test.issued(Secret("t"), DAY, 0.0)
    now = 0.0
    for pause, jitter in steps:
        now += pause
        if now >= 86_400.0:
            break
        assert under_test.usable(now) is not None
        assert under_test.stopped(now) is None
        if under_test.due(now) and under_test.ready(now) <= now:
            under_test.begin(now)
            under_test.failed("no", now, jitter)


def test_one_fresh_token_then_a_stop_that_grows() -> None:
    under_test = book()
    under_test.begin(0.0)
    under_test.issued(Secret("t0"), DAY, 0.0)
    now, waits = 1_000.0, []
    first = under_test.usable(now)
    assert first is not None
    under_test.refused(first, now - 1, now, 0.0)
    for _ in range(40):  # that were under way
        under_test.refused(first, now - 1, now, 0.0)
    assert under_test.usable(now) is first
    under_test.refused(first, now, now, 0.0)  # once more: it is dead
    assert under_test.stopped(now) is None
    for number in range(4):
        under_test.begin(now)
        under_test.issued(Secret(f"t{number + 1}"), DAY, now)
        fresh = under_test.usable(now)
        assert fresh is not None
        under_test.refused(first, now, now, 0.0)  # a late answer about the old one changes nothing
        assert under_test.usable(now) is fresh
        under_test.refused(fresh, now, now, 0.0, certain=True)
        waits.append(under_test.stopped(now))
        now = under_test.ready(now)
    assert waits == [63.0, 300.0, 900.0, 900.0]
    under_test.begin(now)
    under_test.issued(Secret("good"), DAY, now)
    good = under_test.usable(now)
    assert good is not None
    under_test.worked(good, now)
    under_test.refused(good, now + 5_000, now + 5_000, 0.0, certain=True)
    assert under_test.stopped(now + 5_000) is None


def test_a_good_token_that_is_refused_now_and_then_stays() -> None:
    under_test = book()
    under_test.begin(0.0)
    under_test.issued(Secret("t"), DAY, 0.0)
    token = under_test.usable(0.0)
    assert token is not None
    for now in range(1, 100):
        under_test.refused(token, now - 0.5, float(now), 0.0)
        under_test.worked(token, now - 0.4)  # it was under way too: that proves nothing
        under_test.refused(token, now - 0.3, now + 0.1, 0.0)
        under_test.worked(token, now + 0.2)
        assert under_test.usable(now + 0.5) is token


@pytest.mark.parametrize("sent", [False, True])
def test_a_refused_token_is_tried_again_where_no_other_can_be_had(*, sent: bool) -> None:
    under_test = book()
    under_test.begin(0.0)
    under_test.issued(Secret("t"), DAY, 0.0)
    token = under_test.usable(100.0)
    assert token is not None
    under_test.refused(token, 100.0, 100.0, 0.0, certain=True)
    assert under_test.usable(100.0) is None
    under_test.begin(100.0)
    if sent:
        under_test.failed("no answer", 110.0, 0.0)
    else:
        under_test.unsent(110.0)
    assert under_test.usable(110.0) is token


def test_where_kis_cannot_be_reached_the_pauses_are_short_and_grow() -> None:
    under_test = book()
    waits, now = [], 0.0
    for _ in range(7):
        under_test.begin(now)
        under_test.unsent(now)
        waits.append(under_test.ready(now) - now)
        now = under_test.ready(now)
    assert waits == [1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 30.0]
    assert str(under_test.why) == "KIS cannot be reached"


def test_a_failure_turns_callers_away_until_the_next_try() -> None:
    under_test = book()
    waits, now = [], 0.0
    for _ in range(4):
        under_test.begin(now)
        under_test.failed("EGW00133", now, 0.0)
        waits.append(under_test.stopped(now))
        now = under_test.ready(now)
    assert waits == [63.0, 300.0, 900.0, 900.0]
    assert under_test.why == "EGW00133"
    assert under_test.stopped(now) is None


def test_the_minute_between_two_issues_turns_nobody_away() -> None:
    under_test = book(TokenRecord(tries=(10.0,)))
    assert under_test.stopped(0.0) is None
    assert under_test.ready(0.0) == pytest.approx(53.0)


def test_the_same_token_again_is_not_asked_for_again_at_once() -> None:
    under_test = book()
    under_test.begin(0.0)
    assert under_test.issued(Secret("t"), Life(1_000.0, 0.0), 0.0)
    under_test.begin(100.0)
    assert not under_test.issued(Secret("t"), Life(900.0, 0.0), 100.0)
    assert under_test.due_at(100.0) == 1_000.0


def test_a_token_of_another_process_is_taken() -> None:
    under_test = book()
    under_test.begin(0.0)
    under_test.issued(Secret("old"), DAY, 0.0)
    old = under_test.usable(10.0)
    assert old is not None
    under_test.refused(old, 9.0, 10.0, 0.0, certain=True)
    record = TokenRecord(Secret("new"), 80_000.0, 70_000.0, "", (5.0,))
    assert under_test.adopt(record, 20.0)
    assert under_test.usable(20.0) is not None
    assert not under_test.adopt(record, 30.0)


@given(
    st.one_of(
        st.none(),
        st.lists(st.integers()),
        st.dictionaries(st.text(), st.integers()),
        st.fixed_dictionaries(
            {
                "value": st.one_of(st.text(), st.integers()),
                "left_s": st.one_of(st.floats(), st.text()),
                "renew_s": st.floats(),
                "expires": st.one_of(st.text(), st.none()),
                "tries": st.one_of(st.lists(st.floats()), st.integers()),
                "failures": st.one_of(st.integers(), st.booleans()),
                "wait_s": st.floats(),
            }
        ),
    )
)
def test_a_file_that_was_not_written_by_us_is_an_error_and_nothing_else(data: Any) -> None:
    try:
        record = TokenRecord.from_map(data)
    except ValueError:
        return
    assert math.isfinite(record.left_s)
    book(record)


def had(under_test: TokenBook, now: float) -> Token:
    token = under_test.usable(now)
    assert token is not None
    return token


def with_token(value: str = "t", of: Life = DAY, at: float = 0.0) -> TokenBook:
    """A book whose token was asked for at 0."""
    under_test = book()
    under_test.begin(0.0)
    under_test.issued(Secret(value), of, at)
    return under_test


def test_what_was_on_disk_goes_on() -> None:
    record = TokenRecord(Secret("t"), left_s=100.0, renew_s=40.0, expires="then")
    under_test = book(record, now=1000.0)
    token = had(under_test, 1000.0)
    assert (token.expires_at, token.renew_at, token.expires) == (1100.0, 1040.0, "then")
    assert under_test.usable(1099.9) is token
    assert under_test.usable(1100.0) is None
    assert under_test.record(1030.0) == TokenRecord(Secret("t"), 70.0, 10.0, "then")
    assert under_test.record(1050.0).renew_s == 0.0


@pytest.mark.parametrize(
    "nothing", [TokenRecord(), TokenRecord(Secret("t")), TokenRecord(left_s=100.0)]
)
def test_a_record_without_a_living_token_is_none(nothing: TokenRecord) -> None:
    under_test = book(nothing)
    assert under_test.usable(0.0) is None
    assert under_test.record(0.0) == TokenRecord()
    assert str(under_test.why) == ""
    assert str(book(TokenRecord(failures=1, wait_s=5.0)).why) == "the last issue failed"


def test_no_record_makes_anybody_wait_for_longer_than_twice_the_longest_pause() -> None:
    long = {**TokenRecord().to_map(), "wait_s": 5_000.0, "left_s": 10**6}
    read = TokenRecord.from_map(long)
    assert (read.wait_s, read.left_s) == (1_800.0, 86_700.0)
    assert TokenRecord.from_map({**long, "wait_s": 5.0, "left_s": 7.0}).wait_s == 5.0


def test_a_refused_token_is_probed_ever_more_rarely() -> None:
    under_test = with_token()
    token = had(under_test, 10.0)
    assert (under_test.probe(10.0), under_test.probe_at()) == (None, math.inf)
    under_test.refused(token, 100.0, 100.0, 0.0, certain=True)
    pauses, now = [], 100.0
    for _ in range(8):
        due = under_test.probe_at()
        assert under_test.probe(due - 0.01) is None
        assert under_test.probe(due) is token
        pauses.append(due - now)
        now = due
    assert pauses == [2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0]
    assert under_test.probe(86_400.0) is None, "its life is over"


def test_a_probe_that_worked_brings_the_token_back() -> None:
    under_test = with_token()
    under_test.refused(had(under_test, 1.0), 1.0, 1.0, 0.0, certain=True)
    under_test.begin(100.0)
    under_test.issued(Secret("new"), DAY, 100.0)
    token = had(under_test, 100.0)
    assert token.forced
    under_test.refused(token, 110.0, 110.0, 0.5, certain=True)
    assert under_test.ready(110.0) == 110.0 + 63.0
    for sent_at in (105.0, 110.0):  # under way when it was refused
        assert not under_test.worked(token, sent_at)
        assert under_test.usable(111.0) is None
    assert under_test.worked(token, 112.0)
    assert under_test.usable(112.0) is token
    assert str(under_test.why) == ""
    assert under_test.ready(112.0) == 163.0, "only KIS's minute is left"
    assert not under_test.worked(token, 113.0)


def test_an_answer_ends_the_suspicion() -> None:
    under_test = with_token()
    token = had(under_test, 1.0)
    for at in (10.0, 20.0):
        under_test.refused(token, at, at, 0.0)
        under_test.worked(token, at + 1)
        assert under_test.usable(at + 2) is token
    under_test.refused(token, 30.0, 30.0, 0.0)
    under_test.refused(token, 31.0, 31.0, 0.0)
    assert under_test.usable(32.0) is None


@pytest.mark.parametrize("failed", [False, True])
def test_kis_may_have_counted_an_issue_as_late_as_its_answer_came(*, failed: bool) -> None:
    under_test = book()
    under_test.begin(0.0)
    if failed:
        under_test.failed("no", 10.0, 0.0)
    else:
        under_test.issued(Secret("t"), DAY, 10.0)
    assert under_test.ready(10.0) == 73.0
    assert under_test.issue_in(10.0) == 63.0
    record = TokenRecord(Secret("x"), 100.0, 50.0, "", (10.0,))
    assert not under_test.adopt(record, 15.0), "it tells of what was asked before that"


def test_up_to_a_tenth_is_added_to_the_pause_after_a_failure() -> None:
    under_test = book()
    under_test.begin(0.0)
    under_test.failed("no", 0.0, 0.5)
    under_test.begin(63.0)
    under_test.failed("no", 63.0, 0.5)
    assert under_test.ready(63.0) == pytest.approx(63.0 + 315.0)
    assert under_test.record(63.0).wait_s == pytest.approx(315.0)


@pytest.mark.parametrize("how", ["issued", "adopted"])
def test_a_token_ends_the_row_of_failures(how: str) -> None:
    under_test = book()
    now = 0.0
    for _ in range(2):
        now = under_test.ready(now)
        under_test.begin(now)
        under_test.failed("no", now, 0.0)
    now = under_test.ready(now) + 100.0
    if how == "issued":
        under_test.begin(now)
        under_test.issued(Secret("t"), DAY, now)
        assert str(under_test.why) == ""
    else:
        assert under_test.adopt(TokenRecord(Secret("t"), 100.0, 50.0, "", (5.0,)), now)
    assert under_test.ready(now + 100.0) == now + 100.0
    assert under_test.record(now).failures == 0
    now += 100.0
    under_test.begin(now)
    under_test.failed("no", now, 0.0)
    assert under_test.record(now).wait_s == 60.0


def test_reaching_kis_again_makes_the_pauses_short_again() -> None:
    under_test = book()
    now = 0.0
    for _ in range(3):
        under_test.begin(now)
        under_test.unsent(now)
        now = under_test.ready(now)
    under_test.begin(now)
    under_test.issued(Secret("t"), DAY, now)
    now = under_test.ready(now)
    under_test.begin(now)
    under_test.unsent(now)
    assert under_test.ready(now) == now + 1.0


def test_a_new_token_is_renewed_when_its_life_says() -> None:
    under_test = with_token(of=Life(1_000.0, 10.0))
    assert had(under_test, 0.0).renew_at == 10.0
    assert not under_test.due(9.9)
    assert under_test.due(10.0)


def test_a_person_may_have_it_renewed_and_kis_limit_binds_all_the_same() -> None:
    under_test = with_token()
    assert not under_test.due(1.0)
    under_test.renew()
    assert under_test.due(1.0)
    assert under_test.due_at(1.0) == 63.0


def test_other_limits_know_what_was_asked_for_before() -> None:
    under_test = with_token()
    under_test.change(Window(1, 100.0), 10.0)
    assert under_test.ready(10.0) == 105.0


def test_only_what_was_asked_for_after_ours_is_taken_from_another_process() -> None:
    def record(value: str, asked: float) -> TokenRecord:
        return TokenRecord(Secret(value), 1_000.0, 500.0, "", (20.0 - asked,))

    under_test = with_token()
    for asked in (0.0, 0.5, 1.0):  # our own, read back
        assert not under_test.adopt(record("x", asked), 20.0)
    assert under_test.adopt(record("x", 15.0), 20.0)
    assert (had(under_test, 20.0).value, had(under_test, 20.0).expires_at) == (
        Secret("x"),
        1_020.0,
    )
    assert not under_test.adopt(record("y", 15.5), 20.0)
    assert under_test.adopt(record("z", 18.0), 20.0)


def test_more_issues_than_anybody_makes_were_not_written_by_us() -> None:
    good = TokenRecord(tries=(1.0,) * 1_000).to_map()
    assert len(TokenRecord.from_map(good).tries) == 1_000
    with pytest.raises(ValueError, match="tries"):
        TokenRecord.from_map({**good, "tries": [1.0] * 1_001})


def test_nothing_shows_the_token() -> None:
    under_test = book(TokenRecord(Secret("CANARY"), 100.0, 50.0))
    shown = [under_test.record(0.0), under_test.status(0.0), under_test.usable(0.0), under_test]
    assert "CANARY" not in repr(shown)


def test_what_is_asked_for_a_second_after_ours_is_another_issue() -> None:
    under_test = with_token()
    record = TokenRecord(Secret("x"), 1_000.0, 500.0, "", (18.5,))
    assert under_test.adopt(record, 20.0)


def test_an_adopted_token_may_be_what_we_have_or_nothing_and_its_issue_counts() -> None:
    for value, left_s in (("t", 1_000.0), ("", 1_000.0), ("x", 0.0)):
        under_test = with_token()
        token = had(under_test, 0.0)
        record = TokenRecord(Secret(value), left_s, 500.0, "", (10.0,))
        assert not under_test.adopt(record, 200.0)
        assert under_test.usable(200.0) is token
        assert under_test.issue_in(200.0) == pytest.approx(53.0)


def test_a_record_ages() -> None:
    record = TokenRecord(Secret("t"), 100.0, 50.0, "then", (30.0, 5.0), 2, 20.0)
    assert record.aged(10.0) == TokenRecord(Secret("t"), 90.0, 40.0, "then", (40.0, 15.0), 2, 10.0)
    assert record.aged(1_000.0) == TokenRecord(
        Secret("t"), 0.0, 0.0, "then", (1_030.0, 1_005.0), 2, 0.0
    )


def test_a_refusal_is_heard_once_and_only_of_the_token_in_use() -> None:
    under_test = with_token()
    token = had(under_test, 1.0)
    under_test.refused(token, 100.0, 100.0, 0.0, certain=True)
    under_test.refused(token, 101.0, 101.5, 0.0, certain=True)
    assert (under_test.probe_at(), under_test.refused_at) == (102.0, 100.0)
    under_test.begin(110.0)
    under_test.issued(Secret("new"), DAY, 110.0)
    under_test.refused(token, 120.0, 120.0, 0.0, certain=True)
    assert had(under_test, 120.0).value == Secret("new")
    assert not under_test.worked(token, 130.0)


def test_a_token_that_works_does_not_shorten_the_wait_after_a_failed_renewal() -> None:
    under_test = with_token()
    token = had(under_test, 0.0)
    under_test.begin(100.0)
    under_test.failed("no", 100.0, 0.0)
    under_test.begin(163.0)
    under_test.failed("no", 163.0, 0.0)
    assert not under_test.worked(token, 170.0)
    assert under_test.ready(170.0) == 463.0
    assert under_test.why == "no"
    assert under_test.record(500.0).wait_s == 0.0


def test_a_fresh_token_that_worked_ends_the_row_of_refusals() -> None:
    under_test = with_token()
    now = 100.0
    under_test.refused(had(under_test, now), now, now, 0.0, certain=True)
    for works, wait in ((False, 63.0), (False, 300.0), (True, 0.0), (False, 63.0)):
        under_test.begin(now)
        under_test.issued(Secret(f"t{now}"), DAY, now)
        fresh = had(under_test, now)
        if works:
            under_test.worked(fresh, now)
        under_test.refused(fresh, now, now, 0.0, certain=True)
        assert (under_test.stopped(now) or 0.0) == wait
        now = under_test.ready(now)


def test_one_answer_is_enough_to_forget_one_refusal() -> None:
    under_test = with_token()
    token = had(under_test, 1.0)
    under_test.refused(token, 10.0, 10.0, 0.0)
    under_test.worked(token, 10.0)
    under_test.refused(token, 20.0, 20.0, 0.0)
    assert under_test.usable(20.0) is token
    under_test.worked(token, 19.9)
    under_test.refused(token, 20.0, 21.0, 0.0)
    assert under_test.usable(21.0) is None, "an answer of before proves nothing"


def test_a_status_tells_of_the_token_and_of_the_next_issue() -> None:
    under_test = with_token(of=Life(1_000.0, 400.0, "then"))
    assert under_test.status(100.0) == {
        "state": "valid",
        "left_s": 900.0,
        "renew_in_s": 300.0,
        "expires_kst": "then",
        "next_issue_in_s": 0.0,
        "failures": 0,
        "why": None,
    }
    assert under_test.status(500.0)["renew_in_s"] == 0.0
    under_test.refused(had(under_test, 500.0), 500.0, 500.0, 0.0, certain=True)
    assert under_test.status(500.0)["state"] == "refused"
    assert book().status(0.0)["state"] == "none"


def test_what_was_on_disk_binds_the_next_issue() -> None:
    waiting = TokenRecord(tries=(70.0,), failures=2, wait_s=200.0)
    assert book(waiting, now=1_000.0).ready(1_000.0) == 1_200.0
    assert book(TokenRecord(Secret("t"), 0.5), now=1_000.0).usable(1_000.0) is not None
    other = TokenRecord(Secret("x"), 1_000.0, 500.0, "", (70.0,))
    assert not book(waiting, now=1_000.0).adopt(other, 1_000.0), "it is the issue we know of"
    later = TokenRecord(Secret("x"), 1_000.0, 500.0, "", (30.0,))
    under_test = book(waiting, now=1_000.0)
    assert under_test.adopt(later, 1_000.0)
    assert had(under_test, 1_000.0).renew_at == 1_500.0


def test_a_person_need_not_wait_for_what_failed_before() -> None:
    under_test = book(TokenRecord(failures=2, wait_s=200.0))
    under_test.renew()
    assert under_test.ready(0.0) == 0.0
