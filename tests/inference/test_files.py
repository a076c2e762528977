"""Many files: pairing, restoring, keeping existing targets, and stopping."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch

from kbnet_plugin import Restorer
from kbnet_plugin.inference import files
from kbnet_plugin.inference.automatic import make_chooser
from kbnet_plugin.inference.files import plan_files, restore_files
from kbnet_plugin.inference.pairing import Job, pair
from kbnet_plugin.io import open_images, read_image, write_image
from kbnet_plugin.io.images import working_folder


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def picture(path, shape=(20, 30, 3)):
    path.parent.mkdir(exist_ok=True)
    array = np.random.default_rng(0).integers(0, 255, shape, np.uint8)
    write_image(path, array)
    return array


def stack(path, shape=(3, 40, 50)):
    path.parent.mkdir(exist_ok=True)
    array = np.random.default_rng(0).integers(0, 65535, shape, np.uint16)
    tifffile.imwrite(path, array, metadata={"axes": "ZYX"}, photometric="minisblack")
    return array


def seen(steps):
    return [(step.job.source.name, step.state, step.done, step.total) for step in steps]


def test_a_folder_is_paired_with_a_folder_that_is_created_only_on_request():
    for name in ("b.png", "a.tif", ".hidden.png"):
        picture(Path("in") / name)
    Path("in/notes.txt").touch()
    jobs = [Job(Path("in/a.tif"), Path("out/a.tif")), Job(Path("in/b.png"), Path("out/b.png"))]
    assert pair([Path("in")], Path("out"), make=False) == jobs
    assert not Path("out").exists()
    assert pair([Path("in/*.*[gf]")], Path("out")) == jobs
    assert Path("out").is_dir()


def test_every_job_starts_advances_tile_by_tile_and_ends(checkpoint):
    images = {name: picture(Path("in") / name) for name in ("a.png", "b.png")}
    images["c.tif"] = stack(Path("in/c.tif"))
    steps = list(restore_files(make_chooser(checkpoint, device="cpu"), pair([Path("in")], Path("out"))))
    assert seen(steps) == [
        *(("a.png", "running", 0, 0), ("a.png", "running", 1, 1), ("a.png", "restored", 1, 1)),
        *(("b.png", "running", 0, 0), ("b.png", "running", 1, 1), ("b.png", "restored", 1, 1)),
        ("c.tif", "running", 0, 0),
        *(("c.tif", "running", n, 3) for n in (1, 2, 3)),
        ("c.tif", "restored", 3, 3),
    ]
    assert {step.size for step in steps if step.state == "restored"} == {(20, 30), None}
    restorer = Restorer.from_pretrained(checkpoint, device="cpu")
    assert np.array_equal(read_image("out/b.png")[0], restorer(images["b.png"]))
    assert np.array_equal(tifffile.imread("out/c.tif"), restorer(images["c.tif"], "ZYX"))


def test_what_exists_is_kept_and_what_fails_carries_its_error(checkpoint):
    for name in ("a.png", "b.png", "c.png"):
        picture(Path("in") / name)
    Path("in/a.png").write_bytes(Path("in/a.png").read_bytes()[:200])
    old = picture(Path("out/b.png"), (5, 5))
    choose, jobs = make_chooser(checkpoint, device="cpu"), pair([Path("in")], Path("out"))
    steps = list(restore_files(choose, jobs))
    assert {step.job.source.name: step.state for step in steps} == {
        "a.png": "failed",
        "b.png": "kept",
        "c.png": "restored",
    }
    (error,) = (step.error for step in steps if step.error)
    assert "in/a.png: damaged or incomplete PNG" in str(error)
    assert np.array_equal(read_image("out/b.png")[0], old)
    assert [step.state for step in restore_files(choose, jobs[1:2], overwrite=True)][-1] == "restored"
    assert read_image("out/b.png")[0].shape == (20, 30, 3)


OUT_OF_MEMORY = [
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nMore of it."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:118] . DefaultCPUAllocator: can't allocate memory"),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda e: type(e).__name__)
def test_a_picture_that_does_not_fit_in_memory_does_not_stop_the_others(checkpoint, monkeypatch, error):
    for name in ("a.png", "b.png", "c.png"):
        picture(Path("in") / name)
    monkeypatch.setattr(
        files, "open_images", lambda path: open_images(path) if path.name != "b.png" else fail()
    )

    def fail():
        raise error

    steps = list(restore_files(make_chooser(checkpoint, device="cpu"), pair([Path("in")], Path("out"))))
    ends = {step.job.source.name: step for step in steps if step.state != "running"}
    assert [step.state for step in ends.values()] == ["restored", "failed", "restored"]
    said = "in/b.png: out of memory; free some, or choose a smaller tile or another device"
    assert str(ends["b.png"].error) == said
    assert ends["b.png"].error.__traceback__ is ends["b.png"].error.__context__ is None


def test_other_errors_are_not_reported_as_a_lack_of_memory(checkpoint, monkeypatch):
    picture(Path("in/a.png"))

    def fail(path):
        raise RuntimeError("a fault of the program")

    monkeypatch.setattr(files, "open_images", fail)
    with pytest.raises(RuntimeError, match="a fault of the program"):
        list(restore_files(make_chooser(checkpoint, device="cpu"), pair([Path("in")], Path("out"))))


@pytest.mark.parametrize("again", [{"resume": True}, {"overwrite": True}], ids=lambda a: next(iter(a)))
def test_a_stop_between_tiles_leaves_no_partial_file_and_a_stack_can_be_resumed(checkpoint, again):
    picture(Path("in/a.png"), (100, 100, 3))
    image = stack(Path("in/b.tif"))
    choose = make_chooser(checkpoint, device="cpu", tile=80, halo=8)
    jobs = pair([Path("in")], Path("out"))
    for job in jobs:
        steps = restore_files(choose, [job])
        assert [next(steps).done for _ in range(3)] == [0, 1, 2]
        steps.close()
    assert [path.name for path in Path("out").iterdir()] == ["b.tif.partial"]
    (error,) = (step.error for step in restore_files(choose, jobs[1:]) if step.error)
    assert "an unfinished result" in str(error)
    computed = []
    restorer = choose(image, "ZYX").restorer
    engine = restorer.engine
    solve, engine.solve = engine.solve, lambda *step: computed.append(step) or solve(*step)
    steps = list(restore_files(choose, jobs[1:], **again))
    assert seen(steps)[-1] == ("b.tif", "restored", 3, 3)
    assert len(computed) == (1 if "resume" in again else 3)
    assert not working_folder(jobs[1].target).exists()
    assert np.array_equal(tifffile.imread("out/b.tif"), restorer(image, "ZYX"))


def test_without_a_model_each_picture_has_its_own():
    picture(Path("in/colour.png"))
    picture(Path("in/gray.png"), (20, 30))
    choose, jobs = make_chooser(device="cpu"), pair([Path("in")], Path("out"))
    named = {"colour.png": "denoise-color", "gray.png": "denoise-gray"}
    ends = [step for step in restore_files(choose, jobs) if step.state == "restored"]
    assert {step.job.source.name: step.model for step in ends} == named
    planned = {job.source.name: (chosen.model, plan.axes) for job, chosen, plan in plan_files(choose, jobs)}
    assert planned == {"colour.png": ("denoise-color", "YXS"), "gray.png": ("denoise-gray", "YX")}
