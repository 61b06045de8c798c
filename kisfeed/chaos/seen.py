"""What passed on the wires of a run, read by a reader of its own.

Nothing here is shared with the program under test: it cuts WebSocket frames, KIS frames and ACKs
by the specification alone, so that a mistake in ``kisfeed.kis`` cannot hide itself.
"""

from __future__ import annotations

import bisect
import json
import math
from typing import TYPE_CHECKING, Final, TypeAlias

import attrs

from kisfeed.kfp import events

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from kisfeed.chaos.network import Wire
    from kisfeed.chaos.run import Life, Program, Run

_TRADE: Final = "H0STCNT0"
_CLOCK, _PRICE, _QUANTITY, _VOLUME = 1, 2, 12, 13  # STCK_CNTG_HOUR, STCK_PRPR, CNTG_VOL, ACML_VOL
_FEWEST_FIELDS: Final = 46
_TEXT: Final = 1
_CLOSE: Final = 8
_HELD: Final = ("OPSP0000", "OPSP0002")


#: When a program saw a trade, and the row it came from: the first behind those of its topic.
Tick: TypeAlias = "tuple[float, events.Trade, int | None]"


@attrs.frozen
class Row:
    """One trade that the daemon's process read.

    Attributes:
        place: counts the rows of the run.
        wire: the number of its wire.
        clock: the exchange's time, HHMMSS.
    """

    place: int
    wire: int
    at: float
    clock: str
    symbol: str
    px: str
    qty: int
    cum: int


@attrs.frozen
class Answer:
    """One ACK that the daemon's process read."""

    at: float
    place: int
    key: tuple[str, str]
    code: str


@attrs.frozen
class Request:
    """One registration that the daemon sent."""

    at: float
    key: tuple[str, str]
    subscribe: bool


@attrs.define(eq=False)
class Line:
    """One wire, read.

    Attributes:
        reads: when the daemon's process got any byte.
        flowed: when it got data, by registration.
        close_received, close_sent: when a close frame passed, infinite for never.
        messages: text frames sent by the daemon, and when.
    """

    wire: Wire
    life: Life | None
    epoch: int
    reads: list[float] = attrs.field(factory=list)
    answers: list[Answer] = attrs.field(factory=list)
    rows: list[Row] = attrs.field(factory=list)
    flowed: dict[tuple[str, str], list[float]] = attrs.field(factory=dict)
    requests: list[Request] = attrs.field(factory=list)
    upgraded_at: float = math.inf
    close_received: float = math.inf
    close_sent: float = math.inf
    _asked: dict[tuple[str, str], float] = attrs.field(factory=dict, init=False)

    def asked(self, request: Request) -> None:
        """The daemon sent *request*."""
        self.requests.append(request)
        if request.subscribe:
            self._asked.setdefault(request.key, request.at)

    def asked_at(self, key: tuple[str, str]) -> float:
        """When the daemon first asked for *key*; infinite for never."""
        return self._asked.get(key, math.inf)

    @property
    def lived(self) -> float:
        """Seconds from the connect to the end of the daemon's end."""
        return self.wire.down_at - self.wire.opened_at


@attrs.define(eq=False)
class Seen:
    """All wires of a run, and the way from what a program got to where it came from."""

    run: Run
    lines: list[Line]
    rows: list[Row]
    _places: dict[tuple[str, str, int, int], list[int]]
    _ticks: dict[str, list[Tick]] = attrs.field(factory=dict, init=False)

    def ticks(self, program: Program) -> list[Tick]:
        """What *program* got, in order."""
        found = self._ticks.get(program.name)
        if found is None:
            found = self._ticks[program.name] = []
            last: dict[str, int] = {}
            for at, event, _name in program.log:
                if isinstance(event, events.Trade) and not event.image:
                    place = self.place_of(event, last.get(event.topic, -1))
                    found.append((at, event, place))
                    if place is not None:
                        last[event.topic] = place
        return found

    def place_of(self, event: events.Trade, after: int = -1) -> int | None:
        """The first row behind *after* that *event* may come from."""
        symbol = event.topic.rpartition(".")[2]
        key = (symbol, str(event.px), event.qty or 0, event.cum_qty or 0)
        places = self._places.get(key, [])
        at = bisect.bisect_right(places, after)
        return places[at] if at < len(places) else None

    def line_of(self, number: int) -> Line:
        """The line with the wire of this number."""
        return self.lines[number - 1]


