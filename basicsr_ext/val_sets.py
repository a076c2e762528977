"""Validation and test sets: checked before the start, and what is shown of them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from basicsr.utils import imwrite
from torch import Tensor
from torch.utils.data import DataLoader

from kbnet_plugin.errors import BadInput, one_line

from .files import picture_name
from .image_dataset import ImageDataset
from .metrics import needs_truth, to_image, try_metric
from .options import Options

TRIED = 256
"""Largest side of the pictures that metrics are tried on."""

SHOWN = 768
"""Longest side of a picture in TensorBoard."""


def check_sets(options: Options, loaders: list[DataLoader[Any]], train_set: Any = None) -> None:
    """Read an image of each set and try the metrics, so that nothing fails at the first validation.

    Parameters
    ----------
    options : dict
        To whose notes is added what is worth knowing about the sets.
    loaders : list of DataLoader
        Of the validation or test sets.
    train_set : Dataset, optional

    Raises
    ------
    BadInput
        If an image cannot be read, a metric cannot be computed, or no set has the ground truth that a metric
        needs; or if a set is read otherwise than the training set.
    """
    labels = {d.get("name"): label for label, d in options["datasets"].items() if d["phase"] != "train"}
    metrics: dict[str, Any] = (options["val"] or {}).get("metrics") or {}
    notes: list[str] = options["notes"]
    _note_depth("datasets.train", train_set, notes)
    with_truth: list[str] = []
    without: list[str] = []
    for loader in loaders:
        dataset: Any = loader.dataset
        label = f"datasets.{labels.get(dataset.opt.get('name'), 'val')}"
        _compare(label, dataset, train_set)
        _note_depth(label, dataset, notes)
        try:
            sample = dataset[0]
        except BadInput as error:
            raise BadInput(f"{label}: {one_line(error)}") from error
        except Exception as error:  # of any package's dataset
            raise BadInput(f"{label}: {type(error).__name__}: {one_line(error)}") from error
        image = sample.get("gt", sample.get("lq")) if isinstance(sample, dict) else None
        if not isinstance(image, Tensor) or image.ndim < 3:
            continue
        truth = "gt" in sample
        (with_truth if truth else without).append(label)
        scale = 1 if truth else int(options.get("scale") or 1)
        channels, *size = image.shape[-3:]
        height, width = (min(side * scale, TRIED) for side in size)
        for name, metric in metrics.items():
            if truth or not needs_truth(metric):
                try_metric(name, metric, (height, width), channels)
    comparing = [name for name, metric in metrics.items() if needs_truth(metric)]
    if comparing and without and not with_truth:
        raise BadInput(
            f"val.metrics.{comparing[0]} ({metrics[comparing[0]]['type']}) needs ground truth, which "
            f"{', '.join(without)} lacks; remove the metric, or add the clean images"
        )
    if comparing and without:
        notes.append(f"{', '.join(without)} without ground truth: no {', '.join(comparing)}")


def usable(metrics: Mapping[str, Any] | None, *, truth: bool) -> dict[str, Any]:
    """Return the metrics that can be computed with or without ground truth."""
    return {name: m for name, m in (metrics or {}).items() if truth or not needs_truth(m)}


def _compare(label: str, dataset: Any, train_set: Any) -> None:
    """Refuse a set that is read otherwise than the training set: in other channels, or by another range."""
    if not isinstance(dataset, ImageDataset) or not isinstance(train_set, ImageDataset):
        return
    if dataset.channels != train_set.channels:
        raise BadInput(
            f"{label} has in_ch: {dataset.channels}, but datasets.train in_ch: {train_set.channels}; "
            "set both to 1 (gray) or 3 (colour)"
        )
    bits = train_set.depth.bits, dataset.depth.bits
    ranges = train_set.opt.get("range"), dataset.opt.get("range")
    if ranges.count(None) == 1 and bits != (None, None):
        raise BadInput(
            f"{label} and datasets.train have 16-bit files, but only one has range: set it for both"
        )
    if None not in bits and bits[0] != bits[1]:
        raise BadInput(
            f"the 16-bit files of datasets.train contain {bits[0]} bits, but those of {label} {bits[1]}; "
            "set range of both to the values that are to become 0 and 1, such as [0, 4095]"
        )


def _note_depth(label: str, dataset: Any, notes: list[str]) -> None:
    if isinstance(dataset, ImageDataset) and dataset.depth.note:
        notes.append(f"{label}: {dataset.depth.note}")


def check_finite(name: str, path: str, restored: Tensor, *given: Tensor | None) -> None:
    """Raise `BadInput` if an image of a set, or what the network made of it, is not finite."""
    if any(t is not None and not t.isfinite().all() for t in given):
        raise BadInput(f"datasets {name}: {path} contains NaN or infinite values; replace or remove it")
    if not restored.isfinite().all():
        raise BadInput(f"datasets {name}: {path}: the network's output contains NaN or infinite values")


def shown_name(options: Options, dataset: Any, path: str) -> str:
    """Name a saved picture so that no two images of a run share a name; see `files.picture_name`."""
    name = picture_name(dataset.opt, path)
    several = sum(d["phase"] != "train" for d in options["datasets"].values()) > 1
    return f"{dataset.opt['name']}__{name}" if several and options["is_train"] else name


def show_sample(
    options: Options, name: str, shown: str, images: list[Tensor], writer: Any, iteration: int | str
) -> None:
    """Show input, output and perhaps target side by side: in a file, and smaller in TensorBoard.

    Parameters
    ----------
    options : dict
    name, shown : str
        Of the set; of the image, as `shown_name` gives it.
    images : list of Tensor
        (1, C, H, W) in 0..1; the second determines the size.
    writer : SummaryWriter or None
    iteration : int
    """
    label = shown if shown.startswith(f"{name}__") else f"{name}_{shown}"
    size = images[1].shape[-2:]
    parts = [i[:, :3].float() for i in images]
    parts = [i if i.shape[-2:] == size else F.interpolate(i, size) for i in parts]
    channels = max(i.shape[1] for i in parts)
    row = to_image(torch.cat([i[:, :channels].expand(-1, channels, -1, -1) for i in parts], -1), rounded=True)
    imwrite(row, os.path.join(options["path"]["visualization"], "samples", f"{label}.png"))
    if writer is not None:
        small = _reduced(row)[..., ::-1] if channels == 3 else _reduced(row)
        writer.add_image(f"samples/{label}", small, iteration, dataformats="HWC")


def _reduced(image: np.ndarray) -> np.ndarray:
    factor = SHOWN / max(image.shape[:2])
    if factor >= 1:
        return image
    height, width = (max(1, round(side * factor)) for side in image.shape[:2])
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA).reshape(height, width, -1)


class Named:
    """A loader whose images have names that no two of them share, for models that save pictures by name.

    Attributes
    ----------
    path : str
        Of the last image.
    number : int
        Of the last image.
    """

    def __init__(self, options: Options, loader: DataLoader[Any]) -> None:
        self.options, self.loader, self.dataset = options, loader, loader.dataset
        self.path, self.number = "", -1

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        for number, data in enumerate(self.loader):
            self.number = number
            paths = data.get("lq_path") if isinstance(data, dict) else None
            if isinstance(paths, list) and paths:
                self.path = str(paths[0])
                unique = f"{shown_name(self.options, self.dataset, self.path)}.png"
                data = data | {"lq_path": [unique, *paths[1:]]}
            yield data
