"""What the commands share: exit statuses, the parser, options, tables."""

from __future__ import annotations

import argparse
import errno
import os
import re
import sys
from pathlib import Path
from typing import Any, NoReturn

from .. import process

GOOD, SOME_FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130
"""Exit statuses."""

MODEL = "name of a model, a checkpoint, or hf://USER/NAME on Hugging Face"
"""Help for arguments that `kbnet_plugin.zoo.get_model` finds."""


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line that mentions ``--help``."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        # As from Python 3.14 on; before, -5,10 was taken for an option.
        self._negative_number_matcher = re.compile(r"-\.?\d")

    def error(self, message: str) -> NoReturn:
        """Print the message and exit with status 2."""
        self.exit(BAD_INPUT, f"{self.prog}: {message}; see {self.prog} --help\n")


def add_axes(parser: argparse.ArgumentParser) -> None:
    """Add ``--axes``."""
    parser.add_argument(
        "--axes",
        type=as_name,
        help="axes of the input, one letter each: T (time), Z, C (channels, each by itself), S (colours, "
        "together), Y, X; by default read from the file or inferred from the shape",
    )


def add_range(parser: argparse.ArgumentParser, scope: str, rules: str, default: str) -> None:
    """Add ``--range``."""
    parser.add_argument(
        "--range",
        type=_intensity_range,
        help=f"values that the network sees as 0 and 1{scope}: {rules}, or LOW,HIGH; default: {default}",
    )


def add_device(parser: argparse.ArgumentParser, names: str) -> None:
    """Add ``--device``."""
    parser.add_argument("--device", default="auto", help=f"auto (default), {names}")


def add_overwrite(parser: argparse.ArgumentParser, text: str) -> None:
    """Add ``--overwrite``."""
    parser.add_argument("--overwrite", action="store_true", help=text)


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add ``--json``."""
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")


def as_name(text: str) -> str:
    """Return an argument that must not be empty."""
    if not text:
        raise argparse.ArgumentTypeError("must not be empty")
    if "\0" in text:
        raise argparse.ArgumentTypeError(f"{text!r} contains a null character")
    return text


def as_path(text: str) -> Path:
    """Return the path of an argument, which must not be empty or longer than the file system allows."""
    try:
        os.lstat(as_name(text))
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise argparse.ArgumentTypeError(f"{text[:40]!r}...: file name too long") from None
    return Path(text)


def fail(message: str, status: int) -> int:
    """Print one line to standard error, and return the status.

    After an interrupt, of which the error may be a consequence, end the process as interrupted.
    """
    process.leave_if_interrupted()
    print(f"kbnet: {message}", file=sys.stderr)
    return status


def giga(macs: int) -> str:
    """Format a count in units of 10^9."""
    return f"{macs / 1e9:.2f} G"


def print_table(title: str, facts: dict[str, str]) -> int:
    """Print names and values in two columns below a title, and return the status of success."""
    width = max(map(len, facts))
    print(title)
    for name, value in facts.items():
        print(f"  {name:<{width}}  {value}")
    return GOOD


def _intensity_range(text: str) -> Any:
    return tuple(text.split(",")) if "," in text else text
