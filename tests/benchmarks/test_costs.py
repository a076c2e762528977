from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmarks.harness import costs, networks

SIZE = (64, 96)


def macs_of_kbnet_s(width, blocks, middle, ffn_scale, kernel_groups, size):
    """Convolutions and kernel basis attention of KBNet_s, from the paper's equations; blocks by level."""
    height, wide = size
    levels = len(blocks[0])
    convolution = kba = 2 * 3 * width * 9 * height * wide  # intro and ending
    kba = 0

    def block(c, pixels):
        spatial = c * c + c * kernel_groups  # 1x1, then grouped or depthwise
        u = c * c + c * 9
        m = min(c, 32)
        coefficients = m * (c // m) * 9 + m // 2 * 32 + c * 32
        mix = c * c
        hidden = int(ffn_scale * c)
        feed = c * hidden + hidden // 2 * c
        convolutions = (spatial + u + coefficients + mix + feed) * pixels + c * c  # channel branch: one pixel
        return convolutions, c * 32 * (4 * 9 + 1) * pixels + c * 4 * 9 * pixels

    for level in range(levels):
        c, pixels = width << level, height * wide >> 2 * level
        for _ in range(blocks[0][level] + blocks[1][levels - 1 - level]):
            a, b = block(c, pixels)
            convolution, kba = convolution + a, kba + b
        down = c * 2 * c * 4 * (pixels >> 2)
        up = 2 * c * 4 * c * (pixels >> 2)  # from 2c to 4c at half the size, then shuffled
        convolution += down + up
    for _ in range(middle):
        a, b = block(width << levels, height * wide >> 2 * levels)
        convolution, kba = convolution + a, kba + b
    return convolution / 1e9, kba / 1e9


@pytest.mark.parametrize(
    ("lightweight", "ffn_scale", "grouped"), [(False, 2, 4 * 25), (True, 1.5, 9)], ids=["s", "s-lightweight"]
)
def test_the_counter_agrees_with_the_formula(lightweight, ffn_scale, grouped):
    arguments = {
        "width": 32,
        "enc_blk_nums": [1, 2],
        "dec_blk_nums": [1, 1],
        "middle_blk_num": 2,
        "lightweight": lightweight,
        "ffn_scale": ffn_scale,
    }
    found = costs.count(*_built("KBNet_s", arguments), memory=False)
    convolution, kba = macs_of_kbnet_s(32, ([1, 2], [1, 1]), 2, ffn_scale, grouped, SIZE)
    assert found["convolution"] == pytest.approx(convolution, rel=1e-6)
    assert found["kba"] == pytest.approx(kba, rel=1e-6)
    assert found["macs_full"] == pytest.approx(convolution + kba, rel=1e-6)
    assert found["macs_published"] == found["convolution"]


def _built(name, arguments):
    module, channels = networks.build(name, arguments)
    return module, SIZE, channels


def test_dense_layers_are_in_the_published_count_and_attention_products_are_not():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.dense = nn.Linear(8, 24)

        def forward(self, x):
            q, k, v = self.dense(x.flatten(2).transpose(1, 2)).chunk(3, -1)
            return (q @ k.transpose(1, 2)) @ v

    found = costs.count(Attention(), (4, 5), 8, memory=False)
    assert found["linear"] * 1e9 == pytest.approx(20 * 8 * 24)
    assert found["attention"] * 1e9 == pytest.approx(2 * 20 * 20 * 8)
    assert found["macs_published"] == found["linear"]


def test_activation_memory_by_hand():
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 1, 1)
    )
    one = 10 * 10 * 4  # bytes of a map
    with torch.no_grad():
        peak, _ = costs.activations(network, (10, 10), 1)
    _, kept = costs.activations(network, (10, 10), 1)
    assert peak == (4 + 4) * one  # what a ReLU takes and what it gives
    assert kept == (4 + 4 + 1) * one  # what each ReLU gives, and the output


def test_a_plain_stack_and_a_peer_cost_what_papers_say():
    module, channels = networks.build("DnCNN", {"channels": 1, "features": 64, "layers": 17})
    found = costs.count(module, (256, 256), channels, memory=False)
    assert found["parameters"] == pytest.approx(0.556, abs=0.001)
    pytest.importorskip("spandrel", reason="spandrel has the peers")
    module, channels = networks.build("NAFNet", {})
    found = costs.count(module, (256, 256), channels, memory=False)
    assert found["macs_full"] == pytest.approx(63.2, abs=0.05)
    assert found["parameters"] == pytest.approx(115.98, abs=0.005)
