"""What the Trio and the asyncio client have in common: everything but the stream and the clock."""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING, Any, Protocol, Self

from kisfeed.client.core import GRACE_S, ClientCore, Phase, Request, Subscription, specs
from kisfeed.client.questions import Questions
from kisfeed.kfp.models import DailyPrice, Price, SymbolInfo

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AbstractAsyncContextManager

    from kisfeed.client.questions import M
    from kisfeed.kfp.events import Event, Heartbeat, Row
    from kisfeed.kfp.models import Answers


class Link(Protocol):
    """One connection. I/O failures are ``OSError``."""

    async def receive(self, until: float) -> bytes | None:
        """Some bytes, ``b""`` at the end, None when it was *until* and nothing had come.

        Cancelled, it has taken no bytes.
        """
        ...

    async def send(self, data: bytes) -> None:
        """Send all of it; after a cancellation the connection is not used any more."""
        ...

    async def close(self) -> None:
        """Close it; never raises ``OSError``."""
        ...


class AsyncClient(abc.ABC):
    """A connection to the daemon that comes back by itself.

    ``async for event in client`` yields the events of all subscriptions, in order. Whoever waits
    reads the socket: between two calls nothing runs in the background, so a caller that is too
    slow is told what it lost by the daemon. Tasks may share one object; each event goes to one.
    """

    def __init__(self, core: ClientCore) -> None:
        self._core = core
        self._link: Link | None = None
        self._reading = self._new_turn()
        self._sending = self._new_lock()

    @abc.abstractmethod
    def _new_lock(self) -> AbstractAsyncContextManager[object]:
        """A fair lock; with Trio a checkpoint for everybody."""

    def _new_turn(self) -> AbstractAsyncContextManager[object]:
        """A fair lock; a checkpoint only for those who wait for it."""
        return self._new_lock()

    @abc.abstractmethod
    def _now(self) -> float: ...

    @abc.abstractmethod
    async def _sleep_until(self, deadline: float) -> None: ...

    @abc.abstractmethod
    async def _dial(self) -> Link: ...

    @abc.abstractmethod
    async def _checkpoint(self) -> None:
        """Let a cancellation in: between two events that are at hand, and before a call."""

    @property
    def welcome(self) -> Mapping[str, Any]:
        """The last WELCOME's map: instance, limits, session, slots."""
        return self._core.welcome

    @property
    def heartbeat(self) -> Heartbeat | None:
        """The last heartbeat of the daemon."""
        return self._core.heartbeat

    @property
    def subscriptions(self) -> Mapping[str, Subscription]:
        """Every subscribed topic and what became of it."""
        return self._core.subscriptions()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        core = self._core
        await self._checkpoint()
        while not core.events:
            if not await self._until(lambda: bool(core.events)):
                raise StopAsyncIteration
        return core.events.popleft()

    async def subscribe(
        self,
        *topics: str,
        mode: str = "all",
        hz: float = 0,
        prio: int = 0,
        passive: bool = False,
        image: bool = True,
        poll: bool = True,
        after: int | None = None,
    ) -> None:
        """Subscribe now and after every reconnect; the events come by iteration.

        Args:
            topics: such as ``trade.krx.005930``.
            mode: ``all``, ``latest``, ``hz`` or ``trade_safe``: what a slow reader loses.
            hz: at most so many ticks a second and topic; alone it means mode ``hz``.
            prio: 0 to 9 in the daemon's slot market.
            passive: never create or keep a slot for this.
            image: get the last value first.
            poll: take polled snapshots while the topic has no slot; False is refused instead.
            after: for a notice topic, get the day's notices after this ``nseq`` again (0: all of
                them). Without it, a connection lost before the first notice is told as a Gap.

        Raises:
            ServerRefused: a topic was refused (``unknown_topic``, ``over_limit`` ...); the others
                are subscribed.
            ValueError: no such mode, hz or prio, or no topic.
        """
        wanted = specs(
            topics,
            mode=mode,
            hz=hz,
            prio=prio,
            passive=passive,
            image=image,
            poll=poll,
            after=after,
        )
        await self._settle(self._core.subscribe(wanted, self._now()))

    async def unsubscribe(self, *topics: str) -> None:
        """End subscriptions; KeyError for a topic that is not subscribed."""
        await self._settle(self._core.unsubscribe(topics, self._now()))

    async def retune(
        self,
        topic: str,
        *,
        mode: str | None = None,
        hz: float | None = None,
        prio: int | None = None,
    ) -> None:
        """Change how a subscribed topic is delivered; KeyError if it is not subscribed."""
        await self._settle(self._core.retune(topic, self._now(), mode=mode, hz=hz, prio=prio))

    async def get(self, topic: str) -> Row | None:
        """The topic's last value without subscribing; None where nothing is known yet.

        Raises:
            ServerRefused: there is no such topic.
            NoDaemon: the daemon is away; Disconnected: it went before it answered.
        """
        row: Row | None = await self._answer(lambda now: self._core.get(topic, now))
        return row

    async def ping(self) -> float:
        """Seconds until the daemon answered; raises as :meth:`call`."""
        start = self._now()
        await self._answer(self._core.ping)
        return self._now() - start

    async def call(self, name: str, **arguments: object) -> Any:
        """One of the daemon's calls (``schemas/kfp1/calls.json``); never sent twice.

        Cancelled before its turn to be sent, it never is (only a question about symbols that
        waits for the answers to others may still be asked). Cancelled within the send, it ends
        the connection; behind that, the daemon acts and nobody gets the answer.

        Raises:
            ServerRefused: the daemon refused, or gave no answer in time (code ``timeout``).
            NoDaemon: the daemon is away, nothing was sent.
            Disconnected: it went before it answered; whether it acted is not known.
        """
        return await self._answer(lambda now: self._core.call(name, arguments, now))

    async def get_current_prices(
        self, *symbols: str, venue: str = "krx", fresh: bool = False
    ) -> Answers[Price]:
        """What *symbols* cost: by their stream, as fetched within the last 2 s, or asked now.

        However many ask, KIS gets few calls. On a slow host (paper: one call a second) it takes
        as long as it takes.

        Args:
            symbols: codes such as ``005930``.
            venue: ``krx``, ``nxt`` or ``unified``.
            fresh: ask KIS in any case.

        Returns:
            The prices by symbol, in the order asked; its ``missing`` says why there is none for
            another. A price that is marked ``stale`` is the last one known while KIS cannot be
            asked.

        Raises:
            ServerRefused: no such venue; else as :meth:`call`.
        """
        return await self._learn(Questions("quotes", Price, symbols, venue=venue, fresh=fresh))

    async def get_daily_prices(
        self, *symbols: str, venue: str = "krx", days: int = 30, fresh: bool = False
    ) -> Answers[DailyPrice]:
        """The last *days* (at most 100) finished trading days of *symbols*, the newest first.

        The rest as :meth:`get_current_prices`; KIS is asked once a day for each symbol.
        """
        how = {"venue": venue, "days": days, "fresh": fresh}
        return await self._learn(Questions("daily", DailyPrice, symbols, **how))

    async def get_symbol_infos(self, *symbols: str, fresh: bool = False) -> Answers[SymbolInfo]:
        """What *symbols* are: name, market, ISIN and the like; the rest as the others."""
        return await self._learn(Questions("symbols", SymbolInfo, symbols, fresh=fresh))

    async def status(self) -> Any:
        """What ``kisfeed status --json`` prints; raises as :meth:`call`."""
        return await self.call("status")

    async def greet(self) -> None:
        """Wait for the first WELCOME.

        Raises:
            NoDaemon: nobody listens there (unless told to wait).
            ServerRefused: the daemon does not speak this protocol, or not with this user.
            BadFrame: what listens there is no kisfeed daemon.
        """
        await self._until(lambda: self._core.phase is Phase.READY)

    async def aclose(self) -> None:
        """Leave the daemon; iterations end. Closing twice does nothing."""
        self._core.close()
        await self._hang_up()

    async def _learn(self, questions: Questions[M]) -> Answers[M]:
        while questions.open:
            questions.take(await self.call(questions.name, **questions.arguments()))
        return questions.answers()

    async def _settle(self, request: Request) -> None:
        """Wait for the answer to what is wanted; it holds, and goes out, without a waiter too."""
        await self._flush()
        await self._until(lambda: request.done)
        request.outcome()

    async def _answer(self, ask: Callable[[float], Request]) -> Any:
        """Ask once. An order that was cancelled must not go out with what is sent later."""
        async with self._sending:
            # The last way out for a cancellation; from the frame to its send there is none.
            await self._checkpoint()
            request = ask(self._now())
            await self._send()
        await self._until(lambda: request.done)
        return request.outcome()

    async def _until(self, done: Callable[[], bool]) -> bool:
        """Read, redial and wait until *done*; False when the client was closed.

        One task at a time does the reading, for all of them; a fair lock hands it on.
        """
        while not done():
            async with self._reading:
                if done():
                    break
                if self._core.phase is Phase.CLOSED:
                    return False
                if self._core.failure is not None:
                    raise self._core.failure
                await self._step()
        return True

    async def _step(self) -> None:
        core = self._core
        link = self._link
        if link is None:
            await self._redial()
            return
        try:
            data = await link.receive(max(core.deadline, self._now() + GRACE_S))
            if data is None:
                core.timer(self._now())
            else:
                core.received(data, self._now())
        except OSError as error:
            core.lost(f"the connection broke ({error})", self._now())
        except (Exception, KeyboardInterrupt, SystemExit):
            # Ctrl-C, say: what was read and not worked on is gone, and would be told by nobody.
            # A cancellation, which is none of these, leaves it where the next read finds it.
            core.lost("an interrupted read may have lost messages", self._now())
            raise
        if core.has_outgoing:  # else nobody who reads waits for another task's send
            await self._flush()
        if not core.linked:
            await self._hang_up()

    async def _redial(self) -> None:
        core = self._core
        await self._sleep_until(core.deadline)
        if core.phase is not Phase.WAITING:  # closed by another task
            return
        try:
            link = await self._dial()
        except OSError as error:
            core.dial_failed(f"nobody listens there ({error})", self._now())
            return
        core.connected(self._now())
        if not core.linked:
            await link.close()
            return
        self._link = link
        await self._flush()

    async def _flush(self) -> None:
        async with self._sending:
            await self._send()

    async def _send(self) -> None:
        data = self._core.outgoing()
        if self._link is None or not data:
            return
        try:
            await self._link.send(data)
        except OSError:
            # It has hung up; what it said before, ERR perhaps, is still there to be read.
            return
        except BaseException:
            self._core.lost("a cancelled send may have cut a frame", self._now())
            raise

    async def _hang_up(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            await link.close()
