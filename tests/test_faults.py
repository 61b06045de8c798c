"""Every fault, through the whole stack: what state, what reason, what the subscriber is told."""

from __future__ import annotations

import errno
import functools
import math
import socket
from typing import TYPE_CHECKING, Any

import attrs
import pytest
import trio

from kisfeed.chaos.stages import KEY, Heard, Stage, T, open_stage, play
from kisfeed.config import Environment
from kisfeed.errors import StateError
from kisfeed.kfp import events
from kisfeed.kfp.messages import Code, Data, Stream
from kisfeed.seams import DirectDisk
from kisfeed.testing import Fault, Happening, Kind, MemorySimulator, Options, Rules

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

OTHER = "trade.krx.000660"
# Reasons that follow one another within an instant, as SESSION tells them.
UP = [("CONNECTING", "retry"), ("AUTHENTICATED", "opened"), ("SUBSCRIBED", "settled")]
FLOWS = ("STREAMING", "data")


@attrs.frozen
class Story:
    """What one subscriber was told after a fault."""

    sessions: list[tuple[str, str]]  # state and reason
    codes: list[tuple[int, int, str]]  # of the topic: stream, data, code
    doubted: list[bool]  # whether the SESSION made everything suspect
    gaps: list[str]
    connects: int
    issues: int  # approval keys


def story(stage: Stage, heard: Heard, since: float) -> Story:
    sessions = [e for _, e in heard.of(events.Session, since=since)]
    statuses = [e for _, e in heard.of(events.Status, since=since) if e.topic == T]
    return Story(
        [(e.state, e.text) for e in sessions],
        # Quotes stand in by REST meanwhile; that is not what a fault is about.
        [(e.stream, e.data, str(e.code)) for e in statuses if e.code != Code.SOURCE_POLL],
        [e.data == Data.SUSPECT for e in sessions],
        [str(e.code) for _, e in heard.of(events.Gap, since=since)],
        stage.connects,
        len(stage.sim.exchange.times(Happening.APPROVAL, "ok")),
    )


async def _scene(
    faults: tuple[Fault, ...], lasts: float, *, live: bool, settle: float = 70.0, **how: Any
) -> Story:
    async with open_stage(**how) as stage:
        if not live:
            for fault in faults:
                stage.sim.inject(fault)
            heard = stage.listen(T)
            await trio.sleep(lasts)
            return story(stage, heard, -math.inf)
        heard = stage.listen(T)
        await stage.until(lambda: stage.state == "STREAMING")
        await trio.sleep(settle)
        since = trio.current_time()
        for fault in faults:
            stage.sim.inject(fault)
        await trio.sleep(lasts)
        return story(stage, heard, since)


def at_start(*faults: Fault, lasts: float = 300.0, **how: Any) -> Story:
    """Faults that are there before the first dial."""
    found: Story = play(functools.partial(_scene, faults, lasts, live=False, **how))
    first = found.sessions.pop(0)
    assert first == ("IDLE", "no_interest")
    found.doubted.pop(0)
    assert found.codes.pop(0) == (Stream.RECOVERING, Data.NONE, "pending")
    return found


def under_way(*faults: Fault, lasts: float = 200.0, **how: Any) -> Story:
    """Faults that meet a session in which data flow."""
    found: Story = play(functools.partial(_scene, faults, lasts, live=True, **how))
    return found


OK = (Stream.OPEN, Data.OK, "none")
RESUMED = (Stream.OPEN, Data.OK, "realtime_resumed")
WANTED = ("CONNECTING", "wanted")
OPENED = ("AUTHENTICATED", "opened")
WAITING = "RECONNECT_BACKOFF"


# Dials that come to nothing.


def test_refused() -> None:
    told = at_start(Fault(Kind.REFUSE, lasts=100.0))
    assert told.sessions[:3] == [WANTED, (WAITING, "refused"), ("CONNECTING", "retry")]
    assert told.sessions[-4:] == [*UP, FLOWS]
    assert all(told.doubted[:-2])
    assert told.connects == 1, "KIS has not seen the others"
    assert told.codes == [OK]


@pytest.mark.parametrize("kind", [Kind.ACCEPT_CLOSE, Kind.HANG])
def test_accepted_and_no_handshake(kind: Kind) -> None:
    told = at_start(Fault(kind, count=1))
    waits = [(WAITING, "upgrade_failed"), (WAITING, "min_lifetime")]
    assert told.sessions == [WANTED, *waits, *UP, FLOWS]
    assert told.connects == 2, "KIS has counted it"


