"""The others for pruned weights: y = x W^T by dense torch, by sparse libraries, by DeepSparse.

A peer takes a weight with zeros and an input and hands out an action that computes y, with rows in
and rows out as torch has them: what it transposes or copies to get there is inside its time, what
it prepares once per weight (a format, an inspection, a compilation) is not. Each is compared with
the dense product before it is timed: a peer that computes something else is no peer.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

Action = Callable[[], torch.Tensor]


@dataclass(frozen=True)
class Peer:
    """One way to compute x W^T; `probe` imports what it needs and raises where that is missing."""

    name: str
    make: Callable[[torch.Tensor, torch.Tensor], Action]
    probe: Callable[[], object] = lambda: None
    needs: str = ""

    def unavailable(self) -> str | None:
        """Why this peer cannot run here, or None."""
        try:
            self.probe()
        except Exception as error:  # a broken binary wheel may raise anything at import
            return f"{self.name}: {type(error).__name__}: {error}"
        return None

    def action(self, weight: torch.Tensor, x: torch.Tensor) -> Action:
        """The product as an action, compared once with the dense one.

        Args:
            weight: (n, k) with zeros.
            x: (m, k), contiguous.

        Raises:
            ArithmeticError: it computes something else.
        """
        run = self.make(weight, x)
        check(self.name, run(), weight, x)
        return run


def check(name: str, y: torch.Tensor, weight: torch.Tensor, x: torch.Tensor) -> None:
    """Compares some rows and columns with float64, to what rounding can do in any order of sums.

    Raises:
        ArithmeticError: y is no row-major x W^T.
    """
    some = slice(None, None, len(x) // 16 + 1), slice(None, None, len(weight) // 256 + 1)
    a, b = x[some[0]].double(), weight[some[1]].double().t()
    unit = torch.finfo(torch.float32).eps / 2
    bound = 2 * (weight.shape[1] + 2) * unit * (a.abs() @ b.abs())
    if x.dtype != torch.float32:
        bound += torch.finfo(x.dtype).eps * (a @ b).abs()
    if y.shape != (len(x), len(weight)) or not y.is_contiguous():
        raise ArithmeticError(f"{name}: got {tuple(y.shape)} with strides {y.stride()}")
    worst = ((y[some].double() - a @ b).abs() - bound).max().item()
    if not worst <= 0:
        raise ArithmeticError(f"{name}: off the dense product by {worst:.2e} more than rounding")


def dense_actions(weight: torch.Tensor, x: torch.Tensor) -> dict[str, Action]:
    """Torch's dense products, float32 or bfloat16; the fastest counts.

    Packing the weight ahead pays for few rows; MKL's (float32) is left out above them, where it has
    never been the fastest and a call takes a quarter of a second.
    """
    candidates = [LINEAR, ONEDNN]
    if len(x) <= 64 and x.dtype == torch.float32:
        candidates.append(MKL_DENSE)
    return {peer.name: peer.action(weight, x) for peer in candidates if peer.unavailable() is None}


def _linear(weight: torch.Tensor, x: torch.Tensor) -> Action:
    return lambda: F.linear(x, weight)


def _onednn(weight: torch.Tensor, x: torch.Tensor) -> Action:
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, len(x))
    return lambda: torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")


def _mkl_dense(weight: torch.Tensor, x: torch.Tensor) -> Action:
    packed = torch.ops.mkl._mkl_reorder_linear_weight(weight, len(x))
    return lambda: torch.ops.mkl._mkl_linear(x, packed, weight, None, len(x))


LINEAR = Peer("torch F.linear", _linear)
ONEDNN = Peer(
    "torch oneDNN prepacked", _onednn, probe=lambda: torch.ops.mkldnn._reorder_linear_weight
)
MKL_DENSE = Peer(
    "torch MKL prepacked", _mkl_dense, probe=lambda: torch.ops.mkl._mkl_reorder_linear_weight
)


def _torch_csr(weight: torch.Tensor, x: torch.Tensor) -> Action:
    sparse = weight.to_sparse_csr()
    return lambda: (sparse @ x.t()).t().contiguous()


def torch_bsr(rows: int, columns: int) -> Peer:
    """Torch's block format, for weights pruned in such blocks."""

    def make(weight: torch.Tensor, x: torch.Tensor) -> Action:
        sparse = weight.to_sparse_bsr((rows, columns))
        return lambda: (sparse @ x.t()).t().contiguous()

    return Peer(f"torch BSR {rows}x{columns}", make)


def _scipy_csr(weight: torch.Tensor, x: torch.Tensor) -> Action:
    import scipy.sparse

    sparse, dense = scipy.sparse.csr_matrix(weight.numpy()), x.numpy()
    return lambda: torch.from_numpy(np.ascontiguousarray((sparse @ dense.T).T))


def _probe_scipy() -> None:
    import scipy.sparse  # noqa: F401


class _Description(ctypes.Structure):
    """`struct matrix_descr`: a general matrix."""

    _fields_ = [("type", ctypes.c_int), ("mode", ctypes.c_int), ("diag", ctypes.c_int)]


_GENERAL = _Description(20, 0, 0)
_AS_IS, _ROW_MAJOR, _COLUMN_MAJOR = 10, 101, 102


def _mkl_library() -> str:
    """Path of mkl_rt in the installed distribution `mkl`."""
    files = importlib.metadata.distribution("mkl").files or []
    found = [str(f.locate()) for f in files if f.name.startswith("libmkl_rt.so")]
    if not found:
        raise ImportError("the distribution mkl holds no libmkl_rt.so")
    return os.path.realpath(found[0])


