"""The fused block against the layers that it replaces, with every instruction set that this machine has."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from kbnet_plugin import KBNet_s
from kbnet_plugin.nn.kbnet_s import KBBlock_s
from kbnet_plugin.nn.pooling import record_means, replace_means, with_replaceable_means
from kbnet_plugin.ops import block, native

pytestmark = pytest.mark.skipif(not native.available_isas(), reason="the native library is not built")

SHAPES = [  # batch, channels, height, width, ffn_scale, bases
    (3, 16, 21, 35, 2, 32),
    (1, 16, 1, 9, 1.5, 8),
    (2, 16, 7, 270, 2, 16),  # wider than a tile
    (1, 32, 40, 1, 2, 4),
    (3, 32, 9, 8, 1, 20),
    (2, 48, 13, 19, 2, 8),
    (1, 64, 11, 17, 2, 32),
    (2, 128, 3, 5, 2, 33),
    (1, 96, 5, 7, 1.5, 1),
    (1, 64, 1, 1, 0.5, 32),
]


def made(channels, ffn_scale=2, bases=32, lightweight=True):
    """Make a block without small scales, which would hide errors in what they scale."""
    torch.manual_seed(0)
    module = KBBlock_s(channels, lightweight, ffn_scale, bases)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.1 * torch.randn(p.shape))
    return module


def maps(batch, channels, height, width):
    generator = torch.Generator().manual_seed(1)
    shape = (batch, channels, height, width)
    return (
        torch.randn(shape, generator=generator).contiguous(memory_format=torch.channels_last)
        for _ in range(2)
    )


def results(module, x, grad):
    """Compute the output, and the gradients of the input and of every parameter."""
    module.zero_grad()
    x = x.clone().requires_grad_()
    out = module(x)
    out.backward(grad)
    return {"out": out.detach(), "x": x.grad, **{n: p.grad.clone() for n, p in module.named_parameters()}}


def errors(found, wanted):
    """Compare each result with its largest value."""
    assert found.keys() == wanted.keys()
    return {n: ((found[n] - w).abs().max() / w.abs().max()).item() for n, w in wanted.items()}


def exact(module, x, grad):
    return results(copy.deepcopy(module).double(), x.double(), grad.double())


@pytest.fixture
def calls(monkeypatch):
    """The shapes with which the fused block is called."""
    shapes, real = [], block.block
    monkeypatch.setattr(block, "block", lambda x, *rest: (shapes.append(x.shape), real(x, *rest))[1])
    return shapes


def unfused(module, x, grad):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(block, "wanted", lambda x: False)
        return results(module, x, grad)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_as_exact_as_the_layers(isa, calls, shape):
    *size, ffn_scale, bases = shape
    module, (x, grad) = made(size[1], ffn_scale, bases), maps(*size)
    wanted = exact(module, x, grad)
    assert not calls
    plain = errors(unfused(module, x, grad), wanted)
    fused = errors(results(module, x, grad), wanted)
    assert len(calls) == 1
    for name, error in fused.items():
        assert error <= max(3 * plain[name], 2e-6), name


def test_under_autocast_as_exact_as_the_layers(isa, calls):
    module, (x, grad) = made(32, bases=12), maps(2, 32, 12, 15)
    wanted = exact(module, x, grad)
    for dtype in (torch.float32, torch.bfloat16):
        with torch.autocast("cpu", torch.bfloat16):
            plain = unfused(module, x.to(dtype), grad)
            fused = results(module, x.to(dtype), grad)
        assert {n: t.dtype for n, t in plain.items()} == {n: t.dtype for n, t in fused.items()}
        plain, fused = errors(plain, wanted), errors(fused, wanted)
        for name, error in fused.items():
            assert error <= max(1.5 * plain[name], 0.01), name
    assert len(calls) == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_threads_and_repetition_change_no_bit(isa, threads, dtype):
    module, (x, grad) = made(64), maps(2, 64, 33, 31)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        threads(1)
        alone = results(module, x, grad)
        for count in (1, 2, 3):
            threads(count)
            assert all(torch.equal(t, alone[n]) for n, t in results(module, x, grad).items())


@pytest.mark.parametrize("shape", [*SHAPES[:6], (2, 16, 45, 140, 2, 16), (1, 128, 19, 70, 2, 40)], ids=str)
def test_without_gradients_as_exact_as_the_layers(isa, monkeypatch, shape):
    *size, ffn_scale, bases = shape
    network, (x, _) = made(size[1], ffn_scale, bases), maps(*size)
    wanted = exact(network, x, x)["out"]
    monkeypatch.setattr(block, "block", None)
    with torch.no_grad():
        found = network(x)
        monkeypatch.setattr(block, "wanted", lambda x: False)
        plain = network(x)
    error = lambda y: ((y - wanted).abs().max() / wanted.abs().max()).item()  # noqa: E731
    assert not torch.equal(found, plain)
    assert error(found) <= max(3 * error(plain), 2e-6)


def test_any_strides(calls):
    module, (x, grad) = made(16), maps(2, 16, 6, 7)
    wanted = results(module, x, grad)
    with torch.no_grad():
        module.conv2[0].weight.set_(
            module.conv2[0].weight.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2)
        )
    strided = torch.stack([x, x], -1)[..., 0].transpose(2, 3).contiguous().transpose(2, 3)
    found = results(module, strided, grad.contiguous())
    assert all(torch.equal(found[n], w) for n, w in wanted.items())
    ones = results(module, x, torch.ones(()).expand_as(grad))
    assert all(torch.equal(ones[n], w) for n, w in results(module, x, torch.ones_like(grad)).items())


def test_a_network_trains_as_with_its_layers(calls):
    torch.manual_seed(0)
    network = KBNet_s(width=16, middle_blk_num=1, enc_blk_nums=[1, 1], dec_blk_nums=[1, 1], lightweight=True)
    image, grad = torch.rand(1, 3, 22, 30), torch.randn(1, 3, 22, 30)
    wanted = exact(network, image, grad)
    plain = errors(unfused(network, image, grad), wanted)
    for name, error in errors(results(network, image, grad), wanted).items():
        assert error <= max(3 * plain[name], 1e-5), name
    assert len(calls) == 5


def test_only_what_is_needed(calls):
    module, (x, grad) = made(16), maps(1, 16, 6, 7)
    full = results(module, x, grad)
    for p in module.conv4.parameters():
        p.requires_grad_(False)
    module.zero_grad()
    module(x).backward(grad)
    for name, p in module.named_parameters():
        assert (p.grad is None) is name.startswith("conv4")
        assert p.grad is None or torch.equal(p.grad, full[name])
    module.requires_grad_(False)
    assert not module(x).requires_grad
    assert len(calls) == 3


def test_stores_its_input_and_four_maps():
    module, (x, _) = made(16), maps(1, 16, 8, 8)
    sizes = []
    with saved_tensors_hooks(lambda t: (sizes.append(t.numel()), t)[1], lambda t: t):
        module(x)
    parameters = sum(p.numel() for p in module.parameters())
    assert sum(sizes) == parameters + 4 * x.numel() + 32 * 64 + 2 * 16


def test_copies_pickles_and_checkpoints():
    module, (x, grad) = made(16), maps(1, 16, 8, 9)
    wanted = results(module, x, grad)
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert all(torch.equal(t, wanted[n]) for n, t in results(other, x, grad).items())
    module.zero_grad()
    x.requires_grad_()
    checkpoint(module, x, use_reentrant=False).backward(grad)
    assert torch.equal(x.grad, wanted["x"])
    assert all(torch.equal(p.grad, wanted[n]) for n, p in module.named_parameters())


def test_gradient_of_gradient_is_an_error():
    module, (x, _) = made(16), maps(1, 16, 4, 4)
    out = module(x.requires_grad_()).sum()
    with pytest.raises(RuntimeError, match="no second derivatives"):
        torch.autograd.grad(out, x, create_graph=True)


def hooked(module, x):
    module.conv3.register_forward_hook(lambda *_: None)
    return module(x)


def parametrized(module, x):
    torch.nn.utils.parametrizations.weight_norm(module.conv3)
    return module(x)


def watched(module, x):
    with FlopCounterMode(display=False) as counter:
        module(x)
    assert counter.get_total_flops()


@pytest.mark.parametrize(
    ("channels", "run"),
    [
        (8, lambda module, x: module(x)),
        (256, lambda module, x: module(x)),
        (16, lambda module, x: module.double()(x.double())),
        (16, hooked),
        (16, parametrized),
        (16, lambda module, x: torch.compile(module, backend="eager", fullgraph=True)(x)),
        (16, watched),
    ],
    ids=["channels", "many channels", "double", "hook", "weight_norm", "compile", "flops"],
)
def test_layers_run_where_the_block_does_not_serve(calls, channels, run):
    x, _ = maps(1, channels, 4, 5)
    run(made(channels), x)
    assert not calls


@pytest.mark.parametrize(
    "wrapped",
    [
        torch.func.vmap,
        lambda function: torch.func.grad(lambda t: function(t).sum()),
        lambda function: lambda x: torch.jit.trace(function, x, check_trace=False),
        lambda function: lambda x: function(x.to("meta")),
    ],
    ids=["vmap", "grad", "trace", "meta"],
)
@pytest.mark.filterwarnings("ignore:.*torch.jit.trace")
def test_not_wanted_where_others_look_at_operators(wrapped):
    x, _ = maps(1, 16, 4, 5)
    answers = []
    wrapped(lambda t: (answers.append(block.wanted(t)), t * 2)[1])(x)
    assert answers == [False]
    assert block.wanted(x)


def test_unknown_instruction_set_is_an_error(monkeypatch):
    monkeypatch.setenv("KBNET_KBA_ISA", "mmx")
    x, _ = maps(1, 16, 4, 4)
    with pytest.raises(ValueError, match="KBNET_KBA_ISA='mmx' is not available here"):
        made(16)(x)


@pytest.mark.parametrize("backend", ["tiled", "native"])
def test_follows_the_backend_of_the_environment(calls, monkeypatch, backend):
    monkeypatch.setenv("KBNET_KBA_BACKEND", backend)
    x, _ = maps(1, 16, 4, 5)
    made(16)(x)
    made(16, lightweight=False)(x)
    assert len(calls) == (backend == "native")


def test_scale_from_a_grid(isa, monkeypatch):
    network = KBNet_s(width=16, middle_blk_num=1, enc_blk_nums=[1], dec_blk_nums=[1], lightweight=True)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0)))
    network, image = with_replaceable_means(network), torch.rand(2, 3, 42, 136)
    with torch.no_grad(), record_means() as means:
        network(image)
    grids = [means[k].repeat(1, 1, 5, 17) * torch.linspace(0, 2, 17) for k in sorted(means)]
    with torch.no_grad(), replace_means(grids):
        found = network(image)
        monkeypatch.setattr(block, "wanted", lambda x: False)
        assert torch.allclose(network(image), found, rtol=0, atol=1e-5)
    with torch.no_grad():
        assert not torch.allclose(network(image), found, rtol=0, atol=1e-3)


def test_without_gradients_the_maps_between_are_not_stored(isa):
    module, (x, _) = made(16), maps(1, 16, 512, 512)
    with torch.no_grad(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        module(x)
    assert sum(max(0, e.self_cpu_memory_usage) for e in seen.events()) < 1.5 * x.nbytes
