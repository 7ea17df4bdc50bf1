"""The text form of an expression: Python's grammar, a white list of its nodes, never ``eval``.

    num_words > 2 and 200 <= width <= 4000
    language in ("en", "de") or caption_occurrences is None
    length(lower(text)) >= 5 and not animated

Grammar: ``and or not``, comparisons (chains too), ``in`` and ``not in`` a list of literals,
``is None``, ``is not None``, ``+ - * /``, the functions of ``winnow.filters.expr``, ``col("any
name")`` for a column that is no plain word, string and number literals, ``true`` and ``false``.
What ``str`` prints of a parsed expression parses to the same expression.
"""

from __future__ import annotations

import ast
import difflib
import re
import sys
import warnings
from collections.abc import Sequence

from winnow.contracts.errors import RecipeError
from winnow.filters.expr import (
    FUNCTIONS,
    Arithmetic,
    Call,
    Column,
    Compare,
    Constant,
    Expr,
    IsIn,
    IsNull,
    Logic,
    Not,
    Value,
    col,
    literal,
)

MAX_CHARACTERS = 10_000
MAX_DEPTH = 40
MAX_LIST = 1_000

_COMPARISONS = {
    ast.Eq: "==",
    ast.NotEq: "!=",
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
}
_OPERATORS = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}
_ALLOWED = (
    "and, or, not, == != < <= > >=, in (...), is None, + - * /, "
    + ", ".join(f"{name}()" for name in FUNCTIONS)
    + ', col("name"), column names, strings, numbers, true, false'
)
_BITWISE = {ast.BitAnd: "and", ast.BitOr: "or", ast.Invert: "not"}
_OTHER_NAMES = {"len": "length", "lowercase": "lower", "lcase": "lower", "absolute": "abs"}
_CONDITIONS = (Compare, Logic, Not, IsNull, IsIn)
_HINTS = (
    (re.compile(r"(?<![=!<>])=(?!=)"), "compare with =="),
    (re.compile(r"&&"), "write and"),
    (re.compile(r"\|\|"), "write or"),
    (re.compile(r"!(?!=)"), "write not"),
    (re.compile(r"<>"), "write !="),
    (re.compile(r"\b(AND|OR|NOT|IN|IS)\b"), "write and, or, not, in, is in small letters"),
    (re.compile(r"\b(is\s+(not\s+)?null|IS\s+(NOT\s+)?NULL)\b"), "write is None"),
)
_STRINGS = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"")


def parse_expression(text: str) -> Expr:
    """Return the expression that ``text`` writes.

    Fails: RecipeError with the character (from 1), what stands there, what is allowed and the
    nearest valid thing. Names and types of columns are checked later, by ``expr.check``.
    """
    source = re.sub(r"[\r\n\f]", " ", text).strip()
    _check_text(text, source)
    tree = _python_tree(source)
    try:
        expr = _Parser(source).expression(tree, MAX_DEPTH)
    except RecursionError:  # str() and the visitor recurse; the caller's stack may be deep
        msg = f"{source!r:.200} is nested too deeply"
        raise RecipeError(msg) from None
    if len(str(expr)) > MAX_CHARACTERS:
        msg = f"the expression is longer than {MAX_CHARACTERS} characters when written out"
        raise RecipeError(msg)
    return expr


def _check_text(text: str, source: str) -> None:
    if not source:
        msg = 'the expression is empty; write a condition such as "width >= 200"'
        raise RecipeError(msg)
    if len(text) > MAX_CHARACTERS:
        msg = f"the expression has {len(text)} characters; {MAX_CHARACTERS} are allowed"
        raise RecipeError(msg)
    if source != text.strip() and ("'''" in text or '"""' in text):
        msg = "a string cannot span lines; write \\n in it"
        raise RecipeError(msg)
    if not source.isprintable():
        bad = next(i for i, c in enumerate(source) if not c.isprintable())
        raise _error(source, bad, f"{source[bad]!r} is not allowed; write it as an escape")


def _python_tree(source: str) -> ast.expr:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # an unknown escape such as \d is a mistake
        try:
            tree = ast.parse(source, mode="eval").body
        except SyntaxError as error:
            at = max((error.offset or 1) - 1, 0) if (error.lineno or 1) == 1 else len(source)
            message = (error.msg or "invalid syntax").split("(")[0].strip()
            raise _error(source, at, f"{message}{_hint(source)}") from None
        except (ValueError, RecursionError, MemoryError, Warning) as error:
            raise _error(
                source, 0, f"cannot be read: {str(error) or 'nested too deeply'}"
            ) from None
    rest = _position(source, tree.end_lineno or 1, tree.end_col_offset or 0)
    if "#" in source[rest:]:
        raise _error(source, source.index("#", rest), "comments are not allowed here")
    return tree


