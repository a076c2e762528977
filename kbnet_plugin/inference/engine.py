"""The network's side: tiles in, tiles out.

An `Engine` pickles itself, network included, and that is all a worker of a cluster is given.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
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
from ..arrays.noise import Noise, measure_noise, sample
from ..arrays.tiling import Tile, plan
from ..errors import DamagedError
from ..nn import KBNet_l, KBNet_s
from ..nn.pooling import Grid, given_means, recorded_means, with_open_pools
from ..zoo.weights import build_network
from .correction import Context, corrected, flat, keep_level, limited, prepare, weighted
from .device import bytes_per_pixel, find_device, free_memory, is_out_of_memory
from .settings import HALO, TILE, Settings

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_PATTERN = 512  # pixels after which the noise that is added repeats


class Engine:
    """A network on a device, with the settings by which it is run.

    Parameters
    ----------
    network : KBNet_s or KBNet_l
        Moved to the device.
    settings : Settings

    Raises
    ------
    ValueError
        If the device is not there, or a tile leaves nothing between its halos.
    """

    def __init__(self, network: KBNet_s | KBNet_l, settings: Settings) -> None:
        self.settings = settings
        self.stride, self.cover = settings.decorrelate or (1, 0.0)
        self.device = find_device(settings.device)
        self.halo = HALO * self.stride if settings.halo is None else settings.halo
        if settings.halo is None and settings.tile is not None:
            self.halo = min(self.halo, max(16, 5 * settings.tile // 16 // 8 * 8))
        precision = settings.precision
        if precision == "auto":
            precision = "float16" if self.device.type == "cuda" else "float32"
        self.dtype = _DTYPES[precision]
        network = self.given = network.to(self.device).eval()
        local = settings.pooling == "local"
        if local and settings.window < network.size_multiple:
            raise ValueError(
                f"window must be at least {network.size_multiple} pixels for this network, "
                f"not {settings.window}"
            )
        self.grid = Grid(settings.window) if local else None
        self.network = with_open_pools(network) if local else network
        # What has been found to fit in memory, learned when something does not.
        self._most, self._largest, self._together = settings.batch, 1 << 62, 1 << 62
        smallest = settings.tile or self._smallest
        plan((smallest + 1, smallest + 1), smallest, self.halo, self._multiple)  # told at once

    def __reduce__(self) -> tuple[Any, ...]:
        state = {name: tensor.detach().cpu() for name, tensor in self.network.state_dict().items()}
        return _rebuild, (self.fingerprint, state, self.settings)

    @property
    def in_channels(self) -> int:
        """Channels that the network takes."""
        net = self.network
        return net.img_channel if isinstance(net, KBNet_s) else net.inp_channels

    @property
    def out_channels(self) -> int:
        """Channels that the network returns."""
        net = self.network
        return net.img_channel if isinstance(net, KBNet_s) else net.out_channels

    @property
    def token(self) -> str:
        """Hash of the weights and of the settings."""
        return hashlib.sha256(f"{self.fingerprint}{asdict(self.settings)}".encode()).hexdigest()[:16]

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the weights."""
        digest = hashlib.sha256()
        for name, tensor in self.network.state_dict().items():
            digest.update(f"{name}{tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    @property
    def idle(self) -> bool:
        """Whether everything comes back as it is."""
        return self.settings.strength == 0 and not self.settings.chroma

    @property
    def tile(self) -> int:
        """Largest side of a tile: as was asked for, or what fits now."""
        return self.settings.tile or self.fitting_tile()

    def tiles(self, arranged: Layout, tile: int | None = None) -> list[Tile]:
        """Tiles of a plane, of the default side or another."""
        return plan(arranged.size, tile or self.tile, self.halo, self._multiple)

    def piece(self, arranged: Layout, window: tuple[slice, slice]) -> Tile:
        """A tile for some window of a plane alone, with what a run's tiles have around it."""
        step, parts = self._multiple, []
        for inner, length in zip(window, arranged.size, strict=True):
            start = max(0, inner.start - self.halo) // step * step
            stop = min(length, inner.stop + self.halo)
            parts.append((slice(start, stop), slice(inner.start - start, inner.stop - start), inner))
        (y, x) = parts
        return Tile((y[0], x[0]), (y[1], x[1]), (y[2], x[2]))

    def looks(self, dtype: np.dtype[Any]) -> bool:
        """Whether the noise of an array is to be measured, or its values looked at."""
        return not self.idle and (self.settings.limit is not None or needs_values(self.settings.range, dtype))

    def measure(self, source: Any, arranged: Layout, channel: int = 0) -> Noise:
        """Measure the noise of the planes of a channel, from pieces of some of them."""
        colours = arranged.channels - arranged.alpha
        return measure_noise(
            [
                read(source, arranged, plane, window)[..., :colours]
                for plane, window in sample(arranged, channel)
            ]
        )

    def context(self, source: Any, arranged: Layout, channel: int = 0) -> Context:
        """Find what the tiles of a channel need to know of it."""
        dtype = np.dtype(source.dtype)
        return self.context_from(
            dtype, self.measure(source, arranged, channel) if self.looks(dtype) else None
        )

    def context_from(self, dtype: np.dtype[Any], noise: Noise | None) -> Context:
        """The same from the noise that was measured, where `looks` asks for it."""
        scale = find_range(self.settings.range, dtype, noise or Noise())
        return Context(scale, noise if self.settings.limit is not None else None)

    def scale(self, source: Any, arranged: Layout, plane: tuple[int, ...]) -> Range:
        """What the network sees as 0 and 1 in a plane, also where it changes nothing."""
        dtype = np.dtype(source.dtype)
        known = needs_values(self.settings.range, dtype)
        noise = self.measure(source, arranged, arranged.channel(plane)) if known else Noise()
        return find_range(self.settings.range, dtype, noise)

    def around(self, tile: Tile, size: tuple[int, int]) -> tuple[slice, slice]:
        """What to read for a tile of a plane (height, width): more than its source where pooling is local."""
        margin = self._margin
        rows, columns = (
            slice(max(0, s.start - margin), min(n, s.stop + margin))
            for s, n in zip(tile.source, size, strict=True)
        )
        return rows, columns

    def inner(self, tile: Tile) -> tuple[slice, slice]:
        """Where a tile's source lies in what is read around it."""
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
        """Restore tiles of one shape from what lies `around` them (H, W, C); what a worker does.

        Returns
        -------
        list of ndarray
            (H, W, C) of the crop of each.
        """
        count = blocks[0].shape[2] - alpha
        inner = [self.inner(tile) for tile in tiles]
        if self.idle and self.in_channels == self.out_channels:
            pairs = zip(blocks, tiles, inner, strict=True)
            return [block[source][tile.crop].copy() for block, tile, source in pairs]
        prepared, parts, means = [], [], []
        for block, context, tile, source in zip(blocks, contexts, tiles, inner, strict=True):
            values, replaced = prepare(block[..., :count], context)
            part, mean = self._parts(self._input([values]), tile)
            parts.append(part)
            means.append(mean)
            prepared.append((block[source], values[source], None if replaced is None else replaced[source]))
        x = self._input([values for _, values, _ in prepared])
        # The network adds its answer to its input. Only the answer goes through 32 bits: what it leaves
        # alone keeps every digit.
        answer = self._answer(x, torch.cat(parts), _joint(means))
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

    def pixels(self, arranged: Layout) -> int:
        """Pixels of a plane that go through the network, halos and the patches of local means included."""
        tiles = self.tiles(arranged)
        total = sum(
            (t.source[0].stop - t.source[0].start) * (t.source[1].stop - t.source[1].start) for t in tiles
        )
        if self.grid is not None:
            total += sum(self._pixels_of_patches(t, arranged.size) for t in tiles)
        return total

    def memory(self, height: int, width: int) -> int:
        """Bytes that a batch of tiles takes, estimated."""
        return height * width * self.settings.batch * self._bytes_per_pixel

    def fitting_tile(self) -> int:
        """The default size, or the largest half of it that half of the free memory holds."""
        room = free_memory(self.device) / 2 / self.settings.batch / self._bytes_per_pixel
        room *= self.stride**2  # whose parts go through the network one by one
        tile = max(TILE * self.stride, self._smallest)
        while tile**2 > room and tile // 2 >= self._smallest:
            tile //= 2
        return tile

    def seconds_per_pixel(self, side: int = 128) -> float:
        """Measured on one small tile."""
        x = torch.zeros(1, self.in_channels, side, side, device=self.device)
        self._ensemble(x[..., :32, :32])  # kernels are chosen and compiled in a first call
        began = time.perf_counter()
        self._ensemble(x).cpu()
        return (time.perf_counter() - began) / side**2

    @property
    def _margin(self) -> int:
        return self.grid.margin * self.stride if self.grid is not None else 0

    def _input(self, pictures: Sequence[NDArray[np.float32]]) -> Tensor:
        return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).to(self.device)

    def _answer(self, x: Tensor, parts: Tensor, means: Sequence[Tensor] | None) -> Tensor:
        """What the network makes of pictures (B, C, H, W), in parts."""
        takes, gives = self.in_channels, self.out_channels
        count, (height, width) = x.shape[1], x.shape[2:]
        y = self._joined(self._ensemble(parts, means), height, width)
        if count > takes:
            y = y.view(len(x), count * gives, height, width)
        return y.mean(1, keepdim=True) if count < takes else y

    def _parts(self, x: Tensor, tile: Tile) -> tuple[Tensor, list[Tensor] | None]:
        """What the network is given of the source of a tile, (N, C, h, w), and its means.

        Parameters
        ----------
        x : Tensor
            (1, C, H, W), what lies around the tile. Colours or every nth pixel may go by themselves.
        tile : Tile
        """
        takes, count, n = self.in_channels, x.shape[1], self.stride
        rows, columns = self.inner(tile)
        top, left = tile.source[0].start - rows.start, tile.source[1].start - columns.start
        y = self._covered(x, top, left)
        y = y.transpose(0, 1) if count > takes else y.expand(-1, takes, -1, -1) if count < takes else y
        y = self._split(y)
        means = self._means(y, tile, (top // n, left // n)) if self.grid is not None else None
        return y[..., rows.start // n : -(-rows.stop // n), columns.start // n : -(-columns.stop // n)], means

    def _means(self, parts: Tensor, tile: Tile, origin: tuple[int, int]) -> list[Tensor] | None:
        """Means for every pool over the source of a tile, (N, C, h, w); None where the pools need no help.

        Parameters
        ----------
        parts : Tensor
            (N, C, H, W), what lies around the tile.
        tile : Tile
        origin : (int, int)
            Where the parts begin, in pixels of theirs.
        """
        assert self.grid is not None
        axes = self._patches(tile, origin, (parts.shape[2], parts.shape[3]))
        if all(patches == [(0, n)] for patches, n in zip(axes, parts.shape[2:], strict=True)):
            return None
        cut = [
            parts[..., y - origin[0] : end - origin[0], x - origin[1] : stop - origin[1]]
            for y, end in axes[0]
            for x, stop in axes[1]
        ]
        found = self._record(torch.cat(cut), max(1, parts[0, 0].numel() // cut[0][0, 0].numel()))
        cell = self.network.size_multiple
        across = [
            self.grid.weights(
                patches, s.start // self.stride, -(-(s.stop - s.start) // self.stride // cell), cell
            )
            for patches, s in zip(axes, tile.source, strict=True)
        ]
        fields = []
        for number in sorted(found[0]):
            mean = torch.cat([means[number] for means in found]).cpu()
            mean = mean.view(len(axes[0]), len(axes[1]), -1, self.stride**2, mean.shape[1]).mean(3)
            field = torch.einsum("yxgc,hy,wx->gchw", mean, *across)
            fields.append(field.repeat_interleave(self.stride**2, 0).to(self.device))
        return fields

    def _patches(
        self, tile: Tile, origin: tuple[int, int], size: tuple[int, int]
    ) -> list[list[tuple[int, int]]]:
        """Along rows and columns, in pixels of the parts."""
        assert self.grid is not None
        return [
            self.grid.patches(start, start + n, (s.start // self.stride, -(-s.stop // self.stride)))
            for start, n, s in zip(origin, size, tile.source, strict=True)
        ]

    def _pixels_of_patches(self, tile: Tile, size: tuple[int, int]) -> int:
        window = self.around(tile, size)
        origin = (window[0].start // self.stride, window[1].start // self.stride)
        known = (window[0].stop // self.stride - origin[0], window[1].stop // self.stride - origin[1])
        rows, columns = (sum(b - a for a, b in axis) for axis in self._patches(tile, origin, known))
        return rows * columns * self.stride**2

    def _record(self, pictures: Tensor, most: int) -> list[dict[int, Tensor]]:
        """The means of every pool over pictures (N, C, h, w), at most so many in a call: (n, C, 1, 1)."""
        found: list[dict[int, Tensor]] = []
        done = 0
        while done < len(pictures):
            batch = pictures[done : done + min(most, self._together)]
            try:
                with recorded_means() as means:
                    self._run(batch)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error) or len(batch) == 1:
                    raise
                self._together = len(batch) // 2
                continue
            found.append(means)
            done += len(batch)
        return found

    def _covered(self, x: Tensor, top: int, left: int) -> Tensor:
        """A picture with white noise added, which depends on nothing but the place in the plane."""
        if not self.cover:
            return x
        rows, columns = (
            np.arange(start, start + n) % _PATTERN for start, n in zip((top, left), x.shape[2:], strict=True)
        )
        added = _pattern()[: x.shape[1], rows[:, None], columns]
        return x + torch.from_numpy(added).to(x) * (self.cover / 255)

    def _split(self, x: Tensor) -> Tensor:
        """The pictures of every nth pixel, as many more."""
        n = self.stride
        if n == 1:
            return x
        height, width = x.shape[2:]
        x = F.pad(x, (0, -width % n, 0, -height % n), mode="replicate")
        b, c, h, w = x.shape
        return x.view(b, c, h // n, n, w // n, n).permute(0, 3, 5, 1, 2, 4).reshape(-1, c, h // n, w // n)

    def _joined(self, x: Tensor, height: int, width: int) -> Tensor:
        n = self.stride
        if n == 1:
            return x
        _, c, h, w = x.shape
        x = x.view(-1, n, n, c, h, w).permute(0, 3, 4, 1, 5, 2).reshape(-1, c, h * n, w * n)
        return x[..., :height, :width]

    @property
    def _multiple(self) -> int:
        return self.network.size_multiple * self.stride

    @property
    def _smallest(self) -> int:
        return 2 * self.halo + self._multiple

    @property
    def _bytes_per_pixel(self) -> int:
        return bytes_per_pixel(self.network, 4 if self.dtype == torch.float32 else 3)

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
        """Run the network, in smaller pieces where memory does not suffice."""
        side, halo = max(x.shape[2:]), self.halo // self.stride
        if len(x) <= self._most and side <= self._largest:
            try:
                with given_means(means):
                    return self._run(x)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            if len(x) > 1:
                self._most = len(x) // 2
            elif side // 2 < 2 * halo + self.network.size_multiple:
                raise MemoryError(
                    f"out of memory for a tile of {side} pixels; free some, or use --device cpu"
                )
            else:
                self._largest = side // 2
        if len(x) > self._most:
            parts = zip(*(t.split(self._most) for t in (x, *(means or ()))), strict=True)
            return torch.cat([self._fit(part[0], part[1:] or None) for part in parts])
        height, width = x.shape[2:]
        out = torch.empty((len(x), self.out_channels, height, width), device=x.device)
        cell = self.network.size_multiple
        for part in plan((height, width), self._largest, halo, cell):
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


def read(source: Any, arranged: Layout, plane: tuple[int, ...], window: tuple[slice, slice]) -> NDArray[Any]:
    """Read a window of a plane of an array, (H, W, C)."""
    key = arranged.key(plane, window)
    try:
        return arranged.to_picture(np.asarray(source[key]))
    except (OSError, MemoryError):
        raise
    except Exception as error:  # readers raise whatever their decoders do
        where = ", ".join(f"{s.start}:{s.stop}" if isinstance(s, slice) else str(s) for s in key)
        raise DamagedError(
            f"cannot read [{where.replace('None:None', ':')}]: damaged data ({error})"
        ) from error


def _joint(means: Sequence[list[Tensor] | None]) -> list[Tensor] | None:
    """The means of several tiles together."""
    known = [m for m in means if m is not None]
    return [torch.cat(pool) for pool in zip(*known, strict=True)] if known else None


_Step = list[tuple[tuple[int, ...], Tile]]


@lru_cache(maxsize=1)
def _pattern() -> NDArray[np.float32]:
    """White noise (3, H, W) of variance 1, always the same."""
    return np.random.default_rng(0).standard_normal((3, _PATTERN, _PATTERN), dtype=np.float32)


_rebuilt: dict[tuple[str, Settings], Engine] = {}


def _rebuild(fingerprint: str, state: dict[str, Tensor], settings: Settings) -> Engine:
    """Build an engine in another process, once for each of its settings."""
    key = fingerprint, settings
    if key not in _rebuilt:
        _rebuilt[key] = Engine(build_network(state), settings)
    return _rebuilt[key]
