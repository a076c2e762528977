"""Parameters and multiply-accumulates, counted in full."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True, slots=True)
class Cost:
    """What one image costs; multiply-accumulates (MACs) by the kind of operator that does them."""

    parameters: int
    convolution: int
    kba: int
    attention: int

    @property
    def macs_published(self) -> int:
        """Convolutions only: what hook-based counters see, and so what papers print."""
        return self.convolution

    @property
    def macs_total(self) -> int:
        """Kernel basis attention and attention products included."""
        return self.convolution + self.kba + self.attention


def count(network: nn.Module, size: tuple[int, int] = (256, 256)) -> Cost:
    """Count what `network` spends on one image; nothing is computed, no memory is taken.

    Parameters
    ----------
    network : KBNet_s or KBNet_l
        Or any module that takes (1, C, H, W), C being that of its first convolution.
    size : (int, int)
        Height and width in pixels.

    Returns
    -------
    Cost
        Multiply-accumulates of convolutions, of kernel basis attention (every basis mixed at every pixel, its
        bias included, then applied) and of matrix products. Elementwise work is left out, as is usual.
    """
    channels = next(m.in_channels for m in network.modules() if isinstance(m, nn.Conv2d))
    with torch.no_grad(), FakeTensorMode(), FlopCounterMode(display=False) as counter:
        parameters = {name: torch.empty(p.shape) for name, p in network.named_parameters()}
        torch.func.functional_call(network, parameters, (torch.empty(1, channels, *size),))
    macs = dict.fromkeys(("convolution", "kba", "attention"), 0)
    for operator, flops in counter.get_flop_counts()["Global"].items():
        macs[_kind(str(operator))] += flops // 2
    return Cost(sum(p.numel() for p in network.parameters()), **macs)


def _kind(operator: str) -> str:
    if "kernel_basis_attention" in operator:
        return "kba"
    return "convolution" if "conv" in operator else "attention"
