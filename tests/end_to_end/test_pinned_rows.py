"""The same recipe and seed make the same rows, commit after commit: ids, texts and annotations of the bundled recipes.

To accept a change that is meant (a demo model trained anew): `python -m tests.end_to_end.test_pinned_rows`, and say so
under Reproducibility in CHANGELOG.md.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import magpie_hf


PINNED = Path(__file__).parent / "pinned"
RECIPES = {"quickstart": {"num_rows": 24}, "showcase": {"num_rows": 20, "stages.select.longest": 8}}


def made(recipe, output):
    """Return the rows without provenance, which names versions, and vectors, whose last bits are the machine's."""
    dataset = magpie_hf.run(recipe, RECIPES[recipe], output=output)
    columns = [name for name in dataset.column_names if not name.endswith("_configs") and name != "embedding"]
    return dataset.select_columns(columns).to_list()


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_bundled_recipe_makes_the_rows_that_it_always_made(recipe, tmp_path):
    wanted = [json.loads(line) for line in (PINNED / f"{recipe}.jsonl").read_text("utf-8").splitlines()]
    found = made(recipe, tmp_path / "run")
    assert [row["uuid"] for row in found] == [row["uuid"] for row in wanted]
    for old, new in zip(wanted, found, strict=True):
        for name, value in old.items():
            assert new[name] == (pytest.approx(value, abs=1e-3) if isinstance(value, float) else value), name


if __name__ == "__main__":
    import tempfile

    PINNED.mkdir(exist_ok=True)
    for name in RECIPES:
        with tempfile.TemporaryDirectory() as place:
            lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in made(name, place)]
        (PINNED / f"{name}.jsonl").write_text("".join(lines), "utf-8")
