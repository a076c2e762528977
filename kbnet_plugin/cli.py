"""The `kbnet` command."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import glob
import importlib
import importlib.util
import json
import shutil
import sys
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from tqdm import tqdm

from . import ops, zoo
from ._files import one_line
from ._version import __version__
from .cost import count
from .export import FORMATS as EXPORTS
from .export import export
from .images import FORMATS, check_format, read_image, write_image
from .lazy import connect
from .restore import HALO, TILE, WINDOW, Restorer, find_device
from .stores import is_stack, is_zarr, open_stack, restore_stack, working_folder
from .weights import identify

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
_EXPORT_EXAMPLES = """\
examples:
  kbnet export denoise-color -o denoise-color.pth     for BasicSR, spandrel, the released code
  kbnet export net_g_latest.pth -o mine.onnx          for ONNX Runtime and what builds on it

In ONNX batch, height and width are free, from one pixel on; values are 0..1 in float32. The network's means
are taken over the whole input: cut large pictures into tiles of about the pooling window (kbnet info MODEL).
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
        help="a name that `kbnet models` lists, or a checkpoint, .pth or .safetensors; by default "
        f"{zoo.DEFAULT} for colour and {zoo.DEFAULT_GRAY} for gray",
    )
    restore.add_argument("--device", default="auto", help="auto (default), cpu, cuda or mps")
    restore.add_argument("--overwrite", action="store_true", help="replace existing output files")
    restore.add_argument("--resume", action="store_true", help="go on with stacks that were interrupted")
    restore.add_argument("--plan", action="store_true", help="print tiles, memory and time, and stop")
    restore.add_argument("--axes", help="what the axes of the input are: letters of T Z C S Y X")
    restore.add_argument(
        "--range",
        type=_range,
        help="what spans 0..1: dtype (default, unless the model asks for another), percentile, or LOW,HIGH",
    )
    restore.add_argument("--strength", type=float, default=1.0, help="0 (the input) to 1 (default)")
    restore.add_argument(
        "--self-ensemble", action="store_true", help="mean of eight turns, eight times the time"
    )
    restore.add_argument(
        "--tile", type=int, help=f"largest side of a tile; {TILE}, less where memory is short"
    )
    restore.add_argument("--halo", type=int, default=HALO, help=f"overlap of tiles, {HALO} pixels by default")
    restore.add_argument("--batch", type=int, default=1, help="tiles that are computed together")
    restore.add_argument("--pooling", choices=("local", "global"), default="local", help="local by default")
    restore.add_argument(
        "--window",
        type=int,
        help=f"of local pooling, in pixels: 1.5 x the training patches; by default the model's, or {WINDOW}",
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

    # Only for the list of commands: main() hands them on before anything is parsed.
    for name, text in _BASICSR.items():
        commands.add_parser(name, help=f"{text}; see kbnet {name} --help")
    return parser


def _delegate(arguments: list[str]) -> int:
    if importlib.util.find_spec("basicsr") is None or importlib.util.find_spec("basicsr_ext") is None:
        return _fail(
            f"{arguments[0]} needs BasicSR, which is not installed: pip install 'kbnet[train]'", BAD_INPUT
        )
    return int(importlib.import_module("basicsr_ext.__main__").main(arguments) or 0)


_Choice = Callable[[tuple[int, ...], str | None], tuple[Restorer, str]]
"""From shape and axes to a restorer, and a word on the model where nobody named it."""


def _restore(options: argparse.Namespace) -> int:
    jobs = _jobs(options.inputs, options.output, make=not options.plan)
    choice = _choice(options)
    if options.plan:
        return _plan(choice, jobs, options.axes)
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(connect(options.scheduler)) if options.scheduler else None
        return _restore_jobs(choice, jobs, options, client)


def _choice(options: argparse.Namespace) -> _Choice:
    settings = {
        name: getattr(options, name)
        for name in (
            *("device", "tile", "halo", "batch", "pooling", "window", "dtype"),
            *("range", "strength", "self_ensemble"),
        )
        if getattr(options, name) is not None
    }
    names = (zoo.DEFAULT, zoo.DEFAULT_GRAY) if options.model is None else (options.model,)
    restorers = {name: Restorer.from_pretrained(name, **settings) for name in names}

    def choose(shape: tuple[int, ...], axes: str | None) -> tuple[Restorer, str]:
        if options.model is not None:
            return restorers[options.model], ""
        name = zoo.default(shape, axes)
        return restorers[name], f", by {name}"

    return choose


def _restore_jobs(
    choice: _Choice, jobs: Sequence[tuple[Path, Path]], options: argparse.Namespace, client: Any
) -> int:
    done = kept = failed = 0
    for number, (source, target) in enumerate(jobs, start=1):
        label = f"[{number}/{len(jobs)}] " if len(jobs) > 1 else ""
        if target.exists() and not options.overwrite:
            print(f"{label}{target} kept: it exists; --overwrite replaces it")
            kept += 1
            continue
        try:
            if is_stack(source) or is_zarr(target):
                _restore_stack(choice, source, target, label, options, client)
            else:
                _restore_file(choice, source, target, label, options.axes, client)
            done += 1
        except (ValueError, OSError) as error:
            if len(jobs) == 1:
                raise
            _fail(one_line(error), SOME_FAILED)
            failed += 1
    if len(jobs) > 1:
        print(f"{done} restored, {kept} kept, {failed} failed")
    return SOME_FAILED if failed else GOOD


def _plan(choice: _Choice, jobs: Sequence[tuple[Path, Path]], axes: str | None) -> int:
    for source, target in jobs:
        if is_stack(source) or is_zarr(target):
            with open_stack(source) as (array, info):
                shape, known = tuple(array.shape), axes or info.axes
        else:
            shape, known = read_image(source)[0].shape, axes
        restorer, by = _chosen(choice, source, shape, known)
        print(f"{source}{by}\n{restorer.plan(shape, known)}")
    return GOOD


def _chosen(choice: _Choice, source: Path, shape: tuple[int, ...], axes: str | None) -> tuple[Restorer, str]:
    try:
        return choice(shape, axes)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None


def _range(text: str) -> Any:
    return tuple(text.split(",")) if "," in text else text


def _jobs(inputs: Sequence[Path], output: Path, make: bool) -> list[tuple[Path, Path]]:
    """Pair every picture with the file that its restored self goes to."""
    sources: list[Path] = []
    inputs = [found for path in inputs for found in _expand(path)]
    for path in inputs:
        if path.is_dir() and not is_zarr(path):
            found = sorted(p for p in path.iterdir() if _is_picture(p) and (p.is_file() or is_zarr(p)))
            if not found:
                raise ValueError(f"{path}: no pictures in this folder ({', '.join(FORMATS)})")
            sources += found
        elif path.exists():
            sources.append(path)
        else:
            raise FileNotFoundError(f"{path}: no such file or folder")
    file_like = bool(output.suffix) and (is_zarr(output) or not output.is_dir())
    one_file = sources == inputs and len(inputs) == 1 and file_like
    if not one_file and not output.is_dir() and (output.exists() or _is_picture(output)):
        raise ValueError(f"{output}: not a folder, and several pictures need one; name a folder")
    jobs = [(source, output if one_file else output / source.name) for source in sources]
    targets: dict[Path, Path] = {}
    for source, target in jobs:
        if target.resolve() == source.resolve():
            raise ValueError(f"{source}: would be replaced by its own result; choose another output")
        other = targets.setdefault(target, source)
        if other != source:
            raise ValueError(f"{other} and {source} would both go to {target}; restore them one by one")
    if one_file and not output.parent.is_dir():
        raise FileNotFoundError(f"{output.parent}: no such folder to write {output.name} to; create it first")
    if not one_file and make:
        output.mkdir(parents=True, exist_ok=True)
    return jobs


def _expand(path: Path) -> list[Path]:
    """What a pattern matches, where the shell left it to us."""
    if path.exists() or not glob.has_magic(str(path)):
        return [path]
    return [Path(p) for p in sorted(glob.glob(str(path), recursive=True))] or [path]


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in (*FORMATS, ".zarr") and not path.name.startswith(".")


def _restore_stack(
    choice: _Choice, source: Path, target: Path, label: str, options: argparse.Namespace, client: Any
) -> None:
    began = time.perf_counter()
    with open_stack(source) as (array, info):
        restorer, by = _chosen(choice, source, tuple(array.shape), options.axes or info.axes)
    if options.overwrite and not options.resume:
        shutil.rmtree(working_folder(target), ignore_errors=True)
    steps = restore_stack(restorer, source, target, axes=options.axes, resume=options.resume, client=client)
    total = _run(steps, f"{label}{source.name}")
    print(f"{label}{target}  {total:,} tiles, {time.perf_counter() - began:.1f} s{by}")


def _run(steps: Generator[tuple[int, int], None, None], name: str) -> int:
    """Go through the tiles behind a bar; returns their number."""
    # On a terminal at once; a file that collects the output is spared short bars and frequent lines.
    delay, interval = (0, 0.1) if sys.stderr.isatty() else (1, 10)
    with (
        contextlib.closing(steps),
        tqdm(desc=name, unit="tile", leave=False, delay=delay, mininterval=interval) as bar,
    ):
        for done, total in steps:
            bar.total = total
            bar.update(done - bar.n)
        return int(bar.n)


def _restore_file(
    choice: _Choice, source: Path, target: Path, label: str, axes: str | None, client: Any
) -> None:
    began = time.perf_counter()
    image, metadata = read_image(source)
    check_format(target, image.dtype, image.shape)  # before the work, not after it
    restorer, by = _chosen(choice, source, image.shape, axes)
    try:
        restored = np.empty(restorer.output_shape(image, axes), image.dtype)
        _run(restorer.restore_into(image, restored, axes, client=client), f"{label}{source.name}")
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None
    write_image(target, restored, metadata)
    height, width = image.shape[:2]
    print(f"{label}{target}  {width} x {height}, {time.perf_counter() - began:.1f} s{by}")


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
