"""What the menu entries do."""

from __future__ import annotations

from typing import Any


def denoise(napari_viewer: Any) -> None:
    """Restore the selected image layers by the default model."""
    _, widget = napari_viewer.window.add_plugin_dock_widget("kbnet", "Restore")
    widget.run()
