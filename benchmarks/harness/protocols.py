"""How a restored picture is compared with the truth: every protocol by its name, exact."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from skimage.color import rgb2ycbcr
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

Metric = Literal["psnr", "ssim", "mae", "lpips"]
METRICS: tuple[Metric, ...] = get_args(Metric)
Image = NDArray[np.float32]


@dataclass(frozen=True)
class Protocol:
    """How images are made and compared; `text` says it to people.

    Attributes
    ----------
    noise : {"", "numbered", "same"}
        White Gaussian noise from ``numpy.random.default_rng([0, i])`` for the i-th image, or from
        ``numpy.random.seed(0)`` before each; in float, neither clipped nor rounded.
    rounded : bool
        Whether the result is rounded to 8 bits, as a saved picture is, before it is compared.
    luma : bool
        Compare ITU-R BT.601 luma in 16..235, rounded, as MATLAB's rgb2ycbcr gives it for 8-bit images.
    crop : int
        Pixels left out at every edge.
    ssim : {"gaussian", "uniform range 2"}
        Window of 11 x 11 with a Gaussian of 1.5 and the true data range (Wang et al. 2004), or scikit-image's
        default of 7 x 7 with the range of -1..1 that it used to assume for floats.
    psnr : {"clipped", "guessed"}
        Peak 1 after clipping; or no clipping, and a peak guessed as 1 or 255 from the largest value.
    tile, margin : int
        Where `tile` is not 0, restore in squares of that many pixels plus a margin, reflected at the edges.
    sound : bool
        False for what a released script does and nobody should.
    """

    text: str
    noise: Literal["", "numbered", "same"] = ""
    rounded: bool = False
    luma: bool = False
    crop: int = 0
    ssim: Literal["gaussian", "uniform range 2"] = "gaussian"
    psnr: Literal["clipped", "guessed"] = "clipped"
    tile: int = 0
    margin: int = 0
    sound: bool = True


_FLOAT = "result clipped and not rounded"
PROTOCOLS = {
    "gaussian": Protocol(f"noise of default_rng([0, i]) in float; {_FLOAT}; RGB or gray", noise="numbered"),
    "gaussian-uint8": Protocol(
        "noise of default_rng([0, i]) in float; result rounded to 8 bits", noise="numbered", rounded=True
    ),
    "gaussian-released": Protocol(
        "as KBNet's script: noise of numpy.random.seed(0) for every image, result rounded to 8 bits",
        noise="same",
        rounded=True,
    ),
    "pairs": Protocol(f"{_FLOAT}; RGB"),
    "pairs-uint8": Protocol("result rounded to 8 bits; RGB", rounded=True),
    "sidd": Protocol(f"{_FLOAT}; RGB; SSIM with an 11 x 11 Gaussian window and range 1"),
    "sidd-released": Protocol(
        "as KBNet's script: SSIM with a 7 x 7 window and an assumed range of 2, which raises it",
        ssim="uniform range 2",
        sound=False,
    ),
    "guessed-range": Protocol(
        "as Restormer's and KBNet's float PSNR: not clipped, and a peak of 255 once a value exceeds 1",
        psnr="guessed",
        sound=False,
    ),
    "rain": Protocol("result rounded to 8 bits; MATLAB's luma, rounded", rounded=True, luma=True),
    "defocus": Protocol(
        f"tiles of 1024 with a margin of 64; {_FLOAT}; RGB; LPIPS version 0.1, alex", tile=1024, margin=64
    ),
    "sensenoise": Protocol(
        "tiles of 1024 with a margin of 64; result rounded to 8 bits; RGB", rounded=True, tile=1024, margin=64
    ),
}
"""Protocols that tables can name."""


def noisy(clean: Image, sigma: float, index: int, protocol: Protocol) -> Image:
    """Add the protocol's noise of standard deviation `sigma` (of 255) to the image of that index (0..1)."""
    if protocol.noise == "numbered":
        noise = np.random.default_rng([0, index]).standard_normal(clean.shape)
    elif protocol.noise == "same":
        noise = np.random.RandomState(0).normal(0, 1, clean.shape)
    else:
        raise ValueError("this protocol makes no noise; take gaussian, or leave sigma out")
    return clean + (noise * sigma).astype(np.float32) / np.float32(255)


def compare(restored: Image, truth: Image, metrics: Sequence[str], protocol: Protocol) -> dict[str, float]:
    """The metrics of a restored image, both (H, W, C) in 0..1."""
    if restored.shape != truth.shape:
        raise ValueError(f"the result is {restored.shape}, the truth {truth.shape}")
    if not np.isfinite(restored).all():
        raise ValueError("the result holds NaN or infinity")
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
    """MATLAB's rgb2ycbcr of an 8-bit image, its first channel: RGB in 0..1 to Y in 16/255..235/255."""
    if rgb.shape[2] != 3:
        raise ValueError("luma is made of three channels")
    # floor(x + 0.5), as MATLAB rounds; numpy takes halves to even.
    return np.floor(rgb2ycbcr(rgb)[..., :1] + 0.5) / 255


def psnr(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Peak signal-to-noise ratio in dB with a peak of 1."""
    if np.array_equal(a, b):
        raise ValueError("the result is the truth itself: PSNR is infinite")
    return float(peak_signal_noise_ratio(b, a, data_range=1))


def guessed_psnr(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """PSNR as `psnr`, but with a peak of 255 where any value exceeds 1: 48 dB more for one bright pixel."""
    peak = 1.0 if a.max() <= 1 else 255.0
    return float(peak_signal_noise_ratio(b, a, data_range=peak))


def ssim(a: NDArray[np.float64], b: NDArray[np.float64], kind: str = "gaussian") -> float:
    """Structural similarity, mean over channels; Wang et al., IEEE TIP 13(4), 2004."""
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
    """LPIPS 0.1 in AlexNet; raises `kbnet_plugin.errors.BadInput` where its trained weights are not there."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the many packages that basicsr loads
        from basicsr_ext.metrics import calculate_lpips
    # The metric takes BasicSR's images: BGR in 0..255.
    return calculate_lpips(a[..., ::-1] * 255, b[..., ::-1] * 255)
