from __future__ import annotations

import json
import tomllib
import typing
from pathlib import Path
from typing import Any

import attrs
import jsonschema
import pytest
from hypothesis import given, strategies as st

from kisfeed import errors, schemas
from kisfeed.cli import settings
from kisfeed.cli.settings import Purpose, load
from kisfeed.config import Config, Environment, Secret, Session
from kisfeed.limits import Window

APPKEY = "PS" + "k" * 34
APPSECRET = "s" * 180


def write(folder: Path, name: str, text: str, mode: int = 0o600) -> Path:
    path = folder / f"{name}.toml"
    path.write_text(text)
    path.chmod(mode)
    return path


def problems(**arguments: Any) -> dict[str, str]:
    with pytest.raises(errors.ConfigError) as caught:
        load(**arguments)
    assert caught.value.exit_code == 78
    return dict(caught.value.problems)


def paper(extra: str = "") -> str:
    return (
        'environment = "paper"\n[credentials]\n'
        f'appkey = "{APPKEY}"\nappsecret = "{APPSECRET}"\n{extra}'
    )


def read(folder: Path, text: str, **arguments: Any) -> Config:
    write(folder, "paper", text)
    return (
        load(purpose=Purpose.SERVE, environ={}, folder=folder)
        if not arguments
        else load(purpose=Purpose.SERVE, folder=folder, **arguments)
    )


def test_a_file_becomes_a_config_with_its_name_as_profile(tmp_path: Path) -> None:
    config = read(tmp_path, paper('account = "01234567-01"\n[gateway]\nmax_subs = 100\n'))
    assert config.profile == "paper"
    assert config.environment is Environment.PAPER
    assert config.credentials.appkey.reveal() == APPKEY
    assert config.credentials.account.reveal() == "01234567-01"
    assert config.gateway.max_subs == 100
    assert APPKEY not in repr(config)


def test_every_problem_is_told_at_once_with_key_and_line(tmp_path: Path) -> None:
    write(
        tmp_path,
        "paper",
        'environment = "papper"\n'
        "[gateway]\n"
        'sokcet = "/tmp/x"\n'
        'max_subs = "many"\n'
        "[session]\n"
        "fast_receive = 1\n"
        'breaker_pauses_s = "600"\n'
        "[subscriptoins]\n"
        "pinned = []\n",
    )
    found = problems(purpose=Purpose.CLIENT, environ={}, folder=tmp_path)
    assert "paper.toml line 1" in found["environment"]
    assert "line 3" in found["gateway.sokcet"]
    assert "socket?" in found["gateway.sokcet"]
    assert "line 4" in found["gateway.max_subs"]
    assert "true or false" in found["session.fast_receive"]
    assert "[1.0, 2.0]" in found["session.breaker_pauses_s"]
    assert "subscriptions?" in found["subscriptoins"]


@pytest.mark.parametrize("text", ["gateway = 3\n", "gateway = [1]\n", "[[gateway]]\n"])
def test_a_section_that_is_none_is_told(tmp_path: Path, text: str) -> None:
    write(tmp_path, "paper", text)
    assert "gateway" in problems(purpose=Purpose.CLIENT, environ={}, folder=tmp_path)


def test_toml_that_does_not_parse_is_told_with_its_line(tmp_path: Path) -> None:
    path = write(tmp_path, "paper", "environment = \n")
    found = problems(purpose=Purpose.CLIENT, environ={}, folder=tmp_path)
    assert "line 1" in found[str(path)]


def test_a_configuration_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    missing = tmp_path / "none.toml"
    found = problems(purpose=Purpose.CLIENT, environ={}, file=missing, folder=tmp_path)
    assert str(missing) in found


@given(st.dictionaries(st.text(max_size=8), st.from_type(type(None)) | st.integers() | st.text()))
def test_any_tree_is_a_config_or_told_problems(tree: dict[str, Any]) -> None:
    values = settings._Values()
    values.tree = tree
    config = settings._structure(values, "p")
    assert (config is None) == bool(values.problems)


