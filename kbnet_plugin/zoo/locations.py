"""Where models lie, told without torch: those that ship with the package, then the user's own."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from platformdirs import user_data_path

DEFAULT = "denoise-color"
DEFAULT_GRAY = "denoise-gray"
DEFAULT_MICRO = "denoise-micro"

FOLDER_VARIABLE = "KBNET_MODELS"
"""Environment variable that names the folder of the user's own models."""

SHIPPED = Path(__file__).parent / "data"

PICKLED = (".pth", ".pt", ".ckpt")
KINDS = (".safetensors", *PICKLED)
"""What files of weights end in."""

EXPORT_FORMATS = ("safetensors", "pth", "onnx")
"""What `kbnet export` writes."""

_NAME = re.compile(r"\w[\w.-]*")


def folder() -> Path:
    """Where the user's own models lie: ``KBNET_MODELS``, or ``kbnet/models`` in the user's data folder."""
    if named := os.environ.get(FOLDER_VARIABLE):
        return Path(named).expanduser()
    data = user_data_path("kbnet", appauthor=False)
    if not data.is_absolute():  # older platformdirs take a relative XDG_DATA_HOME, which is to be ignored
        data = Path.home() / ".local" / "share" / "kbnet"
    return data / "models"


def model_files(where: Path) -> Iterator[Path]:
    """Files of weights in a folder, the default model first."""
    if not where.is_dir():
        return
    paths = (p for p in where.iterdir() if p.suffix.lower() in KINDS and not p.name.startswith("."))
    yield from sorted(paths, key=lambda p: (p.stem != DEFAULT, p.stem, p.suffix != ".safetensors"))


def model_paths() -> dict[str, Path]:
    """Name to file of every model, as `kbnet_plugin.zoo.list_models` lists them."""
    found: dict[str, Path] = {}
    for path in (*model_files(SHIPPED), *model_files(folder())):
        found.setdefault(path.stem, path)
    return found


def check_name(name: str) -> None:
    """Raise ValueError where a name cannot be that of a user's model; FileExistsError for a shipped one's."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} cannot name a model; use letters, digits, '_', '-' and '.'")
    if any(path.stem == name for path in model_files(SHIPPED)):
        raise FileExistsError(f"{name} is a model that ships with kbnet; choose another name")
