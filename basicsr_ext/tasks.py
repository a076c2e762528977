"""Datasets that `prepare` can cut into crops."""

from __future__ import annotations

TASKS = {
    "sidd": "SIDD-Medium (sRGB): pairs *_GT_SRGB_*.PNG and *_NOISY_SRGB_*.PNG anywhere below SRC; also the "
    "blocks in ValidationGtBlocksSrgb.mat and ValidationNoisyBlocksSrgb.mat, if present",
    "gaussian": "clean pictures anywhere below SRC",
    "derain": "SRC/input and SRC/target with matching file names, as in Rain13K",
    "defocus": "SRC/inputC (or source) and SRC/target; also SRC/inputL and SRC/inputR if present, as in DPDD",
}
"""Task, and the expected layout of its data."""
