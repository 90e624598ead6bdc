from __future__ import annotations

import inspect
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from magpie_hf import errors
from magpie_hf.errors import MAX_QUOTED, MagpieError, did_you_mean, quoted


KINDS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, MagpieError)]


@given(st.text())
def test_quoted_text_is_one_line_without_control_characters_and_bounded(text):
    shown = quoted(text)
    assert shown.isprintable()
    assert len(shown) <= 10 * MAX_QUOTED + 40
    assert ("characters)" in shown) == (len(text) > MAX_QUOTED)


def test_a_long_value_says_how_long_it_was():
    assert quoted("x" * 300) == "'" + "x" * 200 + "'… (300 characters)"


def test_the_nearest_name_is_suggested_and_all_are_listed():
    assert did_you_mean("temperture", ["top_p", "temperature"]) == (
        'Did you mean "temperature"? Known: temperature, top_p.'
    )
    assert did_you_mean("zzz", ["top_p"]) == "Known: top_p."


def test_of_many_names_only_the_closest_are_suggested():
    names = [f"recipe-{number}" for number in range(60)]
    assert did_you_mean("recipe-599", names) == 'Did you mean "recipe-59" or "recipe-9" or "recipe-5"?'
    assert did_you_mean("zzz", names).startswith("Known: recipe-0, ")


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_an_error_shows_where_what_and_what_to_do_and_survives_a_process_border(kind):
    error = kind("It is wrong.", where="mine.yaml, line 3", hint="Put it right.", value=5)
    assert str(error) == "mine.yaml, line 3: It is wrong.\n  Put it right."
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), again.data) == (kind, str(error), {"value": 5})
    assert str(kind("Bare.")) == "Bare."


@pytest.mark.parametrize(
    ("kind", "builtin"),
    [
        (errors.ArgumentError, ValueError),
        (errors.RecipeError, ValueError),
        (errors.DatasetError, ValueError),
        (errors.TemplateError, ValueError),
        (errors.ModelError, OSError),
        (errors.DependencyError, ImportError),
        (errors.StorageError, OSError),
        (errors.EngineUnavailableError, ConnectionError),
        (errors.RunStopped, RuntimeError),
    ],
)
def test_an_error_is_caught_by_the_builtin_that_one_would_guess(kind, builtin):
    assert issubclass(kind, builtin)


def test_what_can_be_resumed_is_one_family():
    family = {kind.__name__ for kind in KINDS if issubclass(kind, errors.RunStopped)}
    assert family == {"RunStopped", "BudgetExceeded", "TooManyFailures", "NothingUsable", "RowsPending"}
