"""Check columns, models, templates and packages of all stages before the first row is generated.

If a stage cannot run, the error is raised before earlier stages have generated anything.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from ..engines import check_installed
from ..errors import MagpieError
from ..execution.candidates import Shard
from ..recipe.output import check_output
from ..recipe.schema import Recipe
from ..stage import Stage, check_columns
from ..stages.subset import Subset
from ..storage.state import StageState
from .session import Session


if TYPE_CHECKING:
    from datasets import Dataset


def planned_stages(recipe: Recipe, shard: Shard, columns: Iterable[str]) -> list[Stage]:
    """Return the stages that a run applies to rows with these columns, in order.

    Stages that were added only for their columns are left out if the rows already have these columns. In a shard,
    stages that need the whole dataset and all stages after a selection are left out: they run after the merge.
    """
    known = set(columns)
    planned: list[Stage] = []
    for stage in recipe.stages:
        if stage.name in recipe.implied and set(stage.features()) <= known:
            continue
        if shard.parts > 1 and planned and (stage.kind == "set" or not {*stage.needs} <= known):
            if stage.name == "select":
                break
            continue
        planned.append(stage)
        known |= set(stage.features())
    return planned


def check_stages(session: Session, stages: Iterable[Stage], rows: Dataset | None) -> None:
    """Raise an error for the first stage that cannot run. Tokenizers are loaded, but no model.

    The keys of the stages are also saved in the state of the run, in order. Finished stages are not checked again,
    because their rows are cached.

    Raises:
        DatasetError: columns are missing; the message names all of them.
        DependencyError: a package is missing.
        ModelError: a model or tokenizer cannot be found.
        TemplateError: a chat template cannot render the prompts of a stage.
    """
    planned = [stage for stage in stages if not isinstance(stage, Subset)]
    if rows is not None:
        check_columns(planned, rows.features)
        for stage in planned:
            if {*stage.needs} <= {*rows.column_names}:
                stage.check_columns(rows)
        check_output(session.recipe.output_columns, planned, rows.features)
    num_rows = session.recipe.num_rows if rows is None else len(rows)
    plan: list[str] = []
    for stage in planned:
        with _naming(stage):
            env = session.environment_of(stage)
            plan.append(env.key_of(stage))
            state = env.state_of(stage)
            if state is not None and state.status == "done" and _rows_of(session, stage, state) == num_rows:
                num_rows = state.rows_out or 0
                continue
            _check_needs(session, stage)
        if not stage.features():  # a selection: how many rows it keeps is not known yet
            num_rows = -1
    session.run_dir.state.plan = list(dict.fromkeys(plan))


def _rows_of(session: Session, stage: Stage, state: StageState) -> int | None:
    """Return the number of rows that a finished stage was requested to process."""
    if stage.name != "instructions":
        return state.rows_in
    is_shard = session.run_dir.state.shard[1] > 1
    return session.recipe.num_rows if is_shard else state.rows_out


def _check_needs(session: Session, stage: Stage) -> None:
    stage.check_ready()
    if stage.uses_engine:
        spec = session.recipe.role(stage.role).engine
        check_installed(spec.kind, spec.options)
        stage.check_template(session.template_of(stage.role))
    elif stage.uses_tokenizer:
        session.template_of("generator")


@contextlib.contextmanager
def _naming(stage: Stage) -> Iterator[None]:
    """Add the name of the stage to an error."""
    try:
        yield
    except MagpieError as error:
        here = f'stage "{stage.label}"'
        error.where = f"{here}, {error.where}" if error.where else here
        raise
