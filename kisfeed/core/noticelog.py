"""Order notices on their way to programs: numbered, kept for the day, told again on demand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import attrs

from kisfeed.kfp import codec, events
from kisfeed.kfp.messages import Type
from kisfeed.seoul import day_number

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kisfeed.core.streams import Subscriber, TopicStream

NOTICE: Final = "notice.v1"


@attrs.define(eq=False)
class NoticeLog:
    """The notices of one day in Seoul."""

    _kept: list[tuple[int, str, bytes, events.Notice]] = attrs.field(factory=list, init=False)
    _bytes: int = attrs.field(default=0, init=False)
    _day: int = attrs.field(default=0, init=False)
    _nseq: int = attrs.field(default=0, init=False)

    def tell(
        self,
        stream: TopicStream,
        kind: str,
        xts: int | None,
        fields: Mapping[str, Any],
        rts: int,
        now: float,
    ) -> None:
        """Give a notice its number, keep it, and send it to every subscriber of *stream*."""
        self._nseq += 1
        topic = stream.topic.name
        event = events.Notice(topic, self._nseq, xts, rts, kind, fields)
        named = {"topic": topic, **fields}
        frame = codec.frame(Type.NOTICE, self._nseq, xts, rts, kind, named)
        day = day_number(rts)
        if day != self._day:
            self._day = day
            self._kept.clear()
            self._bytes = 0
        self._bytes += len(frame)
        self._kept.append((self._nseq, topic, frame, event))
        for subscriber in stream.subscribers.values():
            subscriber.notice(frame, event, now)

    def tell_again(
        self, subscriber: Subscriber, stream: TopicStream, after: int, now: float
    ) -> None:
        """Send *subscriber* today's notices of *stream* behind the one numbered *after*."""
        name = stream.topic.name
        asked = [(f, e) for nseq, topic, f, e in self._kept if nseq > after and topic == name]
        subscriber.notices_again(asked, self._bytes, now)
