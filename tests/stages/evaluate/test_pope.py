"""POPE against naive loops."""

from __future__ import annotations

from collections import Counter
from itertools import combinations
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tests.stages.evaluate.captioners import captioner, share, world
from tests.stages.evaluate.subjects import overall
from winnow.contracts.errors import RecipeError, SetupError
from winnow.stages._object_statistics import count_objects, read_statistics
from winnow.stages.evaluate.pope import SPLITS, Chooser, Pope, Questions, parse_answer

NAMES = [f"thing {i}" for i in range(14)]
SETS = [
    [n for j, n in enumerate(NAMES) if share(i, j) < 0.9 / (1 + j % 7) or (i + j) % 9 == 0]
    for i in range(80)
]
STATISTICS = count_objects(SETS)


def test_counts_are_of_pictures() -> None:
    assert count_objects([["b", "a", "b"], None, [], ["a"]]) == count_objects(
        [["a", "b"], ["a"], []]
    )
    objects = Counter(name for names in SETS for name in names)
    pairs = Counter(p for names in SETS for p in combinations(sorted(names), 2))
    assert STATISTICS.objects == objects
    assert STATISTICS.pairs == pairs
    assert STATISTICS.num_rows == 80


def test_popular_and_adversarial_are_those_of_a_naive_search() -> None:
    chooser = Chooser(STATISTICS, [], 0)
    for i, present in enumerate(SETS):
        asked = chooser.questions(f"k{i}", present, 3)
        if asked is None:
            continue
        assert set(asked.there) <= set(present)
        size = min(3, len(present), len(NAMES) - len(present))
        assert len(set(asked.there)) == size
        for split in SPLITS:
            assert len(set(asked.absent[split])) == size
            assert set(asked.absent[split]).isdisjoint(present)
        absent = [n for n in NAMES if n not in present]
        times = {n: sum(n in s for s in SETS) for n in absent}
        assert list(asked.absent["popular"]) == sorted(absent, key=lambda n: (-times[n], n))[:size]
        taken: list[str] = []
        for there, chosen in zip(asked.there, asked.absent["adversarial"], strict=True):
            left = [n for n in absent if n not in taken]
            both = {n: sum(n in s and there in s for s in SETS) for n in left}
            if max(both.values()):
                assert chosen == min(left, key=lambda n: (-both[n], n))
            assert chosen in left
            taken.append(chosen)


def test_questions_depend_on_seed_key_objects_and_nothing_else() -> None:
    one, other = (Chooser(STATISTICS, [], seed) for seed in (0, 1))
    again = Chooser(count_objects(SETS[::-1]), [], 0)
    asked = [one.questions(f"k{i}", SETS[i], 3) for i in range(40)]
    assert [again.questions(f"k{i}", SETS[i][::-1] * 2, 3) for i in range(40)] == asked
    assert [other.questions(f"k{i}", SETS[i], 3) for i in range(40)] != asked
    assert one.questions("k", [], 3) is None
    assert one.questions("k", NAMES, 3) is None
    drawn = Counter(n for i in range(400) for n in _random(one, f"k{i}"))
    assert set(drawn) == set(NAMES[1:])
    mean = 400 / 13
    assert all(abs(count - mean) < 4 * mean**0.5 for count in drawn.values())


def _random(chooser: Chooser, key: str) -> tuple[str, ...]:
    asked = chooser.questions(key, NAMES[:1] * 2, 3)
    assert isinstance(asked, Questions)
    return asked.absent["random"]


@pytest.mark.parametrize(
    ("text", "said"),
    [("Yes", True), ("no.", False), (" YES, there is", True), ("There is", None), ("", None),
     ("nobody", None), ("yes/no", True)],
)  # fmt: skip
def test_answers_are_read_by_their_first_word(text: str, said: bool | None) -> None:
    assert parse_answer(text) is said


