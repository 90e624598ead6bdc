"""`export`: rows, files, columns that are missing, and rows that cannot be exported."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import yaml
from datasets import Dataset, DatasetDict, load_dataset

import magpie_hf
from magpie_hf.errors import ArgumentError, DatasetError, StorageError
from magpie_hf.exports.targets import TARGETS
from tests.end_to_end.harness import here
from tests.exports.shapes import (
    CALL,
    REASONING,
    SEVERAL,
    SINGLE,
    WITH_SYSTEM,
    WITH_TOOLS,
    WORSE,
    chats,
    pairs,
    tool_rows,
    turn,
)


def test_trl_sft_has_the_messages_and_nothing_that_trainers_take_for_them():
    made = magpie_hf.export(chats(SINGLE, SEVERAL, WITH_SYSTEM), "trl-sft")
    assert made.column_names == ["messages"]
    assert made["messages"][:] == [SINGLE, SEVERAL, WITH_SYSTEM]


def test_prompt_and_completion_split_at_the_last_response():
    made = magpie_hf.export(chats(SINGLE, SEVERAL), "trl-prompt-completion")
    assert made["prompt"][:] == [SINGLE[:1], SEVERAL[:3]]
    assert made["completion"][:] == [SINGLE[1:], SEVERAL[3:]]


PAIR_ROWS = {
    "trl-dpo": [{"prompt": SINGLE[:1], "chosen": SINGLE[1:], "rejected": WORSE[1:]}],
    "trl-kto": [
        {"prompt": SINGLE[:1], "completion": SINGLE[1:], "label": True},
        {"prompt": SINGLE[:1], "completion": WORSE[1:], "label": False},
    ],
    "trl-reward": [{"chosen": SINGLE, "rejected": WORSE}],
    "axolotl": [{"messages": SINGLE[:1], "chosen": SINGLE[1], "rejected": WORSE[1]}],
    "llamafactory": [{"messages": SINGLE[:1], "chosen": SINGLE[1], "rejected": WORSE[1]}],
    "sharegpt": [
        {
            "conversations": [{"from": "human", "value": SINGLE[0]["content"]}],
            "chosen": {"from": "gpt", "value": SINGLE[1]["content"]},
            "rejected": {"from": "gpt", "value": WORSE[1]["content"]},
        }
    ],
    "openai": [{"input": {"messages": SINGLE[:1]}, "preferred_output": SINGLE[1:], "non_preferred_output": WORSE[1:]}],
}


@pytest.mark.parametrize("target", PAIR_ROWS)
def test_a_preference_pair_in_the_form_of_each_target(target):
    assert magpie_hf.export(pairs((SINGLE, WORSE)), target).to_list() == PAIR_ROWS[target]


@pytest.mark.parametrize("target", [name for name in PAIR_ROWS if name.startswith("trl-")])
def test_pairs_with_a_prompt_of_their_own_give_the_same_rows(target):
    """Datasets of others have the prompt in a column, as a text or as messages, and responses alone."""
    for prompt in (SINGLE[0]["content"], SINGLE[:1]):
        given = Dataset.from_list([{"prompt": prompt, "chosen": SINGLE[1:], "rejected": WORSE[1:]}])
        assert magpie_hf.export(given, target).to_list() == PAIR_ROWS[target]
    given = Dataset.from_list([{"prompt": SINGLE[0]["content"], "chosen": SINGLE, "rejected": WORSE}])
    assert magpie_hf.export(given, target).to_list() == PAIR_ROWS[target]


def test_a_pair_that_differs_in_a_later_turn_has_the_earlier_turns_as_its_prompt():
    other = [*SEVERAL[:3], turn("assistant", "7")]
    made = magpie_hf.export(pairs((SEVERAL, other)), "trl-dpo")[0]
    assert (made["prompt"], made["chosen"], made["rejected"]) == (SEVERAL[:3], SEVERAL[3:], other[3:])


def test_grpo_has_prompts_responses_and_labels_for_reward_functions():
    rows = chats(SINGLE, SEVERAL, [SINGLE[0]], difficulty=["easy", "hard", None])
    made = magpie_hf.export(rows, "trl-grpo", columns=["uuid"])
    assert made.column_names == ["prompt", "response", "difficulty", "uuid"]
    assert made["prompt"][:] == [SINGLE[:1], SEVERAL[:3], SINGLE[:1]]
    assert made["response"][:] == ["2 + 3 = 5.", "5 + 1 = 6", None]


def test_tasks_follow_the_columns_unless_they_are_given():
    both = pairs((SINGLE, WORSE))
    assert magpie_hf.export(both, "openai", task="sft").to_list() == [{"messages": SINGLE}]
    assert "preferred_output" in magpie_hf.export(both, "openai").column_names
    with pytest.raises(ArgumentError, match='The target "trl-dpo" has no task "sft"'):
        magpie_hf.export(both, "trl-dpo", task="sft")


def test_system_prompts_come_from_the_messages_the_column_or_not_at_all():
    rows = chats(SINGLE, WITH_SYSTEM, system_prompt=["Be brief.", "Not this one."])
    system = turn("system", "Be brief.")
    for setting, expected in {
        "messages": [SINGLE, WITH_SYSTEM],
        "column": [[system, *SINGLE], WITH_SYSTEM],
        "drop": [SINGLE, SINGLE],
    }.items():
        assert magpie_hf.export(rows, "trl-sft", system_prompt=setting)["messages"][:] == expected


@pytest.mark.parametrize(
    ("form", "answer"),
    [
        ("reasoning_content", turn("assistant", "2 + 3 = 5.", reasoning_content=REASONING)),
        ("thinking", turn("assistant", "2 + 3 = 5.", thinking=REASONING)),
        ("content", turn("assistant", f"<think>\n{REASONING}\n</think>\n\n2 + 3 = 5.")),
        ("drop", turn("assistant", "2 + 3 = 5.")),
    ],
)
def test_reasoning_is_put_back_and_rows_without_it_get_no_key(form, answer):
    made = magpie_hf.export(chats(SINGLE, SINGLE, reasoning=[REASONING, None]), "trl-sft", reasoning=form)
    assert made["messages"][:] == [[SINGLE[0], answer], SINGLE]


def test_reasoning_without_a_known_template_is_an_error_that_says_what_to_give():
    rows = chats(SINGLE, reasoning=[REASONING])
    with pytest.raises(ArgumentError, match=r"(?s)The rows have reasoning.*--model"):
        magpie_hf.export(rows, "trl-sft")
    with pytest.raises(ArgumentError, match='"llamafactory" does not read reasoning as "thinking"'):
        magpie_hf.export(rows, "llamafactory", reasoning="thinking")
    assert magpie_hf.export(rows, "sharegpt")[0]["conversations"][1]["value"].startswith("<think>\n")


def test_reasoning_keys_of_messages_are_written_in_the_form_asked_for():
    rows = Dataset.from_list([{"messages": [SINGLE[0], turn("assistant", "5", thinking=REASONING)]}])
    made = magpie_hf.export(rows, "trl-sft", reasoning="reasoning_content")
    assert made[0]["messages"] == [SINGLE[0], turn("assistant", "5", reasoning_content=REASONING)]


def test_tools_are_passed_through_without_keys_that_arrow_adds():
    made = magpie_hf.export(tool_rows(), "trl-sft")[0]
    assert made["messages"] == WITH_TOOLS
    assert [tool["function"]["name"] for tool in made["tools"]] == ["weather", "clock"]
    assert made["tools"][1]["function"]["parameters"] == {"type": "object", "properties": {}}
    as_text = magpie_hf.export(tool_rows(), "openai")[0]["messages"][1]["tool_calls"][0]["function"]["arguments"]
    assert json.loads(as_text) == CALL["function"]["arguments"]
    sharegpt = magpie_hf.export(tool_rows(), "sharegpt")[0]
    assert [said["from"] for said in sharegpt["conversations"]] == ["human", "function_call", "observation", "gpt"]
    assert json.loads(sharegpt["tools"])[0]["function"]["name"] == "weather"


INVALID = [
    (chats(SINGLE, [SINGLE[0]]), "trl-sft", "no response"),
    (chats(SINGLE, [SINGLE[0], turn("assistant", None)]), "trl-sft", "no response"),
    (chats(SINGLE, [turn("assistant", "Hello.")]), "trl-sft", "no instruction"),
    (chats(SINGLE, [turn("user", " "), SINGLE[1]]), "openai", "empty message"),
    (chats(SINGLE, [turn("alien", "Hi"), SINGLE[1]]), "trl-sft", "conversation not recognized"),
    (chats(SINGLE, [SINGLE[0], *SINGLE]), "llamafactory", "turns do not alternate"),
    (pairs((SINGLE, WORSE), (None, None)), "trl-dpo", "no preference"),
    (pairs((SINGLE, WORSE), (SINGLE, SINGLE)), "trl-reward", "equal responses"),
    (pairs((SINGLE, WORSE), (SINGLE, [turn("user", "?"), SINGLE[1]])), "trl-dpo", "different prompts"),
    (pairs((SINGLE, WORSE), (SEVERAL, WORSE)), "axolotl", "response of several messages"),
]


@pytest.mark.parametrize(("rows", "target", "reason"), INVALID, ids=[f"{target}: {why}" for _, target, why in INVALID])
def test_invalid_rows_are_counted_by_reason_and_never_dropped_silently(rows, target, reason, caplog):
    with pytest.raises(
        DatasetError, match=rf"(?s)row 1: 1 of 2 rows cannot be exported as .{target}.: 1 {reason}\."
    ) as error:
        magpie_hf.export(rows, target)
    assert error.value.data["reasons"] == {reason: 1}
    with caplog.at_level("WARNING", logger="magpie_hf"):
        assert len(magpie_hf.export(rows, target, on_invalid="skip")) == 1
    assert f"1 rows of the split train were not exported: 1 {reason}" in caplog.text


def test_nothing_to_export_is_an_error():
    with pytest.raises(DatasetError, match=r"(?s)1 of 1 rows.*No row can be exported"):
        magpie_hf.export(chats([SINGLE[0]]), "trl-sft", on_invalid="skip")
    with pytest.raises(DatasetError, match="no rows to export"):
        magpie_hf.export(chats(SINGLE).select([]), "trl-sft")


def test_missing_columns_name_the_stages_that_write_them():
    with pytest.raises(
        DatasetError, match=r'(?s)`chosen` and `rejected`.*stages.*"preference_responses" and "preference"'
    ):
        magpie_hf.export(chats(SINGLE), "trl-dpo")
    with pytest.raises(DatasetError, match=r'(?s)`response`.*"instructions" and "responses"'):
        magpie_hf.export(Dataset.from_dict({"instruction": ["Hi"]}), "trl-sft")
    with pytest.raises(DatasetError, match=r'(?s)"uid".*Did you mean "uuid"'):
        magpie_hf.export(chats(SINGLE), "trl-sft", columns=["uid"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target": ["trl-sft"]}, "Unknown target"),
        ({"target": "trl-stf"}, 'Did you mean "trl-sft"'),
        ({"target": "trl-sft", "on_invalid": "drop"}, "on_invalid"),
        ({"target": "trl-sft", "reasoning": "tags"}, "reasoning = 'tags'"),
        ({"target": "trl-sft", "system_prompt": "none"}, "system_prompt"),
        ({"target": "trl-sft", "task": "dpo"}, "task"),
        ({"target": "trl-sft", "columns": "uuid"}, "Give a list of names"),
        ({"target": "trl-sft", "columns": ["messages"]}, "which the target writes itself"),
    ],
)
def test_an_invalid_setting_is_an_error(settings, message):
    with pytest.raises(ArgumentError, match=message):
        magpie_hf.export(chats(SINGLE), **settings)


def test_instruction_and_response_are_enough():
    rows = Dataset.from_dict({"instruction": [SINGLE[0]["content"]], "response": [SINGLE[1]["content"]]})
    assert magpie_hf.export(rows, "trl-sft")[0]["messages"] == SINGLE


def test_the_released_datasets_get_the_roles_of_chat_templates():
    rows = Dataset.from_list(
        [{"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]}]
    )
    assert magpie_hf.export(rows, "trl-sft")[0]["messages"] == [turn("user", "Hi"), turn("assistant", "Hello")]


@pytest.mark.parametrize("target", ["trl-sft", "axolotl", "llamafactory", "sharegpt", "openai"])
def test_an_export_can_be_exported_again(target):
    rows = chats(SINGLE, SEVERAL, WITH_SYSTEM)
    again = magpie_hf.export(magpie_hf.export(rows, target), "trl-sft")
    assert again.to_list() == magpie_hf.export(rows, "trl-sft").to_list()
    with_tools = magpie_hf.export(tool_rows(), "trl-sft").to_list()
    if target in ("trl-sft", "axolotl", "openai"):
        assert magpie_hf.export(magpie_hf.export(tool_rows(), target), "trl-sft").to_list() == with_tools


def test_splits_stay_splits(tmp_path):
    given = DatasetDict({"train": chats(SINGLE, SEVERAL), "test": chats(SINGLE)})
    made = magpie_hf.export(given, "llamafactory", output_dir=tmp_path / "lf")
    assert {split: len(rows) for split, rows in made.items()} == {"train": 2, "test": 1}
    info = json.loads((tmp_path / "lf" / "dataset_info.json").read_text("utf-8"))
    assert {name: entry["file_name"] for name, entry in info.items()} == {"lf": "train.jsonl", "lf_test": "test.jsonl"}


@pytest.mark.parametrize("target", TARGETS)
def test_files_load_as_the_rows_and_an_export_can_be_repeated(target, tmp_path):
    rows = pairs((SINGLE, WORSE), (SEVERAL, [*SEVERAL[:3], turn("assistant", "7")]))
    place = tmp_path / "made"
    made = magpie_hf.export(rows, target, output_dir=place)
    (place / "checkpoint.txt").write_text("a file of the user", "utf-8")
    magpie_hf.export(rows, target, output_dir=place)
    data = "data/train-*.parquet" if target.startswith("trl-") else "train.jsonl"
    builder = "parquet" if target.startswith("trl-") else "json"
    loaded = load_dataset(builder, data_files=str(place / data), split="train")
    assert [{**row} for row in loaded] == made.to_list()
    facts = yaml.safe_load((place / "export.yaml").read_text("utf-8"))
    assert facts["splits"] == {"train": {"rows": len(made), "skipped": {}}}
    assert all((place / name).is_file() for name in facts["files"])
    assert (place / "checkpoint.txt").is_file()
    assert not list(tmp_path.glob(".*"))


def test_a_run_with_a_test_split_keeps_it(tmp_path):
    recipe = {"model": "demo", "num_rows": 8, "sampling": {"max_tokens": 32}, "stages": ["instructions", "responses"]}
    magpie_hf.run({**recipe, "output": {"path": str(tmp_path / "run"), "test_size": 0.25}})
    shown = here("export", tmp_path / "run", "trl-sft", "--output", tmp_path / "made")
    assert "train: 6 rows" in shown
    assert "test: 2 rows" in shown
    loaded = load_dataset(str(tmp_path / "made"))
    assert {split: len(rows) for split, rows in loaded.items()} == {"train": 6, "test": 2}


def test_another_target_replaces_the_files_of_the_first_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for target in ("trl-sft", "axolotl"):
        magpie_hf.export(chats(SINGLE), target, output_dir=".")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["axolotl-sft.yaml", "export.yaml", "train.jsonl"]


def test_empty_reasoning_and_empty_tools_are_left_out():
    made = magpie_hf.export(chats(SINGLE, reasoning=[" "], tools=[None]), "trl-sft", reasoning="thinking")
    assert made.to_list() == [{"messages": SINGLE}]


def test_a_directory_with_other_files_is_not_written_to(tmp_path):
    (tmp_path / "thesis.tex").write_text("…", "utf-8")
    with pytest.raises(StorageError, match="contains other files"):
        magpie_hf.export(chats(SINGLE), "trl-sft", output_dir=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_the_command_exports_a_file_and_shows_what_it_skipped(tmp_path):
    chats(SINGLE, SEVERAL, [SINGLE[0]]).to_parquet(str(tmp_path / "rows.parquet"))
    given = ("export", tmp_path / "rows.parquet", "trl-sft", "--output", tmp_path / "made")
    assert "1 of 3 rows cannot be exported" in here(*given, code=1)
    shown = here(*given, "--on-invalid", "skip", "--columns", "uuid")
    assert "train: 2 rows, 1 skipped (1 no response)" in shown
    assert f"trl sft --config {tmp_path / 'made' / 'trl-sft.yaml'}" in shown
    loaded = load_dataset(str(tmp_path / "made"))
    assert loaded["train"].column_names == ["messages", "uuid"]


def test_the_help_of_the_command_names_every_target():
    from magpie_hf.cli.exporting import _TARGETS

    assert tuple(TARGETS) == _TARGETS


def test_the_page_on_training_has_commands_that_parse_and_names_every_target():
    from magpie_hf.cli.main import build_parser

    page = (Path(__file__).parents[2] / "docs" / "how-to" / "train.md").read_text("utf-8")
    commands = re.findall(r"^\$ magpie-hf (export .*?)(?:  +#.*)?$", page, re.MULTILINE)
    assert len(commands) >= 3
    for command in commands:
        assert build_parser().parse_args(shlex.split(command)).target in TARGETS
    assert all(f"| `{target}` |" in page for target in TARGETS)
