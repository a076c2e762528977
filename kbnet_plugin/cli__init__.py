"""The `kbnet` command."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib
import json
import sys
import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from tqdm import tqdm

from .. import ops
from .._version import __version__
from ..arrays.axes import layout
from ..errors import one_line
from ..inference.batch import Step, choice, opened, pair, plans, restore_files
from ..inference.choose import describe, look, treatment
from ..inference.dask import connect
from ..inference.device import find_device
from ..inference.restorer import HALO, TILE, WINDOW, Restorer, check_decorrelate
from ..nn.cost import count
from ..selfsup.config import METHODS, PAIRS_FAIL, SCRATCH, WHEN_IT_FAILS, Recipe
from ..selfsup.fit import Fit, can_train
from ..zoo import registry as zoo
from ..zoo.export import FORMATS as EXPORTS
from ..zoo.export import export
from ..zoo.weights import identify

GOOD, SOME_FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130

_BASICSR = {
    "train": "train through BasicSR",
    "test": "test through BasicSR",
    "options": "list the keys of option files",
    "prepare": "cut a dataset into crops for training",
}

_EXAMPLES = """\
examples:
  kbnet restore noisy.png -o clean.png
  kbnet restore photos/ -o restored/ --model gau_color_25.pth --device cpu
  kbnet models
  kbnet info sidd.pth
  kbnet train -opt options/kbnet_quickstart.yml
