"""Take the screenshots of docs/napari in a real window, on the current display or one of its own (Xvfb)."""

from __future__ import annotations

import argparse
import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image

OUT = Path(__file__).resolve().parents[1] / "docs" / "napari"
SIZE = 1280, 760
COLOURS = 128  # in a PNG
LARGE = 60_000  # bytes above which a PNG becomes a JPEG
QUALITY = 75  # of a JPEG
PART = 0.6  # of a run, at which it is shown


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example:\n  python tools/screenshots.py --only menu --out pictures",
    )
    parser.add_argument("--out", type=Path, default=OUT, help="folder (default: docs/napari)")
    parser.add_argument("--only", choices=PICTURES, action="append", help="take only this one; repeatable")
    options = parser.parse_args(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    with display(), tempfile.TemporaryDirectory() as folder:
        # napari's default settings, without touching those of the user.
        os.environ |= {"NAPARI_CONFIG": f"{folder}/settings.yaml", "XDG_CONFIG_HOME": folder}
        for name in options.only or PICTURES:
            with window() as viewer:
                PICTURES[name](viewer, Camera(options.out / name), Path(folder))
    pictures = sorted(options.out.iterdir())
    print(
        f"{len(pictures)} pictures, {sum(p.stat().st_size for p in pictures) / 1e6:.2f} MB in {options.out}"
    )
    return 0


@contextlib.contextmanager
def display() -> Iterator[None]:
    """Start an X server if there is none."""
    if os.environ.get("DISPLAY"):
        yield
        return
    from pyvirtualdisplay import Display

    with Display(size=(SIZE[0] + 100, SIZE[1] + 100)):
        yield


@contextlib.contextmanager
def window() -> Iterator[Any]:
    """Open a viewer of a fixed size."""
    import napari

    viewer = napari.Viewer(title="napari")
    viewer.window.resize(*SIZE)
    settle()
    yield viewer
    viewer.close()


def settle(seconds: float = 0.7) -> None:
    """Give the window time to draw."""
    wait(lambda: False, seconds)


def wait(until: Callable[[], bool], seconds: float = 300.0) -> None:
    """Process events until a condition holds, or the time is over."""
    from qtpy.QtWidgets import QApplication

    end = time.monotonic() + seconds
    while not until() and time.monotonic() < end:
        QApplication.processEvents()
        time.sleep(0.01)


class Camera:
    """Saves screenshots under a name."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def screen(self, viewer: Any, part: tuple[float, float] = (1, 1)) -> None:
        """Save the window with its open menus, or the upper left part of it."""
        left, top, width, height = viewer.window._qt_window.geometry().getRect()
        area = left, top, round(part[0] * width), round(part[1] * height)
        self._file(viewer.window._qt_window.screen().grabWindow(0, *area))

    def widget(self, widget: Any) -> None:
        """Save one widget."""
        self._file(widget.grab())

    def _file(self, shot: Any) -> None:
        path = self.path.with_suffix(".png")
        shot.save(str(path))
        image = Image.open(path).convert("RGB")
        image.quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
        if path.stat().st_size > LARGE:  # a noisy canvas; letters look better in PNG
            path.unlink()
            path = path.with_suffix(".jpg")
            image.save(path, quality=QUALITY, subsampling=0, optimize=True)
        print(f"{path}  {path.stat().st_size / 1e3:.0f} kB", flush=True)


def restore_widget(viewer: Any, sample: str | None = "stack") -> Any:
    """Open a sample and the widget that restores it."""
    if sample:
        viewer.open_sample("kbnet", sample)
    _, widget = viewer.window.add_plugin_dock_widget("kbnet", "Restore")
    settle()
    viewer.reset_view()
    settle()
    return widget


def menu(viewer: Any, camera: Camera, _folder: Path) -> None:
    """Show the menu Layers > Filter > KBNet."""
    viewer.open_sample("kbnet", "stack")
    settle()
    opened = viewer.window._qt_window.menuBar()
    at = opened.mapToGlobal(opened.rect().bottomLeft())
    for name in ("Layers", "Filter", "KBNet"):
        action = next(a for a in opened.actions() if a.text().replace("&", "") == name)
        place = opened.actionGeometry(action)
        at = opened.mapToGlobal(place.bottomLeft() if name == "Layers" else place.topRight())
        opened.setActiveAction(action)
        opened = action.menu()
        opened.popup(at)
        settle()
    camera.screen(viewer, (0.5, 0.47))
    for widget in _menus():
        widget.close()


def _menus() -> list[Any]:
    from qtpy.QtWidgets import QApplication, QMenu

    return [w for w in QApplication.topLevelWidgets() if isinstance(w, QMenu) and w.isVisible()]


def restore(viewer: Any, camera: Camera, _folder: Path) -> None:
    """Show the widget before a run."""
    camera.widget(restore_widget(viewer))


def running(viewer: Any, camera: Camera, _folder: Path) -> None:
    """Show a run in progress."""
    widget = restore_widget(viewer)
    widget.form.model.set_value("denoise-micro")
    widget.start.click()
    wait(lambda: widget.bar.maximum() > 0 and widget.bar.value() / widget.bar.maximum() >= PART)
    camera.screen(viewer)
    wait(lambda: widget.worker is None)


def preview(viewer: Any, camera: Camera, _folder: Path) -> None:
    """Show a preview: before and after."""
    widget = restore_widget(viewer, "photograph")
    widget.truth.choose(viewer.layers["Clean photograph"])
    widget.preview.button.click()
    wait(lambda: widget.preview.layer is not None and not widget.work.busy)
    settle()
    camera.screen(viewer)


def files(viewer: Any, camera: Camera, folder: Path) -> None:
    """Show a folder that was restored, except for one file that cannot be read."""
    import tifffile

    from napari_kbnet import samples

    plate = folder / "plate 3"
    plate.mkdir()
    noisy = samples.stack()[-1][0]
    for number, frame in enumerate(noisy, start=1):
        path = plate / f"well A{number}.tif"
        tifffile.imwrite(path, frame, metadata={"axes": "ZYX"}, photometric="minisblack")
    Image.fromarray(samples.photograph()[-1][0]).save(plate / "overview.png")
    broken = plate / "well A4.tif"
    broken.write_bytes((plate / "well A1.tif").read_bytes()[:5000])
    _, widget = viewer.window.add_plugin_dock_widget("kbnet", "Restore files")
    widget.source.setText(str(plate))
    widget.target.setText(str(folder / "restored"))
    widget.start.click()
    wait(lambda: widget.worker is None)
    widget.source.setText("/data/plate 3")
    widget.target.setText("/data/restored")
    settle()
    camera.widget(widget)


def settings(viewer: Any, camera: Camera, _folder: Path) -> None:
    """Show the plugin's page in the preferences."""
    dialog = viewer.window._open_preferences_dialog()
    pages = [dialog._list.item(row).text() for row in range(dialog._list.count())]
    dialog._list.setCurrentRow(pages.index("KBNet"))
    dialog.resize(900, 520)
    settle()
    camera.widget(dialog)
    dialog.close()


def error(viewer: Any, camera: Camera, folder: Path) -> None:
    """Show an error message, which says what to do."""
    from napari._qt.dialogs.qt_notification import NapariQtNotification

    (folder / "downloaded.safetensors").write_bytes(b"cut short")
    widget = restore_widget(viewer, "cells")
    with contextlib.chdir(folder):  # the picture is to show no temporary folder's name
        widget.form.model.set_value("downloaded.safetensors")
        widget.start.click()
        wait(lambda: widget.worker is None)
    for shown in viewer.window._qt_window._qt_viewer.findChildren(NapariQtNotification):
        shown.toggle_expansion()
    settle()
    camera.screen(viewer)


PICTURES: dict[str, Callable[[Any, Camera, Path], None]] = {
    each.__name__: each for each in (menu, restore, running, preview, files, settings, error)
}


if __name__ == "__main__":
    raise SystemExit(main())
