"""Checks of what a `PackedWeight` is made from, and of what was stored of one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._packed_codec import decode
from ._packed_layout import DTYPES, Layout
from ._patterns import Block, to_matrix


def check_tensor(
    tensor: Any,
    name: str,
    dtypes: tuple[torch.dtype, ...] | None,
    operation: str = "PackedWeight.pack",
) -> None:
    """A strided tensor with data on the CPU or on CUDA, of one of some dtypes."""
    if not isinstance(tensor, Tensor):
        raise TypeError(
            f"{operation}: {name} must be a Tensor, got {type(tensor).__name__}; pass one"
        )
    if tensor.layout is not torch.strided:
        raise TypeError(
            f"{operation}: {name} must be a strided tensor, got {tensor.layout}; use x.to_dense()"
        )
    if tensor.device.type not in ("cpu", "cuda"):
        raise NotImplementedError(
            f"{operation}: {name} must be on cpu or cuda, got {tensor.device}; use x.cpu()"
        )
    if dtypes is not None and tensor.dtype not in dtypes:
        raise TypeError(
            f"{operation}: {name} must be one of {dtypes}, got {tensor.dtype}; convert it"
        )


def kept_matrix(weight: Tensor, mask: Tensor | None, layout: Layout) -> Tensor:
    """The mask as a matrix; ValueError without an operation's name where it does not fit."""
    if mask is not None:
        check_tensor(mask, "mask", (torch.bool,))
        if mask.shape != weight.shape:
            raise ValueError(
                f"mask must have the weight's shape {tuple(weight.shape)}, got {tuple(mask.shape)}"
            )
        keep = to_matrix(mask.detach().cpu())
    else:
        keep = to_matrix(weight) != 0
        if isinstance(layout.pattern, Block):
            some = layout.to_units(keep).any(-1).any(-1).reshape(-1, 1, 1)
            return layout.from_units(some.expand(-1, *layout.block))
    if isinstance(layout.pattern, Block):
        layout.check_blocks(keep)
    elif layout.pattern.fixed:
        layout.check_counts(keep.reshape(-1).nonzero()[:, 0])
    return keep


def check_finite(matrix: Tensor) -> None:
    """What int8 can hold."""
    if not bool(matrix.isfinite().all()):
        raise ValueError(
            "PackedWeight.pack: weight must be finite for dtype=torch.int8, got NaN or infinity; "
            "prune these or keep a floating-point dtype"
        )


def cast_values(values: Tensor, layout: Layout) -> Tensor:
    """Values as they are stored; ValueError where that makes infinities."""
    cast = values.to(layout.dtype)
    if layout.dtype != values.dtype and bool((cast.isinf() & ~values.isinf()).any()):
        raise ValueError(
            f"PackedWeight.pack: weight must fit dtype={layout.dtype}, got values above "
            f"{torch.finfo(layout.dtype).max}; use a wider dtype"
        )
    return cast.contiguous()


def check_stored(tensors: dict[str, Tensor]) -> Layout:
    """The layout of stored tensors, after checking that they fit each other."""
    names = set(map(str, tensors))
    needed = {"meta", "values"}
    if not needed <= names:
        raise ValueError(f"names must include {sorted(needed)}, got {sorted(names)}")
    values = tensors["values"]
    layout = Layout.from_meta(tensors["meta"], values.dtype)  # the version first
    if values.dtype not in DTYPES:
        raise ValueError(f"values must be one of {DTYPES}, got {values.dtype}")
    is_int8 = values.dtype == torch.int8
    for where in ("bitmask", "gaps"):
        wanted = needed | {where} | ({"scales"} if is_int8 else set())
        if names == wanted:
            break
    else:
        raise ValueError(f"names must be {sorted(wanted)}, got {sorted(names)}")
    units = decode(tensors, layout.n_units)
    layout.check_counts(units)
    block = layout.block if isinstance(layout.pattern, Block) else ()
    if values.shape != (len(units), *block):
        raise ValueError(
            f"values must have shape {(len(units), *block)}, got {tuple(values.shape)}"
        )
    n_kept = int(layout.cells(units)[2].sum()) if block else len(units)
    if n_kept != layout.n_kept:
        raise ValueError(f"meta must count {n_kept} kept weights, got {layout.n_kept}")
    if is_int8:
        _check_scales(tensors["scales"], layout.matrix_shape[0])
    return layout


def _check_scales(scales: Tensor, n_rows: int) -> None:
    if scales.dtype not in (torch.float32, torch.float64) or scales.shape != (n_rows,):
        raise ValueError(
            f"scales must be float32 or float64 of shape ({n_rows},), got {scales.dtype} of shape "
            f"{tuple(scales.shape)}"
        )
    if not bool((scales.isfinite() & (scales > 0)).all()):
        raise ValueError("scales must be positive and finite, got others")
