"""Every topic that was asked for: its stream, and where the records of its registration go.

Nothing is forgotten while the instance runs: a sid means the same topic to every program.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import attrs

from kisfeed.core.streams import TopicStream
from kisfeed.kfp.messages import Code, Data, Stream

if TYPE_CHECKING:
    from kisfeed.core.streams import Touched
    from kisfeed.kis.catalogue import Catalogue, RegKey, Topic


@attrs.define(eq=False)
class Route:
    """Where the records of one registration go."""

    key: RegKey
    typed: TopicStream | None = None
    raw: TopicStream | None = None
    held: bool = False
    halted: bool = False
    quiet_before: bool = False  # given up without data, and taken again
    had_data: bool = False
    data_at: float = -math.inf  # liveness knows of data until then
    acked_rts: int = 0  # when KIS last said that it holds it
    said: tuple[Any, ...] | None = None  # of the market, by the last row that was looked at
    look_again: float = -math.inf

    def streams(self) -> list[TopicStream]:
        return [stream for stream in (self.typed, self.raw) if stream is not None]


@attrs.define(eq=False)
class Topics:
    """The streams and the routes of one instance.

    Attributes:
        touched: of all its streams.
        streams: by the topic's name.
        by_tr: routes by tr_id, and by tr_key as it stands in a frame.
    """

    _catalogue: Catalogue
    touched: Touched
    streams: dict[str, TopicStream] = attrs.field(factory=dict, init=False)
    by_tr: dict[str, dict[bytes, Route]] = attrs.field(factory=dict, init=False)

    def named(self, name: str, wall_ns: int) -> TopicStream:
        """The stream of the topic *name*, made where it is new.

        Raises:
            UnknownTopic: there is no such topic.
        """
        return self.streams.get(name) or self.stream(self._catalogue.topic(name), wall_ns)

    def stream(self, topic: Topic, wall_ns: int) -> TopicStream:
        """The stream of *topic*, made where it is new."""
        stream = self.streams.get(topic.name)
        if stream is None:
            schema = f"raw.{topic.tr.tr_id}" if topic.raw else topic.tr.schema
            sid = len(self.streams) + 1
            stream = TopicStream(sid, topic, schema, self.touched, since_ts=wall_ns)
            self.streams[topic.name] = stream
            by_key = self.by_tr.setdefault(topic.key[0], {})
            route = by_key.setdefault(topic.key[1].encode(), Route(topic.key))
            if topic.raw:
                route.raw = stream
            else:
                route.typed = stream
            if route.held:
                # The other topic of this registration is live already.
                stream.held = True
                stream.stream, stream.data, stream.code = Stream.OPEN, Data.OK, Code.NONE
        return stream

    def route(self, key: RegKey) -> Route:
        """The route of a registration that some topic needs."""
        return self.by_tr[key[0]][key[1].encode()]

    def routes(self) -> list[Route]:
        return [route for by_key in self.by_tr.values() for route in by_key.values()]

    def pollable(self, key: RegKey) -> bool:
        """REST can stand in for a slot: domestic trades, on the real host only."""
        tr = self._catalogue.trs[key[0]]
        return tr.channel == "trade" and tr.venue in {"krx", "nxt"}
