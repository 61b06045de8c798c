"""A program that orders, asks again, cancels and halts, and keeps what it was told."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any, Final

import attrs
import trio

from kisfeed.client.core import ClientCore
from kisfeed.client.structured import Client
from kisfeed.errors import KisfeedError, ServerRefused
from kisfeed.kfp.orders import OrderState
from kisfeed.rest import journal

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from kisfeed.chaos.network import Route
    from kisfeed.seams import Seeded
    from kisfeed.simulator.market import Tape

NAME: Final = "trader"
ORDER_PATHS: Final = (
    "/uapi/domestic-stock/v1/trading/order-cash",
    "/uapi/domestic-stock/v1/trading/order-rvsecncl",
)
_SYMBOLS: Final = ("005930", "000660", "000001")
_PATIENCE_S: Final = 60.0
_SETTLING: Final = (OrderState.QUEUED, OrderState.SENDING, OrderState.UNKNOWN)
_LOOK_S: Final = 10.0
_WAITS_S: Final = 60.0  # a cancellation goes out within this of its intent

Terms = tuple[str, str, int, int]
"""Symbol, side, shares, won."""


@attrs.define(eq=False)
class Asked:
    """One request to place an order.

    Attributes:
        at, until: from the request to the answer, infinite for none.
        days: the dates in Seoul by the daemon's clock at both.
        state: of the order in the answer; empty where there was none.
    """

    id: str
    terms: Terms
    at: float
    days: list[str]
    until: float = math.inf
    state: str = ""


@attrs.define(eq=False)
class Halted:
    """Ordering was halted from the answer to ``halt`` until ``resume`` was asked for."""

    since: float
    until: float = math.inf


@attrs.define(eq=False)
class Post:
    """One order POST of the daemon's.

    Attributes:
        began_at: its bytes left; at: they reached KIS.
        intended: its intent was on disk then, or the disk took none and it needs none: it cancels
            all that is left.
        told: the answer that came said what KIS did.
    """

    path: str
    values: Mapping[str, str]
    began_at: float
    intended: bool
    at: float = math.inf
    told: bool = False

    @property
    def is_new(self) -> bool:
        """Neither an amendment nor a cancellation."""
        return self.path == ORDER_PATHS[0]

    @property
    def terms(self) -> Terms:
        """Without the side, which the path's TR id says."""
        values = self.values
        return values["PDNO"], "", int(values["ORD_QTY"]), int(values["ORD_UNPR"])


