"""Networks and checkpoints of spconv compute here what they compute there.

What its own CPU kernels gave (`data/make_spconv_fixture.py` stored it, with the attributes
of its layers), and spconv itself where it is installed.
"""

from __future__ import annotations

import gc
import importlib.util
import json
import pickle
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn as nn

import doublesparse as ds

DATA = Path(__file__).parent / "data"
STORED = dict(np.load(DATA / "spconv_cpu.npz", allow_pickle=False))
TREES = json.loads(str(STORED.pop("trees")))
CASES = sorted(TREES)
AGREE = dict(rtol=0.0, atol=1e-5)  # what the package promises for checkpoints in float32


def of_case(case: str, part: str) -> dict[str, torch.Tensor]:
    start = f"{case}/{part}/"
    return {
        k.removeprefix(start): torch.from_numpy(v) for k, v in STORED.items() if k.startswith(start)
    }


def class_of(kinds: list[str]) -> type:
    """A class that says of itself what spconv's says, bases included, and computes nothing."""
    place, name = kinds[0].split(":")
    if not place.startswith("spconv"):
        return nn.Module
    return type(name, (class_of(kinds[1:]),), {"__module__": place})


TORCH = {
    "ReLU": lambda known: nn.ReLU(known["inplace"]),
    "BatchNorm1d": lambda known: nn.BatchNorm1d(
        *(known[a] for a in ("num_features", "eps", "momentum"))
    ),
    "Linear": lambda known: nn.Linear(6, 6),
    "Flatten": lambda known: nn.Flatten(),
}


def stand_in(tree: dict, state: dict[str, torch.Tensor]) -> nn.Module:
    """spconv's module with its attributes and parameters, without spconv."""
    place, name = tree["kinds"][0].split(":")
    if place.startswith("torch"):
        module = TORCH[name](tree["known"])
        module.load_state_dict(state)
        return module.train(tree["known"]["training"])
    module = class_of(tree["kinds"])()
    if "in_channels" in tree["known"]:
        module.bias = None
    for key, value in tree["known"].items():
        setattr(module, key, value)
    for key, value in state.items():
        if "." not in key:
            is_buffer = key.startswith(("running", "num_"))
            register = module.register_buffer if is_buffer else module.register_parameter
            if hasattr(module, key):
                delattr(module, key)
            register(key, value.clone() if is_buffer else nn.Parameter(value.clone()))
    for key, child in tree["children"].items():
        inner = {k.removeprefix(f"{key}."): v for k, v in state.items() if k.startswith(f"{key}.")}
        module.add_module(key, stand_in(child, inner))
    return module


def network(case: str) -> nn.Module:
    return stand_in(TREES[case]["tree"], of_case(case, "state"))


def input_of(case: str, ground=None) -> ds.SparseTensor:
    features, coords = (torch.from_numpy(STORED[f"{case}/{p}"]) for p in ("features", "coords"))
    return ds.SparseTensor(features, coords, TREES[case]["shape"], 2, ground=ground)


def assert_stored(case: str, y) -> None:
    """The output that spconv gave; its rows come in any order."""
    if f"{case}/dense" in STORED:
        want = torch.from_numpy(STORED[f"{case}/dense"])
        assert want.any() and torch.allclose(y, want, **AGREE)
        return
    order = np.lexsort(STORED[f"{case}/sites"].T[::-1])
    want = torch.from_numpy(STORED[f"{case}/out"][order])
    assert np.array_equal(y.coords.numpy(), STORED[f"{case}/sites"][order]), case
    assert y.ground is None or y.saturated
    assert want.any() and torch.allclose(y.features, want, **AGREE), case


@pytest.mark.parametrize("case", [c for c in CASES if c != "max_pool_negative"])
def test_spconv_modules(case):
    """Trees of modules: the stored output, the keys of the state dict, pickles and copies."""
    theirs = network(case)
    net = ds.nn.from_spconv(theirs)
    assert list(net.state_dict()) == list(theirs.state_dict())
    with torch.no_grad():
        assert_stored(case, net(input_of(case)))
        assert_stored(case, net(input_of(case, ground=0.0)))  # a zero ground is taken as None
        again = pickle.loads(pickle.dumps(net))
        assert_stored(case, again(input_of(case)))
    assert all(
        p.data_ptr() not in {q.data_ptr() for q in theirs.parameters()} for p in net.parameters()
    )


