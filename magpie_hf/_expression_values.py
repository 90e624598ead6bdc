"""Evaluation of a checked condition on a table of columns, with three-valued truth."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ._expression_tree import (
    BoolArray,
    call_name,
    error_at,
    is_none,
    named_kind,
    resolve_name,
    scale_of,
)
from .columns import SCALES
from .errors import did_you_mean, quoted


class Truth(NamedTuple):
    """Three-valued truth of rows: `yes` where true, `known` where not null; (num_rows,) bool each."""

    yes: BoolArray
    known: BoolArray


class _Values(NamedTuple):
    """Values of rows, or one literal for all: `kind` is "number", "text", "bool", "null" or a scale's column."""

    data: Any
    kind: str
    literal: bool = False


class Evaluator:
    """Evaluates a checked tree on one table of columns."""

    def __init__(self, line: str, table: Any) -> None:
        self.line = line
        self.table = table
        self.rows = 1 if table is None else len(table)

    def truth(self, node: ast.expr) -> Truth:
        """Return the three-valued truth of a node."""
        if isinstance(node, ast.BoolOp):
            parts = [self.truth(value) for value in node.values]
            return _all(parts) if isinstance(node.op, ast.And) else _negated(_all([_negated(part) for part in parts]))
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            return _negated(self.truth(node.operand))
        if isinstance(node, ast.Compare):
            return self._compare(node)
        values = self.value(node)
        if values.kind not in ("bool", "null"):
            raise error_at(
                self.line,
                node,
                f"This is {named_kind(values.kind)}, and true or false is wanted.",
                "Compare it with something.",
            )
        data, known = self._array(values, bool)
        return Truth(data & known, known)

    def _compare(self, node: ast.Compare) -> Truth:
        parts, left = [], node.left
        for op, right in zip(node.ops, node.comparators, strict=True):
            parts.append(self._pair(node, left, op, right))
            left = right
        return _all(parts)

    def _pair(self, node: ast.Compare, left: ast.expr, op: ast.cmpop, right: ast.expr) -> Truth:
        if isinstance(op, (ast.Is, ast.IsNot)) or is_none(right) or is_none(left):
            return self._is_null(node, left, op, right)
        if isinstance(op, (ast.In, ast.NotIn)):
            return self._member(left, op, right)
        scale = scale_of(left) or scale_of(right)
        a, b = self.value(left, scale), self.value(right, scale)
        kind = self._common(node, a, b)
        if "null" in (a.kind, b.kind):  # a column without any value: unknown in every row
            return Truth(np.zeros(self.rows, dtype=bool), np.zeros(self.rows, dtype=bool))
        x, known_x = self._array(a, kind)
        y, known_y = self._array(b, kind)
        known = known_x & known_y
        with np.errstate(invalid="ignore"):
            result = _OPERATORS[type(op)](x, y)
        return Truth(np.broadcast_to(result, (self.rows,)) & known, np.broadcast_to(known, (self.rows,)))

    def _is_null(self, node: ast.Compare, left: ast.expr, op: ast.cmpop, right: ast.expr) -> Truth:
        if not (is_none(left) or is_none(right)) or not isinstance(op, (ast.Is, ast.IsNot, ast.Eq, ast.NotEq)):
            raise error_at(self.line, node, "`is` looks for null only.", "As: reward is None, reward is not None.")
        values = self.value(left if is_none(right) else right)
        known = np.full(self.rows, values.data is not None) if values.literal else np.asarray(values.data.is_valid())
        wanted = known if isinstance(op, (ast.IsNot, ast.NotEq)) else ~known
        return Truth(wanted, np.ones(self.rows, dtype=bool))

    def _member(self, left: ast.expr, op: ast.cmpop, right: ast.expr) -> Truth:
        if not isinstance(right, (ast.List, ast.Tuple)):
            raise error_at(self.line, right, "A list is wanted behind `in`.", "As: category in ['Math', 'Reasoning'].")
        equal = ast.Eq()
        parts = [self._pair(ast.Compare(left, [equal], [entry]), left, equal, entry) for entry in right.elts]
        if not parts:
            return Truth(np.full(self.rows, isinstance(op, ast.NotIn)), np.ones(self.rows, dtype=bool))
        found = _negated(_all([_negated(part) for part in parts]))
        return _negated(found) if isinstance(op, ast.NotIn) else found

    def value(self, node: ast.expr, scale: str | None = None) -> _Values:
        """Return a node's values; `scale`: the ordered column it stands beside, whose labels may be bare words."""
        if isinstance(node, ast.Constant):
            return self._literal(node, node.value, scale)
        if isinstance(node, ast.Name):
            if scale and node.id in SCALES[scale]:
                return self._literal(node, node.id, scale)
            return self._column(node)
        if isinstance(node, ast.Attribute):
            return self._field(node)
        if isinstance(node, ast.Call):
            return self._call(node)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            inner = self._numbers(node.operand)
            return _Values(-inner.data if inner.literal else _compute().negate(inner.data), "number", inner.literal)
        if isinstance(node, ast.BinOp):
            return self._arithmetic(node)
        truth = self.truth(node)
        import pyarrow as pa

        return _Values(pa.array(truth.yes, mask=~truth.known), "bool")

    def _literal(self, node: ast.expr, value: Any, scale: str | None) -> _Values:
        if value is None:
            return _Values(None, "null", True)
        if isinstance(value, bool):
            return _Values(value, "bool", True)
        if isinstance(value, (int, float)):
            return _Values(float(value), "number", True)
        if scale is not None:
            if value not in SCALES[scale]:
                raise error_at(
                    self.line, node, f"{quoted(value)} is no label of {scale}.", did_you_mean(value, SCALES[scale])
                )
            return _Values(float(SCALES[scale].index(value)), scale, True)
        return _Values(value, "text", True)

    def _column(self, node: ast.Name) -> _Values:
        name = resolve_name(node.id)
        return self._typed(node, self.table[name], name)

    def _field(self, node: ast.Attribute) -> _Values:
        path, at = [node.attr], node.value
        while isinstance(at, ast.Attribute):
            path.append(at.attr)
            at = at.value
        assert isinstance(at, ast.Name)  # noqa: S101 (checked when parsed)
        import pyarrow as pa

        data = self.table[resolve_name(at.id)]
        for name in reversed(path):
            if not pa.types.is_struct(data.type) or data.type.get_field_index(name) < 0:
                fields = [f.name for f in data.type] if pa.types.is_struct(data.type) else []
                raise error_at(self.line, node, f"There is no field {quoted(name)} here.", did_you_mean(name, fields))
            data = _compute().struct_field(data, name)
        return self._typed(node, data, "")

    def _typed(self, node: ast.expr, data: Any, name: str) -> _Values:
        import pyarrow as pa

        kind = data.type
        if pa.types.is_null(kind):
            return _Values(data, "null")
        if name in SCALES and (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            return _Values(data, name)
        if pa.types.is_boolean(kind):
            return _Values(data, "bool")
        if pa.types.is_integer(kind) or pa.types.is_floating(kind):
            return _Values(data, "number")
        if pa.types.is_string(kind) or pa.types.is_large_string(kind):
            return _Values(data, "text")
        if pa.types.is_null(kind):
            return _Values(data, "null")
        raise error_at(self.line, node, f"The column holds {kind}, which conditions cannot compare.")

    def _call(self, node: ast.Call) -> _Values:
        name, compute = call_name(node), _compute()
        if name == "is_survivor":
            return _Values(compute.equal(self.table["group_id"], self.table["uuid"]), "bool")
        text = self.value(node.args[0])
        if text.kind not in ("text", *SCALES) or text.literal:
            raise error_at(self.line, node, f"{name} looks at a column of text.")
        if name == "len":
            return _Values(compute.utf8_length(text.data), "number")
        if name == "words":
            return _Values(compute.count_substring_regex(text.data, r"\S+"), "number")
        if name == "lines":
            return _Values(compute.count_substring(text.data, "\n"), "number")
        if name == "lower":
            return _Values(compute.utf8_lower(text.data), "text")
        pattern = node.args[1].value  # type: ignore[attr-defined]  # a literal: checked when parsed
        function = {
            "startswith": compute.starts_with,
            "endswith": compute.ends_with,
            "contains": compute.match_substring,
        }[name]
        return _Values(function(text.data, pattern=pattern), "bool")

    def _numbers(self, node: ast.expr) -> _Values:
        values = self.value(node)
        if values.kind != "number":
            raise error_at(self.line, node, f"This is {named_kind(values.kind)}, and a number is wanted.")
        return values

    def _arithmetic(self, node: ast.BinOp) -> _Values:
        import pyarrow as pa

        a, b = self._numbers(node.left), self._numbers(node.right)
        (x, known_x), (y, known_y) = self._array(a, "number"), self._array(b, "number")
        with np.errstate(all="ignore"):
            result = np.broadcast_to(_ARITHMETIC[type(node.op)](x, y), (self.rows,))
        known = np.broadcast_to(known_x & known_y, (self.rows,)) & np.isfinite(result)
        return _Values(pa.array(result, mask=~known), "number")

    def _common(self, node: ast.expr, a: _Values, b: _Values) -> Any:
        """Return what two values are compared as; an error if that is nothing."""
        kinds = {a.kind, b.kind} - {"null"}
        if len(kinds) > 1:
            first, second = named_kind(a.kind), named_kind(b.kind)
            raise error_at(
                self.line, node, f"Here {first} is compared with {second}.", "Both sides must be of one kind."
            )
        return kinds.pop() if kinds else "null"

    def _array(self, values: _Values, kind: Any) -> tuple[Any, BoolArray]:
        """Return values as numpy, and where they are not null."""
        if values.literal:
            known = np.full(1, values.data is not None)
            return np.asarray([values.data if values.data is not None else 0]), known
        known = np.asarray(values.data.is_valid())
        if kind in SCALES:
            return _ranks(values.data, kind)
        if values.kind == "null":
            return np.zeros(self.rows), known
        if values.kind == "text":
            return np.asarray(
                values.data.fill_null("").to_numpy(zero_copy_only=False)
                if hasattr(values.data, "to_numpy")
                else values.data,
                dtype=object,
            ), known
        filled = values.data.fill_null(False if values.kind == "bool" else 0)
        numbers = np.asarray(filled)
        if values.kind == "number":
            numbers = numbers.astype(np.float64)
            known = known & ~np.isnan(numbers)  # a NaN is as unknown as a null
        return numbers, known


def _ranks(data: Any, scale: str) -> tuple[Any, BoolArray]:
    """Return labels' places on their scale; one that is not on it counts as null."""
    import pyarrow as pa

    places = np.asarray(_compute().index_in(data, pa.array(SCALES[scale])).fill_null(-1)).astype(np.float64)
    return places, places >= 0


_OPERATORS: dict[type[ast.cmpop], Any] = {
    ast.Eq: np.equal, ast.NotEq: np.not_equal, ast.Lt: np.less, ast.LtE: np.less_equal, ast.Gt: np.greater,
    ast.GtE: np.greater_equal,
}  # fmt: skip
_ARITHMETIC: dict[type[ast.operator], Any] = {
    ast.Add: np.add, ast.Sub: np.subtract, ast.Mult: np.multiply, ast.Div: np.divide,
}  # fmt: skip


def _compute() -> Any:
    import pyarrow.compute

    return pyarrow.compute


def _all(parts: Sequence[Truth]) -> Truth:
    """And: false where any part is false, else unknown where any is, else true."""
    yes = np.logical_and.reduce([part.yes for part in parts])
    no = np.logical_or.reduce([part.known & ~part.yes for part in parts])
    return Truth(yes, yes | no)


def _negated(truth: Truth) -> Truth:
    return Truth(truth.known & ~truth.yes, truth.known)
