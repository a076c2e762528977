"""Measure the noise of a picture from the picture alone.

Everything is measured in the flattest blocks. White noise differs equally between pixels at any distance;
noise that was interpolated, smoothed or compressed differs less between neighbours than between pixels
further apart. So does structure, hence the flattest blocks.

References
----------
Variance against brightness: A. Foi, M. Trimeche, V. Katkovnik, K. Egiazarian, "Practical Poissonian-Gaussian
noise modeling and fitting for single-image raw-data", IEEE TIP 17(10), 2008. Second differences as a measure
of noise: J. Immerkaer, "Fast noise variance estimation", CVIU 64(2), 1996. Blocks with weak texture: X. Liu,
M. Tanaka, M. Okutomi, "Single-image noise level estimation for blind denoising", IEEE TIP 22(12), 2013.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from .axes import Layout
from .intensity import LUMA, PERCENTILES, WIDEST

BLOCK = 16
"""Side of the blocks that are compared, in pixels."""

_FLAT = 0.2  # fraction of the blocks of one brightness that counts: those with the least structure
_FLATTEST = 0.1  # fraction of all blocks that correlated noise is measured in
_BINS = 8  # of brightness, at most
_FEWEST = 16  # blocks per bin
_DRAWN = 0.7  # fraction of constant blocks from which a picture counts as drawn, so that they are kept
_FEWEST_LEVELS = 3  # for fitting a line
_DISTANCES = 1, 2, 4  # pixels
_FAR = 8  # pixels; noise is uncorrelated at this distance
_ISOLATED = 4.0  # contrast of a hot pixel, in units of the largest contrast among its neighbours
_HOT = 8.0  # contrast of a hot pixel, in standard deviations of the noise
_GRID = 1.12  # ratio of steps at the borders of JPEG's blocks to other steps, from which they are visible
_PLANES = 16  # of a stack, at most
_PIXELS = 1 << 20  # in all planes together, at most
_WINDOW = 64  # side in pixels, if planes are not read whole
_SATURATED = 1e-3  # fraction of pixels at an extreme value from which it is a limit


@dataclass(frozen=True, slots=True)
class Noise:
    """Noise of a picture, in the units of its values.

    Attributes
    ----------
    levels, deviations : tuple of float
        Brightness, ascending, and standard deviation of the noise there, averaged over channels. A single
        level if the noise is correlated; none if it could not be measured.
    gain, read : float
        Fit ``variance = gain * (brightness - black) + read**2``.
    black : float
        Darkest brightness measured: the camera's offset, if the picture shows it.
    dependence : float
        Growth of the variance over the measured brightness, relative to its mean: 0 if the noise is equally
        strong everywhere.
    whiteness : float
        Power of the noise of the brightness between neighbours, relative to pixels two apart: 1 for white
        noise, 0.2 to 0.4 for noise that a camera interpolated.
    chroma_whiteness : float or None
        The same for the colours; None unless there are three.
    chroma : float
        Standard deviation of the noise of the colours between neighbours; 0 unless there are three.
    correlation : ((float, float), (float, float))
        Correlation of neighbours and of pixels two apart, along rows and along columns; -1 to 1.
    spread : (float, float)
        Standard deviation between pixels four apart, in ratios: of the 10th to the 1st percentile of the
        blocks, and of the median to the 10th. Noise is everywhere in a picture, structure is not.
    hot, dead : float
        Fraction of single pixels far above and far below their surroundings.
    dark, saturated : float
        Fraction of pixels at the smallest and the largest value, if that is a limit; else 0.
    low, high : float
        0.1th and 99.9th percentile, without hot and dead pixels.
    inner : (float, float)
        1st and 99th percentile.
    least, largest : float
        Minimum and maximum of the finite values.
    step : float
        Greatest common divisor of the differences of integer values; 0 for floats.
    grid : bool
        Whether the borders of JPEG's blocks are visible.
    blocks : int
        Number of blocks used. If there were too few, the noise is not `known`.
    """

    levels: tuple[float, ...] = ()
    deviations: tuple[float, ...] = ()
    gain: float = 0.0
    read: float = 0.0
    black: float = 0.0
    dependence: float = 0.0
    whiteness: float = 1.0
    chroma_whiteness: float | None = None
    chroma: float = 0.0
    correlation: tuple[tuple[float, float], tuple[float, float]] = ((0.0, 0.0), (0.0, 0.0))
    spread: tuple[float, float] = (1.0, 1.0)
    hot: float = 0.0
    dead: float = 0.0
    dark: float = 0.0
    saturated: float = 0.0
    low: float = 0.0
    high: float = 1.0
    inner: tuple[float, float] = (0.0, 1.0)
    least: float = 0.0
    largest: float = 1.0
    step: float = 0.0
    grid: bool = False
    blocks: int = 0

    @property
    def known(self) -> bool:
        """Whether the noise could be measured."""
        return bool(self.deviations)

    @property
    def deviation(self) -> float:
        """Median of the standard deviations at the measured levels; 0 if unknown."""
        return float(np.median(self.deviations)) if self.deviations else 0.0

    def deviation_at(self, level: NDArray[Any]) -> NDArray[np.float64]:
        """Return the standard deviation of the noise at any brightness; infinity if unknown.

        It is interpolated between levels, constant below them, and follows the fit above them.
        """
        levels, variances = np.array(self.levels), np.square(self.deviations)
        if not levels.size:
            return np.full(np.shape(level), np.inf)
        level = np.asarray(level, np.float64)
        inside = np.interp(level, levels, variances)
        above = np.maximum(level - levels[-1], 0) * self.gain
        return np.sqrt(inside + above)


def measure_noise(windows: Sequence[NDArray[Any]]) -> Noise:
    """Measure the noise of a picture, or of planes of one kind together.

    Parameters
    ----------
    windows : sequence of ndarray
        (h, w, C) pieces without opacity, of any numeric dtype: whole pictures, or windows that start at
        multiples of 8 pixels, as JPEG's blocks do. NaN and infinity are ignored.

    Returns
    -------
    Noise

    Notes
    -----
    The noise at a distance is measured as ``(a - b - c + d) / 2`` at the corners of squares with that side,
    in blocks of 16 x 16. Blocks are binned by brightness. In each bin, those count whose 4 x 4 means vary
    least: white noise hardly affects these means, so blocks with accidentally weak noise are not preferred.
    """
    pictures = [_finite(np.asarray(w)) for w in windows]
    pictures = [p for p in pictures if p.size]
    if not pictures:
        return Noise()
    facts = _values(pictures, np.asarray(windows[0]).dtype)
    if not facts["largest"] - facts["least"] <= WIDEST:
        return Noise(**facts)
    blocks = np.concatenate([_blocks(p) for p in pictures])
    # Constant blocks, drawn or clipped, do not show the noise of the rest, unless they are nearly everything.
    constant = (blocks == blocks[:, :1, :1]).all(axis=(1, 2, 3))
    if constant.sum() < _DRAWN * len(blocks):
        blocks = blocks[~constant]
    if len(blocks) < _FEWEST:
        return Noise(**facts, blocks=len(blocks))
    facts |= _power(blocks, facts["least"], facts["largest"])
    facts["grid"] = _has_grid(pictures)
    noise = Noise(**facts, blocks=len(blocks))
    if pictures[0].shape[2] > 1:
        return noise
    hot, dead, kept = _outliers(pictures, noise)
    if hot or dead:
        facts |= {"hot": hot, "dead": dead, **_percentiles(kept)}
    return Noise(**facts, blocks=len(blocks))


def isolated(picture: NDArray[np.floating[Any]], least: float | NDArray[Any]) -> tuple[Any, Any]:
    """Find single pixels that differ from all of their neighbours.

    Parameters
    ----------
    picture : ndarray
        (H, W).
    least : float or ndarray
        Smallest difference from the median around.

    Returns
    -------
    found : ndarray of bool
        (H, W). No neighbour differs by more than a quarter as much: a bright point imaged by a lens is wider
        than one pixel, and is not found.
    median : ndarray
        (H, W). Median of 3 x 3 pixels, to replace them with.
    """
    median = ndimage.median_filter(picture, 3, mode="reflect")
    apart = np.abs(picture - median)
    found = apart > least
    if found.any():
        ring = np.ones((3, 3), bool)
        ring[1, 1] = False
        around = ndimage.maximum_filter(apart, footprint=ring, mode="reflect")
        found &= apart > _ISOLATED * around
    return found, median


def spike(noise: Noise) -> float:
    """Return the smallest contrast of a hot pixel to its surroundings; infinity if the noise is unknown."""
    if not noise.known:
        return float("inf")
    least = 1e-9 * (noise.largest - noise.least)  # of noise, where none was measured
    return float(_HOT * max(noise.deviation_at(np.array([*noise.levels, noise.high])).max(), least))


def _finite(picture: NDArray[Any]) -> NDArray[np.float64]:
    with np.errstate(invalid="ignore"):  # from signalling NaN
        values = picture.astype(np.float64)
    known = np.isfinite(values)
    if known.all():
        return values
    if not known.any():
        return values[:0]
    return np.where(known, values, np.median(values[known]))


def _values(pictures: Sequence[NDArray[np.float64]], dtype: np.dtype[Any]) -> dict[str, Any]:
    values = np.concatenate([p.ravel() for p in pictures])
    least, largest = float(values.min()), float(values.max())
    facts: dict[str, Any] = {"least": least, "largest": largest, **_percentiles(values)}
    if dtype.kind in "ui" and 0 < largest - least < 1 << 53:  # float64 skips integers beyond
        facts["step"] = float(np.gcd.reduce(np.unique(values - least).astype(np.int64)))
    if dtype.kind in "ui":
        for name, limit in (("dark", least), ("saturated", largest)):
            fraction = float((values == limit).mean())
            facts[name] = fraction if fraction > _SATURATED and largest > least else 0.0
    return facts


def _percentiles(values: NDArray[np.float64]) -> dict[str, Any]:
    low, first, last, high = np.percentile(values, [PERCENTILES[0], 1, 99, PERCENTILES[1]])
    return {"low": float(low), "high": float(high), "inner": (float(first), float(last))}


def _blocks(picture: NDArray[np.float64]) -> NDArray[np.float64]:
    """Cut a picture (H, W, C) into blocks (N, 16, 16, C); what is left over is dropped."""
    height, width = (n // BLOCK * BLOCK for n in picture.shape[:2])
    if not height or not width:
        return np.empty((0, BLOCK, BLOCK, picture.shape[2]))
    cut = picture[:height, :width]
    cut = cut.reshape(height // BLOCK, BLOCK, width // BLOCK, BLOCK, -1).swapaxes(1, 2)
    return cut.reshape(-1, BLOCK, BLOCK, picture.shape[2])


def _detail(blocks: NDArray[np.float64], distance: int) -> NDArray[np.float64]:
    """Return the power of the noise of every block (N, 16, 16, ...) between pixels at a distance."""
    a, b = blocks[:, :-distance], blocks[:, distance:]
    corners = a[:, :, :-distance] - b[:, :, :-distance] - a[:, :, distance:] + b[:, :, distance:]
    power: NDArray[np.float64] = np.square(corners / 2).mean(axis=(1, 2))
    return power


def _power(blocks: NDArray[np.float64], least: float, largest: float) -> dict[str, Any]:
    """Measure how the noise depends on brightness and on distance."""
    colours = blocks.shape[3] == 3
    bright = blocks @ np.array(LUMA) if colours else blocks.mean(axis=3)
    mean = bright.mean(axis=(1, 2))
    # Noise is clipped at the limits of the values; such blocks are used only if there are too few others.
    touches = ((bright <= least) | (bright >= largest)).mean(axis=(1, 2)) > 0.02
    used = ~touches if (~touches).sum() >= _FEWEST else np.ones(len(blocks), bool)
    cells = bright.reshape(-1, BLOCK // 4, 4, BLOCK // 4, 4).mean(axis=(2, 4))
    structure = cells.var(axis=(1, 2))
    near, apart, far = (_detail(bright, d) for d in _DISTANCES)

    index = np.flatnonzero(used)
    flattest = index[np.argsort(far[index])[: max(_FEWEST // 2, int(_FLATTEST * len(index)))]]
    flat = index[np.argsort(structure[index])[: max(_FEWEST // 2, int(_FLAT * len(index)))]]
    whiteness = _ratio(near[flat], apart[flat])
    least_far, tenth, half = np.percentile(far[index], [1, 10, 50])
    facts: dict[str, Any] = {
        "whiteness": whiteness,
        "spread": (_over(tenth, least_far) ** 0.5, _over(half, tenth) ** 0.5),
    }
    white = whiteness > 0.5
    if colours:
        other = blocks[..., [0, 2]] - bright[..., None]
        close, wide = (_detail(other, d).mean(axis=1) for d in _DISTANCES[:2])
        calm = index[np.argsort(other.reshape(len(other), -1, 2).var(axis=1).mean(axis=1)[index])]
        calm = calm[: max(_FEWEST // 2, int(_FLAT * len(index)))]
        facts |= {"chroma_whiteness": _ratio(close[calm], wide[calm]), "chroma": _root(close[calm])}
        white = facts["chroma_whiteness"] > 0.5 and facts["chroma"] > _root(near[flat]) / 2
    facts["correlation"] = _correlation(bright[flattest])

    if not white:
        # Correlated noise differs from structure only in being everywhere: the flattest blocks show how
        # strong it is, but not how that depends on the brightness.
        return facts | {
            "levels": (float(np.median(mean[flattest])),),
            "deviations": (_root(far[flattest]),),
            "read": _root(far[flattest]),
            "black": float(mean[flattest].min()),
        }
    power = near if not colours else _detail(blocks, 1).mean(axis=1)
    order = np.argsort(mean, kind="stable")
    levels, variances, whole = [], [], []
    for part in np.array_split(order, max(1, min(_BINS, len(order) // _FEWEST))):
        chosen = part[np.argsort(structure[part])[: max(4, int(_FLAT * len(part)))]]
        levels.append(float(np.median(mean[chosen])))
        variances.append(float(np.median(power[chosen])))
        whole.append(bool(used[chosen].mean() > 0.5))
    facts |= {"levels": tuple(levels), "deviations": tuple(float(v) ** 0.5 for v in variances)}
    kept = np.array(whole) if sum(whole) >= _FEWEST_LEVELS else np.ones(len(levels), bool)
    return facts | _fit(np.array(levels)[kept], np.array(variances)[kept])


def _fit(levels: NDArray[np.float64], variances: NDArray[np.float64]) -> dict[str, float]:
    black = float(levels[0])
    if len(levels) < _FEWEST_LEVELS or levels[-1] <= black or not variances.any():
        return {"black": black, "read": float(np.mean(variances)) ** 0.5}
    # The error of a variance is proportional to it, hence the weights.
    weights = 1 / np.maximum(variances, variances.max() * 1e-3)
    gain, offset = np.polyfit(levels - black, variances, 1, w=weights)
    gain = max(float(gain), 0.0)
    read = max(float(offset), 0.0) if gain else float(np.average(variances, weights=weights))
    reach = float(levels[-1] - black)
    return {
        "black": black,
        "gain": gain,
        "read": read**0.5,
        "dependence": gain * reach / (read + gain * reach / 2) if gain else 0.0,
    }


def _correlation(blocks: NDArray[np.float64]) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return the correlation of neighbours and of pixels two apart, along rows and columns, by variogram."""
    found = []
    at = np.arange(BLOCK) - (BLOCK - 1) / 2
    slopes = [np.tensordot(blocks.mean(axis=3 - axis), at, 1) / np.square(at).sum() for axis in (1, 2)]
    blocks = blocks - slopes[0][:, None, None] * at[:, None] - slopes[1][:, None, None] * at
    for axis in (2, 1):
        moved = np.moveaxis(blocks, axis, 2)
        steps = {
            d: float(np.median(np.square(moved[..., d:] - moved[..., :-d]).mean(axis=(1, 2))))
            for d in (1, 2, _FAR)
        }
        far = steps[_FAR]
        found.append(tuple(float(np.clip(1 - steps[d] / far, -1, 1)) if far > 0 else 0.0 for d in (1, 2)))
    return (found[0][0], found[0][1]), (found[1][0], found[1][1])


