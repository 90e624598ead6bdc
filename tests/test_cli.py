"""What a person sees at the command line: exit codes, tables, and text that cannot harm a terminal."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shlex
import signal
import subprocess
import sys
import time

import pytest
import yaml
from datasets import Dataset

from magpie_hf import __version__
from magpie_hf.cli.main import EXIT_INTERRUPTED, EXIT_STOPPED, main
from magpie_hf.engines.base import Failure, Generation
from tests.end_to_end.harness import environment
from tests.stages import conftest as runs


null = runs.null
DOWN = Failure("timeout", True, "no answer")
REFUSED = Failure("too_long", False, "too long")
HOSTILE = "What is\x1b[2J\x1b]0;owned\x07 this\u202e?\r\tok"


class Said:
    """What a command printed, and its exit code."""

    def __init__(self, code, out, err):
        self.code, self.out, self.err = code, out, err


def cli(*arguments):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as ended:  # argparse
            code = ended.code
    return Said(code, out.getvalue(), err.getvalue())


@pytest.fixture
def recipe(null, tiny_model_dir, tmp_path):
    """Write a recipe on the null engine: `recipe(num_rows=…)`."""

    def write(**settings):
        path = tmp_path / "mine.yaml"
        raw = {"model": str(tiny_model_dir), "num_rows": 12, "engine": {"kind": "null", "window": 4}, **settings}
        path.write_text(yaml.safe_dump(raw))
        return path

    return write


@pytest.fixture
def place(tmp_path):
    return tmp_path / "run"


def test_a_run_shows_rows_counts_and_where_the_dataset_lies(recipe, place):
    said = cli("run", recipe(), "--output", place, "--rows", "2")
    assert said.code == 0
    assert said.out.count("USER: What is the meaning of") == 2
    assert f"The dataset: {place}  (12 rows" in said.out
    lines = [line.split()[:4] for line in said.out.splitlines() if line.startswith(("instructions", "lengths"))]
    assert lines[0] == ["instructions", "done", "12", "/"]


@pytest.mark.parametrize("rows", ["0", "-1", "99"])
def test_any_number_of_rows_can_be_shown(recipe, place, rows):
    said = cli("run", recipe(), "--output", place, "--rows", rows)
    assert (said.code, said.out.count("USER:")) == (0, 12 if rows == "99" else 0)


def test_a_run_of_instructions_alone_can_be_shown_too(recipe, place):
    said = cli("run", recipe(stages=["instructions"]), "--output", place)
    assert said.code == 0
    assert said.out.count("USER: What is the meaning of") == 3


def test_flags_and_set_override_the_recipe(recipe, place):
    arguments = ("run", recipe(), "--num-rows", "5", "--set", "stages.lengths.tokens=false", "--output", place)
    assert "(5 rows" in cli(*arguments).out
    assert "(7 rows" in cli("run", recipe(), "--set", "num_rows=7", "--output", place).out


def test_synthesize_needs_no_recipe(null, tiny_model_dir, place):
    said = cli(
        *("synthesize", "--model", tiny_model_dir, "--engine", "null", "--num-rows", "6", "--turns", "2"),
        *("--temperature", "0.8", "--system-prompt", "Be curious.", "--seed", "3", "--output", place, "--rows", "1"),
    )
    assert said.code == 0
    assert said.out.count("USER:") == said.out.count("ASSISTANT:") == 2
    assert any("Be curious." in prompt for prompt, _ in null.log)


@pytest.mark.parametrize(
    "arguments",
    [
        ["synthesize", "--num-rows", "3"],
        ["synthesize", "--engine", "tgi", "--endpoint", "http://127.0.0.1:9"],
        ["annotate", "rows.jsonl", "quality", "--engine", "tgi", "--endpoint", "http://127.0.0.1:9"],
    ],
    ids=["synthesize", "endpoint", "judge"],
)
def test_without_a_model_the_demo_is_named_and_not_run(arguments):
    said = cli(*arguments)
    assert said.code == 1
    assert "No model is given" in said.err
    assert '"demo"' in said.err


def test_an_annotation_without_output_says_where_it_is_saved_and_what_was_done(tmp_path):
    from magpie_hf.storage.loading import load_rows

    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"instruction": "Why?", "response": "So."}\n')
    said = cli("annotate", rows, "flags,lengths")
    assert said.code == 0, said.err
    assert [line.split()[0] for line in said.out.splitlines() if " done " in line] == ["flags", "lengths"]
    (where,) = re.findall(r"The dataset: (\S+)  \(1 rows", said.out)
    assert load_rows(where)["instruction_length"][:] == [4]


def test_a_value_of_set_that_begins_with_a_hash_is_text(place):
    recipe = {"model": "demo", "num_rows": 3, "stages": ["instructions"], "output": {"rejected": True}}
    place.mkdir()
    (place / "mine.yaml").write_text(json.dumps(recipe))
    starts = ["--set", "stages.instructions.banned_starts=#"]
    said = cli("run", place / "mine.yaml", *starts, "--output", place / "run")
    assert said.code == 0, said.err
    saved = json.loads((place / "run" / "run.json").read_text())["recipe"]["stages"][0]
    assert saved["banned_starts"] in ("#", ["#"])


def test_a_run_names_the_directory_of_its_rejected_samples(place):
    place.mkdir()
    stages = [{"stage": "instructions", "banned_starts": ["W"]}]
    recipe = {"model": "demo", "num_rows": 20, "sampling": {"temperature": 1.5, "max_tokens": 8}, "stages": stages}
    (place / "mine.yaml").write_text(json.dumps(recipe))
    said = cli("run", place / "mine.yaml", "--set", "output.rejected=true", "--output", place / "run")
    assert f"The rejected samples: {place / 'run' / 'rejected'}  (load_dataset(" in said.out


def test_a_rubric_in_a_file_and_set_work_for_existing_rows(place, tmp_path):
    rubric = tmp_path / "humor.yaml"
    rubric.write_text(
        "{name: how_funny_it_is, task: Rate it., reads: [instruction], schema: {type: object, properties: {score: {type: integer}}}}"
    )
    limit = ["--set", "stages.rubric.sampling.max_tokens=2"]
    said = cli("annotate", "demo", rubric, "--judge", "demo", *limit, "--set", "num_rows=3", "--output", place)
    assert said.code == 0, said.err
    state = json.loads((place / "run.json").read_text())
    assert state["recipe"]["stages"][0] == {"stage": "rubric", "rubric": str(rubric), "sampling": {"max_tokens": 2}}
    assert cli("explain", place).out.split() == ["rubric-how_funny_it_is", "from", "the", "cache"]


def test_a_stage_that_the_recipe_lacks_is_named_with_those_that_it_has(recipe, place):
    said = cli("run", recipe(), "--set", "stages.respones.sampling.max_tokens=5", "--output", place)
    assert said.code == 1
    assert "The recipe has no stage 'respones'" in said.err
    assert 'Did you mean "responses"?' in said.err
    assert (
        "is a stage, so one of its settings must be given"
        in cli("run", recipe(), "--set", "stages.responses=5", "--output", place).err
    )


@pytest.mark.parametrize(
    ("arguments", "code", "part"),
    [
        ([], 2, "COMMAND"),
        (["fly"], 2, "invalid choice"),
        (["run"], 2, "recipe"),
        (["run", "quickstart", "--num-rows", "many"], 2, "invalid int"),
        (["retry", "somewhere"], 2, "--errors"),
        (["--version"], 0, __version__),
        (["run", "quickstart", "--set", "num_rows"], 1, "--set KEY=VALUE"),
        (["run", "quickstart", "--set", "num_rwos=3"], 1, '"num_rows"'),
        (["run", "quickstart", "--set", "num_rwos=3"], 1, "--set num_rwos: unknown key."),
        (["run", "magpie-airr"], 1, "List all with: magpie-hf recipes"),
        (["annotate", "demo", "flags", "--set", "enigne.kind=vllm"], 1, "enigne: unknown key."),
        (["run", "quickstart", "--num-rows", "0"], 1, "1 or more"),
        (["run", "quickstart", "--shard", "4/4"], 1, '"0/4"'),
        (["run", "no/such.yaml"], 1, "cannot be read"),
        (["status", "no/such"], 1, "No run found"),
        (["explain", "no/such"], 1, "No run found"),
        (["merge", "no/such", "--output", "x"], 1, "No run found"),
        (["retry", "no/such", "--errors", "too_long"], 1, "No run found"),
        (["template", "show", "./no/such"], 1, "Model directory './no/such' not found"),
        (["template", "show", "demo", "--kwargs", "{a: ["], 1, "not a mapping"),
        (["template", "show", "demo", "--kwargs", "5"], 1, "not a mapping"),
        (["probe", "./no/such"], 1, "Model directory './no/such' not found"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_cannot_be_done_ends_with_its_code_and_one_message(monkeypatch, tmp_path, arguments, code, part):
    monkeypatch.chdir(tmp_path)
    said = cli(*arguments)
    assert said.code == code
    assert part in said.out + said.err
    assert "Traceback" not in said.err
    assert [path.name for path in tmp_path.iterdir()] == []


def test_debug_shows_the_traceback(tmp_path):
    assert "Traceback" in cli("status", tmp_path, "--debug").err


def test_an_error_that_nobody_foresaw_is_one_line_unless_debugged(recipe, place, monkeypatch, null):
    monkeypatch.setattr(null, "_answer", lambda self, request: 1 / 0)
    said = cli("run", recipe(), "--output", place)
    assert said.code == 1
    assert "ZeroDivisionError: division by zero" in said.err
    assert "--debug" in said.err
    assert "Traceback" not in said.err
    with pytest.raises(ZeroDivisionError):
        cli("run", recipe(), "--output", place, "--debug")


def test_a_stopped_run_ends_with_75_and_the_command_to_go_on(recipe, place, null):
    null.fail = {2: DOWN}
    arguments = ["run", str(recipe(stages=["instructions"])), "--output", str(place), "--set", "name=mine"]
    said = cli(*arguments)
    assert said.code == EXIT_STOPPED == 75
    assert "RowsPending" in said.err
    null.reset()
    command = said.err.splitlines()[-1].strip()
    assert shlex.split(command) == ["magpie-hf", *arguments]
    again = cli(*shlex.split(command)[1:])
    assert again.code == 0
    assert len(null.log) == 1


def test_a_budget_stops_with_75_and_a_larger_one_goes_on(recipe, place, null):
    said = cli("run", recipe(), "--output", place, "--set", "budget.max_tokens_total=1200")
    assert said.code == 75
    assert "max_tokens_total = 1,200" in said.err
    shown = cli("status", place).out
    assert re.search(r"budget: max_tokens_total = 1,200, [\d,]+ tokens used \(\d+%\)", shown)
    assert "stopped by budget.max_tokens_total in the stage responses" in shown
    assert cli("run", recipe(), "--output", place).code == 0
    assert len(set(null.log)) == len(null.log)


def test_an_interrupt_ends_with_130_and_a_command_that_can_be_pasted(recipe, place, null, tmp_path):
    null.die_after = 9
    arguments = ("run", recipe(), "--output", tmp_path / "my run")
    said = cli(*arguments)
    assert said.code == EXIT_INTERRUPTED == 130
    assert f"magpie-hf run {recipe()} --output '{tmp_path / 'my run'}'" in said.err
    null.die_after = None
    assert cli(*arguments).code == 0


SLOW = """
import sys, time
from magpie_hf.engines import ENGINES
from tests.null_engine import NullEngine
real = NullEngine._answer
def slow(self, request):
    time.sleep(0.02)
    return real(self, request)
