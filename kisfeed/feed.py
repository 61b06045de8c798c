"""The composition root: wires the rooms together and owns the nurseries.

:func:`open_feed` is the library's face for Trio programs; :func:`run_daemon` is the same feed
behind a Unix socket.
"""

from __future__ import annotations

import functools
import inspect
import logging
import math
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final, overload

import attrs
import trio

from kisfeed import places
from kisfeed.appkeys import appkey_name
from kisfeed.config import HOSTS, Config, Endpoints, Environment, Secret, State
from kisfeed.core.engine import Engine, Instant
from kisfeed.core.limiter import PROFILES, Limiter
from kisfeed.core.outbox import Outbox
from kisfeed.core.pollplan import PollPlan
from kisfeed.core.quotes import Kind as Question
from kisfeed.core.streams import Subscriber
from kisfeed.core.subscriptions import SubSpec
from kisfeed.core.told import notice_fields
from kisfeed.errors import ConfigError, StateError, UnknownTopic, UsageError
from kisfeed.gateway.channel import EventChannel, EventPump
from kisfeed.gateway.fanout import Fanout
from kisfeed.gateway.listener import open_unix_listener
from kisfeed.gateway.server import serve
from kisfeed.kfp.events import Event, Lost
from kisfeed.kfp.messages import MAX_PRIO, Mode
from kisfeed.kis.codes import Codes
from kisfeed.kis.rest import Endpoints as RestEndpoints, RestCodes
from kisfeed.kis.sessions import Calendar, always_open
from kisfeed.ops import sdnotify
from kisfeed.ops.metrics import Metrics
from kisfeed.ops.notify import Notifier
from kisfeed.rest.approval import ApprovalKeys
from kisfeed.rest.gate import Gate
from kisfeed.rest.keyfile import KeyFile
from kisfeed.rest.limits_watch import USER_FILE, LimitsWatch
from kisfeed.rest.ordering import open_ordering
from kisfeed.rest.quotes import Quotes
from kisfeed.rest.requests import Kis
from kisfeed.rest.tokens import Tokens
from kisfeed.rest.transport import open_rest, post_notice
from kisfeed.schemas import load, load_catalogue
from kisfeed.seams import Resolver, SystemClock, ThreadDisk, system_rng, ulid
from kisfeed.seoul import date_of
from kisfeed.trading_days import market_holidays
from kisfeed.upstream import lease
from kisfeed.upstream.actor import Upstream
from kisfeed.upstream.transport import dial_tcp

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
    from contextlib import AbstractContextManager

    from kisfeed import simulator
    from kisfeed.core.pollplan import Want
    from kisfeed.core.subscriptions import SubResult
    from kisfeed.core.told import Missed
    from kisfeed.kfp.models import Answers, DailyPrice, Price, SymbolInfo
    from kisfeed.kfp.orders import Order
    from kisfeed.kis.catalogue import Catalogue, RegKey
    from kisfeed.limits import Limits
    from kisfeed.rest.ordering import Ordering
    from kisfeed.rest.transport import Handler, RestTransport
    from kisfeed.seams import Clock, Disk, Rng
    from kisfeed.upstream.actor import Dialler

_log: Final = logging.getLogger("kisfeed")
_NOT_EXTRA: Final = ("ts", "event")  # the log has its own
_DAY_S: Final = 86_400
_A_SHARE: Final = "trade.krx.005930"
_PATIENCE_S: Final = 10.0  # of a person who wants a fresh token
_RELEASE_S: Final = 1_800.0  # how long `kisfeed release` lends the session unless told
_STOP_S: Final = 10.0  # over every limit inside; a bound for what should not happen
_EVENT_BYTES: Final = 256  # what one event object counts for against queue_bytes


