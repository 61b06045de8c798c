"""Configuration as values: what ``kisfeed.toml`` means, and every rule's number in one place.

Only values live here. The command line reads files and the environment and builds a
:class:`Config` (``kisfeed.cli.settings``); a library user builds one directly. Times are seconds.
"""

from __future__ import annotations

import enum
from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs

from kisfeed.limits import Window  # noqa: TC001  # field types are read at run time

if TYPE_CHECKING:
    from collections.abc import Mapping


class Environment(enum.StrEnum):
    """Which KIS is spoken to. ``sim`` uses real TR ids, plain http and ws, loopback only."""

    REAL = "real"
    PAPER = "paper"
    SIM = "sim"


@attrs.frozen(repr=False)
class Secret:
    """A text that never shows itself: not in ``repr``, ``str``, a log or a pickle."""

    _value: str

    def reveal(self) -> str:
        """The text itself; the only way to it, so that every use can be found by name."""
        return self._value

    def __repr__(self) -> str:
        return "Secret(***)" if self._value else "Secret(empty)"

    __str__ = __repr__

    def __bool__(self) -> bool:
        return bool(self._value)

    def __reduce__(self) -> str:
        raise TypeError("a Secret is not pickled")


@attrs.frozen
class Credentials:
    """``[credentials]``.

    Attributes:
        appkey: 36 characters on KIS, any text on a simulator.
        appsecret: 180 characters on KIS, any text on a simulator.
        hts_id: needed for order notices only.
        account: ``12345678-01``; needed for orders only.
    """

    appkey: Secret = Secret("")
    appsecret: Secret = Secret("")
    hts_id: str = ""
    account: Secret = Secret("")


@attrs.frozen
class Endpoints:
    """``[endpoints]``: base addresses, without a path. Empty means the environment's own.

    Attributes:
        ca_file: PEM, the only authorities that are trusted for the REST host; empty: the
            system's. TLS is verified either way.
    """

    rest: str = ""
    ws: str = ""
    ca_file: str = ""


HOSTS: Final[Mapping[Environment, Endpoints]] = {
    # Official sample, kis_devlp.yaml. The WebSocket is plain: KIS has no TLS on these ports.
    Environment.REAL: Endpoints(
        "https://openapi.koreainvestment.com:9443", "ws://ops.koreainvestment.com:21000"
    ),
    Environment.PAPER: Endpoints(
        "https://openapivts.koreainvestment.com:29443", "ws://ops.koreainvestment.com:31000"
    ),
    Environment.SIM: Endpoints(),
}
"""Where each KIS is unless configured otherwise; a simulator has no address of its own."""


@attrs.frozen
class Gateway:
    """``[gateway]``: the local doors.

    Attributes:
        socket: path of the Unix socket; empty means the runtime folder's ``<profile>.sock``.
        max_clients: connections at a time.
        max_subs: topics for one client.
        queue_bytes: ticks waiting for one client.
        max_age_s: how old a tick may get in mode ``all`` and ``trade_safe``.
        max_age_latest_s: the same in modes ``latest`` and ``hz``.
        write_deadline_s: one write that takes longer closes the client.
        hello_deadline_s: a client says HELLO within this.
        heartbeat_s: HB goes out this often.
    """

    socket: str = ""
    max_clients: int = 4096
    max_subs: int = 512
    queue_bytes: int = 262_144
    max_age_s: float = 10.0
    max_age_latest_s: float = 1.0
    write_deadline_s: float = 10.0
    hello_deadline_s: float = 2.0
    heartbeat_s: float = 5.0


@attrs.frozen
class State:
    """``[state]``: where budget, tokens and journal live; empty means the user's state folder."""

    dir: str = ""


@attrs.frozen
class Subscriptions:
    """``[subscriptions]``: topics held whether or not a program wants them."""

    pinned: tuple[str, ...] = ()


@attrs.frozen
class Orders:
    """``[orders]``: off unless switched on; every cap binds each order before KIS is asked.

    Attributes:
        enabled: local programs may place orders.
        max_qty: shares in one order.
        max_value: won in one order; one without a price counts at the day's upper limit.
        max_day_orders: new orders and amendments on one day (Seoul), all programs together.
        max_day_value: won, likewise.
        symbols: the only ones that may be ordered; empty allows any.
        queue: orders that may wait for their turn.
        ttl_s, ttl_paper_s: an order not sent within this expires rather than go out late.
        preview_s: a preview is good for this long.
        settle_s: an order in doubt is settled by the day's list no sooner than this after it was
            sent, and this long after its row was first seen: today's rows come late.
        human_after_s: an order in doubt that the list does not show for this long is a person's.
        max_unknown: with this many orders in doubt nothing new is bought.
    """

    enabled: bool = False
    max_qty: int = 1_000
    max_value: int = 10_000_000
    max_day_orders: int = 200
    max_day_value: int = 100_000_000
    symbols: tuple[str, ...] = ()
    queue: int = 64
    ttl_s: float = 2.0
    ttl_paper_s: float = 10.0
    preview_s: float = 60.0
    settle_s: float = 12.0
    human_after_s: float = 180.0
    max_unknown: int = 3


