"""Which sparse function answers which torch function: every alias, method and in-place form.

Filled once, at import. A function that is not here is refused by `SparseTensor.__torch_function__`,
with a NotImplementedError that names it and `.to_dense()`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import FunctionType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from . import (
    _arithmetic,
    _channel_groups,
    _channel_reduce,
    _dropout,
    _elementwise,
    _normalization,
    _reduce,
    _resample,
    _shuffle,
    _slicing,
    _space_constant,
    functional,
)
from ._channel_groups import GroupedChannels
from ._channels_last import (
    ALONG,
    CHANNELS_LAST,
    ChannelsLast,
    movedim,
    permute,
    through,
    with_dims,
)
from ._convolution import convolution
from ._elementwise import in_place, refuse
from ._precision import widened
from ._torch_compat import keep_eager
from .tensor import HANDLERS, SparseTensor

Function = Callable[..., Any]

_PLACES = (torch, F, torch.special, Tensor)


def _named(name: str, places: Iterable[Any] = _PLACES) -> list[Function]:
    """Functions and methods of torch of this name."""
    found = [getattr(place, name, None) for place in places]
    return [f for f in found if callable(f)]


def _register(functions: Iterable[Function], handler: Function) -> None:
    HANDLERS.update(dict.fromkeys(functions, handler))


def _method(name: str, handler: Function) -> None:
    """Give SparseTensor a method, unless it has its own."""
    if name not in SparseTensor.__dict__:
        setattr(SparseTensor, name, handler)


def _sparse_first(handler: Function, name: str) -> Function:
    """A handler whose first argument, also by torch's name `input`, must be the SparseTensor."""

    def call(*args: Any, **kwargs: Any) -> Any:
        if not args and "input" in kwargs:
            args = (kwargs.pop("input"),)
        if not args or not isinstance(args[0], SparseTensor):
            refuse(name, "takes a SparseTensor as its first argument only")
        return handler(*args, **kwargs)

    call.__name__ = call.__qualname__ = name
    call.__doc__ = handler.__doc__
    return call


# ------------------------------------------------------------------ one site, several operands
def _elementwise_functions() -> None:
    for name, keeps in _elementwise.ELEMENTWISE.items():
        for f in _named(name):
            _register([f], _elementwise.elementwise(f, name, keeps))
        own = _named(name, (Tensor, torch, F))
        handler = _elementwise.elementwise(own[0], name, keeps) if own else None
        if handler is None:
            continue
        twin = in_place(handler, f"{name}_")
        _register(_named(f"{name}_"), twin)
        if hasattr(Tensor, name):
            _method(name, handler)
        if hasattr(Tensor, f"{name}_"):
            _method(f"{name}_", twin)
    for name, handler in _elementwise.CHANNELWISE.items():
        handler = _sparse_first(handler, name)
        _register(_named(name), handler)
        _register(_named(f"{name}_"), in_place(handler, f"{name}_"))
        if hasattr(Tensor, name):
            _method(name, handler)
    torch_split = getattr(torch.functional, "split", torch.split)
    _register([torch_split], HANDLERS[torch.split])


_OPERATORS = {
    "add": "add",
    "sub": "sub",
    "mul": "mul",
    "truediv": "div",
    "pow": "pow",
    "floordiv": "floor_divide",
    "mod": "remainder",
}


def _swapped(handler: Function) -> Function:
    def reflected(input: Any, other: Any, **kwargs: Any) -> Any:
        return handler(other, input, **kwargs)

    return reflected


def _operator(handler: Function) -> Function:
    """As Python's operators want it: NotImplemented for an operand of another kind."""

    def operate(input: SparseTensor, other: Any) -> Any:
        if not isinstance(other, (SparseTensor, Tensor, int, float, np.generic)):
            return NotImplemented
        return handler(input, other)

    return operate


def _binary_functions() -> None:
    handlers = {}
    for name, rule in _arithmetic.BINARY.items():
        f = getattr(torch, name)
        handlers[name] = handler = _arithmetic.binary(f, name, rule)
        twin = in_place(handler, f"{name}_")
        _register(_named(name), handler)
        _register(_named(f"{name}_"), twin)
        if hasattr(Tensor, name):
            _method(name, handler)
            _method(f"{name}_", twin)
    # torch.rsub(x, y) is y - x
    _register([torch.rsub], _swapped(handlers["sub"]))
    for operator, name in _OPERATORS.items():
        handler = handlers[name]
        twin = in_place(handler, f"__i{operator}__")
        reflected = _swapped(handler)
        _register(_named(f"__{operator}__", (Tensor,)), handler)
        _register(_named(f"__r{operator}__", (Tensor,)), reflected)
        _register(_named(f"__i{operator}__", (Tensor,)), twin)
        setattr(SparseTensor, f"__{operator}__", _operator(handler))
        setattr(SparseTensor, f"__r{operator}__", _operator(reflected))
        setattr(SparseTensor, f"__i{operator}__", _operator(twin))
    setattr(SparseTensor, "__neg__", HANDLERS[torch.neg])  # noqa: B010 (mypy: no such attribute)
    setattr(SparseTensor, "__pos__", HANDLERS[torch.positive])  # noqa: B010
    setattr(SparseTensor, "__abs__", HANDLERS[torch.abs])  # noqa: B010
    setattr(SparseTensor, "__array_ufunc__", None)  # noqa: B010 (np.float64(2) * x asks x)
    for name in ("cat", "concat", "concatenate"):
        _register(_named(name, (torch,)), _arithmetic.cat)
    _register([torch.hstack], _arithmetic.hstack)


