"""Which parts of a projector model are trained when, and at which rate.

Sources: LLaVA (Liu et al. 2023) trains the connector alone on captions, then connector and language
model on conversations, at 1e-3 and 2e-5, cosine with 3 % warm-up (LLaVA-1.5; 2e-4 for LoRA). BLIP-2
(Li et al. 2023) trains the Q-Former on contrast, matching and generation first, then with the
language model frozen, at 1e-4; InstructBLIP and Flamingo keep the language model frozen too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from winnow.stages.train._steps import cosine_rate

Schedule = Literal["connector", "llava", "llava_lora"]
Trains = Literal["connector", "connector+lm", "connector+lora"]
Objective = Literal["representation", "language"]
Data = Literal["captions", "conversations", "interleaved"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Phase:
    """A stage of the training: ``num_steps`` optimizer steps with an optimizer of their own.

    batch_size: samples of a step.
    text_share: share of the steps that see texts only.
    """

    name: str
    objective: Objective
    trains: Trains
    data: Data
    num_steps: int
    batch_size: int
    learning_rate: float
    warmup: float
    text_share: float = 0.0

    @property
    def num_samples(self) -> int:
        """How many samples are seen, again and again counted."""
        return self.num_steps * self.batch_size

    def rate(self, step: int) -> float:
        """Return the learning rate at a step of this phase: a linear warm-up, a cosine to 0."""
        warm = round(self.warmup * self.num_steps)
        return cosine_rate(self.learning_rate, step, warm=warm, num_steps=self.num_steps)

    def texts_before(self, step: int) -> int:
        """Return how many of the steps before ``step`` saw texts only: evenly spread."""
        return math.floor(step * self.text_share + 1e-9)

    def is_text(self, step: int) -> bool:
        """Whether a step sees texts only."""
        return self.texts_before(step + 1) > self.texts_before(step)


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """A schedule with its shares and rates; see ``ProjectorTrainer``.

    texts_reach_connector: whether gated layers stand in the language model, so that plain texts
    train them too.
    """

    schedule: Schedule
    interleaved: bool
    first_share: float
    representation_share: float
    learning_rate: float
    second_learning_rate: float | None
    representation_learning_rate: float
    warmup: float
    text_share: float
    texts_reach_connector: bool
    batch_size: int
    representation_batch_size: int

    def phases(self, num_samples: int) -> tuple[Phase, ...]:
        """Return the phases that have a step; together they see ``num_samples``, rounded up to
        whole batches (a first stage of larger ones: rounded)."""
        num_steps = -(-num_samples // self.batch_size)
        staged = self.schedule != "connector"
        after = 1 - self.representation_share
        first = self.first_share if staged else 1.0
        shares = (self.representation_share, after * first, after * (1 - first))
        made = (self._representation, self._alone, self._together)
        steps = shared_out(num_steps, shares)
        return tuple(make(count) for make, count in zip(made, steps, strict=True) if count)

    def _representation(self, num_steps: int) -> Phase:
        return Phase(
            name="representation",
            objective="representation",
            trains="connector",
            data="captions",
            num_steps=max(1, round(num_steps * self.batch_size / self.representation_batch_size)),
            batch_size=self.representation_batch_size,
            learning_rate=self.representation_learning_rate,
            warmup=self.warmup,
        )

    def _alone(self, num_steps: int) -> Phase:
        alone: Data = "conversations" if self.schedule == "connector" else "captions"
        return Phase(
            name="connector",
            objective="language",
            trains="connector",
            data="interleaved" if self.interleaved else alone,
            num_steps=num_steps,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            warmup=self.warmup,
            text_share=self.text_share if self.texts_reach_connector else 0.0,
        )

    def _together(self, num_steps: int) -> Phase:
        lora = self.schedule == "llava_lora"
        default = 2e-4 if lora else 2e-5
        rate = default if self.second_learning_rate is None else self.second_learning_rate
        return Phase(
            name="connector and adapters" if lora else "connector and language model",
            objective="language",
            trains="connector+lora" if lora else "connector+lm",
            data="interleaved" if self.interleaved else "conversations",
            num_steps=num_steps,
            batch_size=self.batch_size,
            learning_rate=rate,
            warmup=self.warmup,
            text_share=self.text_share,
        )


def shared_out(num_steps: int, shares: tuple[float, ...]) -> list[int]:
    """Return whole numbers of steps in proportion to the shares; together ``num_steps``.

    Every share above 0 gets a step where there are enough of them.
    """
    total = sum(shares)
    ends = [round(num_steps * sum(shares[: i + 1]) / total) for i in range(len(shares))]
    for index, share in enumerate(shares):
        before = ends[index - 1] if index else 0
        later = sum(s > 0 for s in shares[index + 1 :])
        least = before + (share > 0)
        ends[index] = max(min(ends[index], num_steps - later), min(least, num_steps))
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]
