"""What is counted, in Prometheus's words; the alert rules are in ``schemas/ops/alerts.yml``."""

from __future__ import annotations

from collections import Counter, deque
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Final

import attrs
import trio
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)

from kisfeed.kis.rest import Priority

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from prometheus_client.core import Metric

    from kisfeed.core.counters import Histogram
    from kisfeed.feed import Feed
    from kisfeed.seams import Disk

EVERY_S: Final = 15.0
_RECENT_NS: Final = 300 * 10**9
_UP: Final = frozenset({"AUTHENTICATED", "SUBSCRIBED", "STREAMING", "DEGRADED"})


@attrs.define(eq=False)
class Metrics:
    """The metrics of one feed; read when asked for, so that counting costs the feed nothing."""

    _feed: Feed
    _connects: Counter[str] = attrs.field(factory=Counter, init=False)
    _refused: Counter[str] = attrs.field(factory=Counter, init=False)
    _attempts: deque[int] = attrs.field(factory=deque, init=False)
    _registry: CollectorRegistry = attrs.field(factory=CollectorRegistry, init=False)

    def __attrs_post_init__(self) -> None:
        self._registry.register(self)

    def note(self, entry: Mapping[str, Any]) -> None:
        """Count one entry of the engine's log."""
        match entry["event"]:
            case "state":
                old, new = entry["old"], entry["new"]
                if old == "CONNECTING":
                    self._connects["ok" if new in _UP else entry["reason"]] += 1
                if old == "RECONNECT_BACKOFF" and new == "CONNECTING":
                    self._attempts.append(entry["ts"])
            case "refused":
                self._refused[entry["msg_cd"]] += 1
            case "ackmissing":
                self._refused["ack_missing"] += 1
            case _:
                pass

    def text(self) -> bytes:
        """Everything in Prometheus's text format."""
        return generate_latest(self._registry)

    async def run(self, file: Path, disk: Disk) -> None:
        """Write *file* every 15 s until cancelled; a disk that refuses it is told elsewhere."""
        while True:
            try:
                await disk.write(file, self.text())
            except OSError:
                # Metrics are not worth ending for; the state folder's trouble is in the status.
                await trio.lowlevel.checkpoint()
            await trio.sleep(EVERY_S)

    def collect(self) -> Iterator[Metric]:
        """What Prometheus's client asks a collector for."""
        yield from self._rest()
        yield from self._quotes()
        yield from self._tokens()
        yield from self._session()
        yield from self._breakers()
        living = trio.lowlevel.current_statistics().tasks_living
        yield _gauge("kisfeed_tasks", "Trio tasks that live in the daemon", living)

    def _rest(self) -> Iterator[Metric]:
        kis, environment = self._feed.rest, str(self._feed.config.environment)
        requests = CounterMetricFamily(
            "kis_rest_req_total",
            "Requests to KIS's REST host, by what came of them",
            labels=["env", "endpoint", "status"],
        )
        for (endpoint, status), count in sorted(kis.requests.items()):
            requests.add_metric([environment, endpoint, status], count)
        yield requests
        yield _histogram(
            "kis_rest_throttle_wait_ms",
            "How long calls waited for their turn under KIS's rate limit, milliseconds",
            "bucket",
            {f"rest_{environment}": kis.gate.waits},
        )
        yield _histogram(
            "kis_rest_latency_ms",
            "From the first byte of a request to the whole answer, milliseconds",
            "endpoint",
            kis.latencies,
        )
        queue = GaugeMetricFamily(
            "kis_rest_queue", "Calls that wait for their turn", labels=["priority"]
        )
        for priority in Priority:
            queue.add_metric([priority.name.lower()], kis.gate.limiter.waiting(priority))
        yield queue
        yield _gauge("kis_rest_in_flight", "Requests that are out", kis.in_flight)
        yield _gauge(
            "kis_rest_speed",
            "How much of KIS's rate limit is used at present; below 1 after refusals",
            kis.gate.limiter.speed(),
        )
        yield InfoMetricFamily(
            "kis_limits",
            "The limits in force",
            {"limit_version": kis.limits.version, "shadow": str(kis.gate.shadow).lower()},
        )

    def _quotes(self) -> Iterator[Metric]:
        status: Any = self._feed.status()["quotes"]
        asked = CounterMetricFamily(
            "kis_quotes_total", "Questions about symbols, and calls made for them", labels=["what"]
        )
        for what, count in status["counts"].items():
            asked.add_metric([what], count)
        yield asked
        queue = GaugeMetricFamily(
            "kis_quotes_queue", "Symbols that wait for a call", labels=["kind"]
        )
        for kind, waiting in status["waiting"].items():
            queue.add_metric([kind], waiting)
        yield queue

    def _tokens(self) -> Iterator[Metric]:
        tokens = self._feed.rest.tokens
        issues = CounterMetricFamily(
            "kis_token_issue_total", "Access tokens asked for", labels=["result"]
        )
        for result, count in sorted(tokens.issues.items()):
            issues.add_metric([result], count)
        yield issues
        left: Any = tokens.status()["left_s"]
        yield _gauge("kis_token_left_seconds", "Until the access token expires", left or 0.0)

    def _session(self) -> Iterator[Metric]:
        engine = self._feed.engine
        connects = CounterMetricFamily(
            "kis_ws_connect_total", "WebSocket sessions tried", labels=["result"]
        )
        for result, count in sorted(self._connects.items()):
            connects.add_metric([result], count)
        yield connects
        subscribes = CounterMetricFamily(
            "kis_ws_subscribe_total", "Registrations acknowledged or not", labels=["result"]
        )
        missing = self._refused["ack_missing"]
        refused = self._refused.total() - missing
        subscribes.add_metric(["ok"], engine.counts["acks"] - refused)
        for result, count in sorted(self._refused.items()):
            subscribes.add_metric([result], count)
        yield subscribes
        yield _gauge("kis_ws_active_regs", "Registrations held at KIS", engine.slots_map()["used"])
        while self._attempts and self._attempts[0] < self._feed.clock.wall_ns() - _RECENT_NS:
            self._attempts.popleft()
        yield _gauge(
            "kis_ws_reconnect_attempts_5m",
            "Dials after a broken session within 5 minutes",
            len(self._attempts),
        )
        yield _gauge("kis_ws_up", "A session stands", int(str(engine.connection.state) in _UP))

    def _breakers(self) -> Iterator[Metric]:
        opened = GaugeMetricFamily(
            "kis_breaker_open", "1 while the breaker turns calls away", labels=["breaker"]
        )
        session: Any = self._feed.engine.connection.status(self._feed.clock.now())["breaker"]
        opened.add_metric(["session"], int(session["phase"] != "closed"))
        opened.add_metric(["rest"], int(self._feed.rest.breaker.open))
        yield opened
        desk = self._feed.orders.desk
        status: Mapping[str, Any] = {} if desk is None else desk.status()
        yield _gauge(
            "kis_orders_unknown",
            "Orders whose outcome is not known",
            len(status.get("in_doubt", ())),
        )
        yield _gauge("kis_orders_queue", "Orders whose turn has not come", status.get("waiting", 0))
        yield _gauge("kis_orders_halted", "Orders are halted", int(bool(status.get("halted"))))


def _gauge(name: str, what: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, what, value=value)


def _histogram(
    name: str, what: str, label: str, found: Mapping[str, Histogram]
) -> HistogramMetricFamily:
    family = HistogramMetricFamily(name, what, labels=[label])
    for value, histogram in sorted(found.items()):
        bounds = [*(str(float(bound)) for bound in histogram.bounds), "+Inf"]
        counts = accumulate(histogram.counts)
        family.add_metric(
            [value], [(b, c) for b, c in zip(bounds, counts, strict=True)], histogram.total
        )
    return family
