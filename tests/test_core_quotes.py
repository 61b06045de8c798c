"""The desk: what is answered from what is known, what shares a call, who is told what."""

from __future__ import annotations

import math
from typing import Any

import attrs
import pytest
from hypothesis import given, settings, strategies as st

from kisfeed.config import Quotes as Rules
from kisfeed.core.quotes import Desk, Flight, Key, Kind, Ticket
from kisfeed.kfp.models import Price

RULES = Rules()
SYMBOLS = [f"{100_000 + n}" for n in range(200)]


def price(symbol: str) -> Price:
    blank: dict[str, Any] = dict.fromkeys(attrs.fields_dict(Price))
    return Price(**{**blank, "symbol": symbol, "venue": "krx", "ts": 0, "stale": False})


@attrs.define(eq=False)
class World:
    """A desk with a KIS that answers when told."""

    most: int = 30
    rules: Rules = RULES
    streaming: dict[str, Price] = attrs.field(factory=dict)
    now: float = 0.0
    desk: Desk = attrs.field(init=False)
    made: list[tuple[str, ...]] = attrs.field(factory=list)

    def __attrs_post_init__(self) -> None:
        most = {(Kind.PRICE, "krx"): self.most, (Kind.DAILY, "krx"): 1}
        self.desk = Desk(self.rules, most, lambda _venue, symbol: self.streaming.get(symbol))

    def ask(self, *symbols: str, **how: Any) -> Ticket:
        return self.desk.ask(Kind.PRICE, "krx", symbols, self.now, **how)

    def take(self, wait_s: float = RULES.window_s) -> list[Flight]:
        self.now += wait_s
        flights = self.desk.take(self.now)
        self.made += [flight.symbols for flight in flights]
        return flights

    def answer(self, flight: Flight, unknown: tuple[str, ...] = ()) -> list[Ticket]:
        values = {s: price(s) for s in flight.symbols if s not in unknown}
        return self.desk.answered(flight, values, self.now + self.rules.price_ttl_s, self.now)

    def serve(self) -> None:
        """Answer everything that is wanted."""
        while flights := self.take():
            for flight in flights:
                self.answer(flight)


def found(ticket: Ticket) -> set[str]:
    assert ticket.done
    return {key.symbol for key in ticket.found}


def test_a_streaming_symbol_costs_no_call() -> None:
    world = World(streaming={"005930": price("005930")})
    assert found(world.ask("005930")) == {"005930"}
    assert world.desk.next_deadline() == math.inf


def test_fresh_asks_kis_for_a_streaming_symbol_too() -> None:
    world = World(streaming={"005930": price("005930")})
    ticket = world.ask("005930", fresh=True)
    assert not ticket.done
    world.serve()
    assert world.made == [("005930",)]


def test_forty_callers_of_one_symbol_share_one_call() -> None:
    world = World()
    tickets = [world.ask("005930") for _ in range(20)]
    (flight,) = world.take()
    tickets += [world.ask("005930") for _ in range(20)]
    assert set(world.answer(flight)) == set(tickets)
    assert world.take() == []


def test_what_is_known_is_not_asked_until_its_time_is_up() -> None:
    world = World()
    world.ask("005930")
    world.serve()
    world.now += RULES.price_ttl_s - 0.2
    assert world.ask("005930").done
    world.now += 0.2
    assert not world.ask("005930").done


def test_a_fresh_question_is_not_answered_by_a_call_that_began_before_it() -> None:
    world = World()
    first = world.ask("005930")
    (flight,) = world.take()
    fresh, other = world.ask("005930", fresh=True), world.ask("005930", fresh=True)
    assert world.answer(flight) == [first]
    (second,) = world.take()
    assert set(world.answer(second)) == {fresh, other}


def test_questions_are_collected_for_the_window_or_until_the_call_is_full() -> None:
    world = World()
    world.ask("000001")
    assert world.desk.next_deadline() == RULES.window_s
    assert world.take(RULES.window_s / 2) == []
    world.ask(*SYMBOLS[:29])
    assert [len(f.symbols) for f in world.take(0.0)] == [30]