@attrs.define(eq=False, repr=False)
class Feed:
    """One KIS session inside this program: what :func:`open_feed` yields.

    Attributes:
        rest: KIS's REST side, paced and signed.
        limits: what KIS allows, as far as is known.
        orders: the account and its orders.
        metrics: what is counted, in Prometheus's words.
    """

    config: Config
    engine: Engine
    clock: Clock
    rest: Kis
    limits: LimitsWatch
    orders: Ordering
    _quotes: Quotes
    _upstream: Upstream
    _lease: lease.Lease
    _channels: dict[int, EventChannel | EventPump] = attrs.field(factory=dict, init=False)
    _fanout: Fanout = attrs.field(factory=Fanout, init=False)
    metrics: Metrics = attrs.field(init=False)
    _nap: trio.CancelScope = attrs.field(factory=trio.CancelScope, init=False)
    _conns: int = attrs.field(default=0, init=False)

    def __attrs_post_init__(self) -> None:
        self.metrics = Metrics(self)

    def __repr__(self) -> str:
        state = self.engine.connection.state
        return f"<Feed {self.config.profile} ({self.config.environment}), {state}>"

    @overload
    def subscribe(
        self,
        *topics: str,
        mode: Mode | str = Mode.ALL,
        hz: float = 0.0,
        prio: int = 0,
        passive: bool = False,
        image: bool = True,
        into: None = None,
        name: str = "in process",
    ) -> EventChannel: ...

    @overload
    def subscribe(
        self,
        *topics: str,
        mode: Mode | str = Mode.ALL,
        hz: float = 0.0,
        prio: int = 0,
        passive: bool = False,
        image: bool = True,
        into: trio.MemorySendChannel[Event],
        name: str = "in process",
    ) -> EventPump: ...

    def subscribe(
        self,
        *topics: str,
        mode: Mode | str = Mode.ALL,
        hz: float = 0.0,
        prio: int = 0,
        passive: bool = False,
        image: bool = True,
        into: trio.MemorySendChannel[Event] | None = None,
        name: str = "in process",
    ) -> EventChannel | EventPump:
        """Subscribe to *topics* inside this program; waits for nothing.

        Without *into* the result is a ``trio.abc.ReceiveChannel`` of events: gaps, losses, states
        and sessions arrive in order with the ticks; ``receive_batch()`` takes all that is queued.
        With *into* events are fanned straight into the caller's memory channel with
        ``send_nowait``; a full one is a loss, counted in ``.lost`` and told by a ``Lost`` event.
        Close the result to unsubscribe.

        Args:
            topics: such as ``trade.krx.005930``.
            mode: ``all``, ``latest``, ``hz`` or ``trade_safe``: what to do when it falls behind.
            hz: at most so many ticks a second and topic; alone it means mode ``hz``.
            prio: 0-9; a higher one takes a slot from a lower one.
            passive: never makes or keeps a slot; sees what others hold.
            image: begin with the last value where there is one.
            into: the sending end of a memory channel of the caller's.
            name: how ``kisfeed clients`` shows this subscription.

        Raises:
            UnknownTopic: a topic of another shape, or one that this environment does not have.
            UsageError: no such *mode*, or an *hz* or *prio* out of range.
        """
        for topic in topics:
            self.engine.catalogue.topic(topic)
        how = _mode(mode, hz)
        if not 0 <= prio <= MAX_PRIO:
            raise UsageError(f"prio is 0 to {MAX_PRIO}, not {prio}")
        conn = self.connection_number()
        names: dict[int, str] = {}
        outbox: Outbox[Event] = Outbox(
            size=lambda _event: _EVENT_BYTES,
            lost=lambda sid, first, last, n, code: Lost(names[sid], sid, first, last, n, code),
            queue_bytes=self.config.gateway.queue_bytes,
            max_age_s=self.config.gateway.max_age_s,
            max_age_latest_s=self.config.gateway.max_age_latest_s,
        )
        subscriber = Subscriber(
            name, conn, "reader", outbox, encode=False, since_ts=self.clock.wall_ns()
        )

        def close() -> None:
            if self._channels.pop(conn, None) is not None:
                self.engine.detach(subscriber, self.at())
                self.kick()

        channel: EventChannel | EventPump = (
            EventChannel(outbox, self.clock.now, close)
            if into is None
            else EventPump(outbox, into, self.clock.now, close)
        )
        subscriber.sink = channel
        self._channels[conn] = channel
        self.engine.subscriptions.attach(subscriber)
        subscriber.control(self.engine.session()[1], self.clock.now())
        specs = [SubSpec(topic, how, hz, prio, passive, image) for topic in topics]
        for result in self.engine.subscribe(subscriber, specs, self.at()):
            assert result.sid is not None, "the topics were checked above"
            names[result.sid] = result.topic
        self.kick()
        return channel

    async def get_current_prices(
        self, *symbols: str, venue: str = "krx", fresh: bool = False
    ) -> Answers[Price]:
        """What *symbols* cost: by their stream, as fetched within the last 2 s, or asked now.

        Args:
            symbols: codes such as ``005930``, at most 500.
            venue: ``krx``, ``nxt`` or ``unified``.
            fresh: ask KIS in any case.

        Returns:
            The prices by symbol; ``missing`` says why there is none for another. A price that is
            marked ``stale`` is the last one known while KIS cannot be asked.

        Raises:
            UsageError: no such venue, or no symbols, or too many.
        """
        return await self._quotes.get_current_prices(*symbols, venue=venue, fresh=fresh)

    async def get_daily_prices(
        self, *symbols: str, venue: str = "krx", days: int = 30, fresh: bool = False
    ) -> Answers[DailyPrice]:
        """The last *days* (at most 100) finished trading days of *symbols*, the newest first.

        The rest as :meth:`get_current_prices`; KIS is asked once a day for each symbol.
        """
        return await self._quotes.get_daily_prices(*symbols, venue=venue, days=days, fresh=fresh)

    async def get_symbol_infos(self, *symbols: str, fresh: bool = False) -> Answers[SymbolInfo]:
        """What *symbols* are: name, market, ISIN and the like; the rest as the others."""
        return await self._quotes.get_symbol_infos(*symbols, fresh=fresh)

    async def ask(self, question: Question, arguments: Mapping[str, Any]) -> dict[str, object]:
        """One of the KFP/1 calls ``quotes``, ``daily`` and ``symbols``.

        Raises:
            UsageError: *arguments* do not fit.
        """
        return await self._quotes.answer(question, arguments)

    def to_poll(self) -> list[Want]:
        """Topics that live on polled prices now."""
        return self.engine.prices.to_poll(self.clock.wall_ns())

    def polled(self, prices: Mapping[RegKey, Price], failed: Sequence[RegKey]) -> None:
        """Prices for such topics have come, and for *failed* they have not."""
        self.engine.prices.polled(prices, failed, self.at())
        self.publish()

    def status(self) -> dict[str, Any]:
        """What ``kisfeed status --json`` shows."""
        return {
            "profile": self.config.profile,
            "environment": str(self.config.environment),
            "state_folder": self._lease.failed or "ok",
            "rest": self.rest.status(),
            "quotes": self._quotes.status(),
            "orders": None if self.orders.desk is None else self.orders.desk.status(),
            **self.engine.status(self.clock.now()),
        }

    def at(self) -> Instant:
        """This moment on the feed's clocks."""
        return Instant(self.clock.now(), self.clock.wall_ns())

    def kick(self) -> None:
        """Perform what the engine decided and send what it put into outboxes."""
        self._upstream.kick()

    def connection_number(self) -> int:
        """A number that no subscriber of this instance has had."""
        self._conns += 1
        return self._conns

    def end(self) -> None:
        """Tell every in-process subscription that nothing more comes."""
        for channel in list(self._channels.values()):
            channel.end()

    async def run_pumps(self) -> None:
        """Bring what ``hz`` held back, and tell losses, when nothing else arrives."""
        while True:
            pumps = [c for c in self._channels.values() if isinstance(c, EventPump)]
            due = min((pump.due for pump in pumps), default=math.inf)
            with trio.CancelScope(deadline=due) as self._nap:
                await trio.sleep_forever()
            for pump in pumps:
                pump.flush()

    def publish(self) -> None:
        """Send what the engine put into outboxes; synchronous, called after every change."""
        for entry in self.engine.take_log():
            details = {name: value for name, value in entry.items() if name not in _NOT_EXTRA}
            self.metrics.note(entry)
            _log.info(entry["event"], extra=details)
        sockets: list[Subscriber] = []
        for subscriber in self.engine.take_dirty():
            sink = subscriber.sink
            if subscriber.encode:
                sockets.append(subscriber)
            elif isinstance(sink, EventChannel):
                sink.flush()
            elif isinstance(sink, EventPump):
                sink.flush()
                self._nap.deadline = min(self._nap.deadline, sink.due)
        if sockets:
            self._fanout.flush(sockets)