@pytest.mark.parametrize("case", [c for c in CASES if of_case(c, "state")])
def test_spconv_state_dicts(case):
    """Converted by shape, loaded strictly into the network of the tree."""
    net = ds.nn.from_spconv(network(case))
    want = {k: v.clone() for k, v in net.state_dict().items()}
    state = ds.nn.from_spconv(of_case(case, "state"), like=net)
    for p in net.parameters():
        nn.init.zeros_(p)
    net.load_state_dict(state, strict=True)
    assert all(torch.equal(v, want[k]) for k, v in net.state_dict().items())
    with torch.no_grad():
        if case != "max_pool_negative":
            assert_stored(case, net(input_of(case)))


def test_spconv_state_dict_by_names():
    """Without a network: names say what shapes do not."""
    case = "u_net"
    want = ds.nn.from_spconv(network(case)).state_dict()
    state = of_case(case, "state")
    got = ds.nn.from_spconv(state, transposed=["8", "9"])
    assert list(got) == list(want) and all(torch.equal(got[k], want[k]) for k in want)
    other = {f"backbone.{k}": v for k, v in state.items()}
    other["backbone.0.max_num_voxels_during_training"] = torch.zeros(1)  # for deployment: dropped
    got = ds.nn.from_spconv(other, transposed=["backbone.[89]"], layout={"backbone": "KRSC"})
    assert all(torch.equal(got[f"backbone.{k}"], want[k]) for k in want) and len(got) == len(want)
    strided = ds.nn.from_spconv(of_case("pointwise_strided", "state"), strided=[""])
    pointwise = ds.nn.from_spconv(of_case("pointwise_strided", "state"))
    assert not torch.equal(strided["weight"], pointwise["weight"])


def test_spconv_layouts():
    """The same weight as three versions stored it."""
    weight = torch.randn(6, 4, 3, 3, 3)
    stored = {
        "KRSC": weight.permute(0, 2, 3, 4, 1),
        "RSKC": weight.permute(2, 3, 4, 0, 1),
        "RSCK": weight.permute(2, 3, 4, 1, 0),
    }
    net = nn.Sequential(ds.nn.SubmanifoldConv3d(4, 6, 3, bias=False))
    for layout, value in stored.items():
        state = {"0.weight": value.contiguous()}
        for options in (dict(layout=layout), dict(layout={"0": layout}), dict(like=net)):
            assert torch.equal(ds.nn.from_spconv(state, **options)["0.weight"], weight)
        with_bias = state | {"0.bias": torch.zeros(6)}
        assert torch.equal(ds.nn.from_spconv(with_bias)["0.weight"], weight), layout
    with pytest.raises(ValueError, match="RSKC and RSCK.*layout="):
        ds.nn.from_spconv({"0.weight": stored["RSKC"]})
    square = torch.randn(3, 3, 3, 16, 16)
    with pytest.raises(ValueError, match="layout="):
        ds.nn.from_spconv({"0.weight": square, "0.bias": torch.zeros(16)})
    # dense layers after ToDense stay; what one weight says helps another that could be either
    head = {"head.weight": torch.randn(8, 8, 3, 3), "fc.weight": torch.randn(4, 8)}
    state = head | {
        "a.weight": torch.randn(16, 3, 3, 3, 16),
        "b.weight": torch.randn(8, 3, 3, 3, 3),
    }
    got = ds.nn.from_spconv(state)
    assert all(got[k] is head[k] for k in head)
    assert got["b.weight"].shape == (8, 3, 3, 3, 3)
    assert torch.equal(got["b.weight"], state["b.weight"].permute(0, 4, 1, 2, 3))


def test_spconv_negative_maximum():
    """spconv's pool starts from 0; the maximum of negative numbers is negative here."""
    case = "max_pool_negative"
    y = ds.nn.from_spconv(network(case))(input_of(case))
    assert not STORED[f"{case}/out"].any(), "this proves nothing: spconv is right"
    assert bool((y.features < 0).all())
    order = np.lexsort(STORED[f"{case}/sites"].T[::-1])
    assert np.array_equal(y.coords.numpy(), STORED[f"{case}/sites"][order])


def test_spconv_errors():
    case = "u_net"
    net = ds.nn.from_spconv(network(case))
    x = input_of(case)
    with pytest.raises(ValueError, match="ground"):
        net(x.replace(ground=1.0))
    with pytest.raises(ValueError, match="key 'down'"):
        net[9](ds.SparseTensor(torch.ones(1, 6), torch.tensor([[0, 1, 1, 1]]), (4, 4, 5), 1, None))
    up = net[9](ds.nn.SparseConv3d(3, 6, 3, 2, 1)(x), like=x)  # given, as for any other layer
    assert up.sites is x.sites
    for wrong in (None, 3, {"a": 1}, [torch.ones(1)]):
        with pytest.raises(TypeError, match="from_spconv"):
            ds.nn.from_spconv(wrong)
    for options in (dict(layout="KSRC"), dict(layout={"0": None})):
        with pytest.raises(ValueError, match="KRSC"):
            ds.nn.from_spconv(of_case(case, "state"), **options)
    with pytest.raises(TypeError, match="layout"):
        ds.nn.from_spconv(of_case(case, "state"), layout=3)
    with pytest.raises(ValueError, match="module"):
        ds.nn.from_spconv(network(case), layout="KRSC")


