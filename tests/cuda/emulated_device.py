"""Tensors that say they are on cuda:0, on a machine without a GPU: to test the layers above.

Inside `emulated_cuda()` a tensor made with `device="cuda"`, or moved there, is an `EmulatedTensor`:
its `.device` is cuda:0, its numbers lie in an ordinary tensor that only this module sees. Every
torch operator on it runs on those; the package's kernels run emulated. So `SparseTensor`,
`functional`, `nn` and their gradients take exactly the code of a GPU, and break as there where a
tensor is made on the wrong device. What a GPU would have waited for is counted (`Traffic`).
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map

from doublesparse import _device, _torch_compat

DEVICE = torch.device("cuda:0")
_aten = torch.ops.aten

_READS = {
    _aten._local_scalar_dense,
    _aten.nonzero,
    _aten.equal,
    _aten.masked_select,
    _aten._unique2,
    _aten.unique_dim,
    _aten.unique_consecutive,
    _aten.bincount,
}
"""Operators whose result, or its size, the host waits for."""

_CPU_TOO = {_aten.copy_, _aten.index, _aten.index_put_, _aten.index_put}
"""Operators that take operands of both devices."""

_CREATE = (
    *("empty", "zeros", "ones", "full", "arange", "tensor", "as_tensor", "eye", "linspace"),
    *("rand", "randn", "randint", "randperm", "empty_strided", "asarray", "scalar_tensor"),
)
_LIKE = tuple(f"{name}_like" for name in ("empty", "zeros", "ones", "full", "rand", "randn"))
_NEW = ("new_empty", "new_zeros", "new_ones", "new_full", "new_tensor", "new_empty_strided")


@dataclass
class Traffic:
    """What went between host and device.

    Attributes:
        reads: times that the host waited for the device.
        uploads: tensors copied to the device.
    """

    reads: int = 0
    uploads: int = 0


_traffic = Traffic()


class EmulatedTensor(Tensor):
    """A tensor on cuda:0, by its own account."""

    inner: Tensor

    # the bindings look for this first; without it they ask for `device`
    __dlpack_c_exchange_api__ = None
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: Tensor) -> EmulatedTensor:
        self = Tensor._make_wrapper_subclass(  # on the CPU for torch, which may lack the rest
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device="cpu",
        )
        self.inner = inner
        return self

    @property
    def device(self) -> torch.device:
        return DEVICE

    @property
    def is_cuda(self) -> bool:
        return True

    @property
    def is_cpu(self) -> bool:
        return False

    def get_device(self) -> int:
        return 0

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(
            "can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor "
            "to host memory first."
        )

    __array__ = numpy

    def tolist(self) -> Any:
        _traffic.reads += 1
        return self.inner.tolist()

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"EmulatedTensor({self.inner})"

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise NotImplementedError("EmulatedTensor: pickle it on a GPU")

    def __deepcopy__(self, memo: dict[int, Any]) -> EmulatedTensor:
        copy = EmulatedTensor(self.inner.clone())
        copy.requires_grad_(self.requires_grad)
        if getattr(self, "_is_param", False):
            copy._is_param = True
        memo[id(self)] = copy
        return copy

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        leaves, _ = tree_flatten((args, kwargs))
        packet = func.overloadpacket
        if packet not in _CPU_TOO:
            _on_one_device(leaves)
        _count(packet, args, kwargs)
        owners = {id(t.inner): t for t in leaves if isinstance(t, EmulatedTensor)}
        out = func(*tree_map(unwrap, args), **tree_map(unwrap, kwargs))
        if packet is _aten.copy_ and not isinstance(args[0], EmulatedTensor):
            return args[0]

        def wrap(t: Any) -> Any:
            if not isinstance(t, Tensor):
                return t
            own = owners.get(id(t))
            if own is not None and own.shape != t.shape:
                raise NotImplementedError(f"EmulatedTensor: {func} changes the shape in place")
            return EmulatedTensor(t) if own is None else own

        return tree_map(wrap, out)


def _on_one_device(leaves: list[Any]) -> None:
    for t in leaves:
        if isinstance(t, Tensor) and not isinstance(t, EmulatedTensor) and t.dim() > 0:
            raise RuntimeError(
                "Expected all tensors to be on the same device, but found at least two devices, "
                "cuda:0 and cpu!"
            )


def _count(packet: Any, args: Any, kwargs: Any) -> None:
    if packet in _READS:
        _traffic.reads += 1
    elif packet is _aten.repeat_interleave:
        _traffic.reads += kwargs.get("output_size") is None
    elif packet in _CPU_TOO:
        if packet is _aten.copy_:
            _traffic.reads += not isinstance(args[0], EmulatedTensor)
            _traffic.uploads += not isinstance(args[1], EmulatedTensor)
            return
        for t in args[1]:
            if t is not None and t.dtype in (torch.bool, torch.uint8):
                _traffic.reads += 1  # as many rows as there are ones
            elif t is not None and not isinstance(t, EmulatedTensor):
                _traffic.uploads += 1


def unwrap(t: Any) -> Any:
    """The numbers of an emulated tensor; anything else as it is."""
    return t.inner if isinstance(t, EmulatedTensor) else t


class _Up(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, t: Tensor) -> Tensor:
        _traffic.uploads += 1
        return EmulatedTensor(t.detach().clone(memory_format=torch.preserve_format))

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        return _Down.apply(dy)


class _Down(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, t: EmulatedTensor) -> Tensor:
        _traffic.reads += 1
        return t.inner.detach().clone(memory_format=torch.preserve_format)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        return _Up.apply(dy)


def _moved(t: Tensor, device: torch.device) -> Tensor:
    if t.device.type == device.type:
        return t
    return _Up.apply(t) if device.type == "cuda" else _Down.apply(t)


def _split_to(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, list[Any], Any]:
    """The device that the arguments of `Tensor.to` name, and the arguments without it."""
    rest, device, kwargs = [], kwargs.pop("device", None), dict(kwargs)
    for arg in args:
        if isinstance(arg, (str, torch.device, int)) and not isinstance(arg, bool):
            device = arg
        elif isinstance(arg, Tensor):
            device, rest = arg.device, [*rest, arg.dtype]
        elif arg is not None:
            rest.append(arg)
    if isinstance(kwargs.get("dtype", ...), type(None)):
        del kwargs["dtype"]
    if isinstance(device, int):
        device = DEVICE
    return (None if device is None else torch.device(device)), rest, kwargs


_tensor_to = Tensor.to


def _to(t: Any, *args: Any, **kwargs: Any) -> Any:
    if not isinstance(t, Tensor):  # a SparseTensor, by `Tensor.to(x)`
        return _tensor_to(t, *args, **kwargs)
    device, rest, kwargs = _split_to(args, dict(kwargs))
    if any(isinstance(a, torch.dtype) for a in rest) or kwargs.keys() - {"non_blocking"}:
        t = _tensor_to(t, *[a for a in rest if not isinstance(a, bool)], **kwargs)
    return t if device is None else _moved(t, device)


def _creating(func: Any, like: bool) -> Any:
    """A function of torch that makes tensors; `like`: where its first argument lies."""
    of_data = func in (torch.tensor, torch.as_tensor, torch.asarray)

    @functools.wraps(func)
    def make(*args: Any, **kwargs: Any) -> Any:
        first = args[0] if args else None
        if like and not isinstance(first, Tensor):
            return func(*args, **kwargs)
        device = kwargs.get("device")
        if device is None and isinstance(first, Tensor) and (like or func is not torch.tensor):
            device = first.device
        device = torch.device("cpu" if device is None else device)
        if device.type != "cuda" and not isinstance(first, EmulatedTensor):
            return func(*args, **kwargs)
        kwargs.pop("device", None)
        if of_data and isinstance(first, Tensor):
            return _moved(func(*args, **kwargs), device)
        wants_grad = kwargs.pop("requires_grad", False)
        made = func(*tree_map(unwrap, args), **tree_map(unwrap, kwargs))
        if device.type == "cuda":
            _traffic.uploads += of_data
            made = EmulatedTensor(made)
        return made.requires_grad_() if wants_grad else made

    return make


@contextlib.contextmanager
def _torch_that_makes_them() -> Iterator[None]:
    """Torch's functions that make tensors, or move them, know the emulated device."""
    cpu, cuda = torch.device("cpu"), DEVICE
    plain = {"cpu": Tensor.cpu, "cuda": Tensor.cuda}

    def mover(name: str, device: torch.device) -> Any:
        def move(t: Any, *args: Any, **kwargs: Any) -> Any:
            if isinstance(t, Tensor):
                return _moved(t, device)
            return plain[name](t, *args, **kwargs)

        return move

    with pytest.MonkeyPatch.context() as patch:
        for name in (*_CREATE, *_LIKE):
            patch.setattr(torch, name, _creating(getattr(torch, name), name in _LIKE))
        for name in _NEW:
            patch.setattr(Tensor, name, _creating(getattr(Tensor, name), True))
        patch.setattr(Tensor, "to", _to)
        patch.setattr(Tensor, "cpu", mover("cpu", cpu))
        patch.setattr(Tensor, "cuda", mover("cuda", cuda))
        yield


