"""The order of a recipe's stages: merge judges into one pass, and apply conditions before responses are generated.

With `order: lean`, stages that read only the instruction run before the responses, and so do the conditions of a
selection that need only these stages. All other stages keep their position. The selection also keeps its position and
is applied again as a whole, so the selected rows are the same as with `order: paper`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from ..errors import ArgumentError
from ..stage import Stage
from ..stages.judge import Judge
from ..stages.select import Select
from ..stages.subset import Subset


def joined_judges(stages: Sequence[Stage]) -> tuple[Stage, ...]:
    """Merge all built-in rubrics of a recipe into one judge pass, at the position of the first one.

    Rubrics with a prompt of their own, e.g., those of the set "reference", keep their own requests.
    """
    judges = [stage for stage in stages if isinstance(stage, Judge) and stage.can_be_joined]
    if len(judges) < 2:
        return tuple(stages)
    first = judges[0]
    tokens = sum(judge.sampling.max_tokens for judge in judges)
    joined = Judge(
        rubrics=tuple(rubric for judge in judges for rubric in judge.rubrics),
        sampling=dataclasses.replace(first.sampling, max_tokens=tokens),
        retry_temperature=first.retry_temperature,
    )
    out: list[Stage] = []
    for stage in stages:
        if stage is first:
            out.append(joined)
        elif not any(stage is judge for judge in judges):
            out.append(stage)
    return tuple(out)


def lean_order(stages: Sequence[Stage]) -> tuple[Stage, ...]:
    """Return the stages, with those that read only the instruction moved before the responses.

    Raises:
        ArgumentError: no condition can be moved, or a set stage would receive other rows.
    """
    first, *rest = stages
    early: list[Stage] = [first]
    late: list[Stage] = []
    known = set(first.features())
    reasons: list[str] = []
    for number, stage in enumerate(rest):
        if isinstance(stage, Select):
            part, reason = stage.early_part(known)
            if part is not None and any(isinstance(other, Select) for other in late):
                part = part.without_groups()  # an earlier selection decides first which rows can be chosen from
            if part is None:
                reasons.append(reason or "no condition reads the instruction alone")
            else:
                _check_later_sets(stage, late)
                early.append(part)
            late.append(stage)
        elif _is_early(stage, known):
            if stage.kind == "set":
                _check_before(stage, rest[:number], late)
            early.append(stage)
            known |= set(stage.features())
        else:
            late.append(stage)
    if not any(isinstance(stage, Select) for stage in early):
        why = f" ({'; '.join(dict.fromkeys(reasons))})" if reasons else ""
        raise ArgumentError(
            f"No condition can be applied before the responses{why}.",
            hint="order: lean needs a selection with conditions on the instruction: quality, difficulty, duplicates, language. "
            "Otherwise use order: paper.",
        )
    return (*early, *late)


def _is_early(stage: Stage, known: set[str]) -> bool:
    if isinstance(stage, Subset) or stage.is_costly:
        return False
    return {*stage.needs, *stage.optional} <= known


def _check_before(stage: Stage, before: Sequence[Stage], late: Sequence[Stage]) -> None:
    """Raise ArgumentError for a set stage after a selection that reads responses: with lean it would receive more rows."""
    if any(isinstance(other, Select) for other in before) and any(
        isinstance(other, Select) and not other.is_early for other in late
    ):
        raise _sees_other_rows(stage)


def _check_later_sets(selection: Select, late: Sequence[Stage]) -> None:
    """Raise ArgumentError if conditions would be moved before a set stage, which would then receive fewer rows."""
    for stage in late:
        if stage.kind == "set" and not isinstance(stage, Select):
            raise _sees_other_rows(stage)


def _sees_other_rows(stage: Stage) -> ArgumentError:
    return ArgumentError(
        f'with order: lean, the stage "{stage.name}" would receive other rows than with order: paper.',
        hint="Put the stage before the selections that read responses, or use order: paper.",
    )
