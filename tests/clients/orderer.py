"""A program with an order desk in it, to be killed: places one order, or finds out about it.

``python orderer.py REST_URL STATE_FOLDER ID place|recover``; prints one JSON line.
"""

from __future__ import annotations

import json
import os
import sys

import trio

from kisfeed.config import (
    Config,
    Credentials,
    Endpoints,
    Environment,
    Orders,
    Secret,
    State,
)
from kisfeed.errors import OrderRefused
from kisfeed.feed import open_feed

RULES = Orders(enabled=True, settle_s=0.5, human_after_s=2.5, ttl_s=5.0)


async def main(rest: str, state: str, name: str, mode: str) -> None:
    config = Config(
        environment=Environment.SIM,
        credentials=Credentials(Secret("AK"), Secret("AS"), "", Secret("12345678-01")),
        endpoints=Endpoints(rest, "ws://127.0.0.1:9"),
        state=State(state),
        orders=RULES,
    )
    async with open_feed(config) as feed:
        calls = feed.orders.calls
        asked = {"client_order_id": name, "symbol": "005930", "side": "buy", "qty": 1}
        asked["price"] = 60_000

        async def call(what: str) -> dict[str, object]:
            try:
                answer = await calls.call(what, asked, "killed/1")
            except OrderRefused as exc:
                return {"refused": exc.reason, **exc.detail.get("order", {})}
            assert isinstance(answer, dict)
            return answer

        while not feed.status()["orders"]["ready"]:  # noqa: ASYNC110
            await trio.sleep(0.01)
        answer = await call("order.preview")
        if mode == "place":
            # Seen by strace: between these two lies the path of the order.
            os.access("/order-begins", os.F_OK)
            answer = await call("order.place")
            os.access("/order-ends", os.F_OK)
        else:
            answer = await call("order.place")
            with trio.move_on_after(20):
                while answer.get("state") in {"unknown", "sending"}:
                    await trio.sleep(0.1)
                    answer = await call("order.place")
        told = {key: answer.get(key) for key in ("state", "order_no", "refused")}
        sys.stdout.write(json.dumps(told) + "\n")


if __name__ == "__main__":
    rest_url, state_folder, order_id, how = sys.argv[1:]
    trio.run(main, rest_url, state_folder, order_id, how)
