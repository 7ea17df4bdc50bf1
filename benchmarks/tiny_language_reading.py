"""Can a frozen language model be told of a scene through a connector? Without pictures or a tower.

    python benchmarks/tiny_language_reading.py --model tiny-lm --layout objects
    python benchmarks/tiny_language_reading.py --model path/to/folder --layout raster

A scene of recipes/scenes-crowds.yaml is a few vectors of 64 numbers: one per object, or 49 patches
with the ground. Each is a sum of fixed random codes (what, which color, where) and noise. The model
stays frozen; a connector "mlp" in front of it learns from paragraphs and conversations as in
recipes/ablations/connectors.yaml. Then questions about held-out scenes: half ask for a thing of the
scene, half for one of another scene, so that what is frequent helps nobody. "others' vectors": the
same with the vectors of another scene.
"""

from __future__ import annotations

import argparse
import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from tiny_language_corpus import CROWD, HELD_OUT_SEED, TRAIN_SEED, known_of
from tiny_language_facts import Facts
from torch import nn

from winnow.models.connectors import build_connector
from winnow.models.conversation import Turn
from winnow.models.language_model import (
    LanguageModel,
    encode,
    find_language_model,
    load_language_model,
)
from winnow.models.projector_batch import pack_conversation
from winnow.stages import _conversations as written
from winnow.stages.sources._scenes import CONCEPTS, Scene, scene
from winnow.stages.sources._scenes.model import BACKGROUND_COLORS, PATTERNS
from winnow.stages.sources._scenes.sprites import PAINTS

WIDTH, SIDE, PLACES = 64, 7, 7


class Codes:
    """Fixed random codes of names, colors, grounds and places."""

    def __init__(self, noise: float) -> None:
        self._random, self.noise = torch.Generator().manual_seed(11), noise
        words = [*CONCEPTS, *(f"paint {p}" for p in PAINTS), "ground", *PATTERNS]
        words += [f"ground {color}" for color in BACKGROUND_COLORS]
        words += [f"{axis}{n}" for axis in "xy" for n in range(PLACES)]
        self._codes = {word: torch.randn(WIDTH, generator=self._random) for word in words}

    def of(self, *words: str) -> torch.Tensor:
        """Return the sum of words' codes, the place's half as loud."""
        found = torch.zeros(WIDTH)
        for word in words:
            found += self._codes[word] * (0.5 if word[:1] in "xy" and word[1:].isdigit() else 1.0)
        return found + self.noise * torch.randn(WIDTH, generator=self._random)

    def vectors(self, described: Scene, layout: str) -> torch.Tensor:
        """Return a scene's vectors, (S, 64): one per object, or one per patch of a raster."""
        things = []
        for thing in described.objects:
            left, top, right, bottom = thing.box
            words = [thing.concept, *([f"paint {thing.color}"] if thing.color else [])]
            things.append(((left, top, right, bottom), words))
        if layout == "objects":
            centers = [_place((x + X) / 2, (y + Y) / 2) for (x, y, X, Y), _ in things]
            pairs = zip(things, centers, strict=True)
            return torch.stack([self.of(*words, *where) for (_, words), where in pairs])
        ground = described.background
        found = []
        for row in range(SIDE):
            for column in range(SIDE):
                x, y = (column + 0.5) / SIDE, (row + 0.5) / SIDE
                here = ["ground", ground.pattern, f"ground {ground.color}", *_place(x, y)]
                for (left, top, right, bottom), words in things:
                    if left - 0.02 < x < right + 0.02 and top - 0.02 < y < bottom + 0.02:
                        here = [*words, *_place(x, y)]
                found.append(self.of(*here))
        return torch.stack(found)


def _place(x: float, y: float) -> tuple[str, str]:
    return f"x{min(PLACES - 1, int(x * PLACES))}", f"y{min(PLACES - 1, int(y * PLACES))}"


