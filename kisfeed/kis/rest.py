"""KIS's REST side without its transport: which calls there are, and what an answer means.

Decisions are made on the body and its codes, never on the HTTP status alone: KIS sends its rate
limit as 500, its OAuth errors as 403 and its business errors as 200.
"""

from __future__ import annotations

import enum
import json
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlencode

import attrs

from kisfeed.config import Environment
from kisfeed.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

_SERVERS: Final = ("EGW", "OPSQ")  # codes of the gateway and of the OPS servers behind it
_MORE: Final = frozenset({"F", "M"})  # response header tr_cont; D, E or none: the last page


class Priority(enum.IntEnum):
    """Who goes first where calls wait for the rate limit; the smaller value."""

    ORDER = 0
    ACCOUNT = 1
    PRICE = 2
    REFERENCE = 3


@attrs.frozen
class Endpoint:
    """One REST call of KIS, as this environment has it.

    Attributes:
        name: KIS's own name of it in its samples, such as ``inquire_price``.
        tr_id: the id on the wire here.
        priority: the class it waits in unless the caller says otherwise.
        most: symbols one call may ask for.
    """

    name: str
    method: str
    path: str
    tr_id: str
    priority: Priority
    most: int = 1


@attrs.frozen
class Call:
    """One call that is to be made.

    Attributes:
        values: the query of a GET, the body of a POST; names and values as KIS wants them.
        more: ask for the page after the last answer's (its ``ctx_area`` values in *values*).
    """

    endpoint: Endpoint
    values: Mapping[str, str] = attrs.field(repr=False, hash=False)
    priority: Priority
    more: bool = False

    def target(self) -> str:
        """Path and query. Blank values are sent as ``NAME=``, as KIS wants them."""
        if self.endpoint.method == "GET" and self.values:
            return f"{self.endpoint.path}?{urlencode(self.values)}"
        return self.endpoint.path

    def body(self) -> bytes:
        """The JSON body of a POST; empty for a GET."""
        if self.endpoint.method == "GET":
            return b""
        return json.dumps(dict(self.values), ensure_ascii=False).encode()


class Endpoints:
    """The calls that one environment has.

    Args:
        data: the parsed ``kis/endpoints.json``.
        environment: PAPER has TR ids of its own, and lacks some calls.
    """

    def __init__(self, data: Mapping[str, Any], environment: Environment) -> None:
        tr_id = "tr_id_paper" if environment is Environment.PAPER else "tr_id"
        self._missing = [n for n, e in data["endpoints"].items() if e[tr_id] is None]
        self._known = {
            name: Endpoint(
                name,
                e["method"],
                e["path"],
                e[tr_id],
                Priority[e["priority"].upper()],
                e.get("most", 1),
            )
            for name, e in data["endpoints"].items()
            if e[tr_id] is not None
        }

    def __contains__(self, name: str) -> bool:
        return name in self._known

    def __getitem__(self, name: str) -> Endpoint:
        """The call of this *name*.

        Raises:
            UsageError: this environment does not have it.
        """
        found = self._known.get(name)
        if found is None:
            why = "KIS's paper host does not serve it" if name in self._missing else "unknown"
            raise UsageError(f"{name}: {why}")
        return found

    def call(
        self,
        name: str,
        values: Mapping[str, str],
        *,
        priority: Priority | None = None,
        more: bool = False,
    ) -> Call:
        """A call to make.

        Args:
            name: which, such as ``inquire_price``.
            values: query of a GET, body of a POST.
            priority: another class than the call's own.
            more: the next page; *values* carry the last answer's ``ctx_area`` values.

        Raises:
            UsageError: this environment does not have it.
        """
        endpoint = self[name]
        return Call(
            endpoint,
            MappingProxyType(dict(values)),
            endpoint.priority if priority is None else priority,
            more,
        )


@attrs.frozen
class Answer:
    """A readable answer: a JSON object, whatever the HTTP status.

    Attributes:
        body: the object as it came; numbers are texts, ``msg1`` is padded with blanks.
        more: another page can be asked for.
    """

    status: int
    body: Mapping[str, Any] = attrs.field(repr=False)
    more: bool = False


class Kind(enum.StrEnum):
    """What an answer is."""

    OK = "ok"
    BUSINESS = "business"  # understood, and said no (or: nothing found)
    RATE_LIMITED = "rate_limited"  # refused by a rate limit before anything was done
    TOKEN_DEAD = "token_dead"  # noqa: S105  # refused before anything was done; a fresh token helps
    TOKEN_TOO_SOON = "token_too_soon"  # noqa: S105  # no token now: the last issue is too recent
    REFUSED = "refused"  # for good: key, rights, headers, environment; nothing was done
    SERVER = "server"  # KIS's own fault, or nothing we know: whether it was done is not known


_KINDS: Final[Mapping[str, Kind]] = {
    # ``meaning`` in codes.json
    "ok": Kind.OK,
    "empty": Kind.BUSINESS,
    "business": Kind.BUSINESS,
    "client_bug": Kind.REFUSED,
    "config": Kind.REFUSED,
    "rate_limited": Kind.RATE_LIMITED,
    "token_invalid": Kind.TOKEN_DEAD,
    "token_too_soon": Kind.TOKEN_TOO_SOON,
    "server_error": Kind.SERVER,
}


@attrs.frozen
class Verdict:
    """What an answer means.

    Attributes:
        code: KIS's, or ``HTTP<status>`` where it sent none; empty for OK.
        text: KIS's, stripped.
    """

    kind: Kind
    code: str = ""
    text: str = ""


class RestCodes:
    """Tells the answers apart.

    Args:
        data: the parsed ``kis/codes.json``.
    """

    def __init__(self, data: Mapping[str, Any]) -> None:
        self._kinds = {e["code"]: _KINDS[e["meaning"]] for e in data["rest"]}

    def verdict(self, status: int, body: Mapping[str, Any]) -> Verdict:
        """What this answer means; never raises.

        Three shapes: OAuth errors have ``error_code``, gateway errors ``rt_cd`` and ``message``,
        business answers ``rt_cd`` alone. An unknown code of the gateway or of its OPS servers is
        KIS's own fault whatever the status: it may be a time-out of theirs, after which an order
        may have been executed. Any other is a business error with HTTP 200, and KIS's own fault
        with any other status.
        """
        code = body.get("error_code")
        text = _text(body.get("error_description" if code is not None else "msg1"))
        if code is None:
            if status < 400 and str(body.get("rt_cd", "0")).strip() in {"0", ""}:
                return Verdict(Kind.OK)
            code = body.get("msg_cd") or body.get("message")
        code = _text(code) or f"HTTP{status}"
        known = self._kinds.get(code)
        if known is None or known is Kind.OK:
            said_no = status < 400 and not code.startswith(_SERVERS)
            known = Kind.BUSINESS if said_no else Kind.SERVER
        return Verdict(known, code, text)


def has_more(headers: Mapping[str, str]) -> bool:
    """Whether another page follows, by the answer's header; the cursor in the body says nothing.

    Args:
        headers: by lower-case name.
    """
    return headers.get("tr_cont", "").strip() in _MORE


def _text(value: object) -> str:
    return "" if value is None else str(value).strip()
