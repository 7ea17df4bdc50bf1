"""Exported shards as what a projector model learns from: pictures, captions, conversations."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from winnow.contracts.errors import SetupError
from winnow.contracts.identity import content_digest
from winnow.contracts.paths import user_path
from winnow.models.conversation import llava_conversation
from winnow.stages.sources._files import printable
from winnow.stages.train._captions import check_found, texts_of
from winnow.stages.train._members import (
    AUDIO_MEMBERS,
    IMAGE_MEMBERS,
    NO_IMAGE,
    Pixels,
    audio_member,
    decoded_picture,
    image_member,
    text_member,
)
from winnow.stages.train._projector_pictures import Tower
from winnow.stages.train._projector_senses import SensesWriter
from winnow.stages.train._projector_sound import Senses, heard_frames
from winnow.stages.train._projector_turns import Lesson
from winnow.stages.train._shard_reader import KEY, Sample
from winnow.stages.train.shards import decoded_samples, json_values

if TYPE_CHECKING:
    from winnow.models.audio_tower import Frames
    from winnow.models.projector_audio import FrozenAudioTower


@dataclass(frozen=True, kw_only=True, slots=True)
class LessonReading:
    """What is read of each sample.

    captions: the member with the caption.  caption_choices, conversations, interleaved: columns of
    the .json member, or None: see ``_captions``, ``_projector_turns`` and
    ``winnow.models.projector_batch.interleaved_row``.
    """

    captions: str = "txt"
    caption_choices: str | None = None
    conversations: str | None = None
    interleaved: str | None = None
    num_threads: int = 1

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of the .json members."""
        return tuple(
            c for c in (self.caption_choices, self.conversations, self.interleaved) if c is not None
        )

    def wanted(self, extension: str) -> bool:
        """Whether a member with this extension is needed."""
        if extension in IMAGE_MEMBERS or extension == self.captions:
            return True
        if extension == "json":
            return bool(self.columns)
        return self.interleaved is not None and extension.rpartition(".")[2] in IMAGE_MEMBERS


