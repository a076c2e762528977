"""Cut datasets into crops: the same windows of all pictures of a pair, checked at the end."""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from kbnet_plugin.errors import BadInput, one_line
from kbnet_plugin.files import atomic_path

from .files import SUFFIXES, image_files, pair_up, walk

Pairs = dict[str, dict[str, str]]
"""Path by role, by the name of the pair, which the crops' names begin with."""


def prepare(task: str, source: str, target: str, *, crop: int, step: int | None, lmdb: bool) -> str:
    """Cut a dataset into crops; existing crops are kept, so that an interrupted run resumes.

    Parameters
    ----------
    task : str
        One of `basicsr_ext.tasks.TASKS`.
    source, target : str
        The dataset, and the folder for ``<role>_crops`` and, with `lmdb`, ``<role>_crops.lmdb``; for SIDD, in
        its subfolders train and val.
    crop, step : int
        Side of a crop and distance between two, in pixels; the last crops touch the edge, and a picture
        smaller than a crop is kept whole.
    lmdb : bool
        Also build lmdb databases.

    Returns
    -------
    str
        A summary in one line.

    Raises
    ------
    BadInput
        If pictures are missing, damaged or of different size, or `target` cannot be written.
    """
    step = step or max(crop * 3 // 4, 1)
    if crop < 1 or not 1 <= step <= crop:
        raise BadInput(f"--crop must be at least 1 and --step in 1..{crop}, not {crop} and {step}")
    if not os.path.isdir(source):
        raise BadInput(f"{source} is not a folder")
    pairs = {"sidd": _sidd, "gaussian": _gaussian, "derain": _derain, "defocus": _defocus}[task](source)
    roles = list(next(iter(pairs.values())))
    part = "train" if task == "sidd" else "."  # its validation blocks go to val
    folders = {role: Path(target, part, f"{role}_crops") for role in roles}
    try:
        for folder in folders.values():
            folder.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(max(os.cpu_count() or 1, 1)) as pool:
            jobs = pool.map(lambda name: _cut(name, pairs[name], folders, crop, step), pairs)
            names = [name for cut in _bar(jobs, len(pairs), "cutting") for name in cut]
        blocks = _sidd_blocks(Path(source), Path(target)) if task == "sidd" else 0
        _verify(folders, names)
        if lmdb:
            for folder in folders.values():
                _database(folder, names)
    except OSError as error:
        raise BadInput(f"cannot write to {target}: {error.strerror or one_line(error)}") from error
    summary = (
        f"{len(names):,} crops of {len(pairs):,} pictures in {', '.join(str(f) for f in folders.values())}"
    )
    return f"{summary}{f'; {blocks:,} validation blocks' if blocks else ''}: all are readable, sizes match"


def _bar(items: Iterable[Any], total: int, text: str) -> Iterable[Any]:
    return tqdm(items, text, total, unit="picture", disable=None)


def _gaussian(source: str) -> Pairs:
    return {_flat(key): {"target": path} for key, path in image_files(source).items()}


def _derain(source: str) -> Pairs:
    return _paired({role: os.path.join(source, role) for role in ("target", "input")})


def _defocus(source: str) -> Pairs:
    centre = next((n for n in ("inputC", "source") if os.path.isdir(os.path.join(source, n))), None)
    views = [n for n in ("inputL", "inputR") if os.path.isdir(os.path.join(source, n))]
    if not (centre or views):
        raise BadInput(f"{source} has none of the folders inputC, source, inputL and inputR")
    names = {"target": "target", **({"inputC": centre} if centre else {}), **{v: v for v in views}}
    return _paired({role: os.path.join(source, name) for role, name in names.items()})


def _paired(folders: dict[str, str]) -> Pairs:
    for folder in folders.values():
        if not os.path.isdir(folder):
            raise BadInput(f"{folder} does not exist; see kbnet prepare --help for the layout")
    lead, root = next(iter(folders.items()))
    return {
        _flat(os.path.splitext(os.path.relpath(entry[lead], root))[0]): entry for entry in pair_up(folders)
    }


def _sidd(source: str) -> Pairs:
    pairs: Pairs = {}
    for parent, names in walk(source):
        for name in names:
            if "_GT_SRGB" not in name.upper() or not name.lower().endswith(SUFFIXES):
                continue
            noisy = name.replace("GT_SRGB", "NOISY_SRGB")
            if noisy not in names:
                raise BadInput(f"{os.path.join(parent, name)} has no {noisy} next to it")
            stem = os.path.splitext(name.replace("_GT_SRGB", ""))[0]
            key = f"{os.path.basename(parent).split('_')[0]}_{stem}"
            if key in pairs:
                key = _flat(os.path.relpath(os.path.join(parent, stem), source))
            pairs[key] = {"target": os.path.join(parent, name), "input": os.path.join(parent, noisy)}
    if not pairs:
        raise BadInput(f"{source} contains no *_GT_SRGB_*.PNG; unpack SIDD_Medium_Srgb there")
    return dict(sorted(pairs.items()))


def _flat(key: str) -> str:
    return key.replace(os.sep, "_")


def _cut(name: str, paths: dict[str, str], folders: dict[str, Path], crop: int, step: int) -> list[str]:
    """Write the missing crops of a pair; returns the names of all its crops."""
    marker = {role: folders[role] / f".{name}.{crop}.{step}" for role in paths}
    if all(m.is_file() for m in marker.values()):
        names = next(iter(marker.values())).read_text(encoding="utf-8").split("\n")
        if all((folders[role] / f"{n}.png").is_file() for role in paths for n in names):
            return names
    images = {}
    for role, path in paths.items():
        image = (
            cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED) if os.path.getsize(path) else None
        )
        if image is None or image.dtype not in (np.uint8, np.uint16):
            raise BadInput(f"{path} cannot be read as an 8- or 16-bit picture; unpack it again")
        images[role] = image
    lead, *others = paths
    height, width = images[lead].shape[:2]
    for role in others:
        if (found := images[role].shape[:2]) != (height, width):
            raise BadInput(
                f"the pair does not match: {paths[role]} is {found[1]}x{found[0]} pixels, "
                f"{paths[lead]} is {width}x{height}"
            )
    corners = [(y, x) for y in _starts(height, crop, step) for x in _starts(width, crop, step)]
    names = [f"{name}_s{number:03d}" for number in range(1, len(corners) + 1)]
    for role, image in images.items():
        for crop_name, (y, x) in zip(names, corners, strict=True):
            target = folders[role] / f"{crop_name}.png"
            if not target.is_file():
                _write(target, image[y : y + crop, x : x + crop])
        marker[role].write_text("\n".join(names), encoding="utf-8")
    return names


