"""The statistics of noise, on noise whose statistics are known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from tools import noise_statistics as statistics

SIZE = statistics.SIZE


def pairs(sigma=0.0, count=6, level=5.0):
    generator = np.random.default_rng(0)
    for _ in range(count):
        noise = generator.standard_normal((SIZE, SIZE, 3))
        if sigma:
            noise = gaussian_filter(noise, (sigma, sigma, 0), mode="wrap")
        yield (level * noise / noise.std()).astype(np.float32), np.full((SIZE, SIZE), 100, np.float32)


def test_white_noise():
    white = statistics.measure(pairs())
    assert np.abs(white.correlation[:3]).max() < 0.02
    assert np.allclose(white.spectrum[:4], 1, atol=0.2)
    assert np.allclose(white.deviation[:3], 5, rtol=0.02)
    assert np.abs(white.between).max() < 0.03
    assert white.level.nonzero()[0].tolist() == [3]


def test_blurred_noise():
    blurred = statistics.measure(pairs(1.0))
    # A Gaussian with itself is one of twice the variance.
    expected = np.exp(-np.square(statistics.LAGS) / 4)
    assert np.allclose(blurred.correlation, expected, atol=0.04)
    assert blurred.spectrum[3, 0] > 5
    assert blurred.spectrum[3, -1] < 0.1


def test_noise_lost_in_rounding_is_left_out():
    with pytest.raises(statistics.BadInput, match="no crop has noise"):
        statistics.measure(pairs(level=0.5))


def test_the_plot_and_the_table_name_every_set(tmp_path):
    columns = {name: statistics.measure(pairs(count=1)) for name in ("CC15", "Camera")}
    statistics.draw(columns, tmp_path / "plot.svg")
    text = (tmp_path / "plot.svg").read_text(encoding="utf-8")
    assert len(text) < 100_000
    head, rule, *rows = statistics.table(columns).splitlines()
    assert head == "|  | CC15 | Camera |"
    assert {line.count("|") for line in (rule, *rows)} == {4}


def test_without_data_the_command_says_what_to_set(monkeypatch, capsys, tmp_path):
    monkeypatch.delenv("KBNET_DATA", raising=False)
    assert statistics.main([]) == 2
    assert "set KBNET_DATA or use --data" in capsys.readouterr().err
    assert statistics.main(["--data", str(tmp_path)]) == 2
    assert "no pairs in" in capsys.readouterr().err
