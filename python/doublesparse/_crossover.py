"""Which layers run dense: a pure function of the geometry, so sites and bits are reproducible."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._geometry import Steps

_crossover: str | float | None = "auto"
threshold: float | None = None  # the density from which unsaturated tensors run dense, if any


def set_crossover(crossover: str | float | None) -> None:
    """Say where layers run torch's dense kernels instead of the sparse ones.

    A layer that runs dense returns a saturated tensor: all sites active, dense storage.

    Args:
        crossover: "auto" (default): where all sites of the input are active. A number: where the
            share of active sites is at least that. None: nowhere; every layer runs on this
            package's kernels, which give the same bits for any number of threads.

    Raises:
        ValueError: another word, or a number outside [0, 1].
        TypeError: another type.

    Example:
        >>> import doublesparse as ds
        >>> ds.set_crossover(None)
        >>> ds.set_crossover("auto")
    """
    global _crossover, threshold
    if isinstance(crossover, str):
        if crossover != "auto":
            raise ValueError(
                f'set_crossover: crossover must be "auto", a density or None, got {crossover!r}; '
                "pass one of them"
            )
    elif crossover is not None:
        if isinstance(crossover, bool) or not isinstance(crossover, (int, float)):
            raise TypeError(
                f'set_crossover: crossover must be "auto", a density or None, '
                f"got {type(crossover).__name__}; pass one of them"
            )
        if not 0 <= crossover <= 1:
            raise ValueError(
                f"set_crossover: a density must lie in [0, 1], got {crossover}; pass e.g. 0.5"
            )
        crossover = float(crossover)
    _crossover = crossover
    threshold = crossover if isinstance(crossover, float) else None


def get_crossover() -> str | float | None:
    """What `set_crossover` was last given."""
    return _crossover


def runs_dense(
    full: bool, density: float, ground_is_none: bool, steps: Steps | None = None
) -> bool:
    """The decision.

    Without a ground (None) inactive sites do not exist, so the dense kernel is the same function
    only on a saturated input whose every output position reads a site.

    Args:
        full: whether the input is saturated.
        density: its share of active sites.
        ground_is_none: whether its ground is None.
        steps: the layer's geometry; None where every output reads the input in any case.
    """
    if _crossover is None:
        return False
    if ground_is_none:
        return full and (steps is None or steps.covers())
    return full or (threshold is not None and density >= threshold)
