"""Layers of low rank in place of convolutions and linear layers."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Literal, cast, overload

from torch import Tensor, nn

from .._freeze import forget_around, thaw_ground
from ..prune._sparsify import Select, candidates, check_model
from ._factors import METHODS, Factors, factorize
from ._filters import check_weight, filter_rows, grouping
from ._layers import LowRank, low_rank_layer, unsupported
from ._pays import MARGIN, Positions, counts, observed_positions, unknown_positions
from ._rank import check_energy
from ._report import DecomposeReport, LayerReport, Place

Rank = int | Mapping[str, int]


@overload
def decompose(
    module: nn.Module,
    energy: float = ...,
    *,
    rank: Rank | None = ...,
    method: str = ...,
    select: Select | None = ...,
    cost: str | None = ...,
    example: Any = ...,
    inplace: bool = ...,
    random_state: int = ...,
    return_report: Literal[False] = ...,
) -> Any: ...


@overload
def decompose(
    module: nn.Module,
    energy: float = ...,
    *,
    rank: Rank | None = ...,
    method: str = ...,
    select: Select | None = ...,
    cost: str | None = ...,
    example: Any = ...,
    inplace: bool = ...,
    random_state: int = ...,
    return_report: Literal[True],
) -> tuple[Any, DecomposeReport]: ...


def decompose(
    module: nn.Module,
    energy: float = 0.95,
    *,
    rank: Rank | None = None,
    method: str = "pca",
    select: Select | None = None,
    cost: str | None = None,
    example: Any = None,
    inplace: bool = False,
    random_state: int = 0,
    return_report: bool = False,
) -> Any:
    """Turn convolutions and linear layers into two thin ones each (Wen et al. 2017, LRA).

    The filters of a layer, as rows of a matrix W (n, d) of which no mean is subtracted, become
    combinations of M: W ~ V (V^T W). `basis` has the M filters V^T W, the layer's own kernel,
    stride, padding, dilation and groups, and no bias; `combine`, a 1x1 convolution or a second
    linear layer, has the weights V (n, M) and the layer's bias. Filters of a group are combined
    among themselves; all groups of a layer get the rank of the one that needs most, and both layers
    are grouped.

    * "pca": V = the M first left singular vectors, so the basis is what the filters' energy says.
    * "svd": the same product, with the root of the singular values on both sides.
    * "kmeans": the basis is M centroids, and each output is that of its centroid. It needs
      scikit-learn.

    Done are the layers of torch and of `ds.nn` of exactly these classes: `Linear`, `Conv1d..3d`,
    `ConvTranspose1d..3d`, `SparseConv*`, `SubmanifoldConv*`, `SparseConvTranspose*`,
    `SparseInverseConv*`. Masked layers are taken as dense ones, zeros and all, and so is what comes
    out; prune the basis afterwards with `ds.prune.sparsify_`. Left alone, with a line in the
    report, are weights that are tied, parametrized or computed by a hook, layers with hooks, and
    those that a fused module reads (`nn.MultiheadAttention`).

    A layer whose two factors are not predicted to be 1.4 times as fast stays as it is: the
    prediction, by the package's cost model of multiply-adds and bytes moved, is optimistic for few
    channels. It takes the layers to be large unless there is an `example`. The parameters are
    new: build the optimizer after this.

    Args:
        module: a model, or one such layer.
        energy: the share of the sum of squared singular values to keep, in (0, 1]; for k-means, the
            share of the sum of squared weights that the centroids hold.
        rank: M instead, for all layers, or {name of a layer: M}, and then other layers stay as they
            are; capped at what the layer has.
        method: "pca", "svd" or "kmeans".
        select: (name, module) -> bool, which layers; default: all.
        cost: "auto", do what pays; "always", do all; default: "auto", but "always" where `rank` is
            given.
        example: an input of the model, or a tuple of its arguments, by which the cost model knows
            how often each layer computes; it is run once, in evaluation mode.
        inplace: change the model, rather than a copy of it. A layer that is given by itself is not
            changed: what is returned takes its place.
        random_state: of k-means.
        return_report: return a `DecomposeReport` too, to `print` and to `measure`.

    Returns:
        the model, or (model, report).

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: an argument out of range, an unknown method or name, or NaN in a weight; then
            nothing was changed.
        NotImplementedError: weights that are neither float32 nor float64.
        ImportError: k-means without scikit-learn.

    Example:
        >>> import torch, doublesparse as ds
        >>> conv = torch.nn.Conv2d(16, 32, 3, stride=2, padding=1)
        >>> low = ds.lowrank.decompose(conv, rank=4)
        >>> low.basis, low.combine
        (Conv2d(16, 4, kernel_size=(3, 3), stride=(2, 2), padding=(1, 1), bias=False),
         Conv2d(4, 32, kernel_size=(1, 1), stride=(1, 1)))
        >>> x = torch.randn(2, 16, 9, 9)
        >>> exact = ds.lowrank.decompose(conv, energy=1.0, cost="always")
        >>> torch.allclose(exact(x), conv(x), atol=1e-5)
        True
    """
    check_model("decompose", module)
    _check_options(energy, rank, method, select, cost)
    always = (cost or ("auto" if rank is None else "always")) == "always"
    model = module if inplace else copy.deepcopy(module)
    layers, skipped = _layers(model, select)
    wanted = _ranks(rank, layers, skipped)
    positions = {name: unknown_positions(layers[name]) for name in wanted}
    if example is not None:
        positions |= observed_positions(model, {n: layers[n] for n in wanted}, example)
    rows, made = [], {}
    for name, m in wanted.items():  # all factors before the first change: an error changes nothing
        row, layer = _examine(
            name, layers[name], energy, m, method, always, positions[name], random_state
        )
        rows.append(row)
        if layer is not None:
            made[name] = layer
    places = _replace(model, {layers[name]: layer for name, layer in made.items()})
    model = next((made[name] for name in made if name == ""), model)
    if not return_report:
        return model
    by_name = {name: places[layers[name]] for name in made}
    return model, DecomposeReport(rows, skipped, method, model, by_name)


def _check_options(energy: Any, rank: Any, method: Any, select: Any, cost: Any) -> None:
    check_energy("decompose", energy)
    if method not in METHODS:
        raise ValueError(
            f"decompose: method must be one of {METHODS}, got {method!r}; pass one of them"
        )
    if cost not in (None, "auto", "always"):
        raise ValueError(
            f'decompose: cost must be "auto" or "always", got {cost!r}; pass one of them'
        )
    if select is not None and not callable(select):
        raise TypeError(
            "decompose: select must be a function (name, module) -> bool, got "
            f"{type(select).__name__}; pass e.g. lambda name, module: name != 'head'"
        )
    for m in rank.values() if isinstance(rank, Mapping) else [] if rank is None else [rank]:
        if isinstance(m, bool) or not isinstance(m, int):
            raise TypeError(
                f"decompose: rank must be an int or {{name: int}}, got {type(m).__name__}; "
                "pass a number of filters"
            )
        if m < 1:
            raise ValueError(f"decompose: rank must be >= 1, got {m}; pass a number of filters")


def _layers(model: nn.Module, select: Select | None) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """The layers that can be decomposed and are selected, and why others are not."""
    layers: dict[str, nn.Module] = {}
    skipped: dict[str, str] = {}
    inside: set[int] = set()
    for module in model.modules():
        if isinstance(module, LowRank):
            inside.update(map(id, module.children()))
    for name, module, why in candidates(model, unsupported):
        if why is None and id(module) in inside:
            why = "it is a factor of a decomposed layer"
        if why is None and cast("Tensor", module.weight).numel() == 0:
            why = "its weight is empty"
        if why is None and (select is None or select(name, module)):
            layers[name] = module
        else:
            skipped[name] = why or "select does not take it"
    return layers, skipped


def _ranks(
    rank: Rank | None, layers: dict[str, nn.Module], skipped: dict[str, str]
) -> dict[str, int | None]:
    """{name: rank, or None for what the energy says}, in the model's order."""
    if not isinstance(rank, Mapping):
        return dict.fromkeys(layers, rank)
    for name in rank:
        if name not in layers:
            why = skipped.get(name, "no layer has that name")
            raise ValueError(
                f"decompose: rank must name layers that can be decomposed, got {name!r}: {why}; "
                f"the layers are {sorted(layers)}"
            )
    skipped.update({name: "rank does not name it" for name in layers if name not in rank})
    return {name: rank[name] for name in layers if name in rank}


