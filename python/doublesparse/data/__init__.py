"""Data for sparse networks: pen strokes (`pen`), stroke characters made here (`glyphs`)."""

from . import glyphs, pen

__all__ = ["glyphs", "pen"]
