"""Benchmark (h): publishing compared with `Dataset.push_to_hub`, and the cost of publishing during a run.

The Hub is the test server in a separate process on this machine, so this measures the client, not the network.

    python -m benchmarks.bench_push --rows 200000
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np


ROOT = Path(__file__).parents[1]


def rows(count: int):
    """Return rows of about 100 and 500 characters, with labels."""
    from datasets import Dataset

    rng = np.random.default_rng(0)
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
    texts = [" ".join(words[row]) for row in rng.integers(0, len(words), (count, 18))]
    answers = [" ".join(words[row]) for row in rng.integers(0, len(words), (count, 90))]
    labels = np.array(["poor", "average", "good", "excellent"])[rng.integers(0, 4, count)]
    return Dataset.from_dict(
        {
            "instruction": texts,
            "response": answers,
            "input_quality": labels,
            "instruction_tokens": rng.integers(3, 60, count),
            "response_tokens": rng.integers(10, 400, count),
        }
    )


def serve() -> None:
    from tests.servers.hub_server import HubServer

    HubServer().run_forever(print_port=True)


def push(count: int, ours: bool) -> None:
    """Push in this process and print the seconds."""
    dataset = rows(count)
    started = time.perf_counter()
    if ours:
        import magpie_hf

        magpie_hf.push_to_hub(dataset, "me/ours", license="mit")
    else:
        dataset.push_to_hub("me/theirs")
    print(time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--do", choices=("serve", "ours", "theirs"))
    options = parser.parse_args()
    if options.do == "serve":
        serve()
        return
    if options.do:
        push(options.rows, options.do == "ours")
        return
    me = [sys.executable, "-m", "benchmarks.bench_push", "--rows", str(options.rows), "--do"]
    server = subprocess.Popen([*me, "serve"], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        url = f"http://127.0.0.1:{int(server.stdout.readline())}"
        report(options.rows, me, url)
    finally:
        server.kill()


def report(count: int, me: list[str], url: str) -> None:
    env = {
        **os.environ,
        "HF_ENDPOINT": url,
        "HF_TOKEN": "hf_testtoken0123456789",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_OFFLINE": "0",
    }
    env |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "NO_PROXY": "127.0.0.1", "OMP_NUM_THREADS": "1"}

    def seconds(what: str) -> float:
        done = subprocess.run([*me, what], cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True, check=True)
        return float(done.stdout.split()[-1])

    theirs, ours, again = seconds("theirs"), seconds("ours"), seconds("ours")
    print("| measure | value | limit |\n|---|---|---|")
    print(f"| `Dataset.push_to_hub`, {count:,} rows | {theirs:.1f} s | - |")
    print(
        f"| `magpie_hf.push_to_hub`, statistics, charts and card included | {ours:.1f} s, {ours / theirs:.2f} times | - |"
    )
    print(f"| the same again: nothing is sent | {again:.1f} s, {again / theirs:.2f} times | - |")
    with tempfile.TemporaryDirectory() as directory:
        run = [
            sys.executable,
            "-m",
            "magpie_hf",
            "run",
            "quickstart",
            "--num-rows",
            "400",
            "--rows",
            "0",
            "--quiet",
            "--output",
        ]
        times = {}
        for name, more in (("alone", []), ("published", ["--push-to", "me/run", "--set", "push.every_s=2"])):
            started = time.perf_counter()
            subprocess.run([*run, f"{directory}/{name}", *more], env=env, check=True, stdout=subprocess.DEVNULL)
            times[name] = time.perf_counter() - started
    print(f"| quickstart, 400 rows | {times['alone']:.1f} s | - |")
    print(
        f"| the same, published while it is on (every 2 s) | {times['published']:.1f} s, {times['published'] / times['alone']:.2f} times | - |"
    )


if __name__ == "__main__":
    main()