class TestProfiles:
    def test_the_only_configured_profile_is_meant(self, tmp_path: Path) -> None:
        write(tmp_path, "real", "")
        config = load(purpose=Purpose.CLIENT, environ={}, folder=tmp_path)
        assert config.profile == "real"

    def test_with_real_and_paper_nothing_guesses(self, tmp_path: Path) -> None:
        write(tmp_path, "real", "")
        write(tmp_path, "paper", "")
        found = problems(purpose=Purpose.CLIENT, environ={}, folder=tmp_path)
        assert "paper, real" in found["profile"]

    def test_flag_wins_over_environment_variable(self, tmp_path: Path) -> None:
        write(tmp_path, "real", "")
        write(tmp_path, "paper", "")
        environ = {"KISFEED_PROFILE": "real"}
        chosen = load(purpose=Purpose.CLIENT, environ=environ, folder=tmp_path)
        assert chosen.profile == "real"
        chosen = load(purpose=Purpose.CLIENT, profile="paper", environ=environ, folder=tmp_path)
        assert chosen.profile == "paper"

    def test_an_unknown_profile_is_told_with_the_likely_one(self, tmp_path: Path) -> None:
        write(tmp_path, "paper", "")
        found = problems(purpose=Purpose.CLIENT, profile="papr", environ={}, folder=tmp_path)
        assert "Did you mean paper?" in found["profile"]

    @pytest.mark.parametrize("name", ["../etc", "Real", "", "a/b", "a" * 40])
    def test_a_name_that_is_no_file_name_is_refused(self, tmp_path: Path, name: str) -> None:
        if name:
            problems(purpose=Purpose.CLIENT, profile=name, environ={}, folder=tmp_path)
        else:  # an empty variable is no choice
            load(purpose=Purpose.CLIENT, profile=name, environ={}, folder=tmp_path)

    def test_with_nothing_configured_a_client_looks_for_the_simulated_daemon(
        self, tmp_path: Path
    ) -> None:
        config = load(purpose=Purpose.CLIENT, environ={}, folder=tmp_path)
        assert config.profile == "sim"
        assert config.socket_path(Path("/run")) == Path("/run/sim.sock")

    def test_with_nothing_configured_serve_says_what_to_do(self, tmp_path: Path) -> None:
        found = problems(purpose=Purpose.SERVE, environ={}, folder=tmp_path)
        assert "kisfeed init" in found["profile"]

    def test_serve_sim_needs_nothing(self, tmp_path: Path) -> None:
        write(tmp_path, "real", "")
        config = load(purpose=Purpose.SERVE_SIM, environ={}, folder=tmp_path)
        assert (config.profile, config.environment) == ("sim", Environment.SIM)

    def test_the_environment_alone_can_configure(self, tmp_path: Path) -> None:
        environ = {
            "KISFEED_ENVIRONMENT": "paper",
            "KISFEED_CREDENTIALS_APPKEY": APPKEY,
            "KISFEED_CREDENTIALS_APPSECRET": APPSECRET,
        }
        config = load(purpose=Purpose.SERVE, environ=environ, folder=tmp_path)
        assert config.credentials.appsecret.reveal() == APPSECRET


