"""The two networks of the paper."""

from .kbnet_l import KBNet_l
from .kbnet_s import KBNet_s

__all__ = ["KBNet_l", "KBNet_s"]
