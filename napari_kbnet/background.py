"""Short work in a thread: one request at a time, and only the newest of each kind."""

from __future__ import annotations

import atexit
from collections.abc import Callable
from typing import Any

from napari.qt.threading import FunctionWorker, WorkerBase
from napari.utils.notifications import notification_manager, show_error
from qtpy.QtCore import QObject, Signal

from .worker import WorkError


@atexit.register
def _wait() -> None:
    # A thread that still computes while the interpreter shuts down crashes the program.
    WorkerBase.await_workers()


class Background(QObject):
    """Run one request at a time; later ones wait, and a newer one of the same kind replaces a waiting one."""

    failed = Signal(str)
    moved = Signal()
    """A request has begun or ended."""

    def __init__(self, parent: QObject) -> None:
        super().__init__(parent)
        self._waiting: dict[str, tuple[Callable[[Any], object], Callable[..., Any], tuple[Any, ...]]] = {}
        self._then: Callable[[Any], object] | None = None
        self._worker: Any = None
        self._paused = False

    @property
    def busy(self) -> bool:
        """Whether a request is running or waiting."""
        return self._worker is not None or bool(self._waiting)

    def submit(
        self, kind: str, then: Callable[[Any], object], do: Callable[..., Any], *arguments: Any
    ) -> None:
        """Call ``do(*arguments)`` in a thread, then `then` with its result in this one."""
        self._waiting[kind] = then, do, arguments
        self._next()

    def pause(self, paused: bool) -> None:
        """Start no request until resumed."""
        self._paused = paused
        self._next()

    def discard(self) -> None:
        """Drop the waiting requests, and the result of the running one."""
        self._waiting.clear()
        self._then = None

    def _next(self) -> None:
        if self._worker is not None or self._paused or not self._waiting:
            return
        kind = next(iter(self._waiting))
        self._then, do, arguments = self._waiting.pop(kind)
        self._worker = FunctionWorker(do, *arguments)
        self._worker.returned.connect(self._returned)
        self._worker.errored.connect(self._errored)
        self._worker.finished.connect(self._finished)
        self._worker.start()
        self.moved.emit()

    def _returned(self, value: Any) -> None:
        if self._then is not None:
            self._then(value)

    def _errored(self, error: Exception) -> None:
        self.failed.emit(report(error))

    def _finished(self) -> None:
        self._worker = None
        self._next()
        self.moved.emit()


def report(error: Exception) -> str:
    """Show an error in a notification, and return it as one line."""
    if isinstance(error, WorkError):
        show_error(str(error))
    else:  # a bug: include the traceback
        notification_manager.receive_error(type(error), error, error.__traceback__)
    return str(error) or type(error).__name__
