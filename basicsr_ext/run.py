"""A running experiment: its steps, log, checkpoints and validations."""

from __future__ import annotations

import logging
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from . import costs, dist, logs
from .base_model import BaseModelFixes
from .checkpoints import Checkpoints
from .clock import Meter, Schedule, ending
from .history import History
from .options import Options
from .sampler import StageBatchSampler, Stages, seed_everything
from .validation import validate
from .watch import Watch, images_of

logger = logging.getLogger("basicsr")

WARM_UP = 5
"""Steps after which their speed is representative."""

CHECK_EVERY = 20
"""Steps between looks at the device and at the other processes, both of which make a GPU wait."""

ENDING = 2.0
"""Seconds that a run with a time limit keeps for its last checkpoint and its exit."""

VALIDATION_SHARE = 0.1
"""Share of a time limit that the last validation may take."""


class Run:
    """The steps of an experiment, and what is due between them.

    Parameters
    ----------
    options : dict
    model : BaseModelFixes
    val_sets : list of DataLoader
    stages : Stages
    sampler : StageBatchSampler
        Of the batches that `step` gets.
    schedule : Schedule
    start : int
        Iteration to resume after.
    """

    def __init__(
        self,
        options: Options,
        model: Any,
        val_sets: list[Any],
        stages: Stages,
        sampler: StageBatchSampler,
        schedule: Schedule,
        start: int,
    ) -> None:
        self.options, self.model, self.val_sets = options, model, val_sets
        self.stages, self.sampler, self.schedule = stages, sampler, schedule
        self.iteration = self.start = start
        self.world, self.rank = options["world_size"], options["rank"]
        self.validated = start or None
        self.tensorboard = logs.tensorboard(options, start)
        self.bar = tqdm(
            total=1 if schedule.by_clock else schedule.total,
            initial=0 if schedule.by_clock else start,
            unit="it",
            bar_format="{l_bar}{bar}| {elapsed}{postfix}" if schedule.by_clock else None,
            disable=None if self.rank == 0 else True,
            dynamic_ncols=True,
        )
        self.meter = Meter(model.device)
        self.every = CHECK_EVERY if model.device.type == "cuda" else 1
        self._validation: float | None = None
        self.history = None
        if self.rank == 0:
            self.history = History(Path(options["path"]["experiments_root"]), start)
        plot = self.history.plot if self.history else lambda: None
        self.checkpoints = Checkpoints(options, model, start, plot)
        # A model with a check of its own knows more, such as which steps to skip.
        own = type(model).check is not BaseModelFixes.check
        self.watch = None if own else Watch(model.optimizers, model.device)
        self._whole, self._stepping, self._changed = start, False, False
        for optimizer in model.optimizers:
            optimizer.register_step_post_hook(self._note_change)

    def step(self, batch: Any) -> None:
        """Make one iteration, then log, save and validate as due."""
        self.iteration += 1
        i, model, every = self.iteration, self.model, self.options["logger"]
        # Mixup and dropout use the global generators: seeded per step, a resumed run draws the same numbers.
        seed_everything(self.options["manual_seed"], i, self.rank)
        if self.schedule.by_clock:
            model.position = self.schedule.position
        model.update_learning_rate(i, warmup_iter=int(self.options["train"].get("warmup_iter") or -1))
        images = self.sampler.sizes.popleft() * self.world
        pixels = _pixels(batch) * self.world
        self._stepping, self._changed = True, False
        with self.meter.network(images, pixels):
            model.feed_data(batch)
            model.optimize_parameters(i)
        model.samples += images
        self._whole, self._stepping = i, False
        if self.watch:
            self.watch.note(i, model.log_dict, images_of(batch))
        last = self.over
        if i % self.every == 0 or last:
            self._check()
        self.checkpoints.poll()
        self._advance_bar()
        if i == self.start + WARM_UP:
            self._print(record=False)
            self._plan_end()
        elif i % every["print_freq"] == 0 or i == self.start + 1 or last:
            self._print()
        if i % every["save_checkpoint_freq"] == 0:
            self._save()
        elif i % self.every == 0 and self.checkpoints.due:
            self._save(rolling=True)
        if self.options.get("val") and i % self.options["val"]["val_freq"] == 0 and not last:
            self._validate()

    def _note_change(self, *_: Any) -> None:
        self._changed = True

    @property
    def over(self) -> bool:
        """Whether the last step is done."""
        if self.schedule.by_clock:
            return self.schedule.done >= 1
        return self.iteration >= self.schedule.total

    def agree(self, stopping: bool) -> bool:
        """Exchange, between steps, what all processes must know: the clock, and whether one has to stop."""
        clock = self.schedule.by_clock
        if self.world == 1:
            if clock:
                self.schedule.position = self._clock()
            return stopping
        if not clock and self.iteration % self.every:
            return False
        position = self._clock() if clock and self.rank == 0 else 0.0
        flags = dist.total(torch.tensor([float(stopping), position], dtype=torch.float64)).tolist()
        if clock:
            self.schedule.position = flags[1]
        return flags[0] > 0

    def _clock(self) -> float:
        """Return the position, which is the end if another step might not be over in time."""
        position = self.schedule.advance()
        return float(self.schedule.total) if self.schedule.seconds_left < self.meter.pace else position

    def _advance_bar(self) -> None:
        if self.schedule.by_clock:
            self.bar.n = self.schedule.done
            self.bar.refresh()
        else:
            self.bar.update()

    def _print(self, *, record: bool = True) -> None:
        i, log = self.iteration, self.model.get_current_log()
        first = i == self.start + 1  # which also starts the workers
        speed, memory = self.meter.read(), costs.peak_memory(self.model.device)
        left = "first step" if first else f"{speed}, {ending(self._left(speed.per_step))}, {memory}"
        self.meter.restart()
        rate = float(self.model.get_current_learning_rate()[0])
        losses = " ".join(f"{name} {value:.4e}" for name, value in log.items())
        of = f" ({self.schedule.done:.0%})" if self.schedule.by_clock else f"/{self.schedule.total:,}"
        epoch = self.model.samples // self.sampler.length
        logger.info("iter %s%s  epoch %d  lr %.3e  %s  %s", f"{i:,}", of, epoch, rate, losses, left)
        shown = {k: f"{v:.3e}" for k, v in log.items()} | {"lr": f"{rate:.2e}"}
        if not first:
            shown |= {"Mpixels/s": f"{speed.pixels / 1e6:.3g}", "mem": memory}
        self.bar.set_postfix(shown, refresh=False)
        values = {**log, "lr": rate}
        if self.history and record:
            self.history.add(i, values)
        if self.tensorboard:
            for name, value in values.items():
                self.tensorboard.add_scalar(f"losses/{name}" if name.startswith("l_") else name, value, i)
            if not first:
                self.tensorboard.add_scalar("speed/Mpixels per second", speed.pixels / 1e6, i)
                self.tensorboard.add_scalar("speed/images per second", speed.images, i)

    def _left(self, per_step: float) -> float:
        """Return the seconds until the run ends, with the validations that are still to come."""
        if self.schedule.by_clock:
            return self.schedule.seconds_left + self.schedule.reserve
        total = self.schedule.total
        seconds = (total - self.iteration) * per_step
        if self.options.get("val") and self._validation:
            every = self.options["val"]["val_freq"]
            seconds += (-(-total // every) - self.iteration // every) * self._validation
        return seconds

    def _save(self, *, rolling: bool = False) -> None:
        self._check()
        self._note_place()
        self.checkpoints.save(self.iteration, self._epoch, rolling=rolling)

    def _check(self) -> None:
        """Raise if a step since the last call was not finite."""
        self.model.check()
        if self.watch:
            self.watch.check()

    def _note_place(self) -> None:
        self.model.seconds = self.schedule.seconds
        self.model.position = self.schedule.position if self.schedule.by_clock else None

    @property
    def _epoch(self) -> int:
        return int(self.model.samples // self.sampler.length)

    def _validate(self) -> None:
        if self.validated == self.iteration or not self.options.get("val"):
            return
        began = time.monotonic()
        with self.meter.pause():
            for loader in self.val_sets:
                save = self.options["val"]["save_img"]
                results = validate(self.model, loader, self.iteration, self.tensorboard, save)
                if self.history and results:
                    name = loader.dataset.opt["name"]
                    self.history.add(self.iteration, {f"{name} {k}": v for k, v in results.items()})
            self.validated, self._validation = self.iteration, time.monotonic() - began
            if dist.any_rank(self.rank == 0 and self.checkpoints.best == self.iteration):
                self._check()
                self._note_place()
                self.checkpoints.save_best(self.iteration, self._epoch)
            if self.history:
                self.history.plot()

    def _plan_end(self) -> None:
        """With a time limit, reserve time for the last checkpoint, and for a validation if it is short."""
        if self.schedule.limit is None:
            return
        needed = 0.0
        if self.val_sets and self.options.get("val"):
            with self.meter.pause():
                needed = self._validation_time()
        if needed > VALIDATION_SHARE * self.schedule.limit:
            logger.warning(
                "validation would take about %.0f s, too long for --minutes: left out; "
                "test the result with basicsr test", needed
            )  # fmt: skip
            self.options["val"] = None
            needed = 0.0
        self.schedule.reserve = needed + ENDING

    def _validation_time(self) -> float:
        """Estimate how long a validation takes, from one image of each set; the same in every process."""
        seconds = 0.0
        for loader in self.val_sets:
            self.model.feed_data(next(iter(loader)))
            began = time.monotonic()
            self.model.test()
            if self.model.device.type == "cuda":
                torch.cuda.synchronize()
            seconds += (time.monotonic() - began) * -(-len(loader.dataset) // self.world)
        seconds = float(dist.total(torch.tensor([seconds], dtype=torch.float64))) / self.world
        return 1.3 * seconds

    def rescue(self) -> str:
        """Save the last whole step, if its weights are finite, and say which checkpoint there is."""
        if self.rank == 0 and self._whole and not (self._stepping and self._changed):
            # Whatever has broken, perhaps the device itself, is what the message is about.
            with suppress(Exception):
                self._note_place()
                self.checkpoints.save(self._whole, self._epoch, rolling=True)
        return self.checkpoints.kept()

    def finish(self, *, interrupted: bool = False) -> None:
        """Save; unless interrupted, also validate and link the last weights as ``net_*_latest.pth``."""
        self._save()
        self.checkpoints.wait()
        if interrupted:
            logger.info(
                "interrupted: saved at iter %s; --auto_resume continues from there", f"{self.iteration:,}"
            )
        else:
            self._validate()
            self.checkpoints.link("latest", self.iteration)
            logger.info("done: %s", self.options["path"]["models"])
        if self.tensorboard:
            self.tensorboard.close()
        dist.wait()

    def close(self) -> None:
        """End the bar and the thread that saves."""
        self.checkpoints.close()
        self.bar.close()


def _pixels(batch: Any) -> int:
    """Count the pixels of a batch: those of the target, or else of the first image in it."""
    images = [batch.get("gt"), *batch.values()] if isinstance(batch, dict) else []
    found = next((t for t in images if isinstance(t, torch.Tensor) and t.ndim >= 4), None)
    return 0 if found is None else found.numel() // found.shape[-3]
