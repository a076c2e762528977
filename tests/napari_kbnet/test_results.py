"""What is seen, chosen and kept when layers are restored, in a real viewer."""

from __future__ import annotations

import numpy as np
import pytest

from kbnet_plugin import Restorer
from napari_kbnet.layers import RECORD


@pytest.fixture
def widget(restore_widget, gray):
    """Use a small model."""
    restore_widget.form.model.set_value(gray)
    restore_widget.preview.split.setValue(0)
    return restore_widget


@pytest.fixture
def restore(widget, finish):
    """Press the button and wait."""

    def press():
        widget.start.click()
        finish(widget)

    return press


@pytest.fixture
def preview(widget, finish):
    """Press the button and wait; return the layer."""

    def press():
        widget.preview.button.click()
        finish(widget)
        return widget.preview.layer

    return press


def seen(viewer):
    return viewer.screenshot(canvas_only=True, flash=False)[..., :3].astype(int)


def test_previews_and_results_show_themselves_whatever_the_blending(viewer, widget, noise, restore, preview):
    channels = viewer.add_image(noise(2, 40, 50), channel_axis=0, name=["red", "green"], opacity=0.7)
    assert [layer.blending for layer in channels] == ["translucent_no_depth", "additive"]
    viewer.layers.selection = {channels[0]}
    layer = preview()
    shown = seen(viewer)
    channels[0].visible = channels[1].visible = False
    assert np.abs(seen(viewer) - shown).max() <= 1  # nothing shines through the preview
    channels[0].visible = channels[1].visible = True

    viewer.layers.selection = set(channels)
    restore()
    assert layer not in viewer.layers
    results = [viewer.layers[f"{layer.name}, gray"] for layer in channels]
    assert [layer.visible for layer in (*channels, *results)] == [False, False, True, True]
    assert [layer.blending for layer in results] == ["translucent_no_depth", "additive"]  # still a group
    order = [viewer.layers.index(layer) for layer in (channels[0], results[0], channels[1], results[1])]
    assert order == sorted(order)
    assert viewer.layers.selection == set(results)  # what "Save Selected Layers" saves
    viewer.layers.remove(results[0])
    assert channels[0].visible  # nothing else shows that channel


def test_the_newest_result_is_on_top_and_a_preview_above_all_of_them(viewer, widget, noise, restore, preview):
    cells = viewer.add_image(noise(40, 50), name="cells")
    viewer.add_labels(np.zeros((40, 50), int), name="labels")
    viewer.layers.selection = {cells}
    restore()
    first = viewer.layers["cells, gray"]
    widget.form.strength.setValue(50)
    layer = preview()
    assert layer.visible
    assert [each.name for each in viewer.layers] == ["cells", "cells, gray", layer.name, "labels"]
    restore()
    assert [each.name for each in viewer.layers] == ["cells", "cells, gray", "cells, gray [1]", "labels"]
    second = viewer.layers["cells, gray [1]"]
    assert [each.visible for each in (cells, first, second)] == [False, False, True]
    viewer.layers.remove(second)
    assert first.visible or cells.visible


