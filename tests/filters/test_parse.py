"""The parser: what it accepts, what it says when it refuses, and a fuzz against naive Python."""

from __future__ import annotations

import math

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from winnow.contracts.errors import RecipeError
from winnow.filters import expr as ex
from winnow.filters._parse import MAX_CHARACTERS, MAX_DEPTH, parse_expression

ACCEPTED = {
    "200 <= width <= 4000": "200 <= width and width <= 4000",
    "language in ('en',)": "language in ('en',)",
    "language not in ['en', \"de\"]": "not (language in ('en', 'de'))",
    "a is not None": "not (a is None)",
    "not animated or animated == true": "not (animated) or animated == True",
    "a or b and c": "a or (b and c)",
    "(a or b) and c": "(a or b) and c",
    "a and (b and (c and d))": "a and b and c and d",
    "-1 < - -x / 2 * 3": "-1 < (((0 - (0 - x)) / 2) * 3)",
    "+3 > --4": "3 > 4",
    "abs(a - 1.50) >= 1e-3": "abs(a - 1.5) >= 0.001",
    "length(lower(text)) > 3": "length(lower(text)) > 3",
    "col('image-url') == 'x' and col('width') > 1": "col('image-url') == 'x' and width > 1",
    "a\n  and\r\n b": "a and b",
    "text == '#1' and (a > 1)": "text == '#1' and a > 1",
    "text == 'a) or (b'": "text == 'a) or (b'",
    "h == 18446744073709551615": "h == 18446744073709551615",
}


@pytest.mark.parametrize(("text", "printed"), ACCEPTED.items())
def test_accepts_and_prints(text: str, printed: str) -> None:
    assert str(parse_expression(text)) == printed
    assert str(parse_expression(printed)) == printed


REFUSED = [
    ("", "is empty"),
    (" \n", "is empty"),
    ("a = 3", "character 3: .*compare with =="),
    ("a && b", "character 4: .*write and"),
    ("a || b", "write or"),
    ("!a", "write not"),
    ("a <> 3", "write !="),
    ("a AND b", "small letters"),
    ("a & (b == 1)", "character 1: .*write and"),
    ("~a", "write not"),
    ("a is null", "character 6: .*only None"),
    ("a == None", "character 6: .*is None"),
    ("a != null", "is not None"),
    ("None", "is None"),
    ("a in (None,)", "is None"),
    ("a is True", "compare with =="),
    ("language in ('en')", r"character 14: .*\('en',\)"),
    ("language in 'en'", r"\('en',\)"),
    ("language in ()", "1 to 1000 values"),
    ("language in (width,)", "name is no string"),
    ("len(text) > 3", r"character 1: there is no function 'len'; did you mean length\(\)"),
    ("lowr(text) == 'a'", r"did you mean lower\(\)"),
    ("sqrt(a) > 1", "functions are length, lower, abs"),
    ("length(text, 3) > 1", "exactly one plain argument"),
    ("length(*text) > 1", "exactly one plain argument"),
    ("__import__('os').system('x') == 0", "there is no function"),
    ("text.lower() == 'a'", "exactly one plain argument"),
    ("a.b == 1", "attribute is not allowed; allowed are and, or"),
    ("a[0] == 1", "subscript is not allowed"),
    ("(lambda: 0) == 1", "lambda is not allowed"),
    ("f'{a}' == 'x'", "f-string is not allowed"),
    ("b'x' == a", "is no string, number"),
    ("1j == a", "is no string, number"),
    ("... == a", "is no string, number"),
    ("[x for x in y]", "list comp is not allowed"),
    ("(a := 3) > 1", "named expr is not allowed"),
    ("a if b else c", "if exp is not allowed"),
    ("a ** 2 > 1", "pow is not allowed"),
    ("a % 2 == 1", "mod is not allowed"),
    ("1e999 < a", "too large"),
    (f"a >= {10**400}", "too large"),
    (f"a >= -{10**400}", "too large"),
    ("a < 18446744073709551616", "64 bits"),
    ("a == '\\ud800'", "character 6: .*not valid Unicode"),
    ("a == '\\d'", "invalid escape"),
    ("a > 1 # and b > 2", "character 7: comments"),
    ("a > 1 # first\nand b > 2", "comments"),
    ("a > 1) or (1 == 1", "character 6: unmatched"),
    ("a\x00 > 1", r"character 2: '\\x00' is not allowed"),
    ("a == '''x\ny'''", "cannot span lines"),
    ("caf\u00e9 > 1", r"write col\(\"caf\u00e9\"\)"),
    ("a < b < (c < d)", r"\(c < d\) is a condition"),
    ("abs(a < 1) == 1", "is a condition"),
    ("a < b is None", "a chain may hold"),
    ("col(a) > 1", "name as a string"),
    ("(" * 300 + "a" + ")" * 300, "too many nested"),
    ("-" * 6000 + "1 > a", "nested too deeply"),
    ("not " * 60 + "a", f"more than {MAX_DEPTH} levels"),
    ("a" + ".b" * 3000, "cannot be read|not allowed"),
    ("a" * (MAX_CHARACTERS + 1), "10000 are allowed"),
    ("9" * 5000 + " > a", "character 1"),
]


