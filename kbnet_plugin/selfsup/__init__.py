"""Train models on noisy images alone: Recorrupted2Recorrupted, Noise2Void and Noise2Noise."""

from typing import TYPE_CHECKING, Any

from .config import FitConfig, can_train

if TYPE_CHECKING:
    from .fit import Fit

__all__ = ["Fit", "FitConfig", "can_train"]


def __getattr__(name: str) -> Any:
    # Lazy, because torch takes seconds to import and a window that offers training needs none of it.
    if name != "Fit":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .fit import Fit

    return Fit
