"""Holes are measured in shares, exactly, and a new day or session is none."""

from __future__ import annotations

from hypothesis import given, strategies as st

from kisfeed.core.gaps import Missed, VolumeAccount

DAY = 20_777
quantities = st.integers(1, 10**9)


@given(
    st.integers(0, 10**12),
    st.lists(st.tuples(quantities, st.booleans()), min_size=1, max_size=40),
    st.booleans(),
)
def test_what_is_missed_is_exactly_what_was_left_out(
    start: int, trades: list[tuple[int, bool]], told_of_breaks: bool
) -> None:
    account = VolumeAccount()
    account.trade(1, start + 1, DAY, broken=False)
    cum, left_out, told = start + 1, 0, 0
    for qty, arrives in trades:
        cum += qty
        if not arrives:
            left_out += qty
            continue
        broken = told_of_breaks and left_out > told
        missed, correction = account.trade(qty, cum, DAY, broken=broken)
        assert not correction
        if left_out == told:
            assert missed is None
        else:
            assert missed == Missed(left_out - told, jump=not broken)
            told = left_out
    assert account.missed == told


@given(quantities, quantities)
def test_a_break_in_which_nothing_traded_is_told_as_such(first: int, second: int) -> None:
    account = VolumeAccount()
    account.trade(first, first, DAY, broken=False)
    assert account.trade(second, first + second, DAY, broken=True) == (Missed(0, jump=False), False)


@given(quantities, quantities, st.integers(0, 10**9))
def test_a_new_day_starts_the_account_again(before: int, qty: int, earlier: int) -> None:
    account = VolumeAccount()
    account.trade(before, before, DAY, broken=False)
    cum = qty + earlier
    assert account.trade(qty, cum, DAY + 1, broken=False) == (None, False)
    assert account.trade(qty, cum + qty, DAY + 1, broken=False) == (None, False)
    assert account.trade(5, cum + qty + 8, DAY + 1, broken=False)[0] == Missed(3, jump=True)


def test_rows_without_a_date_are_of_the_day_before_them() -> None:
    account = VolumeAccount()
    account.trade(10, 1000, DAY, broken=False)
    assert account.trade(10, 1010, None, broken=False) == (None, False)
    assert account.trade(10, 50, DAY + 1, broken=False) == (None, False)
    assert account.corrections == 0


def test_the_first_trade_of_a_day_told_twice_is_a_correction() -> None:
    account = VolumeAccount()
    assert account.trade(5, 5, DAY, broken=False) == (None, False)
    assert account.trade(5, 5, DAY, broken=False) == (None, True)


def test_what_a_break_over_midnight_cost_cannot_be_told() -> None:
    account = VolumeAccount()
    account.trade(10, 1000, DAY, broken=False)
    assert account.trade(10, 50, DAY + 1, broken=True) == (Missed(None, jump=False), False)


def test_a_session_that_counts_from_nothing_is_no_correction() -> None:
    account = VolumeAccount()
    account.trade(10, 1000, DAY, broken=False)
    assert account.trade(7, 7, DAY, broken=False) == (None, False)
    assert account.trade(3, 10, DAY, broken=False) == (None, False)
    assert account.corrections == 0


@given(st.integers(2, 10**9), st.integers(1, 10**9))
def test_a_volume_that_does_not_rise_is_a_correction(before: int, fall: int) -> None:
    account = VolumeAccount()
    account.trade(1, before, DAY, broken=False)
    cum = max(1, before - fall)
    if cum == 1:
        cum = before  # a volume of one share is a new session
    missed, correction = account.trade(1, cum, DAY, broken=False)
    assert (missed, correction) == (None, True)
    assert account.corrections == 1


def test_a_row_without_a_time_hides_no_hole() -> None:
    account = VolumeAccount()
    account.trade(10, 100, DAY, broken=False)
    assert account.trade(10, 130, None, broken=False)[0] == Missed(20, jump=True)
    assert account.trade(10, 145, DAY, broken=False)[0] == Missed(5, jump=True)


def test_rows_that_never_have_a_time_are_accounted_all_the_same() -> None:
    account = VolumeAccount()
    account.trade(10, 100, None, broken=False)
    assert account.trade(10, 130, None, broken=True)[0] == Missed(20, jump=False)


def test_a_row_without_a_volume_changes_nothing() -> None:
    account = VolumeAccount()
    account.trade(10, 100, DAY, broken=False)
    assert account.trade(None, 130, DAY, broken=False) == (None, False)
    assert account.trade(10, None, DAY, broken=False) == (None, False)
    assert account.trade(10, 130, DAY, broken=False)[0] == Missed(20, jump=True)


def test_a_break_before_any_row_or_at_a_row_without_volume_is_told_unmeasured() -> None:
    account = VolumeAccount()
    assert account.trade(10, 100, DAY, broken=True)[0] == Missed(None, jump=False)
    assert account.trade(None, None, DAY, broken=True)[0] == Missed(None, jump=False)
