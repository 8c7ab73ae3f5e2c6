"""The same weights run sparse and dense: speed, difference of the outputs, active sites."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..bench import interleave, paired_ratio
from ..tensor import SparseTensor
from ._train import Data

# Rounds of a measurement: as many as fit the time, which the dense network mostly takes.
_MIN_ROUNDS, _MAX_ROUNDS = 3, 15
_SECONDS = 6.0
# A batch as in the paper's training, whatever the demo trains with.
_N_IMAGES = 100


def compare(net: nn.Module, data: Data) -> dict[str, Any]:
    """Measures on a batch of test characters.

    The sparse network gets coordinates and features and makes its tensor and its rulebooks in the
    measured time; the dense one gets its finished image, in the faster of torch's two memory
    formats.

    Returns:
        `speed`: {"test" | "train": images per second of each, and the ratio}; `difference`, the
        largest of the outputs, `dense_rounding`, the dense network's own against float64,
        `largest_logit`; `layers`.
    """
    n = min(_N_IMAGES, len(data.test))
    images, labels = data.test.batch(range(n))
    layers = layer_sites(net, images)
    dense_image = images.to_dense()
    return {
        "speed": {
            "test": _speed(net, images, dense_image, None),
            "train": _speed(net, images, dense_image, labels),
        },
        **_difference(net, images, dense_image),
        "layers": layers,
    }


def _speed(
    net: nn.Module, images: SparseTensor, dense_image: Tensor, labels: Tensor | None
) -> dict[str, float]:
    """Images per second; with labels, of a forward and backward pass."""

    def fresh() -> SparseTensor:  # no rulebook of an earlier round
        return SparseTensor(images.features, images.coords, images.spatial_shape, images.batch_size)

    def action(network: nn.Module, image: Callable[[], Any]) -> Callable[[], None]:
        def once() -> None:
            with torch.set_grad_enabled(labels is not None):
                logits = network(image())
                if labels is not None:
                    network.zero_grad()
                    functional.cross_entropy(logits, labels).backward()

        return once

    sparse, contiguous = copy.deepcopy(net), copy.deepcopy(net)
    last = copy.deepcopy(net)
    last.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    channels_last = dense_image.contiguous(memory_format=torch.channels_last)
    contiguous_image = dense_image.contiguous()
    for network in (sparse, contiguous, last):
        network.train(labels is not None)
    actions: dict[str, Callable[[], object]] = {
        "sparse": action(sparse, fresh),
        "contiguous": action(contiguous, lambda: contiguous_image),
        "channels_last": action(last, lambda: channels_last),
    }
    once = sum(seconds[0] for seconds in interleave(actions, rounds=1).values())
    rounds = min(max(round(_SECONDS / once), _MIN_ROUNDS), _MAX_ROUNDS)
    times = interleave(actions, rounds, warmup=0)
    median = {name: statistics.median(seconds) for name, seconds in times.items()}
    dense = min("contiguous", "channels_last", key=median.__getitem__)
    n = images.batch_size
    return {
        "sparse": n / median["sparse"],
        "dense": n / median[dense],
        "ratio": paired_ratio(times[dense], times["sparse"]),
    }


@torch.no_grad()
def _difference(net: nn.Module, images: SparseTensor, dense_image: Tensor) -> dict[str, float]:
    """Largest difference between sparse and dense outputs, next to what float32 itself loses."""
    net.eval()
    sparse, dense = net(images), net(dense_image)
    exact = copy.deepcopy(net).double()(dense_image.double())
    return {
        "difference": float((sparse - dense).abs().max()),
        "dense_rounding": float((dense - exact).abs().max()),
        "largest_logit": float(exact.abs().max()),
    }


@torch.no_grad()
def layer_outputs(net: nn.Module, images: SparseTensor) -> dict[str, SparseTensor | Tensor]:
    """The input, and what every convolution and pool of the network returns."""
    outputs: dict[str, SparseTensor | Tensor] = {"input": images}
    hooks = []
    for name, layer in net.get_submodule("features").named_children():
        if name.startswith(("conv", "nin", "pool")) and "_" not in name:
            hooks.append(
                layer.register_forward_hook(
                    lambda _module, _input, out, name=name: outputs.update({name: out})
                )
            )
    net.eval()
    net(images)
    for hook in hooks:
        hook.remove()
    return outputs


def layer_sites(net: nn.Module, images: SparseTensor) -> list[dict[str, Any]]:
    """Name, grid, channels, and active sites per image of each layer."""
    rows = []
    for name, out in layer_outputs(net, images).items():
        n_images, channels, *grid = out.shape
        cells = n_images * torch.Size(grid).numel()
        sites = len(out.coords) if isinstance(out, SparseTensor) else cells
        rows.append(
            {
                "layer": name,
                "grid": grid,
                "channels": channels,
                "sites": sites / n_images,
                "share": sites / cells,
            }
        )
    return rows
