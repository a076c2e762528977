"""Means over a window, or over a whole plane, in place of means over whatever a network is given."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
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
    local = _copy(network)
    for block, pool, level in _pooling_blocks(local):
        block.sca = _LocalScale(pool, window // multiple, multiple >> level)
    return local


def with_plane_pooling(network: Network) -> Network:
    """Copy a network so that its global means can be given from outside, and looked at.

    Parameters
    ----------
    network : KBNet_s or KBNet_l
        Left as it is; the copy shares its parameters and its state dict's names.

    Returns
    -------
    KBNet_s or KBNet_l
        In evaluation mode. By itself it computes what `network` does. Within `given_means` it takes those;
        within `recorded_means` those that it meets are noted. Both hold for the calling thread alone.

    Notes
    -----
    What tiles compute with the means of their whole plane does not depend on the tiles, but for the reach of
    the convolutions.
    """
    plane = _copy(network)
    for number, (_, pool, _) in enumerate(_pooling_blocks(plane)):
        pool[0] = _PlaneMean(number)
    return plane


@contextmanager
def given_means(means: Sequence[Tensor] | None) -> Iterator[None]:
    """Let networks of `with_plane_pooling` use these means: for every pool (B, C, 1, 1) or (1, C, 1, 1)."""
    token = _GIVEN.set(means)
    try:
        yield
    finally:
        _GIVEN.reset(token)


@contextmanager
def recorded_means(into: list[list[Tensor]]) -> Iterator[None]:
    """Note in a list, for every pool, the means (B, C, 1, 1) of each call of such a network."""
    token = _RECORD.set(into)
    try:
        yield
    finally:
        _RECORD.reset(token)


_GIVEN: ContextVar[Sequence[Tensor] | None] = ContextVar("given", default=None)
_RECORD: ContextVar[list[list[Tensor]] | None] = ContextVar("record", default=None)


def _copy(network: Network) -> Network:
    """A copy that shares parameters and buffers, in evaluation mode."""
    shared = {id(tensor): tensor for tensor in chain(network.parameters(), network.buffers())}
    copied: Network = copy.deepcopy(network, shared)
    copied.eval()
    return copied


def _pooling_blocks(network: KBNet_s | KBNet_l) -> Iterator[tuple[nn.Module, nn.Sequential, int]]:
    """Blocks that pool over all their pixels, how they do it, and how often these were halved."""
    for level, stage in network.stages():
        for block in stage.modules():
            pool = getattr(block, "sca", None)
            if isinstance(pool, nn.Sequential) and isinstance(pool[0], GlobalMean):
                yield block, pool, level


class _PlaneMean(GlobalMean):
    """A mean that may come from outside."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def forward(self, x: Tensor) -> Tensor:
        given = _GIVEN.get()
        if given is not None:
            return given[self.number].to(x)
        mean: Tensor = super().forward(x)
        record = _RECORD.get()
        if record is not None:
            record.extend([] for _ in range(self.number + 1 - len(record)))
            record[self.number].append(mean.float())
        return mean


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
