"""Image files, folders and lmdb databases for the datasets."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np
from basicsr.utils.file_client import BaseStorageBackend, FileClient
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from kbnet_plugin.errors import BadInput, one_line

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".ppm", ".pgm")

# OpenCV writes about a damaged file to standard error; `decode` raises an error that names the file instead.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


class SharedLmdb(BaseStorageBackend):  # type: ignore[misc] # BasicSR is untyped
    """lmdb backend with one read-only handle per database and process.

    lmdb >= 2 refuses to open a database twice in a process, which BasicSR does when training and validation
    share one. A forked worker uses the handle it inherits, which is read-only and without locks.
    """

    _open: ClassVar[dict[str, Any]] = {}

    def __init__(
        self, db_paths: str | Sequence[str], client_keys: str | Sequence[str] = "default", **_: Any
    ) -> None:
        paths = [db_paths] if isinstance(db_paths, str) else list(db_paths)
        keys = [client_keys] if isinstance(client_keys, str) else list(client_keys)
        self.db_paths = {key: os.path.realpath(path) for key, path in zip(keys, paths, strict=True)}

    def get(self, filepath: str, client_key: str = "default") -> bytes:
        """Return the bytes stored under a key."""
        import lmdb  # optional: only databases need it

        path = self.db_paths[client_key]
        if path not in self._open:
            try:
                self._open[path] = lmdb.open(path, readonly=True, lock=False, readahead=False)
            except lmdb.Error as error:
                raise BadInput(f"{path} is not an lmdb database: {one_line(error)}") from error
        with self._open[path].begin() as transaction:
            value = transaction.get(str(filepath).encode())
        if value is None:
            raise BadInput(f"{path} has no entry {filepath!r}, although its meta_info.txt lists it")
        return bytes(value)

    def get_text(self, filepath: str) -> str:
        raise NotImplementedError


def use_shared_lmdb() -> None:
    """Make BasicSR's own datasets share handles too."""
    FileClient._backends["lmdb"] = SharedLmdb


def image_files(folder: str) -> dict[str, str]:
    """Find every image below a folder; returns its path by its name without suffix ('sub/0001'), sorted.

    Raises
    ------
    BadInput
        If there is none, or two names differ only in their suffix.
    """
    if not os.path.isdir(folder):
        raise BadInput(f"{folder} is not a folder")
    found: dict[str, str] = {}
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        for name in names:
            stem, suffix = os.path.splitext(name)
            if suffix.lower() not in SUFFIXES or name.startswith("."):
                continue
            path = os.path.join(parent, name)
            key = os.path.relpath(os.path.join(parent, stem), folder)
            if key in found:
                raise BadInput(f"{path} and {found[key]} have the same name; remove one")
            found[key] = path
    if not found:
        raise BadInput(f"{folder} contains no images ({', '.join(SUFFIXES)})")
    return dict(sorted(found.items()))


def pair_up(folders: dict[str, str], template: str = "{}") -> list[dict[str, str]]:
    """Match the images of several folders by name, in the order of the first folder.

    Parameters
    ----------
    folders : dict
        Folder by role, e.g. ``{"gt": ..., "lq": ...}``.
    template : str
        Name in the other folders, given that in the first, e.g. ``"{}_noisy"``.

    Returns
    -------
    list of dict
        Path by role.
    """
    files = {role: image_files(folder) for role, folder in folders.items()}
    (lead, leading), *others = files.items()
    for role, members in others:
        expected = {_partner(key, template): path for key, path in leading.items()}
        if missing := [path for key, path in expected.items() if key not in members]:
            raise BadInput(
                f"the pairs do not match: {len(missing)} of {len(leading)} {lead} images have no partner in "
                f"{folders[role]} (the first: {missing[0]}); give both the same name"
            )
        if unmatched := [path for key, path in members.items() if key not in expected]:
            raise BadInput(
                f"the pairs do not match: {len(unmatched)} of {len(members)} {role} images have no partner "
                f"in {folders[lead]} (the first: {unmatched[0]}); give both the same name"
            )
    return [
        {lead: path} | {role: members[_partner(key, template)] for role, members in others}
        for key, path in leading.items()
    ]


def _partner(key: str, template: str) -> str:
    parent, name = os.path.split(key)
    return os.path.join(parent, template.format(name))


def read_listing(path: str) -> list[str]:
    """Read the names in a BasicSR meta information file, which has ``name (h,w,c)`` on every line."""
    names = [line.split()[0] for line in _lines(path) if line.strip()]
    if not names:
        raise BadInput(f"{path} lists no images")
    return names


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"cannot read {path}: {one_line(error)}") from error


def read_lmdb_listing(folder: str) -> dict[str, tuple[int, int]]:
    """Read height and width by key from the meta_info.txt of a BasicSR lmdb folder."""
    if not os.path.isfile(os.path.join(folder, "data.mdb")):
        raise BadInput(f"{folder} is not an lmdb folder: it has no data.mdb; fix the path or io_backend.type")
    listing = os.path.join(folder, "meta_info.txt")
    shapes = {}
    for number, line in enumerate(_lines(listing), 1):
        if not (match := re.match(r"(.+?)(?:\.\w+)? \((\d+),\s*(\d+)", line)):
            raise BadInput(f"{listing}, line {number}: expected 'name.png (h,w,c) level', found {line!r}")
        shapes[match[1]] = (int(match[2]), int(match[3]))
    return shapes


def header_sizes(paths: Iterable[str]) -> dict[str, tuple[int, int]]:
    """Read height and width of images from their headers; files that Pillow cannot open are skipped.

    Raises
    ------
    BadInput
        If a file does not exist.
    """
    paths = list(dict.fromkeys(paths))
    with ThreadPoolExecutor(8) as pool:
        sizes = tqdm(
            pool.map(_header_size, paths),
            "checking image sizes",
            len(paths),
            leave=False,
            delay=1,
            disable=None,
        )
        return {path: size for path, size in zip(paths, sizes, strict=True) if size}


def _header_size(path: str) -> tuple[int, int] | None:
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except FileNotFoundError as error:
        raise BadInput(f"{path} does not exist, although it is listed") from error
    except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError):
        return None  # OpenCV may still read it; if not, `decode` names it


def decode(content: bytes, path: str, channels: int) -> np.ndarray:
    """Decode an image file.

    Parameters
    ----------
    content : bytes
        The file.
    path : str
        Its name, for error messages.
    channels : int
        1 for luma, 3 for RGB; gray and colour are converted, alpha is dropped.

    Returns
    -------
    ndarray
        (H, W, channels) in the file's dtype: uint8, uint16 or float32.

    Raises
    ------
    BadInput
        If OpenCV cannot read it.
    """
    buffer = np.frombuffer(content, np.uint8)
    image = cv2.imdecode(buffer, cv2.IMREAD_UNCHANGED) if buffer.size else None
    if image is None or image.dtype not in (np.uint8, np.uint16, np.float32):
        kind = "" if image is None else f" of {image.dtype}"
        raise BadInput(f"{path} cannot be read as an image{kind}; replace it or remove it from the dataset")
    gray = image.ndim == 2
    if not gray:
        image = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY if channels == 1 else cv2.COLOR_BGR2RGB)
    elif channels == 3:
        image = cv2.cvtColor(image, cv2.COLOR_GRAY2RGB)
    return image.reshape(*image.shape[:2], channels)


def to_unit(image: np.ndarray) -> np.ndarray:
    """Scale a decoded image to float32 in 0..1 by its dtype; float images stay unchanged."""
    if image.dtype == np.float32:
        return image
    return image.astype(np.float32) / np.float32(np.iinfo(image.dtype).max)
