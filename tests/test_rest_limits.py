"""The user's own limits over the shipped ones: read, refused, watched and applied."""

from __future__ import annotations

import datetime as dt
import json
from typing import TYPE_CHECKING, Any

import jsonschema
import pytest
import trio
from hypothesis import given, strategies as st

from kisfeed import schemas, seams
from kisfeed.config import Environment
from kisfeed.errors import ConfigError
from kisfeed.limits import Window, origins, overlaid, resolve, shared
from kisfeed.rest import limits_watch
from kisfeed.rest.limits_watch import LOOK_S, problems
from kisfeed.testing import Happening, Options, Rules
from tests.feeds import TRADE
from tests.test_rest_requests import price, world_at

if TYPE_CHECKING:
    from pathlib import Path

    from trio.testing import MockClock

TODAY = dt.date(2026, 11, 20)
SHIPPED = schemas.load("limits.kis.json")
NOTICE = {
    "count": 12, "per_s": 1, "applies_to": ["real", "sim"], "date": "2026-11-15",
    "source_kind": "notice", "note": "a notice of mine",
}  # fmt: skip


def mine(**changes: Any) -> dict[str, Any]:
    return {"version": "mine", "rules": {"rest": {"candidates": [NOTICE]}}, **changes}


def test_a_rule_of_the_users_stands_in_place_of_the_shipped_one() -> None:
    found = resolve(overlaid(SHIPPED, mine()), "real", TODAY)
    shipped = resolve(SHIPPED, "real", TODAY)
    assert found.rest == Window(12, 1)
    assert (found.tokens, found.registrations) == (shipped.tokens, shipped.registrations)
    assert found.version == f"{shipped.version}+mine"


def test_a_share_leaves_room_for_others() -> None:
    data = overlaid(SHIPPED, {"version": "v", "share": 0.5})
    assert resolve(data, "real", TODAY).rest == Window(9, 1)
    assert resolve(data, "paper", TODAY).rest == Window(1, 2.0)
    assert resolve(data, "real", TODAY).tokens == resolve(SHIPPED, "real", TODAY).tokens
    assert resolve(data, "real", TODAY).version.endswith("+v*0.5")


@given(st.integers(1, 1000), st.floats(0.1, 100.0), st.floats(0.001, 1.0, exclude_min=True))
def test_a_share_is_never_exceeded(count: int, seconds: float, share: float) -> None:
    part = shared(Window(count, seconds), share)
    assert part.count / part.seconds <= count / seconds * share * (1 + 1e-6)
    assert part.count >= 1
    assert shared(Window(count, seconds), 1.0) == Window(count, seconds)


def test_a_new_key_is_allowed_less_until_it_is_old() -> None:
    data = overlaid(SHIPPED, {"version": "v", "key_issued": "2026-11-18"})
    assert resolve(data, "real", TODAY).rest == Window(3, 1)
    assert resolve(data, "real", dt.date(2026, 11, 22)).rest == Window(18, 1)


def test_what_is_in_force_is_told_with_what_it_rests_on() -> None:
    found = {o.name: o for o in origins(SHIPPED, "real", TODAY)}
    assert found["rest"].value == "18 in 1 s"
    assert found["rest"].why == "newest notice"
    assert [c["date"] for c in found["rest"].used] == ["2026-04-20"]
    assert found["ws_control_ops"].why == "strictest"
    assert found["inquire_balance"].value == "1 in 1 s"


def test_the_schema_for_the_users_file_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(schemas.load("limits.user.schema.json"))
    assert problems(mine()) == []


@pytest.mark.parametrize(
    ("user", "where"),
    [
        ([], "file"),
        ({}, "file"),
        ({"version": "a b"}, "version"),
        (mine(share=0), "share"),
        (mine(share=1.5), "share"),
        (mine(key_issued="yesterday"), "key_issued"),
        (mine(shares=0.5), "file"),
        (mine(session={}), "file"),
        (mine(rules={"rset": {"candidates": [NOTICE]}}), "rules"),
        (mine(rules={"rest": {"candidates": []}}), "rules.rest.candidates"),
        (
            mine(rules={"rest": {"candidates": [{**NOTICE, "count": 0}]}}),
            "rules.rest.candidates.0.count",
        ),
        (
            mine(rules={"rest": {"candidates": [{**NOTICE, "date": "2026-13-01"}]}}),
            "rules.rest.candidates.0.date",
        ),
    ],
)
def test_a_typo_is_told_with_its_place(user: Any, where: str) -> None:
    assert where in [place for place, _what in problems(user)]


