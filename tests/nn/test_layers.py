from __future__ import annotations

import pytest
import torch

from kbnet_plugin import KBNet_l, KBNet_s
from kbnet_plugin.nn import layers

BOTH = pytest.mark.parametrize(
    "network",
    [
        lambda: KBNet_s(width=8, middle_blk_num=1, enc_blk_nums=[1], dec_blk_nums=[1]),
        lambda: KBNet_l(dim=24, num_blocks=[1, 1, 1, 1], num_refinement_blocks=1, heads=[1, 1, 1, 1]),
    ],
    ids=["KBNet_s", "KBNet_l"],
)


@pytest.mark.parametrize("batch", [1, 3])
@BOTH
def test_strips_do_not_change_the_result(monkeypatch, network, batch):
    torch.manual_seed(0)
    network = network().eval()
    with torch.no_grad():
        for p in network.parameters():
            p.add_(torch.randn_like(p) * 0.05)
    image = torch.rand(batch, 3, 24, 40)
    whole = network(image).detach()
    monkeypatch.setattr(layers, "STRIP", 1000)
    pieces = []
    for name, module in network.named_modules():
        if name.endswith(("conv3", "attn.project_out")):
            module.register_forward_hook(lambda m, inputs, out: pieces.append(out.shape[2]))
    with torch.no_grad():
        stripped = network(image)
    assert min(pieces) <= 3  # rows of a strip, not of the image
    assert (stripped - whole).abs().max() <= 1e-5 * whole.abs().max()


def test_global_mean_of_halves_does_not_overflow():
    x = torch.full((1, 2, 300, 300), 60000.0, dtype=torch.float16)
    assert torch.equal(layers.GlobalMean()(x), x[..., :1, :1])


@BOTH
def test_networks_compile_whole_with_the_same_gradients(network):
    torch.manual_seed(0)
    network, image = network(), torch.rand(1, 3, 32, 32)
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    compiled(image).sum().backward()
    found = [p.grad for p in network.parameters()]
    network.zero_grad()
    network(image).sum().backward()
    for f, p in zip(found, network.parameters(), strict=True):
        torch.testing.assert_close(f, p.grad)


@BOTH
def test_networks_export_with_a_free_size(network):
    torch.manual_seed(0)
    network, size = network().eval(), torch.export.Dim("n", min=2, max=16)
    program = torch.export.export(
        network,
        (torch.rand(1, 3, 32, 48),),
        dynamic_shapes=({2: 8 * size, 3: 8 * torch.export.Dim("m", min=2, max=16)},),
    )
    image = torch.rand(1, 3, 56, 24)
    torch.testing.assert_close(program.module()(image), network(image))
