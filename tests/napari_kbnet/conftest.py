"""A viewer; its tests are skipped where no window can be opened."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import tempfile
import threading
import warnings

# napari reads this once, on import; the tests must neither read nor change the user's settings.
os.environ["NAPARI_CONFIG"] = os.path.join(tempfile.mkdtemp(prefix="kbnet-napari-"), "settings.yaml")

import numpy as np
import pytest

from kbnet_plugin import save_network
from kbnet_plugin.inference.engine import Engine

PATIENCE = 180_000  # milliseconds; the first tile is slow on a busy machine


@functools.cache
def _obstacle() -> str:
    """Say why no window can be opened here; empty if it can."""
    if sys.platform.startswith("linux") and not (
        os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    ):
        return "neither a display nor Xvfb"
    # If a library is missing, Qt aborts: try in another process.
    command = [sys.executable, "-c", "from qtpy.QtWidgets import QApplication; QApplication([])"]
    tried = subprocess.run(command, capture_output=True, text=True)
    lines = [line for line in tried.stderr.splitlines() if line.strip()]
    # Python gives the reason in the last line, Qt in the first.
    why = (lines or [""])[-1 if tried.returncode == 1 else 0]
    return f"Qt cannot open a window: {why or tried.returncode}" if tried.returncode else ""


class _Skipped(pytest.Module):
    def collect(self):
        pytest.skip(_obstacle(), allow_module_level=True)


def pytest_pycollect_makemodule(module_path, parent):
    if _obstacle():
        return _Skipped.from_parent(parent, path=module_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # napari's own imports warn
        import napari.qt.threading  # noqa: F401
    return None


@pytest.fixture
def viewer(qtbot):
    """Open a real viewer."""
    import napari
    from napari.qt.threading import WorkerBase

    viewer = napari.Viewer(show=True)
    viewer.window._qt_window.resize(1200, 800)
    qtbot.waitExposed(viewer.window._qt_window)
    yield viewer
    if hasattr(viewer.window, "_qt_window"):  # not closed by the test
        viewer.close()
    WorkerBase.await_workers(60_000)
    qtbot.wait(10)


@pytest.fixture
def settings(qapp):
    """Return the plugin's settings page; reset it afterwards."""
    from napari.settings import get_plugin_settings

    page = get_plugin_settings("kbnet")
    yield page.restoration
    page.reset()


@pytest.fixture
def restore_widget(viewer):
    """Dock the Restore widget as napari's menu does."""
    return viewer.window.add_plugin_dock_widget("kbnet", "Restore")[1]


@pytest.fixture
def finish(qtbot):
    """Wait until a widget's task and its other work have ended."""

    def wait(widget):
        qtbot.waitUntil(lambda: not widget.task.running and not widget.work.busy, timeout=PATIENCE)

    return wait


@pytest.fixture
def gate(monkeypatch):
    """Compute only as many tiles as are released."""
    semaphore, solve = threading.Semaphore(0), Engine.solve

    def solve_when_released(*arguments):
        assert semaphore.acquire(timeout=PATIENCE / 1000)
        return solve(*arguments)

    monkeypatch.setattr(Engine, "solve", solve_when_released)
    yield semaphore
    semaphore.release(10_000)


@pytest.fixture
def gray(tmp_path, lively):
    """Save a tiny gray network that changes its input."""
    return _saved(tmp_path / "gray.safetensors", lively(img_channel=1))


@pytest.fixture
def color(tmp_path, lively):
    """Save a tiny colour network that changes its input."""
    return _saved(tmp_path / "color.safetensors", lively())


@pytest.fixture
def noise():
    """Make noise of a shape, the same each time."""
    return lambda *shape: np.random.default_rng(0).integers(0, 255, shape, dtype=np.uint8)


def _saved(path, network):
    save_network(network, path)
    return str(path)
