"""Multilayer bootstrap networks and their compression."""

from ._compress import compress
from ._compressed import CompressedNetwork

__all__ = ["CompressedNetwork", "compress"]
