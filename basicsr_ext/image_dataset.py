"""Aligned images in one or more roles: listed, checked, read, cropped, turned, degraded."""

from __future__ import annotations

import os
from abc import abstractmethod
from typing import Any

import numpy as np
import torch
from basicsr.utils.file_client import FileClient
from torch import Tensor
from torch.utils.data import Dataset

from kbnet_plugin.degradations import Draws
from kbnet_plugin.degradations.base import Key
from kbnet_plugin.errors import BadInput

from .depth import SAMPLED, Depth
from .files import (
    decode,
    decode_page,
    image_files,
    is_deep_png,
    page_paths,
    pair_up,
    read_headers,
    read_listing,
    read_lmdb_listing,
    split_page,
    to_unit,
)
from .options import Options
from .windows import Window, padded, reduced, turned

Sample = dict[str, Any]


class ImageDataset(Dataset[Sample]):
    """Aligned images in one or more roles ('gt', 'lq', ...): listed, checked, read, cropped, degraded.

    A subclass names its `roles` and implements `degrade`. `basicsr_ext.resident` then serves it too, with the
    same samples.

    Parameters
    ----------
    opt : dict
        dataroot_<role> : folder, or ``*.lmdb`` with ``io_backend: {type: lmdb}``.
        meta_info_file : text file with names relative to the roots, one per line, or one for each role; or
        files : list of such names.
        filename_tmpl : name in the other roles, given that in the first; by default ``"{}"``.
        in_ch : channels to read, 3 (default) or 1.
        range : the two values that become 0 and 1; see `basicsr_ext.depth.Depth` for the default.
        gt_size : side of the training crop, in pixels.
        pad_small : pad images smaller than the crop by reflection, instead of refusing them.
        reduce : largest whole factor by which large clean images are reduced (box mean) before cropping; the
            factor is drawn for each sample, from those that leave room for four crops side by side. Reduced
            photographs have the fine structure of small pictures, and fewer JPEG artifacts.
        device_images : 'auto' (default), true or false; see `basicsr_ext.resident.open_resident`.
        geometric_augs (or use_hflip, use_rot) : flip and rotate at random in training (8 ways).
        cache_images : keep decoded images in memory (per worker), for small sets.
        phase : 'train' crops and augments; 'val' and 'test' do not.
        scale : how many times larger 'gt' is than the other roles.

    Notes
    -----
    Links to folders are followed. The pages of a TIFF are images of their own, ``stack.tif[0]`` and so on.

    Raises
    ------
    BadInput
        If a file is missing, sizes differ within a pair, or an image is smaller than the largest crop.
    """

    roles: tuple[str, ...]
    """The clean images first; sizes and crops are given in their pixels."""

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
        self.crops = [int(crop) for crop in opt.get("gt_sizes") or [opt.get("gt_size") or 0] if crop]
        self.folders = {role: self._folder(role) for role in self.roles}
        self.backend = dict(opt.get("io_backend") or {"type": "disk"})
        self._client: FileClient | None = None
        self.paths, self.sizes, deep = self._list()
        self.check_sizes()
        every = max(1, -(-len(deep) // SAMPLED))
        every += len(self.roles) > 1 and every % len(self.roles) == 0  # so that all roles have their turn
        self.depth = Depth(opt.get("range"), ((path, self._read(role, path)) for role, path in deep[::every]))
        self._cache: dict[str, np.ndarray] | None = {} if opt.get("cache_images") else None

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Sample:
        paths = self.paths[index]
        decoded = {role: self._decoded(role, path) for role, path in paths.items()}
        if self.train:
            draws = Draws([sample_key()])
            (generator,) = draws.host(lambda g: g)
            crop = self.opt.get("gt_size")  # progressive training changes it
            height, width = decoded[self.roles[0]].shape[:2]
            window = self.draw_window((height, width), crop, generator)
            images = {r: to_tensor(self._cut(image, r, window, crop))[None] for r, image in decoded.items()}
            lq, gt = self.degrade(images, draws)
        else:
            lq, gt = self.degrade_test({r: to_tensor(image)[None] for r, image in decoded.items()}, index)
        return {"lq": lq[0], "gt": gt[0], "lq_path": paths[self.lq_role], "gt_path": paths[self.roles[0]]}

    @property
    def lq_role(self) -> str:
        """The role whose paths name the degraded images."""
        return self.roles[min(1, len(self.roles) - 1)]

    @abstractmethod
    def degrade(self, images: dict[str, Tensor], draws: Draws) -> tuple[Tensor, Tensor]:
        """Make training samples.

        Parameters
        ----------
        images : dict
            Crops by role, (B, C, H, W), float32 in 0..1, on one device.
        draws : Draws
            Random numbers of these samples.

        Returns
        -------
        lq, gt : Tensor
            Degraded and clean images, float32.
        """

    def degrade_test(self, images: dict[str, Tensor], index: int) -> tuple[Tensor, Tensor]:
        """Make one sample for validation or test, the same in every run; see `degrade`."""
        return self.degrade(images, Draws([(0, index)]))

    def _folder(self, role: str) -> str:
        if not (folder := self.opt.get(f"dataroot_{role}")):
            raise BadInput(f"the key dataroot_{role} is missing")
        return str(folder)

    def _list(self) -> tuple[list[dict[str, str]], dict[str, tuple[int, int]], list[tuple[str, str]]]:
        """List paths by role, sizes by path, and role and path of those that may have more than 8 bits."""
        if self.backend["type"] == "lmdb":
            return self._list_lmdb()
        names = [[name] for name in self.opt.get("files") or []]
        if self.opt.get("meta_info_file"):
            names = read_listing(self.opt["meta_info_file"])
        if names:
            listed = [self._named(one) for one in names]
        elif len(self.folders) == 1:
            ((role, folder),) = self.folders.items()
            listed = [{role: path} for path in image_files(folder).values()]
        else:
            listed = pair_up(self.folders, self.opt.get("filename_tmpl") or "{}")
        headers = read_headers(path for entry in listed for path in entry.values())
        paths: list[dict[str, str]] = []
        sizes: dict[str, tuple[int, int]] = {}
        deep: list[tuple[str, str]] = []
        for entry in listed:
            counts = {headers[path].pages for path in entry.values()}
            if len(counts) > 1:
                raise BadInput(
                    f"the pairs do not match: {' and '.join(entry.values())} differ in pages, "
                    f"{' and '.join(map(str, sorted(counts)))}"
                )
            pages = {role: page_paths(path, headers[path].pages) for role, path in entry.items()}
            paths += [dict(zip(pages, one, strict=True)) for one in zip(*pages.values(), strict=True)]
            for role, path in entry.items():
                if (size := headers[path].size) is not None:
                    sizes |= dict.fromkeys(pages[role], size)
                if headers[path].deep:
                    deep += [(role, page) for page in pages[role]]
        return paths, sizes, deep

    def _named(self, names: list[str]) -> dict[str, str]:
        lead, roles = self.roles[0], self.roles
        if len(names) == len(roles) or len(roles) == 1:
            return {r: os.path.join(self.folders[r], name) for r, name in zip(roles, names, strict=False)}
        if len(names) > 1:
            raise BadInput(
                f"{self.opt['meta_info_file']}: {', '.join(names)}: expected one name, or {len(roles)} "
                f"({', '.join(roles)})"
            )
        (name,) = names
        stem, suffix = os.path.splitext(name)
        parent, stem = os.path.split(stem)
        other = os.path.join(parent, (self.opt.get("filename_tmpl") or "{}").format(stem) + suffix)
        return {r: os.path.join(f, name if r == lead else other) for r, f in self.folders.items()}

    def _list_lmdb(self) -> tuple[list[dict[str, str]], dict[str, tuple[int, int]], list[tuple[str, str]]]:
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
        some = paths[:: max(1, -(-len(paths) // SAMPLED))]
        deep = [(r, p) for e in some for r, p in e.items() if is_deep_png(self._content(r, p))]
        return paths, sizes, deep

    def check_sizes(self) -> None:
        """Raise `BadInput` if an image is too small or the sizes within a pair do not fit."""
        lead = self.roles[0]
        crop = max(self.crops, default=0) if self.train else 0
        if crop % self.scale:
            raise BadInput(f"gt_size {crop} is not a multiple of the scale {self.scale}")
        for entry in self.paths:
            path = entry[lead]
            size = self.sizes.get(path)
            if size is None:
                continue
            if min(size) < crop and not self.opt.get("pad_small"):
                raise BadInput(
                    f"{path} is {size[1]}x{size[0]} (width x height), smaller than the crop of {crop}; "
                    "lower gt_size, remove the image, or set pad_small: true"
                )
            for role, other in entry.items():
                scale = 1 if role == lead else self.scale
                found = self.sizes.get(other)
                if found is not None and (found[0] * scale, found[1] * scale) != size:
                    raise BadInput(
                        f"the pairs do not match: {other} is {found[1]}x{found[0]} pixels but {path} is "
                        f"{size[1]}x{size[0]}; they must show the same scene pixel by pixel"
                        + (f" at scale {scale}" if scale > 1 else "")
                    )

    def _decoded(self, role: str, path: str) -> np.ndarray:
        if self._cache is None:
            return self.read(role, path)
        if path not in self._cache:
            self._cache[path] = self.read(role, path)
        return self._cache[path]

    def read(self, role: str, path: str) -> np.ndarray:
        """Read one of `paths`, (H, W, C), in the dtype of the file; or in float32 with the key ``range``."""
        return self.depth.apply(self._read(role, path), path)

    def _read(self, role: str, path: str) -> np.ndarray:
        file, page = split_page(path)
        if page is not None and self.backend["type"] == "disk":
            return decode_page(file, page, self.channels)
        return decode(self._content(role, path), path, self.channels)

    def _content(self, role: str, path: str) -> bytes:
        if self._client is None:
            options = dict(self.backend)
            if options["type"] == "lmdb":
                options |= {"db_paths": list(self.folders.values()), "client_keys": list(self.folders)}
            self._client = FileClient(options.pop("type"), **options)
        key = path.removeprefix(f"{self.folders[role]}:") if self.backend["type"] == "lmdb" else path
        content: bytes = self._client.get(key, role)
        return content

    def pixels(self, role: str) -> int:
        """Return how many pixels of this role's images one pixel of the smallest role spans."""
        return self.scale if role == self.roles[0] else 1

    def largest_factor(self, size: tuple[int, int], crop: int) -> int:
        """Return the largest factor by which an image may be reduced for this crop."""
        return max(1, min(self.reduce, min(size) // (4 * crop)))

    def draw_window(self, size: tuple[int, int], crop: int | None, generator: np.random.Generator) -> Window:
        """Draw where to cut a clean image of this size (height, width); without a crop, only how to turn."""
        factor, top, left = 1, 0, 0
        if crop:
            if (largest := self.largest_factor(size, crop)) > 1:
                factor = int(generator.integers(1, largest + 1))
            side = crop // self.scale
            height, width = (length // (self.scale * factor) for length in size)
            if min(height, width) < side and not self.opt.get("pad_small"):
                raise BadInput(
                    f"an image of {width}x{height} is smaller than the crop of {side}; lower gt_size"
                )
            top = int(generator.integers(max(height - side, 0) + 1))
            left = int(generator.integers(max(width - side, 0) + 1))
        turns, flip = (int(generator.integers(n)) for n in (4, 2)) if self.augment else (0, 0)
        return Window(factor, top, left, turns, bool(flip))

    def _cut(self, image: np.ndarray, role: str, window: Window, crop: int | None) -> np.ndarray:
        if crop:
            unit = self.pixels(role)
            side = crop // self.scale * unit
            span = side * window.factor
            top, left = (place * unit * window.factor for place in (window.top, window.left))
            image = padded(image, side)[top : top + span, left : left + span]
            image = reduced(image, window.factor)
        return turned(image, window.turns, window.flip)


def to_tensor(image: np.ndarray) -> Tensor:
    """Convert (H, W, C) of any supported dtype to (C, H, W), float32 in 0..1."""
    return torch.from_numpy(np.ascontiguousarray(to_unit(image).transpose(2, 0, 1)))


_STATE = np.random.RandomState(0)  # seeded anew for each sample: making one takes a hundred times longer


def sample_key(seed: tuple[int, int] | None = None) -> Key:
    """Return the key from which all random numbers of a sample follow.

    Parameters
    ----------
    seed : tuple of int, optional
        Of the sample's ticket. By default the key is drawn from NumPy's global generator, which
        `sampler.Reproducible` seeds from the ticket: the key is the same.
    """
    state: Any = np.random
    if seed is not None:
        state = _STATE
        state.seed(int(np.random.SeedSequence(seed).generate_state(2, np.uint64)[1]) % 2**32)
    return (int.from_bytes(state.bytes(16), "little"),)


def sample_generator() -> np.random.Generator:
    """Seed a generator from NumPy's global one, which the sampler seeds for every sample."""
    return np.random.default_rng(sample_key())
