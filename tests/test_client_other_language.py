from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from kisfeed import schemas
from tests.kfp_daemon import TRADE, ScriptedDaemon, T, listening

_CLIENT = Path(__file__).with_name("clients") / "client.mjs"
_NODE = shutil.which("node")

pytestmark = pytest.mark.skipif(_NODE is None, reason="node is not installed")


def _run(path: Path, count: int) -> list[list[object]]:
    assert _NODE is not None
    done = subprocess.run(
        [_NODE, str(_CLIENT), str(path), TRADE, str(count)],
        capture_output=True,
        check=True,
        text=True,
        timeout=30,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_client_written_from_the_schemas_receives_ticks(tmp_path: Path) -> None:
    with listening(tmp_path / "s", ScriptedDaemon()):
        welcome, answer, *ticks = _run(tmp_path / "s", 2)
    assert welcome[0] == 16
    assert answer[:2] == [17, 2]
    assert [tick[:3] for tick in ticks] == [[20, 1, 1], [20, 1, 2]]
    assert ticks[0][6:] == [71000, 10, 1110]
    # Nanoseconds do not fit a JavaScript number; a client that needs them all uses BigInt.
    assert ticks[0][4] == pytest.approx(T)


def test_it_decodes_every_vector(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = schemas.load("kfp1/vectors.json")["vectors"]
    frames = iter([b"".join(bytes.fromhex(vector["hex"]) for vector in vectors)])
    monkeypatch.setattr("tests.kfp_daemon.Conversation.answer", lambda *_: next(frames, b""))
    ticks = sum(vector["type"] == 20 for vector in vectors)
    with listening(tmp_path / "s", ScriptedDaemon()):
        decoded = _run(tmp_path / "s", ticks)
    expected = [json.loads(json.dumps(v["message"]), parse_int=float) for v in vectors]
    assert json.loads(json.dumps(decoded), parse_int=float) == expected
