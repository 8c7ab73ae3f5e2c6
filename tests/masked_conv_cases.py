"""Convolutions with a pruned weight: cases, and torch's answer on the weight with its zeros.

Run as a script, it checks them all under DOUBLESPARSE_ISA and prints the set that was chosen.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

CONVOLUTIONS = (F.conv1d, F.conv2d, F.conv3d)


class Case(NamedTuple):
    """Arguments of a convolution: `walk` is (stride, padding, dilation)."""

    batch: int
    c_in: int
    c_out: int
    shape: tuple[int, ...]
    kernel: tuple[int, ...]
    walk: tuple[Any, Any, Any] = (1, 0, 1)
    groups: int = 1

    @property
    def n_axes(self) -> int:
        return len(self.shape)

    @property
    def arguments(self) -> tuple[Any, ...]:
        return (*self.walk, self.groups)


CASES = {
    "3x3": Case(16, 16, 8, (14, 14), (3, 3), (1, 1, 1)),
    "batch 1": Case(1, 9, 8, (7, 30), (3, 3), (1, 1, 1)),
    "batch 3": Case(3, 5, 7, (9, 8), (3, 3), (2, (1, 0), (1, 2))),
    "batch 17": Case(17, 4, 6, (5, 5), (2, 3), ((1, 3), (0, 2), (2, 1)), 2),
    "depthwise": Case(2, 8, 8, (7, 9), (3, 3), (1, 1, 1), 8),
    "1x1": Case(4, 40, 24, (6, 5), (1, 1)),
    "1x1 with holes": Case(2, 4, 4, (9, 9), (1, 1), (3, 0, 1)),
    "stride without padding": Case(2, 4, 4, (9, 9), (3, 3), (2, 0, 1)),
    "stride and dilation share a factor": Case(2, 4, 4, (9, 9), (2, 2), (2, 1, (2, 4))),
    "dilated strides": Case(2, 4, 4, (9, 9), (2, 2), ((3, 2), 1, (3, 2))),
    "stride beyond the image": Case(2, 3, 4, (2, 5), (1, 2), ((7, 1), 0, 1)),
    "one pixel": Case(13, 3, 4, (1, 1), (3, 3), (1, 1, 1)),
    "padding beyond the kernel": Case(2, 3, 4, (3, 2), (2, 2), (1, 4, 1)),
    "same, even kernel": Case(2, 3, 4, (10, 9), (2, 4), (1, "same", (1, 3))),
    "valid": Case(3, 16, 32, (8, 8), (3, 3), (1, "valid", 1), 2),
    "1-D": Case(2, 3, 4, (33,), (5,), (1, 2, 1)),
    "1-D strided": Case(8, 3, 4, (33,), (5,), (3, 2, 2)),
    "3-D": Case(9, 3, 4, (6, 7, 5), (3, 2, 3), ((1, 2, 1), (1, 1, 0), 1)),
    "3-D, batch 1": Case(1, 4, 16, (4, 6, 5), (3, 3, 3), (1, 1, 1)),
    "many bands": Case(1, 16, 2, (410, 330), (3, 3), (1, 1, 1)),
}


def integers(shape: Any, dtype: torch.dtype, generator: torch.Generator, most: int = 2) -> Tensor:
    return torch.randint(-most, most + 1, tuple(shape), generator=generator).to(dtype)


def operands(
    case: Case, dtype: torch.dtype, density: float = 0.3, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, weight (NaN where masked), mask and bias: small integers."""
    g = torch.Generator().manual_seed(seed)
    x = integers((case.batch, case.c_in, *case.shape), dtype, g)
    weight = integers((case.c_out, case.c_in // case.groups, *case.kernel), dtype, g)
    mask = torch.rand(weight.shape, generator=g) < density
    weight[~mask] = float("nan")
    return x, weight, mask, integers((case.c_out,), dtype, g, 3)


def with_gradients(
    convolve: Callable[..., Tensor], x: Tensor, weight: Tensor, bias: Tensor
) -> list[Tensor]:
    """The result and the gradients of all three, for an integer gradient of the result."""
    leaves = [t.detach().clone().requires_grad_() for t in (x, weight, bias)]
    y = convolve(*leaves)
    y.backward(integers(y.shape, y.dtype, torch.Generator().manual_seed(1), 1))
    return [y.detach(), *(leaf.grad for leaf in leaves)]


def torchs(case: Case, x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor) -> list[Tensor]:
    """What torch says in float64, in the dtype of x."""

    def convolve(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        zeros = torch.where(mask, weight, 0.0)
        return CONVOLUTIONS[case.n_axes - 1](x, zeros, bias, *case.arguments)

    wide = with_gradients(convolve, x.double(), weight.double(), bias.double())
    return [t.to(x.dtype) for t in wide]


def ours(case: Case, x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor) -> list[Tensor]:
    """The same of the package."""
    from doublesparse._functional_masked_conv import masked_conv

    def convolve(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return masked_conv(case.n_axes, x, weight, mask, bias, *case.arguments)

    return with_gradients(convolve, x, weight, bias)


def check(case: Case, x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor) -> None:
    """All four results are torch's, exactly."""
    names = ("y", "dx", "dw", "db")
    expected = torchs(case, x, weight, mask, bias)
    for name, got, want in zip(names, ours(case, x, weight, mask, bias), expected, strict=True):
        assert got.dtype == want.dtype and torch.equal(got, want), name


def main() -> None:
    import doublesparse as ds
    from doublesparse import _masked_conv

    _masked_conv.takes_kernel = lambda *layer: True
    for case in CASES.values():
        for dtype in (torch.float32, torch.float64):
            check(case, *operands(case, dtype))
    print(ds._C.isa_chosen())


if __name__ == "__main__":
    main()
