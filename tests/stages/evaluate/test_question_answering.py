"""Question answering on answers that are right, half right and wrong; F1 against a naive count."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import pyarrow as pa
import pytest

from tests.stages.evaluate.captioners import captioner
from tests.stages.evaluate.subjects import overall
from winnow.contracts.errors import RecipeError, SetupError
from winnow.contracts.trial import Captioner, Generated
from winnow.stages.evaluate.question_answering import (
    Kind,
    QuestionAnswering,
    f1,
    is_right,
    kind_of,
    normalised,
)


@pytest.mark.parametrize(
    ("question", "reference", "kind"),
    [
        ("Is there a cat?", "Yes, there is.", "yes_no"),
        ("How many cats are left? Explain.", "No cats are left.", "yes_no"),
        ("How many cats are there?", "There are two cats.", "number"),
        ("Count the cats.", "12", "number"),
        ("How many cats are there?", "There are some.", "other"),
        ("What is there?", "There are two cats.", "other"),
        ("What is there?", "...", "other"),
    ],
)
def test_the_kind_of_a_question(question: str, reference: str, kind: Kind) -> None:
    assert kind_of(question, reference) == kind


@pytest.mark.parametrize(
    ("kind", "answer", "reference", "right"),
    [
        ("yes_no", "yes", "Yes, there is a cat.", True),
        ("yes_no", "Yes, there is a dog.", "Yes, there is a cat.", True),
        ("yes_no", "There is, yes.", "Yes.", False),
        ("yes_no", "", "No.", False),
        ("number", "2 dogs", "There are two cats.", True),
        ("number", "Three cats.", "There are two cats.", False),
        ("number", "none at all", "There are zero cats.", True),
        ("number", "many", "There are two cats.", False),
        ("other", "the cat is RED", "A cat is red.", True),
        ("other", "The red cat is.", "The cat is red.", False),
    ],
)
def test_what_is_right(kind: Kind, answer: str, reference: str, right: bool) -> None:
    assert is_right(kind, answer, reference) is right


def test_f1_is_that_of_the_best_matching_of_words() -> None:
    texts = ["The cat and the cat", "cat", "two cats, a dog and cat", "dog 2 dog dog", "an", ""]
    for one, two in itertools.product(texts, texts):
        said, wanted = normalised(one), normalised(two)
        left = list(wanted)
        for word in said:
            if word in left:
                left.remove(word)
        matched = len(wanted) - len(left)
        if not said or not wanted:
            expected = float(said == wanted)
        elif not matched:
            expected = 0.0
        else:
            precision, recall = matched / len(said), matched / len(wanted)
            expected = 2 * precision * recall / (precision + recall)
        assert f1(one, two) == pytest.approx(expected)


def talk(*texts: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]


CAT = talk(
    "<image>\nIs there a cat?", "Yes, there is a cat.", "How many cats are there?",
    "There are two cats.", "What color is the cat?", "The cat is red.", "Describe it.",
    "long " * 17, "Is there a cat?", "Yes, there is a cat.",
)  # fmt: skip
DOG = talk("Is there a cat?", "No, there is no cat.")
TALKS = [CAT, DOG, None, talk("What?"), talk("Describe it.", "long " * 17)]
ROWS = pa.Table.from_pylist(
    [{"key": f"k{i}", "caption": "", "talk": said} for i, said in enumerate(TALKS)]
)


def says(answers: dict[str, str]) -> tuple[Captioner, list[tuple[int, str]]]:
    asked: list[tuple[int, str]] = []

    def generate(places: Sequence[int], prompts: Sequence[str], most: int) -> list[Generated]:
        asked.extend(zip(places, prompts, strict=True))
        return [
            Generated(text=answers[p], log_likelihood=0.0, num_tokens=1, finished=True)
            for p in prompts
        ]

    return dataclasses.replace(captioner(ROWS), generate=generate), asked


def test_short_turns_are_asked_once_and_judged_by_type() -> None:
    answers = {
        "Is there a cat?": "Yes, there is.",
        "How many cats are there?": "2",
        "What color is the cat?": "The cat is blue.",
    }
    subject, asked = says(answers)
    got = overall(QuestionAnswering(conversations="talk").measure(subject))
    assert sorted(asked) == sorted([(0, prompt) for prompt in answers] + [(1, "Is there a cat?")])
    # there is a cat / there is: 4 of 2 + 4 words; 2 of 4; 2 of 3 and 3; there is, of 2 and 5.
    each = [2 * 3 / 7, 2 * 1 / 5, 2 * 2 / 6, 2 * 2 / 8]
    assert got == {
        "question_answering.accuracy": 2 / 4,
        "question_answering.yes_no": 1 / 2,
        "question_answering.number": 1.0,
        "question_answering.other": 0.0,
        "question_answering.f1": pytest.approx(sum(each) / 4),
        "question_answering.other_f1": pytest.approx(2 / 3),
        "question_answering.yes_rate": 1.0,
        "question_answering.num_questions": 2.0,
        "question_answering.num_left_out": 3.0,
    }


def test_bad_columns_and_parameters() -> None:
    subject, _ = says({})
    with pytest.raises(SetupError, match="'key' has no question with an answer of at most 16"):
        QuestionAnswering(conversations="key").measure(subject)
    with pytest.raises(RecipeError, match="conversations"):
        QuestionAnswering(conversations="")
    with pytest.raises(RecipeError, match="max_words"):
        QuestionAnswering(conversations="talk", max_words=0)
