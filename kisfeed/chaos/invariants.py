"""The fifty invariants: what each says, and how it is measured on a run.

A measure reads the server's history, the bytes on the wires and what the programs were told. It
returns figures, of which a report keeps the worst over all seeds, and faults, of which there must
be none. An invariant that no run in virtual time can show says where it is shown instead.
"""

from __future__ import annotations

import datetime as dt
import itertools
import math
from typing import TYPE_CHECKING, Final

import attrs

from kisfeed import schemas
from kisfeed.chaos import ordering
from kisfeed.chaos.breaks import REASONS, breaks
from kisfeed.chaos.checks import most_within
from kisfeed.chaos.findings import Finding
from kisfeed.chaos.run import (
    ACCOUNT,
    APPKEY,
    APPSECRET,
    NOTICES,
    QUEUE_BYTES,
    WELL_S,
    key_of,
    topic,
)
from kisfeed.chaos.schedule import Trouble
from kisfeed.chaos.seen import Line, Seen, confirmed, see
from kisfeed.core.connection import TRANSITIONS, Reason, State
from kisfeed.kfp import events
from kisfeed.kis.codes import SUBSCRIBED
from kisfeed.limits import resolve
from kisfeed.simulator import Happening
from kisfeed.texts import Phrase

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from kisfeed.chaos.run import Run
    from kisfeed.limits import Limits
    from kisfeed.simulator import exchange

# Records that the daemon refuses to read, and says so.
_UNREADABLE: Final = frozenset({"kis.invalid_utf8", "kis.bad_values", "kis.extra_column"})
_KEY_REFUSED: Final = frozenset({"OPSP0010", "OPSP0011", "OPSP9994"})
_SLACK_S: Final = 0.5  # a word from the daemon to a program, and the step of a clock
_COMMAND_S: Final = 5.0
_NOTICE_BYTES: Final = 4096
_OTHER_BYTES: Final = 65_536
_OPEN: Final = 1
_SUSPECT: Final = 2
_CAP: Final = 41
_WINDOWS: Final = (Phrase("in any 60 s"), Phrase("in any hour"), Phrase("in any day"))
_FORGIVING: Final = ("order", "release", "suspend")


@attrs.frozen
class Invariant:
    """One of the fifty.

    Attributes:
        id: ``I1`` to ``I50``.
        says: in one line.
        measure: on a run; None where it cannot be measured in virtual time.
        instead: where it is measured then.
    """

    id: str
    says: str
    measure: Callable[[Seen, Limits], Finding] | None = None
    instead: str = ""


# Sessions and reconnect.


def _windows(seen: Seen, limits: Limits) -> Finding:
    run = seen.run
    times = sorted(run.real(at) for at in run.exchange.connects)
    worst: dict[str, float] = {}
    faults = []
    for window, name in zip(limits.dials, _WINDOWS, strict=True):
        seconds = window.seconds / run.rules.time_scale
        most = most_within(times, seconds)
        worst[name] = most
        if most > window.count:
            faults.append(f"{most} connects in {seconds:g} s, {window.count} are allowed")
    return Finding(worst, samples={Phrase("connects a run"): [len(times)]}, faults=tuple(faults))


def _windows_over_lives(seen: Seen, limits: Limits) -> Finding:
    lives = sum(life.how in {"kill", "stop"} for life in seen.run.lives)
    found = _windows(seen, limits) if lives else Finding()
    return Finding(found.worst, counts={Phrase("restarts"): lives}, faults=found.faults)


def _overlap(seen: Seen, _: Limits) -> Finding:
    seconds = sum(
        max(0.0, a.wire.down_at - b.wire.opened_at) for a, b in itertools.pairwise(seen.lines)
    )
    return Finding(
        {Phrase("overlap s"): seconds},
        faults=(f"two connections of ours for {seconds:.3f} s",) if seconds > 0 else (),
    )


def _voluntary(seen: Seen, _: Limits) -> Finding:
    """Young sessions that we ended although nothing on the wire asked for it."""
    rules = seen.run.rules
    faults = []
    lifetimes = []
    for line in seen.lines:
        wire = line.wire
        if math.isinf(line.upgraded_at) or math.isinf(wire.down_at):
            continue
        lifetimes.append(line.lived * rules.time_scale)
        if (
            line.lived < rules.min_lifetime_s
            and wire.closed_by_dialler
            and not _provoked(line, seen)
        ):
            faults.append(f"{wire.down_at:.3f}: a session of {line.lived:.3f} s was closed by us")
    return Finding(samples={Phrase("lifetime s"): lifetimes}, faults=tuple(faults))


