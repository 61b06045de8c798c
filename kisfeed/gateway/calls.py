"""CALL: requests that are answered by somebody behind the door, after a while."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from kisfeed import texts
from kisfeed.errors import (
    ConfigError,
    KisError,
    KisfeedError,
    KisRefused,
    KisUnreachable,
    LocalRefusal,
    NotPermitted,
    OrderRefused,
    ServerRefused,
    StateError,
    UnknownTopic,
    UsageError,
)
from kisfeed.kfp import codec
from kisfeed.kfp.messages import ErrorCode, Type
from kisfeed.texts import Phrase

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

MAX_IN_FLIGHT: Final = 16
"""Calls of one client that may wait for their answers at a time."""

_TRADER_ONLY: Final = frozenset(
    {
        "order.preview",
        "order.place",
        "order.amend",
        "order.cancel",
        "order.show",
        "order.list",
        "order.resolve",
        "resume",
    }
)

_CODES: Final[tuple[tuple[type[Exception], ErrorCode], ...]] = (
    (UnknownTopic, ErrorCode.UNKNOWN_TOPIC),
    (UsageError, ErrorCode.BAD_REQUEST),
    (LocalRefusal, ErrorCode.RATE_LIMITED),
    (StateError, ErrorCode.INTERNAL),
    (KisUnreachable, ErrorCode.UPSTREAM_DOWN),
    (KisRefused, ErrorCode.REJECTED),
    (KisError, ErrorCode.UPSTREAM_DOWN),
    (NotPermitted, ErrorCode.NOT_ENTITLED),
)


def error(
    number: object,
    code: str,
    text: str,
    detail: Mapping[str, object] | None = None,
    *,
    fatal: bool = False,
) -> bytes:
    """An ERR frame that answers request *number* (None where there is none)."""
    return codec.frame(Type.ERR, number, code, fatal, text, dict(detail or {}))


async def answer(
    call: Callable[[str, Mapping[str, Any], str], Awaitable[object]],
    number: int,
    name: str,
    arguments: Mapping[str, Any],
    caller: str,
) -> bytes:
    """Make *call* for *caller* and return RES or ERR for it.

    Errors that kisfeed raises on purpose become ERR with the code that says whose fault it is; a
    ``ServerRefused`` and an ``OrderRefused`` name their codes themselves. Any other exception is
    a bug and travels on.
    """
    try:
        result = await call(name, arguments, caller)
    except ServerRefused as exc:
        return error(number, exc.code, exc.text, exc.detail)
    except OrderRefused as exc:
        return error(number, exc.code, str(exc), exc.detail | texts.parts(exc))
    except ConfigError as exc:
        return error(number, ErrorCode.BAD_REQUEST, str(exc), {"problems": list(exc.problems)})
    except KisfeedError as exc:
        code = next((c for kind, c in _CODES if isinstance(exc, kind)), ErrorCode.INTERNAL)
        return error(number, code, str(exc), texts.parts(exc))
    try:
        return codec.frame(Type.RES, number, {"result": result})
    except ValueError as exc:
        return error(number, ErrorCode.OVER_LIMIT, f"the answer does not fit a frame: {exc}")


def refusal(name: str, role: str, *, orders: bool) -> tuple[Phrase, ErrorCode] | None:
    """Why a client of *role* may not call *name*; None if it may.

    Args:
        name: what is called.
        role: ``reader`` or ``trader``.
        orders: orders are enabled in this daemon.
    """
    if name not in _TRADER_ONLY or role == "trader":
        return None
    if not orders:
        return Phrase("orders are off (orders.enabled)"), ErrorCode.ORDERS_DISABLED
    return Phrase("{name} needs the role trader", name=name), ErrorCode.NOT_ENTITLED
