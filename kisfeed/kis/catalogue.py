"""The realtime TRs as values, and topics to (tr_id, tr_key) and back.

Facts come from ``schemas/kis/realtime.json``. A TR has exactly one (channel, venue), so a topic
names exactly one registration. KIS numbers five TRs for paper trading; the others do not exist
there.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import attrs

from kisfeed.config import Environment
from kisfeed.errors import UnknownTopic

if TYPE_CHECKING:
    from collections.abc import Mapping

RegKey: TypeAlias = tuple[str, str]
"""One registration: the TR id as it is on the wire (the paper id on paper), and the tr_key."""

_SCHEMAS: Final = {
    "trade": "trade.v1",
    "book": "book.v1",
    "expected": "expected.v1",
    "status": "status.v1",
    "notice": "notice.v1",
}


@attrs.frozen(eq=False)
class Layout:
    """One record layout of one TR, known by identity: two TRs may list the same columns.

    Attributes:
        width: the number of values in a record.
        fields: KIS column names, upper-case, by position.
        types: ``str``, ``int``, ``decimal``, ``time`` or ``date``, by position.
        key_index: where the tr_key stands; None when the layout lacks it.
    """

    width: int
    fields: tuple[str, ...]
    types: tuple[str, ...]
    key_index: int | None


@attrs.frozen(eq=False)
class Tr:
    """One realtime TR.

    Attributes:
        tr_id: the real id, also the name of its raw topics.
        tr_id_paper: the id on paper; None where paper does not serve it.
        encrypted: its data frames carry the flag 1 and an AES payload.
        scale: typed prices are ``price * 10**scale``; None where there is no typed price, or
            where it varies by record (order notices).
        schema: the typed row, or ``raw.<TR_ID>`` where there is none.
        layouts: by width; a width that two layouts claim holds the one to use.
        longest: the widest layout.
        usual: the layout KIS sends today as far as known; names the columns of raw rows.
        key_pattern: what a tr_key must match in full.
    """

    tr_id: str
    tr_id_paper: str | None
    channel: str
    venue: str
    encrypted: bool
    scale: int | None
    schema: str
    layouts: Mapping[int, Layout]
    longest: Layout
    usual: Layout
    name_ko: str
    name_en: str
    key_pattern: re.Pattern[str]

    def layout_for(self, width: int) -> Layout | None:
        """The layout that reads a record of *width* values: its own, else the longest shorter one.

        None when the record is shorter than every known layout.
        """
        exact = self.layouts.get(width)
        if exact is not None:
            return exact
        shorter = [known for known in self.layouts if known < width]
        return self.layouts[max(shorter)] if shorter else None


@attrs.frozen
class Topic:
    """What a topic name stands for.

    Attributes:
        name: the one spelling of this topic.
        tr: the TR that feeds it.
        key: the registration it needs.
        raw: its rows are the untouched fields.
    """

    name: str
    tr: Tr
    key: RegKey
    raw: bool


class Catalogue:
    """All TRs that one environment serves."""

    trs: Mapping[str, Tr]
    """By the TR id on the wire."""

    def __init__(self, data: Mapping[str, Any], environment: Environment) -> None:
        """Read the parsed ``kis/realtime.json``; on paper keep only what paper serves."""
        self._environment = environment
        self._by_topic: dict[tuple[str, str], tuple[str | None, Tr]] = {}
        self._by_id: dict[str, tuple[str | None, Tr]] = {}
        trs: dict[str, Tr] = {}
        for entry in data["trs"]:
            tr = _tr(entry)
            wire = tr.tr_id_paper if environment is Environment.PAPER else tr.tr_id
            self._by_topic[tr.channel, tr.venue] = (wire, tr)
            self._by_id[tr.tr_id] = (wire, tr)
            if wire is not None:
                self._by_id[wire] = (wire, tr)
                trs[wire] = tr
        self.trs = trs

    def topic(self, name: str) -> Topic:
        """The meaning of ``<channel>.<venue>.<symbol>`` or ``raw.<TR_ID>.<tr_key>``.

        Only the first two dots separate; the symbol is the rest.

        Raises:
            UnknownTopic: no such channel, venue or TR, a symbol that cannot be one, or a TR
                that paper does not serve.
        """
        parts = name.split(".", 2)
        if len(parts) != 3:
            raise UnknownTopic(name, "a topic is <channel>.<venue>.<symbol>")
        channel, venue, symbol = parts
        raw = channel == "raw"
        found = self._by_id.get(venue) if raw else self._by_topic.get((channel, venue))
        if found is None:
            raise UnknownTopic(name, self._why_unknown(channel, venue))
        wire, tr = found
        if wire is None:
            served = sorted({f"{known.channel}.{known.venue}" for known in self.trs.values()})
            raise UnknownTopic(name, f"KIS does not serve it on paper, only {', '.join(served)}")
        if not tr.key_pattern.fullmatch(symbol):
            raise UnknownTopic(name, f"{symbol!r} is not a symbol of {tr.channel}.{tr.venue}")
        canonical = f"raw.{tr.tr_id}.{symbol}" if raw else name
        return Topic(name=canonical, tr=tr, key=(wire, symbol), raw=raw)

    def name_of(self, key: RegKey) -> str:
        """The typed topic that *key* feeds.

        Raises:
            KeyError: the TR id is not one of this environment.
        """
        tr = self.trs[key[0]]
        return f"{tr.channel}.{tr.venue}.{key[1]}"

    def _why_unknown(self, channel: str, venue: str) -> str:
        if channel == "raw":
            return f"no TR is called {venue!r}"
        venues = [v for c, v in self._by_topic if c == channel]
        if venues:
            return f"channel {channel!r} has the venues {', '.join(sorted(venues))}"
        channels = sorted({c for c, _ in self._by_topic})
        return f"the channels are {', '.join(channels)} and raw"


def _tr(entry: Mapping[str, Any]) -> Tr:
    types = {name: kind for name, kind, _ in entry["columns"]}
    key_field = entry["tr_key"]["field"]
    layouts: dict[int, Layout] = {}
    for known in entry["layouts"]:
        fields = tuple(known["fields"])
        layouts[known["width"]] = Layout(
            width=known["width"],
            fields=fields,
            types=tuple(types[name] for name in fields),
            key_index=fields.index(key_field) if key_field in fields else None,
        )
    channel, scale = entry["channel"], entry["scale"]
    typed = channel in _SCHEMAS and (scale is not None or channel == "notice")
    return Tr(
        tr_id=entry["tr_id"],
        tr_id_paper=entry["tr_id_paper"],
        channel=channel,
        venue=entry["venue"],
        encrypted=entry["encrypted"],
        scale=scale,
        schema=_SCHEMAS[channel] if typed else f"raw.{entry['tr_id']}",
        layouts=layouts,
        longest=layouts[max(layouts)],
        usual=layouts[entry["usual_width"]],
        name_ko=entry["name_ko"],
        name_en=entry["name_en"],
        key_pattern=re.compile(entry["tr_key"]["pattern"]),
    )
