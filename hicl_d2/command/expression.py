"""The one expression of Mask2Former's config files, computed without running code.

Its files write the short sides of training images as ``[int(x * 0.1 * 512) for x in range(5, 21)]`` below a tag that asks
YAML to evaluate Python. Such a list is computed here from its syntax tree: arithmetic on numbers and the counting variable,
``int``, ``float`` and ``round``, and nothing else.
"""

import ast
import operator
from collections.abc import Callable
from typing import Any

Number = int | float
OPERATIONS: dict[type[ast.operator | ast.unaryop], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
}
FUNCTIONS: dict[str, Callable[[Any], Any]] = {"int": int, "float": float, "round": round}
# Lengths of the text and of the list, and the size of a number, above which nothing is computed.
MOST_CHARACTERS, MOST_ELEMENTS, LARGEST = 200, 1000, 1e9


def list_of_range(text: str) -> list[Number]:
    """Return the list that ``text`` stands for: ``[EXPRESSION for NAME in range(...)]``.

    The numbers are those that Python computes. Raises ValueError for any other text, and for a list or a number that is
    too large.
    """
    if len(text) > MOST_CHARACTERS:
        raise ValueError(f"it is longer than {MOST_CHARACTERS} characters")
    try:
        node = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise ValueError("it is no expression") from None
    if not isinstance(node, ast.ListComp) or len(node.generators) != 1:
        raise ValueError("it is no list over one range")
    (loop,) = node.generators
    if loop.ifs or loop.is_async or not isinstance(loop.target, ast.Name):
        raise ValueError("it is no list over one range")
    name = loop.target.id
    try:
        return [_number(node.elt, {name: value}) for value in _range(loop.iter)]
    except (ArithmeticError, TypeError):
        raise ValueError("it cannot be computed") from None


def _range(node: ast.expr) -> range:
    if not isinstance(node, ast.Call) or node.keywords or not isinstance(node.func, ast.Name):
        raise ValueError("it is no list over one range")
    if node.func.id != "range" or not 1 <= len(node.args) <= 3:
        raise ValueError("it is no list over one range")
    steps = range(*(_number(argument, {}) for argument in node.args))  # type: ignore[arg-type]
    if len(steps) > MOST_ELEMENTS:
        raise ValueError(f"it has more than {MOST_ELEMENTS} elements")
    return steps


def _number(node: ast.expr, names: dict[str, Number]) -> Number:
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        value: Any = node.value
    elif isinstance(node, ast.Name) and node.id in names:
        value = names[node.id]
    elif isinstance(node, ast.BinOp) and type(node.op) in OPERATIONS:
        value = OPERATIONS[type(node.op)](_number(node.left, names), _number(node.right, names))
    elif isinstance(node, ast.UnaryOp) and type(node.op) in OPERATIONS:
        value = OPERATIONS[type(node.op)](_number(node.operand, names))
    elif _is_conversion(node):
        (argument,) = node.args  # type: ignore[attr-defined]
        value = FUNCTIONS[node.func.id](_number(argument, names))  # type: ignore[attr-defined]
    else:
        raise ValueError("it holds more than arithmetic")
    if not abs(value) <= LARGEST:
        raise ValueError(f"it has a number beyond {LARGEST:.0e}")
    return value


def _is_conversion(node: ast.expr) -> bool:
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in FUNCTIONS
        and len(node.args) == 1
        and not node.keywords
    )
