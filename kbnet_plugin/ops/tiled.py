"""Kernel basis attention tile by tile: torch alone, on any device, with no buffer larger than a tile.

A tile is loaded with its halo into one flat row per channel. Every tap of the kernel is then the same row
read at another offset, so one tap costs one matrix product and one multiply-add over memory that stays in
cache. Where inputs are so small that the number of calls would dominate, one product takes all taps.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .backend import Arguments, Gradients, Needs

NAME = "tiled"

_CPU_TILE = 1 << 19
"""Channels x pixels of a tile, 2 MiB in float32: fits the caches, and keeps the calls few."""

_DEVICE_TILE = 1 << 22
"""The same for accelerators, where launches cost more than cache misses."""

_AT_ONCE = 2
"""One product makes the kernels of all pixels where these are no larger than this many tiles."""


def unsupported(args: Arguments) -> str | None:
    """Return None: it runs everywhere."""
    return None


@torch.no_grad()
def forward(args: Arguments) -> Tensor:
    """Return the output, in the strides of `x`."""
    x, coefficients, weight, bias, groups, kernel_size = args
    tiles = _tiles(x, kernel_size)
    if _fits_at_once(args, tiles):
        return _forward_at_once(args, tiles[0])
    channels, bases, per_group, taps = args.channels, args.bases, args.per_group, args.taps
    dtype = _accumulator(x)
    out = torch.empty_like(x)
    # One (C, N) matrix per tap and input channel within the group.
    layers = weight.to(dtype).view(bases, channels, per_group, taps).permute(2, 3, 1, 0).contiguous()
    offset = bias[0].to(dtype).t()
    work = None
    with torch.autocast(x.device.type, enabled=False):
        for tile in tiles:
            size = tile.size
            source = tile.load(x, dtype, halo=True).view(groups, per_group, 1, -1)
            mix = tile.load(coefficients, dtype)
            result = torch.mm(offset, mix)
            grouped = result.view(groups, per_group, -1)[..., :size]
            work = _rows(work, result, size)
            for i in range(per_group):
                for q, shift in enumerate(tile.shifts()):
                    torch.mm(layers[i, q], mix[:, :size], out=work)
                    grouped.addcmul_(work.view_as(grouped), source[:, i, :, shift : shift + size])
            tile.store(result, out)
    return out


@torch.no_grad()
def backward(grad: Tensor, args: Arguments, needs: Needs) -> Gradients:
    """Return the gradients that are needed."""
    x, coefficients, weight, bias, groups, kernel_size = args
    tiles = _tiles(x, kernel_size)
    if _fits_at_once(args, tiles):
        return _backward_at_once(grad, args, needs, tiles[0])
    channels, bases, per_group, taps = args.channels, args.bases, args.per_group, args.taps
    dtype = _accumulator(x)
    # One (C, N) matrix per tap and *output* channel within the group: its rows are the group's input
    # channels, so that dx needs no sum over outputs.
    layers = weight.to(dtype).view(bases, groups, per_group, per_group, taps)
    layers = layers.permute(2, 4, 1, 3, 0).reshape(per_group, taps, channels, bases)
    offset = bias[0].to(dtype)
    dx = torch.zeros_like(x) if needs[0] else None
    da = torch.empty_like(coefficients) if needs[1] else None
    # Transposed, (N, C) per tap: faster, as the tile's pixels are then the inner dimension of both factors.
    dlayers = layers.new_zeros(per_group, taps, bases, channels) if needs[2] else None
    db = offset.new_zeros(bases, channels) if needs[3] else None
    work = None
    with torch.autocast(x.device.type, enabled=False):
        for tile in tiles:
            size = tile.size
            upstream = tile.load(grad, dtype)
            mix = tile.load(coefficients, dtype)
            if db is not None:
                db.addmm_(mix, upstream.t())
            if not any(needs[:3]):
                continue
            source = tile.load(x, dtype, halo=True).view(groups, per_group, -1)
            outputs = upstream.view(groups, per_group, 1, -1)[..., :size]
            spread = torch.zeros_like(source)
            dmix = torch.mm(offset, upstream)
            work = _rows(work, upstream, size)
            product = work.view(groups, per_group, size)
            for o in range(per_group):
                for q, shift in enumerate(tile.shifts()):
                    if dx is not None:
                        torch.mm(layers[o, q], mix[:, :size], out=work)
                        spread[..., shift : shift + size].addcmul_(product, outputs[:, o])
                    if da is not None or dlayers is not None:
                        torch.mul(source[..., shift : shift + size], outputs[:, o], out=product)
                    if da is not None:
                        dmix[:, :size].addmm_(layers[o, q].t(), work)
                    if dlayers is not None:
                        dlayers[o, q].addmm_(mix[:, :size], work.t())
            if dx is not None:
                tile.add_halo(spread.view(channels, -1), dx)
            if da is not None:
                tile.store(dmix, da)
    dw = None
    if dlayers is not None:
        dw = dlayers.view(per_group, taps, bases, groups, per_group).permute(2, 3, 0, 4, 1)
        dw = dw.reshape(weight.shape).to(weight.dtype)
    return dx, da, dw, None if db is None else db.view(bias.shape).to(bias.dtype)


def _forward_at_once(args: Arguments, tile: _Tile) -> Tensor:
    x, coefficients, weight, bias, groups, _ = args
    channels, dtype = args.channels, _accumulator(x)
    out = torch.empty_like(x)
    with torch.autocast(x.device.type, enabled=False):
        patches = tile.neighbours(tile.load(x, dtype, halo=True)).unflatten(0, (groups, 1, -1))
        mix = tile.load(coefficients, dtype)
        kernels = torch.mm(weight[0].to(dtype).t(), mix[:, : tile.size])
        kernels.view(groups, args.per_group, *patches.shape[2:]).mul_(patches)
        result = torch.mm(bias[0].to(dtype).t(), mix)
        result[:, : tile.size] += kernels.view(channels, -1, tile.size).sum(1)
        tile.store(result, out)
    return out


def _backward_at_once(grad: Tensor, args: Arguments, needs: Needs, tile: _Tile) -> Gradients:
    x, coefficients, weight, bias, groups, kernel_size = args
    channels, per_group = args.channels, args.per_group
    dtype, size = _accumulator(x), tile.size
    dx = da = dw = db = None
    with torch.autocast(x.device.type, enabled=False):
        upstream, mix = tile.load(grad, dtype), tile.load(coefficients, dtype)
        outputs = upstream[:, :size].view(groups, per_group, 1, 1, 1, size)
        source, bases = tile.load(x, dtype, halo=True), weight[0].to(dtype)
        if needs[0]:
            kernels = torch.mm(bases.t(), mix[:, :size])
            products = kernels.view(groups, per_group, -1, kernel_size, kernel_size, size)
            terms = products.mul_(outputs).sum(1).view(channels, kernel_size, kernel_size, size)
            spread = torch.zeros_like(source)
            for row in range(kernel_size):
                for column in range(kernel_size):
                    tile.neighbours(spread)[:, row, column].add_(terms[:, row, column])
            dx = torch.zeros_like(x)
            tile.add_halo(spread, dx)
        if needs[1] or needs[2]:
            patches = tile.neighbours(source).unflatten(0, (groups, 1, -1))
            products = source.new_empty(groups, per_group, *patches.shape[2:])
            products = torch.mul(outputs, patches, out=products).view(-1, size)
            if needs[1]:
                dmix = torch.mm(bias[0].to(dtype), upstream)
                dmix[:, :size].addmm_(bases, products)
                da = torch.empty_like(coefficients)
                tile.store(dmix, da)
            if needs[2]:
                dw = torch.mm(mix[:, :size], products.t()).view(weight.shape).to(weight.dtype)
        if needs[3]:
            db = torch.mm(mix, upstream.t()).view(bias.shape).to(bias.dtype)
    return dx, da, dw, db


@dataclass(frozen=True, slots=True)
class _Tile:
    """A box of pixels, laid out as one flat row: images, then rows, each `radius` wider on every side."""

    images: slice
    rows: slice
    columns: slice
    radius: int

    @property
    def shape(self) -> tuple[int, int, int]:
        count, rows, columns = (s.stop - s.start for s in (self.images, self.rows, self.columns))
        return count, rows + 2 * self.radius, columns + 2 * self.radius

    @property
    def size(self) -> int:
        """Entries from the tile's first pixel to its last, including those between rows and images."""
        count, height, width = self.shape
        return (count * height - 2 * self.radius) * width - 2 * self.radius

    def shifts(self) -> Iterator[int]:
        """Offsets of a pixel's neighbours in a row with a halo, row-major over the kernel."""
        width, extent = self.shape[2], range(2 * self.radius + 1)
        return (row * width + column for row in extent for column in extent)

    def neighbours(self, flat: Tensor) -> Tensor:
        """View a row with a halo through the kernel, (channels, k, k, size); nothing is copied."""
        k, width = 2 * self.radius + 1, self.shape[2]
        return flat.as_strided((flat.shape[0], k, k, self.size), (flat.shape[1], width, 1, 1))

    def load(self, tensor: Tensor, dtype: torch.dtype, halo: bool = False) -> Tensor:
        """Copy the tile out of (B, C, H, W) into (C, flat), zero wherever it has no pixel."""
        count, height, width = self.shape
        flat = tensor.new_zeros((tensor.shape[1], count * height * width), dtype=dtype)
        if halo:
            inside, image = self._halo(flat, tensor)
            inside.copy_(image)
        else:
            self._inside(flat).copy_(self._image(tensor))
        return flat

    def store(self, flat: Tensor, tensor: Tensor) -> None:
        """Copy (C, flat) into the tile's place in (B, C, H, W)."""
        self._image(tensor).copy_(self._inside(flat))

    def add_halo(self, flat: Tensor, tensor: Tensor) -> None:
        """Add (C, flat), halo included, to (B, C, H, W)."""
        inside, image = self._halo(flat, tensor)
        image.add_(inside)

    def _inside(self, flat: Tensor) -> Tensor:
        window = flat.view(-1, *self.shape)
        return window[:, :, : window.shape[2] - 2 * self.radius, : window.shape[3] - 2 * self.radius]

    def _image(self, tensor: Tensor) -> Tensor:
        return tensor[self.images, :, self.rows, self.columns].transpose(0, 1)

    def _halo(self, flat: Tensor, tensor: Tensor) -> tuple[Tensor, Tensor]:
        """View the same pixels, halo included where the image has one, in `flat` and in `tensor`."""
        image = []
        for part, length in zip((self.rows, self.columns), tensor.shape[2:], strict=True):
            image.append(slice(max(part.start - self.radius, 0), min(part.stop + self.radius, length)))
        top, left = self.rows.start - self.radius, self.columns.start - self.radius
        inside = flat.view(-1, *self.shape)[
            :, :, image[0].start - top : image[0].stop - top, image[1].start - left : image[1].stop - left
        ]
        return inside, tensor[self.images, :, image[0], image[1]].transpose(0, 1)


