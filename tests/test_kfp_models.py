"""The models of the calls, and their shapes in ``schemas/kfp1/calls.json``.

``python -m tests.test_kfp_models`` writes the shapes of quotes, daily and symbols from the models.
"""

from __future__ import annotations

import json
import types
import typing
from decimal import Decimal
from typing import Any

import attrs
import jsonschema
import pytest
from hypothesis import given, strategies as st

from kisfeed import schemas
from kisfeed.kfp import codec
from kisfeed.kfp.models import Answers, Bar, DailyPrice, Price, SymbolInfo

MODELS = {"quotes": Price, "daily": DailyPrice, "symbols": SymbolInfo}
MISSING = ["unknown_symbol", "upstream_down", "rate_limited", "timeout", "not_entitled", "rejected"]
SAID = {
    "quotes": "what symbols cost: by their stream, as fetched lately, or asked now",
    "daily": "finished trading days of symbols, the newest first, prices adjusted",
    "symbols": "what symbols are",
}
_NAMES = {bool: "boolean", int: "integer", str: "string", type(None): "null"}


def shape(kind: Any) -> dict[str, Any]:
    if kind in _NAMES:
        return {"type": _NAMES[kind]}
    if typing.get_origin(kind) is types.UnionType:
        return {"type": [_NAMES[part] for part in typing.get_args(kind)]}
    if typing.get_origin(kind) is tuple:
        return {"type": "array", "items": shape(typing.get_args(kind)[0])}
    fields = attrs.fields(attrs.resolve_types(kind))
    return {
        "type": "object",
        "required": [field.name for field in fields],
        "properties": {field.name: shape(field.type) for field in fields},
    }


def call_schema(name: str) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "symbols": {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": 500},
        "fresh": {"type": "boolean", "description": "ask KIS in any case"},
    }
    if name != "symbols":
        arguments["venue"] = {"enum": ["krx", "nxt", "unified"]}
    if name == "daily":
        arguments["days"] = {"type": "integer", "minimum": 1, "maximum": 100}
    return {
        "role": "reader",
        "description": SAID[name],
        "arguments": {"type": "object", "required": ["symbols"], "properties": arguments},
        "result": {
            "type": "object",
            "required": ["items", "missing"],
            "properties": {
                "items": {
                    "type": "object",
                    "description": "by symbol",
                    "additionalProperties": shape(MODELS[name]),
                },
                "missing": {
                    "type": "object",
                    "description": "by symbol, why there is nothing; an open set",
                    "additionalProperties": {"type": "string", "examples": MISSING},
                },
            },
        },
    }


@pytest.mark.parametrize("name", MODELS)
def test_the_published_shape_is_the_models(name: str) -> None:
    assert schemas.load("kfp1/calls.json")["calls"][name] == call_schema(name)


def models(kind: type[Any]) -> st.SearchStrategy[Any]:
    attrs.resolve_types(kind)
    whole = st.integers(-(2**63), 2**63 - 1)
    by_type: dict[Any, st.SearchStrategy[Any]] = {
        int: whole,
        int | None: st.none() | whole,
        tuple[Bar, ...]: st.lists(st.deferred(lambda: models(Bar)), max_size=3).map(tuple),
    }
    fields = {
        f.name: by_type[f.type] if f.type in by_type else st.from_type(f.type)
        for f in attrs.fields(kind)
        if f.type is not None
    }
    return st.builds(kind, **fields)


@pytest.mark.parametrize(("name", "kind"), MODELS.items())
def test_models_survive_the_wire_and_fit_their_shape(name: str, kind: type[Any]) -> None:
    item = call_schema(name)["result"]["properties"]["items"]["additionalProperties"]
    validator = jsonschema.Draft202012Validator(item)

    @given(models(kind))
    def holds(model: Any) -> None:
        ((_, sent),) = codec.Decoder().feed(codec.frame(17, model.to_map()))
        validator.validate(sent)
        assert kind.from_map({**sent, "unknown": 1}) == model

    holds()


def test_a_price_is_exact() -> None:
    blank: dict[str, Any] = dict.fromkeys(attrs.fields_dict(Price))
    price = Price(**{**blank, "scale": 2, "price": 12345})
    assert price.decimal(price.price) == Decimal("123.45")
    assert price.decimal(None) is None


def test_answers_are_a_mapping_of_what_was_found() -> None:
    answers = Answers({"a": 1, "b": 2}, {"c": "unknown_symbol"})
    assert dict(answers) == {"a": 1, "b": 2}
    assert "c" not in answers
    with pytest.raises(KeyError):
        answers["c"]


if __name__ == "__main__":
    path = schemas.folder() / "kfp1" / "calls.json"
    whole = json.loads(path.read_text("utf-8"))
    whole["calls"].update({name: call_schema(name) for name in MODELS})
    path.write_text(json.dumps(whole, indent=1, ensure_ascii=False) + "\n", "utf-8")
