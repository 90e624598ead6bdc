"""Every recipe runs from end to end on the demo models, and its card in dataset_cards/ is one that the Hub takes."""

from __future__ import annotations

import itertools
import re

import pyarrow.parquet as pq
import pytest
import yaml
from datasets import load_dataset
from huggingface_hub import DatasetCard

import magpie_hf
from magpie_hf.hub.layouts import LAYOUTS, recipes_of
from magpie_hf.recipe.schema import bundled_recipes, load_recipe
from magpie_hf.selection.selections import SELECTIONS
from magpie_hf.session.shape import splits_of
from tests.conftest import REPOSITORY
from tests.end_to_end.harness import here
from tests.servers.hub_rules import card_errors


RECIPES = sorted(bundled_recipes())
RELEASES = [name for name in RECIPES if name.startswith("magpie")]
CARDS = REPOSITORY / "dataset_cards"


@pytest.fixture(scope="module")
def place(tmp_path_factory, demo_model_dir):
    """One run directory for all: what recipes have in common is made once."""
    return tmp_path_factory.mktemp("recipes") / "run"


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_runs_from_end_to_end_on_the_demo_models(name, place):
    here(
        "run",
        name,
        "--set",
        "num_rows=40",
        "--engine",
        "transformers",
        "--model",
        "demo",
        "--output",
        place,
        "--force",
        "--rows",
        0,
    )
    recipe = load_recipe(name)
    kept = sorted(map(str, (place / "data").glob("*.parquet")))
    assert any(pq.read_metadata(path).num_rows for path in kept)
    ds = load_dataset("parquet", data_files=kept, split="train")
    written = {column for stage in recipe.stages for column in stage.features()}
    assert written <= {*ds.column_names}
    assert len(ds) == 40 or any(stage.name == "select" for stage in recipe.stages)
    if any(stage.name == "preference" for stage in recipe.stages):
        assert all(row["chosen"] and row["reward_margin"] > 0 for row in ds)
    if "-mt" in name:
        assert all(len(row["messages"]) <= 4 for row in ds)
        assert any(len(row["messages"]) == 4 for row in ds)


FACTS = yaml.safe_load((REPOSITORY / "tests" / "releases" / "facts.yaml").read_text("utf-8"))["releases"]
LAYOUT_OF = {layout: next((name for name in RECIPES if name in recipes_of(layout)), None) for layout in LAYOUTS}


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in LAYOUT_OF.values() if name and not load_recipe(name).dataset])
def test_a_recipe_of_each_layout_writes_the_columns_of_its_release(name, place):
    overrides = {"num_rows": 40, "engine.kind": "transformers", "model": "demo", "output.columns": "released"}
    made = magpie_hf.run(name, overrides, output=place, force=True, show_progress=False)
    columns, _ = FACTS[name].get("columns") or FACTS[name]["starts_with_columns"]
    for rows in splits_of(made).values():
        assert rows.column_names[: len(columns)] == list(columns)
        assert all(
            feature == rows.features[key] for key, feature in load_dataset(str(place), split="train").features.items()
        )
        assert all(row["conversations"][0]["from"] == "human" for row in rows if "conversations" in row)
        assert all(row["gen_response_configs"]["prompt"] for row in rows if "gen_response_configs" in row)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["quickstart", "magpie-air-300k-filtered", "magpie-pro-dpo-100k"])
def test_the_cards_that_are_kept_are_those_that_the_code_writes(name, place, tmp_path, demo_model_dir):
    """Figures may differ in their last places from machine to machine; what is said must not."""
    from docs.build_cards import write

    fresh, kept = write(name, place, tmp_path).read_text("utf-8"), (CARDS / f"{name}.md").read_text("utf-8")
    assert shape(fresh) == shape(kept), "run `python docs/build_cards.py`"


def shape(card):
    """Return a card's metadata without numbers, and its headings and tables' heads."""
    metadata, _, body = card.partition("<!-- magpie: begin -->")
    outside = re.sub(r"(?s)(`{3,}).*?\1", "", body)
    lines = [
        line for line in outside.splitlines() if line.startswith(("#", "| |", "| temp", "| stage", "| condition"))
    ]
    return re.sub(r"\d+", "N", metadata), lines


