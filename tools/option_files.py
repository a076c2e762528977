"""Run option files, shrunken to seconds on made data, through train, kill -9, resume, validate and test.

The result is a table with a row per file. Nothing is downloaded: pretrained weights are made at random, also
those of the VGG network of perceptual losses. BasicSR's own option files are in its repository, not in its
packages:

  git clone --branch v1.4.2 https://github.com/XPixelGroup/BasicSR
  python tools/option_files.py BasicSR/options --stock
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from basicsr_ext import registry  # isort: skip # before BasicSR, which it makes importable

import torch
from basicsr.archs import build_network
from basicsr.archs.vgg_arch import VGG_PRETRAIN_PATH
from basicsr.test import test_pipeline
from basicsr.train import train_pipeline
from basicsr.utils.registry import ARCH_REGISTRY
from torchvision.models import vgg19

from basicsr_ext import forks
from basicsr_ext.__main__ import main as command
from basicsr_ext.options import read_options
from basicsr_ext.run import Run
from tools.option_shrink import for_testing, shrink

FIGURE = re.compile(r"^\s*# (\w+): (\S+)", re.MULTILINE)
"""A figure as BasicSR's models print it."""

OURS = re.compile(r"(\w+) (\S+)(?: \(best [^)]*\))? \[")
"""A figure as ImageCleanModel prints it."""

TOLERANCE = 1.5e-4
"""Of figures that are printed with four digits."""


@dataclass
class Phase:
    """How one phase ended: its exit status, what it printed, its last line and its seconds."""

    status: int
    text: str
    seconds: float

    @property
    def line(self) -> str:
        """The line to show for a phase that failed."""
        lines = [line for line in self.text.strip().splitlines() if line.strip()] or [f"status {self.status}"]
        last = next((line for line in reversed(lines) if line.startswith("basicsr: ")), lines[-1])
        return f"{'traceback: ' if 'Traceback (most' in self.text else ''}{last.removeprefix('basicsr: ')}"

    @property
    def figures(self) -> dict[str, float]:
        """Metrics of the last validation by set and name."""
        found: dict[str, float] = {}
        for part in re.split(r"Validation (?=\S+\s*\n)", self.text)[1:]:
            name = part.split(None, 1)[0]
            found |= {f"{name} {metric}": float(value) for metric, value in FIGURE.findall(part)}
        for name, text in re.findall(r"(\S+), \d+ image\(s\): (.*)", self.text):
            found |= {f"{name} {metric}": float(value) for metric, value in OURS.findall(text)}
        return found


@dataclass
class Row:
    """What became of one option file."""

    name: str
    cells: dict[str, str] = field(default_factory=dict)
    failed: bool = False
    seconds: float = 0.0

    def add(self, column: str, phase: Phase, good: str | None = None) -> bool:
        """Note a phase: `good` if it succeeded and nothing is None."""
        self.seconds += phase.seconds
        ok = phase.status == 0 and good is not None
        self.cells[column] = f"{good} ({phase.seconds:.1f} s)" if ok else phase.line
        return ok


def run(work: Callable[[], Any], folder: Path, log: Path, limit: float) -> Phase:
    """Run a function in a child of this process, which has imported everything; collect what it prints."""
    folder.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.chdir(folder)
            file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(file, 1)
            os.dup2(file, 2)
            sys.stdout = sys.stderr = os.fdopen(1, "w", 1, closefd=False)
            warnings.simplefilter("ignore")  # about BasicSR's use of torch
            status = int(work() or 0)
        except SystemExit as left:
            status = int(left.code or 0) if isinstance(left.code, (int, type(None))) else 1
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    while True:
        done, raw = os.waitpid(child, os.WNOHANG)
        if done:
            break
        if time.monotonic() - began > limit:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return Phase(-1, f"did not end within {limit:g} s", time.monotonic() - began)
        time.sleep(0.01)
    text = log.read_text(encoding="utf-8", errors="replace")
    return Phase(os.waitstatus_to_exitcode(raw), text, time.monotonic() - began)