def _provoked(line: Line, seen: Seen) -> bool:
    run, end = seen.run, line.wire.down_at
    rules = run.rules
    told = line.life is not None and line.life.told_at <= end
    gaps = [b - a for a, b in itertools.pairwise([line.wire.opened_at, *line.reads, end])]
    codes = {answer.code for answer in line.answers}
    # A command reaches the daemon a little later, perhaps a session that was opened meanwhile.
    since = line.wire.opened_at - _COMMAND_S
    steps = {entry[2] for entry in run.trace if entry[1] == "step" and since <= entry[0] <= end}
    return (
        told
        or line.close_received <= end
        or line.wire.far.closed
        or line.wire.far.broken
        or line.wire.down.ends_at <= end
        or max(gaps) >= min(rules.busy_suspect_floor_s, rules.ack_timeout_s)
        or bool(codes & {"OPSP8996", *_KEY_REFUSED})
        or bool(steps & {"release", "kis.huge", "kis.garbage", "suspend", "order"})
    )


def _backoff(seen: Seen, _: Limits) -> Finding:
    """The pause after n attempts that came to nothing, against the law of backoff.

    Whoever ordered, lent or slept begins anew here; the daemon may have counted on.
    """
    run, rules = seen.run, seen.run.rules
    forgiven = sorted(
        [life.started_at for life in run.lives]
        + run.orders
        + [entry[0] for entry in run.trace if entry[1] == "step" and entry[2] in _FORGIVING]
    )
    failures, faults, gaps = 0, [], []
    lines = {line.wire.dial: line for line in seen.lines}
    for number, (one, two) in enumerate(itertools.pairwise(run.kis.attempts), 1):
        line = lines.get(number)
        eased = any(one.began_at <= at <= two.began_at for at in forgiven)
        if one.how in {"dns", "no_route"}:
            failures = 0 if eased else failures
            continue  # this machine's own trouble, with a count of its own
        ended_at = one.ended_at
        if line is not None:
            ended_at = line.wire.down_at
            alive = line.lived >= rules.min_lifetime_s and len(line.reads) > 1
            failures = 0 if alive else failures + 1
        else:
            failures += 1
        if eased:
            failures = 0
        if failures:
            gap = two.began_at - ended_at
            least = min(rules.backoff_cap_s, rules.backoff_base_s * 2.0 ** (failures - 1)) / 2
            gaps.append(gap * rules.time_scale)
            if gap < least - 0.001:
                faults.append(f"{two.began_at:.3f}: {gap:.3f} s after failure {failures}")
    return Finding(samples={Phrase("pause s"): gaps}, faults=tuple(faults))


def _breaker(seen: Seen, _: Limits) -> Finding:
    run, rules = seen.run, seen.run.rules
    young, last_end, faults, opened = 0, -math.inf, [], 0
    for line in seen.lines:
        wire = line.wire
        dialled = run.kis.dials[wire.dial - 1]
        ordered = any(last_end <= at <= dialled for at in run.orders)
        if young >= rules.young_sessions_to_trip and not ordered:
            opened += 1
            passed = run.real(dialled) - run.real(last_end)
            if passed < rules.breaker_pauses_s[0] - rules.close_timeout_s:
                faults.append(f"{dialled:.3f}: a dial {passed:.3f} s after the breaker opened")
        stopped = line.life is not None and line.life.told_at <= wire.down_at
        if line.lived >= rules.min_lifetime_s - 2 * run.case.setup.latency_s:
            young = 0
        elif not (stopped or ordered):
            young, last_end = young + 1, wire.down_at
    return Finding(
        {Phrase("dials while open"): len(faults)},
        counts={Phrase("times open"): opened},
        faults=tuple(faults),
    )


def _codes(seen: Seen, limits: Limits) -> Finding:
    """I7: after OPSP8996 a pause and the same key; after OPSP0011 one fresh key, not more."""
    found, run = _in_use(seen, limits), seen.run
    issued = [
        line.at
        for line in run.exchange.history
        if line.what is Happening.APPROVAL and line.code == "ok"
    ]
    refused = sorted(
        answer.at for line in seen.lines for answer in line.answers if answer.code in _KEY_REFUSED
    )
    most = max(
        (
            sum(one < at < two for at in issued)
            for one, two in itertools.pairwise([*refused, run.ended_at])
        ),
        default=0,
    )
    renewed = len(run.lives) - 1 + sum(at > 0 for _at, at in run.suspensions)
    faults = found.faults
    if run.case.setup.scale == 1 and most > 1 + renewed:
        faults += (f"{most} approval keys after one was refused",)
    return attrs.evolve(
        found, worst={**found.worst, Phrase("keys after OPSP0011"): most}, faults=faults
    )


