"""On a GPU: nothing waits for it, and the statistics are those of a CPU."""

from __future__ import annotations

import pytest
import torch

from kbnet_plugin.degradations import DEGRADATIONS, Draws

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")


@pytest.mark.parametrize("name", sorted(DEGRADATIONS.keys() - {"OneOf"}))
def test_a_batch_on_a_gpu_waits_for_nothing_and_is_as_noisy_as_on_a_cpu(name):
    step = DEGRADATIONS[name]()
    small = torch.rand(16, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    clean = torch.nn.functional.interpolate(small, size=(128, 128), mode="bicubic").clamp(0, 1)
    keys = [(0, i) for i in range(16)]
    found = []
    for device in ("cpu", "cuda"):
        images = clean.to(device)
        step(images, images, Draws(keys, device))  # libraries start up
        draws = Draws(keys, device)
        torch.cuda.synchronize()
        try:
            torch.cuda.set_sync_debug_mode("error" if device == "cuda" else "default")
            degraded, target = step(images, images, draws)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        found.append(float((degraded - target).square().mean().sqrt()))
    assert found[1] == pytest.approx(found[0], rel=0.2, abs=1e-4)
