"""Pictures as cameras make them: noise on the sensor, and all that the camera does to it afterwards."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from . import raw
from .base import Bounds, Degradation, Draws, bounds, to_device
from .checks import probability
from .jpeg import compress
from .pipeline import register_degradation

Floats = NDArray[np.float64]

PHONE_ISO = 3200.0
"""Phones do not go beyond."""

SCALES = (0.5, 0.65, 0.8)
"""Sizes to which a part of the pictures is reduced; few, as the samples of one size are computed together."""

LUMA = (0.299, 0.587, 0.114)
# RGB to luma and its distances from blue and red, and back.
_FROM_RGB = (LUMA, (-0.299, -0.587, 0.886), (0.701, -0.587, -0.114))
_TO_RGB = ((1, 0, 1), (1, -0.114 / 0.587, -0.299 / 0.587), (1, 1, 0))


@register_degradation
class Camera(Degradation):
    """The noise of a camera's JPEGs, correlated between pixels and colours.

    The clean picture is taken back to the raw data of a sensor with a Bayer mosaic, gets shot and read noise
    there, and is developed again. The clean target passes through the same mosaic, demosaicing, matrix and
    curve, so that no network is asked to undo them.

    Cameras smooth and sharpen. The photographs that training starts from went through that already, so these
    filters act on the noise alone (developed with noise minus developed without), and the target stays sharp.

    Some pictures are reduced after development. Their crops are enlarged before, by as much: the scene keeps
    its scale and the batch its size, and only the noise is that of a reduced picture.

    A gray image is taken as a scene without colour, and the result is the luma of the picture.

    The result has 8 bits. Height and width must be 8 or more.

    Parameters
    ----------
    iso : float or pair of float
        Sensitivity, drawn log-uniformly between bounds; `gain` says how much noise that is.
    jpeg : float, pair of float or None
        Quality, 1..100, drawn uniformly between bounds, half of the pictures with chroma of half resolution;
        None: no compression. For a share of worse files let a `JPEG` follow.
    lens : float or pair of float
        Blur of lens and low-pass filter in front of the sensor, standard deviation in pixels, 0..1, drawn
        uniformly between bounds; the target as well. Without it, reduced photographs are sharper than what
        reaches a sensor, and demosaicing leaves false colours.
    phones : float
        Probability of the small sensor of a phone; up to ISO 3200.
    processed : float
        Probability that a camera smooths its noise, chroma above all, and sharpens; phones always do.
    reduced : float
        Probability that a picture is reduced to 0.5 to 0.8 of its size.
    dark : float
        Probability of less light, down to an eighth; the target as well.
    flat : float
        Probability that less than a quarter of the contrast remains, as in walls and skies; the target as
        well.

    References
    ----------
    Brooks et al., "Unprocessing Images for Learned Raw Denoising", CVPR 2019. Guo et al., "Toward
    Convolutional Blind Denoising of Real Photographs", CVPR 2019.
    """

    def __init__(
        self,
        iso: Bounds = (200, 25600),
        jpeg: Bounds | None = (75, 100),
        lens: Bounds = (0.3, 0.7),
        phones: float = 0.2,
        processed: float = 0.8,
        reduced: float = 0.1,
        dark: float = 0.3,
        flat: float = 0.1,
    ) -> None:
        self.iso = bounds(iso, "iso", 1)
        self.jpeg = None if jpeg is None else bounds(jpeg, "jpeg", 1, 100)
        self.lens = bounds(lens, "lens", 0, 1)
        self.phones, self.processed = probability(phones, "phones"), probability(processed, "processed")
        self.reduced = probability(reduced, "reduced")
        self.dark, self.flat = probability(dark, "dark"), probability(flat, "flat")

    def __call__(self, degraded: Tensor, clean: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        noisy, target = torch.empty_like(clean), torch.empty_like(clean)
        same = degraded is clean
        scales, methods = (1.0, *SCALES), raw.METHODS
        scale = draws.choice([1 - self.reduced, *[self.reduced / len(SCALES)] * len(SCALES)])
        method = draws.integers(0, len(methods))
        for s, m in sorted({*zip(scale.tolist(), method.tolist(), strict=True)}):
            index = np.flatnonzero((scale == s) & (method == m))
            where, some = to_device(index, draws.device), draws.subset(index.tolist())
            scenes = [clean[where]] if same else [degraded[where], clean[where]]
            noisy[where], target[where] = self._shoot(scenes, some, scales[s], methods[m])
        if self.jpeg is None:
            return noisy.mul_(255).round_().div_(255), target
        return compress(noisy, draws.uniform(*self.jpeg), draws.uniform() < 0.5), target

    def _shoot(self, scenes: list[Tensor], draws: Draws, scale: float, method: str) -> tuple[Tensor, Tensor]:
        """Take pictures, (B, C, H, W), of the first scenes, and of the last without noise."""
        B, C, H, W = scenes[0].shape
        p = self._draw(draws)
        planes = _expose(_enlarge(torch.cat(scenes), scale), {k: _tile(v, len(scenes)) for k, v in p.items()})
        noisy = raw.add_sensor_noise(planes[:B], p["shot"], p["read"], draws)
        noisy = noisy.mul_(p["levels"]).round_().div_(p["levels"]).clamp_(max=1)

        p = {k: _tile(v, len(scenes) + 1) for k, v in p.items()}
        planes = torch.cat([noisy, planes]).mul_(p["gains"]).clamp_(max=1)
        colours = raw.demosaic(planes, p["phase"].flatten().long(), method)
        pictures = raw.from_linear(raw.apply_matrix(p["to_srgb"], colours))

        quiet = pictures[B : 2 * B]
        noise = _blur(_mix(pictures[:B] - quiet, _FROM_RGB), p["smoothing"][:B])
        noisy = _mix(noise, _TO_RGB).add_(quiet).clamp_(0, 1)
        noisy, target = (_reduce(picture, scale, H, W) for picture in (noisy, pictures[-B:]))
        if C == 1:
            noisy, target = _mix(noisy, _FROM_RGB[:1]), _mix(target, _FROM_RGB[:1])
        return noisy, target

    def _draw(self, draws: Draws) -> dict[str, Tensor]:
        """Draw what is random in each picture, and move it to the device at once."""
        parts = draws.host(lambda g: (g.random(17), g.standard_normal(3)))
        u, z = (np.array(part).T for part in zip(*parts, strict=True))
        phone = u[0] < self.phones
        least, most = (np.where(phone, min(iso, PHONE_ISO), iso) for iso in self.iso)
        shot = gain(least * (most / least) ** u[1], z[0], phone)
        to_camera = raw.camera_matrix(-np.log(1 - u[2:6]).T)
        # From lamps to shade: the less blue a light has, the more red.
        red = 1.5 + 0.9 * u[6]
        gains = np.stack([red, np.ones_like(red), (3.1 + 0.6 * u[7]) / red], 1)
        gains /= 0.8 + 0.1 * np.clip(z[2], -3, 3)[:, None]
        phase = (4 * u[8]).astype(int)
        # A number below a probability is uniform below it.
        exposure = np.where(u[10] < self.dark, 8.0 ** -(u[10] / max(self.dark, 1e-9)), 1)
        contrast = np.where(u[11] < self.flat, u[11] / max(4 * self.flat, 1e-9), 1)
        values = {
            "shot": shot[:, None, None, None],
            "read": read_noise(shot, z[1], phone)[:, None, None, None],
            "levels": 2.0 ** (12 + (3 * u[9]).astype(int))[:, None, None, None] - 1,
            "contrast": contrast[:, None, None],
            "phase": phase[:, None],
            "gains": np.take_along_axis(gains, np.array(raw.PHASES)[phase], 1)[:, :, None, None],
            "to_camera": to_camera * exposure[:, None, None],
            "to_srgb": np.linalg.inv(to_camera),
            "lens": _gaussian(self.lens[0] + (self.lens[1] - self.lens[0]) * u[12], 3)[:, None, None],
            "smoothing": _smoothing(phone | (u[13] < self.processed), *u[14:]),
        }
        columns = [v.reshape(len(draws), -1) for v in values.values()]
        table = draws.on_device(np.concatenate(columns, 1)).split([c.shape[1] for c in columns], 1)
        return {k: t.reshape(v.shape) for (k, v), t in zip(values.items(), table, strict=True)}


def _expose(scenes: Tensor, p: dict[str, Tensor]) -> Tensor:
    """Project pictures, (B, C, H, W), as light onto a sensor: Bayer planes without noise."""
    light = raw.to_linear(scenes.expand(-1, 3, -1, -1))
    matrix, contrast = p["to_camera"], p["contrast"]
    mean = torch.bmm(matrix, light.mean((2, 3)).unsqueeze(2))
    colours = torch.baddbmm(mean * (1 - contrast), matrix * contrast, light.flatten(2)).view_as(light)
    colours = _blur(colours.clamp_(0, 1), p["lens"].expand(-1, 3, -1, -1))
    brightness = F.pixel_unshuffle(colours.mean(1, keepdim=True), 2)
    return raw.take_light(raw.mosaic(colours, p["phase"].flatten().long()), brightness, p["gains"])


def _smoothing(processed: NDArray[np.bool_], luma: Floats, sharpness: Floats, chroma: Floats) -> Floats:
    """Filters along a line for luma and chroma, (B, 3, 1, taps), of strengths that give noise like CC15's."""
    sigma, sharpness = 0.55 + 0.4 * luma, 0.6 * sharpness[:, None]
    blurred, more = _gaussian(sigma), _gaussian(np.hypot(sigma, 1.2))
    chroma_filter = _gaussian(0.9 + 2 * chroma)
    filters = np.stack([blurred + sharpness * (blurred - more), chroma_filter, chroma_filter], 1)
    none = _gaussian(np.zeros_like(luma))[:, None]
    return np.where(processed[:, None, None], filters, none)[:, :, None]


