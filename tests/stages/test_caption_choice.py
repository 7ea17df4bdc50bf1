"""caption_choice against a naive loop over random rows, and its edge cases by hand."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from winnow.contracts.errors import RecipeError
from winnow.contracts.identity import row_uid, stable_hash64
from winnow.contracts.parameters import validate
from winnow.filters import expr as ex
from winnow.filters.has_caption import has_caption
from winnow.stages.caption_choice import CaptionChoice

POLICIES = ("raw", "synthetic", "better", "all_passing", "raw_else_synthetic_else_drop", "mix")
NUM_ROWS = 600
TEXTS = pa.list_(pa.string())


def batch(rows: list[dict[str, Any]]) -> pa.RecordBatch:
    """Rows with text, score, synthetic, scores, unsupported; what is left out is null."""
    schema = pa.schema(
        {
            "uid": pa.binary(16),
            "text": pa.string(),
            "clip_score": pa.float32(),
            "synthetic_captions": TEXTS,
            "caption_scores": pa.list_(pa.float32()),
            "unsupported": pa.list_(TEXTS),
        }
    )
    numbered = [{"uid": row_uid(i), **row} for i, row in enumerate(rows)]
    return pa.RecordBatch.from_pylist(numbered, schema=schema)


def chosen(rows: list[dict[str, Any]], **parameters: Any) -> list[dict[str, Any]]:
    """Annotate; the columns without their prefix."""
    stage = CaptionChoice(**validate(CaptionChoice, parameters))
    out = stage.annotate(batch(rows), None, None)  # type: ignore[arg-type]
    assert out.schema.equals(stage.writes)
    out.validate(full=True)
    short = [name.removeprefix("chosen_caption").lstrip("_") or "text" for name in out.schema.names]
    return out.rename_columns(short).to_pylist()


def random_rows(seed: int) -> list[dict[str, Any]]:
    """Few texts and few scores, so that equal ones meet; nulls and NaN everywhere."""
    draw = random.Random(seed)
    texts = ["a cat", "a dog", "two red cars", "", " \t", None]
    scores = [0.1, 0.2, 0.28, 0.28, 0.3, float("nan"), None]

    def row() -> dict[str, Any]:
        count = draw.randrange(4)
        return {
            "text": draw.choice(texts),
            "clip_score": draw.choice(scores),
            "synthetic_captions": draw.choice([None, *[draw.choices(texts, k=count)] * 3]),
            "caption_scores": draw.choice(
                [None, *[draw.choices(scores, k=draw.choice([count, count, 1]))] * 4]
            ),
            "unsupported": draw.choice(
                [None, [draw.choice([None, [], ["owl"]]) for _ in range(count)]]
            ),
        }

    return [row() for _ in range(NUM_ROWS)]


def naive(row: dict[str, Any], index: int, policy: str, threshold: float | None) -> list[Any]:
    """The taken captions as (text, score, source), best first; written from the table alone."""
    everything = []
    if policy != "synthetic":
        everything.append(("raw", row["text"], row["clip_score"], None))
    if policy != "raw":
        for place, text in enumerate(row["synthetic_captions"] or []):
            given = row["caption_scores"] or []
            names = row["unsupported"] or []
            score = given[place] if len(given) > place else None
            everything.append(
                ("synthetic", text, score, names[place] if len(names) > place else None)
            )
    there, taken = [], []
    for source, text, score, names in everything:
        if text is None or text.strip() == "":
            continue
        if score is not None and math.isnan(score):
            score = None
        there.append(text)
        if names:
            continue
        if threshold is None or (score is not None and np.float32(score) >= np.float32(threshold)):
            taken.append((text, score, source))
    sources = {s: [c for c in taken if c[2] == s] for s in ("raw", "synthetic")}
    if policy == "raw_else_synthetic_else_drop":
        taken = sources["raw"] if sources["raw"] else sources["synthetic"]
    if policy == "mix":
        fraction = stable_hash64("caption_choice", 5, row_uid(index)) / 2**64
        first, second = ("synthetic", "raw") if fraction < 0.3 else ("raw", "synthetic")
        taken = sources[first] if sources[first] else sources[second]
    result: list[Any] = []
    remaining = list(taken)
    while remaining:  # selection sort: the first of the greatest
        best = remaining[0]
        for other in remaining[1:]:
            if (-math.inf if other[1] is None else other[1]) > (
                -math.inf if best[1] is None else best[1]
            ):
                best = other
        remaining.remove(best)
        if best[0] not in [r[0] for r in result]:
            result.append(best)
    if policy == "better":
        result = [r for r in result if r[2] == result[0][2]]
    return [there, result]


@pytest.mark.parametrize("threshold", [None, 0.28])
@pytest.mark.parametrize("policy", POLICIES)
def test_each_policy_equals_a_naive_loop(policy: str, threshold: float | None) -> None:
    if policy == "raw_else_synthetic_else_drop" and threshold is None:
        threshold = 0.2
    rows = random_rows(7)
    parameters = {"policy": policy, "threshold": threshold, "share": 0.3, "seed": 5}
    found = chosen(rows, unsupported="unsupported", **parameters)
    seen = set()
    for index, (row, out) in enumerate(zip(rows, found, strict=True)):
        there, taken = naive(row, index, policy, threshold)
        expected: dict[str, Any] = dict.fromkeys(("text", "all", "source", "score"))
        expected["error"] = "no_caption" if there else "missing"
        if taken:
            score = None if taken[0][1] is None else float(np.float32(taken[0][1]))
            expected = {"text": taken[0][0], "all": [c[0] for c in taken], "source": taken[0][2]}
            expected |= {"score": score, "error": None}
        assert out == expected, (row, parameters)
        seen.add((out["source"], out["error"]))
    assert {(None, "missing")} < seen  # and something was chosen


def test_equal_scores_take_the_raw_caption() -> None:
    row = {"text": "raw", "clip_score": 0.3, "synthetic_captions": ["a", "b"]}
    (tie,) = chosen([row | {"caption_scores": [0.3, 0.3]}])
    assert (tie["text"], tie["source"], tie["all"]) == ("raw", "raw", ["raw"])
    (all_,) = chosen([row | {"caption_scores": [0.3, 0.4]}], policy="all_passing")
    assert all_["all"] == ["b", "raw", "a"]


def test_nan_is_null_and_a_null_of_one_source_never_loses_the_other() -> None:
    both = {"text": "raw", "clip_score": 0.1, "synthetic_captions": ["s"], "caption_scores": [0.1]}
    rows: list[dict[str, Any]] = [
        both | {"clip_score": math.nan},
        both | {"caption_scores": [math.nan]},
        both | {"synthetic_captions": None},
        both | {"text": None, "synthetic_captions": [None, "s"], "caption_scores": None},
    ]
    found = chosen(rows)
    assert [r["text"] for r in found] == ["s", "raw", "raw", "s"]
    assert found[3]["score"] is None
    scored = chosen(rows, policy="raw_else_synthetic_else_drop", threshold=0.05)
    assert [r["text"] for r in scored] == ["s", "raw", "raw", None]
    assert scored[3]["error"] == "no_caption"


def test_the_threshold_is_compared_as_float32() -> None:
    (row,) = chosen([{"text": "raw", "clip_score": 0.9}], policy="raw", threshold=0.9)
    assert row["text"] == "raw"
    assert float(np.float32(0.9)) < 0.9  # as float64 it would not pass


def test_raw_else_synthetic_else_drop_uses_one_threshold() -> None:
    synthetic = {"synthetic_captions": ["s", "t"], "caption_scores": [0.2, 0.4]}
    rows = [
        {"text": "raw", "clip_score": 0.3, **synthetic},
        {"text": "raw", "clip_score": 0.29, **synthetic},
        {"text": "raw", "clip_score": 0.29, "synthetic_captions": ["s"], "caption_scores": [0.29]},
    ]
    found = chosen(rows, policy="raw_else_synthetic_else_drop", threshold=0.3)
    assert [r["text"] for r in found] == ["raw", "t", None]
    assert found[2]["error"] == "no_caption"


def test_a_mix_draws_its_share_by_uid_alone() -> None:
    row = {"text": "r", "clip_score": 0.9, "synthetic_captions": ["s"], "caption_scores": [0.1]}
    rows = [row] * 2000
    first = [r["source"] for r in chosen(rows, policy="mix", share=0.25)]
    assert 0.21 < first.count("synthetic") / 2000 < 0.29
    assert [r["source"] for r in chosen(rows, policy="mix", share=0.25)] == first
    assert [r["source"] for r in chosen(rows, policy="mix", share=0.25, seed=1)] != first
    half = [r["source"] for r in chosen(rows, policy="mix", share=0.5)]
    assert all(b == "synthetic" for a, b in zip(first, half, strict=True) if a == "synthetic")
    for share, source in ((0.0, "raw"), (1.0, "synthetic")):
        assert {r["source"] for r in chosen(rows, policy="mix", share=share)} == {source}


def test_a_caption_with_an_unsupported_object_does_not_pass() -> None:
    row = {"synthetic_captions": ["owl", "cat"], "caption_scores": [0.9, 0.1]}
    rows = [
        row | {"unsupported": [["owl"], []]},
        row | {"unsupported": [["owl"], ["cat"]]},
        row | {"unsupported": None},
    ]
    found = chosen(rows, policy="synthetic", unsupported="unsupported")
    assert [r["text"] for r in found] == ["cat", None, "owl"]
    assert found[1]["error"] == "no_caption"
    assert [r["text"] for r in chosen(rows, policy="synthetic")] == ["owl"] * 3


def test_it_reads_only_what_the_policy_looks_at() -> None:
    raw = CaptionChoice(policy="raw", raw_score=None)
    assert raw.reads.names == ["text"]
    assert CaptionChoice(policy="synthetic").reads.names == ["synthetic_captions", "caption_scores"]
    named = CaptionChoice(
        text_column="t", raw_score="a", synthetic="b", synthetic_scores="c", unsupported="d"
    )
    assert named.reads.names == ["t", "a", "b", "c", "d"]
    assert CaptionChoice(column="best").writes.names[1] == "best_all"


def test_has_caption_keeps_what_was_chosen() -> None:
    stage = CaptionChoice(policy="raw_else_synthetic_else_drop", threshold=0.25)
    rows = batch(random_rows(3))
    out = stage.annotate(rows, None, None)  # type: ignore[arg-type]
    kept = ex.evaluate(has_caption(), pa.Table.from_batches([out])).to_pylist()
    assert kept == [value is None for value in out.column("chosen_caption_error").to_pylist()]
    assert 0 < sum(kept) < NUM_ROWS


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"share": 1.5}, "share=1.5"),
        ({"threshold": math.nan}, "threshold=nan is no score"),
        ({"policy": "raw_else_synthetic_else_drop"}, "without a threshold"),
        ({"raw_score": None}, "better compares scores, but raw_score=null"),
        (
            {"policy": "all_passing", "threshold": 0.2, "synthetic_scores": None},
            "synthetic_scores=null: nothing can pass",
        ),
        ({"column": ""}, "column=''"),
        ({"column": "uid"}, "column='uid'"),
        ({"column": "text"}, "column='text'"),
        ({"raw_score": "chosen_caption_score"}, "have to be different names"),
        ({"text_column": "clip_score"}, "have to be different names"),
    ],
)
def test_bad_parameters(values: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        CaptionChoice(**validate(CaptionChoice, values))
