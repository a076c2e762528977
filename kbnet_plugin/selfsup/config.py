"""What to learn from, and how; told without torch."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from typing import Any, Literal, get_args

from numpy.typing import NDArray

from ..arrays.intensity import RangeRule
from .masking import MASKED_PIXEL_PERCENTAGE, STRATEGY, Norm, Strategy

Method = Literal["n2v", "n2n"]
METHODS: tuple[str, ...] = get_args(Method)

SCRATCH = "scratch"
"""What `FitConfig.init` calls weights drawn at random."""

NETWORK: dict[str, Any] = {
    "type": "KBNet_s",
    "width": 16,
    "enc_blk_nums": [1, 1],
    "middle_blk_num": 2,
    "dec_blk_nums": [1, 1],
    "lightweight": True,
    "ffn_scale": 1.5,
}
"""What is trained where nothing is started from."""

WHEN_IT_FAILS = (
    "It can only remove noise that is independent from pixel to pixel. What a camera demosaicked, what was "
    "resampled, registered, compressed or denoised before, and line noise of scanners, has noise that "
    "neighbours share: such noise is taken for signal and stays."
)
DOUBT = (
    "Neighbouring pixels seem to share their noise here, or there is hardly any: little may be gained. Take "
    "the recording before it was demosaicked, resampled, compressed or denoised, or learn from pairs of "
    "planes (n2n)."
)
PAIRS_FAIL = (
    "It takes for noise whatever differs between the two planes of a pair: what moves, bleaches or lies at "
    "another depth is averaged away. Their noise must be independent of each other."
)


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """What to learn from, and how; every default stands here.

    Attributes
    ----------
    source : path or array
        A noisy stack or picture (.npy, TIFF, OME-Zarr, PNG, JPEG), a folder of them, or an array.
    name : str
        Of the model.
    method : {"n2v", "n2n"}
        Noise2Void: some pixels are hidden and learned from those around. Noise2Noise: planes that show the
        same with other noise teach each other.
    second : path or array, optional
        For n2n: another recording of the same, plane for plane; by default planes follow each other.
    pair_axis : str, optional
        For n2n: axis along which they do; by default T, or else Z.
    init : str or path, optional
        A model to start from, or ``"scratch"``; by default the shipped one for the channels.
    iterations : int
    axes : str, optional
        Of the source, as for `Restorer`.
    range : "dtype", "percentile" or (float, float), optional
        What becomes 0 and 1, fixed for the whole source and kept with the model; see `Planes.range`.
    patch, batch : int
        Side and number of the training crops of a step; by default 8 on a CPU, 64 on a GPU.
    learning_rate : float, optional
        By default 3e-3 from nothing, 1e-3 from a model.
    masked_pixel_percentage, strategy : float, str
        How many pixels are masked, and what replaces them; see `kbnet_plugin.selfsup.masking`.
    norm : {"l2", "l1"}
        Of the loss.
    shrinkage : bool
        For n2v: let a pixel's own value count as far as it promises the least error; see
        `kbnet_plugin.selfsup.sure`.
    network : mapping
        Arguments of the network where it starts from nothing, but for its channels.
    device : str
        As for `Restorer`, but CUDA or CPU.
    precision : {"fp32", "bf16", "fp16"}, optional
        By default bf16 on a GPU that has it.
    compile : bool
        Compile the network first, which takes a minute and pays on a GPU from some thousand steps on.
    workers : int, optional
        Processes that cut crops; by default none on a CPU.
    seed : int
    """

    source: str | PathLike[str] | NDArray[Any]
    name: str
    method: Method = "n2v"
    second: str | PathLike[str] | NDArray[Any] | None = None
    pair_axis: str | None = None
    init: str | PathLike[str] | None = None
    iterations: int = 2000
    axes: str | None = None
    range: RangeRule | None = None
    patch: int = 64
    batch: int | None = None
    learning_rate: float | None = None
    masked_pixel_percentage: float = MASKED_PIXEL_PERCENTAGE
    strategy: Strategy = STRATEGY
    norm: Norm = "l2"
    shrinkage: bool = True
    network: Mapping[str, Any] | None = None
    device: str = "auto"
    precision: str | None = None
    compile: bool = False
    workers: int | None = None
    seed: int = 0


def can_train() -> bool:
    """Whether the extra `train` is installed."""
    return all(importlib.util.find_spec(name) is not None for name in ("basicsr", "basicsr_ext"))