def _starts(length: int, crop: int, step: int) -> list[int]:
    if length <= crop:
        return [0]
    return [*range(0, length - crop, step), length - crop]


def _write(path: Path, image: np.ndarray) -> None:
    done, content = cv2.imencode(".png", image, [cv2.IMWRITE_PNG_COMPRESSION, 1])
    if not done:
        raise BadInput(f"{path} cannot be written as PNG")
    with atomic_path(path) as temporary:
        temporary.write_bytes(content.tobytes())


def _sidd_blocks(source: Path, target: Path) -> int:
    """Save the validation blocks, (40, 32, 256, 256, 3), as pictures."""
    count = 0
    for role, kind in (("target", "Gt"), ("input", "Noisy")):
        name = f"Validation{kind}BlocksSrgb.mat"
        file = next((Path(parent, name) for parent, names in walk(str(source)) if name in names), None)
        if file is None:
            continue
        from scipy.io import loadmat

        try:
            blocks = loadmat(file)[f"Validation{kind}BlocksSrgb"]
        except (KeyError, ValueError, NotImplementedError) as error:
            raise BadInput(f"{file} does not contain SIDD's validation blocks: {one_line(error)}") from error
        folder = target / "val" / f"{role}_crops"
        folder.mkdir(parents=True, exist_ok=True)
        flat = blocks.reshape(-1, *blocks.shape[2:])
        for number, block in enumerate(_bar(flat, len(flat), f"blocks, {role}"), 1):
            path = folder / f"{number:04d}.png"
            if not path.is_file():
                _write(path, block[..., ::-1])
        count = len(flat)
    return count


def _verify(folders: dict[str, Path], names: list[str]) -> None:
    """Decode every crop and compare sizes."""

    def size(name: str) -> None:
        found = {}
        for folder in folders.values():
            path = folder / f"{name}.png"
            image = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
            if image is None:
                path.unlink()
                raise BadInput(f"{path} was damaged and has been removed; run the command again")
            found[path] = image.shape[:2]
        if len(set(found.values())) > 1:
            raise BadInput(
                f"the crops {', '.join(map(str, found))} differ in size; remove them and run again"
            )

    with ThreadPoolExecutor(max(os.cpu_count() or 1, 1)) as pool:
        for _ in _bar(pool.map(size, names), len(names), "verifying"):
            pass


def _database(folder: Path, names: list[str]) -> None:
    """Build ``<folder>.lmdb`` in BasicSR's layout, under a temporary name until it is complete."""
    import shutil

    import lmdb

    target, unfinished = folder.with_name(f"{folder.name}.lmdb"), folder.with_name(f".{folder.name}.lmdb")
    listing = target / "meta_info.txt"
    if listing.is_file() and len(listing.read_text(encoding="utf-8").splitlines()) == len(names):
        return
    shutil.rmtree(unfinished, ignore_errors=True)
    size = sum((folder / f"{name}.png").stat().st_size for name in names)
    lines = []
    with lmdb.open(str(unfinished), map_size=size * 2 + 2**24) as environment:
        with environment.begin(write=True) as transaction:
            for name in _bar(sorted(names), len(names), f"{target.name}"):
                content = (folder / f"{name}.png").read_bytes()
                image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
                assert image is not None  # `_verify` has decoded it
                channels = 1 if image.ndim == 2 else image.shape[2]
                lines.append(f"{name}.png ({image.shape[0]},{image.shape[1]},{channels}) 1\n")
                transaction.put(name.encode(), content)
        if environment.stat()["entries"] != len(names):
            raise BadInput(f"{unfinished} lacks entries; run the command again")
    (unfinished / "meta_info.txt").write_text("".join(lines), encoding="utf-8")
    shutil.rmtree(target, ignore_errors=True)
    unfinished.rename(target)
