"""The Restore widget, in a real viewer and through the manifest."""

from __future__ import annotations

import logging
import shutil
import time
from types import SimpleNamespace

import dask.array as da
import numpy as np
import pytest
import tifffile
import zarr
from qtpy.QtCore import QTimer
from qtpy.QtWidgets import QApplication

from kbnet_plugin import Restorer
from kbnet_plugin.arrays.axes import layout
from kbnet_plugin.inference.engine import Engine
from kbnet_plugin.io import open_image
from napari_kbnet import cache, destination, quality, worker
from napari_kbnet.layers import full_resolution
from napari_kbnet.restoring import matches_file

PATIENCE = 180_000  # milliseconds; the first tile is slow on a busy machine

PLACED = {
    "scale": (0.5, 2),
    "translate": (10, -20),
    "rotate": 30,
    "shear": [0.3],
    "affine": [[1, 0.2, 5], [0, 1.1, 7], [0, 0, 1]],
    "units": ("um", "um"),
    "axis_labels": ("y", "x"),
    "colormap": "magma",
    "contrast_limits": (20, 200),
    "gamma": 0.8,
    "blending": "additive",
    "opacity": 0.7,
    "metadata": {"microscope": "A"},
}


@pytest.fixture
def widget(viewer):
    """Dock the widget as napari's menu does."""
    return viewer.window.add_plugin_dock_widget("kbnet", "Restore")[1]


@pytest.fixture
def messages(viewer):
    """Return a function that lists the notifications since."""
    from napari.utils.notifications import notification_manager

    before = len(notification_manager.records)
    return lambda: [record.message for record in list(notification_manager.records)[before:]]


def finish(qtbot, widget):
    qtbot.waitUntil(lambda: widget.worker is None and not widget.work.busy, timeout=PATIENCE)


def run(qtbot, widget, model, **fields):
    widget.form.model.set_value(model)
    for name, value in fields.items():
        getattr(widget.form, name).setValue(value)
    widget.start.click()
    finish(qtbot, widget)


def kinds(noise, folder):
    """Layers of every kind: how to add one, its values and its axes."""
    gray, stack = noise(70, 90), noise(2, 3, 2, 40, 50)
    lazy = zarr.create_array(folder / "lazy.zarr", shape=(3, 64, 64), chunks=(1, 64, 64), dtype=np.uint8)
    lazy[:] = noise(3, 64, 64)
    mapped = np.memmap(folder / "mapped", np.uint16, "w+", shape=(50, 60))
    mapped[:] = noise(50, 60)
    return {
        "gray": (lambda v: v.add_image(gray), gray, "YX"),
        "float": (lambda v: v.add_image(gray / 7), gray / 7, "YX"),
        "RGB": (lambda v: v.add_image(noise(60, 70, 3)), noise(60, 70, 3), "YXS"),
        "RGBA": (lambda v: v.add_image(noise(60, 70, 4)), noise(60, 70, 4), "YXS"),
        "5-D": (lambda v: v.add_image(stack), stack, "TZCYX"),
        "dask": (lambda v: v.add_image(da.from_array(stack[0, 0], chunks=(1, 20, 50))), stack[0, 0], "ZYX"),
        "pyramid": (lambda v: v.add_image([gray, gray[::2, ::2]], multiscale=True), gray, "YX"),
        "zarr": (lambda v: v.add_image(lazy, axis_labels=("t", "y", "x")), lazy[:], "TYX"),
        "mapped": (lambda v: v.add_image(mapped), np.array(mapped), "YX"),
    }


@pytest.mark.parametrize("kind", ["gray", "float", "RGB", "RGBA", "5-D", "dask", "pyramid", "zarr", "mapped"])
def test_a_run_equals_the_restorer(qtbot, viewer, widget, gray, color, noise, tmp_path, kind):
    add, values, axes = kinds(noise, tmp_path)[kind]
    layer = add(viewer)
    model = color if kind.startswith("RGB") else gray
    run(qtbot, widget, model, tile=96)
    expected = Restorer.from_pretrained(model, tile=96)(values, axes)
    assert (expected != values).any()
    result = viewer.layers[1]
    assert (result.data.dtype, result.rgb, result.ndim) == (values.dtype, layer.rgb, layer.ndim)
    np.testing.assert_array_equal(result.data, expected)
    np.testing.assert_array_equal(full_resolution(layer), values)  # unchanged
    assert result.metadata["kbnet"]["axes"] == axes


