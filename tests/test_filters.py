"""Each named selection against a statement of it in pandas, written apart from `filters.py`, on a table in which every
condition decides about some row alone.
"""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from magpie_hf.errors import ArgumentError, DatasetError, RecipeError
from magpie_hf.recipe.schema import bundled_recipes, load_recipe
from magpie_hf.selection.filters import (
    SELECTIONS,
    Selection,
    apply_selection,
    as_selection,
    select_rows,
    split_for_lean,
)
from magpie_hf.stages.select import Select


QUALITY = ["very poor", "poor", "average", "good", "excellent"]
DIFFICULTY = ["very easy", "easy", "medium", "hard", "very hard"]
FINE = {
    "input_quality": "excellent",
    "difficulty": "hard",
    "min_neighbor_distance": 0.4,
    "instruct_reward": 3.0,
    "reward_difference": 2.0,
    "language": "EN",
    "task_category": "Reasoning",
    "instruction": "Say why.",
    "raw_instruction": "## Step 1 Say why.",
    "response": "Because. ## Step 1",
}
# One thing about the fine row is changed; every condition of every selection is in here on both of its sides.
CHANGES = [
    {},
    *({"input_quality": label} for label in [*QUALITY, None]),
    *({"difficulty": label} for label in [*DIFFICULTY, None]),
    *({"min_neighbor_distance": value} for value in (0.0, 1e-7, None)),
    *({"instruct_reward": value} for value in (-12.0, -11.9, -10.0, -9.9, None, float("nan"))),
    *({"reward_difference": value} for value in (0.0, 0.01, -1.0, None)),
    *({"language": value} for value in ("ZH", "FR", None)),
    {"instruction": "Complete this:"},
    {"instruction": "a\nb\nc\nd\ne\nf"},
    {"instruction": "a\nb\nc\nd\ne\nf", "task_category": "Coding & Debugging"},
    {"raw_instruction": "Say why."},
    {"response": "Because."},
    {"language": "ZH", "instruction": "为什么"},
    {"language": "ZH", "input_quality": "poor"},
    {"language": "ZH", "instruct_reward": -11.0},
    {"language": "ZH", "instruction": "请看:"},
]


def table():
    rows = []
    for number, change in enumerate(CHANGES):
        row = {**FINE, **change}
        row["uuid"] = row["group_id"] = f"u{number:03d}"
        row["response"] = row["response"] + " x" * (number % 7)
        rows.append(row)
    for number in range(3):  # a group, whose survivor is not its first row
        rows.append({**FINE, "uuid": f"g{2 - number}", "group_id": "g0", "response": "y" * (20 + number)})
    return Dataset.from_list(rows)


DATA = table()


def at_least(frame, column, label, scale):
    rank = frame[column].map({name: n for n, name in enumerate(scale)})
    return rank.notna() & (rank >= scale.index(label))


def pandas_statement(frame, name):
    """The tables of paper and cards, in pandas; returns the uuids kept before `longest`."""
    q = lambda label: at_least(frame, "input_quality", label, QUALITY)  # noqa: E731
    d = lambda label: at_least(frame, "difficulty", label, DIFFICULTY)  # noqa: E731
    unique = frame["min_neighbor_distance"] > 0
    reward, difference = frame["instruct_reward"], frame["reward_difference"]
    complete = ~frame["instruction"].str.endswith(":")
    first = frame["uuid"] == frame["group_id"]
    card = (reward >= -10) & complete & first
    few_lines = frame["instruction"].str.count("\n") < 5
    kept = {
        "air-filter": q("good") & d("medium") & unique & (difference > 0),
        "pro-filter": q("average") & unique & (reward > -12),
        "pro-filter2": q("good") & d("easy") & unique & (reward > -12),
        "pro-filter3": unique & (reward > -12),
        "pro-filter4": q("good") & d("easy") & unique & (difference > 0),
        "pro-filter5": q("good") & d("easy") & unique & (reward > -12),
        "pro-filter6": d("easy") & unique & (reward > -12),
        "pro-300k-card": q("average") & card,
        "air-300k-card": q("good") & d("medium") & (difference > 0) & complete & first,
        "notebook-filter": frame["input_quality"].isin(["good", "excellent"]) & (reward > -10) & complete & first,
        "pro-mt": q("good") & d("easy") & card,
        "chinese-200k": q("average") & card & (frame["language"] == "ZH"),
        "english-200k": q("average") & card & (frame["language"] == "EN"),
        "llama-3.1-500k": q("good") & card & (few_lines | (frame["task_category"] == "Coding & Debugging")),
        "reasoning-v2": frame["raw_instruction"].str.contains("## Step 1")
        & frame["response"].str.contains("## Step 1")
        & (reward > -10)
        & q("good")
        & complete,
    }[name]
    return set(frame["uuid"][kept])


