"""What the commands share: exit statuses, a parser that says what is wrong in one line, tables."""

from __future__ import annotations

import argparse
import sys
from typing import Any, NoReturn

GOOD, SOME_FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130
AXES_HELP = "what the axes of the input are: letters of T Z C S Y X"


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line that names `--help`."""

    def error(self, message: str) -> NoReturn:
        """Print the message and exit with the status of bad input."""
        self.exit(BAD_INPUT, f"{self.prog}: {message}; see {self.prog} --help\n")


def fail(message: str, status: int) -> int:
    """Print one line on standard error; returns the status."""
    print(f"kbnet: {message}", file=sys.stderr)
    return status


def intensity_range(text: str) -> Any:
    """The value of ``--range``: a rule's name, or two numbers."""
    return tuple(text.split(",")) if "," in text else text


def giga(macs: int) -> str:
    """A count in units of a thousand million."""
    return f"{macs / 1e9:.2f} G"


def print_table(title: str, facts: dict[str, str]) -> int:
    """Print names and values in two columns under a title."""
    width = max(map(len, facts))
    print(title)
    for name, value in facts.items():
        print(f"  {name:<{width}}  {value}")
    return GOOD
