"""Every registered filter: what it keeps of a small table, what it refuses, what it declares."""

from __future__ import annotations

import copy
import inspect
import pickle
import re
from typing import Any

import pyarrow as pa
import pydantic
import pytest

from winnow.contracts.errors import RecipeError
from winnow.contracts.parameters import parameters_model, validate
from winnow.contracts.registry import FILTERS
from winnow.filters import expr as ex
from winnow.filters._parse import parse_expression
from winnow.filters.rules import BalancedRows, PriorityCover, RandomRows, TopFraction

UIDS = pa.list_(pa.binary(16))
TABLE = pa.table(
    {
        "download_error": pa.array([None, None, None, "timeout"], pa.string()),
        "repeated_row": pa.array([False, True, False, False]),
        "width": pa.array([200, 199, 600, None], pa.int32()),
        "height": pa.array([200, 600, 199, None], pa.int32()),
        "aspect_ratio": pa.array([1.0, 3.015, 3.0, None], pa.float32()),
        "animated": pa.array([False, True, False, None]),
        "audio_duration_s": pa.array([0.5, 3.0, 30.1, None], pa.float64()),
        "audio_sample_rate": pa.array([8_000, 16_000, 44_100, None], pa.int32()),
        "audio_bit_rate": pa.array([64_000, 128_000, 256_000, None], pa.int64()),
        "audio_channels": pa.array([1, 2, 6, None], pa.int16()),
        "audio_truncated": pa.array([False, True, False, None]),
        "image_size_bytes": pa.array([10, 20, 30, None], pa.int64()),
        "image_detail": pa.array([0.1, 0.0, 7.5, None], pa.float32()),
        "audio_detail": pa.array([0.02, 0.0, 0.3, None], pa.float32()),
        "language": pa.array(["en", "de", "en", None]),
        "language_confidence": pa.array([0.9, 0.99, 0.3, None], pa.float32()),
        "num_words": pa.array([3, 1, 2, None], pa.int32()),
        "num_characters": pa.array([6, 5, 500, None], pa.int32()),
        "alphanumeric_ratio": pa.array([0.7, 0.0, 1.0, None], pa.float32()),
        "word_repetition_ratio": pa.array([0.1, 0.0, 1.0, None], pa.float32()),
        "character_repetition_ratio": pa.array([0.1, 0.2, 0.9, None], pa.float32()),
        "caption_shape": pa.array(["text", "url", "digits", None]),
        "caption_occurrences": pa.array([1, 2, 1000, None], pa.int64()),
        "clip_score": pa.array([0.28, 0.3, float("nan"), None], pa.float32()),
        "other_score": pa.array([0.1, 0.2, 0.3, None], pa.float32()),
        "num_unsupported_objects": pa.array([0, 1, 2, None], pa.int32()),
        "chosen_caption": pa.array(["a cat", "", None, None]),
        "split": pa.array(["train", "test", "validation", None]),
        "fold": pa.array(["0", "1", None, "4"]),
        "near_evaluation": pa.array([False, True, False, None]),
        "num_text_words": pa.array([300, 49, 50, None], pa.int32()),
        "mean_word_length": pa.array([4.5, 4.5, 10.0, None], pa.float32()),
        "symbol_word_ratio": pa.array([0.0, 0.1, 0.1, None], pa.float32()),
        "bullet_line_ratio": pa.array([0.0, 0.0, 0.9, None], pa.float32()),
        "ellipsis_line_ratio": pa.array([0.0, 0.0, 0.3, None], pa.float32()),
        "alphabetic_word_ratio": pa.array([1.0, 1.0, 0.8, None], pa.float32()),
        "num_stop_words": pa.array([5, 5, 2, None], pa.int32()),
        "num_clean_sentences": pa.array([3, 2, 9, None], pa.int32()),
        "has_curly_bracket": pa.array([False, False, True, None]),
        "has_lorem_ipsum": pa.array([False, False, False, None]),
        "clean_line_ratio": pa.array([0.5, 1.0, 1.0, None], pa.float32()),
        **{
            f"{name}_ratio": pa.array([0.1, 0.5, 0.0, None], pa.float32())
            for name in (
                *("duplicate_line", "duplicate_line_character"),
                *("duplicate_paragraph", "duplicate_paragraph_character"),
                *(f"top_{n}gram" for n in (2, 3, 4)),
                *(f"duplicate_{n}gram" for n in range(5, 11)),
            )
        },
        "num_emails": pa.array([0, 1, 2, None], pa.int32()),
        **{
            f"num_{kind}": pa.array([0, 1, 0, None], pa.int32())
            for kind in ("phones", "ip_addresses", "card_numbers", "ibans")
        },
        "text_perplexity": pa.array([20.0, 500.0, float("nan"), None], pa.float32()),
        "word_error_rate": pa.array([0.0, 0.4, 1.2, None], pa.float32()),
        "audio_text_score": pa.array([0.4, 0.3, -0.1, None], pa.float32()),
        "transcript_no_speech_probability": pa.array([0.1, 0.6, 0.9, None], pa.float32()),
        "transcript_log_probability": pa.array([-0.2, -1.0, -0.1, None], pa.float32()),
        "transcript_compression_ratio": pa.array([1.1, 2.4, 16.0, None], pa.float32()),
        "transcript_language": pa.array(["en", "de", "en", None]),
        "near_duplicates": pa.array([[], [], [], None], UIDS),
        "near_duplicate_group": pa.array([None] * 4, pa.binary(16)),
        "near_duplicate_audio": pa.array([[], [], [], None], UIDS),
        "near_duplicate_audio_group": pa.array([None] * 4, pa.binary(16)),
        "near_duplicate_texts": pa.array([[], [], [], None], UIDS),
        "snr_db": pa.array([14.0, 13.9, 40.0, None], pa.float32()),
        "clipping_ratio": pa.array([0.001, 0.0, 0.002, None], pa.float32()),
        "peak_pile_up": pa.array([0.0, 0.05, 0.001, None], pa.float32()),
        "silence_ratio": pa.array([0.3, 0.31, 0.0, None], pa.float32()),
        "speech_ratio": pa.array([0.3, 0.29, 1.0, None], pa.float32()),
        "bandwidth_hz": pa.array([5_000.0, 4_000.0, 11_025.0, None], pa.float32()),
        "dc_offset": pa.array([0.03, 0.05, 0.0, None], pa.float32()),
        "near_duplicate_texts_group": pa.array([None] * 4, pa.binary(16)),
    }
)
T, F, N = True, False, None

