"""What a recipe says about each fact of the table, read through the package's own loader.

One function per fact: it takes the loaded recipe and returns the recipe's value in the table's form, or MISSING where the
recipe (or the package) has no such setting yet. The names of settings are in this file only.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from datasets import Dataset, Features, Value

from magpie_hf.errors import RecipeError
from magpie_hf.hub.layouts import Layout
from magpie_hf.hub.released import released_features
from magpie_hf.recipe.costs import kept_at_most
from magpie_hf.recipe.schema import Recipe, bundled_recipes, load_recipe
from magpie_hf.selection.filters import apply_selection
from magpie_hf.stage import Stage
from magpie_hf.stages.judge import Judge
from magpie_hf.stages.select import Select
from magpie_hf.templates.template import ChatTemplate
from tests.template_families import make_tokenizer, template
from tests.template_families.table import TOKENIZERS


MISSING = "MISSING"
QUALITY = ("very poor", "poor", "average", "good", "excellent")
DIFFICULTY = ("very easy", "easy", "medium", "hard", "very hard")
FILES = bundled_recipes()
STAND_INS = {
    "You are Q, made by A. You are of help.": "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
}
"""System prompts of the small templates in the tests, and what the models' own templates have in their place."""


def text_of(recipe: Recipe) -> str:
    return FILES[recipe.name].read_text("utf-8")


def stage_of(recipe: Recipe, name: str) -> Stage | None:
    return next((stage for stage in recipe.stages if stage.name == name), None)


def setting(recipe: Recipe, stage: str, name: str) -> Any:
    found = stage_of(recipe, stage)
    return MISSING if found is None else getattr(found, name, MISSING)


