from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from magpie_hf.columns import RELEASED
from magpie_hf.hub.schema import column_order


names = st.lists(
    st.sampled_from([*RELEASED, "messages", "instruction_2", "response_2", "response_10", "instruction_10", "x_1"])
    | st.text(min_size=1, max_size=12),
    unique=True,
)


@given(names)
def test_ordering_columns_loses_none_and_is_done_once(given_names):
    ordered = column_order(given_names)
    assert sorted(ordered) == sorted(given_names)
    assert column_order(ordered) == ordered


@given(names)
def test_released_columns_stand_in_the_released_order(given_names):
    released = [name for name in column_order(given_names) if name in RELEASED]
    assert released == [name for name in RELEASED if name in given_names]


def test_later_turns_stand_behind_the_first_and_all_others_at_the_end():
    given_names = ["messages", "response_10", "instruction_2", "response", "response_2", "uuid", "language"]
    given_names += ["instruction_10", "instruction", "conversations"]
    assert column_order(given_names) == [
        *("uuid", "instruction", "response", "instruction_2", "response_2", "instruction_10", "response_10"),
        *("conversations", "language", "messages"),
    ]


def test_a_name_that_only_looks_like_a_turn_is_one_among_the_others():
    assert column_order(["instruction_²", "response", "uuid"]) == ["uuid", "response", "instruction_²"]
