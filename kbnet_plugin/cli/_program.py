"""The parser of the `kbnet` command, and its exit statuses."""

from __future__ import annotations

import argparse
import importlib
import textwrap
from collections.abc import Sequence
from typing import Any

from .._version import __version__
from ..errors import one_line
from ._common import BAD_INPUT, Parser, fail

_COMMANDS = {
    "restore": "restore pictures and stacks",
    "info": "describe a model, or this machine",
    "inspect": "measure the noise of a picture and recommend a model",
    "models": "list the available models",
    "export": "convert a model for other programs",
    "fit": "train a model on noisy pictures alone",
}
_BASICSR = {
    "train": "train with BasicSR",
    "test": "test with BasicSR",
    "options": "list the keys of option files",
    "prepare": "cut a data set into crops for training",
}

_EXAMPLES = """\
examples:
  kbnet restore noisy.png -o clean.png
  kbnet restore photos/ -o restored/ --model gau_color_25.pth --device cpu
  kbnet models
  kbnet info sidd.pth
  kbnet train -opt options/kbnet_quickstart.yml
"""


def run(arguments: Sequence[str]) -> int:
    """Run a command, and return the exit status."""
    try:
        if arguments and arguments[0] in _BASICSR:
            return _delegate(arguments)
        parser = _parser(arguments[:1])
        options, unknown = parser.parse_known_args(arguments)
        if unknown:
            raise ValueError(
                f"{options.command} has no option {unknown[0]}; see kbnet {options.command} --help"
            )
        return int(_module(options.command).run(options))
    except SystemExit as stop:  # argparse, after --help or an error
        return int(stop.code or 0)
    except (ValueError, OSError) as error:
        return fail(one_line(error), BAD_INPUT)
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        named = one_line(error)  # those of files name the file
        said = named if "out of memory;" in named else "out of memory; free some, or use another --device"
        return fail(said, BAD_INPUT)


def _parser(wanted: Sequence[str]) -> argparse.ArgumentParser:
    """Make a parser that knows the names of all commands, and the options of those that are wanted."""
    parser = Parser(
        prog="kbnet",
        description="Restore pictures with KBNet, and train its networks.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"kbnet {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, text in _COMMANDS.items():
        command = commands.add_parser(name, help=text, formatter_class=argparse.RawDescriptionHelpFormatter)
        if name in wanted:
            module = _module(name)
            command.description, command.epilog = textwrap.fill(module.DESCRIPTION, 79), module.EPILOG
            module.add_arguments(command)
    # Only for the list of commands: main() delegates them before anything is parsed.
    for name, text in _BASICSR.items():
        commands.add_parser(name, help=f"{text}; see kbnet {name} --help")
    return parser


def _module(name: str) -> Any:
    return importlib.import_module(f"{__package__}.{name}")


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError):
        return True
    from ..inference.device import is_out_of_memory

    return is_out_of_memory(error)


def _delegate(arguments: Sequence[str]) -> int:
    from ..selfsup.config import can_train

    if not can_train():
        return fail(
            f"{arguments[0]} needs BasicSR, which is not installed: pip install 'kbnet[train]'", BAD_INPUT
        )
    return int(importlib.import_module("basicsr_ext.__main__").main(arguments) or 0)
