"""The limits file: what is in force, by which source, on which day."""

from __future__ import annotations

import copy
import datetime as dt
from typing import TYPE_CHECKING, Any

import jsonschema
import pytest
from hypothesis import given, strategies as st

from kisfeed import schemas
from kisfeed.limits import Window, resolve

if TYPE_CHECKING:
    from collections.abc import Callable

TODAY = dt.date(2026, 11, 20)


@pytest.fixture
def data() -> Any:
    return copy.deepcopy(schemas.load("limits.kis.json"))


def _validator() -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(
        schemas.load("limits.schema.json"), format_checker=jsonschema.FormatChecker()
    )


def test_the_shipped_file_fits_its_schema_and_the_schema_is_one(data: Any) -> None:
    jsonschema.Draft202012Validator.check_schema(schemas.load("limits.schema.json"))
    _validator().validate(data)


_MISTAKES: dict[str, Callable[[Any], object]] = {
    "no version": lambda d: d.pop("version"),
    "a rule is missing": lambda d: d["rules"].pop("rest"),
    "an unknown rule": lambda d: d["rules"].update(surprise={"candidates": []}),
    "no candidate": lambda d: d["rules"]["rest"]["candidates"].clear(),
    "no window": lambda d: d["rules"]["rest"]["candidates"][0].pop("per_s"),
    "an empty window": lambda d: d["rules"]["rest"]["candidates"][0].update(per_s=0),
    "nothing allowed": lambda d: d["rules"]["rest"]["candidates"][0].update(count=0),
    "no such source": lambda d: d["rules"]["rest"]["candidates"][0].update(source_kind="rumour"),
    "no date": lambda d: d["rules"]["rest"]["candidates"][0].update(date="soon"),
    "a typo": lambda d: d["rules"]["rest"]["candidates"][0].update(typo=1),
    "a window on a number": lambda d: d["rules"]["ws_registrations"]["candidates"][0].update(
        per_s=1
    ),
    "no budget": lambda d: d["session"]["dials"].clear(),
    "slow from the start": lambda d: d["session"].update(slow_after=0),
}


@pytest.mark.parametrize("mistake", _MISTAKES)
def test_a_file_with_a_mistake_does_not_fit(data: Any, mistake: str) -> None:
    _MISTAKES[mistake](data)
    assert list(_validator().iter_errors(data))


def test_what_is_in_force_today(data: Any) -> None:
    real, paper, sim = (resolve(data, e, TODAY) for e in ("real", "paper", "sim"))
    assert real.rest == sim.rest == Window(18, 1)
    assert paper.rest == Window(1, 1)
    assert {real.tokens, paper.tokens, sim.tokens} == {Window(1, 60)}
    assert {real.registrations, paper.registrations, sim.registrations} == {41}
    assert {real.approval_keys, paper.approval_keys} == {Window(1, 1)}
    assert (real.ws_control_ops, paper.ws_control_ops) == (Window(10, 1), Window(2, 1))
    assert real.dials == (Window(3, 60), Window(12, 3600), Window(60, 86_400))
    assert (real.slow_dials_after, real.slow_dials_gap_s) == (5, 600)


def test_a_young_key_is_bound_by_its_own_rule_too(data: Any) -> None:
    assert resolve(data, "real", TODAY, key_age_days=2).rest == Window(3, 1)
    assert resolve(data, "real", TODAY, key_age_days=3.5).rest == Window(18, 1)
    assert resolve(data, "paper", TODAY, key_age_days=2).rest == Window(1, 1)


_candidates = st.lists(
    st.fixed_dictionaries(
        {
            "count": st.integers(1, 50),
            "per_s": st.sampled_from([0.5, 1, 1.1, 60]),
            "applies_to": st.just(["real"]),
            "date": st.dates(dt.date(2020, 1, 1), dt.date(2026, 12, 31)).map(dt.date.isoformat),
            "source_kind": st.sampled_from(["notice", "faq", "sample", "measured"]),
            "note": st.just(""),
        }
    ),
    min_size=1,
)


@given(_candidates)
def test_the_newest_notice_wins_else_the_strictest(candidates: list[dict[str, Any]]) -> None:
    data = copy.deepcopy(schemas.load("limits.kis.json"))
    data["rules"]["rest"]["candidates"] = candidates
    found = resolve(data, "real", TODAY).rest
    notices = [c for c in candidates if c["source_kind"] == "notice"]
    pool = notices or candidates
    if notices:
        newest = max(c["date"] for c in notices)
        pool = [c for c in notices if c["date"] == newest]
    assert found in [Window(c["count"], c["per_s"]) for c in pool]
    assert all(found.count / found.seconds <= c["count"] / c["per_s"] for c in pool)


def test_a_rule_binds_from_its_day_on(data: Any) -> None:
    data["rules"]["rest"]["candidates"].append(
        {
            "count": 9,
            "per_s": 1,
            "applies_to": ["real"],
            "date": "2026-11-01",
            "effective_from": "2026-12-01",
            "source_kind": "notice",
            "note": "",
        }
    )
    _validator().validate(data)
    assert resolve(data, "real", TODAY).rest == Window(18, 1)
    assert resolve(data, "real", dt.date(2026, 12, 1)).rest == Window(9, 1)


def test_no_rule_in_force_is_an_error_not_a_guess(data: Any) -> None:
    data["rules"]["rest"]["candidates"] = [
        c for c in data["rules"]["rest"]["candidates"] if "paper" not in c["applies_to"]
    ]
    with pytest.raises(ValueError, match="empty"):
        resolve(data, "paper", TODAY)
