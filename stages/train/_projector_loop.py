"""The training loop of a projector model: phases one after the other, each with its own optimizer.

AdamW (Loshchilov and Hutter 2019), gradients clipped to a norm of 1, weights in float32.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from winnow.stages.train import _state
from winnow.stages.train._projector_schedule import Phase
from winnow.stages.train._steps import (
    check_loss,
    check_weights,
    checkpoint_due,
    decay_groups,
    step_seed,
    thinned,
)
from winnow.stages.train.shards import batch_indices

if TYPE_CHECKING:
    import torch
    from torch import nn

_STAGE = "train projector"
_PHASE_SEED = 1_000_003
_CURVE_POINTS = 100


@dataclass(frozen=True, kw_only=True, slots=True)
class LoopConfig:
    """What does not change from phase to phase.

    micro_batch_size: rows of a forward and backward pass, 0 for all: the gradient stays that of the
    whole batch.  checkpoint_samples: samples between two resumable states, 0 for none.
    """

    micro_batch_size: int = 0
    weight_decay: float = 0.0
    seed: int = 0
    precision: Literal["fp32", "bf16"] = "fp32"
    checkpoint_samples: int = 0


Loss = tuple["torch.Tensor", int]
"""A mean, and over how many tokens (or rows) it is taken."""


Visit = tuple[int, int]
"""Which row of a phase's data, and in which epoch of it."""


class Work(Protocol):
    """What the loop needs of a model and its data."""

    def enter(self, phase: Phase) -> dict[str, nn.Parameter]:
        """Make the parameters of a phase trainable; return them by name."""
        ...

    def num_rows(self, phase: Phase) -> tuple[int, int]:
        """Return the numbers of samples and of texts of a phase."""
        ...

    def loss(self, phase: Phase, visits: Sequence[Visit], step: int) -> Loss:
        """Return the mean loss of some of a phase's samples; ``step`` seeds what is drawn."""
        ...

    def text_loss(self, visits: Sequence[Visit]) -> Loss:
        """Return the mean loss of some of the texts."""
        ...

    def perplexity(self) -> float | None:
        """Return the perplexity on a fixed set of texts, None where it cannot be told."""
        ...

    def left(self, phase: Phase) -> None:
        """Keep what the end of a phase leaves."""
        ...