def _in_use(seen: Seen, _: Limits) -> Finding:
    run, rules = seen.run, seen.run.rules
    gaps, faults, reissued = [], [], 0
    issued = run.exchange.times(Happening.APPROVAL)
    for line in seen.lines:
        told = next((a.at for a in line.answers if a.code == "OPSP8996"), None)
        later = next((x for x in seen.lines if told is not None and x.wire.opened_at > told), None)
        if told is None or later is None or later.life is not line.life:
            continue
        dialled = run.kis.dials[later.wire.dial - 1]
        if any(told <= at <= dialled for at in run.orders) or _was_leaving(seen, told):
            continue
        waited = run.real(dialled) - run.real(told)
        gaps.append(waited * rules.time_scale)
        if waited < rules.in_use_waits_s[0] - rules.close_timeout_s - _SLACK_S:
            faults.append(f"{dialled:.3f}: dialled {waited:.3f} s after OPSP8996")
        refused = any(a.code in _KEY_REFUSED for a in line.answers)
        if not refused:
            reissued += sum(told < at < dialled for at in issued)
    if reissued and not any(slept for _at, slept in run.suspensions):  # which ages a key
        faults.append(f"{reissued} approval keys issued while in use")
    return Finding(
        {Phrase("keys reissued"): reissued},
        {Phrase("wait after 8996 s"): gaps},
        faults=tuple(faults),
    )


def _was_leaving(seen: Seen, told: float) -> bool:
    """The session was ended for another reason in the moment that it was told of OPSP8996."""
    return any(
        isinstance(event, events.Session)
        and event.state == State.RECONNECT_BACKOFF
        and event.text != Reason.IN_USE
        and told - _SLACK_S <= at <= told + _SLACK_S
        for at, event, _name in seen.run.programs[0].log
    )


_LEGAL: Final = {(str(old), str(new)) for (old, _), new in TRANSITIONS.items() if old is not new}


def _transitions(seen: Seen, _: Limits) -> Finding:
    marks: dict[str, None] = {}
    faults = []
    state = ""
    for at, event, _name in seen.run.programs[0].log:
        if not isinstance(event, events.Session):
            continue
        if event.text not in REASONS or event.state not in set(State):
            state = ""  # the program's own word: its daemon is gone
            continue
        if state and state != event.state:
            marks[f"{state}>{event.state}"] = None
            if (state, event.state) not in _LEGAL:
                faults.append(f"{at:.3f}: {state} to {event.state}")
        state = event.state
    return Finding(marks=tuple(marks), faults=tuple(faults))


def _heal(seen: Seen, _: Limits) -> Finding:
    run = seen.run
    took = run.ending.well_after
    bound = WELL_S / run.rules.time_scale
    faults = () if took <= bound else (f"no live session {bound:g} s after the heal",)
    scaled = run.rules.time_scale > 1
    what = Phrase("heal to live s (scaled)") if scaled else Phrase("heal to live s (real rules)")
    return Finding(samples={what: [took]}, faults=faults)


def _teardown(seen: Seen, _: Limits) -> Finding:
    run = seen.run
    most, faults = 0.0, []
    for line in seen.lines:
        wire = line.wire
        if math.isinf(line.close_sent):
            continue
        took = wire.down_at - line.close_sent
        most = max(most, took)
        if took > run.rules.close_timeout_s + _SLACK_S:
            faults.append(f"{line.close_sent:.3f}: open for {took:.3f} s after its close frame")
    for line in seen.lines:
        life, wire = line.life, line.wire
        if life is None or life.how not in {"stop", "end"} or not wire.closed_by_dialler:
            continue
        # A connection that a daemon leaves standing holds the slot at KIS until KIS notices.
        if line.upgraded_at < life.told_at <= wire.down_at and math.isinf(line.close_sent):
            faults.append(f"{wire.down_at:.3f}: left without a close frame")
    ended = [w for w in run.kis.wires if w.near.closed or w.near.broken]
    left = len(run.kis.wires) - len(ended)
    if left and not run.crash:
        faults.append(f"{left} connections left open behind the daemon")
    return Finding(
        {Phrase("close s"): most}, counts={Phrase("left open"): left}, faults=tuple(faults)
    )


# Registrations.


def _registered(seen: Seen, _: Limits) -> Finding:
    run = seen.run
    most = run.exchange.most_registrations
    refused = len(run.exchange.times(Happening.SUBSCRIBE, "OPSP0008"))
    faults = [f"{most} registered"] if most > _CAP else []
    kinds = {step.kind for step in run.case.steps}
    if refused and run.case.setup.cap == _CAP and not kinds & {"kis.cap", "kis.nack"}:
        faults.append(f"{refused} subscribes over the cap")
    return Finding({Phrase("registered"): most}, faults=tuple(faults))


