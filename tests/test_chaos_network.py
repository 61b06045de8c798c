from __future__ import annotations

import contextlib
import functools
import math
from typing import TYPE_CHECKING, Any

import pytest
import trio
from hypothesis import given, strategies as st

from kisfeed.chaos.network import DialFault, LeapingClock, Route
from kisfeed.seams import seeded_rng

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


def in_virtual_time(main: Callable[..., Awaitable[Any]], *args: Any) -> Any:
    return trio.run(functools.partial(main, *args), clock=LeapingClock())


async def echo(stream: trio.abc.Stream) -> None:
    try:
        while data := await stream.receive_some():
            await stream.send_all(data)
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        return
    await stream.aclose()


def route(nursery: trio.Nursery, **more: Any) -> Route:
    clock = trio.lowlevel.current_clock()
    assert isinstance(clock, LeapingClock)
    return Route("test", clock, seeded_rng(1), echo, nursery, lambda *_: None, **more)


@pytest.fixture
def leaping_clock() -> LeapingClock:
    return LeapingClock()


@given(st.lists(st.binary(min_size=1, max_size=200), max_size=20), st.booleans())
def test_bytes_arrive_whole_and_in_order_however_they_are_chopped(
    pieces: list[bytes], chopped: bool
) -> None:
    async def main() -> None:
        async with trio.open_nursery() as nursery:
            stream = await route(nursery, chopped=chopped).dial()
            for piece in pieces:
                await stream.send_all(piece)
            await stream.send_eof()
            found = b""
            while data := await stream.receive_some():
                found += data
            assert found == b"".join(pieces)
            await stream.aclose()

    in_virtual_time(main)


async def test_a_partition_holds_bytes_and_dials_until_it_heals(
    leaping_clock: LeapingClock, nursery: trio.Nursery
) -> None:
    way = route(nursery, keepalive_s=math.inf)
    stream = await way.dial()
    way.hold(30.0, up=True, down=True)
    began = trio.current_time()
    await stream.send_all(b"x")
    assert await stream.receive_some() == b"x"
    assert 30.0 <= trio.current_time() - began < 31.0
    await stream.aclose()


async def test_a_kernel_that_looks_gives_up_a_held_line_after_its_limit(
    leaping_clock: LeapingClock, nursery: trio.Nursery
) -> None:
    way = route(nursery, keepalive_s=15.0)
    stream = await way.dial()
    way.hold(up=False, down=True)
    with pytest.raises(trio.BrokenResourceError):
        await stream.receive_some()
    assert trio.current_time() == pytest.approx(15.0, abs=0.2)
    way.heal()


async def test_a_cut_loses_the_last_bytes_that_may_pass_or_lets_them_through(
    leaping_clock: LeapingClock, nursery: trio.Nursery
) -> None:
    way = route(nursery, chopped=False)
    outcomes = set()
    for _ in range(40):
        stream = await way.dial()
        way.cut(5, up=False)
        await stream.send_all(b"ab")
        found = await stream.receive_some()
        await stream.send_all(b"cdefgh")
        with contextlib.suppress(trio.BrokenResourceError):
            while data := await stream.receive_some():
                found += data
        outcomes.add(found)
    assert outcomes == {b"ab", b"abcde"}


async def test_a_heal_wakes_who_waits_on_a_mute_line(
    leaping_clock: LeapingClock, nursery: trio.Nursery
) -> None:
    way = route(nursery)
    way.fail_dials(DialFault.MUTE, 1.0)
    stream = await way.dial()
    await stream.send_all(b"x")
    await trio.sleep(10.0)
    began = trio.current_time()
    way.heal()
    assert await stream.receive_some() == b"x"
    assert trio.current_time() - began == pytest.approx(0.0, abs=0.1)
    await stream.aclose()


async def test_a_full_pipe_makes_its_sender_wait(
    leaping_clock: LeapingClock, nursery: trio.Nursery
) -> None:
    way = route(nursery, room=10.0)
    stream = await way.dial()
    way.hold(5.0, up=True, down=False)
    await stream.send_all(b"0123456789")
    began = trio.current_time()
    await stream.send_all(b"more")
    assert trio.current_time() - began == pytest.approx(5.0, abs=0.1)
    await stream.aclose()


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (DialFault.REFUSED, ConnectionRefusedError),
        (DialFault.NO_ROUTE, OSError),
        (DialFault.DNS, OSError),
    ],
)
async def test_dials_fail_as_real_ones_do(
    fault: DialFault,
    error: type[OSError],
    leaping_clock: LeapingClock,
    nursery: trio.Nursery,
) -> None:
    way = route(nursery)
    way.fail_dials(fault, 10.0)
    with pytest.raises(error):
        await way.dial()
    await trio.sleep(11)
    await (await way.dial()).aclose()


async def test_a_dial_that_hangs_goes_on_when_the_network_heals(
    leaping_clock: LeapingClock, nursery: trio.Nursery
) -> None:
    way = route(nursery)
    way.fail_dials(DialFault.HANG, 10.0)
    stream = await way.dial()
    assert trio.current_time() == pytest.approx(10.0, abs=0.1)
    await stream.aclose()
