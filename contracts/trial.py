"""What a trial is made of: a trainer makes a model from shards, evaluations measure the model.

A trial fixes the compute (samples seen, model, batch size, seed); only its data changes.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from winnow.contracts.stage import Resources

Floats = npt.NDArray[np.float64]

METRICS = pa.schema(
    [
        pa.field("metric", pa.string(), nullable=False),
        pa.field("slice", pa.string(), nullable=False),
        pa.field("value", pa.float64()),
        pa.field("num_items", pa.int64(), nullable=False),
        pa.field("higher_is_better", pa.bool_()),
    ]
)
"""One row per metric and slice ("" is all rows, else "column=value"). A null value could not be
computed; ``higher_is_better`` is null for a metric that only describes."""

MODEL = "model."
"""What metrics begin with that say what a model is ("model.parameters"), not how good it is."""

ITEMS = pa.schema(
    [
        pa.field("metric", pa.string(), nullable=False),
        pa.field("item", pa.string(), nullable=False),
        pa.field("value", pa.float64(), nullable=False),
    ]
)
"""One row per item of a metric that is a mean over items: what paired comparisons need."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Dataset:
    """An exported set of pairs.

    name: "train", "validation", "test". shards: tar files on a local disk, in order. digest: of
    their content, hex. num_rows: samples in them.
    """

    name: str
    shards: tuple[str, ...]
    digest: str
    num_rows: int


class Trainer(abc.ABC):
    """Base of every reference model: a frozen, keyword-only dataclass of parameters.

    Its ``result`` parameters, name and version enter the trial's fingerprint. Heavy libraries are
    imported inside the methods only.
    """

    name: ClassVar[str] = ""
    version: ClassVar[int] = 0
    subject: ClassVar[str] = ""
    """What ``load`` returns ("embeddings"): only evaluations of this subject fit."""
    data_parameters: ClassVar[frozenset[str]] = frozenset()
    """Parameters that say which captions are read, not how a model learns from them: arms that
    differ in these alone are compared as selections."""

    @property
    def resources(self) -> Resources:
        """What one trial holds while it trains."""
        return Resources()

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of the samples' .json members that training reads (hard negatives)."""
        return ()

    def model_digest(self) -> str:
        """Return a digest of the model files it starts from, "" if it starts from nothing."""
        return ""

    @abc.abstractmethod
    def check(self, data: Dataset, num_samples: int) -> None:
        """Raise SetupError or RecipeError for what cannot train, before anything does: an empty
        selection, fewer rows than a batch, an architecture that is not known."""

    @abc.abstractmethod
    def train(
        self,
        data: Dataset,
        folder: Path,
        *,
        num_samples: int,
        seed: int,
        progress: Callable[[int], None] = lambda samples: None,
        saved: Callable[[], None] = lambda: None,
    ) -> Mapping[str, Any]:
        """Train until ``num_samples`` samples were seen; leave the model in ``folder``.

        Goes on from the resumable state in ``folder`` where there is one, and ends with the same
        weights as an unkilled run (CPU, same seed, same threads). ``progress`` gets the samples
        seen since its last call, first those that the state had seen; ``saved`` is called after
        each resumable state was written.
        Returns plain data about the run (samples seen, loss curve, device, versions).

        Fails: ShardError, not retryable, with the step of a loss that is not finite.
        """

    @abc.abstractmethod
    def load(self, folder: Path, data: Dataset, columns: Sequence[str]) -> Any:
        """Return what evaluations measure: the trained model's view of an evaluation set.

        ``columns``: of the samples' .json members, those that evaluations read.
        """


@dataclass(frozen=True, kw_only=True, slots=True)
class Embeddings:
    """A contrastive model's view of an evaluation set: the subject "embeddings".

    vectors: modality ("image", "text", "audio") -> float32 (N, D) unit vectors, one row per
        sample; NaN rows where a sample lacks the modality.
    rows: N rows: ``key`` and ``caption`` (strings), then the columns that were asked for, from the
        samples' .json members (null where a sample has none).
    logit_scale: learned inverse temperature, already exponentiated. logit_bias: SigLIP's, or None.
    embed_texts: texts -> float32 (len, D) unit vectors, by the same model.
    """

    vectors: Mapping[str, npt.NDArray[np.float32]]
    rows: pa.Table
    logit_scale: float
    logit_bias: float | None
    embed_texts: Callable[[Sequence[str]], npt.NDArray[np.float32]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Generated:
    """One generated text. log_likelihood: sum of the natural logarithms of its tokens'
    probabilities, the end-of-text token included where it came. finished: whether it did; False =
    cut at the limit."""

    text: str
    log_likelihood: float
    num_tokens: int
    finished: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Captioner:
    """A model that answers in words about an evaluation set's pictures: the subject "captions".

    rows: N rows: ``key`` and ``caption`` (strings), then the columns that were asked for.
    generate: (rows, prompts, most tokens) -> one greedy answer per prompt, about the picture of
        the row of the same place; one picture may be asked several times.
    token_log_likelihoods: (rows, prompts, answers) -> per answer the natural logarithm of each
        token's probability, given the picture, the prompt and the tokens before it; the
        end-of-text token is not counted. The picture may be another row's: that is a swap.
    tokens: answer -> its tokens as (start, end) character offsets, one per log-likelihood.
    use_of_image: (rows, prompts, answers) -> per answer and token how much the layers take from
        the picture (``use_kind``: "attention_mass", the share of attention on the prefix's
        tokens, comparable only between prefixes of equal length; "gate_ratio", the norm of a gated
        block's update over that of its residual); None where a model gives neither.
    facts: what tables print beside the scores: "parameters", "trained_parameters",
        "image_tokens", "flops_per_image" (multiply-adds count two), ...
    """

    rows: pa.Table
    generate: Callable[[Sequence[int], Sequence[str], int], list[Generated]]
    token_log_likelihoods: Callable[[Sequence[int], Sequence[str], Sequence[str]], list[Floats]]
    tokens: Callable[[str], list[tuple[int, int]]]
    use_of_image: Callable[[Sequence[int], Sequence[str], Sequence[str]], list[Floats]] | None
    use_kind: str
    facts: Mapping[str, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """One measured number. items: value per item where ``value`` is their mean; keys: their names
    (the samples' keys), in the same order. num_items counts what the value was computed from."""

    metric: str
    value: float | None
    num_items: int
    higher_is_better: bool | None = True
    slice: str = ""
    items: Floats | None = None
    keys: Sequence[str] = field(default=())


class Evaluation(abc.ABC):
    """Base of every evaluation: a frozen, keyword-only dataclass of parameters."""

    name: ClassVar[str] = ""
    version: ClassVar[int] = 0
    subject: ClassVar[str] = "embeddings"

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of the samples' .json members that it reads."""
        return ()

    def files_digest(self) -> str:
        """Return a digest of the files that parameters name, "" where none does."""
        return ""

    @abc.abstractmethod
    def measure(self, subject: Any) -> list[Score]:
        """Return the scores; the first one is the headline. Metric names start with the
        evaluation's own name and a dot ("retrieval.image_to_text_recall@1").

        Fails: SetupError where the set cannot be measured so (no such column, too few items).
        """
