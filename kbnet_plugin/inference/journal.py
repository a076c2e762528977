"""Record which tiles of a job are finished, so that it can be resumed after an interruption."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

_STEPS, _SECONDS = 16, 2.0  # flush after either


class Journal:
    """A file that lists finished steps and digests of what they read, one per line; a context manager.

    A step is recorded only after its result is on disk. As syncing is slow on some disks, several steps share
    one sync; a crash loses at most these, and they are computed again.

    Parameters
    ----------
    path : path
        Created if it does not exist.
    settings : mapping
        Everything that the result depends on, as JSON. A journal with other settings is refused, as its
        results would not fit.
    sync : callable, optional
        Makes sure that the results of the steps are on disk.

    Attributes
    ----------
    done : dict
        From the number of each finished step to the digest of its input.

    Raises
    ------
    ValueError
        If the journal belongs to other settings, which are named, or is not a journal.
    """

    def __init__(
        self, path: Path, settings: Mapping[str, Any], sync: Callable[[], object] | None = None
    ) -> None:
        self.path = path
        self._sync = sync
        self._pending: list[tuple[int, int]] = []
        self._flushed = time.monotonic()
        head = json.dumps(dict(settings), sort_keys=True)
        found = read_settings(path)
        if found is not None and json.dumps(found, sort_keys=True) != head:
            other = [n for n in settings if json.loads(head)[n] != found.get(n)]
            raise ValueError(
                f"{path}: started with different settings ({', '.join(other)}); use those, or start again"
            )
        self.done: dict[int, int] = {}
        self._file: IO[bytes]
        if found is None:
            self._file = path.open("wb")
            self._write([head])
        else:
            lines = path.read_bytes().split(b"\n")
            try:
                self.done = dict(_numbers(line) for line in lines[1:-1])
            except ValueError:
                raise ValueError(f"{path}: damaged, or of another version; start again") from None
            self._file = path.open("rb+")
            self._file.truncate(len(b"\n".join(lines[:-1])) + 1)  # drops an incomplete last line
            self._file.seek(0, os.SEEK_END)

    def add(self, step: int, digest: int) -> None:
        """Add a step whose result has been written, and the digest of its input; it may be recorded later."""
        self.done[step] = digest
        self._pending.append((step, digest))
        if len(self._pending) >= _STEPS or time.monotonic() - self._flushed >= _SECONDS:
            self.flush()

    def flush(self) -> None:
        """Sync the results of the steps added since the last flush, then record these steps."""
        if self._pending:
            if self._sync is not None:
                self._sync()
            self._write([f"{step} {digest}" for step, digest in self._pending])
            self._pending.clear()
        self._flushed = time.monotonic()

    def _write(self, lines: list[str]) -> None:
        self._file.write("".join(f"{line}\n" for line in lines).encode())
        self._file.flush()
        os.fsync(self._file.fileno())

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.flush()  # also after Ctrl-C or an error
        finally:
            self._file.close()


def _numbers(line: bytes) -> tuple[int, int]:
    step, digest = line.split()
    return int(step), int(digest)


def read_settings(path: Path) -> dict[str, Any] | None:
    """Read the settings of a journal; None if there is none.

    Raises
    ------
    ValueError
        If the file is not a journal.
    """
    if not path.is_file():
        return None
    with path.open("rb") as file:
        line = file.readline()
    if not line.endswith(b"\n"):
        return None  # incomplete, so no step was finished
    try:
        settings = json.loads(line)
    except ValueError:
        settings = None
    if not isinstance(settings, dict):
        raise ValueError(f"{path}: not a journal of kbnet; delete it")
    return settings