def test_a_call_with_room_takes_those_nearest_to_their_end_along() -> None:
    world = World()
    older, newer = SYMBOLS[:30], SYMBOLS[30:60]
    for symbols in (older, newer):
        world.ask(*symbols)
        world.serve()
        world.now += 1.0
    world.ask("999000")
    world.serve()
    asked, *along = world.made[-1]
    assert asked == "999000"
    assert len(along) == 29
    assert set(along) < set(older)


def test_no_call_is_made_along_for_what_was_not_asked_lately() -> None:
    world = World()
    world.ask(*SYMBOLS[:5])
    world.serve()
    world.now += RULES.recent_s + 1
    world.ask("999000")
    world.serve()
    assert world.made[-1] == ("999000",)


def test_on_paper_every_symbol_has_a_call_of_its_own_and_waits_for_no_window() -> None:
    world = World(most=1)
    world.ask("005930", "000660")
    assert [f.symbols for f in world.take(0.0)] == [("005930",), ("000660",)]


def test_a_caller_that_leaves_hurts_nobody() -> None:
    world = World()
    gone, stays = world.ask("005930"), world.ask("005930")
    world.desk.withdraw(gone)
    (flight,) = world.take()
    late = world.ask("005930")
    world.desk.withdraw(late)
    assert world.answer(flight) == [stays]


def test_what_nobody_waits_for_any_more_is_not_asked() -> None:
    world = World()
    world.desk.withdraw(world.ask("005930"))
    assert world.take() == []


def test_while_kis_is_down_the_last_value_is_served_marked() -> None:
    world = World()
    world.ask("005930")
    world.serve()
    world.now += 60
    first = world.ask("005930", "000660")
    (flight,) = world.take()
    assert world.desk.failed(flight, "upstream_down") == [first]
    (known,) = first.found.values()
    assert known.stale
    assert known.ts == 0
    assert first.missing == {Key(Kind.PRICE, "krx", "000660"): "upstream_down"}


def test_while_kis_is_down_nobody_waits_for_what_is_known() -> None:
    world = World()
    world.ask("005930")
    world.serve()
    world.now += 60
    world.ask("005930")
    (flight,) = world.take()
    world.desk.failed(flight, "upstream_down")
    for _ in range(10):
        assert next(iter(world.ask("005930").found.values())).stale
    # One call finds out whether KIS is back; its answer ends it.
    (probe,) = world.take()
    world.answer(probe)
    assert not next(iter(world.ask("005930").found.values())).stale


def test_a_symbol_that_a_batch_leaves_out_is_asked_alone_once() -> None:
    world = World()
    ticket = world.ask("005930", "999999")
    (flight,) = world.take()
    assert world.answer(flight, unknown=("999999",)) == []
    (alone,) = world.take(0.0)
    assert alone.symbols == ("999999",)
    assert world.answer(alone, unknown=("999999",)) == [ticket]
    assert list(ticket.missing.values()) == ["unknown_symbol"]
    assert world.ask("999999").done


def test_a_refused_batch_is_halved_until_the_culprit_stands_alone() -> None:
    world = World()
    ticket = world.ask(*SYMBOLS[:30])
    bad, calls = SYMBOLS[17], 0
    while flights := world.take():
        for flight in flights:
            calls += 1
            if bad in flight.symbols:
                world.desk.refused(flight, "rejected", world.now)
            else:
                world.answer(flight)
    assert list(ticket.missing) == [Key(Kind.PRICE, "krx", bad)]
    assert len(found(ticket)) == 29
    assert calls <= 2 * math.ceil(math.log2(30)) + 1


