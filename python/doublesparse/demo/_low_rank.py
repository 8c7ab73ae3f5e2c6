"""The experiment of `demo force`: networks, training with and without force, decomposition."""

from __future__ import annotations

import copy
import math
import pickle
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..bench import interleave, paired_ratio
from ..lowrank import Force, decompose, finetune, rank
from ._classify import Set, error, minibatches, train
from ._images import Images


@dataclass(frozen=True)
class Settings:
    """Everything that decides the result, by the names of the options.

    Strengths are those of a layer of one filter: a layer of n filters gets a strength of 1 / n of
    that, since the force is a sum over the filters.
    """

    seeds: int = 3
    train_size: int = 600
    epochs: int = 12
    force_epochs: int = 6
    finetune_epochs: int = 3
    lr: float = 0.05
    lr_scale: float = 0.1
    weight_decay: float = 5e-4
    batch_size: int = 50
    scratch: bool = False
    speed_batch: int = 100
    norms: tuple[str, ...] = ("l2", "l1")
    strengths: tuple[float, ...] = (0.1, 0.25, 0.5, 0.8)
    energies: tuple[float, ...] = (0.95, 0.8, 0.65)

    def __post_init__(self) -> None:
        if not all(0.0 < energy <= 1.0 for energy in self.energies):
            raise ValueError(f"energies must lie in (0, 1], got {self.energies}; use e.g. 0.95")
        if not set(self.norms) <= {"l1", "l2"}:
            raise ValueError(f"norms must be l1 or l2, got {self.norms}; use both, or one")
        for name in ("lr", "lr_scale"):
            if not 0.0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if not all(math.isfinite(strength) for strength in self.strengths):
            raise ValueError(f"strengths must be finite, got {self.strengths}")


class Arm(NamedTuple):
    """A way to train on; `norm` is empty without force."""

    norm: str
    strength: float

    @property
    def title(self) -> str:
        """As the tables name it."""
        return f"{self.norm} {self.strength:g}" if self.norm else "no force"


CONTROL = Arm("", 0.0)


def arms(settings: Settings) -> list[Arm]:
    """The control, then every norm at every strength."""
    forced = [Arm(norm, s) for norm in settings.norms for s in sorted(settings.strengths)]
    return [CONTROL, *forced]


