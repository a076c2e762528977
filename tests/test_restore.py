"""What goes into a Restorer comes out with its shape, dtype and range; tiles change nothing that is local."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
import torch

from kbnet_plugin import Restorer, restore
from kbnet_plugin.tiling import plan


@pytest.fixture
def colour(tiny_s):
    return Restorer(tiny_s(), device="cpu")


@pytest.fixture
def gray(tiny_s):
    return Restorer(tiny_s(img_channel=1), device="cpu")


def unit(shape, seed=0):
    return np.random.default_rng(seed).random(shape, np.float32)


def apply(restorer, image):
    """The network on (H, W, C) in 0..1, without anything around it."""
    with torch.inference_mode():
        batch = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None]
        return restorer.network(batch)[0].permute(1, 2, 0).numpy()


@pytest.mark.parametrize("dtype", ["u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8"])
def test_integers_span_their_dtype(colour, dtype):
    least, top = np.iinfo(dtype).min, np.iinfo(dtype).max
    image = (unit((20, 30, 3)).astype(np.float64) * top * 0.99).astype(dtype)
    out = colour(image)
    assert (out.shape, out.dtype) == (image.shape, image.dtype)
    expected = apply(colour, (image.astype(np.float64) / top).astype(np.float32)).astype(np.float64)
    assert np.abs(out.astype(np.float64) / top - expected.clip(least / top, 1)).max() <= 0.5 / top + 1e-6


def test_integers_are_clipped_not_wrapped(colour):
    with torch.no_grad():
        colour.network.ending.bias.fill_(3)
    assert (colour(np.full((8, 8, 3), 200, np.uint8)) == 255).all()
    assert (colour(np.full((8, 8, 3), 2, np.uint64)) > 2**64 - 2**12).all()
    with torch.no_grad():
        colour.network.ending.bias.fill_(-3)
    assert (colour(np.full((8, 8, 3), 200, np.uint8)) == 0).all()


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_floats_near_0_to_1_are_taken_as_they_are(colour, dtype):
    image = (unit((20, 30, 3)) * 1.3 - 0.2).astype(dtype)
    out = colour(image)
    assert out.dtype == image.dtype
    np.testing.assert_allclose(
        out, apply(colour, image.astype(np.float32)), atol=2e-3 if dtype == "f2" else 1e-6
    )


def test_other_floats_keep_their_own_scale(colour):
    image = unit((20, 30, 3))
    image[0, 0], image[1, 1] = 0, 1
    expected = colour(image)
    np.testing.assert_allclose(colour(image * 4000 - 1000), expected * 4000 - 1000, atol=0.01)


@pytest.mark.parametrize("value", [0.0, 0.25, 1e6, -40.0])
def test_a_constant_picture_comes_through_finite_and_near(colour, value):
    out = colour(np.full((9, 9, 3), value))
    assert np.isfinite(out).all()
    assert np.abs(out - value).max() < 1


def test_bool_stays_bool(gray):
    image = np.kron(unit((3, 4)) > 0.5, np.ones((8, 8), bool))
    out = gray(image)
    assert (out.shape, out.dtype) == (image.shape, np.dtype(bool))
    assert (out == (apply(gray, image[..., None].astype(np.float32))[..., 0] >= 0.5)).all()


def test_alpha_is_copied_and_does_not_touch_the_colours(colour, gray):
    image = (unit((20, 30, 4)) * 255).astype(np.uint8)
    out = colour(image)
    assert np.array_equal(out[..., 3], image[..., 3])
    assert np.array_equal(out[..., :3], colour(image[..., :3]))
    out = gray(image[..., 2:])
    assert np.array_equal(out[..., 1], image[..., 3])
    assert np.array_equal(out[..., 0], gray(image[..., 2]))


def test_a_gray_picture_in_a_colour_network_is_three_equal_channels(colour):
    image = unit((20, 30))
    expected = apply(colour, np.stack([image] * 3, axis=2)).mean(axis=2)
    out = colour(image)
    assert out.shape == (20, 30)
    np.testing.assert_allclose(out, expected, atol=1e-6)
    assert colour(image[..., None]).shape == (20, 30, 1)
    with_alpha = colour(np.stack([image, 1 - image], axis=2))
    np.testing.assert_allclose(with_alpha, np.stack([expected, 1 - image], axis=2), atol=1e-6)


def test_a_network_may_give_fewer_channels_than_it_takes(tiny_l):
    restorer = Restorer(tiny_l(inp_channels=6), device="cpu")
    assert restorer.channels == (6, 3)
    assert restorer(unit((16, 9, 6))).shape == (16, 9, 3)


@pytest.mark.parametrize("shape", [(1, 1), (1, 50, 3), (50, 1), (3, 2, 4)])
def test_any_size_is_taken(colour, shape):
    assert colour(unit(shape)).shape == shape


def test_tiling_does_not_change_the_result_of_a_network_that_is_local(tiny_s):
    network = tiny_s()
    with torch.no_grad():
        for name, p in network.named_parameters():
            if ".sca.1." in name:  # the only global part: its pool is multiplied by nought
                p.fill_(1.0 if name.endswith("bias") else 0.0)
            elif name.rsplit(".", 1)[-1] in ("ga1", "attgamma", "beta", "gamma"):
                p.normal_(std=0.5)
    image = unit((210, 333, 3))
    whole = Restorer(network, device="cpu")(image)
    calls = []
    tiled = Restorer(network, device="cpu", tile=128, halo=32)(image, lambda *call: calls.append(call))
    assert np.abs(whole - image).max() > 0.01  # it does something
    np.testing.assert_allclose(tiled, whole, atol=2e-6)
    total = len(plan(image.shape[:2], 128, 32, 4))
    assert total > 4
    assert calls == [(i, total) for i in range(1, total + 1)]


def test_tiles_bound_what_the_network_sees(tiny_s):
    seen = []
    network = tiny_s()
    network.register_forward_pre_hook(lambda _module, args: seen.append(args[0].shape))
    Restorer(network, device="cpu", tile=96, halo=16)(unit((300, 200, 3)))
    assert max(max(shape) for shape in seen) <= 96


@pytest.mark.parametrize(
    ("image", "named"),
    [
        (np.zeros((8, 8, 5), np.uint8), "takes RGB or gray pictures, not 5 channels"),
        (np.zeros((0, 8, 3), np.uint8), "not empty"),
        (np.zeros((8, 8, 0), np.uint8), "not empty"),
        (np.zeros((1, 8, 8, 3), np.uint8), r"must be \(H, W\) or \(H, W, C\)"),
        (np.zeros(8, np.uint8), r"must be \(H, W\) or \(H, W, C\)"),
        (np.zeros((8, 8), complex), "bool, integer or float, not complex128"),
        (np.zeros((8, 8), object), "bool, integer or float, not object"),
        (np.full((8, 8), np.nan), "NaN or infinite"),
        (np.full((8, 8), np.inf, np.float32), "NaN or infinite"),
    ],
)
def test_what_cannot_be_restored_is_named(colour, image, named):
    with pytest.raises(ValueError, match=named):
        colour(image)


def test_colour_into_a_gray_network_is_named(gray):
    with pytest.raises(ValueError, match="the model takes gray pictures, not 3 channels; convert"):
        gray(np.zeros((8, 8, 3), np.uint8))


def test_impossible_settings_are_named_at_once(tiny_s, tmp_path):
    with pytest.raises(ValueError, match="tile must exceed twice the halo"):
        Restorer(tiny_s(), device="cpu", tile=64, halo=32)
    for device in ("abacus", "cuda:99"):
        with pytest.raises(ValueError, match=f"device '{device}' is not available"):
            Restorer(tiny_s(), device=device)
    with pytest.raises(FileNotFoundError, match="no such file"):
        Restorer.from_pretrained(tmp_path / "x.pth")


def test_a_file_becomes_a_restorer(checkpoint, colour):
    image = unit((20, 30, 3))
    assert np.array_equal(Restorer.from_pretrained(checkpoint, device="cpu")(image), colour(image))


def test_the_example_runs():
    assert doctest.testmod(restore).failed == 0