# ------------------------------------------------------------------ layers
def _batch_norm(
    input: SparseTensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> Any:
    """Of torch.batch_norm, which has another order."""
    return _normalization.batch_norm(
        input, running_mean, running_var, weight, bias, training, momentum, eps
    )


def _instance_norm(
    input: SparseTensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> Any:
    """Of torch.instance_norm, which has another order."""
    return _normalization.instance_norm(
        input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps
    )


def _without_cudnn(handler: Function) -> Function:
    def call(
        input: Any,
        shape: Any,
        weight: Any = None,
        bias: Any = None,
        eps: float = 1e-5,
        cudnn_enabled: bool = True,
        cudnn_enable: bool = True,
    ) -> Any:
        return handler(input, shape, weight, bias, eps)

    return call


def _layers() -> None:
    def register(functions: list[Function], handler: Function, name: str) -> None:
        _register(functions, _sparse_first(handler, name))

    for n in (1, 2, 3):
        for name in (f"conv{n}d", f"conv_transpose{n}d"):
            register(_named(name, (torch, F)), getattr(functional, name), name)
        for name in (f"max_pool{n}d", f"avg_pool{n}d", f"adaptive_avg_pool{n}d"):
            register(_named(name, (torch, F)), getattr(functional, name), name)
        name = f"adaptive_max_pool{n}d"
        register([getattr(F, name)], widened(_resample.adaptive_max_pool), name)
        register([getattr(F, f"dropout{n}d")], _dropout.feature_dropout, f"dropout{n}d")
    register([F.interpolate], _resample.interpolate, "interpolate")
    register([F.pad], _resample.pad, "pad")
    register([torch.constant_pad_nd], _constant_pad, "constant_pad_nd")
    register([F.batch_norm], _normalization.batch_norm, "batch_norm")
    register([torch.batch_norm], _batch_norm, "batch_norm")
    register([F.instance_norm], _normalization.instance_norm, "instance_norm")
    register([torch.instance_norm], _instance_norm, "instance_norm")
    for name in ("group_norm", "layer_norm"):
        handler = getattr(_normalization, name)
        register([getattr(F, name)], handler, name)
        register([getattr(torch, name)], _without_cudnn(handler), name)
    for name in ("dropout", "alpha_dropout", "feature_dropout", "feature_alpha_dropout"):
        handler = getattr(_dropout, name)
        register(_named(name, (F,)), handler, name)
        register(_named(name, (torch,)), _trained(handler), name)
        twin = in_place(_sparse_first(_trained(handler), name), f"{name}_")
        _register(_named(f"{name}_", (torch,)), twin)


def _constant_pad(input: SparseTensor, pad: Any, value: float = 0) -> SparseTensor:
    return _resample.pad(input, pad, "constant", value)


def _trained(handler: Function) -> Function:
    def call(input: SparseTensor, p: float, train: bool) -> SparseTensor:
        """`torch.dropout` says train where `F.dropout` says training."""
        return handler(input, p, train)

    return call


# ------------------------------------------------------------------ slices, shuffles, reductions
def _rearrangements() -> None:
    named = {**_slicing.FUNCTIONS, **_channel_reduce.FUNCTIONS}
    for name, handler in named.items():
        places = (torch.linalg,) if name == "vector_norm" else (torch, Tensor)
        _register(_named(name, places), _sparse_first(handler, name))
        if hasattr(Tensor, name):
            _method(name, handler)
    for name in ("pixel_shuffle", "pixel_unshuffle"):
        _register(_named(name, (torch, F)), _sparse_first(getattr(_shuffle, name), name))
    _register([Tensor.__getitem__], _slicing.getitem)
    setattr(SparseTensor, "__getitem__", _slicing.getitem)  # noqa: B010 (mypy: no such attribute)
    _register([Tensor.expand_as], _space_constant.expand_as)
    _method("expand_as", _space_constant.expand_as)


# ------------------------------------------------------------------ methods
_PROPERTIES = ("device", "dtype", "ndim", "requires_grad", "shape")
_KINDS = {"is_sparse": False, "is_quantized": False, "is_nested": False, "is_mkldnn": False}
_COMPARISONS = ["eq", "ne", "lt", "le", "gt", "ge"]
_REFUSED_OPERATORS = [
    "setitem",
    "contains",
    "matmul",
    "rmatmul",
    "and",
    "or",
    "xor",
    "invert",
]


_TENSOR_METHODS = [
    n for n in dir(Tensor) if not n.startswith("_") and callable(getattr(Tensor, n))
]


def _refusing(name: str, why: str = "has no sparse meaning for a SparseTensor") -> Function:
    def refused(input: Any, *args: Any, **kwargs: Any) -> Any:
        refuse(name, why)

    refused.__name__ = refused.__qualname__ = name
    refused.__doc__ = f"Refused: `{name}` has no sparse meaning."
    return refused


def _compare(name: str) -> Function:
    def compared(input: SparseTensor, other: Any) -> Any:
        if isinstance(other, (SparseTensor, Tensor, int, float, np.generic)):
            refuse(name, "of a SparseTensor would compare every site")
        return NotImplemented

    return compared


def _is_on(kind: str) -> Function:
    def is_on(input: SparseTensor) -> bool:
        return input.device.type == kind

    return is_on


def _truth(input: SparseTensor) -> bool:
    refuse("__bool__", "of a SparseTensor is ambiguous", "compare with None by `is`")


def _methods() -> None:
    for name, handler in _reduce.METHODS.items():
        first = _sparse_first(handler, name)
        _register(_named(name, (torch, Tensor)), first)
        _method(name, handler)
    for name in _PROPERTIES:
        _register([getattr(Tensor, name).__get__], getattr(SparseTensor, name).fget)
    for kind in ("cuda", "cpu", "meta"):
        setattr(SparseTensor, f"is_{kind}", property(_is_on(kind)))
    for name, value in _KINDS.items():
        setattr(SparseTensor, name, value)
    for name in _COMPARISONS:
        setattr(SparseTensor, f"__{name}__", _compare(f"__{name}__"))
    for name in _REFUSED_OPERATORS:
        setattr(SparseTensor, f"__{name}__", _refusing(f"__{name}__"))
    setattr(SparseTensor, "__hash__", object.__hash__)  # noqa: B010 (identity, as torch's)
    setattr(SparseTensor, "__bool__", _truth)  # noqa: B010
    for name in _TENSOR_METHODS:
        if not hasattr(SparseTensor, name):
            setattr(SparseTensor, name, _refusing(name))
        elif callable(getattr(SparseTensor, name)):
            for f in _named(name, (Tensor,)):
                HANDLERS.setdefault(f, getattr(SparseTensor, name))
    _register([torch.detach], SparseTensor.detach)


def _channels_last() -> None:
    """What has a meaning between two permutes: elementwise functions, arithmetic, dropout."""
    for name, handler in (("permute", permute), ("movedim", movedim), ("moveaxis", movedim)):
        _register(_named(name, (torch, Tensor)), _sparse_first(handler, name))
        setattr(SparseTensor, name, handler)
        setattr(ChannelsLast, name, handler)
    names = [*_elementwise.ELEMENTWISE, *_arithmetic.BINARY, "dropout"]
    names += [f"{name}_" for name in names]
    names += [f"__{kind}{name}__" for name in _OPERATORS for kind in ("", "r", "i")]
    names.remove("prelu")  # its weight belongs to dim 1
    names.remove("prelu_")
    for name in names:
        for f in _named(name):
            if f in HANDLERS:
                CHANNELS_LAST[f] = through(HANDLERS[f])
        method = SparseTensor.__dict__.get(name)
        if method is not None:
            setattr(ChannelsLast, name, through(method))
    for name, along in ALONG.items():
        known = [f for f in _named(name, (*_PLACES, torch.linalg)) if f in HANDLERS]
        handler = with_dims(HANDLERS[known[0]], name, *along)
        CHANNELS_LAST.update(dict.fromkeys(known, handler))
        if hasattr(Tensor, name):
            setattr(ChannelsLast, name, handler)


def _refuse_the_rest(view: type, why: str) -> None:
    """Methods and operators of a tensor that a view has not."""
    operators = [f"__{kind}{n}__" for n in _OPERATORS for kind in ("", "r", "i")]
    operators += [f"__{n}__" for n in ("getitem", "neg", "bool", *_REFUSED_OPERATORS)]
    for name in (*_TENSOR_METHODS, *operators):
        if name not in dir(view):
            setattr(view, name, _refusing(name, why))


# ------------------------------------------------------------------ torch.compile
_OF_WEIGHTS = ("masked_linear", "masked_conv1d", "masked_conv2d", "masked_conv3d", "spmm", "spmm_t")
_TRACEABLE = ("dim", "size", "__bool__", "__hash__", "__len__", *_OF_WEIGHTS)


def _keep_eager() -> None:
    """Sites and rulebooks depend on data: a sparse operation is a graph break, as a whole."""
    own = [*SparseTensor.__dict__.values(), *ChannelsLast.__dict__.values()]
    methods = [getattr(f, "__func__", f) for f in own]
    public = [getattr(functional, name) for name in functional.__all__]
    ours = [f for f in (*methods, *public) if isinstance(f, FunctionType)]
    keep_eager(convolution, *(f for f in ours if f.__name__ not in _TRACEABLE))


_elementwise_functions()
_binary_functions()
_layers()
_rearrangements()
_methods()
_channels_last()
_refuse_the_rest(ChannelsLast, "has no sparse meaning for a SparseTensor with permuted dimensions")
_refuse_the_rest(GroupedChannels, _channel_groups.WHY)
_keep_eager()
