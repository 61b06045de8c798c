from __future__ import annotations

import contextlib

import jsonschema
import pytest
from hypothesis import given, strategies as st

from kisfeed import schemas
from kisfeed.config import Environment
from kisfeed.errors import UnknownTopic
from kisfeed.kis.catalogue import Catalogue, Tr
from kisfeed.kis.rows import FIELDS

DATA = schemas.load("kis/realtime.json")
REAL = Catalogue(DATA, Environment.REAL)
PAPER = Catalogue(DATA, Environment.PAPER)
EVERY_TR = st.sampled_from(list(REAL.trs.values()))


def example_key(tr: Tr) -> str:
    return str(next(e["tr_key"]["examples"][0] for e in DATA["trs"] if e["tr_id"] == tr.tr_id))


def test_the_table_follows_its_schema() -> None:
    jsonschema.Draft202012Validator(schemas.load("kis/realtime.schema.json")).validate(DATA)


def test_there_are_sixty_trs_and_each_has_its_own_channel_and_venue() -> None:
    places = [(tr.channel, tr.venue) for tr in REAL.trs.values()]
    assert len(REAL.trs) == len(set(places)) == 60


def test_every_layout_has_its_width_in_columns_and_types() -> None:
    for entry in DATA["trs"]:
        columns = {name for name, _, _ in entry["columns"]}
        widths = [layout["width"] for layout in entry["layouts"]]
        assert len(set(widths)) == len(widths)
        assert entry["usual_width"] in widths
        assert entry["expected_width"] is None or entry["expected_width"]["width"] in widths
        for layout in entry["layouts"]:
            assert layout["width"] == len(layout["fields"])
            assert set(layout["fields"]) <= columns
        for layout in entry["disputed"]:
            assert layout["width"] in widths


def test_paper_serves_exactly_five_trs_under_its_own_ids() -> None:
    assert sorted(PAPER.trs) == ["H0GSCNI9", "H0IFCNI9", "H0STASP0", "H0STCNI9", "H0STCNT0"]


def test_the_simulator_uses_the_real_ids() -> None:
    assert list(Catalogue(DATA, Environment.SIM).trs) == list(REAL.trs)


@given(EVERY_TR)
def test_a_topic_and_its_registration_name_each_other(tr: Tr) -> None:
    name = f"{tr.channel}.{tr.venue}.{example_key(tr)}"
    topic = REAL.topic(name)
    assert topic.tr is tr
    assert topic.key == (tr.tr_id, example_key(tr))
    assert REAL.name_of(topic.key) == topic.name == name
    assert not topic.raw


@given(EVERY_TR)
def test_a_raw_topic_needs_the_same_registration(tr: Tr) -> None:
    topic = REAL.topic(f"raw.{tr.tr_id}.{example_key(tr)}")
    assert topic.raw
    assert topic.key == (tr.tr_id, example_key(tr))


def test_a_paper_topic_is_registered_with_the_paper_id() -> None:
    topic = PAPER.topic("notice.krx.hts1")
    assert topic.key == ("H0STCNI9", "hts1")
    assert PAPER.name_of(topic.key) == "notice.krx.hts1"
    assert PAPER.topic("raw.H0STCNI9.hts1") == PAPER.topic("raw.H0STCNI0.hts1")


def test_a_tr_that_paper_lacks_says_so() -> None:
    with pytest.raises(UnknownTopic, match="paper") as error:
        PAPER.topic("trade.nxt.005930")
    assert "trade.krx" in error.value.why


@pytest.mark.parametrize(
    "name",
    [
        "",
        "trade",
        "trade.krx",
        "trade.krx.",
        "trade.krx.00593",
        "trade.krx.005930 ",
        "trade.krx.005930\n",
        "trade.mars.005930",
        "quote.krx.005930",
        "nav.krx.069500",
        "raw.H0STXXX0.005930",
        "raw.H0STCNI9.hts1",
        "trade.overseas.dnasaapl",
        "notice.krx.two words",
    ],
)
def test_what_is_no_topic_is_refused_with_a_reason(name: str) -> None:
    with pytest.raises(UnknownTopic):
        REAL.topic(name)


@pytest.mark.parametrize(
    "name",
    [
        "trade.krx.Q500001",
        "trade.krx.0015B0",
        "book.overseas.RBAQAAPL",
        "trade.overseas.DNYSBRK.B",
        "trade.idxfut.A05608",
        "book.osfut.OESH23 C3900",
        "trade.bondidx.KBPR01",
    ],
)
def test_every_shape_of_symbol_seen_is_a_topic(name: str) -> None:
    assert REAL.topic(name).name == name


@given(st.text())
def test_any_text_is_a_topic_or_unknown(name: str) -> None:
    with contextlib.suppress(UnknownTopic):
        assert REAL.topic(name).name == name


@given(EVERY_TR)
def test_a_tr_has_a_typed_schema_or_its_own_raw_one(tr: Tr) -> None:
    assert tr.schema in FIELDS or tr.schema == f"raw.{tr.tr_id}"
    if tr.channel in ("trade", "book", "expected") and tr.venue != "osfut":
        assert tr.schema == f"{tr.channel}.v1"
        assert tr.scale is not None


@given(EVERY_TR, st.integers(1, 200))
def test_a_record_is_read_by_the_longest_layout_that_fits_it(tr: Tr, width: int) -> None:
    fitting = [known for known in tr.layouts if known <= width]
    layout = tr.layout_for(width)
    assert (layout.width if layout else None) == max(fitting, default=None)


def test_a_layout_without_the_key_says_so() -> None:
    layouts = REAL.trs["HDFSCNT0"].layouts
    assert layouts[26].key_index == 0
    assert layouts[25].key_index is None


def test_two_layouts_of_one_width_give_the_one_seen_on_the_wire() -> None:
    assert REAL.trs["H0UNMKO0"].layouts[10].fields[0] == "MKSC_SHRN_ISCD"