def test_batches_shrink_when_calls_get_no_answer_and_grow_again() -> None:
    world = World()
    sizes = []
    for round_number in range(20):
        ticket = world.ask(*SYMBOLS[:30], fresh=True)
        flights = world.take()
        sizes.append(max(len(f.symbols) for f in flights))
        for flight in flights:
            if round_number < 2:
                world.desk.failed(flight, "upstream_down")
            else:
                world.answer(flight)
        while not ticket.done:
            for flight in world.take():
                world.answer(flight)
    assert sizes[0] == 30
    assert min(sizes) < 15
    assert sizes[-1] == 30


def test_when_kis_refuses_the_rate_less_is_asked_along_but_callers_share_as_before() -> None:
    world = World()
    along = []
    for round_number in range(20):
        world.ask(*SYMBOLS[:40])
        world.serve()
        world.now += RULES.price_ttl_s
        world.ask("999000")
        (flight,) = world.take()
        along.append(len(flight.symbols))
        if round_number < 2:
            world.desk.failed(flight, "rate_limited")
            world.ask(*SYMBOLS[:40], fresh=True)
            (full, *_) = world.take()
            assert len(full.symbols) == 30
            world.desk.failed(full, "rate_limited")
        else:
            world.answer(flight)
        world.serve()
        world.now += RULES.price_ttl_s
    assert along[0] == 30
    assert min(along) < 15
    assert along[-1] == 30


def test_the_queue_is_bounded() -> None:
    world = World(rules=attrs.evolve(RULES, max_waiting=10))
    ticket = world.ask(*SYMBOLS[:25])
    assert list(ticket.missing.values()) == ["rate_limited"] * 15
    background = world.ask(*SYMBOLS[50:60], background=True)
    assert list(background.missing.values()) == ["rate_limited"] * 10


def test_who_waits_goes_before_the_background() -> None:
    world = World(most=2)
    world.ask("000001", background=True)
    world.ask("000002", background=True)
    world.ask("000003", "000004")
    assert world.take()[0].symbols == ("000003", "000004")


def test_prices_never_wait_behind_reference_data() -> None:
    world = World()
    world.desk.ask(Kind.DAILY, "krx", SYMBOLS, 0.0)
    first = world.take(0.0)
    assert {flight.kind for flight in first} == {Kind.DAILY}
    assert len(first) < 10
    world.ask("005930")
    assert [flight.kind for flight in world.take()] == [Kind.PRICE]


def test_a_kind_that_this_environment_lacks_is_told_at_once() -> None:
    ticket = World().desk.ask(Kind.INFO, "krx", ["005930"], 0.0)
    assert ticket.done
    assert list(ticket.missing.values()) == ["not_entitled"]


def test_time_up_gives_what_there_is() -> None:
    world = World()
    world.ask("005930")
    world.serve()
    world.now += 60
    ticket = world.ask("005930", "000660")
    world.desk.give_up(ticket)
    assert found(ticket) == {"005930"}
    assert list(ticket.missing.values()) == ["timeout"]
    assert world.take() == []


def test_three_thousand_questions_a_minute_over_200_symbols_cost_at_most_300_calls() -> None:
    world = World()
    due: list[tuple[float, Flight]] = []
    for question in range(3000):
        world.now = question * 0.02
        world.ask(SYMBOLS[question * 7919 % 200])
        due += [(world.now + 0.1, flight) for flight in world.take(0.0)]
        for at, flight in list(due):
            if at <= world.now:
                world.answer(flight)
                due.remove((at, flight))
    assert len(world.made) <= 300


def test_who_leaves_is_told_nothing_by_an_older_call_either() -> None:
    world = World(most=1)
    left = world.ask("005930")
    (older,) = world.take()
    stays = world.ask("005930", fresh=True)
    (newer,) = world.take()
    world.desk.withdraw(left)
    assert world.answer(older) == []
    assert world.answer(newer) == [stays]


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["ask", "fresh", "leave", "take", "answer", "fail", "refuse", "late"]),
        st.integers(0, 11),
        st.integers(0, 11),
    ),
    max_size=60,
)


