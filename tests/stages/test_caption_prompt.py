"""Columns in the caption stage's prompt: what a real server on loopback is asked, row by row."""

from __future__ import annotations

import asyncio
import base64
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.captioners import batch
from tests.stages.test_caption_endpoint import (
    IMAGES,
    Server,
    annotate,
    completion,
    described,
    errors,
    fast,
    stage_on,
    texts,
)
from winnow.contracts.errors import RecipeError
from winnow.contracts.media import MediaCaps
from winnow.contracts.parameters import validate
from winnow.pipeline.fingerprint import stage_fingerprint
from winnow.pipeline.plan import make_plan
from winnow.pipeline.recipe import parse_recipe
from winnow.stages._caption_prompt import Slot, parse_prompt
from winnow.stages._written_turns import INSTRUCTIONS
from winnow.stages.caption import Caption
from winnow.stages.instructions import Instructions

LISTS = pa.list_(pa.string())
PROMPT = 'Caption: {text}\nThings:\n{names:list}\nAnswer as {{"caption": "..."}}: {text}'


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


def rows(
    images: list[bytes | None], words: list[str | None], names: list[list[str | None] | None]
) -> pa.RecordBatch:
    """Rows with a caption and labels."""
    found = batch(images).append_column("text", pa.array(words, pa.string()))
    return found.append_column("names", pa.array(names, LISTS))


def asked(server: Server) -> dict[str, list[str]]:
    """What came to the server: a picture's description -> the texts that were sent with it."""
    found: dict[str, list[str]] = {}
    for request in server.requests:
        image, *said = request["messages"][0]["content"]
        picture = described(base64.b64decode(image["image_url"]["url"].partition("base64,")[2]))
        found.setdefault(picture, []).append("".join(part["text"] for part in said))
    return found


def naive(words: str | None, names: list[str | None] | None) -> str:
    """PROMPT, filled by Python's own formatting."""
    lines = "\n".join(name for name in names or [] if name is not None)
    return PROMPT.replace("{names:list}", "{names}").format(text=words or "", names=lines)


