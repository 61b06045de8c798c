"""A simulated KIS at work: the exchange and the market on Trio."""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, Any, Final

import trio

from kisfeed import schemas, seams
from kisfeed.config import Environment
from kisfeed.errors import UsageError
from kisfeed.kis import server
from kisfeed.simulator.brokerage import Brokerage, notice_values
from kisfeed.simulator.exchange import Exchange, Session
from kisfeed.simulator.faults import Fault, Kind
from kisfeed.simulator.market import Market, MarketClock
from kisfeed.simulator.player import Player
from kisfeed.simulator.rest import Rest, serve
from kisfeed.simulator.trading import Trading
from kisfeed.simulator.websocket import Client, Records

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kisfeed.kis.catalogue import RegKey, Tr
    from kisfeed.simulator.brokerage import News
    from kisfeed.simulator.options import Options

_SHARE: Final = {"trade": 1.0, "book": 1.0, "expected": 0.2}  # of the rate; others a tenth
_ORDER_NOTICES: Final = ("H0STCNI0", "H0STCNI9")
_LOOKS_A_FILL: Final = 3
_LATE_S: Final = 1.0
_HUGE: Final = 2 * 1024 * 1024
_BURST_RECORDS: Final = 12
_FILLS: Final = 2  # after each acceptance
_BAD: Final = ("", "(null)", "-nan", "+0")
_KEEP: Final = ("PRPR", "VOL", "CNQN", "ISCD", "SYM", "HOUR", "DATE", "PBMN", "LAST", "CODE")


