"""How conversations and texts with pictures between them become one batch of positions.

A row is a list of slots: a token's number (0 or more), or -(n + 1) for the n-th image token of the
batch. Models that look through gated layers have token slots only, and are told which picture each
token sees: a word is predicted with the picture before it in sight.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from winnow.contracts.errors import SetupError
from winnow.models.conversation import Turn, pieces, question
from winnow.models.gated_attention import latest_image

Encode = Callable[[str], list[int]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Interleaved:
    """A text with pictures between its words; a number is one of the row's own pictures, from 0.

    num_images: the row's pictures, those that no part names included.
    """

    parts: tuple[str | int, ...]

    def __post_init__(self) -> None:
        """Refuse what holds no words, or a picture before the first."""
        if not any(isinstance(part, str) and part.strip() for part in self.parts):
            msg = "an interleaved row needs words beside its pictures"
            raise SetupError(msg)
        if any(isinstance(part, int) and part < 0 for part in self.parts):
            msg = f"an interleaved row counts its pictures from 0: {list(self.parts)}"
            raise SetupError(msg)

    @property
    def num_images(self) -> int:
        """How many pictures the row has at least."""
        return 1 + max((part for part in self.parts if isinstance(part, int)), default=-1)


def interleaved_row(value: object) -> Interleaved | None:
    """Return the column ``interleaved`` of one sample, as its .json member holds it.

    The column is list<struct<text: string, image: int32>>; of each struct one field is null:
    [{"image": 0, "text": null}, {"image": null, "text": "A cat."}, {"image": 1, "text": null}].
    Picture 0 is the sample's payload, picture n > 0 its member ``<n>.<extension>`` (a sidecar,
    which the webdataset source reads and the export writes). None for null and for what is no
    such list.
    """
    if not isinstance(value, list):
        return None
    parts: list[str | int] = []
    for item in value:
        if not isinstance(item, dict):
            return None
        text, image = item.get("text"), item.get("image")
        if isinstance(text, str) and image is None:
            parts.append(text)
        elif isinstance(image, int) and text is None and image >= 0:
            parts.append(image)
        else:
            return None
    if not any(isinstance(part, str) and part.strip() for part in parts):
        return None
    return Interleaved(parts=tuple(parts))


@dataclass(frozen=True, kw_only=True, slots=True)
class Packed:
    """One row of text. counts: whether a token counts in the loss. images: for each picture that
    stands in the row, the index of the first token behind it; in order."""

    tokens: tuple[int, ...]
    counts: tuple[bool, ...]
    images: tuple[int, ...] = ()

    def cut(self, limit: int) -> Packed:
        """Return the first ``limit`` tokens; pictures behind them are left out."""
        if len(self.tokens) <= limit:
            return self
        return Packed(
            tokens=self.tokens[:limit],
            counts=self.counts[:limit],
            images=tuple(i for i in self.images if i < limit),
        )


def pack_conversation(
    turns: Sequence[Turn], encode: Encode, *, bos: int | None, eos: int, has_image: bool
) -> Packed:
    """Return a conversation; its answers count, and the end-of-text token behind each of them."""
    tokens: list[int] = [] if bos is None else [bos]
    counts = [False] * len(tokens)
    for piece in pieces(turns):
        new = encode(piece.text) + ([eos] if piece.is_answer else [])
        tokens += new
        counts += [piece.is_answer] * len(new)
    if not tokens:  # a row of nothing would give attention nothing to look at
        tokens, counts = [eos], [False]
    return Packed(tokens=tuple(tokens), counts=tuple(counts), images=(0,) if has_image else ())


def pack_prompt(prompt: str, encode: Encode, *, bos: int | None, has_image: bool) -> Packed:
    """Return what stands before an answer; nothing in it counts."""
    tokens = [*([] if bos is None else [bos]), *encode(question(prompt))]
    images = (0,) if has_image else ()
    return Packed(tokens=tuple(tokens), counts=(False,) * len(tokens), images=images)


def pack_interleaved(row: Interleaved, encode: Encode, *, bos: int | None, eos: int) -> Packed:
    """Return a text with pictures; all its words count.

    The end-of-text token stands before each picture that has words before it, and at the end
    (Flamingo's end-of-chunk token; Alayrac et al. 2022, appendix A.3.1).
    """
    tokens: list[int] = [] if bos is None else [bos]
    counts, images = [False] * len(tokens), list[int]()
    open_chunk = False
    for part in [*row.parts, None]:
        if isinstance(part, str):
            words = encode(f" {part.strip()}") if part.strip() else []
            tokens += words
            counts += [True] * len(words)
            open_chunk = open_chunk or bool(words)
            continue
        if open_chunk:
            tokens.append(eos)
            counts.append(True)
            open_chunk = False
        if part is not None:
            images.append(len(tokens))
    return Packed(tokens=tuple(tokens), counts=tuple(counts), images=tuple(images))


@dataclass(frozen=True, slots=True)
class Layout:
    """A batch of rows, padded: slots int64 (B, T), 0 where padded; mask bool (B, T), False there.

    counts: which slots are targets; never the first of a row, which nothing stands before.
    full: there is no padding. left: the padding is on the left.
    """

    slots: torch.Tensor
    mask: torch.Tensor
    counts: torch.Tensor
    full: bool
    left: bool

    @property
    def positions(self) -> torch.Tensor:
        """Position of each slot in its own row, from 0; in the padding any number."""
        return (self.mask.long().cumsum(dim=1) - 1).clamp_min(0)


def lay_out(
    rows: Sequence[Packed],
    image_slots: Sequence[Sequence[Sequence[int]]],
    *,
    limit: int,
    left: bool,
    device: torch.device,
) -> Layout:
    """Pad rows to one length, on the left for generation and on the right for training.

    image_slots: per row and picture of ``Packed.images`` the numbers of its image tokens, () each
    for a model with gated layers. limit: the language model's positions; what is over is cut.
    """
    slots = [_slots(row, images)[:limit] for row, images in zip(rows, image_slots, strict=True)]
    counts = [_counts(row, images)[:limit] for row, images in zip(rows, image_slots, strict=True)]
    width = max(map(len, slots))
    pads = [width - len(row) for row in slots]
    return Layout(
        _padded(slots, pads, left).to(device),
        _padded([[1] * len(row) for row in slots], pads, left).bool().to(device),
        _padded(counts, pads, left).bool().to(device),
        full=not any(pads),
        left=left,
    )


def latest_images(rows: Sequence[Packed], layout: Layout) -> torch.Tensor:
    """Return int64 (B, T): the latest picture of its row that each token sees, -1 for none.

    The token before a picture, which predicts the first word behind it, sees that picture already,
    as Flamingo's ``<image>`` tag does; the text has no such tag, so what started the row or ended
    the words before stands for it. Padding sees none.
    """
    width = layout.slots.shape[1]
    found = []
    for row, length in zip(rows, layout.mask.sum(dim=1).tolist(), strict=True):
        latest = latest_image([max(0, behind - 1) for behind in row.images], length)
        fill = [-1] * (width - length)
        found.append([*fill, *latest] if layout.left else [*latest, *fill])
    return torch.tensor(found, device=layout.slots.device)


def _slots(row: Packed, images: Sequence[Sequence[int]]) -> list[int]:
    found = list(row.tokens)
    for position, numbers in reversed(list(zip(row.images, images, strict=True))):
        found[position:position] = [-(number + 1) for number in numbers]
    return found


def _counts(row: Packed, images: Sequence[Sequence[int]]) -> list[int]:
    found = [int(count) for count in row.counts]
    for position, numbers in reversed(list(zip(row.images, images, strict=True))):
        found[position:position] = [0] * len(numbers)
    return [0, *found[1:]]


def _padded(rows: list[list[int]], pads: list[int], left: bool) -> torch.Tensor:
    if left:
        return torch.tensor([[0] * pad + row for row, pad in zip(rows, pads, strict=True)])
    return torch.tensor([row + [0] * pad for row, pad in zip(rows, pads, strict=True)])
