"""Train a model on a noisy stack alone, and add it to the user's models.

`Fit` writes the options of an experiment and runs ``basicsr train`` with them in a separate process; nothing
here imports BasicSR.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Generator
from dataclasses import asdict
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from .. import zoo
from ..errors import BadInput
from ..files import atomic_path
from ..inference.device import find_device
from ..zoo.locations import check_name
from ..zoo.weights import load_network
from .card import METHODS as TITLES
from .card import card, plural, started
from .choice import Choice, Judge
from .config import DOUBT, METHODS, FitConfig, can_train
from .options import changed, experiment, shipped
from .planes import Planes

_PATIENCE = 3  # checks without a smaller error, after which training ends
_VISIBLE = "CUDA_VISIBLE_DEVICES"


class Step(NamedTuple):
    """Progress of a run.

    Attributes
    ----------
    iteration : int
        Step that was finished, from 1.
    total : int
        Number of steps of the run.
    loss : float
        Loss of this step's batch.
    gain : float or None
        Estimated PSNR of the last checkpoint above that of the model that training started from, in dB; from
        scratch, above that of the noisy planes. None before the first.
    """

    iteration: int
    total: int
    loss: float
    gain: float | None = None


class Fit:
    """A training run, new or resumed.

    Parameters
    ----------
    config : FitConfig
        A run of the same name that was interrupted, or that had fewer iterations, is resumed.
    overwrite : bool
        Start over, and replace any run and model of this name.

    Attributes
    ----------
    config : FitConfig
    planes : Planes
        What is trained on.
    range : (float, float)
        Values that become 0 and 1.
    patch : int
        Side of the training crops in pixels; smaller than configured if the planes are.
    device : torch.device
    options : dict
        Options of the experiment, as for ``basicsr train``.
    resumes : bool
        Whether the run continues an earlier one.

    Raises
    ------
    FileNotFoundError, ValueError
        If the source cannot be read or does not fit the network, a setting is invalid, or BasicSR is missing.
    FileExistsError
        If a model of this name exists, or a run of this name was started with different settings.

    Examples
    --------
    >>> fit = Fit(FitConfig(source="stack.tif", name="my-cells"))  # doctest: +SKIP
    >>> for step in fit.run():  # doctest: +SKIP
    ...     print(step.iteration, step.total, step.loss, step.gain)
    >>> model = fit.save()  # doctest: +SKIP
    """

    def __init__(self, config: FitConfig, *, overwrite: bool = False) -> None:
        if not can_train():
            raise ValueError("training needs BasicSR, which is not installed: pip install 'kbnet[train]'")
        check_name(config.name)
        if config.method not in METHODS:
            raise ValueError(f"method must be {' or '.join(METHODS)}, not {config.method!r}")
        if config.method == "r2r" and config.norm != "l2":
            raise BadInput(f"method r2r needs norm l2, not {config.norm}: use n2v or n2n")
        if config.iterations is not None and config.iterations < 1:
            raise ValueError(f"iterations must be at least 1, not {config.iterations}")
        self.config, self.overwrite = config, overwrite
        root = zoo.folder() / "fits"
        self.folder = root / config.name
        self.option_file = root / f"{config.name}.yml"
        self.console = root / f"{config.name}.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._stopped = self._terminated = False
        self._choice: Choice | None = None
        self._gain: float | None = None  # of the last checkpoint
        self._best_gain: float | None = None
        self._checks = 0, 0  # step of the last checkpoint that was measured; checks without a better one
        device = find_device(config.device)
        if device.type not in ("cpu", "cuda"):
            device = torch.device("cpu")  # BasicSR supports no other
        self.device = device
        self.source = _file(config.source, root, config.name)
        self.label = self.source.name if isinstance(config.source, str | PathLike) else config.name
        self._second = None if config.second is None else _file(config.second, root, f"{config.name}-second")
        planes = Planes(self.source, config.axes)
        self.planes = planes
        self.range = planes.range(config.range)
        smallest = min(min(planes.size(n)) for n in range(len(planes)))
        self.patch = min(config.patch, smallest)
        self._pairs: list[tuple[int, int]] | None = None
        if config.method == "n2n":
            self._pairs = (
                planes.pairs(config.pair_axis)  # raises if there are none
                if config.second is None
                else [(n, n) for n in range(len(planes))]
            )
        self.options = experiment(
            config,
            planes,
            source=self.source,
            second=self._second,
            folder=self.folder,
            device=device,
            scale=self.range,
            patch=self.patch,
        )
        self.resumes = self._check_earlier_run()
        if self._judge.doubt:
            raise BadInput(f"{self.label}: {DOUBT}")

    def run(self) -> Generator[Step, None, None]:
        """Train, or resume training.

        Closing the generator, or raising an exception while iterating over it, stops training like `stop`.

        Yields
        ------
        Step
            From time to time.

        Raises
        ------
        ValueError
            If training fails; one line with the error of the process.
        """
        self._write()
        environment = dict(os.environ)
        root = str(Path(__file__).resolve().parents[2])
        if root != sysconfig.get_path("purelib"):  # a source tree, which is not found from another folder
            before = environment.get("PYTHONPATH")
            environment["PYTHONPATH"] = os.pathsep.join([root, *([before] if before else [])])
        if self.device.index is not None:
            environment[_VISIBLE] = visible(self.device.index, environment.get(_VISIBLE))
        command = [sys.executable, "-m", "basicsr_ext", "train", "-opt", str(self.option_file)]
        with self.console.open("wb") as console:
            # In a new session, so that Ctrl-C reaches only this process, which terminates the other once.
            self._process = process = subprocess.Popen(
                [*command, "--auto_resume", "--parent", str(os.getpid())],
                cwd=self.option_file.parent,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._terminated = False
        if self._stopped:
            self._terminate()
        seen = 0
        try:
            while True:
                running = process.poll() is None  # before reading, so that the last steps are read, too
                self._check()
                for step in self._steps(seen):
                    seen = step.iteration
                    yield step._replace(gain=self._gain)
                if not running:
                    break
                time.sleep(0.1)
        finally:
            self._terminate()
            process.wait()
        if process.returncode != 0 and not self._stopped:
            raise ValueError(self._failure(process.returncode))

    def stop(self) -> None:
        """Stop training after the current step and save a checkpoint; may be called from any thread."""
        self._stopped = True
        self._terminate()

    def _terminate(self) -> None:
        if self._process is not None and self._process.poll() is None and not self._terminated:
            self._terminated = True  # a second signal would end it without saving
            self._process.terminate()

    @property
    def summary(self) -> str:
        """One line about what is trained on what, for users."""
        (height, width), (low, high) = self.planes.size(0), self.range
        colour = "colour" if self.planes.channels == 3 else "gray"
        parts = [
            f"{TITLES[self.config.method]}, {started(self._start)}, "
            f"{plural(self.options['train']['total_iter'], 'step')} on {self.device}",
            f"{plural(len(self.planes), f'{colour} plane')} of {height} x {width} pixels",
            f"intensities {low:g} to {high:g} become 0 to 1",
        ]
        if self.resumes:
            parts.append(f"resumes after {plural(self.iteration, 'step')}")
        return "; ".join(parts)

    @property
    def verdict(self) -> str:
        """One line about which model `save` kept, and how much better it is by the measure; empty before."""
        return self._choice.said if self._choice else ""

    @property
    def iteration(self) -> int:
        """Step of the last checkpoint; 0 if there is none."""
        states = (p for p in (self.folder / "training_states").glob("*") if p.stem.isdigit())
        return max((int(p.stem) for p in states), default=0)

    @property
    def checkpoint(self) -> Path:
        """File of the last checkpoint."""
        return self._weights(self.iteration)

    def save(self) -> zoo.Model:
        """Add a model to the user's list: the trained one or the start, as is better by the measure.

        Returns
        -------
        Model

        Raises
        ------
        ValueError
            If there is no checkpoint yet.
        """
        if not (iteration := self.iteration):
            raise ValueError(f"{self.config.name}: training stopped before its first step; nothing to save")
        files = {"best": self._best, "last": self.checkpoint}
        trained = {name: load_network(file) for name, file in files.items() if file.exists()}
        self._choice = choice = self._judge.choose(trained)
        return zoo.register_model(
            choice.network,
            self.config.name,
            title=f"removes noise from images like {self.label} ({self.config.method}, "
            f"{plural(iteration, 'step')})",
            task="denoise",
            window=self.patch * 3 // 2,
            range=self.range,
            card=card(self, iteration, choice),
            overwrite=True,
        )

    @property
    def _start(self) -> str | None:
        weights: str | None = self.options["path"]["pretrain_network_g"]
        return weights

    @property
    def _best(self) -> Path:
        return self.folder / "best.pth"

    def _weights(self, iteration: int) -> Path:
        return self.folder / "models" / f"net_g_{iteration}.pth"

    @cached_property
    def _judge(self) -> Judge:
        others = None
        if self._second is not None:
            others = Planes(self._second, self.config.axes, self.planes.channels)
        start = self._start
        return Judge(
            self.planes,
            self.range,
            self.patch * 3 // 2,
            denoiser=load_network(start or zoo.get_model(shipped(self.planes)).path),
            start=load_network(start) if start else None,
            name=Path(start).stem if start else "",
            pairs=self._pairs,
            others=others,
            device=self.device,
        )

    def _check(self) -> None:
        """Measure a new checkpoint; keep the best, and stop when they no longer get better."""
        (last, worse), iteration = self._checks, self.iteration
        if iteration <= last:
            return
        copy = self.folder / "checked.pth"
        try:
            shutil.copyfile(self._weights(iteration), copy)
        except FileNotFoundError:  # a newer one has replaced it
            return
        self._gain = self._judge.gain(load_network(copy))
        better = True
        if self._best.exists() and self._gain is not None:
            self._best_gain = self._judge.gain(load_network(self._best)) if last == 0 else self._best_gain
            better = self._gain > (self._best_gain or 0.0)
        if better:
            copy.replace(self._best)
            self._best_gain = self._gain
        # Not before the learning rate falls, as the error often rises before.
        late = iteration > self.options["train"]["total_iter"] // 2
        self._checks = iteration, worse + 1 if late and not better else 0
        if self._checks[1] >= _PATIENCE:
            self.stop()

    def _check_earlier_run(self) -> bool:
        """Tell whether there is a run to resume; raise if it has different settings."""
        name = self.config.name
        if self.overwrite:
            return False
        try:
            earlier = json.loads(self.option_file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            if any(model.name == name for model in zoo.list_models()):
                raise FileExistsError(
                    f"a model called {name} exists already; choose another name or overwrite it"
                ) from None
            return False
        except ValueError:
            earlier = {}
        if differ := changed(earlier, self.options):
            raise FileExistsError(
                f"{name} was started with different settings ({', '.join(differ)}); choose another name or "
                "overwrite it"
            )
        return self.iteration > 0

    def _write(self) -> None:
        self.option_file.parent.mkdir(parents=True, exist_ok=True)
        if not self.iteration or self.overwrite:
            shutil.rmtree(self.folder, ignore_errors=True)
        self.overwrite = False  # only once: another run() resumes this one
        if self.config.method == "r2r":
            curves = [list(asdict(curve).values()) for curve in self._judge.noise]
            self.options["datasets"]["train"]["noise"] = curves
        with atomic_path(self.option_file) as temporary:  # JSON is YAML
            temporary.write_text(json.dumps(self.options, indent=1) + "\n", encoding="utf-8")

    def _steps(self, after: int) -> list[Step]:
        try:
            text = (self.folder / "history.csv").read_text(encoding="utf-8")
        except FileNotFoundError:
            return []
        complete = text[: text.rfind("\n") + 1]
        rows = (row for row in csv.reader(complete.splitlines()) if len(row) == 3 and row[1] == "l_pix")
        total = self.options["train"]["total_iter"]
        return [Step(int(i), total, float(loss)) for i, _, loss in rows if int(i) > after]

    def _failure(self, status: int) -> str:
        lines = self.console.read_text(encoding="utf-8", errors="replace").splitlines()
        errors = [line.removeprefix("basicsr: ") for line in lines if line.startswith("basicsr: ")]
        if errors:
            return errors[-1]
        last = next((line for line in reversed(lines) if line.strip()), f"exit status {status}")
        return f"training failed ({last}); see {self.console}"


def _file(source: Any, folder: Path, name: str) -> Path:
    """Return the path of a source. An array, which may be lazy, is saved under a name with its digest."""
    if isinstance(source, str | PathLike):
        return Path(source).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with atomic_path(folder / f"{name}.npy") as temporary:
        copy = np.lib.format.open_memmap(temporary, "w+", np.dtype(source.dtype), tuple(source.shape))
        for part in range(copy.shape[0]) if copy.ndim > 2 else [slice(None)]:
            copy[part] = np.asarray(source[part])
            digest.update(copy[part].tobytes())
        copy.flush()
        del copy
    path = folder / f"{name}-{digest.hexdigest()[:12]}.npy"
    (folder / f"{name}.npy").replace(path)
    return path


def visible(index: int, listed: str | None) -> str:
    """Return ``CUDA_VISIBLE_DEVICES`` for a process that should see only one GPU.

    Parameters
    ----------
    index : int
        Index of the GPU among those that this process sees.
    listed : str or None
        Value of the variable in this process: numbers or UUIDs; None if it is not set.
    """
    if listed is None:
        return str(index)
    return listed.split(",")[index].strip()