"""
_RESTORE_EXAMPLES = """\
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
_MODELS_EXAMPLES = """\
examples:
  kbnet models                  names, what they are for, what they cost
  kbnet models denoise-color    its card: data, recipe, quality, where it fails
  kbnet models --json           for programs

.safetensors and .pth files in the folder KBNET_MODELS (by default kbnet/models in your data folder) are
listed by their names.
"""
_INSPECT_EXAMPLES = """\
examples:
  kbnet inspect noisy.png
  kbnet inspect stack.ome.tif --json    for programs: a list of channels
"""
_EXPORT_EXAMPLES = """\
examples:
  kbnet export denoise-color -o denoise-color.pth     for BasicSR, spandrel, the released code
  kbnet export net_g_latest.pth -o mine.onnx          for ONNX Runtime and what builds on it

In ONNX batch, height and width are free, from one pixel on; values are 0..1 in float32. The network's means
are taken over the whole input: cut large pictures into tiles of about the pooling window (kbnet info MODEL).
"""
_FIT_EXAMPLES = """\
examples:
  kbnet fit noisy.ome.tif --name my-cells                   hides pixels and learns them (Noise2Void)
  kbnet fit frames.tif --name my-cells --method n2n         planes that show the same twice (Noise2Noise)
  kbnet fit frames/ --name my-cells --start none --iterations 20000 --device cuda
  kbnet restore noisy.ome.tif -o clean.ome.tif --model my-cells

Ctrl-C stops and keeps what is learned; the same command goes on, with more --iterations too.

"""
_INFO_EXAMPLES = """\
examples:
  kbnet info denoise-color    what a model is and what it costs
  kbnet info sidd.pth         the same of a checkpoint
  kbnet info                  version, devices, backends
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        if arguments and arguments[0] in _BASICSR:
            return _delegate(arguments)
        options = _parser().parse_args(arguments)
        if options.command == "info":
            return _info(options.model)
        if options.command == "export":
            return _export(options)
        if options.command == "fit":
            return _fit(options)
        if options.command == "inspect":
            return _inspect(options.input, options.axes, options.json)
        if options.command == "models":
            return _models(options.name, options.json)
        return _restore(options)
    except SystemExit as stop:  # argparse, after --help or an error
        return int(stop.code or 0)
    except KeyboardInterrupt:
        return _fail("interrupted; finished pictures are kept, and stacks go on with --resume", INTERRUPTED)
    except (MemoryError, torch.OutOfMemoryError):
        return _fail("out of memory; free some, or name another --device", BAD_INPUT)
    except (ValueError, OSError) as error:
        return _fail(one_line(error), BAD_INPUT)


def _fail(message: str, status: int) -> int:
    print(f"kbnet: {message}", file=sys.stderr)
    return status


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(BAD_INPUT, f"{self.prog}: {message}; see {self.prog} --help\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="kbnet",
        description="Restore pictures with KBNet, and train it.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"kbnet {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    restore = commands.add_parser(
        "restore",
        help="restore pictures",
        description="Restore pictures (PNG, JPEG, TIFF) and stacks (TIFF, OME-TIFF, OME-Zarr); axes, dtype, "
        "range, alpha and metadata are kept.",
        epilog=_RESTORE_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    restore.add_argument(
        "inputs", metavar="IN", nargs="+", type=Path, help="a picture, a stack, a folder of them or a pattern"
    )
    restore.add_argument(
        "-o",
        "--output",
        metavar="OUT",
        required=True,
        type=Path,
        help="a file for one picture, otherwise a folder (made if need be)",
    )
    restore.add_argument(
        "--model",
        help="a name that `kbnet models` lists, or a checkpoint, .pth or .safetensors; by default the "
        "shipped one that the picture's noise asks for",
    )
    restore.add_argument("--device", default="auto", help="auto (default), cpu, cuda or mps")
    restore.add_argument("--overwrite", action="store_true", help="replace existing output files")
    restore.add_argument("--resume", action="store_true", help="go on with stacks that were interrupted")
    restore.add_argument("--plan", action="store_true", help="print tiles, memory and time, and stop")
    restore.add_argument("--axes", help="what the axes of the input are: letters of T Z C S Y X")
    restore.add_argument(
        "--range",
        type=_range,
        help="what spans 0..1: auto (default, unless the model asks for another), dtype, percentile, or "
        "LOW,HIGH",
    )
    restore.add_argument("--strength", type=float, help="0 (the input) to 1 (default)")
    restore.add_argument(
        "--chroma", type=float, help="the same for the colours alone, where --strength is for brightness"
    )
    restore.add_argument(
        "--decorrelate",
        metavar="N,SIGMA",
        type=_decorrelate,
        help="restore every Nth pixel by itself, with white noise of SIGMA (of 255) added: for noise that "
        "neighbouring pixels share; by default where it is measured, 'no' never",
    )
    restore.add_argument(
        "--keep-mean",
        action=argparse.BooleanOptionalAction,
        help="keep the mean of every neighbourhood, for measurements of intensity; by default where noise "
        "grows with the brightness and where 16 bits or more are gray",
    )
    restore.add_argument(
        "--self-ensemble", action="store_true", help="mean of eight turns, eight times the time"
    )
    restore.add_argument(
        "--tile", type=int, help=f"largest side of a tile; {TILE}, less where memory is short"
    )
    restore.add_argument("--halo", type=int, help=f"overlap of tiles, {HALO} pixels by default")
    restore.add_argument("--batch", type=int, default=1, help="tiles that are computed together")
    restore.add_argument(
        "--pooling",
        choices=("local", "global"),
        default="local",
        help="what the network takes its means over: patches on a grid (default), or each tile",
    )
    restore.add_argument(
        "--window",
        type=int,
        help=f"side of the patches of local pooling, in pixels; by default the model's, or {WINDOW}",
    )
    restore.add_argument(
        "--dtype",
        default="auto",
        help="what is computed in: float32, float16, bfloat16; auto is float16 on CUDA, else float32",
    )
    restore.add_argument("--scheduler", metavar="ADDRESS", help="compute on a dask cluster: tcp://host:port")

    info = commands.add_parser(
        "info",
        help="what a model is, or what this machine offers",
        description="Print what a model or checkpoint is, or without one what this machine offers.",
        epilog=_INFO_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    info.add_argument("model", metavar="MODEL", nargs="?", help="a name or a checkpoint")

    inspect = commands.add_parser(
        "inspect",
        help="measure the noise of a picture, and say what it needs",
        description="Measure the noise of a picture or stack, and say how it would be restored.",
        epilog=_INSPECT_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    inspect.add_argument("input", metavar="FILE", type=Path, help="a picture or a stack")
    inspect.add_argument("--axes", help="what its axes are: letters of T Z C S Y X")
    inspect.add_argument("--json", action="store_true", help="as JSON")

    models = commands.add_parser(
        "models",
        help="list the models that are here",
        description="List the models that ship with kbnet and your own, or print the card of one.",
        epilog=_MODELS_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    models.add_argument("name", metavar="MODEL", nargs="?", help="print its card")
    models.add_argument("--json", action="store_true", help="as JSON")

    exporting = commands.add_parser(
        "export",
        help="write a model for other programs",
        description="Write a model as safetensors, as BasicSR's .pth or as ONNX, checked against torch.",
        epilog=_EXPORT_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    exporting.add_argument("model", metavar="MODEL", help="a name or a checkpoint")
    exporting.add_argument("-o", "--output", metavar="FILE", required=True, type=Path, help="what to write")
    exporting.add_argument("--format", choices=EXPORTS, help="by default what FILE ends in")
    exporting.add_argument("--overwrite", action="store_true", help="replace an existing file")

    fitting = commands.add_parser(
        "fit",
        help="learn a model from noisy pictures alone",
        description="Learn a denoiser from a noisy stack without truth, and put it into the list of models.",
        epilog=_FIT_EXAMPLES + "\n".join(textwrap.wrap(WHEN_IT_FAILS, 110)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    fitting.add_argument(
        "source", metavar="STACK", type=Path, help="TIFF, OME-Zarr, .npy, PNG or JPEG, or a folder of them"
    )
    fitting.add_argument("--name", required=True, help="of the model")
    fitting.add_argument("--method", choices=METHODS, default=Recipe.method, help="n2v by default")
    fitting.add_argument("--second", type=Path, help="n2n: another recording of the same, plane for plane")
    fitting.add_argument(
        "--pair-axis", choices=tuple("TZC"), help="n2n: planes follow along it; T, or else Z"
    )
    fitting.add_argument(
        "--start",
        help=f"a model to start from, or {SCRATCH}; by default the shipped one for gray, or for colour",
    )
    fitting.add_argument("--iterations", type=int, default=Recipe.iterations, help="%(default)s by default")
    fitting.add_argument("--axes", help="what the axes of the input are: letters of T Z C S Y X")
    fitting.add_argument(
        "--range",
        type=_range,
        help="what spans 0..1, once for all planes: dtype, percentile, or LOW,HIGH; by default dtype for "
        "8 bits, else percentile",
    )
    fitting.add_argument("--patch", type=int, default=Recipe.patch, help="side of a crop, %(default)s")
    fitting.add_argument("--batch", type=int, help="crops of a step; 8, or 64 on a GPU")
    fitting.add_argument("--learning-rate", type=float, help="3e-3 from nothing, 1e-3 from a model")
    fitting.add_argument(
        "--no-balance",
        dest="balance",
        action="store_false",
        help="n2v: keep what is cleanest, not what promises the least error",
    )
    fitting.add_argument("--device", default="auto", help="auto (default), cpu or cuda")
    fitting.add_argument(
        "--overwrite", action="store_true", help="begin anew, and replace a model of that name"
    )

    # Only for the list of commands: main() hands them on before anything is parsed.
    for name, text in _BASICSR.items():
        commands.add_parser(name, help=f"{text}; see kbnet {name} --help")
    return parser


def _delegate(arguments: list[str]) -> int:
    if not can_train():
        return _fail(
            f"{arguments[0]} needs BasicSR, which is not installed: pip install 'kbnet[train]'", BAD_INPUT
        )
    return int(importlib.import_module("basicsr_ext.__main__").main(arguments) or 0)


def _restore(options: argparse.Namespace) -> int:
    jobs = pair(options.inputs, options.output, make=not options.plan)
    settings = {
        name: getattr(options, name)
        for name in (
            *("device", "tile", "halo", "batch", "pooling", "window", "dtype"),
            *("range", "strength", "chroma", "decorrelate", "keep_mean", "self_ensemble"),
        )
        if getattr(options, name) is not None
    }
    choose = choice(options.model, **settings)
    if options.plan:
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
            _fail(one_line(step.error), SOME_FAILED)
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
    # On a terminal at once; a file that collects the output is spared short bars and frequent lines.
    delay, interval = (0, 0.1) if sys.stderr.isatty() else (1, 10)
    with tqdm(desc=name, unit="tile", leave=False, delay=delay, mininterval=interval) as bar:
        for step in steps:
            if step.state != "running":
                break
            bar.total = step.total
            bar.update(step.done - bar.n)
    return step


def _range(text: str) -> Any:
    return tuple(text.split(",")) if "," in text else text


def _decorrelate(text: str) -> Any:
    try:
        return check_decorrelate((1, 0) if text == "no" else text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not N,SIGMA or no: {error}") from None


def _inspect(path: Path, axes: str | None, as_json: bool) -> int:
    with opened(path, axes) as (array, known):
        try:
            arranged = layout(tuple(int(n) for n in array.shape), known, 3)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        noises, dtype = look(array, arranged.axes), np.dtype(array.dtype)
    found = treatment(noises, dtype, arranged.channels - arranged.alpha)
    if as_json:
        chosen = {"model": found.model, "settings": dict(found.settings), "kind": found.kind}
        content = {"file": str(path), "shape": arranged.shape, "axes": arranged.axes, "dtype": str(dtype)}
        content |= {"channels": [dataclasses.asdict(noise) for noise in noises]}
        print(json.dumps(content | {"treatment": chosen | {"reason": str(found)}}, indent=1))
        return GOOD
    print(f"{path}\n  pixels    {arranged.axes} {arranged.shape}, {dtype}")
    for number, noise in enumerate(noises):
        if len(noises) > 1:
            print(f" channel {number}")
        print("\n".join(f"  {line}" for line in describe(noise)))
    print(f"  needs     {found}")
    return GOOD


def _info(name: str | None) -> int:
    if name is None:
        devices = [device for device in ("cpu", "cuda", "mps") if _is_there(device)]
        facts = {"torch": torch.__version__, "devices": ", ".join(devices)}
        for device in devices:
            facts |= _backends(device)
        return _table(f"kbnet {__version__}", facts)
    model = zoo.find(name)
    network = model.load()
    variant, arguments = identify(network.state_dict())
    cost = count(network)
    takes, gives = Restorer(network, device="cpu").channels
    parts = {"convolutions": cost.convolution, "KBA": cost.kba, "attention products": cost.attention}
    said = {
        "for": model.title,
        "version": model.version,
        "licence": model.licence,
        "pooling window": model.window and f"{model.window} pixels",
        "range": model.range,
        "card": model.card and f"kbnet models {model.name}",
    }
    return _table(
        name,
        {key: str(value) for key, value in said.items() if value}
        | {
            "variant": variant.__name__,
            "arguments": ", ".join(f"{name}={value}" for name, value in arguments.items()),
            "channels": f"{takes} in, {gives} out",
            "parameters": f"{cost.parameters:,}",
            f"MACs, {takes}x256x256, in full": f"{_giga(cost.macs_total)} = "
            + " + ".join(f"{_giga(macs)} {name}" for name, macs in parts.items() if macs),
            f"MACs, {takes}x256x256, as published": f"{_giga(cost.macs_published)} (convolutions alone)",
        }
        | _backends(find_device().type),
    )


def _export(options: argparse.Namespace) -> int:
    output, wanted = options.output, options.format
    if wanted and output.suffix.lower() != f".{wanted}":
        raise ValueError(f"{output}: {wanted} goes into a file that ends in .{wanted}; rename it")
    if output.exists() and not options.overwrite:
        raise FileExistsError(f"{output}: exists; --overwrite replaces it")
    model = zoo.find(options.model)
    if output.suffix.lower() == ".onnx" and sys.stderr.isatty():
        print("building the ONNX graph; this takes a minute or more ...", file=sys.stderr)
    differences = export(model, output)
    print(f"{output}  {output.stat().st_size / 1e6:.2f} MB")
    for size, difference in differences.items():
        print(f"  {size}: largest difference from torch {difference:.1e} of 0..1")
    return GOOD


def _fit(options: argparse.Namespace) -> int:
    named = {field.name for field in dataclasses.fields(Recipe)} & vars(options).keys()
    fit = Fit(
        Recipe(**{name: getattr(options, name) for name in named}),
        overwrite=options.overwrite,
    )
    print(f"{fit.summary}\n{WHEN_IT_FAILS if fit.recipe.method == 'n2v' else PAIRS_FAIL}")
    if fit.doubt:
        print(f"kbnet: {fit.doubt}", file=sys.stderr)
    with tqdm(total=fit.recipe.iterations, unit="it", disable=None, dynamic_ncols=True) as bar:
        try:
            for step in fit.run():
                bar.update(step.iteration - bar.n)
                bar.set_postfix(loss=f"{step.loss:.3e}", refresh=False)
        except KeyboardInterrupt:  # leaving the loop has stopped the training
            bar.write("stopped")
    model = fit.save()
    print(f"{model.path}\nkbnet restore {options.source} -o ... --model {model.name}")
    return GOOD


def _models(name: str | None, as_json: bool) -> int:
    listed = zoo.models() if name is None else [zoo.find(name)]
    if as_json:
        print(json.dumps([_facts(model) for model in listed], indent=1))
        return GOOD
    if name is not None:
        if listed[0].card is None:
            return _info(name)
        print(listed[0].card.read_text(encoding="utf-8"), end="")
        return GOOD
    rows = []
    for model in listed:
        if model.problem:
            rows.append((model.name, "", "", "", f"unusable: {model.problem}"))
            continue
        cost, size = model.cost(), model.path.stat().st_size
        rows.append(
            (
                model.name,
                f"{cost.parameters / 1e6:.2f} M",
                _giga(cost.macs_total),
                f"{size / 1e6:.1f} MB",
                model.title or f"{model.variant}, {model.channels} channels",
            )
        )
    rows.insert(0, ("name", "parameters", "MACs at 256x256", "file", "what it does"))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    for row in rows:
        print("  ".join([f"{cell:<{width}}" for cell, width in zip(row, widths, strict=False)] + [row[-1]]))
    print(f"\nyour own models: {zoo.folder()} ({zoo.FOLDER_VARIABLE} names another folder)")
    return GOOD


def _facts(model: zoo.Model) -> dict[str, Any]:
    facts = dataclasses.asdict(model) | {"path": str(model.path), "card": model.card and str(model.card)}
    if not model.problem:
        cost = model.cost()
        facts |= {
            "parameters": cost.parameters,
            "macs_in_full": cost.macs_total,
            "macs_as_published": cost.macs_published,
            "bytes": model.path.stat().st_size,
        }
    return facts


def _giga(macs: int) -> str:
    return f"{macs / 1e9:.2f} G"


def _is_there(device: str) -> bool:
    try:
        find_device(device)
    except ValueError:
        return False
    return True


def _backends(device: str) -> dict[str, str]:
    """What "auto" takes for float32 on this device, and what keeps the others from running."""
    x, a = torch.empty(1, 8, 2, 2, device=device), torch.empty(1, 32, 2, 2, device=device)
    w, b = torch.empty(1, 32, 8 * 4 * 9, device=device), torch.empty(1, 32, 8, device=device)
    others = (f"{name}: {reason or 'runs'}" for name, reason in ops.available_backends(device).items())
    return {f"KBA on {device}": f"{ops.select_backend(x, a, w, b, groups=2)} ({'; '.join(others)})"}


def _table(title: str, facts: dict[str, str]) -> int:
    width = max(map(len, facts))
    print(title)
    for name, value in facts.items():
        print(f"  {name:<{width}}  {value}")
    return GOOD
