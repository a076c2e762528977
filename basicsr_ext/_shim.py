"""Import hooks that let BasicSR 1.4.2 load with current torchvision and SciPy."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

TYPE_CHECKING = False  # as in kbnet_plugin
if TYPE_CHECKING:
    from typing import Any

RENAMED = {
    "torchvision.transforms.functional_tensor": "torchvision.transforms.functional",
    "scipy.ndimage.filters": "scipy.ndimage",
}
"""Removed or deprecated modules that BasicSR imports, and what replaces them."""


# Neither inherits from the classes of importlib.abc, which take long to import.
class _Renamed:
    """Provides the modules in `RENAMED`. It comes last, so that an existing old module takes precedence."""

    def find_spec(
        self: Any, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if fullname in RENAMED else None

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        current = importlib.import_module(RENAMED[module.__name__])
        module.__dict__.update({k: v for k, v in vars(current).items() if not k.startswith("__")})


class _Installed:
    """Finds the installed BasicSR, even in a checkout that contains its own, older ``basicsr/``.

    Restormer, NAFNet and KBNet vendor one without registries; ``python -m`` and ``PYTHONPATH=.`` put the
    working directory first and would import it.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "basicsr":
            return None
        here = os.path.realpath(os.getcwd())
        elsewhere = [entry for entry in sys.path if os.path.realpath(entry or here) != here]
        spec = PathFinder.find_spec(fullname, elsewhere)
        return spec if spec is not None and spec.origin else None


def install() -> None:
    """Install both finders, once."""
    present = {type(finder).__name__ for finder in sys.meta_path if type(finder).__module__ == __name__}
    if _Installed.__name__ not in present:
        sys.meta_path.insert(0, _Installed())
    if _Renamed.__name__ not in present:
        sys.meta_path.append(_Renamed())
