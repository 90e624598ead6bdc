"""The part of a run directory that is saved on the Hub, in `.magpie/`, so that another machine can resume the run.

    .magpie/runs/NAME/run.json            the state of the run, without local paths, URLs of servers, and machines
    .magpie/runs/NAME/recipe.yaml         the recipe as it was run
    .magpie/runs/NAME/report.html         the report, if there is one
    .magpie/runs/NAME/stages/…/*.jnl.bin  finished rows with their keys, also rejected ones: closed journal segments
    .magpie/configs/CONFIG.json           the facts of a published config, from which the card is written
    .magpie/plots/CONFIG.svg              its charts

`datasets` ignores directories whose name begins with a dot, so none of these files is loaded as data.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from ..storage.rundir import RunDir
from ..storage.state import PushedSettings, RunState, state_text


ROOT = ".magpie"
SEGMENT_SUFFIX = ".bin"
"""Added to .jnl: .bin files are stored in LFS by the default .gitattributes of the Hub."""
_PRIVATE_KEYS = ("push", "budget")
_OUTPUT_KEYS = ("rejected", "columns", "test_size")
"""Keys of `output` that say what the published dataset contains; the others belong to this machine."""
_FILE_KEYS = ("sources", "rehearsal")
"""Keys that are about the file of a recipe, not about a run."""
_NAMES = frozenset(
    "model responder judge guard base path dataset chat_template embedder tokenizer benchmarks rubric rubrics".split()
)
"""Keys whose text names a model, a dataset or a file. If it is a local path, only its last part is published."""
_SECRET = re.compile(r"(^|_)(api_?key|token|password|secret)$", re.IGNORECASE)
_PUSH_KEYS = tuple(item.name for item in dataclasses.fields(PushedSettings))


def run_name(state: RunState) -> str:
    """Return the name of a run on the Hub: the name of its recipe and the hash of its request."""
    number, parts = state.shard
    part = f"-{number}-of-{parts}" if parts != 1 else ""
    return f"{state.recipe.get('name', 'magpie')}-{state.recipe_hash or 'run'}{part}"


def run_root(state: RunState) -> str:
    """Return the folder of a run's state in the repository."""
    return f"{ROOT}/runs/{run_name(state)}"


def public_recipe(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe without the settings of this machine: local paths, URLs of servers, API keys and their variables."""
    out = {key: value for key, value in recipe.items() if key not in (*_PRIVATE_KEYS, *_FILE_KEYS, "output")}
    return {key: _public(value, key) for key, value in out.items()} | public_output(recipe)


def public_output(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return the section `output` of a recipe without the settings of this machine; {} if nothing remains."""
    given = recipe.get("output")
    kept = {key: given[key] for key in _OUTPUT_KEYS if key in given} if isinstance(given, Mapping) else {}
    return {"output": kept} if kept else {}


def _public(value: Any, key: str = "") -> Any:
    if isinstance(value, Mapping):
        hides = key in ("engine", "parameters") or "stage" in value
        return {name: _public(inner, name) for name, inner in value.items() if not (hides and _is_hidden(name))}
    if isinstance(value, (list, tuple)):
        return [_public(inner, key) for inner in value]
    return public_name(value) if isinstance(value, str) and key in _NAMES else value


def _is_hidden(setting: str) -> bool:
    """Whether a setting of an engine or a stage is not published: URLs, names of key variables, secrets."""
    return setting in ("endpoint", "endpoints", "api_key_env") or bool(_SECRET.search(setting))


def public_name(name: str) -> str:
    """Return the name of a model or dataset for publication: of a local path, only the last part."""
    is_path = name.startswith(("/", "~", ".")) or "\\" in name or (name.count("/") != 1 and "/" in name)
    if "{" in name or "\n" in name:  # a template's text
        return name
    if is_path or ("/" in name and _exists(name)):
        return Path(name).name
    return name


def _exists(name: str) -> bool:
    try:
        return Path(name).exists()
    except (OSError, ValueError):  # too long, or with a null character
        return False


def source_names(recipe: Mapping[str, Any]) -> str:
    """Return the names of the datasets that a recipe annotates, "" if it has none or its rows were passed in memory."""
    given = recipe.get("dataset")
    parts = given if isinstance(given, list) else [given]
    names = [part.get("path") if isinstance(part, Mapping) else part for part in parts]
    return ", ".join(public_name(str(name)) for name in names if name)


def public_state(state: RunState) -> RunState:
    """Return the state of a run for the Hub: without local paths, URLs and other settings of this machine."""
    push = state.recipe.get("push")
    given = {key: push[key] for key in _PUSH_KEYS if key in push} if isinstance(push, Mapping) else {}
    return dataclasses.replace(
        state,
        recipe=public_recipe(state.recipe),
        budget={},
        stages={
            key: dataclasses.replace(stage, identity_fields=_public(stage.identity_fields))
            for key, stage in state.stages.items()
        },
        sessions=[dataclasses.replace(session, stopped_by=None) for session in state.sessions],
        output=None,
        subsets={},
        published=None,
        push=PushedSettings(**given),
    )


def state_files(run_dir: RunDir) -> dict[str, bytes]:
    """Return the small files of a run that are uploaded, by path in the repository."""
    state = RunDir.read(run_dir.path).state if run_dir.exists else run_dir.state
    root = run_root(state)
    recipe = yaml.safe_dump(public_recipe(state.recipe), sort_keys=False, allow_unicode=True)
    files = {f"{root}/run.json": state_text(public_state(state)).encode(), f"{root}/recipe.yaml": recipe.encode()}
    report = run_dir.path / "report.html"
    if report.is_file():
        files[f"{root}/report.html"] = report.read_bytes()
    return files


def closed_segments(run_dir: RunDir, *, all_closed: bool = False) -> Iterator[tuple[str, Path]]:
    """Yield (path in the repository, file) of closed journal segments, to which no more rows are added.

    While a stage is running, its newest segment may be open. `all_closed`: no stage is running, so all are closed.
    """
    if not run_dir.exists:
        return
    state = RunDir.read(run_dir.path).state
    root = run_root(state)
    for key, stage in state.stages.items():
        segments = sorted((run_dir.path / "stages" / key / "journal").glob("*.jnl"))
        closed = segments if all_closed or stage.status == "done" else segments[:-1]
        for path in closed:
            yield f"{root}/stages/{key}/journal/{path.name}{SEGMENT_SUFFIX}", path


def runs_of(paths: list[str]) -> list[str]:
    """Return the names of the runs in a repository, from the paths of its files."""
    found = (re.fullmatch(rf"{re.escape(ROOT)}/runs/([^/]+)/run\.json", path) for path in paths)
    return sorted({match[1] for match in found if match})
