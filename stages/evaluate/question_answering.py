"""Question answering: are the answers to questions about the pictures right?"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from winnow.contracts.errors import SetupError
from winnow.contracts.parameters import result
from winnow.contracts.registry import register_evaluation
from winnow.contracts.trial import Captioner, Evaluation, Score
from winnow.models.conversation import Turn, llava_conversation
from winnow.stages._objects import words_of
from winnow.stages.evaluate._answers import Pictures, ask, complete_pictures
from winnow.stages.evaluate._parameters import check_least, check_names
from winnow.stages.evaluate._ratios import Ratio, all_scores, mean, ratio
from winnow.stages.evaluate._slices import slice_keys

Kind = Literal["yes_no", "number", "other"]
KINDS: tuple[Kind, ...] = ("yes_no", "number", "other")
_ARTICLES = ("a", "an", "the")
_COUNTED = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
            "eleven", "twelve")  # fmt: skip
_NUMBERS = {word: str(value) for value, word in enumerate(_COUNTED)} | {"no": "0", "none": "0"}
_ASKS_NUMBER = re.compile(r"\s*(how many|count)\b", re.IGNORECASE)


def kind_of(question: str, reference: str) -> Kind:
    """Return the type of a question, as VQA's: by its answer, and by whether it asks how many."""
    first = next(iter(_words(reference)), "")
    if first in ("yes", "no"):
        return "yes_no"
    return "number" if _ASKS_NUMBER.match(question) and _number(reference) else "other"


def is_right(kind: Kind, answer: str, reference: str) -> bool:
    """Return whether an answer says what the reference says."""
    if kind == "yes_no":
        return _words(answer)[:1] == _words(reference)[:1]
    if kind == "number":
        return _number(answer) == _number(reference)
    return normalised(answer) == normalised(reference)


def f1(answer: str, reference: str) -> float:
    """Return SQuAD's F1 of the normalised words; 1 where neither has any."""
    said, wanted = normalised(answer), normalised(reference)
    common = sum((Counter(said) & Counter(wanted)).values())
    total = len(said) + len(wanted)
    return 2 * common / total if total else 1.0


def normalised(text: str) -> list[str]:
    """Return the lower-case words without punctuation and articles, numbers up to twelve as
    digits; "no" is a word."""
    return [
        word if word == "no" else _NUMBERS.get(word, word)
        for word in _words(text)
        if word not in _ARTICLES
    ]


def _words(text: str) -> list[str]:
    return [word.text for word in words_of(text)]


def _number(text: str) -> str | None:
    """Return the first number of a text, in digits."""
    found = (_NUMBERS.get(word, word) for word in _words(text))
    return next((word for word in found if word.isdecimal()), None)


