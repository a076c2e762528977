"""Results in files: full disks, and what is removed with which viewer."""

from __future__ import annotations

import errno

import numpy as np
import pytest

from kbnet_plugin import Restorer
from napari_kbnet import cache, destination
from napari_kbnet.growing import Growing


@pytest.fixture(autouse=True)
def _small_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(destination, "LARGE", 1000)
    monkeypatch.setattr(cache, "user_cache_path", lambda *_, **__: tmp_path)
    monkeypatch.setattr(destination.Destination, "asked", True)


def folders(tmp_path):
    return set((tmp_path / "results").iterdir())


def open_widget(viewer, model, stack):
    viewer.add_image(stack, name="stack")
    _, widget = viewer.window.add_plugin_dock_widget("kbnet", "Restore")
    widget.form.model.set_value(model)
    widget.form.tile.setValue(80)
    return widget


def test_a_disk_that_fills_in_a_run_keeps_what_is_finished(
    qtbot, viewer, finish, gray, noise, monkeypatch, tmp_path
):
    shown = []
    monkeypatch.setattr("napari_kbnet.background.show_error", shown.append)
    stack = noise(3, 100, 90)
    widget = open_widget(viewer, gray, stack)
    write = Growing.__setitem__

    def full(growing, key, value):
        if key[0] == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(growing, key, value)

    with monkeypatch.context() as patch:
        patch.setattr(Growing, "__setitem__", full)
        widget.start.click()
        finish(widget)
    (message,) = shown
    assert message == widget.status.text()
    assert message.endswith("the disk is full; finished tiles are kept. Free some space, then continue")
    assert str(tmp_path) in message
    assert " of " in viewer.layers[1].name
    widget.resume.click()
    finish(widget)
    expected = Restorer.from_pretrained(gray, tile=80)(stack, "ZYX")
    np.testing.assert_array_equal(np.asarray(viewer.layers[1].data), expected)


def test_one_bar_shows_several_layers(qtbot, viewer, finish, gray, noise, gate):
    widget = open_widget(viewer, gray, noise(100, 90))
    viewer.add_image(noise(3, 100, 90), name="larger")
    viewer.layers.selection = set(viewer.layers)
    shown = []
    widget.task.news.connect(lambda _: shown.append((widget.task.done, widget.task.total)))
    gate.release(1000)
    widget.start.click()
    finish(widget)
    done = [done for done, _ in shown]
    assert done == sorted(done)
    assert {0, 250, 1000} <= set(done)
    assert {total for _, total in shown} == {1000}
    assert widget.status.text().startswith("2 layers: done in")


def test_a_viewer_takes_only_its_own_results_with_it(qtbot, viewer, finish, gray, noise, gate, tmp_path):
    import napari

    gate.release(1000)
    kept = open_widget(viewer, gray, noise(3, 100, 90))
    kept.start.click()
    finish(kept)
    (own,) = folders(tmp_path)
    other = napari.Viewer(show=True)
    widget = open_widget(other, gray, noise(3, 100, 90))
    widget.start.click()
    finish(widget)
    while gate.acquire(blocking=False):
        pass
    widget.start.click()
    qtbot.waitUntil(lambda: len(folders(tmp_path)) == 3, timeout=60_000)
    other.close()  # in a run
    gate.release(1000)
    qtbot.waitUntil(lambda: folders(tmp_path) == {own}, timeout=60_000)
    assert np.asarray(viewer.layers[1].data).any()
