"""The widget that restores files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

from qtpy.QtWidgets import (
    QAbstractItemView,
    QCheckBox,
    QFileDialog,
    QHBoxLayout,
    QHeaderView,
    QLineEdit,
    QStyle,
    QTableWidget,
    QTableWidgetItem,
    QToolButton,
    QWidget,
)

from .form import OptionsForm
from .options import Options
from .task import Task
from .task_widget import TaskWidget
from .worker import devices, user_errors

if TYPE_CHECKING:
    from kbnet_plugin.inference.files import Step
    from kbnet_plugin.inference.pairing import Job

_FINE = 1000  # steps of the progress bar for each file


class FilesTask(Task):
    """Restore files, one after the other."""

    def __init__(self, viewer: Any) -> None:
        super().__init__(viewer)
        self.counts: Counter[str] = Counter()
        self.last: Step | None = None
        self._jobs = 0

    def take(self, news: list[Job] | Step) -> None:
        """Count the files; `news` are the jobs or a step of one."""
        if isinstance(news, list):
            self._jobs, self.last = len(news), None
            self.counts.clear()
            self.total = _FINE * len(news)
            self.say("")
            return
        self.last = news
        if news.state != "running":
            self.counts[news.state] += 1
        part = news.done / news.total if news.state == "running" and news.total else 0
        self.done = round(_FINE * (self.counts.total() + part))

    def finish(self) -> None:
        """Say how many files were restored, kept, failed or left."""
        if self.last is None:  # no file was begun
            return
        summary = ", ".join(f"{self.counts[state]} {state}" for state in ("restored", "kept", "failed"))
        if left := self._jobs - self.counts.total():
            summary += f", {left} left"
        self.say(f"{self.error} ({summary})" if self.error else summary)


class FilesWidget(TaskWidget):
    """Choose files, a folder for the results and a model; restore the files one by one."""

    def __init__(self, napari_viewer: Any) -> None:
        super().__init__(napari_viewer, "Restore files", "Cancel", FilesTask.of(napari_viewer))
        self.source, self.target = QLineEdit(), QLineEdit()
        self.source.setPlaceholderText("folder, file or pattern (*.tif)")
        self.target.setPlaceholderText("folder, created if missing")
        self.form = OptionsForm()
        self.form.axes.setPlaceholderText("read from each file")
        self.form.axes_note.hide()
        self.overwrite = QCheckBox("Overwrite existing results")
        self.overwrite.setToolTip("Otherwise existing results are kept, and interrupted stacks resume.")
        self.table = _Table()

        rows: Any = self.form.layout()
        rows.insertRow(0, "From", _with_button(self.source, self._choose_source))
        rows.insertRow(1, "To", _with_button(self.target, self._choose_target))
        rows.addRow("", self.overwrite)
        self.column.addWidget(self.form)
        self.column.addLayout(self.buttons)
        self.column.addWidget(self.bar)
        self.column.addWidget(self.status)
        self.column.addWidget(self.table, stretch=1)
        self.form.devices_requested.connect(self._find_devices)
        self.attach()

    def run(self) -> None:
        """Restore the files."""
        source, target = self.source.text().strip(), self.target.text().strip()
        if not source or not target:
            self.status.setText("Choose the files to restore and a folder for the results.")
            return
        self.table.show_jobs([])
        self.task.text = "Loading the model ..."
        self.task.begin(
            f"Restoring {source}",
            Event(),
            _restore,
            self.form.options(),
            *(Path(source).expanduser(), Path(target).expanduser()),
            self.form.axes.text().strip() or None,
            self.overwrite.isChecked(),
        )

    def _show(self, news: list[Job] | Step) -> None:
        if isinstance(news, list):
            self.table.show_jobs(news)
        else:
            self.table.show_step(news)

    def _ended(self) -> None:
        super()._ended()
        last = self.task.last
        if last is not None and last.state == "running":
            self.table.show_stopped(last)

    def _set_running(self, running: bool) -> None:
        super()._set_running(running)
        self.form.setEnabled(not running)

    def _choose_source(self) -> None:
        if folder := QFileDialog.getExistingDirectory(self, "Folder to restore", self.source.text()):
            self.source.setText(folder)

    def _choose_target(self) -> None:
        if folder := QFileDialog.getExistingDirectory(self, "Folder for results", self.target.text()):
            self.target.setText(folder)

    def _find_devices(self) -> None:
        self.work.submit("devices", self.form.show_devices, devices)


def _restore(
    options: Options, source: Path, target: Path, axes: str | None, overwrite: bool, cancelled: Event
) -> Generator[list[Job] | Step, None, None]:
    """Yield the list of jobs, then every step."""
    with user_errors():
        from kbnet_plugin.inference.files import restore_files
        from kbnet_plugin.inference.pairing import pair

        choose = options.chooser()
        jobs = pair([source], target)
        yield jobs
        steps = restore_files(choose, jobs, axes=axes, overwrite=overwrite, resume=not overwrite)
        with closing(steps):
            for step in steps:
                yield step
                if cancelled.is_set():
                    return


class _Table(QTableWidget):
    """The files and what became of each."""

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
        """List the files as waiting."""
        self._rows = {job: row for row, job in enumerate(jobs)}
        self.setRowCount(len(jobs))
        for job, row in self._rows.items():
            name = QTableWidgetItem(job.source.name)
            name.setToolTip(f"{job.source}\n{job.target}")
            self.setItem(row, 0, name)
            self.setItem(row, 1, QTableWidgetItem("waiting"))
        self.resizeRowsToContents()

    def show_step(self, step: Step) -> None:
        """Show the progress of a file, or what became of it."""
        if step.state == "running":
            self._write(step, f"{step.done:,} of {step.total:,} tiles" if step.total else "reading")
        elif step.state == "kept":
            self._write(step, "kept: the result exists")
        elif step.error is not None:
            self._write(step, f"failed: {str(step.error).removeprefix(f'{step.job.source}: ')}", failed=True)
        else:
            said = [text for text in (step.reason, *step.notes) if text]
            self._write(step, ", ".join([f"restored in {step.seconds:.1f} s", *said]))

    def show_stopped(self, step: Step) -> None:
        """Mark the file that was interrupted."""
        resumes = step.done and step.size is None  # only a stack keeps its tiles
        self._write(step, "stopped: resumes next time" if resumes else "stopped")

    def _write(self, step: Step, text: str, *, failed: bool = False) -> None:
        row = self._rows[step.job]
        item = self.item(row, 1)
        item.setText(text)
        item.setToolTip(text)
        if failed:
            item.setIcon(self.style().standardIcon(QStyle.StandardPixmap.SP_MessageBoxWarning))
        self.resizeRowToContents(row)
        self.scrollToItem(item)


def _with_button(line: QLineEdit, choose: Callable[[], None]) -> QWidget:
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
