"""Schedulers, losses, metrics, mixup, the import shim and registration."""

from __future__ import annotations

import subprocess
import sys
from copy import deepcopy
from importlib.metadata import EntryPoint

import numpy as np
import pytest
import torch
from basicsr.losses import build_loss
from basicsr.metrics import calculate_metric
from basicsr.utils import registry as registries

from basicsr_ext import registry
from basicsr_ext.base_model import BaseModelFixes
from basicsr_ext.metrics import to_image
from basicsr_ext.model import ImageCleanModel
from basicsr_ext.schedulers import CosineAnnealingRestartCyclicLR
from kbnet_plugin.errors import BadInput


def rates(steps, **keys):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=3e-4)
    scheduler = CosineAnnealingRestartCyclicLR(optimizer, **keys)
    values = []
    for _ in range(steps):
        values.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return values


def test_the_released_schedule_is_constant_then_a_cosine_and_keeps_its_last_value():
    values = rates(310, periods=[92, 208], restart_weights=[1, 1], eta_mins=[3e-4, 1e-6])
    assert values[:93] == pytest.approx([3e-4] * 93)
    assert values[92 + 104] == pytest.approx((3e-4 + 1e-6) / 2)
    assert values[299] == pytest.approx(1.017e-6, rel=1e-3)
    assert values[300:] == pytest.approx([1e-6] * 10)


def test_restart_weights_scale_their_cycle():
    values = rates(8, periods=[4, 4], restart_weights=[1, 0.5], eta_mins=[0, 0])
    assert values[5] == pytest.approx(values[1] / 2)


def test_unequal_schedules_are_refused():
    with pytest.raises(BadInput, match="same length"):
        rates(1, periods=[4, 4], restart_weights=[1], eta_mins=[0, 0])


@pytest.mark.parametrize("luma", [False, True])
def test_psnr_loss_is_the_negative_psnr(luma):
    torch.manual_seed(0)
    target, pred = torch.rand(2, 2, 3, 8, 8)
    loss = build_loss({"type": "PSNRLoss", "loss_weight": 0.5, "toY": luma})(pred, target)
    metric = [
        calculate_metric(
            {"img": to_image(p[None], rounded=False), "img2": to_image(t[None], rounded=False)},
            {"type": "calculate_psnr", "crop_border": 0, "test_y_channel": luma},
        )
        for p, t in zip(pred, target, strict=True)
    ]
    assert float(loss) == pytest.approx(-0.5 * np.mean(metric), rel=1e-4)


@pytest.mark.parametrize("name", ["psnr", "ssim"])
def test_clamped_metrics_equal_the_stock_ones_on_clamped_images(name):
    rng = np.random.default_rng(0)
    clean = rng.uniform(0, 255, (16, 16, 3)).astype(np.float32)
    noisy = clean + rng.normal(0, 80, clean.shape).astype(np.float32)
    stock = {"type": f"calculate_{name}", "crop_border": 2}
    ours = {"type": f"calculate_{name}_clamped", "crop_border": 2, "better": "higher"}
    expected = calculate_metric({"img": noisy.clip(0, 255), "img2": clean}, stock)
    assert calculate_metric({"img": noisy, "img2": clean}, ours) == pytest.approx(expected)
    tensors = [torch.from_numpy(i[..., ::-1].copy()).permute(2, 0, 1)[None] / 255 for i in (noisy, clean)]
    got = calculate_metric(dict(zip(("img", "img2"), tensors, strict=True)), ours)
    assert got == pytest.approx(expected, rel=1e-4)
    assert calculate_metric({"img": noisy, "img2": clean}, stock) != pytest.approx(expected)


def test_images_are_clamped_in_bgr_and_rounded_on_demand():
    tensor = torch.tensor([-1.0, 0.501, 2.0]).view(1, 3, 1, 1)
    assert to_image(tensor, rounded=True).tolist() == [[[255, 128, 0]]]
    assert to_image(tensor, rounded=False)[0, 0] == pytest.approx([255, 0.501 * 255, 0])
    assert to_image(torch.ones(1, 1, 2, 3), rounded=True).shape == (2, 3, 1)


