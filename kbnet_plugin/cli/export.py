"""``kbnet export``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .. import zoo
from ..zoo.locations import EXPORT_FORMATS
from ._common import GOOD

DESCRIPTION = "Write a model as safetensors, as BasicSR's .pth or as ONNX, checked against torch."
EPILOG = """\
examples:
  kbnet export denoise-color -o denoise-color.pth     for BasicSR, spandrel, the released code
  kbnet export net_g_latest.pth -o mine.onnx          for ONNX Runtime and what builds on it

In ONNX batch, height and width are free, from one pixel on; values are 0..1 in float32. The network's means
are taken over the whole input: cut large pictures into tiles of about the pooling window (kbnet info MODEL).
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument("model", metavar="MODEL", help="a name or a checkpoint")
    parser.add_argument("-o", "--output", metavar="FILE", required=True, type=Path, help="what to write")
    parser.add_argument("--format", choices=EXPORT_FORMATS, help="by default what FILE ends in")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")


def run(options: argparse.Namespace) -> int:
    """Write the file; returns the exit status."""
    from ..zoo.export import export

    output, wanted = options.output, options.format
    if wanted and output.suffix.lower() != f".{wanted}":
        raise ValueError(f"{output}: {wanted} goes into a file that ends in .{wanted}; rename it")
    if output.exists() and not options.overwrite:
        raise FileExistsError(f"{output}: exists; --overwrite replaces it")
    model = zoo.get_model(options.model)
    if output.suffix.lower() == ".onnx" and sys.stderr.isatty():
        print("building the ONNX graph; this takes a minute or more ...", file=sys.stderr)
    differences = export(model, output)
    print(f"{output}  {output.stat().st_size / 1e6:.2f} MB")
    for size, difference in differences.items():
        print(f"  {size}: largest difference from torch {difference:.1e} of 0..1")
    return GOOD
