"""Several workers, one model: the weights of one worker, on the same machine without Ray."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import winnow_workers
from PIL import Image

from winnow.contracts.errors import RecipeError, ShardError
from winnow.stages.train.distributed import Workers, current_workers, run_local


def same(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> None:
    assert left.keys() == right.keys()
    for name, value in left.items():
        np.testing.assert_allclose(value, right[name], rtol=0, atol=1e-9, err_msg=name)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """Four shards of 10 pairs; two of three have a wrong text."""
    folder = tmp_path_factory.mktemp("shards")
    for shard in range(4):
        with tarfile.open(folder / f"{shard}.tar", "w") as tar:
            for number in range(10 * shard, 10 * shard + 10):
                picture = io.BytesIO()
                pixels = np.random.default_rng(number).integers(0, 256, (16, 16, 3), np.uint8)
                Image.fromarray(pixels).save(picture, "PNG")
                wrong = f"not {number}" if number % 3 else None
                for extension, data in (
                    ("png", picture.getvalue()),
                    ("txt", f"number {number}".encode()),
                    ("json", json.dumps({"wrong": wrong}).encode()),
                ):
                    info = tarfile.TarInfo(f"{number}.{extension}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    return {str(folder / f"{shard}.tar"): 10 for shard in range(4)}


@pytest.fixture(scope="module")
def two(shards: dict[str, int]) -> dict[str, Any]:
    """What two workers found."""
    return run_local(partial(winnow_workers.everything, shards), 2)


@pytest.mark.parametrize("name", ["clip", "siglip in parts"])
def test_workers_end_with_the_weights_of_one(two: dict[str, Any], name: str) -> None:
    loss = name.split()[0]
    alone = winnow_workers.train(loss)
    same(two[name], alone)
    fresh = winnow_workers._network(loss).state_dict()
    for parameter in ("visual.proj", "logit_scale"):
        assert np.abs(alone[parameter] - fresh[parameter].numpy()).max() > 1e-3


def test_the_weights_are_those_of_open_clip_on_two_workers(two: dict[str, Any]) -> None:
    same(two["clip"], two["open_clip"])


def test_the_loop_on_a_stream_gives_two_workers_the_weights_of_one(
    two: dict[str, Any], shards: dict[str, int]
) -> None:
    alone, together = winnow_workers.train_stream(shards), two["stream"]
    np.testing.assert_allclose(together["losses"], alone["losses"], atol=2e-4)  # rounded to 1e-4
    for name, value in alone["weights"].items():  # float32 through eight steps of AdamW
        np.testing.assert_allclose(together["weights"][name], value, atol=2e-5, err_msg=name)


def test_what_workers_tell_each_other(two: dict[str, Any]) -> None:
    expected = [2, [False, True], [0, 1, 10, 11], {"step": 7}, "torch.bool"]
    assert two["gathered"] == expected


def test_one_worker_needs_no_group() -> None:
    workers = current_workers()
    assert workers == Workers(rank=0, world_size=1)
    assert workers.is_first
    values = torch.ones(3, requires_grad=True)
    assert workers.gather(values) is values
    assert workers.rows(12) == slice(0, 12)
    assert workers.from_first("x") == "x"
    assert run_local(winnow_workers.gathered, 1)[0] == 1


def test_rows_divide_a_batch() -> None:
    parts = [Workers(rank=rank, world_size=4).rows(12) for rank in range(4)]
    assert [row for part in parts for row in range(12)[part]] == list(range(12))
    with pytest.raises(RecipeError, match="batch_size=10: use a multiple of the 4 workers"):
        Workers(rank=0, world_size=4).rows(10)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (winnow_workers.second_fails, "the second worker has no data"),
        (winnow_workers.second_dies, "a worker was lost: .*exit code 11"),
    ],
)
def test_an_error_of_one_worker_ends_all(function: Callable[[], Any], message: str) -> None:
    with pytest.raises(ShardError, match=message) as caught:
        run_local(function, 2)
    assert caught.value.retryable == (function is winnow_workers.second_dies)
