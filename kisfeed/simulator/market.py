"""A seeded market: prices that walk in ticks, volumes that add up, records in KIS's layouts.

Pure but for the random numbers it is given; it is told the time. One :class:`Tape` per venue and
symbol feeds every TR of that symbol, so a trade, a book and a REST price tell the same story.
"""

from __future__ import annotations

import datetime as dt
import functools
import hashlib
import re
from typing import TYPE_CHECKING, Final

import attrs

from kisfeed import seams
from kisfeed.seoul import KST

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from kisfeed.kis.catalogue import Layout, RegKey, Tr

OPEN_MARKET: Final = dt.datetime(2026, 11, 18, 10, 0, 0, tzinfo=KST)  # a Wednesday

BASE_PRICES: Final[Mapping[str, int]] = {
    "005930": 71_900,
    "000660": 265_000,
    "035420": 212_500,
    "005380": 254_500,
    "035720": 58_400,
    "068270": 181_300,
    "051910": 311_000,
    "005490": 298_500,
    "105560": 86_700,
    "373220": 402_500,
    "069500": 37_235,
    "0001": 262_454,
    "2001": 35_012,
}
NAMES: Final[Mapping[str, str]] = {
    "005930": "삼성전자",
    "000660": "SK하이닉스",
    "035420": "NAVER",
    "005380": "현대차",
    "035720": "카카오",
    "068270": "셀트리온",
    "051910": "LG화학",
    "005490": "POSCO홀딩스",
    "105560": "KB금융",
    "373220": "LG에너지솔루션",
    "069500": "KODEX 200",
}

_STOCK_VENUES: Final = frozenset({"krx", "nxt", "unified", "krx-after", "etf"})
_NOTICE_SYMBOLS: Final[Mapping[str, str]] = {
    "derivatives": "A05608",
    "nightfut": "101W9000",
    "nightopt": "301V06362",
    "overseas": "AAPL",
    "osfut-order": "FCAZ22",
    "osfut-fill": "FCAZ22",
}
_LEVELS: Final = 10
_SKIP_EXACT: Final = 50


@attrs.frozen
class MarketClock:
    """What time it is on the exchange.

    Attributes:
        start: the date and time in Seoul when the simulator starts.
        epoch: the scheduler's seconds at that moment.
        scale: exchange seconds in one scheduler second.
    """

    start: dt.datetime
    epoch: float
    scale: float = 1.0

    def at(self, now: float) -> dt.datetime:
        """The time in Seoul at *now* (scheduler seconds)."""
        return self.start + dt.timedelta(seconds=(now - self.epoch) * self.scale)


def tick_size(price: int) -> int:
    """The KRX stock price step at this price, in KRW (table in force since 2023-01-25)."""
    for below, step in ((2000, 1), (5000, 5), (20_000, 10), (50_000, 50), (200_000, 100)):
        if price < below:
            return step
    return 500 if price < 500_000 else 1000


@functools.lru_cache(maxsize=8192)
def _ladder(price: int, *, ask: bool) -> tuple[int, ...]:
    """The prices of a stock's side of the book, from the best one."""
    prices = [price]
    while len(prices) < _LEVELS:
        price += tick_size(price) if ask else -tick_size(price - 1)
        prices.append(price)
    return tuple(prices)


def is_open(venue: str, at: dt.datetime) -> bool:
    """Whether trades happen in this venue at this time in Seoul; no holidays, weekdays only."""
    if at.weekday() >= 5:
        return False
    minute = at.hour * 60 + at.minute
    if venue in {"overseas", "overseas-asia", "osfut"}:
        return True
    if venue in {"nightfut", "nightopt"}:
        return minute >= 18 * 60 or minute < 5 * 60
    if venue in {"nxt", "unified"}:
        return 8 * 60 <= minute < 20 * 60
    return 9 * 60 <= minute < 15 * 60 + 30


