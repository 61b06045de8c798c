from __future__ import annotations

import io
import json
import os
import stat
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import click
import pytest
from rich.console import Console

from kisfeed import cli, errors, places
from kisfeed.cli import board, demo_view, failures, i18n, settings, status
from kisfeed.kfp import events
from tests.test_cli_kisdevlp import FILLED, OFFICIAL
from tests.test_cli_schemas import validator

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import RenderableType


@pytest.fixture(autouse=True)
def english(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing of this machine's user: no language, no profiles, no daemon, no log."""
    for name in [*os.environ]:
        if name.startswith("KISFEED_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("KISFEED_LANG", "en")
    monkeypatch.setenv("LANGUAGE", "en")
    for name in ("CONFIG", "STATE", "RUNTIME"):
        folder = tmp_path / name.lower()
        folder.mkdir(mode=0o700)
        monkeypatch.setenv(f"XDG_{name}_{'DIR' if name == 'RUNTIME' else 'HOME'}", str(folder))


def shown(picture: RenderableType, width: int = 80) -> list[str]:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(picture)
    return console.export_text().splitlines()


class TestFailures:
    def test_no_daemon_is_69_and_says_how_to_start_one(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert cli.run(["status"]) == 69
        told = capsys.readouterr()
        assert told.out == ""
        assert "sim.sock" in told.err
        assert "kisfeed serve --sim" in told.err

    def test_no_daemon_names_the_sockets_that_exist(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        places.runtime_folder().mkdir()
        (places.runtime_folder() / "paper.sock").touch()
        assert cli.run(["status"]) == 69
        assert "paper; choose by --profile" in capsys.readouterr().err

    def test_with_json_the_failure_is_one_object_on_stdout(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert cli.run(["stream", "trade.krx.005930", "--json"]) == 69
        answer = json.loads(capsys.readouterr().out)
        validator("error").validate(answer)
        assert answer["code"] == "no_daemon"

    def test_wrong_usage_is_2(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.run(["stream"]) == 2
        assert cli.run(["watc"]) == 2
        assert "Did you mean 'watch'?" in capsys.readouterr().err

    def test_a_wrong_configuration_is_78_with_every_problem(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = tmp_path / "wrong.toml"
        path.write_text('environment = "x"\n[gateway]\nsokcet = 1\n')
        assert cli.run(["status", "--config", str(path), "--json"]) == 78
        answer = json.loads(capsys.readouterr().out)
        assert [p["key"] for p in answer["problems"]] == ["environment", "gateway.sokcet"]

    def test_a_real_key_of_the_wrong_shape_is_never_dialled_with(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("KISFEED_ENVIRONMENT", "real")
        monkeypatch.setenv("KISFEED_CREDENTIALS_APPKEY", "k" * 35)
        monkeypatch.setenv("KISFEED_CREDENTIALS_APPSECRET", "s" * 180)
        assert cli.run(["serve"]) == 78
        assert "kkk" not in capsys.readouterr().err

    def test_a_bug_is_1_with_a_short_message_and_its_traceback_in_the_log(
        self,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        def broken(**_arguments: object) -> None:
            raise ExceptionGroup("nursery", [ZeroDivisionError("oops")])

        monkeypatch.setattr(settings, "load", broken)
        assert cli.run(["status"]) == 1
        told = capsys.readouterr().err
        assert "ZeroDivisionError: oops" in told
        assert "Traceback" not in told
        (log,) = tmp_path.rglob("crash.log")
        assert "Traceback" in log.read_text()
        assert stat.S_IMODE(log.stat().st_mode) == 0o600

    def test_errors_come_out_of_the_groups_that_nurseries_wrap_them_in(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        wrapped = ExceptionGroup("a", [ExceptionGroup("b", [errors.SocketInUse("taken")])])
        assert failures.report(wrapped, as_json=False) == 75
        assert "taken" in capsys.readouterr().err

    def test_an_interrupt_is_quiet(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def interrupted(**_arguments: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(settings, "load", interrupted)
        assert cli.run(["status"]) == 130
        assert capsys.readouterr().err.strip() == ""


class TestInit:
    def test_profiles_are_written_for_me_alone_and_can_be_read_back(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        source = tmp_path / "kis_devlp.yaml"
        source.write_text(FILLED, "utf-8")
        assert cli.run(["init", "--from", str(source), "--json"]) == 0
        answer = json.loads(capsys.readouterr().out)
        validator("init").validate(answer)
        assert len(answer["written"]) == 2
        for name in ("real", "paper"):
            path = places.config_folder() / f"{name}.toml"
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            config = settings.load(purpose=settings.Purpose.SERVE, profile=name)
            assert config.environment == name
            assert not config.orders.enabled
            assert config.credentials.account

    def test_nothing_is_replaced_without_force(self, tmp_path: Path) -> None:
        source = tmp_path / "kis_devlp.yaml"
        source.write_text(FILLED, "utf-8")
        assert cli.run(["init", "--from", str(source)]) == 0
        path = places.config_folder() / "real.toml"
        path.write_text("# mine\n")
        assert cli.run(["init", "--from", str(source)]) == 78
        assert path.read_text() == "# mine\n"
        assert cli.run(["init", "--from", str(source), "--force"]) == 0
        assert "credentials" in path.read_text()

    def test_an_unfilled_file_writes_nothing_and_says_why(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        source = tmp_path / "kis_devlp.yaml"
        source.write_text(OFFICIAL, "utf-8")
        assert cli.run(["init", "--from", str(source)]) == 78
        told = capsys.readouterr()
        assert "kis_devlp.yaml line 1: my_app" in told.err
        assert not places.config_folder().exists()

    def test_a_missing_file_is_78(self, tmp_path: Path) -> None:
        assert cli.run(["init", "--from", str(tmp_path / "none")]) == 78

    def test_a_pipe_cannot_be_asked(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("sys.stdin", io.StringIO())
        assert cli.run(["init"]) == 2
        assert "--from" in capsys.readouterr().err

    def test_a_person_is_asked(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Terminal:
            def isatty(self) -> bool:
                return True

        monkeypatch.setattr("sys.stdin", Terminal())
        monkeypatch.setenv("HOME", "/nowhere")
        answers = iter(["paper", "k" * 36, "s" * 180, "", "12345678-01"])
        monkeypatch.setattr(click, "prompt", lambda *_a, **_k: next(answers))
        assert cli.run(["init"]) == 0
        config = settings.load(purpose=settings.Purpose.SERVE)
        assert config.profile == "paper"
        answers = iter(["paper", "short", "s" * 180, "", ""])
        assert cli.run(["init", "--force"]) == 78


def trade(**changes: Any) -> events.Trade:
    values: dict[str, Any] = {
        "topic": "trade.krx.005930", "scale": 0, "image": False, "sid": 1, "sseq": 1, "flags": 0,
        "xts": 1_794_963_600 * 10**9, "rts": 0, "px": 71_300, "qty": 12, "cum_qty": 1_000,
        "ask": 71_400, "bid": 71_300, "side": 1, "change": -600, "open": None, "high": None,
        "low": None, "cum_value": None, "session": None, "time_class": None, "halted": False,
        "vi_ref_px": None,
    }  # fmt: skip
    return events.Trade(**values | changes)


class TestBoard:
    def test_a_trade_is_a_line_with_thousands_change_and_seoul_time(self) -> None:
        line = board.plain(trade())
        assert line == "10:00:00  trade.krx.005930  71,300  -600 -0.83%  12"

    def test_scaled_prices_are_exact(self) -> None:
        line = board.plain(trade(px=260_157, change=1_012, scale=2))
        assert line is not None
        assert "2,601.57  +10.12 +0.39%" in line

    def test_a_row_with_empty_values_is_shown_without_them(self) -> None:
        empty = trade(px=None, qty=None, change=None, xts=None, cum_qty=None, bid=None, ask=None)
        assert board.plain(empty) == "09:00:00  trade.krx.005930"
        table = board.Board.of(["trade.krx.005930"])
        table.apply(empty)
        assert shown(board.render(table, 80))

    def test_gaps_and_losses_stay_visible_in_the_table(self) -> None:
        table = board.Board.of(["trade.krx.005930", "trade.krx.000660"])
        topic = "trade.krx.005930"
        for event in (
            events.Status(topic, 1, 1, 1, "none", 0, ""),
            trade(),
            events.Gap(topic, 1, 5, 6, 0, 1, 1_234, "gap_detected"),
            events.Lost(topic, 1, 7, 9, 3, "over_limit"),
            events.Session(1, "STREAMING", 1, "none", 0, ""),
        ):
            table.apply(event)
        text = "\n".join(shown(board.render(table, 120), 120))
        assert all(len(line) <= 80 for line in shown(board.render(table, 80)))
        for part in ("71,300", "live", "1,234", "lost 3", "STREAMING", "pending"):
            assert part in text


STATUS = {
    "profile": "paper",
    "state_folder": "disk full",
    "session": {
        "epoch": 3, "state": "RECONNECT_BACKOFF", "data": 2, "code": "upstream_down",
        "since_ts": 0, "text": "lost",
    },
    "connection": {
        "state": "RECONNECT_BACKOFF", "reason": "lost", "for_s": 7.2, "next_try_in_s": 125.0,
        "closing": None, "lent_for_s": None,
        "budget": [{"count": 3, "seconds": 60.0, "left": 1}],
        "breaker": {
            "phase": "open", "reason": "young_sessions", "open_for_s": 65.0,
            "next_try_in_s": 535.0, "level": 1, "young_sessions": 3, "barren_loops": 0,
        },
        "in_use": {"holder": "stranger", "times": 2, "ago_s": 61.0},
    },
    "slots": {"cap": 41, "used": 2, "reserved": 1},
    "clients": 1,
    "liveness": {"last_byte_age_s": 0.25},
    "events": [{"ts": 0, "event": "state", "old": "IDLE", "new": "CONNECTING"}],
}  # fmt: skip


SLOT: dict[str, Any] = {
    "key": ["H0STCNT0", "005930"], "state": "waiting", "for_s": None, "reserved": False,
    "pinned": False, "active": True, "priority": 0, "users": 1, "wanted_for_s": 1.0,
    "fresh": False, "dwell_left_s": 0.0, "tries": 0, "strikes": 0, "retry_in_s": None,
    "closed_by": None, "by": None, "code": "over_limit", "text": "",
}  # fmt: skip


def test_status_tells_what_is_wrong_and_when_it_will_be_tried_again() -> None:
    slots = [
        {**SLOT, "topic": "trade.krx.005930", "state": "held", "users": 2, "pinned": True,
         "code": "none", "priority": 3},
        {**SLOT, "topic": "trade.krx.000660", "text": "41 of 41 slots are taken"},
        {**SLOT, "topic": "trade.krx.999999", "state": "quarantined", "code": "rejected",
         "tries": 2, "retry_in_s": 45.0},
    ]  # fmt: skip
    clients = [
        {"name": "strategy", "pid": 7, "topics": ["trade.krx.005930"], "sent": 1_000,
         "dropped": 2, "conflated": 0, "q_age_ms": 1_500},
    ]  # fmt: skip
    lines = shown(status.render(STATUS, clients, slots))
    text = "\n".join(lines)
    for part in (
        "RECONNECT_BACKOFF, lost, for 7.2 s; next try in 2 min",
        "2 of 41 used, 1 reserved",
        "1 of 3 in 1 min",
        "open because of young_sessions, for 1 min; next try in 9 min",
        "another program holds it: 2 refused, the last 1 min ago",
        "disk full",
        "pinned, prio 3, ×2",
        "asked 2 times",
        "trade.krx.005930",
        "strategy",
        "1,000",
    ):
        assert part in text
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "0.0 s"), (59.4, "59 s"), (60, "1 min"), (3600, "1 h"), (5400, "1 h 30 min")],
)
def test_durations_are_said_as_people_say_them(seconds: float, text: str) -> None:
    assert status.duration(seconds) == text


class TestDemoPicture:
    def show(self) -> demo_view.Show:
        show = demo_view.Show(20.0, 20.0, elapsed=12.5, session="STREAMING", why="data")
        show.programs = [
            demo_view.Program("strategy", "trades", "all", 6, 4_321, 0, 6, 9_876),
            demo_view.Program("slow", "the same, stops reading", "all", 12, 99_999, 12_345, 6, 1),
            demo_view.Program("recorder", "trades and books", "all", 12, 99_999, 0, 6, 9_876),
            demo_view.Program("scanner", "30 more symbols", "latest", 30, 1_234),
        ]
        for step in range(50):
            show.trade(trade(px=71_300 + step % 7 * 100))
            show.tell(f"something that happened, told at length, number {step} " + "x" * 60)
        return show

    @pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 40)])
    @pytest.mark.parametrize("language", i18n.LANGUAGES)
    def test_the_picture_fits_the_terminal(self, width: int, height: int, language: str) -> None:
        i18n.use(language)
        lines = shown(demo_view.render(self.show()), width)
        assert len(lines) < height
        assert any("12,345" in line for line in lines)
        assert any("number 49" in line for line in lines)

    def test_accounts_that_close_are_said_and_ones_that_do_not_are_found(self) -> None:
        show = self.show()
        show.programs[0].missed_qty = 30
        show.yielded = 1
        show.account(trade(cum_qty=1_010, qty=10))
        show.account(trade(cum_qty=1_060, qty=20))
        assert show.unaccounted() == 0
        assert demo_view.missing(show) == []
        assert any(
            "30 received + 30 told" in line.replace(" shares", "")
            for line in demo_view.closing(show)
        )
        show.account(trade(cum_qty=1_100, qty=20))
        assert show.unaccounted() == 20
        assert any("20 shares" in what for what in demo_view.missing(show))

    def test_a_show_where_nothing_happened_lists_what_is_missing(self) -> None:
        assert len(demo_view.missing(demo_view.Show(20.0, 20.0))) == 4

    @pytest.mark.parametrize(
        ("prices", "text"), [([], ""), ([5], "▄"), ([1, 8], "▁█"), ([3, 3], "▄▄")]
    )
    def test_the_spark_line_has_a_bar_for_each_price(self, prices: list[int], text: str) -> None:
        assert demo_view.spark(prices) == text


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from kisfeed import cli; cli.run(['--help']);"
        "heavy = {'trio', 'httpx', 'rich', 'structlog', 'cattrs', 'attrs', 'msgpack', 'yaml'};"
        "sys.exit(', '.join(sorted(heavy & sys.modules.keys())) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
