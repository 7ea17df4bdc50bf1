"""Floating point operations of a computation, counted as it runs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


@torch.enable_grad()  # torch loses its way in views of parameters made without gradients
def count_flops(compute: Callable[[], object]) -> int:
    """Return the operations of matrix products, convolutions and attention; a multiply-add is two.

    Fused kernels of attention hide what they do from torch's counter (on the CPU all of them), so
    that they are off while it counts.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            compute()
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return int(counter.get_total_flops())
