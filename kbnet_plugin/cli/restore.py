"""``kbnet restore``."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import one_line
from ..inference.settings import HALO, PRECISIONS, TILE, WINDOW, check_decorrelate
from ._common import AXES_HELP, GOOD, SOME_FAILED, fail, intensity_range

if TYPE_CHECKING:
    from ..inference.batch import Step

DESCRIPTION = (
    "Restore pictures (PNG, JPEG, TIFF) and stacks (TIFF, OME-TIFF, OME-Zarr); axes, dtype, range, alpha and "
    "metadata are kept."
)
EPILOG = """\
examples:
  kbnet restore noisy.png -o clean.png
  kbnet restore noisy.png -o clean.png --model sidd.pth
  kbnet restore a.tif b.jpg photos/ -o restored/ --model gau_color_25.pth --overwrite
  kbnet restore stack.ome.tif -o clean.zarr --model sidd.pth --range percentile
  kbnet restore big.zarr -o clean.zarr --model sidd.pth --resume
  kbnet restore photo.jpg -o clean.png --strength 0.6 --chroma 1    takes the colour noise, keeps some grain

By default the noise of each picture is measured, and model, range and treatment are chosen by it; a line says
which and why. `kbnet inspect` shows what is measured. A picture that is already clean is left alone.

exit status: 0 all done, 1 some pictures failed (each is named), 2 bad input, 130 interrupted
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument(
        "inputs", metavar="IN", nargs="+", type=Path, help="a picture, a stack, a folder of them or a pattern"
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="OUT",
        required=True,
        type=Path,
        help="a file for one picture, otherwise a folder (made if need be)",
    )
    parser.add_argument(
        "--model",
        help="a name that `kbnet models` lists, or a checkpoint, .pth or .safetensors; by default the "
        "shipped one that the picture's noise asks for",
    )
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda or mps")
    parser.add_argument("--overwrite", action="store_true", help="replace existing output files")
    parser.add_argument("--resume", action="store_true", help="go on with stacks that were interrupted")
    parser.add_argument(
        "--dry-run", "--plan", action="store_true", help="print tiles, memory and time, and stop"
    )
    parser.add_argument("--axes", help=AXES_HELP)
    parser.add_argument(
        "--range",
        type=intensity_range,
        help="what spans 0..1: auto (default, unless the model asks for another), dtype, percentile, or "
        "LOW,HIGH",
    )
    parser.add_argument("--strength", type=float, help="0 (the input) to 1 (default)")
    parser.add_argument(
        "--chroma", type=float, help="the same for the colours alone, where --strength is for brightness"
    )
    parser.add_argument(
        "--decorrelate",
        metavar="N,SIGMA",
        type=_decorrelate,
        help="restore every Nth pixel by itself, with white noise of SIGMA (of 255) added: for noise that "
        "neighbouring pixels share; by default where it is measured, 'no' never",
    )
    parser.add_argument(
        "--keep-mean",
        action=argparse.BooleanOptionalAction,
        help="keep the mean of every neighbourhood, for measurements of intensity; by default where noise "
        "grows with the brightness and where 16 bits or more are gray",
    )
    parser.add_argument(
        "--self-ensemble", action="store_true", help="mean of eight turns, eight times the time"
    )
    parser.add_argument(
        "--tile", type=int, help=f"largest side of a tile; {TILE}, less where memory is short"
    )
    parser.add_argument("--halo", type=int, help=f"overlap of tiles, {HALO} pixels by default")
    parser.add_argument("--batch", type=int, default=1, help="tiles that are computed together")
    parser.add_argument(
        "--pooling",
        choices=("local", "global"),
        default="local",
        help="what the network takes its means over: patches on a grid (default), or each tile",
    )
    parser.add_argument(
        "--window",
        type=int,
        help=f"side of the patches of local pooling, in pixels; by default the model's, or {WINDOW}",
    )
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="auto",
        help="what is computed in; auto is float16 on CUDA, else float32",
    )
    parser.add_argument("--scheduler", metavar="ADDRESS", help="compute on a dask cluster: tcp://host:port")


def run(options: argparse.Namespace) -> int:
    """Restore every input; returns the exit status."""
    from ..inference.batch import choice, pair, plans, restore_files
    from ..inference.dask import connect

    jobs = pair(options.inputs, options.output, make=not options.dry_run)
    settings = {
        name: getattr(options, name)
        for name in (
            *("device", "tile", "halo", "batch", "pooling", "window", "precision"),
            *("range", "strength", "chroma", "decorrelate", "keep_mean", "self_ensemble"),
        )
        if getattr(options, name) is not None
    }
    choose = choice(options.model, **settings)
    if options.dry_run:
        for job, chosen, plan in plans(choose, jobs, options.axes):
            print(f"{job.source}\n{plan}")
            if chosen.reason:
                print(f"chosen  {chosen.reason}")
        return GOOD
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(connect(options.scheduler)) if options.scheduler else None
        steps = restore_files(
            choose,
            jobs,
            axes=options.axes,
            overwrite=options.overwrite,
            resume=options.resume,
            client=client,
        )
        return _restore_jobs(stack.enter_context(contextlib.closing(steps)), len(jobs))


def _restore_jobs(steps: Iterator[Step], count: int) -> int:
    """Go through the files, each behind a bar; says what became of them, and returns the exit status."""
    ended: Counter[str] = Counter()
    for step in steps:
        label = f"[{ended.total() + 1}/{count}] " if count > 1 else ""
        if step.state == "running":
            step = _run(steps, f"{label}{step.job.source.name}")
        ended[step.state] += 1
        if step.state == "kept":
            print(f"{label}{step.job.target} kept: it exists; --overwrite replaces it")
        elif step.error is not None:
            if count == 1:
                raise step.error
            fail(one_line(step.error), SOME_FAILED)
        else:
            done = f"{step.size[1]} x {step.size[0]}" if step.size else f"{step.done:,} tiles"
            print(f"{label}{step.job.target}  {done}, {step.seconds:.1f} s")
            if step.reason:
                print(f"  {step.reason}")
    if count > 1:
        print(f"{ended['restored']} restored, {ended['kept']} kept, {ended['failed']} failed")
    return SOME_FAILED if ended["failed"] else GOOD


def _run(steps: Iterator[Step], name: str) -> Step:
    """Go through a file's tiles behind a bar; returns its last step."""
    from tqdm import tqdm

    # On a terminal at once; a file that collects the output is spared short bars and frequent lines.
    delay, interval = (0, 0.1) if sys.stderr.isatty() else (1, 10)
    with tqdm(desc=name, unit="tile", leave=False, delay=delay, mininterval=interval) as bar:
        for step in steps:
            if step.state != "running":
                break
            bar.total = step.total
            bar.update(step.done - bar.n)
    return step


def _decorrelate(text: str) -> Any:
    try:
        return check_decorrelate((1, 0) if text == "no" else text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not N,SIGMA or no: {error}") from None