@pytest.mark.parametrize(("text", "message"), REFUSED)
def test_refuses_with_place_and_fix(text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        parse_expression(text)


def test_position_counts_characters_not_bytes() -> None:
    with pytest.raises(RecipeError, match="at character 15: pow"):
        parse_expression("t == '\u00e9\u65e5' and a ** 2 > 1")


def test_wide_conditions_stay_shallow() -> None:
    """Eight hundred conditions must neither exceed the stack nor the depth limit."""
    parsed = parse_expression(" or ".join(f"a == {i}" for i in range(800)))
    table = pa.table({"a": [0, 799, 800, None]})
    assert ex.evaluate(parsed, table).to_pylist() == [True, True, False, None]


# What is generated below is text of the grammar, and a naive evaluator of the same text's meaning.

Row = dict[str, object]
COLUMNS = {"i": pa.int32(), "f": pa.float64(), "s": pa.string(), "b": pa.bool_()}
strings = st.text(alphabet="abAB '\"\\\n\u00e9", max_size=4)
numbers = st.one_of(st.integers(-5, 5), st.sampled_from([0.0, 0.5, -2.5, 1e3]))


@st.composite
def number_terms(draw: st.DrawFn, depth: int = 2) -> tuple[str, object]:
    """Return (text, function of a row) of a number; None stands for null."""
    kind = draw(st.integers(0, 5 if depth else 2))
    if kind == 0:
        value = draw(numbers)
        return repr(value), lambda row: value
    if kind in (1, 2):
        name = "i" if kind == 1 else "f"
        return name, lambda row: _null_nan(row[name])
    if kind == 3:
        text, function = draw(number_terms(depth - 1))
        return f"abs({text})", lambda row: _lift(abs, function(row))
    if kind == 4:
        text, string = draw(string_terms())
        return f"length({text})", lambda row: _lift(len, string(row))
    op = draw(st.sampled_from("+-*/"))
    (left, f), (right, g) = draw(number_terms(depth - 1)), draw(number_terms(depth - 1))
    return f"({left} {op} {right})", lambda row: _arithmetic(op, f(row), g(row))


@st.composite
def string_terms(draw: st.DrawFn) -> tuple[str, object]:
    if draw(st.booleans()):
        value = draw(strings)
        return repr(value), lambda row: value
    if draw(st.booleans()):
        return "s", lambda row: row["s"]
    return "lower(s)", lambda row: _lift(str.lower, row["s"])


@st.composite
def conditions(draw: st.DrawFn, depth: int = 3) -> tuple[str, object]:
    kind = draw(st.integers(0, 7 if depth else 4))
    terms = number_terms() if draw(st.booleans()) else string_terms()
    if kind == 0:
        return "b", lambda row: row["b"]
    if kind == 1:
        op = draw(st.sampled_from(["==", "!=", "<", "<=", ">", ">="]))
        (left, f), (right, g) = draw(terms), draw(terms)
        return f"{left} {op} {right}", lambda row: _compare(op, f(row), g(row))
    if kind == 2:
        (text, f), word = draw(terms), draw(st.sampled_from(["is", "is not"]))
        return f"{text} {word} None", lambda row: (f(row) is None) == (word == "is")
    if kind == 3:
        values = draw(st.lists(strings, min_size=1, max_size=3))
        word = draw(st.sampled_from(["in", "not in"]))
        text = f"s {word} ({', '.join(map(repr, values))},)"
        return text, lambda row: _lift(lambda v: (v in values) == (word == "in"), row["s"])
    if kind == 4:
        (a, f), (b, g), (c, h) = (draw(number_terms(1)) for _ in range(3))
        return f"{a} <= {b} < {c}", lambda row: _and(
            _compare("<=", f(row), g(row)), _compare("<", g(row), h(row))
        )
    left, f = draw(conditions(depth - 1))
    if kind == 5:
        return f"not ({left})", lambda row: _lift(lambda v: not v, f(row))
    right, g = draw(conditions(depth - 1))
    if kind == 6:
        return f"({left}) and ({right})", lambda row: _and(f(row), g(row))
    return f"({left}) or ({right})", lambda row: _not(_and(_not(f(row)), _not(g(row))))


def _null_nan(value: object) -> object:
    return None if isinstance(value, float) and math.isnan(value) else value


def _lift(function: object, *values: object) -> object:
    return None if None in values else function(*values)


def _not(value: bool | None) -> bool | None:
    return None if value is None else not value


def _and(a: bool | None, b: bool | None) -> bool | None:
    if a is False or b is False:
        return False
    return None if a is None or b is None else True


def _compare(op: str, a: object, b: object) -> bool | None:
    functions = {
        "==": lambda: a == b,
        "!=": lambda: a != b,
        "<": lambda: a < b,
        "<=": lambda: a <= b,
        ">": lambda: a > b,
        ">=": lambda: a >= b,
    }
    return None if a is None or b is None else functions[op]()


def _arithmetic(op: str, a: object, b: object) -> float | None:
    if a is None or b is None:
        return None
    a, b = float(a), float(b)
    if op == "/" and b == 0:
        value = math.nan if a == 0 else math.copysign(math.inf, a) * math.copysign(1.0, b)
    else:
        value = {"+": a + b, "-": a - b, "*": a * b, "/": a / b if b else 0.0}[op]
    return _null_nan(value)


rows = st.fixed_dictionaries(
    {
        "i": st.none() | st.integers(-5, 5),
        "f": st.none() | st.sampled_from([0.0, -0.0, 0.5, -2.5, math.nan, math.inf, -math.inf]),
        "s": st.none() | strings,
        "b": st.none() | st.booleans(),
    }
)


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(conditions(), st.lists(rows, min_size=1, max_size=4))
def test_means_what_python_means(condition: tuple[str, object], table_rows: list[Row]) -> None:
    text, naive = condition
    parsed = parse_expression(text)
    printed = str(parsed)
    assert str(parse_expression(printed)) == printed
    table = pa.table({n: pa.array([r[n] for r in table_rows], t) for n, t in COLUMNS.items()})
    ex.check(parsed, table.schema)
    expected = [naive(row) for row in table_rows]
    assert ex.evaluate(parsed, table).to_pylist() == expected, text
    assert ex.evaluate(parse_expression(printed), table).to_pylist() == expected, printed


pieces = st.sampled_from(
    [*"()[]{},.:;#'\"\\=<>!&|~+-*/%@ \n\t", "and", "or", "not", "in", "is", "None", "true", "a"]
    + ["1", "2.5", "'x'", "==", "<=", "length(", "col(", "lambda ", "if", "else", "\u00e9", "**"]
)


@settings(max_examples=600, deadline=None)
@given(st.one_of(st.text(max_size=30), st.lists(pieces, max_size=14).map(" ".join)))
def test_any_text_parses_or_is_refused(text: str) -> None:
    try:
        parsed = parse_expression(text)
    except RecipeError as error:
        assert len(str(error)) < 1_000
    else:
        assert str(parse_expression(str(parsed))) == str(parsed)
