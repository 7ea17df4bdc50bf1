"""Grounding by position: does a description lose sight of the picture as it goes on?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from winnow.contracts.errors import ShardError
from winnow.contracts.parameters import result
from winnow.contracts.registry import register_evaluation
from winnow.contracts.trial import Captioner, Evaluation, Score
from winnow.models.conversation import PARAGRAPH_PROMPT
from winnow.stages._object_statistics import files_digest, read_statistics
from winnow.stages._objects import Vocabulary, object_lists, read_synonyms, words_of
from winnow.stages.evaluate._answers import (
    Pictures,
    check_prompt,
    complete_pictures,
    described,
)
from winnow.stages.evaluate._parameters import check_least, check_names
from winnow.stages.evaluate._ratios import Ratio, all_scores, ratio
from winnow.stages.evaluate._rows import shuffled

Floats = npt.NDArray[np.float64]
Numbers = npt.NDArray[np.int64]


def part_of(index: int, total: int, num_parts: int) -> int:
    """Return which of ``num_parts`` equal parts of a text the ``index``-th of ``total`` words or
    tokens is in, from 0."""
    return index * num_parts // total


def others(keys: Sequence[str], seed: int) -> list[int]:
    """Return another row for every row, each row once: the next one on a shuffled ring.

    Depends on nothing but the keys and the seed. There have to be two rows or more.
    """
    ring = [int(row) for row in shuffled(keys, seed, "grounding")]
    found = [0] * len(ring)
    for place, row in enumerate(ring):
        found[row] = ring[(place + 1) % len(ring)]
    return found


@register_evaluation("grounding", version=2)
@dataclass(frozen=True, kw_only=True, slots=True)
class Grounding(Evaluation):
    """Measure by position in the text what the picture contributes.

    Three views. What the model says: the share of hallucinated objects among those that it names in
    each quarter of its own answer (later ones are hallucinated more often: Zhou et al. 2024,
    LURE). What it expects: the drop in the log-probability of the reference's tokens when
    the picture is another sample's. What its layers take: ``Captioner.use_of_image`` over the
    reference's tokens.

    Reads:   the captions (the references); column ``objects``: list of names, one per object in the
             picture, complete; null = left out. Generates one answer of at most ``max_tokens``
             tokens per picture, and scores every reference twice.
    Scores:  grounding.drop: the headline, in nats per token: log p(token | own picture) minus
                 log p(token | other picture), over all tokens of all references; 0 for a model that
                 does not look. The other picture is the next on a ring shuffled by the seed, so
                 every picture is used once.
             grounding.drop_objects, grounding.drop_rest: over tokens that are part of an object's
                 name, and the others. grounding.drop_<k>, grounding.drop_objects_<k>: over the
                 tokens in part k of the reference, 1 the first of ``num_parts``.
             grounding.hallucinated_<k>: of the objects named in part k of the answer (by words),
                 the share that is not in the picture; null where no answer names one there. What a
                 text denies ("no cats") it does not name (``Vocabulary.mentions``), here and above.
             grounding.<use>, grounding.<use>_<k>: mean use of the picture over the reference's
                 tokens, where the model gives one. <use> is "gate_ratio" for gated layers,
                 and "attention_mass_<length>" for prefix connectors: attention is shared out among
                 tokens, so that only prefixes of equal length compare. length: tokens of the whole
                 prefix, the facts "image_tokens" (of a picture with the most tiles) and, with an
                 audio tower, "audio_tokens" together.
             grounding.unscored: share of the references' tokens behind the model's context, which
                 has no log-likelihood (nan) for them; they are left out of the means above.
             A picture is one item (``_ratios.Ratio``). grounding.num_left_out: samples without
             caption or annotation.
    Cost:    one generation, two or three forward passes over prompt and reference per picture.
    Fails:   SetupError where a column or file is missing or fewer than two samples are left.
             ShardError where the model's tokens do not fit their log-likelihoods. RecipeError for
             bad parameters.

    statistics, synonyms: as ``chair``'s.
    """

    objects: str = result()
    statistics: str | None = result(None)
    synonyms: str | None = result(None)
    prompt: str = result(PARAGRAPH_PROMPT)
    max_tokens: int = result(192)
    num_parts: int = result(4)
    seed: int = result(0)

    subject = "captions"

    def __post_init__(self) -> None:
        check_names("grounding", "objects", (self.objects,))
        check_prompt("grounding", self.prompt)
        for name in ("max_tokens", "num_parts"):
            check_least("grounding", name, getattr(self, name), 1)

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.objects,)

    def files_digest(self) -> str:
        return files_digest(self.statistics, self.synonyms)

    def measure(self, subject: Captioner) -> list[Score]:
        found = complete_pictures("grounding", subject, ["caption", self.objects], least=2)
        there = [set(names or ()) for names in object_lists("grounding", found.table, self.objects)]
        known = read_statistics("grounding", self.statistics).objects if self.statistics else {}
        synonyms = read_synonyms("grounding", self.synonyms)
        vocabulary = Vocabulary({*known, *(n for names in there for n in names)}, synonyms)
        ratios = [
            *self._drops(subject, found, vocabulary),
            *self._hallucinated(subject, found, vocabulary, there),
            *self._use(subject, found),
        ]
        return [*all_scores(ratios, {}), found.left_out_score("grounding")]

    def _drops(self, subject: Captioner, found: Pictures, vocabulary: Vocabulary) -> list[Ratio]:
        captions = _captions(found)
        prompts = [self.prompt] * len(found)
        swapped = [found.rows[row] for row in others(found.keys, self.seed)]
        own = subject.token_log_likelihoods(found.rows, prompts, captions)
        other = subject.token_log_likelihoods(swapped, prompts, captions)
        drops, parts, named = [], [], []
        for caption, one, two in zip(captions, own, other, strict=True):
            spans = subject.tokens(caption)
            if not len(one) == len(two) == len(spans):
                msg = f"{len(spans)} tokens have {len(one)} and {len(two)} log-likelihoods"
                raise ShardError(msg, stage="evaluate grounding", retryable=False)
            names = [(m.start, m.end) for m in vocabulary.mentions(caption)]
            drops.append(np.asarray(one, np.float64) - np.asarray(two, np.float64))
            parts.append(self._parts(len(spans)))
            named.append(np.array([any(a < e and b > s for s, e in names) for a, b in spans], bool))
        every = [np.ones_like(n) for n in named]
        rest = [~n for n in named]
        keys = found.keys
        return [
            _token_mean("drop", drops, every, keys, True),
            _token_mean("drop_objects", drops, named, keys, True),
            _token_mean("drop_rest", drops, rest, keys, None),
            ratio(
                "grounding.unscored",
                [int(np.isnan(d).sum()) for d in drops],
                [len(d) for d in drops],
                keys,
                False,
            ),
            *self._by_part("drop", drops, every, parts, keys, True),
            *self._by_part("drop_objects", drops, named, parts, keys, True),
        ]

    def _hallucinated(
        self,
        subject: Captioner,
        found: Pictures,
        vocabulary: Vocabulary,
        there: Sequence[set[str]],
    ) -> list[Ratio]:
        answers = described("grounding", subject, found, self.prompt, self.max_tokens)
        false = np.zeros((self.num_parts, len(found)))
        named = np.zeros((self.num_parts, len(found)))
        for row, (answer, here) in enumerate(zip(answers, there, strict=True)):
            total = len(words_of(answer.text))
            for mention in vocabulary.mentions(answer.text):
                part = part_of(mention.first_word, total, self.num_parts)
                named[part, row] += 1
                false[part, row] += mention.name not in here
        return [
            ratio(f"grounding.hallucinated_{k + 1}", false[k], named[k], found.keys, False)
            for k in range(self.num_parts)
        ]

    def _use(self, subject: Captioner, found: Pictures) -> list[Ratio]:
        if subject.use_of_image is None:
            return []
        captions = _captions(found)
        uses = subject.use_of_image(found.rows, [self.prompt] * len(found), captions)
        every = [np.ones(len(one), bool) for one in uses]
        parts = [self._parts(len(one)) for one in uses]
        kind = _use_name(subject)
        return [
            _token_mean(kind, uses, every, found.keys, None),
            *self._by_part(kind, uses, every, parts, found.keys, None),
        ]

    def _parts(self, total: int) -> Numbers:
        return np.array([part_of(i, total, self.num_parts) for i in range(total)], np.int64)

    def _by_part(
        self,
        name: str,
        values: Sequence[Floats],
        chosen: Sequence[npt.NDArray[np.bool_]],
        parts: Sequence[Numbers],
        keys: Sequence[str],
        higher_is_better: bool | None,
    ) -> list[Ratio]:
        return [
            _token_mean(
                f"{name}_{k + 1}",
                values,
                [c & (p == k) for c, p in zip(chosen, parts, strict=True)],
                keys,
                higher_is_better,
            )
            for k in range(self.num_parts)
        ]


def _use_name(subject: Captioner) -> str:
    """The metric's name of ``use_of_image``: unequal prefixes never share one."""
    if subject.use_kind != "attention_mass":
        return subject.use_kind
    length = subject.facts["image_tokens"] + subject.facts.get("audio_tokens", 0)
    return f"attention_mass_{length:.0f}"


def _captions(found: Pictures) -> list[str]:
    return [str(caption).strip() for caption in found.table["caption"].to_pylist()]


def _token_mean(
    name: str,
    values: Sequence[Floats],
    chosen: Sequence[npt.NDArray[np.bool_]],
    keys: Sequence[str],
    higher_is_better: bool | None,
) -> Ratio:
    """The mean over the chosen tokens, nan left out; a text weighs by its tokens."""
    chosen = [c & np.isfinite(v) for v, c in zip(values, chosen, strict=True)]
    sums = [float(v[c].sum()) for v, c in zip(values, chosen, strict=True)]
    counts = [int(c.sum()) for c in chosen]
    return ratio(f"grounding.{name}", sums, counts, keys, higher_is_better)
