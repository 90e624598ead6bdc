"""The language of filters: `quality >= good and min_neighbor_distance > 0 and language == 'EN'`.

An expression is parsed with Python's grammar, checked against the short list of what is allowed here, and evaluated on
columns; nothing of it is ever run as Python. Truth has three values, as in SQL: a comparison with null is unknown, and
so is its negation; a row is kept where the whole is true.
"""

from __future__ import annotations

import ast
import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..columns import ALIASES, SCALES, annotation_calls, missing_columns, scales_of
from ..errors import ArgumentError, MagpieError, quoted
from .tree import (
    BATCH_ROWS,
    HELP,
    MAX_LENGTH,
    BoolArray,
    Scales,
    call_name,
    check_tree,
    error_at,
    resolve_name,
    root_of,
    shown_at,
    walk,
)
from .values import Evaluator


if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["Evaluation", "Expression", "parse"]


class Evaluation(NamedTuple):
    """Which rows an expression keeps, and for which (and how many) it is unknown because of a null: (num_rows,) bool."""

    keep: BoolArray
    nulls: int
    unknown: BoolArray


@dataclass(frozen=True)
class Expression:
    """A parsed expression."""

    text: str
    tree: ast.expr

    @cached_property
    def columns(self) -> frozenset[str]:
        """The columns it reads, aliases resolved, on datasets without ordered labels of their own."""
        return self.columns_on(SCALES)

    def columns_on(self, scales: Scales) -> frozenset[str]:
        """Return the columns it reads where these columns have ordered labels: a label without quotes is no column."""
        found = set()
        for node, scale in walk(self.tree, scales):
            if isinstance(node, ast.Attribute):
                found.add(resolve_name(root_of(node).id))
            elif isinstance(node, ast.Call) and call_name(node) == "is_survivor":
                found |= {"group_id", "uuid"}
            elif isinstance(node, ast.Name) and not (scale and node.id in scales[scale]):
                found.add(resolve_name(node.id))
        return frozenset(found)

    @cached_property
    def conjuncts(self) -> tuple[Expression, ...]:
        """The parts that a top-level `and` joins, each with its own text."""
        parts = (
            self.tree.values
            if isinstance(self.tree, ast.BoolOp) and isinstance(self.tree.op, ast.And)
            else [self.tree]
        )
        out: list[Expression] = []
        for part in parts:
            own = Expression(ast.unparse(part), part)
            out += own.conjuncts if part is not self.tree else [own]
        return tuple(out)

    def check(self, features: Mapping[str, Any]) -> None:
        """Raise DatasetError or ArgumentError for what cannot be evaluated on a dataset with these features.

        Evaluates the expression on no rows, so that types, labels and columns are all checked.
        """
        scales = scales_of(features)
        columns = self.columns_on(scales)
        missing = sorted(column for column in columns if column not in features)
        if missing:
            raise self._missing(missing, list(features), scales)
        from datasets import Features

        table = Features({name: features[name] for name in columns}).arrow_schema.empty_table()
        Evaluator(self.text, table, scales).truth(self.tree)

    def _missing(self, missing: list[str], present: list[str], scales: Scales) -> MagpieError:
        """Return the error for names that are not columns: beside a misspelled column, a label is not read as one."""
        labels = {label for scale in {**SCALES, **scales}.values() for label in scale}
        columns = [name for name in missing if name not in labels] or missing
        known = [*present, *ALIASES, *annotation_calls(), *labels]
        for name in columns:
            similar = difflib.get_close_matches(name, known, n=1)
            if similar and similar[0] in labels:
                named = (n for n, _ in walk(self.tree, scales) if isinstance(n, (ast.Name, ast.Attribute)))
                node = next((n for n in named if resolve_name(root_of(n).id) == name), self.tree)
                hint = f'Did you mean "{similar[0]}"?'
                return error_at(self.text, node, f"{quoted(name)} is neither a column nor a label.", hint)
        return missing_columns({name: [f"the condition {quoted(self.text)}"] for name in columns}, present, [*ALIASES])

    def evaluate(self, dataset: Dataset) -> Evaluation:
        """Return which rows are kept; reads only the columns it needs, some thousand rows at a time.

        Raises:
            DatasetError: a column is missing; says which annotation writes it.
            ArgumentError: a label is not on its scale, or types do not match.
        """
        self.check(dataset.features)
        scales = scales_of(dataset.features)
        columns = sorted(self.columns_on(scales))
        keep, unknown = np.zeros(len(dataset), dtype=bool), np.zeros(len(dataset), dtype=bool)
        if not columns:
            keep[:] = Evaluator(self.text, None, scales).rows(self.tree).fill_null(False)
            return Evaluation(keep, 0, unknown)
        at = 0
        narrow = dataset.select_columns(columns).with_format("arrow")
        for table in narrow.iter(batch_size=BATCH_ROWS):
            truth = Evaluator(self.text, table, scales).rows(self.tree)
            keep[at : at + len(table)] = truth.fill_null(False)
            unknown[at : at + len(table)] = truth.is_null()
            at += len(table)
        return Evaluation(keep, int(unknown.sum()), unknown)


def parse(text: str) -> Expression:
    """Parse an expression.

    Raises:
        ArgumentError: it is no expression of this language; shows the place.
    """
    if not isinstance(text, str) or not text.strip():
        raise ArgumentError("A condition is empty.", hint="As: quality >= good and language == 'EN'.")
    if len(text) > MAX_LENGTH:
        raise ArgumentError(f"A condition has {len(text)} characters; at most {MAX_LENGTH} can be read.")
    line = " ".join(text.split("\n")).strip()
    try:
        tree = ast.parse(line, mode="eval").body
    except SyntaxError as error:
        raise ArgumentError(shown_at(line, f"{error.msg}.", (error.offset or 1) - 1), hint=HELP) from None
    except (ValueError, RecursionError, MemoryError):
        raise ArgumentError(f"The condition {quoted(line)} cannot be read.", hint=HELP) from None
    expression = Expression(line, tree)
    check_tree(line, tree, 0)
    return expression