@settings(max_examples=150)
@given(STEPS, st.sampled_from([1, 3, 30]))
def test_every_question_ends_in_exactly_one_answer(
    steps: list[tuple[str, int, int]], most: int
) -> None:
    world = World(most=most)
    asked: list[tuple[Ticket, set[str]]] = []
    gone: set[Ticket] = set()
    told: list[Ticket] = []
    flying: list[Flight] = []

    def end(flight: Flight, how: str) -> None:
        if how == "fail":
            told.extend(world.desk.failed(flight, "upstream_down"))
        elif how == "refuse":
            told.extend(world.desk.refused(flight, "rejected", world.now))
        else:
            told.extend(world.answer(flight, unknown=(SYMBOLS[11],)))

    for step, first, second in steps:
        world.now += 0.01 * first
        if step in {"ask", "fresh"}:
            chosen = SYMBOLS[min(first, second) : max(first, second) + 1]
            ticket = world.ask(*chosen, fresh=step == "fresh")
            asked.append((ticket, set(chosen)))
        elif step == "leave" and asked:
            ticket = asked[first % len(asked)][0]
            if not ticket.done:
                gone.add(ticket)
            world.desk.withdraw(ticket)
        elif step == "take":
            flying += world.take()
        elif step == "late":
            world.now += 3.0
        elif flying:
            end(flying.pop(first % len(flying)), step)
    while flying or (flying := world.take()):
        end(flying.pop(), "answer")
    assert world.desk.next_deadline() == math.inf
    for ticket, symbols in asked:
        assert ticket.done
        if ticket not in gone:
            assert {key.symbol for key in (*ticket.found, *ticket.missing)} == symbols
            assert len(ticket.found) + len(ticket.missing) == len(symbols)
    assert len(told) == len(set(told))
    assert not gone & set(told)


@pytest.mark.parametrize("most", [1, 30])
def test_no_call_carries_more_than_it_may(most: int) -> None:
    world = World(most=most)
    world.ask(*SYMBOLS)
    world.serve()
    assert max(map(len, world.made)) <= most
    assert sorted(s for symbols in world.made for s in symbols) == SYMBOLS


def counted(world: World) -> dict[str, int]:
    counts = world.desk.status()["counts"]
    assert isinstance(counts, dict)
    return {name: count for name, count in counts.items() if count}


def test_every_question_is_counted_by_the_way_it_was_answered() -> None:
    world = World(streaming={"005930": price("005930")}, rules=attrs.evolve(RULES, max_waiting=1))
    assert counted(world) == {}
    assert world.desk.status()["down"] is False
    world.ask("005930")
    assert counted(world) == {"asked": 1, "streamed": 1}
    world.ask("000660", "000660", "000661")
    assert counted(world) == {"asked": 3, "streamed": 1, "refused": 1}
    world.ask("000660")
    assert counted(world) == {"asked": 4, "streamed": 1, "refused": 1, "joined": 1}
    world.serve()
    world.ask("000660")
    assert counted(world) == {
        "asked": 5, "streamed": 1, "refused": 1, "joined": 1, "calls": 1, "cached": 1,
    }  # fmt: skip
    world.now += 60
    world.ask("000660")
    (flight,) = world.take()
    world.desk.failed(flight, "upstream_down")
    assert counted(world)["stale"] == 1
    assert world.desk.status()["down"] is True
    world.ask("000660")
    assert counted(world)["stale"] == 2
    assert (counted(world)["cached"], counted(world)["calls"]) == (1, 2)
    (probe,) = world.take()
    world.answer(probe)
    assert world.desk.status()["down"] is False