class TestSources:
    def test_flag_over_environment_over_file_over_default(self, tmp_path: Path) -> None:
        text = paper('[gateway]\nsocket = "/file"\nmax_subs = 7\nmax_clients = 8\n')
        environ = {"KISFEED_GATEWAY_SOCKET": "/env", "KISFEED_GATEWAY_MAX_SUBS": "9"}
        config = read(
            tmp_path, text, environ=environ, flags={"gateway.socket": ("/flag", "--socket")}
        )
        assert config.gateway.socket == "/flag"
        assert config.gateway.max_subs == 9
        assert config.gateway.max_clients == 8
        assert config.gateway.write_deadline_s == 10.0

    def test_every_key_has_a_variable(self, tmp_path: Path) -> None:
        write(tmp_path, "paper", "")
        for path, kind in settings.leaves().items():
            found = problems(
                purpose=Purpose.CLIENT,
                environ={settings.variable(path): "???", "KISFEED_GATEWAY_NONE": ""},
                folder=tmp_path,
            )
            if kind in (int, float, bool, Environment):
                assert settings.variable(path) in found[path]

    def test_lists_come_with_commas(self, tmp_path: Path) -> None:
        environ = {
            "KISFEED_SUBSCRIPTIONS_PINNED": "trade.krx.005930, book.krx.005930",
            "KISFEED_SESSION_BREAKER_PAUSES_S": "700,1300",
        }
        config = load(purpose=Purpose.CLIENT, environ=environ, folder=tmp_path)
        assert config.subscriptions.pinned == ("trade.krx.005930", "book.krx.005930")
        assert config.session.breaker_pauses_s == (700.0, 1300.0)

    def test_a_misspelt_variable_is_told_and_a_foreign_one_left_alone(self, tmp_path: Path) -> None:
        load(purpose=Purpose.CLIENT, environ={"KISFEED_SERVICE_PORT": "80"}, folder=tmp_path)
        environ = {"KISFEED_GATEWAY_SOKCET": "/x"}
        found = problems(purpose=Purpose.CLIENT, environ=environ, folder=tmp_path)
        assert "KISFEED_GATEWAY_SOCKET?" in found["KISFEED_GATEWAY_SOKCET"]


class TestSecrets:
    @pytest.mark.parametrize("mode", [0o644, 0o640, 0o604])
    def test_a_file_with_secrets_that_others_may_read_is_refused(
        self, tmp_path: Path, mode: int
    ) -> None:
        write(tmp_path, "paper", paper(), mode)
        found = problems(purpose=Purpose.SERVE, environ={}, folder=tmp_path)
        assert "chmod 600" in found["credentials"]

    def test_a_file_without_secrets_may_be_open(self, tmp_path: Path) -> None:
        write(tmp_path, "paper", 'environment = "sim"\n', 0o644)
        load(purpose=Purpose.CLIENT, environ={}, folder=tmp_path)

    def test_a_secret_may_stand_in_its_own_file(self, tmp_path: Path) -> None:
        secret = tmp_path / "secret"
        secret.write_text(APPSECRET + "\n")
        secret.chmod(0o600)
        text = (
            'environment = "paper"\n[credentials]\n'
            f'appkey = "{APPKEY}"\nappsecret_file = "{secret}"\n'
        )
        assert read(tmp_path, text).credentials.appsecret.reveal() == APPSECRET
        secret.chmod(0o644)
        found = problems(purpose=Purpose.SERVE, environ={}, folder=tmp_path)
        assert "chmod 600" in found["credentials.appsecret_file"]
        secret.unlink()
        found = problems(purpose=Purpose.SERVE, environ={}, folder=tmp_path)
        assert "secret" in found["credentials.appsecret_file"]

    def test_secret_and_file_of_it_together_are_refused(self, tmp_path: Path) -> None:
        write(tmp_path, "paper", paper('appkey_file = "/x"\n'))
        found = problems(purpose=Purpose.SERVE, environ={}, folder=tmp_path)
        assert "not both" in found["credentials.appkey_file"]

    def test_the_environment_wins_over_the_files_secret_file(self, tmp_path: Path) -> None:
        text = (
            f'environment = "paper"\n[credentials]\nappsecret = "{APPSECRET}"\n'
            'appkey_file = "/nowhere"\n'
        )
        environ = {"KISFEED_CREDENTIALS_APPKEY": APPKEY}
        config = read(tmp_path, text, environ=environ)
        assert config.credentials.appkey.reveal() == APPKEY

    def test_systemd_credentials_win_over_the_file(self, tmp_path: Path) -> None:
        folder = tmp_path / "credentials"
        folder.mkdir()
        (folder / "appkey").write_text("PS" + "c" * 34)
        config = read(tmp_path, paper(), environ={"CREDENTIALS_DIRECTORY": str(folder)})
        assert config.credentials.appkey.reveal() == "PS" + "c" * 34
        assert config.credentials.appsecret.reveal() == APPSECRET

    @pytest.mark.parametrize(
        ("text", "key"),
        [
            (f'appkey = "{APPSECRET}"\nappsecret = "{APPKEY}"', "credentials"),
            (f'appkey = "앱키"\nappsecret = "{APPSECRET}"', "credentials.appkey"),
            (f'appkey = "{APPKEY}"\nappsecret = "short"', "credentials.appsecret"),
            (f'appsecret = "{APPSECRET}"', "credentials.appkey"),
            (
                f'appkey = "{APPKEY}"\nappsecret = "{APPSECRET}"\naccount = "1234"',
                "credentials.account",
            ),
        ],
    )
    def test_keys_that_kis_cannot_have_given_are_told_without_showing_them(
        self, tmp_path: Path, text: str, key: str
    ) -> None:
        write(tmp_path, "paper", f'environment = "paper"\n[credentials]\n{text}\n')
        found = problems(purpose=Purpose.SERVE, environ={}, folder=tmp_path)
        assert list(found) == [key]
        assert APPKEY not in found[key]
        assert "short" not in found[key]


