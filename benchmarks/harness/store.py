"""Finished measurements, in a folder that several processes and machines can share."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from kbnet_plugin.files import atomic_path

BEAT = 5.0
"""Seconds between two signs of life of a lock's holder."""

STALE = 60.0
"""Seconds without a sign of life after which the holder counts as dead."""


class Store:
    """One file per measurement, named after a hash of what it depends on, and a lock while it is made.

    Locks are files created exclusively, which also works on network file systems. Their holder touches them.
    A lock is taken over if it has not been touched for `STALE` seconds by the observer's clock, or if its
    process ran on this machine and is gone.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._seen: dict[Path, tuple[str, float, float]] = {}  # lock: holder, its last touch, our clock then

    def read(self, key: str) -> dict[str, Any] | None:
        """Read a measurement; None if there is none."""
        try:
            return json.loads(self._file(key).read_text(encoding="utf-8"))
        except (FileNotFoundError, json.JSONDecodeError):
            return None

    def write(self, key: str, content: dict[str, Any]) -> None:
        """Keep a measurement and remove its parts."""
        with atomic_path(self._file(key)) as temporary:
            temporary.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        self._parts(key).unlink(missing_ok=True)
        self._failure(key).unlink(missing_ok=True)

    def parts(self, key: str) -> list[Any]:
        """Read the parts of an unfinished measurement, in order; for the holder of its lock."""
        found = []
        path = self._parts(key)
        with contextlib.suppress(FileNotFoundError):
            text = path.read_text(encoding="utf-8")
            whole = text[: text.rfind("\n") + 1]
            if whole != text:  # the process was killed while writing a line
                with atomic_path(path) as temporary:
                    temporary.write_text(whole, encoding="utf-8")
            found = [json.loads(line) for line in whole.splitlines()]
        return found

    def add_part(self, key: str, part: Any) -> None:
        """Add a part to an unfinished measurement."""
        with self._parts(key).open("a", encoding="utf-8") as file:
            file.write(json.dumps(part, allow_nan=False) + "\n")

    def keep_picture(self, key: str, **images: NDArray[np.float32]) -> None:
        """Keep images, (H, W, C) in 0..1, in 8 bits for the report."""
        with atomic_path(self.folder / f"{key}.npz") as temporary:
            small = {
                n: np.round(i[:1024, :1024].clip(0, 1) * 255).astype(np.uint8) for n, i in images.items()
            }
            np.savez_compressed(temporary, **small)

    def picture(self, key: str) -> dict[str, NDArray[np.uint8]] | None:
        """Read the images of `keep_picture`; None if there are none."""
        try:
            with np.load(self.folder / f"{key}.npz", allow_pickle=False) as file:
                return dict(file)
        except (FileNotFoundError, ValueError, zipfile.BadZipFile):
            return None

    def fail(self, key: str, reason: str) -> None:
        """Record that a measurement failed, so that other processes skip it."""
        with atomic_path(self._failure(key)) as temporary:
            temporary.write_text(reason, encoding="utf-8")

    def failure(self, key: str, since: float) -> str | None:
        """Return why a measurement failed after the time `since`; older failures are tried again."""
        with contextlib.suppress(FileNotFoundError):
            if self._failure(key).stat().st_mtime >= since:
                return self._failure(key).read_text(encoding="utf-8")
        return None

    @contextlib.contextmanager
    def lock(self, key: str) -> Iterator[bool]:
        """Hold the lock of a measurement during the block; yields False if another process has it."""
        path = self.folder / f"{key}.lock"
        holder = f"{socket.gethostname()} {os.getpid()} {secrets.token_hex(4)}"
        if not (_create(path, holder) or self._take_over(path, holder)):
            yield False
            return
        ended = threading.Event()
        heart = threading.Thread(target=_beat, args=(path, ended), daemon=True)
        heart.start()
        try:
            yield True
        finally:
            ended.set()
            heart.join()
            if _holder(path) == holder:
                path.unlink(missing_ok=True)

    def _take_over(self, path: Path, holder: str) -> bool:
        """Replace the lock of a dead process; if several try, one succeeds."""
        if not self._dead(path):
            return False
        turn = path.with_suffix(".takeover")
        if not _create(turn, holder):
            if self._dead(turn):
                turn.unlink(missing_ok=True)
            return False
        try:
            if not self._dead(path):  # another was quicker
                return False
            path.unlink(missing_ok=True)
            return _create(path, holder)
        finally:
            turn.unlink(missing_ok=True)

    def _dead(self, path: Path) -> bool:
        holder = _holder(path)
        try:
            touched = path.stat().st_mtime
        except FileNotFoundError:
            return True
        host, _, rest = (holder or "").partition(" ")
        if host == socket.gethostname() and rest and not psutil.pid_exists(int(rest.split()[0])):
            return True
        now = time.monotonic()
        last = self._seen.get(path)
        if last is None or last[:2] != (holder, touched):
            self._seen[path] = (holder or "", touched, now)
            return False
        return now - last[2] > STALE

    def _file(self, key: str) -> Path:
        return self.folder / f"{key}.json"

    def _parts(self, key: str) -> Path:
        return self.folder / f"{key}.parts"

    def _failure(self, key: str) -> Path:
        return self.folder / f"{key}.failed"


def _create(path: Path, content: str) -> bool:
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except FileExistsError:
        return False
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(content)
    return True


def _holder(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None


def _beat(path: Path, ended: threading.Event) -> None:
    while not ended.wait(BEAT):
        with contextlib.suppress(FileNotFoundError):
            os.utime(path)
