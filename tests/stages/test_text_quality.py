"""text_quality against naive loops written from the papers, on random and on hostile documents."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from winnow.contracts.registry import FILTERS
from winnow.contracts.stage import WorkerOptions
from winnow.stages import _text_rules as rules
from winnow.stages.text_quality import TextQuality


def run(texts: list[str | None], stage: TextQuality | None = None) -> list[dict[str, Any]]:
    stage = stage or TextQuality()
    state = stage.setup(WorkerOptions())
    batch = pa.RecordBatch.from_arrays([pa.array(texts, pa.string())], ["text"])
    out = stage.annotate(batch, state, None)  # type: ignore[arg-type]
    assert out.schema.equals(stage.writes)
    out.validate(full=True)
    return out.to_pylist()


def duplicate_share(words: list[str], n: int) -> float:
    """Table A1: characters in n-grams that came before, overlapping characters once."""
    seen, covered = set(), set()
    for i in range(len(words) - n + 1):
        gram = tuple(words[i : i + n])
        if gram in seen:
            covered.update(range(i, i + n))
        seen.add(gram)
    return sum(len(words[i]) for i in covered) / max(sum(map(len, words)), 1)


def top_share(words: list[str], n: int) -> float:
    """Table A1: characters in the most frequent n-gram; the longest, then the first of equals."""
    places: dict[tuple[str, ...], list[int]] = {}
    for i in range(len(words) - n + 1):
        places.setdefault(tuple(words[i : i + n]), []).append(i)
    often = {gram: found for gram, found in places.items() if len(found) > 1}
    if not often:
        return 0.0
    best = max(often, key=lambda g: (len(often[g]), sum(map(len, g)), -often[g][0]))
    covered = {i + k for i in often[best] for k in range(n)}
    return sum(len(words[i]) for i in covered) / sum(map(len, words))


def naive(text: str) -> dict[str, Any]:
    """One measure after the other, as the papers say them."""
    words = text.lower().split()
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    paragraphs = [
        "\n".join(line.strip() for line in part.split("\n") if line.strip())
        for part in text.split("\n\n")
        if part.strip()
    ]
    found: dict[str, Any] = {
        "num_text_words": len(words),
        "mean_word_length": sum(map(len, words)) / len(words) if words else 0,
        "symbol_word_ratio": max(text.count("#"), text.count("...") + text.count("\u2026"))
        / max(len(words), 1),
        "bullet_line_ratio": _share(lines, lambda x: x[0] in "\u2022-*"),
        "ellipsis_line_ratio": _share(lines, lambda x: x.endswith(("...", "\u2026"))),
        "alphabetic_word_ratio": _share(words, lambda w: any(c.isalpha() for c in w)),
        "num_stop_words": sum(
            w in words for w in ("the", "be", "to", "of", "and", "that", "have", "with")
        ),
        "has_curly_bracket": "{" in text or "}" in text,
        "has_lorem_ipsum": "lorem ipsum" in text.lower(),
    }
    for name, items in (("line", lines), ("paragraph", paragraphs)):
        again = [items[i] for i in range(len(items)) if items[i] in items[:i]]
        found[f"duplicate_{name}_ratio"] = len(again) / max(len(items), 1)
        total = max(sum(map(len, items)), 1)
        found[f"duplicate_{name}_character_ratio"] = sum(map(len, again)) / total
    found |= {f"top_{n}gram_ratio": top_share(words, n) for n in (2, 3, 4)}
    found |= {f"duplicate_{n}gram_ratio": duplicate_share(words, n) for n in range(5, 11)}
    return found | naive_c4(lines)


def naive_c4(lines: list[str]) -> dict[str, Any]:
    ends = [x for x in lines if x[-1] in '.!?"\u201d' and not x.endswith("...")]
    script = [x for x in lines if "javascript" in x.lower()]
    policy = [x for x in lines if any(p in x.lower() for p in rules.POLICIES)]
    kept = [x for x in ends if len(x.split()) >= 5 and x not in script and x not in policy]
    sentences = 0
    for line in kept:
        sentences += 1
        words = line.split()
        for word in words[:-1]:
            bare = word[:-1] if word[-1] in "\"')]" and len(word) > 1 else word
            sentences += bare[-1] in ".!?"
    return {
        "terminal_line_ratio": len(ends) / max(len(lines), 1),
        "clean_line_ratio": len(kept) / max(len(lines), 1),
        "num_clean_sentences": sentences,
        "num_javascript_lines": len(script),
        "num_policy_lines": len(policy),
    }


def _share(items: list[str], test: Any) -> float:
    return sum(map(test, items)) / len(items) if items else 0.0


WORDS = [
    "the",
    "The",
    "of",
    "cat",
    "sat.",
    "on",
    "mat!",
    "#",
    "42",
    "...",
    "end\u2026",
    "caf\u00e9",
]
WORDS += ['"Yes."', "what?", "\u2022", "-", "JavaScript", "{x}", "lorem ipsum", "privacy policy"]


@st.composite
def documents(draw: st.DrawFn) -> str:
    """Lines and paragraphs of few words, so that everything repeats sometimes."""
    rng = random.Random(draw(st.integers(0, 10**6)))
    words = rng.sample(WORDS, rng.randint(1, len(WORDS)))
    lines = [
        " ".join(rng.choice(words) for _ in range(rng.choice([1, 3, 6, 12])))
        for _ in range(rng.randint(0, 8))
    ]
    chosen = [rng.choice(lines) for _ in range(rng.randint(0, 12))] if lines else []
    return "".join(line + rng.choice(["\n", "\n", "\n\n", "  \n"]) for line in chosen)


@settings(max_examples=80, deadline=None)
@given(st.lists(documents(), max_size=5))
def test_equals_naive_loops(texts: list[str]) -> None:
    for text, row in zip(texts, run(list(texts)), strict=True):
        expected = naive(text)
        assert row.pop("text_quality_error") is None
        assert set(row) == set(expected)
        for name, value in expected.items():
            assert row[name] == pytest.approx(value, abs=1e-6), (name, text)


def test_what_a_text_gets_does_not_depend_on_the_others() -> None:
    rng = random.Random(0)
    texts: list[str | None] = [
        " ".join(rng.choices(WORDS, k=rng.randint(0, 80))) for _ in range(60)
    ]
    texts[7] = None
    together = run(texts)
    assert together == [run([text])[0] for text in texts]
    order = rng.sample(range(60), 60)
    assert run([texts[i] for i in order]) == [together[i] for i in order]


def test_known_texts() -> None:
    boiler = "Share this page now\n" * 10
    rows = run([boiler, "a b c d e f g h i j " * 2, "word " * 20, "# " * 10])
    assert rows[0]["duplicate_line_ratio"] == pytest.approx(0.9)
    assert rows[0]["duplicate_line_character_ratio"] == pytest.approx(0.9)
    assert rows[1]["duplicate_10gram_ratio"] == pytest.approx(0.5)
    assert rows[2]["top_2gram_ratio"] == 1.0, "overlaps count once: never above 1"
    assert rows[3]["symbol_word_ratio"] == 1.0
    assert rows[3]["alphabetic_word_ratio"] == 0.0


def test_scripts_without_spaces() -> None:
    han, thai = run(
        ["\u4e00\u53ea\u732b\u5728\u5c4b\u3002", "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35"]
    )
    assert han["num_text_words"] == 5, "one per character"
    assert han["terminal_line_ratio"] == 1.0
    assert thai["num_text_words"] == 1, "a phrase is a word"


HOSTILE = [
    "\x00" * 100,
    "a\x00b the of",
    "\ufffd\ufffd",
    "x" * 10_000_000,
    "a " * 100_000,
    "\n" * 100_000,
    "\u202e\u0645\u0631\u062d\u0628\u0627 \u0628\u0643",
    "\U0001f408 " * 1000,
    "",
    " \t\r\n\v\f\x1c\x85\u2028",
    None,
]


def test_hostile_texts() -> None:
    rows = run(HOSTILE)
    for text, row in zip(HOSTILE, rows, strict=True):
        assert row["text_quality_error"] == ("missing" if text is None else None)
        ratios = [v for k, v in row.items() if k.endswith("_ratio") and k != "symbol_word_ratio"]
        assert all(v is None if text is None else 0 <= v <= 1 for v in ratios)
    assert rows[3]["mean_word_length"] == 10_000_000
    assert rows[4]["num_text_words"] == 100_000
    assert rows[4]["top_4gram_ratio"] == 1.0
    assert rows[5]["num_text_words"] == 0


GOOD = (
    "The cat sat on the mat, and the dog that we have known for years sat with it by the fire. "
    "It was late. Nobody wanted to be the first of them to leave that warm and quiet room.\n"
    "In the morning the snow had covered every path, so the children had to dig their way out.\n"
    "They laughed about it for a long time, with red cheeks and cold hands."
)


def test_the_filter_keeps_good_text_and_drops_each_kind_of_bad() -> None:
    from winnow.filters.expr import evaluate

    bad = {
        "short": "Too short.",
        "repeated": (GOOD + "\n") * 3,
        "code": GOOD + " {",
        "lorem": GOOD + " Lorem ipsum dolor.",
        "hashes": GOOD + " #" * 20,
        "fragments": GOOD.replace(".", ""),
        "numbers": GOOD + " 12345" * 40,
    }
    table = pa.Table.from_pylist(run([GOOD, *bad.values()]))
    table = table.cast(TextQuality().writes)
    kept = evaluate(FILTERS.find("text_rules")(), table).to_pylist()
    assert dict(zip(["good", *bad], kept, strict=True)) == {
        "good": True,
        **dict.fromkeys(bad, False),
    }


def test_perplexity_of_the_packaged_model() -> None:
    """A text by itself, whatever is in the batch; words in order surprise less than backwards."""
    from winnow.models.language_model import perplexity

    stage = TextQuality(language_model="tiny-lm", device="cpu")
    text = "A picture of a red cat."
    texts = [text, " ".join(text.split()[::-1]), None, ""]
    rows = run(texts, stage)
    model = stage.setup(WorkerOptions())
    assert rows[0]["text_perplexity"] == pytest.approx(perplexity(model, [text]).value, rel=1e-6)
    assert rows[0]["text_perplexity"] < rows[1]["text_perplexity"]
    assert rows[2]["text_perplexity"] is None
    assert [r["text_perplexity"] for r in run(texts[:1], stage)] == [rows[0]["text_perplexity"]]
    assert stage.model_digest() != ""
    assert "text_perplexity" not in TextQuality().writes.names
    assert TextQuality().model_digest() == ""


def test_every_bound_of_the_filter_is_a_column_of_the_stage() -> None:
    from winnow.filters.text_rules import _C4_FLAGS, _COLUMNS

    assert set(TextQuality().writes.names) == {*_COLUMNS, *_C4_FLAGS, "text_quality_error"}
    assert Counter(_COLUMNS).most_common(1)[0][1] == 1