@attrs.frozen
class Quotes:
    """``[quotes]``: prices and symbols over REST, and topics that live on polling.

    Attributes:
        price_ttl_s: a price is good for this long.
        window_s: questions are collected for this long before a call is made.
        recent_s: a symbol asked for within this is asked along where a call has room.
        patience_s: a caller gets what there is after this.
        max_waiting: symbols that may wait for KIS at a time.
        poll_s: a topic without a slot gets a price this often; 0 polls nothing.
        poll_paper_s: one such topic gets a price this often, on paper.
        poll_symbols: topics in one ``poll_s`` at most, 30 a call; more of them take turns.
        poll_after_s: polling begins when a topic has been without its stream for so long.
        preload_s: days and names are fetched so long before the open.
    """

    price_ttl_s: float = 2.0
    window_s: float = 0.075
    recent_s: float = 10.0
    patience_s: float = 20.0
    max_waiting: int = 2_000
    poll_s: float = 1.0
    poll_paper_s: float = 3.0
    poll_symbols: int = 90
    poll_after_s: float = 1.0
    preload_s: float = 600.0


@attrs.frozen
class Rest:
    """``[rest]``: how the REST limit is used.

    Attributes:
        profile: ``ordinary``; ``high_frequency``: less room kept for orders, back to full speed
            sooner; ``batch``: half the limit, evenly spread.
        shadow: the rate limiter delays nothing and tells what it would have delayed. Session
            discipline and token limits bind all the same.
    """

    profile: str = "ordinary"
    shadow: bool = False


@attrs.frozen
class LimitsFile:
    """``[limits]``: your own limits over the shipped ones.

    Attributes:
        file: empty means ``limits.kis.json`` in the state folder, where there is one.
    """

    file: str = ""


@attrs.frozen
class Notify:
    """``[notify]``: whom to tell of trouble; one of the two, or neither.

    Attributes:
        post: an address that gets each message as a JSON object.
        command: a program and its arguments; it gets the JSON object on its standard input.
        again_s: the same trouble is not told again within this.
        timeout_s: a delivery that takes longer is given up.
    """

    post: Secret = Secret("")
    command: tuple[str, ...] = ()
    again_s: float = 300.0
    timeout_s: float = 10.0


@attrs.frozen
class Session:
    """``[session]``: the discipline of the one WebSocket session (design sections 4 to 6).

    Every attribute that ends in ``_s`` is a time in seconds; :meth:`scaled` divides them all.
    """

    min_lifetime_s: float = 60.0
    dials: tuple[Window, ...] = ()  # beside those of limits.kis.json: can only tighten
    dial_timeout_s: float = 10.0
    close_timeout_s: float = 2.0
    send_timeout_s: float = 5.0
    backoff_base_s: float = 5.0
    backoff_cap_s: float = 120.0
    local_backoff_base_s: float = 1.0
    local_backoff_cap_s: float = 30.0
    approval_key_age_s: float = 82_800.0
    approval_retry_s: float = 10.0
    settle_timeout_s: float = 60.0
    first_data_timeout_s: float = 60.0
    young_sessions_to_trip: int = 3
    barren_loops_to_trip: int = 5
    breaker_pauses_s: tuple[float, ...] = (600.0, 1200.0, 2400.0, 3600.0)
    in_use_hold_s: float = 20.0
    in_use_waits_s: tuple[float, ...] = (60.0, 300.0, 900.0)
    in_use_closed_wait_s: float = 3600.0
    in_use_before_open_s: float = 300.0
    before_open_s: float = 600.0
    notice_death_s: float = 5.0
    ack_timeout_s: float = 3.0
    ack_retries: int = 2
    quarantine_base_s: float = 30.0
    quarantine_cap_s: float = 900.0
    dwell_s: float = 60.0
    same_interest_s: float = 600.0
    swap_burst: int = 41
    swaps_per_hour: int = 60
    rotation: str = "lru"  # or "hold": equals keep their slots
    quiet_suspect_s: float = 45.0
    quiet_dead_s: float = 90.0
    busy_suspect_floor_s: float = 5.0
    busy_suspect_gaps: float = 20.0
    probe_timeout_s: float = 5.0
    feed_stalled_s: float = 60.0
    fast_receive: bool = True
    max_message_bytes: int = 1 << 20
    time_scale: float = 1.0  # what scaled() divided the times and windows by

    def scaled(self, factor: float) -> Session:
        """The same rules with every time divided by *factor* (demo, tests), budgets' windows too.

        The windows of ``limits.kis.json`` are divided by ``time_scale`` where they are used.
        """
        changes: dict[str, object] = {"time_scale": self.time_scale * factor}
        for field in attrs.fields(Session):
            if not field.name.endswith("_s"):
                continue
            value = getattr(self, field.name)
            changes[field.name] = (
                tuple(v / factor for v in value) if isinstance(value, tuple) else value / factor
            )
        return attrs.evolve(self, **changes)  # type: ignore[arg-type]  # built field by field


@attrs.frozen
class Config:
    """One profile: one appkey, its socket and its state.

    Attributes:
        profile: the profile's name; part of the default socket and state paths.
        environment: which KIS.
    """

    environment: Environment = Environment.SIM
    profile: str = "default"
    credentials: Credentials = Credentials()
    endpoints: Endpoints = Endpoints()
    gateway: Gateway = Gateway()
    state: State = State()
    subscriptions: Subscriptions = Subscriptions()
    orders: Orders = Orders()
    rest: Rest = Rest()
    limits: LimitsFile = LimitsFile()
    notify: Notify = Notify()
    quotes: Quotes = Quotes()
    session: Session = Session()

    def socket_path(self, runtime_dir: Path) -> Path:
        """Where the daemon listens: the configured path, else ``<runtime>/<profile>.sock``."""
        configured = self.gateway.socket
        return Path(configured) if configured else runtime_dir / f"{self.profile}.sock"
