"""The `kbnet` command: its effects, output and exit status."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch

import kbnet_plugin
from kbnet_plugin import Restorer, __version__, errors, save_network, zoo
from kbnet_plugin.cli import main
from kbnet_plugin.inference import files
from kbnet_plugin.io import images, read_image, write_image
from kbnet_plugin.selfsup.config import can_train

ROOT = Path(kbnet_plugin.__file__).parents[1]


def python(*arguments, **options):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env=environment, check=False, **options
    )


def picture(path, shape=(20, 30, 3), dtype=np.uint8):
    array = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, dtype)
    write_image(path, array)
    return array


@pytest.fixture
def run(capsys, checkpoint, monkeypatch, tmp_path):
    """Run the command next to `checkpoint`; return status, standard output and standard error."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        status = main([str(a) for a in arguments])
        return status, *capsys.readouterr()

    return call


def one_line(text):
    return text.startswith("kbnet") and text.count("\n") == 1 and text.endswith("\n")


@pytest.mark.parametrize(
    ("name", "shape", "dtype"),
    [
        ("a.png", (20, 30, 3), np.uint8),
        ("a.png", (20, 30, 4), np.uint16),
        ("a.png", (20, 30), np.uint16),
        ("a.tif", (20, 30, 2), np.uint16),
        ("a.tiff", (20, 30, 3), np.int16),
    ],
)
def test_a_file_is_restored_to_a_file(run, checkpoint, name, shape, dtype):
    array = picture(name, shape, dtype)
    status, out, err = run("restore", name, "-o", f"new-{name}", "--model", checkpoint, "--device", "cpu")
    assert (status, err) == (0, "")
    assert f"new-{name}  30 x 20" in out
    found, _ = read_image(f"new-{name}")
    assert found.dtype == dtype
    assert np.array_equal(found, Restorer.from_pretrained(checkpoint, device="cpu")(array))


