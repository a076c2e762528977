"""What the model of `kbnet fit` makes of a noisy batch."""

import pytest
import torch

from basicsr_ext.recorrupted import RECORRUPTED, SHARE, RecorruptedModel

VARIANCE = 0.01


@pytest.fixture
def model():
    """A model whose networks know the clean picture, which is half gray; without a training around it."""
    model = RecorruptedModel.__new__(RecorruptedModel)
    model.is_train, model.mixup, model.layout = True, {}, torch.preserve_format
    model.device, model.dtype = torch.device("cpu"), torch.float32
    model.net_g, model._first = torch.nn.Module(), None
    model.net_g.forward = lambda x: torch.full_like(x, 0.5)
    return model


def noisy():
    noise = VARIANCE**0.5 * torch.randn(2, 1, 256, 256, generator=torch.Generator().manual_seed(0))
    return {
        "lq": 0.5 + noise,
        "gt": 0.5 + noise,
        "noise": torch.tensor([[[0, 1], [VARIANCE] * 2, [0, 0]]] * 2),
    }


def test_the_noise_of_a_recorrupted_pair_is_independent(model):
    torch.manual_seed(1)
    model.feed_data(noisy())
    one, other = model.lq - 0.5, model.gt - 0.5
    assert one.var().item() == pytest.approx(VARIANCE * (1 + SHARE), rel=0.03)
    assert other.var().item() == pytest.approx(VARIANCE * (1 + 1 / SHARE), rel=0.03)
    assert (one * other).mean().item() == pytest.approx(0, abs=0.02 * VARIANCE)


def test_a_trained_network_first_learns_from_denoised_pictures_with_new_noise(model):
    model._first = torch.nn.Module()
    model._first.forward = lambda x: torch.full_like(x, 0.25)
    model._done = 0.1
    data = noisy()
    data["gt"][:, :, 0] = torch.nan  # missing pixels
    model.feed_data(data)
    assert model.gt[:, :, 0].isnan().all()
    assert (model.gt[:, :, 1:] == 0.25).all()
    assert (model.lq - 0.25).var().item() == pytest.approx(VARIANCE, rel=0.03)
    model._done = sum(RECORRUPTED) / 2
    model.feed_data(noisy())
    assert model.gt.mean((1, 2, 3)).tolist() == pytest.approx([0.5, 0.25], abs=0.01)
    model._done = 0.9
    model.feed_data(noisy())
    assert model.gt.mean((1, 2, 3)).tolist() == pytest.approx([0.5, 0.5], abs=0.01)
