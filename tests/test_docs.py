"""The documentation matches the code: links, commands, settings, and runnable examples."""

from __future__ import annotations

import argparse
import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import magpie_hf
from magpie_hf.cli.main import build_parser
from magpie_hf.cli.parse import overrides_of


REPOSITORY = Path(__file__).parents[1]
PAGES = sorted([*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").rglob("*.md"), *REPOSITORY.glob("benchmarks/*.md")])
RUNNABLE = re.compile(r"```python runnable\n(.*?)```", re.DOTALL)
COMMAND = re.compile(r"^\$ magpie-hf (\w+)(?: (show))?", re.MULTILINE)


def page_id(path):
    return str(path.relative_to(REPOSITORY))


def anchors(text):
    return {
        re.sub(r"[^\w\- ]", "", head).strip().lower().replace(" ", "-")
        for head in re.findall(r"^#+ (.+)$", text, re.M)
    }


def test_the_reference_pages_are_those_of_the_code():
    script = REPOSITORY / "docs" / "build_reference.py"
    done = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8")):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), target
        assert not anchor or anchor in anchors(found.read_text("utf-8")), target


def links_of(page):
    targets = re.findall(r"\]\(([^)\s#]+)", page.read_text("utf-8"))
    return {(page.parent / target).resolve() for target in targets if "://" not in target}


def test_every_page_is_linked_from_the_readme_or_the_index():
    index = REPOSITORY / "docs" / "README.md"
    linked = links_of(REPOSITORY / "README.md") | links_of(index) | {index}
    assert index in links_of(REPOSITORY / "README.md")
    assert [page_id(page) for page in (REPOSITORY / "docs").rglob("*.md") if page not in linked] == []


def test_the_readmes_conversation_is_the_demo_models(tmp_path, demo_model_dir):
    block = re.search(
        r"```text\nUSER: (.+?)\nASSISTANT: (.+?)\n(?:USER|─)", (REPOSITORY / "README.md").read_text("utf-8"), re.S
    )
    stage = {"stage": "responses", "sampling": {"temperature": 0, "max_tokens": 256}}
    (row,) = magpie_hf.annotate([{"instruction": block[1]}], [stage], model="demo", output=tmp_path / "run")
    assert row["response"] == block[2]


def test_settings_with_a_star_are_in_no_part_of_the_identity_and_those_that_name_a_model_have_none():
    from magpie_hf.stages import stage_class

    page = (REPOSITORY / "docs" / "reference" / "stages.md").read_text("utf-8")
    starred = {
        (name, setting)
        for name, section in re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", page, re.M | re.S)
        for setting in re.findall(r"^\| `(\w+)` \* \|", section, re.M)
    }
    assert ("reward", "batch_tokens") in starred
    assert not {setting for _, setting in starred} & {"model", "revision", "rubric", "is_early"}
    for name, setting in starred:
        plain = stage_class(name)(**({"system_prompt": "row"} if setting == "system_prompt_in_messages" else {}))
        other = dataclasses.replace(plain, **{setting: plain_other(getattr(plain, setting), setting)})
        assert (other.parameters(), other.models("m")) == (plain.parameters(), plain.models("m"))


def plain_other(value, setting):
    """Return another value that the setting takes."""
    if setting == "precision":
        return "float16"
    return not value if isinstance(value, bool) else value + 1 if isinstance(value, int) else "cpu"


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_commands_exist(page):
    choices = next(action.choices for action in build_parser()._actions if action.choices and "run" in action.choices)
    for command, _ in COMMAND.findall(page.read_text("utf-8")):
        assert command in choices


SET = re.compile(r"--set[ \n](?:'([^']+)'|(\w[^\s`'…]*=[^\s`'…]+))")
TEXTS = ("request", "system_prompt", "prompt")
"""Settings that are texts."""


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_what_the_commands_set_has_the_type_of_its_setting(page):
    for quoted, bare in SET.findall(page.read_text("utf-8")):
        options = argparse.Namespace(set=[quoted or bare])
        ((key, value),) = overrides_of(options).items()
        assert not isinstance(value, dict) or "={" in quoted + bare
        assert key.rpartition(".")[2] not in TEXTS or isinstance(value, str)


def save_example(name, folder, module):
    """Save the page's code as a module, as the page says."""
    (code,) = RUNNABLE.findall((REPOSITORY / "docs" / "how-to" / name).read_text("utf-8"))
    (folder / f"{module}.py").write_text(code, "utf-8")


OWN = ("write-a-stage.md", "write-a-rubric.md")
FILE = re.compile(r"```\w+ runnable (\S+)\n(.*?)```", re.DOTALL)


@pytest.fixture
def own_files(monkeypatch, tmp_path):
    """Save the files of the pages on stages and rubrics in the current folder, as the pages say."""
    files = [
        match for name in OWN for match in FILE.findall((REPOSITORY / "docs" / "how-to" / name).read_text("utf-8"))
    ]
    for name, text in files:
        (tmp_path / name).write_text(text, "utf-8")
        monkeypatch.delitem(sys.modules, name.removesuffix(".py"), raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    return [name for name, _ in files]


def own_stages():
    """Return the stages of the recipes on the pages that are named there as a file or `module:Class`."""
    for name in OWN:
        page = (REPOSITORY / "docs" / "how-to" / name).read_text("utf-8")
        for block in re.findall(r"```yaml\n(model: .*?)```", page, re.DOTALL):
            *before, own = yaml.safe_load(block)["stages"]
            assert before == ["instructions", "responses"]
            yield own


def test_a_rubric_and_a_stage_of_each_kind_run_from_yaml_with_settings_on_the_demo_model(own_files, tmp_path):
    stages = list(own_stages())
    assert len(own_files) == len(stages) == 6
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        yaml.safe_dump({"model": "demo", "num_rows": 12, "stages": ["instructions", "responses", *stages]})
    )
    rows = magpie_hf.run(recipe, output=tmp_path / "run")
    assert len(rows) == 10
    assert set(rows["response_finish_reason"]) == {"stop"}  # so that `at_most` had something to drop
    for row in rows:
        assert row["title"]
        assert row["num_words"] == len(row["response"].split())
        assert row["is_long"] == (row["num_words"] >= 30)
        assert row["surprise"] > 0
        assert row["formality_level"] in ("low", "medium", "high") or row["formality_error"]
        assert row["usefulness_score"] or row["usefulness_error"]
        assert row["usefulness_rubric"].startswith("usefulness-v1-")
    before = rows.to_list()
    assert magpie_hf.run(recipe, {"stages[5].max_length": 8}, output=tmp_path / "run")["surprise"] != rows["surprise"]
    assert magpie_hf.run(recipe, output=tmp_path / "run").to_list() == before
    page = magpie_hf.report(tmp_path / "run", tmp_path / "report.html").read_text("utf-8")
    assert all(title in page for title in ("Words", "Surprise", "Formality of instructions"))


def test_the_stage_of_the_page_runs_from_yaml_with_its_settings_and_resumes(own_files, tmp_path, tiny_model_dir):
    from tests.null_engine import NullEngine

    NullEngine.reset()
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        f"model: {tiny_model_dir}\nnum_rows: 5\nengine: tests.null_engine:NullEngine\nstages:\n  - instructions\n"
        "  - responses\n  - {stage: 'titles:Titles', request: 'A name for', sampling: {max_tokens: 9}}\n"
    )
    dataset = magpie_hf.run(recipe, output=tmp_path / "run")
    assert all(title.startswith("What is the meaning") for title in dataset["title"])
    assert sum("A name for" in prompt for prompt, _ in NullEngine.log) == 5
    before = len(NullEngine.log)
    magpie_hf.run(recipe, output=tmp_path / "run")
    assert len(NullEngine.log) == before
    magpie_hf.run(recipe, {"stages[2].request": "Another name for"}, output=tmp_path / "run")
    assert len(NullEngine.log) == before + 5


@pytest.fixture
def own_engines(monkeypatch, tmp_path):
    """Save the engines of the pages as modules; that they run is tested in end_to_end/test_own_engine.py."""
    for page, module in (("write-an-engine.md", "parrot"), ("write-an-endpoint-engine.md", "writer")):
        save_example(page, tmp_path, module)
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.syspath_prepend(tmp_path)


def yaml_blocks():
    for path in PAGES:
        for number, block in enumerate(re.findall(r"```yaml\n(.*?)```", path.read_text("utf-8"), re.DOTALL)):
            if re.search(r"^model:", block, re.M) and re.search(r"^stages:", block, re.M):
                yield pytest.param(block, id=f"{page_id(path)}-{number}")


@pytest.mark.parametrize("block", list(yaml_blocks()))
def test_whole_recipes_in_the_documentation_can_be_used(block, own_files, own_engines):
    magpie_hf.load_recipe(yaml.safe_load(block))