def test_each_row_is_asked_with_its_own_words(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Late, early and retried answers, broken pictures: a row's words go with its own picture."""
    fast(monkeypatch)
    delays = iter(np.random.default_rng(0).uniform(0, 0.03, 1000).tolist())

    async def late(attempt: int) -> web.StreamResponse | None:
        await asyncio.sleep(next(delays))
        return web.Response(status=500) if attempt == 1 else None

    server.plans["*"] = late
    images: list[bytes | None] = list(IMAGES)
    images[1], images[4] = None, IMAGES[4][:30]
    words = ["a cat", "b", 'a {names:list} "{{"', None, "e", "", "ünï\n\0 <image>", "h"]
    names: list[list[str | None] | None] = [
        ["dog", "dog", None, "cat"], None, [], ["owl"], None, None, ["{text}"], [None],
    ]  # fmt: skip
    stage = stage_on(server, prompt=PROMPT)
    assert stage.reads.names == ["image", "text", "names"]
    assert [stage.reads.field(n).type for n in ("text", "names")] == [pa.string(), LISTS]
    out = annotate(stage, rows(images, words, names))

    expected = [naive(text, things) for text, things in zip(words, names, strict=True)]
    good = [row for row in range(8) if row not in (1, 4)]
    assert asked(server) == {described(IMAGES[row]): [expected[row]] * 2 for row in good}
    assert '{"caption": "..."}: a cat' in expected[0]
    assert "Things:\ndog\ndog\ncat\n" in expected[0]
    assert texts(out) == [[described(i)] if r in good else None for r, i in enumerate(IMAGES)]
    assert errors(out) == [None, "missing", None, None, "undecodable", None, None, None]
    prompts = out.column("synthetic_captions_prompt").to_pylist()
    assert prompts == [text if r in good else None for r, text in enumerate(expected)]


def test_a_failed_row_has_no_prompt_and_a_text_without_words_is_not_sent(server: Server) -> None:
    async def refuse(attempt: int) -> web.StreamResponse:
        return web.Response(status=400)

    server.plans[described(IMAGES[0])] = refuse
    out = annotate(stage_on(server, prompt="{text}"), rows(IMAGES[:2], ["a", None], [None] * 2))
    assert out.column("synthetic_captions_prompt").to_pylist() == [None, ""]
    assert errors(out) == ["http_400", None]
    assert len(server.requests) == 2
    (bare,) = [r for r in server.requests if len(r["messages"][0]["content"]) == 1]
    assert bare["messages"][0]["content"][0]["type"] == "image_url"


def test_doubled_braces_are_sent_as_one(server: Server) -> None:
    out = annotate(stage_on(server, prompt="{{a}} {{{{"), batch(IMAGES[:1]))
    assert asked(server) == {described(IMAGES[0]): ["{a} {{"]}
    assert out.column("synthetic_captions_prompt").to_pylist() == ["{a} {{"]


@pytest.mark.parametrize("kind", list(INSTRUCTIONS))
def test_an_instruction_is_asked_for_and_read(server: Server, kind: Any) -> None:
    """From a labelled row, over the server, to a conversation of that kind."""

    async def answer(attempt: int) -> web.StreamResponse:
        return web.json_response(completion("Q: What is it?\nA: An owl."))

    server.plans["*"] = answer
    stage = stage_on(server, instruction=kind, prompt="Things:\n{names:list}", column="told")
    table = rows(IMAGES[:2], ["x", "y"], [["owl"], None])
    out = annotate(stage, table)
    packaged = INSTRUCTIONS[kind]
    assert asked(server) == {
        described(IMAGES[0]): [f"Things:\nowl\n\n{packaged}"],
        described(IMAGES[1]): [f"Things:\n\n\n{packaged}"],
    }
    assert "'Q:'" in packaged and "'A:'" in packaged and not re.search("[{}]", packaged)
    told = table.append_column("told", out.column("told"))
    reader = Instructions(
        **validate(Instructions, {"objects": None, "written": {kind: "told"}, "kinds": [kind]})
    )
    made = reader.annotate(told, None, None).to_pylist()  # type: ignore[arg-type]
    assert [row["conversations_kinds"] for row in made] == [[f"written_{kind}"]] * 2
    assert made[0]["conversations"][1] == {"from": "gpt", "value": "An owl."}
    alone = stage_on(server, instruction=kind)
    annotate(alone, batch(IMAGES[2:3]))
    assert asked(server)[described(IMAGES[2])] == [packaged]


WORDS = st.text("ab{} \n", max_size=6)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(WORDS, st.sampled_from(["text", "og:title", "a b"])), max_size=4), WORDS)
def test_a_prompt_is_read_as_it_was_written(pieces: list[tuple[str, str]], last: str) -> None:
    """Words with their braces doubled, and columns between them, come back in parts."""

    def doubled(words: str) -> str:
        return words.replace("{", "{{").replace("}", "}}")

    written = "".join(f"{doubled(words)}{{{name}}}" for words, name in pieces) + doubled(last)
    expected: list[Any] = []
    for words, name in pieces:
        expected += [words, Slot(name, many=False)]
    prompt = parse_prompt(written)
    assert list(prompt.parts) == [part for part in [*expected, last] if part != ""]
    assert list(prompt.columns) == list(dict.fromkeys(name for _, name in pieces))