class Simulator:
    """One simulated KIS, without sockets of its own.

    Attributes:
        exchange: the oracle: sessions, registrations, counters, history.
        market: prices and volumes.
        brokerage: accounts and orders: what took effect.
        trading: the calls about them.
        rest: the REST half.
        rest_url, ws_url: base addresses; empty when it has no sockets.
    """

    def __init__(self, options: Options) -> None:
        catalogue = schemas.load_catalogue(options.environment)
        trs = catalogue.trs
        self.options = options
        clock = MarketClock(options.start, trio.current_time(), options.time_scale)
        self.market = Market(
            options.seed, trs, clock, _checked_widths(options, trs), always_open=options.always_open
        )
        rng = seams.seeded_rng(options.seed)
        self.exchange = Exchange(options.rules, trs, rng, clock.at)
        paper = options.environment is Environment.PAPER
        self.brokerage = Brokerage(
            options.dealing,
            seams.seeded_rng(options.seed),
            lambda symbol: self.market.tape("krx", symbol),
            clock.at,
        )
        self.trading = Trading(self.exchange, self.brokerage, self.market, self._deal, paper=paper)
        self.rest = Rest(self.exchange, self.market, self._catch_up, self.trading, paper=paper)
        self.rest_url = ""
        self.ws_url = ""
        self._trs = trs
        self._trades = {tr.venue: wire for wire, tr in trs.items() if tr.channel == "trade"}
        self._player = None if options.play is None else Player.read(options.play, trs)
        self._clients: dict[Session, Client] = {}
        self._due: list[tuple[float, int, RegKey]] = []
        self._scheduled: dict[RegKey, None] = {}
        self._left_at: dict[RegKey, float] = {}
        self._frames: dict[RegKey, int] = {}
        self._numbers = 0
        self._orders = 0
        self._wake = trio.Event()
        self._dealt = trio.Event()
        self._refusal_changed = trio.Event()

    def refuses(self) -> bool:
        """Whether the WebSocket port refuses connections at present."""
        return self.exchange.board.active(Kind.REFUSE, trio.current_time()) is not None

    def inject(self, fault: Fault | Kind | str) -> None:
        """Make something go wrong now; a bare kind means a fault with its defaults.

        Raises:
            ValueError: no such kind.
        """
        if not isinstance(fault, Fault):
            fault = Fault(kind=Kind(fault))
        self.exchange.inject(fault, trio.current_time())
        self._act(fault)
        changed, self._refusal_changed = self._refusal_changed, trio.Event()
        changed.set()

    def counts(self) -> dict[str, Any]:
        """What was counted until now, and the shares traded of each topic that was ever sent."""
        traded = {}
        for tr_id, symbol in self.exchange.tallies:
            tr = self._trs[tr_id]
            if tr.channel == "trade":
                topic = f"trade.{tr.venue}.{symbol}"
                traded[topic] = self.market.tape(tr.venue, symbol).volume
        return {
            **self.exchange.counts(trio.current_time()),
            "backlog": sum(client.backlog for client in self._clients.values()),
            "traded": traded,
        }

    async def run(self) -> None:
        """Make the market and the scenario happen, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._run_market)
            nursery.start_soon(self._run_brokerage)
            nursery.start_soon(self._run_scenario)

    async def serve_websocket(self, stream: trio.abc.Stream) -> None:
        """Serve one WebSocket client on *stream*, which is closed at the end."""
        client = Client(
            stream,
            self.exchange,
            pingpong=self._pingpong,
            pingpong_s=self.options.pingpong_s,
            registered=self._schedule,
            acknowledge_close=self.options.acknowledge_close,
        )
        self._clients[client.session] = client
        try:
            await client.run()
        finally:
            del self._clients[client.session]

    async def serve_rest(self, stream: trio.abc.Stream) -> None:
        """Serve one HTTP connection on *stream*, which is closed at the end."""
        await serve(stream, self.rest)

    async def refusal_change(self) -> None:
        """Wait until connections may have begun to be refused, or accepted again."""
        now = trio.current_time()
        ends = self.exchange.board.ends(Kind.REFUSE, now)
        changed = self._refusal_changed
        with trio.move_on_at(ends) if ends > now else trio.CancelScope():
            await changed.wait()

    def _pingpong(self) -> str:
        return server.pingpong(f"{self.market.clock.at(trio.current_time()):%Y%m%d%H%M%S}")

    # The market's timetable

    def _period(self, tr: Tr) -> float:
        if tr.encrypted:
            return self.options.notice_s
        among = max(1, len(self._scheduled)) if self.options.shared else 1
        return among / (self.options.rate_hz * _SHARE.get(tr.channel, 0.1))

    def _schedule(self, session: Session) -> None:
        for key in session.registrations:
            if key in self._scheduled:
                continue
            self._scheduled[key] = None
            now = trio.current_time()
            tr = self._trs[key[0]]
            left_at = self._left_at.pop(key, now)
            if not tr.encrypted:
                self.market.skip(key, self._trades_since(left_at, key, now), now)
            # Spread over the period by a phase of the key's own, lest all frames come at once.
            phase = (self._numbers * 0.618034) % 1.0
            self._push(now + self._period(tr) * phase, key)
            self._wake.set()

    def _trades_since(self, left_at: float, key: RegKey, now: float) -> int:
        """How many trades happened since nobody had *key*."""
        if not self.market.trading(key[0], now):
            return 0
        low, high = self.options.records
        return int((now - left_at) / self._period(self._trs[key[0]]) * (low + high) / 2)

    def _catch_up(self, venue: str, symbol: str, now: float) -> None:
        """Somebody looks at a symbol: what traded while nobody had it has traded."""
        key = (self._trades.get(venue, ""), symbol)
        if not key[0] or key in self._scheduled:
            return
        missed = self._trades_since(self._left_at.setdefault(key, now), key, now)
        if missed:
            self._left_at[key] = now
            self.market.skip(key, missed, now)

    def _push(self, due: float, key: RegKey) -> None:
        self._numbers += 1
        heapq.heappush(self._due, (due, self._numbers, key))

    async def _run_market(self) -> None:
        while True:
            due = self._due[0][0] if self._due else float("inf")
            self._wake = trio.Event()
            if due > trio.current_time():
                with trio.move_on_at(due):
                    await self._wake.wait()
            else:
                await trio.lowlevel.checkpoint()
            now = trio.current_time()
            while self._due and self._due[0][0] <= now:
                due, _, key = heapq.heappop(self._due)
                sessions = self.exchange.registered_by(key)
                if not sessions:
                    del self._scheduled[key]
                    self._left_at[key] = now
                    continue
                period = self._period(self._trs[key[0]])
                self._push(due + period if now - due < _LATE_S else now + period, key)
                self._make(key, sessions, now)

    def _make(self, key: RegKey, sessions: list[Session], now: float) -> None:
        tr = self._trs[key[0]]
        if tr.encrypted:
            self._send_notice(key, sessions, now)
            return
        if self.exchange.board.active(Kind.QUIET, now, key=key):
            return
        take = None if self._player is None else self._player.next(key)
        if take is not None:
            frame = f"0|{take.tr_id}|{take.count:03d}|{take.payload}"
            self._send(sessions, frame, Records(key, take.count, take.volume(tr)))
            return
        if not self.market.trading(key[0], now):
            return
        count = self.market.draw_count(key, *self.options.records) if tr.channel == "trade" else 1
        self._send_records(key, sessions, count, now)

    def _send_records(self, key: RegKey, sessions: list[Session], count: int, now: float) -> None:
        board = self.exchange.board
        rows, volume = self.market.records(key, count, now)
        if board.take(Kind.WITHHOLD, now, key=key):
            for _ in sessions:
                self.exchange.withheld(key, count, volume)
            return
        extra = board.take(Kind.EXTRA_COLUMN, now, key=key)
        if extra is not None:
            rows = [[*row, *("7" for _ in range(int(extra.value) or 1))] for row in rows]
        if board.take(Kind.BAD_VALUES, now, key=key):
            self._spoil(key, rows)
        frame = server.data_frame(key[0], rows)
        records = Records(key, count, volume)
        if board.take(Kind.INVALID_UTF8, now, key=key):
            broken = frame.encode()[:-1] + b"\xff"
            for client in self._clients_of(sessions):
                client.send_raw(broken, records)
            return
        self._send(sessions, frame, records)

    def _spoil(self, key: RegKey, rows: list[list[str]]) -> None:
        fields = self.market.layout(key[0]).fields
        places = [i for i, name in enumerate(fields) if not any(word in name for word in _KEEP)]
        for number, place in enumerate(places[:: max(1, len(places) // 6)]):
            for row in rows:
                row[place] = _BAD[number % len(_BAD)]

    def _send_notice(self, key: RegKey, sessions: list[Session], now: float) -> None:
        if self.brokerage.orders and key[0] in _ORDER_NOTICES:
            return  # there are orders to tell of: none are made up
        turn = self._frames.get(key, 0)
        self._frames[key] = turn + 1
        fill = turn % (1 + _FILLS) > 0
        if not fill:
            self._orders += 1
        self._send_one_notice(key, sessions, now, fill=fill)

    def _send_one_notice(
        self, key: RegKey, sessions: list[Session], now: float, *, fill: bool
    ) -> None:
        row = self.market.notice(key, now, fill=fill, order=self._orders)
        self._send_sealed(key, sessions, row)

    def _send_sealed(self, key: RegKey, sessions: list[Session], row: list[str]) -> None:
        for session in sessions:
            aes = session.registrations[key]
            client = self._clients.get(session)
            if client is not None:
                client.send(server.data_frame(key[0], [row], aes), Records(key, 1, 0))

    def _send(self, sessions: list[Session], frame: str, records: Records) -> None:
        for client in self._clients_of(sessions):
            client.send(frame, records)

    def _clients_of(self, sessions: list[Session]) -> list[Client]:
        return [self._clients[s] for s in sessions if s in self._clients]

    # Orders

    def _deal(self) -> None:
        self._dealt.set()

    async def _run_brokerage(self) -> None:
        """Execute open orders as the market moves, and send what notices have to say."""
        wait = self.options.dealing.fill_s / _LOOKS_A_FILL
        while True:
            with trio.move_on_after(wait if self.brokerage.busy() else float("inf")):
                await self._dealt.wait()
            self._dealt = trio.Event()
            self.brokerage.advance(trio.current_time())
            held = self.exchange.registered()
            for news in self.brokerage.take_news():
                for key, sessions in held.items():
                    if key[0] in _ORDER_NOTICES:
                        self._send_news(key, sessions, news)

    def _send_news(self, key: RegKey, sessions: list[Session], news: News) -> None:
        now = trio.current_time()
        if self.exchange.board.take(Kind.WITHHOLD, now, key=key):
            return
        values = notice_values(news, key[1])
        row = self.market.notice(key, now, fill=news.kind == "fill", order=0, values=values)
        self._send_sealed(key, sessions, row)

    # Faults that act at once

    async def _run_scenario(self) -> None:
        started = trio.current_time()
        for fault in sorted(self.options.scenario, key=lambda f: f.at):
            await trio.sleep_until(started + fault.at)
            self.inject(fault)

    def _act(self, fault: Fault) -> None:
        if fault.kind in {Kind.BURST, Kind.NOTICE}:
            self._act_on_keys(fault)
            return
        for session, client in list(self._clients.items()):
            if fault.hits(None, session.appkey or ""):
                self._act_on(client, fault)

    def _act_on(self, client: Client, fault: Fault) -> None:
        match fault.kind:
            case Kind.CUT:
                client.reset()
            case Kind.DROP:
                client.drop()
            case Kind.CLOSE:
                client.close(int(fault.value) or 1000)
            case Kind.SILENCE:
                client.silence(fault.lasts)
            case Kind.STRAY_ACK:
                key = (fault.tr_id, fault.tr_key)
                client.send(server.build_ack(key, fault.code or server.SUBSCRIBED))
            case Kind.GARBAGE:
                for _ in range(fault.count or 1):
                    client.send(fault.text or self.exchange.board.next_garbage())
            case Kind.HUGE:
                client.send("0|H0STCNT0|001|" + "9" * (int(fault.value) or _HUGE))
            case _:
                pass

    def _act_on_keys(self, fault: Fault) -> None:
        now = trio.current_time()
        for key, sessions in self.exchange.registered().items():
            encrypted = self._trs[key[0]].encrypted
            if not fault.hits(key, None) or encrypted is not (fault.kind is Kind.NOTICE):
                continue
            if fault.kind is Kind.NOTICE:
                self._orders += 1
                self._send_one_notice(key, sessions, now, fill=False)
                self._send_one_notice(key, sessions, now, fill=True)
            else:
                for _ in range(fault.count or 1):
                    self._send_records(key, sessions, _BURST_RECORDS, now)


def _checked_widths(options: Options, known: Mapping[str, Tr]) -> dict[str, int]:
    widths = {"H0STASP0": options.book_width}
    widths |= dict.fromkeys(("H0STCNT0", "H0NXCNT0", "H0UNCNT0"), options.width)
    widths |= options.widths
    unknown = [tr_id for tr_id in options.widths if tr_id not in known]
    if unknown:
        raise UsageError(f"no TR is called {', '.join(unknown)}")
    low, high = options.records
    if options.rate_hz <= 0 or not 1 <= low <= high <= 999:
        raise UsageError("the rate is above zero, and a frame has 1 to 999 records")
    for tr_id, width in widths.items():
        if tr_id in known and width not in known[tr_id].layouts:
            choice = ", ".join(str(n) for n in known[tr_id].layouts)
            raise UsageError(f"{tr_id} has no layout of {width} values, only {choice}")
    return widths
