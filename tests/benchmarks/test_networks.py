"""Networks of the benchmarks: restoring in tiles, and the candidates of the speed table."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from benchmarks.harness import candidates, networks
from benchmarks.harness.tables import Suite
from kbnet_plugin.errors import BadInput


@pytest.mark.parametrize("shape", [(90, 75, 1), (64, 33, 1), (48, 48, 1)])
def test_tiles_with_enough_halo_give_the_whole_image(shape):
    torch.manual_seed(0)
    module = networks.ConvStack("DnCNN", 1, features=4, layers=5).eval()  # sees 5 pixels in each direction
    network = networks.Network("DnCNN", module, 1, lambda image, _: module(image))
    image = np.random.default_rng(0).random(shape, np.float32)
    whole, tiled = (network.restore(image, tile=tile, halo=8) for tile in (0, 48))
    assert whole.shape == tiled.shape == shape
    np.testing.assert_allclose(tiled, whole, atol=1e-6)


def test_the_noise_level_reaches_every_tile():
    seen = []
    network = networks.Network("x", torch.nn.Identity(), 1, lambda image, sigma: seen.append(sigma) or image)
    image = np.random.default_rng(0).random((60, 40, 1), np.float32)
    assert np.array_equal(network.restore(image, 15.0, tile=48, halo=8), image)
    assert len(seen) > 1
    assert set(seen) == {15.0}


def test_another_number_of_channels_is_refused():
    network = networks.Network("x", torch.nn.Identity(), 3, lambda image, _: image)
    with pytest.raises(BadInput, match="x requires 3 channels; the image has 1"):
        network.restore(np.zeros((8, 8, 1), np.float32))


def test_every_row_of_the_speed_table_is_a_candidate():
    table = next(t for t in Suite().tables if t.name == "speed")
    assert [r.measure.candidate for r in table.rows] == list(candidates.CANDIDATES)
    assert [r.name for r in table.rows] == list(candidates.CANDIDATES)


@pytest.mark.skipif(importlib.util.find_spec("spandrel") is None, reason="spandrel has the peers")
def test_optimizing_a_peer_does_not_change_what_it_computes():
    torch.manual_seed(0)
    network = networks.architecture("NAFNet")(
        img_channel=3, width=8, middle_blk_num=1, enc_blk_nums=[1], dec_blk_nums=[1]
    ).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    image = torch.rand(1, 3, 16, 24)
    with torch.inference_mode():
        before = network(image)
        after = candidates.optimize(network)(image.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)


def test_peak_memory_is_measured_in_a_fresh_process():
    assert candidates.peak_memory("inference", "KBNet_s", (32, 32), "cpu") >= 0


def test_adnet_is_read_from_plain_arrays_and_computes_its_formula(tmp_path):
    generator = torch.Generator().manual_seed(0)
    dilations = [1, 2, 1]
    weights = [
        torch.randn(*s, generator=generator) / 5
        for s in ((8, 3, 3, 3), (8, 8, 3, 3), (3, 8, 3, 3), (3, 6, 1, 1))
    ]
    biases = [torch.randn(len(w), generator=generator) / 5 for w in weights]
    arrays = {
        f"{kind}{i}": t.numpy() for kind, all_ in (("w", weights), ("b", biases)) for i, t in enumerate(all_)
    }
    np.savez(tmp_path / "adnet.npz", dilation=np.array(dilations), **arrays)
    network = networks.load(tmp_path / "adnet.npz")
    image = torch.rand(1, 3, 20, 24, generator=generator)
    found = image
    for i, (w, b, d) in enumerate(zip(weights[:3], biases[:3], dilations, strict=True)):
        found = F.conv2d(found, w, b, padding=d, dilation=d)
        found = found.relu() if i < 2 else found
    expected = image - F.conv2d(torch.cat([image, found], 1).tanh(), weights[3], biases[3]) * found
    result = network.restore(image[0].permute(1, 2, 0).numpy())
    assert (network.name, network.channels) == ("ADNet", 3)
    np.testing.assert_allclose(result, expected[0].permute(1, 2, 0), atol=1e-6)
