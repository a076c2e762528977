"""Train a model on a noisy stack alone, and add it to the user's models.

`Fit` writes the options of an experiment and runs ``basicsr train`` with them in a separate process; nothing
here imports BasicSR.
"""

from __future__ import annotations

import filecmp
import hashlib
import json
import shutil
import time
from collections.abc import Generator
from dataclasses import asdict
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

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
from .example import Example
from .options import changed, experiment, shipped
from .planes import Planes
from .training import RunFiles, Training
from .watch import Watch


class Step(NamedTuple):
    """Progress of a run.

    Attributes
    ----------
    iteration : int
        Step that was finished, from 1.
    total : int
        Number of steps of the run; with a time limit an estimate.
    loss : float
        Loss of this step's batch.
    gain : float or None
        Estimated PSNR of the last checkpoint above that of the model that training started from, in dB; from
        scratch, above that of the noisy planes. None before the first.
    picture : ndarray or None
        A crop of the source before and after, (2, H, W, C) in 0..1, if asked for and there is a new one.
    """

    iteration: int
    total: int
    loss: float
    gain: float | None = None
    picture: NDArray[np.float32] | None = None


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
    files : RunFiles
        Where the run is stored.
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
        if config.correlated is not None and config.method != "n2v":
            raise BadInput(f"only method n2v masks lines for correlated noise, not {config.method}")
        if config.iterations is not None and config.iterations < 1:
            raise ValueError(f"iterations must be at least 1, not {config.iterations}")
        if config.minutes is not None:
            if config.iterations is not None:
                raise BadInput("iterations and minutes both say how long to train; give one of them")
            if not 0 < config.minutes < float("inf"):
                raise BadInput(f"minutes must be above 0, not {config.minutes:g}")
        self.config, self.overwrite = config, overwrite
        root = zoo.folder() / "fits"
        self.files = RunFiles(root, config.name)
        self._training: Training | None = None
        self._stopped = False
        self._choice: Choice | None = None
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
            folder=self.files.folder,
            device=device,
            scale=self.range,
            patch=self.patch,
        )
        self.resumes = self._check_earlier_run()
        if self._judge.doubt:
            raise BadInput(f"{self.label}: {DOUBT}")

    def run(self, *, pictures: bool = False) -> Generator[Step, None, None]:
        """Train, or resume training.

        Closing the generator, or raising an exception while iterating over it, stops training like `stop`.

        Parameters
        ----------
        pictures : bool
            Restore a small crop every few seconds, to show what has been learned.

        Yields
        ------
        Step
            From time to time.

        Raises
        ------
        ValueError
            If training fails; one line with the error of the process.
        """
        if self._stopped:
            return
        self._write()
        self._training = training = Training(self.files, self.device, self.config.minutes)
        watch = Watch(self.files, self._judge)
        example = Example(self.files, self.planes, self.range, self.device) if pictures else None
        if self._stopped:  # meanwhile
            training.terminate()
        seen, total = 0, self.options["train"]["total_iter"]
        try:
            while True:
                running = training.running  # before reading, so that the last steps are read, too
                watch.check()
                picture = example.check(last=not running) if example is not None and seen else None
                for iteration, loss in self.files.losses(seen):
                    seen = iteration
                    step = Step(seen, training.steps(seen, total), loss, watch.gain, picture)
                    yield step
                    picture = None
                if picture is not None:
                    yield step._replace(picture=picture)
                if not running:
                    break
                time.sleep(0.1)
        finally:
            training.terminate()
            status = training.wait()
        if status != 0 and not self._stopped:
            raise ValueError(self.files.failure(status))

    def stop(self) -> None:
        """Stop training after the current step and save a checkpoint; may be called from any thread."""
        self._stopped = True
        if self._training is not None:
            self._training.terminate()

    @property
    def summary(self) -> str:
        """One line about what is trained on what, for users."""
        (height, width), (low, high) = self.planes.size(0), self.range
        colour = "colour" if self.planes.channels == 3 else "gray"
        parts = [
            f"{TITLES[self.config.method]}, {started(self._start)}, {self._length} on {self.device}",
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
        return self.files.iteration

    @property
    def checkpoint(self) -> Path:
        """File of the last checkpoint."""
        return self.files.weights(self.iteration)

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
        trained = {"last": load_network(self.checkpoint)}
        best = self.files.best
        if best.exists() and not filecmp.cmp(best, self.checkpoint, shallow=False):
            trained = {"best": load_network(best), **trained}
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
    def _length(self) -> str:
        if self.config.minutes is None:
            return plural(self.options["train"]["total_iter"], "step")
        return f"{self.config.minutes:g} minutes"

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
            correlated=self.config.correlated is not None,
            device=self.device,
        )

    def _check_earlier_run(self) -> bool:
        """Tell whether there is a run to resume; raise if it has different settings."""
        name = self.config.name
        if self.overwrite:
            return False
        try:
            earlier = json.loads(self.files.options.read_text(encoding="utf-8"))
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
        self.files.options.parent.mkdir(parents=True, exist_ok=True)
        if not self.iteration or self.overwrite:
            shutil.rmtree(self.files.folder, ignore_errors=True)
        self.overwrite = False  # only once: another run() resumes this one
        if self.config.method == "r2r":
            curves = [list(asdict(curve).values()) for curve in self._judge.noise]
            self.options["datasets"]["train"]["noise"] = curves
        with atomic_path(self.files.options) as temporary:  # JSON is YAML
            temporary.write_text(json.dumps(self.options, indent=1) + "\n", encoding="utf-8")


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
