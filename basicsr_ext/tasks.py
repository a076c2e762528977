"""What `prepare` knows how to cut."""

from __future__ import annotations

TASKS = {
    "sidd": "SIDD-Medium (sRGB): pairs *_GT_SRGB_*.PNG and *_NOISY_SRGB_*.PNG anywhere below SRC, and the "
    "blocks of ValidationGtBlocksSrgb.mat and ValidationNoisyBlocksSrgb.mat if they are there",
    "gaussian": "clean pictures anywhere below SRC",
    "derain": "SRC/input and SRC/target with the same names, as Rain13K comes",
    "defocus": "SRC/inputC (or source) and SRC/target; SRC/inputL and SRC/inputR too where they are, "
    "as DPDD comes",
}
"""Task, and how its data is laid out."""
