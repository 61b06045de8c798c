"""Metrics by the names that dashboards rely on, and the alert rules that read them."""

from __future__ import annotations

import re
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
import trio
import yaml
from prometheus_client.parser import text_string_to_metric_families

from kisfeed import schemas, seams
from kisfeed.ops.metrics import EVERY_S
from kisfeed.testing import Kind
from tests.feeds import TRADE
from tests.test_rest_requests import price, world_at

if TYPE_CHECKING:
    from pathlib import Path

    from trio.testing import MockClock

FOLDER = schemas.folder() / "ops"
PROMISED = {
    "kis_rest_req_total": {"env", "endpoint", "status"},
    "kis_rest_throttle_wait_ms": {"bucket"},
    "kis_token_issue_total": {"result"},
    "kis_ws_connect_total": {"result"},
    "kis_ws_subscribe_total": {"result"},
    "kis_ws_active_regs": set(),
    "kis_ws_reconnect_attempts_5m": set(),
}


def read(text: bytes) -> dict[str, list[Any]]:
    """Samples by the name they are asked for in a query."""
    found: dict[str, list[Any]] = {}
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            found.setdefault(sample.name, []).append(sample)
    return found


def value(found: dict[str, list[Any]], name: str, **labels: str) -> float:
    (sample,) = [s for s in found[name] if labels.items() <= s.labels.items()]
    return float(sample.value)


async def test_the_promised_names_are_there_with_their_labels(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with world_at(tmp_path) as world:
        world.feed.subscribe(TRADE)
        await world.streaming()
        await world.feed.rest.call(price(world.feed.rest))
        world.kis.inject(Kind.RATE_LIMITED)
        await world.feed.rest.call(price(world.feed.rest))
        asked = read(world.feed.metrics.text())
        world.kis.inject(Kind.CUT)
        await trio.sleep(60)
        await world.streaming()
        found = read(world.feed.metrics.text())
    for name, labels in PROMISED.items():
        samples = found.get(name) or found[f"{name}_bucket"]
        assert all(labels <= s.labels.keys() for s in samples), name
    price_of = {"env": "sim", "endpoint": "inquire_price"}
    assert value(asked, "kis_rest_req_total", **price_of, status="ok") == 2
    assert value(asked, "kis_rest_req_total", **price_of, status="rate_limited") == 1
    assert value(asked, "kis_rest_throttle_wait_ms_count", bucket="rest_sim") == 3
    assert value(asked, "kis_token_issue_total", result="ok") == 1
    assert value(found, "kis_ws_connect_total", result="ok") == 2
    assert value(found, "kis_ws_subscribe_total", result="ok") == 2
    assert value(found, "kis_ws_active_regs") == 1
    assert value(found, "kis_ws_reconnect_attempts_5m") == 1
    assert value(found, "kis_breaker_open", breaker="session") == 0
    assert value(found, "kis_rest_queue", priority="order") == 0
    assert value(found, "kis_quotes_queue", kind="quotes") == 0
    assert value(found, "kis_orders_queue") == 0
    assert value(asked, "kis_rest_latency_ms_count", endpoint="inquire_price") == 3


async def test_attempts_are_forgotten_after_five_minutes(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with world_at(tmp_path) as world:
        world.feed.subscribe(TRADE)
        await world.streaming()
        await trio.sleep(100)
        world.kis.inject(Kind.CUT)
        await trio.sleep(60)
        await world.streaming()
        assert value(read(world.feed.metrics.text()), "kis_ws_reconnect_attempts_5m") == 1
        await trio.sleep(300)
        assert value(read(world.feed.metrics.text()), "kis_ws_reconnect_attempts_5m") == 0


async def test_the_file_is_written_again_and_again_and_a_full_disk_ends_nothing(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    class Full(seams.DirectDisk):
        async def write(self, path: Path, data: bytes) -> None:  # noqa: ARG002
            raise OSError(28, "no space left on device")

    file = tmp_path / "metrics.prom"
    full = Full()
    async with world_at(tmp_path) as world, trio.open_nursery() as nursery:
        nursery.start_soon(world.feed.metrics.run, file, full)
        nursery.start_soon(world.feed.metrics.run, file, seams.DirectDisk())
        await trio.sleep(1)
        first = file.read_bytes()
        await world.feed.rest.call(price(world.feed.rest))
        await trio.sleep(EVERY_S)
        assert file.read_bytes() != first
        assert b"kis_rest_req_total{" in file.read_bytes()
        nursery.cancel_scope.cancel()


def rules() -> list[dict[str, Any]]:
    return [
        r for g in yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"] for r in g["rules"]
    ]


async def test_every_alert_asks_for_metrics_and_labels_that_exist(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with world_at(tmp_path) as world:
        await world.feed.rest.call(price(world.feed.rest))
        found = read(world.feed.metrics.text())
    assert {r["alert"] for r in rules()} >= {
        "KisTokenIssues", "KisReconnects", "KisSubscribeFailures", "KisBreakerOpen",
    }  # fmt: skip
    for rule in rules():
        names = re.findall(r"\bkis_\w+", rule["expr"])
        assert names, rule["alert"]
        assert set(names) <= found.keys(), rule["alert"]
        for label in re.findall(r"{(\w+)\W", rule["expr"]):
            assert any(label in s.labels for name in names for s in found[name])
        assert {"summary", "description"} <= rule["annotations"].keys()


def test_every_alert_has_a_unit_test_that_fires_it() -> None:
    tests = yaml.safe_load((FOLDER / "alerts.test.yml").read_text())
    fired = {
        case["alertname"]: case["exp_alerts"]
        for test in tests["tests"]
        for case in test["alert_rule_test"]
    }
    assert fired.keys() == {r["alert"] for r in rules()}
    for rule in rules():
        for expected in fired[rule["alert"]]:
            assert rule["labels"].items() <= expected["exp_labels"].items()
            told = rule["annotations"]["summary"]
            for name, shown in expected["exp_labels"].items():
                told = told.replace(f"{{{{ $labels.{name} }}}}", shown)
            assert told == expected["exp_annotations"]["summary"]


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_runs_the_alerts_unit_tests() -> None:
    subprocess.run(["promtool", "test", "rules", "alerts.test.yml"], cwd=FOLDER, check=True)
