"""Plans: wrong recipes are refused before anything runs; stages are grouped into passes."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest

from winnow.contracts.errors import RecipeError
from winnow.contracts.stage import Resources
from winnow.filters.rules import PriorityCover
from winnow.pipeline.plan import MAX_CHUNK_ROWS, Pass, Plan, make_plan
from winnow.pipeline.recipe import parse_recipe

IMAGES = """  download: {}
  image_info: {}
  perceptual_hash: {}
  near_duplicates: {}
"""


def plan(
    folder: Path, stages: str = "", filters: str = "", export: str = "", source: str = ""
) -> Plan:
    data = folder / "in.jsonl"
    data.write_text(json.dumps({"url": "u", "text": "t", "num_words": 3}) + "\n")
    text = f"name: p\nsource: {{use: url_table, path: '{data}'{source}}}\n"
    text += f"stages:\n{stages}" if stages else ""
    text += f"filters:\n{filters}" if filters else ""
    text += f"export:\n{export}" if export else ""
    return make_plan(parse_recipe(text, "r.yaml"))


def where(key: str, expression: str) -> str:
    return f'  {key}: {{use: where, expression: "{expression}", on_null: drop}}\n'


COVER = "  cover: {use: drop_near_duplicates, on_null: keep}\n"

WRONG = {
    "nothing writes it": (
        "  toy_fetched_length: {}\n",
        "",
        r"stages.toy_fetched_length reads the column 'fetched', which nothing writes",
    ),
    "a known stage writes it": (
        "  toy_double: {}\n",
        "",
        r"'num_letters', which nothing writes; the stage toy_length writes it: add it before",
    ),
    "written later": (
        "  toy_double: {}\n  toy_length: {}\n",
        "",
        r"reads the column 'num_letters', which toy_length writes: put toy_length before it",
    ),
    "written twice": (
        "  toy_length: {}\n  again: {use: toy_length}\n",
        "",
        r"stages.again writes the column 'num_letters', which stages.toy_length already has",
    ),
    "the source has it": (
        "  b: {use: toy_batch, rows: 1, column: text}\n",
        "",
        r"stages.b writes the column 'text', which the source already has",
    ),
    "every row has it": (
        "  b: {use: toy_batch, rows: 1, column: uid}\n",
        "",
        r"stages.b writes the column 'uid', which every row already has",
    ),
    "gate on a missing column": (
        '  toy_length: {when: "num_leters > 3"}\n',
        "",
        r"stages.toy_length.when: there is no column 'num_leters'",
    ),
    "gate on its own column": (
        '  toy_length: {when: "num_letters > 3"}\n',
        "",
        r"stages.toy_length.when: there is no column 'num_letters'",
    ),
    "gate that is no condition": (
        '  toy_length: {when: "length(text)"}\n',
        "",
        r"stages.toy_length.when: length\(text\) is a number, not a condition",
    ),
    "filter on a missing column": (
        "",
        where("f", "score > 1"),
        r"filters.f: there is no column 'score'",
    ),
    "filter with other types": (
        "  toy_length: {}\n",
        where("f", "num_letters > 'a'"),
        r"filters.f: num_letters > 'a': num_letters is a number, 'a' is a string",
    ),
    "rank on a missing column": (
        "",
        "  top: {use: clip_top_fraction, fraction: 0.3, on_null: drop}\n",
        r"filters.top reads clip_score, which nothing writes",
    ),
    "rank on a text": (
        "  b: {use: toy_gpu}\n",
        "  top: {use: toy_top, column: device, fraction: 0.3, on_null: drop}\n",
        r"filters.top: device is string, not a number",
    ),
    "cover on a missing column": (
        "",
        COVER,
        r"filters.cover reads .*near_duplicates.*nothing writes",
    ),
    "cover not last": (
        IMAGES,
        COVER + where("f", "width > 3"),
        r"filters.f comes after filters.cover: put cover last, or a duplicate is dropped for a row",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_recipe_is_refused_with_the_reason(tmp_path: Path, name: str) -> None:
    stages, filters, message = WRONG[name]
    with pytest.raises(RecipeError, match=message) as caught:
        plan(tmp_path, stages, filters)
    assert str(caught.value).startswith("r.yaml: ")


def test_a_column_of_another_type_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"reads num_letters as int32, but it is string"):
        plan(tmp_path, "  toy_double: {}\n", source=", rename: {num_words: num_letters}")


def test_an_export_without_media_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"export.train: webdataset: no column holds media"):
        plan(tmp_path, export="  train: {}\n")


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        plan(tmp_path, "  toy_double: {}\n  toy_fetched_length: {}\n", where("f", "nothing > 1"))
    assert [m.split(" ")[0] for m in caught.value.message.split("\n")] == [
        "stages.toy_double",
        "stages.toy_fetched_length",
        "filters.f:",
    ]


def test_columns_come_in_the_order_in_which_they_are_written(tmp_path: Path) -> None:
    made = plan(tmp_path, "  toy_length: {}\n  toy_double: {}\n")
    assert made.schema.names == [
        *("url", "text", "num_words", "num_letters", "toy_length_error", "doubled"),
        "toy_double_error",
    ]
    assert made.origins["text"] == ""
    assert made.origins["doubled"] == "toy_double"
    assert made.inputs("toy_double") == ("toy_length",)
    assert made.inputs("toy_length") == ("",)


def keys(made: Plan) -> list[tuple[str, ...] | str]:
    return [s.keys if isinstance(s, Pass) else s.key for s in made.steps]


@pytest.mark.parametrize(
    ("stages", "expected"),
    [
        ("  toy_length: {}\n  toy_double: {}\n", [("toy_length", "toy_double")]),
        (
            "  toy_length: {}\n  toy_rank: {}\n  toy_double: {}\n",
            [("toy_length",), "toy_rank", ("toy_double",)],
        ),
        (
            "  toy_length: {}\n  toy_fetch: {folder: x}\n  toy_fetched_length: {}\n",
            [("toy_length", "toy_fetch"), ("toy_fetched_length",)],
        ),
        (
            '  toy_length: {}\n  toy_double: {when: "num_letters > 1"}\n',
            [("toy_length",), ("toy_double",)],
        ),
        (
            "  toy_length: {when: \"text != 'a'\"}\n  toy_crash: {when: \"text != 'a'\"}\n",
            [("toy_length", "toy_crash")],
        ),
        (
            "  toy_length: {when: \"text != 'a'\"}\n  toy_crash: {when: \"text != 'b'\"}\n",
            [("toy_length",), ("toy_crash",)],
        ),
        ("  toy_length: {}\n  toy_gpu: {}\n", [("toy_length",), ("toy_gpu",)]),
        (
            "  a: {use: toy_batch, rows: 8, column: a}\n"
            "  b: {use: toy_batch, rows: 12, column: b}\n",
            [("a", "b")],
        ),
        (
            "  a: {use: toy_batch, rows: 512, column: a}\n"
            "  b: {use: toy_batch, rows: 81, column: b}\n",
            [("a",), ("b",)],
        ),
    ],
)
def test_consecutive_stages_share_a_pass_where_they_can(
    tmp_path: Path, stages: str, expected: list[tuple[str, ...] | str]
) -> None:
    assert keys(plan(tmp_path, stages)) == expected


def test_chunks_divide_into_every_batch(tmp_path: Path) -> None:
    made = plan(
        tmp_path,
        "  a: {use: toy_batch, rows: 8, column: a}\n  b: {use: toy_batch, rows: 12, column: b}\n"
        "  toy_length: {}\n",
    )
    (step,) = made.steps
    assert isinstance(step, Pass)
    assert step.chunk_rows == 24 <= MAX_CHUNK_ROWS
    assert step.resources == Resources()
    gpu = plan(tmp_path, "  toy_gpu: {}\n").steps[0]
    assert isinstance(gpu, Pass)
    assert gpu.resources.num_gpus == 1


def test_media_that_must_be_there_are_an_implied_first_filter(tmp_path: Path) -> None:
    made = plan(tmp_path, IMAGES, where("f", "width > 3") + COVER, "  train: {}\n")
    assert [(f.key, f.on_null) for f in made.filters] == [
        ("has_media", "drop"),
        ("f", "drop"),
        ("cover", "keep"),
    ]
    assert str(made.filters[0].rule) == "download_error is None"
    assert isinstance(made.filters[2].rule, PriorityCover)
    resized = plan(
        tmp_path,
        "  download: {}\n  resize: {}\n",
        export="  train: {payload: resized_image}\n",
    )
    assert str(resized.filters[0].rule) == "download_error is None and resize_error is None"


def test_only_a_random_draw_may_follow_a_cover(tmp_path: Path) -> None:
    draw = "  arm: {use: random_rows, count: 3, on_null: drop}\n"
    made = plan(tmp_path, IMAGES, COVER + draw, "  train: {}\n")
    assert [f.key for f in made.filters] == ["has_media", "cover", "arm"]
    with pytest.raises(RecipeError, match=r"filters.f comes after filters.cover"):
        plan(tmp_path, IMAGES, COVER + draw + where("f", "width > 3"))


def test_a_second_cover_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"filters.again comes after filters.cover: a recipe has"):
        plan(tmp_path, IMAGES, COVER + COVER.replace("cover", "again"))


def test_local_media_are_virtual_and_must_have_a_reference(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"x")
    made = make_plan(
        parse_recipe(
            f"name: p\nsource: {{use: folder, path: '{tmp_path}'}}\nstages: {{image_info: }}"
        )
    )
    assert made.virtual == ("image",)
    assert made.schema.field("image").type == pa.large_binary()
    assert str(made.filters[0].rule) == "not (image_ref is None)"


def test_a_payload_that_the_source_has_as_bytes_must_be_there(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    image = pa.array([b"x", None], pa.large_binary())
    pq.write_table(
        pa.table({"url": ["a", "b"], "text": ["a", "b"], "image": image}), tmp_path / "t.parquet"
    )
    source = f"{{use: url_table, path: '{tmp_path}/t.parquet'}}"
    made = make_plan(parse_recipe(f"name: p\nsource: {source}\n"))
    assert str(made.filters[0].rule) == "not (image is None)"


TWO = "  download: {}\n  download_audio: {use: download, media: audio, url_column: text}\n"
BOTH = "download_error is None and download_audio_error is None"


@pytest.mark.parametrize(
    ("export", "rule"),
    [
        ("", BOTH),
        ("  train: {}\n", BOTH),
        ("  train: {payload: [image, audio]}\n", BOTH.replace(" and ", " or ")),
        ("  train: {payload: [audio, image], require: all}\n", BOTH),
        ("  train: {payload: [image, audio], use: parquet}\n", BOTH.replace(" and ", " or ")),
        ("  a: {payload: [image, audio]}\n  b: {payload: image}\n", "download_error is None"),
        ("  a: {payload: []}\n", None),
        ("  a: {payload: []}\n  b: {payload: audio}\n", BOTH),
    ],
)
def test_which_media_must_be_there_follows_from_the_exports(
    tmp_path: Path, export: str, rule: str | None
) -> None:
    made = plan(tmp_path, TWO, export=export)
    assert [str(f.rule) for f in made.filters] == ([] if rule is None else [rule])


@pytest.mark.parametrize(
    ("export", "rule"),
    [
        ("", "not (image_ref is None) or not (audio_ref is None)"),
        ("  train: {payload: audio}\n", "not (audio_ref is None)"),
        ("  train: {payload: [image, audio]}\n",
         "not (image_ref is None) or not (audio_ref is None)"),
        ("  train: {payload: [image, audio], require: all}\n",
         "not (image_ref is None) and not (audio_ref is None)"),
        ("  train: {payload: []}\n", None),
    ],
)  # fmt: skip
def test_of_a_source_of_several_media_those_that_are_exported_must_be_there(
    tmp_path: Path, export: str, rule: str | None
) -> None:
    (tmp_path / "a.png").write_bytes(b"x")
    text = f"name: p\nsource: {{use: folder, path: '{tmp_path}', also: audio}}\n"
    made = make_plan(parse_recipe(text + (f"export:\n{export}" if export else "")))
    assert made.virtual == ("image", "audio")
    assert [str(f.rule) for f in made.filters] == ([] if rule is None else [rule])


def test_a_balance_is_by_columns_that_can_name_groups(tmp_path: Path) -> None:
    balance = "  even: {{use: balanced_rows, {}, cap: 3, on_null: drop}}\n"
    made = plan(tmp_path, IMAGES, COVER + balance.format("by: [text, animated]"), "  train: {}\n")
    assert [f.key for f in made.filters] == ["has_media", "cover", "even"]
    for by, problem in (
        ("by: [aspect_ratio]", "filters.even: aspect_ratio is float; balance by texts"),
        ("by: [langage]", "filters.even reads langage, which nothing writes"),
        ("present: {wide: 'text > 3'}", "filters.even: present.wide: "),
    ):
        with pytest.raises(RecipeError, match=problem):
            plan(tmp_path, IMAGES, balance.format(by))
