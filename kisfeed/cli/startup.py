"""What ``kisfeed serve`` finds out before it dials: told in the log, or the reason not to start."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from kisfeed import errors, schemas
from kisfeed.cli.i18n import _
from kisfeed.cli.settings import did_you_mean
from kisfeed.feed import limits_file
from kisfeed.ops import selftest
from kisfeed.ops.selftest import Check, Problem
from kisfeed.rest import limits_watch
from kisfeed.seams import SystemClock

if TYPE_CHECKING:
    from pathlib import Path

    from kisfeed.config import Config
    from kisfeed.ops.selftest import Finding

_log: Final = logging.getLogger("kisfeed")


def check(config: Config) -> None:
    """Run the self-test and log every check.

    Raises:
        ConfigError: a session with this configuration would come to nothing; names all of it.
    """
    master, unreadable = selftest.cached_master(_folders(config))
    today = limits_watch.today(SystemClock())
    in_force = limits_watch.resolve(limits_file(config), config.environment, today)
    data = schemas.load("kis/realtime.json")
    found = selftest.examine(config, data, in_force.registrations, master)
    if unreadable:
        found[Check.MASTER] = [*found.get(Check.MASTER, ()), *unreadable]
    for what, findings in found.items():
        if not findings:
            _log.info("selftest", extra={"check": what.value, "result": "ok"})
        for finding in findings:
            level = logging.ERROR if finding.refuses else logging.WARNING
            details = {"problem": finding.problem.value, "setting": finding.setting}
            _log.log(level, "selftest", extra={"check": what.value, **details, **finding.details})
    problems = [f for findings in found.values() for f in findings if f.refuses]
    if problems:
        raise errors.ConfigError(*((finding.setting, text(finding)) for finding in problems))


def _folders(config: Config) -> list[Path]:
    import platformdirs

    from kisfeed import places

    state = places.state_folder(config.state.dir)
    return [state / "master", platformdirs.user_cache_path("kisfeed") / "master"]


def text(finding: Finding) -> str:
    """Why a start is refused, in the reader's language."""
    details = finding.details
    match finding.problem:
        case Problem.OTHER_ENVIRONMENT:
            return _("{address} is the address of environment {other}").format(**details)
        case Problem.NOT_ON_PAPER:
            return _("KIS does not serve {topic} on paper").format(**details)
        case Problem.UNKNOWN_TOPIC | Problem.BAD_SYMBOL:
            told = _("{topic} is not a topic: {why}").format(**details)
            meant = details["meant"]
            return told + ("." + did_you_mean(meant, [meant]) if meant else "")
        case Problem.BAD_HTS_ID:
            return _("is not an HTS ID")
        case Problem.TR_ID_MISMATCH:
            return _("TR {tr_id} is not of this environment: install kisfeed again").format(
                **details
            )
        case _:
            return finding.problem.value