def test_a_status_tells_what_waits_and_flies() -> None:
    world = World()
    world.ask("005930", "000660", "000661")
    world.desk.ask(Kind.DAILY, "krx", ["005930", "000660", "000661"], 0.0)
    waiting = {"quotes": 3, "daily": 3, "symbols": 0}
    assert world.desk.status()["waiting"] == waiting
    assert world.desk.status()["in_flight"] == dict.fromkeys(waiting, 0)
    flights = world.take()
    assert world.desk.status()["waiting"] == {"quotes": 0, "daily": 1, "symbols": 0}
    assert world.desk.status()["in_flight"] == {"quotes": 1, "daily": 2, "symbols": 0}
    world.desk.refused(flights[0], "rejected", world.now)
    assert world.desk.status()["waiting"] == {"quotes": 3, "daily": 1, "symbols": 0}


def test_a_symbol_that_kis_does_not_know_is_asked_for_again_after_ten_minutes() -> None:
    world = World()
    world.ask("999999")
    (flight,) = world.take()
    world.answer(flight, unknown=("999999",))
    world.now += 599.9
    ticket = world.ask("999999")
    assert ticket.missing == {Key(Kind.PRICE, "krx", "999999"): "unknown_symbol"}
    world.now = flight_end = RULES.window_s + 600.0
    assert not world.ask("999999").done
    assert world.now == flight_end
    (flight,) = world.take()
    assert flight.symbols == ("999999",)
    (ticket,) = world.desk.refused(flight, "unknown_symbol", world.now)
    assert list(ticket.missing.values()) == ["unknown_symbol"]
    world.now += 599.9
    assert world.ask("999999").done
    world.now += 0.2
    assert not world.ask("999999").done


def test_four_calls_for_prices_and_two_for_reference_data_fly_at_a_time() -> None:
    world = World(most=1)
    world.ask(*SYMBOLS[:9])
    world.desk.ask(Kind.DAILY, "krx", SYMBOLS[:9], 0.0)
    flights = world.take()
    kinds = [flight.kind for flight in flights]
    assert kinds == [Kind.PRICE] * 4 + [Kind.DAILY] * 2
    assert world.desk.next_deadline() == math.inf, "nothing before one has landed"
    assert world.take() == []
    world.answer(flights[0])
    assert world.desk.next_deadline() == -math.inf
    assert [flight.kind for flight in world.take()] == [Kind.PRICE]


def test_of_two_callers_of_one_symbol_in_different_calls_each_may_leave() -> None:
    for leaves in (0, 1):
        world = World()
        tickets = [world.ask("005930")]
        (first,) = world.take()
        tickets.append(world.ask("005930", fresh=True))
        world.desk.withdraw(tickets[leaves])
        assert tickets[leaves].done
        left = world.answer(first)
        for flight in world.take():
            left += world.answer(flight)
        assert left == [tickets[1 - leaves]]


def test_a_background_question_is_asked_though_its_caller_left() -> None:
    world = World()
    world.desk.withdraw(world.ask("005930", background=True))
    (flight,) = world.take()
    assert flight.symbols == ("005930",)
    assert flight.background


def test_a_call_somebody_waits_for_is_not_of_the_background() -> None:
    world = World()
    world.ask("000001", background=True)
    world.ask("000002")
    (flight,) = world.take()
    assert not flight.background
    world.answer(flight)
    world.now += 600
    world.ask("000003", background=True)
    world.ask("000003")
    (flight,) = world.take()
    assert not flight.background


def test_while_kis_is_down_only_one_call_at_a_time_looks_whether_it_is_back() -> None:
    world = World()
    world.ask("000001", "000002", "000003")
    world.serve()
    world.now += 60
    world.ask("000001")
    (flight,) = world.take()
    world.desk.failed(flight, "upstream_down")
    world.ask("000001", "000002")
    assert world.desk.status()["waiting"] == {"quotes": 1, "daily": 0, "symbols": 0}
    (probe,) = world.take()
    assert probe.background
    world.ask("000003", "000002")
    assert world.take() == []


