"""Convolutions of dense images with a pruned weight, against torch's on the weight with zeros."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import doublesparse as ds
import masked_conv_cases as table
from doublesparse import _C, _masked_conv, info
from doublesparse._autograd_masked_conv import FrozenConv
from doublesparse._functional_masked_conv import geometry_of, masked_conv
from doublesparse._masked_conv import Geometry
from doublesparse._structure import Structure
from masked_conv_cases import CASES, Case

ISAS = ("baseline", "avx2", "avx512", "amx")
ORDINARY = CASES["3x3"]


@pytest.fixture
def kernels(monkeypatch):
    """Every layer on the kernels of pruned weights, however small or full it is."""
    monkeypatch.setattr(_masked_conv, "takes_kernel", lambda *layer: True)


by_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


# ------------------------------------------------------------------ equal to torch, exactly
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@by_case
def test_results_and_gradients_are_torchs(case, dtype, kernels):
    table.check(case, *table.operands(case, dtype))


@by_case
def test_channels_last(case, kernels):
    """Images and weights with channels innermost; results are in the same format."""
    x, weight, mask, bias = table.operands(case, torch.float32)
    x, weight = (t.movedim(1, -1).contiguous().movedim(-1, 1) for t in (x, weight))
    table.check(case, x, weight, mask, bias)
    y = masked_conv(case.n_axes, x, weight, mask, bias, *case.arguments)
    assert y.movedim(1, -1).is_contiguous()


@pytest.mark.parametrize("name", ["3x3", "batch 3", "1-D strided", "3-D"])
def test_any_strides(name, kernels):
    case = CASES[name]
    x, weight, mask, bias = table.operands(case, torch.float32)
    spread = torch.full((*x.shape[:-1], 2 * x.shape[-1]), float("nan"))[..., ::2].copy_(x)
    for other in (spread, x.transpose(0, -1).contiguous().transpose(0, -1), x[:1].expand_as(x)):
        weights = weight.transpose(0, 1).contiguous().transpose(0, 1)
        table.check(case, other, weights, mask, bias)


@pytest.mark.parametrize("density", [0.0, 1.0])
@pytest.mark.parametrize("name", ["3x3", "batch 17", "depthwise", "1-D", "3-D"])
def test_everything_and_nothing_pruned(name, density, kernels):
    table.check(CASES[name], *table.operands(CASES[name], torch.float32, density))


@pytest.mark.parametrize("rows", [4, 8, 16])
def test_units_of_rows(rows, kernels):
    """Columns kept for whole units of output channels; and of input channels, in the gradient."""
    case = Case(5, 32, 48, (6, 7), (3, 3), (1, 1, 1), 2)
    x, weight, _, bias = table.operands(case, torch.float32, 1.0)
    g = torch.Generator().manual_seed(3)
    kept = torch.rand(48 // rows, 16, 3, 3, generator=g) < 0.3
    mask = kept.repeat_interleave(rows, 0)
    table.check(case, x, weight, mask, bias)
    assert _masked_conv.row_form(mask, 2).structure.tiles.unit_rows == (8 if rows == 16 else rows)
    kept = torch.rand(48, 16 // rows, 3, 3, generator=g) < 0.3
    table.check(case, x, weight, kept.repeat_interleave(rows, 1), bias)


def test_a_batch_of_none(kernels):
    x, weight, mask, bias = table.operands(ORDINARY, torch.float32)
    for shape in ((0, 16, 14, 14), (0, 16, 1, 1)):
        y, dx, dw, db = table.ours(ORDINARY, x.new_empty(shape), weight, mask, bias)
        assert y.shape == (0, 8, *shape[2:]) and dx.shape == shape
        assert not dw.any() and not db.any()


def test_an_image_without_its_batch(kernels):
    x, weight, mask, bias = table.operands(ORDINARY, torch.float32)
    y = masked_conv(2, x[0], weight, mask, bias, *ORDINARY.arguments)
    assert torch.equal(y, masked_conv(2, x, weight, mask, bias, *ORDINARY.arguments)[0])


def test_no_bias(kernels):
    x, weight, mask, _ = table.operands(ORDINARY, torch.float32)
    y = masked_conv(2, x, weight, mask, None, 1, 1)
    assert torch.equal(y, F.conv2d(x, torch.where(mask, weight, 0.0), None, 1, 1))


def test_full_layers_run_on_torch():
    """`takes_kernel` is a pure function of the layer; the answer is the same."""
    case = Case(2, 16, 32, (6, 6), (3, 3), (1, "same", 1))
    for density in (0.1, 0.9):
        table.check(case, *table.operands(case, torch.float32, density))
    ds.set_crossover("auto")  # conftest.py sets it back
    layer, images, g = (64, 64, 3, 3), (8, 64, 28, 28), _masked_conv.Geometry(*[(1, 1)] * 4, 1)
    assert _masked_conv.takes_kernel(layer, 0.05, g, images, torch.float32)
    assert not _masked_conv.takes_kernel(layer, 0.9, g, images, torch.float32)
    assert not _masked_conv.takes_kernel(layer, 0.05, g, (1, 64, 2, 2), torch.float32)
    thin = g._replace(groups=64)
    assert not _masked_conv.takes_kernel((64, 1, 3, 3), 0.05, thin, images, torch.float32)


# ------------------------------------------------------------------ floats
def test_gradcheck(kernels):
    torch.manual_seed(0)
    x = torch.randn(2, 4, 5, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(6, 2, 3, 2, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(6, dtype=torch.float64, requires_grad=True)
    mask = torch.rand(6, 2, 3, 2) < 0.5

    def convolve(x, weight, bias):
        return masked_conv(2, x, weight, mask, bias, (2, 1), 1, (1, 2), 2)

    assert torch.autograd.gradcheck(convolve, (x, weight, bias))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_floats_are_within_their_bound(layout, kernels):
    """|y - y64| <= 2 (n + 2) u sum |a||b| + u |y|."""
    torch.manual_seed(0)
    x = torch.randn(9, 64, 15, 13).contiguous(memory_format=layout)
    weight, bias = torch.randn(32, 64, 3, 3), torch.randn(32)
    mask = torch.rand(weight.shape) < 0.1
    zeros = torch.where(mask, weight, 0.0)
    y = masked_conv(2, x, weight, mask, bias, 1, 1)
    exact = F.conv2d(x.double(), zeros.double(), bias.double(), 1, 1)
    sizes = F.conv2d(x.double().abs(), zeros.double().abs(), bias.double().abs(), 1, 1)
    u, n = 2.0**-24, int(mask.flatten(1).sum(1).max())
    assert ((y - exact).abs() <= 2 * (n + 2) * u * sizes + u * exact.abs()).all()


@pytest.mark.parametrize("name", ["3x3", "batch 17", "many bands", "3-D"])
def test_bits_do_not_depend_on_threads(name, kernels):
    case = CASES[name]
    _, _, mask, _ = table.operands(case, torch.float32)
    torch.manual_seed(0)
    x, weight = torch.randn(case.batch, case.c_in, *case.shape), torch.randn(mask.shape)
    bias = torch.randn(case.c_out)
    results = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        results.append(table.ours(case, x, weight, mask, bias))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("isa", ISAS)
def test_every_instruction_set(isa):
    here = info.collect()["isa"]
    if isa not in here["compiled"]:
        pytest.skip(f"this build has no {isa} kernels, only {here['compiled']}")
    if ISAS.index(isa) > ISAS.index(here["found"]):
        pytest.skip(f"this machine has no {isa}, only {here['found']}")
    if isa == "amx" and info.collect()["amx"]["refusal"]:
        pytest.skip(info.collect()["amx"]["refusal"])
    env = dict(os.environ, DOUBLESPARSE_ISA=isa, OMP_NUM_THREADS="1")
    child = Path(__file__).with_name("masked_conv_cases.py")
    done = subprocess.run(
        [sys.executable, child], env=env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [isa]


# ------------------------------------------------------------------ state
def test_a_mask_that_is_written_to_is_read_again(kernels):
    x, weight, mask, bias = table.operands(ORDINARY, torch.float32, 0.5)
    weight = weight.nan_to_num(1.0)
    masked_conv(2, x, weight, mask, bias, 1, 1)
    mask[:, ::2] = False
    table.check(ORDINARY, x, weight, mask, bias)


def test_a_frozen_form_gives_the_same_bits(kernels):
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        x, weight, mask, bias = table.operands(ORDINARY, dtype)
        g = geometry_of(2, x, weight.shape, bias, 1, 1, 1, 1)
        frozen = FrozenConv(weight, mask)
        assert torch.equal(frozen(x, bias, g), masked_conv(2, x, weight, mask, bias, 1, 1))
        assert frozen.nbytes > 0


# ------------------------------------------------------------------ torch.compile, autocast
@pytest.mark.parametrize("density", [0.1, 0.9])
def test_compiles_whole(density):
    case = Case(2, 16, 16, (6, 6), (3, 3), (1, 1, 1))
    x, weight, mask, bias = table.operands(case, torch.float32, density)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def convolve(x, weight, bias):
        return masked_conv(2, x, weight, mask, bias, 1, 1)

    got = table.with_gradients(convolve, x, weight, bias)
    for a, b in zip(got, table.torchs(case, x, weight, mask, bias), strict=True):
        assert torch.equal(a, b)


def test_autocast_rounds_operands_as_torch_does(kernels):
    x, weight, mask, bias = table.operands(ORDINARY, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = masked_conv(2, x, weight, mask, bias, 1, 1)
        want = F.conv2d(x, torch.where(mask, weight, 0.0), bias, 1, 1)
    assert y.dtype == torch.bfloat16 and torch.equal(y, want)


# ------------------------------------------------------------------ what is wrong
def test_masks_are_checked():
    x, weight, mask, _ = table.operands(ORDINARY, torch.float32)
    with pytest.raises(TypeError, match="masked_conv2d: mask must be a strided tensor of"):
        masked_conv(2, x, weight, mask.float())
    with pytest.raises(TypeError, match="got NoneType"):
        masked_conv(2, x, weight, None)
    with pytest.raises(ValueError, match="mask must have the shape of the weight"):
        masked_conv(2, x, weight, mask[:4])


@pytest.mark.parametrize(
    "arguments",
    [
        dict(x=torch.ones(2, 16, 2, 14)),
        dict(x=torch.ones(2, 15, 14, 14)),
        dict(x=torch.ones(14, 14)),
        dict(x=torch.ones(2, 16, 14, 14, dtype=torch.float64)),
        dict(x=torch.ones(2, 16, 14, 14, dtype=torch.int64)),
        dict(bias=torch.ones(9)),
        dict(groups=3),
        dict(groups=0),
        dict(stride=0),
        dict(stride=(1, 1, 1)),
        dict(stride=2, padding="same"),
        dict(padding=-1),
        dict(padding="much"),
        dict(dilation=0),
    ],
    ids=str,
)
def test_the_rest_is_refused_as_torch_does(arguments, kernels):
    x, weight, mask, bias = table.operands(ORDINARY, torch.float32)
    whole = dict(x=x, bias=bias) | arguments
    x = whole.pop("x")
    with pytest.raises(Exception) as torchs:  # noqa: PT011
        F.conv2d(x, torch.where(mask, weight, 0.0), **whole)
    with pytest.raises(type(torchs.value)) as ours:
        masked_conv(2, x, weight, mask, **whole)
    assert str(ours.value).splitlines()[0] == str(torchs.value).splitlines()[0]


# ------------------------------------------------------------------ the binding
def raw_call(**changes):
    x, weight, mask, bias = table.operands(ORDINARY, torch.float32)
    form = _masked_conv.row_form(mask, 1)
    g = Geometry((1, 1), (1, 1), (1, 1), (1, 1), 1)
    walk = _masked_conv._forward_map((14, 14), (3, 3), g)
    call = dict(
        tiles=form.structure.tiles,
        values=_masked_conv.values_of(weight, form),
        map=walk,
        x=x,
        bias=bias,
        groups=1,
        y=torch.empty(16, 8, 14, 14),
        n_threads=1,
    )
    size = _C.masked_conv_workspace(call["tiles"], walk, x, call["y"], 1, False, 1)
    call["workspace"] = torch.empty(size)
    call |= changes
    _C.masked_conv(**call)
    return call["y"]


WRONG = {
    "x of another rank": (dict(x=torch.ones(16, 16, 14)), ValueError),
    "x of another dtype": (dict(x=torch.ones(16, 16, 14, 14).half()), TypeError),
    "x of other channels": (dict(x=torch.ones(16, 15, 14, 14)), ValueError),
    "another batch": (dict(x=torch.ones(15, 16, 14, 14)), ValueError),
    "values too few": (dict(values=torch.ones(3)), ValueError),
    "values of another dtype": (dict(values=torch.ones(3).double()), TypeError),
    "bias too long": (dict(bias=torch.ones(9)), ValueError),
    "no groups": (dict(groups=0), ValueError),
    "groups that do not divide": (dict(groups=3), ValueError),
    "y of other channels": (dict(y=torch.empty(16, 9, 14, 14)), ValueError),
    "y too small": (dict(y=torch.empty(16, 8, 13, 14)), ValueError),
    "y with holes": (dict(y=torch.empty(16, 8, 14, 28)[..., ::2]), ValueError),
    "y expanded": (dict(y=torch.empty(16, 8, 14, 1).expand(16, 8, 14, 14)), ValueError),
    "workspace too small": (dict(workspace=torch.empty(64)), ValueError),
    "no threads": (dict(n_threads=0), ValueError),
}


@pytest.mark.parametrize(("change", "error"), WRONG.values(), ids=WRONG)
def test_the_binding_checks_again(change, error):
    assert raw_call().isfinite().all()
    with pytest.raises(error):
        raw_call(**change)


def test_outputs_do_not_overlap_inputs():
    x = table.operands(Case(16, 8, 8, (14, 14), (3, 3)), torch.float32)[0]
    mask = torch.ones(8, 72, dtype=torch.bool)
    tiles = Structure(mask).tiles
    walk = _C.ConvMap([14, 14], [1, 1], [1, 1], [0, 0], [1, 1], [0, 0] * 9)
    workspace = torch.empty(_C.masked_conv_workspace(tiles, walk, x, x, 1, False, 1))
    with pytest.raises(ValueError, match="overlaps"):
        _C.masked_conv(tiles, torch.ones(576), walk, x, None, 1, workspace, x, 1)


@pytest.mark.parametrize(
    "change",
    [
        dict(lanes=[]),
        dict(lanes=[4] * 4),
        dict(lanes=[-1, 3]),
        dict(lanes=[2**40, 3]),
        dict(step=[0, 1]),
        dict(pad=[-(2**40), 1]),
        dict(out_start=[-1, 0]),
        dict(out_step=[1]),
        dict(at=[]),
        dict(at=[0, 0, 0]),
        dict(at=[-1, 0]),
    ],
    ids=str,
)
def test_maps_are_checked(change):
    whole = dict(lanes=[3, 3], step=[1, 1], pad=[0, 0], out_start=[0, 0], out_step=[1, 1])
    with pytest.raises(ValueError, match="ConvMap"):
        _C.ConvMap(**(whole | dict(at=[0, 0]) | change))


def test_maps_far_outside_of_the_image_read_zeros():
    x, y = torch.ones(1, 1, 3, 3), torch.empty(1, 4, 3, 3)
    tiles = Structure(torch.ones(4, 1, dtype=torch.bool)).tiles
    for pad in (-(2**30), 2**30):
        walk = _C.ConvMap([3, 3], [1, 2**30], [pad, pad], [0, 0], [1, 1], [0, 0])
        workspace = torch.empty(_C.masked_conv_workspace(tiles, walk, x, y, 1, False, 1))
        _C.masked_conv(tiles, torch.ones(4), walk, x, None, 1, workspace, y, 1)
        assert not y.any()


def test_distances_beyond_32_bits_are_refused():
    x, y = torch.ones(1, 4, 3), torch.empty(1, 4, 3)
    tiles = Structure(torch.ones(4, 8, dtype=torch.bool)).tiles
    walk = _C.ConvMap([3], [1], [0], [0], [1], [0, 2**30])
    with pytest.raises(ValueError, match="too large"):
        _C.masked_conv_workspace(tiles, walk, x, y, 1, False, 1)
