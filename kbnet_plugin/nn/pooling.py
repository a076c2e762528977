"""Local means in place of global ones, for pictures larger than the training patches."""

from __future__ import annotations

import copy
from itertools import chain
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .kbnet_l import KBNet_l
from .kbnet_s import KBNet_s
from .layers import GlobalMean

Network = TypeVar("Network", bound=KBNet_s | KBNet_l)


def with_local_pooling(network: Network, window: int) -> Network:
    """Copy a network so that its global means become means over a window around each pixel.

    A network that pools over the whole input was trained on small patches and meets other statistics in a
    large picture, and tiles of one picture disagree. Local means mend both. The transposed attention of
    KBNet_l, which also sums over every pixel, stays as it is.

    Parameters
    ----------
    network : KBNet_s or KBNet_l
        Left as it is; the copy shares its parameters and its state dict's names.
    window : int
        Side of the window in pixels of the input; the reference recommends 1.5 training patches.

    Returns
    -------
    KBNet_s or KBNet_l
        In evaluation mode.

    Raises
    ------
    ValueError
        If the window is smaller than the network's `size_multiple`.

    References
    ----------
    Chu et al., "Improving Image Restoration by Revisiting Global Information Aggregation",
    arXiv 2112.04491. Here means are taken every `size_multiple` pixels and interpolated between: neighbouring
    windows differ little, and tiles that start on that grid share it.
    """
    multiple = network.size_multiple
    if window < multiple:
        raise ValueError(f"window must be at least {multiple} pixels for this network, not {window}")
    shared = {id(tensor): tensor for tensor in chain(network.parameters(), network.buffers())}
    local: Network = copy.deepcopy(network, shared)
    for level, stage in local.stages():
        for block in stage.modules():
            pool = getattr(block, "sca", None)
            if isinstance(pool, nn.Sequential) and isinstance(pool[0], GlobalMean):
                block.sca = _LocalScale(pool, window // multiple, multiple >> level)
    local.eval()
    return local


class _LocalScale(nn.Sequential):
    """A mean and its projection, over `count` x `count` blocks of `block` x `block` pixels."""

    def __init__(self, pool: nn.Sequential, count: int, block: int) -> None:
        super().__init__(*pool)
        self.count = (count - 1) | 1  # odd, so that a window has a block at its centre
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = (min(self.count, n // self.block) for n in x.shape[2:])
        if rows * self.block == x.shape[2] and columns * self.block == x.shape[3]:
            return self[1](self[0](x))
        means = F.avg_pool2d(x, self.block)
        means = means.to(torch.promote_types(x.dtype, torch.float32))
        means = F.avg_pool2d(F.avg_pool2d(means, (rows, 1), stride=1), (1, columns), stride=1)
        top, left = (rows - 1) // 2, (columns - 1) // 2
        # At the border the nearest whole window serves.
        means = F.pad(means, (left, columns - 1 - left, top, rows - 1 - top), mode="replicate")
        scale = self[1](means.to(x.dtype))
        if self.block == 1:
            return scale
        return F.interpolate(scale, scale_factor=self.block, mode="bilinear", align_corners=False)
