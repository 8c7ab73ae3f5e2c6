"""Networks and checkpoints of MinkowskiEngine compute here what it defines (`minkowski.py`)."""

from __future__ import annotations

import gc
import pickle
import weakref

import pytest
import torch
import torch.nn as nn

import doublesparse as ds
import minkowski
from doublesparse.nn._from_minkowski import kernel_weight
from inputs import make_input

GEOMETRIES = [
    # size, stride, dilation: odd and even kernels, smaller and larger than their stride
    ((3, 3, 3), (1, 1, 1), (1, 1, 1)),
    ((3, 1, 5), (1, 1, 1), (2, 1, 1)),
    ((1, 1, 1), (1, 1, 1), (1, 1, 1)),
    ((2, 2, 2), (2, 2, 2), (1, 1, 1)),
    ((3, 3, 3), (2, 2, 2), (1, 1, 1)),
    ((1, 1, 1), (2, 2, 2), (1, 1, 1)),
    ((3, 2, 1), (3, 2, 1), (1, 1, 1)),
    ((4, 3), (2, 3), (2, 1)),
    ((5, 2), (2, 1), (1, 1)),
    ((3,), (2,), (2,)),
]


def grid(rng, n_axes: int, c: int = 3, batch: int = 2) -> ds.SparseTensor:
    shape = {1: (19,), 2: (9, 11), 3: (7, 6, 9)}[n_axes]
    options = dict(ground="none", dtype=torch.float64, integers=False, shape=shape, batch=batch)
    return make_input(rng, n_axes, dict(c_in=c), **options).sparse(ds)


def by_coordinate(x: ds.SparseTensor, now: tuple[int, ...]) -> dict:
    """As MinkowskiEngine names sites: in units of the input's grid."""
    rows = zip(x.coords.tolist(), x.features, strict=True)
    return {(b, *(i * s for i, s in zip(at, now, strict=True))): f for (b, *at), f in rows}


def assert_sites(y: ds.SparseTensor, want: dict, now: tuple[int, ...]) -> None:
    got = by_coordinate(y, now)
    assert y.ground is None and sorted(got) == sorted(want) and want
    for coord, feature in want.items():
        assert torch.allclose(got[coord], feature, rtol=1e-12, atol=1e-12), coord


@pytest.mark.parametrize(("size", "stride", "dilation"), GEOMETRIES)
@pytest.mark.parametrize("bias", (True, False))
def test_minkowski_convolutions(size, stride, dilation, bias, rng):
    """Modules and state dicts, against its definition; with transposed ones onto the input."""
    n = len(size)
    one, x = (1,) * n, grid(rng, n)
    down = minkowski.layer("MinkowskiConvolution", 3, 4, size, stride, dilation, bias)
    sites = by_coordinate(x, one)
    args = (down.kernel, down.bias, size)
    want = minkowski.convolution(sites, *args, stride, dilation, one)
    net = ds.nn.from_minkowski(down)
    y = net(x.replace(ground=0.0))
    assert_sites(y, want, stride)
    state = ds.nn.from_minkowski(down.state_dict(), dimension=n, kernel_size=size)
    named = ds.nn.from_minkowski(
        {f"a.{k}": v for k, v in down.state_dict().items()}, like=Holder(net)
    )
    for name, value in net.state_dict().items():
        assert torch.equal(state[name], value) and torch.equal(named[f"a.{name}"], value)
    if max(stride) > 1:
        up = minkowski.layer("MinkowskiConvolutionTranspose", 4, 2, size, stride, dilation, bias)
        args = (up.kernel, up.bias, size, dilation, one)
        back = ds.nn.from_minkowski(up)
        z = back(y)
        assert z.sites is x.sites, "the encoder's own sites, whose rulebooks are there"
        assert_sites(z, minkowski.transposed(want, *args, sites), one)
        assert torch.equal(back(y, like=x).features, z.features)
        state = ds.nn.from_minkowski(
            up.state_dict(), dimension=n, kernel_size=size, transposed=[""]
        )
        back.load_state_dict(state, strict=True)
        assert torch.equal(back(y).features, z.features)


class Holder(nn.Module):
    def __init__(self, a: nn.Module) -> None:
        super().__init__()
        self.a = a


