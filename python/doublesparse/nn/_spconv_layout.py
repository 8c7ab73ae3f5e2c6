"""How spconv stores weights, and how to tell from their shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from .._torch_compat import ConvBase
from ._imported import matches

# Which axis of n + 2 holds c_out and c_in; the others are the kernel, in order.
_ENDS = {
    "KRSC": lambda n: (0, n + 1),
    "RSKC": lambda n: (n, n + 1),
    "RSCK": lambda n: (n + 1, n),
    "dense": lambda n: (0, 1),
}
_LARGEST_KERNEL = 7  # of what is taken for a kernel when shapes are read; `layout` takes any
_COUNTER = "max_num_voxels_during_training"  # a buffer that spconv keeps for deployment


def _order(layout: str, n: int) -> tuple[int, ...]:
    """The axes of a weight in torch's order: c_out, c_in, kernel."""
    ends = _ENDS[layout](n)
    return (*ends, *(a for a in range(n + 2) if a not in ends))


def dense_weight(weight: Tensor, layout: str, transposed: bool, pointwise: bool) -> Tensor:
    """A weight of spconv in torch's layout.

    Args:
        weight: n + 2 axes.
        layout: one of KRSC, RSKC, RSCK, dense.
        transposed: of a transposed or inverse convolution: (c_in, c_out, *kernel).
        pointwise: a kernel of 1 and stride 1: spconv multiplies by what is stored, read as
            (c_in, c_out), whatever the layout.
    """
    out = weight.permute(_order(layout, weight.dim() - 2))
    if pointwise and layout != "dense":
        c_out, c_in = out.shape[:2]
        out = weight.reshape(c_in, c_out).T.reshape(out.shape)
    return (out.transpose(0, 1) if transposed else out).contiguous()


def _shape(shape: Sequence[int], layout: str, transposed: bool = False) -> tuple[int, ...]:
    c_out, c_in, *kernel = (shape[a] for a in _order(layout, len(shape) - 2))
    return (c_in, c_out, *kernel) if transposed else (c_out, c_in, *kernel)


class _Weight:
    """One weight of a state dict: what its shape, its bias and its target allow."""

    def __init__(self, name: str, weight: Tensor, bias: Tensor | None, target: Any) -> None:
        self.name, self.shape, self.target = name, tuple(weight.shape), target
        self.possible = []
        for layout in _ENDS:
            c_out, _, *kernel = _shape(self.shape, layout)
            fits = max(kernel) <= _LARGEST_KERNEL and (bias is None or bias.shape == (c_out,))
            if target is not None:
                wanted = tuple(target.weight.shape)
                swapped = target.transposed and layout != "dense"
                fits = _shape(self.shape, layout, swapped) == wanted
            if fits:
                self.possible.append(layout)
        if target is not None and len(self.possible) > 1:
            # a layer of torch's own comes after ToDense, one of ours from spconv
            dense = type(target).__module__.startswith("torch.")
            self.possible = [x for x in self.possible if (x == "dense") == dense] or self.possible
        regular = [x for x in self.possible if len(set(_shape(self.shape, x)[2:])) == 1]
        if len(self.possible) > 1 and regular:
            self.possible = regular  # kernels of equal extents are the rule


def _detect(weights: list[_Weight]) -> dict[str, str]:
    """The layout of each weight; one network has one, besides dense."""
    settled = {w.possible[0] for w in weights if len(w.possible) == 1} - {"dense"}
    found = {}
    for w in weights:
        possible = w.possible
        if len(possible) > 1 and len(settled) == 1 and settled <= set(possible):
            possible = list(settled)
        if len(possible) != 1:
            raise ValueError(
                f"from_spconv: layout must be given, as the shape {w.shape} of {w.name}.weight "
                f"{'allows ' + ' and '.join(possible) if possible else 'fits none'}; pass layout="
                '"KRSC" (spconv >= 2.2), "RSKC" (2.0, 2.1) or "RSCK" (1.x), by layer as '
                f"{{{w.name!r}: ...}}, or like= the network that will load it"
            )
        found[w.name] = possible[0]
    return found


def _check_layout(layout: Any) -> dict[str, str]:
    """Layouts by pattern."""
    if layout is None:
        return {}
    given = {"*": layout} if isinstance(layout, str) else layout
    if not isinstance(given, Mapping):
        raise TypeError(
            f"from_spconv: layout must be a str or a dict, got {type(layout).__name__}; pass e.g. "
            '"KRSC"'
        )
    for value in given.values():
        if value not in _ENDS:
            raise ValueError(
                f"from_spconv: layout must be one of {', '.join(_ENDS)}, got {value!r}; pass one"
            )
    return dict(given)


def _targets(like: nn.Module | None) -> dict[str, Any]:
    """The convolutions of the network that will load the weights."""
    if like is None:
        return {}
    return {n: m for n, m in like.named_modules() if isinstance(m, ConvBase)}


def convert_state(
    state: Mapping[str, Tensor],
    layout: Any,
    transposed: Sequence[str],
    strided: Sequence[str],
    like: nn.Module | None,
) -> dict[str, Tensor]:
    """A state dict of spconv with weights in torch's layout; see `from_spconv`."""
    given, targets = _check_layout(layout), _targets(like)
    layouts: dict[str, str] = {}
    unknown: list[_Weight] = []
    for key, value in state.items():
        name, _, leaf = key.rpartition(".")
        if leaf != "weight" or not 3 <= value.dim() <= 6:
            continue
        if like is not None and name not in targets:
            continue
        chosen = [v for pattern, v in given.items() if matches(name, [pattern])]
        if chosen:
            layouts[name] = chosen[0]
        else:
            bias = state.get(f"{name}.bias" if name else "bias")
            unknown.append(_Weight(name, value, bias, targets.get(name)))
    layouts |= _detect(unknown)
    out = {}
    for key, value in state.items():
        name, _, leaf = key.rpartition(".")
        if leaf == _COUNTER:
            continue
        if leaf != "weight" or layouts.get(name, "dense") == "dense":
            out[key] = value
            continue
        target = targets.get(name)
        swapped = matches(name, transposed) if target is None else target.transposed
        steps = matches(name, strided) if target is None else any(s != 1 for s in target.stride)
        kernel = _shape(value.shape, layouts[name])[2:]
        pointwise = set(kernel) == {1} and not steps
        out[key] = dense_weight(value, layouts[name], swapped, pointwise)
    return out