@dataclass(frozen=True, slots=True)
class Told:
    """A scene's vectors and its conversation, as tokens with whether they count."""

    vectors: torch.Tensor
    tokens: tuple[int, ...]
    counts: tuple[bool, ...]


class Reader(nn.Module):
    """A frozen language model behind a connector."""

    def __init__(self, model: LanguageModel, connector: str, seed: int) -> None:
        super().__init__()
        self.model = model
        self.connector = build_connector(
            connector, vision_width=WIDTH, language_width=model.width, seed=seed,
            vocab_size=len(model.tokenizer), num_queries=16,
        )  # fmt: skip

    def told(self, vectors: torch.Tensor, turns: Sequence[Turn]) -> Told:
        """Pack a conversation."""
        model = self.model
        row = pack_conversation(turns, lambda text: encode(model, text), bos=model.bos_id,
                                eos=model.eos_id, has_image=True).cut(400)  # fmt: skip
        return Told(vectors, row.tokens, row.counts)

    def forward(self, rows: Sequence[Told]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return logits (M, vocabulary) and targets (M,) of all tokens that count."""
        most = max(len(row.vectors) for row in rows)
        features = torch.stack([_filled(row.vectors, most) for row in rows])
        mask_BP = torch.tensor([[i < len(row.vectors) for i in range(most)] for row in rows])
        soft_BPL = self.connector(features, mask_BP)
        mask = self.connector.token_mask(mask_BP)
        inputs = []
        for number, row in enumerate(rows):
            soft_PL = soft_BPL[number] if mask is None else soft_BPL[number][mask[number]]
            inputs.append(torch.cat([soft_PL, self.model.embed(torch.tensor(row.tokens))]))
        length = max(map(len, inputs))
        hidden_BTL = self.model.network.model(  # type: ignore[operator, union-attr]
            inputs_embeds=torch.stack([_filled(one, length) for one in inputs])
        ).last_hidden_state
        kept, targets = [], []
        for number, row in enumerate(rows):
            counts = torch.tensor(row.counts).nonzero()[:, 0]
            before = len(inputs[number]) - len(row.tokens) - 1
            kept.append(hidden_BTL[number, before + counts])
            targets.append(torch.tensor(row.tokens)[counts])
        return self.model.network.lm_head(torch.cat(kept)), torch.cat(targets)  # type: ignore[operator, union-attr]


def _filled(rows: torch.Tensor, length: int) -> torch.Tensor:
    return nn.functional.pad(rows, (0, 0, 0, length - len(rows)))


def frequent(count: int = 1000) -> written.Absent:
    """Return what may be asked for though it is not there: as often as it is in other scenes."""
    scenes = (scene(TRAIN_SEED, index, CROWD) for index in range(count))
    return written.Absent(Counter(group.concept for one in scenes for group in one.groups))


def conversation_of(described: Scene, index: int, absent: written.Absent) -> list[Turn]:
    """Return what the stage ``instructions`` makes: a paragraph and two rounds of questions."""
    known, dice = known_of(Facts(described, has_ground=True)), written.Dice("told", index)
    rounds = [
        written.conversation(known, written.Dice("told", index, n), num_turns=4, absent=absent)
        for n in range(2)
    ]
    turns = sum(dice.shuffled([written.detail(known, dice), *rounds]), [])
    return list({turn.prompt: turn for turn in turns}.values())


def train(reader: Reader, codes: Codes, options: argparse.Namespace) -> None:
    """Train the connector."""
    learned = list(reader.connector.parameters())
    optimizer = torch.optim.AdamW(learned, lr=options.learning_rate, weight_decay=0.0)
    absent = frequent()
    steps, running = options.samples // options.batch_size, 0.0
    for step in range(steps):
        rows = []
        for index in range(step * options.batch_size, (step + 1) * options.batch_size):
            described = scene(TRAIN_SEED, index, CROWD)
            turns = conversation_of(described, index, absent)
            rows.append(reader.told(codes.vectors(described, options.layout), turns))
        share = min(1.0, (step + 1) / (0.03 * steps))
        optimizer.param_groups[0]["lr"] = options.learning_rate * min(
            share, 0.5 + 0.5 * math.cos(math.pi * step / steps)
        )
        logits, targets = reader(rows)
        loss = nn.functional.cross_entropy(logits, targets)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        running += float(loss.detach())
        if (step + 1) % 50 == 0:
            print(f"{(step + 1) * options.batch_size:>6} scenes  loss {running / 50:.3f}  "
                  f"{time.process_time():.0f} CPU seconds", flush=True)  # fmt: skip
            running = 0.0


@torch.inference_mode()
def measure(reader: Reader, codes: Codes, options: argparse.Namespace) -> None:
    """Print what is answered right about held-out scenes, with their own and others' vectors."""
    scenes = [scene(HELD_OUT_SEED, i, CROWD) for i in range(options.held_out)]
    vectors = [codes.vectors(one, options.layout) for one in scenes]
    for name, shift in (("own vectors", 0), ("others' vectors", 1)):
        asked: dict[str, list[Told]] = {"presence": [], "colors": [], "detail": []}
        for index, described in enumerate(scenes):
            seen = vectors[(index + shift) % len(scenes)]
            known, dice = known_of(Facts(described, has_ground=True)), written.Dice("ask", index)
            present = {group.concept for group in described.groups}
            other = [g.concept for g in scenes[(index + 7) % len(scenes)].groups]
            absent = [concept for concept in other if concept not in present]
            for thing in (dice.pick(sorted(present)), dice.pick(absent)):
                prompt = f"Is there {written.article(thing)} in the picture?"
                right = ("Yes", "No") if thing in present else ("No", "Yes")
                asked["presence"] += [reader.told(seen, [Turn(prompt, word)]) for word in right]
            for group in described.groups:
                if group.color and group.count == 1:
                    answer = f"The {group.concept} is {group.color}"
                    prompt = f"What color is the {group.concept}?"
                    asked["colors"].append(reader.told(seen, [Turn(prompt, answer)]))
            asked["detail"].append(reader.told(seen, written.detail(known, dice)))
        said = [f"{kind} {_right(reader, kind, rows):.3f}" for kind, rows in asked.items()]
        print(f"{name}: {', '.join(said)} (share right; detail: of its tokens)", flush=True)


def _right(reader: Reader, kind: str, rows: Sequence[Told]) -> float:
    """Share of answers of which the right one is likelier than the wrong one behind it (presence),
    of right last words (colors), of right tokens (detail)."""
    found = []
    for first in range(0, len(rows), 50):
        batch = rows[first : first + 50]
        logits, targets = reader(batch)
        counts = [sum(row.counts) for row in batch]
        if kind == "detail":
            found += (logits.argmax(1) == targets).tolist()
        elif kind == "colors":
            last = torch.tensor(counts).cumsum(0) - 2
            found += (logits[last].argmax(1) == targets[last]).tolist()
        else:
            losses = nn.functional.cross_entropy(logits, targets, reduction="none").split(counts)
            sums = [float(loss[:-1].sum()) for loss in losses]  # without the end-of-text token
            found += [right < wrong for right, wrong in zip(sums[::2], sums[1::2], strict=True)]
    return sum(found) / len(found)


def main() -> None:
    """Train a connector before a frozen model, and measure."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="tiny-lm", help="tiny-lm, or a folder")
    parser.add_argument("--connector", default="mlp")
    parser.add_argument("--layout", choices=("objects", "raster"), default="objects")
    parser.add_argument("--samples", type=int, default=12_000)
    parser.add_argument("--held-out", type=int, default=300)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--noise", type=float, default=0.2)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = load_language_model(find_language_model(options.model), device="cpu")
    reader, codes = Reader(model, options.connector, options.seed), Codes(options.noise)
    train(reader, codes, options)
    measure(reader, codes, options)


if __name__ == "__main__":
    main()
