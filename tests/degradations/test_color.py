"""Colours change alike in both images."""

from __future__ import annotations

import pytest
import torch

from kbnet_plugin.degradations import DEGRADATIONS, Draws

KEYS = [(0, i) for i in range(16)]
STILL = {
    "saturation": 1, "hue": 0, "permutation": 0, "inversion": 0, "contrast": 1, "brightness": 0,
}  # fmt: skip


def images(channels=3, low=0.3, high=0.7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return low + (high - low) * torch.rand(16, channels, 12, 10, generator=generator)


def jitter(degraded, clean, **arguments):
    return DEGRADATIONS["ColorJitter"](**(STILL | arguments))(degraded, clean, Draws(KEYS))


def test_nothing_asked_nothing_changed():
    clean = images()
    for made in jitter(clean, clean):
        torch.testing.assert_close(made, clean)


@pytest.mark.parametrize("channels", [1, 3])
def test_both_images_change_alike(channels):
    clean, noise = images(channels), images(channels, -0.2, 0.2, seed=1)
    step = DEGRADATIONS["ColorJitter"]()
    same, target = step(clean, clean, Draws(KEYS))
    torch.testing.assert_close(same, target)
    noisy, target_too = step(clean + noise, clean, Draws(KEYS))
    torch.testing.assert_close(target, target_too)
    # Linear: noise twice as strong is twice as strong afterwards.
    noisier, _ = step(clean + 2 * noise, clean, Draws(KEYS))
    torch.testing.assert_close(noisier - target, 2 * (noisy - target), atol=1e-5, rtol=0)


def test_gray_stays_gray_and_the_target_within_bounds():
    gray = images(1, 0, 1).expand(-1, 3, -1, -1)
    made, _ = DEGRADATIONS["ColorJitter"](hue=[-180, 180], permutation=1)(gray, gray, Draws(KEYS))
    torch.testing.assert_close(made[:, 0], made[:, 1], atol=1e-5, rtol=0)
    torch.testing.assert_close(made[:, 0], made[:, 2], atol=1e-5, rtol=0)
    strong, _ = DEGRADATIONS["ColorJitter"](saturation=4)(
        images(low=0, high=1), images(low=0, high=1), Draws(KEYS)
    )
    assert 0 <= made.min() <= made.max() <= 1
    vivid = jitter(images(low=0, high=1), images(low=0, high=1), saturation=4)[1]
    assert vivid.min() == 0
    assert vivid.max() == 1
    assert strong.isfinite().all()


def test_each_change_by_itself():
    clean = images()
    luma = torch.einsum("bchw,c->bhw", clean, torch.tensor([0.299, 0.587, 0.114]))[:, None]
    expected = {
        "saturation": (0.4, luma + 0.4 * (clean - luma)),
        "inversion": (1, 1 - clean),
        "contrast": (0.7, 0.5 + 0.7 * (clean - 0.5)),
        "brightness": (-0.2, clean - 0.2),
        "hue": (120, clean[:, [2, 0, 1]]),  # a third of a turn moves red to green
    }
    for name, (value, result) in expected.items():
        torch.testing.assert_close(jitter(clean, clean, **{name: value})[0], result, msg=name)


def test_channels_change_places_half_of_the_time():
    clean = images()
    made, _ = jitter(clean, clean, permutation=1)
    torch.testing.assert_close(made.sort(1)[0], clean.sort(1)[0])
    moved = (made - clean).abs().amax((1, 2, 3)) > 1e-4
    assert 0.5 < moved.float().mean() < 1  # one order in six is the old one
