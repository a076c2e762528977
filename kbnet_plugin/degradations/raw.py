"""From a photograph back to the raw picture of a sensor, and forward: matrix, mosaic, demosaicing, curve.

A raw picture is kept as four Bayer planes, (B, 4, H / 2, W / 2): the pixels at (0, 0), (0, 1), (1, 0) and
(1, 1) of each square of two by two. Each sample has its own phase (where red lies in the square); its kernels
are looked up in tables, so that one convolution serves the whole batch.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from .base import Draws

Floats = NDArray[np.float64]

RED, GREEN, BLUE = 0, 1, 2

PHASES = ((0, 1, 1, 2), (1, 0, 2, 1), (1, 2, 0, 1), (2, 1, 1, 0))
"""Colours of the four planes: RGGB, GRBG, GBRG, BGGR."""

METHODS = ("bilinear", "malvar", "hamilton")
"""Demosaicing, see `demosaic`."""

GAMMA, DARKEST = 2.2, 1e-8

# Brooks et al.: XYZ to the colours of four cameras, and sRGB to XYZ (D65).
_CAMERAS = np.array(
    [
        [[1.0234, -0.2969, -0.2266], [-0.5625, 1.6328, -0.0469], [-0.0703, 0.2188, 0.6406]],
        [[0.4913, -0.0541, -0.0202], [-0.6130, 1.3513, 0.2906], [-0.1564, 0.2151, 0.7183]],
        [[0.8380, -0.2630, -0.0639], [-0.2887, 1.0725, 0.2496], [-0.0627, 0.1427, 0.5438]],
        [[0.6596, -0.2079, -0.0562], [-0.4782, 1.3016, 0.1933], [-0.0970, 0.1581, 0.5181]],
    ]
)
_SRGB_TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)


def camera_matrix(weights: Floats) -> Floats:
    """Return matrices from linear sRGB to the colours of a camera, (B, 3, 3); each row sums to 1.

    Parameters
    ----------
    weights : ndarray
        Shares of four measured cameras, (B, 4), not negative.
    """
    mixed = np.einsum("bk,kij->bij", weights, _CAMERAS) @ _SRGB_TO_XYZ
    rows: Floats = mixed / mixed.sum(2, keepdims=True)
    return rows


def to_linear(srgb: Tensor) -> Tensor:
    """Undo the tone curve and the gamma: 0..1 to linear light, 0..1."""
    bent = (1 - 2 * srgb).clamp_(-1, 1).asin_().div_(3).sin_()
    return _power(bent.neg_().add_(0.5).clamp_(min=DARKEST), GAMMA)


def from_linear(light: Tensor) -> Tensor:
    """Apply gamma and tone curve; values outside 0..1 are clipped."""
    x = _power(light.clamp(DARKEST, 1), 1 / GAMMA)
    return (3 - 2 * x).mul_(x).mul_(x)


def _power(x: Tensor, exponent: float) -> Tensor:
    return x.log_().mul_(exponent).exp_()  # `pow_` takes five times as long on a CPU


def apply_matrix(matrix: Tensor, image: Tensor) -> Tensor:
    """Multiply the colours of each sample, (B, 3, H, W), by its matrix, (B, 3, 3)."""
    return torch.bmm(matrix, image.flatten(2)).view_as(image)


def mosaic(image: Tensor, phase: Tensor) -> Tensor:
    """Keep one colour of each pixel, as a sensor does.

    Parameters
    ----------
    image : Tensor
        (B, 3, H, W); H and W even.
    phase : Tensor
        Index into `PHASES` of each sample, (B,), int64.

    Returns
    -------
    Tensor
        Bayer planes, (B, 4, H / 2, W / 2).
    """
    B, C, H, W = image.shape
    cells = image.view(B, C, H // 2, 2, W // 2, 2).permute(0, 1, 3, 5, 2, 4)
    sample, place = torch.arange(B, device=image.device)[:, None], torch.arange(4, device=image.device)
    return cells[sample, _phases(image.device)[phase], place // 2, place % 2]


def take_light(planes: Tensor, brightness: Tensor, gains: Tensor) -> Tensor:
    """Divide by white balance and exposure, but keep highlights white, so that they still saturate.

    Parameters
    ----------
    planes : Tensor
        Bayer planes of the picture as developed, 0..1.
    brightness : Tensor
        (B, 4, H / 2, W / 2): mean of the three colours at each pixel.
    gains : Tensor
        By which each plane will be multiplied again, (B, 4, 1, 1).

    References
    ----------
    Brooks et al., "Unprocessing Images for Learned Raw Denoising", CVPR 2019.
    """
    white = (brightness - 0.9).clamp_(min=0).div_(0.1).square_()
    inverse = 1 / gains
    return torch.maximum((1 - inverse) * white + inverse, inverse).mul_(planes)


def add_sensor_noise(planes: Tensor, shot: Tensor, read: Tensor, draws: Draws) -> Tensor:
    """Add shot and read noise of variance ``shot * x + read``; values below 0 are kept.

    Below 16 photons, counts follow Poisson's law; above, a normal one of the same variance, which is faster.

    Parameters
    ----------
    planes : Tensor
        Bayer planes, 0..1.
    shot, read : Tensor
        Each (B, 1, 1, 1); a photon has the value `shot`.
    draws : Draws
        Of these samples.
    """
    few = planes < 16 * shot
    noise = draws.normal_map(*planes.shape[1:]).mul_(torch.where(few, read, planes * shot + read).sqrt_())
    counts = draws.poisson(torch.where(few, planes / shot, 0.0))
    return torch.where(few, counts.mul_(shot), planes).add_(noise)


def demosaic(planes: Tensor, phase: Tensor, method: str) -> Tensor:
    """Interpolate the two missing colours of each pixel.

    Parameters
    ----------
    planes : Tensor
        Bayer planes, (B, 4, H / 2, W / 2).
    phase : Tensor
        Index into `PHASES` of each sample, (B,), int64.
    method : str
        One of `METHODS`: the mean of the nearest pixels; the linear filters of Malvar, He and Cutler; or the
        method of Hamilton and Adams, which interpolates green along edges, and red and blue by their
        differences from green.

    Returns
    -------
    Tensor
        (B, 3, H, W).

    References
    ----------
    Malvar et al., "High-quality linear interpolation for demosaicing of Bayer-patterned color images", ICASSP
    2004. Hamilton and Adams, "Adaptive color plane interpolation in single sensor color electronic camera",
    US patent 5629734, 1997.
    """
    if method != "hamilton":
        return _interleave(_filter(planes, _bank(method, planes.device)[phase]))
    green = _filter(planes, _bank("green", planes.device)[phase]).unflatten(1, (6, 2))
    (across, down), slopes = green[:, :2].unbind(1), green[:, 2:].abs()
    estimate = torch.where(slopes[:, 0].add_(slopes[:, 1]) < slopes[:, 2].add_(slopes[:, 3]), across, down)
    green = planes.clone()
    green[torch.arange(len(planes), device=planes.device)[:, None], _sites(planes.device)[phase]] = estimate
    # Red and blue minus green are smooth, and 0 where green was measured.
    colours = _filter(planes - green, _bank("difference", planes.device)[phase]).unflatten(1, (3, 4))
    return _interleave(colours.add_(green[:, None]).flatten(1, 2))


def _interleave(planes: Tensor) -> Tensor:
    """Put pixels in their places, (B, 12, H / 2, W / 2) to (B, 3, H, W)."""
    # Faster than `pixel_shuffle` on a CPU.
    B, _, h, w = planes.shape
    image = planes.new_empty(B, 3, 2 * h, 2 * w)
    for place in range(4):
        image[:, :, place // 2 :: 2, place % 2 :: 2] = planes[:, place::4]
    return image


def _filter(planes: Tensor, kernels: Tensor) -> Tensor:
    """Convolve each sample, (B, C, h, w), with kernels of its own, (B, D, C, 3, 3); edges repeat."""
    # As products: convolution with a kernel for each sample takes a CPU several times as long, and so does
    # `unfold`.
    height, width = planes.shape[2:]
    padded = F.pad(planes, (1, 1, 1, 1), mode="replicate")
    places = [padded[:, :, y : y + height, x : x + width] for y, x in np.ndindex(3, 3)]
    filters = kernels.flatten(3).transpose(2, 3).flatten(2)
    return torch.bmm(filters, torch.cat(places, 1).flatten(2)).unflatten(2, (height, width))


@lru_cache
def _phases(device: torch.device) -> Tensor:
    return torch.tensor(PHASES, device=device)


@lru_cache
def _sites(device: torch.device) -> Tensor:
    """Places of red and blue, (4, 2)."""
    return torch.tensor(
        [[i for i, c in enumerate(colours) if c != GREEN] for colours in PHASES], device=device
    )


def _kernel(*taps: tuple[float, int, int]) -> Floats:
    kernel = np.zeros((5, 5))
    for value, row, column in taps:
        kernel[row + 2, column + 2] += value
    return kernel


_SELF = _kernel((1, 0, 0))
_ACROSS = _kernel((0.5, 0, -1), (0.5, 0, 1))
_CORNERS = _kernel((0.25, -1, -1), (0.25, -1, 1), (0.25, 1, -1), (0.25, 1, 1))
_SLOPE = _kernel((-1, 0, -1), (1, 0, 1))
_CURVE = _kernel((-1, 0, -2), (2, 0, 0), (-1, 0, 2))
_CROSS = (_ACROSS + _ACROSS.T) / 2
_CURVES = _CURVE + _CURVE.T
_DIAMOND = 5 * _SELF - 4 * _CORNERS

# Green at red or blue; red or blue at green, with neighbours in the row; red at blue and blue at red.
_LINEAR = {
    "bilinear": (_CROSS, _ACROSS, _CORNERS),
    "malvar": (
        _CROSS + _CURVES / 8,
        _ACROSS + (_DIAMOND + _kernel((-1, 0, -2), (-1, 0, 2), (0.5, -2, 0), (0.5, 2, 0))) / 8,
        _CORNERS + 1.5 * _CURVES / 8,
    ),
    "difference": (0 * _SELF, _ACROSS, _CORNERS),
}

# At red and blue: green from the row and from the column, and two slopes along each.
_ROW = _ACROSS + _CURVE / 4
_GREEN = (_ROW, _ROW.T, _SLOPE, _CURVE, _SLOPE.T, _CURVE.T)


@lru_cache
def _bank(name: str, device: torch.device) -> Tensor:
    """Kernels on Bayer planes for every phase, (4, D, 4, 3, 3)."""
    tables = []
    for colours in PHASES:
        if name == "green":
            sites = [place for place in range(4) if colours[place] != GREEN]
            tables.append([_on_planes(kernel, place) for kernel in _GREEN for place in sites])
        else:
            kernels = _colour_kernels(colours, *_LINEAR[name])
            tables.append([_on_planes(kernel, place) for row in kernels for place, kernel in enumerate(row)])
    return torch.from_numpy(np.array(tables, dtype=np.float32)).to(device)


def _colour_kernels(
    colours: tuple[int, ...], green: Floats, row: Floats, corners: Floats
) -> list[list[Floats]]:
    """Kernels of red, green and blue at each of the four places."""

    def kernel(wanted: int, place: int) -> Floats:
        here = colours[place]
        if wanted == GREEN:
            return green if here != GREEN else _SELF * bool(green.any())
        if here == wanted:
            return _SELF
        if here != GREEN:
            return corners
        return row if colours[place ^ 1] == wanted else row.T

    return [[kernel(wanted, place) for place in range(4)] for wanted in (RED, GREEN, BLUE)]


def _on_planes(kernel: Floats, place: int) -> Floats:
    """Turn a kernel on pixels, (5, 5), into one on planes, (4, 3, 3), for the pixels of one plane."""
    planes = np.zeros((4, 3, 3))
    for row, column in np.ndindex(5, 5):
        y, x = place // 2 + row - 2, place % 2 + column - 2
        planes[y % 2 * 2 + x % 2, y // 2 + 1, x // 2 + 1] += kernel[row, column]
    return planes
