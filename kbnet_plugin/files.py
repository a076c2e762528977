"""Write files completely or not at all."""

from __future__ import annotations

import os
import re
import secrets
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .process import unfinished

_WRITING = re.compile(r"inline_container\.cc|PytorchStreamWriter|I/O error")
"""Torch and safetensors report a full disk by errors of their own."""


def check_folder(path: Path) -> None:
    """Raise FileNotFoundError if the folder that `path` would be written to does not exist."""
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path.parent}: no such folder to write {path.name} to; create it first")


def replace(temporary: Path, path: Path) -> None:
    """Replace a file by another one; on Windows, wait up to a second for those who have it open."""
    for left in reversed(range(10 if sys.platform == "win32" else 1)):
        try:
            temporary.replace(path)
            return
        except PermissionError:
            if not left:
                raise
            time.sleep(0.1)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder; its file replaces `path` when the block succeeds.

    If the block raises, or `kbnet_plugin.process` is interrupted, the temporary file is deleted and `path`
    stays as it was.

    Raises
    ------
    FileNotFoundError
        If the folder does not exist.
    OSError
        If the file cannot be written; it names `path`.
    """
    check_folder(path)
    # The suffix stays last, because writers choose the format by it; the stem may be as long as names can be.
    temporary = path.with_name(f".{path.stem[:40]}.{secrets.token_hex(4)}{path.suffix}")
    unfinished.add(str(temporary))
    try:
        temporary.touch(exist_ok=False)
        mode = temporary.stat().st_mode  # the umask's; some writers make files private
        yield temporary
        temporary.chmod(mode)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        replace(temporary, path)
    except OSError as error:
        if error.strerror and error.filename in (None, str(temporary), temporary):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    except Exception as error:
        if _WRITING.search(str(error)):
            raise OSError(f"{path}: cannot be written completely; is the disk full?") from error
        raise
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()
        unfinished.discard(str(temporary))
