"""Labelled speech: a synthetic noisy web of recordings whose ground truth is known, row by row."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import pyarrow as pa

from winnow.contracts.errors import RecipeError
from winnow.contracts.identity import UID_TYPE
from winnow.contracts.parameters import effort, result
from winnow.contracts.registry import register_source
from winnow.contracts.source import Source, SourceFile
from winnow.stages.sources._scenes.model import Part
from winnow.stages.sources._speech.noise import (
    FORMATS,
    NO_RECORDING,
    Content,
    Format,
    Row,
    World,
    checked_shares,
)
from winnow.stages.sources._speech.sentences import LANGUAGES
from winnow.stages.sources._speech.voice import SPEAKERS, VARIANTS
from winnow.stages.sources._virtual import batches_of, range_files
from winnow.stages.sources.scenes import SceneSource

SCHEMA = pa.schema(
    [
        pa.field("url", pa.string()),
        pa.field("text", pa.string()),
        pa.field("truth_kind", pa.string()),
        pa.field("truth_duplicate_of", UID_TYPE),
        pa.field("truth_changes", pa.list_(pa.string())),
        pa.field("truth_text", pa.string()),
        pa.field("truth_language", pa.string()),
        pa.field("truth_voice", pa.string()),
        pa.field("truth_duration_s", pa.float32()),
        pa.field("truth_snr_db", pa.float32()),
        pa.field("truth_clipped_ratio", pa.float32()),
        pa.field("truth_silence_ratio", pa.float32()),
        pa.field("truth_kept_ratio", pa.float32()),
        pa.field("truth_class", pa.string()),
    ]
)
IMAGE_URL = pa.field("image_url", pa.string())
"""One more column with content "names"."""
_BATCH_ROWS = 200


@register_source("speech", version=1)
@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class SpeechSource(Source):
    """A web of recordings by espeak-ng whose words are known, with known things wrong.

    Parameters
        num_rows: rows; a greater number adds rows and leaves the earlier ones as they are.
        seed: of everything; another seed is another web.
        content: "sentences", a recording and its transcript; or "names", triplets of a picture of
            one thing (of the labelled scenes), a voice that says the thing's English name, and a
            caption ("an apple"), which is the same for all pictures of it.
        noise: share of rows per kind (``_speech.noise.SHARES`` has the kinds and the defaults; a
            mapping replaces them all, {} is clean). With "names" there is none.
        part: "all", or what this web holds out: voices and sentences (with "names" voices and
            backgrounds of the pictures) of "train", "validation" and "test" are disjoint, whatever
            the seeds.
        voices: espeak-ng's speaker variants, of the part's; empty = all of them
            (``_speech.voice.SPEAKERS``).
        languages: ISO 639-1, of foreign speech and texts; empty = de es fr it nl pl pt sv.
        formats: of the files: wav, flac, mp3, opus, ogg (Vorbis), m4a (AAC); empty = all.
        num_concepts: with "names": of so many of the scenes' concepts only; null = all, about 300.
        sizes: with "names": least and greatest side of the pictures in pixels.
        host: of the URLs; image_host: of the pictures' URLs. They need to exist only in the
            fetcher's ``resolve`` option (``serve``).
        rows_per_file: rows in a file; files are virtual: part-00000, part-00001 ...

    Columns
        url: string, http://<host>/<seed>/<row>.<format>?<digest of the parameters>
        text: string, the transcript or caption that the web gives.
        truth_kind: string, "clean" or what is wrong.
        truth_duplicate_of: fixed_size_binary(16), uid of the row that this one is a copy of
            (exact_duplicate, near_duplicate, repeated_row: then its own uid); null elsewhere.
        truth_changes: list<string>, of a near_duplicate: its encoding ("mp3" or "opus"), then
            "gain" (3 to 8 dB either way) and "trim" (5 % cut from the ends); null elsewhere.
        truth_text: string, what is really said (truncated rows: would be, were it whole); null
            where nothing is: silent, or no recording (dead_link, html, corrupt).
        truth_language: string, ISO 639-1 code of what is said; null where truth_text is.
        truth_voice: string, the speaker variant; null where truth_text is.
        truth_duration_s: float32, seconds of the recording before it was encoded (of
            truncated_bytes: of the whole file); null where there is no recording.
        truth_snr_db: float32, RMS of the speech while somebody speaks (``damage.active_rms``) over
            that of the noise; 40 to 55 where the row is not noisy; null where truth_text is.
        truth_clipped_ratio: float32, share of samples at full scale; 0 where the row is not
            clipped; null where there is no recording.
        truth_silence_ratio: float32, share of the recording that is added silence, 1 = silent;
            pauses of the speech do not count; null where there is no recording.
        truth_kept_ratio: float32, share that is left of the sound (truncated) or of the bytes
            (truncated_bytes); 1 elsewhere; null where there is no recording.
        truth_class: string, the thing's English name; null with "sentences".
        image_url: string, with "names" only: the picture, under ``image_host``.
    Identity: url and text.
    Cost: 15 ms a row (it is spoken, to know its duration); recordings are made by ``serve``'s
        process when they are fetched, 20 ms each.
    Fails: RecipeError for parameters outside their bounds; SetupError without espeak-ng (extra
        ``speech``).
    """

    # Each file names its rows in its token, so the number of files changes no file's content.
    num_rows: int = effort(2000)
    seed: int = result(0)
    content: Content = result("sentences")
    noise: dict[str, float] | None = dataclasses.field(
        default=None, hash=False, metadata={"role": "result"}
    )
    part: Part = result("all")
    voices: tuple[str, ...] = result(())
    languages: tuple[str, ...] = result(())
    formats: tuple[Format, ...] = result(())
    num_concepts: int | None = result(None)
    sizes: tuple[int, int] = result((128, 192))
    host: str = result("speech.test")
    image_host: str = result("scenes.test")
    rows_per_file: int = result(1000)

    def __post_init__(self) -> None:
        for name in ("num_rows", "rows_per_file"):
            if getattr(self, name) < 1:
                msg = f"speech: {name}={getattr(self, name)}; use 1 or more"
                raise RecipeError(msg)
        for name in ("host", "image_host"):
            value = getattr(self, name)
            if not value or set(value) & set("/:@? "):
                msg = f"speech: {name}={value!r} is not a host name; use one like 'speech.test'"
                raise RecipeError(msg)
        if self.host == self.image_host:
            msg = f"speech: host and image_host are both {self.host!r}; use two names"
            raise RecipeError(msg)
        _among("voices", self.voices, self._speakers())
        _among("languages", self.languages, LANGUAGES[1:])
        _among("formats", self.formats, FORMATS)
        if self.content == "names" and self.noise:
            msg = 'speech: content "names" has no noise; leave it out'
            raise RecipeError(msg)
        if self.content == "sentences" and self.num_concepts is not None:
            msg = f'speech: num_concepts={self.num_concepts} is for content: "names"; leave it out'
            raise RecipeError(msg)
        self.world()

    def _speakers(self) -> tuple[str, ...]:
        return VARIANTS if self.part == "all" else SPEAKERS[self.part]

    def pictures(self) -> SceneSource | None:
        """Return the source of the pictures; None with content "sentences"."""
        if self.content == "sentences":
            return None
        return SceneSource(
            num_rows=self.num_rows,
            seed=self.seed,
            noise={},
            objects=(1, 1),
            sizes=self.sizes,
            aspects=(1.0, 1.0),
            part=self.part,
            host=self.image_host,
            num_concepts=self.num_concepts,
        )

    def world(self) -> World:
        """Return what rows and recordings depend on."""
        pictures = self.pictures()
        return World(
            seed=self.seed,
            host=self.host,
            part=self.part,
            shares=() if pictures else checked_shares(self.noise),
            voices=self.voices or self._speakers(),
            languages=self.languages or LANGUAGES[1:],
            formats=self.formats or FORMATS,
            pictures=pictures.world() if pictures else None,
        )

    def files(self) -> list[SourceFile]:
        return range_files("speech", self.num_rows, self.rows_per_file)

    def schema(self) -> pa.Schema:
        return SCHEMA if self.content == "sentences" else SCHEMA.append(IMAGE_URL)

    def read(self, file: SourceFile) -> Iterator[pa.RecordBatch]:
        world = self.world()
        schema = pa.schema([pa.field("uid", UID_TYPE), *self.schema()])
        for indices in batches_of(file, _BATCH_ROWS):
            rows = [_columns(world, world.row(index)) for index in indices]
            yield pa.RecordBatch.from_pylist(rows, schema=schema)

    @contextmanager
    def serve(self) -> Iterator[Mapping[str, str]]:
        """Serve recordings (and pictures) on loopback: host -> "address:port" for ``resolve``."""
        from winnow.stages.sources._speech.serve import SpeechServer

        with ExitStack() as stack:
            pictures = self.pictures()
            hosts = dict(stack.enter_context(pictures.serve())) if pictures else {}
            hosts[self.host] = stack.enter_context(SpeechServer(self)).address
            yield hosts

    def score(self, rows: pa.Table, order: Sequence[str]) -> list[dict[str, Any]]:
        """Compare a ledger with the truth: ``_scenes.score.score`` with ``_speech.score``."""
        from winnow.stages.sources._scenes.score import score
        from winnow.stages.sources._speech.score import CATCHES

        return score(rows, order=order, catches=CATCHES)


def _among(name: str, values: tuple[str, ...], allowed: Sequence[str]) -> None:
    if set(values) - set(allowed) or len(set(values)) < len(values):
        msg = f"speech: {name}={values}; use some of {', '.join(allowed)}, each once"
        raise RecipeError(msg)


def _columns(world: World, row: Row) -> dict[str, Any]:
    from winnow.stages.sources._speech.payload import duration_s

    there = row.kind not in NO_RECORDING
    heard = there and row.kind != "silent"
    values = {
        "uid": world.uid(row),
        "url": world.url(row),
        "text": row.text,
        "truth_kind": row.kind,
        "truth_duplicate_of": None if row.original is None else world.uid(world.row(row.original)),
        "truth_changes": list(row.changes) or None,
        "truth_text": row.said if heard else None,
        "truth_language": row.voice.language if heard else None,
        "truth_voice": row.voice.variant if heard else None,
        "truth_duration_s": duration_s(world, row) if there else None,
        "truth_snr_db": row.snr_db if heard else None,
        "truth_clipped_ratio": row.clipped_ratio if there else None,
        "truth_silence_ratio": row.silence_ratio if there else None,
        "truth_kept_ratio": row.kept_ratio if there else None,
    }
    if row.picture is not None and world.pictures is not None:
        values["truth_class"] = row.picture.said.groups[0].concept
        values["image_url"] = world.pictures.url(row.picture)
    return values
