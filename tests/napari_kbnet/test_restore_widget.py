"""The Restore widget, in a real viewer and through the manifest."""

from __future__ import annotations

import numpy as np
import pytest

from kbnet_plugin import Restorer


@pytest.fixture
def widget(viewer):
    """Dock the widget as napari's menu does."""
    return viewer.window.add_plugin_dock_widget("kbnet", "Restore")[1]


def finish(qtbot, widget):
    qtbot.waitUntil(lambda: widget.worker is None and not widget.work.busy, timeout=60_000)


def test_a_run_gives_what_the_restorer_gives(qtbot, viewer, widget, gray, noise):
    layer = viewer.add_image(noise(70, 90))
    widget.form.model.set_value(gray)
    widget.start.click()
    finish(qtbot, widget)
    expected = Restorer.from_pretrained(gray)(layer.data)
    assert (expected != layer.data).any()
    np.testing.assert_array_equal(viewer.layers[1].data, expected)
