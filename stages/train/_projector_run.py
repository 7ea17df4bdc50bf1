"""Train a projector model on exported shards; write a folder that ``load_projector`` reads."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from winnow.contracts.errors import SetupError
from winnow.models.checkpoint import find_tower
from winnow.models.language_files import INSTALL, find_language_model
from winnow.stages.train import _state
from winnow.stages.train._common import made, ran_on
from winnow.stages.train._projector_lessons import (
    LessonReading,
    Lessons,
    read_lessons,
    read_texts,
)
from winnow.stages.train._projector_loop import LoopConfig, train_phases
from winnow.stages.train._projector_schedule import Plan
from winnow.stages.train._projector_senses import senses_writer
from winnow.stages.train.shards import shard_paths

if TYPE_CHECKING:
    from winnow.models.projector import Projector
    from winnow.models.projector_files import ProjectorConfig

REPORT_NAME = "training.json"
_SIZES = ("connector", "num_queries", "depth", "heads", "max_tiles", "cross_every")
_AUDIO_SIZES = ("audio_connector", "audio_queries")


@dataclass(frozen=True, kw_only=True, slots=True)
class ProjectorSetup:
    """What is trained, on what, beside the loop's own parameters.

    init: a projector's folder, "" for a fresh connector.  text_file: "" for the samples' own words.
    cache_bytes: most that the pictures' features may take in the scratch file.  modality_dropout:
    its share, of a model with an audio tower.
    """

    model: ProjectorConfig
    reading: LessonReading
    plan: Plan
    loop: LoopConfig
    num_samples: int
    allow_random_lm: bool
    init: str
    text_file: str
    device: str
    cache_bytes: int
    modality_dropout: float = 0.0


def train_projector(
    shards: Sequence[str],
    folder: Path,
    setup: ProjectorSetup,
    *,
    report: Callable[[int], None] = lambda samples: None,
    saved: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Train, or go on from the state in ``folder``; return what training.json holds.

    Fails: see ``ProjectorTrainer``.
    """
    import torch
    import transformers

    from winnow.models.projector import save_projector
    from winnow.stages.train._projector_work import ProjectorWork

    torch.set_num_threads(setup.reading.num_threads)
    projector = start(setup)
    lessons = _read(shards, made(folder), setup, projector)
    texts = read_texts(Path(setup.text_file)) if setup.text_file else _own_texts(lessons)
    work = ProjectorWork(
        projector,
        lessons,
        texts,
        folder=folder,
        seed=setup.loop.seed,
        modality_dropout=setup.modality_dropout,
    )
    phases = setup.plan.phases(setup.num_samples)
    work.check(phases)
    begun = {"started_from": _digest(setup.init), **_described(projector, setup)}
    outcome = train_phases(
        phases,
        work,
        setup.loop,
        folder=folder,
        identity=[lessons.digest, begun, setup.text_file and texts],
        device=projector.device,
        report=report,
        saved=saved,
    )
    projector.eval()
    document = {
        "model": begun,
        "data": {
            "digest": lessons.digest,
            "num_samples": len(lessons.lessons),
            "num_pictures": len(lessons.senses.pictures),
            "num_conversations": sum(bool(lesson.turns) for lesson in lessons.lessons),
            "skipped": lessons.skipped,
            "shards": [Path(path).name for path in shards],
            **_heard(lessons),
        },
        **outcome,
        "facts": dict(projector.facts()),
        "ran_on": {**ran_on(projector.device), "transformers": str(transformers.__version__)},
    }
    save_projector(folder, projector)
    text = json.dumps(document, indent=1) + "\n"
    (folder / REPORT_NAME).write_text(text, encoding="utf-8")
    _state.forget(folder)
    return document


def start(setup: ProjectorSetup) -> Projector:
    """Return the model to be trained: a fresh connector, or ``init``."""
    from winnow.models.projector import build_projector, load_projector

    if not setup.init:
        return build_projector(
            setup.model,
            seed=setup.loop.seed,
            device=setup.device,
            allow_random_lm=setup.allow_random_lm,
        )
    projector = load_projector(setup.init, device=setup.device)
    projector.config = dataclasses.replace(projector.config, prompt=setup.model.prompt)
    return projector


