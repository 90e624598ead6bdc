"""Download the state of a run from the Hub into a local run directory."""

from __future__ import annotations

import dataclasses
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import ArgumentError, HubError, StorageError, did_you_mean, quoted
from ..storage.rundir import RunDir, stage_key
from ..storage.state import RunState, load_state
from .manifest import ROOT, SEGMENT_SUFFIX, public_recipe, runs_of
from .remote import Head, Remote, check_online


logger = logging.getLogger("magpie_hf")
_KEY = re.compile(r"[\w.-]+")
_COMMIT = re.compile(r"[0-9a-f]{40}")


def find_run(remote: Remote, run: str | None = None) -> tuple[str, Head]:
    """Return the name of the run in a repository, and the commit that was read.

    Raises:
        ArgumentError: the repository has several runs and `run` is not given, or it has no run of this name.
        HubError: the repository contains no runs, or cannot be read.
    """
    check_online()
    head = remote.head()
    names = runs_of(list(head.files))
    if not names:
        raise HubError(
            "This repository contains no run.",
            where=remote.url,
            hint="A run is saved in a repository by --push-to or `magpie-hf push RUN`.",
        )
    if run is None and len(names) > 1:
        raise ArgumentError(
            f"There are several runs in {quoted(remote.repo_id)}.", hint=f"Name one with --run: {', '.join(names)}."
        )
    if run is not None and run not in names:
        raise ArgumentError(f"Unknown run {quoted(run)} in {quoted(remote.repo_id)}.", hint=did_you_mean(run, names))
    return run or names[0], head


def download_run(remote: Remote, name: str, head: Head, output: Path) -> RunState:
    """Download the finished rows and the state of a run into a directory, keeping existing files; return the state.

    Raises:
        HubError: the Hub cannot be reached; downloaded files are kept, and the same command resumes.
        StorageError: the directory cannot be written.
    """
    from huggingface_hub import snapshot_download

    root = f"{ROOT}/runs/{name}"
    arriving = output / ".from-hub"
    try:
        output.mkdir(parents=True, exist_ok=True)
        remote.with_retries(
            lambda: snapshot_download(
                remote.repo_id,
                repo_type="dataset",
                revision=head.commit,
                allow_patterns=[f"{root}/run.json", f"{root}/stages/*"],
                local_dir=arriving,
            )
        )
        state = _state(arriving / root / "run.json", remote)
        run_dir = RunDir(output)
        if not run_dir.exists:  # an existing local state is newer than the uploaded state
            run_dir.state = state
            run_dir.save()  # before the journals, because journals without a state look like a damaged run
        for path, entry in head.files.items():
            if path.startswith(f"{root}/stages/"):
                inside = path.removeprefix(f"{root}/").removesuffix(SEGMENT_SUFFIX)
                _take(arriving / path, _inside(output, inside), entry.size)
        shutil.rmtree(arriving, ignore_errors=True)
    except StorageError:
        raise
    except OSError as error:
        if isinstance(error, HubError):
            raise
        raise StorageError(
            f"The run cannot be written here: {error.strerror or error}.",
            where=str(output),
            hint="Free some disk space, or choose another --output. Downloaded files are kept.",
        ) from error
    return state


def _state(path: Path, remote: Remote) -> RunState:
    try:
        state = load_state(path)
    except ValueError as error:
        raise HubError(f"The run.json in this repository is damaged: {error}.", where=remote.url) from error
    _refuse_own_code(state.recipe, remote)
    return trusted(state)


def _refuse_own_code(recipe: Mapping[str, Any], remote: Remote) -> None:
    """Raise if a downloaded recipe names a Python module: importing it would run untrusted code."""
    for name in _class_names(recipe):
        if ":" in name:
            raise HubError(
                f"The run uses custom code, {quoted(name)}, which is not imported for a run from the Hub.",
                where=remote.url,
                hint="Review the code, then run the recipe from a local file: magpie-hf run RECIPE.yaml.",
            )


def _class_names(value: Any) -> Iterator[str]:
    """Yield the names of stages and engines in a recipe."""
    for key, inner in value.items() if isinstance(value, Mapping) else ():
        if key in ("stage", "kind", "engine") and isinstance(inner, str):
            yield inner
        elif key == "stages" and isinstance(inner, list):
            yield from (entry for entry in inner if isinstance(entry, str))
        yield from _class_names(inner)
    for inner in value if isinstance(value, list) else ():
        yield from _class_names(inner)


def trusted(state: RunState) -> RunState:
    """Return the parts of a downloaded state that are safe to use on this machine.

    URLs that would receive texts or keys, `trust_remote_code` and paths are removed. A model can only be pinned to a
    commit, and a stage can only use the directory with its own name.
    """
    commits = {key: pin for key, pin in state.pins.models.items() if pin is None or _COMMIT.fullmatch(pin)}
    return dataclasses.replace(
        state,
        recipe=_without_code(public_recipe(state.recipe)),
        budget={},
        plan=[key for key in state.plan if _KEY.fullmatch(key)],
        stages={
            key: stage
            for key, stage in state.stages.items()
            if _KEY.fullmatch(key) and key == stage_key(stage.name, stage.identity)
        },
        published=None,
        pins=dataclasses.replace(state.pins, models=commits),
    )


def _without_code(value: Any) -> Any:
    if isinstance(value, Mapping):
        if value.get("trust_remote_code"):
            logger.warning(
                "The run used code from the repository of a model: review it, then allow it with trust_remote_code."
            )
        return {key: _without_code(inner) for key, inner in value.items() if key != "trust_remote_code"}
    return [_without_code(inner) for inner in value] if isinstance(value, list) else value


def _inside(output: Path, path: str) -> Path:
    """Return a path inside the run directory for a file name from the Hub."""
    target = (output / path).resolve()
    if not target.is_relative_to(output.resolve()) or target.suffix != ".jnl":
        raise HubError(f"A file of the run has an invalid name: {quoted(path)}.")
    return target


def _take(source: Path, target: Path, size: int) -> None:
    """Move a segment into the run directory, unless it exists there."""
    if target.is_file() and target.stat().st_size >= size:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    os.replace(source, target)
