from __future__ import annotations

import sys
from pathlib import Path

import pytest

from kisfeed import places
from kisfeed.errors import ConfigError


def test_one_configured_profile_is_meant_and_of_several_none(runtime: Path) -> None:
    folder = places.config_folder()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "paper.toml").touch()
    assert places.socket_path() == runtime / "paper.sock"
    (folder / "real.toml").touch()
    with pytest.raises(ConfigError, match="paper, real"):
        places.socket_path()


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.delenv("KISFEED_SOCKET", raising=False)
    monkeypatch.delenv("KISFEED_PROFILE", raising=False)
    monkeypatch.delenv("KISFEED_GATEWAY_SOCKET", raising=False)
    return places.runtime_folder()


def test_without_a_word_it_is_the_simulated_daemons_socket(runtime: Path) -> None:
    assert places.socket_path() == runtime / "sim.sock"


def test_the_environment_names_a_profile_or_a_socket(
    runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KISFEED_PROFILE", "paper")
    assert places.socket_path() == runtime / "paper.sock"
    assert places.socket_path(profile="real") == runtime / "real.sock"
    monkeypatch.setenv("KISFEED_SOCKET", "/run/x.sock")
    assert places.socket_path() == Path("/run/x.sock")


def test_a_profile_says_where_its_daemon_listens(
    runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = places.config_folder()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "paper.toml").write_text('[gateway]\nsocket = "/run/there.sock"\n')
    (folder / "real.toml").write_text("[gateway]\nmax_subs = 9\n")
    assert places.socket_path(profile="paper") == Path("/run/there.sock")
    assert places.socket_path(profile="real") == runtime / "real.sock"
    monkeypatch.setenv("KISFEED_GATEWAY_SOCKET", "/run/x.sock")
    assert places.socket_path(profile="paper") == Path("/run/x.sock")
    monkeypatch.delenv("KISFEED_GATEWAY_SOCKET")
    (folder / "paper.toml").write_text("[gateway\n")
    with pytest.raises(ConfigError, match="cannot be read"):
        places.socket_path(profile="paper")


def test_an_argument_wins_over_the_environment(
    runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KISFEED_SOCKET", "/run/x.sock")
    assert places.socket_path("/run/y.sock") == Path("/run/y.sock")
    assert places.socket_path("/run/y.sock", "real") == Path("/run/y.sock")
    assert places.socket_path(profile="real") == runtime / "real.sock"


def test_a_program_is_called_by_its_script(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/home/x/momentum.py"])
    assert places.program_name() == "momentum"
    monkeypatch.setattr(sys, "argv", [""])
    assert places.program_name() == "python"
