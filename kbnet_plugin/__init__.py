"""KBNet: kernel basis networks for image restoration."""

from __future__ import annotations

# An interrupt during these imports prints a traceback, so there are none: typing alone takes milliseconds.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ._version import __version__
    from .inference.restorer import Restorer
    from .nn import KBNet_l, KBNet_s
    from .zoo.weights import load_network, save_network

__all__ = ["KBNet_l", "KBNet_s", "Restorer", "__version__", "load_network", "save_network"]

_MODULES = {
    "__version__": "_version",
    "KBNet_l": "nn",
    "KBNet_s": "nn",
    "Restorer": "inference.restorer",
    "load_network": "zoo.weights",
    "save_network": "zoo.weights",
}


def __getattr__(name: str) -> Any:
    # Lazy, because torch takes seconds to import and listing models or drawing a window needs none of it.
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = globals()[name] = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    return value
