"""KBNet: kernel basis networks for image restoration."""

from ._version import __version__
from .nn import KBNet_l, KBNet_s
from .restore import Restorer
from .weights import load_network, save_network

__all__ = ["KBNet_l", "KBNet_s", "Restorer", "__version__", "load_network", "save_network"]