@pytest.mark.parametrize("kind", [Kind.APPROVAL_DOWN, Kind.REST_DOWN])
def test_no_approval_key_no_dial(kind: Kind) -> None:
    told = at_start(Fault(kind, lasts=60.0))
    assert told.sessions[:2] == [WANTED, (WAITING, "key_unavailable")]
    assert told.sessions[-4:] == [*UP, FLOWS]
    assert told.connects == 1


def test_the_appkey_is_wrong() -> None:
    options = Options(rules=Rules(accounts={"another": "secret"}))
    told = at_start(options=options, lasts=3600.0)
    assert set(told.sessions) == {WANTED, (WAITING, "key_unavailable"), ("CONNECTING", "retry")}
    assert told.sessions.count((WAITING, "key_unavailable")) <= 7, "asked ten minutes apart"
    assert (told.connects, told.issues) == (0, 0)


def resolving(error: Exception | None) -> Callable[[MemorySimulator], Any]:
    """A dialler whose first 30 s meet a name server that fails, or hangs for None."""

    def dialler(sim: MemorySimulator) -> Any:
        async def dial(host: str, port: int) -> trio.abc.Stream:
            if trio.current_time() < 30.0:
                if error is None:
                    await trio.sleep_forever()
                    raise AssertionError
                raise error
            return await sim.dial(host, port)

        return dial

    return dialler


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (socket.gaierror(socket.EAI_AGAIN, "no answer"), "dns"),
        (OSError(errno.ENETUNREACH, "no route"), "no_route"),
        (None, "timed_out"),
    ],
)
def test_the_network_here_is_down(error: Exception | None, reason: str) -> None:
    told = at_start(dial=resolving(error))
    assert told.sessions[:2] == [WANTED, (WAITING, reason)]
    assert told.sessions[-4:] == [*UP, FLOWS]
    assert {why for state, why in told.sessions if state == WAITING} == {reason}
    assert told.connects == 1


