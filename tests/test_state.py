"""The state of a run: written and read as typed data, and read by its keys nowhere else."""

from __future__ import annotations

import ast
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import magpie_hf
from magpie_hf.errors import StorageError
from magpie_hf.storage.rundir import RunDir
from magpie_hf.storage.state import (
    VERSION,
    Counts,
    FileRecord,
    MergedCounts,
    Pins,
    Published,
    PushedSettings,
    RunState,
    SavedRows,
    ServedState,
    SessionState,
    StageState,
    StoppedBy,
    Totals,
    load_pins,
    load_state,
    pins_text,
    state_text,
)


PACKAGE = Path(magpie_hf.__file__).parent
texts = st.text(max_size=6)
maybe_text = st.none() | texts
numbers = st.integers(0, 1 << 60)
maybe_number = st.none() | numbers
floats = st.floats(allow_nan=False, allow_infinity=False)
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | floats | texts,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(texts, inner, max_size=2),
    max_leaves=5,
)


def maps(values):
    return st.dictionaries(texts, values, max_size=2)


counts = st.builds(
    Counts, maybe_number, numbers, maps(numbers), maps(numbers), numbers, numbers, numbers, floats, numbers, numbers,
    maybe_number,
)  # fmt: skip
files = maps(st.builds(FileRecord, numbers, texts))
served = st.builds(ServedState, maybe_text, maybe_text, maybe_text, maybe_text, st.lists(texts, max_size=2))
stages = st.builds(
    StageState,
    texts,
    texts,
    texts,
    st.sampled_from(["pending", "running", "stopped", "done", "reopened", "recovered"]),
    maps(plain),
    maybe_number,
    maybe_number,
    maybe_text,
    st.none() | counts,
    files,
    served,
    maps(plain),
    maps(numbers),
    floats,
    numbers,
    maps(st.builds(MergedCounts, floats, numbers)),
)
sessions = st.builds(
    SessionState,
    texts,
    maps(texts),
    texts,
    maybe_text,
    st.none() | st.builds(StoppedBy, texts, texts, floats, floats),
)
names = st.lists(texts, max_size=2)
saved = st.builds(SavedRows, texts, numbers, texts, files, names, st.none() | names)
pins = st.builds(Pins, maps(maybe_text), maps(maybe_text))
shards = st.tuples(numbers, numbers)
states = st.builds(
    RunState,
    st.just(VERSION),
    maps(plain),
    maybe_text,
    shards,
    st.lists(shards, max_size=2),
    maps(floats | numbers),
    pins,
    names,
    maps(stages),
    st.lists(sessions, max_size=2),
    st.none() | saved,
    maps(saved),
    st.none() | st.builds(Totals, numbers, floats, st.none() | floats, st.none() | floats),
    st.none() | st.builds(Published, texts, texts, maybe_text),
    st.none() | st.builds(PushedSettings, maybe_text, maybe_text, st.none() | st.booleans(), st.none() | floats),
)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tmp_path_factory.mktemp("state") / "run.json"


def test_the_strategies_cover_every_field():
    for strategy, kind in ((states, RunState), (stages, StageState), (counts, Counts), (sessions, SessionState)):
        assert len(strategy.wrapped_strategy.args) == len(dataclasses.fields(kind)), kind


@settings(max_examples=150, deadline=None)
@given(states)
def test_a_state_that_is_written_is_read_back_equal(file, state):
    file.write_text(state_text(state), "utf-8")
    assert load_state(file) == state
    assert state_text(load_state(file)) == file.read_text("utf-8")


@given(pins)
def test_pins_that_are_written_are_read_back_equal(file, pins):
    file.write_text(pins_text(pins), "utf-8")
    assert load_pins(file) == pins


@given(states)
def test_a_changed_value_is_noticed(file, state):
    data = json.loads(state_text(state))
    file.write_text(json.dumps(data | {"recipe_hash": f"{state.recipe_hash}x"}), "utf-8")
    with pytest.raises(ValueError, match="checksum differs"):
        load_state(file)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"stages": {"a-1": {"identity": "1"}}}, "stages.a-1.name: the key is missing"),
        ({"stages": []}, r"stages: expected a mapping, found \[\]"),
        ({"stages": {"a-1": {"name": "a", "identity": "1", "counts": {"done": "x"}}}}, 'stages.a-1.counts.done: expected an integer, found "x"'),
        ({"stages": {"a-1": {"name": "a", "identity": "1", "status": "odd"}}}, "stages.a-1.status: expected one of pending"),
        ({"sessions": [{"started": 5}]}, r"sessions\[0\].started: expected a text, found 5"),
        ({"shard": [1]}, "shard: expected 2 values, found 1"),
        ({"budget": {"max_hours": True}}, "budget.max_hours: expected a number, found true"),
        ({"plan": "x" * 200}, 'plan: expected a list, found "x{59} …'),
    ],
)  # fmt: skip
def test_a_value_of_the_wrong_type_is_named_by_its_key(file, changes, words):
    file.write_text(json.dumps({"version": VERSION, **changes}))
    with pytest.raises(ValueError, match=words):
        load_state(file)