def _agreement(seen: Seen, _: Limits) -> Finding:
    ending = seen.run.ending
    unlike = ending.unlike
    if math.isinf(ending.settled_after):
        return Finding(faults=("never settled after the heal",))
    return Finding(
        {Phrase("difference"): len(unlike)},
        faults=(f"held and registered differ by {sorted(unlike)[:3]}",) if unlike else (),
    )


def _wrong_active(seen: Seen, _: Limits) -> Finding:
    wrong, checked, faults = 0, 0, []
    for program in seen.run.programs[:2]:
        for at, event, _name in program.log:
            if not isinstance(event, events.Status) or event.stream != _OPEN or event.data != 1:
                continue
            checked += 1
            key = key_of(event.topic)
            if not any(
                line.wire.opened_at <= at and confirmed(line, key, at) for line in seen.lines
            ):
                wrong += 1
                faults.append(f"{at:.3f}: {event.topic} told open without an ACK")
    return Finding(
        {Phrase("wrong"): wrong}, counts={Phrase("told open"): checked}, faults=tuple(faults)
    )


def _operations(seen: Seen, limits: Limits) -> Finding:
    window = limits.ws_control_ops
    seconds = window.seconds / seen.run.rules.time_scale - 1e-6  # the window is half open
    most = max(
        (most_within([r.at for r in line.requests], seconds) for line in seen.lines),
        default=0,
    )
    bound = window.count
    return Finding(
        {Phrase("in a window"): most},
        faults=(f"{most} control messages in {seconds:g} s",) if most > bound else (),
    )


def _flips(seen: Seen, _: Limits) -> Finding:
    run = seen.run
    times: dict[tuple[int, object], list[float]] = {}
    for line in run.exchange.history:
        if line.what is Happening.SUBSCRIBE and line.code == SUBSCRIBED:
            times.setdefault((line.session, line.key), []).append(line.at)
    seconds = 60.0 / run.rules.time_scale
    most = max((most_within(t, seconds) for t in times.values()), default=0)
    return Finding(
        {Phrase("subscribes a minute"): most},
        faults=(f"one topic subscribed {most} times in {seconds:g} s",) if most > 3 else (),
    )


def _pinned(seen: Seen, _: Limits) -> Finding:
    run = seen.run
    names = [topic(0)] if run.case.setup.pinned else []
    if run.case.setup.notices:
        names.append(NOTICES)
    evicted = [
        f"{at:.3f}: {event.topic} preempted"
        for at, event, _name in run.programs[0].log
        if isinstance(event, events.Status) and event.topic in names and event.code == "preempted"
    ]
    # Both pinned and two slots for them: then there is room for one.
    if run.case.setup.cap <= len(names) or any(s.kind == "kis.cap" for s in run.case.steps):
        return Finding()
    return Finding({Phrase("evicted"): len(evicted)}, faults=tuple(evicted))


def _refusals_told(line: Line, refused: Sequence[exchange.Line]) -> int:
    """Requests whose refusal as one too many was read; what is not told cannot be learnt.

    An answer that names the key of another, which is none of *refused*, is no refusal of this one.
    """
    told = 0
    requests = [request for request in line.requests if request.subscribe]
    for number, request in enumerate(requests):
        again = (r.at for r in requests[number + 1 :] if r.key == request.key)
        until = next(again, math.inf)
        told += any(
            a.key == request.key
            and a.code == "OPSP0008"
            and request.at <= a.at <= until
            and any(r.key == a.key and request.at <= r.at <= a.at for r in refused)
            for a in line.answers
        )
    return told


def _over_cap(seen: Seen, _: Limits) -> Finding:
    run = seen.run
    refused = [line for line in run.exchange.history if line.code == "OPSP0008"]
    most = max((_refusals_told(line, refused) for line in seen.lines), default=0)
    # Every time that the cap falls, or that KIS forgets one and lets another take its place, one
    # request is refused; a NACK may say it out of turn.
    falls = sum(s.kind == "kis.cap" for s in run.case.steps)
    falls += len(run.exchange.times(Happening.FORGOTTEN))
    untrue = ("kis.nack", "kis.stray_ack")
    nacks = sum(s.count for s in run.case.steps if s.kind in untrue and s.code == "OPSP0008")
    bound = 3 + 2 * falls + nacks
    return Finding(
        {Phrase("refused in a session"): most if not nacks else 0},
        faults=(f"{most} subscribes over the cap in one session",) if most > bound else (),
    )