@attrs.define(eq=False)
class _Door:
    """The feed as the gateway sees it (:class:`kisfeed.gateway.server.Door`)."""

    _feed: Feed
    _calls: Mapping[str, Callable[[Mapping[str, Any]], object]] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        engine, now = self._feed.engine, self._feed.clock.now
        self._calls = {
            "status": lambda _: self._feed.status(),
            "slots": lambda _: {"slots": engine.slots(now()), **engine.slots_map()},
            "clients": lambda _: {"clients": engine.subscriptions.clients(now())},
            "slots.pin": lambda a: self._pin(a, pinned=True),
            "slots.unpin": lambda a: self._pin(a, pinned=False),
            "reconnect": lambda _: self._reconnect(),
            "release": self._release,
            "quotes": lambda a: self._feed.ask(Question.PRICE, a),
            "daily": lambda a: self._feed.ask(Question.DAILY, a),
            "symbols": lambda a: self._feed.ask(Question.INFO, a),
            "limits": lambda _: self._limits(),
            "limits.reload": lambda _: self._reload(),
            "token": lambda _: self._feed.rest.tokens.status(),
            "token.refresh": lambda _: self._refresh_token(),
        }

    @property
    def software(self) -> str:
        return _software()

    @property
    def instance(self) -> str:
        return self._feed.engine.instance

    @property
    def epoch(self) -> int:
        return self._feed.engine.connection.epoch

    @property
    def orders_enabled(self) -> bool:
        return self._feed.config.orders.enabled

    def now(self) -> float:
        return self._feed.clock.now()

    def wall_ns(self) -> int:
        return self._feed.clock.wall_ns()

    def connection_number(self) -> int:
        return self._feed.connection_number()

    def session_map(self) -> Mapping[str, object]:
        return self._feed.engine.session_map()

    def slots_map(self) -> Mapping[str, object]:
        return self._feed.engine.slots_map()

    def attach(self, subscriber: Subscriber) -> None:
        self._feed.engine.subscriptions.attach(subscriber)

    def detach(self, subscriber: Subscriber) -> None:
        self._feed.engine.detach(subscriber, self._feed.at())
        self._feed.kick()

    def subscribe(
        self,
        subscriber: Subscriber,
        specs: Sequence[SubSpec],
        reply: Callable[[list[SubResult]], bytes],
    ) -> None:
        self._feed.engine.subscribe(subscriber, specs, self._feed.at(), reply)
        self._feed.kick()

    def unsubscribe(self, subscriber: Subscriber, sids: Sequence[int] | None) -> list[int]:
        ended = self._feed.engine.unsubscribe(subscriber, sids, self._feed.at())
        self._feed.kick()
        return ended

    def retune(
        self,
        subscriber: Subscriber,
        sid: int,
        *,
        mode: Mode | None,
        hz: float | None,
        prio: int | None,
    ) -> int | None:
        baseline = self._feed.engine.retune(
            subscriber, sid, self._feed.at(), mode=mode, hz=hz, prio=prio
        )
        self._feed.kick()
        return baseline

    def image(self, topic: str) -> tuple[SubResult, bytes | None]:
        return self._feed.engine.subscriptions.image(topic, self._feed.at())

    def fields(self, schema: str) -> list[str]:
        return self._feed.engine.fields(schema)

    def kick(self) -> None:
        self._feed.kick()

    def _pin(self, arguments: Mapping[str, Any], *, pinned: bool) -> object:
        topic = arguments.get("topic")
        if not isinstance(topic, str):
            raise UsageError("topic is needed")
        self._feed.engine.pin(topic, self._feed.at(), pinned=pinned)
        self.kick()
        return {"topic": topic, "pinned": pinned}

    def _reconnect(self) -> object:
        self._feed.engine.reconnect(self._feed.at())
        self.kick()
        return self._feed.engine.connection.status(self.now())

    def _release(self, arguments: Mapping[str, Any]) -> object:
        for_s = arguments.get("for_s", _RELEASE_S)
        if (
            isinstance(for_s, bool)
            or not isinstance(for_s, (int, float))
            or not 0 < for_s <= _DAY_S
        ):
            raise UsageError(f"for_s must be more than 0 and at most {_DAY_S}")
        self._feed.engine.release(float(for_s), self._feed.at())
        self.kick()
        return self._feed.engine.connection.status(self.now())

    def _limits(self) -> dict[str, object]:
        watch = self._feed.limits
        return {
            "version": watch.current.version,
            "file": str(watch.file),
            "refused": watch.refused,
            "in_force": attrs.asdict(watch.current),
        }

    def _reload(self) -> object:
        self._feed.limits.reload()
        return self._limits()

    async def _refresh_token(self) -> object:
        await self._feed.rest.tokens.renew(_PATIENCE_S)
        return self._feed.rest.tokens.status()

    async def call(self, name: str, arguments: Mapping[str, Any], caller: str) -> object:
        await trio.lowlevel.checkpoint()
        orders = self._feed.orders.calls
        if name in orders.names:
            return await orders.call(name, arguments, caller)
        found = self._calls.get(name)
        if found is None:
            served = (*self._calls, *orders.names)
            raise UsageError(f"{name!r} is not served: {', '.join(served)} are")
        answer = found(arguments)
        return await answer if inspect.isawaitable(answer) else answer


