"""Whole networks that are timed side by side: KBNet and its peers, as published and optimized."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kbnet_plugin import KBNet_l, KBNet_s
from kbnet_plugin.nn.layers import LayerNorm2d

from . import measure
from .networks import PEERS, architecture

LIGHTWEIGHT = {"lightweight": True, "ffn_scale": 1.5}
PEER_OF = {"KBNet_s": "NAFNet-w64", "KBNet_l": "Restormer"}
BATCH, CROP = 8, 128
"""Of a training step: crops, and pixels on a side."""


def nafnet() -> nn.Module:
    return architecture("NAFNet")(**PEERS["NAFNet"])


def restormer() -> nn.Module:
    """The network for deraining and deblurring, KBNet_l's own tasks."""
    return architecture("Restormer")(**PEERS["Restormer"])


def published_s() -> nn.Module:
    from spandrel.architectures.KBNet import KBNet_s as Published

    return Published(**LIGHTWEIGHT)


def published_l() -> nn.Module:
    from spandrel.architectures.KBNet import KBNet_l as Published

    return Published()


def optimize(network: nn.Module) -> nn.Module:
    """Give a peer what KBNet has here: channels-last memory and torch's fused layer normalization."""
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            kind = type(child).__name__
            if kind == "LayerNorm2d":  # NAFNet
                setattr(parent, name, _fused(child.weight, child.bias, child.eps))
            elif kind == "LayerNorm" and hasattr(child, "body"):  # Restormer
                setattr(parent, name, _fused(child.body.weight, child.body.bias, 1e-5))
    return network.to(memory_format=torch.channels_last)


def _fused(weight: Tensor, bias: Tensor, eps: float) -> LayerNorm2d:
    norm = LayerNorm2d(len(weight), eps)
    norm.weight, norm.bias = weight, bias
    return norm


@dataclass(frozen=True)
class Candidate:
    """A network in one formulation and precision; `needs` names the package that provides it."""

    build: Callable[[], nn.Module]
    dtype: torch.dtype = torch.float32
    optimized: bool = False
    needs: str = ""


CANDIDATES = {
    "NAFNet-w64 as published": Candidate(nafnet, needs="spandrel"),
    "NAFNet-w64 optimized": Candidate(nafnet, optimized=True, needs="spandrel"),
    "KBNet_s as published": Candidate(published_s, needs="spandrel"),
    "KBNet_s": Candidate(lambda: KBNet_s(**LIGHTWEIGHT)),
    "KBNet_s bf16": Candidate(lambda: KBNet_s(**LIGHTWEIGHT), torch.bfloat16),
    "NAFNet-w64 optimized bf16": Candidate(nafnet, torch.bfloat16, optimized=True, needs="spandrel"),
    "Restormer as published": Candidate(restormer, needs="spandrel_extra_arches"),
    "Restormer optimized": Candidate(restormer, optimized=True, needs="spandrel_extra_arches"),
    "Restormer optimized bf16": Candidate(
        restormer, torch.bfloat16, optimized=True, needs="spandrel_extra_arches"
    ),
    "KBNet_l as published": Candidate(published_l, needs="spandrel"),
    "KBNet_l": Candidate(KBNet_l),
    "KBNet_l bf16": Candidate(KBNet_l, torch.bfloat16),
}
TRAINING = {"KBNet_s as published": published_s, "KBNet_s": CANDIDATES["KBNet_s"].build}


def inference(name: str, size: tuple[int, int], device: str) -> Callable[[], Tensor]:
    """Return a call that restores one image of `size` (height, width)."""
    candidate = CANDIDATES[name]
    network = candidate.build().eval()
    if candidate.optimized:
        network = optimize(network)
    network = network.to(device, candidate.dtype)
    image = torch.rand(1, 3, *size, device=device, dtype=candidate.dtype)
    if candidate.optimized:
        image = image.contiguous(memory_format=torch.channels_last)

    def call() -> Tensor:
        with torch.inference_mode():
            return network(image)

    return call


def training(name: str, device: str) -> Callable[[], None]:
    """Return a call that takes one AdamW step on `BATCH` crops."""
    network = TRAINING[name]().to(device)
    optimizer = torch.optim.AdamW(network.parameters(), 3e-4, fused=True)
    noisy, clean = torch.rand(2, BATCH, 3, CROP, CROP, device=device)

    def call() -> None:
        optimizer.zero_grad()
        nn.functional.l1_loss(network(noisy), clean).backward()
        optimizer.step()

    return call


def prepare(part: str, name: str, size: tuple[int, int], device: str) -> Callable[[], Any]:
    """Return the call of `inference` or of `training`, as `part` names it."""
    return inference(name, size, device) if part == "inference" else training(name, device)


def peak_memory(part: str, name: str, size: tuple[int, int], device: str) -> int:
    """Measure the bytes that a call of `prepare` needs beyond the weights, in a fresh process."""
    return measure.in_fresh_process("-m", __name__, part, name, *map(str, size), device)


def _main(part: str, name: str, height: str, width: str, device: str) -> None:
    call = prepare(part, name, (int(height), int(width)), device)
    if part == "training":
        call()  # gradients and the optimizer's state exist from the second step on
    print(json.dumps(measure.peak_extra_memory(call, device)))


if __name__ == "__main__":
    _main(*sys.argv[1:])
