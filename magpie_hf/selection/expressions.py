"""The language of conditions: `quality >= good and min_neighbor_distance > 0 and language == 'EN'`.

An expression is parsed with Python's grammar, checked against a short list of allowed nodes, and evaluated on columns; it
is never run as Python. Truth has three values, as in SQL: a comparison with null is unknown, and so is its negation; a
row is kept if the whole expression is true.
"""

from __future__ import annotations

import ast
import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

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
    column_of,
    error_at,
    resolve_name,
    shown_at,
    walk,
)
from .values import Evaluator


if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["Evaluation", "Expression", "parse"]


class Evaluation(NamedTuple):
    """Result: `keep` and `unknown` (because of a null) are (num_rows,) bool; `nulls` is the number of unknown rows."""

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
        """The columns that it reads, aliases resolved, if only columns of the register have ordered labels."""
        return self.columns_on(SCALES)

    def columns_on(self, scales: Scales) -> frozenset[str]:
        """Return the columns that it reads; `scales` decides which names are labels without quotes."""
        found = set()
        for node, scale in walk(self.tree, scales):
            if isinstance(node, ast.Attribute):
                found.add(column_of(node))
            elif isinstance(node, ast.Call) and call_name(node) == "is_survivor":
                found |= {"group_id", "uuid"}
            elif isinstance(node, ast.Name) and not (scale and node.id in scales[scale]):
                found.add(resolve_name(node.id))
        return frozenset(found)

    @cached_property
    def conjuncts(self) -> tuple[Expression, ...]:
        """The operands of a top-level `and`, each with its own text."""
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

    def check(self, features: Mapping[str, object]) -> None:
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
        """Return the error for unknown names; if a column is misspelled, the label next to it is not reported as a column."""
        labels = {label for scale in {**SCALES, **scales}.values() for label in scale}
        columns = [name for name in missing if name not in labels] or missing
        known = [*present, *ALIASES, *annotation_calls(), *labels]
        for name in columns:
            similar = difflib.get_close_matches(name, known, n=1)
            if similar and similar[0] in labels:
                named = (n for n, _ in walk(self.tree, scales) if isinstance(n, (ast.Name, ast.Attribute)))
                node = next((n for n in named if column_of(n) == name), self.tree)
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
        ArgumentError: it is not a valid expression; the message shows the position.
    """
    if not isinstance(text, str) or not text.strip():
        raise ArgumentError("Empty condition.", hint="Example: quality >= good and language == 'EN'.")
    if len(text) > MAX_LENGTH:
        raise ArgumentError(f"Condition too long: {len(text)} characters, the limit is {MAX_LENGTH}.")
    line = " ".join(text.split("\n")).strip()
    try:
        tree = ast.parse(line, mode="eval").body
    except SyntaxError as error:
        raise ArgumentError(shown_at(line, f"{error.msg}.", (error.offset or 1) - 1), hint=HELP) from None
    except (ValueError, RecursionError, MemoryError):
        raise ArgumentError(f"Invalid condition {quoted(line)}.", hint=HELP) from None
    expression = Expression(line, tree)
    check_tree(line, tree, 0)
    return expression
