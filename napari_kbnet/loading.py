"""Importing torch into a program that draws."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from functools import lru_cache


@lru_cache(maxsize=1)
def load_torch() -> None:
    """Import torch; to be called first in whatever a thread does with it.

    Triton, which torch imports when it counts operations or trains, holds an LLVM of its own. Mesa, which
    draws many windows, has loaded another, and a Triton that binds to that one ends the program.
    """
    flags = sys.getdlopenflags() if hasattr(sys, "getdlopenflags") else None
    if flags is not None and hasattr(os, "RTLD_DEEPBIND"):
        sys.setdlopenflags(flags | os.RTLD_DEEPBIND)
        try:
            with suppress(ImportError):
                import triton  # noqa: F401
        finally:
            sys.setdlopenflags(flags)
    import kbnet_plugin.inference.restorer  # noqa: F401
