"""Measure the checkpoints of a run while it trains."""

from __future__ import annotations

import shutil
import time

from ..files import replace
from ..zoo.weights import load_network
from .choice import Judge
from .training import RunFiles

_SHARE = 0.1  # of the time that measuring may take, as it may share the processor with training


class Watch:
    """Measures every new checkpoint, unless that takes too much time, and keeps the best.

    Parameters
    ----------
    files : RunFiles
    judge : Judge

    Attributes
    ----------
    gain : float or None
        Estimated PSNR of the last one measured above that of the start, or of the input from scratch, in dB.
    """

    def __init__(self, files: RunFiles, judge: Judge) -> None:
        self._files, self._judge = files, judge
        self.gain: float | None = None
        self._best: float | None = None
        self._last = 0
        self._next = 0.0

    def check(self) -> None:
        """Measure a new checkpoint, if there is one.

        A run is never ended for what this says: most of the error goes in its last steps, at low rates.
        """
        iteration, began = self._files.iteration, time.monotonic()
        if iteration <= self._last or began < self._next:
            return
        copy = self._files.folder / "checked.pth"
        try:
            shutil.copyfile(self._files.weights(iteration), copy)
        except FileNotFoundError:  # a newer one has replaced it
            return
        self.gain = self._judge.gain(load_network(copy))
        better = True
        if self._files.best.exists() and self.gain is not None:
            if self._last == 0:
                self._best = self._judge.gain(load_network(self._files.best))
            better = self.gain > (self._best or 0.0)
        if better:
            replace(copy, self._files.best)
            self._best = self.gain
        self._last, now = iteration, time.monotonic()
        self._next = now + (now - began) / _SHARE
