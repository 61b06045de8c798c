from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kisfeed import schemas, seams
from kisfeed.config import Environment
from kisfeed.kis import control
from kisfeed.simulator.exchange import Drop, Exchange, Happening, Rules, Send, Session
from kisfeed.simulator.faults import Fault, Kind
from kisfeed.simulator.market import OPEN_MARKET, MarketClock

if TYPE_CHECKING:
    from kisfeed.kis.catalogue import RegKey

TRS = schemas.load_catalogue(Environment.SIM).trs
TRADE = ("H0STCNT0", "005930")
BOOK = ("H0STASP0", "005930")


def exchange(**rules: Any) -> Exchange:
    clock = MarketClock(OPEN_MARKET, 0.0)
    return Exchange(Rules(**rules), TRS, seams.seeded_rng(1), clock.at)


def say(
    kis: Exchange, session: Session, text: str, now: float = 0.0
) -> tuple[list[dict[str, Any]], bool]:
    actions = kis.message(session, text, now)
    answers = [json.loads(a.text) for a in actions if isinstance(a, Send)]
    return answers, any(isinstance(a, Drop) for a in actions)


def subscribe(
    kis: Exchange, session: Session, key: RegKey, approval: str, now: float = 0.0
) -> list[str]:
    answers, _ = say(kis, session, control.subscribe(approval, key), now)
    return [answer["body"]["msg_cd"] for answer in answers]


def unsubscribe(
    kis: Exchange, session: Session, key: RegKey, approval: str, now: float = 0.0
) -> list[str]:
    answers, _ = say(kis, session, control.unsubscribe(approval, key), now)
    return [answer["body"]["msg_cd"] for answer in answers]


def test_registrations_are_answered_as_kis_does() -> None:
    kis = exchange()
    approval = kis.approval_key("a", 0.0)
    session = kis.connect(0.0)
    assert subscribe(kis, session, TRADE, approval) == ["OPSP0000"]
    assert subscribe(kis, session, TRADE, approval) == ["OPSP0002"]
    assert unsubscribe(kis, session, BOOK, approval) == ["OPSP0003"]
    assert unsubscribe(kis, session, TRADE, approval) == ["OPSP0001"]
    assert subscribe(kis, session, ("H0NOSUCH", "005930"), approval) == ["OPSP8991"]
    assert subscribe(kis, session, ("H0STCNT0", "999999"), approval) == ["OPSP8992"]
    assert subscribe(kis, session, ("H0STCNT0", "not a code"), approval) == ["OPSP8992"]
    assert subscribe(kis, session, TRADE, "nobody's") == ["OPSP0011"]


@pytest.mark.parametrize("cap", [40, 41])
def test_one_registration_over_the_cap_is_refused(cap: int) -> None:
    keys = [("H0STCNT0", f"{100_000 + n}") for n in range(cap + 1)]
    kis = exchange(cap=cap)
    approval = kis.approval_key("a", 0.0)
    session = kis.connect(0.0)
    codes = [subscribe(kis, session, key, approval)[0] for key in keys]
    assert codes == ["OPSP0000"] * cap + ["OPSP0008"]
    assert unsubscribe(kis, session, keys[0], approval) == ["OPSP0001"]
    assert subscribe(kis, session, keys[-1], approval) == ["OPSP0000"]
    assert kis.most_registrations == cap


def test_a_second_session_is_refused_with_a_null_tr_id_and_dropped_and_the_first_lives() -> None:
    kis = exchange()
    approval = kis.approval_key("a", 0.0)
    first, second = kis.connect(0.0), kis.connect(1.0)
    subscribe(kis, first, TRADE, approval)
    answers, dropped = say(kis, second, control.subscribe(approval, BOOK), 1.0)
    assert dropped
    assert answers[0]["header"] == {"tr_id": "(null)", "tr_key": "", "encrypt": "N"}
    assert (answers[0]["body"]["rt_cd"], answers[0]["body"]["msg_cd"]) == ("9", "OPSP8996")
    assert kis.holder("a") is first
    assert subscribe(kis, first, BOOK, approval) == ["OPSP0000"]


