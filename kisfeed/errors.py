"""Every exception kisfeed raises, by whose fault it is.

::

    KisfeedError
    ├── UsageError             the caller asked for something that cannot be (exit 2)
    │   └── UnknownTopic       no TR of the catalogue has this topic
    ├── ConfigError            a configuration value, by its key's path (exit 78)
    ├── StateError             the state folder or socket path cannot be used (exit 78)
    ├── NotPermitted           not allowed here at all, now or later (exit 77)
    ├── LocalRefusal           refused here, before KIS was asked (exit 75)
    │   ├── AppkeyInUse        another daemon holds this appkey
    │   └── SocketInUse        another program listens on this socket
    ├── OrderRefused           an order that was not placed, or not as asked; says how it stands
    ├── DaemonError            the local daemon
    │   ├── NoDaemon           nobody listens there (exit 69)
    │   ├── Disconnected       the connection ended before an answer; it may have been acted on
    │   ├── ServerRefused      it answered ERR; carries the KFP/1 code
    │   └── BadFrame           it, or a client, broke KFP/1
    └── KisError               KIS said no, or did not answer
        ├── KisUnreachable     no answer that can be read
        │   └── NotSent        provably not a byte left
        ├── KisRefused         a code in a readable answer (exit 76 if the code is unknown)
        │   └── KisBusy        its rate limit, again after waiting (exit 75)
        ├── NoToken            no access token, and none to be had now (exit 75)
        ├── UnknownOutcome     an order that may have been done (exit 79)
        └── ForgedFrame        a plain frame on an encrypted TR, or one that does not decrypt

I/O failures inside the daemon are events, not exceptions that travel; programming errors
(``AssertionError``, ``KeyError`` ...) are never caught and crash the process.
"""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Any, ClassVar

from kisfeed.texts import Phrase

if TYPE_CHECKING:
    from collections.abc import Mapping


class KisfeedError(Exception):
    """Base of every error that kisfeed raises on purpose.

    ``exit_code`` is what the command line exits with (design: 1 bug, 2 usage, 69 no daemon,
    75 refused by a limit now, 76 KIS said something unknown, 77 not permitted, 78 configuration,
    79 the outcome is unknown).
    """

    exit_code: ClassVar[int] = 1


class UsageError(KisfeedError):
    """The caller asked for something that cannot be."""

    exit_code = 2


class UnknownTopic(UsageError):
    """No TR of the catalogue has this topic in this environment."""

    def __init__(self, topic: str, why: str) -> None:
        super().__init__(f"{topic!r}: {why}")
        self.topic = topic
        self.why = why


class ConfigError(KisfeedError):
    """One or more configuration values are missing or malformed.

    Attributes:
        problems: ``(path of the key, what is wrong with it)``, all found at once.
    """

    exit_code = 78

    def __init__(self, *problems: tuple[str, str]) -> None:
        super().__init__("; ".join(f"{path}: {what}" for path, what in problems))
        self.problems = problems


class StateError(KisfeedError):
    """The state folder or the socket path cannot be used."""

    exit_code = 78


class NotPermitted(KisfeedError):
    """Not allowed here at all; trying again later does not help."""

    exit_code = 77


class LocalRefusal(KisfeedError):
    """Refused here, before KIS was asked; trying again later may succeed."""

    exit_code = 75


class AppkeyInUse(LocalRefusal):
    """Another process on this machine holds the appkey's one session.

    Attributes:
        pid: its process; None if it cannot be told.
        socket: where it listens; empty for an embedded feed.
        since_ts: since when, nanoseconds since 1970 UTC.
    """

    def __init__(self, pid: int | None, socket: str | None, since_ts: int | None) -> None:
        since = ""
        if since_ts is not None:
            moment = dt.datetime.fromtimestamp(since_ts // 10**9, dt.UTC)
            since = f" since {moment:%Y-%m-%d %H:%M:%SZ}"
        place = f" at {socket}" if socket else ""
        holder = "another process" if pid is None else f"pid {pid}"
        super().__init__(f"this appkey is held by {holder}{place}{since}")
        self.pid = pid
        self.socket = socket
        self.since_ts = since_ts


class SocketInUse(LocalRefusal):
    """Another program listens on this socket path, or it is not a socket."""


class OrderRefused(KisfeedError):
    """An order was refused, by kisfeed or by KIS, or nobody knows what became of it.

    Attributes:
        code: the KFP/1 error code: ``order_rejected``, ``over_limit``, ``halted``,
            ``unknown_outcome`` ...
        reason: why, in one word, for programs: ``tick``, ``closed``, ``frozen``, ``kis`` ...
        detail: JSON-able; ``order`` is the Order map where there is an order.
    """

    exit_code = 75

    def __init__(
        self, code: str, reason: str, text: str, *, order: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(text)
        self.code = code
        self.reason = reason
        self.detail: dict[str, Any] = {"reason": reason}
        if order is not None:
            self.detail["order"] = dict(order)


class DaemonError(KisfeedError):
    """Something between a local program and the daemon."""


class NoDaemon(DaemonError):
    """Nobody listens on the daemon's socket."""

    exit_code = 69


class Disconnected(DaemonError):
    """The connection ended before the answer: whether the daemon acted is not known."""

    exit_code = 69


class ServerRefused(DaemonError):
    """The daemon answered ERR.

    Attributes:
        code: the KFP/1 error code; act on this.
        text: for people; never parse it.
        fatal: the daemon closes the connection after this.
        detail: more, for programs; of an order ``reason`` and, where there is one, ``order``.
    """

    exit_code = 75

    def __init__(
        self,
        code: str,
        text: str,
        *,
        fatal: bool = False,
        detail: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(f"{code}: {text}")
        self.detail: Mapping[str, Any] = {} if detail is None else detail
        self.code = code
        self.text = text
        self.fatal = fatal


class BadFrame(DaemonError):
    """The peer broke KFP/1; the stream cannot be used further."""


class KisError(KisfeedError):
    """KIS said no, or did not answer."""

    exit_code = 76


class KisUnreachable(KisError):
    """No answer that can be read: no connection, a deadline, or a broken body."""

    exit_code = 75


class KisRefused(KisError):
    """KIS answered with an error code.

    Attributes:
        code: ``OPSP....`` or ``EGW.....`` as KIS sent it.
        text: KIS's own text, stripped.
    """

    def __init__(self, code: str, text: str) -> None:
        super().__init__(f"{code}: {text}")
        self.code = code
        self.text = text


class KisBusy(KisRefused):
    """KIS's own rate limit refused it, again after waiting; nothing was done."""

    exit_code = 75


class NoToken(KisError):
    """There is no access token that KIS takes, and none can be had now.

    Attributes:
        retry_in_s: when the next try is made, seconds; None: a person must act first.
    """

    exit_code = 75

    def __init__(self, why: str, retry_in_s: float | None) -> None:
        super().__init__(
            Phrase("no access token: {why}", why=why)
            if retry_in_s is None
            else Phrase(
                "no access token: {why}; next try in {wait:.0f} s", why=why, wait=retry_in_s
            )
        )
        self.retry_in_s = retry_in_s


class NotSent(KisUnreachable):
    """Not a byte of the request left this machine: doing it again is a new decision."""


class UnknownOutcome(KisError):
    """It may have been done or not, and nothing here can tell: do not send it again."""

    exit_code = 79


class ForgedFrame(KisError):
    """A plain frame on an encrypted TR, or one that does not decrypt."""