@pytest.mark.parametrize("name", SELECTIONS)
def test_a_named_selection_keeps_what_its_table_says(name):
    frame = DATA.to_pandas()
    kept = DATA.select(apply_selection(DATA, SELECTIONS[name]).indices)["uuid"]
    assert set(kept) == pandas_statement(frame, name)
    assert SELECTIONS[name].source


@pytest.mark.parametrize("name", SELECTIONS)
def test_every_condition_of_a_named_selection_decides_about_a_row(name):
    found = apply_selection(DATA, SELECTIONS[name])
    conditions = [step for step in found.funnel if not step.condition.startswith(("the ", "quotas", "one per"))]
    assert all(step.rows_in > step.rows_out for step in conditions)
    assert all(a.rows_out == b.rows_in for a, b in zip(found.funnel, found.funnel[1:], strict=False))


def test_filter_six_takes_half_easy_and_half_harder_the_longest_of_each():
    rows = [
        {**FINE, "difficulty": label, "uuid": f"{label}{n}", "response": "z" * n}
        for label in ("very easy", "easy", "medium", "very hard")
        for n in range(10)
    ]
    data = Dataset.from_list(rows)
    found = select_rows(data, "pro-filter6", quotas={"difficulty": {"easy": 4, "> easy": 4}})
    kept = sorted(data.select(found.indices)["uuid"])
    assert kept == ["easy6", "easy7", "easy8", "easy9", "medium8", "medium9", "very hard8", "very hard9"]


def test_the_longest_are_by_characters_and_ties_go_to_the_first():
    data = Dataset.from_dict({"response": ["aaa", "b", "ccc", None, "dddd", "eee"]})
    assert select_rows(data, {"longest": 3}).indices.tolist() == [0, 2, 4]
    assert select_rows(data, {"longest": 99}).indices.tolist() == [0, 1, 2, 3, 4, 5]
    with_lengths = data.add_column("response_length", [1, 9, 1, 8, 1, 7])
    assert select_rows(with_lengths, {"longest": 2}).indices.tolist() == [1, 3]


MESSAGES = Dataset.from_dict(
    {
        "response": ["aaa", "b", "cc", None, "ddd", "e"],
        "messages": [
            [{"role": "user", "content": "x" * n}, {"role": "assistant", "content": None if n == 3 else "y"}]
            for n in (3, 9, 1, 5, 7)
        ]
        + [None],
        "turn_tokens": [4.5, 1.0, 9.0, None, float("nan"), 2.0],
    }
)


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({"shortest": 2}, [1, 5]),
        ({"shortest": 3}, [1, 2, 5]),
        ({"shortest": 4}, [0, 1, 2, 5]),  # ties go to the first row
        ({"shortest": 5}, [0, 1, 2, 4, 5]),  # a row without a length comes last
        ({"shortest": 9}, [0, 1, 2, 3, 4, 5]),
        ({"shortest": 2, "length_column": "turn_tokens"}, [1, 5]),
        ({"shortest": 4, "length_column": "turn_tokens"}, [0, 1, 2, 5]),
        ({"longest": 2, "length_column": "turn_tokens"}, [0, 2]),
        ({"longest": 2, "length_column": "messages"}, [1, 4]),
        ({"longest": 2, "length_column": "conversation_length"}, [1, 4]),
        ({"shortest": 2, "length_column": "conversation_length"}, [0, 2]),
        ({"shortest": 1, "length_column": "response"}, [1]),
    ],
)
def test_the_longest_or_the_shortest_rows_are_kept_by_any_column_of_lengths(settings, kept):
    assert select_rows(MESSAGES, settings).indices.tolist() == kept


def test_lengths_of_conversations_are_read_if_a_stage_has_written_them():
    data = MESSAGES.add_column("conversation_length", [6, 5, 4, 3, 2, 1])
    assert select_rows(data, {"shortest": 2, "length_column": "conversation_length"}).indices.tolist() == [4, 5]
    only = data.select_columns(["conversation_length"])
    assert select_rows(only, {"longest": 2, "length_column": "conversation_length"}).indices.tolist() == [0, 1]


