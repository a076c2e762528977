"""Both networks against spandrel's independent copy, and against the shapes that checkpoints carry."""

from __future__ import annotations

import hashlib
import json

import pytest
import spandrel.architectures.KBNet
import torch

from kbnet_plugin import KBNet_l, KBNet_s

TINY_S = {"width": 8, "middle_blk_num": 1, "enc_blk_nums": [1, 1], "dec_blk_nums": [1, 1]}
TINY_L = {"dim": 24, "num_blocks": [1, 1, 1, 1], "num_refinement_blocks": 1, "heads": [1, 2, 2, 4]}
LIGHT = {"lightweight": True, "ffn_scale": 1.5}

# Parameters, and the SHA-256 of json.dumps(sorted([name, shape] of the state dict), separators=(",", ":")),
# both from the networks with which the released checkpoints were trained.
RELEASED = {
    "s": (KBNet_s, {}, 141_966_659, "2555f2ce99e3c082bc6ce7bb819eef0d5830790db2b66e08f7e980725be5bafe"),
    "s-light": (
        KBNet_s,
        LIGHT,
        128_403_395,
        "d0f0e4a448092582dabaa86c84c049f975a52a2b92828a316c15b1d2b3f13a4d",
    ),
    "s-gray": (
        KBNet_s,
        {"img_channel": 1},
        141_964_353,
        "f220ddfde7c332cc22387f93716a24f9d859421761a824c0167c408610f06f25",
    ),
    "s-tiny": (
        KBNet_s,
        TINY_S | LIGHT,
        118_531,
        "136228735fec5175792e90eacf4e01b2e9a4f1d316cf8990d99773ffbaa6357e",
    ),
    "l": (KBNet_l, {}, 29_568_100, "f98eb333269b5deb9fdb0c46c732d89d755998d2ad063d0f4c643cf1558c1b5e"),
    "l-tiny": (
        KBNet_l,
        TINY_L,
        2_213_655,
        "4b008c302327c3c4acb5244934796f6ad409bbd86e2a032ded8fcd60e738a644",
    ),
}


