"""What a network costs: operations and memory are counted without computing anything, on any machine."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kbnet_plugin.nn import cost


def count(
    network: nn.Module, size: tuple[int, int], channels: int, *, memory: bool = True
) -> dict[str, float]:
    """Count what one image costs.

    Parameters
    ----------
    network : Module
    size : (int, int)
        Height and width of the image.
    channels : int
    memory : bool
        Whether to follow the memory of activations, too.

    Returns
    -------
    dict of str to float
        Parameters in millions, multiply-accumulates in G by operator, memory in MiB.
    """
    found = cost.count(network, size, channels)
    giga = {
        "macs_published": found.macs_published,
        "macs_full": found.macs_total,
        "convolution": found.convolution,
        "linear": found.linear,
        "kba": found.kba,
        "attention": found.attention,
    }
    values = {"parameters": found.parameters / 1e6, **{name: macs / 1e9 for name, macs in giga.items()}}
    if memory:
        with torch.no_grad():
            inference, _ = activations(network, size, channels)
        _, training = activations(network, size, channels)
        values |= {"memory_inference": inference / 2**20, "memory_training": training / 2**20}
    return values


def activations(network: nn.Module, size: tuple[int, int], channels: int) -> tuple[int, int]:
    """Return the bytes of float32 tensors at the peak of a forward pass, and after it.

    Input and weights do not count, and scratch memory inside an operator is not seen. With gradients
    enabled, what remains after the pass is what the backward pass needs.
    """
    with cost.fake(network) as (call, empty):
        image = empty(1, channels, *size)
        with _Living() as living:
            output = call(image)
            held = living.now
        del output
    return living.peak, held


class _Living(TorchDispatchMode):
    """Follows the storages that operators allocate until they are freed."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = {id(t.untyped_storage()) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        result = operator(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._follow(tensor.untyped_storage(), given)
        return result

    def _follow(self, storage: torch.UntypedStorage, given: set[int]) -> None:
        key = id(storage)
        if key in self._sizes or key in given:  # a view, or the weights
            return
        self._sizes[key] = storage.nbytes()
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._freed, key)

    def _freed(self, key: int) -> None:
        self.now -= self._sizes.pop(key)
