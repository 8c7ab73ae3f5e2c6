"""Rows of the operator table: products with pruned weights in 32 x 32 blocks.

The blocks are laid out here by the words of csrc/cpu/spmm/tile_blocks.h, without the package's own
packing, and read back by the oracle.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product

import numpy as np
import torch

import oracle
from inputs import numbers
from op_case import OpCase, Rng, Sample

BF16 = torch.bfloat16
DENSITIES = (0.05, 0.3, 0.74, 0.77, 1.0)
MOST_PACKED = 768  # kept values of a block that is not stored whole


def extents_in_blocks(n: int) -> int:
    return (n + 31) // 32


def place_in_block(o: int, i: int) -> int:
    """Two tiles of 16 outputs: pairs of inputs, of which every output has two values."""
    return (o // 16) * 512 + (i // 2) * 32 + (o % 16) * 2 + i % 2


ORDER = np.array([[place_in_block(o, i) for i in range(32)] for o in range(32)])


def layout(weight: np.ndarray, mask: np.ndarray) -> dict[str, torch.Tensor]:
    """The tensors of a `TileBlocks`; weight (n_out, n_in), mask of the same shape."""
    n_out, n_in = weight.shape
    rows, columns = extents_in_blocks(n_out), extents_in_blocks(n_in)
    kept = np.zeros((rows * 32, columns * 32), bool)
    full = np.zeros(kept.shape, np.float64)
    kept[:n_out, :n_in], full[:n_out, :n_in] = mask, np.where(mask, weight, 0)
    start, at, places, masks, values = [0], [], [], [], []
    for r in range(rows):
        for c in range(columns):
            part = np.s_[r * 32 : r * 32 + 32, c * 32 : c * 32 + 32]
            if not kept[part].any():
                continue
            bits, drawn = np.zeros(1024, bool), np.zeros(1024)
            bits[ORDER], drawn[ORDER] = kept[part], full[part]
            at.append(c)
            masks.append(np.packbits(bits, bitorder="little").view(np.int32))
            if bits.sum() > MOST_PACKED:
                values += [0.0] * (-len(values) % 32)
                places.append(~len(values))
                values += drawn.tolist()
            else:
                places.append(len(values))
                values += drawn[bits].tolist()
        start.append(len(at))
    values += [0.0] * 32
    return dict(
        start=torch.tensor(start),
        columns=torch.tensor(at, dtype=torch.int32),
        place=torch.tensor(places, dtype=torch.int64),
        masks=torch.from_numpy(np.array(masks, np.int32).reshape(-1, 32)),
        values=torch.tensor(values, dtype=torch.float64).to(BF16),
    )


def read_back(start, columns, place, masks, values, n_out: int, n_in: int) -> np.ndarray:
    """The matrix that the blocks stand for."""
    full = np.zeros((extents_in_blocks(n_out) * 32, extents_in_blocks(n_in) * 32), values.dtype)
    for r in range(len(start) - 1):
        for b in range(start[r], start[r + 1]):
            bits = np.unpackbits(masks[b].view(np.uint8), bitorder="little").astype(bool)
            block = np.zeros(1024, values.dtype)
            if place[b] < 0:
                block[bits] = values[~place[b] : ~place[b] + 1024][bits]
            else:
                block[bits] = values[place[b] : place[b] + bits.sum()]
            at = np.s_[r * 32 : r * 32 + 32, columns[b] * 32 : columns[b] * 32 + 32]
            full[at] = block[ORDER]
    return full[:n_out, :n_in]


def random_mask(rng: Rng, n_out: int, n_in: int, density: float, blocks: bool) -> np.ndarray:
    """Single values, or whole blocks of them; some rows of blocks hold nothing."""
    shape = (extents_in_blocks(n_out), extents_in_blocks(n_in)) if blocks else (n_out, n_in)
    mask = rng.random(shape) < density
    if blocks:
        mask = mask.repeat(32, 0).repeat(32, 1)[:n_out, :n_in]
    if n_out > 64:
        mask[32:64] = False
    return mask


def weight_args(rng: Rng, n_out: int, n_in: int, density: float, blocks: bool, integers: bool):
    weight = numbers(rng, (n_out, n_in), BF16, integers).double().numpy()
    return layout(weight, random_mask(rng, n_out, n_in, density, blocks)) | dict(n_out=n_out)


# ------------------------------------------------------------------ matrices
def spmm_sample(rng: Rng, shape, density: float, blocks: bool, bias: bool, integers: bool):
    n_rows, n_out, n_in = shape
    args = dict(x=numbers(rng, (n_rows, n_in), BF16, integers))
    args |= weight_args(rng, n_out, n_in, density, blocks, integers)
    if bias:
        args["bias"] = numbers(rng, (n_out,), BF16, integers)
    note = f"{shape} density={density} blocks={blocks} bias={bias}"
    return Sample(args, integers, note, n_in)


def spmm_samples(rng: Rng, dtype, integers: bool) -> Iterable[Sample]:
    shapes = ((16, 32, 32), (17, 33, 70), (33, 100, 31), (5, 7, 200), (40, 96, 640), (1, 1, 1))
    for i, (shape, density) in enumerate(product(shapes, DENSITIES)):
        yield spmm_sample(rng, shape, density, i % 2 == 0, i % 3 == 0, integers)
    for n_rows in (0, 1, 15, 16, 17, 31, 32, 33):
        yield spmm_sample(rng, (n_rows, 40, 64), 0.4, False, True, integers)
        yield spmm_sample(rng, (n_rows, 32, 50), 0.4, False, False, integers)
    for density in (0.0, 1.0):
        yield spmm_sample(rng, (20, 70, 45), density, False, True, integers)


def spmm_oracle(x, start, columns, place, masks, values, n_out, bias=None):
    weight = read_back(start, columns, place, masks, values, n_out, x.shape[1])
    return (x @ weight.T + (0 if bias is None else bias),)


def spmm_large(rng: Rng, dtype) -> Sample:
    """Several panels of rows, several chunks of blocks."""
    return spmm_sample(rng, (1100, 200, 320), 0.4, False, True, False)


# ------------------------------------------------------------------ convolutions
GEOMETRIES = (
    # batch, c_in, c_out, extents, kernel, stride, padding, dilation
    (2, 32, 33, (14, 14), (3, 3), (1, 1), (1, 1), (1, 1)),
    (3, 20, 40, (9, 11), (3, 2), (2, 1), (1, 0), (1, 2)),
    (2, 40, 16, (9, 12), (3, 3), (1, 2), (1, 2), (2, 1)),
    (2, 64, 70, (50,), (5,), (3,), (2,), (1,)),
    (1, 3, 16, (5, 6, 7), (3, 3, 3), (1, 2, 2), (1, 1, 1), (1, 1, 1)),
    (2, 32, 32, (4, 5), (1, 1), (1, 1), (0, 0), (1, 1)),
    (1, 32, 32, (3, 3), (3, 3), (1, 1), (0, 0), (1, 1)),
    (0, 32, 32, (4, 4), (3, 3), (1, 1), (1, 1), (1, 1)),
)


def conv_sample(rng: Rng, geometry, density: float, bias: bool, integers: bool) -> Sample:
    batch, c_in, c_out, extents, kernel, stride, padding, dilation = geometry
    x = numbers(rng, (batch, c_in, *extents), BF16, integers)
    if density > 0.5:  # channels last in memory
        x = x.movedim(1, -1).contiguous().movedim(-1, 1)
    padded, volume = extents_in_blocks(c_in) * 32, int(np.prod(kernel))
    weight = numbers(rng, (c_out, volume, padded), BF16, integers).double().numpy()
    mask = rng.random(weight.shape) < density
    mask[:, :, c_in:] = False
    flat = (c_out, volume * padded)
    args = dict(x=x) | layout(weight.reshape(flat), mask.reshape(flat)) | dict(n_out=c_out)
    args |= dict(kernel=kernel, stride=stride, padding=padding, dilation=dilation)
    if bias:
        args["bias"] = numbers(rng, (c_out,), BF16, integers)
    return Sample(args, integers, f"{geometry} density={density}", flat[1])


def conv_samples(rng: Rng, dtype, integers: bool) -> Iterable[Sample]:
    for i, geometry in enumerate(GEOMETRIES):
        yield conv_sample(rng, geometry, (0.2, 0.8)[i % 2], i % 3 > 0, integers)
    yield conv_sample(rng, GEOMETRIES[0], 0.0, True, integers)


def conv_oracle(
    x,
    start,
    columns,
    place,
    masks,
    values,
    n_out,
    kernel,
    stride,
    padding,
    dilation,
    bias=None,
):
    batch, c_in, *extents = x.shape
    volume, padded = int(np.prod(kernel)), extents_in_blocks(c_in) * 32
    weight = read_back(start, columns, place, masks, values, n_out, volume * padded)
    weight = weight.reshape(n_out, volume, padded)[:, :, :c_in]
    out = [oracle.out_extent(*g) for g in zip(extents, kernel, stride, padding, dilation)]
    y = np.zeros((batch, n_out, *out), np.longdouble)
    for site in np.ndindex(*out):
        for k, source in oracle.reads((0, *site), extents, kernel, stride, padding, dilation):
            if source is not None:
                y[(..., *site)] += x[(..., *source[1:])] @ weight[:, k].T
    if bias is not None:
        y += bias.reshape(-1, *[1] * len(out))
    return (y,)


def conv_large(rng: Rng, dtype) -> Sample:
    geometry = (4, 32, 64, (20, 22), (3, 3), (1, 1), (1, 1), (1, 1))
    return conv_sample(rng, geometry, 0.5, True, False)


TILE_CASES = [
    OpCase("tile_spmm", spmm_samples, spmm_oracle, spmm_large, only=BF16),
    OpCase("tile_conv", conv_samples, conv_oracle, conv_large, only=BF16),
]