def test_an_unknown_symbol_is_no_stale_answer() -> None:
    world = World()
    world.ask("999999")
    (flight,) = world.take()
    world.answer(flight, unknown=("999999",))
    world.now += 700
    ticket = world.ask("999999")
    (flight,) = world.take()
    assert world.desk.failed(flight, "upstream_down") == [ticket]
    assert list(ticket.missing.values()) == ["upstream_down"]
    assert not world.ask("999999").done


def test_a_refused_call_gives_no_old_value() -> None:
    world = World()
    world.ask("005930")
    world.serve()
    world.now += 60
    ticket = world.ask("005930")
    (flight,) = world.take()
    assert world.desk.refused(flight, "rejected", world.now) == [ticket]
    assert list(ticket.missing.values()) == ["rejected"]


def test_five_thousand_answers_are_kept_and_the_least_asked_for_goes() -> None:
    world = World(most=5002, rules=attrs.evolve(RULES, max_waiting=6000))
    names = [f"{n:06}" for n in range(5001)]
    world.ask(*names[:5000])
    world.serve()
    world.ask(names[0])
    world.now += 60
    assert len(world.desk.lapsed(Kind.PRICE, world.now)) == 5000
    world.ask(names[5000])
    world.serve()
    lapsed = world.desk.lapsed(Kind.PRICE, world.now + 60)
    assert len(lapsed) == 5000
    assert names[1] not in {key.symbol for key in lapsed}
    assert {names[0], names[5000]} <= {key.symbol for key in lapsed}


def test_what_lapsed_is_told_by_kind_and_without_what_kis_does_not_know() -> None:
    world = World()
    world.ask("005930", "999999")
    (flight,) = world.take()
    world.answer(flight, unknown=("999999",))
    (alone,) = world.take()
    world.answer(alone, unknown=("999999",))
    known = [Key(Kind.PRICE, "krx", "005930")]
    ends = flight_ends = RULES.window_s + RULES.price_ttl_s
    assert world.desk.lapsed(Kind.PRICE, ends - 0.01) == []
    assert world.desk.lapsed(Kind.PRICE, flight_ends) == known
    assert world.desk.lapsed(Kind.PRICE, 10_000.0) == known
    assert world.desk.lapsed(Kind.DAILY, 10_000.0) == []


@pytest.mark.parametrize(("most", "least"), [(30, 5), (3, 3), (1, 1)])
def test_a_batch_shrinks_to_five_at_least_and_grows_by_two(most: int, least: int) -> None:
    world = World(most=most)
    for _ in range(6):
        world.ask(*SYMBOLS[:30], fresh=True)
        flights = world.take()
        while flights:
            for flight in flights:
                world.desk.failed(flight, "upstream_down")
            flights = world.take()
    world.ask(*SYMBOLS[:30], fresh=True)
    flights = world.take()
    assert {len(flight.symbols) for flight in flights[:4]} == {least}
    world.answer(flights[0])
    (grown, *_) = world.take()
    assert len(grown.symbols) == min(most, least + 2)


def test_what_is_asked_along_ends_within_half_a_lifetime_and_does_not_fly_already() -> None:
    world = World()
    world.ask("000001", "000002", "000003")
    world.serve()
    world.now += RULES.price_ttl_s / 2 - 3 * RULES.window_s
    world.ask("000004")
    (flight,) = world.take()
    assert flight.symbols == ("000004",), "the others are good for long enough"
    world.answer(flight)
    world.now += 0.8
    world.ask("000001", fresh=True)
    (first,) = world.take()
    assert set(first.symbols) == {"000001", "000002", "000003"}
    world.ask("000005")
    (second,) = world.take()
    assert set(second.symbols) <= {"000004", "000005"}


def flight_of(world: World, *symbols: str) -> Flight:
    """The call that *symbols* are asked for in."""
    world.ask(*symbols)
    (flight,) = world.take(world.rules.window_s)
    return flight