def mixed(identity):
    model = ImageCleanModel.__new__(ImageCleanModel)
    model.device = torch.device("cpu")
    clean = torch.arange(4.0).view(4, 1, 1, 1)
    model.gt, model.lq = clean, clean + 10
    model._mix(1.2, identity)
    return model, clean


def test_mixup_blends_inputs_and_targets_alike():
    changed = 0
    for seed in range(40):
        np.random.seed(seed)
        torch.manual_seed(seed)
        model, clean = mixed(identity=False)
        assert torch.allclose(model.lq - model.gt, torch.tensor(10.0))
        assert model.gt.sum() == pytest.approx(float(clean.sum()))
        changed += not torch.equal(model.gt, clean)
    assert changed > 30


def test_with_identity_about_half_the_batches_stay_as_they_are():
    stayed = sum(torch.equal(m.gt, clean) for m, clean in (mixed(identity=True) for _ in range(200)))
    assert 70 < stayed < 140


def test_registering_twice_or_beside_another_copy_does_not_clash(caplog, monkeypatch):
    registry.register()
    assert not caplog.records
    other = type("KBNet_s", (), {"__module__": "somebody.else"})
    monkeypatch.setitem(registries.ARCH_REGISTRY._obj_map, "KBNet_s", other)
    monkeypatch.setattr(registry.logger, "propagate", True)
    registry.register()
    assert "KBNet_s is already registered by somebody.else" in caplog.text
    assert registries.ARCH_REGISTRY.get("KBNet_s") is other


def test_a_plugin_joins_through_its_entry_point_and_a_failing_one_is_named(tmp_path, caplog, monkeypatch):
    (tmp_path / "their_plugin.py").write_text(
        "from basicsr.utils.registry import ARCH_REGISTRY\n@ARCH_REGISTRY.register()\nclass TheirNet: ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry.logger, "propagate", True)
    plugins = [
        EntryPoint("good", "their_plugin", registry.GROUP),
        EntryPoint("broken", "no_such_module", registry.GROUP),
    ]
    monkeypatch.setattr(registry, "entry_points", lambda group: [p for p in plugins if p.group == group])
    registry.register()
    assert "TheirNet" in registries.ARCH_REGISTRY
    assert "broken (no_such_module) failed to load" in caplog.text
    del registries.ARCH_REGISTRY._obj_map["TheirNet"]


def test_importing_the_package_is_light_and_makes_basicsr_importable():
    code = (
        "import sys, basicsr_ext\n"
        "heavy = {'torch', 'basicsr', 'numpy', 'cv2'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "from importlib.util import find_spec\n"
        "name = 'torchvision.transforms.functional_tensor'\n"
        "assert find_spec(name) and find_spec(name)\n"
        "import basicsr_ext._shim as shim\n"
        "count = len(sys.meta_path); shim.install(); assert len(sys.meta_path) == count\n"
        "from torchvision.transforms.functional_tensor import rgb_to_grayscale\n"
        "import basicsr\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_averaged_weights_come_with_the_batch_norm_statistics():
    model = BaseModelFixes()
    model.net_g = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    model.net_g_ema = deepcopy(model.net_g).eval().requires_grad_(False)
    before = model.net_g[0].weight.detach().clone()
    optimizer = torch.optim.SGD(model.net_g.parameters(), lr=0.1)
    for _ in range(3):
        model.net_g(7 + torch.rand(2, 3, 8, 8)).square().mean().backward()
        optimizer.step()
        model.model_ema(0.5)
    seen, averaged = model.net_g[1], model.net_g_ema[1]
    assert seen.running_mean.abs().sum() > 0
    assert torch.equal(averaged.running_mean, seen.running_mean)
    assert torch.equal(averaged.running_var, seen.running_var)
    assert averaged.num_batches_tracked == 3
    distances = [(w - before).abs().sum() for w in (model.net_g_ema[0].weight, model.net_g[0].weight)]
    assert 0 < distances[0] < distances[1]
    assert averaged.running_mean is not seen.running_mean
