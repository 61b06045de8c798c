"""Tokens: how often they are asked for, and whether a valid one is ever not used."""

from __future__ import annotations

import datetime as dt
import itertools
import math
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from kisfeed.config import Secret
from kisfeed.core.tokens import KST, Life, TokenBook, TokenRecord, life, renew_at
from kisfeed.limits import Window

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


def test_more_issues_than_anybody_makes_were_not_written_by_us() -> None:
    good = TokenRecord(tries=(1.0,) * 1_000).to_map()
    assert len(TokenRecord.from_map(good).tries) == 1_000
    with pytest.raises(ValueError, match="tries"):
        TokenRecord.from_map({**good, "tries": [1.0] * 1_001})


def test_nothing_shows_the_token() -> None:
    under_test = book(TokenRecord(Secret("CANARY"), 100.0, 50.0))
    shown = [under_test.record(0.0), under_test.status(0.0), under_test.usable(0.0), under_test]
    assert "CANARY" not in repr(shown)
