"""``kisfeed limits`` and ``kisfeed token``, with a daemon and without one."""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING, Any

import pytest
import trio

from kisfeed import cli
from kisfeed.testing import Options, Rules, open_simulator
from tests.test_cli_order import serve
from tests.test_cli_schemas import validator
from tests.test_cli_session import english, socket  # noqa: F401  # fixtures
from tests.test_rest_limits import NOTICE, mine

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

APPKEY = "CANARY" + "k" * 30


@pytest.fixture(scope="module")
def rest_url() -> Iterator[str]:
    """A simulated KIS, in a thread of its own."""
    ready = threading.Event()
    found: list[Any] = []

    async def main() -> None:
        rules = Rules(accounts={APPKEY: "s" * 180})
        async with open_simulator(Options(rules=rules)) as sim:
            token = trio.lowlevel.current_trio_token()
            with trio.CancelScope() as scope:
                found.extend([sim.rest_url, sim.ws_url, lambda: token.run_sync_soon(scope.cancel)])
                ready.set()
                await trio.sleep_forever()

    thread = threading.Thread(target=trio.run, args=(main,))
    thread.start()
    assert ready.wait(20)
    yield found[0]
    found[2]()
    thread.join()


@pytest.fixture
def profile(tmp_path: Path, rest_url: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A profile without a daemon; its folder."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.delenv("KISFEED_SOCKET", raising=False)
    file = tmp_path / "p.toml"
    file.write_text(
        f'environment = "sim"\n[credentials]\nappkey = "{APPKEY}"\nappsecret = "{"s" * 180}"\n'
        f'[endpoints]\nrest = "{rest_url}"\nws = "{rest_url.replace("http", "ws")}"\n'
        f'[state]\ndir = "{tmp_path / "state"}"\n'
    )
    file.chmod(0o600)
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, Any]:
    code = cli.run([*arguments, "--json"])
    told = capsys.readouterr()
    assert "CANARY" not in told.out + told.err
    return code, json.loads(told.out)


def write_limits(folder: Path, content: object) -> Path:
    file = folder / "state" / "limits.kis.json"
    file.parent.mkdir(mode=0o700, exist_ok=True)
    file.write_text(json.dumps(content))
    return file


def test_what_is_in_force_is_shown_with_its_source(
    profile: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ("--config", str(profile / "p.toml"))
    code, answer = run(capsys, "limits", "show", *where)
    validator("limits-show").validate(answer)
    assert code == 0
    rules = {r["name"]: r for r in answer["rules"]}
    assert (rules["rest"]["value"], rules["rest"]["why"]) == ("18 in 1 s", "newest notice")
    write_limits(profile, mine(share=0.5))
    code, answer = run(capsys, "limits", "show", *where)
    assert answer["version"].endswith("+mine*0.5")
    assert cli.run(["limits", "show", *where]) == 0
    assert "12 in 1 s" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ({"version": "v"}, []),
        (mine(), []),
        (mine(rset=1), ["limits.kis.json: file"]),
        (mine(rules={"rest": {"candidates": [{**NOTICE, "count": 30}]}}), ["rest"]),
        (mine(rules={"rest": {"candidates": [{**NOTICE, "date": "2025-01-01"}]}}), ["rest"]),
    ],
)
def test_a_check_that_finds_something_exits_3(
    profile: Path, capsys: pytest.CaptureFixture[str], content: object, found: list[str]
) -> None:
    file = write_limits(profile, content)
    for extra in ((), (str(file),)):
        code, answer = run(capsys, "limits", "check", *extra, "--config", str(profile / "p.toml"))
        validator("limits-check").validate(answer)
        assert [p["where"] for p in answer["problems"]] == found
        assert code == (3 if found else 0)
    assert cli.run(["limits", "check", "--config", str(profile / "p.toml")]) == (3 if found else 0)
    told = capsys.readouterr().out
    assert told.startswith(found[0]) if found else "Nothing is wrong" in told


