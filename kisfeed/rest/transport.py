"""The only door to KIS's REST side, and the only user of httpx.

Reads share one pool of connections. An order goes on a connection of its own, made for it: only
then is "not a byte was sent" a fact and not a guess, for no earlier request can have been cut off
on that connection, and no failed write can be a stale one.
"""

from __future__ import annotations

import json
import ssl
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

import attrs
import httpx
import trio

from kisfeed.errors import ConfigError, KisUnreachable, NotSent
from kisfeed.kis.rest import Answer, has_more

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping

    Handler = Callable[
        [str, str, Mapping[str, str], bytes], Awaitable[tuple[int, dict[str, str], bytes]]
    ]

CONNECT_TIMEOUT_S: Final = 3.0
READ_TIMEOUT_S: Final = 10.0
TOTAL_TIMEOUT_S: Final = 15.0
MAX_BODY: Final = 1 << 20
_POOL: Final = httpx.Limits(max_connections=32, max_keepalive_connections=16, keepalive_expiry=30)
_FRESH: Final = httpx.Limits(max_connections=1, max_keepalive_connections=0)
_TIMEOUT: Final = httpx.Timeout(READ_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
_FIRST_BYTE: Final = "http11.send_request_headers.started"  # httpcore: a connection stands


def _nothing() -> None:
    pass


@attrs.define
class _Trace:
    """Tells the moment before the first byte of a request is written to an open connection."""

    _sending: Callable[[], None]
    sent: bool = False

    async def __call__(self, event: str, info: Mapping[str, Any]) -> None:  # noqa: ARG002
        if event == _FIRST_BYTE:
            self._sending()  # what it raises ends the request here, unsent
            self.sent = True


class _Body(httpx.AsyncByteStream):
    """A body that is there already, in one piece."""

    def __init__(self, content: bytes) -> None:
        self._content: bytes | None = content

    def __aiter__(self) -> _Body:
        return self

    async def __anext__(self) -> bytes:
        content, self._content = self._content, None
        if content is None:
            raise StopAsyncIteration
        return content


class _InProcess(httpx.AsyncBaseTransport):
    """Hands a request to a callable instead of a socket."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        body = await request.aread()
        target = request.url.raw_path.decode("ascii")
        headers = {name.lower(): value for name, value in request.headers.items()}
        await request.extensions["trace"](_FIRST_BYTE, {})
        try:
            status, answered, content = await self._handler(request.method, target, headers, body)
        except OSError as exc:
            raise httpx.NetworkError(str(exc), request=request) from exc
        return httpx.Response(status, headers=answered, stream=_Body(content))


@attrs.define(eq=False)
class RestTransport:
    """Speaks JSON with one KIS host.

    It speaks through httpx's transports and not through its client, which logs every address:
    an account number stands in some.
    """

    _base_url: str
    _pool: httpx.AsyncBaseTransport
    _fresh: Callable[[], httpx.AsyncBaseTransport]

    async def post(
        self, path: str, body: Mapping[str, str], *, sending: Callable[[], None] = _nothing
    ) -> Answer:
        """POST *body* as JSON over the pool (OAuth: nothing that would be wrong twice).

        Raises:
            KisUnreachable, NotSent: as :meth:`send`.
        """
        return await self.send(
            "POST", path, {}, json.dumps(body, ensure_ascii=False).encode(), sending=sending
        )

    async def send(
        self,
        method: str,
        target: str,
        headers: Mapping[str, str],
        body: bytes,
        *,
        fresh: bool = False,
        sending: Callable[[], None] = _nothing,
    ) -> Answer:
        """Make one request, once, and read its JSON answer, whatever the HTTP status.

        Args:
            method: ``GET`` or ``POST``.
            target: path and query.
            headers: beside the usual ones.
            body: JSON as bytes; empty for none.
            fresh: on a connection of its own, closed at the end.
            sending: called when a connection stands, just before the first byte; if it raises,
                nothing is sent and its exception travels.

        Raises:
            NotSent: no connection; not a byte was sent.
            KisUnreachable: a deadline passed, the connection broke, or the answer is not a JSON
                object. It may have been executed.
        """
        trace = _Trace(sending)
        path = target.partition("?")[0]
        request = httpx.Request(
            method,
            self._base_url + target,
            # A body's length is always told: KIS's gateway answers a chunked one with EGW00202.
            content=body or None,
            headers={
                "User-Agent": "kisfeed",
                "Accept": "application/json",
                "Content-Type": "application/json; charset=utf-8",
                **headers,
            },
            extensions={"trace": trace, "timeout": _TIMEOUT.as_dict()},
        )
        try:
            with trio.fail_after(TOTAL_TIMEOUT_S):
                if not fresh:
                    return await _answer(self._pool, request, path)
                async with self._fresh() as alone:
                    return await _answer(alone, request, path)
        except (httpx.HTTPError, trio.TooSlowError) as exc:
            why = f"{method} {path}: {type(exc).__name__}"
            if trace.sent:
                raise KisUnreachable(why) from exc
            raise NotSent(why) from exc


async def _answer(transport: httpx.AsyncBaseTransport, request: httpx.Request, path: str) -> Answer:
    response = await transport.handle_async_request(request)
    content = bytearray()
    try:
        # Leaving the loop would leave httpx's generators to the garbage collector.
        with trio.CancelScope() as reading:
            async for chunk in response.aiter_raw():
                content += chunk
                if len(content) > MAX_BODY:
                    reading.cancel(reason="the answer is too long")
        if len(content) > MAX_BODY:
            raise KisUnreachable(f"{path}: an answer of more than {MAX_BODY} bytes")
    finally:
        await response.aclose()
    try:
        answer = json.loads(content)
    except (ValueError, RecursionError):
        answer = None  # told below: the error of json would carry the content along
    if not isinstance(answer, dict):
        raise KisUnreachable(f"{path}: HTTP {response.status_code}, not a JSON object")
    return Answer(response.status_code, answer, has_more(response.headers))


@asynccontextmanager
async def open_rest(
    base_url: str, *, handler: Handler | None = None, ca_file: str = ""
) -> AsyncGenerator[RestTransport]:
    """A pool of connections to one host, closed when the block ends.

    Args:
        base_url: scheme, host and port. TLS is always verified for https.
        handler: answers requests in this process instead (tests, simulation).
        ca_file: certificates of the authorities to trust for this host, PEM; empty: the system's.

    Raises:
        ConfigError: *ca_file* cannot be read.
    """
    route = _tcp(ca_file) if handler is None else _in_process(handler)
    async with route(_POOL) as pool:
        yield RestTransport(base_url.rstrip("/"), pool, lambda: route(_FRESH))


async def post_notice(url: str, body: bytes) -> None:
    """POST *body* as JSON to somebody who is not KIS; TLS is verified.

    The caller sets the deadline.

    Raises:
        OSError: it was not taken.
    """
    context = ssl.create_default_context()
    request = httpx.Request(
        "POST",
        url,
        content=body,
        headers={"User-Agent": "kisfeed", "Content-Type": "application/json; charset=utf-8"},
        extensions={"timeout": _TIMEOUT.as_dict()},
    )
    try:
        async with httpx.AsyncHTTPTransport(verify=context, trust_env=False) as transport:
            response = await transport.handle_async_request(request)
            await response.aclose()
    except (httpx.HTTPError, httpx.InvalidURL) as exc:
        # The address may hold a secret: its errors do not travel.
        raise OSError(type(exc).__name__) from None
    if response.status_code >= 400:
        raise OSError(f"HTTP {response.status_code}")


def _in_process(handler: Handler) -> Callable[[httpx.Limits], httpx.AsyncBaseTransport]:
    return lambda _bounds: _InProcess(handler)


def _tcp(ca_file: str) -> Callable[[httpx.Limits], httpx.AsyncBaseTransport]:
    try:
        trusted = ssl.create_default_context(cafile=ca_file or None)
    except OSError as exc:  # ssl.SSLError is one
        raise ConfigError(("endpoints.ca_file", f"{ca_file} cannot be read: {exc}")) from exc
    trusted.minimum_version = ssl.TLSVersion.TLSv1_2
    return lambda bounds: httpx.AsyncHTTPTransport(
        verify=trusted, trust_env=False, retries=0, limits=bounds
    )