def test_quotas_take_the_shortest_rows_of_each_label_where_the_shortest_are_wanted():
    data = Dataset.from_dict({"language": ["EN", "EN", "DE", "DE"], "response": ["aa", "a", "b", "bb"]})
    quotas = {"language": {"EN": 1, "DE": 1}}
    assert select_rows(data, {"quotas": quotas}).indices.tolist() == [0, 3]
    found = select_rows(data, {"quotas": quotas, "shortest": 2})
    assert found.indices.tolist() == [1, 2]
    assert found.funnel[-1].condition == "the 2 shortest by response_length"


def test_shortest_takes_the_place_of_the_longest_of_a_named_selection():
    changed = as_selection("pro-300k-card", shortest=5)
    assert (changed.longest, changed.shortest, changed.one_per_group) == (None, 5, True)
    stage = Select(filter="pro-300k-card", shortest=5, length_column="conversation_length")
    assert (stage.selection.longest, stage.selection.shortest) == (None, 5)
    assert "messages" in stage.needs
    assert as_selection(changed, longest=7).shortest is None


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"longest": 3, "shortest": 3}, "Both longest and shortest"),
        ({"shortest": 0}, "shortest = 0"),
        ({"longest": 1, "length_column": ""}, "length_column"),
        ({"longest": 1, "length_column": "pairs"}, "cannot be measured"),
        ({"longest": 1, "length_column": "marks"}, "no order"),
        ({"longest": 1, "length_column": "wordcount"}, "wordcount"),
    ],
)
def test_lengths_that_cannot_be_compared_are_refused_with_the_reason(given, words):
    data = Dataset.from_dict({"response": ["a"], "pairs": [[{"a": 1}]], "marks": [[1, 2]]})
    with pytest.raises((ArgumentError, DatasetError), match=words):
        select_rows(data, given)


def test_one_row_of_a_group_stays_and_a_column_may_choose_it():
    data = Dataset.from_dict(
        {
            "uuid": ["c", "b", "a", "z", "y"],
            "group_id": ["a", "a", "a", None, "y"],
            "input_quality": ["good", "excellent", None, "poor", "poor"],
        }
    )
    assert select_rows(data, {"one_per_group": True}).indices.tolist() == [2, 3, 4]
    assert select_rows(data, {"one_per_group": "quality"}).indices.tolist() == [1, 3, 4]
    with pytest.raises(ArgumentError, match="no order"):
        select_rows(data, {"one_per_group": "uuid"})


def test_a_sample_is_the_same_for_the_same_seed_and_another_for_another():
    data = Dataset.from_dict({"n": list(range(1000))})
    first = select_rows(data, {"sample": 100, "seed": 1}).indices
    assert len(first) == 100
    assert first.tolist() == sorted(first.tolist()) == select_rows(data, {"sample": 100, "seed": 1}).indices.tolist()
    assert first.tolist() != select_rows(data, {"sample": 100, "seed": 2}).indices.tolist()
    assert len(select_rows(data, {"sample": 0.25}).indices) == 250
    shuffled = select_rows(data, {"shuffle": 42}).indices.tolist()
    assert shuffled != sorted(shuffled)
    assert sorted(shuffled) == list(range(1000))


def test_all_rows_filtered_out_and_no_rows_at_all_have_a_whole_funnel():
    found = select_rows(DATA, "quality >= good and language == 'XX' and reward > 0", longest=5)
    assert len(found.indices) == 0
    assert [step.rows_out for step in found.funnel][1:] == [0, 0, 0]
    empty = DATA.select([])
    for name in SELECTIONS:
        assert len(apply_selection(empty, SELECTIONS[name]).indices) == 0


def test_nulls_are_counted_where_they_decide():
    funnel = select_rows(DATA, "quality >= good and reward > -10").funnel
    assert [step.nulls for step in funnel] == [1, 2]


@pytest.mark.parametrize(
    ("given", "changes", "error", "words"),
    [
        ("air-filterr", {}, ArgumentError, ["Unknown selection", '"air-filter"']),
        ("pro-filter", {"longst": 3}, ArgumentError, ["longst", '"longest"']),
        ("pro-filter", {"longest": 0}, ArgumentError, ["longest = 0"]),
        ({"quotas": {"difficulty": {"easyy": 3}}}, {}, ArgumentError, ["not a label of difficulty"]),
        ({"quotas": {"color": {"red": 3}}}, {}, DatasetError, ["color"]),
    ],
)
def test_a_selection_that_cannot_be_used_says_why(given, changes, error, words):
    with pytest.raises(error) as caught:
        select_rows(DATA, given, **changes)
    for word in words:
        assert word in str(caught.value)