def _gaussian(sigma: Floats, reach: int = 6) -> Floats:
    """Return filters along a line, (B, 2 * reach + 1)."""
    squares = (np.arange(-reach, reach + 1) / np.maximum(sigma, 0.05)[:, None]) ** 2
    # Denormal weights would slow convolution on a CPU down.
    kernel = np.exp(np.maximum(squares / -2, -80))
    rows: Floats = kernel / kernel.sum(1, keepdims=True)
    return rows


def _blur(images: Tensor, taps: Tensor) -> Tensor:
    """Filter every channel, (B, C, H, W), along rows and columns, with taps (B, C, 1, N)."""
    # As products with band matrices: convolution with one kernel a channel takes a CPU six times as long.
    reach, (height, width) = taps.shape[3] // 2, images.shape[2:]
    padded = F.pad(images, (reach,) * 4, mode="reflect")
    return _band(taps, height) @ padded @ _band(taps, width).transpose(2, 3)


def _band(taps: Tensor, size: int) -> Tensor:
    """Return matrices, (B, C, size, size + N - 1), that filter a line: the taps, moved by one in each row."""
    length = size + taps.shape[3] - 1
    rows = F.pad(taps, (0, length + 1 - taps.shape[3])).expand(-1, -1, size, -1)
    return rows.flatten(2)[..., : size * length].unflatten(2, (size, length))


