"""scikit-learn and scipy, which this subpackage needs and the rest of the package does not."""

from __future__ import annotations

import importlib
from typing import Any


def extra(module: str, operation: str) -> Any:
    """The module.

    Raises:
        ImportError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"{operation}: {module} must be importable, got {error}; "
            "run pip install 'scikit-learn>=1.6'"
        ) from error
