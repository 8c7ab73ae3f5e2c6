"""Linear layers whose weight is projected onto a pattern after each step, and their packed form."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from .._magnitude import keep_magnitudes_, magnitude_mask
from .._packed_weight import PackedWeight
from .._patterns import Pattern, check_pattern
from ._masked import MaskedLinear, unmask_layer
from ._packed import PACKED_CLASSES, THAWED_CLASSES, PackedLinear
from ._packed_state import load_packed


class ProjectedLinear(nn.Linear):
    """`nn.Linear` that says which pattern its weight is to have; `ds.prune.Project` sees to it.

    The weight is an ordinary dense parameter: no mask, full gradients and full momentum, so a
    weight that was projected to zero may come back (iterative hard thresholding). `ds.prune.freeze`
    packs the largest weights of the pattern, and `ds.thaw` gives them back.

    Args:
        in_features: size of the input's last axis.
        out_features: of the output's.
        bias: add a bias, which has no pattern.
        device: of the parameters.
        dtype: of the parameters.
        pattern: one that says itself how many weights it keeps, such as `ds.TopKRows(20)`; the
            initial weight is projected.

    Attributes:
        constraints: {"weight": pattern}, what `ds.prune.Project` looks for in every module.

    Raises:
        TypeError: `pattern` is no pattern.
        ValueError: `pattern` does not say how many weights it keeps.

    Example:
        >>> import torch, doublesparse as ds
        >>> layer = ds.nn.ProjectedLinear(8, 4, pattern=ds.TopKRows(2))
        >>> (layer.weight != 0).sum(1).tolist()
        [2, 2, 2, 2]
    """

    frozen = False
    pattern: Pattern
    _changed = None  # of masked layers, which `freeze` treats alike

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        pattern: Pattern,
    ) -> None:
        check_constraint("ProjectedLinear", pattern)
        super().__init__(in_features, out_features, bias, device, dtype)
        self.pattern = pattern
        self.project_()

    @property
    def constraints(self) -> dict[str, Pattern]:
        """Which parameter has which pattern."""
        return {"weight": self.pattern}

    @property
    def mask(self) -> Tensor:
        """Where the largest weights of the pattern are, now: what `freeze` would keep."""
        return magnitude_mask(self.weight, self.pattern)

    def project_(self) -> None:
        """Set all but the largest weights of the pattern to zero."""
        if not self.weight.is_meta:
            keep_magnitudes_(self.weight, self.pattern)

    def extra_repr(self) -> str:
        """As torch's, and the pattern."""
        return f"{nn.Linear.extra_repr(self)}, pattern={self.pattern}"

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        """Packed weights are unpacked."""
        super()._load_from_state_dict(state_dict, prefix, *args)
        load_packed(cast("Any", self), state_dict, prefix, *args)

    def _take(self, packed: PackedWeight, assign: bool) -> None:
        """Use the weight of a frozen model."""
        weight = packed.unpack()
        if assign or self.weight.is_meta:
            self.weight = nn.Parameter(weight, self.weight.requires_grad)
        else:
            with torch.no_grad():
                self.weight.copy_(weight)


def check_constraint(operation: str, pattern: Any) -> None:
    """Raise where `pattern` does not say itself how many weights it keeps."""
    check_pattern(operation, pattern)
    if not pattern.fixed:
        raise ValueError(
            f"{operation}: pattern must say how many weights it keeps, got {pattern}; pass "
            "ds.TopKRows(s), ds.TopKColumns(s) or ds.NM(n, m)"
        )


# ------------------------------------------------------------------ between freeze and thaw
class _HeldLinear(MaskedLinear):
    """A projected layer on its way to and from its packed form: its mask holds for a moment."""

    dense_class: type[nn.Module] = ProjectedLinear


class PackedProjectedLinear(PackedLinear):
    """What `ds.prune.freeze` makes of a `ProjectedLinear`: see `ds.nn.PackedLinear`."""

    dense_class: type[nn.Module] = ProjectedLinear

    @property
    def constraints(self) -> dict[str, Pattern]:
        """None: what is packed has its pattern."""
        return {}

    def thaw_(self) -> None:
        """Become a `ProjectedLinear` again, with its old Parameter, which gets the packed values.

        Example:
            >>> import torch, doublesparse as ds
            >>> layer = ds.nn.ProjectedLinear(8, 4, pattern=ds.TopKRows(2))
            >>> layer = ds.prune.freeze(layer.eval())
            >>> type(layer).__name__, type(ds.thaw(layer)).__name__
            ('PackedProjectedLinear', 'ProjectedLinear')
        """
        pattern = self.pattern
        super().thaw_()
        unmask_layer(self)
        self.pattern = pattern

    def set_mask(self, mask: Tensor, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Refused: its pattern and its weights say what is kept."""
        raise RuntimeError(
            "PackedProjectedLinear.set_mask: mask must come from the layer's pattern, got another; "
            "use ds.nn.MaskedLinear for masks of your own"
        )


PACKED_CLASSES[ProjectedLinear] = PackedProjectedLinear
THAWED_CLASSES[PackedProjectedLinear] = _HeldLinear