def perturbed(network):
    """Randomise all weights: scales that start at 0.01 would hide errors in what they scale."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in network.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            if name.rsplit(".", 1)[-1] in ("ga1", "attgamma", "beta", "gamma"):
                p.copy_(0.3 * noise)
            else:
                p.add_(0.1 * p.abs().mean().clamp_min(0.05) * noise)
    return network


def relative(found, expected):
    return ((found - expected).norm() / expected.norm().clamp_min(1e-30)).item()


@pytest.mark.parametrize(("variant", "arguments", "parameters", "digest"), RELEASED.values(), ids=RELEASED)
def test_parameter_names_and_shapes_are_those_of_released_checkpoints(variant, arguments, parameters, digest):
    with torch.device("meta"):
        network = variant(**arguments)
    shapes = sorted([name, list(t.shape)] for name, t in network.state_dict().items())
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert hashlib.sha256(json.dumps(shapes, separators=(",", ":")).encode()).hexdigest() == digest


@pytest.mark.parametrize(
    ("variant", "arguments", "sizes"),
    [
        pytest.param("KBNet_s", {}, [(20, 32)], id="s-default"),
        pytest.param("KBNet_s", LIGHT, [(16, 17)], id="s-light"),
        pytest.param("KBNet_s", {"img_channel": 1}, [(16, 16)], id="s-gray"),
        pytest.param("KBNet_s", TINY_S, [(1, 1), (16, 16), (37, 5), (40, 51)], id="s-tiny"),
        pytest.param("KBNet_l", {}, [(16, 24)], id="l-default"),
        pytest.param("KBNet_l", TINY_L, [(8, 8), (16, 40), (48, 32)], id="l-tiny"),
        pytest.param("KBNet_l", TINY_L | {"bias": True}, [(24, 16)], id="l-bias"),
    ],
)
def test_outputs_and_all_gradients_equal_the_independent_copy(variant, arguments, sizes):
    ours = perturbed({"KBNet_s": KBNet_s, "KBNet_l": KBNet_l}[variant](**arguments))
    with torch.device("meta"):
        theirs = getattr(spandrel.architectures.KBNet, variant)(**arguments)
    theirs.load_state_dict(ours.state_dict(), strict=True, assign=True)
    channels = arguments.get("img_channel", 3)
    for size in sizes:
        torch.manual_seed(1)
        image = torch.rand(1 if len(sizes) == 1 else 2, channels, *size)
        target = torch.rand_like(image)
        results = []
        for network in (ours, theirs):
            network.zero_grad(set_to_none=True)
            x = image.clone().requires_grad_()
            y = network(x)
            torch.nn.functional.mse_loss(y, target).backward()
            results.append((y.detach(), x.grad))
        assert relative(results[0][0], results[1][0]) <= 1e-5
        assert relative(results[0][1], results[1][1]) <= 1e-4
        expected = dict(theirs.named_parameters())
        worst = max((relative(p.grad, expected[n].grad), n) for n, p in ours.named_parameters())
        assert worst[0] <= 1e-4, worst


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (2, 3), (9, 1), (15, 17)])
@pytest.mark.parametrize("network", [KBNet_s(**TINY_S), KBNet_l(**TINY_L)], ids=["s", "l"])
def test_any_size_is_taken_and_kept(network, size):
    out = network(torch.rand(2, 3, *size))
    assert out.shape == (2, 3, *size)
    assert out.isfinite().all()


@pytest.mark.parametrize("size", [(1, 1), (5, 9), (32, 24)])
def test_a_folded_network_works_at_half_the_resolution(size):
    network = perturbed(KBNet_s(1, fold=2, bases=5, per_group=1, **TINY_S))
    seen = []
    network.encoders[0].register_forward_hook(lambda layer, x, y: seen.append(y.shape[-2:]))
    image = torch.rand(2, 1, *size)
    out = network(image)
    assert out.shape == image.shape
    padded = [n + -n % network.size_multiple for n in size]
    assert list(seen[0]) == [n // 2 for n in padded]
    # The first convolution is that of an image whose pixels are channels already.
    x = torch.nn.functional.pad(image, (0, padded[1] - size[1], 0, padded[0] - size[0]))
    w = network.intro.weight.unflatten(3, (3, 2)).unflatten(2, (3, 2))  # out, in, row, y, column, x
    w = w.permute(0, 1, 3, 5, 2, 4).flatten(1, 3)
    folded = torch.nn.functional.conv2d(
        torch.nn.functional.pixel_unshuffle(x, 2), w, network.intro.bias, padding=1
    )
    torch.testing.assert_close(network.intro(x), folded, rtol=1e-5, atol=1e-5)


def test_channels_may_differ_in_and_out():
    assert KBNet_l(6, 3, **TINY_L)(torch.rand(1, 6, 9, 8)).shape == (1, 3, 9, 8)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("variant", "arguments"), [(KBNet_s, TINY_S), (KBNet_l, TINY_L)], ids=["s", "l"])
def test_half_precision_is_finite_and_close(variant, arguments, dtype):
    network = perturbed(variant(**arguments)).eval()
    image = torch.rand(1, 3, 48, 40)
    with torch.inference_mode():
        expected = network(image)
        found = network.to(dtype)(image.to(dtype))
    assert found.dtype == dtype
    assert found.isfinite().all()
    # Rounding of activations adds up over the blocks: some tens of units in the last place.
    assert relative(found.float(), expected) <= 40 * torch.finfo(dtype).eps


@pytest.mark.parametrize(
    ("variant", "arguments", "named"),
    [
        (KBNet_s, {"width": 6}, "width must be a multiple of 4"),
        (KBNet_s, {"bases": 0}, "bases must be a positive number"),
        (KBNet_s, {"fold": 0}, "fold must be a positive number"),
        (KBNet_s, {"width": 12, "per_group": 8}, "per_group must be whole and divide width"),
        (KBNet_s, {"width": 0}, "width must be a positive number"),
        (KBNet_s, {"img_channel": 0}, "img_channel must be a positive number"),
        (
            KBNet_s,
            {"enc_blk_nums": [1], "dec_blk_nums": [1, 1]},
            "enc_blk_nums and dec_blk_nums .* equally long",
        ),
        (KBNet_s, {"middle_blk_num": -1}, "middle_blk_num must be whole numbers"),
        (KBNet_s, {"enc_blk_nums": [1.5], "dec_blk_nums": [1]}, "enc_blk_nums must be whole numbers"),
        (KBNet_s, {"ffn_scale": 1.01}, "ffn_scale .* must be even"),
        (KBNet_s, {"ffn_scale": -1}, "ffn_scale must be a positive number"),
        (KBNet_s, {"basicblock": "KBBlock_x"}, "basicblock must be 'KBBlock_s'"),
        (KBNet_l, {"heads": [5, 2, 4, 8]}, r"heads\[0\] must divide"),
        (KBNet_l, {"heads": [1, 2]}, "heads must be 4 numbers"),
        (KBNet_l, {"num_blocks": [1, 2, 3]}, "num_blocks must be 4 numbers"),
        (KBNet_l, {"num_refinement_blocks": -2}, "num_refinement_blocks must be whole numbers"),
        (KBNet_l, {"dim": 25}, "dim must be even"),
        (KBNet_l, {"dim": 28}, "dim 28 gives 28 channels"),
        (KBNet_l, {"inp_channels": 1}, "out_channels must not exceed inp_channels"),
        (KBNet_l, {"ffn_expansion_factor": 1.55}, "ffn_expansion_factor .* multiple of 2"),
        (KBNet_l, {"blockname": "KBBlock_s"}, "blockname must be 'KBBlock_l'"),
    ],
)
def test_an_invalid_argument_is_named_with_its_rule(variant, arguments, named):
    with pytest.raises(ValueError, match=named):
        variant(**arguments)


@pytest.mark.parametrize(
    ("image", "named"),
    [
        (torch.rand(1, 4, 8, 8), r"expects \(batch, 3, height, width\)"),
        (torch.rand(3, 8, 8), r"expects \(batch, 3, height, width\)"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "floating-point values"),
        (torch.rand(1, 3, 0, 8), "empty"),
    ],
)
def test_an_image_that_does_not_fit_is_named(image, named):
    with pytest.raises(ValueError, match=named):
        KBNet_s(**TINY_S)(image)