def test_a_missing_column_names_the_annotation_that_writes_it():
    data = DATA.remove_columns(["input_quality", "group_id"])
    with pytest.raises(DatasetError, match=r'annotate\(ds, \["quality"\]\) first'):
        select_rows(data, "air-filter")
    with pytest.raises(DatasetError, match=r'annotate\(ds, \["neighbors"\]\) first'):
        select_rows(data, {"one_per_group": True})


KNOWN = {"instruction", "uuid", "group_id", "min_neighbor_distance", "input_quality", "difficulty", "language"}


@settings(max_examples=60)
@given(
    st.lists(
        st.sampled_from(
            [
                "quality >= good",
                "reward > -10",
                "language == 'EN' or reward > 0",
                "difficulty >= easy",
                "min_neighbor_distance > 0",
            ]
        ),
        max_size=4,
        unique=True,
    ),
    st.sampled_from([False, True, "input_quality", "instruct_reward"]),
    st.sampled_from([None, 3, 10]),
)
def test_what_lean_moves_forward_changes_no_result(conditions, one_per_group, longest):
    selection = Selection(
        "s", " and ".join(f"({c})" for c in conditions), one_per_group=one_per_group, longest=longest
    )
    early, reason = split_for_lean(selection, KNOWN)
    whole = DATA.select(apply_selection(DATA, selection).indices)["uuid"]
    assert (early is None) == (reason is not None)
    if early is not None:
        first = DATA.select(apply_selection(DATA, early).indices)
        assert set(early.columns) <= KNOWN
        assert list(first.select(apply_selection(first, selection).indices)["uuid"]) == list(whole)


def test_a_mapping_and_an_expression_are_selections_too():
    assert as_selection({"where": "reward > 0", "longest": 3}).longest == 3
    assert as_selection("reward > 0").where == "reward > 0"
    assert as_selection("pro-filter", longest=7).longest == 7
    assert as_selection("flags.refusal").where == "flags.refusal"
    assert as_selection("contaminated").where == "contaminated"


def test_a_large_table_is_selected_as_numpy_would():
    rng = np.random.default_rng(0)
    count = 50_000
    frame = pd.DataFrame(
        {
            "input_quality": rng.choice([*QUALITY, None], count),
            "instruct_reward": rng.normal(-8, 5, count),
            "min_neighbor_distance": rng.choice([0.0, 0.2, 0.9], count),
            "response_length": rng.integers(0, 500, count),
            "response": ["r"] * count,
        }
    )
    kept = frame[
        at_least(frame, "input_quality", "average", QUALITY)
        & (frame["min_neighbor_distance"] > 0)
        & (frame["instruct_reward"] > -12)
    ]
    longest = kept.sort_values("response_length", ascending=False, kind="stable").index[:1000]
    found = select_rows(Dataset.from_pandas(frame), "pro-filter", longest=1000)
    assert found.indices.tolist() == sorted(longest)


def test_filter_six_stays_half_and_half_at_any_size():
    rows = [{**FINE, "difficulty": label, "uuid": f"{label}{n}", "response": "z" * (n + 9 * (label != "easy"))}
            for label in ("easy", "hard") for n in range(10)]  # fmt: skip
    data = Dataset.from_list(rows)
    kept = data.select(select_rows(data, "pro-filter6", longest=8).indices)["difficulty"]
    assert sorted(kept) == ["easy"] * 4 + ["hard"] * 4


def test_nulls_are_counted_among_the_rows_that_came_in():
    data = Dataset.from_dict({"language": ["EN", "DE", "DE"], "instruct_reward": [1.0, None, None]})
    funnel = select_rows(data, "language == 'EN' and reward > 0").funnel
    assert [step.nulls for step in funnel] == [0, 0]


def test_lengths_that_are_there_need_no_text():
    data = Dataset.from_dict({"response_length": [3, 9, 5]})
    assert select_rows(data, {"longest": 2}).indices.tolist() == [1, 2]