def changed(case: str, **known) -> nn.Module:
    tree = TREES[case]["tree"]
    return stand_in(dict(tree, known=tree["known"] | known), of_case(case, "state"))


@pytest.mark.parametrize(
    ("case", "known", "text"),
    [
        ("transposed", dict(dilation=[2, 2, 2]), "dilation"),
        ("strided", dict(act_type="Activation.ReLU"), "activation"),
        ("strided", dict(inverse=True, indice_key="none"), "'none'"),
        ("strided", dict(ndim=5), "SparseConv5d"),
        ("max_pool_negative", dict(subm=True), "submanifold pool"),
    ],
)
def test_spconv_refusals(case, known, text):
    with pytest.raises(NotImplementedError, match=text):
        ds.nn.from_spconv(changed(case, **known))
    table = class_of(["spconv.pytorch.tables:JoinTable", "torch:Module"])()
    with pytest.raises(NotImplementedError, match="'1'.*JoinTable"):
        ds.nn.from_spconv(nn.Sequential(nn.ReLU(), table))


class Block(nn.Module):
    """A module of somebody's own around layers of spconv, tied."""

    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.conv, self.again, self.scale = conv, conv, nn.Parameter(torch.ones(1))

    def forward(self, x):
        return self.again(x) + self.conv(x) * self.scale


def test_modules_of_ones_own():
    """Copied around the layers that change; what was one layer stays one."""
    theirs = Block(network("submanifold"))
    net = ds.nn.from_spconv(theirs)
    assert type(net) is Block and net.conv is net.again and net.scale is not theirs.scale
    x = input_of("submanifold")
    want = ds.nn.from_spconv(theirs.conv)(x)
    assert torch.equal(net(x).features, 2 * want.features)
    assert type(theirs.conv).__name__ == "SubMConv3d", "the original is as it was"


def test_frozen_and_trained_parts_stay_so():
    theirs = network("u_net")
    list(theirs.children())[0].weight.requires_grad_(False)
    list(theirs.children())[1].train()
    net = ds.nn.from_spconv(theirs)
    assert not net[0].weight.requires_grad and net[4].weight.requires_grad
    assert net[1].training and not net[3][1].training
    x = input_of("u_net")
    net.train()
    net(x).square().sum().backward()
    assert net[0].weight.grad is None and net[4].weight.grad.any()


def test_sites_die_with_their_tensors():
    """What an inverse convolution goes back to is not kept by the network, nor by a cycle."""
    net = ds.nn.from_spconv(network("u_net"))
    gc.collect()
    gc.disable()
    try:
        x = input_of("u_net")
        down = net[:4](x)
        up = net[9](net[8](net[4:8](down)))
        assert up.sites is x.sites, "the rulebooks of the input are used again"
        watched = [weakref.ref(t.sites) for t in (x, down)]
        del x, up
        assert watched[0]() is None, "the input's sites outlive it"
        assert net[9](down).spatial_shape == tuple(TREES["u_net"]["shape"])
        del down
        assert watched[1]() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("case", [c for c in CASES if c != "max_pool_negative"])
def test_spconv_itself(case):
    """Not the stored numbers: spconv, where it is installed, on other input."""
    pytest.importorskip("spconv", reason="spconv is not installed; its stored output is tested")
    import spconv.pytorch as spconv

    place = importlib.util.spec_from_file_location("fixture", DATA / "make_spconv_fixture.py")
    made = importlib.util.module_from_spec(place)
    place.loader.exec_module(made)
    net = made.NETWORKS[case]()
    n_axes = next(m.ndim for m in net.modules() if hasattr(m, "ndim"))
    net.train(case != "u_net")
    features, coords, shape = made.inputs(n_axes)
    ours = ds.nn.from_spconv(net)
    with torch.no_grad():
        want = net(spconv.SparseConvTensor(features.clone(), coords, shape, 2))
        got = ours(ds.SparseTensor(features, coords, shape, 2, ground=None))
    want = want if isinstance(want, torch.Tensor) else want.dense()
    got = got if isinstance(got, torch.Tensor) else got.to_dense()
    assert torch.allclose(got, want, **AGREE)