def _over(above: float, below: float) -> float:
    return float(above / max(below, 1e-6 * above)) if above > 0 else 1.0


def _ratio(near: NDArray[np.float64], apart: NDArray[np.float64]) -> float:
    below, above = float(np.median(near)), float(np.median(apart))
    return below / above if above > 0 else 1.0


def _root(power: NDArray[np.float64]) -> float:
    return float(np.median(power)) ** 0.5


def _outliers(
    pictures: Sequence[NDArray[np.float64]], noise: Noise
) -> tuple[float, float, NDArray[np.float64]]:
    hot = dead = count = 0
    kept = []
    least = spike(noise)
    for picture in pictures:
        found, median = isolated(picture[..., 0], least)
        above = found & (picture[..., 0] > median)
        hot, dead, count = hot + int(above.sum()), dead + int((found & ~above).sum()), count + found.size
        kept.append(picture[..., 0][~found])
    return hot / count, dead / count, np.concatenate(kept)


def _has_grid(pictures: Sequence[NDArray[np.float64]]) -> bool:
    ratios = []
    for axis in (0, 1):
        sums, counts = np.zeros(8), np.zeros(8)
        for picture in pictures:
            steps = np.abs(np.diff(picture.mean(axis=2), axis=axis)).mean(axis=1 - axis)
            phases = np.arange(len(steps)) % 8
            sums += np.bincount(phases, steps, 8)
            counts += np.bincount(phases, minlength=8)
        if not counts.all() or not sums.any():
            return False
        means = sums / counts
        ratios.append(means[7] / max(np.delete(means, 7).mean(), 1e-12))
    return bool(min(ratios) > _GRID)


