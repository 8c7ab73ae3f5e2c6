"""Kernels on a GPU where there is one, else emulated: the same sources, run thread by thread."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator

import pytest
import torch
from emulated_device import Traffic, emulated_cuda

from doublesparse import _C, _device
from doublesparse._torch_compat import tf32_allowed

# Another build of the emulated kernels than the package's: `make cuda-memcheck`.
if emulated_path := os.environ.get("DOUBLESPARSE_EMULATED_PATH"):
    spec = importlib.util.spec_from_file_location("doublesparse._emulated", emulated_path)
    assert spec is not None and spec.loader is not None
    sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[spec.name])

ORDERS = ("forward", "reverse", "7")
"""Orders in which the emulation runs threads: a missing barrier shows as a difference."""


def has_gpu() -> bool:
    return bool(_C.has_cuda) and torch.cuda.is_available()


@pytest.fixture(scope="session")
def gpu_device() -> Iterator[torch.device]:
    """Where tensors for `_gpu_ops` belong: a CUDA device, or the CPU with emulated kernels."""
    if has_gpu():
        yield torch.device("cuda")
        return
    emulated = pytest.importorskip(
        "doublesparse._emulated", reason="no GPU, and built without DOUBLESPARSE_EMULATED"
    )
    before = _device.use(emulated)
    yield torch.device("cpu")
    _device.use(before)


@pytest.fixture
def traffic() -> Iterator[Traffic]:
    """A device "cuda": a GPU, which is not watched, or the emulated one, which counts traffic."""
    if has_gpu():
        yield Traffic()
        return
    kernels = pytest.importorskip("doublesparse._emulated", reason="no emulated kernels")
    with emulated_cuda(kernels) as counted:
        yield counted


@pytest.fixture(params=ORDERS)
def any_order(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, gpu_device: torch.device
) -> torch.device:
    """`gpu_device`, once for every order of threads (a GPU has its own)."""
    if gpu_device.type == "cuda" and request.param != ORDERS[0]:
        pytest.skip("a GPU orders its threads itself")
    monkeypatch.setenv("DOUBLESPARSE_EMULATION_ORDER", request.param)
    return gpu_device


@pytest.fixture
def tf32() -> Iterator[None]:
    """TF32 is allowed in float32 products."""
    before = tf32_allowed()
    torch.backends.cuda.matmul.allow_tf32 = True
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


@pytest.fixture(scope="session")
def n_multiprocessors(gpu_device: torch.device) -> int:
    """Of the device; the emulation says 4."""
    if gpu_device.type != "cuda":
        return 4
    return torch.cuda.get_device_properties(gpu_device).multi_processor_count


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """DOUBLESPARSE_ONE_OF_EACH=1 keeps one case of each test: for tools that take a hundredfold."""
    if not os.environ.get("DOUBLESPARSE_ONE_OF_EACH"):
        return
    first: dict[str, pytest.Item] = {}
    for item in items:
        first.setdefault(item.nodeid.partition("[")[0], item)
    kept = set(map(id, first.values()))
    config.hook.pytest_deselected(items=[item for item in items if id(item) not in kept])
    items[:] = first.values()
