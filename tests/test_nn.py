"""Modules: torch's constructors, state dicts both ways, dense in dense out, convert."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest
import torch
import torch.nn as nn

import doublesparse as ds
from checks import densify
from inputs import make_input
from networks import NETWORKS

DIMS = (1, 2, 3)
SHAPES = {1: (13,), 2: (9, 8), 3: (6, 5, 7), 4: (4, 5, 3, 4)}


def sparse(rng, n_axes=2, c=4, ground="channels", dtype=torch.float64):
    options = dict(ground=ground, dtype=dtype, shape=SHAPES[n_axes], integers=False)
    return make_input(rng, n_axes, dict(c_in=c), **options).sparse(ds)


def twins(n: int) -> list[tuple[type, type]]:
    return [
        (getattr(ds.nn, f"SparseConv{n}d"), getattr(nn, f"Conv{n}d")),
        (getattr(ds.nn, f"SparseConvTranspose{n}d"), getattr(nn, f"ConvTranspose{n}d")),
        (getattr(ds.nn, f"SparseMaxPool{n}d"), getattr(nn, f"MaxPool{n}d")),
        (getattr(ds.nn, f"SparseAvgPool{n}d"), getattr(nn, f"AvgPool{n}d")),
    ]


ALL_TWINS = [pair for n in DIMS for pair in twins(n)]


@pytest.mark.parametrize(("ours", "theirs"), ALL_TWINS, ids=lambda t: t.__name__)
def test_constructors_are_torchs(ours, theirs):
    """Same names, same order, same defaults; a subclass, so isinstance checks of others hold."""
    assert issubclass(ours, theirs)
    mine = list(inspect.signature(ours).parameters.items())
    given = list(inspect.signature(theirs).parameters.items())
    assert [n for n, _ in mine][: len(given)] == [n for n, _ in given]
    for (name, p), (_, q) in zip(mine, given, strict=False):
        assert p.default == q.default or p.default is q.default, name


@pytest.mark.parametrize("n", DIMS)
@pytest.mark.parametrize("kind", ("SparseConv", "SparseConvTranspose"))
def test_state_dict_both_ways(n, kind, rng):
    options = dict(stride=2, padding=1, groups=2)
    ours = getattr(ds.nn, f"{kind}{n}d")(4, 6, 3, **options).double()
    theirs = getattr(nn, f"{kind.removeprefix('Sparse')}{n}d")(4, 6, 3, **options).double()
    assert {k: v.shape for k, v in ours.state_dict().items()} == {
        k: v.shape for k, v in theirs.state_dict().items()
    }
    x = sparse(rng, n)
    theirs.load_state_dict(ours.state_dict())
    want = theirs(x.to_dense())
    assert torch.allclose(ours(x).to_dense(), want, rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        theirs.weight.mul_(-2)
    ours.load_state_dict(theirs.state_dict())
    assert torch.allclose(ours(x).to_dense(), theirs(x.to_dense()), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("ours", "theirs"), ALL_TWINS, ids=lambda t: t.__name__)
def test_dense_in_dense_out(ours, theirs, rng):
    """Given a dense tensor, the very answer of torch's module."""
    n = int(ours.__name__[-2])
    args = (4, 6, 3) if "Conv" in ours.__name__ else (2,)
    a, b = ours(*args), theirs(*args)
    b.load_state_dict(a.state_dict())
    dense = sparse(rng, n, dtype=torch.float32).to_dense()
    out = a(dense)
    assert type(out) is torch.Tensor and torch.equal(out, b(dense))