async def test_a_name_look_up_that_hangs_does_not_hold_up_the_end(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_stage(dial=resolving(None)) as stage:
        stage.listen(T)
        await trio.sleep(1.0)
        assert stage.state == "CONNECTING"
        started = trio.current_time()
    assert trio.current_time() - started <= 5.0


# Another session has the appkey.


def test_in_use_at_the_first_subscribe_with_no_tr_id() -> None:
    told = at_start(Fault(Kind.STRANGER, lasts=100.0), lasts=500.0)
    refused = [OPENED, (WAITING, "in_use")]
    assert told.sessions == [WANTED, *refused, ("CONNECTING", "retry"), *refused, *UP, FLOWS]
    assert told.connects == 3
    assert told.issues == 1, "the key is not reissued"


def test_in_use_under_way_is_believed_and_waited_out() -> None:
    told = under_way(Fault(Kind.STRAY_ACK, code="OPSP8996", tr_id="(null)"))
    assert told.sessions == [(WAITING, "in_use"), *UP, FLOWS]
    assert told.codes == [RESUMED]
    assert told.gaps == ["gap_detected"]
    assert (told.connects, told.issues) == (2, 1)


# Approval keys.


def test_a_refused_key_is_replaced_once_inside_the_session() -> None:
    told = at_start(Fault(Kind.NACK, code="OPSP0011"))
    assert told.sessions == [WANTED, OPENED, ("SUBSCRIBED", "settled"), FLOWS]
    assert told.codes == [OK]
    assert (told.connects, told.issues) == (1, 2)


def test_a_key_that_is_always_refused_costs_two_dials_and_then_the_breaker() -> None:
    told = at_start(Fault(Kind.NACK, code="OPSP0011", lasts=math.inf), lasts=500.0)
    assert told.sessions[-1] == (WAITING, "breaker")
    assert (WAITING, "key_rejected") in told.sessions
    assert told.connects == 2
    assert told.issues <= 3
    assert told.codes == []


async def _expired(more: float) -> tuple[str, list[Any], int, list[Any]]:
    async with open_stage() as stage:
        first = stage.listen(T, keep_trades=True)
        await stage.until(lambda: stage.state == "STREAMING")
        await trio.sleep(70.0)
        stage.sim.inject(Kind.KEY_EXPIRED)
        second = stage.listen(OTHER)
        since = trio.current_time()
        await trio.sleep(more)
        trades = [at for at, _ in first.of(events.Trade, since=since)]
        return stage.state, second.of(events.Status), stage.connects, trades


def test_a_key_that_expired_is_replaced_and_no_data_are_dropped_for_it() -> None:
    state, statuses, connects, trades = play(functools.partial(_expired, 30.0))
    assert (state, connects) == ("STREAMING", 1)
    assert [(e.stream, str(e.code)) for _, e in statuses][-1] == (Stream.OPEN, "none")
    assert len(trades) >= 29


# Answers to registrations.


@pytest.mark.parametrize(
    "fault",
    [
        Fault(Kind.ACK_LOST, count=1),
        Fault(Kind.ACK_LOST, count=3),
        Fault(Kind.ACK_LATE, value=5.0),
        Fault(Kind.ACK_WRONG_KEY, text="000660"),
    ],
    ids=lambda f: f"{f.kind}-{f.count}",
)
def test_an_ack_that_does_not_come_is_made_good_by_the_data(fault: Fault) -> None:
    told = at_start(fault)
    assert told.sessions == [WANTED, OPENED, FLOWS]
    assert told.codes == [OK]
    assert told.connects == 1


@pytest.mark.parametrize(
    "fault",
    [
        Fault(Kind.ACK_LOST, count=2),
        Fault(Kind.ACK_LATE, value=5.0),
        Fault(Kind.ACK_WRONG_KEY, text="000660"),
    ],
    ids=lambda f: f"{f.kind}",
)
def test_an_ack_that_does_not_come_is_asked_for_again_where_nothing_trades(fault: Fault) -> None:
    told = at_start(fault, Fault(Kind.QUIET, lasts=math.inf), lasts=20.0)
    assert told.sessions == [WANTED, OPENED, ("SUBSCRIBED", "settled")]
    assert told.codes == [OK]
    assert told.connects == 1


def test_acks_that_never_come_leave_the_session_and_are_told() -> None:
    told = at_start(
        Fault(Kind.ACK_LOST, lasts=math.inf), Fault(Kind.QUIET, lasts=math.inf), lasts=59.0
    )
    assert told.sessions[:2] == [WANTED, OPENED]
    assert FLOWS not in told.sessions
    assert told.codes == [(Stream.RECOVERING, Data.NONE, "rejected")]
    assert told.connects == 1


def test_an_ack_that_comes_twice_counts_once() -> None:
    told = at_start(Fault(Kind.ACK_TWICE))
    assert told.sessions == [WANTED, OPENED, ("SUBSCRIBED", "settled"), FLOWS]
    assert told.codes == [OK]


PERMANENT = [
    "OPSP0009",
    "OPSP8991",
    "OPSP8992",
    "OPSP8993",
    "OPSP8994",
    "OPSP8995",
    "OPSP8997",
    "OPSP8998",
    "OPSP9990",
    "OPSP9991",
    "OPSP9992",
    "OPSP9996",
    "OPSP9997",
    "OPSP9998",
    "OPSP9999",
]
TRANSIENT = ["OPSP0007", "OPSP8999", "OPSP9993", "OPSP9995", "OPSP7777"]


@pytest.mark.parametrize("code", PERMANENT)
def test_a_permanent_refusal_closes_the_topic_and_keeps_the_session(code: str) -> None:
    told = at_start(Fault(Kind.NACK, code=code), lasts=50.0)
    assert told.sessions == [WANTED, OPENED, ("SUBSCRIBED", "settled")]
    assert told.codes == [(Stream.CLOSED, Data.NONE, "rejected")]
    assert told.connects == 1


@pytest.mark.parametrize("code", TRANSIENT)
def test_a_transient_refusal_is_told_and_tried_again_later(code: str) -> None:
    told = at_start(Fault(Kind.NACK, code=code))
    assert told.sessions[:3] == [WANTED, OPENED, ("SUBSCRIBED", "settled")]
    assert told.sessions[-1] == FLOWS
    assert told.codes == [(Stream.RECOVERING, Data.NONE, "rejected"), OK]
    assert told.connects == 1


# Every code, on a registration asked for in each live state.

EVERY = [*PERMANENT, *TRANSIENT, "OPSP0001", "OPSP0002", "OPSP0003", "OPSP0008", "OPSP0011"]


async def _second_topic(code: str, state: str) -> tuple[str, int, float]:
    async with open_stage() as stage:
        first = stage.listen(T, keep_trades=True)
        quiet = Fault(Kind.QUIET, lasts=math.inf)
        if state != "STREAMING":
            stage.sim.inject(quiet)
        await stage.until(lambda: stage.registered == [KEY])
        if state == "DEGRADED":
            await stage.until(lambda: first.sessions()[-1][1].state == "DEGRADED", 200.0)
        stage.sim.inject(Fault(Kind.NACK, code=code, tr_key="000660"))
        stage.listen(OTHER)
        await trio.sleep(5.0)
        stage.sim.exchange.board.clear(Kind.QUIET)
        since = trio.current_time()
        await trio.sleep(100.0)
        trades = first.of(events.Trade, since=since)
        return stage.state, stage.connects, float(len(trades))


@pytest.mark.parametrize("state", ["SUBSCRIBED", "STREAMING", "DEGRADED"])
@pytest.mark.parametrize("code", EVERY)
def test_no_refusal_in_any_state_costs_another_topic_anything(code: str, state: str) -> None:
    ends, connects, trades = play(functools.partial(_second_topic, code, state))
    assert (ends, connects) == ("STREAMING", 1)
    assert trades >= 95


# The cap.


async def _lower_cap(cap: int) -> tuple[int, int, int, list[str], int]:
    topics = [f"trade.krx.{n:06d}" for n in range(1, cap + 4)]
    async with open_stage(Options(rate_hz=0.1, rules=Rules(cap=cap))) as stage:
        heard = stage.listen(*topics)
        await trio.sleep(200.0)
        refused = len(stage.sim.exchange.times(Happening.SUBSCRIBE, "OPSP0008"))
        codes = [str(e.code) for _, e in heard.of(events.Status)]
        slots = stage.feed.engine.slots_map()
        return len(stage.registered), slots["cap"], refused, codes, stage.connects


@pytest.mark.parametrize("cap", [1, 3, 40])
def test_a_cap_lower_than_41_is_learned_from_one_refusal(cap: int) -> None:
    held, learned, refused, codes, connects = play(functools.partial(_lower_cap, cap))
    assert (held, learned, refused, connects) == (cap, cap, 1, 1)
    assert codes.count("none") == cap


# A line that breaks under way.


@pytest.mark.parametrize("kind", [Kind.CUT, Kind.DROP, Kind.HUGE])
def test_a_line_that_breaks_waits_until_kis_has_forgotten_it(kind: Kind) -> None:
    told = under_way(Fault(kind))
    assert told.sessions == [(WAITING, "reset"), (WAITING, "unclosed"), *UP, FLOWS]
    assert told.doubted == [True, True, True, True, False, False]
    assert told.codes == [RESUMED]
    assert told.gaps == ["gap_detected"]
    assert told.connects == 2


def test_a_close_frame_from_kis() -> None:
    told = under_way(Fault(Kind.CLOSE))
    assert told.sessions == [(WAITING, "lost"), *UP, FLOWS]
    assert told.codes == [RESUMED]
    assert told.gaps == ["gap_detected"]


def test_a_half_open_line_is_suspect_then_dead() -> None:
    told = under_way(Fault(Kind.SILENCE))
    down = [("DEGRADED", "link_silent"), (WAITING, "link_dead"), (WAITING, "unclosed")]
    assert told.sessions == [*down, *UP, FLOWS]
    assert told.doubted[:3] == [True] * 3, "suspect at once for all"
    assert told.codes == [RESUMED]


def test_silence_that_ends_by_itself_costs_no_dial() -> None:
    told = under_way(Fault(Kind.SILENCE, lasts=25.0))
    assert told.sessions == [("DEGRADED", "link_silent"), ("STREAMING", "repaired")]
    assert told.connects == 1


def test_pingpong_without_data_is_asked_about_and_explained() -> None:
    told = under_way(Fault(Kind.QUIET, lasts=150.0))
    assert told.sessions == [("DEGRADED", "feed_stalled"), ("STREAMING", "repaired")]
    assert told.doubted == [False, False]
    assert told.codes == [(Stream.OPEN, Data.SUSPECT, "resyncing"), RESUMED]
    assert told.connects == 1


def test_data_without_pingpong_are_alive() -> None:
    told = under_way(Fault(Kind.NO_PINGPONG, lasts=150.0))
    assert (told.sessions, told.codes, told.connects) == ([], [], 1)


def test_garbage_and_answers_nobody_asked_for_change_nothing() -> None:
    told = under_way(
        Fault(Kind.GARBAGE, count=15),
        Fault(Kind.STRAY_ACK, code="OPSP0000", tr_id="H0STCNT0", tr_key="000001"),
        Fault(Kind.STRAY_ACK, code="OPSP0001", tr_id="H0STCNT0", tr_key=KEY[1]),
        Fault(Kind.STRAY_ACK, code="OPSP8992", tr_id="H0STCNT0", tr_key=KEY[1]),
        Fault(Kind.STRAY_ACK, code="OPSP0011", tr_id="H0STCNT0", tr_key=KEY[1]),
    )
    assert (told.sessions, told.codes, told.gaps, told.connects) == ([], [], [], 1)


# Clocks.


async def _stepped(seconds: float) -> Story:
    options = Options(rate_hz=1.0, always_open=False, environment=Environment.REAL)
    async with open_stage(options) as stage:
        heard = stage.listen(T)
        await stage.until(lambda: stage.state == "STREAMING")
        await trio.sleep(70.0)
        since = trio.current_time()
        stage.clock.step_ns = int(seconds * 1e9)
        await trio.sleep(300.0)
        stage.sim.inject(Kind.CLOSE)
        await trio.sleep(60.0)
        return story(stage, heard, since)


@pytest.mark.parametrize("seconds", [-3600.0, -5.0, 5.0, 3600.0])
def test_a_step_of_the_wall_clock_changes_no_pause(seconds: float) -> None:
    told = play(functools.partial(_stepped, seconds))
    assert told.sessions == [(WAITING, "lost"), *UP, FLOWS]
    assert told.connects == 2


@pytest.mark.parametrize("seconds", [-1e6, 1e6])
def test_a_step_of_days_changes_the_hours_at_most(seconds: float) -> None:
    told = play(functools.partial(_stepped, seconds))
    assert told.connects <= 2


async def _asleep(seconds: float, *, lost: bool) -> Story:
    async with open_stage() as stage:
        heard = stage.listen(T)
        await stage.until(lambda: stage.state == "STREAMING")
        await trio.sleep(70.0)
        since = trio.current_time()
        if lost:
            stage.sim.inject(Kind.SILENCE)
        stage.clock.suspended_s += seconds
        await trio.sleep(120.0)
        return story(stage, heard, since)


def test_a_suspend_is_suspect_at_once_and_nothing_more_if_the_line_lived() -> None:
    told = play(functools.partial(_asleep, 900.0, lost=False))
    assert told.sessions == [("DEGRADED", "suspended"), ("STREAMING", "repaired")]
    assert told.doubted == [True, False]
    assert told.connects == 1


def test_a_suspend_that_the_line_did_not_survive_costs_one_dial() -> None:
    told = play(functools.partial(_asleep, 900.0, lost=True))
    assert told.sessions[:2] == [("DEGRADED", "suspended"), (WAITING, "link_dead")]
    assert told.sessions[-1] == FLOWS
    assert told.connects == 2


# The state folder.


class FullDisk(DirectDisk):
    """Takes nothing from a moment on."""

    def __init__(self, error: int, since: float) -> None:
        self.error, self.since = error, since

    async def write(self, path: Path, data: bytes) -> None:
        if trio.current_time() >= self.since:
            raise OSError(self.error, "as told")
        await super().write(path, data)


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_a_disk_that_fills_up_under_way_stops_nothing_and_is_shown(error: int) -> None:
    async def scene() -> tuple[Story, str]:
        async with open_stage(disk=FullDisk(error, 60.0)) as stage:
            heard = stage.listen(T)
            await trio.sleep(70.0)
            since = trio.current_time()
            for _ in range(6):
                stage.sim.inject(Kind.CLOSE)
                await trio.sleep(30.0)
            return story(stage, heard, since), str(stage.feed.status()["state_folder"])

    told, shown = play(scene)
    assert "as told" in shown
    assert 2 <= told.connects <= 4, "the budget and the breaker go on in memory"


async def test_a_corrupt_hygiene_file_stops_the_start(
    autojump_clock: trio.testing.MockClock, tmp_path: Path
) -> None:
    async with open_stage(folder=tmp_path) as stage:
        stage.listen(T)
        await trio.sleep(10.0)
    (path,) = tmp_path.glob("*.hygiene.json")
    whole = path.read_bytes()
    for broken in (whole[: len(whole) // 2], b"", b"{}", whole.replace(b"dials", b"diels")):
        path.write_bytes(broken)
        with pytest.RaisesGroup(StateError, flatten_subgroups=True, allow_unwrapped=True):
            async with open_stage(folder=tmp_path):
                raise AssertionError("started")
    path.write_bytes(whole)
    async with open_stage(folder=tmp_path) as stage:
        stage.listen(T)
        await stage.until(lambda: stage.state == "STREAMING", 300.0)
