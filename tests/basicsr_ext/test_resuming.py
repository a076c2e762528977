"""On resume the option file rules, and the training state gives the place."""

from __future__ import annotations

import pytest
import torch
from basicsr.models.base_model import BaseModel

from basicsr_ext.base_model import BaseModelFixes, scheduler_classes
from basicsr_ext.resuming import load_moments
from kbnet_plugin.errors import BadInput

# Old and new options of each; the change is after step 7, where the old rates have already gone apart.
SCHEDULES = {
    "ConstantLR": ({"factor": 0.5, "total_iters": 3}, {"factor": 0.2, "total_iters": 9}),
    "CosineAnnealingLR": ({"T_max": 10}, {"T_max": 25, "eta_min": 1e-6}),
    "CosineAnnealingRestartCyclicLR": (
        {"periods": [4, 8], "restart_weights": [1, 1], "eta_mins": [1e-3, 1e-6]},
        {"periods": [9, 11], "restart_weights": [1, 0.5], "eta_mins": [5e-4, 1e-5]},
    ),
    "CosineAnnealingRestartLR": (
        {"periods": [5, 5, 5], "restart_weights": [1, 1, 1]},
        {"periods": [8, 40], "restart_weights": [1, 0.5], "eta_min": 1e-5},
    ),
    "CyclicLR": (
        {"base_lr": 1e-4, "max_lr": 1e-3, "step_size_up": 3, "cycle_momentum": False},
        {"base_lr": 1e-5, "max_lr": 1e-2, "step_size_up": 5, "cycle_momentum": False},
    ),
    "ExponentialLR": ({"gamma": 0.9}, {"gamma": 0.95}),
    "LinearLR": ({"total_iters": 5}, {"start_factor": 0.1, "total_iters": 12}),
    "MultiStepLR": ({"milestones": [3, 6]}, {"milestones": [5, 12, 15], "gamma": 0.5}),
    "MultiStepRestartLR": (
        {"milestones": [3, 6]},
        {"milestones": [2, 5, 12], "gamma": 0.5, "restarts": [0, 10], "restart_weights": [1, 0.5]},
    ),
    "OneCycleLR": ({"max_lr": 1e-3, "total_steps": 12}, {"max_lr": 5e-3, "total_steps": 30}),
    "PolynomialLR": ({"total_iters": 10}, {"total_iters": 20, "power": 2}),
    "StepLR": ({"step_size": 3}, {"step_size": 4, "gamma": 0.7}),
}
WITH_FUNCTIONS = {"LambdaLR", "MultiplicativeLR", "SequentialLR"}
"""What no option file can name."""


class Tiny(BaseModelFixes, BaseModel):
    def __init__(self, scheduler, optimizer=(), warmup=-1, minutes=None):
        super().__init__(
            {
                "num_gpu": 0,
                "is_train": True,
                "model_type": "Tiny",
                "minutes": minutes,
                "train": {"scheduler": scheduler, "warmup_iter": warmup},
            }
        )
        self.weight = torch.nn.Parameter(torch.ones(1))
        settings = {"type": "Adam", "lr": 1e-3} | dict(optimizer)
        self.optimizers.append(self.get_optimizer(settings.pop("type"), [self.weight], **settings))
        self.setup_schedulers()

    def run(self, first, last, positions=None):
        """Return, for each step, the group's settings."""
        found = []
        for i in range(first, last + 1):
            if positions:
                self.position = positions[i]
            self.update_learning_rate(i, warmup_iter=self.opt["train"]["warmup_iter"])
            self.weight.grad = torch.ones(1)
            self.optimizers[0].step()
            group = self.optimizers[0].param_groups[0]
            found.append({k: group[k] for k in ("lr", "betas", "weight_decay")})
        return found

    def state(self, iteration):
        return {
            "iter": iteration,
            "position": self.position,
            "optimizers": [o.state_dict() for o in self.optimizers],
            "schedulers": [s.state_dict() for s in self.schedulers],
        }


def test_every_scheduler_of_an_option_file_is_tested():
    assert SCHEDULES.keys() == scheduler_classes().keys() - WITH_FUNCTIONS


@pytest.mark.parametrize("warmup", [-1, 4, 10])
@pytest.mark.parametrize("name", SCHEDULES)
def test_after_a_change_the_rates_are_those_of_a_run_with_the_new_options_from_the_start(name, warmup):
    old, new = ({"type": name, **options} for options in SCHEDULES[name])
    before = Tiny(old)
    before.run(1, 7)
    changed = {"lr": 2e-3, "weight_decay": 0.1, "betas": [0.5, 0.9]}
    resumed = Tiny(new, changed, warmup)
    resumed.resume_training(before.state(7))
    assert resumed.run(8, 20) == Tiny(new, changed, warmup).run(1, 20)[7:]
    assert resumed.optimizers[0].state[resumed.weight]["step"] == 20


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")  # as the command does
@pytest.mark.parametrize("name", ["CosineAnnealingRestartCyclicLR", "MultiStepRestartLR"])
def test_by_the_clock_too(name):
    old, new = ({"type": name, **options} for options in SCHEDULES[name])
    positions = {i: 0.8 * i for i in range(1, 16)}
    before = Tiny(old, minutes=1)
    before.run(1, 7, positions)
    resumed = Tiny(new, {"lr": 2e-3}, minutes=1)
    resumed.resume_training(before.state(7))
    assert resumed.run(8, 15, positions) == Tiny(new, {"lr": 2e-3}, minutes=1).run(1, 15, positions)[7:]


def test_a_schedule_that_ends_too_early_says_so():
    model = Tiny({"type": "CosineAnnealingRestartLR", "periods": [3, 3], "restart_weights": [1, 1]})
    with pytest.raises(BadInput, match=r"CosineAnnealingRestartLR\) has no rate for iter 8 .*total_iter"):
        model.run(1, 20)


def optimizer(kind, **options):
    weight = torch.nn.Parameter(torch.ones(2, 2))
    made = getattr(torch.optim, kind)([weight], lr=0.1, **options)
    weight.grad = torch.ones(2, 2)
    made.step()
    return made


@pytest.mark.parametrize(
    ("saved", "now", "missing"),
    [
        (("Adam", {}), ("SGD", {"momentum": 0.9}), "momentum_buffer"),
        (("SGD", {"momentum": 0.9}), ("AdamW", {}), "exp_avg, exp_avg_sq, step"),
        (("Adam", {}), ("Adam", {"amsgrad": True}), "max_exp_avg_sq"),
        (("AdamW", {}), ("RMSprop", {}), "square_avg"),
    ],
)
def test_moments_of_another_optimizer_are_refused_in_one_line(saved, now, missing):
    state, made = optimizer(saved[0], **saved[1]).state_dict(), optimizer(now[0], **now[1])
    with pytest.raises(BadInput, match=f"of another optimizer: {now[0]} needs {missing}, it has"):
        load_moments(made, state)


@pytest.mark.parametrize("now", [("AdamW", {}), ("Adam", {"fused": True}), ("SGD", {})])
def test_moments_that_fit_are_used(now):
    made = optimizer(now[0], **now[1])
    load_moments(made, optimizer("Adam").state_dict())
    made.step()


def test_a_state_without_moments_fits_any_optimizer():
    made = optimizer("AdamW")
    load_moments(made, optimizer("SGD").state_dict())
    made.step()
