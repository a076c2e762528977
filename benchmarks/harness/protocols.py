"""Protocols by name: how a test image is made noisy, restored and compared with the truth."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from skimage.color import rgb2ycbcr
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from kbnet_plugin.arrays.degradations import add_gaussian, seeded_by_index

Metric = Literal["psnr", "ssim", "mae", "lpips"]
METRICS: tuple[Metric, ...] = get_args(Metric)
Image = NDArray[np.float32]


@dataclass(frozen=True)
class Protocol:
    """How images are made, restored and compared; `text` describes it to people.

    Attributes
    ----------
    noise : {"", "numbered", "same"}
        White Gaussian noise from ``numpy.random.default_rng([0, i])`` for the i-th image, or from
        ``numpy.random.seed(0)`` before each image; float, neither clipped nor rounded.
    rounded : bool
        Whether the result is rounded to 8 bits, like a saved picture, before it is compared.
    luma : bool
        Compare ITU-R BT.601 luma in 16..235, rounded, as MATLAB's rgb2ycbcr computes it for 8-bit images.
    crop : int
        Pixels ignored at every edge.
    ssim : {"gaussian", "uniform range 2"}
        A Gaussian window of 11 x 11 pixels, standard deviation 1.5, and the true data range (Wang et al.
        2004); or scikit-image's default window of 7 x 7 and the range of -1..1 that it used to assume for
        floats.
    psnr : {"clipped", "guessed"}
        Clipped, with a peak of 1; or not clipped, with a peak of 1 or 255, guessed from the largest value.
    tile, halo : int
        Largest side of a tile, halo included, and pixels at inner edges that only give context. With a
        `tile` of 0 the whole image is restored at once.
    sound : bool
        False for what a released script does but nobody should.
    """

    text: str
    noise: Literal["", "numbered", "same"] = ""
    rounded: bool = False
    luma: bool = False
    crop: int = 0
    ssim: Literal["gaussian", "uniform range 2"] = "gaussian"
    psnr: Literal["clipped", "guessed"] = "clipped"
    tile: int = 0
    halo: int = 0
    sound: bool = True


_FLOAT = "result clipped and not rounded"
PROTOCOLS = {
    "gaussian": Protocol(f"noise of default_rng([0, i]) in float; {_FLOAT}; RGB or gray", noise="numbered"),
    "gaussian-uint8": Protocol(
        "noise of default_rng([0, i]) in float; result rounded to 8 bits", noise="numbered", rounded=True
    ),
    "gaussian-released": Protocol(
        "like KBNet's script: noise of numpy.random.seed(0) for every image; result rounded to 8 bits",
        noise="same",
        rounded=True,
    ),
    "pairs": Protocol(f"{_FLOAT}; RGB"),
    "pairs-uint8": Protocol("result rounded to 8 bits; RGB", rounded=True),
    "sidd": Protocol(f"{_FLOAT}; RGB; SSIM with an 11 x 11 Gaussian window and range 1"),
    "sidd-released": Protocol(
        "like KBNet's script: SSIM with a 7 x 7 window and an assumed range of 2, which raises it",
        ssim="uniform range 2",
        sound=False,
    ),
    "guessed-range": Protocol(
        "like Restormer's and KBNet's float PSNR: not clipped, and a peak of 255 once a value exceeds 1",
        psnr="guessed",
        sound=False,
    ),
    "rain": Protocol("result rounded to 8 bits; MATLAB's luma, rounded", rounded=True, luma=True),
    "defocus": Protocol(
        f"tiles of up to 1152 pixels with a halo of 64; {_FLOAT}; RGB; LPIPS 0.1, alex", tile=1152, halo=64
    ),
    "sensenoise": Protocol(
        "tiles of up to 1152 pixels with a halo of 64; result rounded to 8 bits; RGB",
        rounded=True,
        tile=1152,
        halo=64,
    ),
}
"""Protocols that tables can name."""


def noisy(clean: Image, sigma: float, index: int, protocol: Protocol) -> Image:
    """Add the protocol's noise to an image.

    Parameters
    ----------
    clean : (H, W, C) array
        In 0..1.
    sigma : float
        Standard deviation, of 255.
    index : int
        Of the image in its set.
    protocol : Protocol

    Raises
    ------
    ValueError
        If the protocol adds no noise.
    """
    nothing = np.zeros(clean.shape)
    if protocol.noise == "numbered":
        noise = add_gaussian(nothing, sigma, seeded_by_index(index))
    elif protocol.noise == "same":
        noise = np.random.RandomState(0).normal(0, 1, clean.shape) * sigma
    else:
        raise ValueError("this protocol adds no noise; use gaussian, or leave sigma out")
    return clean + noise.astype(np.float32) / np.float32(255)


def compare(restored: Image, truth: Image, metrics: Sequence[str], protocol: Protocol) -> dict[str, float]:
    """Compute the metrics of a restored image.

    Parameters
    ----------
    restored, truth : (H, W, C) array
        In 0..1.
    metrics : sequence of str
        Some of `METRICS`.
    protocol : Protocol

    Raises
    ------
    ValueError
        If the shapes differ, a metric is unknown or infinite, or the result contains NaN or infinity.
    """
    if restored.shape != truth.shape:
        raise ValueError(f"the result is {restored.shape}, the truth {truth.shape}")
    if not np.isfinite(restored).all():
        raise ValueError("the result contains NaN or infinity")
    inner = slice(protocol.crop, -protocol.crop or None)
    a, b = (x[inner, inner].astype(np.float64) for x in (restored, truth))
    raw = a
    a, b = a.clip(0, 1), b.clip(0, 1)
    if protocol.rounded:
        a = np.round(a * 255) / 255
    color = a, b
    if protocol.luma:
        a, b = luma(a), luma(b)
    found = {}
    for metric in metrics:
        if metric == "psnr":
            found[metric] = guessed_psnr(raw, b) if protocol.psnr == "guessed" else psnr(a, b)
            if np.isinf(found[metric]):
                raise ValueError("the result equals the truth: PSNR is infinite")
        elif metric == "ssim":
            found[metric] = ssim(a, b, protocol.ssim)
        elif metric == "mae":
            found[metric] = float(np.abs(a - b).mean())
        elif metric == "lpips":
            found[metric] = lpips(*color)
        else:
            raise ValueError(f"no metric {metric!r}; known: {', '.join(METRICS)}")
    return found


def luma(rgb: NDArray[np.float64]) -> NDArray[np.float64]:
    """Compute the first channel of MATLAB's rgb2ycbcr: RGB in 0..1 to Y in 16/255..235/255."""
    if rgb.shape[2] != 3:
        raise ValueError(f"luma needs three channels, not {rgb.shape[2]}")
    # MATLAB rounds halves up, numpy to even.
    return np.floor(rgb2ycbcr(rgb)[..., :1] + 0.5) / 255


