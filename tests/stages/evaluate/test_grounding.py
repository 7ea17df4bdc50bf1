"""Grounding by position against loops."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tests.stages.evaluate.captioners import NAMES, captioner, world
from tests.stages.evaluate.subjects import overall
from winnow.contracts.errors import SetupError
from winnow.contracts.trial import Generated
from winnow.stages._objects import Vocabulary, words_of
from winnow.stages.evaluate.grounding import Grounding, others, part_of

ROWS = world(30)
TABLE = ROWS.to_pylist()
KEYS = ROWS["key"].to_pylist()


def test_others_is_a_derangement_that_depends_on_keys_and_seed() -> None:
    for size in (2, 3, 17):
        found = others(KEYS[:size], 5)
        assert sorted(found) == list(range(size))
        assert all(a != b for a, b in enumerate(found))
    assert others(KEYS, 1) != others(KEYS, 2)
    back = others(KEYS[::-1], 1)
    assert [29 - back[29 - i] for i in range(30)] == others(KEYS, 1)


def test_parts() -> None:
    assert [part_of(i, 8, 4) for i in range(8)] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert [part_of(i, 3, 4) for i in range(3)] == [0, 1, 2]
    assert part_of(0, 1, 4) == 0


def test_drops_are_those_of_a_loop() -> None:
    got = overall(Grounding(objects="objects", seed=4).measure(captioner(ROWS)))
    swap = others(KEYS, 4)
    by_part: list[list[float]] = [[], [], [], []]
    by_name: dict[bool, list[float]] = {True: [], False: []}
    for row, other in enumerate(swap):
        seen = set(TABLE[other]["caption"].split())
        words = TABLE[row]["caption"].split()
        for place, word in enumerate(words):
            drop = np.log(0.6) - np.log(0.6 if word in seen else 0.1)
            by_part[4 * place // len(words)].append(drop)
            bare = word.strip(".")
            # "hot", "slice of pizza" and the like are parts of names; "red" is, before "apple".
            is_apple = bare == "red" and words[place + 1].startswith("apple")
            is_name = any(bare in (w, f"{w}s") for n in NAMES for w in n.split() if w != "red")
            is_name |= bare in ("knives", "buses", "mice")
            by_name[is_name or is_apple].append(drop)
    every = [d for part in by_part for d in part]
    assert got["grounding.drop"] == pytest.approx(np.mean(every))
    assert got["grounding.drop_objects"] == pytest.approx(np.mean(by_name[True]))
    assert got["grounding.drop_rest"] == pytest.approx(np.mean(by_name[False]))
    for k in range(4):
        assert got[f"grounding.drop_{k + 1}"] == pytest.approx(np.mean(by_part[k]))
    assert got["grounding.drop_objects"] > got["grounding.drop_rest"] > 0


def test_hallucination_by_position_is_that_of_a_loop() -> None:
    subject = captioner(ROWS)
    got = overall(Grounding(objects="objects").measure(subject))
    vocabulary = Vocabulary({n for row in TABLE for n in row["objects"]})
    named, false = np.zeros(4), np.zeros(4)
    for row, answer in enumerate(subject.generate(range(30), [""] * 30, 192)):
        size = len(words_of(answer.text))
        for mention in vocabulary.mentions(answer.text):
            named[4 * mention.first_word // size] += 1
            false[4 * mention.first_word // size] += mention.name not in TABLE[row]["objects"]
    for k in range(4):
        assert got[f"grounding.hallucinated_{k + 1}"] == pytest.approx(false[k] / named[k])
    assert false.all()


def test_the_use_of_the_picture_is_named_for_its_kind() -> None:
    got = overall(
        Grounding(objects="objects", num_parts=2).measure(captioner(ROWS, use="gate_ratio"))
    )
    assert got["grounding.gate_ratio"] == pytest.approx(0.5)
    assert got["grounding.gate_ratio_1"] > 0.6 > 0.4 > got["grounding.gate_ratio_2"]
    without = overall(Grounding(objects="objects").measure(captioner(ROWS, use="")))
    assert not [name for name in without if "gate" in name or "attention" in name]


def test_attention_on_unequal_prefixes_is_two_metrics() -> None:
    """facts of the world's captioner: 4 image tokens."""
    base = captioner(ROWS)
    long = replace(base, facts={**base.facts, "image_tokens": 196.0})
    sound = replace(base, facts={**base.facts, "audio_tokens": 12.0})
    grounding = Grounding(objects="objects", num_parts=2)
    lengths = {4: base, 196: long, 16: sound}
    for length, subject in lengths.items():
        got = overall(grounding.measure(subject))
        names = {name for name in got if "attention" in name}
        start = f"grounding.attention_mass_{length}"
        assert names == {start, f"{start}_1", f"{start}_2"}
        assert got[start] == pytest.approx(0.5)
        assert got[f"{start}_1"] > 0.6 > 0.4 > got[f"{start}_2"]


def test_what_is_denied_is_not_hallucinated_and_no_object() -> None:
    def denies(rows: Any, prompts: Any, most: int) -> list[Generated]:
        said = Generated(text="There is no yeti.", log_likelihood=0, num_tokens=4, finished=True)
        return [said for _ in rows]

    captions = ["A dog without a yeti .", "A cat and no dog ."] * 15
    rows = pa.table({"key": KEYS, "caption": captions, "objects": [["dog"], ["cat", "yeti"]] * 15})
    subject = replace(captioner(rows), generate=denies)
    got = overall(Grounding(objects="objects", num_parts=2, seed=4).measure(subject))
    assert got["grounding.hallucinated_1"] is got["grounding.hallucinated_2"] is None
    drops: dict[bool, list[float]] = {True: [], False: []}
    for row, other in enumerate(others(KEYS, 4)):
        seen = captions[other].split()
        for word in captions[row].split():
            is_object = word == ("dog", "cat")[row % 2]
            drops[is_object].append(np.log(0.6) - np.log(0.6 if word in seen else 0.1))
    assert got["grounding.drop_objects"] == pytest.approx(np.mean(drops[True]))
    assert got["grounding.drop_rest"] == pytest.approx(np.mean(drops[False]))


def test_one_picture_has_no_other() -> None:
    with pytest.raises(SetupError, match="1 of 1 samples have caption and objects; it takes 2"):
        Grounding(objects="objects").measure(captioner(ROWS.slice(0, 1)))


def test_tokens_behind_the_context_are_left_out_and_counted() -> None:
    base = captioner(ROWS)

    def short(rows: Any, prompts: Any, answers: Any) -> Any:
        found = base.token_log_likelihoods(rows, prompts, answers)
        return [np.where(np.arange(len(one)) < 6, one, np.nan) for one in found]

    got = Grounding(objects="objects").measure(replace(base, token_log_likelihoods=short))
    full = overall(Grounding(objects="objects").measure(base))
    sizes = [len(row["caption"].split()) for row in TABLE]
    unscored = sum(max(0, size - 6) for size in sizes) / sum(sizes)
    assert overall(got)["grounding.unscored"] == pytest.approx(unscored)
    assert 0 < unscored < 1
    assert full["grounding.unscored"] == 0
    assert all(score.items is None or np.isfinite(score.items).all() for score in got)
