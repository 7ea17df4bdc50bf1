"""Question answering: are the answers to questions about the pictures right?"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from winnow.contracts.errors import SetupError
from winnow.contracts.parameters import result
from winnow.contracts.registry import register_evaluation
from winnow.contracts.trial import Captioner, Evaluation, Score
from winnow.models.conversation import Turn, llava_conversation
from winnow.stages._objects import words_of
from winnow.stages._words import NUMBER_WORDS
from winnow.stages.evaluate._answers import Pictures, ask, complete_pictures
from winnow.stages.evaluate._parameters import check_least, check_names
from winnow.stages.evaluate._ratios import Ratio, all_scores, mean, ratio
from winnow.stages.evaluate._slices import slice_keys

NAME = "question_answering"
Kind = Literal["yes_no", "number", "other"]
KINDS: tuple[Kind, ...] = ("yes_no", "number", "other")
_ARTICLES = ("a", "an", "the")
_NUMBERS = {word: str(value) for value, word in enumerate(NUMBER_WORDS[:13])}
_NUMBERS |= {"no": "0", "none": "0"}
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


@register_evaluation(NAME, version=1)
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
        check_names(NAME, "conversations", (self.conversations,))
        check_names(NAME, "slices", self.slices)
        check_least(NAME, "max_words", self.max_words, 1)
        check_least(NAME, "max_tokens", self.max_tokens, 1)
        check_least(NAME, "max_slices", self.max_slices, 1)

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.conversations, *self.slices)

    def measure(self, subject: Captioner) -> list[Score]:
        found = complete_pictures(NAME, subject, [self.conversations])
        values = found.table[self.conversations].to_pylist()
        asked = {p: turns for p, value in enumerate(values) if (turns := self._questions(value))}
        if not asked:
            msg = (
                f"{NAME}: column {self.conversations!r} has no question with an answer of at most "
                f"{self.max_words} words"
            )
            raise SetupError(msg)
        judged = self._judged(subject, found, asked)
        slices = slice_keys(NAME, found.table, self.slices, self.max_slices)
        keys = found.keys
        return [
            *all_scores(_ratios(judged, [keys[place] for place in asked]), slices),
            found.left_out_score(NAME, len(found) - len(asked)),
        ]

    def _questions(self, value: object) -> list[Turn]:
        turns = llava_conversation(value) or ()
        short = {t.prompt: t for t in turns if 0 < len(_words(t.answer)) <= self.max_words}
        return list(short.values())

    def _judged(
        self, subject: Captioner, found: Pictures, asked: Mapping[int, Sequence[Turn]]
    ) -> list[list[_Judged]]:
        """Return what the answers are worth, by picture."""
        rows = [found.rows[place] for place, turns in asked.items() for _ in turns]
        prompts = [turn.prompt for turns in asked.values() for turn in turns]
        answers = iter(ask(NAME, subject, rows, prompts, self.max_tokens))
        return [[_judge(turn, next(answers).text) for turn in turns] for turns in asked.values()]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Judged:
    """One answer."""

    kind: Kind
    right: bool
    f1: float
    yes: bool


def _judge(turn: Turn, answer: str) -> _Judged:
    kind = kind_of(turn.prompt, turn.answer)
    return _Judged(
        kind=kind,
        right=is_right(kind, answer, turn.answer),
        f1=f1(answer, turn.answer),
        yes=_words(answer)[:1] == ["yes"],
    )


def _ratios(judged: Sequence[Sequence[_Judged]], keys: Sequence[str]) -> list[Ratio]:
    def share(
        metric: str,
        worth: Callable[[_Judged], float],
        kind: Kind | None = None,
        better: bool | None = True,
    ) -> Ratio:
        """Of all questions, or of those of a kind."""
        counted = [[j for j in some if kind in (None, j.kind)] for some in judged]
        sums, sizes = [sum(map(worth, some)) for some in counted], [len(some) for some in counted]
        return ratio(f"{NAME}.{metric}", sums, sizes, keys, better)

    return [
        share("accuracy", lambda j: j.right),
        *(share(kind, lambda j: j.right, kind) for kind in KINDS),
        share("f1", lambda j: j.f1),
        share("other_f1", lambda j: j.f1, "other"),
        share("yes_rate", lambda j: j.yes, "yes_no", None),
        mean(f"{NAME}.num_questions", [len(some) for some in judged], keys, None),
    ]
