"""Rows from anywhere: dialects of conversations, kinds of datasets, and files without a row."""

from __future__ import annotations

import pandas
import pyarrow
import pytest
from datasets import Dataset, DatasetDict, load_dataset, load_from_disk

import magpie_hf
from magpie_hf.errors import ArgumentError, DatasetError
from magpie_hf.selection.filters import nothing_kept, select_rows
from magpie_hf.storage.conversations import read_turns
from magpie_hf.storage.loading import as_dataset, load_rows, with_row_columns
from tests.test_cli import cli


def turns(*pairs, role="role", text="content"):
    return [{role: name, text: words} for name, words in pairs]


SAID = (("What is 2+2?", "4"), ("And 3+3?", "6"))


def spoken(user, assistant, **keys):
    return turns(*(pair for question, answer in SAID for pair in ((user, question), (assistant, answer))), **keys)


SHAREGPT = {"role": "from", "text": "value"}


@pytest.mark.parametrize(
    ("column", "conversation"),
    [
        ("messages", spoken("user", "assistant")),
        ("conversations", spoken("human", "gpt", **SHAREGPT)),
        ("conversations", spoken("user", "assistant", **SHAREGPT)),
        ("messages", spoken("human", "gpt", **SHAREGPT)),
        ("conversations", spoken("user", "assistant")),
        ("conversation", spoken("USER", "Assistant")),
        ("messages", spoken("prompter", "assistant", text="text")),
        ("conversations", spoken("human", "chatgpt", **SHAREGPT)),
        ("messages", spoken("user", "model")),
        ("dialog", spoken("user", "bot", role="speaker", text="text")),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join([*value[0], value[0][next(iter(value[0]))]]),
)
def test_conversations_of_every_dialect_give_their_first_turn(column, conversation):
    row = with_row_columns(Dataset.from_list([{column: conversation}]))[0]
    assert (row["instruction"], row["response"]) == SAID[0]
    assert row[column] == conversation
    assert "system_prompt" not in row


@pytest.mark.parametrize(("role", "keys"), [("system", {}), ("system", SHAREGPT), ("developer", {})])
def test_a_system_message_at_the_beginning_is_kept_and_is_no_instruction(role, keys):
    with_system = turns((role, "Be brief."), ("user", "Why?"), ("assistant", "So."), **keys)
    without = turns(("user", "How?"), ("assistant", "Thus."), **keys)
    rows = with_row_columns(Dataset.from_list([{"messages": with_system}, {"messages": without}]))
    assert rows["instruction"][:] == ["Why?", "How?"]
    assert rows["system_prompt"][:] == ["Be brief.", None]
    assert rows[0]["messages"] == with_system


def test_the_answer_behind_a_tool_call_is_the_response_and_one_to_a_later_user_is_not():
    call = turns(("user", "6 * 7?"), ("assistant", None), ("tool", "42"), ("assistant", "It is 42."))
    later = turns(("user", "6 * 7?"), ("assistant", None), ("user", "And 2?"), ("assistant", "2."))
    rows = with_row_columns(Dataset.from_list([{"messages": call}, {"messages": later}]))
    assert rows["response"][:] == ["It is 42.", None]


def test_an_empty_dataset_of_conversations_gets_the_columns_too(tmp_path):
    conversations = Dataset.from_list([{"messages": spoken("user", "assistant")}]).select([])
    rows = with_row_columns(conversations)
    assert (len(rows), rows.column_names) == (0, ["messages", "instruction", "response", "uuid"])
    assert {rows.features[name].dtype for name in ("instruction", "response", "uuid")} == {"string"}
    annotated = magpie_hf.annotate(conversations, "lengths", output=tmp_path / "run")
    assert "response_length" in annotated.column_names


def test_new_responses_leave_no_system_prompt_that_they_were_generated_without(tmp_path):
    conversation = turns(
        ("system", "Be French."), *((pair["role"], pair["content"]) for pair in spoken("user", "assistant"))
    )
    recipe = {"dataset": {"path": str(tmp_path / "rows.jsonl")}, "model": "demo", "stages": ["responses"]}
    Dataset.from_list([{"messages": conversation}]).to_json(recipe["dataset"]["path"])
    recipe["stages"] = [{"stage": "responses", "sampling": {"max_tokens": 4}}]
    (row,) = magpie_hf.run(recipe, output=tmp_path / "run")
    assert "system_prompt" not in row
    assert [turn["role"] for turn in row["messages"]] == ["user", "assistant"]
    recipe["stages"].append({"stage": "select", "where": "system_prompt is not None"})
    with pytest.raises(DatasetError, match="system_prompt"):
        magpie_hf.run(recipe, output=tmp_path / "other")


def test_a_content_of_parts_is_the_text_of_its_parts():
    parts = [{"type": "text", "text": "What is "}, {"type": "image", "text": None}, {"type": "text", "text": "this?"}]
    assert read_turns([{"role": "user", "content": parts}], "row 0")[0]["content"] == "What is this?"


def test_a_list_a_key_is_a_conversation_too():
    assert read_turns({"from": ["human", "gpt"], "value": ["Why?", "So."]}, "row 0") == turns(
        ("user", "Why?"), ("assistant", "So.")
    )


@pytest.mark.parametrize(
    ("conversation", "words"),
    [
        (turns(("narrator", "Once")), ["row 1, messages", "'narrator' is not recognized", "assistant"]),
        (turns(("user", "Hi"), ("asistant", "Yes")), ["row 1", "'asistant'", 'Did you mean "assistant"?']),
        (turns(("assistant", "Hello"), ("user", "Hi")), ["row 1", "begins with assistant", "filter"]),
        (turns(("system", "Be brief.")), ["row 1", "no text of a user"]),
        ([], ["row 1", "no text of a user"]),
        (turns(("user", None)), ["row 1", "no text of a user"]),
        (turns(("user", "A"), ("user", "B"), ("assistant", "On B.")), ["row 1", "second user message"]),
    ],
    ids=["role", "typo", "assistant first", "system only", "empty", "no text", "two users"],
)
def test_a_conversation_that_is_not_understood_is_an_error_with_its_row(conversation, words):
    good = turns(("user", "Why?"), ("assistant", "So."))
    with pytest.raises(DatasetError) as caught:
        with_row_columns(Dataset.from_list([{"messages": good}, {"messages": conversation}]))
    for word in words:
        assert word in str(caught.value)


def test_turns_of_other_keys_and_conversations_as_text_are_errors_with_their_row():
    with pytest.raises(DatasetError, match=r"row 0, messages: a turn has the keys q, a"):
        with_row_columns(Dataset.from_list([{"messages": [{"q": "Why?", "a": "So."}]}]))
    with pytest.raises(DatasetError, match=r"row 0, messages: a conversation must be a list of turns"):
        with_row_columns(Dataset.from_list([{"messages": '[{"role": "user"}]'}]))


def test_a_dialect_is_annotated_and_shown_at_the_command_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    Dataset.from_list([{"messages": spoken("human", "gpt", **SHAREGPT)}]).to_json(path)
    said = cli("annotate", path, "flags,lengths", "--output", tmp_path / "run", "--rows", "1")
    assert said.code == 0, said.err
    assert "USER: What is 2+2?" in said.out
    assert load_rows(str(tmp_path / "run"))["instruction_length"][:] == [12]


ROWS = [{"instruction": "Why?", "response": "So."}, {"instruction": "How?", "response": None}]


@pytest.mark.parametrize(
    "given",
    [
        ROWS,
        {name: [row[name] for row in ROWS] for name in ROWS[0]},
        pandas.DataFrame(ROWS, index=[7, 9]),
        pyarrow.Table.from_pylist(ROWS),
        DatasetDict(train=Dataset.from_list(ROWS)),
    ],
    ids=["list of rows", "columns", "DataFrame", "Arrow table", "DatasetDict of one split"],
)
def test_other_kinds_of_tables_are_taken_everywhere(given, tmp_path):
    assert as_dataset(given).to_list() == ROWS
    annotated = magpie_hf.annotate(given, "lengths", output=tmp_path / "run")
    assert annotated["instruction_length"][:] == [4, 4]
    assert magpie_hf.select(given, "contains(instruction, 'Why')").to_list() == ROWS[:1]
    assert magpie_hf.report(given, tmp_path / "report.html").is_file()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (DatasetDict(train=Dataset.from_list(ROWS), test=Dataset.from_list(ROWS[:1])), ["2 splits", '"test" (1 rows)', 'ds["train"]']),
        (DatasetDict(), ["has no split"]),
        (Dataset.from_list(ROWS).to_iterable_dataset(), ["IterableDataset", "streaming=True"]),
        (3, ["not int.", "DataFrame"]),
        (["Why?"], ["not list.", "list of rows"]),
        ({"instruction": ["Why?"], "response": ["So.", "Thus."]}, ["cannot be converted to a Dataset", "the same length"]),
        ([{"instruction": "Why?"}, {"instruction": 5}], ["cannot be converted to a Dataset", "the same type"]),
        (pandas.DataFrame({"instruction": ["Why?"], "source": [object()]}), ["cannot be converted to a Dataset", "column source"]),
    ],
    ids=["splits", "no split", "streamed", "number", "texts", "ragged", "mixed", "objects"],
)  # fmt: skip
@pytest.mark.parametrize("call", [lambda ds: magpie_hf.annotate(ds, "lengths"), magpie_hf.select, magpie_hf.report])
def test_what_cannot_be_taken_is_refused_in_words(given, words, call):
    with pytest.raises(ArgumentError) as caught:
        call(given)
    for word in words:
        assert word in str(caught.value)


