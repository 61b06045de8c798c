"""``kisfeed order``, ``halt`` and ``resume``, against a daemon on a simulator."""

from __future__ import annotations

import errno
import functools
import json
import re
import threading
from typing import TYPE_CHECKING, Any, Self

import attrs
import pytest
import trio

import kisfeed
from kisfeed import blocking, cli, errors, schemas, texts
from kisfeed.cli import link, order as orders, settings
from kisfeed.cli.i18n import said
from kisfeed.config import Config, Gateway
from kisfeed.feed import run_daemon
from kisfeed.kfp.orders import Order
from kisfeed.rest import halt as halts
from tests import killing
from tests.test_cli_schemas import validator

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CALLS = schemas.load("kfp1/calls.json")["calls"]
TOML = """environment = "sim"
[endpoints]
rest = "http://127.0.0.1:9"
ws = "ws://127.0.0.1:9"
[credentials]
appkey = "AK"
appsecret = "AS"
account = "12345678-01"
[state]
dir = "{folder}"
[gateway]
socket = "{folder}/s.sock"
[orders]
enabled = {enabled}
"""


@attrs.frozen
class Served:
    """A daemon in a thread, and the profile that leads to it."""

    file: Path
    end: Any

    @property
    def place(self) -> list[str]:
        return ["--config", str(self.file)]


def serve(folder: Path, *, enabled: bool = True) -> Served:
    folder.chmod(0o700)
    file = folder / "p.toml"
    file.touch(0o600)
    file.write_text(TOML.format(folder=folder, enabled=str(enabled).lower()))
    config: Config = settings.load(purpose=settings.Purpose.SERVE, file=file, environ={})
    assert config.gateway == Gateway(socket=f"{folder}/s.sock")
    ready = threading.Event()
    ends: list[Any] = []

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            start = functools.partial(run_daemon, config, runtime_dir=folder, sim=killing.options())
            await nursery.start(start)
            token = trio.lowlevel.current_trio_token()
            ends.append(lambda: token.run_sync_soon(nursery.cancel_scope.cancel))
            ready.set()

    thread = threading.Thread(target=trio.run, args=(main,))
    thread.start()
    assert ready.wait(20)

    def end() -> None:
        ends[0]()
        thread.join()

    return Served(file, end)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    found = serve(tmp_path_factory.mktemp("d"))
    yield found
    found.end()


def answered(
    capsys: pytest.CaptureFixture[str], served: Served, *arguments: str
) -> tuple[int, dict[str, Any]]:
    """Run one command with --json: its exit code and what it says."""
    code = cli.run([*arguments, *served.place, "--json"])
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    return code, answer


def buy(name: str, price: str = "60000", qty: str = "2") -> list[str]:
    return ["order", "buy", "005930", "--qty", qty, "--price", price, "--id", name, "--yes"]


