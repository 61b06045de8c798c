"""mojito2, as published, receives trades and books; run by the interpreter that has it.

``python with_mojito.py REST WS SYMBOL COUNT``: prints a JSON line for each record, ends after
COUNT trades, a book and a notice.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
from typing import Any

import mojito.koreainvestment as mojito


def main(rest: str, ws: str, symbol: str, count: int) -> None:
    # It receives in a process of its own, and dials an address that is written in its code.
    multiprocessing.set_start_method("fork")
    connect = mojito.websockets.connect
    mojito.websockets.connect = lambda _uri, **options: connect(ws, **options)

    broker = mojito.KoreaInvestmentWS(
        "K" * 36, "S" * 180, ["H0STCNT0", "H0STASP0"], [symbol], "interop"
    )
    broker.base_url = rest
    broker.start()
    missing = {"trade": count, "book": 1, "notice": 1}
    while any(left > 0 for left in missing.values()):
        kind, fields = broker.get()
        line = _line(kind, fields)
        missing[line["type"]] -= 1
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()
    broker.terminate()


def _line(kind: str, fields: dict[str, str]) -> dict[str, Any]:
    if kind == "체결":
        return {
            "type": "trade",
            "symbol": fields["유가증권단축종목코드"],
            "price": int(fields["주식현재가"]),
            "quantity": int(fields["체결거래량"]),
            "volume": int(fields["누적거래량"]),
        }
    if kind == "호가":
        return {
            "type": "book",
            "symbol": fields["유가증권 단축 종목코드"],
            "asks": [int(fields[f"매도호가{n:02}"]) for n in range(1, 11)],
            "bids": [int(fields[f"매수호가{n:02}"]) for n in range(1, 11)],
        }
    return {"type": "notice", "user": fields["고객ID"], "symbol": fields["주식단축종목코드"]}


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
