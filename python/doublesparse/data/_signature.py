"""Path signatures: iterated integrals of a pen path (Chen 1957; Graham 2013, arXiv 1308.0371).

Level k of the signature of a path X in the plane holds 2^k numbers, one for each word w of k
axes, in lexicographic order (for k = 2: xx, xy, yx, yy):

    S(w) = integral over s_1 < ... < s_k of dX_{w_1}(s_1) ... dX_{w_k}(s_k)

Level 0 is 1. A straight step v has S = exp(v): v^(tensor k) / k! at level k; a path followed by
another has the tensor product of their signatures (Chen's identity). Both are exact for the
polylines that pens draw.

Many signatures are carried at once: level k of n of them is an array (n, 2^k).
"""

from __future__ import annotations

import numpy as np

from ._ink import Floats, Ink, Ints

# As many levels as the reference code of Graham's tables has; 2^(level + 1) - 1 features.
MAX_LEVEL = 4
Levels = list[Floats]


def n_features(level: int) -> int:
    """Numbers in a signature of this level, level 0 included: 1, 3, 7, 15, 31."""
    return 2 ** (level + 1) - 1


def exponential(steps: Floats, level: int) -> Levels:
    """Signatures of straight steps (n, 2)."""
    out = [np.ones((len(steps), 1))]
    for k in range(1, level + 1):
        power = out[-1][:, :, None] * steps[:, None, :] / k
        out.append(power.reshape(len(steps), 2**k))
    return out


def product(a: Levels, b: Levels) -> Levels:
    """Signatures of the paths of `a`, each followed by the path of `b` (Chen's identity)."""
    out = []
    for k in range(len(a)):
        total = a[k] + b[k] if k else np.ones_like(a[0])
        for i in range(1, k):
            total += (a[i][:, :, None] * b[k - i][:, None, :]).reshape(total.shape)
        out.append(total)
    return out


def of_windows(steps: Floats, first: Ints, last: Ints, level: int) -> Levels:
    """Signatures of the windows of a polyline that hold steps first[i], ..., last[i] - 1.

    Windows of 2^j steps are made from pairs of windows of 2^(j - 1), so a window of any length is
    a product of at most one of each: 2 log2(length) products of arrays, and nothing is ever taken
    away again. (Quotients of signatures from the start of the path would do with fewer, but
    lose digits as the path grows.)

    Args:
        steps: (n, 2), in the order of the path.
        first: int64 (m,), in [0, n].
        last: int64 (m,), first <= last <= n; an empty window has the signature 1, 0, 0, ...
        level: highest level.
    """
    out = exponential(np.zeros((len(first), 2)), level)
    at, left = first.copy(), last - first
    power = exponential(steps, level)
    size = 1
    while (left > 0).any():
        odd = np.flatnonzero(left & size)
        if len(odd):
            longer = product([part[odd] for part in out], [part[at[odd]] for part in power])
            for part, grown in zip(out, longer, strict=True):
                part[odd] = grown
            at[odd] += size
            left[odd] -= size
        if not (left > 0).any():
            break
        power = product([part[:-size] for part in power], [part[size:] for part in power])
        size *= 2
    return out


def around(path: Ink, points: Ints, n_steps: int, unit: float, level: int) -> Floats:
    """Signatures of the path around some of its points: float64 (m, n_features(level)).

    Args:
        path: strokes.
        points: int64 (m,), numbers of points of the path.
        n_steps: a window reaches this many steps to either side, but not beyond its stroke.
        unit: lengths are measured in it: level k is divided by unit^k.
        level: highest level.
    """
    steps = np.diff(path.points, axis=0) / unit
    stroke = np.searchsorted(path.stroke_start, points, side="right") - 1
    begin, end = path.stroke_start[stroke], path.stroke_start[stroke + 1] - 1
    first, last = np.maximum(points - n_steps, begin), np.minimum(points + n_steps, end)
    return np.concatenate(of_windows(steps, first, last, level), axis=1)