def test_place_again_amend_cancel_and_show(
    served: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    code, placed = answered(capsys, served, *buy("a"))
    assert (code, placed["state"], placed["client"]) == (0, "accepted", "kisfeed order")
    assert Order.from_map(placed).to_map() == placed
    validate = schemas.load("kfp1/calls.json")["calls"]["order.show"]["result"]
    assert set(placed) == set(validate["properties"])
    assert answered(capsys, served, *buy("a"))[1]["order_no"] == placed["order_no"]
    code, changed = answered(
        capsys, served, "order", "amend", "a", "--price", "60100", "--id", "a2", "--yes"
    )
    assert (code, changed["original_no"]) == (0, placed["order_no"])
    code, gone = answered(capsys, served, "order", "cancel", "a")
    assert (code, gone["original_no"]) == (0, changed["order_no"])
    assert answered(capsys, served, "order", "show", "a")[1]["numbers"][-1] == changed["order_no"]
    listed = answered(capsys, served, "order", "ls")[1]
    assert [o["id"] for o in listed["orders"]][:3] == ["a", "a2", "a.cancel"]


def test_people_read_it_in_words(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([*buy("words"), *served.place]) == 0
    told = capsys.readouterr()
    assert "buy 005930 2 @ 60,000 KRX" in told.err
    assert "accepted, number" in told.out
    assert cli.run(["order", "ls", *served.place]) == 0
    assert "words" in capsys.readouterr().out
    assert cli.run(["order", "cancel", "words", *served.place]) == 0
    seen, until = "", blocking.monotonic() + 20
    while "filled 0 of 2, cancelled 2" not in seen:  # the day's list comes late
        assert blocking.monotonic() < until, seen
        assert cli.run(["order", "show", "words", "--fresh", *served.place]) == 0
        seen = capsys.readouterr().out
    assert cli.run(["status", *served.place]) == 0
    assert re.search(r"Orders +\d+ today, ", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        (buy("x", price="60050"), 2, "tick"),
        (buy("x", qty="0"), 2, "qty"),
        (buy("x", qty="1001"), 75, "qty_cap"),
        (["order", "buy", "5930", "--qty", "1", "--id", "x", "--yes"], 2, "symbol"),
        (["order", "buy", "999999", "--qty", "1", "--id", "x", "--yes"], 2, "unknown_symbol"),
        (["order", "show", "nobody"], 2, "target"),
        (["order", "cancel", "nobody"], 2, "target"),
        (["order", "resolve", "nobody", "--odno", "1"], 2, "target"),
    ],
)
def test_bad_input_has_its_exit_code(
    arguments: list[str],
    code: int,
    reason: str,
    served: Served,
    capsys: pytest.CaptureFixture[str],
) -> None:
    got, answer = answered(capsys, served, *arguments)
    validator("error").validate(answer)
    assert (got, answer["exit_code"], answer["detail"]["reason"]) == (code, code, reason)
    # In Korean no English sentence is left: names of settings and the code in brackets are.
    assert cli.run([*arguments, *served.place, "--lang", "ko"]) == code
    told = capsys.readouterr().err
    assert re.search(r"[가-힣]", told.partition("):")[2])
    assert not re.search(r"[a-z]+ [a-z]+", told.partition("):")[2])


def test_a_text_of_another_version_is_shown_as_it_came() -> None:
    for parts in ({}, {"template": 7}, {"template": "{gone} x", "values": {}}):
        assert said("some text", parts) == "some text"


def test_the_same_id_with_another_body_is_refused(
    served: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    assert answered(capsys, served, *buy("same"))[0] == 0
    code, answer = answered(capsys, served, *buy("same", qty="1"))
    assert (code, answer["detail"]["reason"]) == (2, "id_used")
    assert answer["detail"]["order"]["qty"] == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ["order", "buy", "005930", "--qty", "1", "--id", "n"],
        ["order", "resolve", "a"],
        ["order", "resolve", "a", "--odno", "1", "--not-executed"],
        ["order", "resolve", "a", "--not-executed"],
        ["resume", "--reason", " "],
    ],
)
def test_what_is_missing_is_asked_for(
    arguments: list[str], served: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run([*arguments, *served.place]) == 2


def test_halt_and_resume(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    assert answered(capsys, served, *buy("open", price="55000"))[0] == 0
    code, answer = answered(capsys, served, "halt", "--reason", "lunch", "--cancel-open")
    assert (code, answer["halted"]["reason"], answer["daemon"]) == (0, "lunch", True)
    assert "open" in [o["target"] for o in answer["cancelled"]]
    code, answer = answered(capsys, served, *buy("no"))
    assert (code, answer["code"]) == (77, "halted")
    assert cli.run(["order", "ls", *served.place]) == 0
    assert "Ordering is halted: lunch" in capsys.readouterr().out
    assert answered(capsys, served, "resume", "--reason", "back") == (0, {"halted": None})
    assert answered(capsys, served, *buy("yes"))[0] == 0


class Answering:
    """A daemon that gives one answer, or none in time."""

    def __init__(self, answer: dict[str, Any] | None) -> None:
        self.answer = answer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def call(self, *_: object, **_arguments: object) -> dict[str, Any]:
        if self.answer is None:
            raise errors.ServerRefused("timeout", "no answer within 30 s")
        return self.answer


@pytest.mark.parametrize(
    ("language", "told"),
    [("en", "cancelling takes longer and goes on in the daemon"), ("ko", "데몬에서 계속")],
)
def test_who_waited_too_long_for_cancellations_is_told_that_they_go_on(
    language: str,
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(link, "connect", lambda *_, **__: Answering(None))
    place = ["--socket", str(tmp_path / "s.sock")]
    assert cli.run(["halt", "--cancel-open", *place, "--lang", language]) == 75
    seen = capsys.readouterr().err
    assert told in seen
    assert "kisfeed order ls" in seen
    assert cli.run(["halt", *place]) == 75
    assert "no answer within 30 s" in capsys.readouterr().err


def test_what_could_not_be_cancelled_is_named_and_has_its_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = texts.Phrase("{count} orders wait already (orders.queue)", count=1)
    left = {"client": "bot", "id": "a", "reason": "queue_full", "text": str(text)} | texts.parts(
        text
    )
    halted = {"reason": "enough", "since_ts": 1}
    answer = {"halted": halted, "cancelled": [], "not_cancelled": [left]}
    monkeypatch.setattr(link, "connect", lambda *_, **__: Answering(answer))
    place = ["--socket", str(tmp_path / "s.sock")]
    assert cli.run(["halt", "--cancel-open", *place]) == 75
    assert "not cancelled: bot/a (1 orders wait already" in capsys.readouterr().out
    assert cli.run(["halt", "--cancel-open", "--json", *place]) == 75
    assert json.loads(capsys.readouterr().out)["not_cancelled"] == [left]


def test_what_is_in_doubt_is_not_called_open_and_has_its_own_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    full = {"client": "bot", "id": "a", "reason": "queue_full", "text": "full"}
    doubt = {"client": "bot", "id": "b", "reason": "unknown", "text": "not known"}
    halted = {"reason": "enough", "since_ts": 1}
    answer = {"halted": halted, "cancelled": [], "not_cancelled": [full, doubt]}
    monkeypatch.setattr(link, "connect", lambda *_, **__: Answering(answer))
    place = ["--socket", str(tmp_path / "s.sock")]
    assert cli.run(["halt", "--cancel-open", *place]) == 79
    told = capsys.readouterr().out
    assert "Still open, not cancelled: bot/a (full)" in told
    assert "In doubt, perhaps open, not cancelled: bot/b (not known)" in told


@pytest.mark.parametrize(
    ("states", "code"),
    [
        (("accepted", "accepted"), 0),
        (("accepted", "rejected"), 75),
        (("not_sent",), 75),
        (("rejected", "unknown"), 79),
    ],
)
def test_a_cancellation_that_came_to_nothing_is_no_success(
    states: tuple[str, ...], code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cancelled = [{"client": "bot", "target": str(n), "state": s} for n, s in enumerate(states)]
    answer = {"halted": {"reason": "enough", "since_ts": 1}, "cancelled": cancelled}
    monkeypatch.setattr(link, "connect", lambda *_, **__: Answering(answer))
    assert cli.run(["halt", "--cancel-open", "--socket", str(tmp_path / "s.sock")]) == code


def test_halt_works_with_the_daemon_dead(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = serve(tmp_path)
    found.end()
    code, answer = answered(capsys, found, "halt")
    assert (code, answer["daemon"]) == (0, False)
    assert len(list(tmp_path.glob("*.halt"))) == 1
    assert cli.run(["halt", "--cancel-open", *found.place]) == 69
    assert "Nothing was cancelled" in capsys.readouterr().err
    again = serve(tmp_path)
    try:
        code, answer = answered(capsys, again, *buy("a"))
        assert (code, answer["code"]) == (77, "halted")
    finally:
        again.end()
    assert answered(capsys, found, "resume", "--reason", "looked")[0] == 0
    assert list(tmp_path.glob("*.halt")) == []
    assert b'"resume"' in next(tmp_path.glob("*.orders")).read_bytes()


def test_halt_on_a_full_disk_reaches_the_daemon_and_fails_without_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    found = serve(tmp_path)
    try:
        assert cli.run([*buy("rests", price="55000"), *found.place]) == 0
        monkeypatch.setattr(halts, "write_atomically", full)
        assert cli.run(["halt", "--cancel-open", *found.place]) == 1
        assert "halted until it ends" in capsys.readouterr().err
        code, answer = answered(capsys, found, *buy("more"))
        assert (code, answer["code"]) == (77, "halted")
        listed = answered(capsys, found, "order", "ls")[1]["orders"]
        assert "rests.cancel" in [o["id"] for o in listed]
    finally:
        found.end()
    assert cli.run(["halt", *found.place]) == 78
    assert "No space" in capsys.readouterr().err


def test_orders_are_off_unless_switched_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = serve(tmp_path, enabled=False)
    try:
        code, answer = answered(capsys, found, *buy("a"))
        assert (code, answer["code"]) == (77, "orders_disabled")
    finally:
        found.end()


def test_a_reader_places_nothing(served: Served) -> None:
    with kisfeed.connect(socket=served.file.parent / "s.sock") as kf:
        for name in ("order.preview", "order.place", "order.cancel", "order.list", "resume"):
            with pytest.raises(errors.ServerRefused) as error:
                kf.call(name)
            assert error.value.code == "not_entitled"


@pytest.mark.parametrize(
    "error", [errors.Disconnected("gone"), errors.ServerRefused("timeout", "no answer")]
)
def test_no_answer_of_the_daemon_is_an_unknown_outcome(error: Exception) -> None:
    def call() -> None:
        raise error

    with pytest.raises(errors.UnknownOutcome, match="order show a") as caught:
        orders._decide(call, "a")
    assert caught.value.exit_code == 79


def test_every_call_has_its_shape() -> None:
    served = {"order.preview", "order.place", "order.amend", "order.cancel", "order.show"}
    served |= {"order.list", "order.resolve", "halt", "resume", "balance", "orderable", "book"}
    assert served <= set(CALLS)
