"""Datasets with the names and keys of the option files that KBNet and Restormer released."""

from __future__ import annotations

import math
import os
from abc import abstractmethod
from typing import Any

import cv2
import numpy as np
import torch
from basicsr.utils.file_client import FileClient
from torch import Tensor
from torch.utils.data import Dataset

from kbnet_plugin.arrays.degradations import (
    add_gaussian,
    add_poisson_gaussian,
    seeded_by_index,
    to_linear,
    to_srgb,
)
from kbnet_plugin.errors import BadInput

from .files import decode, header_sizes, image_files, pair_up, read_listing, read_lmdb_listing, to_unit
from .options import Options

Sample = dict[str, Any]


class ImageDataset(Dataset[Sample]):
    """Aligned images in one or more roles ('gt', 'lq', ...): listed, checked, read, cropped, augmented.

    Parameters
    ----------
    opt : dict
        dataroot_<role> : folder, or ``*.lmdb`` with ``io_backend: {type: lmdb}``.
        meta_info_file : text file with names relative to the roots, one per line; or
        files : list of such names.
        filename_tmpl : name in the other roles, given that in the first; by default ``"{}"``.
        in_ch : channels to read, 3 (default) or 1.
        gt_size : side of the training crop, in pixels.
        pad_small : pad images smaller than the crop by reflection, instead of refusing them.
        reduce : largest whole factor by which large clean images are reduced (box mean) before cropping; the
            factor is drawn for each sample, from those that leave room for four crops side by side. Reduced
            photographs have the fine structure of small pictures, and fewer JPEG artifacts.
        geometric_augs (or use_hflip, use_rot) : flip and rotate at random in training (8 ways).
        cache_images : keep decoded images in memory (per worker), for small sets.
        phase : 'train' crops and augments; 'val' and 'test' do not.
        scale : how many times larger 'gt' is than the other roles.

    Raises
    ------
    BadInput
        If a file is missing, sizes differ within a pair, or an image is smaller than the largest crop.
    """

    roles: tuple[str, ...]

    def __init__(self, opt: Options) -> None:
        self.opt = opt
        self.train = opt["phase"] == "train"
        self.scale = int(opt.get("scale") or 1)
        self.channels = int(opt.get("in_ch") or 3)
        if self.channels not in (1, 3):
            raise BadInput(f"in_ch must be 1 (gray) or 3 (colour), not {self.channels}")
        if opt.get("mean") is not None or opt.get("std") is not None:
            raise BadInput(
                "mean and std are not supported: the networks read and return 0..1; remove the keys"
            )
        self.reduce = int(opt.get("reduce") or 1)
        if self.reduce > 1 and len(self.roles) > 1:
            raise BadInput("reduce is for clean images only: reducing pairs would change the degradation")
        self.augment = bool(opt.get("geometric_augs", opt.get("use_hflip") or opt.get("use_rot")))
        self.folders = {role: self._folder(role) for role in self.roles}
        self.backend = dict(opt.get("io_backend") or {"type": "disk"})
        self.paths, sizes = self._list()
        self._check_sizes(sizes)
        self._client: FileClient | None = None
        self._cache: dict[str, np.ndarray] | None = {} if opt.get("cache_images") else None

    def __len__(self) -> int:
        return len(self.paths)

    @abstractmethod
    def __getitem__(self, index: int) -> Sample: ...

    def _folder(self, role: str) -> str:
        if not (folder := self.opt.get(f"dataroot_{role}")):
            raise BadInput(f"the key dataroot_{role} is missing")
        return str(folder)

    def _list(self) -> tuple[list[dict[str, str]], dict[str, tuple[int, int]]]:
        """List paths by role, and sizes by path."""
        if self.backend["type"] == "lmdb":
            return self._list_lmdb()
        names = self.opt.get("files")
        if self.opt.get("meta_info_file"):
            names = read_listing(self.opt["meta_info_file"])
        if names:
            paths = [self._named(name) for name in names]
        elif len(self.folders) == 1:
            ((role, folder),) = self.folders.items()
            paths = [{role: path} for path in image_files(folder).values()]
        else:
            paths = pair_up(self.folders, self.opt.get("filename_tmpl") or "{}")
        return paths, header_sizes(path for entry in paths for path in entry.values())

    def _named(self, name: str) -> dict[str, str]:
        stem, suffix = os.path.splitext(name)
        parent, stem = os.path.split(stem)
        other = os.path.join(parent, (self.opt.get("filename_tmpl") or "{}").format(stem) + suffix)
        lead = self.roles[0]
        return {r: os.path.join(f, name if r == lead else other) for r, f in self.folders.items()}

    def _list_lmdb(self) -> tuple[list[dict[str, str]], dict[str, tuple[int, int]]]:
        listings = {role: read_lmdb_listing(folder) for role, folder in self.folders.items()}
        (lead, leading), *others = listings.items()
        for role, listing in others:
            if differing := sorted(leading.keys() ^ listing.keys()):
                raise BadInput(
                    f"the pairs do not match: {len(differing)} keys are not in both {self.folders[lead]} and "
                    f"{self.folders[role]} (the first: {differing[0]}); build both from the same names"
                )
        keys = self.opt.get("files") or sorted(leading)
        # With the database in the path, as all of them use the same keys.
        paths = [{r: f"{f}:{key}" for r, f in self.folders.items()} for key in keys]
        sizes = {f"{self.folders[r]}:{key}": size for r, lst in listings.items() for key, size in lst.items()}
        return paths, sizes

    def _check_sizes(self, sizes: dict[str, tuple[int, int]]) -> None:
        lead = self.roles[0]
        crop = 0
        if self.train:
            crop = max(self.opt.get("gt_sizes") or [self.opt.get("gt_size") or 0])
            if crop % self.scale:
                raise BadInput(f"gt_size {crop} is not a multiple of the scale {self.scale}")
        for entry in self.paths:
            path = entry[lead]
            size = sizes.get(path)
            if size is None:
                continue
            if min(size) < crop and not self.opt.get("pad_small"):
                raise BadInput(
                    f"{path} is {size[1]}x{size[0]} (width x height), smaller than the crop of {crop}; "
                    "lower gt_size, remove the image, or set pad_small: true"
                )
            for role, other in entry.items():
                scale = 1 if role == lead else self.scale
                found = sizes.get(other)
                if found is not None and (found[0] * scale, found[1] * scale) != size:
                    raise BadInput(
                        f"the pairs do not match: {other} is {found[1]}x{found[0]} pixels but {path} is "
                        f"{size[1]}x{size[0]}; they must show the same scene pixel by pixel"
                        + (f" at scale {scale}" if scale > 1 else "")
                    )

    def _read(self, index: int) -> dict[str, np.ndarray]:
        """Read the images of a pair by role, (H, W, C), in the dtype of the files."""
        images = {role: self._decoded(role, path) for role, path in self.paths[index].items()}
        if self.train and self.opt.get("gt_size"):
            images = self._reduced_crop(images) if self.reduce > 1 else self._crop(images)
        if self.train and self.augment:
            turns, flip = np.random.randint(4), np.random.randint(2)
            images = {
                role: np.rot90(image[:, ::-1] if flip else image, turns) for role, image in images.items()
            }
        return images

    def _decoded(self, role: str, path: str) -> np.ndarray:
        if self._cache is not None and path in self._cache:
            return self._cache[path]
        if self._client is None:
            options = dict(self.backend)
            if options["type"] == "lmdb":
                options |= {"db_paths": list(self.folders.values()), "client_keys": list(self.folders)}
            self._client = FileClient(options.pop("type"), **options)
        key = path.removeprefix(f"{self.folders[role]}:") if self.backend["type"] == "lmdb" else path
        image = decode(self._client.get(key, role), path, self.channels)
        if self._cache is not None:
            self._cache[path] = image
        return image

    def _reduced_crop(self, images: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        size = int(self.opt["gt_size"])
        ((role, image),) = images.items()
        largest = min(self.reduce, min(image.shape[:2]) // (4 * size))
        factor = np.random.randint(1, largest + 1) if largest > 1 else 1
        window = self._crop(images, size * factor)[role]
        # cv2 drops a single channel.
        reduced = window if factor == 1 else cv2.resize(window, (size, size), interpolation=cv2.INTER_AREA)
        return {role: reduced.reshape(size, size, -1)}

    def _crop(self, images: dict[str, np.ndarray], size: int | None = None) -> dict[str, np.ndarray]:
        """Cut the same random window from all roles; progressive training changes `gt_size` in between."""
        lead = self.roles[0]
        side = (size or int(self.opt["gt_size"])) // self.scale
        height, width = (length // self.scale for length in images[lead].shape[:2])
        if min(height, width) < side:
            if not self.opt.get("pad_small"):
                raise BadInput(
                    f"an image of {width}x{height} is smaller than the crop of {side}; lower gt_size"
                )
            below, right = max(side - height, 0), max(side - width, 0)
            for role, image in images.items():
                scale = self.scale if role == lead else 1
                margins = ((0, below * scale), (0, right * scale), (0, 0))
                images[role] = np.pad(image, margins, "symmetric")
            height, width = height + below, width + right
        top, left = np.random.randint(height - side + 1), np.random.randint(width - side + 1)
        cropped = {}
        for role, image in images.items():
            scale = self.scale if role == lead else 1
            rows = slice(top * scale, (top + side) * scale)
            cropped[role] = image[rows, left * scale : (left + side) * scale]
        return cropped


def to_tensor(image: np.ndarray) -> Tensor:
    """Convert (H, W, C) of any supported dtype to (C, H, W), float32 in 0..1."""
    return torch.from_numpy(np.ascontiguousarray(to_unit(image).transpose(2, 0, 1)))


def sample_generator() -> np.random.Generator:
    """Seed a generator from NumPy's global one, which the sampler seeds for every sample."""
    return np.random.default_rng(np.random.randint(2**63, size=4, dtype=np.int64))


class Dataset_PairedImage(ImageDataset):
    """Degraded images (``dataroot_lq``) and clean ones (``dataroot_gt``); keys of `ImageDataset`."""

    roles = ("gt", "lq")

    def __getitem__(self, index: int) -> Sample:
        images, paths = self._read(index), self.paths[index]
        return {
            "lq": to_tensor(images["lq"]),
            "gt": to_tensor(images["gt"]),
            "lq_path": paths["lq"],
            "gt_path": paths["gt"],
        }


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

    def __getitem__(self, index: int) -> Sample:
        gt = to_tensor(self._read(index)["gt"])
        if self.train:
            noise = torch.randn(gt.shape) * (self._sigma() / 255)
        else:
            zeros = np.zeros((gt.shape[1], gt.shape[2], gt.shape[0]))
            drawn = add_gaussian(zeros, self.sigma_test / 255, seeded_by_index(index))
            noise = torch.from_numpy(drawn.astype(np.float32)).permute(2, 0, 1)
        path = self.paths[index]["gt"]
        return {"lq": gt + noise, "gt": gt, "lq_path": path, "gt_path": path}

    def _sigma(self) -> float:
        if self.kind == "random":
            low, high = self.sigmas
            return float(np.random.uniform(low, high))
        return self.sigmas[np.random.randint(len(self.sigmas))]


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

    def __getitem__(self, index: int) -> Sample:
        clean = to_unit(self._read(index)["gt"])
        if self.train:
            generator = sample_generator()
            gain, read_noise = (
                low if low == high else math.exp(generator.uniform(math.log(low), math.log(high)))
                for low, high in self.ranges
            )
            if generator.random() < self.fluorescence:
                clean = _fluorescence(clean, generator)
        else:
            generator = seeded_by_index(index)
            gain, read_noise = self.test
        signal = to_linear(clean) if self.camera else clean
        noisy = add_poisson_gaussian(signal, gain, read_noise, generator)
        noisy = (to_srgb(noisy.clip(0, 1)) if self.camera else noisy).astype(np.float32)
        path = self.paths[index]["gt"]
        return {"lq": to_tensor(noisy), "gt": to_tensor(clean), "lq_path": path, "gt_path": path}


def _fluorescence(image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Keep what is brighter than a random quantile, steepen and scale it, and put it on a dim background."""
    dark = np.quantile(image, generator.uniform(0.2, 0.95))
    structure = (image - dark).clip(min=0) / max(image.max() - dark, 1e-3)
    peak = math.exp(generator.uniform(math.log(0.05), 0))
    background = generator.uniform(0, 0.1)
    return background + (peak - min(peak, background)) * structure ** generator.uniform(0.7, 2)


class Dataset_DefocusDeblur_DualPixel_16bit(ImageDataset):
    """Left and right views of a dual-pixel sensor (``dataroot_lqL``, ``dataroot_lqR``), and ``dataroot_gt``.

    'lq' stacks both views, (6, H, W). Keys of `ImageDataset`; files may have 8 or 16 bits.
    """

    roles = ("gt", "lqL", "lqR")

    def __getitem__(self, index: int) -> Sample:
        images, paths = self._read(index), self.paths[index]
        return {
            "lq": torch.cat([to_tensor(images["lqL"]), to_tensor(images["lqR"])]),
            "gt": to_tensor(images["gt"]),
            "lq_path": paths["lqL"],
            "gt_path": paths["gt"],
        }
