"""The synchronous client: a plain blocking socket, for scripts, notebooks and threads."""

from __future__ import annotations

import math
import os
import select
import socket as sockets
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Self

from kisfeed import blocking, places
from kisfeed.client.core import GRACE_S, GREETING_S, ClientCore, Phase, Request, Subscription, specs
from kisfeed.client.questions import Questions
from kisfeed.errors import Disconnected
from kisfeed.kfp.models import DailyPrice, Price, SymbolInfo
from kisfeed.texts import Phrase

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from types import TracebackType

    from kisfeed.client.questions import M
    from kisfeed.kfp.events import Event, Heartbeat, Row
    from kisfeed.kfp.models import Answers

_READ: Final = 65_536
_SEND_TIMEOUT_S: Final = 10.0  # the daemon is not reading any more


def connect(
    *,
    socket: str | os.PathLike[str] | None = None,
    profile: str | None = None,
    client: str | None = None,
    role: str = "reader",
    wait: bool = False,
    heartbeats: bool = False,
) -> Client:
    """Connect to the daemon and stay with it, however often it restarts.

    ::

        with kisfeed.connect() as kf:
            for event in kf.subscribe("trade.krx.005930"):
                match event:
                    case kisfeed.Trade(px=px, qty=qty): ...
                    case kisfeed.Gap(missed_qty=missed): ...

    Args:
        socket: the daemon's socket; by default that of the profile (``kisfeed.places``).
        profile: which daemon, by its profile's name.
        client: what this program is called in ``kisfeed clients``; by default the script's name.
        role: ``reader``, or ``trader`` for a program that places orders.
        wait: wait for a daemon instead of failing when there is none at first.
        heartbeats: yield a Heartbeat every 5 s too; the last one is always ``kf.heartbeat``.

    Raises:
        NoDaemon: nobody listens there.
        ServerRefused: the daemon does not speak this protocol, or not with this user.
        BadFrame: what listens there is no kisfeed daemon.
    """
    core = ClientCore(
        client or places.program_name(),
        jitter=blocking.jitter,
        role=role,
        wait=wait,
        heartbeats=heartbeats,
    )
    return Client(core, str(places.socket_path(socket, profile)))


