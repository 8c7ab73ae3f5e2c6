"""Patterns and magnitude masks: the oracle sorts in plain Python, one weight or block at a time."""

from __future__ import annotations

import math
import pickle

import pytest
import torch

import doublesparse as ds
from doublesparse._magnitude import magnitude_masks
from doublesparse._patterns import from_matrix, to_matrix

SHAPES = [(6, 8), (1, 1), (7, 5), (8, 6, 3), (4, 5, 3, 3), (6, 3, 1, 2, 2)]
SPARSITIES = [0.0, 0.1, 0.5, 0.77, 0.9, 1.0]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def tied(shape, dtype=torch.float32) -> torch.Tensor:
    """Small integers, so that most weights have equals."""
    return torch.randint(-3, 4, shape).to(dtype)


def rank(value: float) -> float:
    return -1.0 if math.isnan(value) else value


def first_of(groups: list[list[int]], scores: list[float], k: int) -> set[int]:
    """Members of the k groups with the largest scores; of equal ones, of those that come first."""
    order = sorted(range(len(groups)), key=lambda i: (-scores[i], groups[i][0]))
    return {index for i in order[:k] for index in groups[i]}


def blocks_of(shape, r: int, c: int, groups: int) -> list[list[int]]:
    """Flat indices of every block, in torch's layout."""
    c_out, channels, volume = shape[0], shape[1], math.prod(shape[2:])
    per_group = c_out // groups
    members: dict[tuple, list[int]] = {}
    for i in range(c_out * channels * volume):
        row, channel, offset = i // (channels * volume), i // volume % channels, i % volume
        key = (row // per_group, row % per_group // r, channel // c, offset)
        members.setdefault(key, []).append(i)
    return list(members.values())


def expected(weight, pattern, sparsity=None, groups=1) -> torch.Tensor:
    flat = weight.double().abs().flatten().tolist()
    shape, n = weight.shape, weight.numel()
    channels, volume = shape[1], math.prod(shape[2:])
    kept: set[int] = set()
    if isinstance(pattern, ds.Block):
        blocks = blocks_of(shape, pattern.r, pattern.c, groups)
        scores = [rank(sum(flat[i] for i in block)) for block in blocks]
        kept = first_of(blocks, scores, round((1 - sparsity) * len(blocks)))
    elif isinstance(pattern, ds.Unstructured):
        kept = first_of([[i] for i in range(n)], [rank(v) for v in flat], round((1 - sparsity) * n))
    else:
        lines: dict[tuple, list[int]] = {}
        for i in range(n):
            row, channel, offset = i // (channels * volume), i // volume % channels, i % volume
            if isinstance(pattern, ds.NM):
                key = (row, offset, channel // pattern.m)
            else:
                key = (row,) if isinstance(pattern, ds.TopKRows) else (offset, channel)
            lines.setdefault(key, []).append(i)
        k = pattern.n if isinstance(pattern, ds.NM) else pattern.s
        for line in lines.values():
            kept |= first_of([[i] for i in line], [rank(flat[i]) for i in line], k)
    return torch.tensor([i in kept for i in range(n)]).view(shape)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("sparsity", SPARSITIES)
def test_unstructured_and_blocks(shape, sparsity):
    for pattern in (ds.Unstructured(), ds.Block(1, 4), ds.Block(4, 1), ds.Block(2, 3)):
        for weight in (tied(shape), torch.randn(shape), torch.zeros(shape)):
            got = ds.prune.magnitude_mask(weight, pattern, sparsity)
            assert got.dtype is torch.bool and got.is_contiguous()
            assert torch.equal(got, expected(weight, pattern, sparsity)), pattern
    assert int(ds.prune.magnitude_mask(torch.ones(shape), ds.Unstructured(), sparsity).sum()) == (
        round((1 - sparsity) * math.prod(shape))
    )


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    "pattern",
    [ds.NM(2, 4), ds.NM(0, 3), ds.NM(3, 3), ds.NM(1, 5), ds.TopKRows(3), ds.TopKRows(0)]
    + [ds.TopKRows(1000), ds.TopKColumns(2), ds.TopKColumns(1000)],
    ids=str,
)
def test_patterns_that_fix_their_sparsity(shape, pattern):
    for weight in (tied(shape), torch.randn(shape), torch.zeros(shape)):
        got = ds.prune.magnitude_mask(weight, pattern)
        assert got.is_contiguous()
        assert torch.equal(got, expected(weight, pattern))


@pytest.mark.parametrize("groups", [1, 2, 3])
def test_blocks_stay_inside_their_group(groups):
    weight = tied((12, 4, 3, 2))
    for pattern in (ds.Block(4, 2), ds.Block(5, 3), ds.Block(100, 100)):
        got = ds.prune.magnitude_mask(weight, pattern, 0.5, groups)
        assert torch.equal(got, expected(weight, pattern, 0.5, groups))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes_and_strides(dtype):
    patterns = (ds.Unstructured(), ds.Block(2, 2), ds.NM(1, 2), ds.TopKRows(4), ds.TopKColumns(1))
    weight = (torch.randn(4, 6, 3, 3) * 100).to(dtype)
    strided = [weight, weight.to(memory_format=torch.channels_last), weight[:, ::2]]
    for w in (*strided, weight.flip(0).transpose(0, 1)):
        for pattern in patterns:
            sparsity = None if pattern.fixed else 0.6
            got = ds.prune.magnitude_mask(w, pattern, sparsity)
            if not isinstance(pattern, ds.Block):  # whose sums of floats the oracle rounds
                assert torch.equal(got, expected(w, pattern, sparsity)), pattern
            assert torch.equal(got, ds.prune.magnitude_mask(w.contiguous(), pattern, sparsity))


def test_half_precision_sums_do_not_overflow():
    weight = torch.full((8, 8), 60000.0, dtype=torch.float16)
    weight[:4] = 59000.0
    got = ds.prune.magnitude_mask(weight, ds.Block(4, 8), 0.5)
    assert got[4:].all() and not got[:4].any()


@pytest.mark.parametrize("pattern", [ds.Unstructured(), ds.Block(1, 2), ds.NM(2, 4)], ids=str)
def test_nan_ranks_last(pattern):
    nan, inf = math.nan, math.inf
    weight = torch.tensor([[nan, 0.0, 1.0, -inf], [0.0, 0.0, nan, nan]])
    sparsity = None if pattern.fixed else 0.5
    got = ds.prune.magnitude_mask(weight, pattern, sparsity)
    assert torch.equal(got, expected(weight, pattern, sparsity))
    assert not (got & weight.isnan()).any()
    everything = torch.full((4, 4), nan)
    got = ds.prune.magnitude_mask(everything, ds.Unstructured(), 0.5)
    assert got[:2].all() and not got[2:].any()


def test_no_weights():
    for shape in ((0, 4), (4, 0), (0, 3, 3, 3)):
        for pattern in (ds.Unstructured(), ds.Block(2, 2), ds.NM(2, 4), ds.TopKRows(2)):
            sparsity = None if pattern.fixed else 0.5
            assert ds.prune.magnitude_mask(torch.zeros(shape), pattern, sparsity).shape == shape


def test_one_threshold_over_several_weights():
    weights = [tied((4, 6)), 5 * tied((3, 2, 3, 3)), torch.zeros(2, 2)]
    for sparsity in SPARSITIES:
        masks = magnitude_masks(weights, ds.Unstructured(), sparsity)
        together = torch.cat([w.flatten() for w in weights])[None]
        want = expected(together, ds.Unstructured(), sparsity)
        assert torch.equal(torch.cat([m.flatten() for m in masks])[None], want)
        assert [m.shape for m in masks] == [w.shape for w in weights]


def test_blocks_of_several_weights_compare_by_the_weight():
    """An edge block of one large weight beats a full block with a larger sum."""
    one, two = torch.ones(4, 4), torch.full((1, 1), 3.0)
    masks = magnitude_masks([one, two], ds.Block(4, 4), 0.5)
    assert not masks[0].any() and masks[1].all()
    masks = magnitude_masks([torch.randn(8, 8), torch.randn(6, 4, 3)], ds.Block(2, 2), 0.75)
    n_blocks = sum(len(blocks_of(m.shape, 2, 2, 1)) for m in masks)
    kept = sum(
        bool(m.flatten()[block[0]]) for m in masks for block in blocks_of(m.shape, 2, 2, 1)
    )
    assert kept == round(0.25 * n_blocks)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matrix_view(shape):
    weight = torch.arange(math.prod(shape)).view(shape)
    matrix = to_matrix(weight)
    channels = shape[1]
    flat = weight.reshape(shape[0], channels, -1)
    assert matrix.shape == (shape[0], flat[0].numel())
    for row in range(shape[0]):
        for column in range(matrix.shape[1]):
            offset, channel = divmod(column, channels)
            assert matrix[row, column] == flat[row, channel, offset]
    assert torch.equal(from_matrix(matrix, shape), weight)


def test_patterns_are_values():
    patterns = [ds.Unstructured(), ds.Block(2, 3), ds.NM(2, 4), ds.TopKRows(5), ds.TopKColumns(5)]
    assert len(set(patterns)) == 5
    assert repr(patterns[1]) == "Block(r=2, c=3)"
    for pattern in patterns:
        assert pickle.loads(pickle.dumps(pattern)) == pattern
        with pytest.raises(AttributeError):
            pattern.r = 7


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: ds.Block(0, 1), ValueError, "r must be at least 1, got 0"),
        (lambda: ds.Block(2, 1.5), TypeError, "c must be an int"),
        (lambda: ds.Block(True, 1), TypeError, "r must be an int"),
        (lambda: ds.NM(5, 4), ValueError, "n must be at most m, got n=5 and m=4"),
        (lambda: ds.NM(-1, 4), ValueError, "n must be at least 0"),
        (lambda: ds.NM(0, 0), ValueError, "m must be at least 1"),
        (lambda: ds.TopKRows(-1), ValueError, "s must be at least 0"),
        (lambda: ds.TopKColumns("2"), TypeError, "s must be an int"),
    ],
)
def test_wrong_patterns(make, error, words):
    with pytest.raises(error, match=words):
        make()


