"""The network's side of restoring: tiles in, tiles out.

An `Engine` pickles itself, network included; it is all that a worker of a cluster needs.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ..arrays.axes import Layout
from ..arrays.intensity import Range, find_range, needs_values
from ..arrays.noise import Noise
from ..arrays.tiling import HALO, Tile, plan
from ..nn import KBNet_l, KBNet_s
from ..nn.pooling import replace_means, with_replaceable_means
from ..zoo.weights import build_network
from .correction import Context, corrected, flat, keep_level, limited, prepare, weighted
from .device import bytes_per_pixel, find_device, free_memory, is_out_of_memory
from .local_means import LocalMeans
from .reading import measure_channel
from .settings import TILE, Settings

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_PERIOD = 512  # pixels after which the added noise repeats


class StoppedError(Exception):
    """Raised by `Engine.solve` within `Engine.stopped_by`."""


class Engine:
    """A network on a device, with settings.

    Parameters
    ----------
    network : KBNet_s or KBNet_l
        Moved to the device.
    settings : Settings

    Attributes
    ----------
    network : KBNet_s or KBNet_l
        With local pooling, a copy that shares the weights of `original`.
    original : KBNet_s or KBNet_l
        As passed.
    settings : Settings
        As passed.
    device : torch.device
    dtype : torch.dtype
        In which the network computes.
    halo : int
        Pixels at inner edges of tiles that are computed only as context.

    Raises
    ------
    ValueError
        If the device is not available, the pooling window is too small for the network, or a tile leaves
        nothing between its halos.
    """

    def __init__(self, network: KBNet_s | KBNet_l, settings: Settings) -> None:
        self.settings = settings
        self.device = find_device(settings.device)
        self._stride, self._sigma = settings.decorrelate or (1, 0.0)
        self.halo = HALO * self._stride if settings.halo is None else settings.halo
        if settings.halo is None and settings.tile is not None:
            self.halo = min(self.halo, max(16, 5 * settings.tile // 16 // 8 * 8))
        precision = settings.precision
        if precision == "auto":
            precision = "float16" if self.device.type == "cuda" else "float32"
        self.dtype = _DTYPES[precision]
        network = self.original = network.to(self.device).eval()
        local = settings.pooling == "local"
        if local and settings.window < network.size_multiple:
            raise ValueError(
                f"window must be at least {network.size_multiple} pixels for this network, "
                f"not {settings.window}"
            )
        self.network = with_replaceable_means(network) if local else network
        self._local = (
            LocalMeans(settings.window, self._stride, network.size_multiple, self._run) if local else None
        )
        # Lowered when the network runs out of memory: tiles per batch, side of a tile.
        self._most_tiles, self._largest_side = settings.batch, 1 << 62
        smallest = settings.tile or self._smallest
        plan((smallest + 1, smallest + 1), smallest, self.halo, self._multiple)  # raises before any work

    def __reduce__(self) -> tuple[Any, ...]:
        state = {name: tensor.detach().cpu() for name, tensor in self.network.state_dict().items()}
        return _rebuild, (self.fingerprint, state, self.settings)

    @property
    def in_channels(self) -> int:
        """Number of channels that the network takes."""
        net = self.network
        return net.img_channel if isinstance(net, KBNet_s) else net.inp_channels

    @property
    def out_channels(self) -> int:
        """Number of channels that the network returns."""
        net = self.network
        return net.img_channel if isinstance(net, KBNet_s) else net.out_channels

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the weights, 16 hexadecimal digits."""
        digest = hashlib.sha256()
        for name, tensor in self.network.state_dict().items():
            digest.update(f"{name}{tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    @property
    def token(self) -> str:
        """Hash of weights and settings, 16 hexadecimal digits."""
        return hashlib.sha256(f"{self.fingerprint}{asdict(self.settings)}".encode()).hexdigest()[:16]

    @property
    def tile(self) -> int:
        """Largest side of a tile in pixels: as set, or what fits into free memory at the moment."""
        return self.settings.tile or self._fitting_tile()

    def tiles(self, arranged: Layout, tile: int | None = None) -> list[Tile]:
        """Cut a plane into tiles; `tile` overrides the largest side in pixels."""
        return plan(arranged.size, tile or self.tile, self.halo, self._multiple)

    def tile_of(self, arranged: Layout, window: tuple[slice, slice]) -> Tile:
        """Make one tile of any window of a plane, with the context that tiles usually have."""
        step, parts = self._multiple, []
        for inner, length in zip(window, arranged.size, strict=True):
            start = max(0, inner.start - self.halo) // step * step
            stop = min(length, inner.stop + self.halo)
            parts.append((slice(start, stop), slice(inner.start - start, inner.stop - start), inner))
        (y, x) = parts
        return Tile((y[0], x[0]), (y[1], x[1]), (y[2], x[2]))

    def needs_noise(self, dtype: np.dtype[Any]) -> bool:
        """Return whether `context` depends on the noise or the values of an array of this dtype."""
        limited = self.settings.limit is not None
        return not self._leaves_unchanged and (limited or needs_values(self.settings.range, dtype))

    def context(self, source: Any, arranged: Layout, channel: int = 0) -> Context:
        """Find the facts about a channel of an array that its tiles share."""
        dtype = np.dtype(source.dtype)
        noise = measure_channel(source, arranged, channel) if self.needs_noise(dtype) else None
        return self.context_from(dtype, noise)

    def context_from(self, dtype: np.dtype[Any], noise: Noise | None) -> Context:
        """Derive the same from noise that has been measured, or None unless `needs_noise`."""
        scale = find_range(self.settings.range, dtype, noise or Noise())
        return Context(scale, noise if self.settings.limit is not None else None)

    def intensity_range(self, source: Any, arranged: Layout, plane: tuple[int, ...]) -> Range:
        """Find the values of a plane that the network sees as 0 and 1, even if it changes nothing."""
        dtype = np.dtype(source.dtype)
        measured = needs_values(self.settings.range, dtype)
        noise = measure_channel(source, arranged, arranged.channel(plane)) if measured else Noise()
        return find_range(self.settings.range, dtype, noise)

    def window_around(self, tile: Tile, size: tuple[int, int]) -> tuple[slice, slice]:
        """Return the rows and columns to read for a tile.

        With local pooling this includes the patches around it. `size` is (height, width) of the plane.
        """
        margin = self._margin
        rows, columns = (
            slice(max(0, s.start - margin), min(n, s.stop + margin))
            for s, n in zip(tile.source, size, strict=True)
        )
        return rows, columns

    def source_within(self, tile: Tile) -> tuple[slice, slice]:
        """Return the place of a tile's source within its `window_around`."""
        rows, columns = (
            slice(min(self._margin, s.start), min(self._margin, s.start) + s.stop - s.start)
            for s in tile.source
        )
        return rows, columns

    def solve(
        self,
        blocks: Sequence[NDArray[Any]],
        contexts: Sequence[Context],
        tiles: Sequence[Tile],
        alpha: bool,
    ) -> list[NDArray[Any]]:
        """Restore tiles of one shape; on a cluster, workers call this.

        Parameters
        ----------
        blocks : sequence of ndarray
            The `window_around` each tile, (H, W, C).
        contexts : sequence of Context
            Of the channel of each tile.
        tiles : sequence of Tile
        alpha : bool
            Whether the last channel is opacity, which is copied.

        Returns
        -------
        list of ndarray
            The crop of each tile, (h, w, C'), where C' is C unless the network returns fewer channels than it
            takes.

        Raises
        ------
        MemoryError
            If even the smallest tile does not fit.
        """
        count = blocks[0].shape[2] - alpha
        inner = [self.source_within(tile) for tile in tiles]
        if self._leaves_unchanged and self.in_channels == self.out_channels:
            pairs = zip(blocks, tiles, inner, strict=True)
            return [block[source][tile.crop].copy() for block, tile, source in pairs]
        prepared, parts, means = [], [], []
        for block, context, tile, source in zip(blocks, contexts, tiles, inner, strict=True):
            values, replaced = prepare(block[..., :count], context)
            part, mean = self._parts(self._to_tensor([values]), tile)
            parts.append(part)
            means.append(mean)
            prepared.append((block[source], values[source], None if replaced is None else replaced[source]))
        x = self._to_tensor([values for _, values, _ in prepared])
        # Only the correction passes through 32 bits, so that pixels which it leaves alone keep every digit.
        answer = self._answer(x, torch.cat(parts), _joined_means(means))
        strength, limit = self.settings.strength, self.settings.limit
        deltas = weighted(answer - x[:, : answer.shape[1]], strength, self.settings.chroma)
        results = []
        for (block, values, replaced), context, change, tile in zip(
            prepared, contexts, deltas.permute(0, 2, 3, 1).cpu().numpy(), tiles, strict=True
        ):
            if context.noise is not None and limit is not None:
                change = limited(change, values, context, limit)
            if self.settings.keep_mean:
                change = keep_level(change)
            if context.noise is not None:
                change = np.where(flat(block[..., :count]), np.float32(0), change)
            if replaced is not None:
                change = change + strength * replaced
            results.append(corrected(block, change, context.scale.span, tile.crop, alpha))
        return results

    @contextmanager
    def stopped_by(self, stopped: Callable[[], bool]) -> Iterator[None]:
        """Let `solve` in this thread raise `StoppedError` as soon as `stopped` returns true.

        Each block of the network asks, as a tile may take many seconds.
        """
        here = threading.get_ident()  # others may use the same network

        def check(*_: Any) -> None:
            if threading.get_ident() == here and stopped():
                raise StoppedError

        blocks = (block for _, stage in self.network.stages() for block in stage.children())
        hooks = [block.register_forward_pre_hook(check) for block in blocks]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def pixels(self, arranged: Layout, tiles: Sequence[Tile]) -> int:
        """Count the pixels that the network computes for the tiles of a plane, with halos and patches."""
        total = sum(
            (t.source[0].stop - t.source[0].start) * (t.source[1].stop - t.source[1].start) for t in tiles
        )
        if self._local is not None:
            places = [self._local.places(t, self.window_around(t, arranged.size)) for t in tiles]
            patches = set().union(*places)  # tiles share them
            total += sum((bottom - top) * (right - left) for (top, bottom), (left, right) in patches)
        return total

    def memory(self, height: int, width: int) -> int:
        """Estimate the bytes that a batch of tiles of this size needs."""
        return height * width * self.settings.batch * self._bytes_per_pixel

    def seconds_per_pixel(self, side: int = 128) -> float:
        """Time the network on one tile of `side` x `side` pixels."""
        x = torch.zeros(1, self.in_channels, side, side, device=self.device)
        self._ensemble(x[..., :32, :32])  # the first call chooses and compiles kernels
        began = time.perf_counter()
        self._ensemble(x).cpu()
        return (time.perf_counter() - began) / side**2

    @property
    def _leaves_unchanged(self) -> bool:
        return self.settings.strength == 0 and not self.settings.chroma

    @property
    def _multiple(self) -> int:
        return self.network.size_multiple * self._stride

    @property
    def _smallest(self) -> int:
        return 2 * self.halo + self._multiple

    @property
    def _margin(self) -> int:
        return self._local.margin if self._local is not None else 0

    @property
    def _bytes_per_pixel(self) -> int:
        return bytes_per_pixel(self.network, 4 if self.dtype == torch.float32 else 3)

    def _fitting_tile(self) -> int:
        """Halve the default size until a batch of tiles fits into half of the free memory."""
        room = free_memory(self.device) / 2 / self.settings.batch / self._bytes_per_pixel
        room *= self._stride**2  # the parts of a tile go through the network one by one
        tile = max(TILE * self._stride, self._smallest)
        while tile**2 > room and tile // 2 >= self._smallest:
            tile //= 2
        return tile

    def _to_tensor(self, pictures: Sequence[NDArray[np.float32]]) -> Tensor:
        """Stack (H, W, C) to (B, C, H, W) on the device."""
        return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).to(self.device)

    def _parts(self, x: Tensor, tile: Tile) -> tuple[Tensor, list[Tensor] | None]:
        """Split a tile into the images that the network takes.

        These are single colours if the network is gray, and every nth pixel if the noise is decorrelated.

        Parameters
        ----------
        x : Tensor
            The `window_around` the tile, (1, C, H, W).
        tile : Tile

        Returns
        -------
        parts : Tensor
            (N, C', h, w), of the tile's source.
        means : list of Tensor or None
            As `LocalMeans.fields` returns them.
        """
        inputs, count, n = self.in_channels, x.shape[1], self._stride
        rows, columns = self.source_within(tile)
        top, left = tile.source[0].start - rows.start, tile.source[1].start - columns.start
        y = self._with_noise(x, top, left)
        y = y.transpose(0, 1) if count > inputs else y.expand(-1, inputs, -1, -1) if count < inputs else y
        y = self._split(y)
        means = self._local.fields(y, tile, (top // n, left // n)) if self._local is not None else None
        return y[..., rows.start // n : -(-rows.stop // n), columns.start // n : -(-columns.stop // n)], means

    def _answer(self, x: Tensor, parts: Tensor, means: Sequence[Tensor] | None) -> Tensor:
        """Run the network on the parts of pictures `x` (B, C, H, W), and join its results."""
        inputs, outputs = self.in_channels, self.out_channels
        count, (height, width) = x.shape[1], x.shape[2:]
        y = self._join(self._ensemble(parts, means), height, width)
        if count > inputs:
            y = y.view(len(x), count * outputs, height, width)
        return y.mean(1, keepdim=True) if count < inputs else y

    def _with_noise(self, x: Tensor, top: int, left: int) -> Tensor:
        """Add white noise to a window that starts at (top, left), as a function of the place in the plane."""
        if not self._sigma:
            return x
        rows, columns = (
            np.arange(start, start + n) % _PERIOD for start, n in zip((top, left), x.shape[2:], strict=True)
        )
        added = _white_noise()[: x.shape[1], rows[:, None], columns]
        return x + torch.from_numpy(added).to(x) * (self._sigma / 255)

    def _split(self, x: Tensor) -> Tensor:
        """Split (B, C, H, W) into the images of every nth pixel, (B * n * n, C, H/n, W/n)."""
        n = self._stride
        if n == 1:
            return x
        height, width = x.shape[2:]
        x = F.pad(x, (0, -width % n, 0, -height % n), mode="replicate")
        b, c, h, w = x.shape
        return x.view(b, c, h // n, n, w // n, n).permute(0, 3, 5, 1, 2, 4).reshape(-1, c, h // n, w // n)

    def _join(self, x: Tensor, height: int, width: int) -> Tensor:
        """Undo `_split`."""
        n = self._stride
        if n == 1:
            return x
        _, c, h, w = x.shape
        x = x.view(-1, n, n, c, h, w).permute(0, 3, 4, 1, 5, 2).reshape(-1, c, h * n, w * n)
        return x[..., :height, :width]

    def _ensemble(self, x: Tensor, means: Sequence[Tensor] | None = None) -> Tensor:
        if not self.settings.self_ensemble:
            return self._fit(x, means)
        total = torch.zeros(())
        for turn in range(4):
            for flip in (False, True):
                turned = [torch.rot90(t, turn, (2, 3)) for t in (x, *(means or ()))]
                turned = [t.flip(3) for t in turned] if flip else turned
                y = self._fit(turned[0], turned[1:] or None)
                total = total.to(y) + torch.rot90(y.flip(3) if flip else y, -turn, (2, 3))
        return total / 8

    def _fit(self, x: Tensor, means: Sequence[Tensor] | None = None) -> Tensor:
        """Run the network, in smaller pieces if memory runs out."""
        side, halo = max(x.shape[2:]), self.halo // self._stride
        if len(x) <= self._most_tiles and side <= self._largest_side:
            try:
                with replace_means(means):
                    return self._run(x)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            if len(x) > 1:
                self._most_tiles = len(x) // 2
            elif side // 2 < 2 * halo + self.network.size_multiple:
                raise MemoryError(
                    f"out of memory for a tile of {side} pixels; free some, or use the device cpu"
                )
            else:
                self._largest_side = side // 2
        if len(x) > self._most_tiles:
            parts = zip(*(t.split(self._most_tiles) for t in (x, *(means or ()))), strict=True)
            return torch.cat([self._fit(part[0], part[1:] or None) for part in parts])
        height, width = x.shape[2:]
        out = torch.empty((len(x), self.out_channels, height, width), device=x.device)
        cell = self.network.size_multiple
        for part in plan((height, width), self._largest_side, halo, cell):
            rows, columns = (slice(s.start // cell, -(-s.stop // cell)) for s in part.source)
            own = [t[..., rows, columns] for t in means] if means else None
            out[(..., *part.target)] = self._fit(x[(..., *part.source)], own)[(..., *part.crop)]
        return out

    def _run(self, x: Tensor) -> Tensor:
        with torch.inference_mode():
            if self.dtype != torch.float32:
                with torch.autocast(self.device.type, self.dtype):
                    y: Tensor = self.network(x).float()
                if bool(torch.isfinite(y).all()):
                    return y
            y = self.network(x)
        return y


def _joined_means(means: Sequence[list[Tensor] | None]) -> list[Tensor] | None:
    """Concatenate the means of several tiles, pool by pool."""
    known = [m for m in means if m is not None]
    return [torch.cat(pool) for pool in zip(*known, strict=True)] if known else None


@lru_cache(maxsize=1)
def _white_noise() -> NDArray[np.float32]:
    """Make white noise of variance 1, (3, H, W), the same on every machine."""
    return np.random.default_rng(0).standard_normal((3, _PERIOD, _PERIOD), dtype=np.float32)


_rebuilt: dict[tuple[str, Settings], Engine] = {}


def _rebuild(fingerprint: str, state: dict[str, Tensor], settings: Settings) -> Engine:
    """Build an engine in another process, once for each pair of weights and settings."""
    key = fingerprint, settings
    if key not in _rebuilt:
        _rebuilt[key] = Engine(build_network(state), settings)
    return _rebuilt[key]
