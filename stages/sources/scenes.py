"""Labelled scenes: a synthetic noisy web whose ground truth is known, row by row."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import pyarrow as pa

from winnow.contracts.errors import RecipeError
from winnow.contracts.identity import UID_TYPE
from winnow.contracts.parameters import effort, later, result
from winnow.contracts.registry import register_source
from winnow.contracts.source import Source, SourceFile
from winnow.stages.sources._scenes import LANGUAGES, SceneOptions
from winnow.stages.sources._scenes.captions import Statement
from winnow.stages.sources._scenes.draw import Draw
from winnow.stages.sources._scenes.model import Part, Scene
from winnow.stages.sources._scenes.noise import (
    CLEAN,
    Captions,
    Row,
    World,
    checked_shares,
    default_languages,
)
from winnow.stages.sources._scenes.swaps import Swaps, swaps
from winnow.stages.sources._virtual import batches_of, range_files

SCHEMA = pa.schema(
    [
        pa.field("url", pa.string()),
        pa.field("text", pa.string()),
        pa.field("truth_kind", pa.string()),
        pa.field("truth_scene", pa.int64()),
        pa.field("truth_duplicate_of", UID_TYPE),
        pa.field("truth_caption", pa.string()),
        pa.field("truth_language", pa.string()),
        pa.field("truth_objects", pa.list_(pa.string())),
        pa.field("truth_num_objects", pa.int8()),
        pa.field("truth_class", pa.string()),
        pa.field("truth_background", pa.string()),
        pa.field("truth_swap_attribute", pa.string()),
        pa.field("truth_swap_relation", pa.string()),
        pa.field("truth_swap_count", pa.string()),
        pa.field("truth_hard_negative", pa.string()),
    ]
)
FACTS = pa.schema(
    [
        pa.field(
            "truth_groups",
            pa.list_(pa.struct({"name": pa.string(), "count": pa.int32(), "color": pa.string()})),
        ),
        pa.field(
            "truth_relations",
            pa.list_(pa.struct({name: pa.string() for name in ("subject", "predicate", "object")})),
        ),
    ]
)
"""More columns of webs with paragraphs. Others have none: a web's columns name its shards."""
STATED_ONCE = ("left of", "above", "on")
"""The predicates of ``truth_relations``; "right of" and "below" are their inverses."""
PAINTED_SHARE = 0.9
"""Share of the objects that can be painted that are, with paragraphs and in parts other than "all"
(elsewhere 0.4)."""
CROWD_REPEAT_SHARE = 0.12
"""Share of the further objects that are another one of a kind, with paragraphs (elsewhere 0.2)."""
_BATCH_ROWS = 500