def train_phases(
    phases: Sequence[Phase],
    work: Work,
    config: LoopConfig,
    *,
    folder: Path,
    identity: object,
    device: torch.device,
    report: Callable[[int], None] = lambda samples: None,
    saved: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Train in place; return samples seen and, for each phase, its loss curve and perplexities.

    Goes on from ``folder/training_state.pt``; the caller removes it when the model is written.

    Fails: ShardError, not retryable, with the step, where the loss is not finite or weights that
    are not finite would be written; SetupError where the state is of another run.
    """
    import torch

    run = _Run(phases, work, config, device)
    name = json.dumps([identity, _identity(config), [_described(p) for p in phases]])
    weights: Any = _Weights(run)
    optimizer: Any = _Optimizer(run)
    done = _state.resume(folder, weights, optimizer, name)
    total = sum(p.num_steps for p in phases)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        if not done.steps:
            run.enter(0)
            run.perplexities.append(work.perplexity())
        else:
            report(run.samples(done.steps))
        while done.steps < total:
            size = phases[run.phase].batch_size
            value = run.step(done.steps)
            done.steps += 1
            check_loss(value, done.steps, _STAGE)
            done.curve.append(value)
            if run.ends(done.steps):  # a first stage then writes its matching head
                check_weights(run.parameters.items(), done.steps, _STAGE)
            run.end_of_phase(done.steps)
            report(size)
            seen = run.samples(done.steps)
            due = checkpoint_due(seen, size, config.checkpoint_samples)
            if due and done.steps < total:
                check_weights(run.parameters.items(), done.steps, _STAGE)
                _state.save(folder, weights, optimizer, name, done)
                saved()
    check_weights(run.parameters.items(), done.steps, _STAGE)
    return {
        "samples_seen": run.samples(done.steps),
        "stages": run.summary(done.curve),
    }


def _identity(config: LoopConfig) -> dict[str, Any]:
    names = ("micro_batch_size", "weight_decay", "seed", "precision")
    return {name: getattr(config, name) for name in names}


def _described(phase: Phase) -> dict[str, Any]:
    return {name: getattr(phase, name) for name in Phase.__slots__}


@dataclass(slots=True)
class _Run:
    """Where a run stands: the phase it is in, its trainable parameters and their optimizer."""

    phases: Sequence[Phase]
    work: Work
    config: LoopConfig
    device: torch.device
    phase: int = -1
    parameters: dict[str, nn.Parameter] = field(default_factory=dict)
    optimizer: Any = None
    perplexities: list[float | None] = field(default_factory=list)
    batches: tuple[Iterator[list[Visit]], Iterator[list[Visit]]] | None = None

    def start(self, phase: int) -> int:
        """Return how many steps come before a phase."""
        return sum(p.num_steps for p in self.phases[:phase])

    def samples(self, steps: int) -> int:
        """Return how many samples the first ``steps`` see."""
        seen = 0
        for phase in self.phases:
            seen += min(steps, phase.num_steps) * phase.batch_size
            steps = max(0, steps - phase.num_steps)
        return seen

    def enter(self, phase: int) -> None:
        """Make a phase's parameters trainable, with a fresh optimizer."""
        import torch

        self.phase, self.batches = phase, None
        self.parameters = self.work.enter(self.phases[phase])
        named, decay = self.parameters.items(), self.config.weight_decay
        groups = decay_groups(named, decay, lambda name: "embed" in name)
        self.optimizer = torch.optim.AdamW([g for g in groups if g["params"]], lr=1.0)

    def ends(self, steps: int) -> bool:
        """Whether the phase ends after so many steps."""
        return self.phase < len(self.phases) and steps == self.start(self.phase + 1)

    def end_of_phase(self, steps: int) -> None:
        """Go on to the next phase where one ends after so many steps."""
        while self.ends(steps):
            self.work.left(self.phases[self.phase])
            self.perplexities.append(self.work.perplexity())
            if self.phase + 1 == len(self.phases):
                return
            self.enter(self.phase + 1)

    def step(self, step: int) -> float:
        """Take one optimizer step; return the loss before it."""
        import torch

        phase, config = self.phases[self.phase], self.config
        local = step - self.start(self.phase)
        for group in self.optimizer.param_groups:
            group["lr"] = phase.rate(local)
        torch.manual_seed(step_seed(config.seed, step))  # dropout
        visits, loss_of = self._batch(phase, local)
        self.optimizer.zero_grad(set_to_none=True)
        whole = phase.objective == "representation" or not config.micro_batch_size
        size = len(visits) if whole else config.micro_batch_size
        total, count = 0.0, 0
        for start in range(0, len(visits), size):
            with torch.autocast(
                self.device.type, torch.bfloat16, enabled=config.precision == "bf16"
            ):
                loss, tokens = loss_of(visits[start : start + size])
            # A mean over tokens: passes of unequal numbers of tokens have unequal weights.
            if loss.requires_grad:
                (loss * tokens).backward()
            total, count = total + float(loss.detach()) * tokens, count + tokens
        parameters = list(self.parameters.values())
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad /= max(1, count)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0, foreach=True)
        self.optimizer.step()
        return total / max(1, count)

    def _batch(
        self, phase: Phase, local: int
    ) -> tuple[list[Visit], Callable[[Sequence[Visit]], Loss]]:
        """Return what a step sees, and the loss that takes it."""
        texts = phase.texts_before(local)
        if self.batches is None:
            seed = self.config.seed + _PHASE_SEED * (self.phase + 1)
            num_rows, num_texts = self.work.num_rows(phase)
            self.batches = (
                _visits(num_rows, phase.batch_size, seed, local - texts),
                _visits(max(1, num_texts), phase.batch_size, seed, texts),
            )
        if phase.is_text(local):
            return next(self.batches[1]), self.work.text_loss
        step = self.start(self.phase) + local
        return next(self.batches[0]), lambda visits: self.work.loss(phase, visits, step)

    def summary(self, curve: Sequence[float]) -> list[dict[str, Any]]:
        """Return what training.json says of each phase."""
        found = []
        for index, phase in enumerate(self.phases):
            start = self.start(index)
            values = curve[start : start + phase.num_steps]
            found.append(
                {
                    **_described(phase),
                    "samples_seen": phase.num_samples,
                    "loss_curve": thinned(values, _CURVE_POINTS),
                    "text_perplexity_before": self.perplexities[index],
                    "text_perplexity_after": self.perplexities[index + 1],
                }
            )
        return found


def _visits(num_rows: int, batch_size: int, seed: int, step: int) -> Iterator[list[Visit]]:
    for batch in batch_indices(num_rows, batch_size, seed, step):
        places = range(step * batch_size, (step + 1) * batch_size)
        yield [(row, place // num_rows) for row, place in zip(batch.tolist(), places, strict=True)]
        step += 1


class _Weights:
    """To ``_state`` a network: the phase a run is in, what it measured and its trained weights."""

    def __init__(self, run: _Run) -> None:
        self._run = run

    def state_dict(self) -> dict[str, Any]:
        """Return only what is trained: the tower and a frozen language model are elsewhere."""
        weights = {name: p.detach() for name, p in self._run.parameters.items()}
        measured = list(self._run.perplexities)
        return {"phase": self._run.phase, "perplexities": measured, "weights": weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Enter the phase and take its weights."""
        import torch

        self._run.enter(int(state["phase"]))
        self._run.perplexities[:] = state["perplexities"]
        with torch.no_grad():
            for name, parameter in self._run.parameters.items():
                parameter.copy_(state["weights"][name])


class _Optimizer:
    """To ``_state`` an optimizer: that of the phase which ``_Weights`` has entered."""

    def __init__(self, run: _Run) -> None:
        self._run = run

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = self._run.optimizer.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._run.optimizer.load_state_dict(state)
