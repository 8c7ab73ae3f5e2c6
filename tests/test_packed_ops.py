"""`spmm`, `spmm_t`, `sddmm` and `packed_conv` against dense torch; and what they refuse."""

from __future__ import annotations

import gc

import pytest
import torch
from torch.nn import functional as F

import doublesparse as ds
from doublesparse._structure import n_remembered


def test_spmm_and_its_gradients() -> None:
    """Small integers: equal to dense torch, any leading axes, every dtype of values."""
    for shape in ((3, 6), (6,), (2, 0, 6), (2, 1, 3, 6)):
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            weight = torch.randint(-3, 4, (5, 6)).to(dtype)
            packed = ds.PackedWeight.pack(weight)
            x = torch.randint(-3, 4, shape).to(dtype).requires_grad_()
            bias = torch.randint(-3, 4, (5,)).to(dtype).requires_grad_()
            for b in (None, bias):
                got, want = ds.functional.spmm(packed, x, b), F.linear(x, weight, b)
                assert torch.equal(got, want) and got.dtype == dtype
            dy = torch.randint(-3, 4, got.shape).to(dtype)
            grads = torch.autograd.grad(got, (x, bias), dy)
            assert torch.equal(grads[0], dy @ weight)
            assert torch.equal(ds.functional.spmm_t(packed, dy), dy @ weight)
            want = dy.reshape(-1, 5).t() @ x.detach().reshape(-1, 6)
            mask = weight != 0
            for where in (mask, packed):
                grad = ds.functional.sddmm(dy, x, where)
                assert torch.equal(grad.unpack(), torch.where(mask, want, 0))
                assert torch.equal(grad.mask(), mask) and grad.dtype == dtype


def test_packed_conv() -> None:
    """Small integers: equal to torch's, batch or none."""
    for n, groups in ((1, 1), (2, 2), (3, 4)):
        weight = torch.randint(-2, 3, (8, 8 // groups, *[2, 3, 1][:n])).float()
        x = torch.randint(-2, 3, (2, 8, *[7, 6, 5][:n])).float()
        packed = ds.PackedWeight.pack(weight)
        dense = getattr(F, f"conv{n}d")
        options = dict(stride=2, padding=1, dilation=2, groups=groups)
        for image in (x, x[0]):
            want = dense(image, weight, torch.arange(8.0), **options)
            got = ds.functional.packed_conv(image, packed, torch.arange(8.0), **options)
            assert torch.equal(got, want)


LINEAR = ds.PackedWeight.pack(torch.ones(3, 4))
CONV = ds.PackedWeight.pack(torch.ones(4, 2, 3))
WRONG = [
    ("spmm", (torch.ones(3, 4), torch.ones(2, 4)), TypeError, "packed must be a PackedWeight"),
    ("spmm", (CONV, torch.ones(2, 4)), ValueError, r"packed must be \(c_out, c_in\)"),
    ("spmm", (LINEAR, [1.0]), TypeError, "x must be a Tensor"),
    ("spmm", (LINEAR, torch.ones(2, 4).long()), TypeError, "x must be a strided floating-point"),
    ("spmm", (LINEAR, torch.ones(2, 4).to_sparse()), TypeError, "x must be a strided"),
    ("spmm", (LINEAR, torch.ones(2, 4, device="meta")), RuntimeError, "x must be on cpu"),
    ("spmm", (LINEAR, torch.ones(2, 4).bfloat16()), TypeError, "x must be at least as wide"),
    ("spmm", (LINEAR, torch.ones(2, 3)), ValueError, "x must have a last axis of 4"),
    ("spmm", (LINEAR, torch.ones(())), ValueError, "x must have a last axis of 4"),
    ("spmm", (LINEAR, torch.ones(2, 4), torch.ones(4)), ValueError, r"bias must have shape \(3,\)"),
    ("spmm", (LINEAR, torch.ones(2, 4), torch.ones(3).double()), TypeError, "bias must be"),
    ("spmm", (LINEAR, torch.ones(2, 4), 1.0), TypeError, "bias must be a Tensor"),
    ("spmm_t", (LINEAR, torch.ones(2, 4)), ValueError, "dy must have a last axis of 3"),
    ("spmm_t", (3, torch.ones(2, 4)), TypeError, "packed must be a PackedWeight"),
    ("sddmm", (torch.ones(2, 3), torch.ones(2, 4), torch.ones(3, 4)), TypeError, "a bool Tensor"),
    ("sddmm", (torch.ones(2, 3), torch.ones(2, 4), None), TypeError, "mask must be"),
    ("sddmm", (torch.ones(2, 3), torch.ones(3, 4), LINEAR), ValueError, "leading axes of x"),
    ("sddmm", (torch.ones(2, 2), torch.ones(2, 4), LINEAR), ValueError, "dy must have a last axis"),
    ("sddmm", (torch.ones(2, 3).double(), torch.ones(2, 4), LINEAR), TypeError, "dy must be torch"),
    ("sddmm", (torch.ones(2, 3), torch.ones(2, 4), CONV), ValueError, "packed must be"),
    (
        "sddmm",
        (torch.ones(2, 3), torch.ones(2, 4), torch.ones(3) > 0),
        ValueError,
        "mask must be",
    ),
    ("packed_conv", (torch.ones(1, 2, 5), LINEAR), ValueError, "packed must be"),
    ("packed_conv", ([], CONV), TypeError, "x must be a Tensor"),
    ("packed_conv", (torch.ones(1, 2, 5, 5), CONV), ValueError, "x must have 1 spatial axes"),
    ("packed_conv", (torch.ones(5), CONV), ValueError, "x must have 1 spatial axes"),
    ("packed_conv", (torch.ones(1, 3, 5), CONV), ValueError, "groups channels"),
    ("packed_conv", (torch.ones(1, 2, 5), CONV, None, 1, 0, 1, 0), ValueError, "groups"),
    (
        "packed_conv",
        (torch.ones(1, 2, 5), CONV, None, 1, 0, 1, 1.0),
        TypeError,
        "groups must be an",
    ),
    ("packed_conv", (torch.ones(1, 2, 5), CONV, torch.ones(3)), ValueError, "bias must have shape"),
]


@pytest.mark.parametrize("name, arguments, error, text", WRONG)
def test_wrong_calls(name: str, arguments, error, text: str) -> None:
    with pytest.raises(error, match=f"{name}: .*{text}.*; "):
        getattr(ds.functional, name)(*arguments)


def test_structures_live_as_long_as_the_mask() -> None:
    """Forward, both gradients: nothing that is remembered holds the mask."""
    before = n_remembered()
    for shape in ((12, 20), (16, 8, 3, 3)):
        weight = torch.randn(shape, requires_grad=True)
        mask = ds.prune.magnitude_mask(weight, ds.Block(4, 4), 0.5)
        x = torch.randn(5, 20) if len(shape) == 2 else torch.randn(2, 8, 5, 5)
        name = "masked_linear" if len(shape) == 2 else "masked_conv2d"
        getattr(ds.functional, name)(x.requires_grad_(), weight, mask).sum().backward()
        assert n_remembered() == before + 1
        mask |= False  # written to, and the same: the structure stays
        getattr(ds.functional, name)(x, weight, mask).sum().backward()
        assert n_remembered() == before + 1
        del mask
        gc.collect()
        assert n_remembered() == before
