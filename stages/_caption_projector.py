"""A trained projector model as a captioner of the caption stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from winnow.contracts.trial import Generated

if TYPE_CHECKING:
    from PIL import Image

    from winnow.models.generation import Sampling
    from winnow.models.projector import Projector

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True, slots=True)
class ProjectorCaptioner:
    """A loaded projector and what it is asked."""

    projector: Projector
    prompt: str

    @property
    def on_gpu(self) -> bool:
        """Whether it runs on a GPU."""
        return self.projector.device.type == "cuda"

    def prepare(self, images: Sequence[Image.Image]) -> list[Pixels]:
        """Return the tower's pixels of each image, (K, H, W, 3); equal images are done once."""
        done: dict[int, Pixels] = {}
        for image in images:
            if id(image) not in done:
                done[id(image)] = self.projector.tower.pixels(image)
        return [done[id(image)] for image in images]

    def generate(
        self,
        inputs: Sequence[Pixels],
        sampling: Sampling,
        seeds: Sequence[int] | None,
        *,
        candidates: int,
    ) -> list[Generated]:
        """Return ``candidates`` texts per image; picture and prompt are computed once for all."""
        features_BPV, mask_BP = self.projector.features(inputs)
        prompts = [self.prompt] * len(inputs)
        return self.projector.generate(
            features_BPV, mask_BP, prompts, sampling, seeds, candidates=candidates
        )

    def row_bytes(self, max_tokens: int) -> int:
        """Return roughly what one row of a batch needs in memory: caches and activations."""
        projector = self.projector
        config: Any = projector.language.network.config
        depth, width = config.get_text_config().num_hidden_layers, projector.language.width
        patches = projector.tower.patches_per_tile * (projector.config.max_tiles + 1)
        tokens = patches + max_tokens
        tokens += 0 if projector.audio is None else projector.audio.num_tokens
        return 4 * (tokens * width * (2 * depth + 12) + 12 * patches * projector.tower.width)
