"""The base of the widgets that run one long task: its buttons, progress bar, status line and thread."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, Protocol

from napari.qt.threading import create_worker
from qtpy.QtWidgets import QHBoxLayout, QLabel, QProgressBar, QPushButton, QVBoxLayout, QWidget

from .background import Background, report
from .scroll import Column


class Flag(Protocol):
    """What tells a task to stop: a `threading.Event` or similar."""

    def set(self) -> None: ...

    def clear(self) -> None: ...


class TaskWidget(QWidget):
    """Run a generator in a thread, one at a time.

    A subclass adds its fields to `column`, checks them in `run`, which calls `begin`, and shows what the
    generator yields in `_show`.

    Parameters
    ----------
    napari_viewer : napari.Viewer
    start, cancel : str
        Texts of the buttons.
    cancelled : Flag
        Set to stop the task.
    step : str
        What the task still finishes when stopped: "tile" or "step".

    Attributes
    ----------
    worker : napari.qt.threading.GeneratorWorker or None
        None unless the task is running.
    work : Background
        For short work beside the task.
    """

    def __init__(
        self, napari_viewer: Any, start: str, cancel: str, cancelled: Flag, *, step: str = "tile"
    ) -> None:
        super().__init__()
        self.viewer = napari_viewer
        self.worker: Any = None
        self._cancelled, self._step_name = cancelled, step
        self.start, self.cancel = QPushButton(start), QPushButton(cancel)
        self.bar, self.status = QProgressBar(), wrapped()
        self.work = Background(self)
        self.work.failed.connect(self.status.setText)
        self.buttons = QHBoxLayout()
        self.buttons.addWidget(self.start)
        self.buttons.addWidget(self.cancel)
        inside = QWidget()
        self.column = QVBoxLayout(inside)
        whole = QVBoxLayout(self)
        whole.setContentsMargins(0, 0, 0, 0)
        whole.addWidget(Column(inside))
        self.start.clicked.connect(self.run)
        self.cancel.clicked.connect(self.stop)
        # Closing the viewer deletes the widget, but does not end its thread.
        self.destroyed.connect(lambda: cancelled.set())

    def run(self) -> None:
        """Check the fields and begin the task."""
        raise NotImplementedError

    def stop(self) -> None:
        """Stop after the current step; what is finished is kept."""
        self._cancelled.set()
        self.cancel.setEnabled(False)
        self.status.setText(f"Stopping after this {self._step_name} ...")

    def begin(self, task: Callable[..., Generator[Any, None, None]], *arguments: Any) -> None:
        """Run ``task(*arguments, cancelled)`` in a thread."""
        self._cancelled.clear()
        self._set_running(True)
        self.worker = create_worker(
            _run_task, task, *arguments, self._cancelled, _start_thread=False, _ignore_errors=True
        )
        self.worker.yielded.connect(self._receive)
        self.worker.finished.connect(self._finished)
        self.worker.start()

    def _show(self, news: Any) -> None:
        raise NotImplementedError

    def _receive(self, news: Any) -> None:
        self._failed(news) if isinstance(news, Exception) else self._show(news)

    def _failed(self, error: Exception) -> None:
        self.status.setText(report(error))

    def _finished(self) -> None:
        self.worker = None
        self._set_running(False)

    def _set_running(self, running: bool) -> None:
        self.start.setEnabled(not running)
        self.cancel.setEnabled(running)
        self.bar.setVisible(running)
        if running:
            self.bar.setRange(0, 0)  # busy, until the task says how much there is to do


def _run_task(task: Callable[..., Generator[Any, None, None]], *arguments: Any) -> Generator[Any, None, None]:
    # If raised, errors would reach a slot of napari's that PySide6 cannot call, and a RuntimeError would be
    # lost. napari shows the name of this function when its window is closed meanwhile.
    try:
        yield from task(*arguments)
    except Exception as error:
        yield error


def wrapped(text: str = "") -> QLabel:
    """Make a label that breaks its text into lines."""
    label = QLabel(text)
    label.setWordWrap(True)
    return label