@pytest.mark.parametrize("n", (1, 2, 3, 4))
def test_copies_pickles_and_repr(n, rng):
    layers = [
        getattr(ds.nn, f"SparseConv{n}d")(4, 6, 3, padding=1),
        getattr(ds.nn, f"SubmanifoldConv{n}d")(4, 6, 3, dilation=2, ground="drop"),
    ]
    if n < 4:
        layers += [
            getattr(ds.nn, f"SparseConvTranspose{n}d")(4, 6, 2, 2),
            getattr(ds.nn, f"SparseMaxPool{n}d")(2),
            getattr(ds.nn, f"SparseAvgPool{n}d")(2),
        ]
    layers += [ds.nn.SparseBatchNorm(4), ds.nn.SparseGlobalAvgPool(), ds.nn.ToDense()]
    x = sparse(rng, n, dtype=torch.float32)
    for layer in layers:
        layer.eval()
        want = densify(layer(x))
        for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            assert torch.equal(densify(other(x)), want)
        assert type(layer).__name__ in repr(layer)
    assert "4, 6, kernel_size=" in repr(layers[0])
    assert all(word in repr(layers[1]) for word in ("4, 6", "dilation", "drop"))


def test_reset_parameters_and_dtypes():
    torch.manual_seed(0)
    mine = ds.nn.SparseConv2d(4, 6, 3)
    torch.manual_seed(0)
    theirs = nn.Conv2d(4, 6, 3)
    assert torch.equal(mine.weight, theirs.weight) and torch.equal(mine.bias, theirs.bias)
    layer = ds.nn.SubmanifoldConv3d(2, 3, 3, bias=False, dtype=torch.float64)
    assert layer.bias is None and layer.weight.shape == (3, 2, 3, 3, 3)
    before = layer.weight.clone()
    layer.reset_parameters()
    assert not torch.equal(layer.weight, before)
    assert ds.nn.SparseConv4d(2, 3, (1, 2, 3, 1)).weight.shape == (3, 2, 1, 2, 3, 1)


@pytest.mark.parametrize("mode", ("zeros", "reflect", "replicate", "circular"))
@pytest.mark.parametrize("padding", (1, (2, 1), "same", "valid"))
def test_padding_modes(mode, padding, rng):
    x = sparse(rng)
    options = dict(padding=padding, padding_mode=mode, dtype=torch.float64)
    layer = ds.nn.SparseConv2d(4, 3, 3, **options)
    twin = nn.Conv2d(4, 3, 3, **options)
    twin.load_state_dict(layer.state_dict())
    want = twin(x.to_dense())
    assert torch.allclose(layer(x).to_dense(), want, rtol=1e-12, atol=1e-12)


def test_output_size_of_a_transposed_convolution(rng):
    x = sparse(rng)
    layer = ds.nn.SparseConvTranspose2d(4, 3, 3, stride=2, padding=1).double()
    twin = nn.ConvTranspose2d(4, 3, 3, stride=2, padding=1).double()
    twin.load_state_dict(layer.state_dict())
    for size in ((17, 15), (18, 16)):
        got, want = layer(x, output_size=size), twin(x.to_dense(), output_size=size)
        assert torch.allclose(got.to_dense(), want, rtol=1e-12, atol=1e-12)


def test_submanifold_ground(rng):
    """A non-zero ground is an error unless told to drop it; the result has none."""
    x = sparse(rng)
    with pytest.raises(ValueError, match="ground"):
        ds.nn.SubmanifoldConv2d(4, 3, 3).double()(x)
    dropped = ds.nn.SubmanifoldConv2d(4, 3, 3, ground="drop").double()(x)
    assert dropped.ground is None and dropped.sites is x.sites
    for ground in (0.0, None):
        y = x.replace(ground=ground)
        assert ds.nn.SubmanifoldConv2d(4, 3, 3).double()(y).ground is None


@pytest.mark.parametrize("n", DIMS)
def test_inverse_convolution_ends_on_the_sites_it_is_given(n, rng):
    x = sparse(rng, n, dtype=torch.float32).replace(ground=None)
    down = getattr(ds.nn, f"SparseConv{n}d")(4, 6, 2, 2)
    up = getattr(ds.nn, f"SparseInverseConv{n}d")(6, 4, 2, stride=2)
    z = up(down(x), like=x)
    assert z.sites is x.sites or torch.equal(z.coords, x.coords)
    assert z.shape == x.shape and z.ground is None


