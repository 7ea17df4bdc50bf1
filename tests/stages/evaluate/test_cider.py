"""CIDEr-D against pycocoevalcap."""

from __future__ import annotations

import numpy as np
import pytest
from pycocoevalcap.cider.cider import Cider

from winnow.stages.evaluate._cider import cider_d


def random_texts(seed: int, rows: int, most: int) -> tuple[list[str], list[list[str]]]:
    rng = np.random.default_rng(seed)
    weights = 1 / np.arange(1, 31)

    def text() -> str:
        size = int(rng.integers(0, most))
        return " ".join(f"w{i}" for i in rng.choice(30, size, p=weights / weights.sum()))

    return [text() for _ in range(rows)], [
        [text() for _ in range(int(rng.integers(1, 4)))] for _ in range(rows)
    ]


@pytest.mark.parametrize(("seed", "rows", "most"), [(0, 40, 12), (1, 7, 40), (2, 3, 9)])
def test_scores_are_those_of_pycocoevalcap(seed: int, rows: int, most: int) -> None:
    candidates, references = random_texts(seed, rows, most)
    candidates[0] = references[0][0]
    _, expected = Cider().compute_score(
        dict(enumerate(references)), {i: [text] for i, text in enumerate(candidates)}
    )
    got = cider_d([c.split() for c in candidates], [[r.split() for r in rs] for rs in references])
    assert got == pytest.approx(expected, abs=1e-6)
    assert got.max() > 0


def test_equal_texts_score_ten_and_one_row_scores_nothing() -> None:
    words = [f"a b c d e{i}".split() for i in range(5)]
    assert cider_d(words, [[w] for w in words]) == pytest.approx([10.0] * 5)
    assert cider_d(words[:1], [words[:1]]).tolist() == [0.0]