class Client:
    """A connection to the daemon that comes back by itself; made by :func:`connect`.

    Iterating yields the events of all subscriptions, in order. Whoever waits reads the socket:
    between two calls nothing runs in the background. Threads may share one object; each event
    goes to one of them. A forked child (``multiprocessing``) gets a connection of its own at its
    first use, with the same subscriptions; events that waited at the fork both processes get.
    """

    def __init__(self, core: ClientCore, path: str) -> None:
        """Connect; see :func:`connect` for what is raised."""
        self._core = core
        self._path = path
        self._socket: sockets.socket | None = None
        self._lock = blocking.RLock()
        self._changed = blocking.Condition(self._lock)
        self._reading = False
        self._inherited = False  # over a fork, and not used since
        _clients.add(self)
        try:
            self._until(lambda: core.phase is Phase.READY)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __iter__(self) -> Iterator[Event]:
        return self.events()

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
        with self._changed:
            return self._core.subscriptions()

    def subscribe(
        self,
        *topics: str,
        mode: str = "all",
        hz: float = 0,
        prio: int = 0,
        passive: bool = False,
        image: bool = True,
        poll: bool = True,
        after: int | None = None,
    ) -> Iterator[Event]:
        """Subscribe now and after every reconnect; returns :meth:`events`.

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
        self._answer(lambda now: self._core.subscribe(wanted, now))
        return self.events()

    def unsubscribe(self, *topics: str) -> None:
        """End subscriptions; KeyError for a topic that is not subscribed."""
        self._answer(lambda now: self._core.unsubscribe(topics, now))

    def retune(
        self,
        topic: str,
        *,
        mode: str | None = None,
        hz: float | None = None,
        prio: int | None = None,
    ) -> None:
        """Change how a subscribed topic is delivered; KeyError if it is not subscribed."""
        self._answer(lambda now: self._core.retune(topic, now, mode=mode, hz=hz, prio=prio))

    def get(self, topic: str) -> Row | None:
        """The topic's last value without subscribing; None where nothing is known yet.

        Raises:
            ServerRefused: there is no such topic.
            NoDaemon: the daemon is away; Disconnected: it went before it answered.
        """
        row: Row | None = self._answer(lambda now: self._core.get(topic, now))
        return row

    def ping(self) -> float:
        """Seconds until the daemon answered; raises as :meth:`call`."""
        start = blocking.monotonic()
        self._answer(self._core.ping)
        return blocking.monotonic() - start

    def call(self, name: str, **arguments: object) -> Any:
        """One of the daemon's calls (``schemas/kfp1/calls.json``); never sent twice.

        Interrupted (Ctrl-C) within the send, it ends the connection; behind that, the daemon acts
        and nobody gets the answer.

        Raises:
            ServerRefused: the daemon refused, or gave no answer in time (code ``timeout``).
            NoDaemon: the daemon is away, nothing was sent.
            Disconnected: it went before it answered; whether it acted is not known.
        """
        return self._answer(lambda now: self._core.call(name, arguments, now))

    def get_current_prices(
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
        return self._learn(Questions("quotes", Price, symbols, venue=venue, fresh=fresh))

    def get_daily_prices(
        self, *symbols: str, venue: str = "krx", days: int = 30, fresh: bool = False
    ) -> Answers[DailyPrice]:
        """The last *days* (at most 100) finished trading days of *symbols*, the newest first.

        The rest as :meth:`get_current_prices`; KIS is asked once a day for each symbol.
        """
        how = {"venue": venue, "days": days, "fresh": fresh}
        return self._learn(Questions("daily", DailyPrice, symbols, **how))

    def get_symbol_infos(self, *symbols: str, fresh: bool = False) -> Answers[SymbolInfo]:
        """What *symbols* are: name, market, ISIN and the like; the rest as the others."""
        return self._learn(Questions("symbols", SymbolInfo, symbols, fresh=fresh))

    def status(self) -> Any:
        """What ``kisfeed status --json`` prints; raises as :meth:`call`."""
        return self.call("status")

    def events(self, timeout: float | None = None) -> Iterator[Event]:
        """Events of all subscriptions, as they come.

        Args:
            timeout: end when nothing has come for so many seconds; None never ends.

        Raises:
            ServerRefused: the daemon that came back refuses this client for good.
        """
        core = self._core
        limit = math.inf if timeout is None else timeout
        while True:
            try:
                with self._lock:  # a reader that makes room replaces the queue
                    event = core.events.popleft()
            except IndexError:
                if not self._until(lambda: bool(core.events), limit):
                    return
            else:
                yield event

    def close(self) -> None:
        """Leave the daemon; iterations end. Closing twice does nothing."""
        with self._changed:
            self._core.close()
            if self._reading and self._socket is not None:
                # Wakes the thread that waits for bytes, which closing would not; it hangs up.
                with suppress(OSError):
                    self._socket.shutdown(sockets.SHUT_RDWR)
            else:
                self._hang_up()
            self._changed.notify_all()

    def _learn(self, questions: Questions[M]) -> Answers[M]:
        while questions.open:
            questions.take(self.call(questions.name, **questions.arguments()))
        return questions.answers()

    def _answer(self, ask: Callable[[float], Request]) -> Any:
        if self._inherited:  # no daemon at this moment, but one to be dialled
            self._until(lambda: self._core.phase is Phase.READY, GREETING_S)
            self._inherited = False
        with self._changed:
            request = ask(blocking.monotonic())
            self._flush()
        self._until(lambda: request.done)
        return request.outcome()

    def _until(self, done: Callable[[], bool], timeout: float = math.inf) -> bool:
        """Read, redial and wait until *done*; False when time is up or the client is closed.

        One thread at a time does the reading, for all of them.
        """
        give_up = blocking.monotonic() + timeout
        with self._changed:
            while not done():
                if self._core.phase is Phase.CLOSED:
                    return False
                if self._core.failure is not None:
                    raise self._core.failure
                left = give_up - blocking.monotonic()
                if left <= 0:
                    return False
                if self._reading:
                    self._changed.wait(min(left, 3600.0))
                    continue
                self._reading = True
                try:
                    self._step(give_up)
                finally:
                    self._reading = False
                    self._changed.notify_all()
        return True

    def _forked(self) -> None:
        """In the child of a fork, before anything else runs: the connection is the parent's."""
        # Held by a thread that is not in this process: what it was changing is half changed.
        torn = not self._lock.acquire(blocking=False)
        self._lock = blocking.RLock()
        self._changed = blocking.Condition(self._lock)
        self._reading = False
        self._hang_up()
        if self._core.phase is Phase.CLOSED:
            return
        if torn:
            self._core.give_up(Disconnected(Phrase("forked within a call of another thread")))
        else:
            self._inherited = True
            self._core.lost(Phrase("the connection is the parent process's"), blocking.monotonic())

    def _step(self, give_up: float) -> None:
        """One dial, one pause or one read; called and left with the lock held."""
        core = self._core
        now = blocking.monotonic()
        if self._socket is None:
            pause = core.deadline - now
            if pause > 0:
                self._changed.wait(min(pause, give_up - now))
            else:
                self._dial()
            return
        link = self._socket
        until = min(max(core.deadline, now + GRACE_S), give_up)
        self._changed.release()
        try:
            readable = _readable(link, until - now)
        finally:
            self._changed.acquire()
        if readable:
            self._read(link)
        else:
            core.timer(blocking.monotonic())
        self._flush()
        if not core.linked:
            self._hang_up()

    def _dial(self) -> None:
        link = sockets.socket(sockets.AF_UNIX, sockets.SOCK_STREAM)
        link.settimeout(_SEND_TIMEOUT_S)
        try:
            link.connect(self._path)
        except OSError as error:
            link.close()
            why = Phrase(
                "nobody listens at {path} ({why})",
                path=self._path,
                why=error.strerror or str(error),
            )
            self._core.dial_failed(why, blocking.monotonic())
        else:
            self._core.connected(blocking.monotonic())
            if not self._core.linked:  # closed meanwhile, by a signal handler
                link.close()
                return
            self._socket = link
            self._flush()

    def _read(self, link: sockets.socket) -> None:
        try:
            self._core.received(link.recv(_READ), blocking.monotonic())
        except OSError as error:
            self._core.lost(f"the connection broke ({error.strerror})", blocking.monotonic())
        except BaseException:
            # Ctrl-C, say: what was read and not worked on is gone, and would be told by nobody.
            self._core.lost("an interrupted read may have lost messages", blocking.monotonic())
            raise

    def _flush(self) -> None:
        data = self._core.outgoing()
        if self._socket is None or not data:
            return
        try:
            self._socket.sendall(data)
        except TimeoutError:
            self._core.lost(Phrase("the daemon does not read"), blocking.monotonic())
        except OSError:
            # It has hung up; what it said before, ERR perhaps, is still there to be read.
            with suppress(OSError):
                self._socket.shutdown(sockets.SHUT_RDWR)
        except BaseException:
            # Ctrl-C, say.
            self._core.lost("an interrupted send may have cut a frame", blocking.monotonic())
            raise

    def _hang_up(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


_clients: Final[weakref.WeakSet[Client]] = weakref.WeakSet()


def _after_fork() -> None:
    for client in list(_clients):
        client._forked()  # noqa: SLF001  # of this module


os.register_at_fork(after_in_child=_after_fork)


def _readable(link: sockets.socket, timeout: float) -> bool:
    poll = select.poll()
    poll.register(link, select.POLLIN)
    return bool(poll.poll(None if timeout == math.inf else max(timeout, 0) * 1000))
