"""Packing: what counts, what is cut, where pictures stand, and the .json of interleaved rows."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pytest
import torch

from winnow.contracts.errors import SetupError
from winnow.models.conversation import Turn
from winnow.models.projector_batch import (
    Interleaved,
    Packed,
    interleaved_row,
    latest_images,
    lay_out,
    pack_conversation,
    pack_interleaved,
    pack_prompt,
)
from winnow.stages.export.webdataset import json_documents
from winnow.stages.sources.webdataset import WebDataset

BOS, EOS = 1, 2
CPU = torch.device("cpu")


def letters(text: str) -> list[int]:
    return [ord(character) for character in text]


def spoken(packed: Packed, *, counted: bool) -> str:
    """The counted or the other tokens as text; ^ starts, $ ends."""
    names = {BOS: "^", EOS: "$"}
    pairs = zip(packed.tokens, packed.counts, strict=True)
    return "".join(names.get(token) or chr(token) for token, count in pairs if count is counted)


def test_answers_and_their_ends_count_and_nothing_else() -> None:
    turns = [Turn("How many?", "two"), Turn("Colour?", "red ")]
    packed = pack_conversation(turns, letters, bos=BOS, eos=EOS, has_image=True)
    assert spoken(packed, counted=True) == " two$ red$"
    assert spoken(packed, counted=False) == "^USER: How many? ASSISTANT:USER: Colour? ASSISTANT:"
    assert packed.images == (0,)
    bare = pack_conversation(turns, letters, bos=None, eos=EOS, has_image=False)
    assert bare.tokens == packed.tokens[1:]
    assert bare.images == ()
    # A prompt is what training put before the answer.
    asked = pack_prompt("How many?", letters, bos=BOS, has_image=True)
    assert packed.tokens[: len(asked.tokens)] == asked.tokens
    assert not any(asked.counts)
    nothing = pack_conversation([], letters, bos=None, eos=EOS, has_image=False)
    assert (nothing.tokens, nothing.counts) == ((EOS,), (False,))


def test_interleaved_texts_end_before_each_picture() -> None:
    row = Interleaved(parts=(0, "one", "two", 1, 0, "three"))
    packed = pack_interleaved(row, letters, bos=BOS, eos=EOS)
    assert spoken(packed, counted=True) == " one two$ three$"
    assert packed.images == (1, 10, 10)
    assert packed.tokens[9] == EOS
    assert row.num_images == 2
    assert Interleaved(parts=("words",)).num_images == 0
    assert packed.cut(9).images == (1,)
    assert packed.cut(9).tokens == packed.tokens[:9]
    assert packed.cut(99) is packed
    with pytest.raises(SetupError, match="needs words"):
        Interleaved(parts=(0, " "))
    with pytest.raises(SetupError, match="counts its pictures from 0"):
        Interleaved(parts=("a", -1))


def test_layouts_pad_on_the_side_that_is_asked_for() -> None:
    rows = [
        Packed(tokens=(5, 6, 7), counts=(True, False, True), images=(0,)),
        Packed(tokens=(8, 9), counts=(True, True), images=()),
    ]
    slots = [[[3, 4]], []]
    right = lay_out(rows, slots, limit=99, left=False, device=CPU)
    assert right.slots.tolist() == [[-4, -5, 5, 6, 7], [8, 9, 0, 0, 0]]
    assert right.mask.int().tolist() == [[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]
    # Behind a picture the first token counts; at the start of a row nothing stands before it.
    assert right.counts.int().tolist() == [[0, 0, 1, 0, 1], [0, 1, 0, 0, 0]]
    assert right.positions.tolist() == [[0, 1, 2, 3, 4], [0, 1, 1, 1, 1]]
    left = lay_out(rows, slots, limit=99, left=True, device=CPU)
    assert left.slots.tolist() == [[-4, -5, 5, 6, 7], [0, 0, 0, 8, 9]]
    assert left.positions.tolist() == [[0, 1, 2, 3, 4], [0, 0, 0, 0, 1]]
    cut = lay_out(rows, slots, limit=3, left=False, device=CPU)
    assert cut.slots.tolist() == [[-4, -5, 5], [8, 9, 0]]
    assert (right.full, cut.full) == (False, False)
    assert lay_out(rows[:1], slots[:1], limit=3, left=False, device=CPU).full


def test_latest_pictures_follow_the_padding() -> None:
    rows = [
        Packed(tokens=(5, 6, 7), counts=(True,) * 3, images=(0, 2)),
        Packed(tokens=(8, 9), counts=(True,) * 2, images=(1,)),
    ]
    slots = [[[], []], [[]]]
    for left, expected in ((False, [0, 0, -1]), (True, [-1, 0, 0])):
        layout = lay_out(rows, slots, limit=99, left=left, device=CPU)
        assert latest_images(rows, layout).tolist() == [[0, 1, 1], expected]


@pytest.mark.parametrize("bos", [BOS, None])
def test_every_word_is_predicted_with_the_picture_before_it_in_sight(bos: int | None) -> None:
    """Words that name their picture; an end belongs to the words before it."""
    row = Interleaved(parts=("z", 0, "aa", "a", 1, 0, "ccc", 2, "d"))
    packed = pack_interleaved(row, letters, bos=bos, eos=EOS)
    layout = lay_out([packed], [[[]] * 4], limit=99, left=False, device=CPU)
    (latest,) = latest_images([packed], layout).tolist()
    expected, picture = [], -1
    for token in packed.tokens[1:]:
        expected.append(picture := {"a": 0, "c": 2, "d": 3}.get(chr(token), picture))
    said = "".join(map(chr, packed.tokens[1:]))
    # The space before a word is the first token behind a picture, and nothing names it.
    starts = [at for at, letter in enumerate(said) if letter == " "]
    for at in starts:
        expected[at] = expected[at + 1]
    assert latest[:-1] == expected
    assert sorted(set(expected)) == [-1, 0, 2, 3]


@pytest.mark.parametrize(
    "value",
    [
        None,
        "text",
        [],
        ["text"],
        [{"text": None, "image": None}],
        [{"text": "both", "image": 0}],
        [{"text": "a"}, {"image": -1}],
        [{"image": 0}],
        [{"text": "a"}, {"image": "0"}],
    ],
)
def test_what_is_no_interleaved_row_is_none(value: object) -> None:
    assert interleaved_row(value) is None


def test_an_interleaved_row_survives_the_export_and_the_source(tmp_path: Path) -> None:
    """The column as the export writes it, its second picture as a sidecar of the sample."""
    kind = pa.list_(pa.struct([("text", pa.string()), ("image", pa.int32())]))
    value = [
        {"text": None, "image": 0}, {"text": "A cat.", "image": None},
        {"text": None, "image": 1}, {"text": "Two dogs.", "image": None},
    ]  # fmt: skip
    batch = pa.record_batch([pa.array([value, None], kind)], names=["interleaved"])
    written = json_documents(batch, ["interleaved"])
    rows = [interleaved_row(json.loads(document)["interleaved"]) for document in written]
    assert rows == [Interleaved(parts=(0, "A cat.", 1, "Two dogs.")), None]

    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for name, data in (("a.jpg", b"first"), ("a.1.jpg", b"second"), ("a.json", written[0])):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    source = WebDataset(path=str(tmp_path / "0.tar"))
    table = pa.Table.from_batches(source.read(source.files()[0]))
    assert [member["extension"] for member in table["members"][0].as_py()] == ["1.jpg"]
    assert interleaved_row(json.loads(table["metadata"][0].as_py())["interleaved"]) == rows[0]
