"""A stage of somebody else's module, named in a recipe: killed and resumed like one of the package's."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from .harness import journal_bytes, kill_when, magpie, moments, nothing_twice, rows, start


PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "write-a-stage.md"
RECIPE = """
model: demo
num_rows: 60
stages:
  - instructions
  - {stage: "titles:Titles", request: "Give this a name:", sampling: {max_tokens: 40}}
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_stage_of_ones_own_is_resumed_after_kills(tmp_path):
    (code,) = re.findall(r"```python runnable titles.py\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    (tmp_path / "titles.py").write_text(code, "utf-8")
    (tmp_path / "mine.yaml").write_text(RECIPE, "utf-8")
    paths = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])

    def command(place):
        return ("run", tmp_path / "mine.yaml", "--output", place)

    magpie(*command(tmp_path / "whole"), PYTHONPATH=paths)
    whole, place = rows(tmp_path / "whole"), tmp_path / "killed"
    assert all(row["title"] for row in whole)
    killed = 0
    for moment in moments(3, 2, journal_bytes(tmp_path / "whole")):
        killed += kill_when(
            start(*command(place), PYTHONPATH=paths), lambda moment=moment: journal_bytes(place) >= moment
        )
    assert killed
    magpie(*command(place), PYTHONPATH=paths)
    nothing_twice(place)
    assert [row["title"] for row in rows(place)] == [row["title"] for row in whole]
