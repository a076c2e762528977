"""Write checkpoints while training goes on."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kbnet_plugin.errors import BadInput, one_line
from kbnet_plugin.files import atomic_path


class SavingError(BadInput):
    """A checkpoint could not be written."""


class Snapshot:
    """What the files of a checkpoint will contain, copied to the CPU, since training goes on to change it."""

    def __init__(self) -> None:
        self._files: list[tuple[Any, Path]] = []

    def add(self, content: Any, path: Path) -> None:
        """Copy the content of a file."""
        self._files.append((_copied(content), path))

    @property
    def size(self) -> int:
        """Bytes that the files will have, nearly."""
        return sum(_size(content) for content, _ in self._files)

    def write(self) -> None:
        """Write all files, or none.

        Raises
        ------
        SavingError
            If that is impossible.
        """
        written: list[Path] = []
        try:
            for content, path in self._files:
                existed = path.exists()
                path.parent.mkdir(parents=True, exist_ok=True)
                with atomic_path(path) as temporary:
                    torch.save(content, temporary)
                if not existed:
                    written.append(path)
        except (OSError, RuntimeError) as error:  # torch reports some full disks as RuntimeError
            for done in written:
                done.unlink(missing_ok=True)
            raise SavingError(f"cannot save {path}: {one_line(error)}") from error


class Saver:
    """Runs jobs that write files, one after another, in a thread of its own."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "checkpoints")
        self._last: Future[None] | None = None

    def submit(self, job: Callable[[], None]) -> None:
        """Run a job as soon as the last one is done; raises what that one raised."""
        self.wait()
        self._last = self._pool.submit(job)

    def wait(self) -> None:
        """Wait for the last job; raises what it raised."""
        last, self._last = self._last, None
        if last is not None:
            last.result()

    def poll(self) -> None:
        """Raise what the last job raised, if it is done."""
        if self._last is not None and self._last.done():
            self.wait()

    @property
    def busy(self) -> bool:
        """Whether a job is running."""
        return self._last is not None and not self._last.done()

    def close(self) -> None:
        """Wait for the last job, whatever its result, and end the thread."""
        self._pool.shutdown(wait=True)


def free_bytes(folder: Path) -> int:
    """Return how much can still be written to the disk of a folder."""
    return shutil.disk_usage(folder).free


def _copied(content: Any) -> Any:
    if isinstance(content, Tensor):
        return content.detach().to("cpu", copy=True)
    if isinstance(content, Mapping):
        return {key: _copied(value) for key, value in content.items()}
    return type(content)(map(_copied, content)) if isinstance(content, (list, tuple)) else content


def _size(content: Any) -> int:
    if isinstance(content, Tensor):
        return content.numel() * content.element_size()
    if isinstance(content, Mapping):
        return sum(map(_size, content.values()))
    return sum(map(_size, content)) if isinstance(content, (list, tuple)) else 0
