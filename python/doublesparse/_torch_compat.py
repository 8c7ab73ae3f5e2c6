"""Every private, undocumented or recent torch name that the package uses, in one place."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch


def register_pytree_node(
    cls: type,
    flatten: Callable[[Any], tuple[list[Any], Any]],
    unflatten: Callable[[Any, Any], Any],
) -> None:
    """Make `cls` a node of torch's pytrees (`torch.utils._pytree`)."""
    from torch.utils import _pytree

    name = f"doublesparse.{cls.__name__}"
    _pytree.register_pytree_node(cls, flatten, unflatten, serialized_type_name=name)


def register_collate(cls: type, collate: Callable[..., Any]) -> None:
    """Let `DataLoader` batch instances of `cls` with `collate(batch, *, collate_fn_map=None)`."""
    from torch.utils.data._utils.collate import default_collate_fn_map

    default_collate_fn_map[cls] = collate


def add_safe_globals(names: list[Any]) -> None:
    """Let `torch.load(weights_only=True)` read these classes (torch >= 2.4)."""
    torch.serialization.add_safe_globals(names)


def fast_apply(function: type[torch.autograd.Function]) -> Callable[..., Any]:
    """`function.apply` without the Python layer that serves functorch; that is a third of its cost.

    The layer unwraps tensors of finished `torch.func` transforms; such tensors have no storage, so
    the kernels refuse them.
    """
    apply: Callable[..., Any] = super(torch.autograd.Function, function).apply  # type: ignore[misc]
    return apply


def extend_forward(
    cls: type[torch.nn.Module], kind: type, handler: Callable[[Any, Any], Any]
) -> None:
    """Let modules of class `cls` ask `handler(module, input)` about an input of type `kind`.

    For a class of torch whose forward has no overridable function on the way to what must be
    replaced. Where the handler returns NotImplemented, and for every other input, torch's own
    forward runs.
    """
    dense = cls.forward

    @functools.wraps(dense)
    def forward(self: Any, input: Any) -> Any:
        if isinstance(input, kind):
            out = handler(self, input)
            if out is not NotImplemented:
                return out
        return dense(self, input)

    cls.forward = forward


ConvBase = torch.nn.modules.conv._ConvNd
"""What torch's convolutions share: our four-dimensional ones have no twin to inherit from."""

BatchNormBase = torch.nn.modules.batchnorm._BatchNorm
"""What torch's batch norms share, without a rank."""


def function_name(func: Callable[..., Any]) -> str:
    """What a person calls an overridable function: relu for Tensor.relu, T for Tensor.T.__get__."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the names of deprecated functions are looked up too
        full = torch.overrides.resolve_name(func)
    parts = (full or getattr(func, "__name__", None) or repr(func)).split(".")
    return parts[-2] if parts[-1] in ("__get__", "__set__", "__delete__") else parts[-1]


def keep_eager(*functions: Any) -> None:
    """Tell torch.compile not to trace these functions, nor what they call: a graph break each.

    What `torch.compiler.disable` does, without importing the compiler (seconds) and without a
    wrapper (a microsecond per call). Where torch lacks the hooks, functions stay as they are.
    """
    try:
        from torch._C._dynamo import eval_frame

        skip = eval_frame._FrameAction.SKIP
        strategy = eval_frame._FrameExecStrategy(skip, skip)
        mark = eval_frame.set_code_exec_strategy
    except (ImportError, AttributeError):
        return
    for function in functions:
        function._torchdynamo_disable = True  # not inlined into a traced caller
        mark(function.__code__, strategy)  # not traced where it is called from the interpreter
