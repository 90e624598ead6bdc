from __future__ import annotations

import pytest

import magpie_hf
from magpie_hf.engines import ENGINES
from tests.null_engine import NullEngine


@pytest.fixture
def null(monkeypatch):
    """The engine without a model, registered and clean."""
    monkeypatch.setitem(ENGINES, "null", "tests.null_engine:NullEngine")
    NullEngine.reset()
    return NullEngine


@pytest.fixture
def make(null, tiny_model_dir, tmp_path):
    """Run a recipe on the null engine: `make(num_rows=…, engine={…}, stages=[…], place=…)`."""

    def run(place="run", *, shard=None, accept_failures=False, allow_mixed=False, engine=None, **settings):
        recipe = {
            "model": str(tiny_model_dir),
            "num_rows": 40,
            "stages": ["instructions", "responses", "lengths"],
            "engine": {"kind": "null", **(engine or {})},
            **settings,
        }
        return magpie_hf.run(
            recipe, output=tmp_path / place, shard=shard, accept_failures=accept_failures, allow_mixed=allow_mixed
        )

    return run