W = torch.ones(4, 4)


@pytest.mark.parametrize(
    ("args", "error", "words"),
    [
        ((W, ds.Unstructured()), ValueError, "sparsity must be given"),
        ((W, ds.Unstructured(), 1.5), ValueError, r"must lie in \[0, 1\], got 1.5"),
        ((W, ds.Unstructured(), -0.1), ValueError, r"must lie in \[0, 1\]"),
        ((W, ds.Unstructured(), math.nan), ValueError, r"must lie in \[0, 1\]"),
        ((W, ds.Unstructured(), "0.5"), TypeError, "sparsity must be a number"),
        ((W, ds.Unstructured(), True), TypeError, "sparsity must be a number"),
        ((W, ds.Unstructured, 0.5), TypeError, "pattern must be a pattern object"),
        ((W, "unstructured", 0.5), TypeError, "pattern must be a pattern object, got str"),
        ((W, ds.NM(2, 4), 0.4), ValueError, "must be None or agree"),
        ((W, ds.TopKRows(1), 0.5), ValueError, "must be None or agree"),
        ((W.int(), ds.Unstructured(), 0.5), TypeError, "floating-point"),
        ((W.cfloat(), ds.Unstructured(), 0.5), TypeError, "floating-point"),
        ((W.bool(), ds.Unstructured(), 0.5), TypeError, "floating-point"),
        ((W.to_sparse(), ds.Unstructured(), 0.5), TypeError, "strided"),
        ((W.tolist(), ds.Unstructured(), 0.5), TypeError, "must be a Tensor, got list"),
        ((W[0], ds.Unstructured(), 0.5), ValueError, "biases and norms"),
        ((W.to("meta"), ds.Unstructured(), 0.5), NotImplementedError, "meta"),
        ((W, ds.Block(2, 2), 0.5, 3), ValueError, "groups must divide"),
        ((W, ds.Block(2, 2), 0.5, 1.0), TypeError, "groups must be an int"),
    ],
)
def test_wrong_arguments(args, error, words):
    with pytest.raises(error, match=words):
        ds.prune.magnitude_mask(*args)


def test_sparsity_that_agrees_is_taken():
    assert torch.equal(
        ds.prune.magnitude_mask(W, ds.NM(2, 4), 0.5), ds.prune.magnitude_mask(W, ds.NM(2, 4))
    )
    assert ds.prune.magnitude_mask(W, ds.TopKRows(1), 0.75).sum() == 4