def test_a_file_is_compared_with_the_shipped_limits(
    profile: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ("--config", str(profile / "p.toml"))
    code, answer = run(capsys, "limits", "diff", *where)
    assert (code, answer["changed"]) == (0, [])
    file = profile / "notice.json"
    file.write_text(json.dumps(mine()))
    code, answer = run(capsys, "limits", "diff", str(file), *where)
    validator("limits-diff").validate(answer)
    assert answer["changed"] == [{"name": "rest", "shipped": "18 in 1 s", "file": "12 in 1 s"}]
    assert cli.run(["limits", "diff", str(file), *where]) == 0
    assert capsys.readouterr().out == "rest: 18 in 1 s -> 12 in 1 s\n"
    file.write_text('{"version": "mine", "share": 0.5}')
    assert run(capsys, "limits", "diff", str(file), *where)[1]["changed"] == [
        {"name": "share", "shipped": "1", "file": "0.5"}
    ]
    for command in ("check", "diff"):
        assert cli.run(["limits", command, str(profile / "nowhere.json"), *where]) == 2


def test_without_a_daemon_the_token_is_asked_for_here_and_kept(
    profile: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ("--config", str(profile / "p.toml"))
    code, answer = run(capsys, "token", "show", *where)
    validator("token").validate(answer)
    assert (code, answer["state"], answer["masked"]) == (0, "none", None)
    code, answer = run(capsys, "token", "refresh", *where)
    assert (code, answer["state"], answer["issues"]) == (0, "valid", {"ok": 1})
    code, answer = run(capsys, "token", "show", *where)
    assert answer["masked"].startswith("*** (")
    code, answer = run(capsys, "token", "refresh", *where)
    assert (code, answer["type"]) == (75, "error")
    assert "one token a minute" in answer["message"]
    assert cli.run(["token", "show", *where]) == 0
    assert "valid for 2" in capsys.readouterr().out
    (file,) = (profile / "state").glob("*.token.json")
    assert file.stat().st_mode & 0o777 == 0o600
    assert (profile / "state").stat().st_mode & 0o777 == 0o700


def test_a_malformed_file_is_refused_and_the_daemon_goes_on_with_the_old_limits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    served = serve(tmp_path)
    try:
        for wrong in ("{", '{"version": "mine", "share": 7, "rulse": {}}'):
            (tmp_path / "limits.kis.json").write_text(wrong)
            code, answer = run(capsys, "limits", "reload", *served.place)
            assert (code, answer["code"]) == (78, "config_error")
            assert answer["problems"]
        code, answer = run(capsys, "status", *served.place)
        assert (code, answer["rest"]["limiter"]["count"]) == (0, 18)
        (tmp_path / "limits.kis.json").write_text(json.dumps(mine()))
        code, answer = run(capsys, "limits", "reload", *served.place)
        assert (code, answer["refused"], answer["in_force"]["rest"]["count"]) == (0, None, 12)
    finally:
        served.end()


def test_the_daemon_answers_for_its_token_and_limits(
    socket: Path,  # noqa: F811  # the fixture
    capsys: pytest.CaptureFixture[str],
) -> None:
    where = ("--socket", str(socket))
    code, answer = run(capsys, "token", "show", *where)
    validator("token").validate(answer)
    assert code == 0
    code, answer = run(capsys, "token", "refresh", *where)
    assert (code, answer["state"]) == (0, "valid")
    code, answer = run(capsys, "token", "refresh", *where)
    assert code == 75
    code, answer = run(capsys, "limits", "reload", *where)
    assert (code, answer["refused"]) == (0, None)
    code, answer = run(capsys, "status", *where)
    validator("status").validate(answer)
    assert answer["rest"]["token"]["state"] == "valid"
    assert cli.run(["token", "show", "--socket", str(socket.with_name("none"))]) == 69
