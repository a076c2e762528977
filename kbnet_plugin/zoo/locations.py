"""Where the files of models are: those that ship with the package, and the user's own."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path

from platformdirs import user_data_path

from ..errors import one_line

DEFAULT = "denoise-color"
"""Shipped model for colour photographs."""

DEFAULT_PHOTO = "denoise-photo"
"""Shipped model for the noise of cameras, which demosaicing and JPEG spread."""

DEFAULT_GRAY = "denoise-gray"
"""Shipped model for gray pictures."""

DEFAULT_MICRO = "denoise-micro"
"""Shipped model for microscopes and scientific cameras."""

FOLDER_VARIABLE = "KBNET_MODELS"
"""Environment variable with the folder of the user's own models."""

SHIPPED = Path(__file__).parent / "data"
"""Folder of the shipped models."""

PICKLED = (".pth", ".pt", ".ckpt")
"""Suffixes of PyTorch checkpoints."""

KINDS = (".safetensors", *PICKLED)
"""Suffixes of all files of weights."""

EXPORT_FORMATS = {
    "safetensors": ".safetensors",
    "pth": ".pth",
    "onnx": ".onnx",
    "bioimageio": ".zip",
    "hf": "",
}
"""From the formats that `kbnet export` writes to the suffixes of their files; ``hf`` is a folder."""

TRUNCATED_SAFETENSORS = "truncated or not a safetensors file; download it again"
"""Message about a .safetensors file that cannot be read."""

_NAME = re.compile(r"\w[\w.-]*")


def folder() -> Path:
    """Return the folder of the user's own models.

    It is ``KBNET_MODELS`` if set, or else ``kbnet/models`` in the system's folder for the user's data.

    Raises
    ------
    OSError
        If it is in a home folder that the system does not know.
    """
    value = os.environ.get(FOLDER_VARIABLE)
    path = Path(os.path.expanduser(value or _data() / "models"))
    if str(path).startswith("~"):
        raise OSError(f"{path}: no such home folder; set {FOLDER_VARIABLE} to a folder for models")
    return path


def _data() -> Path:
    with suppress(RuntimeError):  # if there is no home folder
        path = user_data_path("kbnet", appauthor=False)
        if path.is_absolute():  # the specification says to ignore a relative XDG_DATA_HOME
            return path
    return Path("~/.local/share/kbnet")


def folder_problem() -> str:
    """Say in one line why the user's own models cannot be found; empty if they can, or if there are none."""
    try:
        with os.scandir(folder()):
            return ""
    except FileNotFoundError:
        return ""
    except OSError as error:
        return one_line(error)


def model_files(where: Path) -> list[Path]:
    """List the files of weights in a folder, the default model first; none if the folder cannot be read."""
    try:
        paths = [p for p in where.iterdir() if p.suffix.lower() in KINDS and not p.name.startswith(".")]
    except OSError:
        return []
    return sorted(paths, key=lambda p: (p.stem != DEFAULT, p.stem, p.suffix != ".safetensors"))


def all_files() -> list[Path]:
    """List the files of the shipped models, then of the user's own."""
    try:
        own = folder()
    except OSError:
        return model_files(SHIPPED)
    return model_files(SHIPPED) + model_files(own)


def model_paths() -> dict[str, Path]:
    """Map the name of every model to its file, in the order of `kbnet_plugin.zoo.list_models`."""
    found: dict[str, Path] = {}
    for path in all_files():
        found.setdefault(path.stem, path)
    return found


def check_name(name: str) -> None:
    """Check the name of a user's model.

    Raises
    ------
    ValueError
        If it has other characters than letters, digits, ``_``, ``-`` and ``.``, or starts with the last two.
    FileExistsError
        If a shipped model has it.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} cannot name a model; use letters, digits, '_', '-' and '.' only")
    if any(path.stem == name for path in model_files(SHIPPED)):
        raise FileExistsError(f"{name} is a model that ships with kbnet; choose another name")
