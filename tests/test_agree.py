"""`most_agreeing` against plain numpy: both ways, both dtypes, boundaries, malformed operands."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from doublesparse import _C
from doublesparse._code_ops import most_agreeing

WAYS = ("compare", "lists")
Operands = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def oracle(codes: torch.Tensor, columns: torch.Tensor, centers: torch.Tensor) -> np.ndarray:
    """Counts of equal codes, centre by centre; numpy's arg max takes the lowest index."""
    voting = codes.numpy()[columns.numpy()]
    counts = np.stack(
        [(voting == centers.numpy()[:, c, None]).sum(axis=0) for c in range(centers.shape[1])]
    )
    return counts.argmax(axis=0)


def sample(
    n: int, s: int, k: int, top: int, dtype: torch.dtype = torch.uint16, seed: int = 0
) -> Operands:
    """Codes below `top`; the centres are points, as in a network."""
    rng = np.random.default_rng(seed)
    kind = np.uint8 if dtype == torch.uint8 else np.uint16
    codes = rng.integers(0, top, (s + 3, n)).astype(kind)
    columns = rng.integers(0, s + 3, s)
    points = rng.integers(0, n, k) if n else np.zeros(k, dtype=int)
    centers = codes[columns][:, points] if n else np.zeros((s, k), dtype=kind)
    return torch.from_numpy(codes), torch.from_numpy(columns), torch.from_numpy(centers.copy())


def check(operands: Operands) -> None:
    """Every way, and the choice, give the oracle's answer."""
    wanted = oracle(*operands)
    for way in (*WAYS, None):
        got = most_agreeing(*operands, way=way)
        assert got.dtype == (torch.uint8 if operands[2].shape[1] <= 256 else torch.uint16)
        np.testing.assert_array_equal(got.numpy(), wanted, err_msg=str(way))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16])
@pytest.mark.parametrize("k", [1, 4, 5, 6, 15, 63, 64, 65, 255, 256, 257, 700])
def test_against_numpy(dtype: torch.dtype, k: int) -> None:
    check(sample(157, 23, k, min(2 * k, 256), dtype, seed=k))


@pytest.mark.parametrize("n", [1, 2, 15, 16, 17, 31, 32, 33, 63, 64, 65, 1023, 1024, 1025, 2051])
def test_any_number_of_points(n: int) -> None:
    check(sample(n, 9, 12, 20, torch.uint8, seed=n))
    check(sample(n, 9, 12, 20, torch.uint16, seed=n))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16])
@pytest.mark.parametrize("s", [1, 2, 254, 255, 256, 257, 510, 511, 700])
def test_counters_do_not_overflow(dtype: torch.dtype, s: int) -> None:
    codes, columns, centers = sample(70, s, 11, 3, dtype, seed=s)
    codes[:, :20] = 1  # every vote of a point goes to one centre
    centers[:, 7] = 1
    check((codes, columns, centers))


@pytest.mark.parametrize("s", [65535, 65536, 65537, 131071])
def test_wide_counters(s: int) -> None:
    codes, columns, centers = sample(18, s, 7, 3, torch.uint16, seed=s)
    codes[:, :9] = 2
    centers[:, 5] = 2
    check((codes, columns, centers))


@given(data=st.data())
def test_any_operands(data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from([torch.uint8, torch.uint16]))
    n, s, k = (data.draw(st.integers(1, most)) for most in (80, 40, 90))
    top = data.draw(st.sampled_from([1, 2, 5, 256 if dtype == torch.uint8 else 65536]))
    check(sample(n, s, k, top, dtype, data.draw(st.integers(0, 2**16))))


def test_ties_take_the_lowest_index() -> None:
    codes = torch.tensor([[0, 1, 9], [0, 1, 9]], dtype=torch.uint16)
    centers = torch.tensor([[5, 1, 0, 0, 1], [1, 0, 5, 5, 0]], dtype=torch.uint16)
    for way in WAYS:
        # 0: centres 1, 2, 3 and 4 get one vote each; 1: so do 0, 1 and 4; 2: no vote agrees.
        assert most_agreeing(codes, torch.tensor([0, 1]), centers, way=way).tolist() == [1, 0, 0]


def test_codes_that_no_centre_has() -> None:
    codes, columns, centers = sample(50, 6, 30, 40)
    codes[:, 10:20] = 65535
    codes[:, 20:30] = 41
    check((codes, columns, centers))


def test_long_lists() -> None:
    codes, columns, centers = sample(60, 8, 300, 4)  # 75 centres in a list
    check((codes, columns, centers))
    check((codes, columns, torch.zeros_like(centers)))
    for length in range(1, 8):
        centers = torch.arange(40, dtype=torch.int32).clamp(max=40 - length).to(torch.uint16)
        check((codes, columns, centers.repeat(8, 1)))


