"""A run on disk, and the process that trains it."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import torch

_VISIBLE = "CUDA_VISIBLE_DEVICES"


class RunFiles:
    """The files of a run.

    Parameters
    ----------
    root : Path
        Folder of all runs.
    name : str

    Attributes
    ----------
    folder : Path
        That of the experiment.
    options, console : Path
        Option file, and what the process printed.
    best : Path
        Weights of the checkpoint that was best by the measure.
    """

    def __init__(self, root: Path, name: str) -> None:
        self.folder, self.options, self.console = root / name, root / f"{name}.yml", root / f"{name}.log"
        self.best = self.folder / "best.pth"

    @property
    def iteration(self) -> int:
        """Step of the last checkpoint; 0 if there is none."""
        states = (p for p in (self.folder / "training_states").glob("*") if p.stem.isdigit())
        return max((int(p.stem) for p in states), default=0)

    def weights(self, iteration: int) -> Path:
        """Return the file of a checkpoint."""
        return self.folder / "models" / f"net_g_{iteration}.pth"

    def seconds(self) -> float:
        """Return how long training had taken at the last checkpoint."""
        file = self.folder / "training_states" / f"{self.iteration}.state"
        if not file.exists():
            return 0.0
        return float(torch.load(file, map_location="cpu", weights_only=True).get("seconds", 0.0))

    def losses(self, after: int) -> list[tuple[int, float]]:
        """Read the steps after one, and their losses."""
        try:
            text = (self.folder / "history.csv").read_text(encoding="utf-8")
        except FileNotFoundError:
            return []
        complete = text[: text.rfind("\n") + 1]
        rows = (row for row in csv.reader(complete.splitlines()) if len(row) == 3 and row[1] == "l_pix")
        return [(int(i), float(loss)) for i, _, loss in rows if int(i) > after]

    def failure(self, status: int) -> str:
        """Say in one line why the process failed."""
        lines = self.console.read_text(encoding="utf-8", errors="replace").splitlines()
        errors = [line.removeprefix("basicsr: ") for line in lines if line.startswith("basicsr: ")]
        if errors:
            return errors[-1]
        last = next((line for line in reversed(lines) if line.strip()), f"exit status {status}")
        return f"training failed ({last}); see {self.console}"


class Training:
    """The process ``basicsr train`` of a run; it goes on from the last checkpoint.

    Parameters
    ----------
    files : RunFiles
        The option file must exist.
    device : torch.device
    minutes : float, optional
        Time for all of the run, by which its learning rates then go.
    """

    def __init__(self, files: RunFiles, device: torch.device, minutes: float | None = None) -> None:
        self._files, self._minutes = files, minutes
        self._began, self._earlier = time.monotonic(), files.seconds() if minutes else 0.0
        self._terminated = False
        environment = dict(os.environ)
        root = str(Path(__file__).resolve().parents[2])
        if root != sysconfig.get_path("purelib"):  # a source tree, which is not found from another folder
            before = environment.get("PYTHONPATH")
            environment["PYTHONPATH"] = os.pathsep.join([root, *([before] if before else [])])
        if device.index is not None:
            environment[_VISIBLE] = visible(device.index, environment.get(_VISIBLE))
        command = [sys.executable, "-m", "basicsr_ext", "train", "-opt", str(files.options)]
        command += ["--auto_resume", "--parent", str(os.getpid())]
        command += ["--minutes", str(minutes)] if minutes else []
        with files.console.open("wb") as console:
            # Apart, so that Ctrl-C reaches only this process, which terminates the other once.
            self.process = subprocess.Popen(
                command,
                cwd=files.options.parent,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
                start_new_session=sys.platform != "win32",
                creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
            )

    @property
    def running(self) -> bool:
        """Whether the process has not ended."""
        return self.process.poll() is None

    def steps(self, iteration: int, total: int) -> int:
        """Return the number of steps of the run: `total`, or with a time limit by the speed so far."""
        if not self._minutes:
            return total
        seconds = self._earlier + time.monotonic() - self._began
        return max(iteration, round(iteration * 60 * self._minutes / seconds)) if self.running else iteration

    def terminate(self) -> None:
        """Let the process save and end after its current step."""
        if self.running and not self._terminated:
            self._terminated = True  # a second signal would end it without saving
            try:  # on Windows, terminate() ends a process on the spot
                self.process.send_signal(getattr(signal, "CTRL_BREAK_EVENT", signal.SIGTERM))
            except OSError:  # without a console
                self.process.terminate()

    def wait(self) -> int:
        """Wait for the end of the process; return its status."""
        return self.process.wait()


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