def test_appkeys_do_not_disturb_each_other() -> None:
    kis = exchange()
    for appkey in ("a", "b"):
        assert subscribe(kis, kis.connect(0.0), TRADE, kis.approval_key(appkey, 0.0)) == [
            "OPSP0000"
        ]


@pytest.mark.parametrize(("clean", "free_at"), [(True, 0.0), (False, 18.0)])
def test_an_unclean_close_holds_the_slot_and_a_clean_one_frees_it(
    clean: bool, free_at: float
) -> None:
    kis = exchange()
    approval = kis.approval_key("a", 0.0)
    session = kis.connect(0.0)
    subscribe(kis, session, TRADE, approval)
    kis.disconnect(session, 0.0, clean=clean)
    if free_at:
        assert subscribe(kis, kis.connect(17.9), TRADE, approval, 17.9) == ["OPSP8996"]
    assert subscribe(kis, kis.connect(free_at), TRADE, approval, free_at) == ["OPSP0000"]


def test_a_fresh_approval_key_does_not_free_a_held_slot() -> None:
    kis = exchange()
    session = kis.connect(0.0)
    subscribe(kis, session, TRADE, kis.approval_key("a", 0.0))
    kis.disconnect(session, 0.0, clean=False)
    fresh = kis.approval_key("a", 1.0)
    assert subscribe(kis, kis.connect(2.0), TRADE, fresh, 2.0) == ["OPSP8996"]


def test_the_wrong_hts_id_drops_the_line_without_an_answer() -> None:
    kis = exchange(hts_id="right")
    approval = kis.approval_key("a", 0.0)
    session = kis.connect(0.0)
    assert say(kis, session, control.subscribe(approval, ("H0STCNI0", "wrong"))) == ([], True)
    other = kis.connect(0.0)
    kis.disconnect(session, 0.0, clean=True)
    assert subscribe(kis, other, ("H0STCNI0", "right"), approval) == ["OPSP0000"]


def test_every_ack_has_its_own_key_and_some_of_plain_trs_have_none() -> None:
    kis = exchange(bare_ack_ratio=0.5)
    approval = kis.approval_key("a", 0.0)
    session = kis.connect(0.0)
    outputs = []
    for number in range(30):
        key = ("H0STCNT0", f"{100_000 + number}")
        answers, _ = say(kis, session, control.subscribe(approval, key))
        outputs.append(answers[0]["body"].get("output"))
    given = [(o["key"], o["iv"]) for o in outputs if o is not None]
    assert 0 < len(given) < 30
    assert len(set(given)) == len(given)
    assert all(len(k) == 32 and k.islower() and k.isalpha() and len(iv) == 16 for k, iv in given)
    answers, _ = say(kis, session, control.subscribe(approval, ("H0STCNI0", "me")))
    assert answers[0]["header"]["encrypt"] == "Y"
    assert "output" in answers[0]["body"]


def test_an_approval_key_ends_after_a_day_but_every_call_gives_a_new_one() -> None:
    kis = exchange()
    old, fresh = kis.approval_key("a", 0.0), kis.approval_key("a", 1.0)
    assert old != fresh
    assert len(old) == 36
    session = kis.connect(0.0)
    assert subscribe(kis, session, TRADE, old, 86_399.0) == ["OPSP0000"]
    assert subscribe(kis, session, BOOK, old, 86_400.0) == ["OPSP0011"]
    assert subscribe(kis, session, BOOK, fresh, 86_400.0) == ["OPSP0000"]


