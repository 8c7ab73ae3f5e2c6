"""torch.compile on functions of run operators and on whole models; torch.export of a geometry.

Compiled and exported programs run the same kernels as eager ones, so their answers and gradients
are equal, not close.
"""

from __future__ import annotations

import copy
import io
import sys

import pytest
import torch
import torch._dynamo.testing
import torch.nn as nn

import doublesparse as ds
from checks import densify
from doublesparse import _autograd, ops
from doublesparse._autograd import Segments
from doublesparse._autograd_windows import Table, window_max, window_sum
from inputs import grid_plan, site_set
from networks import NETWORKS
from test_networks import background, randomized

OP = torch.ops.doublesparse
pytestmark = [
    pytest.mark.skipif(
        sys.version_info >= (3, 15), reason="torch.compile does not know this Python"
    ),
    # torch's own, from inside the compiler, where a graph starts from a tensor with a history
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
]


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


# ------------------------------------------------------------------ functions of run operators
def run_operators(x, w, b, pairs, n_dst, table):
    """Raw and differentiable forms, on a rulebook that was built before."""
    y = _autograd.conv(x, w, b, pairs, n_dst).relu()
    z = ops.conv(x.detach(), w.detach().flatten(2), pairs, n_dst, b.detach())
    windows = Table(ops.window_table(pairs, n_dst))
    pooled = window_max(x, None, table) + window_sum(x, None, windows)
    sums = _autograd.segment_sum(x, Segments(None, torch.tensor([0, 3, x.shape[0]]), x.shape[0]))
    spread = _autograd.gather_rows(sums, torch.tensor([1, 0, 1], dtype=torch.int32))
    return y + z, torch.where(pooled.isinf(), 0.0, pooled), spread


def rulebook_of(rng, density):
    plan = grid_plan(rng, (9, 8), density=density)
    pairs = ops.Pairs(*plan.lists)
    return pairs, plan.n_src, plan.n_dst, Table(ops.window_table(pairs, plan.n_dst))


def check_fullgraph(backend, rng, densities) -> int:
    """Forward and backward equal eager's, bit for bit; the number of graphs compiled."""
    counter = torch._dynamo.testing.CompileCounterWithBackend(backend)
    compiled = torch.compile(run_operators, fullgraph=True, backend=counter)
    w, b = torch.randn(6, 4, 3, 3), torch.randn(6)
    for density in densities:
        pairs, n_src, n_dst, table = rulebook_of(rng, density)
        x, results = torch.randn(n_src, 4), []
        for f in (run_operators, compiled):
            args = [t.clone().requires_grad_() for t in (x, w, b)]
            out = f(*args, pairs, n_dst, table)
            torch.autograd.backward(out, [torch.ones_like(y) for y in out])
            results.append([*out, *[a.grad for a in args]])
        assert all(torch.equal(p, q) for p, q in zip(*results, strict=True)), density
    return counter.frame_count


def test_fullgraph_of_run_operators(rng):
    densities = [0.1 + 0.04 * i for i in range(10)]
    assert check_fullgraph("aot_eager", rng, densities) <= 2


@pytest.mark.slow
def test_fullgraph_by_inductor(rng):
    assert check_fullgraph("inductor", rng, (0.2, 0.3, 0.5)) <= 2


def test_a_rulebook_is_not_baked_into_the_graph(rng):
    """Another rulebook with lists of the same length, seen as an argument and in a closure."""
    x, w = torch.randn(5, 2), torch.randn(3, 2, 1)
    start, ascending = torch.tensor([0, 3]), torch.arange(3, dtype=torch.int32)
    books = [ops.Pairs(ascending, ascending + i, start) for i in range(3)]
    compiled = torch.compile(lambda p: ops.conv(x, w, p, 5), fullgraph=True, backend="aot_eager")
    for book in books:
        assert torch.equal(compiled(book), ops.conv(x, w, book, 5))
    book = books[0]
    closed = torch.compile(lambda x: ops.conv(x, w, book, 5), fullgraph=True, backend="aot_eager")
    for book in books:
        assert torch.equal(closed(x), ops.conv(x, w, book, 5))


