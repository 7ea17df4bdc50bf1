"""What a fused projector model hears: recordings through a frozen tower once, and modality dropout.

B rows, N tokens of a clip, A width of the audio tower.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from winnow.stages.train._members import decoded_frames
from winnow.stages.train._scratch import check_room, mapped, scratch_file

if TYPE_CHECKING:
    import torch

    from winnow.models.audio_tower import Frames
    from winnow.models.projector import Projector
    from winnow.models.projector_audio import FrozenAudioTower
    from winnow.stages.train._projector_pictures import Pictures

Modality = Literal["image", "audio"]
NONE = -1
_TOGETHER = 16  # clips; always as many, because the last bits depend on the shape


class Sounds:
    """N recordings as their tower's tokens; what is in the scratch file of ``SoundWriter``.

    firsts: where the tokens of each begin, N + 1 numbers.
    """

    def __init__(
        self, tokens: npt.NDArray[np.float16], firsts: npt.NDArray[np.int64], device: Any
    ) -> None:
        self._tokens, self._firsts, self._device = tokens, firsts, device

    def __len__(self) -> int:
        return len(self._firsts) - 1

    def features(self, places: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return float32 (B, N, A) and which tokens there are, bool (B, N); -1 stands for none,
        but not for all."""
        import torch

        parts = [self._of(place) for place in places]
        longest = max(map(len, parts))
        features = np.zeros((len(parts), longest, self._tokens.shape[1]), np.float32)
        mask = np.zeros((len(parts), longest), np.bool_)
        for row, part in enumerate(parts):
            features[row, : len(part)] = part
            mask[row, : len(part)] = True
        found = torch.from_numpy(features), torch.from_numpy(mask)
        return found[0].to(self._device), found[1].to(self._device)

    def _of(self, place: int) -> npt.NDArray[np.float16]:
        if place == NONE:
            return self._tokens[:0]
        return self._tokens[self._firsts[place] : self._firsts[place + 1]]


class SoundWriter:
    """Collects recordings in a nameless scratch file of ``folder``: their tokens, as float16."""

    def __init__(self, tower: FrozenAudioTower, folder: Path, device: Any) -> None:
        self.tower, self._folder, self._device = tower, folder, device
        self._counts: list[int] = []
        self._waiting: list[Frames] = []
        self._num_clips = 0
        self._file = scratch_file(folder)

    def __len__(self) -> int:
        return self._num_clips

    def add(self, frames: Frames | None) -> None:
        """Append a recording's log-mel (M, T); None is nothing."""
        if frames is None:
            return
        check_room(self._folder)
        self._waiting.append(frames)
        self._num_clips += 1
        if len(self._waiting) == _TOGETHER:
            self._write()

    def done(self) -> Sounds:
        """Return what was added."""
        self._write()
        firsts = np.cumsum([0, *self._counts], dtype=np.int64)
        tokens = mapped(self._file, np.float16, (int(firsts[-1]), self.tower.width))
        return Sounds(tokens, firsts, self._device)

    def _write(self) -> None:
        if not self._waiting:
            return
        clips, self._waiting = self._waiting, []
        fill = [np.zeros((len(clips[0]), 1), np.float16)] * (_TOGETHER - len(clips))
        tokens_BNA, mask_BN = self.tower([*clips, *fill])
        for row in range(len(clips)):
            heard = tokens_BNA[row][mask_BN[row]].half().cpu().numpy()
            self._counts.append(len(heard))
            self._file.write(heard.tobytes())


def heard_frames(tower: FrozenAudioTower, data: bytes) -> Frames | str:
    """Return the log-mel of an encoded recording, or why there is none."""
    found = decoded_frames(data, tower.config)
    return f"audio {found}" if data and isinstance(found, str) else found


@dataclass(frozen=True, kw_only=True, slots=True)
class ModalityDropout:
    """Which modality a row loses at a step of training: by seed, step and row, and nothing else.

    share: of the rows that lose their picture, and of those that lose their sound; at most half.
    """

    share: float
    seed: int

    def dropped(self, row: int, step: int) -> Modality | None:
        """Return what a row that has both loses, or None."""
        said = f"modality dropout\0{self.seed}\0{step}\0{row}"
        digest = hashlib.blake2b(said.encode(), digest_size=8).digest()
        draw = int.from_bytes(digest) / 2**64
        if draw < self.share:
            return "image"
        return "audio" if draw < 2 * self.share else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Senses:
    """Pictures and recordings of rows. Row r has picture ``picture_of[r]`` and recording
    ``sound_of[r]``, -1 = none; sounds: None for a model without an audio tower."""

    pictures: Pictures
    picture_of: Sequence[int]
    sounds: Sounds | None = None
    sound_of: Sequence[int] = ()

    def without(self, kind: Modality) -> int:
        """Return how many rows lack a modality."""
        places = self.picture_of if kind == "image" else self.sound_of
        return sum(place == NONE for place in places)

    @contextlib.contextmanager
    def of(
        self,
        projector: Projector,
        rows: Sequence[int],
        dropout: ModalityDropout | None = None,
        step: int = 0,
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor] | tuple[None, None]]:
        """Yield features and mask of the rows' pictures; inside, the projector hears their sounds.

        ``dropout``: a row with both loses what it says at ``step``.
        """
        seen = [self.picture_of[row] for row in rows]
        if self.sounds is None or projector.audio is None:
            yield self.pictures.features(seen)
            return
        heard = [self.sound_of[row] for row in rows]
        for place, row in enumerate(rows):
            if dropout is None or NONE in (seen[place], heard[place]):
                continue
            gone = dropout.dropped(row, step)
            if gone is not None:
                (seen if gone == "image" else heard)[place] = NONE
        sound = None if set(heard) == {NONE} else self.sounds.features(heard)
        with projector.audio.hearing(sound):
            yield (None, None) if set(seen) == {NONE} else self.pictures.features(seen)