BUILT_IN = sorted(name for name in FILTERS if not name.startswith("toy_"))
"""The filters that ship; tests of the pipeline register their own."""

EXAMPLES: list[tuple[str, dict[str, Any], list[bool | None]]] = [
    ("has_media", {"error_column": "download_error"}, [T, T, T, F]),
    ("drop_repeated_rows", {}, [T, F, T, T]),
    ("min_image_size", {"side": 200}, [T, F, F, N]),
    ("min_image_size", {"side": 199}, [T, T, T, N]),
    ("max_aspect_ratio", {"ratio": 3}, [T, F, T, N]),
    ("max_aspect_ratio", {"ratio": 3.015}, [T, T, T, N]),
    ("max_image_pixels", {"pixels": 119_399}, [T, F, F, N]),
    ("max_image_pixels", {"pixels": 119_400}, [T, T, T, N]),
    ("not_animated", {}, [T, F, T, N]),
    ("language_is", {"languages": ["en"]}, [T, F, T, N]),
    ("language_is", {"languages": ["en", "de"], "min_confidence": 0.9}, [T, T, F, N]),
    ("caption_length", {"min_words": 2}, [T, F, T, N]),
    ("caption_length", {"max_words": 2}, [F, T, T, N]),
    ("caption_length", {"min_characters": 6, "max_characters": 499}, [T, F, F, N]),
    ("caption_quality", {"min_alphanumeric_ratio": 0.7}, [T, F, T, N]),
    ("caption_quality", {"max_word_repetition_ratio": 0.1}, [T, T, F, N]),
    ("caption_quality", {"max_character_repetition_ratio": 0.2}, [T, T, F, N]),
    ("caption_shape_is", {}, [T, F, F, N]),
    ("caption_shape_is", {"shapes": ["url", "digits"]}, [F, T, T, N]),
    ("max_caption_occurrences", {"occurrences": 2}, [T, T, F, N]),
    ("min_image_detail", {"detail": 0.1}, [T, F, T, N]),
    ("min_audio_detail", {"detail": 0.02}, [T, F, T, N]),
    ("min_clip_score", {"threshold": 0.28}, [T, T, N, N]),
    ("min_clip_score", {"threshold": 0.29}, [F, T, N, N]),
    ("min_clip_score", {"threshold": 0.2, "column": "other_score"}, [F, T, T, N]),
    ("no_hallucination", {}, [T, F, F, N]),
    ("no_hallucination", {"most": 1}, [T, T, F, N]),
    ("no_hallucination", {"column": "num_words", "most": 2}, [F, T, T, N]),
    ("has_caption", {}, [T, T, F, F]),
    ("has_caption", {"column": "language"}, [T, T, T, F]),
    ("split_is", {}, [T, F, F, N]),
    ("split_is", {"parts": ["test", "validation"]}, [F, T, T, N]),
    ("split_is", {"parts": ["0", "4"], "column": "fold"}, [T, F, N, T]),
    ("not_near_evaluation", {}, [T, F, T, N]),
    ("datacomp_basic", {}, [T, F, F, N]),
    ("text_rules", {}, [T, F, F, N]),
    ("text_rules", {"rules": ["gopher"]}, [T, F, T, N]),
    ("text_rules", {"rules": ["gopher"], "bounds": {"min_num_text_words": 49}}, [T, T, T, N]),
    ("text_rules", {"rules": ["gopher_repetition"]}, [T, F, T, N]),
    ("text_rules", {"rules": [], "bounds": {"min_clean_line_ratio": 0.6}}, [F, T, T, N]),
    ("text_rules", {"rules": ["c4"]}, [T, F, F, N]),
    ("max_pii", {}, [T, F, F, N]),
    ("max_pii", {"most": 2}, [T, F, T, N]),
    ("max_pii", {"kinds": ["phone", "iban"]}, [T, F, T, N]),
    ("max_perplexity", {"threshold": 100}, [T, F, N, N]),
    ("max_perplexity", {"threshold": 1, "column": "other_score"}, [T, T, T, N]),
    ("audio_duration", {"min_s": 3}, [F, T, T, N]),
    ("audio_duration", {"max_s": 3.0}, [T, T, F, N]),
    ("audio_duration", {"min_s": 1.0, "max_s": 30.0}, [F, T, F, N]),
    ("min_sample_rate", {"hertz": 16_000}, [F, T, T, N]),
    ("max_audio_channels", {"channels": 2}, [T, T, F, N]),
    ("not_truncated_audio", {}, [T, F, T, N]),
    ("min_audio_snr", {"snr_db": 14.0}, [T, F, T, N]),
    ("max_clipping_ratio", {"ratio": 0.001}, [T, T, F, N]),
    ("max_clipping_ratio", {"pile_up": 0.001}, [T, F, T, N]),
    ("max_clipping_ratio", {"ratio": 0.001, "pile_up": 0.001}, [T, F, F, N]),
    ("max_silence_ratio", {"ratio": 0.3}, [T, F, T, N]),
    ("min_speech_ratio", {"ratio": 0.3}, [T, F, T, N]),
    ("min_bandwidth", {"hz": 5_000.0}, [T, F, T, N]),
    ("max_dc_offset", {"offset": 0.03}, [T, F, T, N]),
    ("max_word_error_rate", {"threshold": 0.4}, [T, T, F, N]),
    ("max_word_error_rate", {"threshold": 0.1, "column": "other_score"}, [T, F, F, N]),
    ("min_audio_text_score", {"threshold": 0.3}, [T, T, F, N]),
    ("transcript_is", {"max_no_speech_probability": 0.6}, [T, T, F, N]),
    ("transcript_is", {"min_log_probability": -0.5}, [T, F, T, N]),
    ("transcript_is", {"max_compression_ratio": 2.4}, [T, T, F, N]),
    ("transcript_is", {"languages": ["en"]}, [T, F, T, N]),
    ("transcript_is", {"languages": ["en"], "max_compression_ratio": 2.4}, [T, F, F, N]),
    ("where", {"expression": "clip_score is None or width < 200"}, [F, T, T, T]),
]

