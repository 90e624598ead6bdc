"""What is checked before the first row: columns, models, templates and packages of every stage that will run.

A run pays for its rows stage by stage. A last stage that cannot run at all must say so before the first one is paid for.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from ..engines import check_installed
from ..errors import MagpieError
from ..execution.candidates import Shard
from ..recipe.schema import Recipe
from ..stage import Stage, check_columns
from ..stages.subset import Subset
from ..storage.state import StageState
from .session import Session


if TYPE_CHECKING:
    from datasets import Dataset


def planned_stages(recipe: Recipe, shard: Shard, columns: Iterable[str]) -> list[Stage]:
    """Return the stages that a run applies to rows with these columns, in order.

    Stages that are there only because another one needs their columns are left out where the rows have them. A shard
    leaves out what needs the whole dataset, and everything after a selection: that is for the merged run.
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
    """Raise for the first stage that cannot run, named in the error; loads tokenizers, but no model.

    What a stage needs from outside is not looked at again once the stage has finished on so many rows in this run: they
    are cached.

    Raises:
        DatasetError: the rows lack columns; all of them are named.
        DependencyError: a package is missing.
        ModelError: a model or tokenizer cannot be found.
        TemplateError: a chat template cannot give a stage's prompts.
    """
    planned = [stage for stage in stages if not isinstance(stage, Subset)]
    if rows is not None:
        check_columns(planned, rows.features)
        for stage in planned:
            if {*stage.needs} <= {*rows.column_names}:
                stage.check_columns(rows)
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
        if not stage.features():  # a selection: how many rows come behind it is not known yet
            num_rows = -1
    session.run_dir.state.plan = list(dict.fromkeys(plan))


def _rows_of(session: Session, stage: Stage, state: StageState) -> int | None:
    """Return the number of rows that a finished stage was asked for."""
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
    """Add the stage to an error that does not say which one it is about."""
    try:
        yield
    except MagpieError as error:
        here = f'stage "{stage.label}"'
        error.where = f"{here}, {error.where}" if error.where else here
        raise
