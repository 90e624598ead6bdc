"""Benchmark (h): the cost per row of annotations without a judge, and the tokens and agreement of a combined judge.

Compares flags with a plain pass over the same texts (lower, split), languages with lingua's calls one by one, the parser of
judges' replies with `json.loads`, and three judge requests with one on the demo model.

    python -m benchmarks.bench_annotations --rows 5000
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path


def per_row(work: Callable[[], object], rows: int) -> float:
    """Return microseconds per row, the best of three runs."""
    best = float("inf")
    for _ in range(3):
        started = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - started)
    return best / rows * 1e6


def main() -> None:
    import magpie_hf
    from magpie_hf.judging.answers import read_answer
    from magpie_hf.judging.rubric import load_rubric
    from magpie_hf.reports import agreement
    from magpie_hf.session.status import run_status
    from magpie_hf.stages.flags import flags_of
    from magpie_hf.stages.language import Language, detector, relevant_text
    from tools.demo.grammar import conversations

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=5000)
    rows = parser.parse_args().rows
    texts = [(c.exchanges[0].instruction, c.exchanges[0].answer) for c in islice(conversations(1, long_share=0), rows)]
    print("| measure | value | limit |\n|---|---|---|")
    plain = per_row(lambda: [(a.lower().split(), b.lower().split()) for a, b in texts], rows)
    flags = per_row(lambda: [flags_of(a, b, "stop") for a, b in texts], rows)
    print(f"| flags | {flags:.0f} µs a row, {flags / plain:.0f} times lower and split | - |")
    judge = Language().bind(None)  # type: ignore[arg-type]  # it does not use its context
    instructions = [a for a, _ in texts]
    batch = per_row(lambda: judge({"instruction": instructions}), rows)
    some = instructions[:500]
    single = per_row(lambda: [detector((), False).detect_language_of(relevant_text(text)) for text in some], len(some))
    print(
        f"| language, 75 languages, with confidence | {batch:.0f} µs a row, {batch / single:.2f} times lingua's single calls | - |"
    )
    answer = json.dumps({"explanation": "It is clear and says what is wanted.", "input_quality": "good"})
    rubric = load_rubric("quality")
    read = per_row(lambda: [read_answer(answer, rubric) for _ in range(rows)], rows)
    print(
        f"| reading a judge's answer | {read:.1f} µs, {read / per_row(lambda: [json.loads(answer) for _ in range(rows)], rows):.1f} times json.loads | - |"
    )
    with tempfile.TemporaryDirectory() as place:
        ds = magpie_hf.synthesize(
            "demo",
            num_rows=300,
            output=Path(place) / "run",
            sampling={"temperature": 1.1, "max_tokens": 96},
            show_progress=False,
        )
        names = ["quality", "difficulty", "category"]
        found, tokens = {}, {}
        for mode in ("separate", "combined"):
            output = Path(place) / mode
            found[mode] = magpie_hf.annotate(
                ds, names, judge="demo", judge_mode=mode, output=output, show_progress=False
            )
            stages = run_status(output).stages
            tokens[mode] = sum(stage.prompt_tokens + stage.completion_tokens for stage in stages)
            print(
                f"| {mode} judge, 300 rows | {tokens[mode]:,} tokens, {sum(stage.done for stage in stages)} requests | - |"
            )
        print(
            f"| tokens of the combined judge | {tokens['combined'] / tokens['separate']:.2f} times the separate ones' | - |"
        )
        for column, facts in agreement(found["separate"], found["combined"]).items():
            print(f"| agreement of both: {column} | {facts['agreement']:.1%}, kappa {facts['kappa']:.2f} | - |")


if __name__ == "__main__":
    main()
