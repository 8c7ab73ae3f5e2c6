"""Data for sparse networks.

Pen strokes (`pen`), stroke characters made here (`glyphs`), point clouds (`voxel`).
"""

from . import glyphs, pen, voxel

__all__ = ["glyphs", "pen", "voxel"]
