"""The network is a scikit-learn estimator: scikit-learn's own checks of what that means."""

from __future__ import annotations

from typing import Any

import pytest

import doublesparse as ds

checks = pytest.importorskip("sklearn.utils.estimator_checks")


@checks.parametrize_with_checks(
    [
        ds.bootstrap.MultilayerBootstrapNetwork(
            30, n_components=2, n_clusters=3, random_state=0, clusterer=clusterer
        )
        for clusterer in ("kmeans", "agglomerative")
    ]
)
def test_scikit_learn_estimator(estimator: Any, check: Any) -> None:
    check(estimator)
