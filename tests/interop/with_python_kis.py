"""python-kis, as published, receives trades and books; run by the interpreter that has it.

``python with_python_kis.py REST WS SYMBOL COUNT``: prints a JSON line for each record, ends after
COUNT trades and a book.
"""

from __future__ import annotations

import json
import sys
import threading
from typing import Any

import pykis.client.websocket
import pykis.kis

rest, ws, symbol, count = sys.argv[1:]
# Its only addresses are constants of these modules.
pykis.kis.REAL_DOMAIN = rest
pykis.client.websocket.WEBSOCKET_REAL_DOMAIN = ws

kis = pykis.PyKis(
    id="interop",
    account="12345678-01",
    appkey="K" * 36,
    secretkey="S" * 180,
    keep_token=False,
)
enough = threading.Semaphore(0)
seen_book = threading.Event()


def say(line: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def on_trade(_sender: object, event: Any) -> None:
    trade = event.response
    line = {
        "type": "trade",
        "symbol": trade.symbol,
        "price": int(trade.price),
        "quantity": int(trade.raw()[12]),  # CNTG_VOL; its typed price leaves it out
        "volume": trade.volume,
    }
    say(line)
    enough.release()


def on_book(_sender: object, event: Any) -> None:
    book = event.response
    line = {
        "type": "book",
        "symbol": book.symbol,
        "asks": [int(level.price) for level in book.asks],
        "bids": [int(level.price) for level in book.bids],
    }
    say(line)
    seen_book.set()


stock = kis.stock(symbol)
say({"type": "stock", "name": stock.info.name})
# It forgets what is subscribed while it restores subscriptions on a fresh connection.
kis.websocket.ensure_connected()
# A ticket that is dropped unsubscribes.
tickets = [stock.on("price", on_trade), stock.on("orderbook", on_book)]
for _ in range(int(count)):
    enough.acquire()
seen_book.wait()
for ticket in tickets:
    ticket.unsubscribe()
kis.websocket.disconnect()
