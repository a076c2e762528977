"""What a new user meets in the Restore widget, in a real viewer."""

from __future__ import annotations

import numpy as np
import pytest
from qtpy.QtCore import QPoint
from qtpy.QtWidgets import QAbstractButton, QDockWidget, QLabel, QPushButton, QTabBar, QToolButton
from scipy import ndimage

from kbnet_plugin import Restorer
from kbnet_plugin.inference.engine import Engine
from kbnet_plugin.zoo import locations
from napari_kbnet import quality
from napari_kbnet.boxes import FIELDS

PATIENCE = 180_000  # milliseconds; the first tile is slow on a busy machine


@pytest.fixture
def idle(qtbot):
    """Wait until a widget has nothing to do, also not soon."""

    def wait(widget):
        def rests():
            return not (widget.task.running or widget.work.busy or widget._settled.isActive())

        qtbot.waitUntil(rests, timeout=PATIENCE)

    return wait


def docks(viewer):
    return [d for d in viewer.window._qt_window.findChildren(QDockWidget) if "kbnet" in d.windowTitle()]


def test_the_automatic_choice_is_that_for_the_layer(viewer, restore_widget, idle):
    box = restore_widget.form.model.box
    assert box.currentText() == "automatic"  # nothing is known yet
    rng = np.random.default_rng(0)
    viewer.add_image(rng.normal(100, 20, (2, 96, 96)).astype(np.uint8), name="gray")
    idle(restore_widget)
    assert box.currentText() == "automatic: denoise-gray"
    assert "from gray pictures" in restore_widget.form.model.title.text()
    assert restore_widget.plan.text().startswith("2 tiles")
    counts = viewer.add_image(rng.poisson(200, (96, 96)).astype(np.uint16), name="counts")
    viewer.layers.selection = {counts}
    assert box.currentText() == "automatic"
    idle(restore_widget)
    assert box.currentText() == "automatic: denoise-micro"
    assert not restore_widget.preview.live.isChecked()


def test_every_model_says_what_it_is_for(restore_widget):
    box = restore_widget.form.model.box
    tips = {box.itemText(i): box.itemData(i, 3) for i in range(box.count() - 1)}
    assert tips.keys() >= {path.stem for path in locations.model_files(locations.SHIPPED)}
    assert all(tips.values())
    assert tips["denoise-micro"].startswith("removes the noise of microscopes")


def test_no_text_is_cut_off(qtbot, restore_widget):
    for name in locations.model_paths():
        restore_widget.form.model.set_value(name)
        restore_widget.why.setText("a reason, in many words " * 8)
        qtbot.wait(50)  # Qt lays out later
        texts = [w for w in restore_widget.findChildren(QLabel) if w.isVisible() and w.wordWrap()]
        assert len(texts) >= 4
        for text in texts:
            assert text.height() >= text.heightForWidth(text.width()), text.text()


def test_every_control_has_a_tooltip_and_a_name_and_buttons_look_like_buttons(restore_widget):
    controls = [w for kind in (*FIELDS, QAbstractButton) for w in restore_widget.findChildren(kind)]
    controls = [w for w in controls if not w.objectName().startswith("qt_") and w.parent() is not None]
    ours = [w for w in controls if not isinstance(w.parent(), FIELDS) and type(w).__name__ != "QScrollBar"]
    assert len(ours) > 20
    assert not [w for w in ours if not w.toolTip() or not w.accessibleName()]
    assert [type(w) for w in (restore_widget.estimate, restore_widget.form.model.card)] == [QPushButton] * 2
    assert restore_widget.findChildren(QToolButton) == [restore_widget.form.unfold]


def test_advice_says_what_to_do_and_goes_when_its_cause_is_gone(viewer, restore_widget, noise, idle):
    idle(restore_widget)
    for button in (restore_widget.estimate, restore_widget.preview.button, restore_widget.start):
        restore_widget.status.clear()
        button.click()
        assert restore_widget.status.text().startswith("Open an image first")
    viewer.add_labels(np.zeros((40, 50), int))
    restore_widget.estimate.click()
    assert restore_widget.status.text().startswith("Choose an image layer")
    viewer.add_image(noise(3, 40, 50))
    assert restore_widget.status.text() == ""
    viewer.dims.ndisplay = 3
    restore_widget.preview.button.click()
    assert "2D view" in restore_widget.status.text()
    viewer.dims.ndisplay = 2
    assert restore_widget.status.text() == ""


def test_a_preview_says_that_it_is_out_of_date(viewer, restore_widget, gray, noise, idle, monkeypatch):
    viewer.add_image(noise(40, 50))
    restore_widget.form.model.set_value(gray)
    restore_widget.preview.button.click()
    idle(restore_widget)
    layer = restore_widget.preview.layer
    shown = layer.data.copy()
    restore_widget.form.strength.setValue(50)
    assert layer.name.endswith("(out of date)")
    assert "out of date" in restore_widget.status.text()
    restore_widget.form.strength.setValue(100)  # as it was
    assert layer.name == "KBNet preview"
    assert restore_widget.status.text() == ""
    monkeypatch.setattr(Engine, "solve", lambda *_: pytest.fail("computed again"))
    idle(restore_widget)
    restore_widget.preview.button.click()  # nothing has changed
    idle(restore_widget)
    np.testing.assert_array_equal(restore_widget.preview.layer.data, shown)