def test_tokens_keep_the_minute_and_the_six_hours() -> None:
    kis = exchange(accounts={"a": "s"})
    first = kis.issue_token("a", "s", 0.0)
    assert (first.status, first.body["expires_in"]) == (200, 86_400)
    assert first.body["access_token_token_expired"] == "2026-11-19 10:00:00"
    assert len(first.body["access_token"]) <= 350
    early = kis.issue_token("a", "s", 59.0)
    assert (early.status, early.body["error_code"]) == (403, "EGW00133")
    same = kis.issue_token("a", "s", 60.0)
    assert same.body == first.body
    fresh = kis.issue_token("a", "s", 6 * 3600.0)
    assert fresh.body["access_token"] != first.body["access_token"]
    assert kis.issue_token("b", "s", 0.0).body["error_code"] == "EGW00103"
    assert kis.issue_token("a", "x", 0.0).body["error_code"] == "EGW00105"


def test_calls_over_the_rate_are_refused_in_any_second() -> None:
    kis = exchange(rest_per_s=3)
    token = kis.issue_token("a", "", 0.0).body["access_token"]
    codes = [kis.admit_call("/p", "a", token, t) for t in (0.0, 0.25, 0.5, 0.75, 1.0, 1.125, 1.25)]
    assert codes == [None, None, None, "EGW00201", None, "EGW00201", None]
    assert kis.admit_call("/p", "a", "wrong", 9.0) == "EGW00121"
    assert kis.admit_call("/p", "a", token, 86_401.0) == "EGW00123"
    assert kis.most_within(Happening.REST, 1.0, "ok") == 3


def test_a_revoked_or_invalidated_token_is_refused() -> None:
    kis = exchange()
    token = kis.issue_token("a", "", 0.0).body["access_token"]
    assert kis.revoke_token("a", "other", 1.0).status == 403
    assert kis.revoke_token("a", token, 1.0).body["code"] == 200
    assert kis.admit_call("/p", "a", token, 2.0) == "EGW00121"
    fresh = kis.issue_token("a", "", 60.0).body["access_token"]
    assert kis.admit_call("/p", "a", fresh, 61.0) is None
    kis.inject(Fault(Kind.TOKENS_INVALID), 62.0)
    assert kis.admit_call("/p", "a", fresh, 63.0) == "EGW00121"


def test_acks_are_lost_late_doubled_or_name_another_key() -> None:
    kis = exchange()
    approval = kis.approval_key("a", 0.0)
    session = kis.connect(0.0)
    kis.inject(Fault(Kind.ACK_LOST, tr_key="100001"), 0.0)
    kis.inject(Fault(Kind.ACK_LATE, tr_key="100002", value=4.0), 0.0)
    kis.inject(Fault(Kind.ACK_TWICE, tr_key="100003"), 0.0)
    kis.inject(Fault(Kind.ACK_WRONG_KEY, tr_key="100004", text="777777"), 0.0)
    kis.inject(Fault(Kind.NACK, tr_key="100005", code="OPSP8999"), 0.0)

    def answers(symbol: str) -> list[Send]:
        text = control.subscribe(approval, ("H0STCNT0", symbol))
        return [a for a in kis.message(session, text, 0.0) if isinstance(a, Send)]

    assert answers("100001") == []
    assert [a.delay for a in answers("100002")] == [4.0]
    assert len(answers("100003")) == 2
    assert json.loads(answers("100004")[0].text)["header"]["tr_key"] == "777777"
    assert json.loads(answers("100005")[0].text)["body"]["msg_cd"] == "OPSP8999"
    assert [key[1] for key in session.registrations] == ["100001", "100002", "100003", "100004"]
    assert subscribe(kis, session, ("H0STCNT0", "100005"), approval) == ["OPSP0000"]


def test_a_stranger_takes_the_appkey_only_when_it_is_free() -> None:
    kis = exchange()
    approval = kis.approval_key("a", 0.0)
    session = kis.connect(0.0)
    assert subscribe(kis, session, TRADE, approval) == ["OPSP0000"]
    kis.inject(Fault(Kind.STRANGER, lasts=100.0), 0.0)
    assert subscribe(kis, session, BOOK, approval) == ["OPSP0000"]
    kis.disconnect(session, 1.0, clean=True)
    assert subscribe(kis, kis.connect(2.0), TRADE, approval, 2.0) == ["OPSP8996"]
    assert subscribe(kis, kis.connect(100.0), TRADE, approval, 100.0) == ["OPSP0000"]