@dataclass(frozen=True, kw_only=True, slots=True)
class Lessons:
    """Samples in the order of the shards.

    senses: their pictures (the first of each) and recordings.  digest: over keys, texts, encoded
    pictures and recordings, hex.  skipped: samples that were left out, by reason.  unreadable:
    members that cannot be decoded of samples that were not, by reason.
    """

    senses: Senses
    lessons: list[Lesson]
    digest: str
    skipped: dict[str, int]
    unreadable: dict[str, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Learned:
    """One sample: its texts, the tiles of each picture, its log-mel, and the bytes of both."""

    lesson: Lesson
    tiles: list[Pixels]
    members: list[bytes]
    frames: Frames | None = None
    unreadable: str = ""


def read_lessons(
    paths: Sequence[str], reading: LessonReading, tower: Tower, writer: SensesWriter
) -> Lessons:
    """Read all shards. A sample is left out and counted where it has no picture ("no image",
    "undecodable", "too_large") or nothing to say about it ("no caption", "bad conversation",
    "bad interleaved text"). With an audio tower a picture or a recording is enough; a sample
    without both is counted under both reasons ("no image and no audio").

    Fails: SetupError for a tar that cannot be read, a full disk, or no sample at all.
    """
    lessons: list[Lesson] = []
    skipped, unreadable = Counter[str](), Counter[str]()
    digest = hashlib.blake2b(digest_size=16)
    heard = () if writer.ears is None else AUDIO_MEMBERS

    def learned(sample: Sample) -> _Learned | str:
        return _learned(sample, reading, tower, writer.ears)

    stream = decoded_samples(
        paths,
        lambda extension: reading.wanted(extension) or extension in heard,
        learned,
        num_threads=reading.num_threads,
    )
    for sample, found in stream:
        if isinstance(found, str):
            skipped[found] += 1
            continue
        for part in _content(sample, reading, found):
            digest.update(content_digest(part))
        unreadable.update([found.unreadable] if found.unreadable else [])
        lessons.append(found.lesson)
        writer.add(found.tiles, found.frames)
    if not lessons:
        msg = f"no sample of {len(paths)} shards can be trained on; left out: {dict(skipped)}"
        raise SetupError(msg)
    if reading.caption_choices is not None:
        check_found(([""] for one in lessons if one.has_choices), reading.caption_choices)
    return Lessons(
        senses=writer.done(),
        lessons=lessons,
        digest=digest.hexdigest(),
        skipped=dict(skipped),
        unreadable=dict(sorted(unreadable.items())),
    )


def _content(sample: Sample, reading: LessonReading, found: _Learned) -> list[bytes]:
    """Return all that a sample teaches with, for the digest."""
    values = json.dumps(json_values(sample, reading.columns), sort_keys=True)
    name = sample[KEY].encode("utf-8", "surrogateescape")
    return [name, json.dumps(found.lesson.captions).encode(), values.encode(), *found.members]


def _learned(
    sample: Sample, reading: LessonReading, tower: Tower, ears: FrozenAudioTower | None
) -> _Learned | str:
    """Decode one sample, or return why it is left out."""
    found = _lesson(sample, reading)
    if isinstance(found, str):
        return found
    lesson, encoded = found
    if ears is not None:
        return _learned_both(lesson, encoded[0], audio_member(sample), tower, ears)
    tiles = []
    for data in encoded:
        pixels = decoded_picture(data, tower.pixels)
        if isinstance(pixels, str):
            return pixels
        tiles.append(pixels)
    return _Learned(lesson=lesson, tiles=tiles, members=encoded)


def _learned_both(
    lesson: Lesson, image: bytes, audio: bytes, tower: Tower, ears: FrozenAudioTower
) -> _Learned | str:
    pixels, frames = decoded_picture(image, tower.pixels), heard_frames(ears, audio)
    if isinstance(pixels, str) and isinstance(frames, str):
        return f"{pixels} and {frames}"
    broken = ""
    if image and isinstance(pixels, str):
        broken = f"image {pixels}"
    if audio and isinstance(frames, str):
        broken = frames
    return _Learned(
        lesson=lesson,
        tiles=[] if isinstance(pixels, str) else [pixels],
        members=[image, audio],
        frames=None if isinstance(frames, str) else frames,
        unreadable=broken,
    )


def _lesson(sample: Sample, reading: LessonReading) -> tuple[Lesson, list[bytes]] | str:
    values = dict(zip(reading.columns, json_values(sample, reading.columns), strict=True))
    if reading.interleaved is not None:
        return _interleaved(sample, values[reading.interleaved])
    captions, chosen = _captions(sample, reading, values)
    turns = llava_conversation(
        None if reading.conversations is None else values[reading.conversations]
    )
    if turns is None:
        return "bad conversation"
    if not turns and not captions:
        return "no caption"
    key = printable(sample[KEY])
    lesson = Lesson(key=key, captions=captions, has_choices=chosen, turns=turns)
    return lesson, [image_member(sample)]


def _captions(
    sample: Sample, reading: LessonReading, values: Mapping[str, Any]
) -> tuple[tuple[str, ...], bool]:
    """Return the captions of a sample, and whether they are those of ``caption_choices``."""
    column = reading.caption_choices
    if column is not None:
        found = texts_of(values[column], column=column, key=printable(sample[KEY]))
        if found:
            return tuple(found), True
    caption = text_member(sample, reading.captions)
    return (caption,) if caption else (), False


def _interleaved(sample: Sample, value: object) -> tuple[Lesson, list[bytes]] | str:
    """Picture 0 is the sample's own, picture n its member <n>.<extension>."""
    from winnow.models.projector_batch import interleaved_row

    row = interleaved_row(value)
    if row is None:
        return "bad interleaved text"
    encoded = [image_member(sample)][: row.num_images]
    for number in range(1, row.num_images):
        names = (f"{number}.{extension}" for extension in IMAGE_MEMBERS)
        name = next((name for name in names if name in sample), None)
        if name is None:
            return NO_IMAGE
        encoded.append(sample[name])
    return Lesson(parts=row.parts), encoded


def read_texts(path: Path) -> list[str]:
    """Return the lines of a file that are not empty.

    Fails: SetupError where it cannot be read as UTF-8, or has none.
    """
    try:
        lines = user_path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        msg = f"text_file={str(path)!r} cannot be read: {error}; give a file of UTF-8 lines"
        raise SetupError(msg) from error
    texts = [line.strip() for line in lines if line.strip()]
    if not texts:
        msg = f"text_file={str(path)!r} has no text; give a file of UTF-8 lines"
        raise SetupError(msg)
    return texts
