"""Run every benchmark and write the tables to benchmarks/RESULTS.md.

    python -m benchmarks                 all of them
    python -m benchmarks endpoint local  only these (bench_endpoint.py, bench_local.py)

A benchmark is a module `bench_*.py` that prints a Markdown table of `measure | value | limit`.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple


HERE = Path(__file__).parent
RESULTS = HERE / "RESULTS.md"
VERSIONS = ("torch", "transformers", "datasets", "huggingface_hub", "aiohttp")


class Ended(NamedTuple):
    """A benchmark's table, the first line of its docstring, its duration, and whether it succeeded."""

    name: str
    title: str
    table: list[str]
    elapsed_s: float
    is_good: bool


def title_of(name: str) -> str:
    """Return the first line of the module's docstring."""
    return (HERE / f"bench_{name}.py").read_text(encoding="utf-8").split('"""', 2)[1].splitlines()[0].strip()


def run(name: str) -> Ended:
    """Run one benchmark in a separate process and show its output while it runs."""
    print(f"== {title_of(name)}", flush=True)
    start = time.monotonic()
    command = [sys.executable, "-u", "-m", f"benchmarks.bench_{name}"]
    lines = []
    with subprocess.Popen(command, cwd=HERE.parent, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line.rstrip("\n"))
    table = [line for line in lines if line.startswith("|")] or [line for line in lines if line]
    return Ended(name, title_of(name), table, time.monotonic() - start, process.returncode == 0)


def machine() -> str:
    """Return the versions and the machine of the measurements."""
    packages = ", ".join(f"{name} {version(name)}" for name in VERSIONS)
    return f"{os.cpu_count()} CPU cores, {platform.machine()}, Python {platform.python_version()}; {packages}"


def write(results: list[Ended]) -> None:
    """Write the tables; keep those of benchmarks that did not run this time."""
    kept = sections()
    for ended in results:
        note = "" if ended.is_good else "\n\n**It failed; the table is not complete.**"
        table = "\n".join(ended.table)
        day = datetime.now(UTC).date()
        kept[ended.name] = f"{ended.title}\n\n{table}{note}\n\n{day}, {ended.elapsed_s:.0f} s, on {machine()}."
    parts = [f"## {name}\n\n{text}\n" for name, text in sorted(kept.items())]
    RESULTS.write_text("\n".join(["# Benchmark results\n\nWritten by `make bench`.\n", *parts]), encoding="utf-8")


def sections() -> dict[str, str]:
    """Return the current section of each benchmark in the file."""
    if not RESULTS.exists():
        return {}
    _, *parts = RESULTS.read_text(encoding="utf-8").split("\n## ")
    return {part.split("\n", 1)[0].strip(): part.split("\n", 1)[1].strip() for part in parts}


def main() -> int:
    """Return 0 if all benchmarks succeeded."""
    known = sorted(path.stem.removeprefix("bench_") for path in HERE.glob("bench_*.py"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(known)}")
    names = parser.parse_args().names or known
    if unknown := set(names) - set(known):
        parser.error(f"no benchmark is called {', '.join(sorted(unknown))}; known: {', '.join(known)}")
    results = [run(name) for name in names]
    write(results)
    print(f"Written to {RESULTS}")
    return 0 if all(ended.is_good for ended in results) else 1


if __name__ == "__main__":
    sys.exit(main())