class TestEndpoints:
    @pytest.mark.parametrize(
        ("environment", "name", "address", "accepted"),
        [
            ("paper", "rest", "https://proxy.example:9443", True),
            ("paper", "rest", "http://openapivts.koreainvestment.com:29443", False),
            ("paper", "rest", "https://host:port", False),
            ("paper", "rest", "https://user@host", False),
            ("paper", "rest", "https://host/path", False),
            ("paper", "ws", "ws://ops.koreainvestment.com:31000", True),
            ("paper", "ws", "ws://127.0.0.1:31000", False),
            ("paper", "ws", "wss://proxy.example", False),
            ("sim", "rest", "http://127.0.0.1:8000", True),
            ("sim", "rest", "http://[::1]:8000", True),
            ("sim", "rest", "http://localhost:8000/", True),
            ("sim", "rest", "https://127.0.0.1:8000", False),
            ("sim", "rest", "http://10.0.0.1:8000", False),
            ("sim", "ws", "ws://127.0.0.2:9000", True),
            ("sim", "ws", "ws://ops.koreainvestment.com:21000", False),
        ],
    )
    def test_an_address_fits_its_environment_or_is_refused(
        self, tmp_path: Path, environment: str, name: str, address: str, accepted: bool
    ) -> None:
        write(tmp_path, "p", f'environment = "{environment}"\n[endpoints]\n{name} = "{address}"\n')
        if accepted:
            load(purpose=Purpose.CLIENT, environ={}, folder=tmp_path)
        else:
            found = problems(purpose=Purpose.CLIENT, environ={}, folder=tmp_path)
            assert list(found) == [f"endpoints.{name}"]

    def test_a_simulated_environment_needs_both_addresses(self, tmp_path: Path) -> None:
        write(tmp_path, "p", 'environment = "sim"\n')
        found = problems(purpose=Purpose.SERVE, environ={}, folder=tmp_path)
        assert list(found) == ["endpoints.rest", "endpoints.ws"]


