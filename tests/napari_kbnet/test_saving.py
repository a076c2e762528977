"""Results saved by napari's own menu and opened again: what a layer says about itself is kept."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile
import zarr

from kbnet_plugin.io import open_image
from napari_kbnet import reading
from napari_kbnet.layers import RECORD
from napari_kbnet.worker import WorkError

PLACED = {
    "scale": (2, 0.25, 0.5),
    "translate": (0, 10, 20),
    "units": ("um", "um", "um"),
    "axis_labels": ("z", "y", "x"),
    "contrast_limits": (20, 200),
}


@pytest.mark.parametrize("name", ["a.ome.tif", "a.ome.zarr"])
def test_a_result_is_saved_and_opened_with_all_that_it_says(
    viewer, restore_widget, finish, gray, noise, tmp_path, name
):
    viewer.add_image(noise(2, 40, 50), name="cells", colormap="magenta", **PLACED)
    restore_widget.form.model.set_value(gray)
    restore_widget.start.click()
    finish(restore_widget)
    (result,) = viewer.layers.selection  # what is saved by "Save Selected Layers"
    path = tmp_path / name
    assert viewer.layers.save(str(path), selected=True) == [str(path)]
    viewer.layers.clear()
    (opened,) = viewer.open(path, plugin="kbnet")
    np.testing.assert_array_equal(np.asarray(opened.data), result.data)
    for key in ("scale", "translate"):
        np.testing.assert_allclose(getattr(opened, key), PLACED[key])
    for key in ("units", "axis_labels", "contrast_limits"):
        assert getattr(opened, key) == getattr(result, key), key
    assert opened.colormap.colors[-1][:3].tolist() == [1, 0, 1]
    record = opened.metadata[RECORD]
    assert record["weights"] == result.metadata[RECORD]["weights"]
    assert record["layer"] == "cells"
    if name.endswith(".tif"):
        with tifffile.TiffFile(path) as file:
            xml = file.ome_metadata
            assert file.series[0].axes == "ZYX"
        assert 'PhysicalSizeX="0.5"' in xml
        assert result.metadata[RECORD]["weights"] in xml
    else:
        attributes = zarr.open_group(path, mode="r").attrs["ome"]
        assert [axis["unit"] for axis in attributes["multiscales"][0]["axes"]] == ["micrometer"] * 3
        assert attributes["omero"]["channels"][0]["color"] == "FF00FF"


@pytest.mark.parametrize("name", ["a.ome.tif", "a.ome.zarr"])
def test_layers_are_saved_as_channels(viewer, noise, tmp_path, name):
    pytest.importorskip("ome_zarr")
    stack = noise(2, 3, 40, 50).astype(np.uint16)
    stack[1] += 1000
    channels = viewer.add_image(stack, channel_axis=0, name=["DAPI", "GFP"], **PLACED)
    channels[1].contrast_limits = 900, 1200
    path = tmp_path / name
    viewer.layers.save(str(path), plugin="kbnet")
    viewer.layers.clear()
    opened = viewer.open(path, plugin="kbnet")
    assert [layer.name for layer in opened] == ["DAPI", "GFP"]
    for before, after, values in zip(channels, opened, stack, strict=True):
        np.testing.assert_array_equal(np.asarray(after.data), values)
        assert after.contrast_limits == before.contrast_limits
        np.testing.assert_allclose(after.colormap.colors[-1], before.colormap.colors[-1], atol=0.01)
        assert after.blending == before.blending
    with open_image(path) as image:
        assert image.metadata.channels == ("DAPI", "GFP")
    if name.endswith(".zarr"):
        from ome_zarr.io import parse_url
        from ome_zarr.reader import Reader

        (node, *_) = Reader(parse_url(path))()
        assert node.metadata["channel_names"] == ["DAPI", "GFP"]
        assert node.data[0].shape == (2, 3, 40, 50)


def test_large_files_are_read_as_they_are_displayed(viewer, noise, tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "LARGE", 1000)
    photograph = viewer.add_image(noise(60, 70, 3), rgb=True, name="photo")
    for name in ("a.ome.tif", "a.ome.zarr"):
        viewer.layers.save(str(tmp_path / name), plugin="kbnet")
        (opened,) = viewer.open(tmp_path / name, plugin="kbnet")
        assert opened.rgb
        assert type(opened.data).__module__.startswith("dask")
        np.testing.assert_array_equal(np.asarray(opened.data), photograph.data)
        viewer.layers.remove(opened)


def test_what_does_not_fit_together_is_refused_in_one_line(viewer, noise, tmp_path):
    viewer.add_image(noise(40, 50), name="one")
    viewer.add_image(noise(40, 60), name="two")
    with pytest.raises(WorkError, match=r"one, two do not fit together as channels; save each by itself$"):
        viewer.layers.save(str(tmp_path / "a.ome.tif"), plugin="kbnet")
    assert not list(tmp_path.iterdir())
