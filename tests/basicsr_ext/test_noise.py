"""Sensor noise, the frequency loss, LPIPS: independent parts."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from basicsr_ext.__main__ import main
from basicsr_ext.datasets import Dataset_PoissonGaussianDenoising
from basicsr_ext.losses import FrequencyLoss
from basicsr_ext.metrics import calculate_lpips, lpips_network
from basicsr_ext.sampler import Reproducible, Ticket
from kbnet_plugin.errors import BadInput


@pytest.fixture
def sensor(tmp_path):
    """A dataset over one flat picture."""

    def _sensor(value=0.5, dtype=np.uint8, suffix="png", **options):
        folder = tmp_path / "flat"
        folder.mkdir(exist_ok=True)
        flat = np.full((200, 200, 3), round(value * np.iinfo(dtype).max), dtype)
        cv2.imwrite(str(folder / f"a.{suffix}"), flat)
        options = {"phase": "val", "dataroot_gt": str(folder)} | options
        return Dataset_PoissonGaussianDenoising(options)

    return _sensor


@pytest.mark.parametrize(("value", "gain", "read"), [(0.2, 0.01, 0.0), (0.8, 0.002, 0.03), (0.5, 0.0, 0.1)])
def test_the_variance_is_gain_times_signal_plus_read_noise_squared(sensor, value, gain, read):
    sample = sensor(value, domain="microscope", gain_test=gain, read_noise_test=read)[0]
    noise = (sample["lq"] - sample["gt"]).double()
    signal = float(sample["gt"].mean())
    assert float(noise.var()) == pytest.approx(gain * signal + read**2, rel=0.03)
    assert abs(float(noise.mean())) < 4 * float(noise.std()) / 120_000**0.5


def test_camera_noise_is_added_in_linear_light(sensor):
    sample = sensor(0.5, domain="camera", gain_test=0.001, read_noise_test=0.0)[0]
    linear = ((sample["lq"].double() + 0.055) / 1.055) ** 2.4
    signal = ((128 / 255 + 0.055) / 1.055) ** 2.4
    assert float(linear.mean()) == pytest.approx(signal, rel=0.01)
    assert float(linear.var()) == pytest.approx(0.001 * signal, rel=0.03)
    assert 0 <= float(sample["lq"].min()) <= float(sample["lq"].max()) <= 1


def test_a_camera_without_noise_returns_the_picture(sensor):
    sample = sensor(0.3, gain_test=0, read_noise_test=0)[0]
    assert torch.allclose(sample["lq"], sample["gt"], atol=1e-6)


def test_training_draws_another_level_for_every_sample_from_its_ticket(sensor):
    dataset = sensor(
        domain="microscope", phase="train", gt_size=64, gain_range=[1e-4, 1e-2], read_noise_range=[1e-3, 1e-1]
    )
    tickets = Reproducible(dataset, "train")
    levels = [float((s["lq"] - s["gt"]).std()) for s in (tickets[Ticket(0, 64, (0, n))] for n in range(20))]
    assert len(set(levels)) == 20
    assert max(levels) > 3 * min(levels)
    assert 0.007 < min(levels) < max(levels) < 0.13
    first, again = (tickets[Ticket(0, 64, (0, 3))]["lq"] for _ in range(2))
    assert torch.equal(first, again)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"gain_range": [0.1, 0.01], "read_noise_range": 0}, "bounds must increase"),
        ({"gain_range": [0, 0.01], "read_noise_range": 0}, "above 0"),
        ({"read_noise_range": [0.1]}, "gain_range is missing"),
    ],
)
def test_invalid_ranges(sensor, options, said):
    with pytest.raises(BadInput, match=said):
        sensor(phase="train", **options)


@pytest.mark.parametrize(
    ("suffix", "dtype"),
    [("png", np.uint8), ("png", np.uint16), ("tif", np.uint8), ("tif", np.uint16), ("jpg", np.uint8)],
)
def test_every_format_and_depth_is_read_to_the_same_intensity(sensor, suffix, dtype):
    sample = sensor(0.4, dtype, suffix, gain_test=0.001, read_noise_test=0.0)[0]
    assert sample["gt"].dtype == torch.float32
    assert float(sample["gt"].mean()) == pytest.approx(0.4, abs=0.003)


def test_it_trains(pairs, options, write):
    options["datasets"]["train"] |= {
        "type": "Dataset_PoissonGaussianDenoising",
        "gain_range": [1e-4, 1e-2],
        "read_noise_range": 0.01,
    }
    assert main(["train", "-opt", write(options)]) == 0


def test_the_frequency_loss_is_the_mean_absolute_difference_of_the_spectra():
    first, second = torch.rand(2, 3, 8, 6), torch.rand(2, 3, 8, 6)
    expected = np.fft.rfft2(first.numpy()) - np.fft.rfft2(second.numpy())
    value = FrequencyLoss(loss_weight=0.5)(first, second)
    assert float(value) == pytest.approx(0.25 * np.mean(abs(expected.real) + abs(expected.imag)), rel=1e-5)
    assert float(FrequencyLoss()(first, first)) == 0


def test_lpips_never_uses_random_weights(tmp_path, monkeypatch):
    pytest.importorskip("lpips")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    lpips_network.cache_clear()
    image = np.zeros((64, 64, 3), np.uint8)
    with pytest.raises(BadInput, match=r"there is no .*alexnet-owt"):
        calculate_lpips(image, image)
    (tmp_path / "broken.pth").write_bytes(b"PK")
    with pytest.raises(BadInput, match="contains no weights of alex"):
        calculate_lpips(image, image, weights=str(tmp_path / "broken.pth"))


def test_lpips_uses_the_given_weights(tmp_path):
    pytest.importorskip("lpips")
    from torchvision.models import alexnet

    torch.manual_seed(0)
    torch.save(alexnet(weights=None).state_dict(), tmp_path / "alex.pth")
    image = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    other = np.zeros_like(image)
    weights = str(tmp_path / "alex.pth")
    assert calculate_lpips(image, image, weights=weights) == 0
    assert calculate_lpips(image, other, weights=weights) > 0
    own = lpips_network("alex", weights).net.state_dict()
    given = torch.load(weights, weights_only=True)
    assert torch.equal(own["slice1.0.weight"], given["features.0.weight"])


def test_a_run_with_lpips_but_without_its_weights_does_not_start(pairs, options, write, capsys, monkeypatch):
    pytest.importorskip("lpips")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: "nowhere")
    lpips_network.cache_clear()
    options["val"]["metrics"]["lpips"] = {"type": "calculate_lpips"}
    assert main(["train", "-opt", write(options)]) == 2
    assert "remove the metric" in capsys.readouterr().err


def test_fluorescence_darkens_the_truth_and_the_noise_follows_it(sensor, tmp_path):
    options = {"domain": "microscope", "phase": "train", "gt_size": 64}
    dataset = sensor(gain_range=[0.01, 0.01], read_noise_range=[0.01, 0.01], fluorescence=1.0, **options)
    ramp = np.tile(np.arange(200, dtype=np.uint8), (200, 1))
    cv2.imwrite(str(tmp_path / "flat" / "a.png"), cv2.merge([ramp] * 3))
    np.random.seed(0)
    residuals, truths = [], []
    for _ in range(50):
        sample = dataset[0]
        truth = sample["gt"]
        assert 0 <= float(truth.min()) <= float(truth.max()) <= 1
        assert float(truth.min()) <= 0.1, "the background is dim"
        truths.append(truth.flatten())
        residuals.append((sample["lq"] - truth).flatten())
    truth, residual = torch.cat(truths).double(), torch.cat(residuals).double()
    expected = 0.01 * truth.mean() + 0.01**2
    assert float(residual.var()) == pytest.approx(float(expected), rel=0.03)
