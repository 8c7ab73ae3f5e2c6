"""A student network that stands for its teacher, and what it is checked with."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ._student import Task, in_bfloat16, n_bytes, outputs


class CompressedNetwork:
    """A student network that answers as a multilayer bootstrap network does; made by `compress`.

    It pickles. `predict` and `transform` use the packed student where there is one.

    Attributes:
        dense: `nn.Sequential` in eval mode, raw features (n, n_features) -> float32 logits of the
            clusters, or codes in the unit range. Standardises its input itself.
        packed: the same, pruned and frozen (`ds.prune.freeze`); None without pruning.
        target: "clusters" or "codes".
        classes_: (n_clusters,) labels of the clusters; None where `compress` knew no labels.
        agreement: {"dense": {"train": share, "validation": share}, "packed": ...}: of the points
            whose cluster is the teacher's; empty where no labels are known.
        error: as `agreement`, for target "codes": squared error of the codes over their variance.
        n_features_in_: of the input.
    """

    def __init__(
        self,
        dense: nn.Sequential,
        packed: nn.Sequential | None,
        target: str,
        classes: np.ndarray | None,
        codes: CodeRange | None,
    ) -> None:
        self.dense, self.packed, self.target = dense, packed, target
        self.classes_ = classes
        self._codes = codes
        self.agreement: dict[str, dict[str, float]] = {}
        self.error: dict[str, dict[str, float]] = {}
        self.n_features_in_ = len(dense[0].mean)  # type: ignore[arg-type]

    @property
    def nbytes(self) -> dict[str, int]:
        """Bytes of the parameters of each student."""
        return {name: n_bytes(net) for name, net in self._students().items()}

    def predict(self, X: Any, student: str | None = None) -> np.ndarray:
        """The cluster of each point, as the teacher labelled them.

        Args:
            X: (n, n_features_in_) real numbers.
            student: "dense" or "packed"; None: the packed one where there is one.

        Returns:
            (n,) labels. With target "codes", those of the nearest mean of a cluster's codes.

        Raises:
            ValueError: wrong shape, a value that is not finite, or no such student.
            TypeError: X does not hold real numbers.
            NotImplementedError: target "codes", and `compress` knew no labels.
        """
        if self.classes_ is None:
            raise NotImplementedError(
                "CompressedNetwork.predict: labels must have been known to compress, got none; "
                "pass labels= to compress"
            )
        points = points_of("CompressedNetwork.predict", X, self.n_features_in_)
        return self.classes_[self._clusters(self._answers(points, student)).numpy()]

    def transform(self, X: Any, student: str | None = None) -> np.ndarray:
        """The code of each point.

        Args:
            X: (n, n_features_in_) real numbers.
            student: "dense" or "packed"; None: the packed one where there is one.

        Returns:
            (n, n_components), float32 where that holds X's numbers exactly, else float64.

        Raises:
            ValueError, TypeError: as `predict`.
            NotImplementedError: target "clusters".
        """
        if self._codes is None:
            raise NotImplementedError(
                "CompressedNetwork.transform: target must be 'codes', got 'clusters'; compress "
                "with target='codes'"
            )
        points = points_of("CompressedNetwork.transform", X, self.n_features_in_)
        return self._codes.unscaled(self._answers(points, student)).to(points.dtype).numpy()

    def bfloat16(self) -> CompressedNetwork:
        """A copy with bfloat16 weights.

        The packed student keeps its values in bfloat16 and computes in float32; the dense one
        computes in bfloat16, which is slow on a processor without instructions for it.
        `agreement` and `error` are those of float32.
        """
        made = copy.copy(self)
        made.dense = in_bfloat16(self.dense)
        made.packed = None if self.packed is None else in_bfloat16(self.packed)
        return made

    def _students(self) -> dict[str, nn.Sequential]:
        return {"dense": self.dense} | ({} if self.packed is None else {"packed": self.packed})

    def _answers(self, points: Tensor, student: str | None) -> Tensor:
        students = self._students()
        if student is not None and student not in students:
            raise ValueError(
                f"CompressedNetwork: student must be one of {list(students)}, got {student!r}; "
                "pass None for the fastest"
            )
        return outputs(students[student or list(students)[-1]], points)

    def _clusters(self, answers: Tensor) -> Tensor:
        return answers.argmax(1) if self._codes is None else self._codes.nearest(answers)

    def score_(self, task: Task, clusters: Tensor | None) -> None:
        """Fills in `agreement` and `error`; for `compress`."""
        parts = {"train": task.train, "validation": task.validation}
        for name in self._students():
            answers = {part: self._answers(task.x[rows], name) for part, rows in parts.items()}
            if clusters is not None:
                self.agreement[name] = {
                    part: float((self._clusters(a) == clusters[parts[part]]).double().mean())
                    for part, a in answers.items()
                }
            if self._codes is not None:
                spread = (task.y - task.y.mean(0)).square().mean()
                self.error[name] = {
                    part: float((a - task.y[parts[part]]).square().mean() / spread)
                    for part, a in answers.items()
                }


class CodeRange:
    """Codes in the unit range, one range for all components, so that distances keep their ratios.

    Attributes:
        low: (n_components,) float64, the least code.
        width: of the widest component.
        means: (n_clusters, n_components) float32, in the unit range; None without labels.
    """

    def __init__(self, codes: Tensor) -> None:
        self.low = codes.amin(0)
        self.width = float((codes.amax(0) - self.low).max()) or 1.0
        self.means: Tensor | None = None

    def learn_means(self, scaled: Tensor, clusters: Tensor) -> None:
        """The mean of each cluster's codes, which `nearest` looks for."""
        n = int(clusters.max()) + 1
        sums = scaled.new_zeros(n, scaled.shape[1], dtype=torch.float64)
        sums.index_add_(0, clusters, scaled.double())
        self.means = (sums / torch.bincount(clusters, minlength=n)[:, None]).float()

    def scaled(self, codes: Tensor) -> Tensor:
        return ((codes - self.low) / self.width).float()

    def unscaled(self, answers: Tensor) -> Tensor:
        return answers.double() * self.width + self.low

    def nearest(self, answers: Tensor) -> Tensor:
        assert self.means is not None
        return torch.cdist(answers, self.means).argmin(1)


def points_of(operation: str, X: Any, n_features: int | None) -> Tensor:
    """X as a float32 or float64 tensor, a view where it can be."""
    if isinstance(X, Tensor):
        X = (X.float() if X.dtype == torch.bfloat16 else X).detach().cpu().numpy()
    array = np.asarray(X)
    if array.dtype.kind not in "fiub":
        raise TypeError(
            f"{operation}: X must hold real numbers, got dtype {array.dtype}; pass float32"
        )
    if array.ndim != 2 or 0 in array.shape or n_features not in (None, array.shape[-1]):
        wanted = "n_features" if n_features is None else n_features
        raise ValueError(
            f"{operation}: X must be (n, {wanted}) and not empty, got {array.shape}; pass one row "
            "per point"
        )
    if array.dtype not in (np.float32, np.float64):
        exact = np.can_cast(array.dtype, np.float32)
        array = array.astype(np.float32 if exact else np.float64)
    if not np.isfinite(array).all():
        raise ValueError(
            f"{operation}: X must be finite, got NaN or infinity; remove or impute these points"
        )
    odd = any(stride < 0 or stride % array.itemsize for stride in array.strides)
    return torch.from_numpy(array.copy() if odd or not array.flags.writeable else array)
