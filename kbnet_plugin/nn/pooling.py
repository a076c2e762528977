"""Replace the global means in a network by local ones, for images larger than its training patches."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import chain
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .kbnet_l import KBNet_l
from .kbnet_s import KBNet_s
from .layers import ChannelScale

Network = TypeVar("Network", bound=KBNet_s | KBNet_l)


def with_replaceable_means(network: Network) -> Network:
    """Copy a network so that `record_means` and `replace_means` can read and replace its global means.

    Parameters
    ----------
    network : KBNet_s or KBNet_l
        Left unchanged; the copy shares its parameters and the names in its state dict.

    Returns
    -------
    KBNet_s or KBNet_l
        In evaluation mode. Outside those two context managers its results are those of `network`.
    """
    shared = {id(tensor): tensor for tensor in chain(network.parameters(), network.buffers())}
    copied: Network = copy.deepcopy(network, shared)
    number = 0
    for _, stage in copied.stages():
        for block in stage.modules():
            pool = getattr(block, "sca", None)
            if isinstance(pool, ChannelScale):
                block.sca = _ReplaceableMean(pool, number)
                number += 1
    copied.eval()
    return copied


@contextmanager
def record_means() -> Iterator[dict[int, Tensor]]:
    """Record the means that a network computes within the block, in the calling thread.

    The dict that it yields maps the number of each pool to its mean, (B, C, 1, 1), float32.
    """
    means: dict[int, Tensor] = {}
    token = _RECORD.set(means)
    try:
        yield means
    finally:
        _RECORD.reset(token)


@contextmanager
def replace_means(means: Sequence[Tensor] | None) -> Iterator[None]:
    """Make a network use these means within the block, in the calling thread.

    Parameters
    ----------
    means : sequence of Tensor, optional
        (B, C, h, w) for every pool, interpolated to the size of its input. None leaves the global means.
    """
    token = _REPLACEMENT.set(means)
    try:
        yield
    finally:
        _REPLACEMENT.reset(token)


_RECORD: ContextVar[dict[int, Tensor] | None] = ContextVar("record", default=None)
_REPLACEMENT: ContextVar[Sequence[Tensor] | None] = ContextVar("replacement", default=None)


class _ReplaceableMean(ChannelScale):
    """A scale whose mean can be replaced."""

    def __init__(self, pool: ChannelScale, number: int) -> None:
        super(ChannelScale, self).__init__(*pool)
        self.number = number

    def forward(self, x: Tensor) -> Tensor:
        scale = super().forward(x)
        if scale.shape[2:] == (1, 1):
            return scale
        return F.interpolate(scale, size=x.shape[2:], mode="bilinear", align_corners=False)

    def grid(self, mean: Callable[[], Tensor]) -> Tensor:
        replacement = _REPLACEMENT.get()
        if replacement is not None:
            scale: Tensor = self[1](replacement[self.number].to(next(self.parameters())))
            return scale
        computed = mean()
        record = _RECORD.get()
        if record is not None:
            record[self.number] = computed.float()
        return super().grid(lambda: computed)


class Grid:
    """Square patches of an image over which means are taken, spaced two patch widths apart.

    A network that averages over its whole input was trained on small patches. In a large image these averages
    have other statistics, and they differ between the tiles of one image. Means over patches avoid both
    problems. The grid of patches starts at the origin of the image and does not depend on the tiles, so the
    means interpolated between its patches are the same in every tile.

    Parameters
    ----------
    window : int
        Side of a patch in pixels.

    References
    ----------
    Chu et al., "Improving Image Restoration by Revisiting Global Information Aggregation", arXiv 2112.04491.
    They average over a window around every pixel instead.
    """

    def __init__(self, window: int) -> None:
        self.window, self.step = window, 2 * window

    @property
    def margin(self) -> int:
        """Pixels around a part of an image that contain all the patches it needs."""
        return self.step + self.window

    def patches(self, start: int, stop: int, wanted: tuple[int, int]) -> list[tuple[int, int]]:
        """List the patches along one axis as (start, stop), in pixels.

        Parameters
        ----------
        start, stop : int
            The known part of the image: all of `wanted`, and the margin around it within the image.
        wanted : (int, int)
            Where means are needed.

        Returns
        -------
        list of (int, int)
            Whole patches. If not even one fits, the known part itself.
        """
        known = range(self.window // 2, stop - self.window + 1, self.step)
        found = [(at, at + self.window) for at in known if at >= start]
        while len(found) > 1 and sum(found[1]) <= 2 * wanted[0]:  # the centres from this one on are enough
            del found[0]
        while len(found) > 1 and sum(found[-2]) >= 2 * wanted[1]:
            del found[-1]
        return found or [(start, stop)]

    def weights(self, patches: Sequence[tuple[int, int]], start: int, count: int, cell: int) -> Tensor:
        """Compute the interpolation weights of patches along one axis.

        Parameters
        ----------
        patches : sequence of (int, int)
            As from `patches`.
        start, count, cell : int
            Interpolate at the centres of `count` cells of `cell` pixels each, the first at `start`.

        Returns
        -------
        Tensor
            (count, number of patches), float32; rows sum to 1.
        """
        centres = [(a + b) / 2 for a, b in patches]
        at = start + (np.arange(count) + 0.5) * cell
        return torch.from_numpy(
            np.stack([np.interp(at, centres, one) for one in np.eye(len(centres))], axis=1)
        ).float()