@asynccontextmanager
async def open_feed(
    config: Config,
    *,
    socket: str = "",
    clock: Clock | None = None,
    rng: Rng | None = None,
    disk: Disk | None = None,
    dial: Dialler = dial_tcp,
    rest: Handler | None = None,
    hide: Callable[[Secret], None] = lambda _secret: None,
) -> AsyncGenerator[Feed]:
    """Own the appkey's one KIS session for the length of the block.

    Connects when there is something to subscribe to, reconnects by its rules, and closes the
    session with a close frame at the end.

    Args:
        config: which KIS, whose appkey, which rules.
        socket: where the caller serves this feed, for whoever finds the appkey taken.
        clock: the system's unless given, as are the next two; tests give their own.
        rng: jitter and names.
        disk: writes the hygiene record.
        dial: opens the WebSocket's transport.
        rest: answers REST requests in this process (tests, simulation).
        hide: given every key and token as it comes, for whoever must keep it out of the logs.

    Raises:
        AppkeyInUse: another process on this machine holds the appkey.
        StateError: the state folder cannot be used.
        ConfigError: no address is known for this environment, or a pinned topic does not exist.
        ExceptionGroup: whatever the body raised.
    """
    clock = SystemClock() if clock is None else clock
    rng = system_rng() if rng is None else rng
    disk = ThreadDisk() if disk is None else disk
    with _hold(config, socket, clock, disk) as held:
        async with _open_held(config, held, clock, rng, disk, dial, rest, hide) as feed:
            yield feed


