"""KFP/1 in names: message types, states, codes and modes (``schemas/kfp1/messages.json``)."""

from __future__ import annotations

import enum
from typing import Final

PROTO: Final = 1
MAX_FRAME: Final = 1 << 20  # bytes of msgpack in one frame


class Type(enum.IntEnum):
    """First element of every frame."""

    HELLO = 1
    SUB = 2
    UNSUB = 3
    GET = 4
    PING = 5
    CALL = 6
    SET = 8
    WELCOME = 16
    RES = 17
    ERR = 18
    TICK = 20
    IMAGE = 21
    STATUS = 22
    GAP = 23
    LOST = 24
    HB = 25
    SESSION = 26
    GOAWAY = 27
    NOTICE = 28


class Stream(enum.IntEnum):
    """What becomes of a sid."""

    OPEN = 1
    SNAPSHOT = 2
    RECOVERING = 3
    CLOSED = 4


class Data(enum.IntEnum):
    """Whether a sid's values can be trusted as real time."""

    OK = 1
    SUSPECT = 2
    NONE = 3


class Source(enum.IntEnum):
    """Bits 0-1 of ``flags``: where a row came from."""

    WEBSOCKET = 0
    POLL = 1
    REPLAY = 2
    CACHE = 3


FLAG_AFTER_GAP: Final = 1 << 2
FLAG_CORRECTION: Final = 1 << 3


class Mode(enum.StrEnum):
    """How a subscriber wants its ticks when it falls behind."""

    ALL = "all"
    LATEST = "latest"
    HZ = "hz"
    TRADE_SAFE = "trade_safe"


MAX_HZ: Final = 1_000.0  # of mode hz
MAX_PRIO: Final = 9


class Code(enum.StrEnum):
    """Why a stream, sid or session is what it is. Machines act on these."""

    NONE = "none"
    PENDING = "pending"
    PREEMPTED = "preempted"
    PROMOTED = "promoted"
    UPSTREAM_DOWN = "upstream_down"
    RESYNCING = "resyncing"
    ACK_TIMEOUT = "ack_timeout"
    REJECTED = "rejected"
    UNKNOWN_SYMBOL = "unknown_symbol"
    OVER_LIMIT = "over_limit"
    GAP_DETECTED = "gap_detected"
    VOLUME_JUMP = "volume_jump"
    HALTED = "halted"
    CONFLATION_STARTED = "conflation_started"
    REALTIME_RESUMED = "realtime_resumed"
    SESSION_CLOSED = "session_closed"
    IN_USE = "in_use"
    PARKED = "parked"
    SOURCE_POLL = "source_poll"
    SCHEMA_DRIFT = "schema_drift"


class ErrorCode(enum.StrEnum):
    """Codes of ERR; the first five close the connection."""

    BAD_FRAME = "bad_frame"
    PROTO_MISMATCH = "proto_mismatch"
    UNAUTHORIZED = "unauthorized"
    SLOW_CONSUMER = "slow_consumer"
    DRAINING = "draining"
    BAD_REQUEST = "bad_request"
    UNKNOWN_TOPIC = "unknown_topic"
    UNKNOWN_SYMBOL = "unknown_symbol"
    NOT_ENTITLED = "not_entitled"
    OVER_LIMIT = "over_limit"
    UPSTREAM_DOWN = "upstream_down"
    REJECTED = "rejected"
    TIMEOUT = "timeout"
    RATE_LIMITED = "rate_limited"
    INTERNAL = "internal"
    ORDERS_DISABLED = "orders_disabled"
    HALTED = "halted"
    ORDER_REJECTED = "order_rejected"
    UNKNOWN_OUTCOME = "unknown_outcome"


FATAL: Final = frozenset(
    {
        ErrorCode.BAD_FRAME,
        ErrorCode.PROTO_MISMATCH,
        ErrorCode.UNAUTHORIZED,
        ErrorCode.SLOW_CONSUMER,
        ErrorCode.DRAINING,
    }
)