@pytest.mark.parametrize(
    "content",
    [
        b"{", b"\xff", b"[]", b'{"version": "v", "spacing": {"nonsense": {"candidates": []}}}',
        json.dumps(mine(spacing={"nonsense": {"candidates": [NOTICE]}})).encode(),
        json.dumps(
            mine(rules={"rest": {"candidates": [{**NOTICE, "applies_to": ["real"]}]}})
        ).encode(),
        json.dumps(
            mine(rules={"rest": {"candidates": [{**NOTICE, "effective_from": "2027-01-01"}]}})
        ).encode(),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_used_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "limits.kis.json"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=r"limits\.kis\.json"):
        limits_watch.resolve(file, Environment.SIM, TODAY)


def test_without_a_file_the_shipped_limits_are_in_force(tmp_path: Path) -> None:
    found = limits_watch.resolve(tmp_path / "none", Environment.REAL, TODAY)
    assert found == resolve(SHIPPED, "real", TODAY)


async def test_limits_are_applied_without_a_restart_and_a_bad_file_changes_nothing(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    options = Options(rules=Rules(rest_per_s=5))
    file = tmp_path / "limits.kis.json"
    async with world_at(tmp_path, options=options) as world:
        kis, watch = world.feed.rest, world.feed.limits
        world.feed.subscribe(TRADE)
        await world.streaming()
        file.write_text(json.dumps(mine(rules={"rest": {"candidates": [{**NOTICE, "count": 5}]}})))
        await trio.sleep(LOOK_S + 1)
        assert kis.limits.version.endswith("+mine")
        assert kis.limits is watch.current
        assert world.feed.engine.limits is watch.current
        async with trio.open_nursery() as nursery:
            for _ in range(30):
                nursery.start_soon(kis.call, price(kis))
        assert world.kis.exchange.most_within(Happening.REST, 1.0) <= 5
        assert not world.kis.exchange.times(Happening.REST, "EGW00201")

        file.write_text("{ nonsense")
        await trio.sleep(LOOK_S + 1)
        assert kis.limits.version.endswith("+mine")
        assert "cannot be read" in (watch.refused or "")
        with pytest.raises(ConfigError):
            watch.reload()
        file.write_text(
            json.dumps({"version": "v2", "rules": {"ws_registrations": {"candidates": [
                {k: v for k, v in NOTICE.items() if k != "per_s"}]}}})
        )  # fmt: skip
        watch.reload()
        assert watch.refused is None
        assert world.feed.engine.slots_map()["cap"] == 12
        file.unlink()
        await trio.sleep(LOOK_S + 1)
        assert kis.limits == resolve(SHIPPED, "sim", TODAY)
        assert world.feed.engine.slots_map()["cap"] == 41


async def test_a_new_day_brings_its_notice_into_force(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    tomorrow = {**NOTICE, "effective_from": "2026-11-21", "count": 7}
    file = tmp_path / "limits.kis.json"
    file.write_text(json.dumps(mine(rules={"rest": {"candidates": [
        {**NOTICE, "date": "2026-11-01"}, tomorrow]}})))  # fmt: skip
    async with world_at(tmp_path) as world:
        assert world.feed.rest.limits.rest == Window(12, 1)
        assert isinstance(world.feed.clock, seams.VirtualClock)
        world.feed.clock.step_ns = 14 * 3600 * 10**9
        await trio.sleep(LOOK_S + 1)
        assert world.feed.rest.limits.rest == Window(7, 1)


async def test_a_malformed_file_at_the_start_is_told(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    (tmp_path / "limits.kis.json").write_text('{"version": "v", "sahre": 1}')
    with pytest.RaisesGroup(pytest.RaisesExc(ConfigError, match="sahre"), flatten_subgroups=True):
        async with world_at(tmp_path):
            pass