def _mkl() -> ctypes.CDLL:
    """MKL's one-library interface, on one thread and without an OpenMP runtime of its own."""
    os.environ.setdefault("MKL_THREADING_LAYER", "SEQUENTIAL")
    return ctypes.CDLL(_mkl_library())


def _mkl_sparse(layout: int) -> Callable[[torch.Tensor, torch.Tensor], Action]:
    """The inspector-executor, told what will come.

    x by rows is x^T by columns, so that layout needs no transposition. By rows MKL's kernel is
    another one; x and y are then transposed by torch, inside the time.
    """

    def make(weight: torch.Tensor, x: torch.Tensor) -> Action:
        mkl = _mkl()
        sparse = weight.to_sparse_csr()
        index = [part.int().numpy() for part in (sparse.crow_indices(), sparse.col_indices())]
        values = sparse.values().numpy()
        (n, k), m = weight.shape, len(x)
        handle = ctypes.c_void_p()

        def call(name: str, *args: Any) -> None:
            status = getattr(mkl, name)(*args)
            if status != 0:
                raise RuntimeError(f"{name}: status {status}")

        starts, columns = (part.ctypes.data_as(ctypes.c_void_p) for part in index)
        ends = ctypes.c_void_p(index[0].ctypes.data + 4)
        call(
            "mkl_sparse_s_create_csr",
            *(ctypes.byref(handle), ctypes.c_int(0), ctypes.c_int(n), ctypes.c_int(k)),
            *(starts, ends, columns, values.ctypes.data_as(ctypes.c_void_p)),
        )
        call("mkl_sparse_set_mm_hint", handle, _AS_IS, _GENERAL, layout, m, 1000)
        call("mkl_sparse_optimize", handle)

        def product(b: torch.Tensor, c: torch.Tensor) -> None:
            call(
                "mkl_sparse_s_mm",
                *(_AS_IS, ctypes.c_float(1.0), handle, _GENERAL, layout),
                *(ctypes.c_void_p(b.data_ptr()), m, b.shape[1], ctypes.c_float(0.0)),
                *(ctypes.c_void_p(c.data_ptr()), c.shape[1]),
            )

        # The handle points into these arrays.
        def run(keep: tuple[object, ...] = (index, values)) -> torch.Tensor:
            if layout == _COLUMN_MAJOR:
                y = torch.empty(m, n)
                product(x, y)
                return y
            transposed = torch.empty(n, m)
            product(x.t().contiguous(), transposed)
            return transposed.t().contiguous()

        return run

    return make


def _sparse_dot_mkl(weight: torch.Tensor, x: torch.Tensor) -> Action:
    import scipy.sparse

    product = _import_sparse_dot_mkl().dot_product_mkl
    sparse, dense = scipy.sparse.csr_matrix(weight.numpy()), x.numpy()
    return lambda: torch.from_numpy(
        np.ascontiguousarray(product(sparse, np.ascontiguousarray(dense.T)).T)
    )


def _import_sparse_dot_mkl() -> Any:
    os.environ.setdefault("MKL_THREADING_LAYER", "SEQUENTIAL")
    os.environ.setdefault("MKL_RT", _mkl_library())
    import sparse_dot_mkl

    return sparse_dot_mkl


def _import_deepsparse() -> Any:
    if int(np.__version__.split(".")[0]) >= 2:
        raise ImportError("it hands out garbage under numpy 2; install numpy<2")
    # Otherwise it looks up the country of this machine and reports each import.
    os.environ["NM_DISABLE_ANALYTICS"] = "1"
    import deepsparse

    return deepsparse


def compile_onnx(node: str, x: torch.Tensor, weight: torch.Tensor, **attributes: Any) -> Action:
    """One ONNX node with a constant weight, compiled by DeepSparse for one core.

    Args:
        node: `MatMul` (weight: k, n) or `Conv` (weight as torch's).
        x: its input; the batch is compiled in.
        weight: its second operand.
        attributes: of the node.
    """
    deepsparse = _import_deepsparse()
    from onnx import TensorProto, checker, helper, numpy_helper, save

    batch, kind = len(x), TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node(node, ["x", "w"], ["y"], **attributes)],
        "layer",
        [helper.make_tensor_value_info("x", kind, list(x.shape))],
        [helper.make_tensor_value_info("y", kind, [batch] + [None] * (x.ndim - 1))],
        [numpy_helper.from_array(weight.contiguous().numpy(), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8
    checker.check_model(model)
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "layer.onnx")
        save(model, path)
        engine = deepsparse.Engine(path, batch_size=batch, num_cores=1)
    given = [x.numpy()]
    return lambda: torch.from_numpy(engine.run(given, val_inp=False)[0])


def _deepsparse(weight: torch.Tensor, x: torch.Tensor) -> Action:
    return compile_onnx("MatMul", x, weight.t())


# MKL's two layouts and its wrapper are one library: the fastest of the three counts as "MKL".
SPARSE: dict[str, list[Peer]] = {
    "DeepSparse 1.8": [Peer("DeepSparse 1.8", _deepsparse, _import_deepsparse)],
    "MKL sparse": [
        Peer("MKL by columns", _mkl_sparse(_COLUMN_MAJOR), _mkl),
        Peer("MKL by rows", _mkl_sparse(_ROW_MAJOR), _mkl),
        Peer("sparse_dot_mkl", _sparse_dot_mkl, _import_sparse_dot_mkl),
    ],
    "scipy CSR": [Peer("scipy CSR", _scipy_csr, _probe_scipy)],
    "torch CSR": [Peer("torch CSR", _torch_csr)],
}
