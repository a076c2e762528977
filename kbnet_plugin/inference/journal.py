"""Which tiles of a job are finished, so that an interrupted one continues where it stopped."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

_STEPS, _SECONDS = 16, 2.0  # whichever comes first: what is finished is put on disk


class Journal:
    """A file that lists what is finished; one line a step, on disk only after the step's result is.

    Putting results on disk takes long on some disks, so it is done for several steps together. What is lost
    with the process or the power is these few steps, and they are done again.

    Parameters
    ----------
    path : path
        Made where it is not there yet.
    settings : mapping
        All that the result depends on, as JSON. A journal of other settings is refused: its finished steps
        would not fit.
    sync : callable, optional
        Puts on disk what the steps wrote.

    Raises
    ------
    ValueError
        If the journal belongs to other settings; they are named.
    """

    def __init__(
        self, path: Path, settings: Mapping[str, Any], sync: Callable[[], object] | None = None
    ) -> None:
        self.path = path
        self._sync = sync
        self._pending: list[int] = []
        self._flushed = time.monotonic()
        head = json.dumps(dict(settings), sort_keys=True)
        found = read_settings(path)
        if found is not None and json.dumps(found, sort_keys=True) != head:
            other = [n for n in settings if json.loads(head)[n] != found.get(n)]
            raise ValueError(
                f"{path}: begun with other settings ({', '.join(other)}); use those, or start anew"
            )
        self.done: set[int] = set()
        self._file: IO[bytes]
        if found is None:
            self._file = path.open("wb")
            self._write([head])
        else:
            lines = path.read_bytes().split(b"\n")
            self.done = {int(line) for line in lines[1:-1]}
            self._file = path.open("rb+")
            self._file.truncate(len(b"\n".join(lines[:-1])) + 1)  # a last line without its end was cut short
            self._file.seek(0, os.SEEK_END)

    def add(self, step: int) -> None:
        """Note that a step's result is written."""
        self.done.add(step)
        self._pending.append(step)
        if len(self._pending) >= _STEPS or time.monotonic() - self._flushed >= _SECONDS:
            self.flush()

    def flush(self) -> None:
        """Put on disk what the noted steps wrote, and then that they are finished."""
        if self._pending:
            if self._sync is not None:
                self._sync()
            self._write([str(step) for step in self._pending])
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
            self.flush()  # also after Ctrl-C or an error: steps that are finished stay so
        finally:
            self._file.close()


def read_settings(path: Path) -> dict[str, Any] | None:
    """Settings of the journal at `path`; None where there is none."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        line = file.readline()
    if not line.endswith(b"\n"):
        return None  # cut short before anything was done
    try:
        settings = json.loads(line)
    except ValueError:
        settings = None
    if not isinstance(settings, dict):
        raise ValueError(f"{path}: not a journal of kbnet; remove it")
    return settings
