"""What the REST side promises, on hours of virtual time against the simulator's own counts.

``python -m bench.rest`` runs the same at full size and prints the figures.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import TYPE_CHECKING

import attrs
import pytest
import trio
from hypothesis import given, settings, strategies as st
from trio.testing import MockClock

from bench import rest
from kisfeed import open_feed
from kisfeed.config import Endpoints
from kisfeed.errors import KisfeedError
from kisfeed.kfp.events import Trade
from kisfeed.ops.logs import QUIET
from kisfeed.testing import Options, Rules, open_simulator

if TYPE_CHECKING:
    from pathlib import Path


def test_a_thousand_callers_expiring_tokens_and_restarts_cost_one_issue_a_minute(
    tmp_path: Path,
) -> None:
    found = trio.run(
        rest.tokens_under_load, tmp_path, 1_000, 3, clock=MockClock(autojump_threshold=0)
    )
    assert found.calls == 3_000
    assert found.failed == 0
    assert found.most_issues_a_minute == 1
    assert found.most_calls_a_second <= 18
    assert found.restarts == 2


@pytest.mark.parametrize("seed", [1, 2])
def test_two_hundred_callers_never_see_a_rate_limit(seed: int) -> None:
    found = trio.run(rest.two_hundred_callers, seed, 3, clock=MockClock(autojump_threshold=0))
    assert found.calls == 600
    assert found.rate_limited == 0
    assert found.success_rate >= 0.999
    assert found.most_calls_a_second <= 18


@given(
    st.lists(
        st.tuples(
            st.floats(0.0, 200.0),
            st.sampled_from(
                ["tokens_invalid", "token_expired", "token_too_soon", "token_down", "restart"]
            ),
        ),
        max_size=8,
    )
)
@settings(max_examples=8)
def test_whatever_happens_to_tokens_kis_is_asked_once_a_minute_at_most(
    trouble: list[tuple[float, str]],
) -> None:
    found = trio.run(rest.token_trouble, trouble, clock=MockClock(autojump_threshold=0))
    assert found.most_issues_a_minute <= 1
    assert found.most_calls_a_second <= 18


@pytest.mark.parametrize("paper", [False, True])
def test_an_order_waits_behind_no_quote(*, paper: bool) -> None:
    worst = trio.run(rest.order_delay, paper, clock=MockClock(autojump_threshold=0))
    assert worst <= (1.1 * 1.05 if paper else 1 / 18)


def test_no_secret_is_in_anything_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    found = trio.run(rest.everything_told, tmp_path, clock=MockClock(autojump_threshold=0))
    captured = capfd.readouterr()
    found.told += [caplog.text, captured.out, captured.err]
    assert len(found.canaries) >= 6, "keys, secret, account, a token and an approval key"
    assert sum(map(len, found.told)) > 5_000
    for canary in found.canaries:
        for text in found.told:
            assert canary not in text


async def test_nor_in_what_httpx_and_others_log_for_a_program_that_logs_everything(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """On real sockets: in process httpx and its parts have nothing to say."""
    for name in (None, *QUIET):  # the daemon quiets these: another test may have run one
        caplog.set_level(logging.DEBUG, name)
    async with open_simulator(Options(rules=Rules(token_gap_s=0.0))) as sim:
        config = attrs.evolve(
            rest.config_for(tmp_path), endpoints=Endpoints(sim.rest_url, sim.ws_url)
        )
        async with open_feed(config) as feed:
            kis, channel = feed.rest, feed.subscribe("trade.krx.005930")
            await kis.call(rest.price(feed))
            await kis.call(rest.balance(feed))
            with suppress(KisfeedError):
                until = trio.current_time() + 5
                await kis.post_once(rest.buy(feed), until=until, check=lambda: None)
            async for event in channel:
                if isinstance(event, Trade):
                    break
    told = [caplog.text, *(repr(record.__dict__) for record in caplog.records)]
    assert "httpcore" in {record.name.partition(".")[0] for record in caplog.records}
    canaries = rest.Told([rest.APPKEY, rest.APPSECRET, rest.ACCOUNT, rest.ACCOUNT[:8]])
    rest.read_back(tmp_path, canaries)
    assert len(canaries.canaries) == 6
    for canary in canaries.canaries:
        assert not any(canary in text for text in told), canary[:6]
