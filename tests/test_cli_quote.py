"""``kisfeed quote`` and ``kisfeed stress`` against a daemon on a simulator.

``python -m tests.test_cli_quote`` writes ``quote.schema.json`` from the call's shape.
"""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING, Any

import pytest
from rich.console import Console

import kisfeed
from kisfeed import cli, schemas
from kisfeed.cli import quote
from kisfeed.client.sync import Client
from kisfeed.kfp.models import Answers, Price
from tests.test_cli_schemas import validator
from tests.test_cli_session import ask, english, socket

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["ask", "english", "socket"]  # fixtures: the daemon, and a command run against it


def quote_schema() -> dict[str, Any]:
    head = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "kisfeed quote --json",
        "description": "The result of the KFP/1 call quotes.",
    }
    result: dict[str, Any] = schemas.load("kfp1/calls.json")["calls"]["quotes"]["result"]
    return head | result


def test_the_published_shape_is_the_calls() -> None:
    assert schemas.load("cli/quote.schema.json") == quote_schema()


def test_prices_and_what_is_missing(ask: Any) -> None:
    answer = ask("quote", "005930", "000660")
    validator("quote").validate(answer)
    assert list(answer["items"]) == ["005930", "000660"]
    assert answer["missing"] == {}
    answer = ask("quote", "005930", "999999", "005930.KS", "--fresh", code=2)
    validator("quote").validate(answer)
    assert answer["missing"] == {"999999": "unknown_symbol", "005930.KS": "unknown_symbol"}


def test_a_table_for_people(socket: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["quote", "005930", "999999", "--socket", str(socket)]) == 2
    shown = capsys.readouterr()
    assert "005930" in shown.out
    assert "KIS knows no such symbol" in shown.err


def test_a_stale_price_says_so() -> None:
    price = Price.from_map(
        {"symbol": "005930", "venue": "krx", "scale": 0, "price": 71900, "change": -100,
         "previous_close": 72000, "open": None, "high": None, "low": None, "volume": None,
         "value": None, "ask": None, "bid": None, "upper_limit": None, "lower_limit": None,
         "source": "rest", "xts": None, "ts": 1, "stale": True}
    )  # fmt: skip
    console = Console(width=100)
    with console.capture() as capture:
        console.print(quote.table({"005930": price}))
    assert "71,900" in capture.get()
    assert "-0.14" in capture.get()
    assert "REST, stale" in capture.get()
    assert quote.as_map(Answers({}, {"a": "timeout"})) == {"items": {}, "missing": {"a": "timeout"}}


@pytest.mark.parametrize("how", [[], ["--each"]])
def test_any_number_of_threads_and_few_calls(ask: Any, how: list[str]) -> None:
    report = ask("stress", "--threads", "40", "--seconds", "1.5", "--symbols", "100", *how)
    validator("stress").validate(report)
    assert report["connections"] == (40 if how else 1)
    assert report["success_rate"] == 1.0
    assert report["kis"]["throttled"] == report["kis"]["failed"] == 0
    assert report["kis"]["most_in_a_second"] <= 18
    assert report["questions"] > 40


def test_threads_share_one_client_while_another_reads_events(socket: Path) -> None:
    found: list[Answers[Price]] = []
    with kisfeed.connect(socket=socket) as kf:
        events = kf.subscribe("trade.krx.005930")
        heard: list[object] = []

        def read() -> None:
            heard.extend(event for event, _ in zip(events, range(20), strict=False))

        def learn(number: int) -> None:
            found.append(kf.get_current_prices(*(f"{100_000 + number + n}" for n in range(10))))

        threads = [threading.Thread(target=read)]
        threads += [threading.Thread(target=learn, args=(n,)) for n in range(30)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert len(heard) == 20
        assert [len(answers) for answers in found] == [10] * 30
        days = kf.get_daily_prices("005930", days=3)
        assert len(days["005930"].bars) == 3
        assert kf.get_symbol_infos("005930")["005930"].name == "삼성전자"


def test_stress_is_for_simulators_only(
    ask: Any, monkeypatch: pytest.MonkeyPatch, socket: Path
) -> None:
    real = Client.status
    monkeypatch.setattr(Client, "status", lambda self: real(self) | {"environment": "real"})
    answer = ask("stress", "--seconds", "0.1", code=77)
    assert answer["code"] == "not_permitted"


if __name__ == "__main__":
    text = json.dumps(quote_schema(), indent=1, ensure_ascii=False) + "\n"
    (schemas.folder() / "cli" / "quote.schema.json").write_text(text, "utf-8")
