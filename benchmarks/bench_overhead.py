"""Benchmarks (c) and (d): the overhead of our own code per row, memory of large runs, and the time to resume.

A null engine (no model) runs instructions and responses. Limits: 150 µs per row and stage, 300 MB above import, and a resumed run
reaches the point of interruption in 2 % of the first run's time (projected to a model that takes `--ms-per-row`, because a first
run with a null engine takes almost no time; both figures are printed).

    python -m benchmarks.bench_overhead --rows 100000
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path


def child(rows: int, place: str, model: str, stop_at: int | None) -> None:
    """Run in a separate process: print seconds, peak memory above import, and rows as JSON."""
    import datasets  # noqa: F401 (part of "import")

    import magpie_hf
    import magpie_hf.api.synthesis
    from magpie_hf.engines import ENGINES
    from magpie_hf.errors import BudgetExceeded
    from tests.null_engine import NullEngine

    ENGINES["null"] = "tests.null_engine:NullEngine"
    magpie_hf.ChatTemplate.load(model).pre_query()
    memory = Memory()
    recipe = {
        "model": model,
        "num_rows": rows,
        "engine": {"kind": "null", "log_requests": False},
        "sampling": {"temperature": 1.0},
        "stages": ["instructions", "responses"],
        "output": {"format": "none"},
    }
    if stop_at:
        recipe["budget"] = {"max_tokens_total": 22 * stop_at}  # the null engine counts 22 tokens a request
    started = time.perf_counter()
    with contextlib.suppress(BudgetExceeded):
        magpie_hf.run(recipe, output=place, show_progress=False)
    seconds = time.perf_counter() - started
    print(json.dumps({"seconds": seconds, **memory.peaks(), "asked": NullEngine.opened}))


class Memory:
    """Peaks above the start: `memory_mb` of private memory, `mapped_mb` of memory-mapped files, which the system can free."""

    def __init__(self) -> None:
        self._start = self._now()
        self._peak = dict(self._start)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    @staticmethod
    def _now() -> dict[str, float]:
        lines = Path("/proc/self/status").read_text().splitlines()
        wanted = [line.split() for line in lines if line.startswith(("RssAnon", "RssFile"))]
        return {name.rstrip(":"): int(value) / 1024 for name, value, _ in wanted}

    def _watch(self) -> None:
        while not self._done.wait(0.01):
            for name, value in self._now().items():
                self._peak[name] = max(self._peak[name], value)

    def peaks(self) -> dict[str, float]:
        self._done.set()
        self._thread.join()
        above = {name: self._peak[name] - self._start[name] for name in self._peak}
        return {"memory_mb": above["RssAnon"], "mapped_mb": above["RssFile"]}


def measure(rows: int, place: Path, model: str, stop_at: int | None = None) -> dict[str, float]:
    """Run `child` in a new interpreter."""
    command = [sys.executable, "-m", "benchmarks.bench_overhead", "--child", str(place), "--rows", str(rows)]
    command += ["--model", model] + (["--stop-at", str(stop_at)] if stop_at else [])
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    result: dict[str, float] = json.loads(out.splitlines()[-1])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--large", type=int, default=0, help="a second, larger run to compare memory with")
    parser.add_argument("--model", default="")
    parser.add_argument(
        "--ms-per-row", type=float, default=20.0, help="of the model that the resume time is set against"
    )
    parser.add_argument("--child")
    parser.add_argument("--stop-at", type=int)
    options = parser.parse_args()
    if options.child:
        child(options.rows, options.child, options.model, options.stop_at)
        return
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        model = options.model or "demo"
        first = measure(options.rows, place / "first", model)
        per_row = first["seconds"] / options.rows / 2 * 1e6
        print("| measure | value | limit |")
        print("|---|---|---|")
        print(f"| overhead per row and stage, {options.rows:,} rows | {per_row:.0f} µs | 150 µs |")
        print(
            f"| memory above import, {options.rows:,} rows | {first['memory_mb']:.0f} MB (and {first['mapped_mb']:.0f} MB of mapped files) | 300 MB |"
        )
        if options.large:
            large = measure(options.large, place / "large", model)
            per_large = large["seconds"] / options.large / 2 * 1e6
            print(f"| overhead per row and stage, {options.large:,} rows | {per_large:.0f} µs | 150 µs |")
            print(
                f"| memory above import, {options.large:,} rows | {large['memory_mb']:.0f} MB (and {large['mapped_mb']:.0f} MB of mapped files) | 300 MB |"
            )
        reached = options.rows * 3 // 2  # all instructions, half of the responses
        half = measure(options.rows, place / "half", model, stop_at=reached)
        rest = measure(options.rows, place / "half", model, stop_at=reached)
        nominal = reached * options.ms_per_row / 1000
        print(
            f"| resume after {reached:,} requests | {rest['seconds']:.2f} s, {rest['seconds'] / nominal:.2%} "
            f"of {nominal:.0f} s at {options.ms_per_row:g} ms a row | 2 % |"
        )
        print(f"| the same against the null engine's own time | {rest['seconds'] / half['seconds']:.0%} | - |")


if __name__ == "__main__":
    main()
