"""CHAIR against a loop over known answers."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pytest

from tests.stages.evaluate.captioners import captioner, world
from tests.stages.evaluate.subjects import overall
from winnow.contracts.trial import Captioner, Generated
from winnow.stages._object_statistics import count_objects
from winnow.stages._objects import Vocabulary
from winnow.stages.evaluate.chair import Chair, sentences

ROWS = pa.table(
    {
        "key": ["a", "b", "c", "d"],
        "caption": ["a dog", "two cats by a bus", "a puppy", ""],
        "objects": [["dog", "dog"], ["cat"], ["dog", "cat"], []],
    }
)
ANSWERS = ["a dog, a cat and the cat", "two cats by buses", "a puppy", "a yeti"]


def says(answers: Sequence[str], rows: pa.Table = ROWS) -> Captioner:
    def generate(places: Sequence[int], prompts: Sequence[str], most: int) -> list[Generated]:
        return [
            Generated(text=answers[p], log_likelihood=0.0, num_tokens=1, finished=True)
            for p in places
        ]

    return dataclasses.replace(captioner(rows), generate=generate)


def test_known_answers() -> None:
    got = overall(Chair(objects="objects").measure(says(ANSWERS)))
    assert got == {
        "chair.chair_i": 2 / 4,  # the cat of a, twice; "bus", "puppy" and "yeti" are no names
        "chair.chair_s": 1 / 4,
        "chair.chair_sentence": 1 / 4,
        "chair.recall": 2 / 4,
        "chair.num_mentions": 1.0,
        "chair.num_words": (7 + 4 + 2 + 2) / 4,
        "chair.num_left_out": 0.0,
    }


def test_more_names_catch_more(tmp_path: Path) -> None:
    statistics, synonyms = tmp_path / "statistics.json", tmp_path / "synonyms.json"
    statistics.write_text(count_objects([["bus"], ["yeti"]]).to_json())
    synonyms.write_text(json.dumps({"puppy": "dog"}))
    given = {"objects": "objects", "statistics": str(statistics), "synonyms": str(synonyms)}
    got = overall(Chair(**given).measure(says(ANSWERS)))
    assert got["chair.chair_i"] == 4 / 7
    assert got["chair.chair_s"] == 3 / 4
    assert got["chair.recall"] == 3 / 4
    trusting = overall(Chair(**given, trust_captions=True).measure(says(ANSWERS)))
    assert trusting["chair.chair_i"] == 3 / 7  # the caption of b names a bus
    one, two = Chair(**given).files_digest(), Chair(objects="objects").files_digest()
    assert one
    assert two == ""


def test_items_have_the_mean_and_silence_shows_in_recall() -> None:
    rows = world(50)
    score = Chair(objects="objects").measure(captioner(rows))[0]
    assert score.items is not None
    assert score.items.mean() == pytest.approx(score.value)
    assert 0.05 < score.value < 0.5
    silent = overall(Chair(objects="objects").measure(captioner(rows, "silent")))
    assert silent["chair.chair_i"] is None
    assert silent["chair.chair_sentence"] is None
    assert silent["chair.chair_s"] == silent["chair.recall"] == silent["chair.num_words"] == 0


def test_sentences_with_a_wrong_object_are_those_of_a_naive_loop() -> None:
    rows = world(50)
    subject = captioner(rows)
    vocabulary = Vocabulary({name for row in rows.to_pylist() for name in row["objects"]})
    wrong = total = 0
    several = False
    answers = subject.generate(range(50), [""] * 50, 192)
    for answer, row in zip(answers, rows.to_pylist(), strict=True):
        parts = [part for part in answer.text.split(".") if part.strip()]
        bad = 0
        for part in parts:
            bad += any(m.name not in row["objects"] for m in vocabulary.mentions(part))
        several |= 0 < bad < len(parts)
        wrong, total = wrong + bad, total + len(parts)
    got = overall(Chair(objects="objects").measure(subject))
    assert several
    assert got["chair.chair_sentence"] == pytest.approx(wrong / total)
    assert got["chair.chair_sentence"] < got["chair.chair_s"]


def test_where_sentences_end() -> None:
    text = ' "A cat!" Two dogs (and 3.5 mice?!)\nSt. 1. ...A yeti'
    found = [text[a:b].strip() for a, b in sentences(text)]
    assert found == ['"A cat!"', "Two dogs (and 3.5 mice?!)", "St.", "...A yeti"]
    assert sentences("") == sentences(" .\n12. ") == []


def test_what_is_denied_is_neither_wrong_nor_right() -> None:
    answers = [
        "A dog. There is no cat.",  # a true denial
        "No cat. No dog.",  # a false one recalls nothing
        "There are no cats or dogs.",
        "No dog but a cat.",
    ]
    got = overall(Chair(objects="objects").measure(says(answers)))
    assert got["chair.chair_i"] == 1 / 2
    assert got["chair.chair_s"] == 1 / 4
    assert got["chair.chair_sentence"] == 1 / 6
    assert got["chair.recall"] == 1 / 4
    assert got["chair.num_mentions"] == 2 / 4
