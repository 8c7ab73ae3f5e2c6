"""Every private, undocumented or recent torch name that the package uses, in one place; tested per torch version."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


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


def is_fake(tensor: Tensor) -> bool:
    """Whether a tensor has no data: of the meta device, or of a tracer."""
    return tensor.is_meta


ConvBase = torch.nn.modules.conv._ConvNd
"""What torch's convolutions share: our four-dimensional ones have no twin to inherit from."""

BatchNormBase = torch.nn.modules.batchnorm._BatchNorm
"""What torch's batch norms share, without a rank."""