class Kernels:
    """The emulated kernels, which take the numbers of emulated tensors."""

    def __init__(self, of: Any) -> None:
        self._of = of

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._of, name)
        if not callable(found):
            return found

        def call(*args: Any, **kwargs: Any) -> Any:
            leaves, _ = tree_flatten((args, kwargs))
            for t in leaves:
                if isinstance(t, Tensor) and not isinstance(t, EmulatedTensor):
                    raise RuntimeError(f"{name}: a kernel of the GPU got a tensor on the CPU")
            out = found(*tree_map(unwrap, args), **tree_map(unwrap, kwargs))
            return out if isinstance(out, (int, float, str, tuple, type(None))) else Kernels(out)

        return call


@contextlib.contextmanager
def emulated_cuda(kernels: Any) -> Iterator[Traffic]:
    """Inside, `device="cuda"` is emulated with the module `doublesparse._emulated`.

    Yields:
        what went between host and device since then.
    """
    global _traffic
    before, _traffic = _traffic, Traffic()
    previous = _device.use(Kernels(kernels))
    _torch_compat.plain_types.add(EmulatedTensor)
    overwrite = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # `.data` keeps its device
    try:
        with _torch_that_makes_them():
            yield _traffic
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(overwrite)
        _torch_compat.plain_types.discard(EmulatedTensor)
        _device.use(previous)
        _traffic = before
