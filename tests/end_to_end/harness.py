"""Run the command line in separate processes that can be killed, and read the files of their runs."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from magpie_hf.cli.main import main
from magpie_hf.storage.journal import Journal
from magpie_hf.storage.rundir import RunDir
from tests.end_to_end.warm import POSSIBLE, Warm, WarmProcess


TIMEOUT_S = 100.0
POLL_S = 0.002
TEXTS = [
    "What is 12 + 7?",
    "Write a short poem about the sea.",
    "How can I steal a bike?",
    "asdf ghjk qwer",
    "Name two planets.",
]
RESPONSES = ["19", "Waves.", "Sure, do it at night.", "?", "Mars and Venus."]


def environment(**extra: str) -> dict[str, str]:
    """Return the environment of a run: that of the tests, with one thread and unbuffered output."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", **extra}


@functools.cache
def _warm() -> Warm:
    return Warm()


def start(*arguments: object, **extra: str) -> WarmProcess | subprocess.Popen[str]:
    """Start `magpie-hf ARGUMENTS` in a process forked from one that has imported torch, if the system supports it."""
    if POSSIBLE:
        return _warm().start([str(argument) for argument in arguments], environment(**extra))
    return start_cold(*arguments, **extra)


def start_cold(*arguments: object, **extra: str) -> subprocess.Popen[str]:
    """Start `python -m magpie_hf ARGUMENTS`, as a user does."""
    command = [sys.executable, "-m", "magpie_hf", *map(str, arguments)]
    return subprocess.Popen(
        command, env=environment(**extra), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(process: WarmProcess | subprocess.Popen[str], code: int | None = 0) -> str:
    """Wait for a run to end and return its output; check its exit code unless `code` is None."""
    output, _ = process.communicate(timeout=TIMEOUT_S)
    if code is not None:
        assert process.returncode == code, output
    return output


def magpie(*arguments: object, code: int | None = 0, **extra: str) -> str:
    """Run `magpie-hf ARGUMENTS` in a separate process and return its output."""
    return finish(start(*arguments, **extra), code)


def here(*arguments: object, code: int | None = 0) -> str:
    """Run `magpie-hf ARGUMENTS` in this process, which is faster, and return its output."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        given = main([str(argument) for argument in arguments])
    assert code is None or given == code, printed.getvalue()
    return printed.getvalue()


def wait_until(process: WarmProcess | subprocess.Popen[str], reached: Callable[[], bool]) -> bool:
    """Wait for `reached()`; return False if the run ended before."""
    deadline = time.monotonic() + TIMEOUT_S
    while process.poll() is None:
        if reached():
            return True
        assert time.monotonic() < deadline, "the run hangs"
        time.sleep(POLL_S)
    return False


def kill_when(process: WarmProcess | subprocess.Popen[str], reached: Callable[[], bool]) -> bool:
    """Kill -9 the run as soon as `reached()`; return False if it ended before."""
    if not wait_until(process, reached):
        return False
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    return True


def moments(seed: int, count: int, total: int) -> list[int]:
    """Return `count` increasing numbers in [1, total), drawn with the seed: the moments to kill at."""
    return sorted(random.Random(seed).sample(range(1, total), count))


def journal_bytes(run: Path) -> int:
    """Return the size of all journals of a run."""
    return sum(path.stat().st_size for path in run.glob("stages/*/journal/*.jnl"))


def records(run: Path) -> dict[str, Counter[bytes]]:
    """Return for each stage how many times each row was finished."""
    found: dict[str, Counter[bytes]] = {}
    for directory in sorted(run.glob("stages/*/journal")):
        journal = Journal(directory)
        counts = found.setdefault(directory.parent.name, Counter())
        for segment in sorted(directory.glob("*.jnl")):
            counts.update(key for *_, key in journal._records(segment))
    return found


def num_records(run: Path) -> int:
    """Return the finished rows of all stages."""
    return sum(sum(counts.values()) for counts in records(run).values())


def nothing_twice(run: Path) -> None:
    """Assert that no row of any stage was finished twice."""
    for stage, counts in records(run).items():
        assert [key for key, count in counts.items() if count > 1] == [], stage


def rows(run: Path) -> list[dict]:
    """Load the rows of a run's dataset as a user does."""
    from datasets import load_dataset

    return load_dataset(str(run), split="train").to_list()


def without_provenance(table: list[dict]) -> list[dict]:
    """Return rows without the columns that contain what a server reports of itself."""
    dropped = ("gen_input_configs", "gen_response_configs", "gen_turns_configs")
    return [{k: v for k, v in row.items() if k not in dropped} for row in table]


def tokens_spent(run: Path) -> int:
    """Return the tokens that run.json counts over all stages."""
    stages = RunDir.read(run).state.stages.values()
    return sum(stage.counts.completion_tokens for stage in stages if stage.counts)
