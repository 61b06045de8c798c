"""The limits in force: the shipped file, the user's over it, and what changes while running."""

from __future__ import annotations

import json
import logging
import re
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import attrs
import trio

from kisfeed import limits, schemas
from kisfeed.errors import ConfigError
from kisfeed.seoul import date_of
from kisfeed.texts import Phrase

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Callable, Mapping
    from pathlib import Path

    import jsonschema

    from kisfeed.config import Environment
    from kisfeed.seams import Clock

_log = logging.getLogger(__name__)

USER_FILE: Final = "limits.kis.json"
LOOK_S: Final = 5.0
_LARGEST: Final = 1 << 20


def today(clock: Clock) -> dt.date:
    """The date in Seoul."""
    return date_of(clock.wall_ns())


def problems(user: object) -> list[tuple[str, str]]:
    """What is wrong with a user's limits file, all of it: (where, what)."""
    import jsonschema  # noqa: PLC0415  # slow to import, and most users have no such file
    import referencing  # noqa: PLC0415

    registry: referencing.Registry[Any] = referencing.Registry().with_resource(
        "limits.schema.json",
        referencing.Resource.from_contents(schemas.load("limits.schema.json")),
    )
    rules = {k: v for k, v in schemas.load("limits.user.schema.json").items() if k != "$id"}
    validator = jsonschema.Draft202012Validator(
        rules, registry=registry, format_checker=jsonschema.FormatChecker()
    )
    found = sorted(validator.iter_errors(user), key=lambda e: [str(p) for p in e.absolute_path])
    return [(".".join(str(p) for p in e.absolute_path) or "file", _complaint(e)) for e in found]


def _complaint(error: jsonschema.ValidationError) -> str:
    """What is wrong, in words that can be said in Korean too where it is a usual mistake."""
    quoted = re.findall(r"'([^']*)'", error.message)
    if error.validator == "required" and quoted:
        return Phrase("{name} is missing", name=quoted[0])
    if error.validator == "additionalProperties" and quoted:
        return Phrase("unknown here: {names}", names=", ".join(quoted))
    if error.validator == "type":
        return Phrase(
            "{value} is no {kind}", value=repr(error.instance), kind=str(error.validator_value)
        )
    return str(error.message)


def read(file: Path) -> Mapping[str, Any]:
    """The shipped limits with those of *file* over them; the shipped ones where it is missing.

    Raises:
        ConfigError: the file is there and cannot be used; carries everything that is wrong.
    """
    shipped: Mapping[str, Any] = schemas.load("limits.kis.json")
    try:
        with file.open("rb") as opened:
            content = opened.read(_LARGEST)
        user = json.loads(content)
    except FileNotFoundError:
        return shipped
    except (OSError, ValueError, RecursionError) as exc:
        raise ConfigError((str(file), Phrase("cannot be read: {error}", error=str(exc)))) from exc
    wrong = problems(user)
    if not wrong:
        calls = schemas.load("kis/endpoints.json")["endpoints"]
        wrong = [
            (f"spacing.{name}", Phrase("no such REST call; see kis/endpoints.json"))
            for name in user.get("spacing", {})
            if name not in calls
        ]
    if wrong:
        raise ConfigError(*((f"{file.name}: {where}", what) for where, what in wrong))
    return limits.overlaid(shipped, user)


def resolve(file: Path, environment: Environment, day: dt.date) -> limits.Limits:
    """The limits in force on *day*.

    Raises:
        ConfigError: the file cannot be used, or leaves a rule without a value for this
            environment and day.
    """
    data = read(file)
    try:
        return limits.resolve(data, environment, day)
    except ValueError as exc:
        raise ConfigError(
            (
                str(file),
                Phrase(
                    "a rule has no candidate that is in force for {environment} on {day}",
                    environment=str(environment),
                    day=str(day),
                ),
            )
        ) from exc


@attrs.define(eq=False)
class LimitsWatch:
    """Keeps the limits in force up to date.

    Attributes:
        changed: called with other limits when they come into force.
        current: what is in force.
        refused: what was wrong with the file when it last changed; None if nothing was. The
            limits that were in force stay.
    """

    file: Path
    environment: Environment
    _clock: Clock
    changed: Callable[[limits.Limits], None] = attrs.field(default=lambda _: None, init=False)
    current: limits.Limits = attrs.field(init=False)
    refused: str | None = attrs.field(default=None, init=False)
    _seen: object = attrs.field(default=None, init=False)
    _day: dt.date = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._seen, self._day = self._state(), today(self._clock)
        self.current = resolve(self.file, self.environment, self._day)

    def reload(self) -> limits.Limits:
        """Read the file now.

        Raises:
            ConfigError: it cannot be used; the limits that were in force stay.
        """
        self._seen, self._day = self._state(), today(self._clock)
        try:
            found = resolve(self.file, self.environment, self._day)
        except ConfigError as exc:
            self.refused = str(exc)
            _log.error("limits_refused", extra={"why": self.refused})
            raise
        self.refused = None
        if found != self.current:
            self.current = found
            _log.info("limits_changed", extra={"limit_version": found.version})
            self.changed(found)
        return found

    async def run(self) -> None:
        """Read the file again whenever it, or the day in Seoul, is another, until cancelled."""
        while True:
            await trio.sleep(LOOK_S)
            if self._state() != self._seen or today(self._clock) != self._day:
                with suppress(ConfigError):  # kept in ``refused``, shown until the file is right
                    self.reload()

    def _state(self) -> object:
        try:
            found = self.file.stat()
        except OSError:
            return None
        return found.st_ino, found.st_size, found.st_mtime_ns