RULES: list[tuple[str, dict[str, Any], object]] = [
    (
        "clip_top_fraction",
        {"fraction": 0.3},
        TopFraction(column="clip_score", fraction=0.3, over="unrepeated"),
    ),
    (
        "clip_top_fraction",
        {"fraction": 1, "over": "survivors"},
        TopFraction(column="clip_score", fraction=1.0, over="survivors"),
    ),
    (
        "clip_top_fraction",
        {"fraction": 0.5, "column": "other_score"},
        TopFraction(column="other_score", fraction=0.5, over="unrepeated"),
    ),
    ("random_rows", {"count": 7}, RandomRows(count=7, fraction=None, seed=0)),
    ("random_rows", {"fraction": 1, "seed": 3}, RandomRows(count=None, fraction=1.0, seed=3)),
    (
        "balanced_rows",
        {"by": ["language"], "cap": 5},
        BalancedRows(
            by=("language",), present=(), caps=(("*", 5),), weights=None, total=None, seed=0
        ),
    ),
    (
        "balanced_rows",
        {"by": ["language", "split"], "weights": {"en": 2, "de": 0.5}, "total": 9, "seed": 1},
        BalancedRows(
            by=("language", "split"),
            present=(),
            caps=None,
            weights=(("de", 0.5), ("en", 2.0)),
            total=9,
            seed=1,
        ),
    ),
    (
        "drop_near_duplicates",
        {"prefer": ["largest clip_score", "smallest image_size_bytes"]},
        PriorityCover(
            neighbors="near_duplicates",
            groups="near_duplicate_group",
            prefer=(("clip_score", "largest"), ("image_size_bytes", "smallest")),
        ),
    ),
    (
        "drop_near_duplicates",
        {},
        PriorityCover(
            neighbors="near_duplicates",
            groups="near_duplicate_group",
            prefer=(("width", "largest"), ("height", "largest"), ("image_size_bytes", "largest")),
        ),
    ),
    (
        "drop_near_duplicates",
        {"media": "audio"},
        PriorityCover(
            neighbors="near_duplicate_audio",
            groups="near_duplicate_audio_group",
            prefer=(
                ("audio_duration_s", "largest"),
                ("audio_sample_rate", "largest"),
                ("audio_bit_rate", "largest"),
            ),
        ),
    ),
    (
        "drop_near_duplicates",
        {"media": "text"},
        PriorityCover(
            neighbors="near_duplicate_texts", groups="near_duplicate_texts_group", prefer=()
        ),
    ),
]

REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("min_image_size", {"side": 0}, "side=0 .* at least 1"),
    ("audio_duration", {}, "give at least one of min_s, max_s"),
    ("audio_duration", {"min_s": -1.0}, "min_s=-1.0 .* at least 0"),
    ("audio_duration", {"min_s": 5.0, "max_s": 4.0}, "swap them"),
    ("audio_duration", {"max_s": float("nan")}, "at least 0"),
    ("min_sample_rate", {"hertz": 0}, "at least 1"),
    ("max_audio_channels", {"channels": 0}, "at least 1"),
    ("max_aspect_ratio", {"ratio": 0.5}, "ratio=0.5 .* at least 1"),
    ("max_aspect_ratio", {"ratio": float("nan")}, "at least 1"),
    ("max_image_pixels", {"pixels": -1}, "at least 1"),
    ("language_is", {"languages": []}, "languages is empty"),
    ("language_is", {"languages": ["EN"]}, "did you mean 'en'"),
    ("language_is", {"languages": ["pt_BR"]}, "did you mean 'pt'"),
    ("language_is", {"languages": ["en"], "min_confidence": 90.0}, r"in \[0, 1\]"),
    ("caption_length", {}, "give at least one of min_words, max_words"),
    ("caption_length", {"min_words": -1}, "min_words=-1"),
    ("caption_length", {"min_words": 5, "max_words": 4}, "swap them"),
    ("caption_quality", {}, "give at least one of"),
    ("caption_quality", {"max_word_repetition_ratio": 10.0}, r"in \[0, 1\]"),
    ("caption_shape_is", {"shapes": []}, "shapes is empty"),
    ("max_caption_occurrences", {"occurrences": 0}, "at least 1"),
    ("min_image_detail", {"detail": -0.1}, "at least 0"),
    ("min_audio_detail", {"detail": -0.1}, "at least 0"),
    ("min_clip_score", {"threshold": 28.0}, r"in \[-1, 1\]"),
    ("min_clip_score", {"threshold": 0.2, "column": ""}, "such as 'clip_score'"),
    ("clip_top_fraction", {"fraction": 30.0}, r"in \[0, 1\]"),
    ("clip_top_fraction", {"fraction": 0.3, "column": ""}, "names no column"),
    ("split_is", {"parts": []}, r'such as \["train"\]'),
    ("split_is", {"parts": [""]}, "at least one part"),
    ("split_is", {"column": ""}, "such as 'split'"),
    ("no_hallucination", {"most": -1}, "most=-1 .* at least 0"),
    ("no_hallucination", {"column": ""}, "such as 'num_unsupported_objects'"),
    ("has_caption", {"column": ""}, "such as 'chosen_caption'"),
    ("random_rows", {}, "either count, such as 10000, or fraction"),
    ("random_rows", {"count": 3, "fraction": 0.5}, "either count"),
    ("random_rows", {"count": 0}, "count=0 .* at least 1"),
    ("random_rows", {"fraction": 10.0}, r"in \[0, 1\]"),
    ("balanced_rows", {"cap": 3}, r'such as \["language"\]'),
    ("balanced_rows", {"by": ["language"]}, "either cap, such as 10000, or weights"),
    ("balanced_rows", {"by": ["a"], "cap": 3, "weights": {"en": 1}}, "either cap"),
    ("balanced_rows", {"by": ["a", "a"], "cap": 3}, "names a column twice"),
    ("balanced_rows", {"by": ["a"], "cap": 0}, "cap=0 must be at least 1"),
    ("balanced_rows", {"by": ["a"], "cap": {}}, "at least one group"),
    ("balanced_rows", {"by": ["a"], "cap": {"en": -1}}, "0 rows or more"),
    ("balanced_rows", {"by": ["a"], "weights": {"en": 0}}, "one of them above 0"),
    ("balanced_rows", {"by": ["a"], "weights": {"en": float("inf")}}, "above 0"),
    ("balanced_rows", {"by": ["a"], "cap": 3, "total": 4}, "total=4 goes with weights"),
    ("balanced_rows", {"present": {"a+b": "x is None"}, "cap": 3}, "cannot name a condition"),
    ("balanced_rows", {"present": {"image": "x >> 1"}, "cap": 3}, "character 1"),
    ("drop_near_duplicates", {"prefer": ["clip_score"]}, '"largest clip_score"'),
    ("drop_near_duplicates", {"prefer": ["biggest width"]}, '"largest width"'),
    ("drop_near_duplicates", {"prefer": ["largest a", "smallest a"]}, "'a' twice"),
    ("text_rules", {"rules": []}, "nothing is asked"),
    ("text_rules", {"bounds": {"max_symbols": 1}}, "did you mean max_symbol_word_ratio"),
    ("text_rules", {"bounds": {"symbol_word_ratio": 1}}, "not min_ or max_"),
    ("text_rules", {"bounds": {"max_top_2gram_ratio": 20}}, r"in \[0, 1\]"),
    ("max_pii", {"most": -1}, "most=-1 .* at least 0"),
    ("max_pii", {"kinds": []}, "at least one of email, phone"),
    ("max_perplexity", {"threshold": 0.5}, "threshold=0.5 .* at least 1"),
    ("max_perplexity", {"threshold": 9, "column": ""}, "such as 'text_perplexity'"),
    ("min_audio_snr", {"snr_db": 100.0}, r"in \[-60, 60\]"),
    ("max_clipping_ratio", {}, "at least one of ratio, pile_up"),
    ("max_clipping_ratio", {"ratio": 1.5}, r"ratio=1.5 .* in \[0, 1\]"),
    ("max_clipping_ratio", {"pile_up": -0.1}, "pile_up=-0.1"),
    ("max_silence_ratio", {"ratio": 30.0}, r"in \[0, 1\]"),
    ("min_speech_ratio", {"ratio": 30.0}, r"in \[0, 1\]"),
    ("min_bandwidth", {"hz": -1.0}, "at least 0"),
    ("max_dc_offset", {"offset": -0.1}, "at least 0"),
    ("max_word_error_rate", {"threshold": -0.1}, "threshold=-0.1 can never be right"),
    ("max_word_error_rate", {"threshold": 0.1, "column": ""}, "names no column"),
    ("min_audio_text_score", {"threshold": 1.5}, "threshold=1.5 can never be right"),
    ("transcript_is", {}, "nothing is asked"),
    ("transcript_is", {"max_no_speech_probability": 2.0}, r"in \[0, 1\]"),
    ("transcript_is", {"min_log_probability": 0.5}, "use 0 or less"),
    ("transcript_is", {"min_log_probability": float("nan")}, "use 0 or less"),
    ("transcript_is", {"max_compression_ratio": -1.0}, "at least 0"),
    ("transcript_is", {"languages": ["en"], "column": ""}, "names no column"),
    ("where", {"expression": "width >> 3"}, "character 1"),
]

