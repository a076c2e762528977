"""Test sets: described in YAML, found in a folder, checked before anything is measured on them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow
from pydantic import BaseModel, BeforeValidator, ConfigDict

from kbnet_plugin.errors import BadInput
from kbnet_plugin.io import read_image

Names = Annotated[tuple[str, ...], BeforeValidator(lambda x: (x,) if isinstance(x, str) else x)]


class Description(BaseModel):
    """A test set as `datasets.yml` describes it; see the head of that file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    title: str
    where: str
    folder: Names = ()
    input: Names = ()
    target: Names = ()
    skimage: Names = ()
    channels: Literal[1, 3] = 3
    count: int | None = None
    size: tuple[int, int] | None = None

    @property
    def layout(self) -> str:
        """Where the files are expected, below the data folder."""
        if self.skimage:
            return "no files needed"
        pattern = f"{{{self.input[0]}, {self.target[0]}}}" if self.input else self.target[0]
        return f"{self.folder[0]}/{pattern}"


@dataclass(frozen=True)
class Item:
    """An image and, in a pair, the degraded one that is restored."""

    name: str
    target: Path | str
    input: Path | None = None
    block: tuple[int, int] | None = None  # in a .mat file

    def load(self, channels: int) -> tuple[NDArray[np.float32] | None, NDArray[np.float32]]:
        """Read input (None where noise is added later) and truth, (H, W, channels) float32 in 0..1."""
        truth = self._read(self.target, channels)
        if self.input is None:
            return None, truth
        return self._read(self.input, channels), truth

    def _read(self, source: Path | str, channels: int) -> NDArray[np.float32]:
        if isinstance(source, str):
            from skimage import data

            image = getattr(data, source)()
        elif self.block is not None:
            image = _mat(source)[self.block]
        else:
            image = read_image(source)[0]
        image = np.atleast_3d(image)
        if image.shape[2] > channels == 1:
            image = np.asarray(Pillow.fromarray(image).convert("L"))[..., None]
        if image.shape[2] != channels:
            raise BadInput(f"{source}: {image.shape[2]} channels instead of {channels}")
        if image.dtype.kind != "u":
            raise BadInput(f"{source}: {image.dtype} pixels; test images must be 8- or 16-bit integers")
        return image.astype(np.float32) / np.float32(np.iinfo(image.dtype).max)


@dataclass(frozen=True)
class Dataset:
    """A complete test set."""

    name: str
    description: Description
    items: tuple[Item, ...]

    def __iter__(self) -> Iterator[tuple[NDArray[np.float32] | None, NDArray[np.float32]]]:
        for item in self.items:
            yield item.load(self.description.channels)

    @cached_property
    def sha256(self) -> str:
        """Hash of the names and the contents of all files."""
        digest = hashlib.sha256()
        sources = [s for i in self.items for s in (i.target, i.input) if s is not None]
        for source in dict.fromkeys(sources):
            digest.update(f"{source if isinstance(source, str) else source.name}\0".encode())
            if isinstance(source, Path):
                with source.open("rb") as file:
                    digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()

    @cached_property
    def mean_size(self) -> tuple[int, int]:
        """Mean height and width, with all images in landscape orientation."""
        sizes = [_size(i.target, i.block) for i in self.items]
        high = sum(min(s) for s in sizes) / len(sizes)
        wide = sum(max(s) for s in sizes) / len(sizes)
        return round(high), round(wide)


def find(name: str, description: Description, data: Path | None) -> Dataset | None:
    """Find a test set below `data`; None if its folder does not exist.

    Raises
    ------
    BadInput
        If files are missing, have no partner or have the wrong size.
    """
    if description.skimage:
        return Dataset(name, description, tuple(Item(n, n) for n in description.skimage))
    folder = next((data / f for f in description.folder if (data / f).is_dir()), None) if data else None
    if folder is None:
        return None
    targets = _files(folder, description.target)
    if not targets:
        raise BadInput(f"{name}: no files {' or '.join(description.target)} in {folder}")
    if not description.input:
        items = [Item(key, path) for key, path in targets.items()]
    else:
        inputs = _files(folder, description.input)
        if alone := sorted(set(targets) ^ set(inputs)):
            lacks = "target" if alone[0] in inputs else "input"
            path = inputs.get(alone[0]) or targets[alone[0]]
            raise BadInput(
                f"{name}: {path} has no {lacks} ({len(alone)} without a partner); download the set again"
            )
        items = [Item(key, targets[key], inputs[key]) for key in targets]
        if items and items[0].target.suffix == ".mat":  # type: ignore[union-attr]
            (whole,) = items
            items = [_block(whole, i, j) for i, j in np.ndindex(_mat(whole.target).shape[:2])]
    wanted = description.count
    if wanted is not None and len(items) != wanted:
        raise BadInput(f"{name}: {len(items)} images in {folder}, not {wanted}; download the set again")
    if description.size:
        for item in items:
            for source in (item.target, item.input):
                if source is not None and sorted(_size(source, item.block)) != sorted(description.size):
                    raise BadInput(
                        f"{name}: {source} is {' x '.join(map(str, _size(source, item.block)))} pixels, not "
                        f"{' x '.join(map(str, description.size))}; this is another version of the set"
                    )
    return Dataset(name, description, tuple(items))


def _files(folder: Path, patterns: tuple[str, ...]) -> dict[str, Path]:
    """Return the files of the first pattern that matches any, sorted by what its * stands for."""
    for pattern in patterns:
        head, _, tail = pattern.rpartition("*")
        keys = {}
        for path in folder.glob(pattern):
            if "*" not in pattern:
                keys[""] = path
            elif "*" in head:  # several: the first folder and the file name identify it
                relative = path.relative_to(folder)
                keys[f"{relative.parts[0]}/{relative.name}"] = path
            else:
                keys[path.relative_to(folder).as_posix()[len(head) : -len(tail) or None]] = path
        if keys:
            return dict(sorted(keys.items()))
    return {}


def _block(item: Item, i: int, j: int) -> Item:
    return Item(f"{i:02}-{j:02}", item.target, item.input, (i, j))


_MAT: dict[Path, NDArray[np.uint8]] = {}


def _mat(path: Path | str) -> NDArray[np.uint8]:
    """Return the array in a MATLAB file, (scenes, blocks, H, W, C)."""
    if (found := _MAT.get(Path(path))) is None:
        from scipy.io import loadmat

        try:
            content = loadmat(path)
        except Exception as error:  # its readers raise anything
            raise BadInput(f"{path}: truncated or not a MATLAB file; download it again") from error
        arrays = [a for n, a in content.items() if not n.startswith("__") and np.ndim(a) == 5]
        if len(arrays) != 1:
            raise BadInput(f"{path}: contains {len(arrays)} arrays with five axes, not 1")
        found = _MAT[Path(path)] = arrays[0]
    return found


def _size(source: Path | str, block: tuple[int, int] | None) -> tuple[int, int]:
    if isinstance(source, str):
        from skimage import data

        return getattr(data, source)().shape[:2]
    if block is not None:
        return _mat(source).shape[2:4]
    try:
        with Pillow.open(source) as image:
            return image.height, image.width
    except OSError:
        raise BadInput(f"{source}: damaged or not an image") from None
