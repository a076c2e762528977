"""Count the parameters and multiply-accumulates of a network, in full."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from ..cost import Cost
from ..ops import tell_flop_counter

tell_flop_counter()  # the import above loaded it


def count(network: nn.Module, size: tuple[int, int] = (256, 256), channels: int | None = None) -> Cost:
    """Count the cost of one image, without computing anything or allocating memory.

    Parameters
    ----------
    network : KBNet_s or KBNet_l
        Or any module that maps (1, C, H, W) to an image.
    size : (int, int)
        Height and width in pixels.
    channels : int, optional
        C; by default, that of the first convolution.

    Returns
    -------
    Cost
        Multiply-accumulates of convolutions, of kernel basis attention (every basis mixed at every pixel,
        biases included, then applied), of dense layers and of other matrix products. Elementwise operations
        are not counted, as usual.
    """
    if channels is None:
        channels = next(m.in_channels for m in network.modules() if isinstance(m, nn.Conv2d))
    linear = 0

    def dense(layer: nn.Module, inputs: tuple[Tensor, ...], _: Tensor) -> None:
        nonlocal linear
        linear += inputs[0].numel() * cast(nn.Linear, layer).out_features

    # The flop counter does not distinguish dense layers from other matrix products.
    hooks = [m.register_forward_hook(dense) for m in network.modules() if isinstance(m, nn.Linear)]
    try:
        with torch.no_grad(), fake(network) as (call, empty), FlopCounterMode(display=False) as counter:
            call(empty(1, channels, *size))
    finally:
        for hook in hooks:
            hook.remove()
    macs = dict.fromkeys(("convolution", "kba", "attention"), 0)
    for operator, flops in counter.get_flop_counts()["Global"].items():
        macs[_kind(str(operator))] += flops // 2
    macs["attention"] -= linear
    return Cost(sum(p.numel() for p in network.parameters()), linear=linear, **macs)


@contextmanager
def fake(network: nn.Module) -> Iterator[tuple[Callable[[Tensor], Tensor], Callable[..., Tensor]]]:
    """Yield `network` as a function of tensors that have shapes but no data.

    The second item yielded makes such tensors, like `torch.empty`. Both are valid within the block only.
    """
    with FakeTensorMode(allow_non_fake_inputs=True):  # some networks have index tables that are not buffers
        stand_ins = {
            name: torch.empty(t.shape, dtype=t.dtype, requires_grad=t.requires_grad)
            for name, t in (*network.named_parameters(), *network.named_buffers())
        }
        yield (
            lambda image: torch.func.functional_call(network, stand_ins, (image,)),
            torch.empty,
        )


def _kind(operator: str) -> str:
    if "kernel_basis_attention" in operator:
        return "kba"
    return "convolution" if "conv" in operator else "attention"
