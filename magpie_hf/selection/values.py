"""Evaluate a checked condition on a table of columns, with Arrow's kernels for three-valued logic."""

from __future__ import annotations

import ast
from functools import reduce
from types import ModuleType
from typing import Any, NamedTuple, TypeAlias

from ..errors import did_you_mean, quoted
from .tree import LABEL_OF, Scales, call_name, error_at, is_none, named_kind, resolve_name, scale_of


ArrowValues: TypeAlias = Any
"""An Arrow array with a value per row, an Arrow scalar for all rows, or an Arrow table; pyarrow has no types."""


class _Values(NamedTuple):
    """Values of rows (an Arrow array), or one literal for all of them (an Arrow scalar).

    `kind` is "number", "text", "bool", "null", or `LABEL_OF` and the column whose scale the labels are on.
    """

    data: ArrowValues
    kind: str
    literal: bool = False


class Evaluator:
    """Evaluates a checked tree on one table of columns; `scales`: the ordered labels of those that have them."""

    def __init__(self, line: str, table: ArrowValues, scales: Scales) -> None:
        self.line = line
        self.table = table
        self.scales = scales

    def rows(self, node: ast.expr) -> ArrowValues:
        """Return the truth of a node in each row: an Arrow bool array, null where unknown."""
        import pyarrow as pa

        return _compute().and_kleene(self.truth(node), pa.repeat(True, 1 if self.table is None else len(self.table)))

    def truth(self, node: ast.expr) -> ArrowValues:
        """Return the truth of a node: an Arrow bool array, null where unknown, or a scalar that holds for all rows."""
        if isinstance(node, ast.BoolOp):
            kernel = _compute().and_kleene if isinstance(node.op, ast.And) else _compute().or_kleene
            return reduce(kernel, [self.truth(value) for value in node.values])
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            return _compute().invert(self.truth(node.operand))
        if isinstance(node, ast.Compare):
            return self._compare(node)
        values = self.value(node)
        if values.kind not in ("bool", "null"):
            found = named_kind(values.kind)
            hint = "Add a comparison."
            raise error_at(self.line, node, f"This is {found}, but a condition must be true or false.", hint)
        return self._operand(values)

    def _compare(self, node: ast.Compare) -> ArrowValues:
        operands = [node.left, *node.comparators]
        pairs = zip(operands, node.ops, operands[1:], strict=False)
        return reduce(_compute().and_kleene, [self._pair(node, *pair) for pair in pairs])

    def _pair(self, node: ast.Compare, left: ast.expr, op: ast.cmpop, right: ast.expr) -> ArrowValues:
        if isinstance(op, (ast.Is, ast.IsNot)) or is_none(right) or is_none(left):
            return self._is_null(node, left, op, right)
        if isinstance(op, (ast.In, ast.NotIn)):
            return self._member(left, op, right)
        scale = scale_of(left, self.scales) or scale_of(right, self.scales)
        a, b = self.value(left, scale), self.value(right, scale)
        kinds = {a.kind, b.kind} - {"null"}
        if len(kinds) > 1:
            compared = f"Cannot compare {named_kind(a.kind)} with {named_kind(b.kind)}."
            raise error_at(self.line, node, compared, "Both sides must be of the same kind.")
        if "null" in (a.kind, b.kind):  # a column without values: unknown in every row
            return _unknown()
        return getattr(_compute(), _COMPARISONS[type(op)])(self._operand(a), self._operand(b))

    def _is_null(self, node: ast.Compare, left: ast.expr, op: ast.cmpop, right: ast.expr) -> ArrowValues:
        if not (is_none(left) or is_none(right)) or not isinstance(op, (ast.Is, ast.IsNot, ast.Eq, ast.NotEq)):
            raise error_at(
                self.line, node, "`is` can only be used with None.", "Example: reward is None, reward is not None."
            )
        data = self.value(left if is_none(right) else right).data
        return _compute().is_valid(data) if isinstance(op, (ast.IsNot, ast.NotEq)) else _compute().is_null(data)

    def _member(self, left: ast.expr, op: ast.cmpop, right: ast.expr) -> ArrowValues:
        import pyarrow as pa

        if not isinstance(right, (ast.List, ast.Tuple)):
            raise error_at(self.line, right, "`in` requires a list.", "Example: category in ['Math', 'Reasoning'].")
        equal = ast.Eq()
        parts = [self._pair(ast.Compare(left, [equal], [entry]), left, equal, entry) for entry in right.elts]
        found = reduce(_compute().or_kleene, parts, pa.scalar(False))
        return _compute().invert(found) if isinstance(op, ast.NotIn) else found

    def value(self, node: ast.expr, scale: str | None = None) -> _Values:
        """Return the values of a node; `scale`: the column it is compared with, whose labels may be without quotes."""
        if isinstance(node, ast.Constant):
            return self._literal(node, node.value, scale)
        if isinstance(node, ast.Name):
            if scale and node.id in self.scales[scale]:
                return self._literal(node, node.id, scale)
            return self._column(node)
        if isinstance(node, ast.Attribute):
            return self._field(node)
        if isinstance(node, ast.Call):
            return self._call(node)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            inner = self._numbers(node.operand)
            return _Values(_compute().negate(inner.data), "number", inner.literal)
        if isinstance(node, ast.BinOp):
            return self._arithmetic(node)
        return _Values(self.truth(node), "bool")

    def _literal(self, node: ast.expr, value: object, scale: str | None) -> _Values:
        import pyarrow as pa

        if value is None:
            return _Values(pa.scalar(None), "null", True)
        if isinstance(value, bool):
            return _Values(pa.scalar(value), "bool", True)
        if isinstance(value, (int, float)):
            return _Values(pa.scalar(float(value)), "number", True)
        if scale is None:
            return _Values(pa.scalar(value), "text", True)
        labels = self.scales[scale]
        if value not in labels:
            message = f"{quoted(value)} is not a label of {scale}."
            raise error_at(self.line, node, message, did_you_mean(str(value), labels))
        return _Values(pa.scalar(labels.index(value), pa.int32()), LABEL_OF + scale, True)

    def _column(self, node: ast.Name) -> _Values:
        name = resolve_name(node.id)
        return self._typed(node, self.table[name], name)

    def _field(self, node: ast.Attribute) -> _Values:
        import pyarrow as pa

        path, at = [node.attr], node.value
        while isinstance(at, ast.Attribute):
            path.append(at.attr)
            at = at.value
        assert isinstance(at, ast.Name)  # noqa: S101 (checked when parsed)
        data = self.table[resolve_name(at.id)]
        for name in reversed(path):
            if not pa.types.is_struct(data.type) or data.type.get_field_index(name) < 0:
                fields = [f.name for f in data.type] if pa.types.is_struct(data.type) else []
                raise error_at(self.line, node, f"Unknown field {quoted(name)}.", did_you_mean(name, fields))
            data = _compute().struct_field(data, name)
        return self._typed(node, data, "")

    def _typed(self, node: ast.expr, data: ArrowValues, name: str) -> _Values:
        import pyarrow as pa

        kind = data.type
        if pa.types.is_null(kind):
            return _Values(data, "null")
        if pa.types.is_boolean(kind):
            return _Values(data, "bool")
        if pa.types.is_integer(kind) or pa.types.is_floating(kind):
            return _Values(data, "number")
        if pa.types.is_string(kind) or pa.types.is_large_string(kind):
            return _Values(data, LABEL_OF + name if name in self.scales else "text")
        raise error_at(self.line, node, f"Cannot compare values of type {kind}.")

    def _call(self, node: ast.Call) -> _Values:
        name, compute = call_name(node), _compute()
        if name == "is_survivor":
            return _Values(compute.equal(self.table["group_id"], self.table["uuid"]), "bool")
        text = self.value(node.args[0])
        if not (text.kind == "text" or text.kind.startswith(LABEL_OF)) or text.literal:
            raise error_at(self.line, node, f"{name} requires a text column.")
        if name == "len":
            return _Values(compute.utf8_length(text.data), "number")
        if name == "words":
            return _Values(compute.count_substring_regex(text.data, r"\S+"), "number")
        if name == "lines":
            return _Values(compute.count_substring(text.data, "\n"), "number")
        if name == "lower":
            return _Values(compute.utf8_lower(text.data), "text")
        pattern = node.args[1].value  # type: ignore[attr-defined]  # a literal: checked when parsed
        return _Values(getattr(compute, _SEARCHES[name])(text.data, pattern=pattern), "bool")

    def _numbers(self, node: ast.expr) -> _Values:
        values = self.value(node)
        if values.kind != "number":
            raise error_at(self.line, node, f"This is {named_kind(values.kind)}, but a number is required.")
        return values

    def _arithmetic(self, node: ast.BinOp) -> _Values:
        a, b = self._numbers(node.left), self._numbers(node.right)
        result = getattr(_compute(), _ARITHMETIC[type(node.op)])(self._operand(a), self._operand(b))
        return _Values(_where(_compute().is_finite(result), result), "number", a.literal and b.literal)

    def _operand(self, values: _Values) -> ArrowValues:
        """Return values as kernels take them: labels as places on their scale, numbers as float64, NaN as null."""
        import pyarrow as pa

        if values.kind == "null":
            return _unknown()
        if values.kind.startswith(LABEL_OF) and not values.literal:  # unknown labels count as null
            labels = self.scales[values.kind.removeprefix(LABEL_OF)]
            return _compute().index_in(values.data, pa.array(labels, values.data.type))
        if values.kind == "number":
            numbers = _compute().cast(values.data, pa.float64(), safe=False)
            return _where(_compute().invert(_compute().is_nan(numbers)), numbers)
        return values.data


def _where(condition: ArrowValues, numbers: ArrowValues) -> ArrowValues:
    """Return the numbers where the condition is true, null elsewhere."""
    import pyarrow as pa

    return _compute().if_else(condition, numbers, pa.scalar(None, pa.float64()))


def _unknown() -> ArrowValues:
    import pyarrow as pa

    return pa.scalar(None, pa.bool_())


# Names of Arrow kernels.
_COMPARISONS: dict[type[ast.cmpop], str] = {
    ast.Eq: "equal", ast.NotEq: "not_equal", ast.Lt: "less", ast.LtE: "less_equal", ast.Gt: "greater",
    ast.GtE: "greater_equal",
}  # fmt: skip
_ARITHMETIC: dict[type[ast.operator], str] = {
    ast.Add: "add", ast.Sub: "subtract", ast.Mult: "multiply", ast.Div: "divide",
}  # fmt: skip
_SEARCHES = {"startswith": "starts_with", "endswith": "ends_with", "contains": "match_substring"}


def _compute() -> ModuleType:
    import pyarrow.compute

    kernels: ModuleType = pyarrow.compute
    return kernels