NullEngine._answer = slow
ENGINES["null"] = "tests.null_engine:NullEngine"
from magpie_hf.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_signal_ends_the_run_with_everything_finished_kept(recipe, place, null, sent):
    arguments = ["run", str(recipe(num_rows=2000)), "--output", str(place), "--rows", "0"]
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, *arguments], env=environment(), stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while not any(f.stat().st_size > 400 for f in place.rglob("*.jnl")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(sent)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Resume with" in err
    assert "Traceback" not in err
    said = cli("status", place)
    assert "last session" in said.out
    assert "KeyboardInterrupt" in said.out


def test_status_shows_a_run_that_is_not_finished(recipe, place, null):
    null.fail = {20: DOWN}
    assert cli("run", recipe(), "--output", place).code == 75
    said = cli("status", place)
    assert said.code == 0
    assert "RowsPending" in said.out
    (line,) = [line for line in said.out.splitlines() if line.startswith("responses")]
    assert line.split()[1:5] == ["stopped", "11", "/", "12"]


def test_explain_names_stages_and_fields(recipe, place):
    cli("run", recipe(), "--output", place)
    said = cli("explain", place, "--set", "stages.responses.sampling.temperature=0.5")
    assert said.code == 0
    assert [" ".join(line.split()) for line in said.out.splitlines()] == [
        "instructions from the cache",
        "responses runs again, all 12 rows",
        "parameters.sampling.temperature: 0.0 → 0.5",
        "lengths runs again, all 12 rows: their input changed",
    ]


def test_recipes_are_listed_with_what_they_do():
    said = cli("recipes")
    assert said.code == 0
    assert "\nquickstart " in said.out
    assert re.search(r"magpie-math +1,000 +<1 +<\$1 ", said.out)
    assert re.search(r"magpie-reasoning-v2-250k .* - \(existing rows\)", said.out)
    assert "model: demo" in cli("recipes", "show", "quickstart").out


def test_template_show_prints_exactly_what_is_sent(tiny_model_dir):
    said = cli("template", "show", tiny_model_dir)
    assert said.code == 0
    assert r"'<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n'" in said.out
    assert "<|eot_id|>" in said.out
    described = json.loads(cli("template", "show", tiny_model_dir, "--json").out)
    assert described["prompts"]["pre_query"]["token_ids"][0] == 0


def test_probe_grades_each_setting(null, tiny_model_dir):
    said = cli("probe", tiny_model_dir, "--engine", "null", "--num-samples", "5")
    assert said.code == 0
    assert said.out.count("good") == 6, "three settings, without and with a system prompt"
    assert "Best setting: temperature" in said.out


def test_retry_opens_rows_and_makes_them(recipe, place, null):
    null.fail = {15: REFUSED}
    assert cli("run", recipe(), "--output", place).code == 0
    null.reset()
    said = cli("retry", place, "--errors", "too_long")
    assert said.code == 0
    assert "responses: 1 rows reopened" in said.out
    assert len(null.log) == 1
    assert "No rows have these codes" in cli("retry", place, "--errors", "too_long").out


def test_a_retry_that_was_interrupted_goes_on_by_the_command_it_printed(recipe, place, null):
    null.fail = {13: REFUSED, 15: REFUSED}
    cli("run", recipe(), "--output", place)
    null.reset()
    null.die_after = 1
    said = cli("retry", place, "--errors", "too_long")
    assert said.code == 130
    null.reset()
    again = cli(*shlex.split(said.err.splitlines()[-1])[1:])
    assert again.code == 0
    assert len(null.log) == 1
    assert "(12 rows" in again.out


def test_a_retry_of_a_shard_stays_a_shard(recipe, place, null):
    settings = {"num_rows": 400, "stages": ["instructions", "responses"]}
    said = cli("run", recipe(**settings), "--output", place, "--shard", "1/4")
    rows = re.search(r"\((\d+) rows", said.out)[1]
    assert int(rows) < 400
    null.reset()
    again = cli("retry", place, "--errors", "too_long")
    assert f"({rows} rows" in again.out
    assert null.log == []


def test_shards_are_merged_by_one_command(recipe, place, null, tmp_path):
    path = recipe(num_rows=100)
    for part in range(2):
        assert cli("run", path, "--output", tmp_path / f"s{part}", "--shard", f"{part}/2").code == 0
    said = cli("merge", tmp_path / "s0", tmp_path / "s1", "--output", tmp_path / "all")
    assert said.code == 0
    assert "(100 rows" in said.out
    cli("run", recipe(seed=9), "--output", tmp_path / "other")
    assert "shards of one run" in cli("merge", tmp_path / "s0", tmp_path / "other", "--output", place).err


def test_text_from_a_model_cannot_move_the_cursor(recipe, place, null, monkeypatch):
    real = null._answer
    monkeypatch.setattr(
        null,
        "_answer",
        lambda self, request: Generation(**{**_fields(real(self, request)), "text": HOSTILE}),
    )
    said = cli("run", recipe(), "--output", place)
    assert said.code == 0
    assert "What is" in said.out
    assert all(c.isprintable() or c in "\n\t" for c in said.out)


def test_text_from_a_server_cannot_move_the_cursor(recipe, place, null):
    null.fail = dict.fromkeys(range(500), Failure("overloaded", True, HOSTILE))
    said = cli("run", recipe(num_rows=400), "--output", place)
    assert said.code == 75
    assert "TooManyFailures" in said.err
    assert all(c.isprintable() or c in "\n\t" for c in said.err)


def _fields(generation):
    return {name: getattr(generation, name) for name in Generation.__slots__}


def test_a_pipe_that_closes_early_is_no_traceback(place, recipe):
    cli("run", recipe(), "--output", place)
    command = f"{shlex.quote(sys.executable)} -m magpie_hf status {shlex.quote(str(place))} | true"
    done = subprocess.run(["bash", "-c", command], env=environment(), capture_output=True, text=True, timeout=60)
    assert "Traceback" not in done.stderr


def test_select_changes_only_what_the_command_line_gives(tmp_path):
    rows = [
        {"uuid": f"u{n}", "group_id": "u0" if n < 3 else f"u{n}", "instruction": "Why?", "response": "x" * n,
         "input_quality": "good", "instruct_reward": 1.0} for n in range(8)
    ]  # fmt: skip
    Dataset.from_list(rows).to_parquet(str(tmp_path / "rows.parquet"))
    target = tmp_path / "kept.parquet"

    def kept(*flags):
        said = cli("select", tmp_path / "rows.parquet", "pro-300k-card", *flags, "--output", target)
        assert said.code == 0, said.err
        return sorted(Dataset.from_parquet(str(target))["uuid"])

    assert kept() == ["u0", "u3", "u4", "u5", "u6", "u7"]
    assert kept("--shortest", 2) == ["u0", "u3"]
    assert kept("--longest", 2, "--length-column", "response_length") == ["u6", "u7"]
    assert cli("select", "x", "pro-mt", "--longest", 1, "--shortest", 1, "--output", target).code == 2
