"""The processes of a command: which device each one uses, how they start and how they end."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kbnet_plugin.errors import BadInput, one_line


def exit_status(name: str, command: Callable[[], int]) -> int:
    """Run a command that a repeated call resumes; print what ended it early, on one line.

    Returns
    -------
    int
        What the command returns; 2 after bad input, 130 after Ctrl-C.
    """
    try:
        return command()
    except KeyboardInterrupt:
        print(f"\n{name}: interrupted; the same command resumes it", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `head` has read enough; without this, Python would complain once more at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (BadInput, OSError) as error:
        print(f"{name}: {one_line(error)}", file=sys.stderr)
        return 2


def rank_and_device(device: str, worker: str | None = None) -> tuple[int, str]:
    """Return the number of this process and its device.

    Parameters
    ----------
    device : str
        As the option ``--device``; "auto" spreads the processes over all GPUs.
    worker : str, optional
        Number given by `helpers`; torchrun's ``RANK`` takes precedence.

    Raises
    ------
    BadInput
        If there is no such device.
    """
    import torch

    rank = int(os.environ.get("RANK", worker or 0))
    if device != "auto":
        from kbnet_plugin.inference.device import find_device

        try:
            return rank, str(find_device(device))
        except ValueError as error:
            raise BadInput(f"--device: {error}") from error
    if not torch.cuda.is_available():
        return rank, "cpu"
    local = int(os.environ.get("LOCAL_RANK", worker or 0))
    index = local % torch.cuda.device_count()
    torch.cuda.set_device(index)
    return rank, f"cuda:{index}"


@contextlib.contextmanager
def helpers(script: str, argv: Sequence[str], jobs: int) -> Iterator[None]:
    """Run `jobs` - 1 further processes of the same command, and wait for them after the block.

    They share this process's threads, and are interrupted if the block fails.
    """
    import torch

    threads = max(1, torch.get_num_threads() // jobs)
    if jobs > 1:
        torch.set_num_threads(threads)
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    running = [
        subprocess.Popen(
            [sys.executable, script, *argv, "--worker", str(i)], env=environment, stdout=subprocess.DEVNULL
        )
        for i in range(1, jobs)
    ]
    try:
        yield
        for process in running:
            process.wait()
    finally:
        _end(running, signal.SIGINT, 10)


@dataclass(frozen=True)
class Workers:
    """Processes that train in `folder`, where each writes a log."""

    folder: Path
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def ended(self) -> bool:
        """Whether none of them runs any more."""
        return all(p.poll() is not None for p in self.processes)

    def wait_for(self, done: Callable[[], bool]) -> None:
        """Wait until `done`.

        Raises
        ------
        BadInput
            If all processes end before that.
        """
        while not done():
            if self.ended:
                raise BadInput(f"the training processes have ended: {self.last_words()}")
            time.sleep(0.3)

    def last_words(self) -> str:
        """Return the last line of the first log, and its path."""
        log = self.folder / "worker-0.log"
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return f"{lines[-1] if lines else 'no message'} ({log})"


@contextlib.contextmanager
def workers(script: str, folder: Path, jobs: int, device: str, named: str) -> Iterator[Workers]:
    """Run `jobs` training processes for as long as the block runs.

    Parameters
    ----------
    script : str
        Called with ``--out FOLDER --worker NUMBER``.
    folder : Path
        Shared by all of them.
    jobs : int
    device : str
        As `rank_and_device` returns it.
    named : str
        The option ``--device``.
    """
    import torch

    threads = torch.get_num_threads()
    found = Workers(folder)
    for i in range(jobs):
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        if device.startswith("cuda"):
            environment["CUDA_VISIBLE_DEVICES"] = _gpu(named, i)
        with (folder / f"worker-{i}.log").open("ab") as log:
            found.processes.append(
                subprocess.Popen(
                    [sys.executable, script, "--out", str(folder), "--worker", str(i)],
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    # Ctrl-C in the terminal must not reach them: a second signal would keep them from saving.
                    start_new_session=True,
                )
            )
    try:
        yield found
    finally:
        _end(found.processes, signal.SIGTERM, 30)  # long enough for a training to save


def _gpu(named: str, index: int) -> str:
    """CUDA_VISIBLE_DEVICES of a worker: the GPU that was named, or all GPUs in turn."""
    import torch

    outer = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = outer.split(",") if outer else [str(i) for i in range(torch.cuda.device_count())]
    return names[int(named.split(":")[1]) if ":" in named else index % len(names)]


def _end(processes: Sequence[subprocess.Popen[bytes]], how: signal.Signals, seconds: float) -> None:
    for process in processes:
        if process.poll() is None:
            process.send_signal(how if os.name == "posix" else signal.SIGTERM)
    for process in processes:
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:  # deep in a convolution, or ignoring signals
            process.kill()
            process.wait()


def die_with_parent() -> None:
    """Ask Linux to send SIGTERM to this process when its parent ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)
