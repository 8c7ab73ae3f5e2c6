"""All 70 000 images of MNIST through a multilayer bootstrap network: time, memory, accuracy.

    python bench/bootstrap_mnist.py DIR [--clusterings 400] [--json FILE]

DIR holds MNIST's four files. Zhang's page gives 96.64 % for 10 components, by k-means and by
agglomerative clustering.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from pathlib import Path

import numpy as np
import torch

import doublesparse as ds
from doublesparse import _C
from doublesparse.bootstrap import _layers, _network
from doublesparse.demo._images import load_mnist
from doublesparse.demo._mbn_runs import quality


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data")
    parser.add_argument("--clusterings", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json")
    args = parser.parse_args()
    images = load_mnist(args.data)
    assert images.test is not None
    parts = [pixels.flatten(1) + 0.5 for pixels, _ in (images.train, images.test)]
    x = torch.cat(parts).numpy()
    y = torch.cat([images.train[1], images.test[1]]).numpy()
    del images, parts

    seconds: list[float] = []
    for name in ("encode_points", "encode_codes"):
        setattr(_layers, name, timed(getattr(_layers, name), seconds))
    mbn = ds.bootstrap.MultilayerBootstrapNetwork(
        args.clusterings, n_clusters=10, random_state=args.seed, verbose=True
    )
    before, start = peak_bytes(), time.perf_counter()
    mbn.fit(x)
    total = time.perf_counter() - start
    result = {
        "points": len(x),
        "clusterings": args.clusterings,
        "threads": torch.get_num_threads(),
        "isa": _C.isa_chosen(),
        "centers": [layer.centers.shape[1] for layer in mbn.layers_],
        "layer_seconds": [round(s, 1) for s in seconds],
        "fit_seconds": round(total, 1),
        "peak_beyond_data_gib": round((peak_bytes() - before) / 2**30, 2),
        "kmeans": quality(y, mbn.labels_),
        "agglomerative": quality(y, _network._ward(mbn.embedding_, 10, 0).predict(mbn.embedding_)),
    }
    assert np.isfinite(mbn.embedding_).all()
    print(json.dumps(result, indent=1))
    if args.json:
        Path(args.json).write_text(json.dumps(result, indent=1) + "\n")


def timed(function, seconds):  # type: ignore[no-untyped-def]
    """The function, which notes how long each call takes."""

    def call(*args, **named):  # type: ignore[no-untyped-def]
        start = time.perf_counter()
        result = function(*args, **named)
        seconds.append(time.perf_counter() - start)
        return result

    return call


def peak_bytes() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    main()