def _mix(images: Tensor, matrix: tuple[tuple[float, ...], ...]) -> Tensor:
    return (_constant(matrix, images.device) @ images.flatten(2)).unflatten(2, images.shape[2:])


@lru_cache
def _constant(matrix: tuple[tuple[float, ...], ...], device: torch.device) -> Tensor:
    return torch.tensor(matrix, device=device)


def _enlarge(images: Tensor, scale: float) -> Tensor:
    """Enlarge by 1 / scale, to an even size."""
    H, W = images.shape[2:]
    if scale == 1:
        return F.pad(images, (0, W % 2, 0, H % 2), mode="replicate") if W % 2 or H % 2 else images
    size = [2 * round(side / scale / 2) for side in (H, W)]
    return F.interpolate(images, size=size, mode="bilinear", align_corners=False)


def _reduce(images: Tensor, scale: float, height: int, width: int) -> Tensor:
    if scale == 1:
        return images[..., :height, :width]
    size = (height, width)
    return F.interpolate(images, size=size, mode="bicubic", align_corners=False, antialias=True).clamp_(0, 1)


def _tile(values: Tensor, times: int) -> Tensor:
    return values.repeat(times, *[1] * (values.dim() - 1)) if times > 1 else values


def gain(iso: Floats, spread: Floats, phone: NDArray[np.bool_]) -> Floats:
    """Return the variance of shot noise per unit of intensity (1: saturation).

    Parameters
    ----------
    iso, phone : ndarray
        Sensitivity, and whether the sensor is a phone's, (B,).
    spread : ndarray
        Standard normal numbers, (B,): by how much sensors differ.

    Notes
    -----
    Fitted to measured cameras (green: 3e-4 at ISO 800, 1.2e-3 at 3200, 7e-3 at 25600; some half as much or
    half as much again) and phones (2e-4 to 7e-4 at ISO 100, 0.0018 to 0.0035 at 400, 0.02 at 3200).
    """
    camera = 3e-4 * (iso / 800) ** 0.91 * np.exp(0.35 * spread)
    return np.where(phone, 4.5e-4 * (iso / 100) ** 1.07 * np.exp(0.3 * spread), camera)


def read_noise(shot: Floats, spread: Floats, phone: NDArray[np.bool_]) -> Floats:
    """Return the variance of read noise, (B,), that goes with a gain of shot noise.

    Fitted by Brooks et al. (2019) to a camera, and to the phones of SIDD (Abdelhamed et al., 2018).
    """
    camera = np.exp(2.18 * np.log(shot) + 1.20 + 0.26 * spread)
    return np.where(phone, 10 ** (1.85 * np.log10(shot) + 0.30 + 0.20 * spread), camera)
