"""Stages and engines of other packages: named by address or entry point, set from YAML, refused in words."""

from __future__ import annotations

import sys
import textwrap

import pytest

from magpie_hf import load_recipe
from magpie_hf.engines import engine_class, engine_options, takes_endpoints
from magpie_hf.errors import ArgumentError, HubError, RecipeError
from magpie_hf.hub.download import _refuse_own_code
from magpie_hf.stages import stage_class


# No postponed annotations here: types are objects, not texts.
OWN = """
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from magpie_hf.engines.base import Engine
from magpie_hf.sampling import SamplingParams
from magpie_hf.stage import BatchStage, Stage


@dataclass(frozen=True)
class Marks(BatchStage):
    name: ClassVar[str] = "marks"
    reads: ClassVar[tuple[str, ...]] = ("instruction",)

    mark: str = "!"
    times: int = 1
    share: float | None = None
    mode: Literal["end", "start"] = "end"
    words: tuple[str, ...] = ()
    file: Path | None = None
    sampling: SamplingParams = SamplingParams()

    def features(self):
        from datasets import Value

        return {"marked": Value("string")}

    def bind(self, context):
        return lambda batch: {"marked": [text + self.mark * self.times for text in batch["instruction"]]}


class Half(Stage):
    name = "half"


@dataclass(frozen=True)
class Copycat(Marks):
    name: ClassVar[str] = "lengths"


@dataclass(frozen=True)
class MySettings:
    speed: int = 1
    pair: tuple[float, float] = (0.0, 1.0)


class Mine(Engine):
    settings_class = MySettings
    open = capabilities = generate = close = lambda self: None


NOT_A_CLASS = 3
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A module of somebody else's, `ownmod`."""
    (tmp_path / "ownmod.py").write_text(OWN)
    (tmp_path / "brokenmod.py").write_text("import no_such_package_at_all\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("ownmod", "brokenmod"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


def recipe(settings="", stage="ownmod:Marks", engine="transformers"):
    return {"model": "demo", "engine": engine, "stages": ["instructions", {"stage": stage, **(settings or {})}]}


def test_settings_of_a_stage_are_checked_against_its_types(own):
    given = {"mark": "?", "times": 2, "share": 1, "mode": "start", "words": "one", "file": "x.txt"}
    stage = load_recipe(recipe({**given, "sampling": {"max_tokens": 7}})).stages[1]
    assert (stage.mark, stage.times, stage.share, stage.mode, stage.words) == ("?", 2, 1.0, "start", ("one",))
    assert str(stage.file) == "x.txt"
    assert stage.sampling.max_tokens == 7


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"mark": 3}, ["stages[1].mark", "not text"]),
        ({"times": "two"}, ["stages[1].times", "a whole number"]),
        ({"mode": "middle"}, ["stages[1].mode", "'end' or 'start'"]),
        ({"words": [1]}, ["stages[1].words[0]", "text"]),
        ({"sampling": {"temperature": "hot"}}, ["stages[1].sampling.temperature", "a number"]),
        ({"marc": "!"}, ["stages[1].marc: unknown key", 'Did you mean "mark"?']),
    ],
)
def test_a_wrong_setting_is_named(own, settings, words):
    with pytest.raises(RecipeError) as caught:
        load_recipe(recipe(settings))
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("ownmod:Half", ["does not define", "features", "write-a-stage.md"]),
        ("ownmod:Copycat", ["name of a built-in stage", "lengths"]),
        ("ownmod:NOT_A_CLASS", ["not a subclass of magpie_hf.stage.Stage"]),
        ("ownmod:Mine", ["not a subclass of magpie_hf.stage.Stage"]),
        ("ownmod:Nothing", ["cannot be imported", "Nothing"]),
        ("nomod.at.all:Marks", ["cannot be imported", "PYTHONPATH"]),
        ("os:system", ["not a subclass"]),
        (":", ["cannot be imported"]),
        ("..:Marks", ["cannot be imported"]),
        ("mark", ["Unknown stage", "package.module:Class"]),
    ],
)
def test_what_is_no_usable_stage_is_refused_before_anything_runs(own, name, words):
    with pytest.raises(RecipeError) as caught:
        load_recipe(recipe(stage=name))
    for word in ["stages[1].stage", *words]:
        assert word in str(caught.value)


def test_a_mistake_inside_of_a_module_is_shown_as_it_is(own):
    with pytest.raises(ModuleNotFoundError, match="no_such_package_at_all"):
        load_recipe(recipe(stage="brokenmod:Marks"))
    (own / "brokenmod.py").write_text("int('three')\n")
    with pytest.raises(ValueError, match="invalid literal"):
        load_recipe(recipe(stage="brokenmod:Marks"))


def test_settings_of_an_engine_are_checked_against_its_types(own):
    assert set(engine_options("ownmod:Mine")) == {"speed", "pair"}
    assert not takes_endpoints("ownmod:Mine")
    built = load_recipe(recipe(engine={"kind": "ownmod:Mine", "speed": 3, "pair": [0, 1]}))
    assert built.engine.options == {"speed": 3, "pair": (0.0, 1.0)}
    for options, words in (
        ({"speed": "fast"}, "a whole number"),
        ({"pair": [1]}, "2 entries"),
        ({"sped": 1}, "speed"),
    ):
        with pytest.raises(RecipeError, match=words):
            load_recipe(recipe(engine={"kind": "ownmod:Mine", **options}))
    with pytest.raises(ArgumentError, match="Unknown engine"):
        engine_class("vlm")


def test_installed_packages_register_names(own):
    about = own / "ownpackage-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: ownpackage\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(
        textwrap.dedent("""
            [magpie_hf.stages]
            marks = ownmod:Marks
            [magpie_hf.engines]
            mine = ownmod:Mine
        """)
    )
    assert stage_class("marks").__name__ == "Marks"
    assert engine_class("mine").__name__ == "Mine"
    with pytest.raises(ArgumentError, match='Did you mean "marks"'):
        stage_class("markz")


@pytest.mark.parametrize(
    "given",
    [
        {"stages": ["instructions", "evil:Stage"]},
        {"stages": ["instructions", {"stage": "evil:Stage"}]},
        {"engine": "evil:Engine", "stages": []},
        {"judge": {"engine": {"kind": "evil:Engine"}}, "stages": []},
    ],
)
def test_a_recipe_from_the_hub_imports_no_module_of_its_authors_choice(given):
    class Place:
        url = "https://huggingface.co/datasets/x/y"

    with pytest.raises(HubError, match=r"evil:"):
        _refuse_own_code(given, Place())
    _refuse_own_code({"stages": ["instructions", {"stage": "responses"}], "engine": {"kind": "vllm"}}, Place())
