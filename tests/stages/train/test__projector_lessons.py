"""What a projector model learns from hostile samples: a lesson each, or a reason that counts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.stages.train.projector_parts import tower
from tests.stages.train.test_shards import png, write_tar
from winnow.contracts.errors import SetupError
from winnow.models.conversation import Turn
from winnow.models.vision_tower import VisionTower
from winnow.stages.train._projector_lessons import LessonReading, Lessons, read_lessons, read_texts
from winnow.stages.train._projector_pictures import PictureWriter
from winnow.stages.train._projector_senses import SensesWriter

ASKED, SAID = {"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": " a cat "}
BAD_CONVERSATIONS: list[Any] = [
    [], [ASKED], [SAID, ASKED], [ASKED, SAID, ASKED], "text", 3, {"from": "human"}, [None],
    [ASKED, {"from": "gpt", "value": "  "}], [ASKED, {"from": ["gpt"], "value": "x"}],
    [ASKED, {"from": "gpt", "value": None}], [ASKED, {"value": "x"}],
]  # fmt: skip
BAD_INTERLEAVED: list[Any] = [
    None, [], {}, "text", [{"image": 0}], [{"text": " "}], [{"text": "a", "image": 0}], ["a"],
    [{"text": "a"}, {"image": -1}], [{"text": "a"}, {"image": 0.5}], [{"text": "a"}, {}],
]  # fmt: skip


@pytest.fixture(scope="module")
def eye(tmp_path_factory: pytest.TempPathFactory) -> VisionTower:
    return VisionTower.load(tower(tmp_path_factory.mktemp("tower")), device="cpu")


def read(
    eye: VisionTower, folder: Path, samples: dict[str, dict[str, bytes]], **reading: Any
) -> Lessons:
    shard = write_tar(folder / "a \u00fc.tar", samples)
    writer = SensesWriter(
        PictureWriter(eye, folder, torch.device("cpu"), keep_features=False), None
    )
    return read_lessons([shard], LessonReading(**reading), eye, writer)


def test_captions_in_the_order_of_the_shards(eye: VisionTower, tmp_path: Path) -> None:
    samples = {
        "plain": {"png": png(0), "txt": " a \u00fc \n".encode()},
        "a b/latin": {"PNG": png(1), "txt": b"caf\xe9"},
        "blank": {"png": png(2), "txt": b" \n"},
        "mute": {"png": png(3)},
        "bare": {"txt": b"words"},
        "torn": {"png": png(4)[:40], "txt": b"words"},
        "empty": {"png": b"", "txt": b"words"},
    }
    found = read(eye, tmp_path, samples)
    assert [lesson.key for lesson in found.lessons] == ["plain", "a b/latin"]
    assert [lesson.captions for lesson in found.lessons] == [("a \u00fc",), ("caf\ufffd",)]
    assert found.skipped == {"no caption": 2, "no image": 2, "undecodable": 1}
    assert found.unreadable == {}
    assert found.senses.picture_of == [0, 1]


@pytest.mark.parametrize("column", ["conversations", "interleaved"])
def test_every_bad_text_is_one_reason_and_no_exception(
    eye: VisionTower, tmp_path: Path, column: str
) -> None:
    talks = column == "conversations"
    bad = BAD_CONVERSATIONS if talks else BAD_INTERLEAVED
    good = [ASKED, SAID] if talks else [{"image": 0}, {"text": "a \ud83d cat"}, {"image": 1}]
    values = [json.dumps({"said": value}).encode() for value in [*bad, good]]
    torn = [b"", b"null", b'{"said": ', b"[" * 100_000, b"\xff", b'{"other": 1}']
    samples = {
        f"k{n}": {"png": png(n), "1.png": png(n + 50), "txt": b"words", "json": value}
        for n, value in enumerate([*values, *torn])
    }
    found = read(eye, tmp_path, samples, **{column: "said"})
    if talks:  # a .json that cannot be read is no conversation: the caption is left
        assert found.skipped == {"bad conversation": len(bad)}
        first, *others = found.lessons
        assert first.turns == (Turn("What?", "a cat"),)
        assert [(lesson.captions, lesson.turns) for lesson in others] == [(("words",), ())] * 6
    else:
        assert found.skipped == {"bad interleaved text": len(bad) + len(torn)}
        assert [lesson.parts for lesson in found.lessons] == [(0, "a \ud83d cat", 1)]
        assert len(found.senses.pictures) == 2


def test_an_interleaved_picture_that_is_not_there(eye: VisionTower, tmp_path: Path) -> None:
    def sample(numbers: list[int], **members: bytes) -> dict[str, bytes]:
        parts = [{"text": "words"}, *({"image": number} for number in numbers)]
        named = {name.replace("_", ".").lstrip("."): data for name, data in members.items()}
        return {**named, "json": json.dumps({"said": parts}).encode()}

    samples = {
        "far": sample([10**9], png=png(0)),
        "gap": sample([0, 2], png=png(0), _2_png=png(1)),
        "torn": sample([1], png=png(0), _1_png=b"no picture"),
        "none": sample([]),
        "both": sample([1, 0], png=png(0), _1_webp=png(1), _1_jpg=png(2)),
    }
    found = read(eye, tmp_path, samples, interleaved="said")
    assert found.skipped == {"no image": 2, "undecodable": 1}
    assert [lesson.parts for lesson in found.lessons] == [("words",), ("words", 1, 0)]
    assert found.senses.picture_of == [-1, 0]


def test_the_digest_is_of_all_that_is_learned_and_of_nothing_else(
    eye: VisionTower, tmp_path: Path
) -> None:
    def digest(name: str = "k", **changes: Any) -> str:
        chosen = json.dumps(
            {"said": changes.get("said", ["a", "b"]), "other": changes.get("other")}
        )
        sample = {
            "png": png(changes.get("picture", 0)), "txt": changes.get("txt", b"words"),
            "json": chosen.encode(),
            "pkl": changes.get("pkl", b""),
        }  # fmt: skip
        return read(eye, tmp_path, {name: sample}, caption_choices="said").digest

    learned = [
        digest(), digest("l"), digest(picture=1), digest(said=["a"]), digest(said=["b", "a"]),
    ]  # fmt: skip
    assert len(set(learned)) == len(learned)
    assert digest(pkl=b"x") == digest(other=1) == learned[0]


def test_lists_that_are_none_and_shards_without_a_lesson(eye: VisionTower, tmp_path: Path) -> None:
    def sample(value: Any) -> dict[str, dict[str, bytes]]:
        document = json.dumps({"said": value}).encode()
        return {"k \u00fc": {"png": png(0), "txt": b"words", "json": document}}

    for value in ("text", {"a": 1}, [1], [["a"]], 3):
        with pytest.raises(SetupError, match="said of sample k \u00fc is no list of texts"):
            read(eye, tmp_path, sample(value), caption_choices="said")
    for value in (None, [], [None, " "]):
        with pytest.raises(SetupError, match="no sample has a list of texts in the column said"):
            read(eye, tmp_path, sample(value), caption_choices="said")
    for empty in ({}, {"k": {"txt": b"words"}}):
        with pytest.raises(SetupError, match="no sample of 1 shards can be trained on"):
            read(eye, tmp_path, empty)


def test_lines_of_a_file_of_texts(tmp_path: Path) -> None:
    path = tmp_path / "some texts.txt"
    path.write_bytes("  one\r\n\n \t\ntwo \u00fc\n".encode())
    assert read_texts(path) == ["one", "two \u00fc"]
    for data in (b"", b" \n \n", b"\xff\xfe"):
        path.write_bytes(data)
        with pytest.raises(SetupError, match="some texts.txt"):
            read_texts(path)
    with pytest.raises(SetupError, match="cannot be read"):
        read_texts(tmp_path)