# Data.


def _origin(seen: Seen, _: Limits) -> Finding:
    """I18, I19: every tick is a row of a wire that was told to send it; no row twice or late."""
    checked, faults = 0, []
    for program in seen.run.programs:
        for at, event, place in seen.ticks(program):
            checked += 1
            if place is None:
                what = "twice, or out of order" if seen.place_of(event) is not None else "never"
                faults.append(
                    f"{at:.3f}: {program.name} got {event.topic} {event.cum_qty}, sent {what}"
                )
    return Finding(
        {Phrase("invented"): len(faults)},
        counts={Phrase("ticks"): checked},
        faults=tuple(faults[:5]),
    )


def _acknowledged(seen: Seen, _: Limits) -> Finding:
    checked, faults = 0, []
    for program in seen.run.programs[:1]:
        for at, event, place in seen.ticks(program):
            if place is None:
                continue
            checked += 1
            line = seen.line_of(seen.rows[place].wire)
            if line.asked_at(key_of(event.topic)) > at:
                faults.append(f"{at:.3f}: {event.topic} was not asked for on that session")
    return Finding(
        {Phrase("unasked"): len(faults)},
        counts={Phrase("ticks"): checked},
        faults=tuple(faults[:5]),
    )


@attrs.define(eq=False)
class _Account:
    """What one program was told of one trade topic since its last trade."""

    cum: int | None = None
    sseq: int = 0
    clock: str = ""
    place: int = -1
    missed: int = 0
    unmeasured: bool = False
    lost: int = 0
    cut: bool = False


def _holes(seen: Seen, _: Limits) -> Finding:
    """I20: shares and ticks that a program did not get are told, exactly."""
    shares = told = unknown = lost = swallowed = 0
    faults: list[str] = []
    readable = _UNREADABLE.isdisjoint(step.kind for step in seen.run.case.steps)
    for program in seen.run.programs:
        accounts: dict[str, _Account] = {}
        ticks = iter(seen.ticks(program))
        for at, event, name in program.log:
            if event is None:
                accounts.pop(name, None)
            elif isinstance(event, events.Session) and event.text not in REASONS:
                for account in accounts.values():
                    account.cut = True
            elif isinstance(event, events.Gap):
                account = accounts.setdefault(event.topic, _Account())
                account.missed += event.missed_qty or 0
                account.unmeasured |= event.missed_qty is None
            elif isinstance(event, events.Lost):
                accounts.setdefault(event.topic, _Account()).lost += event.n
                lost += event.n
            elif isinstance(event, events.Trade) and not event.image:
                account = accounts.setdefault(event.topic, _Account())
                place = next(ticks)[2]
                clock = account.clock if place is None else seen.rows[place].clock
                if clock < account.clock:
                    account.cum = None  # another day counts from nothing
                wrong = _judge(account, event, program.mode)
                if wrong:
                    faults.append(f"{at:.3f}: {program.name}, {event.topic}: {wrong}")
                measured = not (account.unmeasured or account.lost) and program.mode == "all"
                if measured and readable and not account.cut and place is not None:
                    swallowed += _swallowed(seen, account.place, place)
                if account.cum is not None and event.cum_qty is not None and measured:
                    shares += max(0, event.cum_qty - (event.qty or 0) - account.cum)
                    told += account.missed
                unknown += account.unmeasured
                accounts[event.topic] = _Account(
                    event.cum_qty, event.sseq, clock, account.place if place is None else place
                )
    if swallowed:
        faults.insert(0, f"{swallowed} ticks were read and not given")
    breaks_told, untold = breaks(seen)
    faults += untold
    return Finding(
        {Phrase("unexplained"): len(faults)},
        counts={
            Phrase("breaks told"): breaks_told,
            Phrase("shares missed"): shares,
            Phrase("told"): told,
            Phrase("holes of unknown size"): unknown,
            Phrase("ticks lost"): lost,
        },
        faults=tuple(faults[:5]),
    )


def _swallowed(seen: Seen, one: int, two: int) -> int:
    """Ticks of the same registration that were read between two that a program got."""
    if one < 0:
        return 0
    first, last = seen.rows[one], seen.rows[two]
    line = seen.line_of(last.wire)
    key = key_of(f"trade.krx.{last.symbol}")
    if first.wire != last.wire or any(
        request.key == key and first.at <= request.at <= last.at for request in line.requests
    ):
        return 0  # what came behind an unsubscribe was nobody's
    return sum(row.symbol == last.symbol for row in seen.rows[one + 1 : two])