def see(run: Run) -> Seen:
    """Read the wires of *run*."""
    lines: list[Line] = []
    rows: list[Row] = []
    for wire in run.kis.wires:
        life = next((x for x in reversed(run.lives) if x.first_dial < wire.dial), None)
        line = Line(wire, life, wire.dial - (life.first_dial if life is not None else 0))
        _read_down(line, rows)
        _read_up(line)
        lines.append(line)
    places: dict[tuple[str, str, int, int], list[int]] = {}
    for row in rows:
        places.setdefault((row.symbol, row.px, row.qty, row.cum), []).append(row.place)
    return Seen(run, lines, rows, places)


def _read_down(line: Line, rows: list[Row]) -> None:
    line.reads += [at for at, _ in line.wire.received]
    for at, opcode, payload in _frames(line.wire.received):
        if opcode == _CLOSE:
            line.close_received = min(line.close_received, at)
        elif opcode == _TEXT:
            _read_message(line, rows, at, payload.decode("utf-8", "replace"))
        elif opcode < 0:
            line.upgraded_at = at


def _read_message(line: Line, rows: list[Row], at: float, text: str) -> None:
    if text.startswith("0|"):
        parts = text.split("|", 3)
        if len(parts) == 4:
            line.flowed.setdefault((parts[1], parts[3].partition("^")[0]), []).append(at)
        for fields in _records(text):
            try:
                qty, cum = int(fields[_QUANTITY]), int(fields[_VOLUME])
            except ValueError:
                continue
            row = Row(
                len(rows), line.wire.number, at, fields[_CLOCK], fields[0], fields[_PRICE], qty, cum
            )
            rows.append(row)
            line.rows.append(row)
    elif text.startswith("{"):
        try:
            found = json.loads(text)
            header, code = found["header"], found["body"]["msg_cd"]
            key = (str(header["tr_id"]), str(header["tr_key"]))
        except (ValueError, KeyError, TypeError):
            return
        line.answers.append(Answer(at, len(rows), key, str(code)))


def _records(text: str) -> Iterator[list[str]]:
    parts = text.split("|", 3)
    if len(parts) != 4 or parts[1] != _TRADE or not parts[2].isdecimal():
        return
    count = int(parts[2])
    fields = parts[3].split("^")
    if count == 0 or len(fields) % count:
        return
    width = len(fields) // count
    if width < _FEWEST_FIELDS:
        return
    for first in range(0, len(fields), width):
        yield fields[first : first + width]


def _read_up(line: Line) -> None:
    for at, opcode, payload in _frames(line.wire.sent):
        if opcode == _CLOSE:
            line.close_sent = min(line.close_sent, at)
        elif opcode == _TEXT:
            try:
                found = json.loads(payload)
                header, asked = found["header"], found["body"]["input"]
                subscribe = header["tr_type"] == "1"
            except (ValueError, KeyError, TypeError):
                continue  # the echo of a PINGPONG
            line.asked(Request(at, (asked["tr_id"], asked["tr_key"]), subscribe))


def _frames(pieces: Sequence[tuple[float, bytes]]) -> Iterator[tuple[float, int, bytes]]:
    """WebSocket frames with the time of their last byte; opcode -1 is the end of the HTTP part."""
    buffer = bytearray()
    in_http = True
    for at, data in pieces:
        buffer += data
        if in_http:
            end = buffer.find(b"\r\n\r\n")
            if end < 0:
                continue
            del buffer[: end + 4]
            in_http = False
            yield at, -1, b""
        while True:
            frame = _frame(buffer)
            if frame is None:
                break
            opcode, payload, size = frame
            yield at, opcode, payload
            del buffer[:size]


def _frame(buffer: bytearray) -> tuple[int, bytes, int] | None:
    if len(buffer) < 2:
        return None
    size, start = buffer[1] & 0x7F, 2
    if size == 126:
        start = 4
        size = int.from_bytes(buffer[2:4], "big")
    elif size == 127:
        start = 10
        size = int.from_bytes(buffer[2:10], "big")
    masked = buffer[1] & 0x80
    body = start + (4 if masked else 0)
    if len(buffer) < body + size:
        return None
    payload = bytes(buffer[body : body + size])
    if masked:
        mask = int.from_bytes((buffer[start:body] * (size // 4 + 1))[:size])
        payload = (int.from_bytes(payload) ^ mask).to_bytes(size)
    return buffer[0] & 0x0F, payload, body + size


def confirmed(line: Line, key: tuple[str, str], before: float) -> bool:
    """Whether an ACK or data of *key*, asked for before, had reached the daemon by then."""
    asked = line.asked_at(key)
    return any(
        a.key == key and a.code in _HELD and asked <= a.at <= before for a in line.answers
    ) or any(asked <= at <= before for at in line.flowed.get(key, ()))
