"""POPE: does the model say that things are there which are not, but might well be?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from winnow.contracts.errors import RecipeError, SetupError
from winnow.contracts.identity import stable_hash64
from winnow.contracts.parameters import result
from winnow.contracts.registry import register_evaluation
from winnow.contracts.trial import Captioner, Evaluation, Score
from winnow.stages._object_statistics import (
    ObjectStatistics,
    count_objects,
    files_digest,
    read_statistics,
)
from winnow.stages._objects import object_lists, with_article, words_of
from winnow.stages.evaluate._answers import Pictures, ask, complete_pictures
from winnow.stages.evaluate._parameters import check_least, check_names
from winnow.stages.evaluate._ratios import Floats, Ratio, all_scores, ratio
from winnow.stages.evaluate._rows import count_score
from winnow.stages.evaluate._slices import slice_keys

Split = Literal["random", "popular", "adversarial"]
SPLITS: tuple[Split, ...] = ("random", "popular", "adversarial")


@dataclass(frozen=True, kw_only=True, slots=True)
class Questions:
    """What is asked about one picture. there: names in it; absent: split -> as many not in it."""

    there: tuple[str, ...]
    absent: dict[Split, tuple[str, ...]]


class Chooser:
    """Chooses the questions of a picture from its objects and the statistics of a set.

    As Li et al. 2023 do (and their code): random ones of the objects that are there;
    then as many that are not: any ("random"), the most frequent ones ("popular"), or for each of
    the chosen objects that are there the one that comes with it most often ("adversarial"; any
    other where none is left that ever did). Where they draw, a hash of seed and key decides; where
    counts are equal, the alphabet.
    """

    def __init__(self, statistics: ObjectStatistics, seen: Sequence[str], seed: int) -> None:
        self._names = sorted({*statistics.objects, *seen})
        rest = [name for name in self._names if name not in statistics.objects]
        self._popular = [*statistics.by_frequency(), *rest]
        self._companions = statistics.companions()
        self._seed = seed

    @property
    def num_names(self) -> int:
        """Different names that may be asked for."""
        return len(self._names)

    def questions(self, key: str, objects: Sequence[str], most: int) -> Questions | None:
        """Return ``most`` questions each way, fewer where the picture or the vocabulary has fewer;
        None where there is nothing to ask."""
        present = set(objects)
        absent = [name for name in self._names if name not in present]
        size = min(most, len(present), len(absent))
        if not size:
            return None
        there = self._drawn(key, "yes", sorted(present))[:size]
        drawn = self._drawn(key, "no", absent)
        return Questions(
            there=tuple(there),
            absent={
                "random": tuple(drawn[:size]),
                "popular": tuple([n for n in self._popular if n not in present][:size]),
                "adversarial": tuple(self._adversarial(there, present, drawn)),
            },
        )

    def _adversarial(
        self, there: Sequence[str], present: set[str], drawn: Sequence[str]
    ) -> list[str]:
        found: list[str] = []
        for name in there:
            ranked = [*self._companions.get(name, ()), *drawn]
            found.append(next(n for n in ranked if n not in present and n not in found))
        return found

    def _drawn(self, key: str, purpose: str, names: Sequence[str]) -> list[str]:
        return sorted(names, key=lambda n: (stable_hash64("pope", self._seed, key, purpose, n), n))


def parse_answer(text: str) -> bool | None:
    """Return whether the first word is "yes", None where it is neither "yes" nor "no"."""
    words = words_of(text)
    return {"yes": True, "no": False}.get(words[0].text) if words else None


@register_evaluation("pope", version=1)
@dataclass(frozen=True, kw_only=True, slots=True)
class Pope(Evaluation):
    """Ask of every picture whether things are in it: three that are, and three that are not.

    POPE (Li et al. 2023, "Evaluating Object Hallucination in Large Vision-Language Models"), with
    its three ways to choose what is not there (``Chooser``). Questions depend on the seed, the
    sample's key, its objects and the statistics, so every model is asked the same; the questions
    after what is there are equal in all three.

    Reads:   column ``objects``: list of names, one per object in the picture, repeats allowed; null
             or empty = not asked about; the columns of ``slices``. Generates one answer of at most
             ``max_tokens`` tokens per different question.
    Scores:  pope.accuracy: the headline, of all three splits together.
             pope.<split>_accuracy, _precision, _recall, _f1, _yes_rate for random, popular and
                 adversarial, with "yes" as the positive answer; null where nothing is to divide by.
                 An answer is "yes" or "no" by its first word; any other is wrong, and no "yes".
             all per slice; a picture is one item (``_ratios.Ratio``), since the questions about one
             picture are not independent.
             pope.unparsed: share of the questions answered with neither. pope.num_objects: names
             that can be asked for. pope.num_left_out: samples about which nothing can be asked.
    Cost:    up to twelve short generations per picture.
    Fails:   SetupError where the column or the file is missing, or no picture has an object.
             RecipeError for bad parameters.

    statistics: JSON of ``winnow objects``, of the training annotations: how often objects come,
    alone and together, and what may be asked for. null takes them from the evaluation set itself,
    which says nothing of what a model learned to expect. question: "{}" stands for "a cat".
    """

    objects: str = result()
    statistics: str | None = result(None)
    num_questions: int = result(3)
    question: str = result("Is there {} in the picture?")
    seed: int = result(0)
    max_tokens: int = result(4)
    slices: tuple[str, ...] = result(())
    max_slices: int = result(50)

    subject = "captions"

    def __post_init__(self) -> None:
        check_names("pope", "objects", (self.objects,))
        check_names("pope", "slices", self.slices)
        for name in ("num_questions", "max_tokens", "max_slices"):
            check_least("pope", name, getattr(self, name), 1)
        if "{}" not in self.question:
            msg = f"pope: question={self.question!r} has no {{}} for the object's name"
            raise RecipeError(msg)

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.objects, *self.slices)

    def files_digest(self) -> str:
        return files_digest(self.statistics)

    def measure(self, subject: Captioner) -> list[Score]:
        found = complete_pictures("pope", subject, [self.objects])
        objects = [names or [] for names in object_lists("pope", found.table, self.objects)]
        own = count_objects(objects)
        known = own if self.statistics is None else read_statistics("pope", self.statistics)
        chooser, keys = Chooser(known, list(own.objects), self.seed), found.keys
        asked = [
            chooser.questions(key, names, self.num_questions)
            for key, names in zip(keys, objects, strict=True)
        ]
        places = [place for place, questions in enumerate(asked) if questions is not None]
        if not places:
            msg = f"pope: no sample has an object in column {self.objects!r} that can be asked for"
            raise SetupError(msg)
        answers = self._answers(subject, found, asked)
        slices = slice_keys("pope", found.table, self.slices, self.max_slices)
        counts = {s: _counts(asked, answers, places, s) for s in SPLITS}
        unparsed = sum(said is None for said in answers.values())
        return [
            *all_scores(_ratios(counts, [keys[place] for place in places]), slices),
            Score(
                metric="pope.unparsed",
                value=unparsed / len(answers),
                num_items=len(answers),
                higher_is_better=False,
            ),
            count_score("pope.num_objects", chooser.num_names, len(places)),
            found.left_out_score("pope", len(found) - len(places)),
        ]

    def _answers(
        self, subject: Captioner, found: Pictures, asked: Sequence[Questions | None]
    ) -> dict[tuple[int, str], bool | None]:
        """Ask every different question once: (place, name) -> what was said."""
        wanted = dict.fromkeys(
            (place, name)
            for place, questions in enumerate(asked)
            if questions is not None
            for name in (*questions.there, *(n for s in SPLITS for n in questions.absent[s]))
        )
        rows = [found.rows[place] for place, _ in wanted]
        prompts = [self.question.replace("{}", with_article(name)) for _, name in wanted]
        said = ask("pope", subject, rows, prompts, self.max_tokens)
        return {key: parse_answer(one.text) for key, one in zip(wanted, said, strict=True)}


def _counts(
    asked: Sequence[Questions | None],
    answers: dict[tuple[int, str], bool | None],
    places: Sequence[int],
    split: Split,
) -> Floats:
    """Per picture: questions each way, right "yes", wrong "yes", right "no"; float64 (N, 4)."""
    rows = []
    for place in places:
        questions = asked[place]
        assert questions is not None
        there = [answers[place, name] for name in questions.there]
        absent = [answers[place, name] for name in questions.absent[split]]
        rows.append((len(there), there.count(True), absent.count(True), absent.count(False)))
    return np.array(rows, np.float64)


def _ratios(counts: dict[Split, Floats], keys: Sequence[str]) -> list[Ratio]:
    size, hits, false, rejections = np.sum([counts[s] for s in SPLITS], axis=0).T
    found = [ratio("pope.accuracy", hits + rejections, 2 * size, keys)]
    for split in SPLITS:
        size, hits, false, rejections = counts[split].T
        parts = {
            "accuracy": (hits + rejections, 2 * size, True),
            "precision": (hits, hits + false, True),
            "recall": (hits, size, True),
            "f1": (2 * hits, hits + false + size, True),
            "yes_rate": (hits + false, 2 * size, None),
        }
        found += [
            ratio(f"pope.{split}_{n}", a, b, keys, better) for n, (a, b, better) in parts.items()
        ]
    return found
