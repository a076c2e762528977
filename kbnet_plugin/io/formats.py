"""Formats of files: their names, how to recognize them, and what reads them."""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import BadInput


@dataclass(frozen=True, slots=True)
class Format:
    """A file format.

    Attributes
    ----------
    name : str
        As people call it.
    suffixes : tuple of str
        In lower case; the first is the usual one.
    writes : str
        Suffix of results in a folder: the source's own (empty), or that of the format written instead.
    module, extra : str
        Optional module that reads it, and the extra of kbnet that installs it; empty if none is needed.
    """

    name: str
    suffixes: tuple[str, ...]
    writes: str = ""
    module: str = ""
    extra: str = ""

    @property
    def readable(self) -> bool:
        """Whether the module that reads it is installed."""
        return not self.module or importlib.util.find_spec(self.module) is not None


FORMATS = (
    Format("PNG", (".png",)),
    Format("JPEG", (".jpg", ".jpeg", ".jpe", ".jfif")),
    Format("TIFF", (".tif", ".tiff", ".btf", ".tf8")),
    Format("LSM", (".lsm",), writes=".ome.tif"),
    Format("OME-Zarr", (".zarr",), module="zarr", extra="arrays"),
    Format("WebP", (".webp",), writes=".png"),
    Format("JPEG XL", (".jxl",), writes=".png"),
    Format("AVIF", (".avif",), writes=".png"),
    Format("HEIC", (".heic", ".heif", ".hif"), writes=".png", module="pillow_heif", extra="photos"),
    Format(
        "raw photograph",
        (".dng", ".nef", ".cr2", ".cr3", ".arw", ".raf", ".orf", ".rw2", ".pef", ".srw"),
        writes=".tif",
        module="rawpy",
        extra="photos",
    ),
    Format("CZI", (".czi",), writes=".ome.tif", module="pylibCZIrw", extra="microscopes"),
    Format("ND2", (".nd2",), writes=".ome.tif", module="nd2", extra="microscopes"),
    Format("LIF", (".lif",), writes=".ome.tif", module="liffile", extra="microscopes"),
)

WRITTEN = ("PNG", "JPEG", "TIFF", "OME-Zarr")
"""Names of the formats that results are written in."""

_BY_SUFFIX = {suffix: found for found in FORMATS for suffix in found.suffixes}


def find_format(path: Path) -> Format | None:
    """Return the format that a name says; None if it is unknown."""
    return _BY_SUFFIX.get(path.suffix.lower())


def import_optional(module: str, purpose: str, extra: str) -> Any:
    """Import a module that an extra of kbnet installs.

    Parameters
    ----------
    module : str
        Its name.
    purpose : str
        Beginning of the message, such as ``"stacks need"``.
    extra : str

    Raises
    ------
    ValueError
        If it is not installed; the message names the extra.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        raise BadInput(
            f"{purpose} {module.replace('_', '-')}, which is not installed: pip install 'kbnet[{extra}]'"
        ) from None


def require(found: Format, path: Path) -> None:
    """Raise BadInput, naming the extra to install, unless a format can be read here."""
    if not found.readable:
        raise BadInput(
            f"{path}: reading {found.name} files needs {found.module}, which is not installed: "
            f"pip install 'kbnet[{found.extra}]'"
        )