def test_keys_expire_caps_fall_and_registrations_vanish_on_request() -> None:
    kis = exchange()
    approval = kis.approval_key("a", 0.0)
    session = kis.connect(0.0)
    assert subscribe(kis, session, TRADE, approval) == ["OPSP0000"]
    kis.inject(Fault(Kind.CAP, value=1), 0.0)
    assert subscribe(kis, session, BOOK, approval) == ["OPSP0008"]
    kis.inject(Fault(Kind.DROP_KEY, tr_id="H0STCNT0"), 0.0)
    assert kis.registered() == {}
    kis.inject(Fault(Kind.KEY_EXPIRED), 0.0)
    assert subscribe(kis, session, BOOK, approval) == ["OPSP0011"]
    assert subscribe(kis, session, BOOK, kis.approval_key("a", 0.0)) == ["OPSP0000"]


KEYS = [("H0STCNT0", f"{100_000 + n}") for n in range(5)]


class Sessions(RuleBasedStateMachine):
    """Whatever clients do, one session an appkey, never over the cap, and honest codes."""

    def __init__(self) -> None:
        super().__init__()
        self.kis = exchange(cap=3)
        self.now = 0.0
        self.approvals = {a: self.kis.approval_key(a, 0.0) for a in ("a", "b")}

    @rule(seconds=st.floats(0.0, 30.0))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def connect(self) -> None:
        self.kis.connect(self.now)

    @precondition(lambda self: self.kis.open_sessions)
    @rule(data=st.data(), clean=st.booleans())
    def disconnect(self, data: st.DataObject, clean: bool) -> None:
        session = data.draw(st.sampled_from(self.kis.open_sessions))
        self.kis.disconnect(session, self.now, clean=clean)

    @precondition(lambda self: self.kis.open_sessions)
    @rule(data=st.data(), key=st.sampled_from(KEYS), appkey=st.sampled_from(["a", "b"]))
    def subscribe(self, data: st.DataObject, key: RegKey, appkey: str) -> None:
        session = data.draw(st.sampled_from(self.kis.open_sessions))
        held, count = key in session.registrations, len(session.registrations)
        (code,) = subscribe(self.kis, session, key, self.approvals[appkey], self.now)
        if code == "OPSP0000":
            assert not held
            assert count < 3
            assert key in session.registrations
        else:
            assert len(session.registrations) == count
            assert held is (code == "OPSP0002") or code in {"OPSP0011", "OPSP8996"}
        if code == "OPSP8996":
            self.kis.disconnect(session, self.now, clean=True)

    @precondition(lambda self: self.kis.open_sessions)
    @rule(data=st.data(), key=st.sampled_from(KEYS), appkey=st.sampled_from(["a", "b"]))
    def unsubscribe(self, data: st.DataObject, key: RegKey, appkey: str) -> None:
        session = data.draw(st.sampled_from(self.kis.open_sessions))
        held = key in session.registrations
        (code,) = unsubscribe(self.kis, session, key, self.approvals[appkey], self.now)
        if code == "OPSP8996":
            self.kis.disconnect(session, self.now, clean=True)
        elif code != "OPSP0011":
            assert held is (code == "OPSP0001")

    @invariant()
    def one_session_an_appkey_and_never_over_the_cap(self) -> None:
        for appkey in ("a", "b"):
            bound = [s for s in self.kis.open_sessions if s.appkey == appkey]
            assert len(bound) <= 1
            assert self.kis.holder(appkey) is (bound[0] if bound else None)
        assert self.kis.most_registrations <= 3


TestSessions = Sessions.TestCase