@attrs.define(eq=False)
class Trader:
    """Orders whatever the schedule says.

    Args:
        route: to the daemon.
        tape: the market's, by symbol.
        today: the date in Seoul by the daemon's clock.
        folder: the state folder.
    """

    _route: Route
    _rng: Seeded
    _tape: Callable[[str], Tape]
    _today: Callable[[], str]
    _folder: Path
    asked: list[Asked] = attrs.field(factory=list, init=False)
    posts: list[Post] = attrs.field(factory=list, init=False)
    halts: list[Halted] = attrs.field(factory=list, init=False)
    final: dict[str, Mapping[str, Any]] = attrs.field(factory=dict, init=False)
    asks_from: float = attrs.field(default=math.inf, init=False)
    in_doubt_s: float = attrs.field(default=0.0, init=False)
    _named: int = attrs.field(default=0, init=False)
    _terms: Terms | None = attrs.field(default=None, init=False)

    # What the schedule says.

    async def place(self, number: int) -> None:
        """Place an order of new terms; an odd *number* takes those of the order before."""
        self._named += 1
        if self._terms is None or number % 2 == 0:
            self._terms = self._new_terms()
        await self._place(f"o{self._named}", self._terms, number)

    async def again(self, number: int) -> None:
        """Ask once more for an order that was asked for."""
        if self.asked:
            asked = self.asked[-1 - number % len(self.asked)]
            await self._place(asked.id, asked.terms, 0)

    async def cancel(self, number: int) -> None:
        """Cancel an order, whatever became of it."""
        if self.asked:
            target = self.asked[-1 - number % len(self.asked)].id
            await self._call("order.cancel", target=target)

    async def halt(self, lasts: float) -> None:
        """Halt all ordering for so long, or until the run's end."""
        answer = await self._call("halt", reason="chaos")
        if "halted" not in answer:
            return
        halted = Halted(trio.current_time())
        self.halts.append(halted)
        await trio.sleep(lasts)
        for other in self.halts:
            other.until = min(other.until, trio.current_time())
        await self._call("resume", reason="chaos")

    async def wind_down(self, within: float) -> None:
        """Wait until nothing is under way or unknown, and note what became of each order."""
        began = self.asks_from = trio.current_time()
        while True:
            for name in self._unsettled():
                known = self.final.get(name, {})
                day = {"day": known["day"]} if "day" in known else {}
                found = await self._call("order.show", client_order_id=name, **day)
                if "state" in found:
                    self.final[name] = found
            self.in_doubt_s = trio.current_time() - began
            settling = any(name in self.final for name in self._unsettled())
            if not settling or self.in_doubt_s > within:
                return
            await trio.sleep(_LOOK_S)

    def _unsettled(self) -> list[str]:
        """Ids of which the end is not known."""
        return [
            name
            for name in dict.fromkeys(asked.id for asked in self.asked)
            if name not in self.final or self.final[name]["state"] in _SETTLING
        ]

    # What the daemon sends.

    def post(self, path: str, body: bytes, refused_at: float) -> Post | None:
        """Note an order POST; None for any other call.

        Args:
            path: of the call.
            body: of the call.
            refused_at: when the disk last took no append.
        """
        if path not in ORDER_PATHS:
            return None
        now, values = trio.current_time(), json.loads(body)
        spared = values.get("QTY_ALL_ORD_YN") == "Y" and now - refused_at <= _WAITS_S
        post = Post(path, values, now, spared or self._intended(path, values))
        self.posts.append(post)
        return post

    def _intended(self, path: str, values: Mapping[str, str]) -> bool:
        records = [
            record["order"]
            for file in sorted(self._folder.glob("*.orders"))
            for record in journal.decode(file.read_bytes())[0]
            if "order" in record
        ]
        return any(
            order["state"] == OrderState.SENDING
            and (
                order["symbol"] == values["PDNO"] and str(order["qty"]) == values["ORD_QTY"]
                if path == ORDER_PATHS[0]
                else order["original_no"].lstrip("0") == values["ORGN_ODNO"].lstrip("0")
            )
            for order in records
        )

    # Parts.

    def _new_terms(self) -> Terms:
        symbol = self._rng.choice(_SYMBOLS)
        tape = self._tape(symbol)
        side = "sell" if symbol != _SYMBOLS[2] and self._rng.random() < 0.3 else "buy"
        return symbol, side, self._named, tape.base - tape.base % tape.step(tape.base)

    async def _place(self, name: str, terms: Terms, number: int) -> None:
        symbol, side, qty, price = terms
        wanted: dict[str, object] = {
            "client_order_id": name,
            "symbol": symbol,
            "side": side,
            "qty": qty,
            "price": price,
            "allow_closed": True,
            "priority": number % 10,
        }
        await self._call("order.preview", **wanted)
        asked = Asked(name, terms, trio.current_time(), [self._today()])
        self.asked.append(asked)
        answer = await self._call("order.place", **wanted)
        asked.days.append(self._today())
        if answer:
            asked.until = trio.current_time()
            asked.state = str(answer.get("state", ""))

    async def _call(self, name: str, **arguments: object) -> Mapping[str, Any]:
        """The answer, or the order that a refusal names; empty where nothing came."""
        core = ClientCore(NAME, role="trader", jitter=self._rng.random)
        client = Client(core, self._route.dial)
        with trio.move_on_after(_PATIENCE_S):
            try:
                await client.greet()
                answer: Mapping[str, Any] = await client.call(name, **arguments)
            except ServerRefused as error:
                return {"refused": error.code, **(error.detail.get("order") or {})}
            except (KisfeedError, OSError):
                return {}
            else:
                return answer
            finally:
                with trio.CancelScope(shield=True):
                    await client.aclose()
        return {}