class _Parser:
    """Turns white-listed nodes of Python's syntax tree into expressions."""

    def __init__(self, source: str) -> None:
        self._source = source

    def expression(self, node: ast.expr, depth: int) -> Expr:
        """Return the expression of any node; ``depth`` more levels are allowed."""
        if depth <= 0:
            raise self._error(node, f"more than {MAX_DEPTH} levels of nesting")
        match node:
            case ast.BoolOp():
                return self._logic(node, depth)
            case ast.Compare():
                return self._comparison(node, depth)
            case ast.UnaryOp():
                return self._unary(node, depth)
            case ast.BinOp():
                return self._arithmetic(node, depth)
            case ast.Call():
                return self._call(node, depth)
            case ast.Name(id=name) if name not in ("true", "false"):
                if not name.isascii():
                    raise self._error(node, f'write col("{name}") for a name beyond ASCII')
                return col(name)
            case ast.Name() | ast.Constant():
                return Constant(self._literal(node))
        raise self._error(node, f"{_describe(node)} is not allowed; allowed are {_ALLOWED}")

    def _logic(self, node: ast.BoolOp, depth: int) -> Expr:
        op = type(node.op)
        operands: list[Expr] = []
        for value in node.values:
            nested = isinstance(value, ast.BoolOp) and type(value.op) is op
            part = self.expression(value, depth - 1)
            operands += _flat(part) if nested and isinstance(part, Logic) else [part]
        return _balanced("and" if op is ast.And else "or", operands)

    def _comparison(self, node: ast.Compare, depth: int) -> Expr:
        sides: list[ast.expr] = [node.left, *node.comparators]
        parts: list[Expr] = []
        for left, op, right in zip(sides, node.ops, node.comparators, strict=False):
            if len(node.ops) > 1 and not isinstance(op, tuple(_COMPARISONS)):
                raise self._error(right, "a chain may hold == != < <= > >= only; join with and")
            part = self._one_comparison(left, op, right, depth)
            if len(node.ops) > 1 and isinstance(part, Compare):
                self._values_only(node, part.left, part.right)
            parts.append(part)
        return _balanced("and", parts)

    def _one_comparison(self, left: ast.expr, op: ast.cmpop, right: ast.expr, depth: int) -> Expr:
        child = self.expression(left, depth - 1)
        if isinstance(op, ast.Is | ast.IsNot):
            if not (isinstance(right, ast.Constant) and right.value is None):
                raise self._error(right, "after is only None may stand; compare with ==")
            return IsNull(child) if isinstance(op, ast.Is) else Not(IsNull(child))
        if isinstance(op, ast.In | ast.NotIn):
            self._values_only(left, child)
            found = IsIn(child, self._list(right))
            return found if isinstance(op, ast.In) else Not(found)
        for side in (left, right):
            if _is_null(side):
                raise self._error(side, "nothing equals null; write is None or is not None")
        return Compare(_COMPARISONS[type(op)], child, self.expression(right, depth - 1))

    def _unary(self, node: ast.UnaryOp, depth: int) -> Expr:
        if isinstance(node.op, ast.Not):
            return Not(self.expression(node.operand, depth - 1))
        if isinstance(node.op, ast.Invert):
            raise self._error(node, "~ is not allowed; write not")
        value = _number(node)
        if value is not None:
            return Constant(self._checked(node, value))
        child = self.expression(node.operand, depth - 1)
        self._values_only(node, child)
        return Arithmetic("-", Constant(0), child) if isinstance(node.op, ast.USub) else child

    def _arithmetic(self, node: ast.BinOp, depth: int) -> Expr:
        op = _OPERATORS.get(type(node.op))
        if op is None:
            word = _BITWISE.get(type(node.op))
            hint = f"write {word}" if word else f"allowed are {_ALLOWED}"
            raise self._error(node, f"{_describe(node.op)} is not allowed; {hint}")
        left, right = (self.expression(n, depth - 1) for n in (node.left, node.right))
        self._values_only(node, left, right)
        return Arithmetic(op, left, right)

    def _call(self, node: ast.Call, depth: int) -> Expr:
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        if node.keywords or len(node.args) != 1 or isinstance(node.args[0], ast.Starred):
            raise self._error(node, f"{name or 'a function'} takes exactly one plain argument")
        if name == "col":
            return Column(self._column_name(node.args[0]))
        if name not in FUNCTIONS:
            near = difflib.get_close_matches(name.lower(), FUNCTIONS, n=1, cutoff=0.5)
            hint = _OTHER_NAMES.get(name.lower()) or (near[0] if near else "")
            known = ", ".join(FUNCTIONS)
            end = f"did you mean {hint}()?" if hint else f"functions are {known}"
            raise self._error(node, f"there is no function {name or _describe(node.func)!r}; {end}")
        child = self.expression(node.args[0], depth - 1)
        self._values_only(node, child)
        return Call(name, child)

    def _column_name(self, node: ast.expr) -> str:
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value:
            return str(self._checked(node, node.value))
        raise self._error(node, 'col() takes the column\'s name as a string: col("some name")')

    def _list(self, node: ast.expr) -> tuple[Value, ...]:
        if not isinstance(node, ast.Tuple | ast.List | ast.Set):
            inside = ast.get_source_segment(self._source, node) or "..."
            raise self._error(node, f"in takes a list; for one value write ({inside:.100},)")
        if not 1 <= len(node.elts) <= MAX_LIST:
            raise self._error(node, f"a list has 1 to {MAX_LIST} values, not {len(node.elts)}")
        return tuple(self._literal(element) for element in node.elts)

    def _literal(self, node: ast.expr) -> Value:
        match node:
            case ast.Name(id="true" | "false"):
                return bool(node.id == "true")
            case ast.Constant(value=str() | bool() | int() | float() as value):
                return self._checked(node, value)
            case ast.Constant(value=None):
                raise self._error(node, "null is no value; write is None or is not None")
            case ast.UnaryOp() if (number := _number(node)) is not None:
                return self._checked(node, number)
        raise self._error(node, f"{_describe(node)} is no string, number, true or false")

    def _checked(self, node: ast.expr, value: Value) -> Value:
        if not isinstance(value, str) and abs(value) > sys.float_info.max:
            raise self._error(node, "the number is too large for float64")
        if isinstance(value, str):
            try:
                value.encode()
            except UnicodeEncodeError:
                raise self._error(node, "the string is not valid Unicode") from None
        try:
            literal(value)
        except RecipeError as error:
            raise self._error(node, error.message) from None
        return value

    def _values_only(self, node: ast.expr, *parts: Expr) -> None:
        for part in parts:
            if isinstance(part, _CONDITIONS):
                raise self._error(node, f"({str(part):.100}) is a condition, not a value")

    def _error(self, node: ast.expr, problem: str) -> RecipeError:
        at = _position(self._source, node.lineno, node.col_offset)
        return _error(self._source, at, problem)


