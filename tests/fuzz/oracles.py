"""What must hold for any bytes at all: from KIS, and from a peer on the local socket.

Each oracle takes the bytes and raises if something is wrong. Where there is a fast way through
the code, it is compared with a slow one that is written here.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from kisfeed import schemas
from kisfeed.client.core import ClientCore, specs
from kisfeed.config import Environment
from kisfeed.errors import BadFrame
from kisfeed.kfp import codec
from kisfeed.kis import control, frames, notices, rows, server, values
from kisfeed.kis.control import Ack, AesKey, Pingpong
from kisfeed.kis.frames import DataFrame, Records
from kisfeed.kis.notices import KeyRing
from kisfeed.kis.rejects import Reject, Rejected
from kisfeed.kis.rows import RowMaker

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from kisfeed.kis.catalogue import Layout, Tr

REAL: Final = schemas.load_catalogue(Environment.REAL)
AES: Final = AesKey(b"k" * 32, b"i" * 16)
TOPIC: Final = "trade.krx.005930"

_DATA: Final = re.compile(rb"([01])\|([0-9A-Za-z]+)\|([0-9]{1,3})\|(.*)", re.DOTALL)
_FRAMES: Final = Path(__file__).parents[1] / "data" / "frames.jsonl"
_MAKERS: Final[dict[tuple[str, int], RowMaker]] = {}
_KEYS: Final = KeyRing()
for _wire, _tr in REAL.trs.items():
    if _tr.encrypted:
        _KEYS.put(1, _wire, AES)


def kis(message: bytes) -> None:
    """One message from KIS."""
    _check_request(message)
    found = frames.parse(message)
    _compare_with_slow_parse(message, found)
    if isinstance(found, Ack):
        _check_ack(found)
    if not isinstance(found, DataFrame) or found.tr_id not in REAL.trs:
        return
    tr, payload = REAL.trs[found.tr_id], found.payload
    if found.encrypted:
        opened = _KEYS.open(1, found.tr_id, payload)
        if isinstance(opened, Rejected):
            return
        payload = opened
    cut = frames.records(tr, found.count, payload)
    if isinstance(cut, Rejected):
        assert cut.reason in {Reject.BAD_WIDTH, Reject.TOO_SHORT}, cut
        return
    _check_records(tr, found.count, payload, cut)


def _check_request(message: bytes) -> None:
    """What a server reads is what a client wrote; anything else is answered."""
    text = message.decode("utf-8", "replace")
    server.read_message(text)
    key = (text[:8], text[8:20])
    asked = server.read_message(control.subscribe("approval", key))
    if key[1]:
        assert asked == server.Request(subscribe=True, approval_key="approval", key=key), asked


def _compare_with_slow_parse(message: bytes, found: object) -> None:
    match = _DATA.fullmatch(message)
    if match is not None and int(match[3]):
        expected = DataFrame(match[1] == b"1", match[2].decode(), int(match[3]), match[4])
        assert found == expected, (found, expected)
    else:
        assert isinstance(found, Ack | Pingpong | Rejected), found


def _check_ack(ack: Ack) -> None:
    texts = (*ack.key, ack.rt_cd, ack.msg_cd, ack.text)
    "".join(texts).encode()
    assert all(text == text.strip() for text in texts), texts
    again = control.parse(server.build_ack(ack.key, ack.msg_cd, ack.text).encode())
    assert isinstance(again, Ack), again
    assert (again.key, again.msg_cd, again.text) == (ack.key, ack.msg_cd, ack.text)


def _check_records(tr: Tr, count: int, payload: bytes, cut: Records) -> None:
    assert len(cut.rows) == count
    assert b"^".join(b"^".join(row) for row in cut.rows) == payload
    widths = {len(row) for row in cut.rows}
    assert len(widths) == 1
    assert widths.pop() >= cut.layout.width
    key = (tr.tr_id, cut.layout.width)
    maker = _MAKERS.setdefault(key, RowMaker(tr, cut.layout))
    for fields in cut.rows:
        raw = rows.raw(fields)
        assert raw == tuple(value.decode("utf-8", "replace") for value in fields)
        made, xts = maker.typed(fields)
        codec.tick_frame(20, 1, 1, 0, xts, 0, made)
        if tr.schema == "notice.v1":
            assert tuple(notices.decode_notice(tr, fields).fields.values()) == made
        elif tr.schema in rows._TABLES:
            expected = tuple(_slow_row(tr, cut.layout, fields))
            assert made == expected, [
                (name, got, want)
                for name, got, want in zip(rows.FIELDS[tr.schema], made, expected, strict=True)
                if got != want
            ]


def _slow_row(tr: Tr, layout: Layout, fields: Sequence[bytes]) -> Iterator[Any]:
    """The row of one record, each value by itself and without anything remembered."""
    at = {name: index for index, name in enumerate(layout.fields)}
    scale = tr.scale or 0
    read = values.Numbers().tolerant
    for kind, columns in rows._TABLES[tr.schema].values():
        if kind in {"prices", "wholes"}:
            levels = rows._levels(columns, at)
            yield [read(fields[i], scale if kind == "prices" else 0) for i in levels]
            continue
        value = next((fields[at[column]] for column in columns if column in at), None)
        if value is None:
            yield None
        elif kind in {"price", "whole"}:
            yield read(value, scale if kind == "price" else 0)
        elif kind == "session":
            yield _slow_session(at, fields, value)
        else:
            tables: Mapping[str, Any] = {"side": values.SIDES, "flag": values.FLAGS}
            yield tables[kind].get(value) if kind in tables else values.text(value)


def _slow_session(at: Mapping[str, int], fields: Sequence[bytes], value: bytes) -> str | None:
    market = values.text(fields[at["MARKET_CLS_CODE"]]) if "MARKET_CLS_CODE" in at else None
    code = values.text(value)
    return market or (None if code is None else code[:1])


def kfp(data: bytes) -> None:
    """A byte stream from a peer; its first byte says where else it might have been cut."""
    if not data:
        return
    where, stream = data[0], data[1:]
    whole, whole_ended = _decode([stream])
    step = where % 16 + 1
    parts = [stream[i : i + step] for i in range(0, len(stream), step)]
    cut, cut_ended = _decode(parts)
    # A stream that ends badly loses what came in the same read before its end; no more.
    assert cut_ended == whole_ended, (cut_ended, whole_ended)
    assert whole_ended or repr(cut) == repr(whole)
    for message in cut:
        _check_again(message)
    _check_client(stream)


def _decode(parts: Sequence[bytes]) -> tuple[list[list[Any]], bool]:
    decoder, found = codec.Decoder(), []
    try:
        for part in parts:
            found += decoder.feed(part)
    except BadFrame:
        return found, True
    return found, False


def _check_again(message: list[Any]) -> None:
    try:
        framed = codec.frame(*message)
    except ValueError:
        assert message[0] in codec._HOT, message  # those are read without a look at their depth
        return
    (again,) = codec.Decoder().feed(framed)
    assert repr(again) == repr(message)


def _check_client(stream: bytes) -> None:
    """Whatever a daemon says, a client goes on or hangs up; it never raises."""
    core = ClientCore("fuzz", jitter=lambda: 0.5)
    core.subscribe(specs([TOPIC]), 0.0)
    core.connected(0.0)
    welcome = codec.frame(16, 1, {"proto": 1, "instance": "i", "epoch": 1})
    item = {"sid": 1, "topic": TOPIC, "schema": "trade.v1", "scale": 0, "sseq": 0}
    answer = codec.frame(17, 2, {"items": [{**item, "stream": 1, "data": 1, "code": "none"}]})
    core.received(welcome + answer, 0.0)
    assert core.subscriptions()[TOPIC].sid == 1
    if stream:
        core.received(stream, 1.0)
    while core.events:
        json.dumps(core.events.popleft().to_map(), default=repr)
    assert core.linked or core.deadline <= math.inf


def seeds(target: str) -> Iterator[bytes]:
    """Golden frames and the published vectors; a fuzzer begins with them."""
    if target == "kis":
        for line in _FRAMES.read_text("utf-8").splitlines():
            yield from _kis_seeds(json.loads(line))
        for tr_id, tr in REAL.trs.items():
            for width in tr.layouts:
                row = [("1", "12.34", "20261121")[place % 3] for place in range(width)]
                yield server.data_frame(tr_id, [row, row], AES if tr.encrypted else None).encode()
        yield server.build_ack(("H0STCNT0", "005930"), "OPSP0000", aes=AES).encode()
        yield server.pingpong("20261121090000").encode()
        yield control.subscribe("approval", ("H0STCNT0", "005930")).encode()
    else:
        vectors = [bytes.fromhex(v["hex"]) for v in schemas.load("kfp1/vectors.json")["vectors"]]
        for one, two in itertools.pairwise(vectors):
            yield b"\x05" + one + two


def _kis_seeds(golden: Mapping[str, Any]) -> Iterator[bytes]:
    text, tr_id, count = golden["raw"], golden.get("tr", ""), golden.get("count", 1)
    if golden["form"] == "payload":
        text = f"0|{tr_id}|{count:03d}|{text}"
    yield text.encode()
    if golden["form"] == "encrypted":
        yield server.data_frame(tr_id, [golden["plaintext"].split("^")], AES).encode()


WORDS: Final[Mapping[str, Sequence[str]]] = {
    "kis": (*(f"0|{tr_id}|001|" for tr_id in REAL.trs), "^", "(null)", "-nan", '"OPSP0000"'),
    "kfp": (r"\x00\x00\x00", r"\xd6\xff", r"\xc7\x0c\xff", r"\xdd", r"\xdf", r"\x93\x14\x01"),
}
"""What a fuzzer's dictionary holds."""

ORACLES: Final = {"kis": kis, "kfp": kfp}
