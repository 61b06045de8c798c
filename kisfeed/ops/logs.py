"""Logging: JSON lines for machines, readable lines for a terminal, secrets in neither.

What is logged passes one :class:`Redactor`, the rooms' lines and third-party ones alike. Event
names are English and stable. Only the daemon and the simulator configure logging; a library user
keeps their own.
"""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Any, Final, TextIO

import structlog

from kisfeed.config import Secret

if TYPE_CHECKING:
    from collections.abc import Iterable

    from structlog.typing import EventDict, Processor

    from kisfeed.config import Credentials

HIDDEN: Final = "***"
MAX_TEXT: Final = 256  # characters of one value; a peer can make any text long

SECRET_KEYS: Final = frozenset(
    {
        "appkey", "appsecret", "secretkey", "authorization", "approval_key", "key", "iv",
        "access_token", "token", "personalseckey", "hashkey", "account", "cano", "acnt_no",
        "acnt_prdt_cd", "hts_id",
    }
)  # fmt: skip
"""Names whose value is never logged, in any letter case."""

QUIET: Final = ("httpx", "httpcore", "hpack", "trio-websocket", "wsproto")
"""Libraries that log addresses, headers or frames below WARNING."""

_SHORTEST_SECRET: Final = 6  # a shorter text would blank out half of an innocent line
_IN_TEXT: Final = re.compile(
    r"(?i)(\b(?:" + "|".join(sorted(SECRET_KEYS - {"key", "iv", "token", "account"})) + r")\b"
    r"[\"']?\s*[:=]\s*[\"']?(?:bearer\s+)?)([^\s\"',&}]+)"
)
_BEARER: Final = re.compile(r"(?i)\b(bearer\s+)\S+")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_CONTROL_BUT_LINES: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class Redactor:
    """A structlog processor that hides secrets by their key and by their value.

    It also escapes control characters and cuts long texts, so that a peer can neither steer a
    terminal nor fill a disk.
    """

    def __init__(self) -> None:
        self._values: list[str] = []

    def hide(self, secret: Secret) -> None:
        """Never show *secret* again, wherever in a line it stands."""
        value = secret.reveal()
        if len(value) >= _SHORTEST_SECRET and value not in self._values:
            self._values.append(value)
            self._values.sort(key=len, reverse=True)

    def __call__(self, logger: Any, method: str, line: EventDict) -> EventDict:  # noqa: ARG002
        for name, value in line.items():
            if name == "exception":
                line[name] = self._text(str(value), _CONTROL_BUT_LINES)
            elif not name.startswith("_"):  # structlog's own bookkeeping
                line[name] = self._clean(name, value)
        return line

    def text(self, text: str) -> str:
        """*text* on one line, without secrets, at most ``MAX_TEXT`` characters long."""
        text = self._text(text, _CONTROL)
        over = len(text) - MAX_TEXT
        return f"{text[:MAX_TEXT]}... (+{over})" if over > 0 else text

    def _text(self, text: str, control: re.Pattern[str]) -> str:
        for secret in self._values:
            text = text.replace(secret, HIDDEN)
        text = _BEARER.sub(rf"\g<1>{HIDDEN}", _IN_TEXT.sub(rf"\g<1>{HIDDEN}", text))
        return control.sub(lambda found: f"\\x{ord(found[0]):02x}", text)

    def _clean(self, name: str, value: object) -> object:
        if name.lower() in SECRET_KEYS:
            return HIDDEN
        match value:
            case None | bool() | int() | float():
                return value
            case str():
                return self.text(value)
            case bytes():
                return self.text(value.decode("utf-8", "backslashreplace"))
            case dict():
                return {self.text(str(k)): self._clean(str(k), v) for k, v in value.items()}
            case list() | tuple() | set() | frozenset():
                return [self._clean("", item) for item in value]
            case _:
                return self.text(str(value))


def configure(
    stream: TextIO,
    *,
    as_json: bool | None = None,
    level: str = "info",
    credentials: Iterable[Credentials] = (),
) -> Redactor:
    """Log to *stream* from here on, in this process.

    Args:
        stream: usually ``sys.stderr``.
        as_json: one JSON object a line; None: unless *stream* is a terminal.
        level: the least level that is shown: debug, info, warning or error.
        credentials: their secrets are hidden by value.

    Returns:
        The redactor in force; give it every secret that is learned later.
    """
    redactor = Redactor()
    for found in credentials:
        # KIS is told an account in two parts; the first is the one that tells whose it is.
        number = Secret(found.account.reveal().partition("-")[0])
        for secret in (found.appkey, found.appsecret, found.account, number):
            redactor.hide(secret)
    if as_json is None:
        as_json = not stream.isatty()
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(
            "iso" if as_json else "%H:%M:%S", utc=as_json, key="ts" if as_json else "timestamp"
        ),
        structlog.processors.format_exc_info,
        redactor,
    ]
    renderer: Processor = (
        structlog.processors.JSONRenderer(ensure_ascii=False)
        if as_json
        else structlog.dev.ConsoleRenderer(colors=stream.isatty(), pad_event_to=24)
    )
    least = getattr(logging, level.upper())
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(least),
        logger_factory=structlog.WriteLoggerFactory(file=stream),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[
                structlog.stdlib.add_logger_name,
                structlog.stdlib.ExtraAdder(),
                *shared[:-1],
            ],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                redactor,
                renderer,
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(least)
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
    return redactor
