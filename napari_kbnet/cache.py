"""Folders for results that are too large for memory: the user's own, and removed when the viewer closes."""

from __future__ import annotations

import atexit
import shutil
from pathlib import Path
from tempfile import mkdtemp

from filelock import FileLock, Timeout
from platformdirs import user_cache_path

_locks: dict[Path, FileLock] = {}


def folder() -> Path:
    """Return where such results are kept; a temporary folder is often in memory."""
    return user_cache_path("kbnet", appauthor=False) / "results"


def new_folder() -> Path:
    """Make a folder for one result, and remove those that a crash has left behind."""
    root = folder()
    root.mkdir(parents=True, exist_ok=True)
    for left in root.iterdir():
        if left not in _locks and left.is_dir():
            _remove(left, FileLock(left / "lock"))
    made = Path(mkdtemp(dir=root))
    _locks[made] = FileLock(made / "lock")
    _locks[made].acquire()
    return made


def remove(path: Path) -> None:
    """Remove a folder that `new_folder` made; others stay."""
    if lock := _locks.pop(path, None):
        lock.release()
        _remove(path, lock)


@atexit.register
def _clear() -> None:
    for path in list(_locks):
        remove(path)


def _remove(path: Path, lock: FileLock) -> None:
    try:
        with lock.acquire(timeout=0):
            pass
    except (Timeout, OSError):  # another viewer's
        return
    shutil.rmtree(path, ignore_errors=True)
