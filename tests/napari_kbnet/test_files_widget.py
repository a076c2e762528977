"""The files widget: what it writes and reports, how it stops and resumes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile

from kbnet_plugin import Restorer
from kbnet_plugin.inference.engine import Engine
from kbnet_plugin.inference.files import restore_file
from kbnet_plugin.io import read_image, write_image
from kbnet_plugin.io.images import working_folder


@pytest.fixture
def widget(viewer, tmp_path, checkpoint):
    """Open the widget as the menu does; choose folders and a small model."""
    _, widget = viewer.window.add_plugin_dock_widget("kbnet", "Restore files")
    (tmp_path / "in").mkdir()
    widget.source.setText(str(tmp_path / "in"))
    widget.target.setText(str(tmp_path / "out"))
    widget.form.model.set_value(str(checkpoint))
    widget.form.device.setCurrentIndex(widget.form.device.findData("cpu"))
    return widget


@pytest.fixture
def finish(qtbot, widget):
    """Press the button and wait for the end."""

    def press():
        widget.start.click()
        qtbot.waitUntil(lambda: widget.worker is None and widget.start.isEnabled(), timeout=60_000)

    return press


def picture(path, shape=(20, 30, 3)):
    array = np.random.default_rng(0).integers(0, 255, shape, np.uint8)
    write_image(path, array)
    return array


def stack(path, shape=(3, 40, 50)):
    array = np.random.default_rng(0).integers(0, 65535, shape, np.uint16)
    tifffile.imwrite(path, array, metadata={"axes": "ZYX"}, photometric="minisblack")
    return array


def table(widget):
    rows = range(widget.table.rowCount())
    return {widget.table.item(row, 0).text(): widget.table.item(row, 1).text() for row in rows}


def test_a_folder_is_restored_and_every_file_has_a_row(widget, finish, tmp_path, checkpoint):
    image, values = picture(tmp_path / "in/a.png"), stack(tmp_path / "in/b.tif")
    picture(tmp_path / "in/c.png")
    (tmp_path / "in/c.png").write_bytes((tmp_path / "in/c.png").read_bytes()[:200])
    widget.form.strength.setValue(50)
    finish()
    restorer = Restorer.from_pretrained(checkpoint, device="cpu", strength=0.5)
    assert np.array_equal(read_image(tmp_path / "out/a.png")[0], restorer(image))
    assert np.array_equal(tifffile.imread(tmp_path / "out/b.tif"), restorer(values, "ZYX"))
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a.png", "b.tif"]
    said = table(widget)
    assert said["a.png"].startswith("restored in ")
    assert said["b.tif"].startswith("restored in ")
    assert said["c.png"].startswith("failed: damaged or incomplete PNG")
    assert widget.status.text() == "2 restored, 0 kept, 1 failed"


def test_existing_results_are_kept_unless_overwritten(widget, finish, tmp_path):
    picture(tmp_path / "in/a.png")
    finish()
    (tmp_path / "out/a.png").unlink()
    old = picture(tmp_path / "out/a.png", (5, 5))
    finish()
    assert table(widget) == {"a.png": "kept: the result exists"}
    assert np.array_equal(read_image(tmp_path / "out/a.png")[0], old)
    widget.overwrite.setChecked(True)
    finish()
    assert widget.status.text() == "1 restored, 0 kept, 0 failed"
    assert read_image(tmp_path / "out/a.png")[0].shape == (20, 30, 3)


def test_cancel_stops_after_a_tile_and_the_next_run_resumes(widget, finish, qtbot, tmp_path, checkpoint):
    values = stack(tmp_path / "in/a.tif", (30, 100, 100))
    picture(tmp_path / "in/b.png")
    seen = []

    def stop_at_the_second(news):
        if getattr(news, "done", 0) == 2:
            widget.cancel.click()
        if getattr(news, "done", 0):
            seen.append(news.done)

    widget.start.click()
    widget.worker.yielded.connect(stop_at_the_second)
    qtbot.waitUntil(lambda: widget.worker is None, timeout=60_000)
    assert seen[-1] < 30
    assert table(widget) == {"a.tif": "stopped: resumes next time", "b.png": "waiting"}
    assert widget.status.text() == "0 restored, 0 kept, 0 failed, 2 left"
    work = working_folder(tmp_path / "out/a.tif")
    finished = (work / "journal").read_bytes().count(b"\n") - 1
    assert 2 <= finished < 30
    computed = []
    solve = Engine.solve
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Engine, "solve", lambda *a: computed.append(1) or solve(*a))
        finish()
    assert len(computed) == 30 - finished + 1  # and the picture
    assert widget.status.text() == "2 restored, 0 kept, 0 failed"
    expected = Restorer.from_pretrained(checkpoint, device="cpu")(values, "ZYX")
    assert np.array_equal(tifffile.imread(tmp_path / "out/a.tif"), expected)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("nowhere", "nowhere: no such file or folder"),
        ("in", "in: no pictures in this folder"),
        ("", "Choose the files to restore and a folder for the results."),
    ],
)
def test_an_error_is_one_line_and_the_next_run_works(widget, finish, tmp_path, source, said, monkeypatch):
    shown = []
    monkeypatch.setattr("napari_kbnet.background.show_error", shown.append)
    widget.source.setText(source and str(tmp_path / source))
    finish()
    assert said in widget.status.text()
    assert "\n" not in widget.status.text()
    assert shown == ([widget.status.text()] if source else [])
    widget.source.setText(str(tmp_path / "in"))
    picture(tmp_path / "in/a.png")
    finish()
    assert widget.status.text() == "1 restored, 0 kept, 0 failed"


def test_running_out_of_memory_keeps_finished_files(widget, finish, tmp_path, monkeypatch):
    for name in ("a.png", "b.png", "c.png"):
        picture(tmp_path / "in" / name)

    def run_out(self, blocks, *rest, solve=Engine.solve):
        if (tmp_path / "out/a.png").exists():
            raise MemoryError
        return solve(self, blocks, *rest)

    monkeypatch.setattr(Engine, "solve", run_out)
    monkeypatch.setattr("napari_kbnet.background.show_error", lambda text: None)
    finish()
    said = table(widget)
    assert said.pop("a.png").startswith("restored in ")
    assert set(said) == {"b.png", "c.png"}
    assert all(text.startswith("failed: out of memory") for text in said.values())
    assert widget.status.text() == "1 restored, 0 kept, 2 failed"
    monkeypatch.undo()
    finish()
    assert widget.status.text() == "2 restored, 1 kept, 0 failed"


def test_changed_settings_of_an_interrupted_stack_are_named(widget, finish, tmp_path, checkpoint):
    stack(tmp_path / "in/a.tif")
    (tmp_path / "out").mkdir()
    restorer = Restorer.from_pretrained(checkpoint, device="cpu")
    steps = restore_file(restorer, tmp_path / "in/a.tif", tmp_path / "out/a.tif")
    for _ in range(2):
        next(steps)
    steps.close()
    widget.form.strength.setValue(30)
    finish()
    assert "started with different settings (strength)" in table(widget)["a.tif"]
    widget.overwrite.setChecked(True)
    finish()
    assert widget.status.text() == "1 restored, 0 kept, 0 failed"


def test_a_closed_viewer_stops_the_work(viewer, qtbot, tmp_path, checkpoint):
    _, widget = viewer.window.add_plugin_dock_widget("kbnet", "Restore files")
    (tmp_path / "in").mkdir()
    stack(tmp_path / "in/a.tif", (400, 100, 100))
    widget.source.setText(str(tmp_path / "in"))
    widget.target.setText(str(tmp_path / "out"))
    widget.form.model.set_value(str(checkpoint))
    widget.start.click()
    worker, done = widget.worker, []
    worker.finished.connect(lambda: done.append(True))
    work = working_folder(tmp_path / "out/a.tif")
    qtbot.waitUntil(lambda: (work / "journal").exists(), timeout=60_000)
    viewer.close()
    qtbot.waitUntil(lambda: bool(done), timeout=60_000)
    assert not (tmp_path / "out/a.tif").exists()
    assert (work / "journal").read_bytes().count(b"\n") < 400


def test_opening_the_widget_imports_no_torch():
    code = "import sys, napari_kbnet.files_widget, napari_kbnet.samples; print('torch' in sys.modules)"
    root = Path(__file__).parents[2]
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    assert ended.stdout == "False\n"
