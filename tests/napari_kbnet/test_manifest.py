"""The manifest, the settings page and the menu."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from npe2 import PluginManifest
from qtpy.QtWidgets import QMenu

from kbnet_plugin.zoo import locations
from napari_kbnet.options import AUTOMATIC, PRECISIONS, Options, saved

PATIENCE = 180_000  # milliseconds; the first tile is slow on a busy machine
TITLES = {"Denoise this layer", "Restore", "Restore files"}

COLD = """
import sys
from qtpy.QtWidgets import QApplication
application = QApplication([])
import numpy as np
from napari.components import ViewerModel
from npe2 import PluginManifest
manifest = PluginManifest.from_distribution("kbnet")
viewer = ViewerModel()
viewer.add_image(np.zeros((20, 20)))
for widget in manifest.contributions.widgets:
    command = next(c for c in manifest.contributions.commands if c.id == widget.command)
    module, name = command.python_name.split(":")
    made = getattr(__import__(module, fromlist=[name]), name)(viewer)
    made.close()
    print(widget.display_name)
print("torch" in sys.modules)
"""


def test_everything_in_the_manifest_exists():
    manifest = PluginManifest.from_distribution("kbnet")
    manifest.validate_imports()
    assert manifest.name == "kbnet"
    assert {"Restore", "Restore files"} <= {w.display_name for w in manifest.contributions.widgets}


def test_the_settings_page_has_the_defaults_of_the_options():
    (page,) = PluginManifest.from_distribution("kbnet").contributions.configurations.values()
    defaults = {name: p.default for name, p in page.properties.items()}
    options = Options()
    assert defaults == {
        "model": AUTOMATIC,
        "device": options.device,
        "tile": options.tile or 0,
        "precision": options.precision,
    }
    assert tuple(page.properties["precision"].enum) == PRECISIONS
    shipped = [path.stem for path in locations.model_files(locations.SHIPPED)]
    assert page.properties["model"].enum == [AUTOMATIC, *shipped]  # a list, no free text
    assert saved() == options


def test_the_settings_page_is_kept(settings):
    settings.model, settings.device, settings.tile = "denoise-micro", "cpu", 256
    assert saved() == Options(model="denoise-micro", device="cpu", tile=256)


@pytest.mark.usefixtures("qapp")
def test_opening_the_widgets_imports_no_torch():
    done = subprocess.run([sys.executable, "-c", COLD], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[-2] == "False", done.stdout


def entries(viewer):
    """Return the actions of Layers > Filter > KBNet by title."""
    menu = viewer.window.layers_menu
    for title in ("Filter", "KBNet"):
        menu = next(a.menu() for a in menu.actions() if isinstance(a.menu(), QMenu) and a.text() == title)
    menu.aboutToShow.emit()
    viewer.window._update_menu_state("layers_menu")
    return {a.text().removesuffix(" (KBNet)"): a for a in menu.actions() if a.text()}


def test_the_menu_is_enabled_for_images_alone(viewer):
    assert entries(viewer).keys() >= TITLES
    assert not entries(viewer)["Denoise this layer"].isEnabled()
    viewer.add_labels(np.zeros((20, 20), int))
    assert not entries(viewer)["Denoise this layer"].isEnabled()
    viewer.add_image(np.zeros((20, 20)))
    assert entries(viewer)["Denoise this layer"].isEnabled()


def test_the_menu_denoises(qtbot, viewer, gray, noise):
    other = viewer.add_image(noise(40, 50), name="other")
    layer = viewer.add_image(noise(40, 50), name="cells")
    _, widget = viewer.window.add_plugin_dock_widget("kbnet", "Restore")
    widget.form.model.set_value(gray)
    widget.layer.choose(other)
    entries(viewer)["Denoise this layer"].trigger()  # the one that is selected
    qtbot.waitUntil(lambda: len(viewer.layers) == 3, timeout=PATIENCE)
    result = viewer.layers["cells, gray"]
    qtbot.waitUntil(lambda: "finished" in result.metadata["kbnet"], timeout=PATIENCE)
    assert result.metadata["kbnet"]["model"] == gray
    assert (result.data != layer.data).any()
