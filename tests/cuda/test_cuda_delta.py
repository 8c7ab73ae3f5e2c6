"""Products of few rows with half-precision weights that keep little: gaps of a byte."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import doublesparse as ds
from doublesparse import _gpu_delta as delta
from doublesparse import _gpu_packed
from doublesparse._device import gpu

HALVES = (torch.bfloat16, torch.float16)
DENSITIES = (0.0, 0.02, 0.1, 1.0)
SHAPES = ((0, 8), (5, 0), (1, 1), (7, 33), (65, 403), (9, 1025))


def _mask(rows: int, columns: int, density: float) -> Tensor:
    return torch.rand(rows, columns) < density


def _integers(*shape: int, dtype: torch.dtype) -> Tensor:
    """Whose products' sums are exact in float32."""
    return torch.randint(-3, 4, shape).to(dtype)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The exact one, rounded once."""
    y = x.double() @ weight.double().t()
    return (y if bias is None else y + bias.double()).to(x.dtype)


def _far_apart() -> Tensor:
    """Gaps around each number of columns that fillers leave out; first, last and no columns."""
    mask = torch.zeros(12, 4096, dtype=torch.bool)
    for row, gap in enumerate((253, 254, 255, 256, 509, 510, 511, 765, 1300)):
        mask[row, gap :: gap + 1] = True
    mask[9, 0] = mask[10, -1] = True
    return mask


@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize("shape", SHAPES)
def test_gaps_unpack_to_what_was_packed(
    gpu_device: torch.device, density: float, shape: tuple[int, int]
) -> None:
    weight, mask = torch.randn(shape).bfloat16(), _mask(*shape, density)
    packed = delta.DeltaWeight.pack(weight.to(gpu_device), mask.to(gpu_device))
    assert torch.equal(packed.mask().cpu(), mask)
    assert torch.equal(packed.unpack().cpu(), torch.where(mask, weight, 0))


def test_gaps_take_the_bytes_that_they_promise(gpu_device: torch.device) -> None:
    weight = torch.ones(256, 1024, dtype=torch.bfloat16)
    for every in (2, 8, 16, 250):
        mask = torch.zeros(weight.shape, dtype=torch.bool)
        mask[:, ::every] = True  # no fillers but at ends of rows
        kept = int(mask.sum())
        packed = delta.DeltaWeight.pack(weight.to(gpu_device), mask.to(gpu_device))
        assert 3 * kept <= packed.nbytes <= 3 * (kept + 3 * 256) + 4 * 257
    mask = _mask(256, 1024, 0.08)
    packed = delta.DeltaWeight.pack(weight.to(gpu_device), mask.to(gpu_device))
    bitmaps = _gpu_packed.BitmapWeight.pack(weight.to(gpu_device), mask.to(gpu_device))
    assert packed.nbytes < bitmaps.nbytes


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize("m", [0, 1, 2, 3, 4])
def test_delta_product_is_exact(
    any_order: torch.device, m: int, density: float, dtype: torch.dtype
) -> None:
    torch.manual_seed(m)
    weight = _integers(21, 1100, dtype=dtype) * _mask(21, 1100, density)
    x, bias = _integers(m, 1100, dtype=dtype), _integers(21, dtype=dtype)
    packed = delta.DeltaWeight.pack(weight.to(any_order))
    y = delta.delta_gemv(x.to(any_order), packed, bias.to(any_order))
    assert y.dtype == dtype and torch.equal(y.cpu(), _product(x, weight, bias))


@pytest.mark.parametrize("shape", SHAPES)
def test_delta_product_of_any_shape(gpu_device: torch.device, shape: tuple[int, int]) -> None:
    torch.manual_seed(1)
    weight = _integers(*shape, dtype=torch.float16) * _mask(*shape, 0.3)
    packed = delta.DeltaWeight.pack(weight.to(gpu_device))
    for m in (1, 3):
        x = _integers(m, shape[1], dtype=torch.float16)
        y = delta.delta_gemv(x.to(gpu_device), packed)
        assert torch.equal(y.cpu(), _product(x, weight))


@pytest.mark.parametrize("m", [1, 4])
def test_gaps_longer_than_a_byte(any_order: torch.device, m: int) -> None:
    torch.manual_seed(2)
    mask = _far_apart()
    weight = torch.where(mask, _integers(*mask.shape, dtype=torch.bfloat16) + 5, 0)
    x = _integers(m, mask.shape[1], dtype=torch.bfloat16)
    packed = delta.DeltaWeight.pack(weight.to(any_order))
    assert torch.equal(packed.mask().cpu(), mask)
    assert torch.equal(delta.delta_gemv(x.to(any_order), packed).cpu(), _product(x, weight))


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("m", [1, 4])
def test_delta_product_of_floats(
    gpu_device: torch.device, monkeypatch: pytest.MonkeyPatch, m: int, dtype: torch.dtype
) -> None:
    """Within rounding of the exact one, with the same bits in any order of threads."""
    torch.manual_seed(3)
    weight = torch.randn(16, 4096).to(dtype) * _mask(16, 4096, 0.1)
    x, bias = torch.randn(m, 4096).to(dtype), torch.randn(16).to(dtype)
    packed = delta.DeltaWeight.pack(weight.to(gpu_device))
    results = []
    for order in ("forward", "reverse", "7"):
        monkeypatch.setenv("DOUBLESPARSE_EMULATION_ORDER", order)
        results.append(delta.delta_gemv(x.to(gpu_device), packed, bias.to(gpu_device)).cpu())
    assert all(torch.equal(y, results[0]) for y in results)
    exact = x.double() @ weight.double().t() + bias.double()
    size = x.double().abs() @ weight.double().abs().t() + bias.double().abs()
    n = (weight != 0).sum(1)
    bound = 2 * (n + 2) * 2**-24 * size + torch.finfo(dtype).eps / 2 * results[0].double().abs()
    assert ((results[0].double() - exact).abs() <= bound).all()


def test_only_kept_entries_count(gpu_device: torch.device) -> None:
    """Also where a filler stands, and where the last unit of a row is filled up; kept zeros do."""
    mask = _far_apart()
    weight = torch.where(mask, 1.0, 0.0).bfloat16()
    packed = delta.DeltaWeight.pack(weight.to(gpu_device))
    for bad in (torch.inf, -torch.inf, torch.nan):
        for row in range(len(mask)):
            x = torch.full((2, mask.shape[1]), bad, dtype=torch.bfloat16)
            x[:, mask[row]] = 1
            y = delta.delta_gemv(x.to(gpu_device), packed).cpu()
            assert (y[:, row] == mask[row].sum()).all()
            others = (mask & ~mask[row]).any(1)
            assert torch.equal(y.isfinite(), ~others.expand(2, -1))
    zeros = delta.DeltaWeight.pack(weight[9:].to(gpu_device) * 0, mask[9:].to(gpu_device))
    x = torch.full((1, mask.shape[1]), torch.inf, dtype=torch.bfloat16)
    got = delta.delta_gemv(x.to(gpu_device), zeros).cpu().isnan().tolist()
    assert got == [[True, True, False]]


def test_weights_that_are_not_finite(gpu_device: torch.device) -> None:
    weight = torch.zeros(3, 700, dtype=torch.float16)
    weight[0, 600], weight[1, 300], weight[2, 699] = torch.inf, torch.nan, 2
    packed = delta.DeltaWeight.pack(weight.to(gpu_device))
    y = delta.delta_gemv(torch.ones(1, 700, dtype=torch.float16, device=gpu_device), packed).cpu()
    assert y[0, 0] == torch.inf and y[0, 1].isnan() and y[0, 2] == 2


@pytest.mark.parametrize("m", [1, 4])
def test_wrong_structures_lead_nowhere(gpu_device: torch.device, m: int) -> None:
    """Columns past the row are not read (nor, under AddressSanitizer, anything else)."""
    weight = torch.ones(40, 300, dtype=torch.bfloat16) * _mask(40, 300, 0.2)
    x = torch.ones(m, 300, dtype=torch.bfloat16, device=gpu_device)
    for gap in (0, 7, 254, 255):
        packed = delta.DeltaWeight.pack(weight.to(gpu_device))
        packed.gaps.fill_(gap)
        assert delta.delta_gemv(x, packed).isfinite().all()
    for start in (-(2**31), -5, 7, 2**31 - 1):
        packed.starts.fill_(start)
        assert not delta.delta_gemv(x, packed).any()
    packed = delta.DeltaWeight.pack(weight.to(gpu_device))
    packed.starts[::2], packed.starts[1::2] = -(2**31), 2**31 - 1
    assert delta.delta_gemv(x, packed).isfinite().all()


def test_delta_errors_name_the_argument(gpu_device: torch.device) -> None:
    weight = torch.ones(8, 8, dtype=torch.bfloat16, device=gpu_device)
    packed = delta.DeltaWeight.pack(weight)
    x = weight[:2]
    with pytest.raises(TypeError, match="weight must be bfloat16 or float16"):
        delta.DeltaWeight.pack(weight.float())
    with pytest.raises(TypeError, match="mask must be bool"):
        delta.DeltaWeight.pack(weight, weight)
    with pytest.raises(ValueError, match="mask must have the shape"):
        delta.DeltaWeight.pack(weight, weight[:4] != 0)
    with pytest.raises(TypeError, match="x must be torch.bfloat16"):
        delta.delta_gemv(x.half(), packed)
    with pytest.raises(ValueError, match=r"x must be \(m, 8\)"):
        delta.delta_gemv(x[:, :4], packed)
    with pytest.raises(ValueError, match="x must have at most 4 rows, got 5"):
        delta.delta_gemv(weight[:5], packed)
    with pytest.raises(ValueError, match="bias must"):
        delta.delta_gemv(x, packed, torch.ones(3, device=gpu_device))


def test_the_binding_checks_what_it_is_given(gpu_device: torch.device) -> None:
    weight = torch.ones(8, 8, dtype=torch.bfloat16, device=gpu_device)
    packed = delta.DeltaWeight.pack(weight)
    x, y = weight[:2], torch.empty_like(weight[:2])
    good = {"x": x, "gaps": packed.gaps, "values": packed.values, "starts": packed.starts}
    good |= {"bias": None, "y": y}
    uneven = torch.zeros(len(packed.gaps) * 4 + 1, dtype=torch.uint8, device=gpu_device)
    wrong: list[tuple[str, Tensor, type[Exception], str]] = [
        ("x", x.float(), TypeError, "x must be bfloat16 or float16"),
        ("y", y.half(), TypeError, "y must"),
        ("y", y[:1], ValueError, "y must"),
        ("gaps", packed.gaps.int(), TypeError, "gaps must"),
        ("gaps", packed.gaps[:, :3].contiguous(), ValueError, "gaps must"),
        ("gaps", uneven[1:].view(-1, 4), ValueError, "gaps must begin at 4 bytes"),
        ("values", packed.values[1:], ValueError, "values must"),
        ("values", packed.values.half(), TypeError, "values must"),
        ("starts", packed.starts[1:], ValueError, "starts must"),
        ("starts", packed.starts.long(), TypeError, "starts must"),
        ("bias", torch.ones(8, device=gpu_device).half(), TypeError, "bias must"),
        ("y", x, ValueError, "y"),
    ]
    gpu().delta_gemv(**good)
    for name, value, error, text in wrong:
        with pytest.raises(error, match=text):
            gpu().delta_gemv(**{**good, name: value})


@pytest.mark.usefixtures("traffic")
@pytest.mark.parametrize("dtype", HALVES)
def test_packed_weights_have_gaps_where_these_are_fewer_bytes(dtype: torch.dtype) -> None:
    torch.manual_seed(4)
    for density, expected in ((0.04, True), (0.3, False)):
        mask = _mask(64, 640, density)
        weight = _integers(64, 640, dtype=torch.float32)
        packed = ds.PackedWeight.pack(weight, mask, dtype=dtype).to("cuda")
        for m in (5, 4, 1):
            x, bias = _integers(m, 640, dtype=dtype), _integers(64, dtype=dtype)
            y = ds.functional.spmm(packed, x.to("cuda"), bias.to("cuda"))
            want = _product(x, torch.where(mask, weight, 0), bias)
            assert torch.equal(y.cpu(), want)
            assert (packed._forms.get("gpu delta") is not None) == (expected and m < 5)


@pytest.mark.usefixtures("traffic")
def test_gaps_are_not_made_while_a_graph_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = ds.PackedWeight.pack(torch.eye(64).bfloat16()).to("cuda")
    x = _integers(1, 64, dtype=torch.bfloat16)
    with monkeypatch.context() as capture:
        capture.setattr(torch.cuda, "is_initialized", lambda: True)
        capture.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        assert torch.equal(ds.functional.spmm(packed, x.to("cuda")).cpu(), x)
    assert "gpu delta" not in packed._forms
    assert torch.equal(ds.functional.spmm(packed, x.to("cuda")).cpu(), x)
    assert packed._forms["gpu delta"] is not None
