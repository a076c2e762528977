"""Read and write pictures and stacks with their metadata. Imports no torch."""

from .metadata import StackMetadata
from .pictures import Metadata, read_image, write_image
from .stacks import grow, is_stack, open_array, open_stack

__all__ = [
    "Metadata",
    "StackMetadata",
    "grow",
    "is_stack",
    "open_array",
    "open_stack",
    "read_image",
    "write_image",
]
