"""Coverage-guided fuzzing of what reads bytes: ``python -m tests.fuzz [kis|kfp] [--seconds N]``.

Needs the packages of ``tests/fuzz/requirements.lock``, in an environment of their own. What is
found is written to ``tests/fuzz/found/``; ``--replay FILE`` shows it again.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import atheris

with atheris.instrument_imports(include=["kisfeed.kis", "kisfeed.kfp", "kisfeed.client.core"]):
    from tests.fuzz import oracles

if TYPE_CHECKING:
    from collections.abc import Sequence

FOUND = Path(__file__).with_name("found")
LONGEST = 4096  # bytes of one input


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="kis|kfp")
    parser.add_argument("--seconds", type=int, default=60, help="for all targets together (60)")
    parser.add_argument("--replay", type=Path, help="one input again, for one target")
    options = parser.parse_args(arguments)
    targets = options.targets or list(oracles.ORACLES)
    if unknown := set(targets) - set(oracles.ORACLES):
        parser.error(f"no target is called {', '.join(sorted(unknown))}")
    if options.replay is not None:
        for target in targets:
            oracles.ORACLES[target](options.replay.read_bytes())
        return 0
    FOUND.mkdir(exist_ok=True)
    worst = 0
    for target in targets:
        print(f"== {target}", flush=True)
        seconds = options.seconds // len(targets)
        # libFuzzer ends the process that it runs in.
        command = [sys.executable, "-m", "tests.fuzz.__main__", "--libfuzzer", target, str(seconds)]
        worst = max(worst, subprocess.run(command, check=False).returncode)
    return worst


def fuzz(target: str, seconds: str) -> None:
    with tempfile.TemporaryDirectory(prefix="kisfeed-fuzz-") as name:
        corpus, words = Path(name) / "corpus", Path(name) / "words"
        corpus.mkdir()
        for number, seed in enumerate(oracles.seeds(target)):
            (corpus / f"seed-{number}").write_bytes(seed)
        quoted = [word.replace('"', r"\"") for word in oracles.WORDS[target]]
        words.write_text("".join(f'"{word}"\n' for word in quoted), "utf-8")
        flags = [
            f"-max_total_time={seconds}",
            f"-max_len={LONGEST}",
            f"-dict={words}",
            f"-artifact_prefix={FOUND}/{target}-",
            "-timeout=5",
            "-rss_limit_mb=2048",
            "-print_final_stats=1",
            "-verbosity=1",
        ]
        atheris.Setup([sys.argv[0], *flags, str(corpus)], oracles.ORACLES[target])
        atheris.Fuzz()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--libfuzzer"]:
        fuzz(*sys.argv[2:])
    else:
        sys.exit(main(sys.argv[1:]))
