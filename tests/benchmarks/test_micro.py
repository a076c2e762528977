"""The comparison on fluorescence: what it fits, what it measures, and which setting it picks."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from benchmarks import micro
from benchmarks.harness import w2s
from kbnet_plugin import save_network


def test_the_truth_is_fitted_to_the_frame():
    mean = np.random.default_rng(0).random((20, 30), np.float32)
    np.testing.assert_allclose(w2s.fitted(mean, 0.5 * mean + 0.2), 0.5 * mean + 0.2, atol=1e-6)


def test_scores_are_those_of_the_definition():
    truth = np.random.default_rng(0).random((40, 50), np.float32)
    found = micro.score(0.5 * truth + 0.1, truth, truth)
    error = 0.5 * truth.astype(float) - 0.1
    assert found.psnr == pytest.approx(-10 * np.log10(np.square(error).mean()), abs=1e-4)
    assert found.slope == pytest.approx(0.5, abs=1e-5)
    assert found.change == pytest.approx(100 * ((0.5 * truth.mean() + 0.1) / truth.mean() - 1), abs=1e-3)


def test_each_method_is_taken_at_its_best_setting(tmp_path, tiny_s, capsys):
    generator = np.random.default_rng(0)
    y, x = np.mgrid[:40, :40] / 40
    for number in range(2):
        clean = 120 + 60 * np.sin(6 * x + number) * np.cos(5 * y)
        noisy = clean + generator.normal(0, 20, clean.shape)
        for folder, name, picture in (("avg1", "input_avg1", noisy), ("avg400", "target_avg400", clean)):
            path = tmp_path / "micro" / "W2S" / folder / f"{name}_00{number}_0.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(path)
    save_network(tiny_s(img_channel=1), tmp_path / "x.pth")
    arguments = ["--data", str(tmp_path), "--model", str(tmp_path / "x.pth"), "--device", "cpu"]
    assert micro.main([*arguments, "--json", str(tmp_path / "x.json")]) == 0
    found = {row["method"]: row for row in json.loads((tmp_path / "x.json").read_text())["micro"]}
    assert list(found)[:4] == ["noisy frame", "Gaussian filter", "non-local means", "wavelet"]
    images = list(micro.pairs(tmp_path, None, None))
    psnr = {
        sigma: np.mean([micro.score(gaussian_filter(n, sigma), n, t).psnr for n, t in images])
        for sigma in (0.7, 1, 1.3, 1.6, 2, 2.5, 3, 4, 5)
    }
    assert found["Gaussian filter"]["setting"] == f"sigma {max(psnr, key=psnr.get):g}"
    assert found["Gaussian filter"]["psnr"] == pytest.approx(max(psnr.values()))
    assert found["Gaussian filter"]["psnr"] > found["noisy frame"]["psnr"] + 5
    assert found["noisy frame"]["mean_change_percent"] == 0
    assert "2 pairs of W2S" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "no data: set KBNET_DATA or use --data"),
        (["--data", "nowhere"], "no pictures *.png; --data must name a folder with"),
    ],
)
def test_without_data_it_is_one_line(arguments, said, monkeypatch, capsys):
    monkeypatch.delenv("KBNET_DATA", raising=False)
    assert micro.main(arguments) == 2
    assert said in capsys.readouterr().err