class TestSession:
    def test_the_defaults_are_allowed(self, tmp_path: Path) -> None:
        assert read(tmp_path, paper()).session == Session()

    @pytest.mark.parametrize(
        ("line", "key"),
        [
            ("min_lifetime_s = 30", "min_lifetime_s"),
            ("backoff_base_s = 1.0", "backoff_base_s"),
            ("breaker_pauses_s = [600.0, 60.0]", "breaker_pauses_s"),
            ("young_sessions_to_trip = 4", "young_sessions_to_trip"),
            ("swaps_per_hour = 61", "swaps_per_hour"),
            ("time_scale = 60.0", "time_scale"),
            ("ack_timeout_s = 0", "ack_timeout_s"),
            ("breaker_pauses_s = []", "breaker_pauses_s"),
            ('rotation = "random"', "rotation"),
        ],
    )
    def test_discipline_may_be_tightened_only(self, tmp_path: Path, line: str, key: str) -> None:
        write(tmp_path, "paper", paper(f"[session]\n{line}\n"))
        found = problems(purpose=Purpose.SERVE, environ={}, folder=tmp_path)
        assert list(found) == [f"session.{key}"]

    def test_tighter_is_allowed(self, tmp_path: Path) -> None:
        config = read(tmp_path, paper("[session]\nmin_lifetime_s = 90\nswaps_per_hour = 10\n"))
        assert config.session.min_lifetime_s == 90.0

    @pytest.mark.parametrize(
        ("value", "accepted"),
        [
            ("[{count = 2, seconds = 60}]", True),
            ("[{count = 2}]", False),
            ("[{count = 2, seconds = 60, per = 1}]", False),
            ("[{count = 0, seconds = 60}]", False),
            ("[2]", False),
        ],
    )
    def test_further_dial_windows_can_be_given(
        self, tmp_path: Path, value: str, accepted: bool
    ) -> None:
        write(tmp_path, "paper", paper(f"[session]\ndials = {value}\n"))
        if accepted:
            config = load(purpose=Purpose.SERVE, environ={}, folder=tmp_path)
            assert config.session.dials == (Window(2, 60.0),)
            environ = {"KISFEED_SESSION_DIALS": "1/30, 5/3600"}
            config = load(purpose=Purpose.SERVE, environ=environ, folder=tmp_path)
            assert config.session.dials == (Window(1, 30.0), Window(5, 3600.0))
        else:
            found = problems(purpose=Purpose.SERVE, environ={}, folder=tmp_path)
            assert list(found) == ["session.dials"]

    def test_a_simulated_session_may_hurry(self, tmp_path: Path) -> None:
        write(tmp_path, "p", 'environment = "sim"\n[session]\nmin_lifetime_s = 0.1\n')
        load(purpose=Purpose.CLIENT, environ={}, folder=tmp_path)


def schema() -> dict[str, Any]:
    """The JSON Schema that the configuration classes imply.

    ``python -m tests.test_cli_settings`` writes it to ``schemas/config.schema.json``.
    """

    def is_leaf(kind: Any) -> bool:
        return kind is Secret or not attrs.has(kind)

    def leaf(kind: Any) -> dict[str, Any]:
        if kind is Environment:
            return {"enum": [str(e) for e in Environment]}
        if kind is Window:
            numbers = {"count": {"type": "integer"}, "seconds": {"type": "number"}}
            return {
                "type": "object",
                "additionalProperties": False,
                "required": list(numbers),
                "properties": numbers,
            }
        if typing.get_origin(kind) is tuple:
            return {"type": "array", "items": leaf(typing.get_args(kind)[0])}
        names = {bool: "boolean", int: "integer", float: "number", str: "string", Secret: "string"}
        return {"type": names[kind]}

    def section(cls: type, skip: tuple[str, ...] = ()) -> dict[str, Any]:
        properties: dict[str, Any] = {}
        for field in attrs.fields(attrs.resolve_types(cls)):
            if field.name in skip:
                continue
            kind = field.type
            properties[field.name] = leaf(kind) if is_leaf(kind) else section(kind)
            if kind is Secret:
                properties[f"{field.name}_file"] = {"type": "string"}
        return {"type": "object", "additionalProperties": False, "properties": properties}

    head = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "kisfeed.toml",
        "description": "One profile of kisfeed: one appkey, its socket and its state.",
    }
    return head | section(Config, skip=("profile",))


def test_the_published_schema_is_what_the_classes_say() -> None:
    assert schemas.load("config.schema.json") == schema()


def test_the_published_schema_accepts_what_load_accepts(tmp_path: Path) -> None:
    validator = jsonschema.Draft202012Validator(schemas.load("config.schema.json"))
    validator.validate(tomllib.loads(paper('appkey_file = "/x"\n[session]\nmin_lifetime_s = 9\n')))
    assert not validator.is_valid({"gateway": {"sokcet": "/x"}})


if __name__ == "__main__":
    text = json.dumps(schema(), indent=2, ensure_ascii=False) + "\n"
    (schemas.folder() / "config.schema.json").write_text(text, "utf-8")
