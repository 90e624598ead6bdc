"""Generate the dataset cards of all recipes on the demo model: `python docs/build_cards.py [RECIPE …]`.

The cards in dataset_cards/ show what a card looks like before you pay for a run. They contain no times and costs, so that the
same rows give the same files.
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
from pathlib import Path


TARGET = Path(__file__).parents[1] / "dataset_cards"
ROWS = 40
OWN_DEMO = ("quickstart", "showcase")


def main() -> int:
    from magpie_hf.recipe.schema import bundled_recipes

    names = sys.argv[1:] or list(bundled_recipes())
    with tempfile.TemporaryDirectory() as directory:
        for name in names:
            print(write(name, Path(directory) / "run", TARGET))
    return 0


def write(name: str, place: Path, target: Path) -> Path:
    """Run a recipe on the demo model and write its card; all recipes share a run directory, so common stages run once."""
    import magpie_hf
    from magpie_hf.hub.card import write_card
    from magpie_hf.session.shape import splits_of
    from magpie_hf.session.status import run_facts
    from magpie_hf.storage.state import Totals

    overrides = {"num_rows": ROWS, "engine.kind": "transformers", "model": "demo"}
    splits = splits_of(magpie_hf.run(name, overrides, output=place, show_progress=False, force=True))
    known, funnel = run_facts(place)
    assert known is not None
    known = dataclasses.replace(known, totals=Totals(tokens=known.totals.tokens))
    title = name if name in OWN_DEMO else f"{name}, rehearsed on the demo model"
    path, repo_id = target / f"{name}.md", f"me/{name}"
    return write_card(splits["train"], path, run=known, funnel=funnel, repo_id=repo_id, title=title, splits=splits)


if __name__ == "__main__":
    raise SystemExit(main())
