"""Progress on the terminal: what has been done, and how long the rest will take."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .suite import Job

QUIET = 30.0
"""Seconds without a line after which one is printed, where there is no bar."""


def note(text: str) -> None:
    """Print a line to stderr at once."""
    print(text, file=sys.stderr, flush=True)


def time_left(seconds: float) -> str:
    """Format the remaining time for the end of a counter."""
    return f", {seconds / 60:.0f} min left" if seconds > 90 else f", {seconds:.0f} s left"


class Progress:
    """A bar on a terminal; elsewhere a line every now and then. Both show the time left.

    Parameters
    ----------
    jobs : sequence of Job
        All jobs, including those that turn out to be finished.
    """

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._total = sum(j.units for j in jobs)
        self._done = self._made = 0
        self._inside = 0
        self._began = self._reported = time.monotonic()
        self._bar: Any = None
        self._label = ""

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=self._total, unit="step", smoothing=0.05, leave=False, dynamic_ncols=True)
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def skip(self, job: Job) -> None:
        """Count a job that was finished earlier, or by another process."""
        self._add(job.units)

    def start(self, job: Job) -> None:
        """Name the job that begins."""
        self._inside, self._label = 0, job.label
        if self._bar is not None:
            self._bar.set_description(job.label[:60])

    def tick(self, count: int) -> None:
        """Count steps of the current job."""
        self._inside += count
        self._made += count
        self._add(count)
        if self._bar is None and time.monotonic() - self._reported > QUIET:
            self._line(self._label)

    def end(self, job: Job, outcome: str) -> None:
        """Count the rest of the current job and print what came of it."""
        self._add(job.units - self._inside)
        self._made += job.units - self._inside
        self._line(f"{job.label}: {outcome}")

    def _add(self, count: int) -> None:
        self._done += count
        if self._bar is not None:
            self._bar.update(count)

    def _line(self, text: str) -> None:
        self._reported = time.monotonic()
        if self._bar is not None:
            self._bar.write(text, file=sys.stderr)
            return
        left = ""
        # Finished jobs that were skipped took no time and say nothing about the rest.
        if self._made and self._done < self._total:
            left = time_left((self._reported - self._began) / self._made * (self._total - self._done))
        note(f"[{self._done}/{self._total}{left}] {text}")
