"""The REST half: OAuth and the quotes, over h11.

:class:`Rest` answers one call and is what an in-memory test uses; :func:`serve` puts it on a
stream. Orders and accounts are not served: their paths are not found.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
from email.utils import format_datetime
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qsl, urlsplit

import attrs
import h11
import trio

from kisfeed.kis import server
from kisfeed.simulator import quotes
from kisfeed.simulator.faults import Kind

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from urllib.parse import SplitResult

    from kisfeed.simulator.exchange import Exchange
    from kisfeed.simulator.market import Market
    from kisfeed.simulator.trading import Trading

_OAUTH: Final = ("/oauth2/tokenP", "/oauth2/Approval", "/oauth2/revokeP")

IDLE_S: Final = 60.0
MAX_BODY: Final = 64 * 1024


@attrs.frozen
class Reply:
    """One HTTP answer, with header names in the case in which KIS sends them.

    It is sent after *delay* seconds.
    """

    status: int
    headers: dict[str, str]
    body: bytes = attrs.field(repr=False)
    delay: float = 0.0


class Down(Exception):
    """The host gives no answer at all: the connection just ends."""


class Rest:
    """Answers one REST call.

    Args:
        exchange: the oracle.
        market: prices and volumes.
        look: told of a venue and symbol, and when, before somebody sees its price.
        trading: answers account and order calls.
        paper: calls that KIS's paper host does not serve are refused.
    """

    def __init__(
        self,
        exchange: Exchange,
        market: Market,
        look: Callable[[str, str, float], None],
        trading: Trading,
        *,
        paper: bool,
    ) -> None:
        self._trading = trading
        self._exchange = exchange
        self._market = market
        self._paper = paper
        self._quotes = quotes.Quotes(market, exchange.rules.unknown_keys, look)

    def handle(
        self, method: str, target: str, headers: Mapping[str, str], body: bytes, now: float
    ) -> Reply:
        """The answer to one call.

        Args:
            method: ``GET`` or ``POST``.
            target: path and query.
            headers: by name in any case.
            body: as it came.
            now: seconds on the scheduler's clock.

        Raises:
            Down: a fault says that nobody answers.
        """
        board = self._exchange.board
        if board.take(Kind.REST_DOWN, now):
            raise Down
        url = urlsplit(target)
        sent = {name.lower(): value for name, value in headers.items()}
        if "transfer-encoding" in sent:
            return self._json(500, server.gateway_error("EGW00202"), sent, now)
        if method == "POST" and url.path in _OAUTH:
            return self._oauth(url.path, body, now)
        if method == "POST" and url.path == "/uapi/hashkey":
            return self._hashkey(sent, body, now)
        if method == "GET" and url.path in quotes.TR_IDS:
            query = {k.upper(): v for k, v in parse_qsl(url.query, keep_blank_values=True)}
            return self._quote(url.path, sent, query, now)
        if self._trading.serves(method, url.path):
            return self._trade(url, sent, body, now)
        missing = {
            "timestamp": f"{self._market.clock.at(now):%Y-%m-%dT%H:%M:%S.000+09:00}",
            "status": 404,
            "error": "Not Found",
            "path": url.path,
        }
        return self._json(404, missing, {}, now)

    def _oauth(self, path: str, body: bytes, now: float) -> Reply:
        board = self._exchange.board
        down = Kind.APPROVAL_DOWN if path.endswith("Approval") else Kind.TOKEN_DOWN
        if board.take(down, now):
            page = b"<html>error</html>"
            return Reply(500, {"Content-Type": "text/html", "Content-Length": str(len(page))}, page)
        given = _fields(body)
        appkey = given.get("appkey", "")
        if path.endswith("tokenP"):
            answer = self._exchange.issue_token(appkey, given.get("appsecret", ""), now)
        elif path.endswith("Approval"):
            answer = self._exchange.issue_approval(appkey, given.get("secretkey", ""), now)
        else:
            answer = self._exchange.revoke_token(appkey, given.get("token", ""), now)
        return self._json(answer.status, answer.body, {}, now)

    def _hashkey(self, sent: Mapping[str, str], body: bytes, now: float) -> Reply:
        code = self._exchange.admit_call("/uapi/hashkey", sent.get("appkey", ""), None, now)
        if code is not None:
            return self._json(500, server.gateway_error(code), sent, now)
        answer = {"BODY": _fields(body), "HASH": hashlib.sha256(body).hexdigest()}
        return self._json(200, answer, sent, now)

    def _quote(
        self, path: str, sent: Mapping[str, str], query: Mapping[str, str], now: float
    ) -> Reply:
        bearer = sent.get("authorization", "").removeprefix("Bearer ").strip()
        code = self._exchange.admit_call(path, sent.get("appkey", ""), bearer, now)
        if code is None and sent.get("tr_id") != quotes.TR_IDS[path]:
            code = "MCA00124"
        if code is None and self._paper and path in quotes.NOT_ON_PAPER:
            code = "EGW00213"
        if code is not None:
            return self._json(500, server.gateway_error(code), sent, now)
        try:
            outputs = self._quotes.answer(path, query, now)
        except quotes.NotFound:
            nothing = {"rt_cd": "7", "msg_cd": "KIOK0560", "msg1": "조회할 내용이 없습니다"}
            return self._json(200, nothing, sent, now)
        done = {"rt_cd": "0", "msg_cd": "MCA00000", "msg1": "정상처리 되었습니다."}
        return self._json(200, {**outputs, **done}, sent, now)

    def _trade(self, url: SplitResult, sent: Mapping[str, str], body: bytes, now: float) -> Reply:
        values = _fields(body) if body else dict(parse_qsl(url.query, keep_blank_values=True))
        said = self._trading.answer(url.path, sent, values, now)
        if said.lost:
            raise Down
        if isinstance(said.body, bytes):
            kind = "text/html" if said.status >= 400 else "application/json; charset=utf-8"
            headers = {"Content-Type": kind, "Content-Length": str(len(said.body))}
            return Reply(said.status, headers, said.body, said.delay)
        reply = self._json(said.status, said.body, sent, now)
        if "tr_cont" in reply.headers:
            reply.headers["tr_cont"] = said.tr_cont
        return attrs.evolve(reply, delay=said.delay)

    def _json(
        self, status: int, answer: Mapping[str, Any], sent: Mapping[str, str], now: float
    ) -> Reply:
        """An answer with KIS's header habits.

        The official sample reads every all-lower-case header into a namedtuple: ``tr_id``,
        ``tr_cont`` and ``gt_uid`` must be in lower case, and a hyphenated name must not.
        """
        body = json.dumps(answer, ensure_ascii=False, separators=(",", ":")).encode()
        headers = {
            "Content-Type": "application/json; charset=utf-8",
            "Content-Length": str(len(body)),
            "Date": format_datetime(self._market.clock.at(now).astimezone(dt.UTC), usegmt=True),
        }
        if "tr_id" in sent:
            headers["tr_id"] = sent["tr_id"]
            headers["tr_cont"] = ""
            headers["gt_uid"] = sent.get("gt_uid", "")
        return Reply(status, headers, body)


async def serve(stream: trio.abc.Stream, rest: Rest) -> None:
    """Answer the calls of one connection until it ends; never raises for what a peer does."""
    connection = h11.Connection(h11.SERVER)
    try:
        while await _serve_one(stream, connection, rest):
            connection.start_next_cycle()
    except (Down, h11.RemoteProtocolError, trio.BrokenResourceError, trio.ClosedResourceError):
        # A dead host and a peer that breaks HTTP or leaves end alike: the connection is over.
        pass
    finally:
        await trio.aclose_forcefully(stream)


async def _serve_one(stream: trio.abc.Stream, connection: h11.Connection, rest: Rest) -> bool:
    request, body = None, bytearray()
    with trio.move_on_after(IDLE_S):
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                if connection.they_are_waiting_for_100_continue:
                    go_on = h11.InformationalResponse(status_code=100, headers=[])
                    await stream.send_all(connection.send(go_on))
                connection.receive_data(bytes(await stream.receive_some()))
            elif isinstance(event, h11.Request):
                request = event
            elif isinstance(event, h11.Data):
                body += event.data
                if len(body) > MAX_BODY:
                    return False
            elif isinstance(event, h11.EndOfMessage):
                break
            else:
                return False
    if request is None or connection.their_state is not h11.DONE:
        return False
    reply = rest.handle(
        request.method.decode("ascii"),
        request.target.decode("ascii"),
        {name.decode("ascii"): value.decode("latin-1") for name, value in request.headers},
        bytes(body),
        trio.current_time(),
    )
    await trio.sleep(reply.delay)
    head = h11.Response(status_code=reply.status, headers=list(reply.headers.items()))
    answer = connection.send(head) + connection.send(h11.Data(data=reply.body))
    await stream.send_all(answer + connection.send(h11.EndOfMessage()))
    return connection.our_state is h11.DONE


def _fields(body: bytes) -> dict[str, str]:
    try:
        parsed = json.loads(body)
    except ValueError:
        return {}
    if not isinstance(parsed, dict):
        return {}
    return {name: value for name, value in parsed.items() if isinstance(value, str)}