def _flat(expr: Expr) -> list[Expr]:
    """Return the operands of a tree of one logical operator, left to right."""
    if not isinstance(expr, Logic):
        return [expr]
    left = _flat(expr.left) if _same(expr, expr.left) else [expr.left]
    right = _flat(expr.right) if _same(expr, expr.right) else [expr.right]
    return left + right


def _same(expr: Logic, side: Expr) -> bool:
    return isinstance(side, Logic) and side.op == expr.op


def _balanced(op: str, parts: Sequence[Expr]) -> Expr:
    """Join as a balanced tree: everything that walks an expression recurses over its depth."""
    if len(parts) == 1:
        return parts[0]
    middle = len(parts) // 2
    left, right = _balanced(op, parts[:middle]), _balanced(op, parts[middle:])
    return Logic("and" if op == "and" else "or", left, right)


def _number(node: ast.expr) -> int | float | None:
    """Return the value of a number with any signs before it."""
    signs = 0
    while isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        signs += isinstance(node.op, ast.USub)
        node = node.operand
    if not isinstance(node, ast.Constant) or not isinstance(node.value, int | float):
        return None
    if isinstance(node.value, bool):
        return None
    return -node.value if signs % 2 else node.value


def _is_null(node: ast.expr) -> bool:
    if isinstance(node, ast.Name):
        return node.id.lower() in ("null", "nan", "none", "nil")
    return isinstance(node, ast.Constant) and node.value is None


def _describe(node: ast.AST) -> str:
    words = re.sub(r"(?<!^)(?=[A-Z])", " ", type(node).__name__).lower()
    return {"joined str": "an f-string", "bin op": "this operator"}.get(words, words)


def _hint(source: str) -> str:
    code = _STRINGS.sub(lambda m: '"' + " " * (len(m.group()) - 2) + '"', source)
    hints = [hint for pattern, hint in _HINTS if pattern.search(code)]
    return f"; {hints[0]}" if hints else f"; allowed are {_ALLOWED}"


def _position(source: str, line: int, byte_offset: int) -> int:
    """Return the index of a character from the byte offset that ``ast`` gives."""
    if line > 1:
        return len(source)
    return len(source.encode("utf-8", "surrogatepass")[:byte_offset].decode("utf-8", "ignore"))


def _error(source: str, at: int, problem: str) -> RecipeError:
    start = max(0, min(at, len(source)) - 30)
    shown = source if len(source) <= 80 else f"...{source[start : start + 60]}..."
    return RecipeError(f"in {shown!r} at character {at + 1}: {problem}")
