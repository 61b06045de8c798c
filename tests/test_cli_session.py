"""The commands that show and steer the session, against a daemon."""

from __future__ import annotations

import contextlib
import functools
import json
import threading
from typing import TYPE_CHECKING, Any

import pytest
import trio

import kisfeed
from kisfeed import cli, feed, schemas
from kisfeed.config import Config, Credentials, Environment, Gateway, Secret, Session
from kisfeed.simulator.options import Options
from tests.test_cli_schemas import validator

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SAMSUNG, HYNIX = "trade.krx.005930", "trade.krx.000660"
CALLS = schemas.load("kfp1/calls.json")["calls"]


@pytest.fixture(scope="module")
def socket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A daemon on a simulator, in a thread of its own."""
    folder = tmp_path_factory.mktemp("d")
    folder.chmod(0o700)
    path = folder / "s.sock"
    config = Config(
        environment=Environment.SIM,
        profile="test",
        credentials=Credentials(Secret("an appkey"), Secret("its secret")),
        gateway=Gateway(socket=str(path)),
        session=Session(min_lifetime_s=1.0, time_scale=60.0),
    )
    ready = threading.Event()
    ends: list[object] = []

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(
                functools.partial(feed.run_daemon, config, runtime_dir=folder, sim=Options())
            )
            token = trio.lowlevel.current_trio_token()
            ends.append(lambda: token.run_sync_soon(nursery.cancel_scope.cancel))
            ready.set()

    thread = threading.Thread(target=trio.run, args=(main,))
    thread.start()
    assert ready.wait(20)
    yield path
    ends[0]()  # type: ignore[operator]  # what main put there
    thread.join()


@pytest.fixture(autouse=True)
def english(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KISFEED_LANG", "en")
    monkeypatch.setenv("LANGUAGE", "en")


@pytest.fixture
def ask(socket: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run a command and give its JSON answer."""

    def run(*command: str, code: int = 0) -> Any:
        assert cli.run([*command, "--json", "--socket", str(socket)]) == code
        return json.loads(capsys.readouterr().out)

    return run


@pytest.fixture
def say(socket: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run a command and give its text."""

    def run(*command: str) -> str:
        assert cli.run([*command, "--socket", str(socket)]) == 0
        return capsys.readouterr().out

    return run


@contextlib.contextmanager
def streaming(socket: Path, *topics: str) -> Iterator[None]:
    """Until a row of every topic has come, and for the length of the block."""
    with kisfeed.connect(socket=socket, client="strategy") as client:
        missing = set(topics)
        for event in client.subscribe(*topics):
            if isinstance(event, kisfeed.Trade):
                missing.discard(event.topic)
            if not missing:
                break
        yield


@pytest.mark.parametrize(
    ("shape", "call"),
    [
        ("status", "status"),
        ("slots", "slots"),
        ("clients", "clients"),
        ("slots-pin", "slots.pin"),
        ("slots-pin", "slots.unpin"),
        ("connection", "reconnect"),
        ("connection", "release"),
    ],
)
def test_a_command_prints_what_the_call_answers(shape: str, call: str) -> None:
    schema = schemas.load(f"cli/{shape}.schema.json")
    told = {name: part for name, part in schema.items() if name not in {"$schema", "title"}}
    told.pop("description")
    assert told == CALLS[call]["result"]


def test_slots_status_and_clients_fit_their_schemas(socket: Path, ask: Any) -> None:
    with streaming(socket, SAMSUNG, HYNIX):
        for name in ("slots", "status", "clients"):
            answer = ask(name)
            validator(name).validate(answer)
            schema = schemas.load(f"cli/{name}.schema.json")
            for part in ("slots", "clients", "connection", "liveness", "session"):
                if part in answer:
                    _knows_every_key(schema["properties"][part], answer[part], part)
        slots = {slot["topic"]: slot for slot in ask("slots")["slots"]}
        assert slots[SAMSUNG]["state"] == "held"
        assert slots[SAMSUNG]["users"] == 1
        assert slots[SAMSUNG]["active"] is True
        assert slots[SAMSUNG]["dwell_left_s"] <= 60
        names = [client["name"] for client in ask("clients")["clients"]]
        assert names == ["strategy", "kisfeed clients"]


def _knows_every_key(schema: dict[str, Any], answer: Any, where: str) -> None:
    """A key that is printed and not described would be found by nobody."""
    if isinstance(answer, list):
        for item in answer:
            _knows_every_key(schema.get("items", {}), item, where)
    elif isinstance(answer, dict) and "properties" in schema:
        assert set(answer) <= set(schema["properties"]), where
        for name, value in answer.items():
            _knows_every_key(schema["properties"].get(name, {}), value, f"{where}.{name}")


def test_a_pin_holds_a_slot_that_nobody_wants(ask: Any, say: Any) -> None:
    topic = "trade.krx.035420"
    answer = ask("slots", "pin", topic)
    validator("slots-pin").validate(answer)
    assert answer == {"topic": topic, "pinned": True}
    (slot,) = [slot for slot in ask("slots")["slots"] if slot["topic"] == topic]
    assert slot["pinned"] is True
    assert slot["users"] == 0
    assert "pinned" in say("slots")
    assert topic in say("slots", "unpin", topic)
    # Nobody's registration stays warm until its slot is needed.
    assert all(slot["pinned"] is False for slot in ask("slots")["slots"])


def test_options_count_before_the_subcommand_too(
    socket: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["slots", "--socket", str(socket), "unpin", SAMSUNG, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"topic": SAMSUNG, "pinned": False}


def test_an_unknown_topic_is_not_pinned(ask: Any) -> None:
    error = ask("slots", "pin", "trade.mars.1", code=2)
    validator("error").validate(error)
    assert error["code"] == "unknown_topic"


def test_status_shows_slots_budget_and_events(socket: Path, say: Any) -> None:
    with streaming(socket, SAMSUNG):
        text = say("status")
        for part in ("STREAMING", SAMSUNG, "of 12 in", "Last byte", "Last events", "strategy"):
            assert part in text, part
        every = say("status", "--events")
        assert "old=IDLE new=CONNECTING" in every
        assert len(every.splitlines()) >= len(text.splitlines())


def test_release_lends_the_session_and_reconnect_takes_it_back(
    socket: Path, ask: Any, say: Any
) -> None:
    with streaming(socket, SAMSUNG):
        answer = ask("release", "--for", "1h30m")
        validator("connection").validate(answer)
        # From the close on, which waits for the minimum lifetime.
        assert 5_300 < answer["lent_for_s"] <= 5_401
        assert "lent for" in say("status")
        answer = ask("reconnect")
        validator("connection").validate(answer)
        assert answer["lent_for_s"] is None
        assert any(e["event"] == "release" for e in ask("status")["events"])
        assert say("reconnect")


@pytest.mark.parametrize("time", ["", "0", "1x", "25h", "-5", "1m30h"])
def test_a_time_that_is_none_is_a_usage_error(time: str) -> None:
    assert cli.run(["release", f"--for={time}"]) == 2
