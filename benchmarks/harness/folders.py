"""Folders that people name: whether they exist, and whether they can be written to."""

from __future__ import annotations

import secrets
from pathlib import Path

from kbnet_plugin.errors import BadInput


def need_folder(option: str, folder: Path | None) -> None:
    """Refuse an option that names a folder which does not exist."""
    if folder is not None and not folder.is_dir():
        raise BadInput(f"{option}: no folder {folder}")


def writable(folder: Path) -> Path:
    """Create a folder for results and return it.

    Raises
    ------
    BadInput
        If it cannot be created or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe-{secrets.token_hex(4)}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise BadInput(
            f"--out {folder}: cannot be written to ({error.strerror}); name another folder"
        ) from error
    return folder
