"""Who wants which topic, and how; what each program is told first.

Apart from the path of a frame: nothing here happens once a tick.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import attrs

from kisfeed.core.noticelog import NOTICE
from kisfeed.core.streams import TopicStream
from kisfeed.errors import UnknownTopic
from kisfeed.kfp.messages import Code, Data, ErrorCode, Mode, Stream

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from kisfeed.core.engine import Instant
    from kisfeed.core.interest import Interest
    from kisfeed.core.noticelog import NoticeLog
    from kisfeed.core.registrations import Registrations
    from kisfeed.core.streams import Subscriber
    from kisfeed.core.topics import Topics
    from kisfeed.kis.catalogue import Catalogue


@attrs.frozen
class SubSpec:
    """What a program asks of one topic (KFP/1 SUB)."""

    topic: str
    mode: Mode = Mode.ALL
    hz: float = 0.0
    prio: int = 0
    passive: bool = False
    image: bool = True
    poll: bool = True
    after: int | None = None


@lru_cache(maxsize=1024)
def _shared(spec: SubSpec) -> SubSpec:
    """One object for all topics that are wanted alike."""
    return spec


@attrs.frozen
class SubResult:
    """The answer for one topic; ``sid`` is None where it was refused."""

    topic: str
    sid: int | None
    schema: str = ""
    scale: int = 0
    sseq: int = 0
    stream: int = Stream.CLOSED
    data: int = Data.NONE
    code: str = Code.NONE
    text: str = ""


@attrs.frozen
class Refusal:
    """Why a topic is not to be had."""

    code: ErrorCode
    text: str


@attrs.define(eq=False)
class Subscriptions:
    """The programs that are connected, and what each asked for.

    Attributes:
        subscribers: by their connection.
    """

    _catalogue: Catalogue
    _topics: Topics
    _interest: Interest
    _registrations: Registrations
    _notices: NoticeLog
    subscribers: dict[int, Subscriber] = attrs.field(factory=dict, init=False)
    # By connection and sid, without what only the moment of subscribing needs.
    _specs: dict[tuple[int, int], SubSpec] = attrs.field(factory=dict, init=False)

    def attach(self, subscriber: Subscriber) -> None:
        """Take *subscriber* in; it is told of every session change from here on."""
        self.subscribers[subscriber.conn] = subscriber
        subscriber.touched = self._topics.touched

    def want(
        self, subscriber: Subscriber, specs: Sequence[SubSpec], at: Instant
    ) -> list[tuple[SubSpec, TopicStream | Refusal]]:
        """Note *subscriber*'s interest; :meth:`answer` is to follow, whatever comes of it."""
        wanted: list[tuple[SubSpec, TopicStream | Refusal]] = []
        for spec in specs:
            try:
                stream = self._topics.named(spec.topic, at.wall_ns)
            except UnknownTopic as exc:
                wanted.append((spec, Refusal(ErrorCode.UNKNOWN_TOPIC, exc.why)))
                continue
            wanted.append((spec, stream))
            if stream.sid not in subscriber.streams:
                stream.add(subscriber, spec.mode, spec.hz)
            else:
                subscriber.outbox.retune(stream.sid, spec.mode, spec.hz, stream.sseq)
            holder = (subscriber.conn, stream.sid)
            self._specs[holder] = _shared(
                SubSpec("", spec.mode, spec.hz, spec.prio, spec.passive, poll=spec.poll)
            )
            self._interest.add(
                stream.topic.key, holder, at.now, prio=spec.prio, passive=spec.passive
            )
        return wanted

    def answer(
        self,
        subscriber: Subscriber,
        wanted: Sequence[tuple[SubSpec, TopicStream | Refusal]],
        reply: Callable[[list[SubResult]], Any] | None,
        at: Instant,
    ) -> list[SubResult]:
        """Tell *subscriber* what it gets of *wanted*, and the last value of each.

        What *reply* makes of the results is queued before any frame of the new sids, the last
        values right behind it: an image with sseq q is followed by the tick q + 1. Without a
        *reply* the STATUS of each topic stands in its place.
        """
        results = [_result(spec, self._admitted(spec, found)) for spec, found in wanted]
        for result, (_, found) in zip(results, wanted, strict=True):
            if result.sid is not None or not isinstance(found, TopicStream):
                continue
            if found.sid in subscriber.streams:  # else it was asked for twice
                self._leave(subscriber, found, at)
        if reply is not None:
            subscriber.control(reply(results), at.now)
        for spec, found in wanted:
            if isinstance(found, TopicStream) and found.sid in subscriber.streams:
                if reply is None:
                    found.tell_status([subscriber], at.now)
                self._send_last(subscriber, found, spec, at.now)
        return results

    def leave(self, subscriber: Subscriber, sids: Sequence[int] | None, at: Instant) -> list[int]:
        """End interest in *sids* (all of them for None); returns those that were subscribed."""
        asked = list(subscriber.streams) if sids is None else dict.fromkeys(sids)
        ended = [sid for sid in asked if sid in subscriber.streams]
        for sid in ended:
            self._leave(subscriber, subscriber.streams[sid], at)
        return ended

    def retune(
        self,
        subscriber: Subscriber,
        stream: TopicStream,
        at: Instant,
        *,
        mode: Mode | None,
        hz: float | None,
        prio: int | None,
    ) -> bool:
        """Change how *subscriber* gets *stream*; True if its claim to a slot changed."""
        holder = (subscriber.conn, stream.sid)
        old = self._specs[holder]
        spec = attrs.evolve(
            old,
            mode=old.mode if mode is None else mode,
            hz=old.hz if hz is None else hz,
            prio=old.prio if prio is None else prio,
        )
        self._specs[holder] = _shared(spec)
        subscriber.outbox.retune(stream.sid, spec.mode, spec.hz, stream.sseq)
        if spec.prio == old.prio:
            return False
        self._interest.retune(
            stream.topic.key, holder, at.now, prio=spec.prio, passive=spec.passive
        )
        return True

    def takers(self, stream: TopicStream) -> dict[Subscriber, SubSpec]:
        """Subscribers of *stream* that take polled images."""
        specs = {s: self._specs[s.conn, stream.sid] for s in stream.subscribers.values()}
        return {subscriber: spec for subscriber, spec in specs.items() if spec.poll}

    def image(self, name: str, at: Instant) -> tuple[SubResult, bytes | None]:
        """What is known of a topic and its last value, without an interest in it (KFP/1 GET).

        Raises:
            UnknownTopic: there is no such topic.
        """
        stream = self._topics.named(name, at.wall_ns)
        image = stream.image()
        return _result(SubSpec(name), stream), None if image is None else image[0]

    def clients(self, now: float) -> list[dict[str, object]]:
        """Every local program with its queue and its losses, JSON-able."""
        return [
            {
                "conn": s.conn,
                "name": s.name,
                "pid": s.pid,
                "role": s.role,
                "since_ts": s.since_ts,
                "topics": [stream.topic.name for stream in s.streams.values()],
                "sent": s.outbox.sent,
                "dropped": s.outbox.dropped,
                "conflated": s.outbox.conflated,
                "q_bytes": s.outbox.queued_bytes,
                "q_age_ms": s.outbox.age_ms(now),
            }
            for s in self.subscribers.values()
        ]

    def _admitted(self, spec: SubSpec, found: TopicStream | Refusal) -> TopicStream | Refusal:
        """A topic that will not do with polled rows needs a slot, or it is refused by name."""
        if isinstance(found, Refusal) or spec.poll or spec.passive:
            return found
        if self._registrations.admits(found.topic.key):
            return found
        names = [self._catalogue.name_of(h.key) for h in self._registrations.holders()]
        return Refusal(ErrorCode.OVER_LIMIT, f"every slot is held: {', '.join(names)}")

    def _leave(self, subscriber: Subscriber, stream: TopicStream, at: Instant) -> None:
        stream.remove(subscriber)
        del self._specs[subscriber.conn, stream.sid]
        self._interest.remove(stream.topic.key, (subscriber.conn, stream.sid), at.now)

    def _send_last(
        self, subscriber: Subscriber, stream: TopicStream, spec: SubSpec, now: float
    ) -> None:
        if stream.schema == NOTICE:
            if spec.after is not None:
                self._notices.tell_again(subscriber, stream, spec.after, now)
        elif spec.image:
            image = stream.image()
            if image is not None:
                subscriber.control(image[0] if subscriber.encode else image[1], now)


def _result(spec: SubSpec, found: TopicStream | Refusal) -> SubResult:
    if isinstance(found, Refusal):
        return SubResult(spec.topic, None, code=found.code, text=found.text)
    return SubResult(
        spec.topic,
        found.sid,
        found.schema,
        found.scale,
        found.sseq,
        found.stream,
        found.data,
        found.code,
        found.text,
    )