def build(**values: Any) -> Caption:
    endpoint = {"engine": "endpoint", "model": "m", "url": "http://127.0.0.1:1/v1"}
    return Caption(**validate(Caption, endpoint | values))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"prompt": "a { b"}, r"prompt has '\{', which names no column; write a brace"),
        ({"prompt": "a } b"}, r"prompt has '\}', which names no column"),
        ({"prompt": "{}"}, r"prompt has '\{\}'"),
        ({"prompt": "{:list}"}, r"prompt has '\{:list\}'"),
        ({"prompt": "{ text}"}, r"prompt has '\{ text\}'"),
        ({"prompt": '{"caption": 1}'}, "write a brace that is meant as it is twice"),
        ({"prompt": "{a} {a:list}"}, r"prompt has \{a\} and \{a:list\}; it is text or a list"),
        ({"prompt": "{image}"}, r"prompt has \{image\}, which is no text"),
        ({"prompt": "{uid}"}, r"prompt has \{uid\}"),
        ({"prompt": "{synthetic_captions:list}"}, "or what this stage writes"),
        (
            {"engine": "hf", "model": "./m", "url": None, "prompt": "{{a}} of {text}"},
            r"prompt has \{text\}; only engine='endpoint' puts columns into it",
        ),
        (
            {"engine": "projector", "model": "./m", "url": None, "prompt": "{names:list}"},
            r"prompt has \{names:list\}; only engine='endpoint'",
        ),
    ],
)
def test_bad_prompts(values: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        build(**values)


def test_other_engines_take_braces_as_they_stand() -> None:
    for prompt in ('{"caption": 1}', "{{a}}", "a { b"):
        assert build(engine="hf", model="./m", url=None, prompt=prompt).reads.names == ["image"]


RECIPE = """name: asked
source: {{use: folder, path: "{path}"}}
stages:
  caption: {{engine: endpoint, model: eyes, url: "{url}", image_format: png, prompt: "{prompt}"}}
export:
  all: {{use: parquet}}
"""


def test_the_plan_knows_the_columns(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(IMAGES[0])

    def stage(prompt: str) -> Caption:
        url = "http://127.0.0.1:1/v1"
        recipe = parse_recipe(RECIPE.format(path=tmp_path, url=url, prompt=prompt))
        found = make_plan(recipe).entry("caption").stage
        assert isinstance(found, Caption)
        return found

    with pytest.raises(RecipeError, match=r"caption reads the column 'paht'.*mean 'path'"):
        stage("Its name: {paht}")
    with pytest.raises(RecipeError, match=r"caption reads path as list<item: string>, but it is"):
        stage("Its name: {path:list}")
    with pytest.raises(RecipeError, match=r":4: caption: prompt has"):
        stage("Its name: {path")
    note = "sends every image, path to 127.0.0.1:1, 16 at once from each worker"
    assert stage("Its name: {path}").notes == (note,)


def test_a_run_sends_what_other_columns_hold(run: Any, server: Server, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for row, image in enumerate(IMAGES[:4]):
        (tmp_path / "in" / f"{row}.png").write_bytes(image)
    report = run(RECIPE.format(path=tmp_path / "in", url=server.url, prompt="Its name: {path}"))
    assert report.exit_code == 0
    expected = {described(IMAGES[row]): [f"Its name: {row}.png"] for row in range(4)}
    assert asked(server) == expected
    folder = tmp_path / "ws" / report.exports["all"]
    files = [f for f in folder.glob("*.parquet") if f.name != "manifest.parquet"]
    found = [row for file in files for row in pq.read_table(file).to_pylist()]
    assert {row["path"]: row["synthetic_captions_prompt"] for row in found} == {
        f"{row}.png": f"Its name: {row}.png" for row in range(4)
    }


def test_a_prompt_is_part_of_the_fingerprint() -> None:
    """With its braces, and with the packaged text that stands behind it."""

    def digest(**values: Any) -> str:
        return stage_fingerprint(build(**values), ["source"], MediaCaps())

    asked: list[dict[str, Any]] = [
        {}, {"prompt": "a"}, {"prompt": "{a}"}, {"prompt": "{{a}}"}, {"prompt": "{a:list}"},
        {"instruction": "detail"}, {"instruction": "reasoning"},
        {"prompt": "a", "instruction": "detail"},
    ]  # fmt: skip
    assert len({digest(**values) for values in asked}) == len(asked)