def test_what_was_only_asked_along_and_not_answered_is_not_asked_alone() -> None:
    world = World()
    world.ask("000001", "000002")
    world.serve()
    world.now += RULES.price_ttl_s
    ticket = world.ask("000003")
    (flight,) = world.take()
    assert set(flight.symbols) == {"000001", "000002", "000003"}
    assert world.answer(flight, unknown=("000001",)) == [ticket]
    assert world.take() == []
    assert counted(world)["filled"] == 2


def test_any_answer_says_that_kis_is_back_a_refusal_too() -> None:
    world = World()
    ticket = world.ask("005930")
    (flight,) = world.take()
    assert world.desk.failed(flight, "upstream_down") == [ticket]
    assert world.desk.down
    world.ask("005930")
    (flight,) = world.take()
    world.desk.refused(flight, "rejected", world.now)
    assert not world.desk.down


def test_a_refused_batch_of_five_is_asked_again_in_three_and_two() -> None:
    world = World()
    ticket = world.ask(*SYMBOLS[:5], background=True)
    (flight,) = world.take()
    assert flight.background
    assert world.desk.refused(flight, "rejected", world.now) == []
    halves = world.take()
    assert [half.symbols for half in halves] == [tuple(SYMBOLS[:3]), tuple(SYMBOLS[3:5])]
    assert not any(half.background for half in halves), "they have waited long enough"
    for half in halves:
        world.answer(half)
    assert ticket.done


def test_a_refusal_for_another_reason_says_nothing_of_the_symbol() -> None:
    world = World()
    world.ask("005930")
    (flight,) = world.take()
    world.desk.refused(flight, "rejected", world.now)
    assert not world.ask("005930").done


def test_a_rate_refused_for_days_leaves_prices_alone() -> None:
    world = World()
    world.ask(*SYMBOLS[:20])
    world.serve()
    for _ in range(3):
        world.desk.press(Kind.DAILY)
    world.now += RULES.price_ttl_s
    world.ask("999000")
    (flight,) = world.take()
    assert len(flight.symbols) == 21
    world.desk.failed(flight, "rate_limited")
    world.desk.failed(flight_of(world, "999000"), "rate_limited")
    assert len(flight_of(world, *SYMBOLS[100:110]).symbols) == 10, "more than may be asked along"


def test_what_was_asked_for_ten_seconds_ago_is_asked_along_and_no_longer_ago_is_not() -> None:
    for later, along in ((10.0, 2), (10.25, 1)):
        world = World(rules=attrs.evolve(RULES, window_s=0.25))
        world.answer(flight_of(world, "000001"))
        world.now = later
        assert len(flight_of(world, "999000").symbols) == along


def test_to_be_asked_along_is_not_to_be_asked_for() -> None:
    world = World()
    world.ask("000001")
    world.serve()
    along = []
    for n in range(8):
        world.now += RULES.price_ttl_s
        flight = flight_of(world, f"99900{n}")
        along.append("000001" in flight.symbols)
        world.answer(flight)
    assert along[0]
    assert not any(along[5:])


def test_a_half_of_a_refused_batch_waits_for_nothing() -> None:
    world = World()
    world.desk.refused(flight_of(world, "000001", "000002"), "rejected", world.now)
    assert world.desk.next_deadline() == -math.inf


def test_the_background_fills_half_of_the_queue_at_most() -> None:
    world = World(rules=attrs.evolve(RULES, max_waiting=12))
    ticket = world.ask(*SYMBOLS[:12], background=True)
    assert len(ticket.waiting) == 6


def test_days_and_names_share_their_calls_and_no_stream_answers_them() -> None:
    most = {(Kind.DAILY, "krx"): 1, (Kind.INFO, "krx"): 1}
    desk = Desk(RULES, most, lambda _venue, symbol: price(symbol))
    for kind in (Kind.DAILY, Kind.INFO):
        ticket = desk.ask(kind, "krx", SYMBOLS[:2], 0.0)
        assert len(ticket.waiting) == 2
    assert [flight.kind for flight in desk.take(1.0)] == [Kind.DAILY, Kind.DAILY]
    assert desk.take(2.0) == []