def as_list(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def only(values: set[Any]) -> Any:
    return values.pop() if len(values) == 1 else MISSING


def sampling(value: Any, *keys: str) -> Any:
    if value is MISSING:
        return MISSING
    found = {key: as_list(getattr(value, key)) for key in ("temperature", "top_p", "max_tokens", *keys)}
    return found


# Models


def repo(recipe: Recipe) -> str:
    return text_of(recipe).split("\n", 1)[0].removeprefix("# ").strip()


def same_name(value: Any) -> Any:
    """Return a model's name as the Hub has it now: Meta-Llama-3.1-… and Llama-3.1-… are one repository."""
    return value.replace("/Meta-Llama-3.1-", "/Llama-3.1-") if isinstance(value, str) else value


def role(recipe: Recipe, name: str) -> str:
    return recipe.role(name).model if name == "generator" or name in recipe.roles else MISSING


def own_model(recipe: Recipe, stage: str, setting_name: str) -> Any:
    found = stage_of(recipe, stage)
    if found is None:
        return MISSING
    return found.models(recipe.model)[setting_name].name


def base(recipe: Recipe) -> str:
    return role(recipe, "base") if stage_of(recipe, "base_responses") else MISSING


def dataset(recipe: Recipe) -> Any:
    parts = recipe.dataset.get("parts")
    return [part["path"] for part in parts] if parts else recipe.dataset.get("path", MISSING)


# Sizes and the grid


def rows(recipe: Recipe) -> Any:
    return MISSING if recipe.dataset else recipe.num_rows


def kept_rows(recipe: Recipe) -> int:
    selections = [stage for stage in recipe.stages if isinstance(stage, Select)]
    return int(min([kept_at_most(stage) for stage in selections] + [float(recipe.num_rows)]))


def grid(recipe: Recipe) -> list[list[Any]]:
    total = sum(point.share for point in recipe.grid)
    return sorted(
        [point.sampling.temperature, point.sampling.top_p, round(recipe.num_rows * point.share / total)]
        for point in recipe.grid
    )


def temperatures(recipe: Recipe) -> list[list[float]]:
    return [list(pair) for pair in sorted({(p.sampling.temperature, p.sampling.top_p) for p in recipe.grid})]


def instruction_tokens(recipe: Recipe) -> Any:
    found = {point.sampling.max_tokens for point in recipe.grid}
    return found.pop() if len(found) == 1 else sorted(found)


def stops_at_newline(recipe: Recipe) -> Any:
    if any("\n" in point.sampling.stop for point in recipe.grid):
        return True
    return setting(recipe, "instructions", "early_stop_newline")


def system_prompt_weights(recipe: Recipe) -> Any:
    weights: dict[str, float] = {}
    total = sum(point.share for point in recipe.grid)
    for point in recipe.grid:
        key = getattr(point, "system_prompt_key", None)
        if key is None:
            return MISSING
        weights[key] = round(weights.get(key, 0.0) + point.share / total, 6)
    return weights


# Prompts


@functools.cache
def _chat(family: str, chat_template: str | None) -> ChatTemplate:
    tokenizer = make_tokenizer(**TOKENIZERS[family], chat_template=chat_template or template(family))
    return ChatTemplate(tokenizer, name=family, template_date="2026-03-04")


def pre_query(recipe: Recipe, family: str) -> str:
    chat = _chat(family, recipe.template.get("chat_template"))
    text = chat.pre_query(recipe.grid[0].system_prompt).text
    for stand_in, real in STAND_INS.items():
        text = text.replace(stand_in, real)
    return text


def missing_stop_tokens(recipe: Recipe, family: str, wanted: Sequence[str]) -> list[str]:
    """Return the release's stop tokens that do not end an instruction here, of those that the small tokenizer has."""
    chat = _chat(family, recipe.template.get("chat_template"))
    stops, known = chat.instruction_stops, chat.tokenizer.get_vocab()
    own = set.intersection(*({*point.sampling.stop} for point in recipe.grid))
    return [
        t for t in wanted if t in known and known[t] not in stops.token_ids and t not in {*stops.plain_texts, *own}
    ]


def response_template(recipe: Recipe) -> str:
    """Tell whether responses are generated under the tokenizer's own template, or under another one."""
    return "other" if recipe.role("responder").template.get("chat_template") else "own"


# Conditions: each one on rows that differ in that one thing

PERFECT: dict[str, Any] = {
    "uuid": "a", "group_id": "a", "min_similar_uuid": None, "min_neighbor_distance": 0.5, "repeat_count": 0,
    "instruction": "Solve this.\n## Step 1: begin", "raw_instruction": "Solve this.\n## Step 1: begin",
    "response": "## Step 1: begin", "response_length": 16, "instruction_length": 28, "input_quality": "excellent",
    "difficulty": "very hard", "task_category": "Math", "language": "EN", "instruct_reward": 5.0,
    "reward_difference": 5.0, "safety": "safe", "num_turns": 2, "instruction_2": "And then?",
    "response_2": "That is all.", "reward_margin": 1.0,
}  # fmt: skip


def passes(recipe: Recipe, many: Iterable[dict[str, Any]]) -> list[bool]:
    """Tell which rows all selections of a recipe keep, none a duplicate of another: no quota, size or sample counts."""
    named = [{**row, "uuid": f"row {n}", "group_id": f"row {n}"} for n, row in enumerate(many)]
    kept = {*survivors(recipe, named)}
    return [row["uuid"] in kept for row in named]


def survivors(recipe: Recipe, many: Sequence[dict[str, Any]]) -> list[str]:
    """Return the uuids of the rows that all conditions and group rules of a recipe keep."""
    features = Features({key: _feature(value) for key, value in PERFECT.items()})
    held = Dataset.from_list([{**_perfect(recipe), **row} for row in many], features=features)
    for stage in recipe.stages:
        if isinstance(stage, Select) and len(held):
            rules = dataclasses.replace(stage.selection, longest=None, sample=None, quotas={}, shuffle=None)
            held = held.select(apply_selection(held, rules).indices)
    return [str(name) for name in held["uuid"]]


def _feature(value: Any) -> Any:
    return Value({int: "int64", float: "float64"}.get(type(value), "string"))


def _perfect(recipe: Recipe) -> dict[str, Any]:
    """Return a row that passes all conditions of a recipe, in the recipe's language."""
    where = " ".join(stage.selection.where for stage in recipe.stages if isinstance(stage, Select))
    row = dict(PERFECT)
    if "'ZH'" in where:
        row["language"] = "ZH"
    return row


def _holds(rule: str, scale: Sequence[Any]) -> list[bool]:
    """Return for each value of a scale whether ">= x" or "> x" holds."""
    sign, _, bound = rule.partition(" ")
    at = scale.index(bound) if bound in scale else float(bound)
    place = [n if bound in scale else value for n, value in enumerate(scale)]
    return [value >= at if sign == ">=" else value > at for value in place]


REWARDS = (-13.0, -12.0, -11.0, -10.0, -9.5, -6.0, -5.0, -4.0, 0.0, 4.0)
DIFFERENCES = (-3.0, -0.5, 0.0, 0.5, 3.0)
LANGUAGES = ("EN", "ZH", "DE")


def scale_rule(column: str, scale: Sequence[Any]) -> Callable[[Recipe, str], tuple[Any, Any]]:
    def compare(recipe: Recipe, rule: str) -> tuple[Any, Any]:
        ours = passes(recipe, ({column: value} for value in scale))
        return _kept(scale, ours), _kept(scale, _holds(rule, scale))

    return compare


def _kept(scale: Sequence[Any], flags: Sequence[bool]) -> list[Any]:
    return [value for value, flag in zip(scale, flags, strict=True) if flag]


def language(recipe: Recipe, wanted: str) -> tuple[Any, Any]:
    return _kept(LANGUAGES, passes(recipe, ({"language": value} for value in LANGUAGES))), [wanted]


def colon(recipe: Recipe, wanted: str) -> tuple[Any, Any]:
    row = {"instruction": "## Step 1\nSum up this text:", "raw_instruction": "## Step 1\nSum up this text:"}
    return ("drop" if passes(recipe, [row]) == [False] else "keep"), wanted


def second_colon(recipe: Recipe, wanted: str) -> tuple[Any, Any]:
    return ("drop" if passes(recipe, [{"instruction_2": "And this:"}]) == [False] else "keep"), wanted


def steps(recipe: Recipe, wanted: str) -> tuple[Any, Any]:
    kept = passes(recipe, [{}, {"raw_instruction": "Solve this."}, {"response": "It is 4."}])
    return (
        "both" if kept == [True, False, False] else f"keeps {kept} (both, response only, instruction only)"
    ), wanted


def duplicates(recipe: Recipe, wanted: str) -> tuple[Any, Any]:
    copies = {"group_id": "b", "min_neighbor_distance": 0.0, "repeat_count": 1, "min_similar_uuid": "b"}
    kept = survivors(recipe, [{"uuid": "a"}, {"uuid": "b", **copies}, {"uuid": "c", **copies}])
    words = {("a",): "none", ("a", "b"): "one", ("a", "c"): "one", ("a", "b", "c"): "all"}
    return words[tuple(sorted(kept))], wanted


def lines(recipe: Recipe, wanted: str) -> tuple[Any, Any]:
    """Five newlines are too many, four are not, code may have any number: "< 5 unless Coding & Debugging"."""
    four, five = "## Step 1\na\nb\nc\nd", "## Step 1\na\nb\nc\nd\ne"
    kept = passes(recipe, [
        {"instruction": four}, {"instruction": five}, {"instruction": five, "task_category": "Coding & Debugging"},
    ])  # fmt: skip
    return (wanted if kept == [True, False, True] else f"keeps {kept} (4 newlines, 5, 5 in code)"), wanted


CONDITIONS: dict[str, Callable[[Recipe, str], tuple[Any, Any]]] = {
    "quality": scale_rule("input_quality", QUALITY),
    "difficulty": scale_rule("difficulty", DIFFICULTY),
    "reward": scale_rule("instruct_reward", REWARDS),
    "reward_difference": scale_rule("reward_difference", DIFFERENCES),
    "language": language,
    "colon": colon,
    "second_colon": second_colon,
    "steps": steps,
    "duplicates": duplicates,
    "lines": lines,
}


def last_selection(recipe: Recipe) -> Any:
    """Return the selection that decides the size, the last one with a number."""
    sized = [
        s.selection for s in recipe.stages if isinstance(s, Select) and (s.selection.longest or s.selection.sample)
    ]
    return sized[-1] if sized else None


def longest_by(recipe: Recipe) -> Any:
    found = [s.selection for s in recipe.stages if isinstance(s, Select) and s.selection.longest]
    return found[0].length_column if found else MISSING


def shuffle(recipe: Recipe) -> Any:
    found = last_selection(recipe)
    return MISSING if found is None else found.shuffle


def quota_sum(recipe: Recipe, wanted: dict[str, Any]) -> tuple[Any, Any]:
    for stage in recipe.stages:
        if isinstance(stage, Select) and wanted["columns"] in stage.selection.quotas:
            quotas = stage.selection.quotas[wanted["columns"]]
            return sum(quotas.get(label, 0) for label in wanted["labels"]), wanted["rows"]
    return MISSING, wanted["rows"]


# Columns


def columns(recipe: Recipe) -> Any:
    """Return the names of the columns that a run with `output.columns: released` writes, in order."""
    features = written(recipe)
    return MISSING if features is None else list(features)


def written(recipe: Recipe) -> dict[str, Any] | None:
    """Return the features of a run with `output.columns: released`; None if the recipe is rejected with it.

    A recipe is rejected if one of its release's columns is not known, or not made by one of its stages.
    """
    try:
        asked = load_recipe(FILES[recipe.name], {"output.columns": "released"}).output_columns
    except RecipeError:
        return None
    assert isinstance(asked, Layout)
    return dict(released_features(asked))


def plain(feature: Any) -> Any:
    """Return a feature in the table's form."""
    if isinstance(feature, dict):
        return {key: plain(inner) for key, inner in feature.items()}
    if isinstance(feature, list):
        return [plain(feature[0])]
    inner = getattr(feature, "feature", None)
    return [plain(inner)] if inner is not None else str(feature.dtype)


def column_types(recipe: Recipe, wanted: dict[str, Any]) -> tuple[Any, Any]:
    """Compare the types of the columns that both have."""
    ours = written(recipe)
    if ours is None:
        return MISSING, wanted
    both = [name for name in wanted if name in ours]
    found = {name: plain(ours[name]) for name in both}
    differs = [name for name in both if found[name] != wanted[name]]
    return {name: found[name] for name in differs}, {name: wanted[name] for name in differs}


# magpie-ultra


def under_row_prompt(recipe: Recipe, names: Sequence[str]) -> list[str]:
    """Return the stages that generate under the row's own system prompt."""
    return [name for name in names if setting(recipe, name, "system_prompt") == "row"]


def whole_conversation(recipe: Recipe, names: Sequence[str]) -> list[str]:
    return [name for name in names if setting(recipe, name, "over") == "messages"]


def has_stages(recipe: Recipe, names: Sequence[str]) -> list[str]:
    return [name for name in names if stage_of(recipe, name) is not None]


def judge_sampling(recipe: Recipe) -> Any:
    """Return the sampling of the three rubrics of the releases, which is the same for all."""
    found = [sampling(setting(recipe, name, "sampling")) for name in ("quality", "difficulty", "category")]
    return found[0] if found.count(found[0]) == len(found) else found


def label_scales(recipe: Recipe) -> str:
    """Return whose scales the labels of the three built-in annotations have."""
    rubrics = [name for stage in recipe.stages if isinstance(stage, Judge) for name in stage.rubrics]
    return "the authors'" if rubrics and all(name.startswith("reference/") for name in rubrics) else "ours"


SIMPLE: dict[str, Callable[[Recipe], Any]] = {
    "repo": repo,
    "generator": lambda r: role(r, "generator"),
    "responder": lambda r: role(r, "responder"),
    "preference_responder": lambda r: role(r, "responder") if stage_of(r, "preference_responses") else MISSING,
    "judge": lambda r: role(r, "judge"),
    "judge_sampling": judge_sampling,
    "label_scales": label_scales,
    "guard": lambda r: role(r, "guard") if stage_of(r, "safety") else MISSING,
    "guard_tokens": lambda r: getattr(setting(r, "safety", "sampling"), "max_tokens", MISSING),
    "base": base,
    "reward_model": lambda r: own_model(r, "reward", "reward"),
    "preference_model": lambda r: own_model(r, "preference", "reward"),
    "embedder": lambda r: own_model(r, "neighbors", "embedder"),
    "neighbor_threshold": lambda r: setting(r, "neighbors", "threshold"),
    "dataset": dataset,
    "rows": rows,
    "kept_rows": kept_rows,
    "grid": grid,
    "temperatures": temperatures,
    "instruction_tokens": instruction_tokens,
    "stops_at_newline": stops_at_newline,
    "sanitized": lambda r: setting(r, "instructions", "clean"),
    "rejected": lambda r: as_list(setting(r, "instructions", "reject")),
    "banned_starts": lambda r: as_list(setting(r, "instructions", "banned_starts")),
    "response_banned_starts": lambda r: as_list(setting(r, "responses", "banned_starts")),
    "turn_banned_starts": lambda r: as_list(setting(r, "turns", "banned_starts")),
    "first_token_scale": lambda r: only({point.sampling.first_token_scale for point in r.grid}),
    "response_template": response_template,
    "response_sampling": lambda r: sampling(setting(r, "responses", "sampling")),
    "response_system_prompt": lambda r: setting(r, "responses", "system_prompt"),
    "turns": lambda r: setting(r, "turns", "turns"),
    "turn_sanitized": lambda r: setting(r, "turns", "clean"),
    "turn_sampling": lambda r: sampling(setting(r, "turns", "sampling"), "stop"),
    "turn_response_sampling": lambda r: sampling(setting(r, "turns", "response_sampling")),
    "turn_system_prompt": lambda r: setting(r, "turns", "system_prompt"),
    "preference_samples": lambda r: setting(r, "preference_responses", "num_samples"),
    "preference_sampling": lambda r: sampling(setting(r, "preference_responses", "sampling")),
    "test_share": lambda r: r.output.get("test_size", MISSING),
    "longest_by": longest_by,
    "shuffle": shuffle,
    "has_system_prompt": lambda r: all(point.system_prompt for point in r.grid),
    "system_prompt_weights": system_prompt_weights,
    "system_prompt_in_messages": lambda r: setting(r, "responses", "system_prompt_in_messages"),
}
