"""The benchmark of training on noisy pictures alone: its data, its figures, its report."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from benchmarks import selfsup
from benchmarks.harness import photons
from kbnet_plugin.selfsup.fit import can_train

TINY = ["--width", "4", "--middle", "1", "--blocks", "1", "--patch", "16", "--batch", "1", "--device", "cpu"]


@pytest.fixture
def data(tmp_path):
    """Two smooth pictures as BSD68, and a frame with its mean as W2S."""
    smooth = np.linspace(40, 200, 48 * 40).reshape(48, 40).astype(np.uint8)
    for name in ("test/BSD68/b.png", "test/BSD68/a.png"):
        _save(tmp_path / name, smooth)
    _save(tmp_path / "micro/W2S/avg1/input_avg1_001_2.png", smooth // 2 + 20)
    _save(tmp_path / "micro/W2S/avg400/target_avg400_001_2.png", smooth)
    return tmp_path


def _save(path, picture):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path)


def test_the_noise_is_that_of_the_protocol_and_is_not_clipped(data):
    (first, clean), (second, _) = selfsup.bsd68(data, None)
    drawn = np.random.default_rng([0, 1]).standard_normal(clean.shape) * 25
    assert np.allclose(second - clean, drawn, atol=1e-3)
    assert not np.array_equal(first, second)
    assert selfsup.score(first, clean, clip=False) == pytest.approx(20.17, abs=0.3)


def test_a_frame_is_compared_with_the_mean_stretched_as_it_is(data):
    ((noisy, truth),) = selfsup.frames(data, None, 2)
    assert noisy.dtype == np.uint8
    assert selfsup.score(noisy, truth, clip=False) > 50
    with pytest.raises(FileNotFoundError, match=r"no pictures \*_0\.png"):
        selfsup.frames(data, None, 0)


@pytest.mark.skipif(not can_train(), reason="training needs the extra train")
def test_a_run_trains_measures_and_reports_its_budget(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("KBNET_MODELS", "")
    out = tmp_path / "out"
    arguments = ["--data", str(data), "--out", str(out), "--task", "bsd68", "--iterations", "1", *TINY]
    assert selfsup.main(arguments) == 0
    said = capsys.readouterr().out
    assert "1 steps of 1 crops of 16" in said
    assert "N2V2 (published)" in said
    result = json.loads((out / "bsd68-scratch.json").read_text())
    assert {"noisy", "bsd68-scratch, as trained", "bsd68-scratch, as kept"} < result["psnr"].keys()
    assert [len(values) for values in result["each"].values()] == [2, 2, 2, 2]
    assert any(name.startswith("Gaussian filter, sigma 3") for name in result["psnr"])
    assert result["budget"]["iterations"] == 1
    assert result["verdict"] in said


@pytest.mark.parametrize("kind", ["filaments", "nuclei"])
def test_a_made_stack_has_the_noise_of_its_photons(kind):
    noisy, clean = photons.stack(kind, planes=2, side=128)
    expected = photons.PHOTON * (clean - photons.OFFSET) + photons.READ_NOISE**2
    assert np.square(noisy - clean).mean() == pytest.approx(expected.mean(), rel=0.05)
    assert abs((noisy - clean).mean()) < 1


def test_without_data_the_message_says_what_to_do(monkeypatch, capsys):
    monkeypatch.delenv("KBNET_DATA", raising=False)
    assert selfsup.main([]) == 2
    assert "set KBNET_DATA or use --data" in capsys.readouterr().err
