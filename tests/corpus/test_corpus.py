"""The script that checks a corpus: its verdicts, and that it notices faults."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms

pytest.importorskip("pyvips", reason="the corpus is checked by libvips")
pytest.importorskip("ome_types", reason="the corpus is checked by ome-types")

HERE = Path(__file__).parent
SCRIPT = HERE / "check_corpus.py"
RAMP = np.tile(np.arange(0, 240, 4, dtype=np.uint8), (40, 1))
COLOUR = np.dstack([RAMP, RAMP[:, ::-1], np.full_like(RAMP, 90)])
ICC = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@pytest.fixture
def compare(monkeypatch):
    """`comparing.compare`, imported as the script does."""
    monkeypatch.syspath_prepend(str(HERE))
    for name in ("reading", "comparing"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    spec = importlib.util.spec_from_file_location("comparing", HERE / "comparing.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.compare


def _run(folder, work, *options):
    command = [sys.executable, str(SCRIPT), str(folder), "-o", str(work), "--json", str(work) + ".json"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    assert not done.stderr, done.stderr
    return done, {v["file"]: v for v in json.loads(Path(str(work) + ".json").read_text())}


def test_verdicts(tmp_path):
    pictures = tmp_path / "pictures"
    (pictures / "inside").mkdir(parents=True)
    Image.fromarray(RAMP).save(pictures / "gray.png", dpi=(300, 300))
    Image.fromarray(COLOUR).save(pictures / "inside" / "photo.jpg", quality=95, icc_profile=ICC)
    tifffile.imwrite(
        pictures / "deep.tif", COLOUR.astype(np.uint16) * 257, photometric="rgb", resolution=(300, 300, 2)
    )
    tifffile.imwrite(pictures / "stack.tif", np.stack([RAMP] * 3), imagej=True, metadata={"axes": "ZYX"})
    whole = (pictures / "gray.png").read_bytes()
    (pictures / "cut.png").write_bytes(whole[: len(whole) // 2])
    (pictures / "empty.tif").touch()
    (pictures / "notes.txt").write_text("no picture")
    done, verdicts = _run(pictures, tmp_path / "work")
    for name in ("gray.png", "inside/photo.jpg", "deep.tif"):
        assert verdicts[name]["outcome"] == "right", verdicts[name]
    for name in ("cut.png", "empty.tif", "notes.txt"):
        assert verdicts[name]["outcome"] == "refused", verdicts[name]
    assert done.returncode == int(verdicts["stack.tif"]["outcome"] == "wrong")
    assert "refused        3" in done.stdout
    assert "FILE: unknown image type '.txt'" in done.stdout


def test_a_crash_and_a_long_task_end_only_themselves(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "import os, sys, time\nfrom pathlib import Path\n"
        f"sys.path.insert(0, {str(HERE)!r})\nimport check_corpus\n"
        "def task(what):\n"
        "    if what == 'crash': os.abort()\n"
        "    if what == 'sleep': time.sleep(60)\n"
        "    if what == 'raise': raise KeyError('odd')\n"
        "    return what\n"
        "if __name__ == '__main__':\n"
        "    worker = check_corpus.Worker(task, Path('log'), 1)\n"
        "    for what in ('a', 'crash', 'sleep', 'raise', 'b'):\n"
        "        print(what, *worker.do(what))\n"
        "    worker.stop()\n"
    )
    done = subprocess.run(
        [sys.executable, str(program)], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    assert "a done a\n" in done.stdout
    assert "crash crashed SIGABRT" in done.stdout
    assert "sleep too long" in done.stdout
    assert "KeyError: 'odd'" in done.stdout
    assert done.stdout.endswith("b done b\n")


def _save(path, array, **options):
    """Write a TIFF that keeps everything that the source below has."""
    kept = {"resolution": (300, 300), "resolutionunit": "INCH", "iccprofile": ICC, "metadata": None}
    tifffile.imwrite(path, array, photometric="rgb", **kept | options)
    return path


FALSIFIED = {
    "inverted": (lambda p: _save(p, ~COLOUR), "looks different (inverted)"),
    "turned": (lambda p: _save(p, COLOUR[:, ::-1]), "looks different (turned)"),
    "swapped colours": (lambda p: _save(p, COLOUR[..., ::-1]), "looks different"),
    "one value": (lambda p: _save(p, COLOUR + (np.arange(COLOUR.size) == 77).reshape(COLOUR.shape)), "1 of"),
    "brighter": (lambda p: _save(p, COLOUR + 6), "values differ without a word"),
    "no profile": (lambda p: _save(p, COLOUR, iccprofile=None), "the colour profile is lost"),
    "another unit": (lambda p: _save(p, COLOUR, resolutionunit="NONE"), "the unit of the resolution"),
    "no resolution": (lambda p: _save(p, COLOUR, resolution=None), "resolution"),
    "cropped": (lambda p: _save(p, COLOUR[:30]), "pictures 1 of 60 x 30, the source has 1 of 60 x 40"),
    "twice": (lambda p: _save(p, np.stack([COLOUR] * 2)), "pictures 2 of 60 x 40"),
    "small tiles": (lambda p: _save(p, COLOUR, tile=(512, 512)), "libvips cannot open it"),
    "no TIFF": (lambda p: p.write_bytes(b"II*\0" + bytes(40)), "tifffile cannot open it"),
}  # fmt: skip


@pytest.mark.parametrize("falsify", FALSIFIED)
def test_faults_are_noticed(falsify, compare, tmp_path):
    source = _save(tmp_path / "source.tif", COLOUR)
    assert compare(source, _save(tmp_path / "right.tif", COLOUR, compression="zlib"), "") == []
    change, expected = FALSIFIED[falsify]
    change(tmp_path / "result.tif")
    assert any(expected in fault for fault in compare(source, tmp_path / "result.tif", ""))


def test_fewer_bits_and_lost_ome_are_noticed(compare, tmp_path):
    deep = RAMP.astype(np.uint16) * 257
    for name, options in {"source": {"PhysicalSizeX": 0.065}, "same": {"PhysicalSizeX": 0.065}}.items():
        tifffile.imwrite(
            tmp_path / f"{name}.ome.tif", np.stack([deep] * 2), metadata={"axes": "ZYX"} | options
        )
    tifffile.imwrite(tmp_path / "plain.tif", np.stack([RAMP] * 2))
    assert compare(tmp_path / "source.ome.tif", tmp_path / "same.ome.tif", "") == []
    faults = compare(tmp_path / "source.ome.tif", tmp_path / "plain.tif", "")
    assert "8 bits, the source has 16" in faults
    assert "its OME-XML is lost" in faults


def _zarr_image(path, array, scale):
    zarr = pytest.importorskip("zarr")
    axes = [{"name": name, "type": "space", "unit": "micrometer"} for name in "zyx"]
    transformations = [{"type": "scale", "scale": scale}, {"type": "translation", "translation": [5, 1, 2]}]
    image = {"axes": axes, "datasets": [{"path": "0", "coordinateTransformations": transformations}]}
    group = zarr.open_group(path, mode="w", zarr_format=3)
    group.create_array("0", data=array, dimension_names=["z", "y", "x"])
    group.attrs["ome"] = {"version": "0.5", "multiscales": [image]}
    return path


def test_faults_of_ome_zarr_are_noticed(compare, tmp_path):
    pytest.importorskip("ome_zarr_models", reason="OME-Zarr is checked by ome-zarr-models")
    stack = np.stack([RAMP, RAMP + 3])
    source = _zarr_image(tmp_path / "source.zarr", stack, [2, 0.1, 0.1])
    assert compare(source, _zarr_image(tmp_path / "right.zarr", stack, [2, 0.1, 0.1]), "") == []
    faults = compare(source, _zarr_image(tmp_path / "wrong.zarr", stack[::-1], [1, 0.1, 0.1]), "")
    assert any("values differ without a word" in fault for fault in faults)
    assert any("scales or axes" in fault for fault in faults)
    faults = compare(source, _zarr_image(tmp_path / "invalid.zarr", stack, [2, 0.1]), "")
    assert any("ome-zarr-models cannot open it" in fault for fault in faults)


def test_invalid_ome_xml_is_noticed(compare, tmp_path):
    xml = tifffile.OmeXml()
    xml.addimage("uint8", RAMP.shape, (1, 1, 1, *RAMP.shape, 1), axes="YX", PhysicalSizeX=1)
    text = xml.tostring().replace('PhysicalSizeX="1', 'PhysicalSizeXUnit="microns" PhysicalSizeX="1')
    tifffile.imwrite(tmp_path / "source.tif", RAMP)
    tifffile.imwrite(tmp_path / "result.ome.tif", RAMP, description=text, metadata=None)
    assert any(
        "OME-XML is not valid" in f for f in compare(tmp_path / "source.tif", tmp_path / "result.ome.tif", "")
    )


def test_an_announced_conversion_may_change_values_but_not_looks(compare, tmp_path):
    levels = np.arange(0, 240, 4, dtype=np.uint8)
    image = Image.fromarray(np.tile(np.arange(60, dtype=np.uint8), (40, 1)), "P")
    image.putpalette(np.repeat(levels, 3).tobytes())
    image.save(tmp_path / "source.tif")
    tifffile.imwrite(tmp_path / "right.tif", np.dstack([RAMP] * 3), photometric="rgb", metadata=None)
    tifffile.imwrite(tmp_path / "indices.tif", np.asarray(image), metadata=None)
    said = "palette converted to RGB"
    assert compare(tmp_path / "source.tif", tmp_path / "right.tif", said) == []
    assert any(
        "looks different" in f for f in compare(tmp_path / "source.tif", tmp_path / "indices.tif", said)
    )
