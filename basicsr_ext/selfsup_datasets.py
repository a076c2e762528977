"""Datasets without ground truth: noisy stacks and pictures for Noise2Void and Noise2Noise."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from kbnet_plugin.arrays.intensity import Range
from kbnet_plugin.errors import BadInput
from kbnet_plugin.selfsup.masking import MASKED_PIXEL_PERCENTAGE, STRATEGY, fill_missing, mask
from kbnet_plugin.selfsup.planes import Planes

from .image_dataset import Sample, sample_generator
from .options import Options


class NoisyDataset(Dataset[Sample]):
    """Planes of noisy stacks: cropped, flipped and rotated, scaled to 0..1 with one fixed range.

    Parameters
    ----------
    opt : dict
        dataroot_lq : stack, picture, or folder of them; see `Planes`.
        axes : axes of every file.
        in_ch : channels per sample, 1 (default) or 3.
        range : the two values that become 0 and 1; by default `Planes.range`.
        gt_size : side of the training crop.
        geometric_augs : flip and rotate at random (8 ways).
        cache_images : read everything into memory first.
        phase : only 'train', as there is no ground truth to validate against.

    Raises
    ------
    BadInput
        If there is nothing to read, or a plane is smaller than the crop.
    """

    def __init__(self, opt: Options) -> None:
        if opt["phase"] != "train":
            raise BadInput(f"{opt['type']} has no ground truth and is for training only; use another type")
        self.opt = opt
        self.augment = bool(opt.get("geometric_augs", opt.get("use_hflip") or opt.get("use_rot")))
        self.planes = self._open(opt["dataroot_lq"])
        low, high = self.planes.range(opt.get("range") or None)
        self.scale = Range(low, high - low)
        crop = max(opt.get("gt_sizes") or [opt.get("gt_size") or 0])
        for number in range(len(self.planes)):
            height, width = self.planes.size(number)
            if not crop or min(height, width) < crop:
                raise BadInput(
                    f"{self.planes.name(number)} is {width}x{height} (width x height), smaller than the crop "
                    f"of {crop}; lower gt_size"
                    if crop
                    else "gt_size is missing: the side of the training crop, in pixels"
                )

    def _open(self, path: str) -> Planes:
        axes, channels = self.opt.get("axes"), int(self.opt.get("in_ch") or 1)
        return Planes(path, axes, channels, keep=bool(self.opt.get("cache_images")))

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> Sample: ...

    def _window(self, number: int) -> tuple[slice, slice]:
        side = int(self.opt["gt_size"])
        top, left = (np.random.randint(n - side + 1) for n in self.planes.size(number))
        return slice(top, top + side), slice(left, left + side)

    def _augmented(self, *pictures: NDArray[Any]) -> list[NDArray[np.float32]]:
        """Flip and rotate pictures (H, W, C) alike, scaled to 0..1, with NaN for infinite values."""
        return [self._scaled(turned) for turned in self._turned(*pictures)]

    def _turned(self, *pictures: NDArray[Any]) -> list[NDArray[Any]]:
        turns, flip = (np.random.randint(4), np.random.randint(2)) if self.augment else (0, 0)
        return [np.ascontiguousarray(np.rot90(p[:, ::-1] if flip else p, turns)) for p in pictures]

    def _scaled(self, picture: NDArray[Any]) -> NDArray[np.float32]:
        scaled = self.scale.apply(picture)
        return np.where(np.isfinite(scaled), scaled, np.float32(np.nan))


class Dataset_BlindSpot(NoisyDataset):
    """Noisy planes with a few pixels masked (Noise2Void); 'gt' contains their values, and NaN elsewhere.

    Parameters
    ----------
    opt : dict
        Keys of `NoisyDataset`, and
        masked_pixel_percentage : percentage of pixels to mask.
        strategy : how they are replaced, 'median' or 'uniform'; see
            `kbnet_plugin.selfsup.masking.replacements`.
        correlated : direction in which neighbouring pixels share their noise, 'horizontal' or 'vertical'.
    """

    def __len__(self) -> int:
        return len(self.planes)

    def __getitem__(self, index: int) -> Sample:
        noisy = self.planes.read(index, self._window(index))
        percentage = self.opt.get("masked_pixel_percentage") or MASKED_PIXEL_PERCENTAGE
        strategy = self.opt.get("strategy") or STRATEGY
        if correlated := self.opt.get("correlated"):  # in the picture as it was taken
            both = mask(self._scaled(noisy), sample_generator(), percentage, strategy, correlated)
            masked, target = self._turned(*both)
        else:
            (turned,) = self._augmented(noisy)
            masked, target = mask(turned, sample_generator(), percentage, strategy)
        return sample(masked, target, self.planes.name(index))


class Dataset_PlanePairs(NoisyDataset):
    """Pairs of noisy planes of the same scene (Noise2Noise); either one may be the target.

    Parameters
    ----------
    opt : dict
        Keys of `NoisyDataset`, and
        dataroot_gt : a second recording of the scene, plane for plane; by default, successive planes are
            paired.
        pair_axis : axis along which planes are paired; by default T, else Z.
    """

    def __init__(self, opt: Options) -> None:
        super().__init__(opt)
        self.others = self.planes
        if second := opt.get("dataroot_gt"):
            self.others = self._open(second)
            own, other = ([p.size(n) for n in range(len(p))] for p in (self.planes, self.others))
            if own != other:
                raise BadInput(
                    f"the pairs do not match: {second} has {len(other)} plane(s), {opt['dataroot_lq']} has "
                    f"{len(own)}, or they differ in size; both must show the same scene, plane for plane"
                )
            self.pairs = [(n, n) for n in range(len(own))]
        else:
            self.pairs = self.planes.pairs(opt.get("pair_axis"))

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Sample:
        first, second = self.pairs[index]
        window = self._window(first)
        both = self._augmented(self.planes.read(first, window), self.others.read(second, window))
        if np.random.randint(2):
            both.reverse()
        return sample(fill_missing(both[0], sample_generator()), both[1], self.planes.name(first))


def sample(noisy: NDArray[np.float32], target: NDArray[np.float32], name: str) -> Sample:
    """Return input and target (H, W, C) as a sample."""
    lq, gt = (torch.from_numpy(np.ascontiguousarray(p.transpose(2, 0, 1))) for p in (noisy, target))
    return {"lq": lq, "gt": gt, "lq_path": name, "gt_path": name}