def test_a_preview_covers_the_view_in_the_resolution_shown(qtbot, viewer, restore_widget, gray, noise, idle):
    plane = noise(3000, 4000)
    viewer.add_image(plane)
    restore_widget.form.model.set_value(gray)
    restore_widget.preview.split.setValue(0)
    qtbot.wait(300)
    viewer.reset_view()
    qtbot.wait(300)
    found = []
    for _ in range(2):
        restore_widget.preview.button.click()
        idle(restore_widget)
        layer = restore_widget.preview.layer
        found.append(layer.data.shape)
        step = round(layer.scale[0])
        assert step == int(1 / viewer.scene.camera.zoom) > 1
        assert layer.data.shape == plane[::step, ::step].shape  # all of the view
        restore_widget.form.strength.setValue(90)
    assert found[0] == found[1]
    assert f"every {step}" in restore_widget.status.text()
    restore_widget.form.strength.setValue(100)

    viewer.scene.camera.center, viewer.scene.camera.zoom = (1500, 1000), 1.5
    qtbot.wait(300)
    restore_widget.preview.button.click()
    idle(restore_widget)
    layer = restore_widget.preview.layer
    top, left = (int(n) for n in layer.translate)
    window = slice(top, top + layer.data.shape[0]), slice(left, left + layer.data.shape[1])
    expected = Restorer.from_pretrained(gray).restore_window(plane, window, "YX").after
    assert np.abs(layer.data.astype(int) - expected).max() <= 1  # here exactly as in a run
    shown = viewer.window._qt_viewer.canvas.size[1] / 1.5
    assert 0.9 * shown < layer.data.shape[1] < shown  # so that its border is seen


def test_a_preview_is_coarse_first_and_can_be_stopped(
    qtbot, viewer, restore_widget, gray, noise, idle, gate, monkeypatch
):
    monkeypatch.setattr(Engine, "seconds_per_pixel", lambda *_: 1e-4)  # a slow machine: many pieces
    source = viewer.add_image(noise(400, 400), name="wide")
    restore_widget.form.model.set_value(gray)
    restore_widget.preview.split.setValue(0)
    qtbot.wait(300)
    restore_widget.preview.button.click()
    assert restore_widget.preview.button.text() == "Stop"
    gate.release(1)
    qtbot.waitUntil(lambda: restore_widget.preview.layer is not None, timeout=PATIENCE)
    layer = restore_widget.preview.layer
    coarse = layer.data.copy()
    np.testing.assert_array_equal(coarse[:4, :4], coarse[0, 0])  # every fourth pixel
    gate.release(1)
    qtbot.waitUntil(lambda: (layer.data != coarse).any(), timeout=PATIENCE)
    assert 0 < (layer.data != coarse).mean() < 0.5  # one piece is finer
    restore_widget.preview.button.click()
    gate.release(1)  # it ends within the piece
    idle(restore_widget)
    assert restore_widget.status.text() == "Preview stopped"
    assert restore_widget.preview.button.text() == "Preview"
    assert restore_widget.preview.layer is layer
    assert source.visible


def test_buttons_stay_in_view_and_in_place(qtbot, viewer, restore_widget, gray, noise, idle, gate):
    viewer.window._qt_window.resize(1000, 540)
    viewer.add_image(noise(2, 100, 100))
    restore_widget.form.model.set_value(gray)
    idle(restore_widget)
    assert restore_widget.minimumSizeHint().width() <= 350
    assert restore_widget.height() <= 500

    def places():
        buttons = restore_widget.start, restore_widget.cancel, restore_widget.resume
        return [b.mapTo(restore_widget, QPoint()) for b in buttons], [b.width() for b in buttons]

    def moved():
        (points, widths), (first, sizes) = places(), before
        assert widths == sizes
        return max(max(abs(a.x() - b.x()), abs(a.y() - b.y())) for a, b in zip(points, first, strict=True))

    before = places()
    assert restore_widget.rect().contains(before[0][0])
    restore_widget.start.click()
    qtbot.waitUntil(restore_widget.bar.isVisible, timeout=PATIENCE)
    assert moved() <= 1  # a line of text may be higher by a pixel
    gate.release(10)
    idle(restore_widget)
    assert moved() <= 1


def test_docks_share_their_place_and_there_is_one_of_each(qtbot, viewer, restore_widget):
    for name in ("Restore files", "Train on this layer"):
        viewer.window.add_plugin_dock_widget("kbnet", name)
    (first, *others) = docks(viewer)
    window = viewer.window._qt_window
    qtbot.waitUntil(lambda: len(window.tabifiedDockWidgets(first)) == len(others) == 2)
    assert [bar.count() for bar in window.findChildren(QTabBar) if bar.count() > 1] == [3]
    training = viewer.window.dock_widgets["Train on this layer (kbnet)"]
    training.open_restore()
    assert len(docks(viewer)) == 3
    qtbot.waitUntil(restore_widget.isVisible)


def test_what_was_removed_is_told_from_noise():
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:192, :192]
    truth = 100 + 40 * np.sin(x / 3) * np.sin(y / 4)
    noisy = truth + rng.normal(0, 10, truth.shape)
    honest = quality.removed(noisy, truth)
    assert honest.deviation == pytest.approx(10, rel=0.05)
    assert honest.noise == pytest.approx(10, rel=0.15)
    assert not honest.excess
    melted = quality.removed(noisy, ndimage.gaussian_filter(noisy, 3))
    assert melted.excess
    assert "more than noise" in str(melted)
    shared = ndimage.gaussian_filter(rng.normal(0, 30, truth.shape), 1)
    assert quality.removed(100 + shared, np.full_like(truth, 100)).correlated
