"""Datasets with the names and keys of the option files that KBNet and Restormer released."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from kbnet_plugin.arrays.degradations import (
    add_gaussian,
    add_poisson_gaussian,
    seeded_by_index,
    to_linear,
    to_srgb,
)
from kbnet_plugin.degradations import Draws, Pipeline
from kbnet_plugin.degradations.microscopy import Fluorescence
from kbnet_plugin.degradations.noise import PoissonGaussian
from kbnet_plugin.degradations.pipeline import apply_to_some
from kbnet_plugin.errors import BadInput

from .image_dataset import ImageDataset
from .options import Options


class Dataset_PairedImage(ImageDataset):
    """Degraded images (``dataroot_lq``) and clean ones (``dataroot_gt``); keys of `ImageDataset`."""

    roles = ("gt", "lq")

    def degrade(self, images: dict[str, Tensor], draws: Draws) -> tuple[Tensor, Tensor]:
        return images["lq"], images["gt"]


class Dataset_GaussianDenoising(ImageDataset):
    """Clean images (``dataroot_gt``) with white Gaussian noise added on the fly, neither clipped nor rounded.

    Parameters
    ----------
    opt : dict
        Keys of `ImageDataset`, and
        sigma_type : how training noise is drawn: 'constant', 'random' (uniform) or 'choice'.
        sigma_range : its standard deviation, 0..255: a number, a pair of bounds, or a list to choose from.
        sigma_test : standard deviation in validation and test; by default the constant one.

    Notes
    -----
    The i-th validation image gets the noise of ``numpy.random.default_rng([0, i])``, drawn as (H, W, C): it
    differs between images, is the same in every run, and leaves the global generators alone.
    """

    roles = ("gt",)

    def __init__(self, opt: Options) -> None:
        super().__init__(opt)
        self.kind = opt.get("sigma_type") or "constant"
        given = opt.get("sigma_range")
        sigmas = [float(s) for s in (given if isinstance(given, list) else [] if given is None else [given])]
        if self.kind == "random" and len(sigmas) == 1:
            sigmas.insert(0, 0.0)  # the released files give one bound, on which their own code fails
        fits = {"constant": len(sigmas) == 1, "random": len(sigmas) == 2, "choice": len(sigmas) >= 1}
        if self.kind not in fits:
            raise BadInput(f"sigma_type must be one of {', '.join(fits)}, not {self.kind!r}")
        if self.train and not (fits[self.kind] and min(sigmas) >= 0 and sigmas == sorted(sigmas)):
            raise BadInput(f"sigma_type {self.kind!r} does not fit sigma_range {given!r} (in 0..255)")
        self.sigmas = sigmas
        test = opt.get("sigma_test", sigmas[0] if len(sigmas) == 1 else None)
        if not self.train and test is None:
            raise BadInput("sigma_test is missing: the noise of validation images, 0..255")
        self.sigma_test = float(test or 0)

    def degrade(self, images: dict[str, Tensor], draws: Draws) -> tuple[Tensor, Tensor]:
        gt = images["gt"]
        if self.kind == "random":
            sigma = draws.uniform(*self.sigmas)
        else:
            sigma = np.array(self.sigmas)[draws.integers(0, len(self.sigmas))]
        return gt + draws.normal_map(*gt.shape[1:]) * draws.on_device(sigma / 255), gt

    def degrade_test(self, images: dict[str, Tensor], index: int) -> tuple[Tensor, Tensor]:
        gt = images["gt"]
        zeros = np.zeros(gt[0].permute(1, 2, 0).shape)
        return gt + _nchw(add_gaussian(zeros, self.sigma_test / 255, seeded_by_index(index))), gt


class Dataset_PoissonGaussianDenoising(ImageDataset):
    """Clean images (``dataroot_gt``) with sensor noise added on the fly.

    Parameters
    ----------
    opt : dict
        Keys of `ImageDataset`, and
        domain : 'camera': the images are sRGB; noise is added in linear light and clipped to 0..1, where the
            sensor saturates. 'microscope': the intensities are the signal, and nothing is clipped.
        gain_range : variance per unit of intensity (0..1), i.e. one over the number of photons at white: a
            number, or two bounds between which it is drawn log-uniformly.
        read_noise_range : standard deviation in the dark (0..1), likewise.
        fluorescence : fraction of training crops, by default 0, that are made to look like fluorescence: a
            dark background with sparse bright structures of any brightness.
        gain_test, read_noise_test : values in validation and test; by default the ranges' geometric mean.

    Notes
    -----
    A signal x becomes ``gain * Poisson(x / gain) + read_noise * N(0, 1)`` (Foi et al., "Practical
    Poissonian-Gaussian Noise Modeling and Fitting for Single-Image Raw-Data", IEEE TIP 2008). The i-th
    validation image gets the noise of ``numpy.random.default_rng([0, i])``.
    """

    roles = ("gt",)

    def __init__(self, opt: Options) -> None:
        super().__init__(opt)
        self.camera = (opt.get("domain") or "camera") == "camera"
        self.fluorescence = float(opt.get("fluorescence") or 0)
        self.ranges: list[tuple[float, float]] = []
        self.test: list[float] = []
        for name in ("gain", "read_noise"):
            given = opt.get(f"{name}_range")
            bounds = [float(v) for v in (given if isinstance(given, list) else [given]) if v is not None]
            fixed = opt.get(f"{name}_test")
            if len(bounds) not in (1, 2) and (self.train or fixed is None):
                problem = f"has {len(bounds)} values" if bounds else "is missing"
                raise BadInput(f"{name}_range {problem}; give one number, or two bounds, in 0..1")
            if bounds != sorted(bounds) or (len(bounds) == 2 and bounds[0] == 0 < bounds[1]):
                raise BadInput(
                    f"{name}_range {given!r}: the bounds must increase, and the lower must be above 0, "
                    "because the value is drawn log-uniformly"
                )
            low, high = (bounds[0], bounds[-1]) if bounds else (0.0, 0.0)
            self.ranges.append((low, high))
            self.test.append(math.sqrt(low * high) if fixed is None else float(fixed))
        self.noise = PoissonGaussian(*self.ranges)
        self.structures = Fluorescence(drawn=0, blur=0, haze=0)

    def degrade(self, images: dict[str, Tensor], draws: Draws) -> tuple[Tensor, Tensor]:
        clean = images["gt"]
        chosen = draws.uniform() < self.fluorescence
        clean, _ = apply_to_some(self.structures, chosen, clean, clean, draws)
        noisy, _ = self.noise(srgb_to_linear(clean) if self.camera else clean, clean, draws)
        return (linear_to_srgb(noisy.clamp(0, 1)) if self.camera else noisy), clean

    def degrade_test(self, images: dict[str, Tensor], index: int) -> tuple[Tensor, Tensor]:
        clean = images["gt"][0].permute(1, 2, 0).numpy()
        signal = to_linear(clean) if self.camera else clean
        gain, read_noise = self.test
        noisy = add_poisson_gaussian(signal, gain, read_noise, seeded_by_index(index))
        return _nchw(to_srgb(noisy.clip(0, 1)) if self.camera else noisy), images["gt"]


class Dataset_DefocusDeblur_DualPixel_16bit(ImageDataset):
    """Left and right views of a dual-pixel sensor (``dataroot_lqL``, ``dataroot_lqR``), and ``dataroot_gt``.

    'lq' stacks both views, (6, H, W). Keys of `ImageDataset`; files may have 8 or 16 bits.
    """

    roles = ("gt", "lqL", "lqR")

    def degrade(self, images: dict[str, Tensor], draws: Draws) -> tuple[Tensor, Tensor]:
        return torch.cat([images["lqL"], images["lqR"]], 1), images["gt"]


class Dataset_CleanImages(ImageDataset):
    """Clean images (``dataroot_gt``), degraded by a list of steps.

    Parameters
    ----------
    opt : dict
        Keys of `ImageDataset`, and
        degradations : steps for `kbnet_plugin.degradations.Pipeline`, each with its ``type``, the probability
            ``prob`` (1) and the arguments of its class.

    Notes
    -----
    The i-th validation image is degraded with ``Draws([(0, i)])``, alike in every run.

    Raises
    ------
    BadInput
        If a step is invalid; the message names it.
    """

    roles = ("gt",)

    def __init__(self, opt: Options) -> None:
        super().__init__(opt)
        self.pipeline = Pipeline(opt["degradations"])

    def degrade(self, images: dict[str, Tensor], draws: Draws) -> tuple[Tensor, Tensor]:
        return self.pipeline(images["gt"], draws)


def srgb_to_linear(image: Tensor) -> Tensor:
    """Convert sRGB to linear light, both 0..1 (IEC 61966-2-1)."""
    return torch.where(image <= 0.04045, image / 12.92, ((image.clamp(min=0) + 0.055) / 1.055) ** 2.4)


def linear_to_srgb(image: Tensor) -> Tensor:
    """Convert linear light to sRGB, both 0..1 (IEC 61966-2-1)."""
    return torch.where(image <= 0.0031308, image * 12.92, 1.055 * image.clamp(min=0) ** (1 / 2.4) - 0.055)


def _nchw(image: np.ndarray) -> Tensor:
    return torch.from_numpy(image.astype(np.float32)).permute(2, 0, 1)[None]
