"""Check whether a recipe resumes the run in a directory, or would replace its dataset with another one.

A recipe resumes a run if only its settings change: `num_rows`, engine, budget, sampling, seed, revision, template,
conditions, added or removed stages. It is *another* recipe if its model or its dataset differs, if stages are replaced
by others, or if its name and anything else differ.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from ..errors import ArgumentError, MagpieError, quoted
from ..hub.manifest import public_name
from ..recipe.schema import Recipe, load_recipe
from ..recipe.source import DEFAULT_STAGES
from ..storage.rundir import RunDir


def check_continues(recipe: Recipe, run_dir: RunDir, *, force: bool = False) -> None:
    """Raise if this recipe would replace the dataset of another recipe, unless `force` is given.

    Raises:
        ArgumentError: the directory contains the run of another recipe; the message describes it.
    """
    before = run_dir.state.recipe
    if force or not before or not _has_rows(run_dir):
        return
    changed = list(_changes(before, recipe))
    if changed:
        raise ArgumentError(
            f"This directory contains another run: {_described(before, run_dir)}. Different here: {'; '.join(changed)}.",
            where=str(run_dir.path),
            hint="Choose another --output. With --force (force=True) this recipe runs here and its dataset replaces the "
            "one that is saved; finished rows of the other run are kept.",
            recipe=before.get("name"),
        )


def _has_rows(run_dir: RunDir) -> bool:
    """Whether the run has saved any rows; a run that failed at startup (e.g., misspelled model) has not."""
    stages = run_dir.path / "stages"
    return run_dir.state.output is not None or any(stages.glob("*/journal/*.jnl")) or any(stages.glob("*/*.arrow"))


def _changes(before: Mapping[str, Any], recipe: Recipe) -> Iterator[str]:
    now = recipe.raw
    if _name(before) != _name(now) and _asked(before) != _asked(now):
        yield f"name {quoted(_name(now))}"
    if not _same_place(before.get("model"), now.get("model")):
        yield f"model {quoted(now.get('model') or 'none')}"
    if not _same_place(_source(before), _source(now)):
        yield f"dataset {quoted(_source(now) or 'none')}"
    old, new = Counter(_stages(before)), Counter(_stages(now))
    if old - new and new - old:
        yield f"stages {', '.join(new - old)} instead of {', '.join(old - new)}"


def _name(raw: Mapping[str, Any]) -> str:
    return str(raw.get("name", "magpie"))


def _asked(raw: Mapping[str, Any]) -> Any:
    """Return a hash of all parts of a recipe that matter for the comparison, without its name."""
    try:
        return load_recipe(raw).hash
    except MagpieError:  # its stages or engines are not registered in this process
        return {key: value for key, value in raw.items() if key not in ("name", "description")}


def _same_place(before: Any, now: Any) -> bool:
    """Whether two models or datasets are the same; of local paths, only the last part is compared."""
    if before == now or not (before and now):
        return bool(before) == bool(now)
    return public_name(str(before)) == public_name(str(now))


def _source(raw: Mapping[str, Any]) -> Any:
    source = raw.get("dataset")
    if isinstance(source, list):
        return ", ".join(str(_source({"dataset": part})) for part in source)
    if not isinstance(source, Mapping):
        return source
    # Rows passed in memory have no path, so a dataset with additional rows resumes the same run.
    return source.get("path") or "rows passed in memory"


def _stages(raw: Mapping[str, Any]) -> list[str]:
    entries = raw.get("stages") or DEFAULT_STAGES
    return [str(entry.get("stage")) if isinstance(entry, Mapping) else str(entry) for entry in entries]


def _described(raw: Mapping[str, Any], run_dir: RunDir) -> str:
    """Return a description of a run: name, model, stages, rows, and when it was last used."""
    output, sessions = run_dir.state.output, run_dir.state.sessions
    last = (sessions[-1].ended or sessions[-1].started) if sessions else None
    model = raw.get("model") or (raw.get("judge") or {}).get("model")
    parts = [
        f"recipe {quoted(_name(raw))}",
        f"model {quoted(model)}" if model else "",
        f"stages {', '.join(_stages(raw))}",
        "no dataset yet" if output is None else f"{output.rows:,} rows",
        f"last used {last}" if last else "",
    ]
    return ", ".join(part for part in parts if part)
