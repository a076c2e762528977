"""Files are found and paired with results, and no result can replace, contain or lie inside a source."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from kbnet_plugin.cli import main
from kbnet_plugin.inference.pairing import Job, pair
from kbnet_plugin.io import formats, write_image


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def touch(*names):
    for name in names:
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def targets(jobs):
    return {str(job.source): str(job.target) for job in jobs}


def test_a_folder_says_what_it_skips_and_recursive_includes_the_rest(monkeypatch):
    monkeypatch.setattr(formats, "_BY_SUFFIX", formats._BY_SUFFIX)
    touch("in/a.png", "in/b.jfif", "in/deep/c.tif", "in/deep/er/d.PNG", "in/notes.txt", "in/.hidden.png")
    said = []
    assert targets(pair([Path("in")], Path("out"), report=said.append)) == {
        "in/a.png": "out/a.png",
        "in/b.jfif": "out/b.jfif",
    }
    assert said == ["in: skipped 1 other file (.txt), 1 folder (--recursive includes them)"]
    found = targets(pair([Path("in")], Path("out"), recursive=True))
    assert found["in/deep/c.tif"] == "out/deep/c.tif"
    assert found["in/deep/er/d.PNG"] == "out/deep/er/d.PNG"
    assert len(found) == 4
    assert Path("out/deep/er").is_dir()


def test_a_format_whose_reader_is_missing_is_skipped_with_the_extra(monkeypatch):
    monkeypatch.setattr(formats.importlib.util, "find_spec", lambda name: None)
    touch("in/a.png", "in/b.heic", "in/c.heic", "in/d.czi")
    said = []
    assert list(targets(pair([Path("in")], Path("out"), report=said.append))) == ["in/a.png"]
    assert said == [
        "in: skipped 1 .czi (pip install 'kbnet[microscopes]'), 2 .heic (pip install 'kbnet[photos]')"
    ]


def test_results_of_formats_that_are_only_read_get_another_suffix():
    touch("in/a.heic", "in/b.webp", "in/b.png", "in/c.nef", "in/d.czi", "in/e.lsm")
    jobs = pair([Path("in")], Path("out"))
    assert targets(jobs) == {
        "in/a.heic": "out/a.png",
        "in/b.png": "out/b.png",
        "in/b.webp": "out/b.webp.png",
        "in/c.nef": "out/c.tif",
        "in/d.czi": "out/d.ome.tif",
        "in/e.lsm": "out/e.ome.tif",
    }


def store(name):
    zarr = pytest.importorskip("zarr")
    ramp = np.arange(64 * 64, dtype=np.uint16).reshape(1, 64, 64)
    group = zarr.create_group(name)
    for level in ("0", "1"):
        group.create_array(level, data=ramp)


@pytest.mark.parametrize(
    ("source", "output"),
    [
        ("img.zarr/0", "img.zarr"),  # the parent, with its other levels
        ("img.zarr/0", "img.zarr/0"),
        ("img.zarr/0", "img.zarr/0/inner.zarr"),
        ("img.zarr/0", "img.zarr/../img.zarr"),
        ("img.zarr/0", "link.zarr"),  # links to the parent
        ("link.zarr/0", "img.zarr"),
        ("img.zarr/0", "."),
    ],
)
def test_a_zarr_is_never_replaced_by_a_result_from_inside_it(source, output, capsys):
    store("img.zarr")
    Path("link.zarr").symlink_to("img.zarr")
    before = {p: p.read_bytes() for p in Path("img.zarr").rglob("*") if p.is_file()}
    arguments = ["restore", source, "-o", output, "--axes", "CYX", "--overwrite", "--strength", "0"]
    status = main([*arguments, "--device", "cpu"])
    assert {p: p.read_bytes() for p in Path("img.zarr").rglob("*") if p.is_file()} == before
    if output != ".":  # a result beside the store is no overlap
        assert status == 2
        assert "choose another output" in capsys.readouterr().err


def test_no_result_replaces_a_source_through_links_or_other_sources():
    write_image("a.png", np.zeros((20, 20), np.uint8))
    os.link("a.png", "hard.png")
    Path("soft.png").symlink_to("a.png")
    touch("in/d.png")
    for output in ("a.png", "hard.png", "soft.png", "../" + Path.cwd().name + "/a.png"):
        with pytest.raises(ValueError, match="would be replaced by a result; choose another output"):
            pair([Path("a.png")], Path(output))
    with pytest.raises(ValueError, match=r"in/d\.png: would be replaced"):
        pair([Path("a.png"), Path("in/d.png")], Path("in"))
    assert pair([Path("a.png")], Path("new.png")) == [Job(Path("a.png"), Path("new.png"))]
