"""Benchmark (i): precision and recall of cleaning and rejection on 400 texts, and their time per text.

    python -m benchmarks.bench_cleaning

Precision: of the texts that are rejected or cut, the share that should be. Recall: of the unusable texts, the share that is
rejected, or cut to the right text. The texts are in tests/stages/cleaning_texts.yaml; half of them are held out.
"""

from __future__ import annotations

import sys
import time

from magpie_hf.stages.cleaning import clean, rejection
from tests.stages import test_cleaning_table as table


ROUNDS = 20


def microseconds_per_text() -> float:
    """Return the CPU time per text, the fastest of several rounds."""
    texts = [entry["text"] for _, _, entry in table.texts()]
    times = []
    for _ in range(ROUNDS):
        start = time.process_time()
        for text in texts:
            rejection(clean(text))
        times.append(time.process_time() - start)
    return min(times) / len(texts) * 1e6


def main() -> int:
    """Print the table; return 0 if every figure is within its limit."""
    whole, held_out = table.scores(), table.scores(held_out=True)
    rows = [
        ("precision", whole.precision, table.MIN_PRECISION),
        ("usable texts accepted unchanged", whole.whole, table.MIN_WHOLE),
        ("recall", whole.recall, table.MIN_RECALL),
        ("rejected with the right reason", whole.codes, table.MIN_CODES),
        ("precision, held-out texts", held_out.precision, table.HELD_OUT_PRECISION),
        ("recall, held-out texts", held_out.recall, table.HELD_OUT_RECALL),
    ]
    print("| measure | value | limit |\n|---|---|---|")
    for name, value, limit in rows:
        print(f"| {name} | {value:.3f} | {limit} |")
    print(f"| time per text | {microseconds_per_text():.1f} µs | - |")
    return 0 if all(value >= limit for _, value, limit in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
