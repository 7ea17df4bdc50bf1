"""What each phase of a projector's training computes: the losses over samples and over texts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from winnow.contracts.errors import SetupError
from winnow.models.conversation import Turn
from winnow.stages.train._projector_lessons import Lessons
from winnow.stages.train._projector_loop import Loss, Visit
from winnow.stages.train._projector_schedule import Phase
from winnow.stages.train._projector_sound import NONE, ModalityDropout
from winnow.stages.train._steps import step_seed

if TYPE_CHECKING:
    from torch import nn

    from winnow.models.language_model import LanguageModel
    from winnow.models.projector import Projector
    from winnow.models.qformer_losses import FirstStage

_MEASURED_TEXTS = 128
_MEASURED_TOGETHER = 16


class ProjectorWork:
    """A projector model and what it learns from: the work of ``train_phases``.

    texts: what text-only batches and perplexities read.  folder: where the matching head is left.
    seed: of the first stage's heads and hard negatives, and of the modality dropout, whose share is
    ``modality_dropout``, for a model with an audio tower.
    """

    def __init__(
        self,
        projector: Projector,
        lessons: Lessons,
        texts: Sequence[str],
        *,
        folder: Path,
        seed: int,
        modality_dropout: float = 0.0,
    ) -> None:
        self.projector, self.lessons, self.texts = projector, lessons, texts
        self.folder, self.seed = folder, seed
        self.dropout = ModalityDropout(share=modality_dropout, seed=seed)
        self._first_stage: FirstStage | None = None
        found = list(enumerate(lessons.lessons))
        seen = lessons.senses.picture_of
        self._rows = {
            "representation": [i for i, one in found if one.captions and seen[i] != NONE],
            "captions": [i for i, one in found if one.captions],
            "conversations": [i for i, one in found if one.turns or one.captions],
            "interleaved": [i for i, one in found if one.parts],
        }
        chosen = np.random.default_rng(0).permutation(len(texts))[:_MEASURED_TEXTS]
        self._measured = [texts[i] for i in sorted(chosen)]

    def check(self, phases: Sequence[Phase]) -> None:
        """Raise SetupError where a phase has fewer samples than a batch."""
        for phase in phases:
            num_rows, name = len(self._rows_of(phase)), "batch_size"
            if phase.objective == "representation":
                name = "representation_batch_size"
            if num_rows < phase.batch_size:
                msg = (
                    f"the stage {phase.name!r} learns from {phase.data}, which {num_rows} samples "
                    f"have (left out: {self.lessons.skipped}), fewer than a batch of "
                    f"{phase.batch_size}; lower {name} or select more"
                )
                raise SetupError(msg)

    def _rows_of(self, phase: Phase) -> list[int]:
        """Return the samples of a phase; Q-Formers' first stage compares pictures with captions."""
        first = phase.objective == "representation"
        return self._rows["representation" if first else phase.data]

    def enter(self, phase: Phase) -> dict[str, nn.Parameter]:
        """Make the parameters of a phase trainable; return them by name."""
        self.projector.set_trainable(phase.trains)
        self.projector.train()
        network: nn.Module = self.projector
        if phase.objective == "representation":
            network = self._first_stage = self._started()
        return {n: p for n, p in network.named_parameters() if p.requires_grad}

    def num_rows(self, phase: Phase) -> tuple[int, int]:
        """Return the numbers of samples and of texts of a phase."""
        return len(self._rows_of(phase)), len(self.texts)

    def loss(self, phase: Phase, visits: Sequence[Visit], step: int) -> Loss:
        """Return the mean loss over the answers' tokens; of a first stage over its rows."""
        rows = self._rows_of(phase)
        samples = [rows[row] for row, _ in visits]
        if phase.data == "interleaved":
            return self._interleaved_loss(samples)
        epochs = [epoch for _, epoch in visits]
        if phase.objective == "representation":
            return self._first_loss(samples, self._captions(samples, epochs), step)
        turns, senses = self._turns(phase, samples, epochs), self.lessons.senses
        with senses.of(self.projector, samples, self.dropout, step) as (features_BPV, mask_BP):
            return self.projector.loss(features_BPV, mask_BP, turns)

    def _captions(self, samples: Sequence[int], epochs: Sequence[int]) -> list[str]:
        found = zip(samples, epochs, strict=True)
        return [self.lessons.lessons[s].caption(self.seed, epoch) for s, epoch in found]

    def _turns(
        self, phase: Phase, samples: Sequence[int], epochs: Sequence[int]
    ) -> list[tuple[Turn, ...]]:
        prompt, talks = self.projector.config.prompt, phase.data == "conversations"
        captions = self._captions(samples, epochs)
        return [
            (talks and self.lessons.lessons[sample].turns) or (Turn(prompt, caption),)
            for sample, caption in zip(samples, captions, strict=True)
        ]

    def text_loss(self, visits: Sequence[Visit]) -> Loss:
        """Return the mean loss over all tokens of texts, their ends among them."""
        return text_loss(self.projector.language, [self.texts[row] for row, _ in visits])

    def perplexity(self) -> float | None:
        """Return the language model's perplexity on up to 128 of the texts, always the same."""
        from winnow.models.language_model import perplexity

        language = self.projector.language
        training = language.network.training
        language.network.eval()
        found = perplexity(language, self._measured, batch_size=_MEASURED_TOGETHER)
        language.network.train(training)
        return round(found.value, 4) if math.isfinite(found.value) else None

    def left(self, phase: Phase) -> None:
        """Write the matching head that a first stage leaves."""
        from winnow.models.matching import MatchingSource, save_matching

        if phase.objective != "representation":
            return
        config = self.projector.config
        source = MatchingSource(
            tower=config.tower,
            tower_digest=self.projector.tower.digest(),
            language_model=config.language_model,
            max_tiles=config.max_tiles,
        )
        assert self._first_stage is not None
        save_matching(self.folder, self._first_stage, source)
        self._first_stage = None

    def _started(self) -> FirstStage:
        import torch

        from winnow.models.qformer import QFormer
        from winnow.models.qformer_losses import FirstStage

        connector = self.projector.connector
        assert isinstance(connector, QFormer)
        device = next(connector.parameters()).device
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return FirstStage(connector).to(device)

    def _first_loss(self, samples: Sequence[int], captions: Sequence[str], step: int) -> Loss:
        """The sum of contrast, matching and generation (Li et al. 2023, section 3.1)."""
        import torch

        from winnow.models.matching import caption_tokens

        senses = self.lessons.senses
        features_BPV, mask_BP = senses.pictures.features([senses.picture_of[s] for s in samples])
        assert self._first_stage is not None
        most = self._first_stage.qformer.config.max_tokens - 1
        tokenizer = self.projector.language.tokenizer
        tokens_BT, tokens_mask_BT = caption_tokens(tokenizer, captions, most=most)
        device = features_BPV.device
        losses = self._first_stage(
            features_BPV,
            mask_BP,
            tokens_BT.to(device),
            tokens_mask_BT.to(device),
            seed=step_seed(self.seed, step),
            pictures_B=torch.tensor(samples, device=device),
        )
        return losses["itc"] + losses["itm"] + losses["itg"], len(samples)

    def _interleaved_loss(self, samples: Sequence[int]) -> Loss:
        from winnow.models.projector_batch import Interleaved

        rows = [Interleaved(parts=self.lessons.lessons[sample].parts) for sample in samples]
        senses = self.lessons.senses
        firsts = [senses.picture_of[sample] for sample in samples]
        pictures = [
            first + number
            for first, row in zip(firsts, rows, strict=True)
            for number in range(row.num_images)
        ]
        if not pictures:
            return self.projector.interleaved_loss(None, None, rows)
        return self.projector.interleaved_loss(*senses.pictures.features(pictures), rows)


def text_loss(model: LanguageModel, texts: Sequence[str]) -> Loss:
    """Return the mean cross-entropy of all tokens of texts, the ends among them, and their number.

    Each is given those before it, the first the start token; without one it is not counted.
    """
    import torch

    from winnow.models.language_model import encode

    start = [] if model.bos_id is None else [model.bos_id]
    rows = [[*start, *encode(model, text), model.eos_id][: model.context] for text in texts]
    length = max(map(len, rows))
    tokens_BT = torch.tensor([row + [model.pad_id] * (length - len(row)) for row in rows])
    lengths_B = torch.tensor([len(row) for row in rows])
    mask_BT = (torch.arange(length) < lengths_B[:, None]).to(model.device)
    tokens_BT = tokens_BT.to(model.device)
    outputs: Any = model.network(input_ids=tokens_BT, attention_mask=mask_BT.long())
    targets_BT = tokens_BT[:, 1:].masked_fill(~mask_BT[:, 1:], -100)
    count = int(mask_BT[:, 1:].sum())
    total = torch.nn.functional.cross_entropy(
        outputs.logits[:, :-1].float().flatten(0, 1), targets_BT.flatten(), reduction="sum"
    )
    return total / max(1, count), count
