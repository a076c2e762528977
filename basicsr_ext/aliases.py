"""Keys and names in the option files of other copies of BasicSR, and what they are called here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

RESTORATION = "ImageRestorationModel"
"""Model of NAFNet and HINet: ImageCleanModel with the gradient clipped unless switched off."""

DATASETS = {"PairedImageDataset_SIDD": "PairedImageDataset"}
KEYS = {"use_flip": "use_hflip"}

_GRIDS = ("crop_size", "crop_size_h", "crop_size_w")
_NEUTRAL = {"grids": False, "trans_num": 1, "random_crop_num": 0}


def translate(options: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return options in this package's terms, and notes on what is read otherwise than it looks."""
    translated = {k: dict(v) if isinstance(v, dict) else v for k, v in options.items()}
    notes: list[str] = []
    datasets: Any = translated.get("datasets")
    for label, dataset in datasets.items() if isinstance(datasets, dict) else ():
        if isinstance(dataset, dict):
            datasets[label] = {KEYS.get(k, k): v for k, v in dataset.items()}
            if (kind := str(dataset.get("type"))) in DATASETS:
                datasets[label]["type"] = DATASETS[kind]
    if translated.get("model_type") == RESTORATION:
        translated["model_type"] = "ImageCleanModel"
        notes.append(f"model_type {RESTORATION}, of NAFNet and HINet, is ImageCleanModel here")
        if isinstance(train := translated.get("train"), dict):
            train.setdefault("use_grad_clip", True)
            if train.get("mixup") is False:
                del train["mixup"]
        if isinstance(path := translated.get("path"), dict) and "param_key" in path:
            path["param_key_g"] = path.pop("param_key")
        if isinstance(val := translated.get("val"), dict):
            _tiles(val, notes)
    return translated, notes


def _tiles(val: dict[str, Any], notes: list[str]) -> None:
    """Read ``grids``, which restores parts of an image, as tiles."""
    sizes = [val.pop(key) for key in _GRIDS if key in val]
    if val.get("grids"):
        del val["grids"]
        if sizes:
            val.setdefault("tile", max(sizes))
            notes.append(f"val.grids is read as val.tile: {max(sizes)}")
    for key, neutral in _NEUTRAL.items():
        if val.get(key) == neutral:
            val.pop(key)