def test_plan_operators_have_sizes_that_data_decide(rng):
    def plan(coords):
        out = OP.output_coords(coords, (6, 7), (6, 7), (3, 3), (1, 1), (1, 1), (1, 1), False)
        lists = OP.build_pairs(out, coords, (6, 7), (3, 3), (1, 1), (1, 1), (1, 1))
        return OP.linear_keys(out, (6, 7)), *lists

    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        compiled = torch.compile(plan, fullgraph=True, backend="aot_eager")
        for density in (0.1, 0.2, 0.4):
            coords = site_set(rng, 2, (6, 7), density=density)
            for a, b in zip(compiled(coords), plan(coords), strict=True):
                assert torch.equal(a, b)


# ------------------------------------------------------------------ whole models
def sparse_input(rng, name: str, density: float, ground: str = "zero", dtype=torch.float64):
    _, shape, batch = NETWORKS[name]
    coords = site_set(rng, batch, shape, density=density)
    features = torch.randn(len(coords), 3, dtype=torch.float64)
    g = None if ground == "none" else background(ground, shape)
    return ds.SparseTensor(features, coords, shape, batch, ground=g).to(dtype)


def own_modules() -> nn.Module:
    return nn.Sequential(
        ds.nn.SubmanifoldConv2d(3, 8, 3),
        ds.nn.SparseBatchNorm(8),
        nn.ReLU(),
        ds.nn.SparseConv2d(8, 8, 2, 2),
        ds.nn.SparseMaxPool2d(2),
        ds.nn.SparseGlobalAvgPool(),
        nn.Linear(8, 4),
    )


def model(name: str, train: bool = False) -> nn.Module:
    if name == "own":
        return own_modules().double().train(train)
    return randomized(NETWORKS[name][0], train)


QUICK = ("vgg_bn", "convnext", "own")


def some_quick(names, quick):
    """All of the names, of which some are always run."""
    return [n if n in quick else pytest.param(n, marks=pytest.mark.slow) for n in names]


@pytest.mark.parametrize("name", some_quick((*NETWORKS, "own"), QUICK))
def test_compiled_models_and_their_recompilations(name, rng):
    """The answer of eager; after the first call, at most two recompilations over 20 site counts."""
    net = model(name)
    compiled = torch.compile(net, backend="aot_eager")
    frames = torch._dynamo.utils.counters["frames"]
    first = counts = None
    frames.clear()
    for i in range(20):
        x = sparse_input(rng, "vgg_bn" if name == "own" else name, 0.02 * (i + 1))
        assert torch.equal(densify(compiled(x)), densify(net(x)))
        first = frames["total"] if first is None else first
        counts = {x.sites.n_sites, *(counts or ())}
    assert first > 0, "nothing was compiled: this proves nothing"
    assert len(counts) > 15 and frames["total"] - first <= 2


