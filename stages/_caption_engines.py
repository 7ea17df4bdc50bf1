"""The local engines of the caption stage: how a captioner is named, digested and loaded."""

from __future__ import annotations

from winnow.stages import _clip_batch
from winnow.stages._caption_local import Captioner
from winnow.stages._clip_batch import Device, Precision


def captioner_digest(engine: str, name: str) -> str:
    """Return the digest of a model's weights, configuration, tokenizer and preprocessing."""
    if engine == "projector":
        from winnow.models.projector_files import find_projector

        return find_projector(name).digest()
    from winnow.models.hf_captioner_files import find_captioner

    return find_captioner(name).digest()


def load_captioner(
    engine: str,
    name: str,
    *,
    prompt: str | None,
    max_tokens: int,
    num_threads: int,
    device: Device,
    precision: Precision,
) -> Captioner:
    """Load a model; chooses cuDNN's bit-stable kernels for this process."""
    import torch

    torch.set_num_threads(num_threads)
    _clip_batch.choose_stable_kernels()
    if engine == "projector":
        from winnow.models.projector_files import load_projector
        from winnow.stages._caption_projector import ProjectorCaptioner

        projector = load_projector(name, device, precision=precision)
        asked = projector.config.prompt if prompt is None else prompt
        return ProjectorCaptioner(projector=projector, prompt=asked)
    from winnow.models import hf_captioner
    from winnow.models.hf_captioner_files import find_captioner

    return hf_captioner.load_captioner(
        find_captioner(name),
        prompt=prompt,
        max_tokens=max_tokens,
        device=device,
        precision=precision,
    )