MISTYPED: list[tuple[str, dict[str, Any]]] = [
    ("min_image_size", {"side": "200"}),
    ("min_image_size", {"side": 200.5}),
    ("min_image_size", {"side": True}),
    ("min_image_size", {}),
    ("min_image_size", {"side": 200, "pixels": 3}),
    ("language_is", {"languages": "en"}),
    ("language_is", {"languages": [False]}),
    ("caption_shape_is", {"shapes": ["sentence"]}),
    ("clip_top_fraction", {"fraction": 0.3, "over": "all"}),
    ("random_rows", {"count": 0.5}),
    ("balanced_rows", {"by": ["language"], "cap": True}),
    ("balanced_rows", {"by": "language", "cap": 3}),
    ("split_is", {"parts": "train"}),
    ("where", {"expression": True}),
    ("text_rules", {"rules": ["gopher2"]}),
    ("text_rules", {"bounds": {"min_num_text_words": "50"}}),
    ("max_pii", {"kinds": ["name"]}),
]


def _make(name: str, values: dict[str, Any]) -> Any:
    factory = FILTERS.find(name)
    return factory(**validate(factory, values))


def test_every_filter_has_an_example() -> None:
    assert {name for name, *_ in (*EXAMPLES, *RULES)} == set(BUILT_IN)