def test_texts_that_are_numbers_are_an_error_with_the_column(tmp_path):
    with pytest.raises(DatasetError, match=r'from the column "instruction", but its type is int64'):
        magpie_hf.annotate([{"instruction": 5, "response": "So."}], "lengths", output=tmp_path / "run")


def test_no_other_column_is_suggested_for_a_missing_response(tmp_path):
    with pytest.raises(DatasetError) as caught:
        magpie_hf.annotate([{"instruction": "Why?"}], "lengths", output=tmp_path / "run")
    assert "Did you mean" not in str(caught.value)


def test_a_directory_of_several_splits_asks_for_one(tmp_path):
    splits = DatasetDict(train=Dataset.from_list(ROWS), test=Dataset.from_list(ROWS[:1]))
    splits.save_to_disk(str(tmp_path / "both"))
    with pytest.raises(ArgumentError, match="2 splits"):
        load_rows(str(tmp_path / "both"))
    assert len(load_rows(str(tmp_path / "both"), split="test")) == 1


def test_hints_name_a_column_to_rename_only_where_there_is_one():
    with pytest.raises(DatasetError, match=r'rename_column\("question", "instruction"\)'):
        with_row_columns(Dataset.from_dict({"question": ["Why?"]}))
    with pytest.raises(DatasetError) as caught:
        with_row_columns(Dataset.from_dict({"n": [1]}))
    assert "rename_column" not in str(caught.value)
    assert "messages" in caught.value.hint


