"""Image files, folders and lmdb databases for the datasets."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import cv2
import numpy as np
from basicsr.utils.file_client import BaseStorageBackend, FileClient
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from kbnet_plugin.errors import BadInput, one_line

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".ppm", ".pgm")

_PAGE = re.compile(r"\[(\d+)\]$")

_SHAPE = re.compile(r"\s+\(\d+,\s*\d+(,\s*\d+)?\)(\s+\d+)?$")

_BETWEEN = re.compile(rf"({'|'.join(map(re.escape, SUFFIXES))}),\s*", re.IGNORECASE)

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


def walk(folder: str, above: frozenset[str] = frozenset()) -> Iterator[tuple[str, list[str]]]:
    """Yield every folder with the names of its files, sorted; links are followed, but not in circles."""
    above |= {os.path.realpath(folder)}
    with os.scandir(folder) as entries:
        found = sorted((e.name, e.is_dir()) for e in entries if not e.name.startswith("."))
    yield folder, [name for name, is_folder in found if not is_folder]
    for path in (os.path.join(folder, name) for name, is_folder in found if is_folder):
        if os.path.realpath(path) not in above:
            yield from walk(path, above)


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
    for parent, names in walk(folder):
        for name in names:
            stem, suffix = os.path.splitext(name)
            if suffix.lower() not in SUFFIXES:
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


def read_listing(path: str) -> list[list[str]]:
    """Read a BasicSR meta information file.

    Every line has a name, perhaps followed by its shape, ``name (h,w,c)``; or the names of a pair,
    ``clean.png, degraded.png``. Names may contain spaces.
    """
    lines = [_SHAPE.sub("", line.strip()) for line in _lines(path) if line.strip()]
    if not lines:
        raise BadInput(f"{path} lists no images")
    return [_BETWEEN.sub(r"\1\n", line).split("\n") for line in lines]


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


class Header(NamedTuple):
    """What the header of an image file says.

    Attributes
    ----------
    size : tuple of int or None
        Height and width; None if Pillow cannot open the file.
    pages : int
        Images in it, of which there may be several in a TIFF.
    deep : bool
        Whether it has, or may have, more than 8 bits.
    """

    size: tuple[int, int] | None
    pages: int = 1
    deep: bool = True


def read_headers(paths: Iterable[str]) -> dict[str, Header]:
    """Read the headers of images.

    Raises
    ------
    BadInput
        If a file does not exist, or its pages are not images of one kind.
    """
    paths = list(dict.fromkeys(paths))
    with ThreadPoolExecutor(8) as pool:
        headers = tqdm(
            pool.map(_header, paths),
            "checking image sizes",
            len(paths),
            leave=False,
            delay=1,
            disable=None,
        )
        return dict(zip(paths, headers, strict=True))


def _header(path: str) -> Header:
    try:
        with Image.open(path) as image:
            size, deep = (image.height, image.width), image.mode == "F" or "16" in str(image.tile)
            if image.format != "TIFF":
                return Header(size, deep=deep)
            pages = getattr(image, "n_frames", 1)
            text = str(image.tag_v2.get(_DESCRIPTION, ""))  # type: ignore[attr-defined]
            packed = re.search(r"^images=(\d+)", text, re.MULTILINE) if text.startswith("ImageJ=") else None
            if pages == 1 and packed and int(packed[1]) > 1:
                raise BadInput(
                    f"{path} is an ImageJ stack of {packed[1]} images behind one header, of which only the "
                    "first could be read; save it as an image sequence"
                )
            kinds = {(size, image.mode)}
            for page in range(1, pages):
                image.seek(page)
                kinds.add(((image.height, image.width), image.mode))
    except FileNotFoundError as error:
        raise BadInput(f"{path} does not exist, although it is listed") from error
    except BadInput:
        raise
    except (UnidentifiedImageError, OSError, ValueError, EOFError, Image.DecompressionBombError):
        return Header(None)  # OpenCV may still read it; if not, `decode` names it
    if len(kinds) > 1:
        raise BadInput(
            f"{path} has {pages} pages of different size or depth, such as reduced copies; "
            "save the one to use as a file of its own"
        )
    return Header(size, pages, deep)


_DESCRIPTION = 270
"""TIFF tag."""


def is_deep_png(content: bytes) -> bool:
    """Return whether a file is a PNG of 16 bits."""
    return content[:8] == b"\x89PNG\r\n\x1a\n" and content[24:25] == b"\x10"


def page_paths(path: str, pages: int) -> list[str]:
    """Name the images of a file: ``stack.tif[0]``, ..., or the path itself if it has one."""
    return [f"{path}[{page}]" for page in range(pages)] if pages > 1 else [path]


def split_page(path: str) -> tuple[str, int | None]:
    """Return the file that a name of `page_paths` is in, and which page, None if there is only one."""
    match = _PAGE.search(path)
    if match is None or not path[: match.start()].lower().endswith((".tif", ".tiff")):
        return path, None
    return path[: match.start()], int(match[1])


def picture_name(options: Mapping[str, Any], path: str) -> str:
    """Name what is made from an image of a dataset, without suffix, so that no two images share a name.

    It is the path below the dataset's folder, as ``sub__0001``.
    """
    file, page = split_page(path)
    roots = [str(v).rstrip(os.sep) for k, v in options.items() if k.startswith("dataroot") and v]
    inside = [file[len(r) + 1 :] for r in roots if file.startswith((r + os.sep, r + ":"))]
    stem, suffix = os.path.splitext(inside[0] if inside else os.path.basename(file))
    name = (stem if suffix.lower() in SUFFIXES else stem + suffix).replace(os.sep, "__")
    return name if page is None else f"{name}__{page}"


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
    return _as_asked(cv2.imdecode(buffer, cv2.IMREAD_UNCHANGED) if buffer.size else None, path, channels)


def decode_page(file: str, page: int, channels: int) -> np.ndarray:
    """Decode a page of a TIFF; see `decode`."""
    done, images = cv2.imreadmulti(file, start=page, count=1, flags=cv2.IMREAD_UNCHANGED)
    return _as_asked(images[0] if done and images else None, f"{file}[{page}]", channels)


def _as_asked(image: Any, path: str, channels: int) -> np.ndarray:
    if image is None or image.dtype not in (np.uint8, np.uint16, np.float32):
        kind = "" if image is None else f" of {image.dtype}"
        raise BadInput(f"{path} cannot be read as an image{kind}; replace it or remove it from the dataset")
    gray = image.ndim == 2
    if not gray:
        image = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY if channels == 1 else cv2.COLOR_BGR2RGB)
    elif channels == 3:
        image = cv2.cvtColor(image, cv2.COLOR_GRAY2RGB)
    result: np.ndarray = image.reshape(*image.shape[:2], channels)
    return result


def to_unit(image: np.ndarray) -> np.ndarray:
    """Scale a decoded image to float32 in 0..1 by its dtype; float images stay unchanged."""
    if image.dtype == np.float32:
        return image
    return image.astype(np.float32) / np.float32(np.iinfo(image.dtype).max)
