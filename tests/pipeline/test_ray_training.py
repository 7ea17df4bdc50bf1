"""ray.train starts the workers: the same weights as without it, errors as they were raised."""

from __future__ import annotations

import signal
import sys

import numpy as np
import pytest
import winnow_workers

from winnow.contracts.errors import SetupError
from winnow.contracts.stage import Resources
from winnow.pipeline.ray_training import train_on_ray

pytestmark = pytest.mark.ray


def test_two_workers_on_ray_end_with_the_weights_of_one(ray_cluster: None) -> None:
    alone = winnow_workers.train()
    counted: list[int] = []
    handler = signal.getsignal(signal.SIGINT)
    weights = train_on_ray(winnow_workers.on_ray, 2, Resources(num_cpus=1), progress=counted.append)
    assert weights.keys() == alone.keys()
    for name, value in alone.items():
        np.testing.assert_allclose(weights[name], value, rtol=0, atol=1e-9, err_msg=name)
    assert sum(counted) == winnow_workers.STEPS * winnow_workers.BATCH
    assert signal.getsignal(signal.SIGINT) is handler


def test_an_error_of_one_worker_is_raised_here(ray_cluster: None) -> None:
    with pytest.raises(SetupError, match="the second worker has no disk"):
        train_on_ray(winnow_workers.second_fails_on_ray, 2, Resources(num_cpus=1))


def test_a_cluster_that_is_too_small_is_refused(ray_cluster: None) -> None:
    with pytest.raises(SetupError, match="3 workers need 3 CPU; the cluster has 2"):
        train_on_ray(winnow_workers.on_ray, 3, Resources(num_cpus=1))
    with pytest.raises(SetupError, match="2 workers need 2 GPU; the cluster has 0"):
        train_on_ray(winnow_workers.on_ray, 2, Resources(num_cpus=1, num_gpus=1))


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray.train", None)
    with pytest.raises(SetupError, match=r"pip install 'ray\[train\]'"):
        train_on_ray(winnow_workers.on_ray, 2, Resources(num_cpus=1))
