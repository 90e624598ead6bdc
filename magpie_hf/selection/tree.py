"""What conditions may contain: names, scales and functions, and the check of a parsed tree against them."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from ..columns import ALIASES
from ..errors import ArgumentError, did_you_mean, quoted


MAX_LENGTH = 10_000
MAX_DEPTH = 50
BATCH_ROWS = 10_000
FUNCTIONS = {
    "len": ("text",),
    "words": ("text",),
    "lines": ("text",),
    "lower": ("text",),
    "startswith": ("text", "literal"),
    "endswith": ("text", "literal"),
    "contains": ("text", "literal"),
    "is_survivor": (),
}
BoolArray = npt.NDArray[np.bool_]
Scales: TypeAlias = Mapping[str, tuple[str, ...]]
"""Ordered labels by column, the lowest first."""
LABEL_OF = "label of "
"""Beginning of the kind of values that are labels; the column whose scale they are on follows."""


HELP = (
    "Example: quality >= good and min_neighbor_distance > 0 and language == 'EN' and not endswith(instruction, ':')."
)
_COMPARISONS = (ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.In, ast.NotIn, ast.Is, ast.IsNot)


def check_tree(line: str, node: ast.expr, depth: int) -> None:
    """Raise ArgumentError for every node that is not allowed."""
    if depth > MAX_DEPTH:
        raise error_at(line, node, f"The condition has more than {MAX_DEPTH} nested levels.")
    good = isinstance(node, (ast.Name, ast.BoolOp, ast.Constant, ast.Compare, ast.List, ast.Tuple))
    if isinstance(node, ast.UnaryOp):
        good = isinstance(node.op, (ast.Not, ast.USub))
    elif isinstance(node, ast.BinOp):
        good = isinstance(node.op, (ast.Add, ast.Sub, ast.Mult, ast.Div))
    elif isinstance(node, ast.Compare):
        good = all(isinstance(op, _COMPARISONS) for op in node.ops)
        for op, right in zip(node.ops, node.comparators, strict=True):
            if isinstance(right, (ast.List, ast.Tuple)) and not isinstance(op, (ast.In, ast.NotIn)):
                raise error_at(line, right, "A list is allowed only after `in`.", HELP)
    elif isinstance(node, ast.Attribute):
        good = isinstance(root_of(node), ast.Name) and not node.attr.startswith("_")
    elif isinstance(node, ast.Call):
        good = _check_call(line, node)
    elif isinstance(node, ast.Constant):
        value = node.value
        good = (
            value is None or isinstance(value, (str, bool)) or (isinstance(value, (int, float)) and abs(value) < 1e300)
        )
    if not good:
        raise error_at(line, node, "Not allowed in a condition.", HELP)
    children = (
        node.args
        if isinstance(node, ast.Call)
        else []
        if isinstance(node, ast.Attribute)
        else ast.iter_child_nodes(node)
    )
    lists = node.comparators if isinstance(node, ast.Compare) else []
    for child in children:
        if isinstance(child, (ast.List, ast.Tuple)) and child not in lists:
            raise error_at(line, child, "A list is allowed only after `in`.", HELP)
        if isinstance(child, ast.expr):
            check_tree(line, child, depth + 1)


def _check_call(line: str, node: ast.Call) -> bool:
    name = call_name(node)
    if name not in FUNCTIONS:
        raise error_at(line, node, f"Unknown function {quoted(name)}.", did_you_mean(name, FUNCTIONS))
    wanted = FUNCTIONS[name]
    if node.keywords or len(node.args) != len(wanted) or any(isinstance(a, ast.Starred) for a in node.args):
        raise error_at(line, node, f"{name} takes {len(wanted)} argument(s): {name}({', '.join(wanted)}).")
    for argument, what in zip(node.args, wanted, strict=True):
        if what == "literal" and not (isinstance(argument, ast.Constant) and isinstance(argument.value, str)):
            raise error_at(line, argument, f"{name} requires a string in quotes.")
    return True


def resolve_name(name: str) -> str:
    """Return the column that a name or its alias stands for."""
    return ALIASES.get(name, name)


def root_of(node: ast.expr) -> ast.expr:
    """Return the node that a chain of attributes begins with."""
    while isinstance(node, ast.Attribute):
        node = node.value
    return node


def column_of(node: ast.expr) -> str:
    """Return the column that a name, or a chain of attributes of one, stands for; "" for other nodes."""
    root = root_of(node)
    return resolve_name(root.id) if isinstance(root, ast.Name) else ""


def call_name(node: ast.Call) -> str:
    """Return the name of the called function, or ""."""
    return node.func.id if isinstance(node.func, ast.Name) else ""


def is_none(node: ast.expr) -> bool:
    """Tell whether a node is the constant None."""
    return isinstance(node, ast.Constant) and node.value is None


def scale_of(node: ast.expr, scales: Scales) -> str | None:
    """Return the column of ordered labels that a node names, or None."""
    return resolve_name(node.id) if isinstance(node, ast.Name) and resolve_name(node.id) in scales else None


def walk(node: ast.expr, scales: Scales, scale: str | None = None) -> Iterator[tuple[ast.expr, str | None]]:
    """Yield all nodes with the column of ordered labels that they are compared with; function names are skipped."""
    yield node, scale
    if isinstance(node, ast.Compare):
        left = node.left
        for right in node.comparators:  # pair by pair, as in the evaluation
            own = scale_of(left, scales) or scale_of(right, scales)
            yield from walk(left, scales, own)
            yield from walk(right, scales, own)
            left = right
    elif isinstance(node, ast.Call):
        for argument in node.args:
            yield from walk(argument, scales)
    elif not isinstance(node, ast.Attribute):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.expr):
                yield from walk(child, scales, scale if isinstance(node, (ast.List, ast.Tuple)) else None)


def named_kind(kind: str) -> str:
    """Return a kind of values in words, for error messages."""
    return {"number": "a number", "text": "text", "bool": "true or false", "null": "null"}.get(kind, f"a {kind}")


def error_at(line: str, node: ast.AST, message: str, hint: str | None = None) -> ArgumentError:
    """Return an error that shows a position in a condition."""
    return ArgumentError(shown_at(line, message, getattr(node, "col_offset", 0)), hint=hint, condition=line[:200])


def shown_at(line: str, message: str, column: int) -> str:
    """Return the message with the position in the condition marked."""
    column = len(line.encode()[:column].decode("utf-8", "ignore"))
    start = max(0, column - 80)
    return f"{message}\n    {line[start : start + 160]}\n    {' ' * (column - start)}^"
