"""What layers made of a frozen ground, remembered while the frozen model's forward runs."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch

from ._device import capturing
from ._running import Running
from ._torch_compat import traced

if TYPE_CHECKING:
    from ._ground import GroundState

T = TypeVar("T")

_MEMO_SIZE = 64  # responses of one ground: layers that read it, not frames


class Memo(dict[Hashable, tuple[Any, Any]]):
    """What layers made of one frozen ground.

    Attributes:
        owner: whose layers those are. Only while its forward runs is anything remembered: a
            result may go on into layers that nobody froze.
    """

    __slots__ = ("owner",)

    def __init__(self, owner: object) -> None:
        super().__init__()
        self.owner = owner


frozen_models = Running()  # the owners


def memo_of(ground: GroundState | None) -> Memo | None:
    """What is remembered of a ground, here and now; None where it is not frozen."""
    memo = None if ground is None else ground.memo
    if memo is None or torch.is_grad_enabled() or not frozen_models.has(memo.owner):
        return None
    return memo


def remembered(
    ground: GroundState, key: Hashable, held: tuple[Any, ...], make: Callable[[], T]
) -> T:
    """`make()`, or what it gave the last time where the ground is frozen.

    A frozen ground knows what became of it in every layer, and what becomes of that is frozen too:
    a second pass through the network finds all of it. Only where no gradient is recorded.

    Args:
        ground: frozen or not.
        key: the operation and its arguments that are no tensors.
        held: parameters and other grounds that the result depends on, known by their identity.
        make: computes the result.
    """
    memo = memo_of(ground)
    if memo is None or traced(ground.values):
        return make()
    whole = (key, *map(id, held))
    found = memo.get(whole)
    if found is None:
        value = make()
        if value is ground or len(memo) >= _MEMO_SIZE or capturing(ground.values.device):
            return value
        if getattr(value, "memo", memo) is None:  # a ground, not yet anybody's
            cast("Any", value).memo = Memo(memo.owner)
        found = memo.setdefault(whole, (value, held))  # held: so that no other object gets that id
    return cast("T", found[0])
