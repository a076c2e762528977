"""Restore every file of a folder with ``--strength 0``, and check each result by other programs.

The command runs in a process of its own, which is started again if a file ends it. Each result is read by
tifffile, Pillow, libvips (pyvips) and ome-zarr-models, and compared with what they read of the source: number
and size of the pictures, orientation, bits, colours, values, colour profile, resolution, and OME metadata.
A file counts as

right      restored, and nothing is wrong
wrong      restored, but the result or what the command says is wrong
refused    not restored, with one line that names the file
crashed    a traceback, or the end of the process
too long   longer than --seconds

Equal findings are listed once, with their number and examples; --json lists every file. The exit status is 1
if any file is wrong, crashed or took too long.

example:
  python tests/corpus/check_corpus.py pictures/ -o checked/ --json checked.json
"""

from __future__ import annotations

import argparse
import faulthandler
import io
import json
import multiprocessing
import os
import re
import shutil
import signal
import sys
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from threading import local
from typing import Any

OUTCOMES = ("right", "wrong", "refused", "crashed", "too long")


@dataclass
class Verdict:
    """What became of a file.

    Attributes
    ----------
    file : str
    outcome : str
        One of `OUTCOMES`.
    what : list of str
        Faults, or the line of a refusal.
    said : str
        What the command printed.
    seconds : float
    """

    file: str
    outcome: str
    what: list[str] = field(default_factory=list)
    said: str = ""
    seconds: float = 0.0


class Worker:
    """A process that does tasks, and is started again after one that ends it or takes too long."""

    def __init__(self, task: Callable[..., Any], log: Path, seconds: float) -> None:
        self._task, self._log, self._seconds = task, log, seconds
        self._process: Any = None
        self._connection: Any = None

    def do(self, *arguments: Any) -> tuple[str, Any]:
        """Do a task; return "done" and its result, or "crashed" or "too long" and what was printed."""
        if self._process is None:
            self._connection, inner = multiprocessing.Pipe()
            self._process = multiprocessing.get_context("spawn").Process(
                target=_serve, args=(inner, self._task, str(self._log)), daemon=True
            )
            self._process.start()
            inner.close()
            self._connection.recv()  # imports take their time, and are not the file's
        self._connection.send(arguments)
        if not self._connection.poll(self._seconds):
            self._process.kill()
            self.stop()
            return "too long", f"longer than {self._seconds:g} s"
        try:
            return self._connection.recv()
        except EOFError:
            self._process.join()
            code, printed = self._process.exitcode, self._log.read_text(errors="replace")
            self.stop()
            name = signal.Signals(-code).name if code < 0 else f"exit status {code}"
            return "crashed", f"{name}\n{printed[-2000:]}"

    def stop(self) -> None:
        """End the process."""
        if self._process is not None:
            self._connection.close()  # which ends one that waits for a task
            self._process.join(5)
            self._process.kill()
            self._process.join()
            self._process = None


def _serve(connection: Connection, task: Callable[..., Any], log: str) -> None:
    handle = os.open(log, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(handle, stream)
    sys.stdout, sys.stderr = (
        io.TextIOWrapper(os.fdopen(n, "wb", 0, closefd=False), write_through=True) for n in (1, 2)
    )
    faulthandler.enable()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _prepare()
    connection.send("ready")
    while True:
        try:
            arguments = connection.recv()
        except EOFError:
            return
        os.ftruncate(handle, 0)
        try:
            found = "done", task(*arguments)
        except BaseException:
            found = "crashed", traceback.format_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        connection.send(found)


def _prepare() -> None:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]


def restore(source: str, folder: str, options: Sequence[str]) -> tuple[int, str]:
    """Run the command; return its exit status and what it printed."""
    from kbnet_plugin.cli import main

    status = main(["restore", source, "-o", folder, "--strength", "0", "--overwrite", *options])
    sys.stdout.flush()
    sys.stderr.flush()
    size = os.fstat(1).st_size
    return status, os.pread(1, size, 0).decode(errors="replace")


def check(source: str, result: str, said: str) -> list[str]:
    """Compare a result with its source."""
    from comparing import compare

    return compare(Path(source), Path(result), said)


class Checker:
    """Restores and checks files, one after the other.

    Parameters
    ----------
    root : path
        Folder of the sources.
    work : path
        Where results go; only the wrong ones stay.
    number : int
        Of this checker, if several share `work`.
    seconds : float
        Limit for each step.
    options : sequence of str
        Further options of the command.
    """

    def __init__(self, root: Path, work: Path, number: int, seconds: float, options: Sequence[str]) -> None:
        self._root, self._work, self._options = root, work, list(options)
        self._restore = Worker(restore, work / f"restore-{number}.log", seconds)
        self._check = Worker(check, work / f"check-{number}.log", seconds)

    def verdict(self, source: Path) -> Verdict:
        """Restore one file, and check the result."""
        name = source.relative_to(self._root).as_posix()
        # Not the file's own name: a folder that ends in .zarr would be taken for one.
        folder = self._work / "results" / f"{name}.d"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        began = time.perf_counter()
        state, found = self._restore.do(str(source), str(folder), self._options)
        seconds = round(time.perf_counter() - began, 2)
        results = sorted(folder.iterdir())
        if state != "done":
            return Verdict(
                name, state, [found.strip().splitlines()[-1 if "Traceback" in found else 0]], found, seconds
            )
        status, said = found
        faults = _manners(status, said, source, results)
        if status == 0 and len(results) == 1:
            state, found = self._check.do(str(source), str(results[0]), said)
            faults += found if state == "done" else [f"the check itself: {state}: {found}"]
        what = [fault for fault in faults if not fault.startswith("unchecked")]
        if what:
            return Verdict(name, "crashed" if "Traceback (" in said else "wrong", what, said, seconds)
        shutil.rmtree(folder)
        if status:
            return Verdict(name, "refused", [_refusal(said, source, folder)], said, seconds)
        return Verdict(name, "right", faults, said, seconds)

    def stop(self) -> None:
        """End the processes."""
        self._restore.stop()
        self._check.stop()


