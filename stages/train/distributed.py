"""Several workers train one model: each embeds its rows, all see all embeddings.

``current_workers()`` is what a training loop needs to know; in a process of no group it is one
worker, and everything here does nothing. Whoever starts the processes (``run_local`` here,
``pipeline/ray_training.py`` on Ray) starts a torch.distributed group in them and calls the same
code that trains alone.

The batch size is that of all workers together, so their number changes nothing but the speed: the
loss is that of the whole batch, and the weights are those of one worker up to float rounding.
"""

from __future__ import annotations

import importlib
import os
import pickle
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from winnow.contracts.errors import RecipeError, ShardError, WinnowError

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
_BUCKET = 1 << 24  # numbers that are averaged in one exchange


@dataclass(frozen=True, kw_only=True, slots=True)
class Workers:
    """This process among those that train together. Only the first one writes and reports."""

    rank: int = 0
    world_size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process writes checkpoints, models and reports."""
        return self.rank == 0

    def rows(self, batch_size: int) -> slice:
        """Return which rows of a whole batch this process embeds.

        Fails: RecipeError where the rows cannot be divided equally.
        """
        if batch_size % self.world_size:
            msg = f"batch_size={batch_size}: use a multiple of the {self.world_size} workers"
            raise RecipeError(msg)
        each = batch_size // self.world_size
        return slice(self.rank * each, (self.rank + 1) * each)

    def gather(self, values: torch.Tensor) -> torch.Tensor:
        """Return the rows of all workers in order of rank, from equally many rows in each.

        The gradient is such that ``average_gradients`` gives that of the whole batch, as with
        open_clip's ``gather_with_grad``: the loss after it has to be the same in all workers.
        """
        if self.world_size == 1:
            return values
        import torch
        from torch import distributed

        plain = values.detach().contiguous()
        sent = plain.to(torch.uint8) if plain.dtype == torch.bool else plain
        if distributed.get_backend() == "nccl":
            sent = sent.cuda()
        parts = [torch.empty_like(sent) for _ in range(self.world_size)]
        distributed.all_gather(parts, sent)
        parts = [part.to(values.device, values.dtype) for part in parts]
        mine = values.view_as(values)
        if mine.requires_grad:
            # Every worker has the gradient of its own rows only; the mean would be too small.
            mine.register_hook(lambda gradient: gradient * self.world_size)
        parts[self.rank] = mine
        return torch.cat(parts)

    def average_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Replace the gradients by their means over the workers: after backward, before a step."""
        if self.world_size == 1:
            return
        bucket: list[torch.Tensor] = []
        size = 0
        for parameter in parameters:
            if parameter.grad is None:
                continue
            bucket.append(parameter.grad)
            size += parameter.grad.numel()
            if size >= _BUCKET:
                self._average(bucket)
                bucket, size = [], 0
        self._average(bucket)

    def _average(self, tensors: list[torch.Tensor]) -> None:
        import torch
        from torch import distributed

        if not tensors:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        distributed.all_reduce(flat)
        flat /= self.world_size
        for tensor, mean in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(mean.view_as(tensor))

    def from_first(self, value: T) -> T:
        """Return the first worker's value: what only it could read, or what must be equal.

        Pickled; the workers trust each other.
        """
        if self.world_size == 1:
            return value
        from torch import distributed

        box = [value]
        distributed.broadcast_object_list(box, src=0)
        return box[0]

    def share_state(self, module: torch.nn.Module) -> None:
        """Give every worker the first one's parameters and buffers."""
        if self.world_size == 1:
            return
        from torch import distributed

        for tensor in module.state_dict().values():
            distributed.broadcast(tensor, src=0)


def current_workers() -> Workers:
    """Return this process's place in its torch.distributed group; one worker where there is none.

    Does not import torch where nobody else did.
    """
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return Workers()
    return Workers(rank=distributed.get_rank(), world_size=distributed.get_world_size())


def run_local(function: Callable[[], T], num_workers: int, *, backend: str = "gloo") -> T:
    """Run a picklable function in processes of this machine that form a group.

    Returns what the first one returned. The first error ends all of them and is raised here: a
    WinnowError as it is, another one as a ShardError.
    """
    if num_workers == 1:
        return function()
    multiprocessing: Any = importlib.import_module("torch.multiprocessing")
    with tempfile.TemporaryDirectory(prefix="winnow-workers-") as name:
        folder = Path(name)
        try:
            multiprocessing.spawn(
                _member, (function, num_workers, backend, folder), nprocs=num_workers
            )
        except (
            multiprocessing.ProcessRaisedException,
            multiprocessing.ProcessExitedException,
        ) as error:
            raise _first_error(folder) or ShardError(f"a worker was lost: {error}") from error
        result: T = pickle.loads((folder / "result").read_bytes())
    return result


def _member(
    rank: int, function: Callable[[], Any], world_size: int, backend: str, folder: Path
) -> None:
    from torch import distributed

    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    distributed.init_process_group(
        backend, init_method=f"file://{folder}/meeting", rank=rank, world_size=world_size
    )
    try:
        result = function()
    except WinnowError as error:
        (folder / f"error-{rank}").write_bytes(pickle.dumps(error))
        raise
    if rank == 0:
        (folder / "result").write_bytes(pickle.dumps(result))
    distributed.destroy_process_group()


def _first_error(folder: Path) -> WinnowError | None:
    for path in sorted(folder.glob("error-*")):
        error: WinnowError = pickle.loads(path.read_bytes())
        return error
    return None