@pytest.mark.parametrize(("name", "values", "kept"), EXAMPLES)
def test_keeps(name: str, values: dict[str, Any], kept: list[bool | None]) -> None:
    rule = _make(name, values)
    ex.check(rule, TABLE.schema)
    assert ex.evaluate(rule, TABLE).to_pylist() == kept
    assert ex.evaluate(rule, TABLE.slice(0, 0)).to_pylist() == []


@pytest.mark.parametrize(("name", "values", "kept"), EXAMPLES)
def test_reads_only_columns_of_its_docstring(name: str, values: dict[str, Any], kept: Any) -> None:
    """The contract text must name every column, so that a user can look it up."""
    text = inspect.getdoc(FILTERS.find(name)) or ""
    if name != "where":
        columns = _make(name, values).columns() - {values.get("column")}
        missing = [c for c in columns if not re.search(rf"\b{c}\b", text)]
        assert missing == []


@pytest.mark.parametrize(("name", "values", "kept"), EXAMPLES)
def test_prints_what_where_parses(name: str, values: dict[str, Any], kept: Any) -> None:
    rule = _make(name, values)
    again = parse_expression(str(rule))
    assert str(again) == str(rule)
    assert ex.evaluate(again, TABLE).to_pylist() == kept


@pytest.mark.parametrize(("name", "values", "rule"), RULES)
def test_rules(name: str, values: dict[str, Any], rule: Any) -> None:
    made = _make(name, values)
    assert made == rule
    assert made.columns() <= set(TABLE.column_names)


@pytest.mark.parametrize(("name", "values"), [(n, v) for n, v, _ in (*EXAMPLES, *RULES)])
def test_survives_pickling_and_copying(name: str, values: dict[str, Any]) -> None:
    rule = _make(name, values)
    assert str(pickle.loads(pickle.dumps(rule))) == str(rule)
    assert str(copy.deepcopy(rule)) == str(rule)


@pytest.mark.parametrize(("name", "values", "message"), REFUSED)
def test_refuses_thresholds_that_cannot_be_meant(
    name: str, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        _make(name, values)


@pytest.mark.parametrize(("name", "values"), MISTYPED)
def test_refuses_wrong_types(name: str, values: dict[str, Any]) -> None:
    with pytest.raises(pydantic.ValidationError):
        _make(name, values)


@pytest.mark.parametrize("name", BUILT_IN)
def test_declares_typed_keywords_and_a_contract(name: str) -> None:
    factory = FILTERS.find(name)
    parameters = inspect.signature(factory).parameters.values()
    assert all(p.kind is inspect.Parameter.KEYWORD_ONLY for p in parameters)
    assert all(p.annotation is not inspect.Parameter.empty for p in parameters)
    text = inspect.getdoc(factory) or ""
    assert "Reads:" in text
    assert parameters_model(factory).model_json_schema()["type"] == "object"


def test_unknown_filter_names_the_nearest() -> None:
    with pytest.raises(RecipeError, match="did you mean .*min_clip_score"):
        FILTERS.find("min_clip_scores")
