"""Read and write pictures and stacks with their metadata. Imports no torch."""

from .images import grow, open_image, open_images, read_image, write_image, write_images
from .metadata import Frame, Image, Metadata

__all__ = [
    "Frame",
    "Image",
    "Metadata",
    "grow",
    "open_image",
    "open_images",
    "read_image",
    "write_image",
    "write_images",
]
