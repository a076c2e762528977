"""Parameters and multiply-accumulates against known figures."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

from kbnet_plugin import KBNet_l, KBNet_s
from kbnet_plugin.cost import Cost
from kbnet_plugin.nn.cost import count

# 3x256x256; parameters, then G of convolutions, kernel basis attention, attention products and their sum.
FULL = [
    pytest.param(KBNet_s, {}, 141_966_659, 68.68, 48.61, 0, 117.3, id="s"),
    pytest.param(
        KBNet_s,
        {"lightweight": True, "ffn_scale": 1.5},
        128_403_395,
        57.81,
        48.61,
        0,
        106.4,
        id="s-lightweight",
    ),
    pytest.param(KBNet_l, {}, 29_568_100, 107.69, 88.61, 13.89, 210.2, id="l"),
]


@pytest.mark.parametrize(
    ("variant", "arguments", "parameters", "convolution", "kba", "attention", "total"), FULL
)
def test_full_networks_cost_what_is_known(variant, arguments, parameters, convolution, kba, attention, total):
    with torch.device("meta"):
        network = variant(**arguments)
    cost = count(network)
    assert cost.parameters == parameters
    assert cost.convolution / 1e9 == pytest.approx(convolution, abs=0.006)
    assert cost.kba / 1e9 == pytest.approx(kba, abs=0.006)
    assert cost.attention / 1e9 == pytest.approx(attention, abs=0.006)
    assert cost.macs_total / 1e9 == pytest.approx(total, abs=0.05)
    assert cost.macs_published == cost.convolution


def test_a_convolution_is_counted_by_hand():
    cost = count(nn.Conv2d(2, 6, 3, padding=1, groups=2), size=(5, 7))
    assert cost == Cost(parameters=6 * 9 + 6, convolution=5 * 7 * 6 * 9, kba=0, attention=0)


def test_kernel_basis_attention_is_counted_by_hand(tiny_s):
    # One block a level at 8, 16 and 32 channels and 1, 1/4 and 1/16 of the pixels, two of the first two.
    pixels_times_channels = 64 * 32 * (2 * 8 + 2 * 16 // 4 + 32 // 16)
    mixing, applying = 32 * (4 * 9 + 1), 4 * 9
    assert count(tiny_s(), size=(64, 32)).kba == pixels_times_channels * (mixing + applying)


FIRST = {
    "ours": "import kbnet_plugin.nn.cost as c; n = network(); print(c.count(n, (32, 32)).kba * 2)",
    "torch's": "n = network(); from torch.utils.flop_counter import FlopCounterMode as Counter\n"
    "network()  # as the counter is there only now\n"
    "with torch.no_grad(), Counter(display=False) as c: n(torch.rand(1, 3, 32, 32))\n"
    "print(c.get_flop_counts()['Global'].get(torch.ops.kbnet.kernel_basis_attention, 0))",
}


@pytest.mark.parametrize("first", FIRST.values(), ids=FIRST)
def test_the_first_count_of_a_process_is_complete(first):
    script = "import torch; from kbnet_plugin import KBNet_s\ndef network(): return KBNet_s(**ARGUMENTS)\n"
    arguments = {"width": 8, "middle_blk_num": 1, "enc_blk_nums": [1], "dec_blk_nums": [1]}
    script = script.replace("ARGUMENTS", repr(arguments)) + first
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(done.stdout) == 2 * count(KBNet_s(**arguments), (32, 32)).kba


def test_the_count_grows_with_the_picture_and_leaves_the_network_alone(tiny_l):
    network = tiny_l()
    before = {n: t.clone() for n, t in network.state_dict().items()}
    small, large = count(network, (32, 32)), count(network, (64, 64))
    assert (large.kba, large.attention) == (4 * small.kba, 4 * small.attention)
    assert all(torch.equal(t, before[n]) for n, t in network.state_dict().items())
