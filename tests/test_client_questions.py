"""Questions about symbols at the client: cut into calls, asked again, a few out at a time."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
from hypothesis import given, strategies as st

from kisfeed.client.core import MOST_QUESTIONS, ClientCore, Phase
from kisfeed.client.questions import Questions
from kisfeed.errors import BadFrame, Disconnected, NoDaemon
from kisfeed.kfp import codec
from kisfeed.kfp.messages import Type
from kisfeed.kfp.models import Price

SYMBOLS = [f"{100_000 + n}" for n in range(450)]
WELCOME = {"proto": 1, "instance": "01A", "epoch": 1, "role": "reader", "limits": {}}


def item(symbol: str) -> dict[str, Any]:
    return {**dict.fromkeys(attrs.fields_dict(Price)), "symbol": symbol}


@given(
    st.lists(st.sampled_from(SYMBOLS), min_size=1, max_size=450),
    st.lists(st.integers(1, 200), min_size=1, max_size=9),
)
def test_every_symbol_is_answered_once_and_in_order(asked: list[str], paces: list[int]) -> None:
    questions: Questions[Price] = Questions("quotes", Price, asked)
    calls = 0
    while questions.open:
        arguments = questions.arguments()
        symbols: Any = arguments["symbols"]
        assert 1 <= len(symbols) <= 200
        pace = paces[calls % len(paces)]
        calls += 1
        done, late = symbols[:pace], symbols[pace:]
        questions.take(
            {"items": {s: item(s) for s in done}, "missing": dict.fromkeys(late, "timeout")}
        )
    assert list(questions.answers()) == list(dict.fromkeys(asked))
    assert questions.answers().missing == {}


def test_a_call_that_brings_nothing_is_the_last_for_its_symbols() -> None:
    questions: Questions[Price] = Questions("quotes", Price, SYMBOLS[:3], fresh=True)
    assert questions.arguments() == {"symbols": SYMBOLS[:3], "fresh": True}
    late = dict.fromkeys(SYMBOLS[:2], "timeout")
    questions.take({"items": {SYMBOLS[2]: item(SYMBOLS[2])}, "missing": late})
    assert questions.arguments()["symbols"] == SYMBOLS[:2]
    questions.take({"items": {}, "missing": late})
    assert not questions.open
    assert questions.answers().missing == late


@pytest.mark.parametrize("result", [None, {}, {"items": [], "missing": {}}, {"items": {"a": {}}}])
def test_an_answer_of_another_shape_is_a_broken_peer(result: object) -> None:
    with pytest.raises(BadFrame):
        Questions("quotes", Price, SYMBOLS[:1]).take(result)


def ready() -> ClientCore:
    core = ClientCore("test", jitter=lambda: 0.5)
    core.connected(0.0)
    core.outgoing()
    core.received(codec.frame(Type.WELCOME, 1, WELCOME), 0.0)
    assert core.phase is Phase.READY
    return core


def sent(core: ClientCore) -> list[Any]:
    return codec.Decoder().feed(core.outgoing())


def test_a_few_questions_are_out_at_a_time_and_none_is_forgotten() -> None:
    core = ready()
    requests = [core.call("quotes", {"symbols": ["a"]}, 0.0) for _ in range(40)]
    out = sent(core)
    while out:
        assert len(out) <= MOST_QUESTIONS
        _, number, _ = out.pop(0)
        core.received(codec.frame(Type.RES, number, {"result": {}}), 1.0)
        out += sent(core)
    assert all(request.done for request in requests)


def test_other_calls_do_not_wait_behind_questions() -> None:
    core = ready()
    for _ in range(40):
        core.call("quotes", {"symbols": ["a"]}, 0.0)
    core.call("order.place", {}, 0.0)
    names = [body["m"] for _, _, body in sent(core)]
    assert names == ["quotes"] * MOST_QUESTIONS + ["order.place"]


def test_a_question_that_was_not_sent_says_so_when_the_connection_ends() -> None:
    core = ready()
    requests = [core.call("daily", {"symbols": ["a"]}, 0.0) for _ in range(MOST_QUESTIONS + 1)]
    core.received(b"", 1.0)
    for request in requests[:-1]:
        with pytest.raises(Disconnected):
            request.outcome()
    with pytest.raises(NoDaemon):
        requests[-1].outcome()


def test_questions_whose_answer_does_not_come_let_the_next_go() -> None:
    core = ready()
    for _ in range(MOST_QUESTIONS + 1):
        core.call("symbols", {"symbols": ["a"]}, 0.0)
    assert len(sent(core)) == MOST_QUESTIONS
    core.received(codec.frame(Type.HB, 0, {}), 29.0)
    core.timer(31.0)
    assert len(sent(core)) == 1
