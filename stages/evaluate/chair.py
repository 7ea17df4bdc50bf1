"""CHAIR: how many of the objects that a description names are not in the picture?"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from winnow.contracts.parameters import result
from winnow.contracts.registry import register_evaluation
from winnow.contracts.trial import Captioner, Evaluation, Score
from winnow.models.conversation import PARAGRAPH_PROMPT
from winnow.stages._object_statistics import files_digest, read_statistics
from winnow.stages._objects import Mention, Vocabulary, object_lists, read_synonyms, words_of
from winnow.stages.evaluate._answers import check_prompt, complete_pictures, described
from winnow.stages.evaluate._parameters import check_least, check_names
from winnow.stages.evaluate._ratios import all_scores, mean, ratio
from winnow.stages.evaluate._slices import slice_keys

_SENTENCE_END = re.compile(r"[.!?]+[\"')\]\u2019\u201d]*(?=\s|$)|[\r\n]+")


def sentences(text: str) -> list[tuple[int, int]]:
    """Return a text's sentences as (start, end) characters.

    One ends with ".", "!" or "?" (and quotes or brackets behind it) before white space or the end,
    and with its line. What has no letter is none. "St. Paul" is cut in two.
    """
    ends = [*(found.end() for found in _SENTENCE_END.finditer(text)), len(text)]
    spans = zip([0, *ends], ends, strict=False)
    return [(a, b) for a, b in spans if any(letter.isalpha() for letter in text[a:b])]


def false_sentences(text: str, mentions: Iterable[Mention], there: set[str]) -> int:
    """Return how many sentences name at least one object that is not there."""
    starts = [mention.start for mention in mentions if mention.name not in there]
    return sum(any(a <= start < b for start in starts) for a, b in sentences(text))


@register_evaluation("chair", version=2)
@dataclass(frozen=True, kw_only=True, slots=True)
class Chair(Evaluation):
    """Look up every object that a description names in the picture's annotation.

    CHAIR (Rohrbach et al. 2018, "Object Hallucination in Image Captioning"), always with recall and
    length: who says nothing hallucinates nothing.

    Reads:   column ``objects``: list of names, one per object in the picture, complete; null = not
             annotated; the columns of ``slices``. Generates one answer of at most ``max_tokens``
             tokens per picture.
    Scores:  chair.chair_i: the headline, mentions of objects that are not there / all mentions of
                 objects; null where no answer names one.
             chair.chair_s: share of answers with such a mention. The paper's captions are of one
                 sentence; an answer of several counts once, so that longer ones score worse.
             chair.chair_sentence: sentences with such a mention / sentences of all answers; null
                 where there is none.
             chair.recall: different objects that are there and named / different objects there.
             chair.num_mentions: mean mentions per answer. chair.num_words: mean length.
             all per slice; a picture is one item (``_ratios.Ratio``).
             chair.num_left_out: samples without an annotation.
    Cost:    one generation per picture.
    Fails:   SetupError where a column or file is missing or no sample is annotated. RecipeError for
             bad parameters.

    Mentions are found by the names of the annotations (of this set, and of ``statistics``, the
    JSON of ``winnow objects``: a model can only be caught at names that are known) with English
    plurals, and by ``synonyms``, a JSON file {"puppy": "dog"}; the longest name wins, and what a
    text denies ("no cats") it does not mention (``_objects.Vocabulary``). trust_captions: objects
    that the sample's own caption names are there as well, as in the paper, where annotations are
    not complete.
    """

    objects: str = result()
    statistics: str | None = result(None)
    synonyms: str | None = result(None)
    prompt: str = result(PARAGRAPH_PROMPT)
    max_tokens: int = result(192)
    trust_captions: bool = result(False)
    slices: tuple[str, ...] = result(())
    max_slices: int = result(50)

    subject = "captions"

    def __post_init__(self) -> None:
        check_names("chair", "objects", (self.objects,))
        check_names("chair", "slices", self.slices)
        check_prompt("chair", self.prompt)
        check_least("chair", "max_tokens", self.max_tokens, 1)
        check_least("chair", "max_slices", self.max_slices, 1)

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.objects, *self.slices)

    def files_digest(self) -> str:
        return files_digest(self.statistics, self.synonyms)

    def measure(self, subject: Captioner) -> list[Score]:
        found = complete_pictures("chair", subject, [self.objects])
        there = [set(names or ()) for names in object_lists("chair", found.table, self.objects)]
        known = read_statistics("chair", self.statistics).objects if self.statistics else {}
        synonyms = read_synonyms("chair", self.synonyms)
        vocabulary = Vocabulary({*known, *(n for names in there for n in names)}, synonyms)
        if self.trust_captions:
            captions = found.table["caption"].to_pylist()
            for names, caption in zip(there, captions, strict=True):
                names.update(m.name for m in vocabulary.mentions(caption or ""))
        answers = described("chair", subject, found, self.prompt, self.max_tokens)
        texts = [answer.text for answer in answers]
        found_in = [vocabulary.mentions(text) for text in texts]
        named = [[mention.name for mention in one] for one in found_in]
        false = [sum(n not in here for n in said) for said, here in zip(named, there, strict=True)]
        right = [len(here.intersection(said)) for said, here in zip(named, there, strict=True)]
        mentions = [len(said) for said in named]
        wrong = [false_sentences(*one) for one in zip(texts, found_in, there, strict=True)]
        parts = [len(sentences(text)) for text in texts]
        lengths = [len(words_of(text)) for text in texts]
        keys = found.keys
        ratios = [
            ratio("chair.chair_i", false, mentions, keys, False),
            mean("chair.chair_s", [float(count > 0) for count in false], keys, False),
            ratio("chair.chair_sentence", wrong, parts, keys, False),
            ratio("chair.recall", right, [len(here) for here in there], keys),
            mean("chair.num_mentions", mentions, keys, None),
            mean("chair.num_words", lengths, keys, None),
        ]
        slices = slice_keys("chair", found.table, self.slices, self.max_slices)
        return [*all_scores(ratios, slices), found.left_out_score("chair")]
