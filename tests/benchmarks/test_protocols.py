from __future__ import annotations

import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from benchmarks.harness import protocols
from benchmarks.harness.protocols import PROTOCOLS, compare, luma, noisy, psnr


@pytest.fixture
def pair():
    g = np.random.default_rng(1)
    truth = g.integers(0, 256, (40, 48, 3)).astype(np.float32) / 255
    return (truth + g.standard_normal(truth.shape).astype(np.float32) * 0.1).astype(np.float32), truth


@pytest.mark.parametrize(
    ("rgb", "y"),
    [  # what MATLAB's rgb2ycbcr documents or gives for uint8
        ((0, 0, 0), 16),
        ((255, 255, 255), 235),
        ((255, 0, 0), 81),
        ((0, 255, 0), 145),
        ((0, 0, 255), 41),
        ((128, 128, 128), 126),
    ],
)
def test_luma_is_matlabs(rgb, y):
    pixel = np.array(rgb, np.float64).reshape(1, 1, 3) / 255
    assert luma(pixel).item() * 255 == pytest.approx(y, abs=1e-9)


def test_psnr_and_ssim_are_scikit_images_after_clipping(pair):
    restored, truth = pair
    found = compare(restored, truth, ("psnr", "ssim", "mae"), PROTOCOLS["pairs"])
    a, b = restored.clip(0, 1).astype(np.float64), truth.astype(np.float64)
    assert found["psnr"] == pytest.approx(peak_signal_noise_ratio(b, a, data_range=1), abs=1e-9)
    expected = structural_similarity(
        a, b, channel_axis=2, data_range=1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    assert found["ssim"] == pytest.approx(expected, abs=1e-9)
    assert found["mae"] == pytest.approx(np.abs(a - b).mean(), abs=1e-9)


def test_rounding_changes_the_result_to_what_a_saved_file_gives(pair):
    restored, truth = pair
    found = compare(restored, truth, ("psnr",), PROTOCOLS["pairs-uint8"])["psnr"]
    saved = (restored.clip(0, 1) * 255).round().astype(np.uint8)
    expected = peak_signal_noise_ratio((truth * 255).round().astype(np.uint8), saved)
    assert found == pytest.approx(expected, abs=1e-4)
    assert found != compare(restored, truth, ("psnr",), PROTOCOLS["pairs"])["psnr"]


def test_the_released_ssim_is_higher_and_marked_as_unsound(pair):
    restored, truth = pair
    sound = compare(restored, truth, ("ssim",), PROTOCOLS["sidd"])["ssim"]
    released = compare(restored, truth, ("ssim",), PROTOCOLS["sidd-released"])["ssim"]
    assert released > sound
    assert not PROTOCOLS["sidd-released"].sound
    assert PROTOCOLS["sidd"].sound


def test_a_guessed_range_adds_48_db_for_one_bright_pixel(pair):
    _, truth = pair
    restored = (truth * 0.9).astype(np.float32)
    low = compare(restored, truth, ("psnr",), PROTOCOLS["guessed-range"])["psnr"]
    restored[0, 0, 0] = 1.001
    high = compare(restored, truth, ("psnr",), PROTOCOLS["guessed-range"])["psnr"]
    assert high - low == pytest.approx(20 * np.log10(255), abs=0.1)
    sound = [compare(restored, truth, ("psnr",), PROTOCOLS["pairs"])["psnr"], low]
    assert sound[0] == pytest.approx(sound[1], abs=0.1)


def test_numbered_noise_differs_between_images_and_released_noise_does_not():
    clean = np.full((8, 9, 1), 0.5, np.float32)
    numbered = [noisy(clean, 25, i, PROTOCOLS["gaussian"]) for i in (0, 1)]
    released = [noisy(clean, 25, i, PROTOCOLS["gaussian-released"]) for i in (0, 1)]
    assert not np.array_equal(*numbered)
    assert np.array_equal(*released)
    expected = np.random.default_rng([0, 1]).standard_normal((8, 9)) * 25
    assert np.allclose((numbered[1][..., 0] - 0.5) * 255, expected, atol=1e-3)


def test_noise_is_neither_clipped_nor_rounded():
    dark = np.zeros((64, 64, 1), np.float32)
    values = noisy(dark, 50, 0, PROTOCOLS["gaussian"]) * 255
    assert values.min() < -100
    assert np.abs(values - values.round()).max() > 0.4


def test_psnr_scales_with_the_range_and_is_infinite_for_equal_arrays(pair):
    restored, truth = pair
    assert psnr(restored * 255, truth * 255, 255) == pytest.approx(psnr(restored, truth), abs=1e-4)
    assert psnr((truth * 255).astype(np.uint8), (truth * 255).astype(np.uint8), 255) == np.inf
    expected = -10 * np.log10(np.square(restored.astype(float) - truth).mean())
    assert psnr(restored, truth) == pytest.approx(expected, abs=1e-9)  # not clipped


def test_a_border_is_left_out(pair):
    restored, truth = pair
    border = protocols.Protocol("", crop=4)
    spoilt = restored.copy()
    spoilt[:4] = 0
    assert compare(spoilt, truth, ("psnr",), border) == compare(restored, truth, ("psnr",), border)


def test_infinite_and_missing_numbers_are_refused(pair):
    _, truth = pair
    with pytest.raises(ValueError, match="infinite"):
        compare(truth, truth, ("psnr",), PROTOCOLS["pairs"])
    broken = truth.copy()
    broken[3, 3] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        compare(broken, truth, ("psnr",), PROTOCOLS["pairs"])