@pytest.mark.parametrize("k", [65280, 65281, 65536])
def test_most_centres(k: int) -> None:
    codes, columns, centers = sample(5, 3, k, 65536, seed=3)
    codes[:, :3] = centers[:, [k - 1, 300, k - 2]][[2, 0, 1]].sort(0).values.repeat(2, 1)
    wanted = oracle(codes, columns, centers)
    ways = WAYS if k <= 65280 else ("compare", None)
    for way in ways:
        np.testing.assert_array_equal(most_agreeing(codes, columns, centers, way=way), wanted)
    if k > 65280:
        with pytest.raises(ValueError, match="too many for lists"):
            most_agreeing(codes, columns, centers, way="lists")


@pytest.mark.parametrize("way", WAYS)
def test_threads_and_batches_do_not_matter(way: str) -> None:
    codes, columns, centers = sample(5000, 20, 60, 100)
    whole = most_agreeing(codes, columns, centers, way=way)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert torch.equal(most_agreeing(codes, columns, centers, way=way), whole)
    finally:
        torch.set_num_threads(threads)
    parts = [
        most_agreeing(part.contiguous(), columns, centers, way=way)
        for part in codes.split([1, 1030, 969, 3000], dim=1)
    ]
    assert torch.equal(torch.cat(parts), whole)


def test_no_points() -> None:
    for way in (*WAYS, None):
        got = most_agreeing(*sample(0, 4, 300, 5), way=way)
        assert got.shape == (0,)
        assert got.dtype == torch.uint16


def test_writes_into_out() -> None:
    operands = sample(100, 9, 30, 50)
    rows = torch.zeros(3, 100, dtype=torch.uint16)
    assert most_agreeing(*operands, out=rows[1]).data_ptr() == rows[1].data_ptr()
    np.testing.assert_array_equal(rows[1], oracle(*operands))
    assert not rows[[0, 2]].any()


def test_choice_follows_the_operands() -> None:
    def lists(k: int, top: int, n: int) -> bool:
        operands = sample(2000, 50, k, top)
        histogram = torch.empty(65537, dtype=torch.int64)
        return _C.plan_agreeing(operands[2], histogram, n, 1)[1]

    assert lists(2000, 4000, 70000)
    assert not lists(15, 30, 70000)
    assert not lists(2000, 2, 70000)  # 1000 centres in a list
    assert not lists(2000, 60000, 1)  # lists longer to build than to compare


GOOD = sample(40, 6, 8, 12)
MALFORMED = {
    "codes float": ({"codes": torch.zeros(9, 40)}, TypeError, "codes must be uint8 or uint16"),
    "codes int16": (
        {"codes": torch.zeros(9, 40, dtype=torch.int16)},
        TypeError,
        "codes must be uint8 or uint16",
    ),
    "dtypes differ": (
        {"codes": torch.zeros(9, 40, dtype=torch.uint8)},
        TypeError,
        "codes must be uint16, got uint8",
    ),
    "codes 1-D": ({"codes": GOOD[0][0]}, ValueError, "codes must have shape"),
    "codes strided": ({"codes": GOOD[0][:, ::2]}, ValueError, "codes must be contiguous"),
    "columns int32": ({"columns": GOOD[1].int()}, TypeError, "columns must be int64, got int32"),
    "columns short": ({"columns": GOOD[1][:5]}, ValueError, "columns must have shape"),
    "column high": (
        {"columns": torch.tensor([0, 1, 2, 3, 4, 9])},
        ValueError,
        r"columns must lie in \[0, 9\), got 9",
    ),
    "column low": (
        {"columns": torch.tensor([0, 1, 2, 3, 4, -1])},
        ValueError,
        r"columns must lie in \[0, 9\), got -1",
    ),
    "no votes": (
        {"columns": GOOD[1][:0], "center_codes": GOOD[2][:0]},
        ValueError,
        "s must be at least 1, got 0",
    ),
    "no centres": (
        {"center_codes": GOOD[2][:, :0].contiguous()},
        ValueError,
        "k must be at least 1, got 0",
    ),
    "too many centres": (
        {"center_codes": torch.zeros(6, 65537, dtype=torch.uint16)},
        ValueError,
        "at most 65536 columns, got 65537",
    ),
    "centres 1-D": ({"center_codes": GOOD[2][0]}, ValueError, "center_codes must have shape"),
    "out short": ({"out": torch.zeros(39, dtype=torch.uint8)}, ValueError, "out must have shape"),
    "out int64": (
        {"out": torch.zeros(40, dtype=torch.int64)},
        TypeError,
        "out must be uint8 or uint16",
    ),
    "out narrow": (
        {
            "center_codes": torch.zeros(6, 257, dtype=torch.uint16),
            "out": torch.zeros(40, dtype=torch.uint8),
        },
        ValueError,
        "out must be uint16 for 257 centres, got uint8",
    ),
    "out overlaps": ({"out": GOOD[0][2]}, ValueError, "out overlaps codes"),
    "way": ({"way": "fast"}, ValueError, "way must be None"),
    "meta": (
        {"codes": torch.zeros(9, 40, dtype=torch.uint16, device="meta")},
        RuntimeError,
        "codes must be on the CPU, got meta",
    ),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed(name: str) -> None:
    changed, error, text = MALFORMED[name]
    arguments = dict(zip(("codes", "columns", "center_codes"), GOOD, strict=True))
    with pytest.raises(error, match=text):
        most_agreeing(**{**arguments, **changed})
