"""Datasets without truth: noisy stacks and pictures, of which some pixels or planes teach the others."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from kbnet_plugin.arrays.intensity import Range, check_rule
from kbnet_plugin.errors import BadInput
from kbnet_plugin.selfsup.masking import MASKED_PIXEL_PERCENTAGE, STRATEGY, fill_missing, mask
from kbnet_plugin.selfsup.planes import Planes

from .datasets import Sample
from .options import Options


class NoisyDataset(Dataset[Sample]):
    """Planes of noisy stacks: cropped, turned, scaled to 0..1 by one fixed rule.

    Parameters
    ----------
    opt : dict
        dataroot_lq : stack, picture, or folder of them; see `Planes`.
        axes : of every file.
        in_ch : channels that the network sees together, 1 (default) or 3.
        range : the two values that become 0 and 1; by default `Planes.range`.
        gt_size : side of the training crop.
        geometric_augs : train on a random one of the 8 turns and flips.
        cache_images : read everything into memory first.
        phase : only 'train'; there is no truth to validate against.

    Raises
    ------
    BadInput
        If there is nothing to read, or a plane is smaller than the crop.
    """

    def __init__(self, opt: Options) -> None:
        if opt["phase"] != "train":
            raise BadInput(f"{opt['type']} is for training: there is no truth; take it out, or use truth")
        self.opt = opt
        self.turn = bool(opt.get("geometric_augs", opt.get("use_hflip") or opt.get("use_rot")))
        self.planes = self._open(opt["dataroot_lq"])
        rule = opt.get("range")
        low, high = check_rule(tuple(rule)) if rule else self.planes.range()
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

    def _turned(self, *pictures: NDArray[Any]) -> list[NDArray[np.float32]]:
        """Pictures (H, W, C) all turned and flipped alike, in 0..1, NaN where they are not finite."""
        turns, flip = (np.random.randint(4), np.random.randint(2)) if self.turn else (0, 0)
        made = []
        for picture in pictures:
            turned = np.rot90(picture[:, ::-1] if flip else picture, turns)
            scaled = self.scale.apply(np.ascontiguousarray(turned))
            made.append(np.where(np.isfinite(scaled), scaled, np.float32(np.nan)))
        return made


class Dataset_BlindSpot(NoisyDataset):
    """Noisy planes in which a few pixels are hidden (Noise2Void); 'gt' has their values, and NaN elsewhere.

    Parameters
    ----------
    opt : dict
        Keys of `NoisyDataset`, and
        masked_pixel_percentage : how many pixels are masked, in percent.
        strategy : what replaces them, 'median' or 'uniform'; see
            `kbnet_plugin.selfsup.masking.replacements`.
    """

    def __len__(self) -> int:
        return len(self.planes)

    def __getitem__(self, index: int) -> Sample:
        (noisy,) = self._turned(self.planes.read(index, self._window(index)))
        percentage = self.opt.get("masked_pixel_percentage") or MASKED_PIXEL_PERCENTAGE
        strategy = self.opt.get("strategy") or STRATEGY
        seen, wanted = mask(noisy, _generator(), percentage, strategy)
        return _sample(seen, wanted, self.planes.name(index))


class Dataset_PlanePairs(NoisyDataset):
    """Pairs of noisy planes that show the same (Noise2Noise); each teaches the other.

    Parameters
    ----------
    opt : dict
        Keys of `NoisyDataset`, and
        dataroot_gt : a second recording of the same, plane for plane; by default planes that follow each
            other pair up.
        pair_axis : along which; by default T, or else Z.
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
                    f"{len(own)}, or they differ in size; both must show the same, plane for plane"
                )
            self.pairs = [(n, n) for n in range(len(own))]
        else:
            self.pairs = self.planes.pairs(opt.get("pair_axis"))

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Sample:
        first, second = self.pairs[index]
        window = self._window(first)
        both = self._turned(self.planes.read(first, window), self.others.read(second, window))
        if np.random.randint(2):
            both.reverse()
        return _sample(fill_missing(both[0], _generator()), both[1], self.planes.name(first))


def _generator() -> np.random.Generator:
    """Seeded from the global generator, which the sampler seeds for every sample."""
    return np.random.default_rng(np.random.randint(2**63, size=4, dtype=np.int64))


def _sample(seen: NDArray[np.float32], wanted: NDArray[np.float32], name: str) -> Sample:
    lq, gt = (torch.from_numpy(np.ascontiguousarray(p.transpose(2, 0, 1))) for p in (seen, wanted))
    return {"lq": lq, "gt": gt, "lq_path": name, "gt_path": name}