def test_what_the_releases_say_of_sizes_is_kept():
    sizes = {name: selection.longest for name, selection in SELECTIONS.items()}
    assert sizes["chinese-200k"] == sizes["english-200k"] == 200_000
    assert sizes["llama-3.1-500k"] == 500_000
    assert sizes["pro-filter5"] is None
    assert SELECTIONS["pro-filter6"].quotas == {"difficulty": {"easy": 100_000, "> easy": 100_000}}
    shuffled = {name for name, selection in SELECTIONS.items() if selection.shuffle == 42}
    assert shuffled == {"notebook-filter", "pro-300k-card", "air-300k-card"}


@pytest.mark.parametrize("name", SELECTIONS)
def test_the_source_of_a_named_selection_tells_what_is_read_from_what_is_inferred(name):
    """Each part of a source begins with its kind; what the cards' hidden lines hold is never called a card's."""
    parts = [part.strip() for part in SELECTIONS[name].source.split(";")]
    assert all(part.startswith(("paper", "card of ", "script: ", "inferred: ")) for part in parts)
    is_inferred = any(part.startswith("inferred: ") for part in parts)
    assert is_inferred == (name in {"air-300k-card", "pro-300k-card", "pro-mt", "llama-3.1-500k", "english-200k"})


def mixed_rows(count=400):
    """Return rows in groups of one to four, whose members differ in all that selections read."""
    rng = np.random.default_rng(7)
    group = np.sort(rng.integers(0, count // 2, count))
    return Dataset.from_dict(
        {
            "uuid": [f"u{n:04d}" for n in rng.permutation(count)],
            "group_id": [f"g{n:04d}" for n in group],
            "min_neighbor_distance": rng.choice([0.0, 0.01, 0.4], count),
            "input_quality": rng.choice(QUALITY[2:], count),
            "difficulty": rng.choice(DIFFICULTY[1:4], count),
            "task_category": rng.choice(["Math", "Coding & Debugging", "Information seeking"], count),
            "language": rng.choice(["EN", "ZH"], count),
            "instruct_reward": rng.normal(-8, 6, count),
            "reward_difference": rng.normal(1, 2, count),
            "instruction": rng.choice(["## Step 1 Why?", "List:", "a\nb\nc\nd\ne\nf"], count),
            "raw_instruction": ["## Step 1 Why?"] * count,
            "response": ["## Step 1 " + "x" * n for n in rng.integers(0, 90, count)],
            "instruction_2": rng.choice(["Why?", "List:"], count),
            "response_2": ["Because."] * count,
            "num_turns": rng.choice([1, 2, 3], count),
            "reward_margin": rng.choice([0.0, 1.5], count),
            "flags": [{"refusal": bool(n), "unfinished": False} for n in rng.integers(0, 2, count)],
            "safety": rng.choice(["safe", "unsafe"], count),
        }
    )


def selections_of(name, order):
    recipe = load_recipe(name, {"order": order})
    return [stage.selection for stage in recipe.stages if isinstance(stage, Select)]


def can_be_lean(name):
    try:
        return len(selections_of(name, "lean")) > 0
    except RecipeError:
        return False


def kept_by(name, order):
    """Return the uuids that the selections of a recipe keep one after another, with limits for a small table."""
    rows = mixed_rows()
    for selection in selections_of(name, order):
        for column in {*selection.columns} - {*rows.column_names}:
            rows = rows.add_column(column, [float(int(uuid[1:]) % 7 - 2) for uuid in rows["uuid"]])
        limits = [key for key in ("longest", "shortest", "sample") if getattr(selection, key) is not None]
        rows = rows.select(apply_selection(rows, replace(selection, **dict.fromkeys(limits, 25))).indices)
    return rows["uuid"][:]


LEAN = [name for name in bundled_recipes() if can_be_lean(name)]


@pytest.mark.parametrize("name", LEAN)
def test_the_selections_of_a_recipe_keep_the_same_rows_with_order_lean(name):
    kept = kept_by(name, "lean")
    assert kept == kept_by(name, "paper")
    assert kept


def test_groups_are_decided_early_only_where_no_later_condition_can_drop_a_survivor():
    assert {"magpie-air-300k-filtered", "magpie-air-dpo-100k", "magpie-pro-mt", "magpie-llama-3.1-pro-mt-500k"} <= {
        *LEAN
    }
    for name in LEAN:
        (early, *_), (first, *_) = selections_of(name, "lean"), selections_of(name, "paper")
        if first.one_per_group and not early.one_per_group:
            assert {*first.columns} & {"instruct_reward", "reward_difference", "response", "safety", "flags"}
