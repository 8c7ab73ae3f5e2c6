"""Unfolded sparse coders: the double sparsity encoder's dense rivals, their arms and training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..models import DoubleSparsityEncoder
from ..models._neurons import HELU, SoftThreshold, TopM
from ..prune import Project, freeze, sparsify_
from ._images import Images

Set = tuple[Tensor, Tensor]
NEURONS = ("soft", "helu", "topm")
STARTS = ("random", "pretrained")
FAMILIES = ("DDSE", "LISTA", "LISTA small", "LISTA pruned")


class Arm(NamedTuple):
    """One way to make an encoder."""

    family: str
    neuron: str
    start: str

    def __str__(self) -> str:
        return f"{self.family}, {self.neuron}, {self.start}"


class Choice(NamedTuple):
    """What is tuned, on the same grid for every arm."""

    lr: float
    penalty: float


@dataclass(frozen=True)
class Shape:
    """Sizes that all arms share, and the learnt dictionaries S, (n_atoms, width), by width."""

    n_inputs: int
    n_atoms: tuple[int, int]
    n_codes: int
    nonzeros: int
    iterations: int
    learnt: dict[int, Tensor]
    n_classes: int = 10

    @property
    def kept(self) -> int:
        """Weights of W1, W2 and W3 that a double sparsity encoder keeps."""
        per_matrix = min(self.nonzeros, math.prod(self.n_atoms)) * self.n_codes
        return per_matrix * (3 if self.iterations > 1 else 1)

    @property
    def small(self) -> int:
        """Width of the dense encoder that comes closest to as many parameters.

        n (m + n) weights of the coder, n thresholds, and the classifier's 10 (n + 1), against
        3 n s, n thresholds and 10 (n + 1).
        """
        budget = self.kept + self.n_codes * (1 + self.n_classes)
        linear = self.n_inputs + 1 + self.n_classes
        lateral = 1 if self.iterations > 1 else 0

        def size(n: int) -> int:
            return lateral * n * n + linear * n

        n = 1
        while size(n + 1) <= budget:
            n += 1
        return n + 1 if size(n + 1) - budget < budget - size(n) else n

    def width(self, arm: Arm) -> int:
        """Units of an arm's code."""
        return self.small if arm.family == "LISTA small" else self.n_codes


@dataclass(frozen=True)
class Data:
    """Rows of pixels: a pool to draw labelled images from, and a test set, fixed."""

    title: str
    pool: Set
    test: Set

    @classmethod
    def of(cls, images: Images, test_size: int) -> Data:
        """Centred by the pool's mean image and scaled to a mean square of 1 a pixel."""
        if images.test is None:
            n = len(images.train[1]) - test_size
            pool, test = images.split(n, seed=0)
        else:
            pool, test = images.train, images.test
        rows, test_rows = pool[0].flatten(1), test[0].flatten(1)
        mean = rows.mean(0)
        scale = (rows - mean).square().mean().sqrt()
        return cls(
            images.title,
            ((rows - mean) / scale, pool[1]),
            ((test_rows - mean) / scale, test[1]),
        )

    def labelled(self, n: int, seed: int) -> Set:
        """So many images of the pool, 0 for all, in the seed's order."""
        total = len(self.pool[1])
        if n > total:
            raise ValueError(f"labels must be at most {total}, got {n}; use 0 for all")
        random = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(total, generator=random)[: n or total]
        return self.pool[0][chosen], self.pool[1][chosen]


