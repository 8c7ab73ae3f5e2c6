"""What networks of other sparse libraries need to run here: shared by their importers.

In those libraries inactive sites do not exist (`ground=None`), a tensor carries the sites of the
layers that it went through, and containers hand plain modules the features alone.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Hashable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ..sites import Sites
from ..tensor import SparseTensor
from ._norm import SparseBatchNorm


class Origin:
    """Sites that a layer read, kept by those that it made.

    What they remember (rulebooks) is the original's, as long as that lives; then only where they
    are is left. The original remembers what was made of it: a strong reference would keep both.
    """

    def __init__(self, sites: Sites) -> None:
        self._original = weakref.ref(sites)
        self._spare = Sites(sites._coords, sites.spatial_shape, sites.batch_size, sites.device)

    def sites(self) -> Sites:
        """The sites."""
        original = self._original()
        return self._spare if original is None else original  # an empty one is false


_origins: WeakKeyDictionary[Sites, dict[Hashable, Origin]] = WeakKeyDictionary()
"""Of sites that a layer made: those it read, and those that its input came from, by key."""


def origin(made: Sites, key: Hashable) -> Sites | None:
    """The sites under a key among those that `made` came from."""
    found = _origins.get(made, {}).get(key)
    return None if found is None else found.sites()


def remember(made: Sites, source: Sites, key: Hashable) -> None:
    """Note that `made` came from `source`, and from what that came from.

    Args:
        made: by a layer.
        source: what it read.
        key: a name for `source`; None: it needs none.
    """
    if made is source:
        return
    known = dict(_origins.get(source, {}))
    if key is not None:
        known[key] = Origin(source)
    # a rulebook that is remembered gives several layers the same Sites object
    _origins.setdefault(made, {}).update(known)


def drop_ground(module: nn.Module, args: tuple[Any, ...]) -> Any:
    """Forward pre-hook: inactive sites do not exist; a zero ground is taken as that."""
    x = args[0]
    if not isinstance(x, SparseTensor) or x.ground is None:
        return None
    if not x.ground.is_zero and not x.sites.is_full:
        raise ValueError(
            f"{type(module).__name__}: input must have ground=None, as in the library that the "
            "weights come from, got a ground that is not zero; use x.replace(ground=None)"
        )
    return (x.replace(ground=None), *args[1:])


class Remember:
    """Forward hook of a layer that makes sites: they remember where they came from.

    Args:
        key: under which the input's sites are kept; None: only those before are passed on.
    """

    def __init__(self, key: Hashable) -> None:
        self.key = key

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Keep the input's sites, and what they remember."""
        remember(output.sites, args[0].sites, self.key)


class Recall:
    """Forward pre-hook of an inverse convolution: `like` is what the layer of the key read."""

    def __init__(self, key: Hashable) -> None:
        self.key = key

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Add `like`, unless it is given."""
        if len(args) > 1 or "like" in kwargs:
            return args, kwargs
        found = origin(args[0].sites, self.key)
        if found is None:
            raise ValueError(
                f"{type(module).__name__}: input must come from the layer with the key "
                f"{self.key!r}, got sites that no such layer led to; run that layer before, or "
                "pass like="
            )
        return args, {**kwargs, "like": found}


class FeatureSequential(nn.Sequential):
    """Modules in a row, of which the plain ones see the features (n_sites, C) of active sites.

    Attributes:
        of_features: names of those modules.
    """

    def __init__(self, *args: Any, of_features: frozenset[str] = frozenset()) -> None:
        super().__init__(*args)
        self.of_features = of_features

    def __getitem__(self, idx: Any) -> Any:
        """A module, or for a slice some of them, which keep their names."""
        part = super().__getitem__(idx)
        if isinstance(idx, slice):
            part.__dict__["of_features"] = self.of_features
        return part

    def forward(self, input: Any) -> Any:
        """Run."""
        for name, module in self._modules.items():
            assert module is not None
            if isinstance(input, SparseTensor) and name in self.of_features:
                input = input.replace(features=module(input.features), ground=None)
            else:
                input = module(input)
        return input


Make = Callable[[str, nn.Module, dict[int, Any]], nn.Module | None]


def rebuild(model: nn.Module, make: Make) -> Any:
    """A deep copy of a model in which `make` replaces modules; names stay.

    Args:
        model: any tree of modules.
        make: from a module's name, the module, and the memo of `copy.deepcopy` with what its own
            modules became, to its replacement, or None: a copy.
    """
    memo: dict[int, Any] = {}
    for name, module in reversed(list(model.named_modules())):  # what is inside first
        twin = make(name, module, memo)
        if twin is not None:
            twin.training = module.training  # not of what it holds: that has its own
            memo[id(module)] = twin
    return copy.deepcopy(model, memo)


def fill(layer: nn.Module, weight: Tensor, bias: Tensor | None, like: Tensor) -> nn.Module:
    """Give a layer its weight and bias, copied; trainable if `like` is."""
    layer.weight = nn.Parameter(weight.detach().clone(), like.requires_grad)
    if bias is not None:
        values = bias.detach().reshape(-1).clone()
        layer.bias = nn.Parameter(values, bias.requires_grad)
    return layer


def _norm_like(own: nn.Module, norm: nn.Module) -> nn.Module:
    own._parameters, own._buffers = copy.deepcopy((norm._parameters, norm._buffers))
    own.register_forward_pre_hook(drop_ground)
    own.training = norm.training
    return own


def batch_norm_like(norm: Any) -> nn.Module:
    """`SparseBatchNorm` with the parameters, buffers and options of a batch norm of torch."""
    options = (norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    return _norm_like(SparseBatchNorm(norm.num_features, *options), norm)


def sync_batch_norm_like(norm: Any) -> nn.Module:
    """`nn.SyncBatchNorm` with those of another one."""
    options = (norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    return _norm_like(nn.SyncBatchNorm(norm.num_features, *options, norm.process_group), norm)


def per_axis(value: Any, n_axes: int) -> tuple[int, ...]:
    """A number for each axis."""
    values = (value,) * n_axes if isinstance(value, int) else tuple(int(v) for v in value)
    if len(values) != n_axes:
        raise ValueError(
            f"kernel_size: must be a number or one for each of {n_axes} axes, got {value}; "
            "correct it"
        )
    return values


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether a module's name is one of the patterns of `fnmatch`, or inside one that is named."""
    return any(fnmatchcase(name, p) or name.startswith(f"{p}.") for p in patterns)


def check_source(operation: str, source: Any) -> None:
    """A module, or a state dict of tensors."""
    if isinstance(source, nn.Module):
        return
    if not isinstance(source, Mapping):
        raise TypeError(
            f"{operation}: source must be a module or a state_dict, got {type(source).__name__}; "
            'pass e.g. torch.load(path)["state_dict"]'
        )
    for name, value in source.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise TypeError(
                f"{operation}: source must hold tensors by name, got {type(value).__name__} under "
                f"{name!r}; pass the state_dict inside the checkpoint"
            )