def test_the_choice_by_noise_is_shown_even_if_nothing_is_done(qtbot, viewer, widget):
    clean = np.linspace(40, 200, 96)[None, :] * np.ones((96, 1))
    noisy = clean + np.random.default_rng(0).normal(0, 20, clean.shape)
    for image, kind, said in (
        (noisy, np.uint8, "denoise-gray: white noise of about"),
        (1000 * (noisy - 100), np.int32, "denoise-micro: values from"),  # signed, in the range of its data
        (clean, np.uint8, "left alone: already clean"),
    ):
        layer = viewer.add_image(np.rint(image).astype(kind))
        viewer.layers.selection = [layer]
        widget.start.click()
        finish(qtbot, widget)
        assert said in f"{widget.why.text()}{widget.status.text()}"
        (result,) = viewer.layers.selection
        assert np.array_equal(result.data, layer.data) == (image is clean)
        if kind == np.int32:
            truth = 1000 * (clean - 100)
            assert np.std(result.data - truth) < np.std(layer.data - truth) / 2
    assert "left alone" in widget.status.text()


def test_a_result_has_the_position_and_appearance_of_its_source(qtbot, viewer, widget, gray, noise):
    source = viewer.add_image(noise(40, 50), name="cells", **PLACED)
    run(qtbot, widget, gray)
    result = viewer.layers["cells, gray"]
    np.testing.assert_array_equal(result.extent.world, source.extent.world)
    for name in ("scale", "translate", "rotate", "shear"):
        np.testing.assert_array_equal(getattr(result, name), getattr(source, name))
    np.testing.assert_array_equal(result.affine.affine_matrix, source.affine.affine_matrix)
    for name in ("units", "axis_labels", "contrast_limits", "gamma", "blending", "opacity"):
        assert getattr(result, name) == getattr(source, name), name
    assert result.colormap.name == "magma"
    record = result.metadata["kbnet"]
    assert result.metadata["microscope"] == "A"
    assert record["weights"] == Restorer.from_pretrained(gray).fingerprint
    assert (record["model"], record["layer"], record["tiles"]) == (gray, "cells", [1, 1])
    assert {"kbnet", "torch", "napari", "numpy", "python"} <= record["versions"].keys()
    assert "kbnet" not in source.metadata


def test_a_preview_equals_a_run(qtbot, viewer, widget, gray, noise):
    source = viewer.add_image(noise(3, 40, 50), scale=(3, 2, 2), rotate=20, translate=(1, 2, 3))
    viewer.dims.set_current_step(0, 2)
    widget.form.model.set_value(gray)
    widget.preview.split.setValue(0)
    widget.preview.button.click()
    finish(qtbot, widget)
    preview = widget.preview.layer
    expected = Restorer.from_pretrained(gray)(source.data, "ZYX")[2:]
    np.testing.assert_array_equal(preview.data, expected)
    corner = preview.data_to_world((0, 5, 6))
    np.testing.assert_allclose(corner, source.data_to_world((2, 5, 6)))
    assert [layer.name for layer in viewer.layers] == [source.name, preview.name]
    assert viewer.layers.selection.active is source
    assert widget.plan.text().startswith("3 tiles of up to 40 x 50")

    widget.preview.split.setValue(40)  # the 20 pixels on the left are the original
    np.testing.assert_array_equal(preview.data[..., :20], source.data[2:, :, :20])
    np.testing.assert_array_equal(preview.data[..., 20:], expected[..., 20:])
    widget.preview.blink.setChecked(True)
    qtbot.waitUntil(lambda: np.array_equal(preview.data, source.data[2:]), timeout=PATIENCE)
    qtbot.waitUntil(lambda: np.array_equal(preview.data, expected), timeout=PATIENCE)
    widget.preview.blink.setChecked(False)

    widget.start.click()
    finish(qtbot, widget)
    assert preview not in viewer.layers


