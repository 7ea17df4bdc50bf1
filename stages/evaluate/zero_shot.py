"""Zero-shot classification: which class's prompts does an image lie nearest to?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from winnow.contracts.errors import RecipeError, SetupError
from winnow.contracts.parameters import result
from winnow.contracts.registry import register_evaluation
from winnow.contracts.trial import Embeddings, Evaluation, Score
from winnow.stages.evaluate._geometry import unit
from winnow.stages.evaluate._parameters import Modality, check_cutoffs, check_least, check_names
from winnow.stages.evaluate._ranking import Floats, Places, hits, rank_label
from winnow.stages.evaluate._rows import Indices, complete_rows, count_score, text_values
from winnow.stages.evaluate._slices import slice_keys, slice_scores, worst_slice

DEFAULT_TEMPLATES = (
    "a photo of a {}.",
    "a picture of a {}.",
    "an image of a {}.",
    "a drawing of a {}.",
    "a {}.",
)


OPENAI_IMAGENET = "openai_imagenet"
"""Stands for open_clip's 80 templates in a list of templates; alone there."""


def written(templates: Sequence[str]) -> Sequence[str]:
    """Return the templates that a list of them means."""
    if tuple(templates) != (OPENAI_IMAGENET,):
        return templates
    import open_clip

    return [template("{}") for template in open_clip.OPENAI_IMAGENET_TEMPLATES]


def class_vectors(
    embed_texts: Callable[[Sequence[str]], npt.NDArray[np.float32]],
    classes: Sequence[str],
    templates: Sequence[str],
) -> Floats:
    """Return one unit vector per class, float64 (C, D).

    The mean of the unit vectors of all templates, made a unit vector again (Radford et al. 2021,
    section 3.1.4: an ensemble in embedding space, not in probabilities). A zero mean stays zero.
    """
    texts = [template.replace("{}", name) for name in classes for template in templates]
    vectors_TD = unit(np.asarray(embed_texts(texts)))
    return unit(vectors_TD.reshape(len(classes), len(templates), -1).mean(axis=1))


@register_evaluation("zero_shot", version=1)
@dataclass(frozen=True, kw_only=True, slots=True)
class ZeroShot(Evaluation):
    """Classify by the nearest class vector, a mean over prompt templates (Radford et al. 2021).

    Reads:   the vectors of ``modality``; column ``label``: the class's name, null = not in the
             test; the columns of ``slices``. Embeds classes x templates with the model.
    Scores:  zero_shot.accuracy@k for each k of ``top`` (the headline is the first): the share of
                 samples whose class is among the k nearest by cosine, ties counted as standing in
                 random order; null where there are no more than k classes.
             zero_shot.mean_per_class_accuracy: accuracy@1 per class that has samples, averaged, so
                 that large classes do not outweigh small ones (as Radford et al. 2021, appendix A,
                 do for unbalanced sets); one item per class.
             accuracy per slice; zero_shot.worst_slice: the headline in its worst slice of 20
                 samples or more.
             zero_shot.num_classes. zero_shot.num_left_out: samples without a vector, without a
                 label, or whose label is not in ``classes``.
    Cost:    one forward pass of classes x templates texts; N C D multiplications and additions.
    Fails:   SetupError where the modality or a column is missing, there are no more classes than
             the first k, or no sample is left. RecipeError for bad parameters.

    classes: names in any order; () takes the different labels. templates: "{}" stands for the name;
        [openai_imagenet] takes the 80 of Radford et al. 2021, as open_clip has them.
    """

    label: str = result()
    classes: tuple[str, ...] = result(())
    templates: tuple[str, ...] = result(DEFAULT_TEMPLATES)
    top: tuple[int, ...] = result((1, 5))
    modality: Modality = result("image")
    slices: tuple[str, ...] = result(())
    max_slices: int = result(50)

    def __post_init__(self) -> None:
        check_names("zero_shot", "label", (self.label,))
        check_names("zero_shot", "classes", [name.strip() for name in self.classes])
        check_names("zero_shot", "templates", self.templates, least=1)
        check_names("zero_shot", "slices", self.slices)
        check_cutoffs("zero_shot", "top", self.top)
        check_least("zero_shot", "max_slices", self.max_slices, 1)
        for template in () if self.templates == (OPENAI_IMAGENET,) else self.templates:
            if "{}" not in template:
                msg = f"zero_shot: template {template!r} has no {{}} for the class's name"
                raise RecipeError(msg)

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.label, *self.slices)

    def measure(self, subject: Embeddings) -> list[Score]:
        rows = complete_rows("zero_shot", subject, (self.modality,), least=1)
        labels = text_values("zero_shot", rows.table, self.label)
        classes = self._classes(labels)
        number = {name: i for i, name in enumerate(classes)}
        chosen = np.array([i for i, name in enumerate(labels) if name in number], np.int64)
        if not len(chosen):
            msg = f"zero_shot: no sample's {self.label!r} is one of {list(classes)[:10]}"
            raise SetupError(msg)
        used = rows.take(chosen)
        truth = np.array([number[labels[i] or ""] for i in chosen], np.int64)
        vectors_CD = class_vectors(subject.embed_texts, classes, written(self.templates))
        places = rank_label(used.vectors[0] @ vectors_CD.T, truth)
        scores = [self._accuracy(places, at, used.keys, len(classes)) for at in self.top]
        slices = slice_keys("zero_shot", used.table, self.slices, self.max_slices)
        sliced = slice_scores(scores, slices)
        return [
            *scores,
            _per_class(hits(places, 1), truth, classes),
            *sliced,
            *worst_slice("zero_shot", scores[0].metric, sliced),
            count_score("zero_shot.num_classes", len(classes), len(used)),
            used.left_out_score("zero_shot", len(rows) - len(used)),
        ]

    def _classes(self, labels: Sequence[str | None]) -> tuple[str, ...]:
        """The classes by name, so that their order cannot change a result."""
        named = {name.strip() for name in self.classes} or {name for name in labels if name}
        if len(named) <= self.top[0]:
            msg = (
                f"zero_shot: {len(named)} classes in {self.label!r}; accuracy@{self.top[0]} takes"
                f" {self.top[0] + 1} or more"
            )
            raise SetupError(msg)
        return tuple(sorted(named))

    def _accuracy(self, places: Places, at: int, keys: list[str], num_classes: int) -> Score:
        metric = f"zero_shot.accuracy@{at}"
        if at >= num_classes:
            return Score(metric=metric, value=None, num_items=0)
        items = hits(places, at)
        return Score(
            metric=metric, value=float(items.mean()), num_items=len(items), items=items, keys=keys
        )


def _per_class(correct: Floats, truth: Indices, classes: Sequence[str]) -> Score:
    present = np.unique(truth)
    items = np.array([correct[truth == number].mean() for number in present])
    return Score(
        metric="zero_shot.mean_per_class_accuracy",
        value=float(items.mean()),
        num_items=len(items),
        items=items,
        keys=[classes[number] for number in present],
    )
