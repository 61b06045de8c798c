"""What can go wrong, as data, and the board that says what is wrong at this moment."""

from __future__ import annotations

import enum
import math
from typing import TYPE_CHECKING, Final

import attrs

if TYPE_CHECKING:
    from kisfeed.kis.catalogue import RegKey


class Kind(enum.StrEnum):
    """Every fault the simulator knows. What the other fields of :class:`Fault` mean is said here.

    Connections (all of them, or those of ``appkey``):
        CUT: TCP reset; the slot stays held. DROP: TCP end without a close frame (1006); held.
        CLOSE: close frame with code ``value`` (1000 if 0); the slot is free.
        SILENCE: half-open for ``lasts``: nothing is delivered either way, nothing is closed.
        NO_PINGPONG: data flows, PINGPONG does not.
        QUIET: PINGPONG flows, the market makes nothing (for ``tr_id``/``tr_key``): no loss.
        REFUSE: nobody listens. HANG: accepted, then never answered. ACCEPT_CLOSE: accepted, then
        closed before the handshake.
        STRANGER: another program holds the appkey as soon as its slot is free, for ``lasts``.
        KEY_EXPIRED: every approval key issued so far is refused with OPSP0011.
        CAP: from here on only ``value`` registrations; those above it stay.
        DROP_KEY: the server forgets a registration without a word.
    Acknowledgements (the next ``count`` of ``tr_id``/``tr_key``):
        ACK_LOST: takes effect, is not said. ACK_LATE: said ``value`` seconds later.
        ACK_TWICE: said twice; with a ``value``, the last yes about the same key once more and
        then this one. ACK_WRONG_KEY: names ``text`` as its tr_key. NACK: refused with ``code``.
        STRAY_ACK: at once, an answer nobody asked for (``code``, ``tr_id``, ``tr_key``).
    Frames (the next ``count`` of ``tr_id``/``tr_key``, or all while it ``lasts``):
        EXTRA_COLUMN: ``value`` (1 if 0) columns more in every record.
        BAD_VALUES: empty, ``(null)``, ``-nan`` and ``+``-led values in columns that carry
        neither key, price nor volume. INVALID_UTF8: a byte that is no UTF-8 in the record.
        WITHHOLD: records are made and not sent: a hole of an exact size.
        GARBAGE: at once, ``text`` or else the next of :data:`GARBAGE`. HUGE: at once, a frame of
        ``value`` bytes (2 MiB if 0). BURST: at once, ``count`` frames of 12 records.
        NOTICE: at once, an order's acceptance and its fill to every notice registration.
    REST:
        REST_DOWN: no answer at all. TOKEN_DOWN, APPROVAL_DOWN: HTTP 500 without JSON.
        RATE_LIMITED: EGW00201. TOKENS_INVALID: every token issued so far is refused.
        LEDGER_BUSY: EGW00215 to account calls, all of them or a share of ``value`` by lot.
        TOKEN_EXPIRED: EGW00123 to calls whose token is good. TOKEN_TOO_SOON: EGW00133.
    Order POSTs (the next ``count``):
        ORDER_LOST_BEFORE: the connection ends, nothing was done. ORDER_NOT_DONE: HTTP 500 without
        JSON, nothing was done. ORDER_LOST_AFTER: done, the connection ends without an answer.
        ORDER_HTML: done, HTTP 500 without JSON. ORDER_CUT: done, the JSON is cut off.
        ORDER_LATE: done, answered ``value`` seconds later, notices first. ORDER_REFUSED: market
        closed. ORDER_BOUNCED: taken by KIS, refused by the exchange. ORDER_TWIN: a person places
        the same order in an app just before.
    """

    CUT = "cut"
    DROP = "drop"
    CLOSE = "close"
    SILENCE = "silence"
    NO_PINGPONG = "no_pingpong"
    QUIET = "quiet"
    REFUSE = "refuse"
    HANG = "hang"
    ACCEPT_CLOSE = "accept_close"
    STRANGER = "stranger"
    KEY_EXPIRED = "key_expired"
    CAP = "cap"
    DROP_KEY = "drop_key"
    ACK_LOST = "ack_lost"
    ACK_LATE = "ack_late"
    ACK_TWICE = "ack_twice"
    ACK_WRONG_KEY = "ack_wrong_key"
    NACK = "nack"
    STRAY_ACK = "stray_ack"
    EXTRA_COLUMN = "extra_column"
    BAD_VALUES = "bad_values"
    INVALID_UTF8 = "invalid_utf8"
    WITHHOLD = "withhold"
    GARBAGE = "garbage"
    HUGE = "huge"
    BURST = "burst"
    NOTICE = "notice"
    REST_DOWN = "rest_down"
    TOKEN_DOWN = "token_down"  # noqa: S105  # a fault's name
    APPROVAL_DOWN = "approval_down"
    RATE_LIMITED = "rate_limited"
    TOKENS_INVALID = "tokens_invalid"
    LEDGER_BUSY = "ledger_busy"
    TOKEN_EXPIRED = "token_expired"  # noqa: S105  # a fault's name
    TOKEN_TOO_SOON = "token_too_soon"  # noqa: S105  # a fault's name
    ORDER_LOST_BEFORE = "order_lost_before"
    ORDER_LOST_AFTER = "order_lost_after"
    ORDER_NOT_DONE = "order_not_done"
    ORDER_HTML = "order_html"
    ORDER_CUT = "order_cut"
    ORDER_LATE = "order_late"
    ORDER_REFUSED = "order_refused"
    ORDER_BOUNCED = "order_bounced"
    ORDER_TWIN = "order_twin"


