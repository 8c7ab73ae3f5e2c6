"""Pruned weights on a GPU, against dense torch (cuBLAS) and torch's CSR (cuSPARSE)."""

from __future__ import annotations

import importlib
import warnings

import torch
import torch.nn.functional as F
from torch import Tensor

from cuda_harness import Bench, rows_close
from doublesparse._torch_compat import tf32_allowed
from doublesparse.bench import Action

ROTATED_BYTES = 256 << 20


def _random(shape: tuple[int, ...], bench: Bench, dtype: torch.dtype, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(dtype).to(bench.device)


def _mask(shape: tuple[int, ...], percent: int, bench: Bench, seed: int) -> Tensor:
    """Exactly this percentage is zero, anywhere."""
    generator = torch.Generator().manual_seed(seed)
    n = shape[0] * shape[1]
    mask = torch.zeros(n, dtype=torch.bool)
    mask[torch.randperm(n, generator=generator)[: n - n * percent // 100]] = True
    return mask.view(shape).to(bench.device)


def spmm(bench: Bench, percent: int, size: int = 4096, m: int = 512) -> None:
    """Products with W^T in float32, TF32 off; the better of dense and cuSPARSE is the peer."""
    gpu_spmm = importlib.import_module("doublesparse._gpu_spmm")
    before = tf32_allowed()
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        mask = _mask((size, size), percent, bench, 1)
        weight = _random((size, size), bench, torch.float32, 2) * mask
        x = _random((m, size), bench, torch.float32, 3)
        packed = gpu_spmm.PackedValues(gpu_spmm.GpuCsr(mask).forward, weight[mask])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch calls CSR a beta feature
            csr = weight.to_sparse_csr()
        columns = x.t().contiguous()
        actions: dict[str, Action] = {
            "ours": lambda: gpu_spmm.product(x, packed),
            "dense": lambda: F.linear(x, weight),
            "torch CSR": lambda: csr @ columns,  # given, and giving, columns: nothing is transposed
        }
        rows_close(gpu_spmm.product(x, packed), F.linear(x, weight), 1e-4)
        kept = int(mask.sum())
        times = bench.device_times(actions)
        note = f"{kept} kept, warm; {_medians(times)}"
        bench.add(f"spmm-{percent}", times, 2.0 * m * kept, note=note)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def _medians(times: dict[str, list[float]]) -> str:
    return ", ".join(f"{k} {1e3 * sorted(v)[len(v) // 2]:.3f} ms" for k, v in times.items())


def bitmap(
    bench: Bench, percent: int, shape: tuple[int, int] = (4096, 4096), rotated: int = ROTATED_BYTES
) -> None:
    """Few rows against a weight that is read from memory: as many weights as `rotated` bytes hold.

    One graph multiplies by each of them in turn; the dense product has its own, as many bytes.
    """
    kernels = importlib.import_module("doublesparse._gpu_bitmap")
    n_rows, n_columns = shape
    mask = _mask(shape, percent, bench, 1)
    dense = _random(shape, bench, torch.bfloat16, 2) * mask
    first = kernels.BitmapWeight.pack(dense, mask)
    n_packed = max(2, -(-rotated // first.nbytes))
    n_dense = max(2, -(-rotated // (dense.numel() * 2)))
    packed = [first] + [kernels.BitmapWeight.pack(dense, mask) for _ in range(n_packed - 1)]
    weights = [dense] + [dense.clone() for _ in range(n_dense - 1)]
    for m in (1, 4, 16):
        x = _random((m, n_columns), bench, torch.bfloat16, 3)
        rows_close(kernels.bitmap_spmm(x, first), F.linear(x, dense), 0.02)

        def ours(x: Tensor = x) -> None:
            for weight in packed:
                kernels.bitmap_spmm(x, weight)

        def theirs(x: Tensor = x) -> None:
            for weight in weights:
                F.linear(x, weight)

        replays = {"ours": bench.graphed(ours), "dense": bench.graphed(theirs)}
        times = bench.device_times(replays)
        per_product = {
            "ours": [t / n_packed for t in times["ours"]],
            "dense": [t / n_dense for t in times["dense"]],
        }
        ours_ms = 1e3 * sorted(per_product["ours"])[len(times["ours"]) // 2]
        bench.add(
            f"bitmap-{percent}-{n_columns}-{m}",
            per_product,
            gbs=first.nbytes / ours_ms / 1e6,
            note=f"{n_packed} and {n_dense} weights in turn, bytes {_saved(dense, first.nbytes)} x",
        )


def _saved(dense: Tensor, n_bytes: int) -> str:
    return f"{dense.numel() * dense.element_size() / n_bytes:.2f}"


def blocks(bench: Bench, percent: int, block: int, size: int = 4096) -> None:
    """Products with W^T in bf16 with whole blocks pruned, as many rows as columns."""
    kernels = importlib.import_module("doublesparse._gpu_blocks")
    grid = (size // block, size // block)
    kept = _mask(grid, percent, bench, 1)
    mask = kept.repeat_interleave(block, 0).repeat_interleave(block, 1)
    weight = _random((size, size), bench, torch.bfloat16, 2) * mask
    x = _random((size, size), bench, torch.bfloat16, 3)
    packed = kernels.BlockWeight.pack(weight, mask, block)
    rows_close(kernels.block_spmm(x, packed), F.linear(x, weight), 0.02)
    times = bench.device_times(
        {"ours": lambda: kernels.block_spmm(x, packed), "dense": lambda: F.linear(x, weight)}
    )
    flops = 2.0 * size * int(mask.sum())
    bench.add(f"block-{block}-{percent}", times, flops, note=f"{int(kept.sum())} blocks kept, warm")