def _manners(status: int, said: str, source: Path, results: list[Path]) -> list[str]:
    """Return what is wrong with what the command says and leaves behind."""
    lines = [line for line in said.splitlines() if line.strip()]
    faults = []
    if "Traceback (" in said:
        faults.append(f"a traceback: {lines[-1][:200]}")
    elif re.search(r"\b[A-Z]\w*Warning\b", said):
        faults.append(f"a warning of Python: {next(line for line in lines if 'Warning' in line)[:200]}")
    if status == 0 and len(results) != 1:
        faults.append(f"status 0 and {len(results)} results")
    if status and results:
        faults.append(f"status {status} and a file: {results[0].name}")
    if status and len(lines) != 1 and not faults:
        faults.append(f"refused with {len(lines)} lines instead of one")
    if status and source.name not in said and not faults:
        faults.append(f"refused without the name of the file: {said.strip()[:200]}")
    return faults


def _refusal(said: str, source: Path, folder: Path) -> str:
    """Return the line of a refusal without names, so that equal ones can be counted."""
    line = said.strip().replace(str(source), "FILE").replace(str(folder / source.name), "RESULT")
    return line.replace(str(folder), "FOLDER").replace(source.name, "NAME")


def collect(root: Path, limit: int | None) -> list[Path]:
    """Return the files of a folder and its folders; evenly chosen ones if there are more than the limit."""
    found = list(_walk(root))
    if limit is not None and limit < len(found):
        return [found[n * len(found) // limit] for n in range(limit)]
    return found


def _walk(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir() and path.suffix != ".zarr":
            yield from _walk(path)
        elif path.is_dir() or path.is_file():
            yield path


def report(verdicts: Sequence[Verdict]) -> str:
    """Return the table and the lists."""
    counted = Counter(verdict.outcome for verdict in verdicts)
    lines = [f"{outcome:<9}{counted[outcome]:>7}" for outcome in OUTCOMES]
    lines.append(f"{'files':<9}{len(verdicts):>7}")
    unseen = sum(any(w.startswith("unchecked") for w in v.what) for v in verdicts if v.outcome == "right")
    if unseen:
        lines.append(f"{unseen} of those that are right have pixels that no program could compare")
    for outcome in OUTCOMES[1:]:
        files = defaultdict(list)
        for verdict in verdicts:
            if verdict.outcome == outcome:
                files["; ".join(verdict.what)].append(verdict.file)
        lines += [f"\n{outcome}"] if files else []
        most = 1 if outcome == "refused" else 5
        for what, names in sorted(files.items(), key=lambda item: -len(item[1])):
            lines.append(f"  {len(names):>4}  {what}")
            lines += [f"        {name}" for name in names[:most]]
            if len(names) > most:
                lines.append(f"        and {len(names) - most} more")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Check a folder; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="folder of files; read, never written")
    parser.add_argument("-o", "--output", metavar="WORK", type=Path, required=True,
                        help="folder for results and logs")  # fmt: skip
    parser.add_argument("--limit", metavar="N", type=int, help="check only N files, chosen evenly")
    parser.add_argument("--jobs", metavar="N", type=int, default=1, help="files at a time, default: 1")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write every verdict to a file as well")
    parser.add_argument("--seconds", type=float, default=60, help="limit for each file, default: 60")
    parser.add_argument("--model", default="denoise-gray", help="as of kbnet restore, default: denoise-gray")
    options = parser.parse_args(argv)
    root, work = options.folder.resolve(), options.output.resolve()
    if work == root or root in work.parents:
        parser.error(f"{work} is inside of {root}; name another folder for the results")
    work.mkdir(parents=True, exist_ok=True)
    files = collect(root, options.limit)
    if not files:
        parser.error(f"{root}: no files")
    own, checkers = local(), []

    def verdict(source: Path) -> Verdict:
        if not hasattr(own, "checker"):
            extra = ["--model", options.model, "--device", "cpu"]
            own.checker = Checker(root, work, len(checkers), options.seconds, extra)
            checkers.append(own.checker)
        return own.checker.verdict(source)

    verdicts = []
    with ThreadPoolExecutor(options.jobs) as pool:
        for number, found in enumerate(pool.map(verdict, files), 1):
            verdicts.append(found)
            if sys.stderr.isatty() or number % 100 == 0:
                print(f"{number} of {len(files)}", end="\r" if sys.stderr.isatty() else "\n", file=sys.stderr)
    for checker in checkers:
        checker.stop()
    print(report(verdicts))
    if options.json:
        options.json.write_text(json.dumps([asdict(v) for v in verdicts], indent=1))
    return int(any(v.outcome in ("wrong", "crashed", "too long") for v in verdicts))


if __name__ == "__main__":
    sys.exit(main())