def sample(arranged: Layout, channel: int = 0) -> list[tuple[tuple[int, ...], tuple[slice, slice]]]:
    """Choose the windows of an array that the noise of a channel is measured in.

    Parameters
    ----------
    arranged : Layout
        Of the array.
    channel : int
        Index along the axis C, if channels are restored one by one; see `Layout.channel`.

    Returns
    -------
    list of (plane, (rows, columns))
        A million pixels at most, in up to 16 planes from the first to the last: whole planes if they fit,
        else windows of 64 x 64 pixels on a grid.
    """
    planes = [plane for plane in arranged.planes() if arranged.channel(plane) == channel]
    chosen = np.unique(np.linspace(0, len(planes) - 1, min(len(planes), _PLANES)).astype(int))
    budget = _PIXELS // len(chosen)
    windows = _windows(arranged.size, budget)
    return [(planes[number], window) for number in chosen for window in windows]


def _windows(size: tuple[int, int], budget: int) -> list[tuple[slice, slice]]:
    height, width = size
    if height * width <= budget:
        return [(slice(0, height), slice(0, width))]
    count = max(1, budget // _WINDOW**2)
    rows = int(np.clip(round((count * height / width) ** 0.5), 1, -(-height // _WINDOW)))
    columns = int(np.clip(count // rows, 1, -(-width // _WINDOW)))
    tops, lefts = (
        np.unique(np.linspace(0, max(0, n - _WINDOW), k).astype(int) // 8 * 8)
        for n, k in ((height, rows), (width, columns))
    )
    return [
        (slice(int(y), min(int(y) + _WINDOW, height)), slice(int(x), min(int(x) + _WINDOW, width)))
        for y in tops
        for x in lefts
    ]