def psnr(result: NDArray[Any], truth: NDArray[Any], data_range: float = 1.0) -> float:
    """Compute the peak signal-to-noise ratio in dB; infinite for equal arrays.

    Parameters
    ----------
    result, truth : array
        Of one shape; nothing is clipped or rounded.
    data_range : float
        The peak.
    """
    a, b = (x.astype(np.float64) for x in (result, truth))
    with np.errstate(divide="ignore"):
        return float(peak_signal_noise_ratio(b, a, data_range=data_range))


def guessed_psnr(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Compute PSNR with a peak of 255 if any value exceeds 1: one bright pixel adds 48 dB."""
    return psnr(a, b, 1.0 if a.max() <= 1 else 255.0)


def ssim(a: NDArray[np.float64], b: NDArray[np.float64], kind: str = "gaussian") -> float:
    """Compute structural similarity, mean over channels (Wang et al., IEEE TIP 13(4), 2004)."""
    if kind == "gaussian":
        return float(
            structural_similarity(
                a,
                b,
                channel_axis=2,
                data_range=1,
                gaussian_weights=True,
                sigma=1.5,
                use_sample_covariance=False,
            )
        )
    return float(structural_similarity(a, b, channel_axis=2, data_range=2))


def lpips(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Compute LPIPS 0.1 with AlexNet of RGB images in 0..1.

    Raises
    ------
    kbnet_plugin.errors.BadInput
        If AlexNet's trained weights are missing.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # from the many packages that basicsr loads
        from basicsr_ext.metrics import calculate_lpips
    # The metric expects BasicSR's images: BGR in 0..255.
    return calculate_lpips(a[..., ::-1] * 255, b[..., ::-1] * 255)
