"""Commands of the menu."""

from __future__ import annotations

from napari.viewer import Viewer


def denoise(viewer: Viewer) -> None:
    """Restore the selected image layers with the default model."""
    _, widget = viewer.window.add_plugin_dock_widget("kbnet", "Restore")
    widget.layer.follow()
    widget.run()