def check_parts(setup: ProjectorSetup) -> None:
    """Refuse parts that are not there, and a model to start from that is of other parts.

    Fails: SetupError for missing files and packages, and for a language model without weights;
    RecipeError for a tower's name that means nothing.
    """
    name = setup.model.language_model
    language = find_language_model(name, allow_random=setup.allow_random_lm).digest()
    digests = {"tower": find_tower(setup.model.tower).digest(), "language_model": language}
    if setup.model.audio_tower is not None:
        digests["audio_tower"] = audio_tower_digest(setup.model.audio_tower)
    needed = ["transformers", *(["peft"] if setup.plan.schedule == "llava_lora" else [])]
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        msg = f"projector models need {' and '.join(missing)}: {INSTALL}"
        raise SetupError(msg)
    if setup.text_file:
        read_texts(Path(setup.text_file))
    if setup.init:
        _check_init(setup, digests)


def _check_init(setup: ProjectorSetup, digests: Mapping[str, str]) -> None:
    from winnow.models.projector_files import find_projector

    start = find_projector(setup.init)
    hears = ["an" if c.audio_tower else "no" for c in (start.config, setup.model)]
    if hears[0] != hears[1]:
        msg = (
            f"init={setup.init!r} has {hears[0]} audio_tower, the model to train {hears[1]}; start "
            "from a model of the same parts"
        )
        raise SetupError(msg)
    for name in (*_SIZES, *(_AUDIO_SIZES if setup.model.audio_tower else ())):
        found, wanted = getattr(start.config, name), getattr(setup.model, name)
        if found != wanted:
            msg = f"init={setup.init!r} has {name}={found}, the model to train {name}={wanted}"
            raise SetupError(msg)
    language = find_language_model(start.part("language_model"), allow_random=True)
    of_start = {
        "tower": find_tower(start.part("tower")).digest(),
        "language_model": language.digest(),
    }
    if "audio_tower" in start.parts:
        of_start["audio_tower"] = audio_tower_digest(start.part("audio_tower"))
    for name, digest in of_start.items():
        if digest != digests[name]:
            msg = (
                f"init={setup.init!r} was trained with another {name} than "
                f"{getattr(setup.model, name)!r}; name the one that it was trained with"
            )
            raise SetupError(msg)


def _read(
    shards: Sequence[str], folder: Path, setup: ProjectorSetup, projector: Projector
) -> Lessons:
    paths = shard_paths(shards)
    writer = senses_writer(
        projector,
        paths,
        folder,
        cache_bytes=setup.cache_bytes,
        num_threads=setup.reading.num_threads,
    )
    return read_lessons(paths, setup.reading, projector.tower, writer)


def _heard(lessons: Lessons) -> dict[str, Any]:
    """Return what training.json says of the recordings, where there is an audio tower."""
    senses = lessons.senses
    if senses.sounds is None:
        return {}
    return {
        "num_recordings": len(senses.sounds),
        "without_picture": senses.without("image"),
        "without_recording": senses.without("audio"),
        "unreadable": lessons.unreadable,
    }


def _own_texts(lessons: Lessons) -> list[str]:
    return [text for lesson in lessons.lessons if (text := lesson.plain())]


def audio_tower_digest(name: str) -> str:
    """Return the digest of an audio tower; fails as ``find_audio_tower``."""
    from winnow.models.projector_audio import find_audio_tower

    return find_audio_tower(name).digest()


def _digest(init: str) -> str:
    from winnow.models.projector_files import projector_digest

    return projector_digest(init) if init else ""


def _described(projector: Projector, setup: ProjectorSetup) -> dict[str, Any]:
    """The parts by what they are: nothing that depends on the machine's paths."""
    config, audio = projector.config, projector.audio
    found = {
        **{name: getattr(config, name) for name in (*_SIZES, "prompt")},
        "tower_digest": projector.tower_digest,
        "language_model_digest": projector.language_digest,
    }
    if audio is not None:
        found |= {name: getattr(config, name) for name in _AUDIO_SIZES}
        found["audio_tower_digest"] = audio.tower.digest()
        found["modality_dropout"] = setup.modality_dropout
    return found
