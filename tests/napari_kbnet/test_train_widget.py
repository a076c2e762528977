"""The training widget: what it trains, shows and saves."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from qtpy.QtWidgets import QFileDialog

from kbnet_plugin import zoo
from kbnet_plugin.selfsup import fit
from napari_kbnet import train_widget
from napari_kbnet.curve import LossCurve, bounds, smooth
from napari_kbnet.learned import Learned
from napari_kbnet.training_area import possible_axes

needs_training = pytest.mark.skipif(not fit.can_train(), reason="training needs the extra train")


@pytest.fixture(autouse=True)
def _own_models(tmp_path, monkeypatch):
    monkeypatch.setenv("KBNET_MODELS", str(tmp_path / "models"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def widget(viewer):
    """Open the widget as the menu does, with a small noisy stack."""
    noise = np.random.default_rng(0).normal(0, 60, (2, 70, 80))
    stack = (noise + np.linspace(400, 3000, 80)).clip(0).astype(np.uint16)
    viewer.add_image(stack, name="My cells (1)", scale=(2, 1, 1))
    _, widget = viewer.window.add_plugin_dock_widget("kbnet", "Train on this layer")
    widget.steps.setValue(2)
    widget.device.setCurrentText("cpu")
    return widget


@pytest.fixture
def finish(qtbot, widget):
    """Press the button and wait for the end."""

    def press():
        widget.start.click()
        qtbot.waitUntil(lambda: widget.worker is None and widget.start.isEnabled(), timeout=90_000)

    return press


@needs_training
def test_a_layer_is_trained_on_from_its_file_and_the_model_listed_in_the_restore_widget(
    viewer, widget, finish, qtbot, tmp_path, monkeypatch
):
    tifffile = pytest.importorskip("tifffile")
    path = tmp_path / "cells.tif"
    tifffile.imwrite(path, viewer.layers[0].data, photometric="minisblack")
    viewer.layers.clear()
    viewer.open(path, plugin="napari")
    assert widget.name.text() == "cells"
    assert widget.axes_note.text() == "2 gray planes of 70 x 80"
    assert "independent from pixel to pixel" in widget.warning.text()
    drawn, pictures = [], []
    widget.curve.add = lambda *step: drawn.append(step)
    widget.learned.show_picture = pictures.append
    finish()
    assert sorted({step[:2] for step in drawn}) == [(1, 2), (2, 2)]
    assert pictures[-1].shape == (2, 70, 80, 1)
    saved, verdict = widget.status.text().splitlines()
    assert saved == "Saved as cells, which is now in the list of models."
    assert verdict.startswith("measured without truth: ")
    model = zoo.get_model("cells")
    assert model.range == pytest.approx(np.percentile(viewer.layers[0].data, (0.1, 99.9)))
    assert str(path) in model.card.read_text()
    assert not list((tmp_path / "models/fits").glob("*.npy"))
    asked = []

    def ask(*arguments):
        asked.append(arguments[-1])
        return str(tmp_path / "mine.safetensors"), ""

    monkeypatch.setattr(QFileDialog, "getSaveFileName", ask)
    widget.export.click()
    assert asked == ["Models (*.safetensors *.pth *.onnx *.zip)"]
    qtbot.waitUntil(lambda: widget.status.text().startswith("Exported to "), timeout=90_000)
    assert zoo.get_model(tmp_path / "mine.safetensors").range == model.range
    assert (tmp_path / "mine.md").read_text() == model.card.read_text()
    widget.restore.click()
    (restore,) = (
        w.widget() if hasattr(w, "widget") else w
        for name, w in viewer.window.dock_widgets.items()
        if name.startswith("Restore")
    )
    assert restore.form.model.value() == "cells"
    assert restore.layers() == [viewer.layers[0]]


@needs_training
def test_stop_keeps_the_model_and_closing_the_viewer_ends_a_new_training(
    viewer, widget, finish, qtbot, tmp_path
):
    assert widget.name.text() == "My-cells-1"
    widget.init.setCurrentText("from scratch")
    widget.steps.setValue(100_000)
    widget.start.click()
    assert not widget.start.isEnabled()
    qtbot.waitUntil(lambda: widget.bar.value() > 0, timeout=90_000)
    widget.cancel.click()
    qtbot.waitUntil(lambda: widget.worker is None, timeout=90_000)
    assert widget.status.text().startswith("Saved as My-cells-1")
    assert not list((tmp_path / "models/fits").glob("*.npy"))  # the copy of the layer
    kept = zoo.get_model("My-cells-1").title
    assert "1 its" not in kept.replace("1,", "")
    widget.method.setCurrentIndex(2)
    finish()
    assert "started with different settings" in widget.status.text()
    assert zoo.get_model("My-cells-1").title == kept
    widget.overwrite.setChecked(True)
    widget.start.click()
    worker, done = widget.worker, []
    worker.finished.connect(lambda: done.append(True))
    qtbot.waitUntil(lambda: widget.bar.value() > 0, timeout=90_000)
    viewer.close()
    qtbot.waitUntil(lambda: bool(done), timeout=90_000)
    options = json.loads((tmp_path / "models/fits/My-cells-1.yml").read_text())
    assert options["datasets"]["train"]["type"] == "Dataset_PlanePairs"  # n2n
    assert options["train"]["total_iter"] == 100_000
    states = list((tmp_path / "models/fits/My-cells-1/training_states").iterdir())
    assert 0 < min(int(p.stem) for p in states) < 100_000


def test_of_a_large_layer_the_middle_planes_are_copied(monkeypatch):
    stack = np.arange(10 * 4 * 5).reshape(10, 4, 5)
    assert train_widget.bounded(stack) is stack
    monkeypatch.setattr(train_widget, "_MOST", 4 * 20 * stack.itemsize)
    np.testing.assert_array_equal(np.asarray(train_widget.bounded(stack)), stack[3:7])


def test_an_error_is_one_line(widget, finish, monkeypatch):
    shown = []
    monkeypatch.setattr("napari_kbnet.background.show_error", shown.append)
    widget.name.setText("denoise-gray")
    finish()
    said = "denoise-gray is a model that ships with kbnet; choose another name"
    assert said in widget.status.text().replace("Denoise", "denoise")
    assert shown == [widget.status.text()]


def test_a_layer_is_required(viewer, widget):
    viewer.layers.clear()
    widget.start.click()
    assert widget.status.text() == "Choose an image layer first."


def test_a_second_recording_can_be_chosen_only_for_pairs(viewer, widget):
    assert not widget.second.isVisibleTo(widget)
    viewer.add_image(np.ones((2, 70, 80), np.uint16), name="again")
    widget.layer.choose(viewer.layers[0])
    widget.method.setCurrentIndex(2)
    assert widget.second.isVisibleTo(widget)
    assert "moves" in widget.warning.text()
    assert widget.config().second is None
    widget.second.choose(viewer.layers[1])
    assert widget.config().second is viewer.layers[1].data


def test_lines_are_masked_if_noise_is_shared_along_them(widget):
    assert not widget.noise.isVisibleTo(widget)
    widget.method.setCurrentIndex(1)
    assert widget.noise.isVisibleTo(widget)
    assert widget.config().correlated is None
    widget.noise.setCurrentText("shared along columns")
    assert widget.config().correlated == "vertical"
    widget.method.setCurrentIndex(0)
    assert widget.config().correlated is None


def test_a_channel_and_a_rectangle_can_be_chosen(viewer, widget, noise):
    stack = noise(5, 3, 70, 80)  # T, C
    layer = viewer.add_image(stack, name="cells", scale=(1, 1, 0.5, 0.5), translate=(0, 0, 10, 20))
    widget.layer.choose(layer)
    assert widget.axes.currentText() == "automatic: TZYX"
    assert not widget.channel.isVisibleTo(widget)
    widget.unfold.click()
    widget.axes.setCurrentText("TCYX")
    assert widget.channel.isVisibleTo(widget)
    assert widget.axes_note.text() == "15 gray planes of 70 x 80"
    widget.channel.setCurrentText("2")
    assert widget.axes_note.text() == "5 gray planes of 70 x 80"
    drawn = viewer.add_shapes([[[15, 25], [15, 45], [30, 45], [30, 25]]], name="area")
    assert widget.layer.layers() == [layer]
    widget.area.setCurrentText("area")
    assert widget.axes_note.text() == "5 gray planes of 30 x 40"
    config = widget.config()
    assert config.axes == "TYX"
    np.testing.assert_array_equal(np.asarray(config.source), stack[:, 2, 10:40, 10:50])
    drawn.data = [[[15, 25], [15, 27], [30, 27], [30, 25]]]
    assert widget.axes_note.text().startswith("area: covers less")
    widget.start.click()
    assert widget.status.text() == "area: covers less than 16 x 16 pixels of cells"
    viewer.layers.remove(drawn)
    assert widget.axes_note.text() == "5 gray planes of 70 x 80"


def test_the_axes_that_are_possible_are_listed():
    assert possible_axes((5, 70, 80), False) == ["TYX", "ZYX", "CYX", "YXT", "YXZ", "YXC"]
    assert possible_axes((70, 80, 3), False)[3] == "YXS"
    assert possible_axes((70, 80, 3), True) == ["YXS"]
    assert possible_axes((70, 80), False) == ["YX"]
    assert possible_axes((9, 8, 7, 70, 80), False)[0] == "TZCYX"


def test_the_time_that_is_left_is_shown(widget, monkeypatch):
    clock = iter([100.0, 110.0])
    monkeypatch.setattr(train_widget.time, "monotonic", lambda: next(clock))
    widget.task.take(fit.Step(10, 100, 0.5))
    widget.task.take(fit.Step(20, 100, 0.5, 0.25))
    assert widget.task.text == "Step 20 of 100, 1 min 20 s left; measured without truth: +0.25 dB"


def test_what_has_been_learned_is_shown_in_one_contrast(qtbot):
    learned = Learned()
    qtbot.addWidget(learned)
    learned.resize(204, 100)
    ramp = np.tile(np.linspace(0.2, 0.6, 50, dtype=np.float32), (50, 1))[..., None]
    learned.show_picture(np.stack([ramp, np.full_like(ramp, 0.4)]))
    shown = learned.grab().toImage()
    left, middle, flat = (shown.pixelColor(x, 50).red() for x in (5, 95, 150))
    assert left < 30 < 100 < flat < 150 < 220 < middle


def test_the_curve_is_drawn_at_the_losses(qtbot):
    curve = LossCurve()
    qtbot.addWidget(curve)
    curve.resize(240, 120)
    empty = curve.grab().toImage()
    for i in range(1, 50):
        curve.add(i, 100, 1 / i)
    full = curve.grab().toImage()
    columns = [x for x in range(240) if any(full.pixel(x, y) != empty.pixel(x, y) for y in range(80, 110))]
    assert 5 <= min(columns) < 15
    assert 110 < max(columns) < 130  # half of the steps are done
    curve.add(50, 100, 1 / 50, gain=0.5)
    curve.add(60, 100, 1 / 60, gain=0.7)
    assert curve.grab().toImage() != full
    curve.clear()
    assert curve.grab().toImage() == empty


def test_limits_leave_out_outliers_and_the_mean_runs():
    low, high = bounds([1.0] * 98 + [1e9, 1e-9])
    assert low < 1 < high < 2
    assert smooth([(1, 1.0), (2, 3.0)]) == [(1, 1.0), (2, 3.0)]
    assert smooth([(i, float(i % 2)) for i in range(20)])[-1] == (19, 0.5)


def test_opening_the_widget_imports_no_torch():
    code = "import sys, napari_kbnet.train_widget; print('torch' in sys.modules)"
    root = Path(__file__).parents[2]
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    assert ended.stdout == "False\n"
