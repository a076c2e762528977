"""Needless bases go without changing the picture; blocks that are added change nothing at first."""

from __future__ import annotations

import pytest
import torch

from kbnet_plugin import KBNet_s
from tools.reduce_bases import reduced, started

TINY = {"width": 8, "middle_blk_num": 1, "enc_blk_nums": [1], "dec_blk_nums": [1], "lightweight": True}


@pytest.fixture
def redundant():
    """A network whose kernels, made of 12 bases, lie in a space of 3 dimensions."""
    torch.manual_seed(0)
    network = KBNet_s(**TINY, bases=12)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.rsplit(".", 1)[-1] in ("w", "b"):
                continue
            parameter.add_(0.2 * torch.randn(parameter.shape))
        for block in (network.encoders[0][0], network.middle_blks[0], network.decoders[0][0]):
            mixture = torch.randn(12, 3)
            block.w.copy_(mixture @ torch.randn(3, block.w.shape[2]) * 0.1)
            block.b.copy_(mixture @ torch.randn(3, block.b.shape[2]) * 0.1)
    return network.eval()


def test_redundant_bases_go_without_a_change(redundant):
    images = [torch.rand(1, 3, 24, 32) for _ in range(3)]
    smaller = started(redundant, images, bases=3, middle_blk_num=2, dec_blk_nums=[3])
    assert smaller.middle_blks[1].w.shape[1] == 3
    with torch.inference_mode():
        for image in (*images, torch.rand(1, 3, 17, 9)):
            torch.testing.assert_close(smaller(image), redundant(image), rtol=1e-4, atol=1e-4)


def test_fewer_bases_than_dimensions_keep_the_main_ones(redundant):
    images = [torch.rand(1, 3, 24, 32) for _ in range(3)]
    errors = []
    for bases in (1, 2):
        with torch.inference_mode():
            error = started(redundant, images, bases=bases)(images[0]) - redundant(images[0])
        errors.append(error.square().mean().item())
    assert errors[0] > errors[1] > 0


@pytest.mark.parametrize("per_group", [1, 4])
def test_weights_count_as_much_as_their_features(per_group):
    torch.manual_seed(0)
    block = KBNet_s(**TINY, bases=2, per_group=per_group).middle_blks[0]
    with torch.no_grad():
        block.w.zero_(), block.b.zero_()
        kernels = block.w[0].view(2, 16, per_group, 9)
        kernels[0, 0, 0, 4], kernels[1, 1 if per_group == 1 else 0, -1, 4] = 1, 0.9
    energy = torch.ones(16).double()
    energy[per_group - 1 if per_group > 1 else 1] = 100  # the weaker kernel sees the stronger feature
    kept = reduced(block, torch.eye(2).double(), energy, 1)["w"][0, 0].abs()
    assert kept.view(16, per_group, 9)[1 if per_group == 1 else 0, -1, 4] > 0.5 * kept.sum()
