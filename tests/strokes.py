"""Random pen strokes, and Graham's encodings of strokes in plain Python; nothing of ours."""

from __future__ import annotations

import math

import numpy as np


def oracle(strokes, size, encoding, scale, density=0.1):
    """PAPERS 1.3 point by point: {cell: features}."""
    points = [p for stroke in strokes for p in stroke]
    low = [min(p[a] for p in points) for a in range(2)]
    high = [max(p[a] for p in points) for a in range(2)]
    factor = scale / max(high[0] - low[0], high[1] - low[1], 1e-4)
    cells: dict[tuple[int, int], list[float]] = {}
    for stroke in strokes:
        path = [[(p[a] - (low[a] + high[a]) / 2) * factor for a in range(2)] for p in stroke]
        path = walk(path, density)
        for i, p in enumerate(path):
            cell = tuple(max(0, min(size - 1, int(x + size / 2))) for x in p)
            features = cells.setdefault(cell, [0.0] * 9)
            features[0] = 1.0
            if i + 1 == len(path):
                continue
            d = [path[i + 1][a] - p[a] for a in range(2)]
            length = math.hypot(*d)
            for k in range(8 if length else 0):
                cos = (math.cos(k * math.pi / 4) * d[0] + math.sin(k * math.pi / 4) * d[1]) / length
                share = 1 - math.acos(max(-1.0, min(1.0, cos))) / (math.pi / 4)
                features[k + 1] += max(share, 0.0)
    return {cell: f[: 9 if encoding == "octogram" else 1] for cell, f in cells.items()}


def walk(path, density):
    """Equal arc-length steps."""
    arc = [0.0]
    for p, q in zip(path[:-1], path[1:], strict=True):
        arc.append(arc[-1] + math.dist(p, q))
    n = int(0.5 + arc[-1] / density)
    out = [path[0]]
    for i in range(1, n + 1):
        at = i * arc[-1] / n
        j = next((j for j in range(len(arc) - 1) if arc[j + 1] >= at), len(arc) - 2)
        t = (at - arc[j]) / (arc[j + 1] - arc[j])
        out.append([path[j][a] + min(t, 1.0) * (path[j + 1][a] - path[j][a]) for a in range(2)])
    return out


# Random points have no rounding ties: a sample on a cell's border may fall on either side of it.
def random_strokes(seed, n_strokes=2, n_points=12):
    generator = np.random.default_rng(seed)
    return [generator.normal(size=(n_points, 2)) * 100 for _ in range(n_strokes)]