def test_global_pools(rng):
    x = sparse(rng, ground="image")
    dense = x.to_dense()
    mean, peak = ds.nn.SparseGlobalAvgPool()(x), ds.nn.SparseGlobalMaxPool()(x)
    assert torch.allclose(mean, dense.mean((2, 3)), rtol=1e-12)
    assert torch.equal(peak, dense.amax((2, 3)))
    assert mean.shape == peak.shape == (2, 4)
    assert torch.equal(ds.nn.SparseGlobalMaxPool()(dense), dense.amax((2, 3)))


@pytest.mark.parametrize("n", DIMS)
def test_sparse_batch_norm(n, rng):
    """Any number of axes; the statistics of the dense layer; its state dict."""
    x = sparse(rng, n)
    ours = ds.nn.SparseBatchNorm(4, eps=1e-4, momentum=0.3).double()
    theirs = getattr(nn, f"BatchNorm{n}d")(4, eps=1e-4, momentum=0.3).double()
    theirs.load_state_dict(ours.state_dict())
    for _ in range(2):
        assert torch.allclose(ours(x).to_dense(), theirs(x.to_dense()), rtol=1e-12, atol=1e-12)
    for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True):
        assert torch.allclose(a, b, rtol=1e-12)
    got, want = ours.eval()(x), theirs.eval()(x.to_dense())
    assert torch.allclose(got.to_dense(), want, rtol=1e-12, atol=1e-12)
    assert torch.allclose(theirs.eval()(x.to_dense()), ours(x.to_dense()), rtol=1e-12, atol=1e-12)


def test_to_sparse_and_to_dense(rng):
    dense = sparse(rng, ground="zero").to_dense()
    x = ds.nn.ToSparse()(dense)
    assert isinstance(x, ds.SparseTensor) and torch.equal(ds.nn.ToDense()(x), dense)
    assert torch.equal(ds.nn.ToSparse(ground=1.5)(dense + 1.5).coords, x.coords)
    assert ds.nn.ToSparse()(x) is x and ds.nn.ToDense()(dense) is dense


# ------------------------------------------------------------------ convert
def test_convert_keeps_parameters_and_the_answer(rng):
    net = NETWORKS["unet_bn"][0]().double().eval()
    x = make_input(rng, 2, dict(c_in=3), shape=(16, 20), dtype=torch.float64).sparse(ds)
    want, names = net(x.to_dense()), list(net.state_dict())
    parameters = {id(p) for p in net.parameters()}
    out = ds.nn.convert(net)
    kinds = {type(m) for m in out.modules()}
    assert ds.nn.SparseConv2d in kinds and nn.Conv2d not in kinds
    assert ds.nn.SparseMaxPool2d in kinds and ds.nn.SparseConvTranspose2d in kinds
    assert {id(p) for p in out.parameters()} == parameters, "the same Parameter objects"
    assert list(out.state_dict()) == names
    assert torch.allclose(densify(out(x)), want, rtol=1e-10, atol=1e-12)
    assert torch.allclose(out(x.to_dense()), want, rtol=1e-10, atol=1e-12)


def test_convert_to_submanifold(rng):
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 2, 2), nn.Conv2d(4, 2, 3)
    )
    out = ds.nn.convert(net, submanifold=True)
    kinds = [type(m) for m in out]
    assert kinds[0] is ds.nn.SubmanifoldConv2d, "odd kernel, stride 1, centred padding"
    assert kinds[2] is ds.nn.SparseConv2d and kinds[3] is ds.nn.SparseConv2d
    x = make_input(rng, 2, dict(c_in=3), shape=(8, 8)).sparse(ds)
    assert out[:2](x).sites is x.sites


def test_convert_leaves_subclasses_alone():
    """Only the exact classes: a subclass may compute something else."""

    class Mine(nn.Conv2d):
        pass

    net = nn.Sequential(Mine(1, 1, 1), nn.Linear(1, 1))
    out = ds.nn.convert(net)
    assert type(out[0]) is Mine and type(out[1]) is nn.Linear
