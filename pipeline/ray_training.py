"""One model trained by several workers on Ray: ray.train's TorchTrainer starts and connects them.

With ``executor_ray.py`` the only file that imports Ray. What the workers do is a function that runs
in one process, too; it learns of the others from ``stages/train/distributed.py``. See
docs/adr/0007.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
import ray  # noqa: E402

from winnow.contracts.errors import SetupError, ShardError, WinnowError  # noqa: E402
from winnow.contracts.stage import Resources  # noqa: E402
from winnow.pipeline.executor_ray import start_ray  # noqa: E402

T = TypeVar("T")
Progress = Callable[[int], None]
_POLL_S = 1.0


def train_on_ray(
    function: Callable[[Progress], T],
    num_workers: int,
    resources: Resources,
    *,
    address: str | None = None,
    progress: Progress = lambda samples: None,
    storage: str | None = None,
) -> T:
    """Run a function in workers that form a torch.distributed group; return the first one's value.

    function: picklable; gets a function that counts samples, of which the first worker's calls
    reach ``progress``. It must find its data from every node.  resources: of each worker; with
    num_gpus the group talks by nccl, else by gloo.  address: a cluster; None: the one this process
    is connected to, or one of its own.  storage: where ray.train keeps its own notes: on several
    nodes a folder or URL that all of them reach; None: a temporary folder.

    Fails: SetupError where ray.train is not installed, or the cluster is too small (it would wait
    for ever); what a worker raised, if it is a WinnowError; ShardError, retryable, for lost workers
    and anything else.
    """
    try:
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer
    except ImportError as error:
        msg = f"several workers need ray.train: pip install 'ray[train]' ({error})"
        raise SetupError(msg) from error

    owns_ray = start_ray(address, None)
    try:
        _check_room(num_workers, resources)
        with contextlib.ExitStack() as stack:
            notes = storage or stack.enter_context(_temporary())
            box = stack.enter_context(_counted(progress))
            use_gpu = resources.num_gpus > 0
            trainer = TorchTrainer(
                _work,
                train_loop_config={"function": function, "box": box},
                torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
                scaling_config=ScalingConfig(
                    num_workers=num_workers,
                    use_gpu=use_gpu,
                    resources_per_worker=_per_worker(resources),
                ),
                run_config=RunConfig(
                    name="winnow", storage_path=notes, failure_config=FailureConfig(max_failures=0)
                ),
            )
            _fit(trainer)
            value: T = ray.get(box.value.remote())
            return value
    finally:
        if owns_ray:
            ray.shutdown()


def _work(config: dict[str, Any]) -> None:
    """What each worker runs. ray.train hands no values back without a checkpoint; the box does."""
    box = config["box"]
    first = ray.train.get_context().get_world_rank() == 0

    def count(samples: int) -> None:
        if first:
            box.add.remote(samples)

    value = config["function"](count)
    if first:
        ray.get(box.put.remote(value))


def _fit(trainer: Any) -> None:
    from ray.train import TrainingFailedError

    # ray.train takes Ctrl-C over and does not give it back.
    before = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit()
    except TrainingFailedError as error:
        raise _cause(error) from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, before)


def _cause(error: BaseException) -> WinnowError:
    """Return the WinnowError of the lowest rank that raised one, else a retryable ShardError."""
    failures = getattr(error, "worker_failures", {})
    for rank in sorted(failures):
        seen: BaseException | None = failures[rank]
        while seen is not None:
            if isinstance(seen, WinnowError):
                return seen
            seen = getattr(seen, "cause", None) or seen.__cause__
    ranks = ", ".join(
        f"worker {rank}: {type(found).__name__}: {found}"
        for rank, found in sorted(failures.items())
    )
    what = " ".join((ranks or str(error)).split())[:500]
    return ShardError(f"training on Ray failed: {what}", stage="train")


def _per_worker(resources: Resources) -> dict[str, float]:
    needed = {"CPU": resources.num_cpus, "GPU": resources.num_gpus}
    needed |= {"memory": float(resources.memory_bytes)}
    return {name: value for name, value in needed.items() if value}


def _check_room(num_workers: int, resources: Resources) -> None:
    total = ray.cluster_resources()
    for name, each in _per_worker(resources).items():
        if num_workers * each > total.get(name, 0.0):
            msg = (
                f"{num_workers} workers need {num_workers * each:g} {name}; the cluster has "
                f"{total.get(name, 0.0):g}; use fewer workers, or a larger cluster"
            )
            raise SetupError(msg)


@contextlib.contextmanager
def _temporary() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="winnow-ray-train-") as folder:
        yield folder


class _Box:
    """An actor: what the first worker returned, and samples it counted that were not fetched."""

    def __init__(self) -> None:
        self._samples = 0
        self._value: Any = None

    def put(self, value: Any) -> None:
        self._value = value

    def value(self) -> Any:
        return self._value

    def add(self, samples: int) -> None:
        self._samples += samples

    def take(self) -> int:
        samples, self._samples = self._samples, 0
        return samples


@contextlib.contextmanager
def _counted(progress: Progress) -> Iterator[Any]:
    """Yield a box for the first worker; pass on what it counts."""
    remote: Any = ray.remote(_Box)
    box = remote.options(num_cpus=0).remote()
    ended = threading.Event()

    def poll() -> None:
        while not ended.wait(_POLL_S):
            _pass_on(box, progress)

    thread = threading.Thread(target=poll, name="progress", daemon=True)
    thread.start()
    try:
        yield box
    finally:
        ended.set()
        thread.join()
        _pass_on(box, progress)
        ray.kill(box)


def _pass_on(box: Any, progress: Progress) -> None:
    try:
        samples = ray.get(box.take.remote(), timeout=10)
    except ray.exceptions.RayError as error:
        logging.getLogger(__name__).warning("progress is not known: %s", error)
        return
    if samples:
        progress(samples)