class Tape:
    """The state of one symbol in one venue. Prices are integers in units of ``10**-scale``.

    Attributes:
        last, open, high, low, quantity, volume, value: as after the latest trade; ``value`` is
            the sum of price times quantity.
        bid: the best bid; the ask is one tick above.
        buys, sells, bought, sold: trades and shares by the side that came to the other.
        buying: the latest trade was at the ask.
        opened_at, high_at, low_at: ``HHMMSS`` in Seoul.
    """

    open: int
    high: int
    low: int
    opened_at: str
    high_at: str
    low_at: str
    quantity: int
    volume: int
    value: int
    buys: int
    sells: int
    bought: int
    sold: int
    buying: bool

    def __init__(self, venue: str, symbol: str, base: int, scale: int, rng: seams.Rng) -> None:
        self.venue = venue
        self.symbol = symbol
        self.scale = scale
        self.base = base
        self._stock = venue in _STOCK_VENUES
        self._rng = rng
        self._least = self.step(0)
        self._day = 0
        self.bid = base - base % self.step(base)
        self.last = self.bid
        self._reset()

    def step(self, price: int) -> int:
        """The price step at this price."""
        if self._stock:
            return tick_size(price)
        return 5 if "fut" in self.venue or "opt" in self.venue else max(1, 10**self.scale // 100)

    @property
    def ask(self) -> int:
        """The best ask."""
        return self.bid + self.step(self.bid)

    def trade(self, at: dt.datetime) -> None:
        """One trade at the bid or the ask; a new day in Seoul starts from zero volume."""
        self.quote(at)
        buys = self._rng.random() < 0.5
        self.last = self.ask if buys else self.bid
        luck = self._rng.random()
        self._account(1 + int(300 * luck**4), at, buys=buys)

    def quote(self, at: dt.datetime) -> None:
        """The book moves, or not."""
        today = at.toordinal()
        if today != self._day:
            self._day = today
            self.base = self.last
            self._reset()
        luck = self._rng.random()
        if luck < 0.12:
            self.bid -= self.step(self.bid - 1)
        elif luck > 0.88:
            self.bid += self.step(self.bid)
        ceiling, floor = self.base * 13 // 10, max(self.base * 7 // 10, self._least)
        self.bid = min(max(self.bid, floor - floor % self.step(floor)), ceiling)

    def skip(self, trades: int, at: dt.datetime) -> int:
        """As many trades unseen, in one go; returns their volume."""
        before = self.volume
        for _ in range(min(trades, _SKIP_EXACT)):
            self.trade(at)
        if trades > _SKIP_EXACT:
            # The mean of the quantity below is 61; hours of trades are not worth their draws.
            self._account((trades - _SKIP_EXACT) * 61, at, buys=True)
        return self.volume - before

    def side(self, *, ask: bool) -> list[tuple[int, int]]:
        """Price and quantity of each level of one side of the book, from the best one."""
        best = self.ask if ask else self.bid
        if self._stock:
            prices = _ladder(best, ask=ask)
        else:
            step = self.step(best) if ask else -self.step(best)
            prices = tuple(best + step * away for away in range(_LEVELS))
        luck = self._rng.getrandbits(13 * _LEVELS)
        quantities = [50 + (luck >> 13 * n & 8191) * (n + 1) // 4 for n in range(_LEVELS)]
        if prices[-1] < self._least:
            prices = tuple(max(price, self._least) for price in prices)
        return list(zip(prices, quantities, strict=True))

    def _account(self, quantity: int, at: dt.datetime, *, buys: bool) -> None:
        self.buying = buys
        self.quantity = quantity
        self.volume += quantity
        self.value += quantity * self.last
        if buys:
            self.buys += 1
            self.bought += quantity
        else:
            self.sells += 1
            self.sold += quantity
        if not self.open:
            self.open, self.opened_at = self.last, _clock(at)
        if self.last > self.high:
            self.high, self.high_at = self.last, _clock(at)
        if not self.low or self.last < self.low:
            self.low, self.low_at = self.last, _clock(at)

    def _reset(self) -> None:
        self.open = self.high = self.low = 0
        self.opened_at = self.high_at = self.low_at = "000000"
        self.quantity = self.volume = self.value = 0
        self.buys = self.sells = self.bought = self.sold = 0
        self.buying = True


def _clock(at: dt.datetime) -> str:
    return f"{at:%H%M%S}"


@attrs.define(eq=False)
class _View:
    """What a field's text is made of."""

    tape: Tape
    at: dt.datetime
    key: RegKey
    rng: seams.Rng
    _asks: list[tuple[int, int]] | None = None
    _bids: list[tuple[int, int]] | None = None

    def asks(self) -> list[tuple[int, int]]:
        """The side of the sellers, drawn when a field first asks for it."""
        if self._asks is None:
            self._asks = self.tape.side(ask=True)
        return self._asks

    def bids(self) -> list[tuple[int, int]]:
        """The side of the buyers."""
        if self._bids is None:
            self._bids = self.tape.side(ask=False)
        return self._bids

    def price(self, value: int) -> str:
        scale = self.tape.scale
        return f"{value / 10**scale:.{scale}f}" if scale else str(value)

    def percent(self, value: int) -> str:
        # Adding zero turns -0.0 into 0.0.
        return f"{round((value - self.tape.base) * 100 / self.tape.base, 2) + 0.0:.2f}"

    def sign(self, value: int) -> str:
        base = self.tape.base
        return "3" if value == base else "2" if value > base else "5"


_PREFIX: Final = re.compile(r"^(?:STCK|FUTS|OPTN|ELW|BSTP|TOTL_ERNN)_")
_ASK_PRICE: Final = re.compile(r"^(?:PASK|ASKP|ASK_PRICE_)(\d*)$")
_BID_PRICE: Final = re.compile(r"^(?:PBID|BIDP|BID_PRICE_)(\d*)$")
_ASK_SIZE: Final = re.compile(r"^(?:VASK|ASKP_RSQN|ASK_QNTT_)(\d?\d?)$")
_BID_SIZE: Final = re.compile(r"^(?:VBID|BIDP_RSQN|BID_QNTT_)(\d?\d?)$")


def _total(side: list[tuple[int, int]]) -> str:
    return str(sum([quantity for _, quantity in side]))


# By the field's name without its product prefix; upper-case KIS names of all realtime TRs.
_GETTERS: Final[Mapping[str, Callable[[_View], str]]] = {
    **dict.fromkeys(
        ("PRPR", "PRPR_NMIX", "LAST", "LAST_PRICE", "NMIX", "NAV", "ANTC_CNPR", "HTS_THPR"),
        lambda v: v.price(v.tape.last),
    ),
    **dict.fromkeys(
        ("OPRC", "OPRC_NMIX", "NMIX_OPRC", "OPEN", "OPEN_PRICE", "OPRC_NAV"),
        lambda v: v.price(v.tape.open),
    ),
    **dict.fromkeys(
        ("HGPR", "NMIX_HGPR", "HIGH", "HIGH_PRICE", "HPRC_NAV"),
        lambda v: v.price(v.tape.high),
    ),
    **dict.fromkeys(
        ("LWPR", "NMIX_LWPR", "LOW", "LOW_PRICE", "LPRC_NAV"), lambda v: v.price(v.tape.low)
    ),
    **dict.fromkeys(
        ("PRDY_CLPR", "PREV_PRICE", "VI_STND_PRC", "PSTTL_PRICE"),
        lambda v: v.price(v.tape.base),
    ),
    "WGHN_AVRG_STCK_PRC": lambda v: f"{v.tape.value / max(v.tape.volume, 1):.2f}",
    **dict.fromkeys(
        ("PRDY_VRSS", "NMIX_PRDY_VRSS", "DIFF", "PREV_DIFF_PRICE", "ANTC_CNTG_VRSS"),
        lambda v: v.price(v.tape.last - v.tape.base),
    ),
    **dict.fromkeys(
        ("PRDY_VRSS_SIGN", "NMIX_PRDY_VRSS_SIGN", "SIGN", "PREV_SIGN", "ANTC_CNTG_VRSS_SIGN"),
        lambda v: v.sign(v.tape.last),
    ),
    **dict.fromkeys(
        ("PRDY_CTRT", "NMIX_PRDY_CTRT", "RATE", "PREV_DIFF_RATE", "ANTC_CNTG_PRDY_CTRT"),
        lambda v: v.percent(v.tape.last),
    ),
    **dict.fromkeys(
        ("CNTG_VOL", "LAST_CNQN", "EVOL", "LAST_QNTT", "PCAS_VOL", "ANTC_CNQN"),
        lambda v: str(v.tape.quantity),
    ),
    **dict.fromkeys(("ACML_VOL", "TVOL", "VOL", "ANTC_VOL"), lambda v: str(v.tape.volume)),
    **dict.fromkeys(("ACML_TR_PBMN", "TAMT"), lambda v: str(v.tape.value // 10**v.tape.scale)),
    "PCAS_TR_PBMN": lambda v: str(v.tape.quantity * v.tape.last // 10**v.tape.scale),
    "SELN_CNTG_CSNU": lambda v: str(v.tape.sells),
    "SHNU_CNTG_CSNU": lambda v: str(v.tape.buys),
    "NTBY_CNTG_CSNU": lambda v: str(v.tape.buys - v.tape.sells),
    **dict.fromkeys(("SELN_CNTG_SMTN", "ASVL"), lambda v: str(v.tape.sold)),
    **dict.fromkeys(("SHNU_CNTG_SMTN", "BIVL"), lambda v: str(v.tape.bought)),
    **dict.fromkeys(("CTTR", "STRN"), lambda v: f"{v.tape.bought * 100 / max(v.tape.sold, 1):.2f}"),
    "SHNU_RATE": lambda v: f"{v.tape.bought / max(v.tape.volume, 1):.2f}",
    **dict.fromkeys(
        ("CCLD_DVSN", "CNTG_CLS_CODE", "MTYP"), lambda v: "1" if v.tape.buying else "5"
    ),
    "OPRC_HOUR": lambda v: v.tape.opened_at,
    "HGPR_HOUR": lambda v: v.tape.high_at,
    "LWPR_HOUR": lambda v: v.tape.low_at,
    **dict.fromkeys(
        ("OPRC_VRSS_PRPR", "OPRC_VRSS_NMIX_PRPR"),
        lambda v: v.price(v.tape.last - (v.tape.open or v.tape.last)),
    ),
    **dict.fromkeys(
        ("HGPR_VRSS_PRPR", "HGPR_VRSS_NMIX_PRPR"),
        lambda v: v.price(v.tape.last - (v.tape.high or v.tape.last)),
    ),
    **dict.fromkeys(
        ("LWPR_VRSS_PRPR", "LWPR_VRSS_NMIX_PRPR"),
        lambda v: v.price(v.tape.last - (v.tape.low or v.tape.last)),
    ),
    **dict.fromkeys(("TOTAL_ASKP_RSQN", "AVOL"), lambda v: _total(v.asks())),
    **dict.fromkeys(("TOTAL_BIDP_RSQN", "BVOL"), lambda v: _total(v.bids())),
    "RSYM": lambda v: v.key[1],
    "SYMB": lambda v: v.key[1][4:],
    "ZDIV": lambda v: str(v.tape.scale),
    "BOND_ISNM": lambda _v: "국고03250-5303(23-2)",
    "HOUR_CLS_CODE": lambda _v: "0",
    "NEW_MKOP_CLS_CODE": lambda _v: "20",
    "MARKET_CLS_CODE": lambda _v: "2",
    "ANTC_EXCH_CLS_CODE": lambda _v: "1",
    "MKOP_CLS_CODE": lambda _v: "112",
    "ANTC_MKOP_CLS_CODE": lambda _v: "112",
    "ISCD_STAT_CLS_CODE": lambda _v: "55",
    "TR_SUSP_REAS_CNTT": lambda _v: "(null)",
    "MRKT_TRTM_CLS_CODE": lambda _v: "",
    "ACTIVE_FLAG": lambda _v: "1",
}


def _getter(name: str, kind: str) -> Callable[[_View], str]:
    bare = _PREFIX.sub("", name)
    known = _GETTERS.get(name) or _GETTERS.get(bare)
    if known is not None:
        return known
    for pattern, ask, part in (
        (_ASK_PRICE, True, 0),
        (_BID_PRICE, False, 0),
        (_ASK_SIZE, True, 1),
        (_BID_SIZE, False, 1),
    ):
        level = pattern.match(bare)
        if level:
            # "ASKP_RSQN52" is how KIS's own list misspells level 5 of the bond book.
            number = min(int(level[1] or "1"), 50)
            number = 5 if number > _LEVELS else number
            return _book(number - 1, ask=ask, part=part)
    return _generic(name, kind)


def _book(level: int, *, ask: bool, part: int) -> Callable[[_View], str]:
    side = _View.asks if ask else _View.bids
    if part:
        return lambda v: str(side(v)[level][1])
    return lambda v: v.price(side(v)[level][0])


def _generic(name: str, kind: str) -> Callable[[_View], str]:
    """A plausible text for a field nobody gave a meaning here."""
    if kind == "time":
        if name.startswith(("XH", "MRKT_")):
            return lambda v: _clock(v.at - dt.timedelta(hours=14))
        return lambda v: _clock(v.at)
    if kind == "date":
        if name.startswith(("XY", "TY")):
            return lambda v: f"{v.at - dt.timedelta(hours=14):%Y%m%d}"
        return lambda v: f"{v.at:%Y%m%d}"
    if kind == "int":
        return lambda v: str(v.rng.getrandbits(14))
    if kind == "decimal":
        return lambda v: f"{v.rng.random() * 10:.2f}"
    if name.endswith("_SIGN"):
        return lambda v: v.sign(v.tape.last)
    if name.endswith("_YN") or name in {"VI_CLS_CODE", "OVTM_VI_CLS_CODE"}:
        return lambda _v: "N"
    if "NAME" in name:
        return lambda _v: "키움증권"
    return lambda _v: ""


class Market:
    """Every tape, and records made from them.

    Attributes:
        clock: the exchange's clock.
        always_open: trade at any hour of any day.
    """

    def __init__(
        self,
        seed: int,
        trs: Mapping[str, Tr],
        clock: MarketClock,
        widths: Mapping[str, int],
        *,
        always_open: bool = True,
    ) -> None:
        self.clock = clock
        self.always_open = always_open
        self._seed = seed
        self._trs = trs
        self._widths = widths
        self._tapes: dict[tuple[str, str], Tape] = {}
        self._rngs: dict[RegKey, seams.Rng] = {}
        self._writers: dict[tuple[str, int], tuple[Callable[[_View], str], ...]] = {}

    def tape(self, venue: str, symbol: str, scale: int = 0) -> Tape:
        """The tape of a symbol in a venue, made on first use; the seed decides all of it."""
        found = self._tapes.get((venue, symbol))
        if found is None:
            rng = self._rng(venue, symbol)
            base = BASE_PRICES.get(symbol)
            if base is None:
                luck = rng.random()
                base = int((20 + luck * 400) * 10**scale) if scale else 5000 + int(luck * 195_000)
            found = self._tapes[venue, symbol] = Tape(venue, symbol, base, scale, rng)
        return found

    def trading(self, tr_id: str, now: float) -> bool:
        """Whether the TR's venue is open."""
        return self.always_open or is_open(self._trs[tr_id].venue, self.clock.at(now))

    def layout(self, tr_id: str) -> Layout:
        """The layout in which this TR is sent."""
        tr = self._trs[tr_id]
        return tr.layouts.get(self._widths.get(tr_id, 0), tr.usual)

    def draw_count(self, key: RegKey, low: int, high: int) -> int:
        """How many records the next frame of *key* carries, from *low* to *high*."""
        return low + int(self._rng("count", "/".join(key)).random() * (high - low + 1))

    def records(self, key: RegKey, count: int, now: float) -> tuple[list[list[str]], int]:
        """*count* records of a plain TR, and the shares traded in them (0 unless a trade TR)."""
        tr = self._trs[key[0]]
        at = self.clock.at(now)
        tape = self._tape_of(key, tr)
        rows = []
        volume = 0
        for _ in range(count):
            if tr.channel == "trade":
                tape.trade(at)
                volume += tape.quantity
            else:
                tape.quote(at)
            rows.append(self._record(key, tape, at))
        return rows, volume

    def skip(self, key: RegKey, trades: int, now: float) -> int:
        """So many trades happened while nobody had this key; returns their volume."""
        tr = self._trs[key[0]]
        if tr.channel != "trade":
            return 0
        return self._tape_of(key, tr).skip(trades, self.clock.at(now))

    def notice(
        self,
        key: RegKey,
        now: float,
        *,
        fill: bool,
        order: int,
        values: Mapping[str, str] | None = None,
    ) -> list[str]:
        """An order notice: *values* by KIS's names, the others as of 10 shares or contracts."""
        at = self.clock.at(now)
        tape = self.tape("krx", "005930")
        view = _View(tape, at, key, self._rng(*key))
        symbol = _NOTICE_SYMBOLS.get(self._trs[key[0]].venue, "005930")
        texts = {
            "CUST_ID": key[1],
            "USER_ID": key[1],
            "ACNT_NO": "1234567801",
            "ACCT_NO": "1234567801",
            "ODER_NO": f"{order:010d}",
            "ODNO": f"{order:010d}",
            "SELN_BYOV_CLS": "02",
            "RCTF_CLS": "0",
            "ODER_KIND": "00",
            "ODER_KIND2": "0" if fill else "L",
            "ODER_COND": "0",
            "STCK_SHRN_ISCD": symbol,
            "SERIES": symbol,
            "SLL_BUY_DVSN_CD": "02",
            "RVSE_CNCL_DVSN_CD": "00",
            "ORD_QTY": "10",
            "TOT_CCLD_QTY": "10" if fill else "0",
            "ORD_REMQ": "0" if fill else "10",
            "CCLD_QTY": "10",
            "CRCY_CD": "USD",
            "CNTG_QTY": "0000000010",
            "CNTG_UNPR": f"{tape.last:09d}",
            "STCK_CNTG_HOUR": f"{at:%H%M%S}",
            "RFUS_YN": "0",
            "CNTG_YN": "2" if fill else "1",
            "ACPT_YN": "2" if fill else "1",
            "BRNC_NO": "06010",
            "ODER_QTY": "000000010",
            "ACNT_NAME": "김한투",
            "ORD_COND_PRC": "000000000",
            "ORD_EXG_GB": "1",
            "POPUP_YN": "Y",
            "FILLER": "",
            "CRDT_CLS": "10",
            "CRDT_LOAN_DATE": "",
            "CNTG_ISNM40": "삼성전자",
            "CNTG_ISNM": "삼성전자",
            "ODER_PRC": f"{tape.last:09d}",
            **(values or {}),
        }
        layout = self.layout(key[0])
        return [
            texts[name] if name in texts else _generic(name, kind)(view)
            for name, kind in zip(layout.fields, layout.types, strict=True)
        ]

    def _record(self, key: RegKey, tape: Tape, at: dt.datetime) -> list[str]:
        layout = self.layout(key[0])
        writers = self._writers.get((key[0], layout.width))
        if writers is None:
            writers = tuple(
                _getter(name, kind) for name, kind in zip(layout.fields, layout.types, strict=True)
            )
            self._writers[key[0], layout.width] = writers
        view = _View(tape, at, key, self._rng(*key))
        row = [write(view) for write in writers]
        if layout.key_index is not None:
            row[layout.key_index] = key[1]
        return row

    def _tape_of(self, key: RegKey, tr: Tr) -> Tape:
        scale = tr.scale
        if scale is None:
            scale = 2 if tr.venue in {"osfut", "index"} else 0
        return self.tape(tr.venue, key[1], scale)

    def _rng(self, first: str, second: str) -> seams.Rng:
        found = self._rngs.get((first, second))
        if found is None:
            name = f"{self._seed}/{first}/{second}".encode()
            digest = hashlib.blake2b(name, digest_size=8).digest()
            found = seams.seeded_rng(int.from_bytes(digest, "big"))
            self._rngs[first, second] = found
        return found
