"""Local means of a picture, which replace a network's own; see `kbnet_plugin.nn.pooling`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from itertools import islice, product

import numpy as np
import torch
from torch import Tensor

from ..arrays.tiling import Tile
from ..nn.pooling import Grid, record_means
from .device import is_out_of_memory

_KEPT = 4096  # patches, of some kilobytes each: those that the tiles of a wide picture share

Span = tuple[int, int]


class LocalMeans:
    """Means over the patches of a grid, and between them.

    Neighbouring tiles share patches, so the means of the latest patches are kept, by their content.

    Parameters
    ----------
    window : int
        Side of a patch, in pixels of the images that the network sees.
    stride : int
        Every how many pixels of the picture these images take one.
    cell : int
        Pixels for which one mean is computed; the network's `size_multiple`.
    run : callable
        Runs a network of `kbnet_plugin.nn.pooling.with_replaceable_means` on images (N, C, h, w).
    """

    def __init__(self, window: int, stride: int, cell: int, run: Callable[[Tensor], Tensor]) -> None:
        self._grid, self._stride, self._cell, self._run = Grid(window), stride, cell, run
        self._most = 1 << 62  # images at a time; lowered when memory runs out
        self._kept: dict[bytes, list[Tensor]] = {}  # the latest first

    @property
    def margin(self) -> int:
        """Pixels of the picture around a tile that contain all the patches it needs."""
        return self._grid.margin * self._stride

    def fields(self, parts: Tensor, tile: Tile, origin: Span) -> list[Tensor] | None:
        """Compute the means that replace the network's own, for every pool.

        Parameters
        ----------
        parts : Tensor
            (N, C, H, W), of the tile's source and a margin around it.
        tile : Tile
        origin : (int, int)
            Row and column where the parts start, in their pixels.

        Returns
        -------
        list of Tensor or None
            (N, C, h, w) over the tile's source, or None if its own global means are the right ones.
        """
        axes = self._patches(tile, origin, (parts.shape[2], parts.shape[3]))
        if all(patches == [(0, n)] for patches, n in zip(axes, parts.shape[2:], strict=True)):
            return None
        cut = [
            parts[..., y - origin[0] : end - origin[0], x - origin[1] : stop - origin[1]]
            for y, end in axes[0]
            for x, stop in axes[1]
        ]
        found = self._record(cut, max(1, parts[0, 0].numel() // cut[0][0, 0].numel()))
        n, cell = self._stride, self._cell
        across = [
            self._grid.weights(patches, s.start // n, -(-(s.stop - s.start) // n // cell), cell)
            for patches, s in zip(axes, tile.source, strict=True)
        ]
        fields = []
        for pool in zip(*found, strict=True):
            mean = torch.cat(pool)
            mean = mean.view(len(axes[0]), len(axes[1]), -1, n**2, mean.shape[1]).mean(3)
            field = torch.einsum("yxgc,hy,wx->gchw", mean, *across)
            fields.append(field.repeat_interleave(n**2, 0).to(parts.device))
        return fields

    def places(self, tile: Tile, window: tuple[slice, slice]) -> set[tuple[Span, Span]]:
        """List the patches for a tile, as (start, stop) of rows and of columns in pixels of the picture.

        `window` is the tile's source with the margin around it.
        """
        n = self._stride
        origin = (window[0].start // n, window[1].start // n)
        known = (window[0].stop // n - origin[0], window[1].stop // n - origin[1])
        rows, columns = (
            [(start * n, stop * n) for start, stop in axis] for axis in self._patches(tile, origin, known)
        )
        return set(product(rows, columns))

    def _patches(self, tile: Tile, origin: Span, size: Span) -> list[list[Span]]:
        n = self._stride
        return [
            self._grid.patches(start, start + length, (s.start // n, -(-s.stop // n)))
            for start, length, s in zip(origin, size, tile.source, strict=True)
        ]

    def _record(self, patches: Sequence[Tensor], most: int) -> list[list[Tensor]]:
        """Return for each patch (N, C, h, w) the means of every pool, (N, C, 1, 1)."""
        keys = [_digest(patch) for patch in patches]
        known = {key: self._kept[key] for key in keys if key in self._kept}
        missing = {key: patch for key, patch in zip(keys, patches, strict=True) if key not in known}
        if missing:
            pools = self._pools(torch.cat(list(missing.values())), most)
            count = len(patches[0])
            for i, key in enumerate(missing):
                known[key] = [pool[i * count : (i + 1) * count].clone() for pool in pools]
        self._kept = dict(islice((known | self._kept).items(), _KEPT))
        return [known[key] for key in keys]

    def _pools(self, images: Tensor, most: int) -> list[Tensor]:
        """Run the network on images, `most` at a time, and return its means, (N, C, 1, 1) for every pool."""
        found: list[dict[int, Tensor]] = []
        done = 0
        while done < len(images):
            batch = images[done : done + min(most, self._most)]
            try:
                with record_means() as means:
                    self._run(batch)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error) or len(batch) == 1:
                    raise
                self._most = len(batch) // 2
                continue
            found.append(means)
            done += len(batch)
        return [torch.cat([means[number] for means in found]).cpu() for number in sorted(found[0])]


def _digest(patch: Tensor) -> bytes:
    digest = hashlib.blake2b(str(tuple(patch.shape)).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(patch.cpu().numpy()).data)
    return digest.digest()
