"""What the commands print for programs is what ``schemas/cli/`` says.

``python -m tests.test_cli_schemas`` writes ``stream.schema.json`` from the event classes.
"""

from __future__ import annotations

import functools
import json
import types
import typing
from collections.abc import Mapping
from typing import Any

import attrs
import jsonschema
import pytest
from hypothesis import given, strategies as st

from kisfeed import errors, schemas
from kisfeed.cli import failures, stream
from kisfeed.kfp import events

EVENTS = (
    events.Trade,
    events.Book,
    events.Expected,
    events.MarketStatus,
    events.Raw,
    events.Notice,
    events.Status,
    events.Gap,
    events.Lost,
    events.Session,
    events.Goaway,
)


def json_type(kind: Any) -> dict[str, Any]:
    names = {bool: "boolean", int: "integer", str: "string", type(None): "null", Any: None}
    if kind is Any:
        return {}
    if kind in names:
        return {"type": names[kind]}
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType:
        return {"type": [names[a] for a in arguments]}
    if origin is tuple:
        return {"type": "array", "items": json_type(arguments[0])}
    if origin is Mapping:
        return {"type": "object"}
    raise TypeError(kind)


def stream_schema() -> dict[str, Any]:
    """One line of ``kisfeed stream``."""
    names = {**vars(events), "Mapping": Mapping}
    lines = {}
    for cls in EVENTS:
        attrs.resolve_types(cls, globalns=names)
        properties = {"type": {"const": cls.type}}
        properties |= {f.name: json_type(f.type) for f in attrs.fields(cls)}
        lines[cls.type] = {
            "type": "object",
            "required": list(properties),
            "properties": properties,
        }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "one line of kisfeed stream",
        "description": "Times are nanoseconds since 1970 UTC; a price is integer * 10^-scale;"
        " null where KIS left a value empty. Ignore unknown keys and types.",
        "oneOf": [{"$ref": f"#/$defs/{name}"} for name in lines],
        "$defs": lines,
    }


@functools.cache
def validator(name: str) -> jsonschema.Draft202012Validator:
    schema = schemas.load(f"cli/{name}.schema.json")
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def test_the_published_stream_schema_is_what_the_events_say() -> None:
    assert schemas.load("cli/stream.schema.json") == stream_schema()


def events_of(cls: type[events.Event]) -> st.SearchStrategy[events.Event]:
    attrs.resolve_types(cls, globalns={**vars(events), "Mapping": Mapping})
    by_type: dict[Any, st.SearchStrategy[Any]] = {
        tuple[Any, ...]: st.lists(st.integers()).map(tuple),
        Mapping[str, Any]: st.dictionaries(st.text(), st.integers()),
    }
    fields = {
        f.name: by_type[f.type] if f.type in by_type else st.from_type(f.type)
        for f in attrs.fields(cls)
        if f.type is not None
    }
    return st.builds(cls, **fields)


@given(st.one_of([events_of(cls) for cls in EVENTS]))
def test_every_event_becomes_one_line_that_fits(event: events.Event) -> None:
    text = stream.line(event)
    assert "\n" not in text
    validator("stream").validate(json.loads(text))


@pytest.mark.parametrize(
    ("error", "exit_code", "code"),
    [
        (errors.ConfigError(("a.b", "is wrong"), ("c", "too")), 78, "config_error"),
        (errors.StateError("full"), 78, "state_error"),
        (errors.NoDaemon("nobody"), 69, "no_daemon"),
        (errors.AppkeyInUse(1, "/s", 10**18), 75, "appkey_in_use"),
        (errors.SocketInUse("taken"), 75, "socket_in_use"),
        (errors.UnknownTopic("x", "no"), 2, "unknown_topic"),
        (errors.NotPermitted("not yet"), 77, "not_permitted"),
        (errors.ServerRefused("unknown_topic", "x"), 2, "unknown_topic"),
        (errors.ServerRefused("over_limit", "x"), 75, "over_limit"),
        (errors.ServerRefused("orders_disabled", "x"), 77, "orders_disabled"),
        (errors.ServerRefused("unknown_outcome", "x"), 79, "unknown_outcome"),
        (errors.KisRefused("OPSP9999", "?"), 76, "kis_refused"),
        (KeyError("x"), 1, "bug"),
    ],
)
def test_every_failure_has_its_exit_code_and_fits_the_schema(
    error: Exception, exit_code: int, code: str
) -> None:
    answer = failures.as_map(error)
    assert (answer["exit_code"], answer["code"]) == (exit_code, code)
    validator("error").validate(answer)


@pytest.mark.parametrize("path", sorted((schemas.folder() / "cli").glob("*.json")), ids=str)
def test_every_schema_is_one(path: Any) -> None:
    validator(path.name.removesuffix(".schema.json"))


if __name__ == "__main__":
    text = json.dumps(stream_schema(), indent=1, ensure_ascii=False) + "\n"
    (schemas.folder() / "cli" / "stream.schema.json").write_text(text, "utf-8")
