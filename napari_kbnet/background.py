"""Short work in a thread, one after the other, the newest of its kind only."""

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
    # A thread that still computes while the interpreter is taken down ends the program badly.
    WorkerBase.await_workers()


class Background(QObject):
    """Does one thing at a time; what is asked for meanwhile waits, and a newer of its kind replaces it."""

    failed = Signal(str)
    idle = Signal(bool)

    def __init__(self, parent: QObject) -> None:
        super().__init__(parent)
        self._waiting: dict[str, tuple[Callable[[Any], object], Callable[..., Any], tuple[Any, ...]]] = {}
        self._then: Callable[[Any], object] | None = None
        self._worker: Any = None
        self._held = False

    @property
    def busy(self) -> bool:
        """Whether something is done or waits."""
        return self._worker is not None or bool(self._waiting)

    def ask(self, kind: str, then: Callable[[Any], object], do: Callable[..., Any], *arguments: Any) -> None:
        """Call ``do(*arguments)`` in a thread, and `then` with what it returns, here."""
        self._waiting[kind] = then, do, arguments
        self._next()

    def hold(self, held: bool) -> None:
        """Start nothing until further notice."""
        self._held = held
        self._next()

    def forget(self) -> None:
        """Drop what waits, and what comes of what runs."""
        self._waiting.clear()
        self._then = None

    def _next(self) -> None:
        if self._worker is not None or self._held or not self._waiting:
            return
        kind = next(iter(self._waiting))
        self._then, do, arguments = self._waiting.pop(kind)
        self._worker = FunctionWorker(do, *arguments)
        self._worker.returned.connect(self._returned)
        self._worker.errored.connect(self._errored)
        self._worker.finished.connect(self._finished)
        self.idle.emit(False)
        self._worker.start()

    def _returned(self, value: Any) -> None:
        if self._then is not None:
            self._then(value)

    def _errored(self, error: Exception) -> None:
        self.failed.emit(tell(error))

    def _finished(self) -> None:
        self._worker = None
        self._next()
        if self._worker is None:
            self.idle.emit(True)


def tell(error: Exception) -> str:
    """Show an error as napari does; returns it in a line."""
    if isinstance(error, WorkError):
        show_error(str(error))
    else:  # a fault of ours: with all that helps to find it
        notification_manager.receive_error(type(error), error, error.__traceback__)
    return str(error) or type(error).__name__
