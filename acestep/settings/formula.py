"""Learning-rate formulas as data: an arithmetic expression is parsed and computed by a whitelist, never executed.

A preset that somebody shares may hold a formula, so nothing in it may reach Python: names, numbers, + - * / ** %,
comparisons, `a if b else c`, and the functions below are all there is.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

VARIABLES = ("step", "total_steps", "progress", "epoch", "total_epochs", "steps_per_epoch", "base_lr")
"""What a formula may use. Steps count from the end of warm-up; `progress` runs from 0 to 1."""

_LONGEST = 500
_DEEPEST = 40


def _clamp(value: float, low: float, high: float) -> float:
    return max(low, min(high, value))


_FUNCTIONS: dict[str, Callable[..., float]] = {
    "sin": math.sin,
    "cos": math.cos,
    "exp": math.exp,
    "log": math.log,
    "sqrt": math.sqrt,
    "pow": math.pow,
    "min": min,
    "max": max,
    "abs": abs,
    "clamp": _clamp,
}
_ARGUMENTS = {"pow": (2, 2), "min": (2, 99), "max": (2, 99), "clamp": (3, 3), "log": (1, 2)}
"""The least and the most arguments of the functions that take more than one."""
_CONSTANTS = {"pi": math.pi, "e": math.e}
_BINARY: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: math.pow,  # on floats: no numbers of a million digits
}
_UNARY: dict[type[ast.unaryop], Callable[[float], float]] = {ast.UAdd: operator.pos, ast.USub: operator.neg}
_COMPARE: dict[type[ast.cmpop], Callable[[float, float], bool]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}


class Formula:
    """A parsed formula. Raises ValueError with a sentence when the text is anything but arithmetic."""

    def __init__(self, text: str) -> None:
        if not text.strip():
            raise ValueError("the formula is empty")
        if len(text) > _LONGEST:
            raise ValueError(f"the formula is longer than {_LONGEST} characters")
        try:
            self._tree = ast.parse(text.strip(), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise ValueError("the formula is not an arithmetic expression") from error
        _check(self._tree, 0)

    def __call__(self, values: Mapping[str, float]) -> float:
        """The formula's value; NaN where it has none (division by zero, a root of a negative number)."""
        try:
            return float(_value(self._tree, {**_CONSTANTS, **values}))
        except (ArithmeticError, ValueError, TypeError):
            return math.nan


def _check(node: ast.AST, depth: int) -> None:
    """Refuse every node that is not on the list, before anything is computed."""
    if depth > _DEEPEST:
        raise ValueError("the formula is nested too deeply")
    if isinstance(node, ast.Constant):
        if isinstance(node.value, bool) or not isinstance(node.value, int | float):
            raise ValueError(f"{node.value!r} is not a number")
        return
    if isinstance(node, ast.Name):
        if node.id not in VARIABLES and node.id not in _CONSTANTS:
            raise ValueError(f'there is no "{node.id}"; known are {", ".join(VARIABLES)}, pi and e')
        return
    if isinstance(node, ast.Call):
        if not isinstance(node.func, ast.Name) or node.func.id not in _FUNCTIONS or node.keywords:
            raise ValueError(f"only these functions may be called: {', '.join(_FUNCTIONS)}")
        least, most = _ARGUMENTS.get(node.func.id, (1, 1))
        if not least <= len(node.args) <= most:
            count = f"{least}" if least == most else f"at least {least}"
            raise ValueError(f"{node.func.id} takes {count} numbers, not {len(node.args)}")
        children: list[ast.AST] = list(node.args)
    else:
        children = _operands(node)
    for child in children:
        _check(child, depth + 1)


def _operands(node: ast.AST) -> list[ast.AST]:
    if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
        return [node.left, node.right]
    if isinstance(node, ast.UnaryOp) and type(node.op) in _UNARY:
        return [node.operand]
    if isinstance(node, ast.Compare) and all(type(kind) in _COMPARE for kind in node.ops):
        return [node.left, *node.comparators]
    if isinstance(node, ast.IfExp):
        return [node.test, node.body, node.orelse]
    raise ValueError(f"{type(node).__name__} is not allowed in a formula")


def _value(node: ast.AST, values: Mapping[str, float]) -> Any:
    if isinstance(node, ast.Constant):
        return float(node.value)  # type: ignore[arg-type]  # _check let only numbers through
    if isinstance(node, ast.Name):
        return values[node.id]
    if isinstance(node, ast.Call):
        return _FUNCTIONS[node.func.id](*(_value(item, values) for item in node.args))  # type: ignore[attr-defined]
    if isinstance(node, ast.BinOp):
        return _BINARY[type(node.op)](_value(node.left, values), _value(node.right, values))
    if isinstance(node, ast.UnaryOp):
        return _UNARY[type(node.op)](_value(node.operand, values))
    if isinstance(node, ast.IfExp):
        return _value(node.body if _value(node.test, values) else node.orelse, values)
    assert isinstance(node, ast.Compare)
    items = [_value(item, values) for item in (node.left, *node.comparators)]
    return all(_COMPARE[type(kind)](one, two) for kind, one, two in zip(node.ops, items, items[1:], strict=False))
