"""Benchmark (g): the time and memory to select from a million annotated rows and to report on them.

Each step runs in a separate process; memory is its peak of private pages above the import of its packages.

    python -m benchmarks.bench_select --rows 1000000
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np


def make(rows: int, place: Path) -> Path:
    """Write annotated rows as parquet: texts of about 100 and 400 characters."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from magpie_hf.columns import SCALES

    rng = np.random.default_rng(0)
    target = place / "rows.parquet"
    words = np.array(
        [
            "the",
            "a",
            "sea",
            "poem",
            "bread",
            "city",
            "write",
            "explain",
            "how",
            "list",
            "three",
            "why",
            "number",
            "code",
            "python",
            "story",
            "plan",
        ]
    )
    writer = None
    for start in range(0, rows, 50_000):
        count = min(50_000, rows - start)
        texts = [" ".join(words[row]) for row in rng.integers(0, len(words), (count, 18))]
        uuids = [f"{n:032x}" for n in range(start, start + count)]
        table = pa.table(
            {
                "uuid": uuids,
                "group_id": uuids,
                "instruction": texts,
                "response": [text * 4 for text in texts],
                "input_quality": rng.choice(SCALES["input_quality"], count),
                "difficulty": rng.choice(SCALES["difficulty"], count),
                "task_category": rng.choice(["Math", "Reasoning", "Editing"], count),
                "instruct_reward": rng.normal(-8, 5, count),
                "reward_difference": rng.normal(0, 2, count),
                "min_neighbor_distance": rng.uniform(0, 1, count).astype(np.float32),
                "instruction_tokens": rng.integers(3, 90, count),
                "response_tokens": rng.integers(3, 900, count),
                "response_length": rng.integers(3, 4000, count),
            }
        )
        writer = writer or pq.ParquetWriter(target, table.schema)
        writer.write_table(table)
    assert writer is not None
    writer.close()
    return target


def child(step: str, source: str, place: str) -> None:
    """Run a step and print its seconds and peaks as JSON."""
    import datasets

    import magpie_hf
    import magpie_hf.reports
    from benchmarks.bench_overhead import Memory

    dataset = datasets.load_dataset("parquet", data_files=source, split="train", cache_dir=place)
    memory = Memory()
    started = time.perf_counter()
    if step == "select":
        kept = len(magpie_hf.select(dataset, "pro-filter2", longest=100_000))
    else:
        kept = magpie_hf.report(dataset, Path(place) / "report.html").stat().st_size
    print(json.dumps({"seconds": time.perf_counter() - started, "result": kept, **memory.peaks()}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--child", nargs=3)
    options = parser.parse_args()
    if options.child:
        child(*options.child)
        return
    print("| measure | value | limit |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as place:
        source = make(options.rows, Path(place))
        for step in ("select", "report"):
            command = [sys.executable, "-m", "benchmarks.bench_select", "--child", step, str(source), place]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found = json.loads(done.stdout.splitlines()[-1])
            print(f"| {step}, {options.rows:,} rows | {found['seconds']:.1f} s | - |")
            memory = f"{found['memory_mb']:.0f} MB (and {found['mapped_mb']:.0f} MB of mapped files)"
            print(f"| {step}, memory above import | {memory} | 2,000 MB |", flush=True)


if __name__ == "__main__":
    main()