def test_the_chosen_layer_stays_and_labels_choose_nothing(viewer, widget, noise, restore, preview):
    cells, other = (
        viewer.add_image(noise(30, 40) // n, name=name) for n, name in enumerate(("cells", "other"), 1)
    )
    viewer.layers.selection = {other}
    widget.layer.choose(cells)
    preview()
    assert widget.layers() == [cells]
    restore()
    assert widget.layers() == [cells]
    widget.residual.click()
    assert widget.layers() == [cells]
    labels = viewer.add_labels(np.zeros((30, 40), int))
    assert viewer.layers.selection.active is labels
    assert widget.layers() == [cells]
    viewer.layers.selection = {other}  # the user's choice
    assert widget.layers() == [other]
    viewer.layers.selection = {labels}
    _, training = viewer.window.add_plugin_dock_widget("kbnet", "Train on this layer")
    assert training.layer.layers() == []  # three images might be meant
    assert training.layer.currentText() == ""
    viewer.layers.selection = {cells}
    assert training.layer.layers() == [cells]


def test_a_stopped_run_is_partial_and_can_be_continued(qtbot, viewer, widget, noise, finish, gate, gray):
    stack = noise(3, 100, 100) // 2
    source = viewer.add_image(stack, name="stack")
    viewer.dims.set_current_step(0, 2)
    widget.form.tile.setValue(80)
    assert not widget.resume.isEnabled()
    widget.start.click()
    gate.release(2)
    qtbot.waitUntil(lambda: widget.bar.value() == 2, timeout=60_000)
    shown = viewer.layers["stack, gray"]
    whole = Restorer.from_pretrained(gray, tile=80)
    np.testing.assert_array_equal(shown.data[:2], stack[:2])  # the source, where nothing is done yet
    assert (shown.data[2] != stack[2]).any()  # the plane that is looked at comes first
    widget.cancel.click()
    gate.release(2)
    finish(widget)
    done, total = shown.metadata[RECORD]["tiles"]
    assert shown.metadata[RECORD]["partial"]
    assert shown.name == f"stack, gray ({done} of {total} tiles)"
    assert widget.resume.isEnabled()
    gate.release(total - done)
    widget.resume.click()
    finish(widget)
    assert [layer.name for layer in viewer.layers] == ["stack", "stack, gray"]
    assert "partial" not in shown.metadata[RECORD]
    assert not widget.resume.isEnabled()
    gate.release(1000)
    np.testing.assert_array_equal(shown.data, whole(stack, "ZYX"))
    assert not source.visible


def test_the_residual_is_of_what_was_restored(viewer, widget, noise, restore):
    cells = viewer.add_image(noise(40, 50), name="cells")
    before = cells.data
    restore()
    after = viewer.layers["cells, gray"].data
    cells.data = noise(20, 30)  # another shape, too
    widget.residual.click()
    expected = before.astype(np.float32) - after
    np.testing.assert_array_equal(viewer.layers["cells residual"].data, expected)


def test_a_run_ends_when_its_result_is_removed(qtbot, viewer, widget, noise, finish, gate):
    first = viewer.add_image(noise(2, 100, 100), name="first")
    second = viewer.add_image(noise(40, 50), name="second")
    viewer.layers.selection = {first, second}
    widget.form.tile.setValue(80)
    widget.start.click()
    gate.release(1)
    qtbot.waitUntil(lambda: widget.bar.value() > 0, timeout=60_000)
    viewer.layers.remove("first, gray")
    assert first.visible
    gate.release(20)
    finish(widget)
    assert sum(gate.acquire(blocking=False) for _ in range(20)) >= 20 - 4  # not all 8 tiles of the first
    assert "first, gray" not in viewer.layers
    assert "done" in widget.status.text()  # the second
    assert widget.status.text().startswith("second")


def test_a_run_outlives_its_widget_and_napari_knows_of_it(qtbot, viewer, widget, noise, finish, gate):
    from napari.utils import progress

    viewer.add_image(noise(2, 100, 100), name="stack")
    widget.form.tile.setValue(80)
    widget.start.click()
    gate.release(1)
    qtbot.waitUntil(lambda: widget.bar.value() == 1, timeout=60_000)
    assert viewer.window._task_status_manager.get_status() == ["KBNet: Restoring stack"]
    viewer.window.remove_dock_widget(widget)
    widget.deleteLater()
    qtbot.wait(50)
    _, again = viewer.window.add_plugin_dock_widget("kbnet", "Restore")
    assert not again.start.isEnabled()
    assert again.cancel.isEnabled()
    assert again.bar.value() == 1
    gate.release(1)
    qtbot.waitUntil(lambda: again.bar.value() == 2, timeout=60_000)
    (activity,) = progress._all_instances
    assert activity.desc.startswith("Restoring stack")
    activity.cancel()  # what its button calls
    qtbot.waitUntil(lambda: again.task.stopping, timeout=60_000)
    gate.release(2)
    finish(again)
    assert again.start.isEnabled()
    assert " tiles)" in viewer.layers[1].name
    assert viewer.window._task_status_manager.get_status() == []