def test_a_selection_without_a_row_warns_and_writes_a_file_that_loads_again(tmp_path):
    source, target = tmp_path / "rows.jsonl", tmp_path / "none.parquet"
    Dataset.from_list([{**row, "messages": spoken("user", "assistant")} for row in ROWS]).to_json(source)
    said = cli("select", source, "contains(instruction, 'Nobody')", "--output", target)
    assert said.code == 0
    assert "0 rows in" in said.out
    whole = said.out + said.err
    assert whole.count("No row is kept") == whole.count("Warning") == 1
    assert whole.count("contains(instruction, 'Nobody')") == 2  # in the funnel, and in the warning
    assert "The file has columns but no rows" in said.out
    nobody = select_rows(Dataset.from_list(ROWS), "contains(instruction, 'Nobody')")
    assert nothing_kept(nobody) == """No row is kept: none of 2 rows meets "contains(instruction, 'Nobody')"."""
    again = load_rows(str(target))
    assert (len(again), again.column_names[:2]) == (0, ["instruction", "response"])
    streamed = load_dataset("parquet", data_files=str(target), split="train", streaming=True)
    assert list(streamed) == []
    said = cli("annotate", target, "lengths", "--output", tmp_path / "run")
    assert "split='train', streaming=True))" in said.out  # load_dataset refuses a dataset without rows
    assert list(load_dataset(str(tmp_path / "run"), split="train", streaming=True)) == []
    assert "response_length" in load_rows(str(tmp_path / "run")).column_names


@pytest.mark.parametrize("file_format", ["parquet", "arrow"])
def test_a_run_that_keeps_no_row_can_be_loaded_again(tmp_path, file_format):
    raw = {
        "dataset": {"path": str(tmp_path / "rows.jsonl")},
        "stages": ["lengths", {"stage": "select", "where": "instruction_length > 100"}],
        "output": {"format": file_format},
    }
    Dataset.from_list(ROWS).to_json(tmp_path / "rows.jsonl")
    assert len(magpie_hf.run(raw, output=tmp_path / "run")) == 0
    if file_format == "arrow":
        assert len(load_from_disk(str(tmp_path / "run" / "dataset"))) == 0
    again = load_rows(str(tmp_path / "run"))
    assert (len(again), "instruction_length" in again.column_names) == (0, True)


def test_one_name_is_a_list_of_one(tmp_path):
    from magpie_hf.stages.instructions import Instructions
    from magpie_hf.stages.language import Language
    from magpie_hf.stages.novelty import Novelty

    assert Instructions(banned_starts="Why").banned_starts == ("Why",)
    assert Novelty(against="me/v1").against == ("me/v1",)
    with pytest.raises(ArgumentError, match="only one language"):
        Language(languages="EN")
    from magpie_hf.judging.rubric import load_rubric

    assert "flags" in magpie_hf.annotate(ROWS, "flags", output=tmp_path / "run").column_names
    schema = {"type": "object", "properties": {"score": {"type": "integer"}}}
    assert load_rubric({"name": "r", "task": "Rate.", "schema": schema, "reads": "response"}).reads == ("response",)