@register_source("scenes", version=1)
@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class SceneSource(Source):
    """A web of pictures of known content, with known things wrong.

    Parameters
        num_rows: rows; a greater number adds rows and leaves the earlier ones as they are.
        seed: of everything; another seed is another web.
        noise: share of rows per kind (``_scenes.noise.SHARES`` has the kinds and the defaults; a
            mapping replaces them all, {} is clean).
        objects: least and greatest number of objects in a picture, at most 16.
        weights: how often each of the concepts comes, "uniform" or "zipf".
        sizes: least and greatest side in pixels. aspects: least and greatest width / height.
        languages: of the foreign captions; empty = all there are.
        part: "all", or what this web holds out: object pairs, concepts in stated relations,
            backgrounds and caption templates of "train", "validation" and "test" are disjoint
            (``_scenes.holdout``; the words are the same), whatever the seeds. Parts other than
            "all" paint more objects (``PAINTED_SHARE``), to have more attributes to tell apart.
        num_concepts: draw from so many of the concepts only, null = all: a smaller world is learned
            from fewer samples.
        co_occurrence: chance that a further object is one of three fixed partners of an object that
            is already there, so that some pairs come often. With weights "zipf" it plants what a
            model can hallucinate from: independent and equally frequent objects leave no prior.
        captions: "short", one sentence or less, or "paragraph": one or two sentences per kind of
            object, in random order, with counts, colors and some relations. The pictures of
            paragraphs are crowds: objects of about equal size, of different concepts but for a few
            repeats (in parts other than "all" as far as concepts fit together).
        host: of the URLs; it needs to exist only in the fetcher's ``resolve`` option (``serve``).
        rows_per_file: rows in a file; files are virtual: part-00000, part-00001 ...

    Columns
        url: string, http://<host>/<seed>/<row>.<jpg|png|webp>?<digest of the parameters>
        text: string, the caption that the web gives.
        truth_kind: string, "clean" or what is wrong.
        truth_scene: int64, number of the scene in the picture (that of the original, for copies).
        truth_duplicate_of: fixed_size_binary(16), uid of the row that this one is a copy of
            (exact_duplicate, near_duplicate, repeated_row: then its own uid); null elsewhere.
        truth_caption: string, an English caption of what the picture shows (or would show, were
            it there). truth_language: string, ISO 639-1 code of what ``text`` was written in.
        truth_objects: list<string>, English name per object instance. truth_num_objects: int8, how
            many they are. truth_class: string, the name where all are of one concept; else null.
        truth_background: string, "<pattern>:<color>".
        truth_swap_attribute, truth_swap_relation, truth_swap_count, truth_hard_negative: string,
            truth_caption with one fact made false (``_scenes.swaps``); null where truth_kind is
            not "clean" or the caption does not state such a fact, and with paragraphs.
        With paragraphs also
        truth_groups: list<struct<name: string, count: int32, color: string>>, per concept in the
            picture; color null = not painted: its own colors.
        truth_relations: list<struct<subject, predicate, object: string>>, all that are true of all
            instances, as "left of", "above" or "on".
    Identity: url and text.
    Cost: 0.6 ms a row; pictures are drawn by ``serve``'s process when they are fetched.
    Fails: RecipeError for parameters outside their bounds.
    """

    # Each file names its rows in its token, so the number of files changes no file's content.
    num_rows: int = effort(2000)
    seed: int = result(0)
    noise: dict[str, float] | None = dataclasses.field(
        default=None, hash=False, metadata={"role": "result"}
    )
    objects: tuple[int, int] = result((1, 4))
    weights: Literal["uniform", "zipf"] = result("uniform")
    sizes: tuple[int, int] = result((256, 512))
    aspects: tuple[float, float] = result((0.6, 1.7))
    languages: tuple[str, ...] = result(())
    part: Part = result("all")
    host: str = result("scenes.test")
    rows_per_file: int = result(1000)
    num_concepts: int | None = later(None)
    co_occurrence: float = later(0.0)
    captions: Captions = later("short")

    def __post_init__(self) -> None:
        for name in ("num_rows", "rows_per_file"):
            if getattr(self, name) < 1:
                msg = f"scenes: {name}={getattr(self, name)}; use 1 or more"
                raise RecipeError(msg)
        unknown = sorted(set(self.languages) - set(LANGUAGES))
        if unknown or "en" in self.languages:
            allowed = ", ".join(default_languages())
            msg = f"scenes: languages={self.languages}; use some of {allowed}"
            raise RecipeError(msg)
        if not self.host or set(self.host) & set("/:@? "):
            msg = f"scenes: host={self.host!r} is not a host name; use one like 'scenes.test'"
            raise RecipeError(msg)
        self.world()

    def world(self) -> World:
        """Return what rows and pictures depend on."""
        crowd = self.captions == "paragraph"
        return World(
            seed=self.seed,
            host=self.host,
            options=SceneOptions(
                min_objects=self.objects[0],
                max_objects=self.objects[1],
                weights=self.weights,
                sizes=self.sizes,
                aspects=self.aspects,
                part=self.part,
                color_share=0.4 if self.part == "all" and not crowd else PAINTED_SHARE,
                num_concepts=self.num_concepts,
                repeat_share=CROWD_REPEAT_SHARE if crowd else SceneOptions().repeat_share,
                crowd=crowd,
                co_occurrence=self.co_occurrence,
            ),
            shares=checked_shares(self.noise),
            languages=self.languages or default_languages(),
            captions=self.captions,
        )

    def files(self) -> list[SourceFile]:
        return range_files("scenes", self.num_rows, self.rows_per_file)

    def schema(self) -> pa.Schema:
        return SCHEMA if self.captions == "short" else pa.schema([*SCHEMA, *FACTS])

    def read(self, file: SourceFile) -> Iterator[pa.RecordBatch]:
        world = self.world()
        schema = pa.schema([pa.field("uid", UID_TYPE), *self.schema()])
        for indices in batches_of(file, _BATCH_ROWS):
            rows = [_columns(world, world.row(index)) for index in indices]
            yield pa.RecordBatch.from_pylist(rows, schema=schema)

    @contextmanager
    def serve(self) -> Iterator[Mapping[str, str]]:
        """Serve the pictures on loopback; yields host -> "address:port" for ``resolve``."""
        from winnow.stages.sources._scenes.serve import SceneServer

        with SceneServer(self) as server:
            yield {self.host: server.address}

    def score(self, rows: pa.Table, order: Sequence[str]) -> list[dict[str, Any]]:
        """Compare a ledger with the truth: ``_scenes.score.score``."""
        from winnow.stages.sources._scenes.score import score

        return score(rows, order=order)


def _columns(world: World, row: Row) -> dict[str, Any]:
    drawn = world.scene(row)
    concepts = [thing.concept for thing in drawn.objects]
    false = Swaps()
    if row.kind == CLEAN and isinstance(row.said, Statement):
        draw = Draw("false", world.seed, row.index)
        false = swaps(row.said, drawn, world.options.part, draw)
    return {
        "uid": world.uid(row),
        "url": world.url(row),
        "text": row.text,
        "truth_kind": row.kind,
        "truth_scene": row.scene_index,
        "truth_duplicate_of": None if row.original is None else world.uid(world.row(row.original)),
        "truth_caption": row.truth,
        "truth_language": row.language,
        "truth_objects": concepts,
        "truth_num_objects": len(concepts),
        "truth_class": concepts[0] if len(set(concepts)) == 1 else None,
        "truth_background": f"{drawn.background.pattern}:{drawn.background.color}",
        "truth_swap_attribute": false.attribute,
        "truth_swap_relation": false.relation,
        "truth_swap_count": false.count,
        "truth_hard_negative": false.hard_negative,
        **(_facts(drawn) if world.captions == "paragraph" else {}),
    }


def _facts(drawn: Scene) -> dict[str, Any]:
    return {
        "truth_groups": [
            {"name": g.concept, "count": g.count, "color": g.color} for g in drawn.groups
        ],
        "truth_relations": [
            {"subject": r.subject, "predicate": r.predicate, "object": r.object}
            for r in drawn.relations
            if r.predicate in STATED_ONCE
        ],
    }
