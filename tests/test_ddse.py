"""The double sparsity encoder: sparse coding it unfolds, its weights, its packed form."""

from __future__ import annotations

import copy
import io
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import doublesparse as ds
from doublesparse.models import _code_product as products

NEURONS = ("soft", "helu", "topm")
GIVEN = torch.randn(64, 70, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
DICTIONARIES = {"dct": "dct", "wavelet": "wavelet", "given": GIVEN}
X = torch.randn(7, 64, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def encoder(neuron="soft", iterations=2, nonzeros=5, dictionary="dct", **options):
    options = {"random_state": 0, "dtype": torch.float64} | options
    return ds.models.DoubleSparsityEncoder(
        64, 32, 10, iterations, nonzeros, dictionary, neuron, **options
    )


def sparse_coding(x, d, steps, penalty, neuron, m):
    """ISTA, iterative hard thresholding, or keeping M, from zero: the textbook's own steps."""
    largest = np.linalg.norm(d, 2) ** 2
    threshold, z = penalty / largest, np.zeros((len(x), d.shape[1]))
    for _ in range(steps):
        u = z + (x - z @ d.T) @ d / largest
        if neuron == "soft":
            z = np.sign(u) * np.maximum(np.abs(u) - threshold, 0)
        elif neuron == "helu":
            z = np.where(np.abs(u) >= threshold, u, 0)
        else:
            z = np.zeros_like(u)
            for row, out in zip(u, z, strict=True):
                best = np.argsort(-np.abs(row), kind="stable")[:m]
                out[best] = row[best]
    return z


# ------------------------------------------------------------------ what it computes
@pytest.mark.parametrize("nonzeros", [5, 100])
@pytest.mark.parametrize("neuron", NEURONS)
@pytest.mark.parametrize("dictionary", DICTIONARIES)
def test_untrained_is_sparse_coding(dictionary, neuron, nonzeros):
    """M1: with tied first weights, K steps of ISTA or IHT on D = D0 S; s full or not."""
    for steps in (1, 2, 4):
        options = {"code_nonzeros": 6} if neuron == "topm" else {}
        model = encoder(neuron, steps, nonzeros, DICTIONARIES[dictionary], penalty=0.3, **options)
        model.set_progress(1.0)
        s = model.w1.weight.detach().numpy().T  # of another scale, which D's norm undoes
        d = model.dictionary.matrix().numpy() @ s
        s, d = s / np.linalg.norm(d, axis=0), d / np.linalg.norm(d, axis=0)
        assert np.all((s != 0).sum(0) == min(nonzeros, model.n_atoms))
        want = sparse_coding(X.numpy(), d, steps, 0.3, neuron, 6)
        np.testing.assert_allclose(model.encode(X).detach(), want, rtol=0, atol=1e-12)
        logits = want @ model.classifier.weight.detach().numpy().T + model.classifier.bias.tolist()
        np.testing.assert_allclose(model(X.view(7, 1, 8, 8)).detach(), logits, rtol=0, atol=1e-12)
        single = copy.deepcopy(model).float()(X.float())
        if neuron == "soft":  # continuous, so rounding stays small
            np.testing.assert_allclose(single.detach(), logits, rtol=0, atol=1e-5)


def test_given_sparse_dictionary():
    model = encoder(nonzeros=3, iterations=3)
    s = torch.zeros(100, 32)
    s[torch.arange(96), torch.arange(96) % 32] = torch.randn(96)
    assert model.initialize_(s, penalty=0.05) is model
    d = model.dictionary.matrix().numpy() @ s.double().numpy()
    want = sparse_coding(X.numpy(), d, 3, 0.05, "soft", None)
    np.testing.assert_allclose(model.encode(X).detach(), want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("sigma", [1.0, 0.5, 0.01, 0.0])
def test_helu_is_the_papers(sigma):
    model = encoder("helu")
    model.set_progress(1 - sigma)
    theta = np.linspace(-0.5, 0.5, 32)
    u = np.random.default_rng(0).normal(size=(50, 32))
    u[0], u[1], u[2] = np.abs(theta), -np.abs(theta), 0
    with torch.no_grad():
        model.neuron.theta.copy_(torch.from_numpy(theta))
    t = np.abs(theta)
    v = u / t
    inside = np.abs(v) < 1
    with np.errstate(divide="ignore", invalid="ignore"):
        ramp = np.where(v > 0, (v - 1 + sigma) / sigma, (v + 1 - sigma) / sigma)
    want = np.where(np.abs(v) <= 1 - sigma, 0, np.where(inside, ramp, v)) * t
    want[0], want[1], want[2] = u[0], u[1], 0  # on the edge: u
    got = model.neuron(torch.from_numpy(u)).detach().numpy()
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-14 / max(sigma, 0.01))


def test_top_m_ties_and_nan():
    neuron = encoder("topm", code_nonzeros=3).neuron
    u = torch.tensor([[1.0, -1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0], [3.0, 1.0, -2.0, 4.0]])
    u.requires_grad_()
    assert neuron(u).tolist()[0] == [1.0, -1.0, 1.0, 0.0]
    neuron(u).sum().backward()
    assert u.grad.tolist() == [[1, 1, 1, 0], [1, 1, 1, 0], [1, 0, 1, 1]]
    assert bool(neuron(torch.tensor([[1.0, 2.0, 3.0, float("nan")]])).isnan().any())


@pytest.mark.parametrize("neuron", NEURONS)
@pytest.mark.parametrize("dictionary", DICTIONARIES)
def test_gradients(dictionary, neuron):
    """Finite differences in float64, to every parameter and the input."""
    options = {"random_state": 3, "dtype": torch.float64, "penalty": 0.2}
    base = GIVEN[:8, :9]
    if dictionary != "given":
        base, options["input_shape"] = dictionary, (2, 4)
    model = ds.models.DoubleSparsityEncoder(8, 4, 3, 3, 4, base, neuron, **options)
    model.set_progress(0.5)
    x = X[:2, :8].clone().requires_grad_()
    names = [name for name, _ in model.named_parameters()]

    def run(x, *values):
        return torch.func.functional_call(model, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(run, (x, *model.parameters()))


# ------------------------------------------------------------------ dictionaries
@pytest.mark.parametrize(
    ("options", "n_inputs", "shape"),
    [
        ({}, 64, (64, 100)),
        ({"n_atoms": 81}, 64, (64, 81)),
        ({"n_atoms": (9, 20)}, 64, (64, 180)),  # two transforms are cheaper than a Gram matrix
        ({"input_shape": (4, 16)}, 64, (64, 100)),
        ({"input_shape": (64,), "n_atoms": 70}, 64, (64, 70)),
        ({}, 15, (15, 19)),
        ({}, 1, (1, 2)),
        ({"dictionary": "wavelet"}, 64, (64, 64)),
        ({"dictionary": "wavelet", "input_shape": (12, 5)}, 60, (60, 60)),
        ({"dictionary": "wavelet", "input_shape": (10,)}, 10, (10, 10)),
        ({"dictionary": GIVEN}, 64, (64, 70)),
    ],
)
def test_fast_transforms_are_the_matrix(options, n_inputs, shape):
    """Analysis, synthesis and their product, against the matrix that is one of them."""
    model = ds.models.DoubleSparsityEncoder(n_inputs, 4, 2, dtype=torch.float64, **options)
    base = model.dictionary
    d = base.matrix().numpy()
    assert d.shape == shape == (base.n_inputs, base.n_atoms)
    x, b = np.random.default_rng(0).normal(size=(3, shape[0])), np.ones((2, shape[1])).cumsum(1)
    exact = {"rtol": 0, "atol": 1e-10}
    np.testing.assert_allclose(base.analysis(torch.from_numpy(x)), x @ d, **exact)
    np.testing.assert_allclose(base.synthesis(torch.from_numpy(b)), b @ d.T, **exact)
    np.testing.assert_allclose(base.gram(torch.from_numpy(b)), b @ d.T @ d, **exact)
    if "dictionary" not in options:
        np.testing.assert_allclose(np.linalg.norm(d, axis=0), 1, **exact)
    assert base.analysis(torch.zeros(0, n_inputs, dtype=torch.float64)).shape == (0, shape[1])


def test_dct_and_haar_by_their_formulas():
    atoms = ds.models.DoubleSparsityEncoder(6, 4, 2, n_atoms=8).double().dictionary.matrix()
    i, k = np.arange(6)[:, None], np.arange(8)[None]
    want = np.cos(np.pi * k * (2 * i + 1) / 16)
    want[:, 1:] -= want[:, 1:].mean(0)
    want /= np.linalg.norm(want, axis=0)
    np.testing.assert_allclose(atoms, want, rtol=0, atol=1e-14)  # exact after .double()
    square = ds.models.DoubleSparsityEncoder(
        24, 4, 2, n_atoms=(5, 7), input_shape=(4, 6), dtype=torch.float64
    )
    ones = [
        ds.models.DoubleSparsityEncoder(m, 4, 2, n_atoms=p, input_shape=(m,), dtype=torch.float64)
        for m, p in ((4, 5), (6, 7))
    ]
    kron = np.kron(*(one.dictionary.matrix().numpy() for one in ones))
    np.testing.assert_allclose(square.dictionary.matrix(), kron, rtol=0, atol=1e-14)
    haar = ds.models.DoubleSparsityEncoder(4, 4, 2, dictionary="wavelet", input_shape=(4,))
    r = 0.5**0.5
    want = np.array([[0.5] * 4, [0.5, 0.5, -0.5, -0.5], [r, -r, 0, 0], [0, 0, r, -r]]).T
    np.testing.assert_allclose(haar.dictionary.matrix(), want, rtol=0, atol=1e-6)


# ------------------------------------------------------------------ weights
@pytest.mark.parametrize("neuron", NEURONS)
def test_training_keeps_the_constraints(neuron):
    """M2: at most 3 n s non-zero weights after every step, and it learns."""
    model = encoder(neuron, dtype=torch.float32, penalty=0.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    ds.prune.Project(model).attach(optimizer)
    x = X.float()
    y = torch.arange(7)
    losses = []
    supports = [w.weight.detach() != 0 for w in (model.w1, model.w2, model.w3)]
    for step in range(40):
        model.set_progress(step / 39)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
        for w in (model.w1, model.w3):
            assert (w.weight != 0).sum(1).tolist() == [5] * 32
        assert (model.w2.weight != 0).sum(0).tolist() == [5] * 32
    assert losses[-1] < 0.5 * losses[0]
    after = [w.weight.detach() != 0 for w in (model.w1, model.w2, model.w3)]
    assert any(bool((b & ~a).any()) for a, b in zip(supports, after, strict=True))


def n_stored(model) -> int:
    return sum(t.numel() * t.element_size() for t in model.state_dict().values())


def test_stored_size_scales_with_s():
    def size(s, dtype=None):
        model = ds.models.DoubleSparsityEncoder(784, 256, 10, nonzeros=s).eval()
        others = 4 * (256 + 257 * 10)
        return n_stored(ds.prune.freeze(model, dtype)) - others

    sizes = {s: size(s) for s in (4, 8, 16, 32)}
    for s, n in sizes.items():
        assert 3 * 256 * s * 4 < n < 3 * 256 * s * 6 + 600  # value, gap of 1 or 2 bytes, meta
    assert size(16, torch.bfloat16) < 0.7 * sizes[16]
    model = ds.models.DoubleSparsityEncoder(784, 256, 10, nonzeros=8)
    assert n_stored(model) > 50 * sizes[8]


@pytest.mark.parametrize("dictionary", DICTIONARIES)
@pytest.mark.parametrize("neuron", NEURONS)
def test_freeze_and_thaw(neuron, dictionary):
    model = encoder(neuron, 3, dictionary=DICTIONARIES[dictionary]).eval()
    with torch.no_grad():
        want = model(X)
    state = copy.deepcopy(model.state_dict())
    assert ds.prune.freeze(model) is model
    assert all(type(w).__name__ == "PackedProjectedLinear" for w in (model.w1, model.w2, model.w3))
    with torch.no_grad():
        torch.testing.assert_close(model(X), want, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(model(X), want, rtol=1e-12, atol=1e-12)  # and with gradients
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(X), model(X))
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    for frozen in (True, False):
        other = encoder(neuron, 3, dictionary=DICTIONARIES[dictionary], random_state=9).eval()
        buffer.seek(0)
        loaded = torch.load(buffer, weights_only=True)
        (ds.prune.freeze(other) if frozen else other).load_state_dict(loaded)
        torch.testing.assert_close(other(X), want, rtol=1e-12, atol=1e-12)
    with pytest.raises(RuntimeError, match="must not be frozen"):
        model.initialize_(torch.zeros(model.n_atoms, 32))
    ds.thaw(model)
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_one_iteration_and_meta():
    model = encoder(iterations=1)
    assert model.w2 is None and model.w3 is None
    assert {n for n, _ in model.named_parameters()} == {
        "neuron.theta", "w1.weight", "classifier.weight", "classifier.bias",
    }  # fmt: skip
    b = model.dictionary.analysis(X) @ model.w1.weight.t()
    t = model.neuron.theta[0].item()
    torch.testing.assert_close(model.encode(X), F.softshrink(b, t))
    assert model(X[:0]).shape == (0, 10)
    meta = encoder(device="meta")
    assert meta.w1.weight.is_meta and meta.w1.weight.shape == (32, 100)


@pytest.mark.parametrize("dictionary", DICTIONARIES)
@pytest.mark.parametrize("frozen", [False, True])
def test_loads_into_a_model_on_meta(dictionary, frozen):
    """The dictionary, which a `state_dict` lacks where it is a transform, comes along."""
    model = encoder(dictionary=DICTIONARIES[dictionary]).eval()
    want = model(X)
    state = (ds.prune.freeze(model) if frozen else model).state_dict()
    for assign in (False, True):
        with torch.device("meta"):
            empty = encoder(dictionary=DICTIONARIES[dictionary]).eval()
        if not assign:
            empty.to_empty(device="cpu")
        empty.load_state_dict(state, assign=assign)
        torch.testing.assert_close(empty(X), want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("neuron", NEURONS)
def test_deterministic_and_copies(neuron):
    one, two, other = encoder(neuron), encoder(neuron), encoder(neuron, random_state=1)
    for name, value in one.state_dict().items():
        assert torch.equal(two.state_dict()[name], value), name
    assert not torch.equal(one.w1.weight, other.w1.weight)
    one.set_progress(0.25)
    other.load_state_dict(one.state_dict())
    for twin in (other, copy.deepcopy(one), pickle.loads(pickle.dumps(one))):
        assert torch.equal(twin(X), one(X))
        assert list(twin.state_dict()) == list(one.state_dict())


# ------------------------------------------------------------------ sparse times sparse
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("way", ["dense", "rows", "entries"])
def test_every_product_of_codes(monkeypatch, way, dtype):
    rng = np.random.default_rng(0)
    s = np.zeros((40, 30))
    for j in range(30):
        s[rng.choice(40, 4, replace=False), j] = rng.normal(size=4)
    s[:, 7] = 0  # kept, and zero
    z, index = np.zeros((9, 30)), np.zeros((9, 5), int)
    for i in range(9):
        index[i] = rng.choice(30, 5, replace=False)
        z[i, index[i]] = rng.normal(size=5)
    z[3] = 0
    weight = torch.from_numpy(s).to(dtype)
    packed = ds.PackedWeight.pack(
        weight, ds.prune.magnitude_mask(weight, ds.TopKColumns(4)), ds.TopKColumns(4)
    )
    monkeypatch.setattr(products, "cheapest", lambda *sizes: way)
    monkeypatch.setattr(products, "_CHUNK", 50)
    got = products.code_product(packed, torch.from_numpy(z).to(dtype), torch.from_numpy(index))
    assert got.dtype == dtype
    u = torch.finfo(dtype).eps
    bound = 2 * (20 + 2) * u * (np.abs(z) @ np.abs(s).T) + u
    assert np.all(np.abs(got.numpy() - z @ s.T) <= bound)


def test_which_product_depends_on_how_few_are_active():
    def choice(n_atoms, n_codes, s, batch, active):
        weight = torch.zeros(n_atoms, n_codes)
        weight[:s] = 1
        packed = ds.PackedWeight.pack(weight, pattern=ds.TopKColumns(s))
        return products.cheapest(packed, s, batch, active)

    assert choice(100, 512, 20, 512, 4) == "rows"
    assert choice(1024, 2048, 8, 256, 16) == "entries"
    assert choice(100, 512, 20, 512, 512) == "dense"


# ------------------------------------------------------------------ wrong input
@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"n_inputs": 0}, ValueError, "n_inputs must be >= 1"),
        ({"n_inputs": 64.0}, TypeError, "n_inputs must be an integer"),
        ({"n_codes": True}, TypeError, "n_codes must be an integer"),
        ({"n_classes": -1}, ValueError, "n_classes must be >= 1"),
        ({"iterations": 0}, ValueError, "iterations must be >= 1"),
        ({"nonzeros": 0}, ValueError, "nonzeros must be >= 1"),
        ({"neuron": "relu"}, ValueError, "neuron must be one of"),
        ({"dictionary": "fourier"}, ValueError, "dictionary must be 'dct'"),
        ({"dictionary": torch.ones(3, 4)}, ValueError, "dictionary must have 64 inputs"),
        ({"dictionary": torch.ones(64, dtype=torch.int32)}, TypeError, "floating-point"),
        ({"dictionary": torch.full((64, 4), torch.nan)}, ValueError, "finite"),
        ({"dictionary": torch.ones(64)}, ValueError, "finite"),
        ({"dictionary": "wavelet", "n_atoms": 65}, ValueError, "dictionary must have"),
        ({"dictionary": "wavelet", "n_inputs": 49}, ValueError, "even axis"),
        ({"n_atoms": 99}, ValueError, "n_atoms must be one number per axis"),
        ({"n_atoms": (3, 3, 3)}, ValueError, "n_atoms must be one number per axis"),
        ({"n_atoms": (3, 0)}, ValueError, "n_atoms must be >= 1"),
        ({"input_shape": (5, 5)}, ValueError, "input_shape must be one or two"),
        ({"input_shape": (4, 4, 4)}, ValueError, "input_shape must be one or two"),
        ({"input_shape": 64}, TypeError, "input_shape must be a sequence"),
        ({"penalty": -1.0}, ValueError, "penalty must be finite"),
        ({"penalty": float("nan")}, ValueError, "penalty must be finite"),
        ({"penalty": "1"}, TypeError, "penalty must be a number"),
        ({"code_nonzeros": 3}, ValueError, "code_nonzeros must be None"),
        ({"code_nonzeros": 33, "neuron": "topm"}, ValueError, "code_nonzeros must be at most"),
        ({"random_state": 0.5}, TypeError, "random_state must be an integer"),
    ],
)
def test_wrong_arguments(options, error, match):
    values = {"n_inputs": 64, "n_codes": 32, "n_classes": 10} | options
    with pytest.raises(error, match=f"DoubleSparsityEncoder: .*{match}"):
        ds.models.DoubleSparsityEncoder(**values)


def test_wrong_calls():
    model = encoder()
    for x in (X.float(), X.numpy(), X.long()):
        with pytest.raises(TypeError, match="input must be a torch.float64 Tensor"):
            model(x)
    for x in (X[:, :63], X[0], X.t()):
        with pytest.raises(ValueError, match="input must be \\(batch, 64\\)"):
            model(x)
    for progress, error in ((1.5, ValueError), (float("nan"), ValueError), ("1", TypeError)):
        with pytest.raises(error, match="set_progress: progress must"):
            model.set_progress(progress)
    sparse = torch.zeros(100, 32)
    for s, error, match in (
        (sparse.numpy(), TypeError, "floating-point Tensor"),
        (sparse.long(), TypeError, "floating-point Tensor"),
        (sparse.t(), ValueError, "\\(n_atoms, n_codes\\)"),
        (torch.full_like(sparse, torch.inf), ValueError, "finite"),
        (sparse, ValueError, "not zero"),
        (torch.ones_like(sparse), ValueError, "at most nonzeros = 5"),
    ):
        with pytest.raises(error, match=f"initialize_: s must .*{match}"):
            model.initialize_(s)
    with pytest.raises(ValueError, match="penalty must be finite"):
        model.initialize_(torch.eye(100, 32), -1)


@pytest.mark.parametrize("neuron", NEURONS)
def test_nan_stays_in_its_sample(neuron):
    x = X.clone()
    x[2, 5] = torch.nan
    model = encoder(neuron).eval()
    for _ in range(2):
        with torch.no_grad():
            bad = model(x).isnan()
        assert bool(bad[2].any()) and not bad[[0, 1, 3, 4, 5, 6]].any()
        ds.prune.freeze(model)
