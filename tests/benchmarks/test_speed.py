"""The part `shipped` of speed.py: denoisers side by side."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch
import yaml

from benchmarks import run_all, speed
from benchmarks.harness import denoisers, illustrate, shipped
from benchmarks.harness.denoisers import Denoiser
from kbnet_plugin import zoo
from kbnet_plugin.errors import BadInput

SIZE = 40, 48


def half(image):
    return image / 2


def fake(call=half, **more):
    return Denoiser(lambda device: call, **more)


@pytest.fixture
def methods(monkeypatch):
    """Replace the methods; the test images are one picture."""
    found = {"ours": fake(ours=True), "FFDNet": fake()}
    clean = np.full((*SIZE, 3), 0.5, np.float32)
    pairs = [(clean + np.float32(0.1), clean)] * 2
    monkeypatch.setattr(denoisers, "known", lambda data: found)
    monkeypatch.setattr(denoisers, "images", lambda data, most: ("a set, all 2 of 2 images", pairs[:most]))
    return found


def run(tmp_path, *more):
    file = tmp_path / "speed-shipped.json"
    shape = ["--size", *map(str, SIZE), "--repeats", "2", "--no-memory", "--json", str(file)]
    status = speed.main(["--part", "shipped", *shape, *more])
    return status, json.loads(file.read_text())


def test_every_method_returns_a_picture_of_the_same_shape_and_range():
    noisy = denoisers.picture(*SIZE)
    known = denoisers.known(None)
    slow = {"BM3D", "ONNX Runtime"}
    assert known.keys() > slow | {"denoise-color", "FFDNet", "DnCNN", "ADNet", "non-local means"}
    ours = {m.name for m in zoo.list_models() if m.shipped and (m.task, m.in_channels) == ("denoise", 3)}
    assert {name for name, m in known.items() if m.ours} == ours | {"ONNX Runtime"}
    for name, method in known.items():
        if name in slow or denoisers.missing(method.needs):
            continue
        restored = method.make("cpu")(noisy)
        assert restored.shape == noisy.shape, name
        assert restored.dtype == np.float32, name
        assert np.isfinite(restored).all(), name
        assert not method.trained or (restored.min() > -0.2 and restored.max() < 1.2), name


def test_our_model_improves_the_noisy_picture():
    title, ((noisy, clean),) = denoisers.images(None, 1)
    noisy, clean = noisy[:96, :96], clean[:96, :96]
    before = denoisers.psnr(noisy, clean)
    assert 20 < before < 21  # sigma 25
    assert denoisers.psnr(denoisers.known(None)["denoise-color"].make("cpu")(noisy), clean) > before + 8
    assert title == "photographs inside scikit-image, the first 1 of 4 images"


def test_weights_of_peers_come_from_the_data(tmp_path):
    assert not denoisers.known(tmp_path)["DnCNN"].trained
    rng = np.random.default_rng(0)
    shapes = [(4, 3, 3, 3), (3, 4, 3, 3)]
    arrays = {f"w{i}": 0.01 * rng.standard_normal(s, dtype=np.float32) for i, s in enumerate(shapes)}
    arrays |= {f"b{i}": np.zeros(s[0], np.float32) for i, s in enumerate(shapes)}
    (tmp_path / "peers").mkdir()
    np.savez(tmp_path / "peers" / "DnCNN_color_sigma25.npz", **arrays)
    method = denoisers.known(tmp_path)["DnCNN"]
    assert method.trained
    noisy = denoisers.picture(*SIZE)
    assert 0 < np.abs(method.make("cpu")(noisy) - noisy).max() < 0.1


def test_shipped_models_are_read_without_the_packages_that_restoring_needs(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "kbnet_plugin.zoo", None)  # as where safetensors is missing
    for name in ("zoo", "Restorer"):
        monkeypatch.delattr(f"kbnet_plugin.{name}", raising=False)
    monkeypatch.delitem(sys.modules, "kbnet_plugin.inference.restorer", raising=False)
    alone = denoisers._shipped()
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "networks alone" in said
    monkeypatch.undo()
    assert alone.keys() == denoisers._shipped().keys()
    network = zoo.get_model("denoise-color").load()
    noisy = denoisers.picture(*SIZE)
    with torch.inference_mode():
        expected = network(torch.from_numpy(noisy).permute(2, 0, 1)[None])[0].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(alone["denoise-color"].make("cpu")(noisy), expected, atol=1e-5)


def test_what_is_not_installed_is_reported_and_left_out(methods, tmp_path, capsys):
    methods["absent"] = fake(needs="no_such_module")
    status, written = run(tmp_path)
    assert status == 0
    assert "left out: absent (pip install no_such_module)" in capsys.readouterr().err
    assert list(written["shipped"]["methods"]) == ["ours", "FFDNet"]


def test_the_table_has_time_ratio_and_quality(methods, tmp_path, capsys):
    methods["untrained"] = fake(trained=False)
    methods["broken"] = fake(lambda image: [][0])
    status, written = run(tmp_path, "--images", "1")
    out = capsys.readouterr().out
    assert status == 0
    assert "40 x 48" in out
    assert "a set, all 2 of 2 images" in out
    lines = [[cell.strip() for cell in line.split("|")[1:]] for line in out.splitlines() if "|" in line]
    rows = {name: rest for name, *rest in lines}
    psnr = 20 * np.log10(1 / (0.5 - 0.3))
    assert float(rows["ours"][3]) == pytest.approx(psnr, abs=0.01)
    assert rows["FFDNet"][1].strip() == "1.00x"
    assert rows["untrained"][3].strip() == "n/f"
    assert "untrained for want of weights in DATA/peers: untrained" in out
    assert rows["broken"][0].strip() == "n/f"
    assert "\nbroken: list index out of range\n" in out
    methods = written["shipped"]["methods"]
    assert methods["ours"]["sizes"]["40 x 48"]["seconds"]["calls"] == 2


def test_a_method_that_would_take_too_long_is_not_timed(methods, tmp_path, capsys, monkeypatch):
    seconds = {"ours": 1.0, "FFDNet": 0.1}  # for the small picture by which times are estimated
    order = iter([*seconds.values(), *[0.2] * 9])
    monkeypatch.setattr(shipped, "PROBE", 20)
    monkeypatch.setattr(shipped, "_seconds", lambda call: next(order))
    status, written = run(tmp_path, "--limit", "2")
    assert status == 0
    assert "\nours: would take about 5 s, more than --limit 2\n" in capsys.readouterr().out
    methods = written["shipped"]["methods"]
    assert methods["ours"]["sizes"]["40 x 48"]["seconds"] is None
    assert methods["ours"]["psnr"] is not None
    assert methods["FFDNet"]["sizes"]["40 x 48"]["seconds"]["median"] == 0.2


def test_a_slow_method_is_timed_once_and_the_next_size_is_estimated_from_it(methods, monkeypatch):
    study = shipped.Shipped({"slow": methods["ours"]}, "cpu", None)
    monkeypatch.setattr(shipped, "_seconds", lambda call: 61.0)
    monkeypatch.setattr(shipped, "PROBE", 32)
    study.time((32, 32), repeats=3, limit=100)
    study.time((64, 32), repeats=3, limit=100)
    sizes = study.found["slow"].sizes
    assert sizes[32, 32].timing.calls == 1
    assert "about 122 s" in sizes[64, 32].reason


@pytest.mark.parametrize("when", [4, 7])  # while timing, and while computing PSNR
def test_an_interrupt_keeps_what_was_measured(methods, tmp_path, capsys, when):
    calls = []

    def interrupted(image):
        calls.append(1)
        if len(calls) == when:
            raise KeyboardInterrupt
        return image / 2

    methods["last"] = fake(interrupted)
    status, written = run(tmp_path)
    said = capsys.readouterr()
    assert status == 130
    assert "interrupted" in said.err
    assert "Traceback" not in said.err
    assert "| ours" in said.out
    found = written["shipped"]["methods"]
    assert found["ours"]["sizes"]["40 x 48"]["seconds"]["calls"] >= 1
    if when == 7:  # in the second image, so that all have the first alone
        assert found["ours"]["psnr"] == pytest.approx(found["last"]["psnr"])
        assert "(1 of them measured)" in said.out
    else:
        assert found["ours"]["psnr"] is None


def test_the_report_shows_quality_against_time(methods, tmp_path, lively):
    from kbnet_plugin import save_network

    run(tmp_path)
    (picture,) = illustrate.shipped(tmp_path / "speed-shipped.json")
    assert "40 x 48" in picture.title
    assert b"FFDNet" in picture.panels[0].content or b"<svg" in picture.panels[0].content
    assert "a set, all 2 of 2 images" in picture.caption
    tables = tmp_path / "tables"
    tables.mkdir()
    (tables / "datasets.yml").write_text(
        yaml.safe_dump({"C": {"title": "c", "where": "w", "folder": "C", "target": "*.png"}})
    )
    table = {
        "title": "T",
        "text": "t",
        "columns": [{"key": "macs", "title": "M", "cost": "macs_full", "size": [32, 32]}],
        "rows": [
            {
                "name": "KBNet",
                "measure": {"network": "KBNet_s", "arguments": {"width": 8}, "weights": "tiny.pth"},
            }
        ],
    }
    (tables / "t.yml").write_text(yaml.safe_dump(table))
    save_network(lively(), tmp_path / "tiny.pth")
    folders = ["--tables", str(tables), "--out", str(tmp_path), "--weights", str(tmp_path)]
    assert run_all.main(folders) == 0
    assert picture.title in (tmp_path / "report.html").read_text(encoding="utf-8")
    (tmp_path / "speed-shipped.json").write_text("{}")
    with pytest.raises(BadInput, match=r"speed-shipped\.json: not a result of"):
        illustrate.shipped(tmp_path / "speed-shipped.json")
