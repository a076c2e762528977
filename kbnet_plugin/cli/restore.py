"""``kbnet restore``."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from .. import process
from ..arrays.tiling import HALO, WINDOW
from ..errors import one_line
from ..inference.settings import PRECISIONS, TILE, check_decorrelate
from ._common import (
    GOOD,
    SOME_FAILED,
    add_axes,
    add_device,
    add_overwrite,
    add_range,
    as_name,
    as_path,
    fail,
)

if TYPE_CHECKING:
    from ..inference.files import Step

DESCRIPTION = (
    "Restore pictures and stacks: PNG, JPEG, TIFF, OME-Zarr, WebP, AVIF, JPEG XL, and with extras HEIC, raw "
    "photographs, CZI, ND2 and LIF. Axes, dtype, range, opacity and metadata are kept; one line names what "
    "is not."
)
EPILOG = """\
examples:
  kbnet restore noisy.png -o clean.png
  kbnet restore noisy.png -o clean.png --model sidd.pth
  kbnet restore a.tif b.jpg photos/ -o restored/ --model gau_color_25.pth --overwrite
  kbnet restore stack.ome.tif -o clean.zarr --model sidd.pth --range percentile
  kbnet restore big.zarr -o clean.zarr --model sidd.pth --resume
  kbnet restore photos/ -o restored/ --recursive
  kbnet restore photo.jpg -o clean.png --strength 0.6 --chroma 1    no colour noise, some grain

By default the noise of each picture is measured, and a suitable model and settings are chosen; one line says
which and why. `kbnet inspect` shows the measurements. Pictures that are already clean are left alone.

exit status: 0 success, 1 some pictures failed (each is named), 2 bad input, 130 interrupted, 143 terminated
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument(
        "inputs",
        metavar="IN",
        nargs="+",
        type=as_path,
        help="a picture, a stack, a folder of them, or a pattern",
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="OUT",
        required=True,
        type=as_path,
        help="a file for one picture, otherwise a folder, which is created if necessary",
    )
    parser.add_argument(
        "--model",
        type=as_name,
        help="a name that `kbnet models` lists, a checkpoint (.pth or .safetensors), or hf://USER/NAME on "
        "Hugging Face; default: the shipped model that suits the noise",
    )
    add_device(parser, "cpu, cuda or mps")
    add_overwrite(parser, "replace existing output files")
    parser.add_argument("--resume", action="store_true", help="continue interrupted stacks")
    parser.add_argument("--recursive", action="store_true", help="include the folders inside folders")
    parser.add_argument(
        "--format",
        choices=("tiff", "imagej", "ome", "pyramid"),
        help="kind of TIFF to write: plain, ImageJ hyperstack, OME-TIFF, or OME-TIFF in tiles with a "
        "pyramid; default: as the input, and a pyramid for very large planes",
    )
    parser.add_argument(
        "--dry-run",
        "--plan",
        action="store_true",
        help="print the number of tiles and the estimated memory and time, and restore nothing",
    )
    add_axes(parser)
    add_range(parser, "", "auto, dtype, percentile", "that of the model, or auto")
    parser.add_argument(
        "--strength",
        type=float,
        help="from 0 (leaves the input unchanged) to 1 (full correction, default)",
    )
    parser.add_argument(
        "--chroma",
        type=float,
        help="strength for the colours; --strength then applies to the brightness only",
    )
    parser.add_argument(
        "--decorrelate",
        metavar="N,SIGMA",
        type=_decorrelate,
        help="for noise that neighbouring pixels share: restore the images of every Nth pixel separately, "
        "with white noise of SIGMA (of 255) added; default: if such noise is measured; no: never",
    )
    parser.add_argument(
        "--keep-mean",
        action=argparse.BooleanOptionalAction,
        help="keep local mean intensities, for quantitative measurements; default: if noise grows with the "
        "brightness, and for gray data of more than 8 bits",
    )
    parser.add_argument(
        "--self-ensemble",
        action="store_true",
        help="average over eight rotations and flips; eight times slower",
    )
    parser.add_argument(
        "--tile",
        type=int,
        help=f"largest side of a tile in pixels, default: {TILE}, or less if memory is short",
    )
    parser.add_argument("--halo", type=int, help=f"overlap of tiles in pixels, default: {HALO}")
    parser.add_argument("--batch", type=int, default=1, help="number of tiles that are computed together")
    parser.add_argument(
        "--pooling",
        choices=("local", "global"),
        default="local",
        help="average inside the network over patches on a grid (local, default) or over each tile",
    )
    parser.add_argument(
        "--window",
        type=int,
        help=f"side of the patches of local pooling in pixels, default: that of the model, or {WINDOW}",
    )
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="auto",
        help="precision of the network; auto (default) is float16 on CUDA, else float32",
    )
    parser.add_argument(
        "--scheduler",
        metavar="ADDRESS",
        type=as_name,
        help="compute on the dask cluster at tcp://host:port",
    )


def run(options: argparse.Namespace) -> int:
    """Restore every input, and return the exit status."""
    from ..inference.automatic import make_chooser
    from ..inference.dask import connect
    from ..inference.files import plan_files, restore_files
    from ..inference.pairing import pair

    jobs = pair(
        options.inputs,
        options.output,
        recursive=options.recursive,
        make=not options.dry_run,
        report=print,
    )
    settings = {
        name: getattr(options, name)
        for name in (
            *("device", "tile", "halo", "batch", "pooling", "window", "precision"),
            *("range", "strength", "chroma", "decorrelate", "keep_mean", "self_ensemble"),
        )
        if getattr(options, name) is not None
    }
    choose = make_chooser(options.model, **settings)
    if options.dry_run:
        for job, chosen, plan in plan_files(choose, jobs, options.axes):
            print(f"{job.source}\n{plan}")
            if chosen.reason:
                print(f"chosen  {chosen.reason}")
        return GOOD
    with process.unwinding(), contextlib.ExitStack() as stack:
        client = stack.enter_context(connect(options.scheduler)) if options.scheduler else None
        steps = restore_files(
            choose,
            jobs,
            axes=options.axes,
            overwrite=options.overwrite,
            resume=options.resume,
            form=options.format,
            client=client,
        )
        return _restore_jobs(stack.enter_context(contextlib.closing(steps)), len(jobs))


def _restore_jobs(steps: Iterator[Step], count: int) -> int:
    """Restore the files, each with a progress bar, report on them, and return the exit status."""
    ended: Counter[str] = Counter()
    for step in steps:
        label = f"[{ended.total() + 1}/{count}] " if count > 1 else ""
        if step.state == "running":
            step = _run(steps, f"{label}{step.job.source.name}")
        ended[step.state] += 1
        if step.state == "kept":
            print(f"{label}{step.job.target} kept, as it exists; --overwrite replaces it")
        elif step.error is not None:
            if count == 1:
                raise step.error
            fail(one_line(step.error), SOME_FAILED)
        else:
            done = f"{step.size[1]} x {step.size[0]}" if step.size else f"{step.done:,} tiles"
            print(f"{label}{step.job.target}  {done}, {step.seconds:.1f} s")
            for line in (step.reason, "; ".join(step.notes)):
                if line:
                    print(f"  {line}")
    if count > 1:
        print(f"{ended['restored']} restored, {ended['kept']} kept, {ended['failed']} failed")
    return SOME_FAILED if ended["failed"] else GOOD


def _run(steps: Iterator[Step], name: str) -> Step:
    """Restore the tiles of a file with a progress bar, and return its last step."""
    from tqdm import tqdm

    # In a file that collects the output, no bars for short runs and no frequent lines.
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
