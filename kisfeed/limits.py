"""What KIS allows, as values: read from ``schemas/limits.kis.json``, never constants in code."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Any

import attrs

from kisfeed.texts import Phrase

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


@attrs.frozen
class Window:
    """At most *count* in any *seconds*."""

    count: int
    seconds: float


@attrs.frozen
class Limits:
    """The limits in force for one environment.

    Attributes:
        version: names this set in logs and metrics.
        registrations: how many (tr_id, tr_key) one session may hold.
        dials: how many dials, in every one of these windows.
        slow_dials_after: from this many dials within an hour on ...
        slow_dials_gap_s: ... dials are at least this far apart, seconds.
        ws_control_ops: subscribe and unsubscribe messages.
        approval_keys: approval-key issues.
        rest: REST calls, all of them but tokens.
        tokens: token issues.
        spacing: REST calls of one endpoint, beside ``rest``.
    """

    version: str
    registrations: int
    dials: tuple[Window, ...]
    slow_dials_after: int
    slow_dials_gap_s: float
    ws_control_ops: Window
    approval_keys: Window
    rest: Window
    tokens: Window
    spacing: Mapping[str, Window] = attrs.field(factory=dict)


def shared(window: Window, share: float) -> Window:
    """What is left of *window* when only this *share* of it, 0 to 1, may be used."""
    count = window.count * share
    if count >= 1:
        return Window(int(count + 1e-9), window.seconds)
    return Window(1, window.seconds / count)


def overlaid(shipped: Mapping[str, Any], user: Mapping[str, Any]) -> Mapping[str, Any]:
    """The shipped limits with the user's over them.

    A rule that the user's file names stands in place of the shipped one, whole; everything else
    stays as shipped, and goes on to follow upgrades.

    Args:
        shipped: the parsed ``limits.kis.json``.
        user: the user's own file, parsed and checked.
    """
    share = user.get("share", 1)
    version = f"{shipped['version']}+{user['version']}"
    return {
        **shipped,
        "version": version if share == 1 else f"{version}*{share:g}",
        "rules": {**shipped["rules"], **user.get("rules", {})},
        "spacing": {**shipped["spacing"], **user.get("spacing", {})},
        "share": share,
        "key_issued": user.get("key_issued"),
    }


@attrs.frozen
class Origin:
    """Where the value of a rule comes from.

    Attributes:
        name: the rule.
        what: what it limits, for people.
        value: ``18 in 1 s``, or a bare number.
        used: the candidates that decide it, as in the file.
        unused: the candidates that do not.
        why: ``newest notice`` or ``strictest``.
    """

    name: str
    what: str
    value: str
    used: tuple[Mapping[str, Any], ...]
    unused: tuple[Mapping[str, Any], ...]
    why: str


def _text(rule: Mapping[str, Any]) -> str:
    if "per_s" not in rule:
        return f"{rule['count']:g}"
    return Phrase("{count:g} in {per_s:g} s", count=rule["count"], per_s=rule["per_s"])


def origins(data: Mapping[str, Any], environment: str, today: dt.date) -> list[Origin]:
    """What is in force here and today, rule by rule, with what it rests on.

    Args:
        data: as :func:`resolve`.
        environment: ``real``, ``paper`` or ``sim``.
        today: the date in Seoul.
    """
    found = []
    age = _key_age(data, today)
    for name, rule in {**data["rules"], **data.get("spacing", {})}.items():
        used = _in_force(rule, environment, today, age)
        if not used:
            continue
        strictest = min(used, key=lambda c: c["count"] / c.get("per_s", 1))
        found.append(
            Origin(
                name,
                rule.get("what", ""),
                _text(strictest),
                tuple(used),
                tuple(c for c in rule["candidates"] if c not in used),
                "newest notice" if any(c["source_kind"] == "notice" for c in used) else "strictest",
            )
        )
    return found


def _key_age(data: Mapping[str, Any], today: dt.date) -> float | None:
    issued = data.get("key_issued")
    return None if issued is None else (today - dt.date.fromisoformat(issued)).days


def _strictest(windows: Iterable[Window]) -> Window:
    return min(windows, key=lambda w: (w.count / w.seconds, w.count))


def _in_force(
    rule: Mapping[str, Any], environment: str, today: dt.date, key_age_days: float | None
) -> list[Mapping[str, Any]]:
    candidates = [
        c
        for c in rule["candidates"]
        if environment in c["applies_to"]
        and dt.date.fromisoformat(c.get("effective_from", "1970-01-01")) <= today
    ]
    general = [c for c in candidates if "key_age_max_days" not in c]
    # A young key's rule stands beside the general one, however new that is: both bind.
    young = [
        c
        for c in candidates
        if key_age_days is not None and key_age_days <= c.get("key_age_max_days", -1.0)
    ]
    return _newest_notices(general) + _newest_notices(young)


def _newest_notices(candidates: list[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    notices = [c for c in candidates if c["source_kind"] == "notice"]
    if not notices:
        return candidates
    newest = max(c["date"] for c in notices)
    return [c for c in notices if c["date"] == newest]


def resolve(
    data: Mapping[str, Any],
    environment: str,
    today: dt.date,
    *,
    key_age_days: float | None = None,
) -> Limits:
    """Pick the limits in force: the newest official notice, else the strictest candidate (P2).

    Args:
        data: the parsed ``limits.kis.json``, or what :func:`overlaid` made of it.
        environment: ``real``, ``paper`` or ``sim``.
        today: the date in Seoul.
        key_age_days: how old the appkey is, if *data* does not say; rules for young keys bind
            too where it is told.

    Raises:
        KeyError: *data* does not fit its schema; validate it first.
        ValueError: no candidate of a rule is in force in this environment on this day.
    """
    rules = data["rules"]
    share = data.get("share", 1)
    if key_age_days is None:
        key_age_days = _key_age(data, today)

    def window(name: str) -> Window:
        found = _in_force(rules[name], environment, today, key_age_days)
        return _strictest(Window(c["count"], c["per_s"]) for c in found)

    def number(name: str) -> int:
        found = _in_force(rules[name], environment, today, key_age_days)
        return min(int(c["count"]) for c in found)

    dials = data["session"]
    return Limits(
        version=data["version"],
        registrations=number("ws_registrations"),
        dials=tuple(Window(w["count"], w["per_s"]) for w in dials["dials"]),
        slow_dials_after=dials["slow_after"],
        slow_dials_gap_s=dials["slow_gap_s"],
        ws_control_ops=window("ws_control_ops"),
        approval_keys=window("approval_key"),
        rest=shared(window("rest"), share),
        tokens=window("token_issue"),
        spacing={
            name: shared(_strictest(Window(c["count"], c["per_s"]) for c in found), share)
            for name, rule in data["spacing"].items()
            if (found := _in_force(rule, environment, today, key_age_days))
        },
    )
