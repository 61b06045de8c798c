from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import assume, given, strategies as st

from kisfeed import schemas
from kisfeed.config import Environment
from kisfeed.kis import control, frames
from kisfeed.kis.frames import DataFrame, Records, Reject, Rejected

if TYPE_CHECKING:
    from kisfeed.kis.catalogue import Tr

REAL = schemas.load_catalogue(Environment.REAL)
LINES = Path(__file__).with_name("data").joinpath("frames.jsonl").read_text("utf-8").splitlines()
GOLDEN: dict[str, dict[str, Any]] = {g["id"]: g for g in map(json.loads, LINES)}
WHOLE = [g for g in GOLDEN.values() if g.get("fields_per_record") and g["form"] != "encrypted"]
EVERY_TR = st.sampled_from(list(REAL.trs.values()))
VALUE = st.binary(max_size=12).filter(lambda v: b"^" not in v and b"|" not in v)


def golden_records(golden: dict[str, Any]) -> Records:
    text = golden["raw"].encode()
    if golden["form"] == "full":
        frame = frames.parse(text)
        assert isinstance(frame, DataFrame)
        assert (frame.tr_id, frame.count) == (golden["tr"], golden["count"])
        text = frame.payload
    found = frames.records(REAL.trs[golden["tr"]], golden["count"], text)
    assert isinstance(found, Records)
    return found


@given(st.binary())
def test_parse_never_raises(frame: bytes) -> None:
    frames.parse(frame)


@given(st.sampled_from([b"0|", b"1|", b"{", b'{"header":', b'{"body":{"output":']), st.binary())
def test_parse_never_raises_on_what_begins_well(start: bytes, rest: bytes) -> None:
    frames.parse(start + rest)


@given(EVERY_TR, st.integers(1, 12), st.data())
def test_a_frame_gives_back_the_values_it_was_built_from(
    tr: Tr, count: int, data: st.DataObject
) -> None:
    layout = tr.layouts[data.draw(st.sampled_from(list(tr.layouts)))]
    values = data.draw(st.lists(VALUE, min_size=8, max_size=8))
    rows = [[values[(n + i) % 8] for i in range(layout.width)] for n in range(count)]
    payload = b"^".join(b"^".join(row) for row in rows)
    frame = frames.parse(b"0|%s|%03d|%s" % (tr.tr_id.encode(), count, payload))
    assert frame == DataFrame(encrypted=False, tr_id=tr.tr_id, count=count, payload=payload)
    assert frames.records(tr, count, payload) == Records(layout, rows, None)


@given(EVERY_TR, st.integers(1, 12), st.integers(1, 5))
def test_columns_beyond_the_known_ones_are_kept_and_told(tr: Tr, count: int, more: int) -> None:
    width = tr.longest.width + more
    row = [b"%d" % i for i in range(width)]
    found = frames.records(tr, count, b"^".join(row * count))
    assert found == Records(tr.longest, [row] * count, drift=width)


@given(EVERY_TR, st.integers(1, 12), st.data())
def test_a_record_shorter_than_every_layout_is_refused(
    tr: Tr, count: int, data: st.DataObject
) -> None:
    width = data.draw(st.integers(1, min(tr.layouts) - 1))
    found = frames.records(tr, count, b"^".join([b"1"] * width * count))
    assert isinstance(found, Rejected)
    assert found.reason is Reject.TOO_SHORT


@given(EVERY_TR, st.integers(2, 12), st.integers(1, 400))
def test_values_that_do_not_share_out_evenly_are_refused(tr: Tr, count: int, total: int) -> None:
    assume(total % count)
    found = frames.records(tr, count, b"^" * (total - 1))
    assert isinstance(found, Rejected)
    assert found.reason is Reject.BAD_WIDTH


def test_a_width_between_two_known_ones_is_read_by_the_shorter() -> None:
    tr = REAL.trs["H0STASP0"]
    found = frames.records(tr, 1, b"^" * 59)
    assert isinstance(found, Records)
    assert (found.layout, found.drift, len(found.rows[0])) == (tr.layouts[59], 60, 60)


@pytest.mark.parametrize("golden", WHOLE, ids=[g["id"] for g in WHOLE])
def test_a_golden_frame_has_the_records_its_note_says(golden: dict[str, Any]) -> None:
    found = golden_records(golden)
    assert len(found.rows) == golden["count"]
    assert found.layout.width == golden["fields_per_record"]
    assert found.drift is None
    for row in found.rows:
        assert len(row) == golden["fields_per_record"]
        for value, kind in zip(row, found.layout.types, strict=True):
            text = value.decode()
            if kind == "int" and text not in ("", "(null)", "nan", "-nan"):
                int(text)
            if kind == "decimal" and text:
                float(text.replace("(null)", "nan"))


def test_the_key_stands_where_the_layout_says() -> None:
    keyed = {g["id"]: golden_records(g) for g in WHOLE if g["form"] == "full"}
    for name, found in keyed.items():
        at = found.layout.key_index
        assert at is not None
        tr = REAL.trs[GOLDEN[name]["tr"]]
        assert all(tr.key_pattern.fullmatch(row[at].decode()) for row in found.rows), name


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (b"", Reject.GARBAGE),
        (b"2|H0STCNT0|001|a", Reject.GARBAGE),
        (b"0|H0STCNT0|001", Reject.GARBAGE),
        (b"0||001|a", Reject.GARBAGE),
        (b"0|H0ST CNT|001|a", Reject.GARBAGE),
        (b" {}", Reject.GARBAGE),
        (b"0|H0STCNT0|000|a", Reject.BAD_COUNT),
        (b"0|H0STCNT0||a", Reject.BAD_COUNT),
        (b"0|H0STCNT0|-01|a", Reject.BAD_COUNT),
        (b"0|H0STCNT0|0001|a", Reject.BAD_COUNT),
        (b"0|H0STCNT0|1_1|a", Reject.BAD_COUNT),
        (b"{", Reject.BAD_JSON),
        (b"{}", Reject.BAD_JSON),
        (b'{"header":' * 20_000, Reject.BAD_JSON),
        (b"{" + b" " * control.MAX_CONTROL + b"}", Reject.BAD_JSON),
    ],
)
def test_what_is_no_frame_is_rejected_with_its_reason(frame: bytes, reason: Reject) -> None:
    found = frames.parse(frame)
    assert isinstance(found, Rejected)
    assert found.reason is reason


@pytest.mark.parametrize("count", [b"1", b"01", b"001"])
def test_a_count_of_one_to_three_digits_is_read(count: bytes) -> None:
    frame = frames.parse(b"0|H0STCNT0|" + count + b"|a|b")
    assert frame == DataFrame(encrypted=False, tr_id="H0STCNT0", count=1, payload=b"a|b")
