"""Convolutions sparse in sites and in weights: modules, frozen grounds, decisions, wrong masks.

What one operator or one layer computes is generated from `cases.py` and `layer_cases.py`.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import pickle

import numpy as np
import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

import doublesparse as ds
import oracle
from doublesparse import _C, _costs, _crossover
from doublesparse._kept import DENSE_SHARE, kept_lists, kept_share
from doublesparse._structure import n_remembered
from inputs import MASKS, make_input, numbers, random_plan, weight_mask


@contextlib.contextmanager
def crossover_at(value):
    before = _crossover.get_crossover()
    ds.set_crossover(value)
    yield
    ds.set_crossover(before)


FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def whole(layer: nn.Module) -> torch.Tensor:
    return torch.where(layer.mask, layer.weight, layer.weight.new_zeros(()))


def example(rng, n_axes: int = 2, channels: int = 12, ground: str = "channels", **options):
    x = make_input(rng, n_axes, {}, channels=channels, ground=ground, **options)
    return x.sparse(ds), x.dense()


# ------------------------------------------------------------------ operators
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("kind", MASKS)
def test_the_bits_are_those_of_zeros_in_the_weight(kind, dtype, rng):
    """Lists leave out products with zero and nothing else; pruned weights are never read."""
    plan = random_plan(rng, 70, 80, 5, 0.7)
    pairs = ds.ops.Pairs(*plan.lists)
    for c_in, c_out, groups in ((64, 48, 1), (17, 33, 1), (24, 40, 2), (600, 20, 1), (8, 8, 8)):
        for transposed in (False, True):
            shape = (c_in, c_out // groups, 5) if transposed else (c_out, c_in // groups, 5)
            mask = weight_mask(rng, shape, kind)
            x, w = numbers(rng, (70, c_in), dtype, False), numbers(rng, shape, dtype, False)
            zero, bias = torch.zeros((), dtype=dtype), numbers(rng, (c_out,), dtype, False)
            want = ds.ops.conv(
                x, torch.where(mask, w, zero), pairs, 80, bias, groups, transposed=transposed
            )
            w = torch.where(mask, w, torch.full((), torch.nan, dtype=dtype))
            got = ds.ops.masked_conv(x, w, mask, pairs, 80, bias, groups, transposed=transposed)
            assert torch.equal(got, want)
            last = w.transpose(1, 2).contiguous().transpose(1, 2)  # channels side by side
            if dtype in (torch.float32, torch.float64):
                rest = (pairs, 80, bias, groups)
                other = ds.ops.masked_conv(x, last, mask, *rest, transposed=transposed)
                packed = ds.ops.pack_masked_weight(w, mask, groups, transposed)
                kept = ds.ops.masked_conv(
                    x, w, mask, *rest, transposed=transposed, packed=packed
                )
                assert torch.equal(other, want) and torch.equal(kept, want)


def test_work_falls_with_the_weights():
    """The share of the time that the lists predict: pieces that keep nothing are left out."""
    full = torch.zeros(64, 64, 9, dtype=torch.bool)
    one_offset, blocks, rows = full.clone(), full.clone(), full.clone()
    one_offset[..., 4] = True
    blocks[:32, :32] = True
    rows[:, ::4] = True
    shares = [kept_share(m, 1, False, torch.float32) for m in (full, one_offset, blocks, rows)]
    assert shares == pytest.approx([0, 1 / 9, 1 / 4, 1 / 4])
    assert kept_share(~full, 1, False, torch.float32) == 1.0
    assert kept_share(full[:, :3], 1, False, torch.float32) == 1.0  # few channels: never lists
    assert kept_lists(full, 1, False, torch.float32).n_values == 0


@pytest.mark.skipif(_C.isa_chosen() == "reference", reason="its panels are one column wide")
def test_blocks_lower_than_a_panel_take_narrower_ones():
    thin = torch.zeros(64, 64, 1, dtype=torch.bool)
    wide = kept_lists(~thin, 1, False, torch.float32).width
    for i in range(0, 64, wide // 2):
        thin[i : i + wide // 2, i % 64 : i % 64 + 3] = True
    lists = kept_lists(thin, 1, False, torch.float32)
    assert lists.width == wide // 2 and lists.share < DENSE_SHARE


def test_lists_live_as_long_as_the_mask_and_follow_its_changes():
    mask = torch.zeros(16, 16, 3, dtype=torch.bool)
    before = n_remembered()
    first = kept_lists(mask, 1, False, torch.float32)
    assert kept_lists(mask, 1, False, torch.float32) is first and n_remembered() == before + 1
    mask[0] = True
    assert kept_lists(mask, 1, False, torch.float32).n_values > 0
    with torch.inference_mode():
        other = mask.clone()
        other[:] = True
        assert kept_lists(other, 1, False, torch.float32).share == 1.0
    del mask, other, first
    gc.collect()
    assert n_remembered() == before


# ------------------------------------------------------------------ modules
SUBMANIFOLD = {n: getattr(ds.nn, f"SubmanifoldConv{n}d") for n in (1, 2, 3)}


@pytest.mark.parametrize("n_axes", (1, 2, 3))
@pytest.mark.parametrize("kind", ("blocks", "random", "one offset", "none", "all"))
def test_submanifold_layers(n_axes, kind, rng):
    x, dense = example(rng, n_axes, ground="zero")
    layer = SUBMANIFOLD[n_axes](12, 20, 3, dilation=2 if n_axes == 1 else 1)
    with torch.no_grad():
        layer.weight.copy_(numbers(rng, layer.weight.shape))
        layer.bias.copy_(numbers(rng, (20,)))
    mask = weight_mask(rng, layer.weight.shape, kind)
    layer.set_mask(mask)
    options = dict(padding="same", dilation=layer.dilation)
    want = oracle.CONV[n_axes](dense, whole(layer), layer.bias, **options)
    assert torch.equal(layer(x).features, oracle.at_sites(want, x.coords))
    assert torch.equal(layer(dense), want)
    layer(x).features.square().sum().backward()
    assert (layer.weight.grad[~mask] == 0).all()
    if kind in ("blocks", "random", "all"):
        assert (layer.weight.grad[mask] != 0).any()


@pytest.mark.parametrize("mode", ("zeros", "reflect"))
@pytest.mark.parametrize("make", (ds.nn.SparseConv2d, ds.nn.MaskedConv2d, ds.nn.SparseConv2d))
def test_layers_give_the_dense_answer(make, mode, rng):
    """On a ground that is not zero; unmodified MaskedConv2d, given a SparseTensor, too."""
    x, dense = example(rng, shape=(7, 8))
    layer = make(12, 16, 3, stride=2, padding=1, groups=2, padding_mode=mode)
    with torch.no_grad():
        layer.weight.copy_(numbers(rng, layer.weight.shape))
        layer.bias.copy_(numbers(rng, (16,)))
    layer.set_mask(weight_mask(rng, layer.weight.shape, "random"))
    with torch.no_grad():  # whatever happens to a pruned weight, it does not leak
        layer.weight[~layer.mask] = torch.nan
    y = layer(x)
    padded = F.pad(dense, (1, 1, 1, 1), mode) if mode != "zeros" else dense
    want = F.conv2d(padded, whole(layer), layer.bias, 2, 1 if mode == "zeros" else 0, 1, 2)
    assert torch.equal(y.to_dense(), want) and torch.equal(layer(dense), want)


def test_transposed_and_inverse_layers(rng):
    x, dense = example(rng, ground="zero", shape=(8, 8))
    down = ds.nn.SparseConv2d(12, 8, 2, stride=2, bias=False)
    up = ds.nn.SparseConvTranspose2d(8, 12, 2, stride=2, bias=False)
    back = ds.nn.SparseInverseConv2d(8, 12, 2, stride=2, bias=False)
    for layer in (down, up, back):
        with torch.no_grad():
            layer.weight.copy_(numbers(rng, layer.weight.shape))
        layer.set_mask(weight_mask(rng, layer.weight.shape, "random"))
    small = F.conv2d(dense, whole(down), stride=2)
    want = F.conv_transpose2d(small, whole(up), stride=2)
    assert torch.equal(up(down(x)).to_dense(), want) and torch.equal(up(small), want)
    sized = up(down(x), output_size=[8, 8])
    assert torch.equal(sized.to_dense(), want)
    want = F.conv_transpose2d(small, whole(back), stride=2)
    assert torch.equal(back(down(x), like=x).features, oracle.at_sites(want, x.coords))


def test_four_axes(rng):
    x, dense = example(rng, 4, channels=8, ground="zero")
    layer = ds.nn.SparseConv4d(8, 8, 3, padding=1)
    with torch.no_grad():
        layer.weight.copy_(numbers(rng, layer.weight.shape))
        layer.bias.zero_()
    layer.set_mask(weight_mask(rng, layer.weight.shape, "random"))
    want = oracle.dense_conv(dense, whole(layer), None, (1,) * 4, (1,) * 4, (1,) * 4)
    assert torch.equal(layer(x).to_dense(), want)


def test_a_mask_makes_the_same_object_a_masked_layer(rng):
    layer = ds.nn.SubmanifoldConv2d(12, 16, 3)
    weight, before = layer.weight, set(layer.state_dict())
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.1)
    with pytest.raises(TypeError, match="mask must be bool"):
        layer.set_mask(torch.ones(16, 12, 3, 3))
    assert type(layer) is ds.nn.SubmanifoldConv2d and set(layer.state_dict()) == before
    mask = weight_mask(rng, layer.weight.shape, "blocks")
    layer.set_mask(mask, optimizer)
    assert isinstance(layer, ds.nn.SubmanifoldConv2d) and layer.weight is weight
    assert set(layer.state_dict()) == before | {"mask"} and "kept=" in repr(layer)
    x, _ = example(rng, ground="zero")
    for _ in range(3):
        optimizer.zero_grad()
        layer(x).features.square().sum().backward()
        optimizer.step()
        assert (layer.weight[~mask] == 0).all() and (layer.weight[mask] != 0).any()
    y = layer(x).features
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin(x).features, y) and torch.equal(twin.mask, mask)
    other = weight_mask(rng, layer.weight.shape, "random")
    layer.set_mask(other)  # the lists follow
    with torch.no_grad():
        layer.weight.normal_()
        layer.project_()
    want = ds.functional.submanifold_conv2d(x, whole(layer), layer.bias)
    assert torch.equal(layer(x).features, want.features)


def test_a_subclass_has_no_masked_form():
    class Mine(ds.nn.SparseConv2d):
        pass

    with pytest.raises(NotImplementedError, match=r"Mine.set_mask: .* got a subclass"):
        Mine(2, 2, 1).set_mask(torch.ones(2, 2, 1, 1, dtype=torch.bool))


def test_every_sparse_convolution_can_be_pruned(rng):
    net = nn.Sequential(ds.nn.SparseConv2d(12, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 1))
    ds.prune.sparsify_(net, sparsity=0.5)
    assert all(int(layer.mask.sum()) == layer.mask.numel() // 2 for layer in (net[0], net[2]))
    x, dense = example(rng, shape=(7, 8))
    assert torch.allclose(net(x).to_dense(), net(dense), atol=1e-4)
    assert type(ds.prune.densify_(net)[0]) is ds.nn.SparseConv2d


# ------------------------------------------------------------------ gradients
def test_gradcheck(rng):
    x = make_input(
        rng, 2, {}, channels=5, ground="channels", dtype=torch.float64, integers=False, shape=(4, 3)
    )
    mask = weight_mask(rng, (6, 5, 3, 3), "random")

    def f(features, ground, weight, bias):
        y = ds.functional.conv2d(x.sparse(ds, features, ground), weight, bias, padding=1, mask=mask)
        return y.to_dense()

    leaves = (x.features, x.ground, torch.randn(6, 5, 3, 3).double(), torch.randn(6).double())
    with crossover_at(None):
        given = [a.clone().requires_grad_() for a in leaves]
        assert torch.autograd.gradcheck(f, given, fast_mode=True)


@pytest.mark.parametrize("crossover", (None, 0.0))
def test_a_mask_holds_on_torchs_kernel_too(crossover, rng):
    x, dense = example(rng, shape=(6, 6))
    layer = ds.nn.SparseConv2d(12, 16, 3, padding=1)
    with torch.no_grad():
        layer.weight.copy_(numbers(rng, layer.weight.shape))
        layer.bias.copy_(numbers(rng, (16,)))
    layer.set_mask(weight_mask(rng, layer.weight.shape, "random"))
    with torch.no_grad():
        layer.weight[~layer.mask] = torch.nan
    with crossover_at(crossover):
        y = layer(x)
        assert y.saturated == (crossover is not None)
        assert torch.equal(y.to_dense(), F.conv2d(dense, whole(layer), layer.bias, 1, 1))
        y.to_dense().sum().backward()
    assert (layer.weight.grad[~layer.mask] == 0).all()


# ------------------------------------------------------------------ frozen, traced, 16 bits
def test_frozen_grounds_remember_the_kept_weights(rng):
    net = nn.Sequential(ds.nn.SparseConv2d(12, 16, 3), nn.ReLU(), ds.nn.SparseConv2d(16, 16, 3))
    for layer in (net[0], net[2]):
        layer.set_mask(weight_mask(rng, layer.weight.shape, "blocks"))
    net.eval()
    x, dense = example(rng, shape=(12, 12), ground="channels")
    with torch.no_grad(), crossover_at(None):
        want = net(x)
        ds.freeze_ground(net, (12, 12), x.ground.values.flatten())
        for _ in range(3):
            y = net(x)
            assert torch.equal(y.features, want.features)
            assert torch.equal(y.to_dense(), want.to_dense())
        ds.thaw(net)
        net[0].set_mask(weight_mask(rng, net[0].weight.shape, "random"))
        assert torch.allclose(net(x).to_dense(), net(dense), atol=1e-3)


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
def test_autocast_and_halves(dtype, rng):
    x, dense = example(rng, ground="zero")
    layer = ds.nn.SparseConv2d(12, 16, 3, padding=1)
    layer.set_mask(weight_mask(rng, layer.weight.shape, "random"))
    with torch.autocast("cpu", dtype=dtype):
        y = layer(x)
    half = copy.deepcopy(layer).to(dtype)
    assert y.dtype == dtype and torch.equal(y.features, half(x.to(dtype)).features)


def test_compiled_operator(rng):
    plan = random_plan(rng, 20, 20, 3)
    mask = weight_mask(rng, (16, 12, 3), "blocks")
    x, w = torch.randn(20, 12), torch.randn(16, 12, 3)
    pairs = ds.ops.Pairs(*plan.lists)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def f(x, w):
        return torch.ops.doublesparse.masked_conv(x, w, mask, *plan.lists, 20)

    assert torch.equal(f(x, w), ds.ops.masked_conv(x, w, mask, pairs, 20))


# ------------------------------------------------------------------ the decision
def test_the_cost_model_counts_kept_work(rng):
    x, _ = example(rng, channels=64, ground="zero", shape=(20, 20))
    conv, m = ds.nn.SparseConv2d(64, 64, 3, padding=1), _costs.machine(torch.float32)
    conv.set_mask(weight_mask(rng, conv.weight.shape, "blocks"))
    steps = _crossover_steps(x, conv)
    full = _crossover.work_of(x, steps, conv.weight, 64, 1, False)
    less = _crossover.work_of(x, steps, conv.weight, 64, 1, False, conv.mask)
    assert full.kept == 1.0 and 0.2 < less.kept < 0.35
    assert _costs.sparse(m, less) < _costs.sparse(m, full)
    assert _costs.ours(m, less) < 0.6 * _costs.ours(m, full)
    assert _costs.torchs(m, less) == _costs.torchs(m, full)
    table = ds.explain(conv, x)
    assert len(table.rows) == 1


def _crossover_steps(x, conv):
    from doublesparse._geometry import resolve

    sites = (x.sites.batch_size, x.sites.spatial_shape)
    return resolve("conv2d", "conv", *sites, conv.weight.shape[2:], 1, 1, 1)


# ------------------------------------------------------------------ wrong masks
WRONG = [
    (lambda m: m.float(), TypeError, "got torch.float32"),
    (lambda m: m.to(torch.uint8), TypeError, "got torch.uint8"),
    (lambda m: m.to_sparse(), TypeError, "torch.sparse_coo"),
    (lambda m: [1], TypeError, "got list"),
    (lambda m: m[:-1], ValueError, "shape of the weight"),
    (lambda m: m[0], ValueError, "shape of the weight"),
    (lambda m: m.flatten(2), ValueError, "shape of the weight"),
    (lambda m: m.to("meta"), RuntimeError, "got meta"),
]


@pytest.mark.parametrize(("change", "error", "text"), WRONG, ids=[w[2] for w in WRONG])
@pytest.mark.parametrize("name", ("conv2d", "submanifold_conv2d", "conv_transpose2d"))
def test_wrong_masks_are_refused(name, change, error, text):
    weight = torch.ones(6, 6, 3, 3)
    mask = change(torch.ones(6, 6, 3, 3, dtype=torch.bool))
    x = ds.SparseTensor(torch.ones(2, 6), torch.tensor([[0, 1, 1], [0, 2, 2]]), (5, 5))
    with pytest.raises(error, match=text) as caught:
        getattr(ds.functional, name)(x, weight, mask=mask)
    assert name in str(caught.value)
    if text == "got list":
        return
    plan = random_plan(np.random.default_rng(0), 5, 5, 9)
    if not (error is ValueError and mask.dim() == 3 and len(mask) == 6):  # raw weights are flat
        with pytest.raises(error, match="masked_conv: mask"):
            pairs = ds.ops.Pairs(*plan.lists)
            ds.ops.masked_conv(torch.ones(5, 6), weight.flatten(2), mask, pairs, 5)
