"""The systemd user unit that keeps a daemon running.

Only what a user's own service manager can enforce is used: everything that needs a mount
namespace would need ``PrivateUsers=`` there, which many distributions forbid. Restarts are not
limited: what must not happen too often is counted on disk, per appkey.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

_TEMPLATE: Final = """\
# Written by `kisfeed service install`.
[Unit]
Description=kisfeed: the KIS session of profile {profile}
StartLimitIntervalSec=0

[Service]
Type=notify
NotifyAccess=main
ExecStart={command}
{more}Environment=PYTHONFAULTHANDLER=1
WatchdogSec=30
TimeoutStopSec=15
Restart=always
RestartSec=1
# Wrong usage, not permitted, wrong configuration: again would be the same.
RestartPreventExitStatus=2 77 78
UMask=0077
LimitCORE=0
MemoryMax=512M
TasksMax=64
NoNewPrivileges=yes
LockPersonality=yes
MemoryDenyWriteExecute=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallFilter=~@privileged @resources
SystemCallErrorNumber=EPERM

[Install]
WantedBy=default.target
"""


def unit_name(profile: str) -> str:
    """What the unit of *profile* is called."""
    return f"kisfeed-{profile}.service"


def unit(
    profile: str,
    command: Sequence[str],
    *,
    environment: Mapping[str, str],
    credentials: Mapping[str, Path],
) -> str:
    """The unit's text.

    Args:
        profile: whose daemon it is.
        command: what to run; the program by its absolute path.
        environment: variables that the daemon is to have; no secrets, a unit can be read.
        credentials: secret's name to the absolute path of its file; systemd hands it over.
    """
    more = [f"LoadCredential={name}:{_percent(str(path))}" for name, path in credentials.items()]
    more += [f"Environment={_quoted(f'{name}={value}')}" for name, value in environment.items()]
    program, *arguments = command
    return _TEMPLATE.format(
        profile=profile,
        # $ is no variable in the program's own path.
        command=" ".join([_quoted(program), *(_quoted(a).replace("$", "$$") for a in arguments)]),
        more="".join(f"{line}\n" for line in more),
    )


def _percent(text: str) -> str:
    return text.replace("%", "%%")


def _quoted(text: str) -> str:
    escaped = _percent(text).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"' if escaped != text or not text or set(text) & set(" \t';#") else text
