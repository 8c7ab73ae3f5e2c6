"""The nonlinearities of unfolded sparse coding: what makes a code sparse."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .._largest import flat_indices, keep_largest


class SoftThreshold(nn.Module):
    """sign(u) max(|u| - |theta|, 0): the proximal step of an l1 penalty (ISTA).

    The trained parameter `theta` has one number per unit; its absolute value is the threshold, so
    that every step of an optimizer leaves a threshold that is not negative.

    Args:
        n_codes: units.
        device: of theta.
        dtype: of theta.
    """

    def __init__(
        self,
        n_codes: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.zeros(n_codes, device=device, dtype=dtype))

    def set_threshold_(self, threshold: float) -> None:
        """The same threshold for every unit."""
        with torch.no_grad():
            self.theta.fill_(threshold)

    def anneal(self, progress: float) -> None:
        """Nothing: it does not change over training."""

    def forward(self, u: Tensor) -> Tensor:
        """(*, n_codes) to the same shape."""
        threshold = self.theta.abs()
        return u - u.clamp(-threshold, threshold)

    def extra_repr(self) -> str:
        """Units."""
        return f"n_codes={self.theta.numel()}"


class HELU(SoftThreshold):
    """A hard threshold that begins as a soft one: theta HELU_sigma(u / theta).

    With t = |theta| it is u where |u| >= t, 0 where |u| <= (1 - sigma) t, and linear between: from
    sigma = 1, a ramp, to sigma = 0, the hard threshold of iterative hard thresholding (Wang, Ling
    and Huang 2016, "Learning deep l0 encoders"). `anneal(progress)` makes sigma 1 - progress. At
    sigma = 0 no gradient reaches theta. Sigma is part of the `state_dict`.

    Args:
        n_codes: units.
        device: of theta.
        dtype: of theta.
    """

    sigma: Tensor

    def __init__(
        self,
        n_codes: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(n_codes, device, dtype)
        self.register_buffer("sigma", torch.ones((), device=device, dtype=dtype))

    def anneal(self, progress: float) -> None:
        """Sigma falls linearly from 1, at progress 0, to 0, at progress 1."""
        self.sigma.fill_(1.0 - progress)

    def forward(self, u: Tensor) -> Tensor:
        """(*, n_codes) to the same shape."""
        threshold, size = self.theta.abs(), u.abs()
        above = (size - (1 - self.sigma) * threshold).relu()
        ramp = u.sign() * above / self.sigma.clamp_min(torch.finfo(u.dtype).tiny)
        return torch.where(size < threshold, ramp, u)


class TopM(nn.Module):
    """The M largest |u| of each sample, as they are; all others zero (max-M pooling).

    Of equal ones, those of lower index. The gradient goes to what is kept. NaN is kept.

    Args:
        m: M, at most the number of units.
    """

    def __init__(self, m: int) -> None:
        super().__init__()
        self.m = m

    def set_threshold_(self, threshold: float) -> None:
        """Nothing: it has no threshold."""

    def anneal(self, progress: float) -> None:
        """Nothing: it does not change over training."""

    def active(self, u: Tensor) -> Tensor:
        """Which are kept: indices (batch, M), ascending, of (batch, n_codes)."""
        wide = torch.promote_types(u.dtype, torch.float32)
        scores = u.detach().abs().to(wide).nan_to_num(math.inf, math.inf)
        places = flat_indices(keep_largest(scores, self.m))
        return places.remainder_(max(1, u.shape[1])).view(len(u), self.m)

    def forward(self, u: Tensor) -> Tensor:
        """(batch, n_codes) to the same shape."""
        return self.codes(u, self.active(u))

    @staticmethod
    def codes(u: Tensor, index: Tensor) -> Tensor:
        """The numbers at the active indices (batch, M), zero elsewhere."""
        return torch.zeros_like(u).scatter(1, index, u.gather(1, index))

    def extra_repr(self) -> str:
        """M."""
        return f"m={self.m}"
