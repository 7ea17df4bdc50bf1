"""A cache of keys and values that appends in place and drops rows cheaply."""

from __future__ import annotations

import functools
from typing import Any

import torch


def new_cache(network: torch.nn.Module) -> Any:
    """Return an empty cache whose layers append in place and drop rows by moving few of them.

    transformers' own layers copy all keys and values at each step, and at each drop. Layers of
    another kind (a sliding window, a state) stay as transformers makes them.
    """
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    config: Any = network.config
    cache = DynamicCache(config=config)
    growing = _growing_layer()
    cache.layers = [growing() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


@functools.cache
def _growing_layer() -> type:
    from transformers.cache_utils import DynamicLayer

    class GrowingLayer(DynamicLayer):
        """Keys and values are views of the used part of buffers with room for more."""

        keys: Any
        values: Any

        def update(
            self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
        ) -> tuple[torch.Tensor, torch.Tensor]:
            if self.keys is None:  # what transformers sets here differs between its versions
                self.dtype, self.device = key_states.dtype, key_states.device
                self.is_initialized = True
                self.keys, self.values = key_states[:, :, :0], value_states[:, :, :0]
                self.key_room, self.value_room = self.keys, self.values
            used = self.keys.shape[2]
            length = used + key_states.shape[2]
            if length > self.key_room.shape[2]:
                self.key_room = _with_room(self.keys, length)
                self.value_room = _with_room(self.values, length)
            self.key_room[:, :, used:length] = key_states
            self.value_room[:, :, used:length] = value_states
            return self._show(length)

        def batch_select_indices(self, indices: torch.Tensor) -> None:
            """Keep these rows, in this order; at most as many as there are."""
            if self.keys is None:
                return
            length = self.keys.shape[2]
            places = torch.arange(len(indices), device=indices.device)
            moved = places[indices != places]
            for name in ("key_room", "value_room"):
                room = getattr(self, name)
                room[moved, :, :length] = room[indices[moved], :, :length]
                setattr(self, name, room[: len(indices)])
            self._show(length)

        def batch_repeat_interleave(self, repeats: int) -> None:
            if self.keys is None:
                return
            length = self.keys.shape[2]
            self.key_room = self.key_room.repeat_interleave(repeats, dim=0)
            self.value_room = self.value_room.repeat_interleave(repeats, dim=0)
            self._show(length)

        def _show(self, length: int) -> tuple[torch.Tensor, torch.Tensor]:
            self.keys = self.key_room[:, :, :length]
            self.values = self.value_room[:, :, :length]
            return self.keys, self.values

    return GrowingLayer


def _with_room(used: torch.Tensor, length: int) -> torch.Tensor:
    rows, heads, filled, width = used.shape
    room = used.new_empty(rows, heads, length + max(32, length // 4), width)
    room[:, :, :filled] = used
    return room