def _judge(account: _Account, event: events.Trade, mode: str) -> str:
    assert event.cum_qty is not None
    assert event.qty is not None
    if account.cum is None:
        return ""
    if event.cum_qty <= account.cum:
        return "" if event.cum_qty == event.qty or account.unmeasured else "volume fell"
    jump = event.sseq - account.sseq - 1
    if not account.cut:
        if mode == "all" and jump != account.lost:
            return f"sseq jumped by {jump}, LOST says {account.lost}"
        if jump < account.lost:
            return f"sseq jumped by {jump}, LOST says {account.lost}"
    hole = event.cum_qty - event.qty - account.cum
    # Behind a cut the numbers begin anew: they do not say whether ticks were skipped on request.
    if account.unmeasured or account.lost or (mode != "all" and (jump or account.cut)):
        return ""
    if hole != account.missed:
        return f"a hole of {hole} shares, {account.missed} told"
    return ""


def _silence(seen: Seen, _: Limits) -> Finding:
    """I23: nothing read for T: told within T + 1 s; and no session outlives the dead limit."""
    run, rules = seen.run, seen.run.rules
    sessions = [(at, e) for at, e, _n in run.programs[0].log if isinstance(e, events.Session)]
    suspect, dead, faults = [], [], []
    wait = rules.quiet_suspect_s
    for line in seen.lines:
        if math.isinf(line.upgraded_at):
            continue
        end = min(line.wire.down_at, run.ended_at)
        for one, two in itertools.pairwise([*line.reads, end]):
            if two - one < wait + 1:
                continue
            said = next(
                (at for at, e in sessions if one < at <= two + _SLACK_S and e.data == _SUSPECT),
                None,
            )
            linked = not any(
                e.text not in REASONS and at <= one + wait + 1 for at, e in sessions[-1:]
            )
            if said is None or said > one + wait + 1:
                if linked and not _away(run, one, one + wait + 1):
                    faults.append(f"{one:.3f}: silent for {two - one:.3f} s, told at {said}")
            else:
                suspect.append((said - one) * rules.time_scale)
            longest = rules.quiet_dead_s + rules.probe_timeout_s + 2
            if two == line.wire.down_at:
                dead.append((two - one) * rules.time_scale)
            if two - one > longest:
                faults.append(f"{one:.3f}: silent for {two - one:.3f} s and not given up")
    return Finding(
        samples={Phrase("suspect after s"): suspect, Phrase("given up after s"): dead},
        faults=tuple(faults),
    )


def _away(run: Run, since: float, until: float) -> bool:
    """The first program had no daemon, or did not read, at some time of this."""
    if any(life.ended_at >= since and life.started_at <= until for life in run.lives[:-1]):
        return True
    return any(
        entry[1] == "step" and entry[2] in {"stall", "hang_up"} and since - 320 <= entry[0] <= until
        for entry in run.trace
    )


# Local programs.


def _queues(seen: Seen, _: Limits) -> Finding:
    queues = seen.run.queues
    # Notices, which have a bound of their own, are few here; of what must not be dropped a run says
    # some KiB, far from the bound of 1 MiB.
    over = queues.ticks > QUEUE_BYTES + _NOTICE_BYTES or queues.others > _OTHER_BYTES
    told = f"{queues.ticks} bytes of ticks and {queues.others} of else queued for one program"
    return Finding(
        {Phrase("bytes of ticks"): queues.ticks, Phrase("other bytes"): queues.others},
        counts={Phrase("looks"): queues.looks},
        faults=(told,) if over else (),
    )


def _hostile(seen: Seen, _: Limits) -> Finding:
    left = seen.run.hostile.count("left open")
    return Finding(
        {Phrase("left open"): left},
        counts={Phrase("hostile connections"): len(seen.run.hostile)},
        faults=(f"{left} connections of nonsense were left open",) if left else (),
    )


def _states_first(seen: Seen, _: Limits) -> Finding:
    """I29: the session's new epoch is told before its first tick."""
    checked, faults = 0, []
    for program in seen.run.programs:
        epoch = 0
        ticks = iter(seen.ticks(program))
        for at, event, _name in program.log:
            if isinstance(event, events.Session):
                epoch = event.epoch
            elif isinstance(event, events.Trade) and not event.image:
                place = next(ticks)[2]
                if place is None:
                    continue
                checked += 1
                line = seen.line_of(seen.rows[place].wire)
                if epoch < line.epoch and line.life is seen.run.lives[-1]:
                    faults.append(
                        f"{at:.3f}: {program.name} got a tick of epoch {line.epoch} in {epoch}"
                    )
    return Finding(
        {Phrase("inversions"): len(faults)},
        counts={Phrase("ticks"): checked},
        faults=tuple(faults[:5]),
    )


