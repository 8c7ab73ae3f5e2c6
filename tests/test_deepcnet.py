"""DeepCNet and DeepCNiN: the dense network's answer; the paper's sites, savings and dropout."""

from __future__ import annotations

import copy
import math
import os
import pickle
import time
from pathlib import Path

import pytest
import torch
from torch import nn

import doublesparse as ds
from doublesparse.data import glyphs, pen
from doublesparse.models import DeepCNet, DeepCNiN, FeatureDropout

DATA = os.environ.get("DOUBLESPARSE_DATA")
HAS_PENDIGITS = DATA is not None and (Path(DATA) / "pendigits-orig").is_dir()
pendigits = pytest.mark.skipif(
    not HAS_PENDIGITS, reason="DOUBLESPARSE_DATA names no folder with pendigits-orig/"
)
NETWORKS = [DeepCNet, DeepCNiN]


def strokes(size, n=6, encoding="pen", dtype=torch.float32, seed=0):
    """A batch of synthetic characters, and its dense twin."""
    data = pen.PenDataset(glyphs.make_characters(n, seed=seed), size, encoding)
    x = data.batch(range(n))[0].to(dtype)
    return x, x.to_dense().contiguous()


def random_biases(net, seed=0):
    """Ground states far from zero at every layer."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name.endswith("bias"):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    return net


def results(net, x, seed=0):
    """Logits and all gradients of a loss that weighs every logit differently."""
    torch.manual_seed(seed)
    net.zero_grad()
    y = net(x)
    weight = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape)
    (y * weight).sum().backward()
    return {"logits": y.detach(), **{n: p.grad.clone() for n, p in net.named_parameters()}}


def assert_equal(got, expected, tolerance):
    for name, value in expected.items():
        largest = value.abs().max()
        assert largest > 0, f"{name}: all zero, this test proves nothing"
        error = (got[name] - value).abs().max() / largest
        assert error <= tolerance, f"{name}: {error:.3g}"


# ---------------------------------------------------------------- architecture (PAPERS 1.1)
def layers(net):
    """What the paper writes: C3, MP2, C1, ... with filters."""
    out = []
    for layer in net.features:
        if isinstance(layer, nn.Conv2d):
            assert layer.padding == (0, 0) and layer.stride == (1, 1)
            out.append(f"{layer.out_channels}C{layer.kernel_size[0]}")
        elif isinstance(layer, nn.MaxPool2d):
            assert layer.stride == layer.kernel_size == 2
            out.append("MP2")
    return " ".join(out)


def test_architectures():
    net = DeepCNet(4, 100, 3755)
    assert layers(net) == "100C3 MP2 200C2 MP2 300C2 MP2 400C2 MP2 500C2"
    assert net.input_size == 48 and net.classifier.weight.shape == (3755, 500)
    assert not any(isinstance(m, FeatureDropout) for m in net.modules())
    assert sum(isinstance(m, nn.ReLU) for m in net.modules()) == 5

    net = DeepCNiN(2, 10, 5, in_channels=9, dropout=0.5)
    assert layers(net) == "10C3 MP2 10C1 20C2 MP2 20C1 30C2 30C1"
    assert net.input_size == 12 and net.features.conv0.in_channels == 9
    assert {m.negative_slope for m in net.modules() if isinstance(m, nn.LeakyReLU)} == {0.333}
    rates = [m.p for m in net.modules() if isinstance(m, FeatureDropout)]
    assert rates == [0.25, 0.25, 0.5, 0.5]


def test_grids_shrink_as_in_the_paper():
    sizes = []
    net = DeepCNet(4, 2, 10)
    for layer in net.features:
        if not isinstance(layer, nn.ReLU):
            layer.register_forward_hook(lambda _m, _i, out: sizes.append(out.shape[-1]))
    net(torch.zeros(1, 1, 48, 48))
    assert sizes == [46, 23, 22, 11, 10, 5, 4, 2, 1]


def test_initial_weights():
    net = DeepCNet(3, 20, 10, in_channels=9)
    bounds = {
        "conv0": 6 / (9 * 9 + 20 * (3 / 2) ** 2),
        "conv1": 6 / (4 * 20 + 40 * (2 / 2) ** 2),
        "conv3": 6 / (4 * 60 + 80 * 2**2),  # no pool after the last one
    }
    for name, square in bounds.items():
        weight = getattr(net.features, name).weight
        assert 0.9 * math.sqrt(square) < weight.abs().max() <= math.sqrt(square)
    assert net.classifier.weight.abs().max() <= math.sqrt(6 / (80 + 10 * 10_000))
    assert all(not p.any() for n, p in net.named_parameters() if n.endswith("bias"))
    nin = DeepCNiN(1, 8, 2).features.nin0.weight
    assert nin.abs().max() <= math.sqrt(6 / 16)


# ---------------------------------------------------------------- M1: the dense network's answer
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("encoding", ["pen", "octogram"])
@pytest.mark.parametrize("crossover", [None, "auto", 0.5])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_m1_equals_the_dense_network(network, encoding, crossover, dtype, tolerance):
    torch.manual_seed(0)
    ds.set_crossover(crossover)
    net = network(3, 5, 7, in_channels=pen.ENCODINGS[encoding], dtype=dtype)
    x, dense = strokes(net.input_size, encoding=encoding, dtype=dtype)
    random_biases(net)
    expected = results(net.double(), dense.double())
    expected = {name: value.to(dtype) for name, value in expected.items()}
    assert_equal(results(net.to(dtype), x), expected, tolerance)


@pytest.mark.parametrize("network", NETWORKS)
def test_m1_with_dropout_and_the_same_seed(network):
    torch.manual_seed(0)
    net = random_biases(network(3, 6, 7, dropout=0.5, dtype=torch.float64))
    x, dense = strokes(net.input_size, dtype=torch.float64)
    assert_equal(results(net, x, seed=5), results(net, dense, seed=5), 1e-10)
    assert (net(dense) - net(dense)).abs().max() > 0  # a new draw each time
    net.eval()
    assert_equal(results(net, x), results(net, dense), 1e-10)


@pytest.mark.parametrize("n_axes", [1, 3])
@pytest.mark.parametrize("network", NETWORKS)
def test_m1_in_other_dimensions(network, n_axes):
    torch.manual_seed(0)
    net = random_biases(network(2, 4, 3, in_channels=2, n_axes=n_axes, dtype=torch.float64))
    shape = (3, 2, *[12] * n_axes)
    active = torch.rand(3, 1, *shape[2:]) < 0.02
    active[0] = False  # an empty sample
    active[1][(0, *[5] * n_axes)] = True
    dense = torch.randn(shape, dtype=torch.float64) * active
    x = ds.SparseTensor.from_dense(dense)
    assert_equal(results(net, x), results(net, dense), 1e-10)


def test_m1_gradient_of_the_input():
    torch.manual_seed(0)
    net = random_biases(DeepCNet(3, 5, 7, dtype=torch.float64))
    x, dense = strokes(net.input_size, dtype=torch.float64)
    x.requires_grad_()
    dense.requires_grad_()
    results(net, x)
    results(net, dense)
    at = x.coords.long()
    expected = dense.grad[at[:, 0], :, at[:, 1], at[:, 2]]
    assert expected.abs().max() > 0
    assert (x.features.grad - expected).abs().max() <= 1e-10 * expected.abs().max()


def test_m1_batch_of_nothing():
    net = random_biases(DeepCNet(2, 4, 3)).eval()
    nothing = ds.SparseTensor.from_dense(torch.zeros(4, 1, 12, 12))
    assert len(nothing.coords) == 0
    assert torch.allclose(net(nothing), net(torch.zeros(4, 1, 12, 12)), atol=1e-6)


# ---------------------------------------------------------------- M2: ground states
def watch(net, x):
    """Outputs of all layers of `features`."""
    outputs, hooks = {}, []
    for name, layer in net.features.named_children():
        hooks.append(
            layer.register_forward_hook(lambda _m, _i, out, name=name: outputs.update({name: out}))
        )
    with torch.no_grad():
        net(x)
    for hook in hooks:
        hook.remove()
    return outputs


@pytest.mark.parametrize("network", NETWORKS)
def test_m2_ground_states(network):
    torch.manual_seed(0)
    net = random_biases(network(3, 4, 5, dtype=torch.float64))
    dense = torch.zeros(2, 1, 24, 24, dtype=torch.float64)
    dense[1, 0, 9, 9] = 1.0
    expected, got = watch(net, dense), watch(net, ds.SparseTensor.from_dense(dense))
    for name, value in expected.items():
        # Sample 0 is all background: without padding the response is constant, one class.
        assert (value[0] - value[0, :, :1, :1]).abs().max() <= 1e-12
        out = got[name]
        if not isinstance(out, ds.SparseTensor):
            continue
        error = (out.to_dense() - value).abs().max()
        assert error <= 1e-12 * value.abs().max()
        if not out.saturated:
            assert out.ground.values.shape[:-1] == (1, 1, 1)
            assert (out.ground.values.flatten() - value[0, :, 0, 0]).abs().max() <= 1e-12


def test_m2_no_ground_where_everything_is_active():
    torch.manual_seed(0)
    net = random_biases(DeepCNet(2, 4, 5, dtype=torch.float64))
    dense = torch.rand(2, 1, 12, 12, dtype=torch.float64) + 0.5
    expected, got = watch(net, dense), watch(net, ds.SparseTensor.from_dense(dense))
    for name, value in expected.items():
        out = got[name]
        if isinstance(out, ds.SparseTensor):
            assert out.saturated
            out = out.to_dense()
        assert (out - value).abs().max() <= 1e-12 * value.abs().max()


# ---------------------------------------------------------------- M3, M4: sites and products
def dilate(active, kernel):
    """Cells of the output whose window holds an active cell, by shifting pictures (B, S, S)."""
    size = active.shape[-1] - kernel + 1
    out = torch.zeros(len(active), size, size, dtype=torch.bool)
    for i in range(kernel):
        for j in range(kernel):
            out |= active[:, i : i + size, j : j + size]
    return out


def site_counts(active, levels, width=1):
    """Active cells of the input and after every convolution and pool; also, the multiplications.

    Returns:
        counts per layer, and (sparse, dense) multiplications: a sparse layer multiplies whole
        windows of its active sites, as the paper's matrices do.
    """
    counts, products, c_in = [int(active.sum())], [0, 0], 1
    for level in range(levels + 1):
        kernel, c_out = (3 if level == 0 else 2), (level + 1) * width
        active = dilate(active, kernel)
        counts.append(int(active.sum()))
        per_site = kernel**2 * c_in * c_out
        products[0] += counts[-1] * per_site
        products[1] += active.numel() * per_site
        c_in = c_out
        if level < levels:
            active = active.unflatten(2, (-1, 2)).unflatten(1, (-1, 2)).any(4).any(2)
            counts.append(int(active.sum()))
    return counts, products


def sites_of_network(net, x):
    """Active sites of the input and of every convolution and pool, as the network has them."""
    counts = [len(x.coords)]
    for name, out in watch(net, x).items():
        if name.startswith(("conv", "pool")) and not name.endswith(("_act", "_dropout")):
            is_sparse = isinstance(out, ds.SparseTensor)
            counts.append(len(out.coords) if is_sparse else out.shape[0] * out[0, 0].numel())
    return counts


@pytest.mark.parametrize("levels", [2, 4])
def test_m3_sites_equal_brute_force(levels):
    net = DeepCNet(levels, 2, 5)
    x, dense = strokes(net.input_size, n=20)
    assert sites_of_network(net, x) == site_counts(dense[:, 0] != 0, levels)[0]


@pytest.fixture(scope="module")
def test_digits():
    return pen.load_pendigits(DATA)[1]


@pendigits
def test_m3_sites_on_pendigits(test_digits):
    data = pen.PenDataset(test_digits[::10], 48, scale=16)
    x = data.batch(range(len(data)))[0]
    counts = sites_of_network(DeepCNet(4, 2, 10), x)
    means = [count / len(data) for count in counts]
    expected = [44.2, 131.9, 42.7, 63.5, 20.5, 31.8, 10.2, 15.9, 4.0, 1.0]
    assert means == pytest.approx(expected, abs=0.06)


@pendigits
@pytest.mark.parametrize(("levels", "saving"), [(4, 3.4), (5, 6.4), (6, 12.0)])
def test_m4_multiplications_on_pendigits(test_digits, levels, saving):
    data = pen.PenDataset(test_digits[::35], 3 * 2**levels)
    x = data.batch(range(len(data)))[0]
    sparse, dense = site_counts(x.to_dense()[:, 0] != 0, levels, width=100)[1]
    assert dense / sparse == pytest.approx(saving, rel=0.05)


@pytest.mark.slow
def test_m4_sparse_is_faster_than_dense():
    net = DeepCNet(5, 32, 10).eval()
    x, dense = strokes(net.input_size, n=50)
    times = {"sparse": [], "dense": []}
    with torch.no_grad():
        for _ in range(7):
            for name, image in (("sparse", x), ("dense", dense)):
                start = time.perf_counter()
                net(image)
                times[name].append(time.perf_counter() - start)
    assert min(times["sparse"]) < min(times["dense"])


# ---------------------------------------------------------------- M6: dropout
@pytest.mark.parametrize("n_features", [1, 7, 10, 100])
@pytest.mark.parametrize("p", [0.0, 0.1, 0.3, 0.5, 0.7, 0.9])
def test_m6_keeps_the_exact_count(n_features, p):
    dropout = FeatureDropout(p)
    expected = n_features * (10 - round(10 * p)) // 10
    kept = torch.zeros(n_features)
    for _ in range(50):
        out = dropout(torch.ones(3, n_features, 2, 2))
        assert (out == out[:1, :, :1, :1]).all()  # one draw for all samples and sites
        assert set(out.unique().tolist()) <= {0.0, 1.0}  # kept ones are not rescaled
        assert int(out[0, :, 0, 0].sum()) == expected == dropout.n_kept(n_features)
        kept += out[0, :, 0, 0]
    if 0.3 <= p <= 0.7 and n_features > 1:
        assert (kept > 0).all() and (kept < 50).all()  # drawn anew, every feature in its turn


def test_m6_evaluation_scales_before_the_activation():
    torch.manual_seed(0)
    net = random_biases(DeepCNet(1, 6, 3, dropout=0.6, dtype=torch.float64)).eval()
    x, dense = strokes(net.input_size, dtype=torch.float64)
    f = net.features
    y = f.pool0(f.conv0(dense).relu())
    y = (0.4 * f.conv1(y)).relu()
    expected = net.classifier(y.flatten(1))
    assert torch.allclose(net(dense), expected, atol=1e-12)
    assert torch.allclose(net(x), expected, atol=1e-12)


def test_m6_dropped_features_are_the_sub_network():
    torch.manual_seed(0)
    net = random_biases(DeepCNet(1, 6, 3, dropout=0.5, dtype=torch.float64))
    x, dense = strokes(net.input_size, dtype=torch.float64)
    torch.manual_seed(9)
    got = net(x)
    torch.manual_seed(9)
    kept = torch.randperm(12)[:6]
    f = net.features
    y = f.pool0(f.conv0(dense).relu())
    y = nn.functional.conv2d(y, f.conv1.weight[kept], f.conv1.bias[kept]).relu().flatten(1)
    expected = y @ net.classifier.weight[:, kept].T + net.classifier.bias
    assert torch.allclose(got, expected, atol=1e-12)


# ---------------------------------------------------------------- manners
@pytest.mark.parametrize(
    ("arguments", "error", "word"),
    [
        (dict(levels=0), ValueError, "levels"),
        (dict(levels=2.0), TypeError, "levels"),
        (dict(width=0), ValueError, "width"),
        (dict(n_classes=-1), ValueError, "n_classes"),
        (dict(in_channels="1"), TypeError, "in_channels"),
        (dict(dropout=1.0), ValueError, "dropout"),
        (dict(dropout=math.nan), ValueError, "dropout"),
        (dict(dropout=None), TypeError, "dropout"),
        (dict(n_axes=4), ValueError, "n_axes"),
    ],
)
def test_refuses(arguments, error, word):
    with pytest.raises(error, match=f"DeepCNiN: {word}"):
        DeepCNiN(**{"levels": 2, "width": 3, "n_classes": 4, **arguments})


def test_refuses_other_sizes():
    net = DeepCNet(2, 3, 4)
    for shape in [(2, 1, 24, 24), (2, 3, 12, 12), (2, 1, 12), (1, 12, 12)]:
        with pytest.raises(ValueError, match="input_size|field of 12"):
            net(torch.zeros(shape))
    with pytest.raises(ValueError, match="field of 12"):
        net(strokes(24)[0])


def test_copies_and_state():
    net = random_biases(DeepCNiN(2, 3, 4, dropout=0.5)).eval()
    x, _ = strokes(12)
    expected = net(x)
    for again in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(again(x), expected)
    other = DeepCNiN(2, 3, 4, dropout=0.5).eval()
    other.load_state_dict(net.state_dict())
    assert torch.equal(other(x), expected)
    assert "levels=2, width=3" in repr(net)
