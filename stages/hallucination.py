"""Hallucination: objects that a synthetic caption names and that nothing else speaks for."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from winnow.contracts.errors import RecipeError, SetupError
from winnow.contracts.media import DecodedImage, Media, MediaFailure
from winnow.contracts.parameters import effort, result
from winnow.contracts.paths import user_path
from winnow.contracts.registry import register_stage
from winnow.contracts.stage import Resources, Stage, WorkerOptions
from winnow.models.checkpoint import check_name, find_model
from winnow.stages import _clip_batch
from winnow.stages._clip_batch import Device, Floats, PaddedPass, Precision, Resized
from winnow.stages._objects import Vocabulary, with_article

if TYPE_CHECKING:
    from winnow.models.contrastive import ContrastiveModel

NAME = "hallucination"
SCENES = "scenes"
PROMPT = "a picture of {}"


@dataclass(frozen=True, slots=True)
class HallucinationWorker:
    """A loaded model, the vocabulary, and the vector of each of its names: float32 (names, D)."""

    model: ContrastiveModel
    threads: ThreadPoolExecutor
    vocabulary: Vocabulary
    name_vectors: Floats


def read_objects(text: str) -> tuple[list[str], dict[str, str]]:
    """Return the names and synonyms of a file's text: a name per line, synonyms after tabs."""
    names: list[str] = []
    synonyms: dict[str, str] = {}
    for line in text.splitlines():
        name, *others = (part.strip() for part in line.split("\t"))
        if name:
            names.append(name)
            synonyms |= {other: name for other in others if other}
    return names, synonyms


def best_names(scores_N: Floats, num_best: int) -> frozenset[int]:
    """Return the places of names that fewer than ``num_best`` names beat; equal ones stay in."""
    higher_N = (scores_N[None, :] > scores_N[:, None]).sum(axis=1)
    return frozenset(np.flatnonzero(higher_N < num_best).tolist())