def prepare(option_file: Path, folder: Path) -> None:
    """Write ``train.yml`` and ``test.yml``, or only the latter for a file without training, and weights."""
    registry.register()
    options = shrink(read_options(option_file), folder / "data")
    for key, path in list(options["path"].items()):
        if key.startswith("pretrain_network") and path:
            options["path"][key] = str(folder / f"{key}.pth")
            try:
                torch.manual_seed(0)
                network = _network(options[key.removeprefix("pretrain_")])
            except Exception:  # which the command has to report
                network = {}
            torch.save({"params": network, "params_ema": network}, options["path"][key])
        elif key == "resume_state":
            del options["path"][key]
    if "perceptual_opt" in (options.get("train") or {}):
        _perceptual(folder)
    trained = options.get("train") is not None and any(k.startswith("train") for k in options["datasets"])
    if trained:
        _dump(options, folder / "train.yml")
    weights = folder / "killed" / "experiments" / str(options["name"]) / "models" / "net_g_latest.pth"
    _dump(for_testing(options, str(weights) if trained else None), folder / "test.yml")


def _network(section: dict[str, Any]) -> dict[str, torch.Tensor]:
    if section["type"] not in ARCH_REGISTRY and (found := forks.network(section["type"])) is not None:
        ARCH_REGISTRY.register(found)
    return build_network(section).state_dict()


def _dump(options: dict[str, Any], path: Path) -> None:
    path.write_text(yaml.safe_dump(options, sort_keys=False), encoding="utf-8")


def _perceptual(folder: Path) -> None:
    """Make a VGG network for the places where BasicSR looks for it, of few bytes where it is not used."""
    torch.manual_seed(0)
    with torch.device("meta"):
        shapes = vgg19().state_dict()
    weights = {
        name: torch.randn(t.shape) * 0.05 if name.startswith("features") else torch.zeros(1).expand(t.shape)
        for name, t in shapes.items()
    }
    file = folder / "vgg.pth"
    torch.save(weights, file)
    for place in ("whole", "killed", "stock"):
        path = folder / place / VGG_PRETRAIN_PATH
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(file)


def _ours(*arguments: str) -> Callable[[], int]:
    return lambda: command(list(arguments))


def _killed(option_file: str) -> Callable[[], int]:
    """Train, and end as by ``kill -9`` after the first step that finds a training state."""

    def work() -> int:
        step = Run.step

        def step_and_die(self: Run, batch: Any) -> None:
            step(self, batch)
            if any(Path(self.options["path"]["training_states"]).glob("*.state")):
                os.kill(os.getpid(), signal.SIGKILL)

        Run.step = step_and_die  # type: ignore[method-assign]
        return command(["train", "-opt", option_file])

    return work


def _stock(pipeline: Callable[[str], None], option_file: str) -> Callable[[], None]:
    def work() -> None:
        sys.argv = ["basicsr", "-opt", option_file]
        pipeline(os.getcwd())

    return work


def examine(option_file: Path, folder: Path, *, stock: bool, limit: float) -> Row:
    """Run all phases of one file."""
    row = Row(option_file.stem)

    def phase(name: str, work: Callable[[], Any], place: str) -> Phase:
        return run(work, folder / place, folder / f"{name}.log", limit)

    prepared = phase("prepare", lambda: prepare(option_file, folder), ".")
    if prepared.status:
        row.failed = True
        row.cells["train"] = f"cannot be shrunken: {prepared.line}"
        return row
    train, test = folder / "train.yml", folder / "test.yml"
    shown: dict[str, float] | None = {}
    if trains := train.exists():
        shown = _train(row, phase, train)
        row.failed = shown is None
    testable = shown is not None and bool(yaml.safe_load(test.read_text(encoding="utf-8"))["datasets"])
    if testable:
        tested = phase("test", _ours("test", "-opt", str(test)), "killed")
        row.failed = not _test(row, tested, shown or {})
        shown = shown or tested.figures
    if stock and trains:
        row.add("stock train", phase("stock-train", _stock(train_pipeline, str(train)), "stock"), "ok")
    if stock and testable:
        theirs = phase("stock-test", _stock(test_pipeline, str(test)), "stock")
        row.add("stock test", theirs, "ok")
        if theirs.figures:
            row.cells["figures, ours / stock"] = _beside(shown or {}, theirs.figures)
    elif shown:
        row.cells["figures"] = _first(shown)
    return row


