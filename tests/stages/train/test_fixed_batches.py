"""Batches of one shape: the same rows as one at a time, and never another shape."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from winnow.stages.train._fixed_batches import fixed_batches


@pytest.mark.parametrize("count", [0, 1, 3, 4, 5, 8, 11])
@pytest.mark.parametrize("kind", [list, np.array])
def test_every_batch_has_one_size_and_every_value_its_row(count: int, kind: Any) -> None:
    sizes = []

    def doubled(values: list[Any]) -> torch.Tensor:
        sizes.append(len(values))
        return torch.tensor([[float(v), 2 * float(v)] for v in values])

    found = fixed_batches(doubled, kind(list(range(count))), nothing=-1, size=4)
    assert found.tolist() == [[v, 2 * v] for v in range(count)]
    assert found.shape == (count, 2)
    assert set(sizes) == {4}
