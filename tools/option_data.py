"""Made pictures and clips in the layout that each of BasicSR's datasets reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np

Section = dict[str, Any]

CLIP = 5, 7
"""Frames of a clip for validation, the second for windows of 7 and for recurrent networks."""

REDS = 100
"""Frames of a clip for training: BasicSR's class assumes so many."""

TRAINING = {"REDSDataset": "001", "REDSRecurrentDataset": "001"}
"""Folder of the one training clip; the others are for validation by definition of the set."""


def make_data(section: Section, folder: Path, scale: int, size: int) -> Section:
    """Make the data of a section of ``datasets``, and return the section with its place.

    Parameters
    ----------
    section : dict
        Of an option file; its class must be BasicSR's or have its keys.
    folder : Path
        To write to.
    scale : int
        How much smaller the degraded pictures are.
    size : int
        Side of the clean pictures.
    """
    kind = str(section.get("type"))
    made = dict(section)
    if kind.startswith(("REDS", "Vimeo", "Video")):
        names = _clip_names(kind, CLIP[section.get("num_frame") != 5])
    elif kind == "FFHQDataset":
        names = [f"{i:08d}" for i in range(4)]
    else:
        names = [f"picture{i}" for i in range(4)]
    template = str(section.get("filename_tmpl") or "{}")
    channels = 1 if section.get("in_ch") == 1 else 3
    deep = kind == "Dataset_DefocusDeblur_DualPixel_16bit"
    for key in ("dataroot_gt", "dataroot_lq", "dataroot_lqL", "dataroot_lqR"):
        if str(section.get(key)).lower() == "none":
            continue
        root = folder / key.removeprefix("dataroot_")
        side = size if key == "dataroot_gt" else size // scale
        shown = [_named(name, template) if key == "dataroot_lq" else name for name in names]
        for index, (name, out) in enumerate(zip(names, shown, strict=True)):
            _write(root / f"{out}.png", _picture(name, index, size, channels), side, deep)
        made[key] = str(root)
        if (section.get("io_backend") or {}).get("type") == "lmdb":
            made[key] = _lmdb(root, shown)
    _list(made, folder, kind, names, size)
    return made


def _clip_names(kind: str, frames: int) -> list[str]:
    if kind in TRAINING:
        return [f"{TRAINING[kind]}/{i:08d}" for i in range(REDS)]
    if "Vimeo" in kind:
        return [f"0000{clip}/0001/im{i}" for clip in (1, 2) for i in range(1, 8)]
    return [f"000/{i:08d}" for i in range(frames)]


def _named(name: str, template: str) -> str:
    folder, _, stem = name.rpartition("/")
    return f"{folder}/{template.format(stem)}" if folder else template.format(stem)


def _picture(name: str, index: int, size: int, channels: int) -> Any:
    """Draw a smooth random picture with some grain; the frames of a clip move by a pixel each."""
    seed = sum(name.rpartition("/")[0].encode()) if "/" in name else index
    random = np.random.default_rng(seed)
    large = cv2.resize(random.random((8, 8, channels)), (size + REDS, size), interpolation=cv2.INTER_CUBIC)
    large = large.reshape(size, size + REDS, channels) + random.normal(0, 0.03, (size, size + REDS, channels))
    shift = index % REDS if "/" in name else 0
    return np.clip(large[:, shift : shift + size], 0, 1).squeeze()


def _write(path: Path, picture: Any, side: int, deep: bool) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if side != len(picture):
        picture = cv2.resize(picture, (side, side), interpolation=cv2.INTER_AREA)
    top, depth = (65535, np.uint16) if deep else (255, np.uint8)
    cv2.imwrite(str(path), np.round(picture * top).astype(depth))


def _lmdb(root: Path, names: list[str]) -> str:
    from basicsr.utils.lmdb_util import make_lmdb_from_imgs

    path = root.with_name(f"{root.name}.lmdb")
    files = [f"{name}.png" for name in names]
    make_lmdb_from_imgs(str(root), str(path), files, names, map_size=1 << 28)
    return str(path)


def _list(made: Section, folder: Path, kind: str, names: list[str], size: int) -> None:
    """Write the list of names that the section's keys refer to."""
    shape = f"({size},{size},3)"
    if kind in TRAINING:
        lines = [f"{TRAINING[kind]} {REDS} {shape}"]
    elif "Vimeo" in kind:
        lines = [f"{clip} 7 {shape}" for clip in dict.fromkeys(n.rpartition("/")[0] for n in names)]
    elif kind.startswith("Video"):
        lines = [f"000 {len(names)} {shape}"]
    elif kind == "RealESRGANPairedDataset":
        lines = [f"{name}.png, {name}.png" for name in names]
    else:
        lines = [f"{name}.png {shape}" for name in names]
    for key in ("meta_info_file", "meta_info"):
        if made.get(key):
            path = folder / f"{key}.txt"
            path.write_text("\n".join(lines) + "\n", encoding="utf-8")
            made[key] = str(path)