def _tiles(x: Tensor, kernel_size: int) -> list[_Tile]:
    """Cover `x` with tiles of similar size; small images share one."""
    batch, channels, height, width = x.shape
    if x.numel() == 0:
        return []
    border = 2 * (kernel_size // 2)
    pixels = max(_tile_budget(x) // channels, 1)
    columns = _even(width, pixels)
    rows = _even(height, pixels // (columns + border)) if columns == width else 1
    images = _even(batch, pixels // ((height + border) * (width + border))) if rows == height else 1
    return [
        _Tile(
            slice(n, min(n + images, batch)),
            slice(row, min(row + rows, height)),
            slice(column, min(column + columns, width)),
            kernel_size // 2,
        )
        for n in range(0, batch, images)
        for row in range(0, height, rows)
        for column in range(0, width, columns)
    ]


def _fits_at_once(args: Arguments, tiles: list[_Tile]) -> bool:
    kernel = args.channels * args.per_group * args.taps
    return len(tiles) == 1 and tiles[0].size * kernel <= _AT_ONCE * _tile_budget(args.x)


def _tile_budget(x: Tensor) -> int:
    return _CPU_TILE if x.device.type == "cpu" else _DEVICE_TILE


def _even(length: int, limit: int) -> int:
    """Return the step, at most `limit` and at least 1, that cuts `length` into pieces of similar size."""
    pieces = -(-length // max(min(limit, length), 1))
    return -(-length // pieces)


def _rows(work: Tensor | None, like: Tensor, size: int) -> Tensor:
    """Return scratch memory, (channels, size), reused between tiles of one size."""
    if work is None or work.shape[1] != size:
        return like.new_empty(like.shape[0], size)
    return work


def _accumulator(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32
