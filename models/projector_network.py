"""Projector models: a frozen vision tower, a connector and a language model that answers.

Prefix connectors put their image tokens before the text's embeddings (LLaVA, Liu et al. 2023;
BLIP-2, Li et al. 2023). ``perceiver_xattn`` leaves the text alone and is looked at through gated
layers (Flamingo, Alayrac et al. 2022). Only answers, and the end-of-text token behind each, count
in the loss.

Tensor suffixes: N pictures, B rows, P patches, V vision width, Q image tokens, I pictures of a row,
T positions (image tokens and text), L language-model width.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from winnow.contracts.errors import SetupError
from winnow.contracts.trial import Floats, Generated
from winnow.models.connectors import Connector
from winnow.models.conversation import Turn, answered
from winnow.models.gated_attention import GatedBlocks, Media
from winnow.models.generation import Sampling
from winnow.models.generation import generate as generate_answers
from winnow.models.language_model import (
    LanguageModel,
    decode,
    encode,
    forward_accepts,
    token_offsets,
)
from winnow.models.lora import add_lora, lora_weights, merge_lora
from winnow.models.projector_audio import AudioSide
from winnow.models.projector_batch import (
    Interleaved,
    Layout,
    Packed,
    lay_out,
    pack_conversation,
    pack_interleaved,
    pack_prompt,
)
from winnow.models.projector_files import ProjectorConfig
from winnow.models.projector_images import (
    ImageTokens,
    connect,
    image_slots,
    padded_tokens,
    picture_features,
    row_media,
    splice,
)
from winnow.models.projector_measures import facts, token_log_likelihoods, use_of_image
from winnow.models.vision_tower import VisionTower

Trains = Literal["connector", "connector+lm", "connector+lora"]
_LONGEST = 1 << 30


@dataclass(frozen=True, slots=True)
class Prepared:
    """A batch as the language model takes it. media: for gated layers, else None."""

    layout: Layout
    embedded: torch.Tensor
    media: Media | None


class Projector(nn.Module):
    """A projector model. All methods are on the device of the language model.

    Features of pictures, (N, P, V) with a bool mask (N, P), come from ``features``; None, and a
    mask row without any True, mean that there is no picture: then only the text counts. With an
    audio tower what is missing has its null embedding; ``audio.hearing`` gives rows their sounds.
    """

    def __init__(
        self,
        config: ProjectorConfig,
        tower: VisionTower,
        connector: Connector,
        language: LanguageModel,
        *,
        gated: GatedBlocks | None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.config, self.tower, self.language = config, tower, language
        self.connector, self.gated, self.network = connector, gated, language.network
        self.audio: AudioSide | None = None
        self.trains: Trains = "connector"
        self.trained: frozenset[str] = frozenset()
        """What was ever set trainable: "connector", "lm", "lora"."""
        self.tower_digest, self.language_digest, self.random_language = "", "", False
        self._seed = seed
        self.network.requires_grad_(False)
        self.eval()

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.language.device

    # What learns.

    def set_trainable(self, what: Trains) -> list[nn.Parameter]:
        """Freeze all but ``what``, and return its parameters. The tower is always frozen.

        "connector" includes gated layers and the audio side. Adapters are made when asked for.
        Fails: SetupError for another word.
        """
        if what not in get_args(Trains):
            msg = f"set_trainable({what!r}): use one of {', '.join(get_args(Trains))}"
            raise SetupError(msg)
        if what == "connector+lora":
            self.add_lora()
        self.requires_grad_(False)
        chosen = list(self.connector.parameters())
        chosen += [] if self.gated is None else list(self.gated.parameters())
        chosen += [] if self.audio is None else self.audio.learned()
        adapters = lora_weights(self.network)
        if what == "connector+lora":
            chosen += adapters.values()
        if what == "connector+lm":
            chosen += [p for name, p in self.network.named_parameters() if name not in adapters]
        for parameter in chosen:
            parameter.requires_grad_(True)
        self.trains = what
        self.trained |= set(what.split("+"))
        return chosen

    def add_lora(self) -> None:
        """Make adapters where there are none; they change no answer yet."""
        if not lora_weights(self.network):
            config = self.config
            add_lora(self.network, rank=config.lora_rank, alpha=config.lora_alpha, seed=self._seed)
            self.network.to(self.device)

    def merge_lora(self) -> None:
        """Add the adapters to the weights: faster answers, but it cannot be saved any more."""
        merge_lora(self.network)

    def train(self, mode: bool = True) -> Projector:
        """Set training mode for what learns; tower and a frozen language model stay in eval."""
        super().train(mode)
        self.network.train(mode and self.trains != "connector")
        return self

    # Pictures.

    def features(
        self, pictures: Sequence[npt.NDArray[np.uint8] | None]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return features (N, P, V) and a mask (N, P) of pictures from ``tower.pixels``.

        None stands for a row without a picture.
        """
        return picture_features(self.tower, pictures, self.device)

    def image_tokens(
        self,
        features_NPV: torch.Tensor | None,
        mask_NP: torch.Tensor | None,
        *,
        num_rows: int,
        instructions: Sequence[str] | None = None,
    ) -> ImageTokens:
        """Run the connector on the pictures that are there; with an audio tower, both connectors.

        ``instructions``: one per row, for connectors that take them.
        """
        language, texts = self.language, instructions or ()

        def instruct(rows: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
            found = [self.encode(texts[row].strip()) or [language.eos_id] for row in rows]
            return padded_tokens(found, self.device)

        asked = None if instructions is None else instruct
        images = ImageTokens.none(num_rows, self.device)
        if features_NPV is not None:
            images = connect(self.connector, features_NPV, mask_NP, asked)
        return images if self.audio is None else self.audio.beside(images, asked)

    # Learning.

    def loss(
        self,
        features_BPV: torch.Tensor | None,
        mask_BP: torch.Tensor | None,
        conversations: Sequence[Sequence[Turn]],
    ) -> tuple[torch.Tensor, int]:
        """Return the mean negative log-likelihood of the answers' tokens, and how many there are.

        All prompts of a conversation together are the instruction of a connector that takes one.
        Without any answer the loss is 0. It can always be differentiated, with zeros where nothing
        that learns took part.
        """
        asked = [" ".join(turn.prompt for turn in turns) for turns in conversations]
        images = self.image_tokens(
            features_BPV, mask_BP, num_rows=len(conversations), instructions=asked
        )
        rows = [
            pack_conversation(turns, self.encode, has_image=image is not None, **self._marks()).cut(
                self.config.max_text_tokens
            )
            for turns, image in zip(conversations, images.row_of, strict=True)
        ]
        return self._loss(rows, [[i] for i in range(len(rows))], images)

    def interleaved_loss(
        self,
        features_NPV: torch.Tensor | None,
        mask_NP: torch.Tensor | None,
        rows: Sequence[Interleaved],
    ) -> tuple[torch.Tensor, int]:
        """Return the mean negative log-likelihood of all words, and how many tokens there are.

        ``features_NPV``: the pictures of all rows, one row's ``num_images`` behind the other's. A
        gated model sees the latest picture; a prefix connector's tokens stand between the words.
        """
        total = sum(row.num_images for row in rows)
        images = self.image_tokens(features_NPV, mask_NP, num_rows=total)
        if len(images.row_of) != total:
            msg = f"the rows have {total} pictures together, but features of {len(images.row_of)}"
            raise SetupError(msg)
        packed, pictures, first = [], list[list[int]](), 0
        for row in rows:
            one = pack_interleaved(row, self.encode, **self._marks())
            packed.append(one.cut(self.config.max_text_tokens))
            pictures.append([first + part for part in row.parts if isinstance(part, int)])
            first += row.num_images
        return self._loss(packed, pictures, images)

    def _loss(
        self, rows: Sequence[Packed], pictures: Sequence[Sequence[int]], images: ImageTokens
    ) -> tuple[torch.Tensor, int]:
        prepared = self.prepare(rows, pictures, images, left=False)
        logits, targets = self.targets(prepared)
        total = nn.functional.cross_entropy(logits.float(), targets, reduction="sum")
        loss = total / max(1, len(targets))
        if torch.is_grad_enabled() and not loss.requires_grad:
            learning = [p for p in self.parameters() if p.requires_grad]
            loss = loss + sum((0.0 * p.sum() for p in learning), start=loss.new_zeros(()))
        return loss, len(targets)

    def targets(self, prepared: Prepared) -> tuple[torch.Tensor, torch.Tensor]:
        """Return logits (M, vocabulary) and targets (M,) of all tokens that count, row by row."""
        layout, options = prepared.layout, dict[str, int]()
        width = layout.slots.shape[1]
        counted = layout.counts.any(dim=0).nonzero()
        first = int(counted[0]) if len(counted) else 1
        if forward_accepts(self.network, "logits_to_keep"):
            options["logits_to_keep"] = width - first + 1  # none for the image tokens
        logits_BTV = self.forward_prepared(prepared, **options).logits[:, first - 1 - width : -1]
        counts_BT = layout.counts[:, first:]
        return logits_BTV[counts_BT], layout.slots[:, first:][counts_BT]

    def prepare(
        self,
        rows: Sequence[Packed],
        pictures: Sequence[Sequence[int]],
        images: ImageTokens,
        *,
        left: bool,
    ) -> Prepared:
        """Lay out a batch. pictures: per row, which picture each of its places holds."""
        shown = [
            [images.row_of[picture] for picture in numbers[: len(row.images)]]
            for row, numbers in zip(rows, pictures, strict=True)
        ]
        gated = self.gated
        spliced = image_slots(images, shown) if gated is None else [[[]] * len(r) for r in shown]
        limit = self.language.context or _LONGEST
        layout = lay_out(rows, spliced, limit=limit, left=left, device=self.device)
        embedded_BTL = self.language.embed(layout.slots.clamp_min(0))
        if gated is not None:
            media = row_media(gated, rows, shown, images, layout)
            return Prepared(layout, embedded_BTL, media)
        splice(embedded_BTL, layout, images)
        return Prepared(layout, embedded_BTL, None)

    def forward_prepared(self, prepared: Prepared, **options: Any) -> Any:
        """Run the language model on a prepared batch; returns transformers' output."""
        inputs: dict[str, Any] = {"inputs_embeds": prepared.embedded, "use_cache": False}
        if not prepared.layout.full:
            inputs["attention_mask"] = prepared.layout.mask.long()
            if forward_accepts(self.network, "position_ids"):
                inputs["position_ids"] = prepared.layout.positions
        with self._looking_at(prepared.media):
            return self.network(**inputs, **options)

    @contextlib.contextmanager
    def _looking_at(self, media: Media | None) -> Iterator[None]:
        with contextlib.nullcontext() if self.gated is None else self.gated.looking_at(media):
            yield

    # Answering.

    @torch.no_grad()
    def generate(
        self,
        features_BPV: torch.Tensor | None,
        mask_BP: torch.Tensor | None,
        prompts: Sequence[str],
        sampling: Sampling,
        seeds: Sequence[int] | None = None,
        *,
        candidates: int = 1,
    ) -> list[Generated]:
        """Return ``candidates`` answers per prompt, those of one prompt side by side.

        Row i's features go with prompt i. ``seeds``: one per answer, see ``generation.generate``.
        """
        if not prompts:
            return []
        images = self.image_tokens(
            features_BPV, mask_BP, num_rows=len(prompts), instructions=prompts
        )
        bos = self.language.bos_id
        rows = [
            pack_prompt(prompt, self.encode, bos=bos, has_image=image is not None)
            for prompt, image in zip(prompts, images.row_of, strict=True)
        ]
        prepared = self.prepare(rows, [[i] for i in range(len(rows))], images, left=True)
        media = prepared.media
        with self._looking_at(media):
            found = generate_answers(
                self.language,
                prepared.embedded,
                prepared.layout.mask,
                sampling,
                seeds,
                candidates=candidates,
                step_hook=None if media is None else media.keep,
            )
        return [
            Generated(
                text=decode(self.language, one.tokens),
                log_likelihood=sum(one.log_likelihoods),
                num_tokens=len(one.tokens),
                finished=one.finished,
            )
            for one in found
        ]

    def token_log_likelihoods(
        self,
        features_BPV: torch.Tensor | None,
        mask_BP: torch.Tensor | None,
        prompts: Sequence[str],
        answers: Sequence[str],
    ) -> list[Floats]:
        """Return per answer the natural logarithm of each token's probability.

        One number per token of ``tokens(answer)``, float64; nan for tokens behind the language
        model's context. The end-of-text token is not counted.
        """
        return token_log_likelihoods(self, features_BPV, mask_BP, prompts, answers)

    def tokens(self, answer: str) -> list[tuple[int, int]]:
        """Return an answer's tokens as (start, end) character offsets in it."""
        lead = len(answer) - len(answer.lstrip())
        found = token_offsets(self.language, answered(answer))
        return [(lead + max(0, start - 1), lead + max(0, end - 1)) for start, end in found]

    def use_of_image(
        self,
        features_BPV: torch.Tensor | None,
        mask_BP: torch.Tensor | None,
        prompts: Sequence[str],
        answers: Sequence[str],
    ) -> list[Floats]:
        """See ``projector_measures.use_of_image``; what it measures is ``use_kind``."""
        return use_of_image(self, features_BPV, mask_BP, prompts, answers)

    @property
    def use_kind(self) -> str:
        """What ``use_of_image`` measures: "gate_ratio" or "attention_mass"."""
        return "attention_mass" if self.gated is None else "gate_ratio"

    def facts(self) -> dict[str, float]:
        """See ``projector_measures.facts``."""
        return facts(self)

    def encode(self, text: str) -> list[int]:
        """Return a text's tokens, without any that start or end it."""
        return encode(self.language, text)

    def _marks(self) -> dict[str, Any]:
        return {"bos": self.language.bos_id, "eos": self.language.eos_id}
