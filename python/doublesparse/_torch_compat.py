"""Every private, undocumented or recent torch name that the package uses, in one place."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.multiprocessing.reductions import StorageWeakRef as StorageWeakRef
from torch.nn import Parameter

_F = TypeVar("_F", bound=Callable[..., Any])


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


def tf32_allowed() -> bool:
    """Whether torch's float32 products may round their factors to TF32 on a CUDA device."""
    matmul = torch.backends.cuda.matmul
    try:  # torch >= 2.9, where reading `allow_tf32` raises once this has been set
        return bool(matmul.fp32_precision == "tf32")
    except AttributeError:
        return matmul.allow_tf32


def fast_apply(function: type[torch.autograd.Function]) -> Callable[..., Any]:
    """`function.apply` without the Python layer that serves functorch; that is a third of its cost.

    The layer unwraps tensors of finished `torch.func` transforms; such tensors have no storage, so
    the kernels refuse them.
    """
    apply: Callable[..., Any] = super(torch.autograd.Function, function).apply  # type: ignore[misc]
    return apply


plain_types: set[type] = {Tensor, Parameter}
"""Types of tensors that hold data, others are being traced; tests add one that emulates CUDA."""

_compiling = torch.compiler.is_dynamo_compiling
_transforms = torch._C._functorch.peek_interpreter_stack
_n_modes = torch._C._len_torch_dispatch_stack


def traced(x: Any) -> bool:
    """Whether a graph is being made of what happens to x, so that it must be a torch operator.

    True inside torch.compile; for fake, functional and other tensors that only look like data;
    while any dispatch mode (make_fx, torch.export, a FLOP counter) watches; and in forward-mode
    differentiation, which the operators refuse. A tenth of a microsecond.
    """
    if _compiling():
        return True
    if type(x) not in plain_types and isinstance(x, Tensor):
        return True
    return _n_modes() > 0 or forward_ad._current_level >= 0


def outside_transforms() -> bool:
    """True; our autograd functions have no meaning inside `torch.func.grad`, `vmap` and the like.

    Raises:
        NotImplementedError: inside one.
    """
    if _transforms() is None:
        return True
    raise NotImplementedError(
        "doublesparse: must run outside torch.func transforms, got a call inside one; use "
        "torch.autograd"
    )


def is_forward_mode() -> bool:
    """Whether tangents are carried forward (`torch.func.jvp`, `forward_ad.dual_level`)."""
    return forward_ad._current_level >= 0


def untraced(f: _F) -> _F:
    """f, run on real tensors also while a graph is traced, which then holds its result as constant.

    For what depends on geometry alone. It is remembered, so it is no inference tensor either, which
    training could not save for its backward pass.
    """
    from torch.utils._python_dispatch import _disable_current_modes

    @functools.wraps(f)
    def call(*args: Any, **kwargs: Any) -> Any:
        if torch.is_inference_mode_enabled():
            with torch.inference_mode(False):
                return call(*args, **kwargs)
        if _n_modes() == 0:
            return f(*args, **kwargs)
        with _disable_current_modes():
            return f(*args, **kwargs)

    return cast("_F", call)


@untraced
def from_numpy(array: Any, device: torch.device) -> Tensor:
    """A tensor on a device; in a fake mode torch.from_numpy would forget the numbers."""
    return torch.from_numpy(array).to(device)


def check_when_run(condition: torch.Tensor, text: str) -> None:
    """Part of a traced graph: a RuntimeError with this text where the condition is false."""
    torch._assert_async(condition, text)


def operator_tags() -> tuple[torch.Tag, ...]:
    """Tags of our operators: traceable, and their operands' strides stay what they are in eager."""
    exact = getattr(torch.Tag, "needs_exact_strides", torch.Tag.needs_fixed_stride_order)
    return torch.Tag.pt2_compliant_tag, exact


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
