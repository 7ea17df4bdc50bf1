"""A row of the caption stage is made of candidates that have a likelihood, or not."""

from __future__ import annotations

import math
from itertools import permutations

from hypothesis import given
from hypothesis import strategies as st

from winnow.stages._caption_rows import Candidate, caption_row


def test_a_likelihood_that_is_known_wins_over_one_that_is_not() -> None:
    """A server that scores some of its choices: its null is not the likeliest, nor infectious."""
    made = [
        Candidate(text="a cat", log_likelihood=-6.0, num_tokens=2),
        Candidate(text="a cat"),
        Candidate(text="a small dog", log_likelihood=-3.0, num_tokens=3),
        Candidate(text="a cat", log_likelihood=-4.0, num_tokens=2),
    ]
    for order in permutations(made):
        row = caption_row(order, model="m", keep_cut=False)
        assert row.texts == ("a small dog", "a cat")
        assert row.log_likelihoods == (-3.0, -4.0)


def test_what_has_no_likelihood_stands_last_in_the_engines_order() -> None:
    made = [
        Candidate(text="a tree"),
        Candidate(text="a cat", log_likelihood=-6.0, num_tokens=2),
        Candidate(text="a house"),
        Candidate(text="a dog", log_likelihood=-1.0, num_tokens=2),
    ]
    row = caption_row(made, model="m", keep_cut=False)
    assert row.texts == ("a dog", "a cat", "a tree", "a house")
    assert row.log_likelihoods == (-1.0, -6.0, None, None)


CANDIDATES = st.builds(
    Candidate,
    text=st.sampled_from(["a", "b", "c", " a "]),
    log_likelihood=st.none() | st.integers(-5, 0).map(float),
    num_tokens=st.integers(1, 3),
)


@given(st.lists(CANDIDATES, min_size=1, max_size=6))
def test_each_text_has_its_best_likelihood_and_they_fall(made: list[Candidate]) -> None:
    def per_token(one: Candidate) -> float:
        known = one.log_likelihood
        return -math.inf if known is None else known / one.num_tokens

    row = caption_row(made, model="m", keep_cut=False)
    best = {
        text: max(per_token(one) for one in made if one.text.strip() == text)
        for text in {one.text.strip() for one in made}
    }
    assert set(row.texts) == set(best)
    assert len(row.texts) == len(best)
    values = [best[text] for text in row.texts]
    assert values == sorted(values, reverse=True)
    for text, value in zip(row.texts, row.log_likelihoods, strict=True):
        same = [one for one in made if one.text.strip() == text]
        assert value in {one.log_likelihood for one in same if per_token(one) == best[text]}
