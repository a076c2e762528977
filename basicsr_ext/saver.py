"""Write checkpoints while training goes on."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


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