# ------------------------------------------------------------------ networks
def make_network(colours: int, extent: int, n_classes: int) -> nn.Sequential:
    """LeNet (20-50-500) for grey images of MNIST's size, ConvNet (32-32-64) for coloured ones.

    Both as Wen et al. took them from Caffe, without its normalization; and three 3x3 convolutions
    (32-64-64) for images below 16 x 16.
    """
    if extent < 16:
        layers: list[nn.Module] = [
            *(nn.Conv2d(colours, 32, 3, padding=1), nn.ReLU()),
            *(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2, ceil_mode=True)),
            *(nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2, ceil_mode=True)),
            nn.Flatten(),
        ]
        return nn.Sequential(*layers, nn.Linear(64 * math.ceil(extent / 4) ** 2, n_classes))
    if colours == 1:
        after = ((extent - 4) // 2 - 4) // 2
        return nn.Sequential(
            *(nn.Conv2d(1, 20, 5), nn.MaxPool2d(2)),
            *(nn.Conv2d(20, 50, 5), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(50 * after**2, 500), nn.ReLU()),
            nn.Linear(500, n_classes),
        )
    return nn.Sequential(
        *(nn.Conv2d(colours, 32, 5, padding=2), nn.MaxPool2d(2), nn.ReLU()),
        *(nn.Conv2d(32, 32, 5, padding=2), nn.ReLU(), nn.AvgPool2d(2)),
        *(nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(), nn.AvgPool2d(2)),
        *(nn.Flatten(), nn.Linear(64 * (extent // 8) ** 2, n_classes)),
    )


def forced_layers(net: nn.Module) -> dict[str, Any]:
    """Convolutions and linear layers, without the last one, whose outputs are classes."""
    layers = {
        name: module
        for name, module in net.named_modules()
        if isinstance(module, (nn.Conv2d, nn.Linear))
    }
    layers.popitem()
    return layers


# ------------------------------------------------------------------ training
class Problem(NamedTuple):
    """What every arm of a seed shares."""

    data: Set
    test: Set
    settings: Settings
    seed: int


def problem(images: Images, settings: Settings, seed: int) -> Problem:
    """The seed's training images, and what to test on."""
    return Problem(*images.split(settings.train_size, seed), settings, seed)


def n_classes(images: Images) -> int:
    """As the labels say."""
    return int(images.train[1].max()) + 1


def _network(task: Problem, classes: int) -> nn.Sequential:
    torch.manual_seed(task.seed)
    shape = task.data[0].shape
    return make_network(shape[1], shape[-1], classes)


def _only(wanted: str) -> Callable[[str, nn.Module], bool]:
    return lambda name, _: name == wanted


def _train(net: nn.Module, task: Problem, lr: float, epochs: range, arm: Arm) -> None:
    """SGD with momentum, a tenth of the rate in the last quarter; each layer with its own force."""
    settings = task.settings
    optimizer = torch.optim.SGD(
        net.parameters(), lr=lr, momentum=0.9, weight_decay=settings.weight_decay
    )
    forces = [
        Force(net, arm.strength / len(layer.weight), arm.norm, _only(name))
        for name, layer in (forced_layers(net).items() if arm.norm else ())
    ]

    def apply() -> None:
        for force in forces:
            force.apply_()

    turn = epochs.start + max(1, round(0.75 * len(epochs)))
    train(
        net, optimizer, task.data, settings.batch_size, range(epochs.start, turn), task.seed, apply
    )
    for group in optimizer.param_groups:
        group["lr"] *= 0.1
    train(
        net, optimizer, task.data, settings.batch_size, range(turn, epochs.stop), task.seed, apply
    )


def baseline(images: Images, settings: Settings, seed: int) -> bytes:
    """A pickled network, trained without force; untrained where arms start from scratch."""
    task = problem(images, settings, seed)
    net = _network(task, n_classes(images))
    if not settings.scratch:
        _train(net, task, settings.lr, range(settings.epochs), CONTROL)
    return pickle.dumps(net)


def run_arm(
    images: Images, settings: Settings, seed: int, arm: Arm, start: bytes
) -> list[dict[str, Any]]:
    """Trains on; decomposes at every energy, and fine-tunes.

    Returns:
        A row per energy: `arm`, `seed`, `energy`, `ranks`, `summed_rank`, errors in percent
        `before`, `decomposed`, `finetuned`, and `net`, the pickled network before decomposition.
    """
    task = problem(images, settings, seed)
    net = pickle.loads(start)
    first = 0 if settings.scratch else settings.epochs
    lr = settings.lr * (1.0 if settings.scratch else settings.lr_scale)
    n_epochs = settings.force_epochs + (settings.epochs if settings.scratch else 0)
    _train(net, task, lr, range(first, first + n_epochs), arm)
    before = error(net, task.test)
    rows = []
    layers = forced_layers(net)
    for energy in settings.energies:
        low = decompose(net, energy, select=lambda name, _: name in layers, cost="always")
        row: dict[str, Any] = {"arm": arm, "seed": seed, "energy": energy, "before": before}
        row["ranks"] = [rank(layer.weight, energy) for layer in layers.values()]
        row["summed_rank"] = sum(row["ranks"])
        row["decomposed"] = error(low, task.test)
        batches = _Epochs(task, first + n_epochs)
        finetune(low, batches, epochs=settings.finetune_epochs, lr=settings.lr * settings.lr_scale)
        row["finetuned"] = error(low, task.test)
        row["net"] = pickle.dumps(net)
        rows.append(row)
    return rows


class _Epochs:
    """Batches in another order each time one goes through them."""

    def __init__(self, task: Problem, first: int) -> None:
        self.task, self.epoch = task, first

    def __len__(self) -> int:
        return math.ceil(len(self.task.data[1]) / self.task.settings.batch_size)

    def __iter__(self) -> Any:
        batches = minibatches(
            self.task.data, self.task.settings.batch_size, self.task.seed, self.epoch
        )
        self.epoch += 1
        return iter(batches)


# ------------------------------------------------------------------ speed
def multiply_adds(net: nn.Module, image: Tensor) -> int:
    """Of convolutions and linear layers, for one image of shape (1, colours, height, width)."""
    total = 0

    def count(module: Any, _: Any, out: Tensor) -> None:
        nonlocal total
        total += out.numel() * module.weight[0].numel()

    hooks = [
        module.register_forward_hook(count)
        for module in net.modules()
        if isinstance(module, (nn.Conv2d, nn.Linear))
    ]
    with torch.no_grad():
        net.eval()(image)
    for hook in hooks:
        hook.remove()
    return total


@torch.no_grad()
def measure(row: dict[str, Any], images: Tensor, rounds: int) -> dict[str, Any]:
    """Multiply-adds and time of the whole network, before and after, in turn, on one thread.

    Layers stay whole where the cost model says that two factors do not pay: they would hold the
    product. Both networks run in the memory format that is faster for each.
    """
    net = pickle.loads(row["net"]).eval()
    layers = forced_layers(net)
    low = decompose(net, row["energy"], select=lambda name, _: name in layers, example=images)
    macs = [multiply_adds(each, images[:1]) for each in (net, low)]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        times = interleave(_actions({"before": net, "after": low}, images), rounds, warmup=1)
    finally:
        torch.set_num_threads(threads)
    fastest = {
        which: min(
            (f"{which} {kind}" for kind in ("contiguous", "channels-last")),
            key=lambda name: statistics.median(times[name]),
        )
        for which in ("before", "after")
    }
    before, after = times[fastest["before"]], times[fastest["after"]]
    return {
        "macs": macs[0],
        "low_macs": macs[1],
        "speedup": paired_ratio(before, after),
        "images_per_second": len(images) / statistics.median(after),
        "formats": [name.split()[1] for name in fastest.values()],
        "decomposed_layers": sum(
            type(a) is not type(b) for a, b in zip(net.children(), low.children(), strict=True)
        ),
    }


def _actions(nets: dict[str, nn.Module], images: Tensor) -> dict[str, Callable[[], object]]:
    actions: dict[str, Callable[[], object]] = {}
    for which, net in nets.items():
        for kind, memory_format in (
            ("contiguous", torch.contiguous_format),
            ("channels-last", torch.channels_last),
        ):
            own = copy.deepcopy(net).to(memory_format=memory_format)  # type: ignore[call-overload]
            x = images.contiguous(memory_format=memory_format)
            actions[f"{which} {kind}"] = partial(own, x)
    return actions
