"""The widget that restores files, many of them if need be."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import closing
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

from napari.qt.threading import create_worker
from qtpy.QtWidgets import (
    QAbstractItemView,
    QCheckBox,
    QFileDialog,
    QHBoxLayout,
    QHeaderView,
    QLabel,
    QLineEdit,
    QProgressBar,
    QPushButton,
    QStyle,
    QTableWidget,
    QTableWidgetItem,
    QToolButton,
    QVBoxLayout,
    QWidget,
)

from .background import Background, tell
from .form import OptionsForm
from .options import Options
from .scroll import Column
from .worker import WorkError, devices, plainly

if TYPE_CHECKING:
    from kbnet_plugin.inference.batch import Job, Step

_FINE = 1000  # steps of the bar in a file


class FilesWidget(QWidget):
    """Choose files, a folder for the results and a model; restore them one by one."""

    def __init__(self, napari_viewer: Any) -> None:
        super().__init__()
        self.viewer = napari_viewer
        self.worker: Any = None
        self._cancelled = Event()
        self._counts: Counter[str] = Counter()
        self._last: Step | None = None
        self._trouble = ""
        self.source, self.target = QLineEdit(), QLineEdit()
        self.source.setPlaceholderText("a folder, a file or a pattern: /data/*.tif")
        self.target.setPlaceholderText("a folder; made if need be")
        self.form = OptionsForm()
        self.form.axes.setPlaceholderText("as each file says")
        self.form.understood.hide()
        self.overwrite = QCheckBox("replace results that are there")
        self.overwrite.setToolTip(
            "Otherwise they are kept, and a stack that was stopped goes on where it was."
        )
        self.start, self.cancel = QPushButton("Restore files"), QPushButton("Cancel")
        self.bar, self.said, self.table = QProgressBar(), QLabel(), _Table()
        self.said.setWordWrap(True)

        rows: Any = self.form.layout()
        rows.insertRow(0, "From", _with_button(self.source, self._choose_source))
        rows.insertRow(1, "To", _with_button(self.target, self._choose_target))
        rows.addRow("", self.overwrite)
        buttons = QHBoxLayout()
        buttons.addWidget(self.start)
        buttons.addWidget(self.cancel)
        inside = QWidget()
        layout = QVBoxLayout(inside)
        layout.addWidget(self.form)
        layout.addLayout(buttons)
        layout.addWidget(self.bar)
        layout.addWidget(self.said)
        layout.addWidget(self.table, stretch=1)
        whole = QVBoxLayout(self)
        whole.setContentsMargins(0, 0, 0, 0)
        whole.addWidget(Column(inside))
        self.bar.hide()
        self._running(False)
        self.start.clicked.connect(self.run)
        self.cancel.clicked.connect(self.stop)
        self.work = Background(self)
        self.work.failed.connect(self.said.setText)
        self.form.devices_wanted.connect(self._find_devices)
        # A closed viewer takes the widget along, but not what works for it.
        self.destroyed.connect(self._cancelled.set)

    def run(self) -> None:
        """Restore the files, beside the window."""
        source, target = self.source.text().strip(), self.target.text().strip()
        if not source or not target:
            self.said.setText("Name the files to restore, and a folder for the results.")
            return
        self._cancelled.clear()
        self._counts.clear()
        self._last, self._trouble = None, ""
        self.table.show_jobs([])
        self.bar.setRange(0, 0)  # busy, until the files are known
        self.bar.show()
        self.said.setText("Loading the model ...")
        self._running(True)
        self.worker = create_worker(
            _restore,
            self.form.options(),
            *(Path(source).expanduser(), Path(target).expanduser()),
            self.form.axes.text().strip() or None,
            self.overwrite.isChecked(),
            self._cancelled,
            _start_thread=False,
            _ignore_errors=True,
        )
        self.worker.yielded.connect(self._show)
        self.worker.errored.connect(self._failed)
        self.worker.finished.connect(self._finished)
        self.worker.start()

    def stop(self) -> None:
        """Stop after the tile under way; finished files stay, and stacks go on next time."""
        self._cancelled.set()
        self.cancel.setEnabled(False)
        self.said.setText("Stopping after this tile ...")

    def _show(self, news: list[Job] | Step | WorkError) -> None:
        if isinstance(news, WorkError):
            self._failed(news)
            return
        if isinstance(news, list):
            self.table.show_jobs(news)
            self.bar.setRange(0, _FINE * len(news))
            self.said.clear()
            return
        self._last = news
        self.table.show_step(news)
        if news.state != "running":
            self._counts[news.state] += 1
        part = news.done / news.total if news.state == "running" and news.total else 0
        self.bar.setValue(round(_FINE * (self._counts.total() + part)))

    def _failed(self, error: Exception) -> None:
        self._trouble = tell(error)

    def _finished(self) -> None:
        self.worker = None
        self._running(False)
        self.bar.hide()
        if self._last is None:  # it never began
            self.said.setText(self._trouble)
            return
        if self._last.state == "running":
            self.table.show_stopped(self._last)
        said = ", ".join(f"{self._counts[state]} {state}" for state in ("restored", "kept", "failed"))
        if left := self.table.rowCount() - self._counts.total():
            said += f", {left} left"
        self.said.setText(f"{self._trouble} ({said})" if self._trouble else said)

    def _running(self, running: bool) -> None:
        self.form.setEnabled(not running)
        self.start.setEnabled(not running)
        self.cancel.setEnabled(running)

    def _choose_source(self) -> None:
        if folder := QFileDialog.getExistingDirectory(self, "Files to restore", self.source.text()):
            self.source.setText(folder)

    def _choose_target(self) -> None:
        if folder := QFileDialog.getExistingDirectory(self, "Where results go", self.target.text()):
            self.target.setText(folder)

    def _find_devices(self) -> None:
        self.work.ask("devices", self.form.show_devices, devices)


def _restore(
    options: Options, source: Path, target: Path, axes: str | None, overwrite: bool, cancelled: Event
) -> Generator[list[Job] | Step | WorkError, None, None]:
    """First the jobs, then every step; runs beside the window."""
    try:
        with plainly():
            from kbnet_plugin.inference.batch import pair, restore_files

            choose = options.choice()
            jobs = pair([source], target)
            yield jobs
            steps = restore_files(choose, jobs, axes=axes, overwrite=overwrite, resume=not overwrite)
            with closing(steps):
                for step in steps:
                    yield step
                    if cancelled.is_set():
                        return
    except WorkError as error:
        yield error  # raised, it would meet a slot of napari's that PySide6 cannot call


class _Table(QTableWidget):
    """What becomes of every file."""

    def __init__(self) -> None:
        super().__init__(0, 2)
        self.setHorizontalHeaderLabels(["File", "Result"])
        self.verticalHeader().hide()
        self.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
        self.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        self.horizontalHeader().setSectionResizeMode(0, QHeaderView.ResizeMode.Interactive)
        self.horizontalHeader().setStretchLastSection(True)
        self.setMinimumHeight(120)
        self._rows: dict[Job, int] = {}

    def show_jobs(self, jobs: Sequence[Job]) -> None:
        """List files that wait."""
        self._rows = {job: row for row, job in enumerate(jobs)}
        self.setRowCount(len(jobs))
        for job, row in self._rows.items():
            name = QTableWidgetItem(job.source.name)
            name.setToolTip(f"{job.source}\n{job.target}")
            self.setItem(row, 0, name)
            self.setItem(row, 1, QTableWidgetItem("waits"))
        self.resizeRowsToContents()

    def show_step(self, step: Step) -> None:
        """Say how far a file has come, or what became of it."""
        if step.state == "running":
            self._say(step, f"{step.done:,} of {step.total:,} tiles" if step.total else "reading")
        elif step.state == "kept":
            self._say(step, "kept: it is there already")
        elif step.error is not None:
            self._say(step, f"failed: {str(step.error).removeprefix(f'{step.job.source}: ')}", failed=True)
        else:
            why = f", {step.reason}" if step.reason else ""
            self._say(step, f"restored in {step.seconds:.1f} s{why}")

    def show_stopped(self, step: Step) -> None:
        """Say that a file was under way."""
        goes_on = step.done and step.size is None  # a stack, of which something is there
        self._say(step, "stopped: goes on next time" if goes_on else "stopped")

    def _say(self, step: Step, text: str, *, failed: bool = False) -> None:
        row = self._rows[step.job]
        item = self.item(row, 1)
        item.setText(text)
        item.setToolTip(text)
        if failed:
            item.setIcon(self.style().standardIcon(QStyle.StandardPixmap.SP_MessageBoxWarning))
        self.resizeRowToContents(row)
        self.scrollToItem(item)


def _with_button(line: QLineEdit, choose: Any) -> QWidget:
    row = QWidget()
    layout = QHBoxLayout(row)
    layout.setContentsMargins(0, 0, 0, 0)
    button = QToolButton()
    button.setText("...")
    button.setToolTip("Choose a folder")
    button.clicked.connect(choose)
    layout.addWidget(line)
    layout.addWidget(button)
    return row
