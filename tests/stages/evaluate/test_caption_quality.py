"""Caption quality against a loop, and CIDEr-D of the tokens that it compares."""

from __future__ import annotations

import math
from collections import Counter

import pyarrow as pa
import pytest
from pycocoevalcap.cider.cider import Cider

from tests.stages.evaluate.captioners import captioner, world
from tests.stages.evaluate.subjects import overall
from winnow.contracts.errors import RecipeError, SetupError
from winnow.stages.evaluate.caption_quality import CaptionQuality, entropy, plain_words

ROWS = world(40)


def test_scores_are_those_of_a_loop() -> None:
    subject = captioner(ROWS)
    got = overall(CaptionQuality(max_tokens=12).measure(subject))
    answers = subject.generate(range(40), ["Describe the picture."] * 40, 12)
    texts = [" ".join(plain_words(a.text)) for a in answers]
    references = [" ".join(plain_words(c)) for c in ROWS["caption"].to_pylist()]
    _, expected = Cider().compute_score(
        {i: [r] for i, r in enumerate(references)}, {i: [t] for i, t in enumerate(texts)}
    )
    assert got["caption_quality.cider_d"] == pytest.approx(expected.mean(), abs=1e-6)
    assert got["caption_quality.num_words"] == sum(len(t.split()) for t in texts) / 40
    assert got["caption_quality.cut_off"] == sum(not a.finished for a in answers) / 40
    assert 0 < got["caption_quality.cut_off"] < 1
    assert got["caption_quality.unique"] == len(set(texts)) / 40
    counts = Counter(texts).values()
    bits = -sum(c / 40 * math.log2(c / 40) for c in counts)
    assert got["caption_quality.entropy"] == pytest.approx(bits)


def test_words_are_compared_without_case_and_punctuation() -> None:
    assert plain_words("A dog, it's a T-shirt!") == ["a", "dog", "it", "a", "t-shirt"]
    assert entropy(Counter("abcd")) == 2.0
    assert entropy(Counter()) == 0.0


def test_several_references() -> None:
    references = [
        ["x y z"],
        *([f"other {i}", c] for i, c in enumerate(ROWS["caption"][1:].to_pylist())),
    ]
    rows = ROWS.append_column("refs", pa.array(references))
    scores = CaptionQuality(references="refs").measure(captioner(rows, "perfect"))
    assert scores[0].items is not None
    assert scores[0].items[0] == 0
    assert scores[0].items[1:] == pytest.approx(5.0, abs=0.3)  # equal to one of the two
    with pytest.raises(SetupError, match="use texts or lists of texts"):
        CaptionQuality(references="groups").measure(captioner(ROWS))


def test_bad_parameters_say_what_is_allowed() -> None:
    with pytest.raises(RecipeError, match="the prompt is empty"):
        CaptionQuality(prompt=" ")
    with pytest.raises(RecipeError, match="max_tokens=0; use 1 or more"):
        CaptionQuality(max_tokens=0)
