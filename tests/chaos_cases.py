"""Storms as Hypothesis data: what fails, shrinks."""

from __future__ import annotations

from typing import Final

from hypothesis import strategies as st

from kisfeed.chaos.schedule import CODES, KINDS, ORDER_KINDS, Case, Setup, Step

HORIZON_S: Final = 120.0
_TIMES: Final = (0.2, 4.0, 30.0, 60.0, 91.0)


def steps(scale: float, *, orders: bool) -> st.SearchStrategy[Step]:
    kinds = KINDS + ORDER_KINDS if orders else KINDS
    # A budget that could not be written dies with its process.
    usable = [kind for kind in kinds if kind not in {"disk_full", "kis.drop_key"}]
    return st.builds(
        Step,
        dt=st.floats(0.01, 40.0),
        kind=st.sampled_from(usable),
        lasts=st.sampled_from(_TIMES).map(lambda seconds: seconds / scale),
        value=st.sampled_from([0.0, 1.0, 2.0, 3.0, 10.0, 600.0]),
        count=st.integers(1, 5),
        topic=st.integers(-1, 4),
        code=st.sampled_from(CODES),
    )


@st.composite
def storms(draw: st.DrawFn) -> Case:
    """A setup and the steps that fit it."""
    scale = draw(st.sampled_from([1.0, 20.0]))
    setup = draw(
        st.builds(
            Setup,
            scale=st.just(scale),
            horizon=st.just(HORIZON_S),
            topics=st.integers(1, 5),
            cap=st.sampled_from([41, 40, 3, 2]),
            priorities=st.booleans(),
            chopped=st.booleans(),
            keepalive=st.booleans(),
            pinned=st.booleans(),
            acknowledge_close=st.booleans(),
            orders=st.booleans(),
        )
    )
    found = draw(st.lists(steps(scale, orders=setup.orders), max_size=12))
    return Case(draw(st.integers(0, 10**6)), setup, tuple(found))