def _state_folder(config: Config) -> Path:
    return places.state_folder(config.state.dir)


def _hold(
    config: Config, socket: str, clock: Clock, disk: Disk
) -> AbstractContextManager[lease.Lease]:
    folder, appkey = _state_folder(config), config.credentials.appkey
    return lease.hold(folder, config.environment, appkey, socket, clock, disk)


def _metrics_file(config: Config) -> Path:
    # The user's own state folder is shared by all profiles that name none.
    name = "metrics.prom" if config.state.dir else f"metrics-{config.profile}.prom"
    return _state_folder(config) / name


def limits_file(config: Config) -> Path:
    """Where the user's own limits are, if there are any."""
    return Path(config.limits.file or _state_folder(config) / USER_FILE)


@attrs.frozen
class _RestSide:
    """KIS's REST side, wired; nothing of it runs yet."""

    kis: Kis
    keys: ApprovalKeys
    watch: LimitsWatch


def _key_file(config: Config, what: str, clock: Clock, disk: Disk) -> KeyFile:
    name = appkey_name(config.environment, config.credentials.appkey)
    return KeyFile(_state_folder(config) / f"{name}.{what}.json", clock, disk)


def _tokens(
    config: Config,
    transport: RestTransport,
    codes: RestCodes,
    in_force: Limits,
    clock: Clock,
    rng: Rng,
    disk: Disk,
    hide: Callable[[Secret], None],
) -> Tokens:
    file = _key_file(config, "token", clock, disk)
    return Tokens(transport, config.credentials, codes, file, clock, rng, in_force.tokens, hide)


