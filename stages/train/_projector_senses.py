"""Collects what the rows of a projector model see and hear, in scratch files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from winnow.stages.train._members import Pixels
from winnow.stages.train._projector_pictures import PictureWriter, features_bytes
from winnow.stages.train._projector_sound import NONE, Senses, SoundWriter
from winnow.stages.train._shard_reader import shard_sizes

if TYPE_CHECKING:
    from winnow.models.audio_tower import Frames
    from winnow.models.projector import Projector
    from winnow.models.projector_audio import FrozenAudioTower


class SensesWriter:
    """Collects rows. sounds: None for a model without an audio tower."""

    def __init__(self, pictures: PictureWriter, sounds: SoundWriter | None) -> None:
        self._pictures, self._sounds = pictures, sounds
        self._picture_of: list[int] = []
        self._sound_of: list[int] = []

    @property
    def ears(self) -> FrozenAudioTower | None:
        """What recordings are heard with."""
        return None if self._sounds is None else self._sounds.tower

    def add(self, pictures: Sequence[Pixels], frames: Frames | None) -> None:
        """Append a row: the tiles of each of its pictures, and its log-mel; nothing = has none."""
        self._picture_of.append(len(self._pictures) if pictures else NONE)
        self._pictures.add(pictures)
        if self._sounds is not None:
            self._sound_of.append(NONE if frames is None else len(self._sounds))
            self._sounds.add(frames)

    def done(self) -> Senses:
        """Return what was added."""
        return Senses(
            pictures=self._pictures.done(),
            picture_of=self._picture_of,
            sounds=None if self._sounds is None else self._sounds.done(),
            sound_of=self._sound_of,
        )


def senses_writer(
    projector: Projector,
    shards: Sequence[str],
    folder: Path,
    *,
    cache_bytes: int,
    num_threads: int,
) -> SensesWriter:
    """Return a writer into ``folder``; it keeps features where those of all samples fit."""
    tower, device = projector.tower, projector.device
    most = sum(shard_sizes(shards, num_threads=num_threads).values())
    keep = features_bytes(tower, most, projector.config.max_tiles) <= cache_bytes
    pictures = PictureWriter(tower, folder, device, keep_features=keep)
    audio = projector.audio
    return SensesWriter(
        pictures, None if audio is None else SoundWriter(audio.tower, folder, device)
    )
