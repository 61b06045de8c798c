from __future__ import annotations

import io
import json
import logging
from typing import TYPE_CHECKING, Any

import pytest
import structlog
from hypothesis import given, strategies as st

from kisfeed.config import Credentials, Secret
from kisfeed.ops import logs

if TYPE_CHECKING:
    from collections.abc import Iterator

APPKEY = "PSabcdefghijklmnop"
SECRETS = Credentials(appkey=Secret(APPKEY), account=Secret("12345678-01"))


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_pipe_gets_one_json_object_a_line() -> None:
    stream = io.StringIO()
    logs.configure(stream)
    structlog.get_logger().info("session_lost", epoch=3, reason="lost")
    (line,) = lines(stream)
    assert line["event"] == "session_lost"
    assert line["level"] == "info"
    assert line["epoch"] == 3
    assert line["ts"].endswith("Z")


def test_a_terminal_gets_a_readable_line() -> None:
    stream = Terminal()
    logs.configure(stream)
    structlog.get_logger().info("session_lost", epoch=3)
    assert "session_lost" in stream.getvalue()
    assert "{" not in stream.getvalue()


@pytest.mark.parametrize("name", sorted(logs.SECRET_KEYS))
@pytest.mark.parametrize("spell", [str.lower, str.upper])
def test_a_secret_key_hides_its_value_at_any_depth(name: str, spell: Any) -> None:
    stream = io.StringIO()
    logs.configure(stream)
    structlog.get_logger().info("x", **{spell(name): "v1"}, body={"a": [{spell(name): "v1"}]})
    assert "v1" not in stream.getvalue()
    assert stream.getvalue().count(logs.HIDDEN) == 2


@given(before=st.text(max_size=50), after=st.text(max_size=50))
def test_a_known_secret_is_hidden_wherever_it_stands(before: str, after: str) -> None:
    redactor = logs.Redactor()
    redactor.hide(Secret(APPKEY))
    text = before + APPKEY + after
    line = redactor(None, "info", {"event": text, "list": [text, {"deep": text}], text: 1})
    assert APPKEY not in json.dumps({k: v for k, v in line.items() if k != text})


@pytest.mark.parametrize(
    "text",
    [
        '{"appkey":"VALUE","x":1}',
        "appsecret=VALUE&x=1",
        "Authorization: Bearer VALUE",
        "got 'access_token': 'VALUE'",
        "CANO=VALUE",
    ],
)
def test_a_secret_within_a_text_is_hidden(text: str) -> None:
    assert "VALUE" not in logs.Redactor().text(text)


def test_tracebacks_and_foreign_lines_are_redacted_too() -> None:
    stream = io.StringIO()
    logs.configure(stream, credentials=[SECRETS])
    try:
        int(APPKEY)
    except ValueError:
        structlog.get_logger().exception("crashed")
    logging.getLogger("some.package").warning("header %s of %s", APPKEY, "12345678-01")
    crashed, foreign = lines(stream)
    assert "with base 10: '***'" in crashed["exception"]
    assert foreign["event"] == "header *** of ***"
    assert foreign["logger"] == "some.package"


@pytest.mark.parametrize("name", logs.QUIET)
def test_libraries_that_log_requests_are_quiet(name: str) -> None:
    stream = io.StringIO()
    logs.configure(stream, level="debug")
    logging.getLogger(name).info("GET https://...")
    assert stream.getvalue() == ""


def test_a_peer_can_neither_fill_the_log_nor_steer_the_terminal() -> None:
    stream = Terminal()
    logs.configure(stream)
    structlog.get_logger().warning("ack_unknown", text="\x1b]0;pwned\x07" + "a" * 10_000)
    assert "\x1b]" not in stream.getvalue()
    assert len(stream.getvalue()) < 600


def test_lines_below_the_level_are_not_written() -> None:
    stream = io.StringIO()
    logs.configure(stream, level="warning")
    structlog.get_logger().info("quiet")
    structlog.get_logger().warning("loud")
    assert [line["event"] for line in lines(stream)] == ["loud"]
