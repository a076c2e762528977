"""Exported models restore the same pictures in other programs."""

from __future__ import annotations

import contextlib
import importlib.util
import resource
from pathlib import Path

import pytest
import spandrel
import torch

from kbnet_plugin import Restorer, load_network, save_network, zoo
from kbnet_plugin.cli import main
from kbnet_plugin.nn.layers import pad_to_multiple
from kbnet_plugin.zoo import export
from tools.cards import read_card

SIZES = [(16, 24), (37, 50), (1, 3)]

SHIPPED = [m for m in zoo.list_models() if m.shipped]


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        status = main([str(a) for a in arguments])
        return status, *capsys.readouterr()

    return call


def bases(model):
    """Return the number of bases, of which spandrel only knows 32."""
    return read_card(model.card)[0]["network"].get("bases", 32)


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("model", [m for m in SHIPPED if bases(m) == 32], ids=lambda m: m.name)
def test_spandrel_restores_the_same_picture_with_a_shipped_model(run, model, suffix):
    status, out, err = run("export", model.name, "-o", f"x.{suffix}", "--format", suffix)
    assert (status, err) == (0, "")
    assert out.startswith(f"x.{suffix}  ")
    ours = Restorer(model.load(), device="cpu", pooling="global")
    for path in (f"x.{suffix}", model.path):
        theirs = spandrel.ModelLoader("cpu").load_from_file(path)
        assert (theirs.input_channels, theirs.output_channels) == (model.in_channels, model.out_channels)
        for size in SIZES:
            image = torch.rand(1, model.in_channels, *size, generator=torch.Generator().manual_seed(0))
            with torch.inference_mode():
                found = theirs(image)
            expected = torch.from_numpy(ours(image[0].permute(1, 2, 0).numpy()))
            torch.testing.assert_close(found[0].permute(1, 2, 0), expected.clamp(0, 1), atol=1e-5, rtol=1e-5)


def test_a_pth_has_the_layout_of_basicsr_and_safetensors_keeps_the_metadata(run, tmp_path):
    assert run("export", "denoise-gray", "-o", "x.pth")[0] == 0
    content = torch.load("x.pth", weights_only=True)
    assert list(content) == ["params"]
    assert run("export", "denoise-gray", "-o", "x.safetensors")[0] == 0
    before, after = zoo.get_model("denoise-gray"), zoo.get_model("x.safetensors")
    for key in ("title", "task", "window", "version", "license"):
        assert getattr(after, key) == getattr(before, key)
    shipped = before.load().state_dict()
    for found in (content["params"], load_network("x.safetensors").state_dict()):
        assert all(torch.equal(found[name], tensor) for name, tensor in shipped.items())


def test_onnx_gives_the_same_picture_for_any_batch_height_and_width(run, lively):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    network = lively(enc_blk_nums=[1], dec_blk_nums=[1], middle_blk_num=0)
    save_network(network, "x.safetensors", {"title": "a test", "window": "96"})
    status, out, err = run("export", "x.safetensors", "-o", "x.onnx")
    assert (status, err) == (0, "")
    assert out.count("largest difference from torch") == 3
    session = onnxruntime.InferenceSession("x.onnx", providers=["CPUExecutionProvider"])
    for batch, size in zip((1, 3, 2), SIZES, strict=True):
        image = torch.rand(batch, 3, *size)
        (found,) = session.run(None, {"image": image.numpy()})
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(found), network(image), atol=1e-5, rtol=1e-4)
    metadata = session.get_modelmeta().custom_metadata_map
    assert {key: metadata[key] for key in ("name", "architecture", "scale", "title", "window")} == {
        "name": "x",
        "architecture": "KBNet_s",
        "scale": "1",
        "title": "a test",
        "window": "96",
    }
    for tensor in (*session.get_inputs(), *session.get_outputs()):
        assert tensor.shape == ["batch", 3, "height", "width"]
    assert sorted(p.name for p in Path().iterdir()) == ["x.onnx", "x.safetensors"]


def test_reflection_without_a_branch_is_the_padding_of_the_network():
    for height in range(1, 18):
        for width in (1, 4, 5, 8, 9):
            image = torch.rand(1, 2, height, width)
            expected = pad_to_multiple(image, 8, "reflect")
            assert torch.equal(export._reflected(image, *expected.shape[2:]), expected)


