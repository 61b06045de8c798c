"""The commands as real processes on a real socket."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.test_cli_schemas import validator

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

TOPIC = "trade.krx.005930"


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts ``kisfeed ...`` with a user of its own; what still runs at the end is killed."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("KISFEED_", "XDG_"))}
    environ |= {"HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path), "KISFEED_LANG": "en"}
    with contextlib.ExitStack() as stack:

        def run(*arguments: str) -> subprocess.Popen[str]:
            process = subprocess.Popen(
                [sys.executable, "-m", "kisfeed", *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=environ,
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            return process

        yield run


def first_line(process: subprocess.Popen[str]) -> Any:
    assert process.stdout is not None
    return json.loads(process.stdout.readline())


def read_until(process: subprocess.Popen[str], *kinds: str) -> list[dict[str, Any]]:
    """Lines up to the first of each of these types, in this order."""
    assert process.stdout is not None
    lines: list[dict[str, Any]] = []
    for kind in kinds:
        for text in process.stdout:
            lines.append(json.loads(text))
            validator("stream").validate(lines[-1])
            if lines[-1]["type"] == kind:
                break
        else:
            raise AssertionError(f"ended before {kind}")
    return lines


def test_stream_outlives_a_killed_daemon_and_tells_the_hole(
    start: Callable[..., subprocess.Popen[str]],
) -> None:
    daemon = start("serve", "--sim", "--rate", "20", "--json")
    ready = first_line(daemon)
    validator("serve").validate(ready)
    assert ready["pid"] == daemon.pid
    stream = start("stream", TOPIC)
    read_until(stream, "session", "status", "trade", "trade")
    daemon.kill()
    daemon.wait()
    lost = read_until(stream, "session")[-1]
    assert (lost["state"], lost["data"]) == ("RECONNECT_BACKOFF", 2)
    second = start("serve", "--sim", "--rate", "20", "--json")
    assert first_line(second)["socket"] == ready["socket"]  # the stale socket was taken over
    read_until(stream, "gap", "trade")
    second.send_signal(signal.SIGTERM)
    began = time.monotonic()
    assert second.wait(5) == 0
    assert time.monotonic() - began < 5
    read_until(stream, "goaway")


def test_one_daemon_answers_every_command(start: Callable[..., subprocess.Popen[str]]) -> None:
    daemon = start("serve", "--sim", "--rate", "20", "--json")
    first_line(daemon)

    counted = start("stream", TOPIC, "--count", "3")
    out, _err = counted.communicate(timeout=10)
    rows = [line for line in map(json.loads, out.splitlines()) if line["type"] == "trade"]
    assert (counted.returncode, len(rows)) == (0, 3)

    unknown = start("stream", "nonsense")
    out, err = unknown.communicate(timeout=10)
    assert (unknown.returncode, out) == (2, "")
    assert "nonsense" in err

    answered = start("status", "--json")
    out, _err = answered.communicate(timeout=10)
    validator("status").validate(json.loads(out))
    readable = start("status")
    out, _err = readable.communicate(timeout=10)
    assert "STREAMING" in out
    assert TOPIC in out

    watched = start("watch", "005930", "000660")
    assert watched.stdout is not None
    assert any(TOPIC in line and "," in line for line in watched.stdout)
    watched.stdout.close()

    piped = start("stream", TOPIC)
    assert piped.stdout is not None
    piped.stdout.readline()
    piped.stdout.close()  # as `| head -1` does
    assert piped.stderr is not None
    assert piped.wait(10) == 141
    assert piped.stderr.read() == ""

    again = start("serve", "--sim")
    _out, err = again.communicate(timeout=10)
    assert again.returncode == 75
    assert "Traceback" not in err


def test_sim_tells_its_addresses_first_and_ends_on_a_signal(
    start: Callable[..., subprocess.Popen[str]],
) -> None:
    process = start("sim")
    addresses = first_line(process)
    validator("sim").validate(addresses)
    assert addresses["rest"].startswith("http://127.0.0.1:")
    process.send_signal(signal.SIGINT)
    assert process.wait(5) == 0


def test_a_controlled_sim_takes_faults_from_stdin_and_ends_with_it(
    start: Callable[..., subprocess.Popen[str]],
) -> None:
    process = start("sim", "--control")
    assert process.stdin is not None
    asked = [{}, {"kind": "refuse"}, {"clear": "refuse"}, {"kind": "nothing"}, "no object"]
    process.stdin.write("".join(json.dumps(line) + "\n" for line in asked) + "{\n")
    process.stdin.close()
    assert process.stdout is not None
    _addresses, *answers = [json.loads(line) for line in process.stdout]
    assert [answer["type"] for answer in answers] == ["counts"] * 3 + ["error"] * 3
    for answer in answers:
        validator("sim-control" if answer["type"] == "counts" else "error").validate(answer)
    assert process.wait(5) == 0


def test_the_demo_shows_everything_it_promises(
    start: Callable[..., subprocess.Popen[str]],
) -> None:
    demo = start("demo", "--json", "--seconds", "15")
    out, err = demo.communicate(timeout=60)
    assert (demo.returncode, err) == (0, "")
    *story, summary = [json.loads(line) for line in out.splitlines()]
    for line in (*story, summary):
        validator("demo").validate(line)
    assert summary["ok"]
    assert summary["unaccounted_qty"] == 0
    assert 14 < summary["seconds"] < 20
    texts = [line["text"] for line in story]
    assert any("cut" in text for text in texts)
    assert any("yields its slot" in text for text in texts)
