"""The public operator: checks, choice of backend, autograd, compile, export and autocast."""

from __future__ import annotations

import pytest
import torch
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from kbnet_plugin import ops
from kbnet_plugin.ops import kernel_basis_attention, reference
from kbnet_plugin.ops.backend import Arguments


def inputs(batch=1, channels=8, height=6, width=5, bases=4, per_group=4, kernel_size=3, dtype=torch.float32):
    g = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)

    x, a = randn(batch, channels, height, width), randn(batch, bases, height, width)
    w, b = randn(1, bases, channels * per_group * kernel_size**2), randn(1, bases, channels)
    return [x, a, w, b], channels // per_group, kernel_size


@pytest.mark.parametrize("kernel_size", [1, 3, 5])
@pytest.mark.parametrize("per_group", [1, 2, 4])
def test_reference_is_the_equation(per_group, kernel_size):
    (x, a, w, b), groups, k = inputs(2, 4, 4, 3, 3, per_group, kernel_size, torch.float64)
    w4 = w.reshape(3, 4, per_group, k, k)
    expected = torch.zeros_like(x)
    padded = torch.nn.functional.pad(x, [k // 2] * 4)
    for o in range(4):
        first = o // per_group * per_group
        for r in range(4):
            for c in range(3):
                patch = padded[:, first : first + per_group, r : r + k, c : c + k]
                per_basis = torch.einsum("biyx,niyx->bn", patch, w4[:, o]) + b[0, :, o]
                expected[:, o, r, c] = (a[:, :, r, c] * per_basis).sum(1)
    found = kernel_basis_attention(x, a, w, b, groups, k, backend="reference")
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    "needs", [(True, True, True, True), (False, True, False, True), (True, False, False, False)]
)
def test_reference_backward_is_its_derivative(needs):
    tensors, groups, k = inputs(2, 4, 3, 4, 3, 2, 3, torch.float64)
    for t, n in zip(tensors, needs, strict=True):
        t.requires_grad_(n)
    args = Arguments(*tensors, groups, k)
    out = reference.forward(args)
    grad = torch.randn_like(out)
    expected = torch.autograd.grad(out, [t for t in tensors if t.requires_grad], grad)
    with torch.no_grad():
        found = reference.backward(grad, args, needs)
    for f, e in zip((f for f in found if f is not None), expected, strict=True):
        torch.testing.assert_close(f, e)


def test_gradients_reach_every_input_through_the_registered_operator():
    tensors, groups, k = inputs(2, 4, 3, 3, 3, 2, 3, torch.float64)
    tensors = [t.requires_grad_() for t in tensors]
    assert torch.autograd.gradcheck(lambda *t: kernel_basis_attention(*t, groups, k), tensors)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_output_keeps_dtype_and_memory_format(memory_format):
    (x, a, w, b), groups, k = inputs()
    x, a = x.contiguous(memory_format=memory_format), a.contiguous(memory_format=memory_format)
    out = kernel_basis_attention(x, a, w, b, groups, k)
    assert out.dtype == x.dtype
    assert out.is_contiguous(memory_format=memory_format)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # opcheck's own
def test_operator_registration_is_sound():
    tensors, groups, k = inputs()
    for t in tensors:
        t.requires_grad_()
    torch.library.opcheck(torch.ops.kbnet.kernel_basis_attention, (*tensors, groups, k, "auto"))


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_compiles_without_a_graph_break(backend):
    tensors, groups, k = inputs()
    compiled = torch.compile(
        lambda *t: kernel_basis_attention(*t, groups, k, backend).sin(), fullgraph=True, backend="aot_eager"
    )
    tensors = [t.requires_grad_() for t in tensors]
    out = compiled(*tensors)
    torch.testing.assert_close(out, kernel_basis_attention(*tensors, groups, k).sin())
    out.sum().backward()
    assert all(t.grad is not None for t in tensors)


def test_exports_with_a_free_size():
    class Module(torch.nn.Module):
        def forward(self, x, a, w, b):
            return kernel_basis_attention(x, a, w, b, groups=2)

    tensors, _, _ = inputs()
    h, w_ = torch.export.Dim("h", min=2, max=64), torch.export.Dim("w", min=2, max=64)
    free = {2: h, 3: w_}
    program = torch.export.export(Module(), tuple(tensors), dynamic_shapes=(free, free, None, None))
    other, _, _ = inputs(height=9, width=4)
    torch.testing.assert_close(program.module()(*other), Module()(*other))


def test_autocast_decides_the_dtype():
    tensors, groups, k = inputs()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = kernel_basis_attention(*tensors, groups, k)
    assert out.dtype == torch.bfloat16
    expected = kernel_basis_attention(*tensors, groups, k)
    assert (out - expected).abs().max() <= 2e-2 * expected.abs().max()


def test_activation_checkpointing_gives_the_same_gradients():
    tensors, groups, k = inputs()
    plain = [t.clone().requires_grad_() for t in tensors]
    kernel_basis_attention(*plain, groups, k).square().sum().backward()
    saved = [t.clone().requires_grad_() for t in tensors]
    checkpoint(
        lambda *t: kernel_basis_attention(*t, groups, k), *saved, use_reentrant=False
    ).square().sum().backward()
    for p, s in zip(plain, saved, strict=True):
        torch.testing.assert_close(p.grad, s.grad)


def test_flop_counter_sees_what_the_plain_equation_costs():
    tensors, groups, k = inputs(batch=2, bases=32)
    counts = []
    for backend in ("auto", "reference"):
        with FlopCounterMode(display=False) as counter:
            kernel_basis_attention(*tensors, groups, k, backend=backend)
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


def test_batch_of_none_and_empty_needs():
    tensors, groups, k = inputs(batch=0)
    assert kernel_basis_attention(*tensors, groups, k).shape == (0, 8, 6, 5)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": torch.zeros(8, 6, 5)}, "batch, channels, height, width"),
        ({"a": torch.zeros(1, 4, 6, 6)}, "share batch, height and width"),
        ({"w": torch.zeros(1, 4, 7)}, r"weight must be \(1, 4, 288\)"),
        ({"b": torch.zeros(1, 4, 9)}, r"bias must be \(1, 4, 8\)"),
        ({"b": torch.zeros(1, 4, 8, dtype=torch.float64)}, "share one floating dtype"),
        ({"groups": 3}, "groups must divide the 8 channels"),
        ({"kernel_size": 2}, "odd and positive"),
        ({"backend": "cudnn"}, "choose auto, triton, native, tiled, reference"),
    ],
)
def test_what_does_not_fit_is_named(change, words):
    (x, a, w, b), groups, k = inputs()
    call = {"x": x, "a": a, "w": w, "b": b, "groups": groups, "kernel_size": k, "backend": "auto"} | change
    with pytest.raises(ValueError, match=words):
        kernel_basis_attention(
            call["x"], call["a"], call["w"], call["b"], call["groups"], call["kernel_size"], call["backend"]
        )


def test_environment_variable_replaces_auto(monkeypatch):
    tensors, groups, k = inputs()
    monkeypatch.setenv(ops.BACKEND_VARIABLE, "tiled")
    assert ops.select_backend(*tensors, groups, k) == "tiled"
    monkeypatch.setenv(ops.BACKEND_VARIABLE, "quick")
    with pytest.raises(ValueError, match="choose auto"):
        kernel_basis_attention(*tensors, groups, k)


def test_a_named_backend_that_cannot_run_says_why():
    tensors, groups, k = inputs(dtype=torch.float64)
    with pytest.raises(ValueError, match=r"triton.*cannot run here"):
        kernel_basis_attention(*tensors, groups, k, backend="triton")


def test_available_backends_always_has_the_plain_ones():
    found = ops.available_backends()
    assert list(found) == list(ops.BACKENDS)
    assert found["tiled"] is None
    assert found["reference"] is None