_ONE_BY_ONE: Final = frozenset(
    {
        Kind.ACK_LOST,
        Kind.ACK_LATE,
        Kind.ACK_TWICE,
        Kind.ACK_WRONG_KEY,
        Kind.NACK,
        Kind.EXTRA_COLUMN,
        Kind.BAD_VALUES,
        Kind.INVALID_UTF8,
        Kind.WITHHOLD,
        Kind.RATE_LIMITED,
        Kind.LEDGER_BUSY,
        Kind.TOKEN_EXPIRED,
        Kind.TOKEN_TOO_SOON,
        Kind.ORDER_LOST_BEFORE,
        Kind.ORDER_LOST_AFTER,
        Kind.ORDER_NOT_DONE,
        Kind.ORDER_HTML,
        Kind.ORDER_CUT,
        Kind.ORDER_LATE,
        Kind.ORDER_REFUSED,
        Kind.ORDER_BOUNCED,
        Kind.ORDER_TWIN,
    }
)
_STATES: Final = frozenset(
    {
        Kind.NO_PINGPONG,
        Kind.QUIET,
        Kind.REFUSE,
        Kind.HANG,
        Kind.ACCEPT_CLOSE,
        Kind.STRANGER,
        Kind.REST_DOWN,
        Kind.TOKEN_DOWN,
        Kind.APPROVAL_DOWN,
    }
)

GARBAGE: Final[tuple[str | bytes, ...]] = (
    "0|H0STCNT0|003|005930^115214^250500",
    "0|H0STCNT0|abc|005930^115214^250500",
    "0|H0STCNT0|000|",
    "0|H0NOSUCH|001|1^2^3",
    "1|H0STCNI0|001|%%% not base64 %%%",
    "1|H0STCNI0|001|AAAAAAAAAAAAAAAAAAAAAA==",
    "0|H0STCNI0|001|forged^plain^notice",
    '{"header":{"tr_id":"H0STCNT0"',
    '{"header":[],"body":1}',
    "[]",
    "",
    "|||",
    "2|H0STCNT0|001|x",
    b"\x00\xff\xfe binary",
    "0|H0STCNT0|999|" + "^" * 5000,
)


@attrs.frozen
class Fault:
    """One fault. Which fields matter is said at :class:`Kind`.

    Attributes:
        kind: what goes wrong.
        at: seconds after the simulator's start; used by scenarios only.
        lasts: seconds it goes on; None means until ``count`` is used up, or for ever.
        count: how many acks or frames it hits; default 1 unless ``lasts`` is given.
        tr_id: hits only this TR; empty means any.
        tr_key: hits only this key; empty means any.
        appkey: hits only sessions of this appkey; empty means any.
        code: an OPSP code.
        value: a number, as the kind says.
        text: a text, as the kind says.
    """

    kind: Kind = attrs.field(converter=Kind)
    at: float = 0.0
    lasts: float | None = None
    count: int | None = None
    tr_id: str = ""
    tr_key: str = ""
    appkey: str = attrs.field(default="", repr=False)
    code: str = ""
    value: float = 0.0
    text: str = ""

    def hits(self, key: RegKey | None, appkey: str | None) -> bool:
        """Whether this registration and session are meant; None is not asked for."""
        if key is not None:
            if self.tr_id and self.tr_id != key[0]:
                return False
            if self.tr_key and self.tr_key != key[1]:
                return False
        return not (appkey is not None and self.appkey and self.appkey != appkey)


@attrs.define(eq=False)
class _Posted:
    fault: Fault
    until: float
    left: float


class Board:
    """Which faults are in force. Times are seconds on the simulator's scheduler clock."""

    def __init__(self) -> None:
        self._posted: list[_Posted] = []
        self._garbage = 0

    def post(self, fault: Fault, now: float) -> None:
        """Put *fault* in force from *now* on; kinds that act at once are ignored here."""
        if fault.kind in _ONE_BY_ONE:
            left = math.inf if fault.count is None and fault.lasts is not None else fault.count or 1
        elif fault.kind in _STATES:
            left = math.inf if fault.count is None else fault.count
        else:
            return
        until = math.inf if fault.lasts is None else now + fault.lasts
        self._posted.append(_Posted(fault, until, left))

    def clear(self, kind: Kind | None = None) -> None:
        """End every fault in force, or those of one kind."""
        self._posted = [p for p in self._posted if kind is not None and p.fault.kind is not kind]

    def active(
        self, kind: Kind, now: float, *, key: RegKey | None = None, appkey: str | None = None
    ) -> Fault | None:
        """The first fault of this kind that hits now, without using it up."""
        found = self._find(kind, now, key, appkey)
        return None if found is None else found.fault

    def take(
        self, kind: Kind, now: float, *, key: RegKey | None = None, appkey: str | None = None
    ) -> Fault | None:
        """As :meth:`active`, and one of its ``count`` is used up."""
        found = self._find(kind, now, key, appkey)
        if found is None:
            return None
        found.left -= 1
        return found.fault

    def ends(self, kind: Kind, now: float) -> float:
        """When the last fault of this kind ends; *now* if there is none, ``inf`` if it does not."""
        return max(
            (p.until for p in self._posted if p.fault.kind is kind and p.left > 0), default=now
        )

    def next_garbage(self) -> str | bytes:
        """The next piece of :data:`GARBAGE`, in turn."""
        piece = GARBAGE[self._garbage % len(GARBAGE)]
        self._garbage += 1
        return piece

    def _find(
        self, kind: Kind, now: float, key: RegKey | None, appkey: str | None
    ) -> _Posted | None:
        if not self._posted:
            return None
        self._posted = [p for p in self._posted if p.left > 0 and p.until > now]
        for posted in self._posted:
            if posted.fault.kind is kind and posted.fault.hits(key, appkey):
                return posted
        return None
