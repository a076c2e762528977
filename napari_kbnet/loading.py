"""Import torch safely beside OpenGL."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from functools import lru_cache


@lru_cache(maxsize=1)
def load_torch() -> None:
    """Import torch; call this before anything else that uses torch.

    Triton, which torch imports when it counts operations or trains, ships its own LLVM. Mesa, which draws
    many windows, has loaded another, and the program crashes if Triton binds to that one.
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