def test_a_preview_is_of_the_visible_area(qtbot, viewer, widget, gray, noise):
    plane = noise(2000, 3000)
    viewer.add_image([plane, plane[::4, ::4]], multiscale=True, name="wide")
    widget.form.model.set_value(gray)
    widget.preview.split.setValue(0)
    viewer.scene.camera.center, viewer.scene.camera.zoom = (0, 1500, 400), 8
    qtbot.wait(300)
    widget.preview.button.click()
    finish(qtbot, widget)
    preview = widget.preview.layer
    height, width = preview.data.shape
    assert max(height, width) <= 256
    middle = np.add(preview.translate, (height / 2, width / 2))
    np.testing.assert_allclose(middle, (1500, 400), atol=16)
    top, left = (int(n) for n in preview.translate)
    part = plane[max(0, top - 400) // 256 * 256 : top + height + 400, : left + width + 400]
    whole = Restorer.from_pretrained(gray, tile=4096)(part)
    begin = top - max(0, top - 400) // 256 * 256
    expected = whole[begin : begin + height, left : left + width].astype(int)
    assert np.abs(preview.data - expected).max() <= 1  # as in a run over all of it


def test_a_live_preview_follows_the_plane_and_the_options(qtbot, viewer, widget, gray, noise):
    source = viewer.add_image(noise(3, 40, 50))
    viewer.dims.set_current_step(0, 0)
    widget.form.model.set_value(gray)
    widget.preview.split.setValue(0)
    widget.preview.live.setChecked(True)
    qtbot.waitUntil(lambda: widget.preview.layer is not None, timeout=PATIENCE)
    finish(qtbot, widget)
    viewer.dims.set_current_step(0, 1)
    qtbot.waitUntil(lambda: widget.preview.layer.translate[0] == 1, timeout=PATIENCE)
    widget.form.strength.setValue(0)
    qtbot.waitUntil(lambda: np.array_equal(widget.preview.layer.data, source.data[1:2]), timeout=PATIENCE)


def test_cancel_stops_within_a_tile_and_keeps_finished_tiles(qtbot, viewer, widget, gray, noise, gate):
    source = viewer.add_image(noise(2, 100, 100) // 2 + 100, name="stack")
    widget.form.model.set_value(gray)
    widget.form.tile.setValue(80)
    widget.start.click()
    gate.release(3)
    qtbot.waitUntil(lambda: widget.bar.value() == 3, timeout=PATIENCE)
    shown = viewer.layers[1]
    assert (shown.data != source.data).any()
    widget.cancel.click()
    gate.release(2)  # the current tile, and the next, which has begun meanwhile
    finish(qtbot, widget)
    result = viewer.layers[1]
    done, total = result.metadata["kbnet"]["tiles"]
    assert 3 <= done <= 4 < total
    assert result.name == f"stack, gray ({done} of {total} tiles)"
    gate.release(1000)
    whole = Restorer.from_pretrained(gray, tile=80)(source.data, "ZYX")
    kept = result.data != source.data
    assert 0 < kept.mean() < 0.9
    np.testing.assert_array_equal(result.data[kept], whole[kept])

    widget.start.click()  # and the next run works
    finish(qtbot, widget)
    np.testing.assert_array_equal(viewer.layers["stack, gray"].data, whole)


def test_closing_the_viewer_stops_the_worker(qtbot, viewer, widget, gray, noise, gate):
    viewer.add_image(noise(2, 100, 100))
    widget.form.model.set_value(gray)
    widget.form.tile.setValue(80)
    widget.start.click()
    running = widget.worker
    gate.release(2)
    qtbot.waitUntil(lambda: widget.bar.value() == 2, timeout=PATIENCE)
    viewer.close()
    gate.release(3)
    qtbot.waitUntil(lambda: not running.is_running, timeout=PATIENCE)
    assert gate.acquire(blocking=False)  # the last one is left


def test_a_closed_widget_leaves_the_viewer_alone(qtbot, viewer, widget, noise):
    viewer.window.remove_dock_widget(widget)
    widget.preview.live.setChecked(True)
    layer = viewer.add_image(noise(3, 40, 50))
    viewer.dims.set_current_step(0, 1)
    viewer.scene.camera.zoom = 3
    viewer.add_labels(np.zeros((40, 50), int))
    layer.name = "another"
    qtbot.wait(1000)  # longer than the delay of a live preview
    assert not widget.work.busy
    assert len(viewer.layers) == 2


def test_several_layers_are_restored_one_after_the_other(qtbot, viewer, widget, gray, noise):
    first, second = (viewer.add_image(noise(30, 40) // n, name=f"picture {n}") for n in (1, 2))
    viewer.add_labels(np.zeros((30, 40), int))
    viewer.layers.selection = {first, second}
    assert widget.start.text() == "Restore 2 layers"
    run(qtbot, widget, gray)
    restorer = Restorer.from_pretrained(gray)
    for source in (first, second):
        result = viewer.layers[f"{source.name}, gray"]
        np.testing.assert_array_equal(result.data, restorer(source.data))


def test_other_layers_cannot_be_chosen(viewer, widget):
    viewer.add_labels(np.zeros((30, 40), int), name="labels")
    assert not widget.layer.model().item(widget.layer.findText("labels")).isEnabled()
    widget.start.click()
    assert widget.status.text() == "Choose an image layer first."


def test_axes_are_shown_and_can_be_corrected(qtbot, viewer, widget, color, noise):
    stack = noise(3, 40, 50)
    viewer.add_image(stack)
    assert widget.form.axes.placeholderText() == "ZYX"
    assert widget.form.axes_note.text() == "3 gray planes of 40 x 50"
    widget.form.axes.setText("SYX")
    widget.form.axes.editingFinished.emit()
    assert widget.form.axes_note.text() == "1 RGB plane of 40 x 50"
    run(qtbot, widget, color)
    expected = Restorer.from_pretrained(color)(stack, "SYX")
    np.testing.assert_array_equal(viewer.layers[1].data, expected)
    widget.form.axes.setText("SSX")
    widget.form.axes.editingFinished.emit()
    assert "no axis twice" in widget.form.axes_note.text()


def broken(name):
    """Errors: a model that causes one, and a part of its message."""
    return {
        "missing": ("no-such-model.pth", "no-such-model.pth"),
        "damaged": (b"nothing of the kind", "truncated or not a safetensors file"),
        "channels": ("color", "the model takes"),
        "memory": ("gray", "out of memory"),
        "device": ("gray", "not available on this machine"),
    }[name]


@pytest.mark.parametrize("what", ["missing", "damaged", "channels", "memory", "device"])
def test_an_error_is_shown_and_the_next_run_works(
    qtbot, viewer, widget, messages, gray, tiny_s, noise, tmp_path, monkeypatch, what
):
    model, said = broken(what)
    layer = viewer.add_image(noise(40, 50))
    if what == "damaged":
        (tmp_path / "bad.safetensors").write_bytes(model)
        model = str(tmp_path / "bad.safetensors")
    elif what == "channels":
        from kbnet_plugin import save_network

        model = str(tmp_path / "six.safetensors")
        save_network(tiny_s(img_channel=6), model)
    elif what == "memory":
        model = gray
        monkeypatch.setattr(Engine, "_run", _out_of_memory)
    elif what == "device":
        model = gray
        widget.form.device.insertItem(0, "cuda:7", "cuda:7")
        widget.form.device.setCurrentIndex(0)
    run(qtbot, widget, model)
    (message,) = messages()
    assert said.lower() in message.lower()
    assert "\n" not in message
    assert widget.status.text() == message
    assert widget.start.isEnabled()
    monkeypatch.undo()
    widget.form.device.setCurrentIndex(widget.form.device.findData("auto"))
    run(qtbot, widget, gray)
    assert len(viewer.layers) == 2  # the failed run leaves nothing behind
    np.testing.assert_array_equal(viewer.layers[1].data, Restorer.from_pretrained(gray)(layer.data))


def _out_of_memory(*_):
    raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB")


def test_an_error_keeps_finished_tiles(qtbot, viewer, widget, messages, gray, noise, monkeypatch):
    viewer.add_image(noise(2, 100, 100), name="stack")
    solve, left = Engine.solve, [1, 2]

    def run_out(*arguments):
        if not left:
            raise MemoryError
        left.pop()
        return solve(*arguments)

    monkeypatch.setattr(Engine, "solve", run_out)
    run(qtbot, widget, gray, tile=80)
    qtbot.wait(300)  # longer than the delay of a growing layer's next update
    assert viewer.layers[1].name.startswith(("stack, gray (1 of ", "stack, gray (2 of "))
    assert messages() == [widget.status.text()]
    assert widget.status.text().startswith("Out of memory")


def test_large_results_grow_in_a_file(qtbot, viewer, widget, gray, noise, monkeypatch, gate, tmp_path):
    monkeypatch.setattr(destination, "LARGE", 1000)
    monkeypatch.setattr(cache, "user_cache_path", lambda *_, **__: tmp_path)
    asked = []
    monkeypatch.setattr(destination.Destination, "asked", False)
    monkeypatch.setattr(
        destination.QMessageBox,
        "question",
        lambda *said: asked.append(said[2]) or destination.QMessageBox.StandardButton.Yes,
    )
    stack = noise(2, 2, 100, 90)
    viewer.add_image(stack, name="big", scale=(1, 2, 0.5, 0.5), units=("s", "um", "um", "um"))
    said = f"saved as OME-Zarr in {tmp_path / 'results'} until napari closes"
    qtbot.waitUntil(lambda: said in widget.plan.text(), timeout=PATIENCE)
    widget.form.model.set_value(gray)
    widget.form.tile.setValue(80)
    widget.start.click()
    gate.release(3)
    qtbot.waitUntil(lambda: widget.bar.value() == 3, timeout=PATIENCE)
    grown = np.asarray(viewer.layers[1].data)
    assert 0 < (grown != stack).mean() < 0.9
    gate.release(1000)
    finish(qtbot, widget)
    result = viewer.layers[1]
    expected = Restorer.from_pretrained(gray, tile=80)(stack, "TZYX")
    np.testing.assert_array_equal(np.asarray(result.data), expected)
    with open_image(result.metadata["kbnet"]["file"]) as stored:
        info = stored.metadata
        np.testing.assert_array_equal(stored.array[:], expected)
        assert (info.axes, info.sizes["Z"], info.sizes["X"]) == (
            "TZYX",
            (2.0, "micrometer"),
            (0.5, "micrometer"),
        )
    (question,) = asked
    assert str(tmp_path / "results") in question
    (folder,) = (tmp_path / "results").iterdir()
    viewer.close()
    qtbot.waitUntil(lambda: not folder.exists(), timeout=10_000)


def test_a_disk_that_is_too_small_is_known_before_the_run(viewer, widget, noise, monkeypatch, messages):
    monkeypatch.setattr(destination, "LARGE", 1000)
    monkeypatch.setattr(destination.shutil, "disk_usage", lambda _: SimpleNamespace(free=500))
    viewer.add_image(noise(50, 60), name="x" * 300)
    widget.start.click()
    (message,) = messages()
    assert "0.0 GB are free" in message
    assert not widget.task.running


def test_files_that_disappear_are_reported(qtbot, viewer, widget, gray, noise, gate, tmp_path, messages):
    viewer.add_image(noise(3, 100, 90), name="ü" * 300)  # longer than a file name can be
    widget.form.model.set_value(gray)
    widget.form.tile.setValue(80)
    widget.where.set_folder(tmp_path)
    widget.start.click()
    gate.release(2)
    qtbot.waitUntil(lambda: widget.bar.value() == 2, timeout=PATIENCE)
    (work,) = tmp_path.glob("*.partial")
    shutil.rmtree(work)
    gate.release(1000)
    finish(qtbot, widget)
    (message,) = messages()
    assert message.endswith("deleted during the run; restore the layer again")
    assert str(tmp_path) in message
    widget.start.click()
    finish(qtbot, widget)
    (result,) = viewer.layers.selection
    shutil.rmtree(result.metadata["kbnet"]["file"])
    qtbot.waitUntil(lambda: result.name.endswith("(file deleted)"), timeout=PATIENCE)
    assert messages()[-1].endswith("was deleted; restore the layer again")


def test_a_stopped_file_resumes(qtbot, viewer, widget, gray, noise, gate, tmp_path):
    stack = noise(3, 100, 90)
    viewer.add_image(stack, name="a/b")
    widget.form.model.set_value(gray)
    widget.form.tile.setValue(80)
    widget.where.set_folder(tmp_path)
    widget.start.click()
    gate.release(4)
    qtbot.waitUntil(lambda: widget.bar.value() == 4, timeout=PATIENCE)
    widget.cancel.click()
    gate.release(2)  # the current tile, and the next, which has begun meanwhile
    finish(qtbot, widget)
    done, total = viewer.layers[1].metadata["kbnet"]["tiles"]
    assert np.asarray(viewer.layers[1].data).any()
    gate.release(total - done)
    widget.start.click()
    finish(qtbot, widget)
    gate.release(100)
    whole = Restorer.from_pretrained(gray, tile=80)(stack, "ZYX")
    np.testing.assert_array_equal(np.asarray(viewer.layers["a/b, gray"].data), whole)
    assert (tmp_path / "a_b restored.zarr").is_dir()


def test_quality_is_shown(qtbot, viewer, widget, gray, noise):
    truth = np.full((3, 64, 64), 100, np.uint8)
    noisy = np.clip(truth + np.random.default_rng(0).normal(0, 20, truth.shape), 0, 255).astype(np.uint8)
    viewer.add_image(truth, name="truth")
    viewer.add_image(noisy, name="noisy")
    widget.truth.choose(viewer.layers["truth"])
    widget.form.strength.setValue(0)
    run(qtbot, widget, gray)
    from skimage.metrics import peak_signal_noise_ratio

    plane = viewer.dims.current_step[0]
    decibels = peak_signal_noise_ratio(truth[plane], noisy[plane])
    said = widget.quality.text()
    assert f"PSNR {decibels:.2f} → {decibels:.2f} dB" in said
    assert said.endswith("for the ground truth's range of 0 to 255 (in the visible area)")
    assert said.startswith("removed 0 of a noise of ")
    sigma = float(said.split()[6])
    assert 17 < sigma < 23
    assert "in pixel values" in said
    assert "SSIM" in said
    widget.truth.setCurrentIndex(0)
    widget.preview.button.click()
    finish(qtbot, widget)
    assert "PSNR" not in widget.quality.text()
    limits, values = (np.uint16(100), np.uint16(1300)), (truth[0], noisy[0], noisy[0])
    truth12, before, after = (np.linspace(*limits, 64 * 64).reshape(64, 64) * 0 + 300 + v for v in values)
    truth12[0, 0], truth12[0, 1] = limits  # a camera of 12 bits that was not filled
    said = quality.compare(before, after, truth12, layout((64, 64), "YX", 1), {}, (slice(64),) * 2)
    expected = peak_signal_noise_ratio(truth12, before, data_range=1200)
    assert f"PSNR {expected:.2f} →" in said
    assert said.endswith("for the ground truth's range of 100 to 1,300")


def test_the_residual_is_what_was_removed(qtbot, viewer, widget, color, noise):
    layer = viewer.add_image(noise(50, 60, 3), name="photo", scale=(2, 3))
    run(qtbot, widget, color)
    widget.residual.click()
    residual = viewer.layers["photo residual"]
    gone = layer.data.astype(np.float32) - viewer.layers["photo, color"].data
    np.testing.assert_allclose(residual.data, gone.mean(axis=-1), atol=1e-4)
    np.testing.assert_array_equal(residual.extent.world, layer.extent.world)


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("mine.pth: no such file", "mine.pth: no such file"),
        ("folder/mine: no such file", "folder/mine: no such file"),
        ("axes 'Q' are unknown", "Axes 'Q' are unknown"),
    ],
)
def test_a_message_is_a_sentence_but_the_name_of_a_file_is_not_changed(message, shown):
    with pytest.raises(worker.WorkError) as caught, worker.user_errors():
        raise ValueError(message)
    assert str(caught.value) == shown


def test_a_layer_that_was_edited_is_not_its_file(viewer, noise, tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", noise(3, 40, 50), photometric="minisblack")
    (layer,) = viewer.open(tmp_path / "a.tif", plugin="napari")
    path = layer.source.path
    assert matches_file(path, layer.data)
    assert matches_file(path, da.from_array(layer.data))
    layer.data[2, 39, 49] += 1
    assert not matches_file(path, layer.data)


@pytest.mark.parametrize("saved", ["picture", "stack", "nowhere"])
def test_copy_as_script_repeats_the_run(qtbot, viewer, widget, gray, noise, tmp_path, monkeypatch, saved):
    values = noise(3, 40, 50) if saved == "stack" else noise(70, 80)
    path = tmp_path / "my cells.tif"
    tifffile.imwrite(path, values, photometric="minisblack")
    if saved == "nowhere":
        viewer.add_image(values, name="my cells")
    else:
        viewer.open(path, plugin="napari")
    widget.form.halo.setValue(16)
    widget.form.strength.setValue(70)
    run(qtbot, widget, gray, tile=64)
    expected = viewer.layers[1].data
    widget.copy.click()
    text = QApplication.clipboard().text()
    monkeypatch.chdir(tmp_path)
    if saved == "nowhere":
        path.rename(tmp_path / "my_cells.tif")  # as the script says
    exec(compile(text, "script", "exec"), {"__name__": "__main__"})
    (written,) = tmp_path.glob("my?cells_restored.tif")
    np.testing.assert_array_equal(tifffile.imread(written), expected)


def test_samples_can_be_restored(qtbot, viewer, widget, gray, color):
    for key, axes in (("photograph", "YXS"), ("cells", "YX"), ("stack", "TZYX")):
        noisy = viewer.open_sample("kbnet", key)[-1]
        viewer.layers.selection = {noisy}
        assert widget.form.axes.placeholderText() == axes
        widget.form.model.set_value(color if noisy.rgb else gray)
        widget.preview.button.click()
        finish(qtbot, widget)
        assert widget.preview.layer is not None
        if key == "photograph":
            run(qtbot, widget, color)
            assert viewer.layers[f"{noisy.name}, color"].data.any()
        viewer.layers.clear()
        qtbot.wait(200)  # vispy reads freed memory if a layer is added right after clearing


def test_how_long_the_window_waits_during_a_run(qtbot, viewer, widget, gray, noise, caplog):
    viewer.add_image(noise(2, 256, 256))
    run(qtbot, widget, gray, tile=192)  # torch and the model are loaded
    ticks = []
    timer = QTimer()
    timer.timeout.connect(lambda: ticks.append((time.perf_counter(), time.thread_time())))
    timer.start(2)
    widget.start.click()
    finish(qtbot, widget)
    timer.stop()
    pauses, busy = np.diff(ticks, axis=0).T
    with caplog.at_level(logging.INFO):
        logging.getLogger("kbnet").info(
            "in a run of %.1f s the window paused for %.0f ms at most (99 %% below %.0f ms), of which it "
            "computed for %.0f ms at most",
            pauses.sum(),
            1000 * pauses.max(),
            1000 * np.percentile(pauses, 99),
            1000 * busy.max(),
        )
    assert len(ticks) > 10
