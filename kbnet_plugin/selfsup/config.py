"""What to train on and how, and whether training is possible. Imports no torch."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from typing import Any, Literal, get_args

from numpy.typing import NDArray

from ..arrays.intensity import RangeRule
from .masking import MASKED_PIXEL_PERCENTAGE, STRATEGY, Direction, Norm, Strategy

Method = Literal["r2r", "n2v", "n2n"]
METHODS: tuple[str, ...] = get_args(Method)

SCRATCH = "scratch"
"""Value of `FitConfig.init` for random weights."""

NETWORK: dict[str, Any] = {
    "type": "KBNet_s",
    "width": 16,
    "enc_blk_nums": [1, 1],
    "middle_blk_num": 2,
    "dec_blk_nums": [1, 1],
    "lightweight": True,
    "ffn_scale": 1.5,
}
"""Network that is trained from scratch, without its number of channels."""

WHEN_IT_FAILS = (
    "Single planes teach a model only if the noise is independent from pixel to pixel. After demosaicking, "
    "resampling, registration, compression or denoising, neighbouring pixels share their noise, and line "
    "scanners add streaks: the model would take such noise for signal and keep it."
)
"""Limits of training on single planes, for users."""

PAIRS_FAIL = (
    "Noise2Noise removes whatever differs between the two planes of a pair. They must show the same scene "
    "with independent noise: anything that moves, bleaches or lies at another depth is averaged away."
)
"""Limits of Noise2Noise, for users."""

DOUBT = (
    "neighbouring pixels share their noise, or there is hardly any: single planes teach a model nothing. "
    "Use the recording from before demosaicking, resampling, compression or denoising, train on pairs of "
    "planes (n2n), or mask lines (n2v) if noise is shared along rows or along columns alone"
)
"""Why single planes do not suit a source, for users."""


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """What to train on, and how. All defaults are defined here.

    Attributes
    ----------
    source : path or array
        Noisy stack or picture (.npy, TIFF, OME-Zarr, PNG, JPEG), a folder of them, or an array.
    name : str
        Name of the model.
    method : {"r2r", "n2v", "n2n"}
        Recorrupted2Recorrupted: noise as measured is added to the input and taken off the target, which makes
        the two independent. From a model, it first learns to remove noise as measured from what that model
        makes of the planes. Noise2Void: some pixels are masked and predicted from their surroundings.
        Noise2Noise: each plane is predicted from another that shows the same scene with different noise.
    second : path or array, optional
        For n2n: another recording of the same scene, plane for plane; by default successive planes are pairs.
    pair_axis : str, optional
        For n2n: axis along which planes are successive; by default T, or Z if there is no T.
    init : str or path, optional
        Model to start from, or ``"scratch"``; by default the shipped model for the number of channels.
    iterations : int, optional
        Number of training steps, from 1; by default as the number of pixels requires.
    minutes : float, optional
        Time for training, instead of a number of steps; above 0. The learning rate then goes by the clock.
    axes : str, optional
        Axes of the source: one letter of `kbnet_plugin.arrays.axes.AXES` per axis.
    range : "dtype", "percentile" or (float, float), optional
        Which values become 0 and 1, for the whole source and later for the model; see `Planes.range`.
    patch : int
        Side of the training crops, in pixels.
    batch : int, optional
        Number of crops per step; by default 8 on a CPU, 64 on a GPU.
    learning_rate : float, optional
        By default 3e-3 from scratch; from a model 1e-3 for r2r, else 3e-4.
    masked_pixel_percentage : float
        For n2v: how many pixels are masked, in percent; above 0, at most 100.
    strategy : {"median", "uniform"}
        For n2v: what replaces masked pixels; see `kbnet_plugin.selfsup.masking.replacements`.
    correlated : {"horizontal", "vertical"}, optional
        For n2v: direction in which neighbouring pixels share their noise, as in line scanners. Lines are
        masked then. The result cannot be measured without truth.
    norm : {"l2", "l1"}
        Loss: mean squared or mean absolute error; r2r needs squared ones.
    network : mapping, optional
        Arguments of the network from scratch that differ from `NETWORK`.
    device : str
        ``"auto"``, ``"cpu"``, or a CUDA device such as ``"cuda:0"``.
    precision : {"fp32", "bf16", "fp16"}, optional
        By default bf16 on a GPU that supports it, else fp32.
    compile : bool
        Compile the network first. It takes a minute, and pays off on a GPU from some thousand steps on.
    workers : int, optional
        Processes that cut crops; by default up to 8 on a GPU, none on a CPU.
    seed : int
        Seed of all random numbers.
    """

    source: str | PathLike[str] | NDArray[Any]
    name: str
    method: Method = "r2r"
    second: str | PathLike[str] | NDArray[Any] | None = None
    pair_axis: str | None = None
    init: str | PathLike[str] | None = None
    iterations: int | None = None
    minutes: float | None = None
    axes: str | None = None
    range: RangeRule | None = None
    patch: int = 64
    batch: int | None = None
    learning_rate: float | None = None
    masked_pixel_percentage: float = MASKED_PIXEL_PERCENTAGE
    strategy: Strategy = STRATEGY
    correlated: Direction | None = None
    norm: Norm = "l2"
    network: Mapping[str, Any] | None = None
    device: str = "auto"
    precision: str | None = None
    compile: bool = False
    workers: int | None = None
    seed: int = 0


def can_train() -> bool:
    """Tell whether the extra `train` is installed."""
    return all(importlib.util.find_spec(name) is not None for name in ("basicsr", "basicsr_ext"))