def test_folders_and_files_are_restored_to_a_folder(run, tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("in/b.png", "in/a.jpg", "c.tif"):
        picture(name)
    (tmp_path / "in" / "notes.txt").touch()
    (tmp_path / "in" / ".hidden.png").touch()
    status, out, err = run("restore", "in", "c.tif", "-o", "deep/out", "--model", "tiny.pth")
    assert (status, err) == (0, "")
    assert sorted(p.name for p in Path("deep/out").iterdir()) == ["a.jpg", "b.png", "c.tif"]
    assert out.startswith("in: skipped 1 other file (.txt)\n")
    assert "[2/3] deep/out/b.png" in out
    assert out.endswith("3 restored, 0 kept, 0 failed\n")


def test_existing_files_are_kept_and_reported_unless_overwritten(run, tmp_path):
    (tmp_path / "out").mkdir()
    old = picture("out/a.png", (5, 5))
    for name in ("a.png", "b.png"):
        picture(name)
    status, out, _ = run("restore", "a.png", "b.png", "-o", "out", "--model", "tiny.pth")
    assert status == 0
    assert "out/a.png kept, as it exists; --overwrite replaces it" in out
    assert out.endswith("1 restored, 1 kept, 0 failed\n")
    assert np.array_equal(read_image("out/a.png")[0], old)
    status, out, _ = run("restore", "a.png", "-o", "out/a.png", "--model", "tiny.pth", "--overwrite")
    assert status == 0
    assert read_image("out/a.png")[0].shape == (20, 30, 3)


def test_a_bad_picture_among_good_ones_is_named_and_the_others_done(run, tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("a", "b", "c"):
        picture(f"in/{name}.png")
    content = Path("in/b.png").read_bytes()
    Path("in/b.png").write_bytes(content[: len(content) // 2])
    status, out, err = run("restore", "in", "-o", "out", "--model", "tiny.pth")
    assert status == 1
    assert one_line(err)
    assert "in/b.png: damaged or incomplete PNG" in err
    assert sorted(p.name for p in Path("out").iterdir()) == ["a.png", "c.png"]
    assert out.endswith("2 restored, 0 kept, 1 failed\n")


def test_a_lack_of_memory_is_one_line_and_the_others_are_done(run, tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    for name in ("in/a.png", "in/b.png"):
        picture(name)
    read = files.open_images

    def scarce(path):
        if path.name == "a.png":
            raise MemoryError
        return read(path)

    monkeypatch.setattr(files, "open_images", scarce)
    options = ("--model", "tiny.pth", "--device", "cpu")
    status, out, err = run("restore", "in", "-o", "out", *options)
    assert status == 1
    assert one_line(err)
    assert "in/a.png: out of memory; free some" in err
    assert "1 restored, 0 kept, 1 failed" in out
    status, out, err = run("restore", "in/a.png", "-o", "c.png", *options)
    assert (status, out) == (2, "")
    assert one_line(err)
    assert "in/a.png: out of memory; free some" in err


def test_unsuitable_channels_are_named(run, tiny_s, tmp_path):
    save_network(tiny_s(img_channel=5), tmp_path / "five.pth")
    picture("a.png")
    status, _, err = run("restore", "a.png", "-o", "b.png", "--model", "five.pth", "--axes", "YXS")
    assert status == 2
    assert err.startswith("kbnet: a.png: the model takes pictures of 5 channels, not 3 channels; convert")
    assert one_line(err)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ("", "the following arguments are required: COMMAND; see kbnet --help"),
        ("polish a.png", "invalid choice: 'polish'"),
        ("restore -o b.png --model tiny.pth", "required: IN"),
        ("restore a.png --model tiny.pth", "required: -o/--output"),
        (
            "restore a.png -o b.png --model denoise-colour",
            "no model or file is called 'denoise-colour'; did you mean ",
        ),
        (
            "models denoise-colour",
            "no model or file is called 'denoise-colour'; did you mean 'denoise-color'?",
        ),
        ("restore a.png -o b.png --axes SYX", "a.png: the model takes RGB or gray pictures, not 20 channels"),
        ("restore a.png -o b.png --model nowhere.pth", "nowhere.pth: no such file"),
        ("restore a.png -o b.png --model notes.txt", "notes.txt: unknown kind of checkpoint"),
        ("restore a.png -o b.png --model half.pth", "half.pth: truncated or not a PyTorch checkpoint"),
        ("restore a.png -o b.png --model other.pth", "other.pth: weights of neither KBNet_s nor KBNet_l"),
        ("restore a.png -o b.png --model tiny.pth --device abacus", "device 'abacus' is not available"),
        ("restore nowhere.png -o b.png --model tiny.pth", "nowhere.png: no such file or folder"),
        ("restore empty -o out --model tiny.pth", "empty: no pictures in this folder"),
        ("restore notes.txt -o b.png --model tiny.pth", "notes.txt: unknown image type"),
        ("restore half.png -o b.png --model tiny.pth", "half.png: damaged or incomplete PNG"),
        (
            "restore jpeg.tif -o b.png --model tiny.pth",
            "jpeg.tif: a JPEG by its content but a TIFF by its name",
        ),
        ("restore a.png -o b.gif --model tiny.pth", "b.gif: unknown image type"),
        ("restore a.png -o nowhere/b.png --model tiny.pth", "nowhere: no such folder to write b.png to"),
        ("restore a.png -o a.png --model tiny.pth --overwrite", "a.png: would be replaced by a result"),
        ("restore a.png -o . --model tiny.pth", "a.png: would be replaced by a result"),
        ("restore a.png sub/a.png -o out --model tiny.pth", "would both go to out/a.png"),
        ("restore a.png deep.tif -o b.png --model tiny.pth", "b.png: not a folder, and several pictures"),
        ("restore sub -o a.png --model tiny.pth", "a.png: not a folder, and several pictures need one"),
        ("restore deep.tif -o b.jpg --model tiny.pth", "b.jpg: JPEG cannot store uint16"),
        ("restore a.png -o b.png --model tiny.pth --tile 9", "tile must exceed twice the halo"),
        ("restore a.png -o b.png --model tiny.pth --range 9,1", "range must run from a lower to a higher"),
        (
            "restore a.png -o b.png --model tiny.pth --range wide",
            "range must be 'auto', 'dtype', 'percentile' or",
        ),
        (
            "restore a.png -o b.png --model tiny.pth --axes YX",
            "a.png: axes 'YX' name 2 dimensions, but the array has 3",
        ),
        ("restore a.png -o b.png --model tiny.pth --precision int8", "invalid choice: 'int8'"),
        ("restore jpeg.tif -o b.zarr --model tiny.pth", "jpeg.tif: a JPEG by its content but a TIFF"),
        ("info nowhere.pth", "nowhere.pth: no such file"),
        ("info half.pth", "half.pth: truncated"),
    ],
)
def test_bad_input_is_one_line_and_status_2_and_nothing_is_written(run, tmp_path, arguments, named):
    for folder in ("empty", "sub"):
        (tmp_path / folder).mkdir()
    Path("notes.txt").touch()
    for name in ("a.png", "sub/a.png", "half.png", "jpeg.jpg"):
        picture(name)
    picture("deep.tif", dtype=np.uint16)
    Path("jpeg.jpg").rename("jpeg.tif")
    for name in ("half.png", "half.pth"):
        whole = Path(name.replace("half.pth", "tiny.pth")).read_bytes()
        Path(name).write_bytes(whole[: len(whole) // 2])
    torch.save(torch.nn.Linear(2, 2).state_dict(), "other.pth")
    before = {p: p.is_file() and p.read_bytes() for p in tmp_path.rglob("*")}
    status, out, err = run(*arguments.split())
    assert status == 2
    assert out == ""
    assert one_line(err)
    assert named in err
    after = {p: p.is_file() and p.read_bytes() for p in tmp_path.rglob("*") if p.name != "out"}
    assert after == before


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["restore", "", "-o", "b.png"], "argument IN: must not be empty"),
        (["restore", "a.png", "-o", ""], "argument -o/--output: must not be empty"),
        (["restore", "a.png", "-o", "b.png", "--model", ""], "argument --model: must not be empty"),
        (["restore", "a.png", "-o", "b.png", "--axes", ""], "argument --axes: must not be empty"),
        (["restore", "a.png", "-o", "b.png", "--scheduler", ""], "argument --scheduler: must not be empty"),
        (["inspect", ""], "argument FILE: must not be empty"),
        (["info", ""], "argument MODEL: must not be empty"),
        (["models", ""], "argument MODEL: must not be empty"),
        (["export", "", "-o", "x.pth"], "argument MODEL: must not be empty"),
        (["fit", "", "--name", "mine"], "argument STACK: must not be empty"),
        (["fit", "a.png", "--name", ""], "'' cannot name a model"),
        (["restore", "a\0.png", "-o", "b.png"], r"'a\x00.png' contains a null character"),
        (["restore", "a.png", "-o", "b" * 300], "file name too long"),
        (["restore", "a" * 300 + ".png", "-o", "b.png"], "file name too long"),
        (["restore", "a.png", "-o", "b.png", "--model", "c" * 300], f"{'c' * 300}: file name too long"),
    ],
)
def test_a_name_that_no_file_can_have_is_refused(run, arguments, named):
    picture("a.png")
    before = sorted(Path().iterdir())
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    assert one_line(err)
    assert named in err
    assert sorted(Path().iterdir()) == before


@pytest.mark.skipif(not can_train(), reason="the extra train is not installed")
def test_an_empty_folder_for_crops_is_refused(run):
    status, out, err = run("prepare", "gaussian", "in", "")
    assert (status, out) == (2, "")
    assert err == "basicsr: argument DST: must not be empty (see basicsr prepare --help)\n"


def test_errors_of_the_system_name_the_file_first():
    full = OSError(28, "No space left on device", "x.pth")
    assert errors.one_line(full) == "x.pth: no space left on device"
    assert errors.one_line(OSError("x.pth: damaged")) == "x.pth: damaged"
    line = errors.one_line(OSError(36, "File name too long", "x" * 1000), 100)
    assert len(line) <= 100
    assert line.startswith("xxx")
    assert line.endswith("x: file name too long")


@pytest.mark.parametrize("arguments", [["--range", "-5,300"], ["--range=-5,300"], ["--range", "-.5e1,3e2"]])
def test_a_range_may_begin_with_a_negative_number(run, checkpoint, arguments):
    array = picture("a.png")
    status, _, err = run("restore", "a.png", "-o", "b.png", "--model", "tiny.pth", *arguments)
    assert (status, err) == (0, "")
    assert np.array_equal(
        read_image("b.png")[0], Restorer.from_pretrained(checkpoint, range=(-5, 300))(array)
    )


def test_a_negative_setting_is_no_unknown_option(run):
    err = run("restore", "a.png", "-o", "b.png", "--decorrelate", "-2,5")[2]
    assert "'-2,5' is not N,SIGMA or no" in err


@pytest.mark.parametrize("device", ["meta", "cuda:99", "cpu:3", "hpu", "opengl", "mkldnn", "", "abacus"])
def test_a_device_that_cannot_compute_is_refused_with_those_that_can(run, device):
    picture("a.png")
    status, out, err = run("restore", "a.png", "-o", "b.png", "--model", "tiny.pth", "--device", device)
    assert (status, out) == (2, "")
    assert one_line(err)
    assert f"device {device!r} is not available on this machine; use auto, cpu" in err


def stack(path, shape=(3, 40, 50)):
    array = np.random.default_rng(0).integers(0, 65535, shape, np.uint16)
    tifffile.imwrite(path, array, metadata={"axes": "ZYX"}, photometric="minisblack")
    return array


def test_a_stack_is_restored_and_every_option_reaches_the_restorer(run, checkpoint):
    pytest.importorskip("zarr")
    array = stack("a.tif")
    options = "--tile 40 --halo 8 --batch 2 --range 10,60000 --strength 0.5 --self-ensemble --window 16"
    options += " --pooling local --precision float32"
    status, out, err = run("restore", "a.tif", "-o", "b.tif", "--model", "tiny.pth", *options.split())
    assert (status, err) == (0, "")
    assert "b.tif  6 tiles, " in out
    settings = {
        "tile": 40,
        "halo": 8,
        "batch": 2,
        "range": (10, 60000),
        "strength": 0.5,
        "self_ensemble": True,
    }
    restorer = Restorer.from_pretrained(checkpoint, **settings, window=16, pooling="local")
    assert np.array_equal(tifffile.imread("b.tif"), restorer(array, "ZYX"))


def test_axes_named_by_the_user_replace_those_of_the_file(run, checkpoint):
    pytest.importorskip("zarr")
    array = stack("a.tif")
    assert run("restore", "a.tif", "-o", "b.tif", "--model", "tiny.pth", "--axes", "SYX")[0] == 0
    expected = Restorer.from_pretrained(checkpoint)(array, "SYX")
    assert np.array_equal(np.moveaxis(tifffile.imread("b.tif"), -1, 0), expected)


def test_patterns_are_expanded(run):
    for name in ("a1.png", "a2.png", "b.png"):
        picture(name)
    assert run("restore", "a*.png", "-o", "out", "--model", "tiny.pth")[0] == 0
    assert sorted(p.name for p in Path("out").iterdir()) == ["a1.png", "a2.png"]
    assert "x*.png: no such file" in run("restore", "x*.png", "-o", "out", "--model", "tiny.pth")[2]


def test_a_plan_is_printed_and_nothing_written(run, tmp_path):
    pytest.importorskip("zarr")
    stack("a.tif")
    picture("b.png")
    before = sorted(tmp_path.iterdir())
    status, out, err = run("restore", "a.tif", "b.png", "-o", "out", "--model", "tiny.pth", "--plan")
    assert (status, err) == (0, "")
    assert "axes    ZYX (3, 40, 50)" in out
    assert "tiles   3 of at most 40 x 50, halo 40, in 3 planes" in out
    assert "axes    YXS (20, 30, 3)" in out
    assert sorted(tmp_path.iterdir()) == before


def test_a_damaged_stack_in_a_folder_does_not_stop_the_others(run, tmp_path):
    pytest.importorskip("zarr")
    (tmp_path / "in").mkdir()
    for name in "abc":
        stack(f"in/{name}.tif")
    array = tifffile.imread("in/b.tif")
    tifffile.imwrite(
        "in/b.tif", array, metadata={"axes": "ZYX"}, compression="zlib", photometric="minisblack"
    )
    with tifffile.TiffFile("in/b.tif") as tiff:
        start, length = tiff.pages[1].dataoffsets[0], tiff.pages[1].databytecounts[0]
    content = bytearray(Path("in/b.tif").read_bytes())
    content[start : start + length] = bytes(length)
    Path("in/b.tif").write_bytes(content)
    status, out, err = run("restore", "in", "-o", "out", "--model", "tiny.pth")
    assert status == 1
    assert one_line(err)
    assert "in/b.tif: cannot read [1, 0:40, 0:50]: damaged data" in err
    assert out.endswith("2 restored, 0 kept, 1 failed\n")
    assert sorted(p.name for p in Path("out").iterdir() if p.suffix == ".tif") == ["a.tif", "c.tif"]


def test_without_a_model_one_is_chosen_and_named(run):
    for name, shape in (("in/colour.png", (20, 30, 3)), ("in/gray.png", (20, 30))):
        Path("in").mkdir(exist_ok=True)
        picture(name, shape)
    status, out, err = run("restore", "in", "-o", "out", "--device", "cpu")
    assert (status, err) == (0, "")
    assert out.splitlines()[1:4:2] == [
        "  denoise-color: too small to measure its noise",
        "  denoise-gray: too small to measure its noise",
    ]
    for name in ("colour", "gray"):
        array, _ = read_image(f"in/{name}.png")
        restorer = Restorer.from_pretrained(
            {"colour": "denoise-color"}.get(name, "denoise-gray"), device="cpu"
        )
        assert np.array_equal(read_image(f"out/{name}.png")[0], restorer(array))
    assert "\nchosen  denoise-gray: too small" in run("restore", "in", "-o", "out", "--plan")[1]


def test_models_are_listed_with_what_they_cost(run, monkeypatch, tmp_path, tiny_s):
    monkeypatch.setenv("KBNET_MODELS", str(tmp_path / "own"))
    zoo.register_model(tiny_s(), "mine", title="my own")
    (tmp_path / "own" / "junk.pth").write_bytes(b"junk")
    status, out, err = run("models")
    assert (status, err) == (0, "")
    listed = {line.split()[0]: line for line in out.splitlines() if line}
    cost = zoo.get_model("mine").cost()
    assert f"{cost.parameters / 1e6:.2f} M" in listed["mine"]
    assert f"{cost.macs_total / 1e9:.2f} G" in listed["mine"]
    assert f"{cost.macs_published / 1e9:.2f} G" in listed["mine"]
    assert listed["mine"].endswith("my own")
    assert "unusable: " in listed["junk"]
    assert {"denoise-color", "denoise-gray"} <= listed.keys()
    assert str(tmp_path / "own") in out
    found = {m["name"]: m for m in json.loads(run("models", "--json")[1])}
    assert found["mine"]["parameters"] == cost.parameters
    assert "truncated" in found["junk"]["problem"]


def test_a_model_without_a_card_is_described(run, monkeypatch, tmp_path, tiny_s):
    monkeypatch.setenv("KBNET_MODELS", str(tmp_path))
    card = zoo.get_model("denoise-color").card.read_text(encoding="utf-8")
    assert run("models", "denoise-color") == (0, card, "")
    zoo.register_model(tiny_s(), "mine", title="my own", window=64)
    status, out, _ = run("models", "mine")
    assert status == 0
    assert out == run("info", "mine")[1]
    assert "my own" in out
    assert "64 pixels" in out


def test_info_describes_a_checkpoint(run):
    status, out, err = run("info", "tiny.pth")
    assert (status, err) == (0, "")
    for said in (
        "KBNet_s",
        "width=8, middle_blk_num=1, enc_blk_nums=[1, 1], dec_blk_nums=[1, 1], lightweight=False, ffn_scale=2",
        "3 in, 3 out",
        "MACs, 3x256x256, in full",
        "MACs, 3x256x256, as published",
        "(convolutions only)",
        "KBA on ",
    ):
        assert said in out


def test_info_without_a_model_describes_the_machine(run):
    status, out, _ = run("info")
    assert status == 0
    for said in (f"kbnet {__version__}", torch.__version__, "cpu", "reference: available"):
        assert said in out


@pytest.mark.parametrize(
    "arguments",
    [["--help"], *([name, "--help"] for name in ("restore", "info", "models"))],
    ids=lambda a: a[0],
)
def test_help_has_examples(run, arguments):
    status, out, _ = run(*arguments)
    assert status == 0
    assert "examples:\n  kbnet " in out


def test_version_is_printed(run):
    assert run("--version")[:2] == (0, f"kbnet {__version__}\n")


@pytest.mark.parametrize("command", ["train", "test"])
def test_training_without_basicsr_is_one_line(run, monkeypatch, command):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "basicsr" else find(name))
    status, out, err = run(command, "-opt", "x.yml")
    assert (status, out) == (2, "")
    assert err == f"kbnet: {command} needs BasicSR, which is not installed: pip install 'kbnet[train]'\n"


def test_training_passes_every_argument_on(run, monkeypatch):
    seen = []

    class Bridge:
        @staticmethod
        def main(argv):
            seen.append(argv)
            return 7

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(importlib, "import_module", lambda name: {"basicsr_ext.__main__": Bridge}[name])
    assert run("train", "-opt", "x.yml", "--help", "--version")[0] == 7
    assert seen == [["train", "-opt", "x.yml", "--help", "--version"]]


def test_an_interrupt_leaves_no_partial_file(run, monkeypatch, tmp_path):
    for name in ("a.png", "b.png"):
        picture(name)

    write = images.write_picture

    def half(path, kind, array, metadata):
        lost = write(path, kind, array, metadata)
        if "b." in path.name:
            path.write_bytes(b"half")
            raise KeyboardInterrupt
        return lost

    monkeypatch.setattr(images, "write_picture", half)
    status, _, err = run("restore", "a.png", "b.png", "-o", "out", "--model", "tiny.pth")
    assert status == 130
    assert one_line(err)
    assert [p.name for p in Path("out").iterdir()] == ["a.png"]


def test_ctrl_c_ends_the_process_with_130(checkpoint, tmp_path):
    picture(tmp_path / "big.png", (4000, 4000, 3))
    arguments = ["restore", "big.png", "-o", "clean.png", "--model", str(checkpoint), "--device", "cpu"]
    code = (
        "import os, signal, sys, kbnet_plugin.cli as cli, kbnet_plugin.inference.engine as engine\n"
        "plan = engine.plan\n"
        "def started(*arguments):\n"
        "    tiles = plan(*arguments)\n"
        "    if len(tiles) > 20: os.kill(os.getpid(), signal.SIGINT)\n"
        "    return tiles\n"
        "engine.plan = started\n"
        "sys.exit(cli.main(sys.argv[1:]))\n"
    )
    ended = python("-c", code, *arguments, cwd=tmp_path)
    assert ended.returncode == 130
    assert one_line(ended.stderr)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["big.png", "tiny.pth"]


def shell(line, folder=None, **environment):
    """Run `kbnet` with this process's Python in a line of the shell."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": ""} | environment
    line = line.replace("kbnet", f"{sys.executable} -m kbnet_plugin", 1)
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", line], capture_output=True, check=False, cwd=folder, env=environment
    )


def test_names_outside_the_encoding_and_a_closed_stream_cost_no_result(checkpoint, tmp_path):
    (tmp_path / "in").mkdir()
    for name in (os.fsdecode(b"caf\xe9.png"), "\u65e5\u672c.png", "z.png"):
        picture(tmp_path / "in" / name)
    line = "kbnet restore in -o out --model tiny.pth --device cpu"
    done = shell(f"{line} 2>&-", tmp_path, PYTHONIOENCODING="ascii", LC_ALL="C")
    assert (done.returncode, done.stderr) == (0, b"")
    assert sorted(os.listdir(tmp_path / "out")) == sorted(os.listdir(tmp_path / "in"))
    for said in (rb"out/caf\udce9.png  30 x 20", rb"out/\u65e5\u672c.png  30 x 20", b"3 restored, 0 kept"):
        assert said in done.stdout


@pytest.mark.parametrize("command", ["models", "--help", "--version"])
@pytest.mark.parametrize("stream", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-", "| true", "| head -c 1"])
def test_a_stream_that_nobody_reads_is_no_failure(command, stream):
    done = shell(f"kbnet {command} {stream}")
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has such a device")
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_for_what_is_printed_is_named(unbuffered):
    done = shell("kbnet models > /dev/full", PYTHONUNBUFFERED=unbuffered)
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr == b"kbnet: standard output is incomplete: no space left on device\n"


@pytest.mark.parametrize("arguments", [["--version"], ["--help"]])
def test_help_imports_no_numpy(arguments):
    code = f"import sys; from kbnet_plugin.cli import main; main({arguments}); print('numpy' in sys.modules)"
    assert python("-c", code).stdout.endswith("\nFalse\n")


def test_the_package_is_the_command_too(tmp_path):
    ended = python("-m", "kbnet_plugin", "--version", cwd=tmp_path)
    assert (ended.returncode, ended.stdout) == (0, f"kbnet {__version__}\n")


def test_importing_the_package_imports_nothing_heavy(tmp_path):
    code = (
        "import sys, kbnet_plugin\n"
        "heavy = {'basicsr', 'basicsr_ext', 'napari', 'torchvision', 'matplotlib', 'PIL', 'cv2', 'skimage'}\n"
        "heavy |= {'zarr', 'dask', 'distributed', 'tifffile'}\n"
        "print(sorted(heavy & {name.split('.')[0] for name in sys.modules}))"
    )
    ended = python("-c", code, cwd=tmp_path)
    assert (ended.returncode, ended.stdout) == (0, "[]\n"), ended.stderr