def test_an_onnx_that_differs_is_not_kept(run, monkeypatch, tiny_s, tmp_path):
    monkeypatch.setattr(export.torch.export, "export", lambda *_arguments, **_options: Program())
    monkeypatch.setattr(export.torch.onnx, "export", lambda *_arguments, **_options: Program())
    monkeypatch.setattr(export, "_compare", lambda *_arguments: {"1x3x8x8": float("nan")})
    save_network(tiny_s(), "x.pth")
    Path("x.onnx").write_text("old")
    status, out, err = run("export", "x.pth", "-o", "x.onnx", "--overwrite")
    assert (status, out) == (2, "")
    assert "x.onnx: not written: the results of ONNX Runtime and torch differ" in err
    assert Path("x.onnx").read_text() == "old"
    assert sorted(p.name for p in Path().iterdir()) == ["x.onnx", "x.pth"]


@pytest.mark.parametrize("suffix", ["pth", "safetensors", "onnx"])
def test_a_full_disk_is_one_line_and_leaves_the_old_file(run, monkeypatch, tiny_s, suffix):
    monkeypatch.setattr(export.torch.export, "export", lambda *_arguments, **_options: Program())
    monkeypatch.setattr(export.torch.onnx, "export", lambda *_arguments, **_options: Program())
    save_network(tiny_s(), "tiny.pth")
    Path(f"x.{suffix}").write_text("old")
    with full_disk():
        status, out, err = run("export", "tiny.pth", "-o", f"x.{suffix}", "--overwrite")
    assert (status, out) == (2, "")
    reason = "file too large" if suffix == "onnx" else "cannot be written completely; is the disk full?"
    assert err == f"kbnet: x.{suffix}: {reason}\n"
    assert Path(f"x.{suffix}").read_text() == "old"
    assert sorted(p.name for p in Path().iterdir()) == sorted(["tiny.pth", f"x.{suffix}"])


@contextlib.contextmanager
def full_disk():
    """Let files grow to 20 kB only."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_name_may_be_as_long_as_the_file_system_allows(run, tiny_s):
    save_network(tiny_s(), "tiny.pth")
    name = f"{'x' * 247}.pth"
    assert run("export", "tiny.pth", "-o", name)[0] == 0
    assert Path(name).is_file()


class Program:
    """Replaces what the exporter creates."""

    def __init__(self):
        self.model = type("Model", (), {"metadata_props": {}})

    def run_decompositions(self, _table):
        return self

    def save(self, path, **_options):
        path.write_bytes(b"graph" * 10_000)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ("denoise-gray -o nowhere/x.pth", "nowhere: no such folder to write x.pth to"),
        ("denoise-gray -o nowhere/x.onnx", "nowhere: no such folder to write x.onnx to"),
        ("denoise-gray -o nowhere/x.zip", "nowhere: no such folder to write x.zip to"),
        ("denoise-gray -o nowhere/x --format hf", "nowhere: no such folder to write x to"),
        ("denoise-gray -o x.tflite", "x.tflite: end the name in one of .safetensors, .pth, .onnx, .zip, or"),
        ("denoise-gray -o x.pth --format onnx", "x.pth: the format onnx requires a name that ends in .onnx"),
        (
            "denoise-gray -o x --format bioimageio",
            "x: the format bioimageio requires a name that ends in .zip",
        ),
        ("denoise-gray -o x.gif --format gif", "argument --format: invalid choice: 'gif'"),
        ("denoise-gray -o old.pth", "old.pth: exists; --overwrite replaces it"),
        ("denoise-grey -o x.pth", "no model or file is called 'denoise-grey'; did you mean 'denoise-gray'"),
        ("none.pth -o x.pth", "none.pth: no such file"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(run, arguments, named):
    Path("old.pth").touch()
    status, out, err = run("export", *arguments.split())
    assert (status, out) == (2, "")
    assert named in err
    assert err.count("\n") == 1
    assert [p.name for p in Path().iterdir()] == ["old.pth"]


def test_without_onnx_it_says_what_to_install(run, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        export.importlib.util, "find_spec", lambda name: None if name.startswith("onnx") else find(name)
    )
    status, _, err = run("export", "denoise-gray", "-o", "x.onnx")
    assert status == 2
    assert err == "kbnet: onnx needs onnx, onnxscript, onnxruntime: pip install 'kbnet[export]'\n"
    assert not list(Path().iterdir())
