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
from winnow.contracts.media import MediaCaps
from winnow.contracts.parameters import validate
from winnow.filters import expr as ex
from winnow.filters.has_caption import has_caption
from winnow.pipeline.fingerprint import stage_fingerprint
from winnow.pipeline.recipe import parse_recipe
from winnow.stages.caption_choice import CaptionChoice

POLICIES = ("raw", "synthetic", "better", "all_passing", "raw_else_synthetic_else_drop", "mix")
NUM_ROWS = 600
TEXTS = pa.list_(pa.string())


def batch(rows: list[dict[str, Any]]) -> pa.RecordBatch:
    """Rows with text, scores, synthetic, scores, unsupported; what is left out is null."""
    schema = pa.schema(
        {
            "uid": pa.binary(16),
            "text": pa.string(),
            "clip_score": pa.float32(),
            "synthetic_captions": TEXTS,
            "caption_scores": pa.list_(pa.float32()),
            "raw_match": pa.float32(),
            "match": pa.list_(pa.float32()),
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
        sizes = [count, count, 1]
        return {
            "text": draw.choice(texts),
            "clip_score": draw.choice(scores),
            "synthetic_captions": draw.choice([None, *[draw.choices(texts, k=count)] * 3]),
            "caption_scores": draw.choice(
                [None, *[draw.choices(scores, k=draw.choice(sizes))] * 4]
            ),
            "raw_match": draw.choice(scores),
            "match": draw.choice([None, *[draw.choices(scores, k=draw.choice(sizes))] * 4]),
            "unsupported": draw.choice(
                [None, [draw.choice([None, [], ["owl"]]) for _ in range(count)]]
            ),
        }

    return [row() for _ in range(NUM_ROWS)]


SCORERS = (("clip_score", "caption_scores"), ("raw_match", "match"))


def naive(row: dict[str, Any], index: int, policy: str, thresholds: list[Any]) -> list[Any]:
    """The taken captions as (text, first score, source), best first; from the table alone.

    thresholds: one per scorer that is asked.
    """
    everything = []
    if policy != "synthetic":
        given = [row[raw] for raw, _ in SCORERS]
        everything.append(("raw", row["text"], given, None))
    if policy != "raw":
        for place, text in enumerate(row["synthetic_captions"] or []):
            lists = [row[synthetic] or [] for _, synthetic in SCORERS]
            given = [values[place] if len(values) > place else None for values in lists]
            names = row["unsupported"] or []
            names_here = names[place] if len(names) > place else None
            everything.append(("synthetic", text, given, names_here))
    there, taken = [], []
    for source, text, given, names in everything:
        if text is None or text.strip() == "":
            continue
        there.append(text)
        good = not names
        for score, threshold in zip(given, thresholds, strict=False):
            if threshold is None:
                continue
            if score is None or math.isnan(score) or np.float32(score) < np.float32(threshold):
                good = False
        if good:
            first = given[0]
            taken.append((text, None if first is None or math.isnan(first) else first, source))
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
    check_against_naive(policy, [threshold], {"threshold": threshold})


TWO = {"raw_score": ["clip_score", "raw_match"], "synthetic_scores": ["caption_scores", "match"]}


@pytest.mark.parametrize("thresholds", [[0.1, 0.28], [0.28, 0.1]])
@pytest.mark.parametrize("policy", POLICIES)
def test_two_scorers_equal_a_naive_loop(policy: str, thresholds: list[float]) -> None:
    """Nulls and NaN in either; lists of the one scorer shorter than those of the other."""
    check_against_naive(policy, thresholds, {**TWO, "threshold": thresholds})


def check_against_naive(policy: str, thresholds: list[Any], parameters: dict[str, Any]) -> None:
    rows = random_rows(7)
    parameters = {"policy": policy, "share": 0.3, "seed": 5, **parameters}
    found = chosen(rows, unsupported="unsupported", **parameters)
    seen = set()
    for index, (row, out) in enumerate(zip(rows, found, strict=True)):
        there, taken = naive(row, index, policy, thresholds)
        expected: dict[str, Any] = dict.fromkeys(("text", "all", "source", "score"))
        expected["error"] = "no_caption" if there else "missing"
        if taken:
            score = None if taken[0][1] is None else float(np.float32(taken[0][1]))
            expected = {"text": taken[0][0], "all": [c[0] for c in taken], "source": taken[0][2]}
            expected |= {"score": score, "error": None}
        assert out == expected, (row, parameters)
        seen.add((out["source"], out["error"]))
    assert {(None, "missing")} < seen  # and something was chosen


def test_the_first_scorer_ranks_and_each_threshold_is_its_own() -> None:
    row = {"text": "raw", "clip_score": 0.3, "raw_match": 0.9}
    row |= {"synthetic_captions": ["a", "b", "c"], "caption_scores": [0.9, 0.4, 0.35]}
    rows = [
        row | {"match": [0.4, 0.6, 0.99]},
        row | {"match": [0.4, None, math.nan]},
        row | {"match": [0.9, 0.9]},
    ]
    found = chosen(rows, policy="all_passing", threshold=[0.3, 0.5], **TWO)
    assert [r["all"] for r in found] == [["b", "c", "raw"], ["raw"], ["a", "b", "raw"]]
    assert [r["score"] for r in found] == [float(np.float32(v)) for v in (0.4, 0.3, 0.9)]
    (better,) = chosen(rows[:1], threshold=[0.0, 0.0], **TWO)
    assert better["all"] == ["a", "b", "c"]  # though the raw one's match is the second best


def test_a_list_of_one_is_that_one() -> None:
    rows = random_rows(11)
    one = {"raw_score": ["clip_score"], "synthetic_scores": ["caption_scores"]}
    for policy in POLICIES:
        assert chosen(rows, policy=policy, threshold=[0.2], **one) == chosen(
            rows, policy=policy, threshold=0.2
        )


def test_recipes_without_lists_keep_their_fingerprints() -> None:
    """The digests of the release that knew one scorer only."""
    fitted = {"policy": "all_passing", "threshold": 0.5, "raw_score": "raw_match"}
    fitted |= {"synthetic": "captions", "synthetic_scores": "match", "column": "passing"}
    golden = [
        ({}, "03267d0ce0107e8b5e5b491a8b410246"),
        (fitted, "fa9c3ceb6d0baa53dd63eb022975b49a"),
        ({"policy": "mix", "threshold": 1, "share": 0.5}, "11137578e441e2c39dbcf4d32bdaf531"),
        ({"policy": "raw", "raw_score": None}, "5cf98ebdc913cd273ba54cbb349fb911"),
    ]
    for values, digest in golden:
        stage = CaptionChoice(**validate(CaptionChoice, values))
        assert stage_fingerprint(stage, ["source"], MediaCaps()) == digest
    both = CaptionChoice(**validate(CaptionChoice, {**TWO, "threshold": [0.1, 0.28]}))
    other = CaptionChoice(**validate(CaptionChoice, {**TWO, "threshold": [0.1, 0.3]}))
    prints = {stage_fingerprint(stage, ["source"], MediaCaps()) for stage in (both, other)}
    assert len(prints - {digest for _, digest in golden}) == 2


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
    two = CaptionChoice(**validate(CaptionChoice, {**TWO, "threshold": [0.1, 0.2]}))
    scores = ["clip_score", "raw_match", "caption_scores", "match"]
    assert [f.name for f in two.reads if "string" not in str(f.type)] == scores
    assert str(two.reads.field("match").type) == str(two.reads.field("caption_scores").type)


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
        ({"raw_score": []}, r"raw_score=\[\] holds nothing"),
        ({"threshold": []}, r"threshold=\[\] holds nothing"),
        ({**TWO, "threshold": [0.1, math.inf]}, "threshold=inf is no score"),
        (TWO, "raw_score names 2 columns, but without a threshold for each"),
        (
            {**TWO, "threshold": 0.3},
            "raw_score has 2, synthetic_scores has 2, threshold has 1; give one column",
        ),
        ({**TWO, "raw_score": "clip_score", "threshold": [0.1, 0.2]}, "raw_score has 1, synth"),
        ({"policy": "raw", "threshold": [0.1, 0.2]}, "raw_score has 1, threshold has 2; give"),
        ({**TWO, "raw_score": None, "threshold": [0.1, 0.2]}, r"nothing can pass threshold=\[0.1"),
        (
            {"raw_score": ["a", "a"], "synthetic_scores": ["b", "c"], "threshold": [0.1, 0.2]},
            "have to be different names",
        ),
    ],
)
def test_bad_parameters(values: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        CaptionChoice(**validate(CaptionChoice, values))


def test_a_list_in_a_recipe_and_a_mistake_with_its_line() -> None:
    recipe = """name: two
source: {use: scenes, num_rows: 3}
stages:
  caption_choice:
    policy: all_passing
    raw_score: [clip_score, raw_match]
    synthetic_scores: [caption_scores, match]
    threshold: [0.28, 0.5]
"""
    stage = parse_recipe(recipe).stages[0].stage
    assert isinstance(stage, CaptionChoice)
    assert stage.threshold == (0.28, 0.5)
    assert {"raw_match", "match"} < set(stage.reads.names)
    with pytest.raises(RecipeError, match=r":4: caption_choice: .*threshold has 1; give"):
        parse_recipe(recipe.replace("[0.28, 0.5]", "0.28"))
