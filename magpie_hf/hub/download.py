"""Bring a run's state back from the Hub, into a run directory on this machine."""

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
from ..storage.rundir import RunDir
from ..storage.state import RunState, load_state
from .manifest import ROOT, SEGMENT_SUFFIX, public_recipe, runs_of
from .remote import Head, Remote, check_online


logger = logging.getLogger("magpie_hf")
_KEY = re.compile(r"[\w.-]+")
_COMMIT = re.compile(r"[0-9a-f]{40}")


def find_run(remote: Remote, run: str | None = None) -> tuple[str, Head]:
    """Return the name of the run whose state lies in a repository, and the commit looked at.

    Raises:
        ArgumentError: there are several and none is named, or none of that name.
        HubError: there is none, or the repository cannot be read.
    """
    check_online()
    head = remote.head()
    names = runs_of(list(head.files))
    if not names:
        raise HubError(
            "No run's state lies in this repository.",
            where=remote.url,
            hint="It is there where a run was pushed with --push-to, or with `magpie-hf push RUN`.",
        )
    if run is None and len(names) > 1:
        raise ArgumentError(
            f"There are several runs in {quoted(remote.repo_id)}.", hint=f"Name one with --run: {', '.join(names)}."
        )
    if run is not None and run not in names:
        raise ArgumentError(
            f"There is no run {quoted(run)} in {quoted(remote.repo_id)}.", hint=did_you_mean(run, names)
        )
    return run or names[0], head


def download_run(remote: Remote, name: str, head: Head, output: Path) -> RunState:
    """Download the finished rows and the state of a run into a directory, keeping existing files; return the state.

    Raises:
        HubError: the Hub cannot be reached; what has come stays, and the same command goes on.
        StorageError: the directory cannot be written.
    """
    from huggingface_hub import snapshot_download

    root = f"{ROOT}/runs/{name}"
    arriving = output / ".from-hub"
    try:
        output.mkdir(parents=True, exist_ok=True)
        remote.patiently(
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
        if not run_dir.exists:  # what this machine knows of the run counts more than what was sent from it
            run_dir.state = state
            run_dir.save()  # before the journals: they alone would be taken for a run that lost its state
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
            hint="Free disk space, or choose another place with --output; what has been downloaded is kept.",
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
    """Raise for a recipe from elsewhere that names a module: importing it would run code that its author chose."""
    for name in _class_names(recipe):
        if ":" in name:
            raise HubError(
                f"The run uses code of its author, {quoted(name)}, which is not imported for a run from the Hub.",
                where=remote.url,
                hint="Read that code, and run its recipe from a file of yours: magpie-hf run RECIPE.yaml.",
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

    Without addresses that texts or keys would be sent to, code of model repositories, and paths. A model can only be
    pinned to a commit.
    """
    commits = {key: pin for key, pin in state.pins.models.items() if pin is None or _COMMIT.fullmatch(pin)}
    return dataclasses.replace(
        state,
        recipe=_without_code(public_recipe(state.recipe)),
        stages={key: stage for key, stage in state.stages.items() if _KEY.fullmatch(key)},
        pins=dataclasses.replace(state.pins, models=commits),
    )


def _without_code(value: Any) -> Any:
    if isinstance(value, Mapping):
        if value.get("trust_remote_code"):
            logger.warning(
                "The run ran code of a model's repository: read it, and allow it again with trust_remote_code."
            )
        return {key: _without_code(inner) for key, inner in value.items() if key != "trust_remote_code"}
    return [_without_code(inner) for inner in value] if isinstance(value, list) else value


def _inside(output: Path, path: str) -> Path:
    """Return a path in the run directory; names from the Hub lead nowhere else."""
    target = (output / path).resolve()
    if not target.is_relative_to(output.resolve()) or target.suffix != ".jnl":
        raise HubError(f"A file of the run has a name that is not one of ours: {quoted(path)}.")
    return target


def _take(source: Path, target: Path, size: int) -> None:
    """Move a segment to its place, unless it is there."""
    if target.is_file() and target.stat().st_size >= size:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    os.replace(source, target)