@asynccontextmanager
async def open_tokens(
    config: Config, *, clock: Clock | None = None, rest: Handler | None = None
) -> AsyncGenerator[Tokens]:
    """The appkey's access token without a feed: for a person who looks at it or renews it.

    The token is shared with every process of this machine that uses the appkey, and so is the
    limit on asking for one.

    Raises:
        StateError: the state folder cannot be used.
        ConfigError: no address is known for this environment, or the limits file is malformed.
    """
    clock = SystemClock() if clock is None else clock
    folder, endpoints = _state_folder(config), _endpoints(config)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as exc:
        raise StateError(f"the state folder {folder} cannot be made: {exc.strerror}") from exc
    in_force = LimitsWatch(limits_file(config), config.environment, clock).current
    async with (
        open_rest(endpoints.rest, handler=rest, ca_file=endpoints.ca_file) as transport,
        trio.open_nursery() as nursery,
    ):
        codes = RestCodes(load("kis/codes.json"))
        rng, disk = system_rng(), ThreadDisk()
        tokens = _tokens(config, transport, codes, in_force, clock, rng, disk, lambda _secret: None)
        nursery.start_soon(tokens.run)
        yield tokens
        nursery.cancel_scope.cancel(reason="enough of the token")


def _rest_side(
    config: Config,
    transport: RestTransport,
    clock: Clock,
    rng: Rng,
    disk: Disk,
    hide: Callable[[Secret], None],
) -> _RestSide:
    environment, credentials = config.environment, config.credentials
    codes = RestCodes(load("kis/codes.json"))
    watch = LimitsWatch(limits_file(config), environment, clock)
    in_force = watch.current
    tokens = _tokens(config, transport, codes, in_force, clock, rng, disk, hide)
    gate = Gate(
        Limiter(in_force.rest, in_force.spacing, PROFILES[config.rest.profile], clock.now()),
        clock,
        config.rest.shadow,
    )
    kis = Kis(
        environment,
        RestEndpoints(load("kis/endpoints.json"), environment),
        in_force,
        tokens,
        gate,
        transport,
        credentials,
        codes,
        clock,
        rng,
    )
    keys = ApprovalKeys(
        transport,
        credentials,
        clock,
        in_force.approval_keys,
        codes,
        _key_file(config, "approval", clock, disk),
        config.session.approval_key_age_s,
        hide,
    )
    return _RestSide(kis, keys, watch)


@asynccontextmanager
async def _open_held(
    config: Config,
    held: lease.Lease,
    clock: Clock,
    rng: Rng,
    disk: Disk,
    dial: Dialler,
    rest: Handler | None,
    hide: Callable[[Secret], None],
) -> AsyncGenerator[Feed]:
    endpoints = _endpoints(config)
    async with AsyncExitStack() as stack:
        transport = await stack.enter_async_context(
            open_rest(endpoints.rest, handler=rest, ca_file=endpoints.ca_file)
        )
        side = _rest_side(config, transport, clock, rng, disk, hide)
        calendar = await _calendar(config, clock)
        catalogue = load_catalogue(config.environment)
        _check_topics(config, catalogue)
        started = Instant(clock.now(), clock.wall_ns())
        engine = Engine(
            ulid(clock, rng),
            catalogue,
            Codes(load("kis/codes.json")),
            _row_fields(),
            config.session,
            side.watch.current,
            rng.random,
            held.load(),
            started,
            calendar,
            _pinned(config),
            config.credentials.hts_id,
        )
        upstream = Upstream(
            engine,
            clock,
            endpoints.ws,
            config.session,
            dial,
            lambda fresh: side.keys.get(fresh=fresh),
            lambda: feed.publish(),  # noqa: PLW0108  # bound below
            held.save,
        )
        share = catalogue.topic(_A_SHARE).tr.key_pattern
        quotes = Quotes(
            side.kis,
            config.quotes,
            clock,
            lambda venue, symbol: engine.prices.live(venue, symbol, clock.wall_ns()),
            lambda symbol: share.fullmatch(symbol) is not None,
        )

        def missed(news: Missed, order: Order | None) -> None:
            engine.recovered(news.kind, notice_fields(news, order), feed.at())
            feed.kick()

        orders = stack.enter_context(
            open_ordering(
                config,
                load("kis/orders.json"),
                side.kis,
                calendar,
                clock,
                disk,
                _state_folder(config),
                appkey_name(config.environment, config.credentials.appkey),
                missed,
            )
        )
        feed = Feed(config, engine, clock, side.kis, side.watch, orders, quotes, upstream, held)

        def limits_changed(found: Limits) -> None:
            side.kis.change(found, PROFILES[config.rest.profile])
            side.keys.change(found.approval_keys)
            engine.limits_changed(found, feed.at())
            feed.kick()

        side.watch.changed = limits_changed
        async with trio.open_nursery() as nursery:
            # A start that is cancelled half way would wait for ever for what is shielded.
            with trio.CancelScope(shield=True):
                life = await nursery.start(_run_shielded, upstream)
            nursery.start_soon(_stop_when_cancelled, upstream)
            nursery.start_soon(feed.run_pumps)
            nursery.start_soon(side.kis.run)
            nursery.start_soon(side.watch.run)
            nursery.start_soon(quotes.run)
            if orders.desk is not None:
                engine.join, engine.notices_resumed = orders.desk.notice, orders.desk.gap
                nursery.start_soon(orders.desk.run)
            nursery.start_soon(quotes.keep_ready, calendar, engine.prices.symbols)
            if config.quotes.poll_s > 0:
                nursery.start_soon(quotes.poll, _poll_plan(config), feed.to_poll, feed.polled)
            try:
                engine.start(started)
                upstream.kick()
                yield feed
            finally:
                with trio.move_on_after(_STOP_S, shield=True):
                    await upstream.close()
                feed.end()
                life.cancel(reason="the feed is over")
                nursery.cancel_scope.cancel(reason="the feed is over")


