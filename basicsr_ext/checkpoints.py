"""A run's checkpoints: when one is due, how many are kept, and what there is if the run breaks."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from kbnet_plugin.errors import BadInput, one_line

from .experiment import foreign, link, prune
from .model import ImageCleanModel
from .options import Options
from .saver import Saver, SavingError, Snapshot, free_bytes

SAVE_EVERY = 60.0
"""Seconds between checkpoints that the next one replaces: what a crash may lose."""

SAVING_SHARE = 0.05
"""Share of the time that they may take, by which they become rarer for large networks."""


class Checkpoints:
    """Saves the checkpoints of a run in the background, and removes old ones that are not to be kept.

    Parameters
    ----------
    options : dict
    model : BaseModelFixes
    start : int
        Iteration whose checkpoint the run continues; 0 for a new run.
    saved : callable
        Called, in the background, after each checkpoint.
    """

    def __init__(self, options: Options, model: Any, start: int, saved: Callable[[], None]) -> None:
        self.options, self.model, self._after = options, model, saved
        self.saved: int | None = start or None
        self.main = options["rank"] == 0
        self.keep = kept_number(options, model)
        self._spared = foreign(options) if self.main else set()
        self._requested, self._rolling = self.saved, False
        self._saver = Saver()
        self._saved_at, self._saving = time.monotonic(), 0.0

    @property
    def due(self) -> bool:
        """Whether a checkpoint is due by the clock of the main process."""
        waited = time.monotonic() - self._saved_at
        return self.main and waited > max(SAVE_EVERY, self._saving / SAVING_SHARE) and not self._saver.busy

    @property
    def best(self) -> int | None:
        """The iteration with the best value so far of the first metric on the first set."""
        found: dict[str, Any] = getattr(self.model, "best_metric_results", {})
        first: dict[str, Any] = next(iter(found.values()), {})
        return next((entry.get("iter") for entry in first.values()), None)

    def save(self, iteration: int, epoch: int, *, rolling: bool = False, again: bool = False) -> None:
        """Save in the background, unless the iteration is saved already and it is not to be done `again`.

        Parameters
        ----------
        iteration, epoch : int
        rolling : bool
            Whether the next checkpoint may replace this one.
        again : bool
        """
        if not again and self._requested == iteration and (rolling or not self._rolling):
            return
        began = time.monotonic()
        self._saver.wait()
        snapshot = self.model.checkpoint(epoch, iteration, rolling=rolling)
        self._requested, self._rolling = iteration, rolling
        best = self.best
        self._saved_at = time.monotonic()
        self._saver.submit(lambda: self._write(snapshot, iteration, best, began))

    def save_best(self, iteration: int, epoch: int) -> None:
        """Save what has just become the best, with its value, under that name too."""
        self.save(iteration, epoch, again=True)
        self.wait()
        self.link("best", iteration)

    def link(self, name: str, iteration: int) -> None:
        """Give the weights of an iteration a second name."""
        if self.main:
            link(Path(self.options["path"]["models"]), iteration, name)

    def _write(self, snapshot: Snapshot, iteration: int, best: int | None, began: float) -> None:
        try:
            if self.main:
                self._make_room(snapshot.size, best)
            snapshot.write()
            self.saved = iteration
            self._spared.discard(iteration)
            if self.main:
                prune(self.options, self.keep, best, self._spared)
                self._after()
        except OSError as error:
            raise SavingError(f"cannot save a checkpoint: {one_line(error)}") from error
        self._saving = time.monotonic() - began

    def _make_room(self, size: int, best: int | None) -> None:
        """Where the disk is short, prune before instead of after saving."""
        folder = Path(self.options["path"]["models"])
        size += size // 20 + 2**16  # names, structure and the file system's own
        if free_bytes(folder) >= size:
            return
        if self.keep is not None and self.keep > 1:
            prune(self.options, self.keep - 1, best, self._spared)
        if (free := free_bytes(folder)) < size:
            raise SavingError(
                f"cannot save to {folder}: the disk is full: a checkpoint needs {size / 2**20:.3g} MB, "
                f"{free / 2**20:.3g} are free; free some, or lower logger.keep_checkpoints"
            )

    def kept(self) -> str:
        """Wait for the last checkpoint, and say which there is."""
        with suppress(BadInput):
            self.wait()
        if self.saved is None:
            return "no checkpoint has been saved yet"
        return f"the checkpoint of iter {self.saved:,} is kept; --auto_resume continues from there"

    def poll(self) -> None:
        """Raise what the last checkpoint raised, if it is done."""
        self._saver.poll()

    def wait(self) -> None:
        """Wait for the last checkpoint; raises what it raised."""
        self._saver.wait()

    def close(self) -> None:
        """Wait for the last checkpoint, whatever its result, and end the thread."""
        self._saver.close()


def kept_number(options: Options, model: Any) -> int | None:
    """Return how many checkpoints to keep; an option file of BasicSR, which keeps all, must ask for less."""
    asked = "keep_checkpoints" in (options["as_given"].get("logger") or {})
    number: int | None = options["logger"]["keep_checkpoints"]
    return number if asked or isinstance(model, ImageCleanModel) else None
