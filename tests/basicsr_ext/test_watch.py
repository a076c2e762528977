"""The watch for losses, gradients and weights that are not finite, for every model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from basicsr.models.sr_model import SRModel
from torch import nn

from basicsr_ext.__main__ import main
from basicsr_ext.watch import NotFiniteError, Watch, require_finite
from tests.basicsr_ext.checkpoints import same, weights

STOCK = str(Path(__file__).with_name("stock.yml"))
CPU = torch.device("cpu")


def test_a_stock_model_that_diverges_stops_and_keeps_its_healthy_checkpoints(pairs, capsys, monkeypatch):
    step = SRModel.optimize_parameters

    def broken(self, i):
        if i == 5:
            self.lq = self.lq * float("nan")
        step(self, i)

    options = [
        "--force_yml",
        "train:total_iter=8",
        "logger:save_checkpoint_freq=1",
        "logger:keep_checkpoints=2",
    ]
    with monkeypatch.context() as patch:
        patch.setattr(SRModel, "optimize_parameters", broken)
        assert main(["train", "-opt", STOCK, *options]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "the loss or its gradient is not finite at iter 5 (images " in said
    assert "data/lq/" in said
    assert "the checkpoint of iter 5 is kept; --auto_resume continues from there" in said
    assert "on_nan" not in said  # which this model does not have
    folder = Path("experiments/stock")
    assert {p.name for p in (folder / "training_states").iterdir()} == {"3.state", "4.state", "5.rolling"}
    # The step changed nothing.
    for key in ("params", "params_ema"):
        assert all(t.isfinite().all() for t in weights("stock", 5, key).values())
    assert same(weights("stock", 5), weights("stock", 4))
    assert main(["train", "-opt", STOCK, "--auto_resume", *options]) == 0


@pytest.mark.parametrize("kind", ["Adam", "SGD", "RMSprop"])
def test_a_gradient_that_is_not_finite_changes_nothing(kind):
    weight = nn.Parameter(torch.ones(3))
    optimizer = getattr(torch.optim, kind)([weight], lr=0.1)
    watch = Watch([optimizer], CPU)
    weight.grad = torch.ones(3)
    optimizer.step()
    watch.note(1, {"l_pix": torch.tensor(1.0)}, ["a.png"])
    watch.check()
    before = weight.detach().clone()
    weight.grad = torch.tensor([1.0, float("nan"), 1.0])
    optimizer.step()
    assert torch.equal(weight, before)
    watch.note(2, {"l_pix": torch.tensor(1.0)}, ["b.png"])
    watch.note(3, {"l_pix": torch.tensor(1.0)}, ["c.png"])
    with pytest.raises(NotFiniteError, match=r"at iter 2 \(images b.png\)"):
        watch.check()
    watch.check()


def test_a_loss_that_is_not_finite_is_noticed_without_a_gradient():
    watch = Watch([], CPU)
    watch.note(1, {"l_pix": torch.tensor(1.0), "l_gan": torch.tensor(float("inf"))}, [])
    with pytest.raises(NotFiniteError, match=r"at iter 1$"):
        watch.check()


def test_overflows_are_left_to_a_scaler():
    weight = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.Adam([weight], lr=0.1, fused=True)
    watch = Watch([optimizer], CPU)
    weight.grad = torch.full((1,), float("inf"))
    optimizer.found_inf = torch.ones(())
    optimizer.step()
    watch.note(1, {}, [])
    watch.check()
    assert weight.item() == 1


def test_weights_must_be_finite_and_buffers_must_not_be_nan():
    net = nn.BatchNorm2d(2)
    net.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
    require_finite([net], 7)
    net.running_mean[0] = torch.nan
    with pytest.raises(NotFiniteError, match="at iter 7"):
        require_finite([net], 7)
    net.running_mean[0] = 0
    net.weight.data[1] = torch.inf
    with pytest.raises(NotFiniteError, match="at iter 7"):
        require_finite([net], 7)
