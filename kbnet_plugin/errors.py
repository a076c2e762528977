"""Errors that are the user's to mend."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from textwrap import shorten


class BadInput(ValueError):  # noqa: N818 - it is not a fault of the program
    """Something the user gave cannot work. The message names it and the mend in one line; exit status 2."""


class DamagedError(OSError):
    """A source whose data cannot be decoded."""


def nearest(name: object, known: Iterable[object]) -> str:
    """'; did you mean X?' for the known name closest to `name`, or the known names where none is close."""
    names = sorted(str(k) for k in known)
    folded = {n.lower(): n for n in names}
    wanted = str(name).lower()
    containing = sorted((f for f in folded if wanted in f), key=len)
    if close := get_close_matches(wanted, folded, n=1, cutoff=0.5) or containing:
        return f"; did you mean {folded[close[0]]!r}?"
    return f"; known: {', '.join(names)}" if names else ""


def one_line(error: BaseException, most: int = 500) -> str:
    """What an exception says, on one line of at most `most` characters; its name where it says nothing."""
    said = error.args[0] if isinstance(error, KeyError) and error.args else error
    return shorten(str(said), most, placeholder=" ...") or type(error).__name__