@pytest.mark.parametrize("name", RECIPES)
def test_the_card_of_a_recipe_has_metadata_that_the_hub_takes(name):
    text = (CARDS / f"{name}.md").read_text("utf-8")
    card = DatasetCard(text)
    assert card_errors({"content": text})["errors"] == []
    recipe = load_recipe(name)
    if not recipe.dataset:  # of existing rows, a card cannot know how they were made
        assert {"synthetic", "magpie"} <= set(card.data.tags)
    assert card.data.license == "apache-2.0"
    assert text.startswith("---\n")
    assert f'load_dataset("me/{name}"' in text
    plot = re.search(r"!\[[^]]*\]\((.*?)\)", text)
    assert plot is None or (CARDS / plot[1]).is_file()
    assert ("DPOTrainer" in text) == any(stage.name == "preference" for stage in recipe.stages)


def test_huggingface_hub_itself_finds_the_cards_valid(hub_server_in_process):
    for name in RECIPES:
        DatasetCard((CARDS / f"{name}.md").read_text("utf-8")).validate(repo_type="dataset")
    assert sum(path == "/api/validate-yaml" for _, path, _ in hub_server_in_process.requests) == len(RECIPES)


@pytest.fixture
def hub_server_in_process(monkeypatch):
    from tests.hub.conftest import use_hub
    from tests.servers.hub_server import HubServer

    with HubServer() as server:
        use_hub(server, monkeypatch)
        yield server


@pytest.mark.parametrize("name", RELEASES)
def test_a_recipe_names_its_release_its_sources_and_what_is_our_choice(name):
    text = bundled_recipes()[name].read_text("utf-8")
    raw = yaml.safe_load(text)
    assert raw["name"] == name
    assert text.startswith(("# Magpie-Align/", "# argilla/", "# The authors' script", "# Our own recipe"))
    is_commented = re.search(r"sampling:.*# \S|sampling: \{.*\}  # \S", text)
    assert is_commented or "sampling" in raw.get("sources", {}) or "dataset" in raw, "the sampling's source"
    for stage in raw["stages"]:
        if isinstance(stage, dict) and stage.get("filter"):
            assert SELECTIONS[stage["filter"]].source


def test_the_grids_are_those_of_the_paper():
    """Magpie, arXiv:2406.08464, Table 7: rows of each (temperature, top_p)."""

    def rows(name):
        recipe = load_recipe(name)
        total = sum(point.share for point in recipe.grid)
        return {
            (point.sampling.temperature, point.sampling.top_p): round(recipe.num_rows * point.share / total)
            for point in recipe.grid
        }

    air = {(t, p): 300_000 for t in (1.0, 1.1, 1.2) for p in (1.0, 0.995, 0.99)}
    assert rows("magpie-air") == air | {(1.25, p): 100_000 for p in (1.0, 0.995, 0.99)}
    assert rows("magpie-pro") == {
        (1.0, 1.0): 300_000,
        (1.1, 0.995): 300_000,
        (1.2, 0.995): 300_000,
        (1.25, 0.99): 100_000,
    }
    assert rows("magpie-qwen2-pro-1m") == {(1.0, 1.0): 300_000, (1.1, 1.0): 400_000, (1.2, 0.99): 300_000}
    assert rows("magpie-phi3-pro-1m") == {
        (1.0, 1.0): 300_000,
        (1.1, 1.0): 300_000,
        (1.2, 0.99): 300_000,
        (1.25, 0.99): 100_000,
    }


RAW = {
    "magpie-air": ["magpie-air-300k-filtered", "magpie-air-mt-300k", "magpie-air-dpo-100k"],
    "magpie-pro": ["magpie-pro-300k-filtered", "magpie-pro-mt", "magpie-pro-dpo-100k"],
    "magpie-llama-3.1-pro-1m": ["magpie-llama-3.1-pro-300k-filtered", "magpie-llama-3.1-pro-500k-filtered",
                                "magpie-llama-3.1-pro-mt-500k", "magpie-llama-3.1-pro-dpo-100k"],
    "magpie-llama-3.1-pro-mt-500k": ["magpie-llama-3.1-pro-mt-300k-filtered"],
    "magpie-llama-3.3-pro-1m": ["magpie-llama-3.3-pro-500k-filtered"],
    "magpie-qwen2-pro-1m": ["magpie-qwen2-pro-200k-chinese"],
}  # fmt: skip
"""Raw recipes, and those that select from their rows."""