# Tokens, limits, clocks.


def _tokens(seen: Seen, limits: Limits) -> Finding:
    run = seen.run
    times = [run.real(line.at) for line in run.exchange.history if line.what is Happening.TOKEN]
    most = most_within(times, limits.tokens.seconds - 0.001)
    return Finding(
        {Phrase("in 60 s"): most},
        faults=(f"{most} token issues in 60 s",) if most > limits.tokens.count else (),
    )


def _rest(seen: Seen, limits: Limits) -> Finding:
    times = [at for at, path, _status in seen.run.rest_calls if not path.startswith("/oauth2")]
    most = most_within(times, limits.rest.seconds - 0.001)
    return Finding(
        {Phrase("in a second"): most},
        counts={Phrase("calls"): len(times)},
        faults=(f"{most} REST calls in a second",) if most > limits.rest.count else (),
    )


def _steps(seen: Seen, limits: Limits) -> Finding:
    steps = sum(s.kind == Trouble.CLOCK_STEP for s in seen.run.case.steps)
    if not steps:
        return Finding()
    found = [_windows(seen, limits), _breaker(seen, limits), _backoff(seen, limits)]
    faults = tuple(f for one in found for f in one.faults)
    return Finding(
        {Phrase("deviations"): len(faults)}, counts={Phrase("clock steps"): steps}, faults=faults
    )


def _suspended(seen: Seen, _: Limits) -> Finding:
    run = seen.run
    took, most, faults = [], 0, []
    sessions = [(at, e) for at, e, _n in run.programs[0].log if isinstance(e, events.Session)]
    for at, seconds in run.suspensions:
        before = next((e for when, e in reversed(sessions) if when <= at), None)
        if seconds < 2.0 + 0.5 or before is None or before.state != "STREAMING":
            continue
        most = max(
            most, sum(at <= x <= at + 30 / run.rules.time_scale for x in run.exchange.connects)
        )
        said = next((when for when, e in sessions if when > at and e.data == _SUSPECT), math.inf)
        if said - at <= 5.0 + 1.0:
            took.append(said - at)
        elif not _away(run, at, at + 6.0) and run.ended_at > at + 6.0:
            faults.append(f"{at:.3f}: slept for {seconds:g} s and not told")
    return Finding(
        {Phrase("connects after"): most}, {Phrase("told after s"): took}, faults=tuple(faults)
    )


def _canaries(seen: Seen, _: Limits) -> Finding:
    run = seen.run
    if not run.case.setup.debug:
        return Finding()
    text = "\n".join(run.logged)
    secrets = [APPKEY, APPSECRET, ACCOUNT.partition("-")[0], *run.secrets]
    hits = sum(secret in text for secret in dict.fromkeys(secrets))
    return Finding(
        {Phrase("hits"): hits},
        counts={Phrase("log lines"): len(run.logged)},
        faults=(f"{hits} secrets in the log",) if hits else (),
    )


def _exits(seen: Seen, _: Limits) -> Finding:
    took = [life.ended_at - life.told_at for life in seen.run.lives if life.how in {"stop", "end"}]
    slow = [f"took {t:.3f} s to end" for t in took if not t <= 5.0]
    return Finding(samples={Phrase("exit s"): took}, faults=tuple(slow))


def _names(seen: Seen, _: Limits) -> Finding:
    kinds = [s.kind for s in seen.run.case.steps]
    hangs = kinds.count("dial_dns") + kinds.count("dial_hang")
    return Finding(
        counts={Phrase("dials that hang or have no name"): hangs},
        faults=_exits(seen, _).faults if hangs else (),
    )


