"""A long computation of a viewer: it outlives the widget that began it, and napari knows of it."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, Protocol, Self

from napari.qt.threading import GeneratorWorker
from napari.utils import cancelable_progress
from napari.utils.task_status import Status
from qtpy.QtCore import QObject, QTimer, Signal

from .background import report

_Steps = Generator[Any, None, None]
_REFRESH = 100  # milliseconds between two updates of what is shown


class Flag(Protocol):
    """What tells a task to stop: a `threading.Event` or similar."""

    def set(self) -> None: ...

    def clear(self) -> None: ...


class Task(QObject):
    """Run a generator in a thread, one at a time; widgets come and go.

    A subclass says in `take` what the generator's news mean. napari shows the task among its activities,
    where it can be cancelled, and asks before it closes.

    Attributes
    ----------
    viewer : napari.Viewer
    worker : GeneratorWorker or None
        None unless the task is running.
    done, total : int
        Progress; a total of 0 means that it is not known yet.
    text : str
        What is happening, or how it ended.
    error : str
        What went wrong; empty if nothing did.
    first : object
        What the generator yielded first, for widgets that are opened later.
    """

    step = "tile"
    """What is still finished when the task is stopped."""

    began = Signal()
    moved = Signal()
    """Progress or text have changed."""
    news = Signal(object)
    ended = Signal()

    def __init__(self, viewer: Any) -> None:
        super().__init__()
        self.viewer = viewer
        self.worker: Any = None
        self.done = self.total = 0
        self.text = self.error = ""
        self.first: Any = None
        self._cancelled: Flag | None = None
        self._stopping = False
        self._bar: Any = None
        self._known: Any = None
        self._timer = QTimer(self)
        self._timer.setInterval(_REFRESH)
        self._timer.timeout.connect(self._tick)

    @classmethod
    def of(cls, viewer: Any) -> Self:
        """Return the task of this kind of a viewer."""
        viewer = getattr(viewer, "__wrapped__", viewer)  # napari hands a proxy to widgets
        key = id(viewer), cls
        if key not in _tasks:
            task = _tasks[key] = cls(viewer)
            if hasattr(viewer, "window"):
                viewer.window._qt_window.destroyed.connect(lambda: _tasks.pop(key, task)._abandon())
        return _tasks[key]

    @property
    def running(self) -> bool:
        """Whether the task is running."""
        return self.worker is not None

    def begin(
        self,
        words: str,
        cancelled: Flag,
        function: Callable[..., Generator[Any, None, None]],
        *arguments: Any,
    ) -> None:
        """Run ``function(*arguments, cancelled)`` in a thread; `words` say what it does."""
        self._cancelled, self._stopping, self.first = cancelled, False, None
        self.done = self.total = 0
        self.error = ""
        cancelled.clear()
        # Creating the bar in the worker's thread would crash the program.
        self._bar = cancelable_progress(total=0, desc=words)
        self.worker = GeneratorWorker(_run_task, function, *arguments, cancelled)
        self.worker.yielded.connect(self._receive)
        self.worker.finished.connect(self._finished)
        # `create_worker` would show the name of a function.
        register = self.viewer.window._register_task_status
        self._known = register("KBNet", Status.BUSY, words, cancel_callback=self.stop)
        self.began.emit()
        self._timer.start()
        self.worker.start()

    def stop(self) -> bool:
        """Stop after the current step; what is finished is kept."""
        if self._cancelled is None or not self.running:
            return False
        self._cancelled.set()
        self._stopping = True
        self.say(f"Stopping after this {self.step} ...")
        return True

    @property
    def stopping(self) -> bool:
        """Whether the task was told to stop."""
        return self._stopping

    def say(self, text: str) -> None:
        """Show a text in all widgets."""
        self.text = text
        self.moved.emit()

    def take(self, news: Any) -> None:
        """Change `done`, `total` and `text` by what the generator yielded."""

    def fail(self, error: Exception) -> None:
        """Show an error."""
        self.error = report(error)
        self.say(self.error)

    def finish(self) -> None:
        """Clean up after the end, whichever it was."""

    def leave(self) -> None:
        """Clean up once the viewer is gone and the worker has ended."""

    def _receive(self, news: Any) -> None:
        if self._cancelled is None:  # the viewer is gone
            return
        if isinstance(news, Exception):
            self.fail(news)
            return
        self.first = self.first or news
        self.take(news)
        self.news.emit(news)

    def _tick(self) -> None:
        bar = self._bar
        if bar is None:
            return
        if bar.is_canceled and not self._stopping:
            self.stop()
        self.moved.emit()
        if self.total and bar.total != self.total:
            bar.reset(self.total)
        if bar.n != self.done:
            bar.update(self.done - bar.n)  # last: it processes other events

    def _finished(self) -> None:
        self.worker = None
        self._timer.stop()
        if self._bar is None:
            _leaving.discard(self)
            self.leave()
            return
        self._bar.close()
        self._bar = None
        status = Status.CANCELLED if self._stopping else Status.COMPLETED
        self.viewer.window._update_task_status(self._known, status)
        self.finish()
        self.ended.emit()

    def _abandon(self) -> None:
        """Stop because the viewer is gone, and touch nothing of it any more."""
        if self._cancelled is not None:
            self._cancelled.set()
        self._cancelled = self._bar = None
        if self.running:
            _leaving.add(self)
        else:
            self.leave()


_leaving: set[Task] = set()  # they would be deleted before their workers end
_tasks: dict[tuple[int, type[Task]], Any] = {}


def _run_task(task: Callable[..., _Steps], *arguments: Any) -> _Steps:
    # If raised, errors would reach a slot of napari's that PySide6 cannot call, and a RuntimeError would be
    # lost.
    try:
        yield from task(*arguments)
    except Exception as error:
        yield error