@pytest.mark.parametrize(("raw", "filtered"), [(raw, name) for raw, names in RAW.items() for name in names])
def test_a_filtered_recipe_generates_nothing_for_all_rows_that_its_raw_one_has_not_generated(raw, filtered):
    """Its stages before the first selection are stages of the raw recipe, so --output of the raw run has their rows.

    The raw recipe may have more, e.g., base responses, which only the selection of Air reads.
    """
    first, second = load_recipe(raw), load_recipe(filtered)
    assert first.grid == second.grid
    common = list(itertools.takewhile(lambda stage: stage.name != "select", second.stages))
    assert [stage.name for stage in common][:2] == ["instructions", "responses"]
    assert all(stage in first.stages for stage in common if stage.name != "lengths")
    for name in ("generator", "responder", "judge", "guard", *(["base"] if "base" in second.raw else [])):
        assert first.role(name) == second.role(name)


def test_the_three_sets_of_llama_31_with_500k_rows_are_one_chain():
    """The first turns of both multi-turn sets are the rows of 500K-Filtered."""
    names = (
        "magpie-llama-3.1-pro-500k-filtered",
        "magpie-llama-3.1-pro-mt-500k",
        "magpie-llama-3.1-pro-mt-300k-filtered",
    )
    selections = [next(stage for stage in load_recipe(name).stages if stage.name == "select") for name in names]
    assert [stage.filter for stage in selections] == 3 * ["llama-3.1-500k"]
    assert selections[0].selection == selections[1].selection == selections[2].selection


L3_HEADER = "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n"


@pytest.mark.parametrize(
    ("name", "family", "text"),
    [
        ("magpie-air", "llama-3", L3_HEADER),
        ("magpie-pro", "llama-3", L3_HEADER),
        ("magpie-llama-3.1-pro-1m", "llama-3.1", L3_HEADER),
        ("magpie-llama-3.3-pro-1m", "llama-3.1", L3_HEADER),
        ("magpie-reasoning-v2-250k-llama-3.1", "llama-3.1", L3_HEADER),
        ("magpie-reasoning-v2-250k-llama-3.3", "llama-3.1", L3_HEADER),
        ("magpie-qwen2-pro-1m", "qwen-2", "<|im_start|>user\n"),
        ("magpie-qwen2-air-3m", "qwen-2", "<|im_start|>user\n"),
        ("magpie-reasoning-v1-150k", "qwen-2", "<|im_start|>user\n"),
        ("magpie-gemma2-pro-534k", "gemma-2", "<bos><start_of_turn>user\n\n"),
        ("magpie-phi3-pro-1m", "phi-3", "<s> <|user|>\n"),
    ],
)
def test_what_is_sent_for_an_instruction_is_what_the_releases_sent(name, family, text):
    """The reference's table of templates."""
    from magpie_hf.templates.template import ChatTemplate
    from tests.template_families import make_tokenizer, template
    from tests.template_families.table import TOKENIZERS

    recipe = load_recipe(name)
    override = recipe.template.get("chat_template")
    tokenizer = make_tokenizer(**TOKENIZERS[family], chat_template=override or template(family))
    chat = ChatTemplate(tokenizer, name=family, template_date="2026-03-04")
    prompt = chat.pre_query(recipe.grid[0].system_prompt)
    assert prompt.text == text
    assert list(prompt.token_ids) == tokenizer.encode(text, add_special_tokens=False)
    said = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    assert chat.next_user(said, None).text.startswith(text)
    if override:
        assert recipe.role("responder").template == {}
        elsewhere = load_recipe(name, {"engine.kind": "tgi", "engine.endpoints": ["http://h:1"]})
        assert (
            elsewhere.role("responder").engine == elsewhere.engine or elsewhere.role("responder").model != recipe.model
        )


def test_the_math_recipe_sends_the_system_prompt_that_the_release_sent():
    recipe = load_recipe("magpie-qwen2.5-math-pro-300k")
    assert recipe.grid[0].system_prompt == "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
    assert next(stage for stage in recipe.stages if stage.name == "responses").system_prompt is None
