"""The base of the widgets that run one long task: its buttons, progress bar and status line."""

from __future__ import annotations

from typing import Any

from qtpy.QtCore import QTimer
from qtpy.QtGui import QShowEvent
from qtpy.QtWidgets import QHBoxLayout, QProgressBar, QPushButton, QVBoxLayout, QWidget

from .background import Background
from .boxes import name_fields
from .docking import join
from .scroll import Column
from .task import Task
from .words import Words


class TaskWidget(QWidget):
    """Begin and follow the task of a viewer.

    A subclass adds its fields to `column`, checks them in `run`, which calls `begin` of the task, and calls
    `attach` last.

    Parameters
    ----------
    napari_viewer : napari.Viewer
    start, cancel : str
        Texts of the buttons.
    task : Task
        Perhaps running already: another widget may have begun it.

    Attributes
    ----------
    work : Background
        For short work beside the task.
    """

    def __init__(self, napari_viewer: Any, start: str, cancel: str, task: Task) -> None:
        super().__init__()
        self.viewer, self.task = napari_viewer, task
        self.start, self.cancel = QPushButton(start), QPushButton(cancel)
        self.bar, self.status = QProgressBar(), Words()
        self.work = Background(self)
        self.work.failed.connect(self.status.setText)
        self.buttons = QHBoxLayout()
        self.buttons.addWidget(self.start)
        self.buttons.addWidget(self.cancel)
        inside = QWidget()
        self.column = QVBoxLayout(inside)
        whole = QVBoxLayout(self)
        whole.setContentsMargins(0, 0, 0, 0)
        whole.addWidget(Column(inside), stretch=1)
        self.foot = QVBoxLayout()  # does not scroll
        self.foot.setContentsMargins(9, 0, 9, 9)
        whole.addLayout(self.foot)
        space = self.bar.sizePolicy()
        space.setRetainSizeWhenHidden(True)  # or the buttons would move
        self.bar.setSizePolicy(space)
        self.start.clicked.connect(self.run)
        self.cancel.clicked.connect(self.task.stop)

    @property
    def worker(self) -> Any:
        """The worker of the running task; None if there is none."""
        return self.task.worker

    def attach(self) -> None:
        """Show the task from here on."""
        name_fields(self)
        self.task.began.connect(self._begun)
        self.task.moved.connect(self._moved)
        self.task.news.connect(self._show)
        self.task.ended.connect(self._ended)
        self._set_running(self.task.running)
        if self.task.running:
            self._moved()
            if self.task.first is not None:
                self._show(self.task.first)

    def run(self) -> None:
        """Check the fields and begin the task."""
        raise NotImplementedError

    def showEvent(self, event: QShowEvent) -> None:  # noqa: N802 (Qt's name)
        super().showEvent(event)
        QTimer.singleShot(0, self._join)  # the dock is being added

    def _join(self) -> None:
        join(self, TaskWidget)

    def _show(self, news: Any) -> None:
        """Show what the task yielded, beyond what `Task.take` says."""

    def _begun(self) -> None:
        self._set_running(True)

    def _moved(self) -> None:
        self.bar.setRange(0, self.task.total)  # 0 is busy, until the task says how much there is to do
        self.bar.setValue(self.task.done)
        self.status.setText(self.task.text)
        self.cancel.setEnabled(self.task.running and not self.task.stopping)

    def _ended(self) -> None:
        self._moved()
        self._set_running(False)

    def _set_running(self, running: bool) -> None:
        self.start.setEnabled(not running)
        self.cancel.setEnabled(running)
        self.bar.setVisible(running)
        if running:
            self.bar.setRange(0, self.task.total)
