from __future__ import annotations

import json
from typing import Any

import attrs
import jsonschema
import pytest

from kisfeed import schemas
from kisfeed.errors import BadFrame
from kisfeed.kfp import codec, events
from kisfeed.kfp.messages import (
    FATAL,
    FLAG_AFTER_GAP,
    FLAG_CORRECTION,
    MAX_FRAME,
    PROTO,
    Code,
    Data,
    ErrorCode,
    Mode,
    Source,
    Stream,
    Type,
)

_MESSAGES = schemas.load("kfp1/messages.json")
_VECTORS = schemas.load("kfp1/vectors.json")
_CALLS = schemas.load("kfp1/calls.json")
_ROWS = schemas.load("kfp1/rows.json")["schemas"]
_SCHEMA = schemas.load("kfp1/kfp1.schema.json")
_BY_NUMBER = {message["number"]: message for message in _MESSAGES["messages"]}
_PLAIN: dict[str, Any] = {
    "int": int,
    "str": str,
    "bool": bool,
    "float": (int, float),
    "map": dict,
    "any": object,
    "list[int]": list,
    "list[str]": list,
    "list[map]": list,
    "list[int?]": list,
}


@pytest.mark.parametrize("name", ["messages", "vectors", "calls"])
def test_each_file_fits_its_schema(name: str) -> None:
    whole = {**_SCHEMA, "$ref": f"#/$defs/{name}"}
    jsonschema.Draft202012Validator.check_schema(whole)
    jsonschema.Draft202012Validator(whole).validate(schemas.load(f"kfp1/{name}.json"))


def test_the_table_and_the_code_name_the_same_things() -> None:
    assert {m["number"]: m["name"] for m in _MESSAGES["messages"]} == {t: t.name for t in Type}
    assert _MESSAGES["meta"]["proto"] == PROTO
    framing = _MESSAGES["framing"]
    assert framing["max_body_bytes"] == MAX_FRAME
    assert framing["max_elements"] == codec.MAX_ITEMS
    assert framing["max_values_of_a_client"] == codec.MAX_VALUES
    assert framing["max_depth"] == codec.MAX_DEPTH
    assert list(_MESSAGES["states"]["stream"]) == [str(int(value)) for value in Stream]
    assert list(_MESSAGES["states"]["data"]) == [str(int(value)) for value in Data]
    assert list(_MESSAGES["codes"]) == list(Code)
    assert list(_MESSAGES["modes"]) == list(Mode)
    assert list(_MESSAGES["errors"]) == list(ErrorCode)
    assert {c for c, e in _MESSAGES["errors"].items() if e["fatal"]} == FATAL
    assert list(_MESSAGES["flags"]["0-1"]) == [str(int(value)) for value in Source]
    assert _MESSAGES["flags"]["2"] == "first after a gap"
    assert FLAG_AFTER_GAP == 1 << 2
    assert _MESSAGES["flags"]["3"] == "correction"
    assert FLAG_CORRECTION == 1 << 3


def test_every_message_type_has_a_vector() -> None:
    assert {vector["type"] for vector in _VECTORS["vectors"]} == set(Type)


@pytest.mark.parametrize("vector", _VECTORS["vectors"], ids=lambda v: v["name"])
class TestVector:
    def test_encodes(self, vector: dict[str, Any]) -> None:
        assert codec.frame(*vector["message"]).hex() == vector["hex"]

    def test_decodes(self, vector: dict[str, Any]) -> None:
        assert codec.Decoder().feed(bytes.fromhex(vector["hex"])) == [vector["message"]]

    def test_fits_the_table(self, vector: dict[str, Any]) -> None:
        message = _BY_NUMBER[vector["type"]]
        body = vector["message"][1:]
        for position, element in enumerate(message["elements"]):
            if element.get("rest"):
                return
            _check(element, body[position])
        assert len(body) == len(message["elements"])


def _check(described: dict[str, Any], value: Any) -> None:
    kind = described["type"]
    if kind.endswith("?") and value is None:
        return
    assert isinstance(value, _PLAIN[kind.rstrip("?")]), (described, value)
    maps = value if isinstance(value, list) else [value]
    for key in described.get("keys", ()):
        for one in maps:
            if key["name"] in one:
                _check(key, one[key["name"]])
            else:
                assert key.get("optional"), (key, one)


@pytest.mark.parametrize("case", _VECTORS["invalid"], ids=lambda c: c["name"])
def test_what_is_called_invalid_is_refused(case: dict[str, Any]) -> None:
    with pytest.raises(BadFrame):
        codec.Decoder().feed(bytes.fromhex(case["hex"]))


@pytest.mark.parametrize(("schema", "row"), events.ROWS.items())
def test_an_event_class_has_its_schemas_fields(schema: str, row: type[events.Row]) -> None:
    common = [field.name for field in attrs.fields(events.Row)]
    own = [field.name for field in attrs.fields(row)][len(common) :]
    assert own == [field["name"] for field in _ROWS[schema]["fields"]]
    assert not set(common) & set(own)


def test_every_row_schema_has_a_class_or_is_a_notice() -> None:
    assert set(_ROWS) == {*events.ROWS, "notice.v1"}


def test_the_notice_vector_has_the_notice_fields() -> None:
    (vector,) = (v for v in _VECTORS["vectors"] if v["type"] == Type.NOTICE)
    names = [field["name"] for field in _ROWS["notice.v1"]["fields"]]
    assert [name for name in vector["message"][5] if name != "topic"] == names


def test_every_call_describes_its_arguments_and_result_in_json_schema() -> None:
    for call in _CALLS["calls"].values():
        jsonschema.Draft202012Validator.check_schema(call["arguments"])
        jsonschema.Draft202012Validator.check_schema(call["result"])


def test_the_files_are_plain_json() -> None:
    for name in ("messages", "vectors", "calls"):
        text = (schemas.folder() / "kfp1" / f"{name}.json").read_text("utf-8")
        assert json.loads(text) == schemas.load(f"kfp1/{name}.json")
