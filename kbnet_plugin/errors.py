"""Errors that the user can fix, and text for their messages."""

from __future__ import annotations

import os
from collections.abc import Iterable
from difflib import get_close_matches


class BadInput(ValueError):  # noqa: N818 - it is not a fault of the program
    """Invalid input from the user; the message names the problem and the fix in one line. Exit status 2."""


class DamagedError(OSError):
    """Data that cannot be decoded."""


def nearest(name: object, known: Iterable[object]) -> str:
    """Suggest a known name in place of a wrong one.

    Parameters
    ----------
    name : object
        The unknown name.
    known : iterable
        The valid ones.

    Returns
    -------
    str
        To append to a message: ``"; did you mean 'x'?"``, or all known names if none is similar.
    """
    names = sorted(str(k) for k in known)
    folded = {n.lower(): n for n in names}
    given = str(name).lower()
    containing = sorted((f for f in folded if given in f), key=len)
    if close := get_close_matches(given, folded, n=1, cutoff=0.6) or containing:
        return f"; did you mean {folded[close[0]]!r}?"
    return f"; known: {', '.join(names)}" if names else ""


def one_line(error: BaseException, limit: int = 500) -> str:
    """Return an exception's message on one line of at most `limit` characters, or its type if it has none."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        name = error.filename if isinstance(error.filename, int) else os.fsdecode(error.filename)
        message = f"{name}: {error.strerror[0].lower()}{error.strerror[1:]}"
    else:
        message = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    line = " ".join(message.split())
    if len(line) > limit:  # files are named at the start, and what to do at the end
        half = (limit - 5) // 2
        line = f"{line[:half]} ... {line[-half:]}"
    return line or type(error).__name__
