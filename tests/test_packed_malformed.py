"""`ds.PackedWeight`: what is wrong is refused, with the reason."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

import doublesparse as ds
from packed import examples

WEIGHT = torch.ones(4, 6)
WRONG_ARGUMENTS = [
    (([[1.0]],), TypeError, "weight must be a Tensor, got list"),
    ((torch.ones(4, 6, dtype=torch.int64),), TypeError, "weight must be one of"),
    ((torch.ones(4, 6).to_sparse(),), TypeError, "weight must be a strided tensor"),
    ((torch.ones(4, 6, device="meta"),), NotImplementedError, "must be on cpu or cuda, got meta"),
    ((torch.ones(4),), ValueError, r"shape must be \(c_out, c_in, \*kernel\), got \(4,\)"),
    ((torch.ones(()),), ValueError, "shape must be"),
    ((torch.ones(1, 1).expand(1, 2**31),), ValueError, r"at most 2\^31 - 1"),
    ((WEIGHT, torch.ones(4, 6)), TypeError, "mask must be one of"),
    ((WEIGHT, torch.ones(6, 4, dtype=torch.bool)), ValueError, r"the weight's shape \(4, 6\)"),
    ((WEIGHT, [True]), TypeError, "mask must be a Tensor"),
    ((WEIGHT, None, "block"), TypeError, "pattern must be a pattern object"),
    ((WEIGHT, None, ds.Block), TypeError, "pattern must be a pattern object"),
    ((WEIGHT, None, ds.NM(2, 4)), ValueError, r"mask must be of NM\(n=2, m=4\), got 4"),
    ((WEIGHT, None, ds.TopKRows(5)), ValueError, "mask must be of TopKRows.*got 6"),
    ((WEIGHT, None, ds.TopKColumns(3)), ValueError, "mask must be of TopKColumns.*got 4"),
    ((WEIGHT, torch.eye(4, 6) > 0, ds.Block(2, 2)), ValueError, "must keep whole blocks"),
    ((WEIGHT, None, None, torch.int32), TypeError, "dtype must be one of"),
    ((WEIGHT, None, None, "int8"), TypeError, "dtype must be one of"),
]


@pytest.mark.parametrize("arguments, error, text", WRONG_ARGUMENTS)
def test_wrong_arguments(arguments, error, text) -> None:
    with pytest.raises(error, match="PackedWeight.pack: .*" + text + ".*; "):
        ds.PackedWeight.pack(*arguments)


def test_other_patterns_are_refused() -> None:
    """A pattern that nobody knows how to store."""

    class Mine(ds.Unstructured):
        pass

    with pytest.raises(TypeError, match="pattern must be one of doublesparse"):
        ds.PackedWeight.pack(WEIGHT, None, Mine())


def test_another_device() -> None:
    with pytest.raises(NotImplementedError, match="device must be cpu or cuda, got meta"):
        ds.PackedWeight.pack(WEIGHT).to("meta")


def changed(tensors: dict, **changes) -> dict:
    return {k: v for k, v in (tensors | changes).items() if v is not None}


def meta_with(packed: ds.PackedWeight, index: int, value: int) -> Tensor:
    meta = packed.tensors()["meta"].clone()
    meta[index] = value
    return meta


def corruptions() -> list:
    dense = ds.PackedWeight.pack(torch.rand(4, 50) + 1)
    thin = ds.PackedWeight.pack((torch.arange(400) % 40 == 7).float().view(4, 100))
    coded = ds.PackedWeight.pack(torch.rand(4, 50), dtype=torch.int8)
    block = ds.PackedWeight.pack(torch.rand(4, 50), pattern=ds.Block(2, 2))
    rows = ds.PackedWeight.pack(torch.eye(4, 6), pattern=ds.TopKRows(1))
    d, t, c, b = (p.tensors() for p in (dense, thin, coded, block))
    assert "bitmask" in d and "gaps" in t
    gaps = t["gaps"]
    return [
        (changed(d, meta=None), "names must include"),
        (changed(d, values=None), "names must include"),
        (changed(d, bitmask=None), "names must be"),
        (changed(d, gaps=gaps), "names must be"),
        (changed(d, more=gaps), "names must be"),
        (changed(d, scales=torch.ones(4)), "names must be"),
        (changed(c, scales=None), "names must be"),
        (changed(c, scales=torch.ones(5)), "scales must be"),
        (changed(c, scales=torch.ones(4, dtype=torch.float16)), "scales must be"),
        (changed(c, scales=torch.tensor([1.0, math.nan, 1.0, 1.0])), "positive and finite"),
        (changed(c, scales=torch.tensor([1.0, 0.0, 1.0, 1.0])), "positive and finite"),
        (changed(d, values=d["values"][1:]), "values must have shape"),
        (changed(d, values=d["values"].view(2, -1)), "values must have shape"),
        (changed(d, values=d["values"].long()), "values must be one of"),
        (changed(b, values=b["values"].view(-1)), "values must have shape"),
        (changed(d, meta=meta_with(dense, 0, 2)), "must be of version 1, got 2"),
        (changed(d, meta=meta_with(dense, 0, -1)), "must be of version 1, got -1"),
        (changed(d, meta=meta_with(dense, 1, 3)), "must count 200 kept weights, got 3"),
        (changed(d, meta=meta_with(dense, 1, -3)), "must keep 0 to 200"),
        (changed(d, meta=meta_with(dense, 2, 5)), "one of 5 patterns"),
        (changed(d, meta=meta_with(dense, 2, -1)), "one of 5 patterns"),
        (changed(d, meta=meta_with(dense, 3, 1)), "must have 0 parameters"),
        (changed(b, meta=meta_with(block, 3, 0)), "parameters of a pattern"),
        (changed(b, meta=meta_with(block, 3, 2**62)), "must"),
        (changed(d, meta=meta_with(dense, 5, -4)), "shape must be"),
        (changed(d, meta=meta_with(dense, 5, 2**62)), "shape must"),
        (changed(d, meta=meta_with(dense, 6, 2**62)), "shape must"),
        (changed(d, meta=meta_with(dense, 5, 5)), "bitmask must be"),
        (changed(d, meta=d["meta"][:3]), "at least 7 numbers"),
        (changed(d, meta=d["meta"][:6]), "at least 7 numbers"),
        (changed(d, meta=d["meta"][:0]), "meta must be int64"),
        (changed(d, meta=d["meta"].float()), "meta must be int64"),
        (changed(d, bitmask=d["bitmask"][1:]), "bitmask must be"),
        (changed(d, bitmask=d["bitmask"].to(torch.int8)), "bitmask must be"),
        (changed(d, bitmask=torch.zeros_like(d["bitmask"])), "values must have shape"),
        (changed(t, gaps=gaps[1:]), "values must have shape"),
        (changed(t, gaps=gaps.float()), "gaps must be uint8 or int16"),
        (changed(t, gaps=gaps.view(2, -1)), "gaps must be uint8 or int16"),
        (changed(t, gaps=torch.full_like(gaps, 254)), "must stay below 400 units"),
        (changed(t, gaps=torch.full_like(gaps, 255)), "end with a kept unit"),
        (changed(t, gaps=-gaps.to(torch.int16)), "at least 0"),
        (changed(t, gaps=gaps.new_zeros(401)), "at most 400"),
        (changed(rows.tensors(), meta=meta_with(rows, 3, 0)), "must be of TopKRows"),
    ]


@pytest.mark.parametrize("number", range(len(corruptions())))
def test_corrupted_tensors(number: int) -> None:
    """A ValueError that says what is wrong, never a crash."""
    tensors, text = corruptions()[number]
    with pytest.raises(ValueError, match="PackedWeight.from_tensors: .*" + text):
        ds.PackedWeight.from_tensors(tensors)


def test_no_tensors_at_all() -> None:
    good = ds.PackedWeight.pack(WEIGHT).tensors()
    for wrong in (None, 3, [good], {**good, "values": [1.0]}):
        with pytest.raises(TypeError, match="PackedWeight.from_tensors: "):
            ds.PackedWeight.from_tensors(wrong)
    with pytest.raises(NotImplementedError, match="values must be on cpu or cuda"):
        ds.PackedWeight.from_tensors({**good, "values": good["values"].to("meta")})


def test_bits_behind_the_last_are_zero() -> None:
    good = ds.PackedWeight.pack(torch.ones(1, 5)).tensors()
    with pytest.raises(ValueError, match="must be 0 behind its 5 bits"):
        ds.PackedWeight.from_tensors({**good, "bitmask": good["bitmask"] | 128})


def test_tensors_that_were_written_to() -> None:
    """They are the packed weight's own: writing to them is a mistake that is seen, not a crash."""
    packed = ds.PackedWeight.pack(torch.ones(8, 8))
    packed.tensors()["bitmask"][:] = 1
    for use in (packed.unpack, packed.mask, packed.csr):
        with pytest.raises(ValueError, match="do not write to what tensors"):
            use()


def test_random_bytes(rng) -> None:
    """A wrong byte in what says where values belong: read as something, or refused."""
    for packed in examples():
        for name in packed.tensors():
            for _ in range(10):
                tensors = {k: v.clone() for k, v in packed.tensors().items()}
                if name == "values" or tensors[name].numel() == 0:
                    continue
                flat = tensors[name].numpy().reshape(-1).view(np.uint8)
                flat[rng.integers(flat.size)] = rng.integers(256)
                try:
                    again = ds.PackedWeight.from_tensors(tensors)
                except ValueError:
                    continue
                if again.numel() < 10**6:  # a larger weight may have as few kept ones
                    assert len(again.csr()[1]) == again.n_kept == int(again.mask().sum())