# ------------------------------------------------------------------ networks
class LISTA(nn.Module):
    """The dense unfolded coder (Gregor and LeCun 2010): Z^1 = N(W x), Z^(t+1) = N(W x + S Z^t).

    Args:
        atoms: D, (n_inputs, n_codes), of the ISTA that it starts as: W = D^T / L,
            S = I - D^T D / L, threshold penalty / L.
        n_classes: outputs of the linear classifier on the code.
        iterations: how many nonlinearities.
        neuron: "soft", "helu" or "topm", as of `DoubleSparsityEncoder`.
        penalty: of the sparse coding.
    """

    def __init__(
        self, atoms: Tensor, n_classes: int, iterations: int, neuron: str, penalty: float
    ) -> None:
        super().__init__()
        m, n = atoms.shape
        self.iterations = iterations
        self.encoder = nn.Linear(m, n, bias=False)
        self.lateral = nn.Linear(n, n, bias=False) if iterations > 1 else None
        self.neuron: SoftThreshold | TopM
        if neuron == "topm":
            self.neuron = TopM(max(1, n // 8))
        else:
            self.neuron = (SoftThreshold if neuron == "soft" else HELU)(n)
        self.classifier = nn.Linear(n, n_classes)
        largest = float(torch.linalg.matrix_norm(atoms, 2)) ** 2
        with torch.no_grad():
            self.encoder.weight.copy_(atoms.t() / largest)
            if self.lateral is not None:
                self.lateral.weight.copy_(torch.eye(n) - atoms.t() @ atoms / largest)
        self.neuron.set_threshold_(penalty / largest)

    def set_progress(self, progress: float) -> None:
        """As of `DoubleSparsityEncoder`."""
        self.neuron.anneal(progress)

    def encode(self, x: Tensor) -> Tensor:
        """The code: (batch, n_inputs) to (batch, n_codes)."""
        drive = self.encoder(x)
        z = self.neuron(drive)
        if self.lateral is not None:
            for _ in range(self.iterations - 1):
                z = self.neuron(drive + self.lateral(z))
        return z

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return self.classifier(self.encode(x))


Encoder = DoubleSparsityEncoder | LISTA


def make(arm: Arm, shape: Shape, penalty: float, seed: int) -> Encoder:
    """An untrained encoder. The classifier's first weights are the seed's, whatever the arm.

    "random" is a random dictionary: of s-sparse columns over D0 for the sparse encoder, of
    Gaussian atoms for the dense ones. "pretrained" is the learnt S, D0 S for the dense ones.
    """
    width = shape.width(arm)
    base = DoubleSparsityEncoder(
        shape.n_inputs,
        width,
        shape.n_classes,
        shape.iterations,
        shape.nonzeros,
        neuron=arm.neuron,
        n_atoms=shape.n_atoms,
        penalty=penalty,
        random_state=seed,
    )
    model: Encoder = base
    learnt = shape.learnt.get(width) if arm.start == "pretrained" else None
    if arm.family == "DDSE":
        if learnt is not None:
            base.initialize_(learnt)
    else:
        if learnt is not None:
            atoms = base.dictionary.synthesis(learnt.t().contiguous()).t()
        else:
            random = torch.Generator().manual_seed(seed)
            atoms = torch.randn(shape.n_inputs, width, generator=random)
            atoms = atoms / atoms.norm(dim=0)
        model = LISTA(atoms, shape.n_classes, shape.iterations, arm.neuron, penalty)
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        bound = 1 / math.sqrt(width)
        for parameter in (model.classifier.weight, model.classifier.bias):
            parameter.uniform_(-bound, bound, generator=random)
    return model


# ------------------------------------------------------------------ training
@dataclass(frozen=True)
class Course:
    """How long and in what portions an encoder is trained."""

    steps: int
    batch_size: int
    project_every: int


def train(
    model: Encoder, data: Set, course: Course, lr: float, seed: int, anneal: bool = True
) -> None:
    """SGD with momentum 0.9, the rate falling linearly to zero; sparse weights are projected.

    An order of samples belongs to each seed, the same for all arms. HELU's sigma falls linearly
    from 1 to 0 over the first three quarters; the last quarter trains what will be used.
    """
    inputs, labels = data
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    project = None
    if isinstance(model, DoubleSparsityEncoder):
        project = Project(model, course.project_every)
        project.attach(optimizer)
    random = torch.Generator().manual_seed(1_000_003 + seed)
    order: list[Tensor] = []
    model.train()
    for step in range(course.steps):
        if not order:
            order = list(torch.randperm(len(labels), generator=random).split(course.batch_size))
        chosen = order.pop()
        if anneal:
            model.set_progress(min(1.0, step / (0.75 * course.steps)))
        for group in optimizer.param_groups:
            group["lr"] = lr * (1 - step / course.steps)
        optimizer.zero_grad()
        F.cross_entropy(model(inputs[chosen]), labels[chosen]).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)  # a rate of the grid may be too large
        optimizer.step()
    model.set_progress(1.0)
    if project is not None:
        project.project()
    model.eval()


def prune(model: LISTA, shape: Shape) -> None:
    """Magnitude pruning of a dense encoder to the sparse one's non-zeros: one threshold for all."""
    layers = [layer for layer in (model.encoder, model.lateral) if layer is not None]
    sparsity = max(0.0, 1 - shape.kept / sum(layer.weight.numel() for layer in layers))
    sparsify_(model, sparsity, scope="global", select=lambda name, module: name != "classifier")


def fine_tune(model: LISTA, data: Set, course: Course, lr: float, seed: int) -> None:
    """A quarter of the training's steps at half its rate, with the mask held."""
    train(model, data, replace(course, steps=max(1, course.steps // 4)), lr / 2, seed, anneal=False)


@torch.no_grad()
def evaluate(model: Encoder, data: Set) -> tuple[float, float, float]:
    """Share of wrong answers in percent, cross entropy, share of the code that is not zero."""
    wrong = loss = active = 0.0
    model.eval()
    for x, y in zip(data[0].split(1000), data[1].split(1000), strict=True):
        code = model.encode(x)
        logits = model.classifier(code)
        wrong += float((logits.argmax(1) != y).sum())
        loss += float(F.cross_entropy(logits, y, reduction="sum"))
        active += float((code != 0).sum())
    n = len(data[1])
    return 100 * wrong / n, loss / n, active / (n * model.classifier.in_features)


# ------------------------------------------------------------------ sizes
def parameters(model: Encoder) -> int:
    """Parameters that are not zero, thresholds and classifier included."""
    return sum(int((p != 0).sum()) for p in model.parameters())


def packed(model: Encoder) -> Encoder:
    """The form for inference: sparse weights packed."""
    return freeze(model.eval())


def stored_bytes(model: Encoder) -> int:
    """Of all tensors in the `state_dict`, as the model is."""
    tensors: Sequence[Tensor] = [v for v in model.state_dict().values() if isinstance(v, Tensor)]
    return sum(t.numel() * t.element_size() for t in tensors)