@pytest.mark.parametrize(("size", "stride"), [((2, 2), (2, 2)), ((3, 3), (2, 2)), ((3, 3), (3, 3))])
@pytest.mark.parametrize("kind", ("Max", "Avg"))
def test_minkowski_pools(kind, size, stride, rng):
    x, one = grid(rng, 2), (1, 1)
    net = ds.nn.from_minkowski(minkowski.layer(f"Minkowski{kind}Pooling", size=size, stride=stride))
    want = minkowski.pool(by_coordinate(x, one), kind.lower(), size, stride, one)
    assert_sites(net(x), want, stride)


class MinkowskiNet(nn.Module):
    """Two levels down and up, with a skip connection; torch's cat for MinkowskiEngine's."""

    def __init__(self) -> None:
        super().__init__()
        make, norm, relu = minkowski.layer, nn.BatchNorm1d, nn.ReLU
        k2, k3, s1, s2 = (2,) * 3, (3,) * 3, (1,) * 3, (2,) * 3
        self.stem = make("MinkowskiConvolution", 3, 4, k3, s1, bias=False)
        self.norm = minkowski.wrapped("MinkowskiBatchNorm", "bn", norm(4).double())
        self.act = minkowski.wrapped("MinkowskiReLU", "module", relu(inplace=True))
        self.down = make("MinkowskiConvolution", 4, 5, k2, s2)
        self.deep = make("MinkowskiConvolution", 5, 6, k3, s2)
        self.dilated = make("MinkowskiConvolution", 6, 6, k3, s1, (2, 2, 2))
        self.up = make("MinkowskiConvolutionTranspose", 6, 5, k3, s2)
        self.out = make("MinkowskiConvolutionTranspose", 5, 4, k2, s2)
        self.head = minkowski.wrapped("MinkowskiLinear", "linear", nn.Linear(8, 2).double())

    def forward(self, x):
        x = self.act(self.norm(self.stem(x)))
        y = self.dilated(self.deep(self.down(x)))
        return self.head(torch.cat([x, self.out(self.up(y))], 1))

    def reference(self, sites: dict) -> dict:
        s1, s2, s4, k2, k3 = ((v,) * 3 for v in (1, 2, 4, 2, 3))
        fine = minkowski.convolution(sites, self.stem.kernel, None, k3, s1, s1, s1)
        rows = self.norm.bn(torch.stack(list(fine.values()))).relu()
        fine = dict(zip(fine, rows, strict=True))
        half = minkowski.convolution(fine, self.down.kernel, self.down.bias, k2, s2, s1, s1)
        deep = minkowski.convolution(half, self.deep.kernel, self.deep.bias, k3, s2, s1, s2)
        last = self.dilated
        deep = minkowski.convolution(deep, last.kernel, last.bias, k3, s1, s2, s4)
        up = minkowski.transposed(deep, self.up.kernel, self.up.bias, k3, s1, s2, half)
        out = minkowski.transposed(up, self.out.kernel, self.out.bias, k2, s1, s1, fine)
        return {c: self.head.linear(torch.cat([f, out[c]])) for c, f in fine.items()}


def test_minkowski_network(rng):
    """A U-Net in training: outputs, gradients, running statistics, strict state dicts, pickles."""
    theirs = MinkowskiNet()
    net = ds.nn.from_minkowski(theirs)
    x = grid(rng, 3)
    y = net(x)
    want = theirs.reference(by_coordinate(x, (1, 1, 1)))
    assert_sites(y, want, (1, 1, 1))
    y.features.square().sum().backward()
    sum(f.square().sum() for f in want.values()).backward()
    kernel = kernel_weight(theirs.deep.kernel.grad, (3, 3, 3), False)
    assert torch.allclose(net.deep.weight.grad, kernel, rtol=1e-9, atol=1e-9)
    assert torch.allclose(net.norm.running_var, theirs.norm.bn.running_var)
    state = ds.nn.from_minkowski(theirs.state_dict(), transposed=["up", "out"])
    again = pickle.loads(pickle.dumps(net))
    for p in again.parameters():
        nn.init.zeros_(p)
    again.load_state_dict(state, strict=True)
    again.load_state_dict(ds.nn.from_minkowski(theirs.state_dict(), like=net), strict=True)
    assert torch.allclose(again.eval()(x).features, net.eval()(x).features)
    empty = ds.SparseTensor(x.features[:0], x.coords[:0], x.spatial_shape, 2, ground=None)
    assert len(net(empty).features) == 0


