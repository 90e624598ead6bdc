"""Benchmark (e): distilabel 1.5.3's MagpieGenerator compared with magpie_hf, both on the demo model.

distilabel is installed into a separate environment (.cache/distilabel), because it requires transformers below 5. If the
installation fails, the benchmark reports it and succeeds. Both generate one instruction and one response per row, with at most
`--max-tokens` each. distilabel's time starts when its model is loaded, ours with the call.

    python -m benchmarks.bench_distilabel
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path


ROOT = Path(__file__).parents[1]
ENVIRONMENT = ROOT / ".cache" / "distilabel"
PACKAGES = ("distilabel==1.5.3", "transformers>=4.57,<5", "accelerate")
PRE_QUERY = "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n"
LIMIT = 20


def install() -> str | None:
    """Set up distilabel's environment if it does not exist; return the error, or None."""
    python, stamp = ENVIRONMENT / "bin" / "python", ENVIRONMENT / ".ready"
    if stamp.exists():
        return None
    torch = next(line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("torch=="))
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    steps = [[sys.executable, "-m", "venv", str(ENVIRONMENT)], [*pip, torch], [*pip, *PACKAGES]]
    for step in [*steps, [str(python), "-c", "from distilabel.steps.tasks import MagpieGenerator"]]:
        done = subprocess.run(step, capture_output=True, text=True)
        if done.returncode != 0:
            return (done.stderr.strip().splitlines() or ["no reason given"])[-1][:200]
    stamp.touch()
    return None


def child(model: str, rows: int, batch: int, max_tokens: int) -> None:
    """Run in distilabel's environment: print seconds and rows as JSON."""
    from distilabel.models.llms import TransformersLLM  # type: ignore[import-not-found]
    from distilabel.steps.tasks import MagpieGenerator  # type: ignore[import-not-found]

    task = MagpieGenerator(
        llm=TransformersLLM(
            model=model,
            device="cpu",
            magpie_pre_query_template=PRE_QUERY,
            generation_kwargs={"max_new_tokens": max_tokens, "temperature": 1.0, "do_sample": True},
        ),
        n_turns=1,
        num_rows=rows,
        batch_size=batch,
    )
    task.load()
    start = time.perf_counter()
    made = 0
    for outputs, _ in task.process():
        made += sum(bool(row.get("instruction")) and bool(row.get("response")) for row in outputs)
    print(json.dumps({"rows": made, "seconds": time.perf_counter() - start}))


def theirs(args: argparse.Namespace) -> float:
    """Return distilabel's rows per second."""
    options = ["--model", args.model, "--max-tokens", str(args.max_tokens), "--batch", str(args.batch)]
    command = [str(ENVIRONMENT / "bin" / "python"), __file__, "--child", "--rows", str(args.rows), *options]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"distilabel failed: {done.stderr[-1500:]}")
    result = json.loads(done.stdout.strip().splitlines()[-1])
    return float(result["rows"] / result["seconds"])


def ours(args: argparse.Namespace) -> float:
    """Return our rows per second, from the call until the dataset is returned."""
    import magpie_hf

    recipe = {
        "model": "demo",
        "num_rows": args.our_rows,
        "sampling": {"temperature": 1.0, "max_tokens": args.max_tokens},
        "stages": [
            "instructions",
            {"stage": "responses", "sampling": {"temperature": 1.0, "max_tokens": args.max_tokens}},
        ],
    }
    with tempfile.TemporaryDirectory() as place:
        start = time.perf_counter()
        dataset = magpie_hf.run(recipe, output=place, show_progress=False)
        return float(len(dataset) / (time.perf_counter() - start))


def main() -> None:
    """Print a table, or the reason why it cannot be measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=128, help="rows of distilabel")
    parser.add_argument("--our-rows", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=128, help="batch size of distilabel")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--model", default=str(ROOT / "magpie_hf" / "demo" / "model"))
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.model, args.rows, args.batch, args.max_tokens)
        return
    print("| measure | value | limit |")
    print("|---|---|---|")
    if reason := install():
        print(f"| distilabel 1.5.3 cannot be installed here: {reason} | - | - |")
        return
    their_rate, our_rate = theirs(args), ours(args)
    print(f"| distilabel 1.5.3 MagpieGenerator, batch {args.batch} | {their_rate:.1f} rows/s | - |")
    print(f"| magpie_hf, the same model and token limits, model loading included | {our_rate:.1f} rows/s | - |")
    print(f"| magpie_hf against distilabel | {our_rate / their_rate:.1f} times | {LIMIT} times |")


if __name__ == "__main__":
    main()
