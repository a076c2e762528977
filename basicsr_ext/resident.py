"""Training images that stay on the device, where whole batches are made from them.

A data loader decodes an image for every crop, in processes that compete with a CPU's training step and send
each batch through memory. Sets that fit are decoded once instead. Samples follow from their tickets as with
`sampler.Reproducible`: on a CPU they are the same bit for bit, so that an experiment may go on either way;
on a GPU they have the same distribution.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from kbnet_plugin.degradations import Draws
from kbnet_plugin.errors import BadInput, one_line
from kbnet_plugin.inference.device import free_memory, is_out_of_memory

from .files import to_unit
from .image_dataset import ImageDataset, Sample, sample_key
from .sampler import Ticket
from .windows import Window, padded, reduced, turned

SHARE = 0.25
"""Part of the free memory that ``device_images: auto`` may take."""

# Where each of the 8 orientations takes the corners of a crop from: 0 or 1 for top or bottom, left or right.
_CORNERS = np.stack([np.stack(divmod(turned(np.arange(4).reshape(2, 2), n % 4, n > 3), 2)) for n in range(8)])


def open_resident(
    dataset: Any, device: torch.device | str, label: str = "datasets.train"
) -> tuple[Resident | None, str]:
    """Move the images of a training set to the device, if its key ``device_images`` says so.

    'auto' does if they take less than `SHARE` of the free memory; on a CPU, the processes of a machine divide
    it. Only sets of `ImageDataset` can be moved whose class does not read its images in a way of its own.

    Parameters
    ----------
    dataset : Dataset
        Of any class.
    device : torch.device
        Where the batches are needed.
    label : str
        Its place in the option file, for errors.

    Returns
    -------
    resident : Resident or None
        None if a data loader is to be used.
    note : str
        What was decided, and why, in one line.

    Raises
    ------
    BadInput
        If an image cannot be read, or ``device_images`` is true and there is too little memory.
    """
    device = torch.device(device)
    setting = getattr(dataset, "opt", {}).get("device_images", "auto")
    count = f"{len(dataset)} images"
    if reason := _not_ours(dataset):
        return None, f"{count} are read by a data loader: {reason}"
    if setting is False:
        return None, f"{count} are read by a data loader (device_images: false)"
    try:
        needed = memory(dataset)
        free = free_memory(device) // (_local_processes() if device.type == "cpu" else 1)
        if setting is True and needed > free:
            raise BadInput(
                f"device_images: true needs {_bytes(needed)} on {device}, where {_bytes(free)} are free; "
                "set device_images: auto"
            )
        if setting is not True and needed > SHARE * free:
            return None, (
                f"{count} ({_bytes(needed)}) are read by a data loader: they need more than {SHARE:.0%} "
                f"of the {_bytes(free)} that are free on {device}; see device_images"
            )
        resident = Resident(dataset, device)
    except BadInput as error:
        raise BadInput(f"{label}: {one_line(error)}") from error
    where = f"{count} ({_bytes(resident.nbytes)}) on {device}"
    return resident, f"{where}: batches are made there; data workers are not needed"


def _not_ours(dataset: Any) -> str | None:
    if not isinstance(dataset, ImageDataset) or type(dataset).__getitem__ is not ImageDataset.__getitem__:
        return f"{type(dataset).__name__} reads them itself"
    if not dataset.train:
        return "the set is not for training"
    return None if dataset.crops else "there is no gt_size, so that the images may differ in size"


def memory(dataset: ImageDataset) -> int:
    """Return the bytes that a set needs on a device, from the images' sizes and the depth of the first.

    Where files of one suffix differ in depth, the estimate may be too low.
    """
    total = 0
    for role in dataset.roles:
        paths = [entry[role] for entry in dataset.paths]
        first = {os.path.splitext(path)[1].lower(): path for path in reversed(paths)}
        depth = max(dataset.read(role, path).itemsize for path in first.values())
        for entry in dataset.paths:
            pixels = sum(h * w for h, w in _levels(dataset, role, _size(dataset, entry)))
            total += pixels * dataset.channels * depth
    return total


def _size(dataset: ImageDataset, paths: dict[str, str]) -> tuple[int, int]:
    """Return height and width of a clean image; the header of an unusual file may not tell them."""
    lead = dataset.roles[0]
    if (size := dataset.sizes.get(paths[lead])) is None:
        height, width = dataset.read(lead, paths[lead]).shape[:2]
        size = dataset.sizes[paths[lead]] = (height, width)
    return size


def _levels(dataset: ImageDataset, role: str, size: tuple[int, int]) -> list[tuple[int, int]]:
    """Return the sizes at which an image is kept: padded, and reduced by each factor that a crop may use."""
    height, width = (length * dataset.pixels(role) // dataset.scale for length in size)
    largest = max(dataset.crops) * dataset.pixels(role) // dataset.scale
    factors = range(2, dataset.largest_factor(size, min(dataset.crops)) + 1)
    return [(max(height, largest), max(width, largest)), *((height // f, width // f) for f in factors)]


class Resident:
    """The decoded images of a training set on a device.

    Parameters
    ----------
    dataset : ImageDataset
        For training, with a crop size.
    device : torch.device

    Attributes
    ----------
    nbytes : int
        Memory that the images take on the device.

    Raises
    ------
    BadInput
        If an image cannot be read or has another size than its header says, or memory runs out.
    """

    def __init__(self, dataset: ImageDataset, device: torch.device | str) -> None:
        self.dataset, self.device = dataset, torch.device(device)
        self.sizes = [_size(dataset, entry) for entry in dataset.paths]
        dataset.check_sizes()
        self._pixels: dict[str, Tensor] = {}
        self._offsets: dict[str, NDArray[np.int64]] = {}
        self._widths: dict[str, NDArray[np.int64]] = {}
        images = tqdm(
            total=len(dataset) * len(dataset.roles),
            desc="reading the training images",
            leave=False,
            delay=1,
            disable=None if os.environ.get("RANK", "0") == "0" else True,
        )
        try:
            with images:
                for role in dataset.roles:
                    self._load(role, images)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            raise BadInput(
                f"the images do not fit into the memory of {self.device}; set device_images: false"
            ) from error
        self.nbytes = sum(pixels.nbytes for pixels in self._pixels.values())

    def __len__(self) -> int:
        return len(self.dataset)

    def batch(self, tickets: Sequence[Ticket]) -> Sample:
        """Make a batch on the device, with the keys that a data loader's has.

        On a GPU, nothing waits for it.

        Parameters
        ----------
        tickets : sequence of Ticket
            All with the same crop.

        Returns
        -------
        dict
            ``lq`` and ``gt``, (B, C, H, W), float32; ``lq_path`` and ``gt_path``, lists of str.
        """
        # On a CPU, one by one: results of vectorized arithmetic may depend on the place in the batch.
        parts = [[ticket] for ticket in tickets] if self.device.type == "cpu" else [tickets]
        lq, gt = zip(*(self._make(part) for part in parts), strict=True)
        paths = [self.dataset.paths[ticket.image] for ticket in tickets]
        return {
            "lq": torch.cat(lq),
            "gt": torch.cat(gt),
            "lq_path": [entry[self.dataset.lq_role] for entry in paths],
            "gt_path": [entry[self.dataset.roles[0]] for entry in paths],
        }

    def _make(self, tickets: Sequence[Ticket]) -> tuple[Tensor, Tensor]:
        dataset = self.dataset
        draws = Draws([sample_key(ticket.seed) for ticket in tickets], self.device)
        crop = tickets[0].crop or dataset.crops[0]
        windows = [
            dataset.draw_window(self.sizes[ticket.image], crop, generator)
            for ticket, generator in zip(tickets, draws.host(lambda g: g), strict=True)
        ]
        chosen = [ticket.image for ticket in tickets]
        images = {role: self._cut(role, chosen, windows, crop) for role in dataset.roles}
        return dataset.degrade(images, draws)

    def _cut(self, role: str, images: list[int], windows: list[Window], crop: int) -> Tensor:
        """Cut and turn crops, (B, C, H, W), float32 in 0..1."""
        factor, top, left, turns, flip = np.array(windows, np.int64).T
        width = self._widths[role][images, factor - 1]
        unit = self.dataset.pixels(role)
        side = crop // self.dataset.scale * unit
        # A turned crop is read from another corner, with other steps.
        rows, columns = _CORNERS[turns + 4 * flip].swapaxes(0, 1)
        places = rows * width[:, None, None] + columns
        start = self._offsets[role][images, factor - 1] + top * unit * width + left * unit
        start += places[:, 0, 0] * (side - 1)
        down, right = places[:, 1, 0] - places[:, 0, 0], places[:, 0, 1] - places[:, 0, 0]
        first, down_, right_ = self._to_device(np.stack([start, down, right]))[..., None, None]
        steps = torch.arange(side, device=self.device)
        index = first + steps[:, None] * down_ + steps * right_
        pixels = self._pixels[role]
        signed = pixels.view(torch.int16) if pixels.dtype == torch.uint16 else pixels  # uint16 can do little
        crops = signed.index_select(0, index.flatten()).view(pixels.dtype).unflatten(0, index.shape)
        crops = crops.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
        return crops if pixels.is_floating_point() else crops.div_(torch.iinfo(pixels.dtype).max)

    def _to_device(self, numbers: NDArray[np.int64]) -> Tensor:
        tensor = torch.from_numpy(numbers)
        if self.device.type == "cuda":
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor.to(self.device)

    def _load(self, role: str, bar: Any) -> None:
        dataset = self.dataset
        levels = [_levels(dataset, role, size) for size in self.sizes]
        most = max(map(len, levels))
        areas = np.array([[h * w for h, w in one] + [0] * (most - len(one)) for one in levels], np.int64)
        ends = areas.cumsum().reshape(areas.shape)
        self._offsets[role] = ends - areas
        self._widths[role] = np.array(
            [[w for _, w in one] + [0] * (most - len(one)) for one in levels], np.int64
        )
        kind = dataset.read(role, dataset.paths[0][role]).dtype
        pixels = torch.empty(int(ends[-1, -1]), dataset.channels, dtype=_torch(kind), device=self.device)
        at = 0
        for image in self._decoded(role, levels):
            for level in image:
                if (deeper := np.promote_types(kind, level.dtype)) != kind:
                    pixels = torch.from_numpy(_deepened(pixels.cpu().numpy(), deeper)).to(self.device)
                    kind = deeper
                flat = torch.from_numpy(_deepened(level, kind).reshape(-1, dataset.channels))
                pixels[at : at + len(flat)].copy_(flat)
                at += len(flat)
            bar.update()
        self._pixels[role] = pixels

    def _decoded(self, role: str, levels: list[list[tuple[int, int]]]) -> Iterator[list[np.ndarray]]:
        dataset = self.dataset
        scale = dataset.scale // dataset.pixels(role)

        def decode(index: int) -> list[np.ndarray]:
            path = dataset.paths[index][role]
            try:
                image = dataset.read(role, path)
            except (BadInput, MemoryError):
                raise
            except Exception as error:  # of storage backends
                raise BadInput(f"{path}: {type(error).__name__}: {one_line(error)}") from error
            found, known = image.shape[:2], self.sizes[index]
            if (found[0] * scale, found[1] * scale) != known:
                raise BadInput(
                    f"{path} has {found[1]}x{found[0]} pixels, not the {known[1] // scale}x"
                    f"{known[0] // scale} expected"
                )
            largest = max(dataset.crops) // scale
            return [
                padded(image, largest) if factor == 1 else reduced(image, factor)
                for factor in range(1, len(levels[index]) + 1)
            ]

        # Decoding releases the interpreter's lock.
        with ThreadPoolExecutor(max(1, min(8, (os.cpu_count() or 1) // _local_processes()))) as pool:
            yield from pool.map(decode, range(len(dataset)))


def _torch(kind: np.dtype[Any]) -> torch.dtype:
    return torch.from_numpy(np.empty(0, kind)).dtype


def _deepened(image: np.ndarray, kind: np.dtype[Any]) -> np.ndarray:
    """Convert pixels to a deeper type without loss: 257 times an 8-bit value is the same part of 65535."""
    if image.dtype == kind:
        return np.ascontiguousarray(image)
    return to_unit(image) if kind == np.float32 else image.astype(np.uint16) * np.uint16(257)


def _local_processes() -> int:
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def _bytes(number: float) -> str:
    return f"{number / 1e9:.2g} GB" if number >= 5e7 else f"{number / 1e6:.2g} MB"