def test_minkowski_names():
    """What wraps torch's modules goes from the names; what only looks like it stays."""
    bn, own = nn.BatchNorm1d(2).state_dict(), nn.Linear(2, 2).state_dict()
    state = {f"block.norm.bn.{k}": v for k, v in bn.items()} | {"block.kernel": torch.zeros(2, 2)}
    state |= {f"block.linear.{k}": v for k, v in own.items()}
    names = set(ds.nn.from_minkowski(state))
    assert names == {*(f"block.norm.{k}" for k in bn), *(f"block.linear.{k}" for k in own)} | {
        "block.weight"
    }
    alone = ds.nn.from_minkowski({f"bn.{k}": v for k, v in bn.items()})
    nn.BatchNorm1d(2).load_state_dict(alone)
    cross = {"a.kernel": torch.zeros(7, 2, 2)}
    with pytest.raises(ValueError, match="kernel_size.*'a'"):
        ds.nn.from_minkowski(cross)
    for options in (
        dict(dimension=1),
        dict(kernel_size={"a": (1, 7, 1)}),
        dict(kernel_size=(7, 1, 1)),
    ):
        assert ds.nn.from_minkowski(cross, **options)["a.weight"].numel() == 28
    for wrong in (0, 5, 2.0, True):
        with pytest.raises(ValueError, match="dimension"):
            ds.nn.from_minkowski(cross, dimension=wrong)
    with pytest.raises(TypeError, match="from_minkowski"):
        ds.nn.from_minkowski(3)


@pytest.mark.parametrize(
    ("module", "text"),
    [
        (lambda m: m.layer("MinkowskiConvolution", 1, 1, (2, 2), (1, 1)), "even kernel"),
        (lambda m: m.layer("MinkowskiConvolution", 1, 1, (3,), region="HYPER_CROSS"), "no box"),
        (lambda m: m.layer("MinkowskiConvolutionTranspose", 1, 1, (2,), (2,), new=True), "new"),
        (lambda m: m.layer("MinkowskiConvolutionTranspose", 1, 1, (2,) * 4, (2,) * 4), "4d"),
        (lambda m: m.layer("MinkowskiMaxPooling", size=(2,), stride=(3,)), "below its stride"),
        (lambda m: m.layer("MinkowskiSumPooling", size=(2,), stride=(2,)), "SumPooling"),
    ],
)
def test_minkowski_refusals(module, text):
    with pytest.raises(NotImplementedError, match=text):
        ds.nn.from_minkowski(nn.Sequential(module(minkowski)))


def test_minkowski_transposed_needs_its_encoder(rng):
    up = ds.nn.from_minkowski(minkowski.layer("MinkowskiConvolutionTranspose", 3, 2, (2,), (2,)))
    with pytest.raises(ValueError, match="encoder"):
        up(grid(rng, 1))


def test_minkowski_residual_block(rng):
    """Two layers with one stride have the same sites, as its coordinate manager gives them."""
    x = grid(rng, 3)
    wide, narrow = (
        ds.nn.from_minkowski(minkowski.layer("MinkowskiConvolution", 3, 4, (k,) * 3, (2,) * 3))
        for k in (3, 1)
    )
    a, b = wide(x), narrow(x)
    assert a.sites is b.sites and wide(x).sites is a.sites
    assert torch.equal((a + b).features, a.features + b.features)


def test_minkowski_sites_die_with_their_tensors(rng):
    down, up = (
        ds.nn.from_minkowski(minkowski.layer(f"MinkowskiConvolution{kind}", *c, (2,) * 3, (2,) * 3))
        for kind, c in (("", (3, 4)), ("Transpose", (4, 3)))
    )
    gc.collect()
    gc.disable()
    try:
        x = grid(rng, 3)
        y = down(x)
        z = up(y)
        assert z.sites is x.sites
        watched = [weakref.ref(t.sites) for t in (x, y)]
        shape, coords = x.spatial_shape, x.coords
        del x, z
        assert watched[0]() is None, "the input's sites outlive it"
        again = up(y)
        assert again.spatial_shape == shape and torch.equal(again.coords, coords)
        del y, again
        assert watched[1]() is None
    finally:
        gc.enable()