INVARIANTS: Final = (
    Invariant("I1", Phrase("connects in any 60 s, hour, day <= 3, 12, 60"), _windows),
    Invariant("I2", Phrase("the same across restarts and kills"), _windows_over_lives),
    Invariant("I3", Phrase("never two sessions of one appkey"), _overlap),
    Invariant("I4", Phrase("no session younger than 60 s is closed by us unprovoked"), _voluntary),
    Invariant("I5", Phrase("pauses grow until a session lived and carried data"), _backoff),
    Invariant("I6", Phrase("no dial while the breaker is open"), _breaker),
    Invariant(
        "I7", Phrase("OPSP8996: at least 60 s, and no new key; OPSP0011: one new key"), _codes
    ),
    Invariant("I8", Phrase("only listed changes of state"), _transitions),
    Invariant("I9", Phrase("a permanent heal leads to a live session"), _heal),
    Invariant("I10", Phrase("a session is torn down within its close limit"), _teardown),
    Invariant("I11", Phrase("at most 41 registrations at any instant"), _registered),
    Invariant("I12", Phrase("after quiet both sides hold the same"), _agreement),
    Invariant("I13", Phrase("nothing is called open before its ACK"), _wrong_active),
    Invariant("I14", Phrase("control messages within their limit"), _operations),
    Invariant("I15", Phrase("no topic is subscribed more than 3 times a minute"), _flips),
    Invariant("I16", Phrase("a pinned topic is never evicted"), _pinned),
    Invariant("I17", Phrase("a lower cap is learnt, without a loop"), _over_cap),
    Invariant("I18", Phrase("every tick was asked for on its session"), _acknowledged),
    Invariant("I19", Phrase("every tick was sent, once, in this order"), _origin),
    Invariant("I20", Phrase("every share and tick that is missing is told"), _holes),
    Invariant(
        "I21", Phrase("any bytes parse or are refused"), None, "tests/fuzz, tests/test_kis_frames"
    ),
    Invariant(
        "I22", Phrase("parse(encode(x)) = x for every TR"), None, "tests/test_kis_frames, _rows"
    ),
    Invariant("I23", Phrase("silence is told after 45 s and ended after 90 s"), _silence),
    Invariant(
        "I24",
        Phrase("no TCP acknowledgement: found within 15 s"),
        None,
        Phrase("the kernel's own work; needs a network namespace"),
    ),
    Invariant(
        "I25",
        Phrase("a stuck program delays no other"),
        None,
        Phrase("wall time: bench, real sockets"),
    ),
    Invariant("I26", Phrase("queues keep their bounds"), _queues),
    Invariant(
        "I27",
        Phrase("the reader never pauses for 5 ms"),
        None,
        Phrase("wall time: bench, real sockets"),
    ),
    Invariant("I28", Phrase("nonsense ends in an answer or a close"), _hostile),
    Invariant("I29", Phrase("the new epoch is told before its ticks"), _states_first),
    Invariant(
        "I30", Phrase("one user, one daemon, one socket"), None, "tests/test_gateway_listener"
    ),
    Invariant("I31", Phrase("one token issue in 60 s"), _tokens),
    Invariant(
        "I32", Phrase("a valid token outlives failed renewals"), None, "tests/test_core_tokens"
    ),
    Invariant("I33", Phrase("REST calls in any second <= 18"), _rest),
    Invariant("I34", Phrase("permits neither leak nor starve"), None, "tests/test_core_limiter"),
    Invariant("I35", Phrase("clock steps change no limit"), _steps),
    Invariant("I36", Phrase("an order is executed at most once"), ordering.once),
    Invariant("I37", Phrase("the intent is on disk before a byte leaves"), ordering.intended),
    Invariant("I38", Phrase("an outcome rests on evidence"), ordering.evidence),
    Invariant("I39", Phrase("nothing is sent beside its twin in doubt"), ordering.twins),
    Invariant("I40", Phrase("doubt ends in KIS's truth or with a person"), ordering.settled),
    Invariant("I41", Phrase("nothing leaves after a halt"), ordering.halted),
    Invariant("I42", Phrase("an old order is dropped, not sent late"), ordering.in_time),
    Invariant("I43", Phrase("a torn journal replays to a prefix"), None, "tests/test_rest_journal"),
    Invariant(
        "I44", Phrase("memory, descriptors and tasks stay flat"), None, "python -m bench.soak"
    ),
    Invariant("I45", Phrase("no secret in any log line"), _canaries),
    Invariant("I46", Phrase("a stalled loop loses its watchdog"), None, "tests/test_ops_sdnotify"),
    Invariant("I47", Phrase("after a suspend one session at most, told at once"), _suspended),
    Invariant("I48", Phrase("SIGTERM at any instant ends within 5 s"), _exits),
    Invariant("I49", Phrase("names that hang stop nothing else"), _names),
    Invariant("I50", Phrase("the same seed, the same digest"), None, "kisfeed chaos --digests"),
)
"""All fifty, in order."""


def limits_in_force() -> Limits:
    """Those the daemon of a run keeps to."""
    return resolve(schemas.load("limits.kis.json"), "sim", dt.date(2026, 11, 18))


def measure(run: Run) -> dict[str, Finding]:
    """Every invariant that can be measured, on one run. A crash is a fault of I48's kind."""
    seen, limits = see(run), limits_in_force()
    found = {i.id: i.measure(seen, limits) for i in INVARIANTS if i.measure is not None}
    if run.crash:
        found["I48"] = attrs.evolve(found["I48"], faults=(f"crashed: {run.crash}",))
    return found
