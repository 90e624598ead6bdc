from __future__ import annotations

import re

import pytest
from datasets import Dataset
from huggingface_hub import DatasetCard

from magpie_hf.errors import ArgumentError
from magpie_hf.hub.card import BEGIN, END, build_card, fenced, line, write_card
from magpie_hf.hub.licences import licence_of
from tests.end_to_end.harness import here


RUN = {
    "recipe": {
        "name": "mine",
        "model": "meta-llama/Meta-Llama-3-8B-Instruct",
        "seed": 3,
        "sampling": [{"temperature": 1.1, "share": 2}],
    },
    "totals": {"tokens": 1234, "engine_seconds": 7200.0, "cost": 1.5},
    "stages": {
        "a": {
            "name": "responses",
            "rows_in": 5,
            "rows_out": 5,
            "counters": {"prompt_tokens": 10, "completion_tokens": 20},
        }
    },
}
FUNNEL = [{"condition": "quality >= good | x", "rows_in": 5, "rows_out": 3, "nulls": 1}]


def rows(**more):
    base = {
        "instruction": ["Why is the sky blue?", "Name two planets.", "Hi"],
        "response": ["Light scatters.", "Mars and Venus.", "Hello!"],
        "language": ["EN", "EN", "DE"],
        "input_quality": ["good", "excellent", None],
        "safety": ["safe", "safe", "unsafe"],
    }
    return Dataset.from_dict(base | more)


def test_a_card_says_what_was_computed_and_what_was_given():
    card = build_card(rows(), repo_id="me/mine", run=RUN, funnel=FUNNEL)
    data = DatasetCard(card).data
    assert data.license == "llama3"
    assert data.language == ["en", "de"]
    assert data.size_categories == ["n<1K"]
    assert {"synthetic", "magpie", "generator:meta-llama/Meta-Llama-3-8B-Instruct"} <= set(data.tags)
    for words in ("Built with Meta Llama 3", "| 1.1 | 1.0 | 2 | none |", "| responses | 5 | 5 | 30 |", "1,234", "2.00", "67 % are in the language EN",
                  "33 % were marked unsafe", 'load_dataset("me/mine", "default"', "@inproceedings", "Why is the sky blue?"):  # fmt: skip
        assert words in card, words
    assert r"quality &gt;= good \| x | 5 | 3 | 1 |" in card


def test_tables_and_headings_have_blank_lines_around_them():
    text = build_card(rows(), run=RUN, funnel=FUNNEL).splitlines()
    for number, row in enumerate(text[1:-1], start=1):
        if row.startswith("#"):
            assert text[number - 1] == text[number + 1] == "" or row.startswith("#!"), row
        if row.startswith("|") and not text[number - 1].startswith("|"):
            assert text[number - 1] == "", row


HOSTILE = [
    "<script>alert(1)</script><img src=x onerror=alert(1)>",
    "```\n# A heading\n```\n---\nlicense: mit\n---",
    "````` a | b |\n|---|",
    "\u202ereversed\x00\x07",
    f"{END}\n\n# Mine {BEGIN}",
    "x" * 50_000,
]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_rows_stay_inside_their_fence(text):
    card = build_card(
        rows(instruction=[text] * 3, response=[text] * 3, language=[text[:30]] * 3),
        license="mit",
        run={"recipe": {"model": text[:60]}},
    )
    assert len(card) < 40_000
    assert "\u202e" not in card
    outside, fence = [], ""
    for row in card.splitlines():
        opened = re.match(r"`{3,}", row)
        if fence:
            fence = "" if row.strip() == fence else fence
        elif opened:
            fence = opened[0]
        else:
            outside.append(row)
    assert fence == ""
    plain = "\n".join(outside)
    assert "<script" not in plain
    assert "A heading" not in [row.strip("# ") for row in outside if row.startswith("#")]
    assert DatasetCard(card).data.license == "mit"
    assert card.count(BEGIN) == card.count(END) == 1 or "magpie: " in text


def test_marks_in_generated_text_do_not_end_the_generated_part():
    text = f"{END} and {BEGIN}"
    first = build_card(rows(instruction=[text] * 3), license="mit")
    own = first.replace("---\n\n<!--", "---\n\nMy words first.\n\n<!--") + "\n## My words last\n"
    again = build_card(rows(instruction=[text] * 3), license="mit", existing=own)
    assert again.count("My words last") == 1


def test_what_a_person_wrote_stays_when_the_card_is_made_again(tmp_path):
    place = write_card(rows(), tmp_path / "README.md", license="mit")
    text = (
        place.read_text("utf-8")
        .replace("---\n\n<!--", "---\n\nRead me first.\n\n<!--")
        .replace("license: mit", "license: mit\npretty_name: Mine")
        .replace("- magpie\n", "- magpie\n- mine\n")
    )
    place.write_text(text + "\n## Thanks\n\nTo all.\n", "utf-8")
    again = write_card(rows(), place, license="apache-2.0").read_text("utf-8")
    assert again.index("Read me first.") < again.index(BEGIN)
    assert again.index("## Thanks") > again.index(END)
    data = DatasetCard(again).data
    assert (data.license, data.pretty_name) == ("apache-2.0", "Mine")
    assert set(data.tags) >= {"mine", "synthetic"}
    assert write_card(rows(), place, license="apache-2.0").read_text("utf-8") == again


def test_an_empty_dataset_has_a_card():
    assert "0 rows" in build_card(rows().select([]), license="mit")


@pytest.mark.parametrize(
    ("model", "licence"),
    [
        ("meta-llama/Meta-Llama-3-70B-Instruct", "llama3"), ("meta-llama/Llama-3.1-8B-Instruct", "llama3.1"), ("meta-llama/Llama-3.3-70B-Instruct", "llama3.3"),
        ("Qwen/Qwen2-72B-Instruct", "other"), ("Qwen/Qwen2.5-7B-Instruct", "apache-2.0"), ("Qwen/Qwen3-8B", "apache-2.0"),
        ("google/gemma-2-9b-it", "gemma"), ("microsoft/Phi-3-medium-128k-instruct", "mit"), ("openai/gpt-oss-20b", "apache-2.0"), ("demo", "apache-2.0"),
    ],
)  # fmt: skip
def test_licences_follow_the_models(model, licence):
    assert licence_of(model).id == licence


def test_a_model_that_is_not_known_needs_a_licence_from_its_user():
    with pytest.raises(ArgumentError, match="license"):
        licence_of("acme/secret-model")
    assert licence_of("acme/secret-model", "cc-by-4.0").id == "cc-by-4.0"


def test_helpers_make_text_harmless():
    assert line("a|b\n# c <b>") == r"a\|b \# c &lt;b&gt;"
    assert fenced("``` x ````").startswith("`````text")


def test_the_command_writes_the_card_of_a_run(tmp_path, demo_model_dir):
    here("synthesize", "--num-rows", 5, "--output", tmp_path / "run", "--set", "sampling.max_tokens=32", "--rows", 0)
    printed = here("card", tmp_path / "run", "--repo-id", "me/x")
    assert "README.md" in printed
    card = (tmp_path / "run" / "README.md").read_text("utf-8")
    assert "| model | demo |" in card
    assert DatasetCard(card).data.license == "apache-2.0"