async def run_daemon(
    config: Config,
    *,
    runtime_dir: Path,
    sim: simulator.Options | None = None,
    hide: Callable[[Secret], None] = lambda _secret: None,
    say: Callable[[str], str] = str,
    task_status: trio.TaskStatus[Path] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve one feed on a Unix socket until cancelled; clients are told before it ends.

    Args:
        config: the profile.
        runtime_dir: where the socket goes unless the configuration says.
        sim: bring a simulated KIS along and speak to that.
        hide: given every key and token as it comes, for whoever must keep it out of the logs.
        say: gives a text in the language of whoever is told of trouble.
        task_status: told the socket's path once clients can connect.

    Raises:
        SocketInUse, AppkeyInUse: another daemon is in the way.
        StateError: the socket's path or the state folder cannot be used.
        ExceptionGroup: a bug.
    """
    path = config.socket_path(runtime_dir)
    async with AsyncExitStack() as stack:
        if sim is not None:
            from kisfeed.simulator import open_simulator  # noqa: PLC0415  # only here needed

            simulated = await stack.enter_async_context(open_simulator(sim))
            endpoints = Endpoints(simulated.rest_url, simulated.ws_url)
            if not config.state.dir:
                # This KIS is born with us: what an earlier one was asked does not matter to it.
                scratch = stack.enter_context(TemporaryDirectory(prefix="kisfeed-sim-"))
                config = attrs.evolve(config, state=State(scratch))
            credentials = config.credentials
            if not credentials.appkey:  # a simulated KIS takes any
                credentials = attrs.evolve(
                    credentials, appkey=Secret("simulated"), appsecret=Secret("simulated")
                )
            config = attrs.evolve(config, endpoints=endpoints, credentials=credentials)
        clock, rng = SystemClock(), system_rng()
        # The process is ours: REST and WebSocket look names up in threads that hold up nothing.
        trio.socket.set_custom_hostname_resolver(Resolver())
        # Before the socket: a second daemon of this appkey is told who has it.
        held = stack.enter_context(_hold(config, str(path), clock, ThreadDisk()))
        listener = await stack.enter_async_context(open_unix_listener(path))
        feed = await stack.enter_async_context(
            _open_held(config, held, clock, rng, ThreadDisk(), dial_tcp, None, hide)
        )
        manager = sdnotify.from_environment()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(feed.metrics.run, _metrics_file(config), ThreadDisk())
            names = {"profile": config.profile, "environment": str(config.environment)}
            notifier = Notifier(config.notify, names, feed.status, clock, post_notice, say)
            nursery.start_soon(notifier.run)
            nursery.start_soon(manager.keep_alive, lambda: str(feed.engine.connection.state))
            await nursery.start(serve, listener, _Door(feed), config.gateway)
            # Not after STREAMING: outside market hours that never comes.
            manager.tell(READY="1")
            task_status.started(path)
            try:
                await trio.sleep_forever()
            finally:
                manager.tell(STOPPING="1")


async def _run_shielded(
    upstream: Upstream, *, task_status: trio.TaskStatus[trio.CancelScope]
) -> None:
    """Run until told: a cancelled program still closes its session and saves its budget."""
    with trio.CancelScope(shield=True) as life:
        async with trio.open_nursery() as nursery:
            await nursery.start(upstream.run)
            task_status.started(life)


async def _stop_when_cancelled(upstream: Upstream) -> None:
    """End the session at once: what the body still has to say may take it a while.

    A link that has been silent for its whole patience would be given up in that while, and KIS
    would keep a session that was never closed.
    """
    try:
        await trio.sleep_forever()
    finally:
        upstream.stop()


def _endpoints(config: Config) -> Endpoints:
    known = HOSTS[config.environment]
    given = config.endpoints
    chosen = Endpoints(given.rest or known.rest, given.ws or known.ws, given.ca_file)
    missing = [name for name in ("rest", "ws") if not getattr(chosen, name)]
    if missing:
        raise ConfigError(
            *((f"endpoints.{name}", "a simulator has no default") for name in missing)
        )
    return chosen


def _check_topics(config: Config, catalogue: Catalogue) -> None:
    named = [("subscriptions.pinned", topic) for topic in config.subscriptions.pinned]
    if config.credentials.hts_id:
        named.append(("credentials.hts_id", f"notice.krx.{config.credentials.hts_id}"))
    problems = []
    for path, topic in named:
        try:
            catalogue.topic(topic)
        except UnknownTopic as exc:
            problems.append((path, str(exc)))
    if problems:
        raise ConfigError(*problems)


def _pinned(config: Config) -> tuple[str, ...]:
    """Topics held whoever wants them: who orders has a session, so that fills are heard of."""
    pinned, hts_id = config.subscriptions.pinned, config.credentials.hts_id
    if not config.orders.enabled or not hts_id:
        return pinned
    return tuple(dict.fromkeys([*pinned, f"notice.krx.{hts_id}"]))


def _mode(mode: Mode | str, hz: float) -> Mode:
    """The mode meant: an *hz* alone means mode ``hz``."""
    try:
        how = Mode.HZ if hz and mode == Mode.ALL else Mode(mode)
    except ValueError:
        raise UsageError(f"mode is one of {', '.join(Mode)}, not {mode!r}") from None
    if how is Mode.HZ and not 0 < hz < math.inf:
        raise UsageError(f"mode hz needs an hz above 0, not {hz}")
    return how


@functools.cache
def _software() -> str:
    # Found in a file on the disk, which a loop that serves does not read for each HELLO.
    return f"kisfeed/{version('kisfeed')}"


def _poll_plan(config: Config) -> PollPlan:
    """Turns for the topics without a stream; on paper, which has no call for many, very few."""
    rules = config.quotes
    if config.environment is Environment.PAPER:
        return PollPlan(rules.poll_paper_s, rules.poll_after_s, 1)
    return PollPlan(rules.poll_s, rules.poll_after_s, rules.poll_symbols)


async def _calendar(config: Config, clock: Clock) -> Calendar:
    """The market hours in force; a simulator trades at any hour."""
    data = load("kis/sessions.json")
    if config.environment is Environment.SIM:
        return Calendar(always_open(data), {})
    year = date_of(clock.wall_ns()).year
    # Slow to import and to fill; next year's first days are needed on this year's last.
    years = (year - 1, year, year + 1)
    holidays = await trio.to_thread.run_sync(market_holidays, years)  # sim-ok: once, at the start
    return Calendar(data, holidays)


def _row_fields() -> dict[str, list[str]]:
    schemas = load("kfp1/rows.json")["schemas"]
    return {name: [field["name"] for field in schema["fields"]] for name, schema in schemas.items()}
