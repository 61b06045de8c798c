from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from kisfeed import cli
from kisfeed.ops import service
from tests.test_cli_schemas import validator

if TYPE_CHECKING:
    from pathlib import Path

ANALYZE = shutil.which("systemd-analyze")
PROFILE = """environment = "paper"
[credentials]
appkey = "PSm3d8Qh2Lx7Zr5Tn9Wc1Vb6Yg4Kf0Ja8Es2"
appsecret = "%s"
""" % ("aB3+/x" * 30)


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A user of our own with one profile."""
    for name in [*os.environ]:
        if name.startswith(("KISFEED_", "XDG_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("KISFEED_LANG", "en")
    monkeypatch.setenv("LANGUAGE", "en")
    path = tmp_path / ".config" / "kisfeed" / "paper.toml"
    path.parent.mkdir(parents=True)
    path.write_text(PROFILE)
    path.chmod(0o600)
    return tmp_path


def unit_path(home: Path) -> Path:
    return home / ".config" / "systemd" / "user" / "kisfeed-paper.service"


def settings_of(text: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if line and not line.startswith(("#", "[")):
            name, value = line.split("=", 1)
            found.setdefault(name, []).append(value)
    return found


def verify(path: Path) -> None:
    """systemd itself reads the unit without a word."""
    if ANALYZE is None:
        pytest.skip("no systemd here")
    done = subprocess.run(
        [ANALYZE, "verify", "--user", str(path)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "XDG_RUNTIME_DIR": "/tmp"},
    )
    # What else is installed for users may have complaints of its own.
    complaints = [line for line in done.stderr.splitlines() if path.name in line]
    assert (done.returncode, complaints) == (0, [])


def test_print_shows_a_unit_for_the_one_profile(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["service", "print"]) == 0
    found = settings_of(capsys.readouterr().out)
    assert found["ExecStart"] == [f"{sys.executable} -P -m kisfeed serve --profile paper"]
    assert found["Type"] == ["notify"]
    assert found["NotifyAccess"] == ["main"]
    assert found["WatchdogSec"] == ["30"]
    assert found["RestartSec"] == ["1"]
    assert found["StartLimitIntervalSec"] == ["0"]
    assert found["RestartPreventExitStatus"] == ["2 77 78"]
    assert found["LimitCORE"] == ["0"]
    assert found["UMask"] == ["0077"]
    assert found["RestrictAddressFamilies"] == ["AF_UNIX AF_INET AF_INET6"]
    assert "PrivateUsers" not in found
    assert "LoadCredential" not in found


def test_install_writes_the_unit_and_says_what_comes_next(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["service", "install"]) == 0
    told = capsys.readouterr().out
    for step in (
        "systemctl --user daemon-reload",
        "systemctl --user enable --now kisfeed-paper.service",
        "loginctl enable-linger",
    ):
        assert step in told
    path = unit_path(home)
    assert str(path) in told
    assert "appsecret" not in path.read_text()
    verify(path)


def test_a_different_unit_is_replaced_by_force_only(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = unit_path(home)
    path.parent.mkdir(parents=True)
    path.write_text("# mine\n")
    assert cli.run(["service", "install"]) == 78
    assert path.read_text() == "# mine\n"
    assert "--force" in capsys.readouterr().err
    assert cli.run(["service", "install", "--force", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    validator("service").validate(answer)
    assert path.read_text() == answer["text"]
    assert "systemctl --user restart kisfeed-paper.service" in answer["next"]
    # The same unit again is no change.
    assert cli.run(["service", "install", "--json"]) == 0
    assert "enable --now" in json.loads(capsys.readouterr().out)["next"][1]


def test_print_answers_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["service", "print", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    validator("service").validate(answer)
    assert answer["unit"] == "kisfeed-paper.service"


def test_nothing_is_installed_that_would_not_start(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / ".config" / "kisfeed" / "paper.toml").write_text('environment = "nowhere"\n')
    assert cli.run(["service", "install"]) == 78
    assert cli.run(["service", "install", "--profile", "none"]) == 78
    assert not unit_path(home).exists()
    capsys.readouterr()


def test_a_service_does_not_run_on_this_shells_variables(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    state = home / "my state"
    monkeypatch.setenv("XDG_STATE_HOME", str(state))
    monkeypatch.setenv("KISFEED_SESSION_DWELL_S", "90")
    assert cli.run(["service", "print"]) == 0
    told = capsys.readouterr()
    assert "KISFEED_SESSION_DWELL_S" in told.err
    # Another state folder would be another dial budget.
    assert f'Environment="XDG_STATE_HOME={state}"' in told.out
    (home / ".config" / "kisfeed" / "paper.toml").unlink()
    monkeypatch.setenv("KISFEED_ENVIRONMENT", "paper")
    assert cli.run(["service", "print"]) == 78


def test_secrets_can_come_from_systemd(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / ".config" / "kisfeed" / "paper.toml").write_text('environment = "paper"\n')
    assert cli.run(["service", "print"]) == 78
    for name, secret in (("appkey", "k1" * 18), ("appsecret", "s3" * 90)):
        (home / name).write_text(secret)
        (home / name).chmod(0o600)
    given = [f"--credential={name}={home / name}" for name in ("appkey", "appsecret")]
    capsys.readouterr()
    assert cli.run(["service", "install", *given]) == 0
    text = unit_path(home).read_text()
    assert settings_of(text)["LoadCredential"] == [
        f"appkey:{home}/appkey",
        f"appsecret:{home}/appsecret",
    ]
    assert "k1k1" not in text
    verify(unit_path(home))
    assert cli.run(["service", "print", "--credential", "password=x"]) == 2


def test_systemd_reads_odd_paths_as_they_are(tmp_path: Path) -> None:
    folder = tmp_path / "a b $HOME 100%"
    folder.mkdir()
    program = folder / "python"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    odd = f"{folder}/\"x\" 'y' \\z"
    text = service.unit("odd", [str(program), odd, ""], environment={"A": odd}, credentials={})
    path = tmp_path / service.unit_name("odd")
    path.write_text(text)
    verify(path)
    path.write_text(text.replace("/python", "/missing"))
    with pytest.raises(AssertionError):
        verify(path)


def test_the_unit_can_be_read_by_its_owners_manager(home: Path) -> None:
    assert cli.run(["service", "install"]) == 0
    assert stat.S_IMODE(unit_path(home).stat().st_mode) & 0o400
