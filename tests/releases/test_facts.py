"""Every recipe, read by the package's own loader, against the table of the releases' facts (facts.yaml)."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import yaml

from magpie_hf.recipe.schema import Recipe, bundled_recipes, load_recipe
from tests.conftest import REPOSITORY

from . import reading


HERE = REPOSITORY / "tests" / "releases"
TABLE: dict[str, Any] = yaml.safe_load((HERE / "facts.yaml").read_text("utf-8"))
RELEASES: dict[str, dict[str, list[Any]]] = TABLE["releases"]
OPEN = {line for line in (HERE / "open.txt").read_text("utf-8").splitlines() if line and not line.startswith("#")}
"""Facts that a recipe does not have yet, "recipe fact" each; a line goes when its repair lands."""
KINDS = ("paper", "card", "script", "inferred")


def cases() -> list[Any]:
    """Return a case for each fact of each release."""
    found = []
    for name, facts in RELEASES.items():
        names = ["exists", *(fact for fact, given in facts.items() if given is not None and fact != "template_family")]
        names += ["column_types"] if facts.get("columns") else []
        found += [_case(name, fact) for fact in names]
    return found


def _case(name: str, fact: str) -> Any:
    is_open = f"{name} {fact}" in OPEN or f"{name} *" in OPEN
    marks = [pytest.mark.xfail(strict=True, reason="not repaired yet: tests/releases/open.txt")] if is_open else []
    return pytest.param(name, fact, marks=marks, id=f"{name}-{fact}")


@functools.cache
def recipe_of(name: str) -> Recipe | None:
    return load_recipe(name) if name in bundled_recipes() else None


@pytest.mark.parametrize(("name", "fact"), cases())
def test_a_recipe_has_the_facts_of_its_release(name: str, fact: str) -> None:
    recipe = recipe_of(name)
    assert recipe is not None, f"unknown recipe {name}"
    if fact == "exists":
        return
    ours, theirs = compare(recipe, name, fact)
    assert ours == theirs, RELEASES[name].get(fact, ["", ""])[1]


def compare(recipe: Recipe, name: str, fact: str) -> tuple[Any, Any]:
    """Return a recipe's value of a fact and the table's."""
    facts = RELEASES[name]
    theirs = expected(name, fact)
    if fact in reading.CONDITIONS:
        return reading.CONDITIONS[fact](recipe, theirs)
    if fact == "pre_query":
        return reading.pre_query(recipe, facts["template_family"][0]), theirs
    if fact == "stop_tokens":
        return reading.missing_stop_tokens(recipe, facts["template_family"][0], theirs), []
    if fact == "columns":
        return reading.columns(recipe), list(theirs)
    if fact == "column_types":
        return reading.column_types(recipe, facts["columns"][0])
    if fact == "starts_with_columns":
        return reading.columns(recipe)[: len(theirs)], theirs
    if fact == "quota_sum":
        return reading.quota_sum(recipe, theirs)
    if fact == "says_not":
        said = " ".join(reading.text_of(recipe).replace("\n#", " ").split())
        return [claim for claim in theirs if claim in said], []
    lists = {
        "system_prompt_in_force": reading.under_row_prompt,
        "whole_conversation": reading.whole_conversation,
        "has_stages": reading.has_stages,
    }
    if fact in lists:
        return lists[fact](recipe, theirs), theirs
    ours = reading.SIMPLE[fact](recipe)
    return reading.same_name(ours), sorted(theirs) if fact == "grid" else reading.same_name(theirs)


def expected(name: str, fact: str) -> Any:
    """Return the value that a recipe should have: the release's, or ours where a difference is kept on purpose."""
    kept = TABLE["kept"].get(fact)
    if kept is not None and name in kept.get("recipes", [name]) and fact in RELEASES[name]:
        theirs = RELEASES[name][fact][0]
        same_prompt = fact != "turn_system_prompt" or "Al assistant" in theirs
        return kept["ours"] if same_prompt else theirs
    return RELEASES[name][fact][0] if fact in RELEASES[name] else None


def test_the_table_has_every_recipe_and_open_facts_are_facts() -> None:
    assert {*bundled_recipes()} <= {*RELEASES, *TABLE["own"]}
    known = {f"{name} {fact}" for name, fact in (case.values for case in cases())}
    known |= {f"{name} *" for name in RELEASES}
    assert known >= OPEN


def test_every_fact_names_where_it_comes_from() -> None:
    for name, facts in RELEASES.items():
        for fact, given in facts.items():
            assert given is None or (len(given) == 2 and str(given[1]).startswith(KINDS)), (name, fact)


@pytest.mark.parametrize("name", TABLE["own"])
def test_a_recipe_of_our_own_claims_no_release(name: str) -> None:
    recipe = recipe_of(name)
    assert recipe is not None
    assert "Magpie-Align/" not in reading.repo(recipe)