@pytest.mark.parametrize("name", some_quick((*NETWORKS, "own"), ("lenet", "depthwise_se", "own")))
def test_training_steps_of_compiled_models(name, rng):
    x = sparse_input(rng, "vgg_bn" if name == "own" else name, 0.1)
    net = model(name, train=True)
    twin, results = copy.deepcopy(net), []
    for n, f in ((net, net), (twin, torch.compile(twin, backend="aot_eager"))):
        torch.manual_seed(0)
        features = x.features.clone().requires_grad_()
        loss = densify(f(x.replace(features=features))).square().sum()
        loss.backward()
        torch.optim.SGD(n.parameters(), 0.1).step()
        results.append([loss, features.grad, *n.parameters(), *n.buffers()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


# ------------------------------------------------------------------ frozen geometries
def exported(fixed, features):
    return torch.export.export(fixed, (features,), strict=False)


@pytest.mark.parametrize("ground", ("zero", "constant", "image", "none"))
@pytest.mark.parametrize("name", some_quick(NETWORKS, ("net1d", "convnext")))
def test_export_of_a_frozen_geometry(name, ground, rng):
    """New features, the bits of eager inference; the same after a round trip through a file."""
    net = model(name)
    x = sparse_input(rng, name, 0.1, ground)
    if (name, ground) == ("sub_pixel", "none"):  # bicubic: no mean over active sites alone
        with pytest.raises(NotImplementedError):
            net(x)
        return
    fixed = ds.nn.FixedGeometry(net, x, dense=True).eval()
    program = exported(fixed, x.features)
    called = {str(n.target) for n in program.graph.nodes}
    assert any("doublesparse" in target for target in called), "this proves nothing"
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file)
    for _ in range(2):
        features = torch.randn_like(x.features)
        with torch.no_grad():
            want = densify(net(x.replace(features=features)))
        for f in (program.module(), loaded.module()):
            assert torch.equal(f(features), want)
        with torch.no_grad():
            assert torch.equal(fixed(features), want)


def test_fixed_geometry_is_a_module(rng):
    x = sparse_input(rng, "unet_bn", 0.1, dtype=torch.float32)
    net = model("unet_bn", train=True).float()
    before = copy.deepcopy(net.state_dict())
    fixed = ds.nn.FixedGeometry(net, x)
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items()) and net.training
    assert fixed.out_sites is not None and "sites=" in repr(fixed)
    twin, features = copy.deepcopy(net), x.features.clone().requires_grad_()
    y = fixed(features)
    y.sum().backward()
    assert features.grad is not None
    assert len(y) == fixed.out_sites.n_sites
    twin(x).features.sum().backward()
    for p, q in zip(net.parameters(), twin.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)
    with pytest.raises(ValueError, match="FixedGeometry: features must have shape"):
        fixed(features[1:])
    with pytest.raises(TypeError, match="FixedGeometry: features must be a torch.Tensor"):
        fixed(x)
    with pytest.raises(TypeError, match="FixedGeometry: x must be"):
        ds.nn.FixedGeometry(net, x.to_dense())
    with pytest.raises(TypeError, match="FixedGeometry: model must be"):
        ds.nn.FixedGeometry(lambda x: x, x)


def test_fixed_geometry_without_sites():
    x = ds.SparseTensor(torch.ones(0, 3), torch.ones(0, 3, dtype=torch.int32), (6, 6), 1)
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
    fixed = ds.nn.FixedGeometry(net, x, dense=True)
    assert torch.equal(exported(fixed, x.features).module()(x.features), net(x).to_dense())




# ------------------------------------------------------------------ pruned weights
def test_pruned_models_are_one_graph():
    """A masked and a frozen linear layer, and a masked convolution: no graph break, same bits."""
    linear = ds.nn.MaskedLinear(256, 128, sparsity=0.9)
    conv = ds.nn.MaskedConv2d(16, 32, 3, padding=1, sparsity=0.9)
    for net, x in (
        (nn.Sequential(linear, nn.ReLU()), torch.randn(4, 96, 256)),
        (nn.Sequential(conv, nn.ReLU()), torch.randn(3, 16, 9, 9)),
    ):
        compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
        wanted, got = (f(x).pow(2).sum() for f in (net, compiled))
        grads = [torch.autograd.grad(y, list(net.parameters())) for y in (wanted, got)]
        assert torch.equal(wanted, got)
        assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))
    net = ds.prune.freeze(nn.Sequential(linear, nn.ReLU()).eval())
    x = torch.randn(96, 256)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert torch.equal(compiled(x), net(x))
    x.requires_grad_()
    grads = [torch.autograd.grad(f(x).pow(2).sum(), x)[0] for f in (net, compiled)]
    torch.testing.assert_close(*grads)
