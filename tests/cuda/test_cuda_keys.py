"""Linear keys on the device."""

from __future__ import annotations

import pytest
import torch

from doublesparse import _gpu_ops as gpu_ops
from doublesparse import ops


@pytest.mark.parametrize("n", [0, 1, 31, 1000])
def test_keys_are_the_cpus_and_lead_back(gpu_device: torch.device, n: int) -> None:
    shape = (2**20, 2**15, 9)
    high = torch.tensor([3, *shape])
    coords = (torch.rand(n, 4, dtype=torch.float64) * high).to(torch.int32)
    keys = gpu_ops.linear_keys(coords.to(gpu_device), shape)
    assert torch.equal(keys.cpu(), ops.linear_keys(coords, shape))
    assert torch.equal(gpu_ops.coords_of_keys(keys, shape).cpu(), coords)


def test_errors_name_the_argument(gpu_device: torch.device) -> None:
    with pytest.raises(TypeError, match="coords must be int32"):
        gpu_ops.linear_keys(torch.zeros(1, 3, dtype=torch.int64, device=gpu_device), (4, 4))