def _train(row: Row, phase: Callable[..., Phase], option_file: Path) -> dict[str, float] | None:
    """Train, also with an interruption; return the figures of the last validation, or None on failure."""
    work = ("train", "-opt", str(option_file))
    if not row.add("train", phase("train", _ours(*work), "whole"), "ok"):
        return None
    dead = phase("kill", _killed(str(option_file)), "killed")
    if dead.status != -signal.SIGKILL:
        row.cells["resume"] = f"not killed: {dead.line}"
        return None
    rest = phase("resume", _ours(*work, "--auto_resume"), "killed")
    rest.seconds += dead.seconds
    good = row.add("resume", rest, None if rest.status else _difference(option_file.parent))
    return rest.figures if good else None


def _test(row: Row, tested: Phase, validated: dict[str, float]) -> bool:
    """Note a test, whose figures must be those of the last validation."""
    figures = tested.figures
    other = [k for k in validated.keys() & figures.keys() if abs(validated[k] - figures[k]) > TOLERANCE]
    if tested.status == 0 and other:
        text = ", ".join(f"{k} {figures[k]:.4f}, not {validated[k]:.4f}" for k in sorted(other))
        row.cells["test"] = f"differs from the validation: {text}"
        return False
    return row.add("test", tested, "ok")


def _difference(folder: Path) -> str:
    """Compare the last weights of the resumed and of the uninterrupted run."""
    for path in sorted((folder / "whole" / "experiments").glob("*/models/net_*_latest.pth")):
        other = folder / "killed" / path.relative_to(folder / "whole")
        a, b = (torch.load(p, map_location="cpu", weights_only=True) for p in (path, other))
        if any(not torch.equal(a[part][name], b[part][name]) for part in a for name in a[part]):
            return "ok, other weights than uninterrupted"
    return "ok, bit for bit"


def _first(figures: dict[str, float]) -> str:
    name, value = next(iter(figures.items()))
    return f"{name} {value:.4f}"


def _beside(ours: dict[str, float], theirs: dict[str, float]) -> str:
    both = [key for key in theirs if key in ours]
    if not both:
        return f"- / {_first(theirs)}"
    worst = max(both, key=lambda key: abs(ours[key] - theirs[key]))
    same = all(abs(ours[k] - theirs[k]) <= TOLERANCE for k in both)
    return f"{worst} {ours[worst]:.4f} / {theirs[worst]:.4f}{', all equal' if same else ''}"


def line(cells: Iterable[str]) -> str:
    """Return a row of a Markdown table."""
    return "| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |"


@contextmanager
def _folder(work: Path | None, option_file: Path) -> Iterator[Path]:
    if work is not None:
        folder = work.resolve() / option_file.stem
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        yield folder
    else:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)


def main(argv: list[str] | None = None) -> int:
    """Run the tool; returns 1 if a file failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("places", type=Path, nargs="+", help="folders, searched in depth, and option files")
    parser.add_argument("--only", default="*", metavar="GLOB", help="names of files to run")
    parser.add_argument("--stock", action="store_true", help="run stock BasicSR's own commands beside ours")
    parser.add_argument("--limit", type=float, default=300, metavar="S", help="seconds for a phase (300)")
    parser.add_argument("--work", type=Path, metavar="DIR", help="keep data, experiments and logs in DIR")
    args = parser.parse_args(argv)
    found = [f for p in args.places for f in (sorted(p.rglob(f"{args.only}.yml")) if p.is_dir() else [p])]
    if not found or not all(f.is_file() for f in found):
        print(f"option_files: no option file of a name {args.only}.yml in these places", file=sys.stderr)
        return 2
    columns = ["train", "resume", "test"]
    columns += ["stock train", "stock test", "figures, ours / stock"] if args.stock else ["figures"]
    torch.set_num_threads(1)
    print(line(["file", *columns, "seconds"]), line(["---"] * (len(columns) + 2)), sep="\n", flush=True)
    failed = 0
    for path in found:
        with _folder(args.work, path) as folder:
            row = examine(path, folder, stock=args.stock, limit=args.limit)
        print(line([row.name, *(row.cells.get(c, "") for c in columns), f"{row.seconds:.0f}"]), flush=True)
        failed += row.failed
    print(f"{len(found)} files, {failed} failed", file=sys.stderr)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