def test_unknown_keys_are_ignored_and_not_written_back(file):
    stage = {"name": "a", "identity": "1", "color": "red"}
    file.write_text(json.dumps({"version": VERSION, "stages": {"a-1": stage}, "mood": "good"}))
    state = load_state(file)
    assert state == RunState(stages={"a-1": StageState("a", "1")})
    assert not {"mood", "color", "red"} & set(state_text(state).split('"'))


@pytest.mark.parametrize(("version", "todo"), [(VERSION + 1, "Upgrade magpie_hf"), (VERSION - 1, "--output")])
def test_another_version_is_refused_and_its_file_kept(tmp_path, version, todo):
    text = json.dumps({"version": version, "stages": {}})
    for name in ("run.json", "run.json.bak"):
        (tmp_path / name).write_text(text)
    with pytest.raises(StorageError, match=f"state version {version}") as caught:
        RunDir(tmp_path).own()
    assert caught.value.where == f"{tmp_path / 'run.json'}, key version"
    assert todo in caught.value.hint
    assert (tmp_path / "run.json").read_text() == text


def test_a_damaged_key_is_named_and_the_copy_is_used(tmp_path, caplog):
    with RunDir(tmp_path).own() as run_dir:
        run_dir.state.plan = ["a-1"]
        run_dir.save()
    run_dir.file.write_text(json.dumps({"version": VERSION, "plan": [7]}))
    assert RunDir.read(tmp_path).state.plan == ["a-1"]
    assert "run.json is damaged (plan[0]: expected a text, found 7): using its copy" in caplog.text


def test_numbers_of_numpy_are_saved_as_numbers(tmp_path):
    counts = Counts(done=np.int64(3), by_code={"ok": np.int64(3)}, seconds=np.float64(0.5))
    stage = StageState("a", "1", counts=counts, report={"share": np.float32(0.5), "is_exact": np.bool_(True)})
    with RunDir(tmp_path).own() as run_dir:
        run_dir.state.stages["a-1"] = stage
        run_dir.save()
    found = RunDir.read(tmp_path).state.stages["a-1"]
    assert found.counts == Counts(done=3, by_code={"ok": 3}, seconds=0.5)
    assert found.report == {"share": 0.5, "is_exact": True}


def test_a_state_that_could_not_be_read_is_not_saved(tmp_path):
    with RunDir(tmp_path).own() as run_dir:
        run_dir.state.plan = ["a-1"]
        run_dir.save()
        run_dir.state.plan = [7]
        with pytest.raises(StorageError, match=r"cannot be saved: plan\[0\]: expected a text, found 7"):
            run_dir.save()
    assert RunDir.read(tmp_path).state.plan == ["a-1"]


def sources():
    return [path for path in sorted(PACKAGE.rglob("*.py")) if path.name != "state.py" or path.parent.name != "storage"]


def string_key(node):
    """Return the expression that a string key is looked up in, and the key: x["key"], x.get("key"), "key" in x."""
    if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant) and isinstance(node.slice.value, str):
        return node.value, node.slice.value
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
        key = node.args[0]
        is_lookup = node.func.attr in ("get", "pop", "setdefault") and isinstance(key, ast.Constant)
        if is_lookup and isinstance(key.value, str):
            return node.func.value, key.value
    return None


def lookups_in_states(tree):
    """Yield string keys that are looked up in an expression in which a run's or a stage's state has a part.

    A recipe and the free-form fields of a state are mappings by their types, so their keys are not meant.
    """
    free = {"recipe", "budget", "identity_fields", "report"}
    for node in ast.walk(tree):
        found = string_key(node)
        if found is None:
            continue
        parts = {part.id for part in ast.walk(found[0]) if isinstance(part, ast.Name)}
        parts |= {part.attr for part in ast.walk(found[0]) if isinstance(part, ast.Attribute)}
        if parts & {"state", "run_dir", "states"} and not parts & free:
            yield f"line {node.lineno}: {ast.unparse(node)}"


def test_the_search_for_string_keys_finds_them():
    found = list(
        lookups_in_states(ast.parse('run_dir.state["pins"]\nstate.get("x")\nstate.stages\nstate.recipe["model"]'))
    )
    assert found == ["line 1: run_dir.state['pins']", "line 2: state.get('x')"]


def test_no_other_module_reads_the_state_by_string_keys():
    found = {
        str(path.relative_to(PACKAGE)): list(lookups_in_states(ast.parse(path.read_text()))) for path in sources()
    }
    assert {path: lines for path, lines in found.items() if lines} == {}


def test_no_other_module_parses_or_builds_the_files():
    for path in sources():
        tree = ast.parse(path.read_text())
        text = {
            part.value for part in ast.walk(tree) if isinstance(part, ast.Constant) and isinstance(part.value, str)
        }
        calls = {part.attr for part in ast.walk(tree) if isinstance(part, ast.Attribute)}
        assert not ("run.json" in text and {"loads", "dumps"} & calls), path