def crops(item: DecodedImage | MediaFailure, tiles: int) -> list[DecodedImage | MediaFailure]:
    """Return the picture and ``tiles`` x ``tiles`` crops of half its width and height."""
    if not isinstance(item, DecodedImage) or not tiles:
        return [item]
    width, height = item.pixels.size
    size = max(1, -(-width // 2)), max(1, -(-height // 2))
    steps = [place / max(1, tiles - 1) for place in range(tiles)]
    corners = [
        (round(x * (width - size[0])), round(y * (height - size[1]))) for y in steps for x in steps
    ]
    boxes = [(left, top, left + size[0], top + size[1]) for left, top in corners]
    found = [DecodedImage(pixels=item.pixels.crop(box), format=item.format) for box in boxes]
    return [item, *found]


@register_stage(NAME, version=2)
@dataclass(frozen=True, kw_only=True, slots=True)
class Hallucination(Stage):
    """Find the objects in synthetic captions that neither the raw caption nor CLIP supports.

    An object is a name of the vocabulary that the text has as a word or words, in any case, in the
    singular or plural, the longest name first, and that the text does not deny: "no dog" names
    none (``winnow.stages._objects``, which is what the evaluation ``chair`` uses too). It is
    supported where

    * the raw caption names it too (and does not deny it), or
    * CLIP does: of all names of the vocabulary, fewer than ``rank_share`` of them (at least one)
      fit the picture better. A name's fit is the greatest cosine of "a picture of a <name>" with
      the whole picture or with one of ``tiles`` x ``tiles`` overlapping crops of half its width and
      height: small objects are lost in the whole. The rank and not the cosine counts, because
      cosines of different models and pictures have no common scale.

    Reads:   <image_column>: large_binary, encoded bytes.  <text_column> (synthetic_captions):
             list<string>, or string with ``single``.  <raw_column> (text): string.
    Writes:  <column> (unsupported_objects): list<list<string>>, for each caption in order the
             names in it that nothing supports, none twice; empty where there is none.
             num_<column> (num_unsupported_objects): int32, different such names of all captions.
             <column>_error: string (unsupported_objects_error); null, or "missing" | "too_large" |
             "undecodable" (the image), "empty_text" (no caption is there), "not_finite" (a model
             that overflows in fp16). The others are null exactly when it is set.
    Cost:    1 + tiles x tiles passes of the image tower for a picture with a name that the raw
             caption lacks, none for others; the names once per worker.
    Fails:   a bad row never raises. RecipeError for parameters that cannot be meant; SetupError
             where files are missing; ShardError where the GPU's memory does not hold a batch.

    Give the column to ``caption_choice`` (``unsupported``) to drop single captions, or use the
    filter ``no_hallucination`` to drop rows.

    objects: a file with a name per line, synonyms after tabs; or "scenes", the names of packaged
    scenes. Its content and the model's enter the fingerprint.
    raw_column: null = nothing is known from a raw caption.
    The other parameters are those of ``clip_score``.
    """

    objects: str = effort(SCENES)
    rank_share: float = result(0.1)
    tiles: int = result(3)
    single: bool = result(False)
    model: str = effort("tiny")
    pretrained: str | None = effort(None)
    batch_size: int = result(64)
    precision: Precision = result("fp32")
    image_column: str = result("image")
    text_column: str = result("synthetic_captions")
    raw_column: str | None = result("text")
    device: Device = effort("auto")
    num_gpus: float | None = effort(None)
    num_threads: int = result(1)
    column: str = result("unsupported_objects")

    def __post_init__(self) -> None:
        """Refuse what cannot run."""
        if not 0 < self.rank_share <= 1:
            msg = f"{NAME}: rank_share={self.rank_share}; use a share of the names, such as 0.1"
            raise RecipeError(msg)
        if not 0 <= self.tiles <= 16:
            msg = f"{NAME}: tiles={self.tiles}; use 0 (the whole picture only) to 16"
            raise RecipeError(msg)
        _clip_batch.check_options(
            NAME,
            batch_size=self.batch_size,
            num_threads=self.num_threads,
            num_gpus=self.num_gpus,
            device=self.device,
        )
        read = (self.image_column, self.text_column, *filter(None, (self.raw_column,)))
        if len(set(read)) < len(read):
            msg = f"{NAME}: the columns it reads, {', '.join(read)}, have to be different names"
            raise RecipeError(msg)
        _clip_batch.check_column(NAME, self.column, read)
        check_name(self.model, self.pretrained)

    @property
    def reads(self) -> pa.Schema:
        """The image's bytes and the texts."""
        texts = pa.string() if self.single else pa.list_(pa.string())
        columns = {self.image_column: pa.large_binary(), self.text_column: texts}
        return pa.schema(columns | ({self.raw_column: pa.string()} if self.raw_column else {}))

    @property
    def writes(self) -> pa.Schema:
        """Names per caption, their number, the error."""
        return pa.schema(
            {
                self.column: pa.list_(pa.list_(pa.string())),
                f"num_{self.column}": pa.int32(),
                f"{self.column}_error": pa.string(),
            }
        )

    @property
    def resources(self) -> Resources:
        """A whole GPU for device=cuda unless num_gpus says otherwise; none for auto and cpu."""
        return _clip_batch.resources(
            num_threads=self.num_threads, num_gpus=self.num_gpus, device=self.device
        )

    @property
    def batch_rows(self) -> int:
        """A cosine's last bits depend on the shape of its batch."""
        return self.batch_size

    def model_digest(self) -> str:
        """Digest of the model and of the vocabulary."""
        names, synonyms = self._objects()
        digest = hashlib.blake2b(digest_size=16)
        digest.update(find_model(self.model, self.pretrained).digest().encode())
        digest.update(repr((names, sorted(synonyms.items()))).encode())
        return digest.hexdigest()

    def setup(self, options: WorkerOptions) -> HallucinationWorker:
        """Load the model and embed all names."""
        files = find_model(self.model, self.pretrained)
        model = _clip_batch.load(files, device=self.device, precision=self.precision)
        vocabulary = Vocabulary(*self._objects())
        prompts = [PROMPT.format(with_article(name)) for name in vocabulary.names]
        one_pass, size = self._pass(model), self.batch_size
        parts = [prompts[start : start + size] for start in range(0, len(prompts), size)]
        vectors = [one_pass.embed_texts(part)[: len(part)].cpu().numpy() for part in parts]
        threads = _clip_batch.resize_threads(options)
        return HallucinationWorker(model, threads, vocabulary, np.concatenate(vectors))

    def annotate(
        self, batch: pa.RecordBatch, state: HallucinationWorker, media: Media
    ) -> pa.RecordBatch:
        """Check one batch of up to ``batch_size`` rows; safe to call from several threads."""
        _clip_batch.check_rows(NAME, batch.num_rows, self.batch_size)
        texts = self._texts(batch)
        raws = _values(batch, self.raw_column)
        named = [
            [_not_in(raw, _names(state.vocabulary, text)) for text in row or ()]
            for row, raw in zip(texts, (_names(state.vocabulary, raw) for raw in raws), strict=True)
        ]
        codes: list[str | None] = []
        rows: list[int] = []
        pictures: list[Resized] = []
        for row, item in enumerate(media.images(self.image_column)):
            there = _clip_batch.first_there(texts[row] or ())
            codes.append(_clip_batch.row_code(item, there))
            if codes[row] is None and any(named[row]):
                for crop in crops(item, self.tiles):
                    rows.append(row)
                    pictures.append(
                        _clip_batch.resized(crop, state.model.preprocess, state.threads)
                    )
        supported = self._supported(rows, pictures, state, codes)
        return self._columns(named, supported, codes)

    def _supported(
        self,
        rows: Sequence[int],
        pictures: Sequence[Resized],
        state: HallucinationWorker,
        codes: list[str | None],
    ) -> dict[int, frozenset[str]]:
        """Return the names that CLIP supports, of rows with pictures; sets codes found here."""
        one_pass, size = self._pass(state.model), self.batch_size
        best: dict[int, Floats] = {}
        for start in range(0, len(rows), size):
            part = pictures[start : start + size]
            part_codes: list[str | None] = [None] * len(part)
            vectors_PD = one_pass.embed_images(part, part_codes)[: len(part)].cpu().numpy()
            fits_PN = vectors_PD @ state.name_vectors.T
            for row, code, fit_N in zip(
                rows[start : start + size], part_codes, fits_PN, strict=True
            ):
                finite = bool(np.isfinite(fit_N).all())
                codes[row] = codes[row] or code or (None if finite else "not_finite")
                best[row] = np.maximum(best[row], fit_N) if row in best else fit_N
        names = state.vocabulary.names
        num_best = max(1, round(self.rank_share * len(names)))
        return {
            row: frozenset(names[place] for place in best_names(fit_N, num_best))
            for row, fit_N in best.items()
            if codes[row] is None
        }

    def _columns(
        self,
        named: list[list[list[str]]],
        supported: dict[int, frozenset[str]],
        codes: list[str | None],
    ) -> pa.RecordBatch:
        rows: list[dict[str, Any]] = []
        for row, (texts, code) in enumerate(zip(named, codes, strict=True)):
            if code is not None:
                rows.append({f"{self.column}_error": code})
                continue
            lists = [_not_in(supported.get(row, frozenset()), names) for names in texts]
            count = len({name for names in lists for name in names})
            rows.append({self.column: lists, f"num_{self.column}": count})
        return pa.RecordBatch.from_pylist(rows, schema=self.writes)

    def _texts(self, batch: pa.RecordBatch) -> list[list[str | None] | None]:
        values: list[Any] = batch.column(self.text_column).to_pylist()
        return [[value] for value in values] if self.single else values

    def _pass(self, model: ContrastiveModel) -> PaddedPass:
        return PaddedPass(
            stage=NAME, model=model, batch_size=self.batch_size, num_threads=self.num_threads
        )

    def _objects(self) -> tuple[list[str], dict[str, str]]:
        if self.objects == SCENES:
            from winnow.stages.sources._scenes.sprites import CONCEPT

            return list(CONCEPT), {c.plural: c.name for c in CONCEPT.values() if c.plural != c.name}
        try:
            text = user_path(self.objects).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            msg = f"{NAME}: objects {self.objects} cannot be read: {error}"
            raise SetupError(msg) from error
        names, synonyms = read_objects(text)
        if len(names) < 2:
            msg = (
                f"{NAME}: objects {self.objects} has {len(names)} names; a rank takes at least two"
            )
            raise SetupError(msg)
        return names, synonyms


def _names(vocabulary: Vocabulary, text: str | None) -> list[str]:
    """Return the names in a text, each once, in its order."""
    return list(dict.fromkeys(mention.name for mention in vocabulary.mentions(text or "")))


def _not_in(known: Iterable[str], names: Sequence[str]) -> list[str]:
    there = frozenset(known)
    return [name for name in names if name not in there]


def _values(batch: pa.RecordBatch, name: str | None) -> list[Any]:
    return [None] * batch.num_rows if name is None else batch.column(name).to_pylist()
