"""Who looks on while layers run: `explain` and `autotune`; mostly nobody, which costs one look."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import nn

if TYPE_CHECKING:
    from ._convolution import Layer
    from ._crossover import Choice
    from .tensor import SparseTensor

F = TypeVar("F", bound=Callable[..., Any])


class Watcher:
    """Sees the layers that run in its own thread, and runs them: by default as nobody would."""

    def convolution(
        self,
        x: SparseTensor,
        layer: Layer,
        choice: Choice,
        run: Callable[[SparseTensor, Choice], SparseTensor],
    ) -> SparseTensor:
        """A convolution that the crossover decides on."""
        return run(x, choice)

    def operation(
        self, name: str, x: SparseTensor, run: Callable[[], SparseTensor]
    ) -> SparseTensor:
        """A pool, or a convolution on given sites."""
        return run()

    def pairs(self, n_pairs: int) -> None:
        """A layer on our kernels found its pairs."""


class _Current:
    """The watcher that watches, and in which thread."""

    watcher: Watcher | None = None
    thread: int = 0

    def here(self) -> Watcher | None:
        """The watcher of this thread."""
        watcher = self.watcher
        return watcher if watcher and self.thread == threading.get_ident() else None


current = _Current()
_one = threading.Lock()


def watched(f: F) -> F:
    """Decorator of functions (operation, n_axes, x, ...) -> SparseTensor that a watcher sees."""

    @wraps(f)
    def run(operation: str, n_axes: int, x: SparseTensor, *args: Any, **kwargs: Any) -> Any:
        watcher = current.watcher and current.here()
        if watcher is None:
            return f(operation, n_axes, x, *args, **kwargs)
        return watcher.operation(operation, x, lambda: f(operation, n_axes, x, *args, **kwargs))

    return cast("F", run)


@contextmanager
def watching(watcher: Watcher, model: nn.Module) -> Iterator[None]:
    """While a model runs for the watcher's eyes: no gradients; buffers and seeds stay as they were.

    One thread at a time watches.
    """
    buffers = [(b, b.clone()) for b in model.buffers()]
    with _one, torch.no_grad(), torch.random.fork_rng(devices=[]):
        try:
            current.thread, current.watcher = threading.get_ident(), watcher
            yield
        finally:
            current.watcher = None
            for buffer, before in buffers:  # running statistics, where the model is in training
                if not torch.equal(buffer, before):
                    buffer.copy_(before)


def check_arguments(operation: str, model: Any, x: Any, optional: bool = False) -> None:
    """Raise TypeError where `model` is no module or `x` no SparseTensor (nor None, if optional)."""
    from .tensor import SparseTensor

    if not isinstance(model, nn.Module):
        raise TypeError(
            f"{operation}: model must be an nn.Module, got {type(model).__name__}; wrap it in one"
        )
    if not isinstance(x, SparseTensor) and not (optional and x is None):
        raise TypeError(
            f"{operation}: x must be a SparseTensor, got {type(x).__name__}; "
            "use SparseTensor.from_dense(x)"
        )
