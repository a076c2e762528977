from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml

with warnings.catch_warnings():
    # BasicSR's own use of names that SciPy and torchvision deprecate.
    warnings.simplefilter("ignore")
    import basicsr_ext.registry

basicsr_ext.registry.register()

OPTIONS: dict[str, Any] = {
    "name": "tiny",
    "model_type": "ImageCleanModel",
    "num_gpu": 0,
    "datasets": {
        "train": {
            "type": "Dataset_PairedImage",
            "dataroot_gt": "data/gt",
            "dataroot_lq": "data/lq",
            "geometric_augs": True,
            "gt_size": 16,
            "batch_size_per_gpu": 2,
            "num_worker_per_gpu": 0,
        },
        "val": {"type": "Dataset_PairedImage", "dataroot_gt": "data/gt", "dataroot_lq": "data/lq"},
    },
    "network_g": {
        "type": "KBNet_s",
        "width": 4,
        "enc_blk_nums": [1],
        "middle_blk_num": 1,
        "dec_blk_nums": [1],
        "lightweight": True,
    },
    "train": {
        "total_iter": 4,
        "optim_g": {"type": "AdamW", "lr": 1e-3},
        "scheduler": {
            "type": "CosineAnnealingRestartCyclicLR",
            "periods": [2, 2],
            "restart_weights": [1, 1],
            "eta_mins": [1e-3, 1e-5],
        },
        "ema_decay": 0.9,
        "pixel_opt": {"type": "L1Loss"},
        "mixing_augs": {"mixup": True, "mixup_beta": 1.2, "use_identity": True},
        "use_grad_clip": True,
    },
    "val": {"val_freq": 100, "metrics": {"psnr": {"type": "calculate_psnr", "crop_border": 0}}},
}


@pytest.fixture
def options() -> dict[str, Any]:
    """A tiny experiment on the images of `pairs`."""
    return deepcopy(OPTIONS)


@pytest.fixture
def write(tmp_path: Path) -> Callable[[dict[str, Any]], str]:
    """Write options to a file and return its name."""

    def _write(content: dict[str, Any], name: str = "options.yml") -> str:
        path = tmp_path / name
        path.write_text(yaml.safe_dump(content))
        return str(path)

    return _write


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Such small networks gain nothing from more threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _picture(
    height: int = 24, width: int = 20, channels: int = 3, seed: int = 0, dtype: Any = np.uint8
) -> Any:
    """A random smooth image, (H, W, 3) or (H, W)."""
    small = np.random.default_rng(seed).random((4, 4, channels))
    smooth = cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)
    return (smooth * np.iinfo(dtype).max).astype(dtype)


def _make_pairs(folder: Path, count: int = 3, **kwargs: Any) -> None:
    """`count` clean images in `folder`/gt and darker ones of the same names in `folder`/lq."""
    for role in ("gt", "lq"):
        (folder / role).mkdir(parents=True, exist_ok=True)
    for index in range(count):
        image = _picture(seed=index, **kwargs)
        cv2.imwrite(str(folder / "gt" / f"{index}.png"), image)
        cv2.imwrite(str(folder / "lq" / f"{index}.png"), image // 2)


@pytest.fixture
def pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three pairs in ./data; the working directory is the test's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["basicsr"])
    _make_pairs(tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture
def picture() -> Callable[..., Any]:
    return _picture


@pytest.fixture
def make_pairs() -> Callable[..., None]:
    return _make_pairs
