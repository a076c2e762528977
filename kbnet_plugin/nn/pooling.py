"""Local means in place of global ones, for pictures larger than the training patches."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import chain
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .kbnet_l import KBNet_l
from .kbnet_s import KBNet_s
from .layers import GlobalMean

Network = TypeVar("Network", bound=KBNet_s | KBNet_l)


def with_open_pools(network: Network) -> Network:
    """Copy a network so that its global means can be looked at, and replaced by others.

    Parameters
    ----------
    network : KBNet_s or KBNet_l
        Left as it is; the copy shares its parameters and its state dict's names.

    Returns
    -------
    KBNet_s or KBNet_l
        In evaluation mode. It computes what `network` does; `recorded_means` and `given_means` say more.
    """
    shared = {id(tensor): tensor for tensor in chain(network.parameters(), network.buffers())}
    opened: Network = copy.deepcopy(network, shared)
    number = 0
    for _, stage in opened.stages():
        for block in stage.modules():
            pool = getattr(block, "sca", None)
            if isinstance(pool, nn.Sequential) and isinstance(pool[0], GlobalMean):
                block.sca = _OpenScale(pool, number)
                number += 1
    opened.eval()
    return opened


@contextmanager
def recorded_means() -> Iterator[dict[int, Tensor]]:
    """Note the means (B, C, 1, 1) of every pool of a network with open pools, in the calling thread."""
    means: dict[int, Tensor] = {}
    token = _RECORD.set(means)
    try:
        yield means
    finally:
        _RECORD.reset(token)


@contextmanager
def given_means(means: Sequence[Tensor] | None) -> Iterator[None]:
    """Let networks with open pools use these means (B, C, h, w), spread evenly over the input."""
    token = _GIVEN.set(means)
    try:
        yield
    finally:
        _GIVEN.reset(token)


_RECORD: ContextVar[dict[int, Tensor] | None] = ContextVar("record", default=None)
_GIVEN: ContextVar[Sequence[Tensor] | None] = ContextVar("given", default=None)


class _OpenScale(nn.Sequential):
    """A mean and its projection; the mean may come from outside."""

    def __init__(self, pool: nn.Sequential, number: int) -> None:
        super().__init__(*pool)
        self.number = number

    def forward(self, x: Tensor) -> Tensor:
        given = _GIVEN.get()
        if given is not None:
            return F.interpolate(
                self[1](given[self.number].to(x.dtype)),
                size=x.shape[2:],
                mode="bilinear",
                align_corners=False,
            )
        mean = self[0](x)
        record = _RECORD.get()
        if record is not None:
            record[self.number] = mean.float()
        scale: Tensor = self[1](mean)
        return scale


class Grid:
    """Patches of a picture that its means are taken over, two of their widths apart.

    A network that pools over the whole input was trained on small patches: in a large picture it meets other
    statistics, and tiles of one picture disagree. Means over patches mend both. As these lie on a grid that
    begins with the picture and know nothing of tiles, what lies between them, interpolated, is the same in
    every tile.

    Parameters
    ----------
    window : int
        Side of a patch.

    References
    ----------
    Chu et al., "Improving Image Restoration by Revisiting Global Information Aggregation", arXiv 2112.04491,
    whose means are taken over a window around every pixel, of what the network makes of the whole picture.
    """

    def __init__(self, window: int) -> None:
        self.window, self.step = window, 2 * window

    @property
    def margin(self) -> int:
        """Pixels around a piece of a picture that the patches it needs lie within."""
        return self.step + self.window

    def patches(self, start: int, stop: int, wanted: tuple[int, int]) -> list[tuple[int, int]]:
        """Starts and stops along one axis.

        Parameters
        ----------
        start, stop : int
            What is known of the picture: all of `wanted`, and the margin as far as there is one.
        wanted : (int, int)
            Where means are needed.

        Returns
        -------
        list of (int, int)
            Whole patches; where not even one of them fits, all that is known.
        """
        known = range(self.window // 2, stop - self.window + 1, self.step)
        found = [(at, at + self.window) for at in known if at >= start]
        while len(found) > 1 and sum(found[1]) <= 2 * wanted[0]:  # its centre, and all after it suffice
            del found[0]
        while len(found) > 1 and sum(found[-2]) >= 2 * wanted[1]:
            del found[-1]
        return found or [(start, stop)]

    def weights(self, patches: Sequence[tuple[int, int]], start: int, count: int, cell: int) -> Tensor:
        """What each patch contributes to `count` cells of `cell` pixels from `start` on, (count, patches)."""
        centres = [(a + b) / 2 for a, b in patches]
        at = start + (np.arange(count) + 0.5) * cell
        return torch.from_numpy(
            np.stack([np.interp(at, centres, one) for one in np.eye(len(centres))], axis=1)
        ).float()
