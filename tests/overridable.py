"""Every function that torch lets a class override, and arguments to try each handled one with."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import get_testing_overrides, resolve_name

X, Y, ROW, GATE = (
    object(),
    object(),
    object(),
    object(),
)  # stand for sparse x, sparse y, (C,), (B, C, 1, 1)


def functions() -> Iterator[Callable]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield from get_testing_overrides()


def full_name(func: Callable) -> str:
    return resolve_name(func) or getattr(func, "__name__", repr(func))


def operation(func: Callable) -> str:
    """What a person calls it: `relu` for torch.Tensor.relu, `T` for torch.Tensor.T.__get__."""
    parts = full_name(func).split(".")
    return parts[-2] if parts[-1] in ("__get__", "__set__", "__delete__") else parts[-1]


@dataclass
class Call:
    """Arguments; X, Y, ROW and GATE are filled in."""

    args: tuple = (X,)
    kwargs: dict[str, Any] = field(default_factory=dict)
    n_axes: int = 2
    positive: bool = False
    scale: float = 1.0
    shift: float = 0.0

    @property
    def note(self) -> str:
        names = {id(X): "x", id(Y): "y", id(ROW): "row", id(GATE): "gate"}
        return f"({', '.join(names.get(id(a), repr(a)) for a in self.args)}, {self.kwargs})"

    def arguments(self, x, dense: Tensor, rng):
        """(args, kwargs) for the sparse call and for the dense one; fresh copies each time."""
        channels = dense.shape[1]
        row = torch.from_numpy(rng.standard_normal(channels))
        gate = torch.from_numpy(rng.random((len(dense), channels, *[1] * self.n_axes)) + 0.5)
        y, other = x.map(lambda t: t * 0.5 + 1.0), dense * 0.5 + 1.0
        x = x.map(lambda t: t * 1.0)

        def fill(value, a, b):
            known = {id(X): a, id(Y): b, id(ROW): row, id(GATE): gate}
            if isinstance(value, (list, tuple)):
                return type(value)(fill(v, a, b) for v in value)
            return known.get(id(value), value)

        def both(a, b):
            return fill(self.args, a, b), {k: fill(v, a, b) for k, v in self.kwargs.items()}

        return both(x, y), both(dense.clone(), other)


def call(*args, positive=False, n_axes=2, scale=1.0, shift=0.0, **kwargs) -> Call:
    return Call((X, *args), kwargs, n_axes, positive, scale, shift)


def weight(*shape: int) -> Tensor:
    values = torch.arange(float(torch.Size(shape).numel()), dtype=torch.float64)
    return (values % 7 - 3).reshape(shape) / 4


UNARY = (
    "relu sigmoid tanh exp abs absolute square neg negative sin cos erf expm1 selu celu elu "
    "silu mish gelu relu6 hardtanh hardswish hardsigmoid softplus softsign logsigmoid tanhshrink "
    "hardshrink softshrink leaky_relu atan sign floor ceil round sinh cosh asinh rrelu positive "
    "sgn trunc fix arctan sinc exp2 erfc isnan isinf isfinite frac nan_to_num deg2rad rad2deg "
    "tan arcsinh digamma erfinv i0 lgamma logit psi expit erfcx gammaln i0e i1 i1e log_ndtr "
    "ndtr ndtri entr zeros_like ones_like"
)
POSITIVE = "sqrt rsqrt log log2 log10 log1p reciprocal"
SMALL = "acos arccos asin arcsin atanh arctanh"  # |x| < 1
LARGE = "acosh arccosh"  # x >= 1
BINARY = "add sub subtract mul multiply div divide true_divide rsub remainder fmod floor_divide"
OF_TWO = "maximum minimum fmax fmin hypot atan2 arctan2 logaddexp"

CATS = [Call(((X, Y), 1)), Call(([X, Y],), {"dim": 1})]
CALLS: dict[str, list[Call]] = {name: [call()] for name in UNARY.split()}
CALLS |= {name: [call(positive=True)] for name in POSITIVE.split()}
CALLS |= {name: [call(scale=0.05)] for name in SMALL.split()}
CALLS |= {name: [call(positive=True, shift=1.0)] for name in LARGE.split()}
CALLS |= {name: [call(Y), call(2.5), call(GATE)] for name in BINARY.split()}
CALLS |= {name: [call(Y), call(GATE)] for name in OF_TWO.split()}
CALLS |= {
    "floordiv": [call(2.5)],
    "mod": [call(2.5)],
    "pow": [call(2), call(3.0)],
    "clamp": [call(-0.5, 0.5), call(min=0.1)],
    "clip": [call(-0.5, 0.5)],
    "clamp_min": [call(0.2)],
    "clamp_max": [call(0.2)],
    "threshold": [call(0.1, 20.0)],
    "prelu": [call(torch.full((1,), 0.25, dtype=torch.float64)), call(ROW)],
    "softmax": [call(1)],
    "log_softmax": [call(1)],
    "softmin": [call(1)],
    "glu": [call(1)],
    "lerp": [call(Y, 0.3)],
    "cat": CATS,
    "concat": CATS,
    "concatenate": CATS,
    "hstack": [Call(((X, Y),))],
    "chunk": [call(2, 1)],
    "split": [call(2, 1)],
    "split_with_sizes": [call([1, 3], 1)],
    "narrow": [call(1, 1, 2)],
    "index_select": [call(1, torch.tensor([3, 0, 3]))],
    "getitem": [
        call((slice(None), slice(1, 3))),
        call((slice(1, 2), ..., slice(1, 6, 2))),
        call((slice(None), [2, 0])),
    ],
    "flip": [call((1, 3))],
    "unflatten": [call(1, (4, 1))],
    "expand_as": [call(Y), Call((GATE, X))],
    "pixel_shuffle": [call(2), call(1)],
    "pixel_unshuffle": [call(1)],
    "argmax": [call(1), call(1, True)],
    "argmin": [call(1), call(dim=1, keepdim=True)],
    "max": [call(), call(1), call(1, True), call(Y)],
    "min": [call(), call(1), call(dim=-3, keepdim=True), call(Y)],
    "var": [call(1, False, True), call(dim=1, correction=0, keepdim=True)],
    "std": [call(1, True, True)],
    "var_mean": [call(1, correction=0, keepdim=True)],
    "std_mean": [call(1, keepdim=True)],
    "norm": [call(2, 1, True), call(p=1, dim=(1,), keepdim=True)],
    "vector_norm": [call(dim=1, keepdim=True)],
    "prod": [call(1, True)],
    "logsumexp": [call(1, True), call([1], keepdim=True)],
    "channel_shuffle": [call(2)],
    "native_channel_shuffle": [call(2)],
    "constant_pad_nd": [call((1, 2, 0, 1), 0.5)],
    "full_like": [call(2.5)],
    "layer_norm": [call((4, 6, 7))],
    "local_response_norm": [call(3)],
    "normalize": [call(dim=1)],
    "float_power": [call(2)],
    "mvlgamma": [call(1, positive=True)],
    "type_as": [call(Y)],
    "half": [call()],
    "bfloat16": [call()],
    "amin": [call((2, 3))],
    "mean": [call([2, 3]), call((-1, -2), keepdim=True), call(1, keepdim=True)],
    "sum": [call([2, 3]), call((2, 3), True), call(1, keepdim=True)],
    "amax": [call((2, 3))],
    "permute": [call((0, 2, 3, 1))],
    "movedim": [call(1, -1)],
    "moveaxis": [call(1, -1)],
    "flatten": [call(1)],
    "view": [call(2, -1)],
    "reshape": [call((2, -1))],
    "size": [call(), call(1)],
    "dim": [call()],
    "numel": [call()],
    "to": [call(torch.float32), call(torch.float64)],
    "type": [call(torch.float32)],
    "float": [call()],
    "double": [call()],
    "contiguous": [call()],
    "clone": [call()],
    "detach": [call()],
    "cpu": [call()],
    "to_dense": [call()],
    "dropout": [call(0.4, False)],
    "alpha_dropout": [call(0.4, False)],
    "feature_dropout": [call(0.4, False)],
    "feature_alpha_dropout": [call(0.4, False)],
    "dropout1d": [call(0.4, True, n_axes=1), call(0.4, False, n_axes=1)],
    "dropout2d": [call(0.4, True), call(0.4, False)],
    "dropout3d": [call(0.4, True, n_axes=3), call(0.4, False, n_axes=3)],
    "pad": [call((1, 2, 0, 1)), call((1, 1, 1, 1), "reflect"), call((1, -1), value=0.5)],
    "interpolate": [call(scale_factor=2), call((3, 9)), call((3, 9), mode="nearest-exact")]
    + [call((3, 9), mode=m) for m in ("bilinear", "bicubic", "area")]
    + [call(scale_factor=(1.7, 0.6), mode="bilinear", align_corners=True)],
    "upsample": [call((3, 9))],
    "upsample_nearest": [call((3, 9))],
    "batch_norm": [
        call(weight(4), weight(4).abs() + 1, weight(4), weight(4)),
        call(None, None, training=True),
    ],
    "group_norm": [call(2, weight(4), weight(4)), call(4)],
    "instance_norm": [call(), call(weight=weight(4), bias=weight(4))],
}
for _n in (1, 2, 3):
    _k = (3,) * _n
    CALLS |= {
        f"conv{_n}d": [call(weight(3, 4, *_k), weight(3), 1, 1, n_axes=_n)],
        f"conv_transpose{_n}d": [call(weight(4, 3, *_k), weight(3), 2, 1, 1, n_axes=_n)],
        f"max_pool{_n}d": [call(2, 1, n_axes=_n), call(2, padding=1, ceil_mode=True, n_axes=_n)],
        f"avg_pool{_n}d": [call(2, 1, n_axes=_n), call(2, 2, 1, True, False, n_axes=_n)],
        f"adaptive_avg_pool{_n}d": [call((2, 3, 2)[:_n], n_axes=_n), call((1,) * _n, n_axes=_n)],
        f"adaptive_max_pool{_n}d": [call((1,) * _n, n_axes=_n)],
    }


def base_name(func: Callable) -> str:
    """`add` for add, add_, __add__, __iadd__; reflected operators keep their r."""
    name = operation(func)
    if name.startswith("__") and name.endswith("__"):
        name = name[2:-2]
        name = {"truediv": "div", "rtruediv": "rdiv", "itruediv": "div"}.get(name, name)
        if name not in CALLS and name[:1] in "ir":
            name = name[1:]
    return name.rstrip("_")


# functions whose own argument order differs from the one in torch.nn.functional
BY_FULL_NAME = {
    "torch.batch_norm": [
        call(weight(4), weight(4), weight(4), weight(4).abs() + 1, False, 0.1, 1e-5, False),
        call(None, None, None, None, True, 0.1, 1e-5, False),
    ],
    "torch.instance_norm": [call(weight(4), None, None, None, True, 0.1, 1e-5, False)],
}
QUESTIONS = """shape dtype device requires_grad ndim is_cuda layout is_meta get_device is_complex
is_inference is_floating_point is_signed element_size nelement is_contiguous requires_grad_"""
NEEDS_A_DEVICE = {"cuda", "pin_memory"}  # what they do without one is in test_ecosystem.py


def calls_of(func: Callable) -> list[Call] | None:
    """The calls to try; None for a function that no table names."""
    if full_name(func) in BY_FULL_NAME:
        return BY_FULL_NAME[full_name(func)]
    if operation(func) in QUESTIONS.split() or full_name(func).endswith("__get__"):
        return [call()]
    if operation(func) in NEEDS_A_DEVICE:
        return []
    return CALLS.get(base_name(func))


METHODS: dict[str, Callable] = {
    "size": lambda t: (t.size(), t.size(1), t.size(-1)),
    "dim": lambda t: (t.dim(), t.ndim),
    "shape": lambda t: t.shape,
    "view": lambda t: t.view(t.size(0), -1),
    "reshape": lambda t: t.reshape(2, -1),
    "flatten": lambda t: t.flatten(1),
    "mean": lambda t: t.mean([2, 3]),
    "mean keepdim": lambda t: t.mean((2, 3), keepdim=True),
    "relu": lambda t: t.relu(),
    "relu_": lambda t: (t * 1.0).relu_(),
    "add_": lambda t: (t * 1.0).add_(t),
    "sigmoid": lambda t: t.sigmoid(),
    "clamp": lambda t: t.clamp(-1, 1),
    "softmax": lambda t: t.softmax(1),
    "contiguous": lambda t: t.contiguous(),
    "channels last": lambda t: t.contiguous(memory_format=torch.channels_last),
    "to": lambda t: t.to(torch.float32),
    "float": lambda t: t.float(),
    "dtype": lambda t: t.dtype,
    "device": lambda t: t.device,
    "mul": lambda t: t.mul(2).add(1),
    "pow": lambda t: t.pow(2),
    "neg": lambda t: -t,
    "functional relu": lambda t: F.relu(t, inplace=False),
    "detach": lambda t: t.detach(),
    "len": lambda t: len(t),
}