def test_scores_are_those_of_a_loop() -> None:
    rows = world(60)
    subject = captioner(rows)
    evaluation = Pope(objects="objects", seed=3)
    scores = evaluation.measure(subject)
    got = overall(scores)
    objects = [row["objects"] for row in rows.to_pylist()]
    chooser = Chooser(count_objects(objects), [], 3)
    right_of_all = []
    num_left_out = 0
    for split in SPLITS:
        truths, said, per_picture = [], [], []
        for i, names in enumerate(objects):
            asked = chooser.questions(f"k{i:05d}", names, 3)
            if asked is None:
                num_left_out += 1
                continue
            pairs = [(n, True) for n in asked.there] + [(n, False) for n in asked.absent[split]]
            answers = []
            for name, truth in pairs:
                text = f"Is there {'an' if name[0] in 'aeiou' else 'a'} {name} in the picture?"
                answers.append(parse_answer(subject.generate([i], [text], 4)[0].text))
                truths.append(truth)
            said += answers
            right = [a is t for a, (_, t) in zip(answers, pairs, strict=True)]
            per_picture.append((sum(right), len(right)))
        yes = [a is True for a in said]
        hits = sum(y and t for y, t in zip(yes, truths, strict=True))
        precision, recall = hits / sum(yes), hits / sum(truths)
        correct = [a is t for a, t in zip(said, truths, strict=True)]
        right_of_all += correct
        assert got[f"pope.{split}_accuracy"] == pytest.approx(np.mean(correct))
        assert got[f"pope.{split}_precision"] == pytest.approx(precision)
        assert got[f"pope.{split}_recall"] == pytest.approx(recall)
        f1 = 2 * precision * recall / (precision + recall)
        assert got[f"pope.{split}_f1"] == pytest.approx(f1)
        assert got[f"pope.{split}_yes_rate"] == pytest.approx(np.mean(yes))
        assert None in said
        if split == "random":
            # The items' variance is that of a ratio: here, of pictures asked unequally often.
            items = next(s.items for s in scores if s.metric == "pope.random_accuracy")
            a, n = np.array(per_picture, float).T
            expected = a.sum() / n.sum() + (a - a.sum() / n.sum() * n) / n.mean()
            assert items == pytest.approx(expected)
            assert len(set(n)) > 1
    assert got["pope.accuracy"] == pytest.approx(np.mean(right_of_all))
    assert got["pope.num_left_out"] == num_left_out / 3


def test_statistics_from_a_file_are_asked_for(tmp_path: Path) -> None:
    rows = world(20)
    path = tmp_path / "statistics.json"
    training = count_objects([["unicorn", "cat"], ["unicorn"], ["cat", "yeti"]])
    path.write_text(training.to_json())
    assert read_statistics("x", str(path)) == training
    asked: list[str] = []
    base = captioner(rows)
    subject = type(base)(
        **{
            **{f: getattr(base, f) for f in base.__slots__},
            "generate": lambda r, p, m: (asked.extend(p), base.generate(r, p, m))[1],
        }
    )
    evaluation = Pope(objects="objects", statistics=str(path))
    evaluation.measure(subject)
    assert sum("unicorn" in text for text in asked) >= 15
    before = evaluation.files_digest()
    path.write_text(count_objects([["cat"]]).to_json())
    assert evaluation.files_digest() != before
    assert Pope(objects="objects").files_digest() == ""
    path.write_text("{}")
    with pytest.raises(SetupError, match="winnow objects EXPORT"):
        evaluation.measure(subject)


def test_bad_parameters_and_sets_say_what_is_wrong() -> None:
    with pytest.raises(RecipeError, match="no {} for the object"):
        Pope(objects="objects", question="Is it there?")
    with pytest.raises(RecipeError, match="num_questions=0; use 1 or more"):
        Pope(objects="objects", num_questions=0)
    rows = world(3)
    place = rows.schema.get_field_index("objects")
    empty = rows.set_column(place, "objects", pa.array([[]] * 3, pa.list_(pa.string())))
    with pytest.raises(SetupError, match="no sample has an object in column 'objects'"):
        Pope(objects="objects").measure(captioner(empty))
