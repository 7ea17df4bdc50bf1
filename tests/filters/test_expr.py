"""Expressions: types, null semantics, literals, and work that stays linear in the text."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from winnow.contracts.errors import RecipeError
from winnow.filters.expr import (
    Compare,
    Constant,
    Expr,
    IsIn,
    Not,
    all_of,
    check,
    col,
    evaluate,
    literal,
)

NAN = float("nan")
TABLE = pa.table(
    {
        "score": pa.array([0.9, None, NAN, -1.0], pa.float32()),
        "half": pa.array([1.5, None, NAN, -1.0], pa.float16()),
        "big": pa.array([2**60 + 1, None, -1, 2**63 - 1], pa.int64()),
        "hash": pa.array([2**64 - 1, None, 0, 2**63], pa.uint64()),
        "tiny": pa.array([-128, None, 127, 0], pa.int8()),
        "word": pa.array(["a", None, "B", ""], pa.string()),
        "long": pa.array(["a", None, "b", ""], pa.large_string()),
        "code": pa.array(["a", None, "B", ""]).dictionary_encode(),
        "rank": pa.array([3, None, 4, 3]).dictionary_encode(),
        "flag": pa.array([True, None, False, True]),
        "blob": pa.array([b"a", None, b"", b""], pa.large_binary()),
        "a b": pa.array([1, None, 2, 3]),
    }
)


def _values(expr: Expr) -> list[bool | None]:
    check(expr, TABLE.schema)
    return evaluate(expr, TABLE).to_pylist()


T, F, N = True, False, None


@pytest.mark.parametrize(
    ("expr", "expected"),
    [
        (col("score") >= 0.9, [T, N, N, F]),  # float32 0.9 is below float64 0.9
        (literal(0.9) <= col("score"), [T, N, N, F]),
        (col("score").is_in((0.9,)), [T, N, N, F]),
        (col("score").is_null(), [F, T, T, F]),
        (col("score") > -(10**18), [T, N, N, T]),
        (col("half") > 1, [T, N, N, F]),
        (col("big") > 1.5, [T, N, F, T]),
        (col("big") == 2**60 + 1, [T, N, F, F]),
        (col("big") == float(2**60), [F, N, F, F]),  # not equal, though float64 rounds to it
        (col("big") < 2**63, [T, N, T, T]),
        (col("big") + 1 > 2, [T, N, F, T]),
        (col("hash") == 2**64 - 1, [T, N, F, F]),
        (col("hash") > -1, [T, N, T, T]),
        (col("hash") >= col("big"), [T, N, T, T]),
        (col("hash").is_in((0, 2**63)), [F, N, T, T]),
        (col("tiny") > 1000, [F, N, F, F]),
        (col("tiny") * col("tiny") == 16384, [T, N, F, F]),
        (col("tiny").is_in((127, 0.5, 1e300)), [F, N, T, F]),
        (col("word") == "a", [T, N, F, F]),
        (col("word") == col("long"), [T, N, F, T]),
        (col("word") == col("code"), [T, N, T, T]),
        (col("code") == "a", [T, N, F, F]),
        (col("rank") == 3, [T, N, F, T]),
        (col("rank") + 1 == 4, [T, N, F, T]),
        (col("long").is_in(("b", "")), [F, N, T, T]),
        (col("word").is_in(()), [F, N, F, F]),
        (col("blob").is_null(), [F, T, F, F]),
        (col("flag") == False, [F, N, T, F]),  # noqa: E712 builds a node
        (~col("flag"), [F, N, T, F]),
        (col("flag") | (col("score") < 0), [T, N, N, T]),
        (col("flag") & (col("score") < 0), [F, N, F, T]),
        (col("score") / 0 > 1, [T, N, N, F]),
        ((col("score") - col("score")) / 0 > 1, [N, N, N, N]),
        ((col("score") * 0 / 0).is_null(), [T, T, T, T]),
        (literal(1) < 2, [T, T, T, T]),
        (literal(2**63) > 1, [T, T, T, T]),
        (Compare("==", ~col("flag"), col("score").is_null()), [T, N, T, T]),
    ],
)
def test_values(expr: Expr, expected: list[bool | None]) -> None:
    assert _values(expr) == expected


@pytest.mark.parametrize(
    ("expr", "message"),
    [
        (col("scores") > 1, "no column 'scores'; columns here: score, half"),
        (col("blob") == "a", "large_binary, which cannot be compared"),
        (col("word") > 1, "word is a string, 1 is a number"),
        (col("flag") < True, "no order"),
        (col("word") + 1 > 1, "word is not a number"),
        (col("score") & col("flag"), "score is a number, not a condition"),
        (Not(col("word")), "word is not a condition"),
        (col("word").is_in(("a", 1)), "1 is a number"),
        (col("score") + 1, "not a condition"),
    ],
)
def test_type_errors_name_the_part(expr: Expr, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        check(expr, TABLE.schema)


@pytest.mark.parametrize(
    ("value", "message"), [(NAN, "is None"), (2**64, "64 bits"), (None, "None"), ([1], "not a")]
)
def test_literals_that_mean_nothing(value: object, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        literal(value)


def test_has_no_truth_value() -> None:
    with pytest.raises(TypeError, match="use & | ~"):
        bool(col("a") > 1 and col("b") > 1)


@pytest.mark.parametrize(
    ("expr", "text"),
    [
        (Compare("==", Not(col("a")), col("b")), "(not (a)) == b"),
        (col("a").is_null().is_null(), "(a is None) is None"),
        (IsIn(col("a"), ("x",)), "a in ('x',)"),
        (col("a b") > 1, "col('a b') > 1"),
        (col("true") == "and", "col('true') == 'and'"),
        (all_of(col("a"), col("b"), col("c")), "a and b and c"),
        ((col("a") | col("b")) & ~(col("c") > Constant(1)), "(a or b) and not (c > 1)"),
    ],
)
def test_prints_unambiguously(expr: Expr, text: str) -> None:
    assert str(expr) == text


def test_long_sums_and_nested_conditions_are_linear() -> None:
    """Each level used to double the work: thirty levels would never end."""
    total: Expr = literal(0)
    for _ in range(30):
        total = total + col("rank")
    assert _values(total == 90) == [T, N, F, T]
    nested: Expr = col("flag")
    for _ in range(30):
        nested = Compare("==", nested, literal(True))
    assert _values(nested) == [T, N, F, T]


def test_a_thousand_values_in_a_list() -> None:
    assert _values(col("rank").is_in(tuple(range(4, 1_004)))) == [F, N, T, F]


integers = st.one_of(
    st.integers(-(2**63), 2**64 - 1),
    st.sampled_from([-(2**63), -1, 0, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1]),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(integers, min_size=1, max_size=4), integers)
def test_integers_compare_exactly(values: list[int], bound: int) -> None:
    kind = pa.uint64() if min(values) >= 0 else pa.int64()
    values = [v for v in values if kind == pa.uint64() or v < 2**63]
    table = pa.table({"v": pa.array(values, kind)})
    assert evaluate(col("v") < bound, table).to_pylist() == [v < bound for v in values]
    assert evaluate(col("v") == bound, table).to_pylist() == [v == bound for v in values]
    signed = table.append_column("w", pa.array([-1] * len(values), pa.int8()))
    assert evaluate(col("w") < col("v"), signed).to_pylist() == [v > -1 for v in values]


def test_chunks_are_kept_in_order() -> None:
    chunks = pa.concat_tables([TABLE.slice(2), TABLE.slice(0, 2)])
    assert evaluate(col("tiny") > 0, chunks).to_pylist() == [T, F, F, N]
