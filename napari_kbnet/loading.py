"""Import torch safely beside OpenGL, while the window stays alive."""

from __future__ import annotations

import ctypes
import gc
import importlib.util
import os
import sys
from functools import lru_cache
from pathlib import Path
from threading import Lock

_one_at_a_time = Lock()


def load_torch() -> None:
    """Import torch; call this before anything else that uses torch."""
    with _one_at_a_time:
        _load()


@lru_cache(maxsize=1)
def _load() -> None:
    # Python holds the interpreter while it opens a library, half a second for the largest. A foreign function
    # runs without it.
    _open("torch", "lib/libtorch.so", 0)
    # Triton, which torch imports when it trains, ships its own LLVM. Mesa, which draws many windows, has
    # loaded another, and the program crashes if Triton binds to that one.
    _open("triton", "_C/libtriton.so", getattr(os, "RTLD_DEEPBIND", 0))
    # The garbage collector would look through all new objects several times, a quarter of a second each.
    enabled = gc.isenabled()
    gc.disable()
    try:
        import kbnet_plugin.inference.automatic
        import kbnet_plugin.inference.restorer  # noqa: F401
    finally:
        gc.freeze()
        if enabled:
            gc.enable()


def _open(package: str, library: str, flags: int) -> None:
    """Open a library of a package that is not imported yet; the import reports errors."""
    spec = importlib.util.find_spec(package) if sys.platform == "linux" else None
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        if (path := Path(folder, library)).is_file():
            dlopen = ctypes.CDLL(None).dlopen
            dlopen.argtypes, dlopen.restype = (ctypes.c_char_p, ctypes.c_int), ctypes.c_void_p
            dlopen(os.fsencode(path), os.RTLD_NOW | flags)