@register_evaluation("question_answering", version=1)
@dataclass(frozen=True, kw_only=True, slots=True)
class QuestionAnswering(Evaluation):
    """Ask the questions of each picture's conversation one by one, without what was said before.

    The questions vary, in what they ask for and in their words, unlike those of ``pope``: this is
    what a connector that reads the question (``instruct_qformer``) is judged by.

    Reads:   column ``conversations``: LLaVA's form, list<struct<from: string, value: string>>, as
             the stage ``instructions`` writes it; a null, or what is no conversation, leaves the
             picture out. Only turns whose answer has at most ``max_words`` words are asked; equal
             questions about a picture once. The columns of ``slices``. Generates one answer of at
             most ``max_tokens`` tokens per question.
    Scores:  question_answering.accuracy: the headline, right answers / questions.
             question_answering.yes_no, .number, .other: the same by type, which are those of VQA
                 (Antol et al. 2015): the reference begins with yes or no, and the answer has to
                 begin with the same; the question asks how many, and the first number has to be the
                 same; else all words have to be the same. Null where no such question is asked.
             question_answering.f1: mean F1 of the words per question, and question_answering.
                 other_f1, of that type. Words are compared in lower case without punctuation and
                 articles, as SQuAD's (Rajpurkar et al. 2016), and numbers as digits, as VQA's.
             question_answering.yes_rate: answers that begin with yes / questions of type yes_no.
             question_answering.num_questions: mean per picture.
             all per slice; a picture is one item (``_ratios.Ratio``).
             question_answering.num_left_out: pictures without a question.
    Cost:    one generation per question.
    Fails:   SetupError where the column is missing or no picture has a question. RecipeError for
             bad parameters.
    """

    conversations: str = result()
    max_words: int = result(16)
    max_tokens: int = result(32)
    slices: tuple[str, ...] = result(())
    max_slices: int = result(50)

    subject = "captions"

    def __post_init__(self) -> None:
        check_names("question_answering", "conversations", (self.conversations,))
        check_names("question_answering", "slices", self.slices)
        check_least("question_answering", "max_words", self.max_words, 1)
        check_least("question_answering", "max_tokens", self.max_tokens, 1)
        check_least("question_answering", "max_slices", self.max_slices, 1)

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.conversations, *self.slices)

    def measure(self, subject: Captioner) -> list[Score]:
        who = "question_answering"
        found = complete_pictures(who, subject, [self.conversations])
        asked = [self._questions(value) for value in found.table[self.conversations].to_pylist()]
        places = [place for place, turns in enumerate(asked) if turns]
        if not places:
            msg = (
                f"{who}: column {self.conversations!r} has no question with an answer of at most "
                f"{self.max_words} words"
            )
            raise SetupError(msg)
        judged = self._judged(subject, found, asked, places)
        slices = slice_keys(who, found.table, self.slices, self.max_slices)
        keys = [found.keys[place] for place in places]
        return [
            *all_scores(_ratios(judged, keys), slices),
            found.left_out_score(who, len(found) - len(places)),
        ]

    def _questions(self, value: object) -> list[Turn]:
        turns = llava_conversation(value) or ()
        short = {t.prompt: t for t in turns if 0 < len(_words(t.answer)) <= self.max_words}
        return list(short.values())

    def _judged(
        self,
        subject: Captioner,
        found: Pictures,
        asked: Sequence[Sequence[Turn]],
        places: Sequence[int],
    ) -> list[list[_Judged]]:
        wanted = [(place, turn) for place in places for turn in asked[place]]
        rows = [found.rows[place] for place, _ in wanted]
        prompts = [turn.prompt for _, turn in wanted]
        answers = ask("question_answering", subject, rows, prompts, self.max_tokens)
        judged: dict[int, list[_Judged]] = {place: [] for place in places}
        for (place, turn), answer in zip(wanted, answers, strict=True):
            kind = kind_of(turn.prompt, turn.answer)
            judged[place].append(
                _Judged(
                    kind=kind,
                    right=is_right(kind, answer.text, turn.answer),
                    f1=f1(answer.text, turn.answer),
                    yes=_words(answer.text)[:1] == ["yes"],
                )
            )
        return list(judged.values())


@dataclass(frozen=True, kw_only=True, slots=True)
class _Judged:
    """One answer."""

    kind: Kind
    right: bool
    f1: float
    yes: bool


def _ratios(judged: Sequence[Sequence[_Judged]], keys: Sequence[str]) -> list[Ratio]:
    who, sizes = "question_answering", [len(some) for some in judged]
    of_kind = {k: [[one for one in some if one.kind == k] for some in judged] for k in KINDS}
    found = [ratio(f"{who}.accuracy", [sum(j.right for j in some) for some in judged], sizes, keys)]
    found += [
        ratio(
            f"{who}.{kind}",
            [sum(j.right for j in some) for some in rows],
            [len(some) for some in rows],
            keys,
        )
        for kind, rows in of_kind.items()
    ]
    sums = [sum(j.f1 for j in some) for some in judged]
    others, asked_yes = of_kind["other"], of_kind["yes_no"]
    return [
        *found,
        ratio(f"{who}.f1", sums, sizes, keys),
        ratio(
            f"{who}.other_f1",
            [sum(j.f1 for j in some) for some in others],
            [len(some) for some in others],
            keys,
        ),
        ratio(
            f"{who}.yes_rate",
            [sum(j.yes for j in some) for some in asked_yes],
            [len(some) for some in asked_yes],
            keys,
            None,
        ),
        mean(f"{who}.num_questions", sizes, keys, None),
    ]
