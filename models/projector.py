"""Projector models: a frozen vision tower, a connector and a language model that answers.

The class is in ``projector_network.py``, what is on disk in ``projector_files.py``; this file puts
the parts together, and is where the rest of Winnow imports from.
"""

from __future__ import annotations

from winnow.contracts.errors import SetupError
from winnow.models.connectors import build_connector
from winnow.models.devices import Precision
from winnow.models.gated_attention import GatedBlocks, hidden_width
from winnow.models.generation import Sampling
from winnow.models.language_files import find_language_model
from winnow.models.language_model import load_language_model
from winnow.models.projector_audio import build_audio_side
from winnow.models.projector_batch import Interleaved, interleaved_row
from winnow.models.projector_files import (
    ProjectorConfig,
    ProjectorFiles,
    find_projector,
    load_projector,
    projector_digest,
    save_projector,
)
from winnow.models.projector_measures import num_image_tokens
from winnow.models.projector_network import Projector, Trains
from winnow.models.vision_tower import VisionTower

__all__ = [
    "Interleaved",
    "Projector",
    "ProjectorConfig",
    "ProjectorFiles",
    "Sampling",
    "Trains",
    "build_projector",
    "find_projector",
    "interleaved_row",
    "load_projector",
    "projector_digest",
    "save_projector",
]


def build_projector(
    config: ProjectorConfig,
    *,
    seed: int,
    device: str = "auto",
    precision: Precision = "fp32",
    allow_random_lm: bool = False,
) -> Projector:
    """Load tower and language model, and make a fresh connector; ``seed`` decides it.

    ``precision``: of tower and language model; the connector is float32.
    An audio tower is float32.
    Fails: SetupError where a part is not there or does not fit, RecipeError for an unknown
    connector, and for one that is no prefix with an audio tower.
    """
    files = find_language_model(config.language_model, allow_random=allow_random_lm)
    language = load_language_model(
        files, device=device, precision=precision, allow_random=allow_random_lm, seed=seed
    )
    where = language.device
    tower = VisionTower.load(
        config.tower, device=str(where), precision=precision, max_tiles=config.max_tiles
    )
    is_prefix = config.connector != "perceiver_xattn"
    connector = build_connector(
        config.connector,
        vision_width=tower.width,
        language_width=language.width if is_prefix else hidden_width(language.network),
        num_queries=config.num_queries,
        depth=config.depth,
        heads=config.heads,
        vocab_size=len(language.tokenizer),
        patches_per_tile=tower.patches_per_tile,
        max_tiles=config.max_tiles,
        seed=seed,
    ).to(where)
    gated = None
    if not connector.is_prefix:
        gated = GatedBlocks(
            language.network, heads=config.heads, every=config.cross_every, seed=seed
        ).to(where)
    projector = Projector(config, tower, connector, language, gated=gated, seed=seed)
    projector.tower_digest, projector.language_digest = tower.digest(), files.digest()
    projector.random_language = not files.weights
    if config.audio_tower is not None:
        projector.audio = build_audio_side(projector, seed=seed)
    _check_room(projector)
    projector.set_trainable("connector")
    projector.trained = frozenset({"connector"})
    return projector


def _check_room(projector: Projector) -> None:
    """A prefix that fills the language model's context leaves no room for a word."""
    context, needed = projector.language.context, num_image_tokens(projector)
    audio = "" if projector.audio is None else " and its recording"
    needed += 0 if projector.audio is None else projector.audio.num_tokens
    if projector.gated is None and context is not None and needed >= context:
        config = projector.config
        msg = (
            f"a picture{audio} needs {needed} tokens and {config.language_model} has {context} "
            "positions; use a connector with queries (perceiver_prefix, qformer), or max_tiles=0"
        )
        raise SetupError(msg)