def _examine(
    name: str,
    module: nn.Module,
    energy: float,
    rank: int | None,
    method: str,
    always: bool,
    positions: Positions,
    random_state: int,
) -> tuple[LayerReport, LowRank | None]:
    """What is known of a layer, and the layer of low rank if it is to take its place."""
    weight = check_weight(f"decompose: layer {name!r}", module.weight)
    rows = filter_rows(weight, *grouping(module))
    factors: Factors = factorize(rows, energy, rank, method, random_state)
    m = factors.basis.shape[1]
    before = counts(module, positions, device=weight.device.type)
    after = counts(module, positions, m, weight.device.type)
    predicted = before.ns / after.ns
    made = low_rank_layer(module, factors) if always or predicted > MARGIN else None
    n = 1 if positions.known else positions.n_out
    row = LayerReport(
        name=name,
        type=type(module).__name__,
        shape=tuple(weight.shape),
        shapes=None if made is None else (_shape(made.basis), _shape(made.combine)),
        rank=m,
        full_rank=rows.shape[1] if method == "kmeans" else min(rows.shape[1:]),
        energy=factors.energy,
        error=factors.error,
        macs=before.macs // n,
        low_rank_macs=after.macs // n,
        predicted=predicted,
        why="" if made is not None else f"rank {m} does not pay (predicted {predicted:.2f}x)",
    )
    return row, made


def _shape(module: Any) -> tuple[int, ...]:
    return tuple(module.weight.shape)


def _replace(model: nn.Module, layers: dict[nn.Module, LowRank]) -> dict[nn.Module, Place]:
    """Put layers where others are, under all their names."""
    parents: dict[nn.Module, list[tuple[nn.Module, str]]] = {layer: [] for layer in layers}
    for parent in model.modules():
        for key, child in parent._modules.items():
            if child in parents:
                parents[child].append((parent, key))
    places = {old: Place(old, new, tuple(parents[old])) for old, new in layers.items()}
    if places:
        thaw_ground(model)
    for old, place in places.items():
        forget_around(old)
        place.put(place.after)
    return places
