"""`compress`: students of a clustering, their agreement, pruning, bytes, and bad input."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

import doublesparse as ds
from doublesparse import bootstrap

N_CLUSTERS = 4


class Teacher:
    """Nearest of four known centres: clusters and codes that a formula gives."""

    n_features_in_ = 6

    def __init__(self, X: np.ndarray, centers: np.ndarray) -> None:
        self.centers = centers
        self.labels_ = self.predict(X)

    def transform(self, X: np.ndarray) -> np.ndarray:
        return np.sqrt(((X[:, None] - self.centers) ** 2).sum(2))

    def predict(self, X: np.ndarray) -> np.ndarray:
        return 10 * self.transform(X).argmin(1) + 5


def scene(seed: int = 0, n: int = 400) -> tuple[Teacher, np.ndarray, np.ndarray]:
    """A teacher, its points, and others of the same kind."""
    rng = np.random.default_rng(seed)
    centers = 6 * rng.normal(size=(N_CLUSTERS, 6))
    points = centers[rng.integers(N_CLUSTERS, size=n)] + rng.normal(size=(n, 6))
    held_out = centers[rng.integers(N_CLUSTERS, size=300)] + rng.normal(size=(300, 6))
    return Teacher(points, centers), points, held_out


@pytest.mark.parametrize(
    "options",
    [{}, {"prune": "dsd"}, {"prune": "dsd", "pattern": ds.TopKRows(3)}, {"prune": None}],
)
def test_students_agree(options):
    teacher, X, held_out = scene()
    options = {"epochs": 30, "sparsity": 0.5} | options
    made = bootstrap.compress(teacher, X, (64, 64), random_state=0, **options)
    assert set(made.agreement) == ({"dense", "packed"} if made.packed else {"dense"})
    for name, parts in made.agreement.items():
        assert parts["train"] >= 0.97
        assert np.mean(made.predict(held_out, name) == teacher.predict(held_out)) >= 0.97
        # What is reported is what predict says of all points.
        share = 0.9 * parts["train"] + 0.1 * parts["validation"]
        assert np.mean(made.predict(X, name) == teacher.labels_) == pytest.approx(share, abs=1e-12)
    assert made.classes_.tolist() == [5, 15, 25, 35] and made.error == {}


@pytest.mark.parametrize(("prune", "block"), [("block", (16, 1)), ("dsd", (1, 1))])
def test_pruned_as_told(prune, block):
    teacher, X, _ = scene()
    made = bootstrap.compress(
        teacher, X, (64, 32), prune=prune, sparsity=0.75, epochs=2, sparse_epochs=4, random_state=1
    )
    masks = [layer.packed.mask() for layer in made.packed if isinstance(layer, ds.nn.PackedLinear)]
    assert [tuple(mask.shape) for mask in masks] == [(64, 6), (32, 64)]  # the last one is dense
    for mask in masks:
        r, c = block
        blocks = mask.view(mask.shape[0] // r, r, mask.shape[1] // c, c)
        assert torch.equal(blocks.any(3).any(1), blocks.all(3).all(1))
        assert int(mask.sum()) == mask.numel() // 4
    n_dense = 6 * 64 + 64 + 64 * 32 + 32 + 32 * 4 + 4
    assert made.nbytes["dense"] == 4 * n_dense + 8 * (6 + 1)
    assert made.nbytes["packed"] < 0.5 * made.nbytes["dense"]


def test_packed_is_the_masked_network():
    """Against the same matrices in torch."""
    teacher, X, held_out = scene()
    made = bootstrap.compress(teacher, X, (64, 32), epochs=2, random_state=2)
    for net in (made.dense, made.packed):
        x = torch.from_numpy((held_out - X.mean(0)) / np.sqrt(X.var(0).mean())).float()
        linear = [layer for layer in net if isinstance(layer, torch.nn.Linear)]
        for i, layer in enumerate(linear):
            x = x @ layer.weight.detach().T + layer.bias.detach()
            x = x.relu() if i < 2 else x
        with torch.no_grad():
            torch.testing.assert_close(net(torch.from_numpy(held_out)), x, rtol=1e-4, atol=1e-4)


def test_codes():
    teacher, X, held_out = scene()
    options = {"epochs": 40, "sparsity": 0.5, "dropout": 0.0, "random_state": 0}
    made = bootstrap.compress(teacher, X, (64, 64), "codes", **options)
    wanted = teacher.transform(held_out)
    spread = ((teacher.transform(X) - teacher.transform(X).mean(0)) ** 2).mean()
    for name in ("dense", "packed"):
        codes = made.transform(held_out, name)
        assert codes.dtype == np.float64 and codes.shape == (300, N_CLUSTERS)
        assert ((codes - wanted) ** 2).mean() < 0.05 * spread
        assert ((made.transform(X, name) - teacher.transform(X)) ** 2).mean() / spread == (
            pytest.approx(
                0.9 * made.error[name]["train"] + 0.1 * made.error[name]["validation"], rel=1e-3
            )
        )
        assert made.agreement[name]["train"] >= 0.97
        assert np.mean(made.predict(held_out, name) == teacher.predict(held_out)) >= 0.97
    assert made.transform(held_out.astype(np.float32)).dtype == np.float32


def test_codes_without_labels():
    teacher, X, _ = scene(n=100)
    del teacher.labels_
    made = bootstrap.compress(teacher, X, (8,), "codes", epochs=1, random_state=0)
    assert made.agreement == {} and made.transform(X).shape == (100, N_CLUSTERS)
    with pytest.raises(NotImplementedError, match="pass labels="):
        made.predict(X)
    with pytest.raises(ValueError, match="pass labels="):
        bootstrap.compress(teacher, X, (8,), epochs=1)
    made = bootstrap.compress(teacher, X, (8,), epochs=1, labels=["a", "b"] * 50)
    assert set(made.predict(X)) <= {"a", "b"}
    with pytest.raises(NotImplementedError, match="target must be 'codes'"):
        made.transform(X)


def test_bfloat16_and_pickle():
    teacher, X, held_out = scene()
    made = bootstrap.compress(teacher, X, (128, 128), sparsity=0.5, epochs=15, random_state=0)
    narrow = made.bfloat16()
    assert narrow.dense[1].weight.dtype == torch.bfloat16
    assert narrow.packed[1].packed.dtype == torch.bfloat16
    assert narrow.nbytes["dense"] < 0.55 * made.nbytes["dense"]
    assert narrow.nbytes["packed"] < made.nbytes["packed"]
    assert made.dense[1].weight.dtype == torch.float32  # a copy
    for network in (made, narrow):
        again = pickle.loads(pickle.dumps(network))
        for name in ("dense", "packed"):
            answer = network.predict(held_out, name)
            assert np.array_equal(again.predict(held_out, name), answer)
            assert np.mean(answer == teacher.predict(held_out)) >= 0.97
        assert again.agreement == made.agreement


def test_deterministic_and_global_generator_untouched():
    teacher, X, _ = scene(n=120)
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    runs = [bootstrap.compress(teacher, X, (32,), epochs=3, random_state=s) for s in (3, 3, 4)]
    assert torch.equal(torch.random.get_rng_state(), before)
    first, same, other = (run.dense[1].weight for run in runs)
    assert torch.equal(first, same) and not torch.equal(first, other)
    assert np.array_equal(runs[0].predict(X), runs[1].predict(X))


def test_units_and_offset_of_the_features_do_not_matter():
    teacher, X, _ = scene()
    plain = bootstrap.compress(teacher, X, (32,), epochs=5, prune=None, random_state=0)
    moved = bootstrap.compress(teacher, 512 * X + 4096, (32,), epochs=5, prune=None, random_state=0)
    assert np.mean(plain.predict(X) == moved.predict(512 * X + 4096)) > 0.99
    assert bootstrap.compress(teacher, np.ones_like(X), (8,), epochs=1).predict(X).shape == (400,)


def test_stops_early(capsys):
    """A constant label is learned at once; then nothing improves but the loss, to zero."""
    teacher, X, _ = scene(n=60)
    options = {"labels": np.zeros(60), "epochs": 40, "patience": 2, "random_state": 0}
    bootstrap.compress(teacher, X, (4,), verbose=True, prune=None, **options)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and all("100.00% agree" in line for line in lines)


def test_inputs_that_predict_takes():
    teacher, X, _ = scene()
    made = bootstrap.compress(teacher, X, (16,), epochs=2, random_state=0)
    one = made.predict(X[:1])
    assert one.shape == (1,) and made.predict(torch.from_numpy(X[:1])) == one
    assert made.predict(np.zeros((2, 6), dtype=np.int64)).shape == (2,)
    read_only = X.copy()
    read_only.flags.writeable = False
    assert np.array_equal(made.predict(read_only), made.predict(X))
    assert np.array_equal(made.predict(np.asfortranarray(X)[::2]), made.predict(X)[::2])
    for wrong, error, words in (
        (X[:, :5], ValueError, r"X must be \(n, 6\)"),
        (X[0], ValueError, r"X must be \(n, 6\)"),
        (X[:0], ValueError, "not empty"),
        (np.full((1, 6), np.nan), ValueError, "must be finite"),
        (X.astype(complex), TypeError, "real numbers"),
        (X.astype(str), TypeError, "real numbers"),
    ):
        with pytest.raises(error, match=words):
            made.predict(wrong)
    with pytest.raises(ValueError, match="student must be one of"):
        made.predict(X, "bronze")


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"target": "names"}, ValueError, "target must be one of"),
        ({"prune": "often"}, ValueError, "prune must be one of"),
        ({"hidden": 8}, TypeError, "hidden must be a tuple"),
        ({"hidden": (8, 0)}, ValueError, "hidden must be in"),
        ({"hidden": (8.0,)}, TypeError, "hidden must be an int"),
        ({"sparsity": 1.5}, ValueError, "sparsity must lie"),
        ({"pattern": "dense"}, TypeError, "pattern must be"),
        ({"pattern": ds.NM(1, 2)}, ValueError, "pattern must be a ds.Block"),
        ({"epochs": 0}, ValueError, "epochs must be in"),
        ({"sparse_epochs": 1.5}, TypeError, "sparse_epochs must be an int"),
        ({"patience": None}, TypeError, "patience must be an int"),
        ({"validation_fraction": 1.0}, ValueError, "validation_fraction must be in"),
        ({"validation_fraction": 0.999}, ValueError, "leave points to train on"),
        ({"lr": float("nan")}, ValueError, "lr must be in"),
        ({"batch_size": True}, TypeError, "batch_size must be an int"),
        ({"dropout": 1.0}, ValueError, "dropout must be in"),
        ({"random_state": -1}, ValueError, "random_state must be in"),
        ({"labels": [1, 2]}, ValueError, r"labels must be \(60,\)"),
        ({"X": 1e200 * np.eye(6)[np.arange(60) % 6]}, ValueError, "spread"),
        ({"X": np.zeros((60, 5))}, ValueError, r"X must be \(n, 6\)"),
        ({"mbn": object()}, TypeError, "mbn must be a fitted"),
    ],
)
def test_wrong_arguments(options, error, words):
    teacher, X, _ = scene(n=60)
    arguments = {"mbn": teacher, "X": X, "hidden": (8,), "epochs": 1} | options
    with pytest.raises(error, match=words):
        bootstrap.compress(**arguments)


def test_points_as_they_come():
    """Views that torch cannot take, and integers that float32 cannot hold."""
    teacher, X, _ = scene()
    made = bootstrap.compress(teacher, X, (16,), epochs=2, random_state=0)
    want = made.predict(X)
    assert np.array_equal(made.predict(X[::-1, ::-1].copy()[::-1, ::-1]), want)
    assert np.array_equal(made.predict(X.astype(">f8")), want)
    half = torch.from_numpy(X).bfloat16()
    assert np.array_equal(made.predict(half), made.predict(half.float()))
    far = np.round(100 * X).astype(np.int64) + 2_000_000_001
    options = {"labels": teacher.labels_, "epochs": 2, "random_state": 0}
    one, two = (bootstrap.compress(teacher, x, (16,), **options) for x in (far, far * 1.0))
    assert one.agreement == two.agreement
    assert np.array_equal(one.predict(far), two.predict(far * 1.0))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_trains_where_gradients_are_off(mode):
    teacher, X, _ = scene()
    options = {"hidden": (16,), "epochs": 2, "random_state": 0}
    want = bootstrap.compress(teacher, X, **options)
    with mode():
        made = bootstrap.compress(teacher, X, **options)
        assert np.array_equal(made.predict(X), want.predict(X))
    assert made.agreement == want.agreement


def test_labels_that_do_not_sort():
    teacher, X, _ = scene()
    with pytest.raises(TypeError, match="labels must be of one kind that sorts"):
        bootstrap.compress(teacher, X, labels=[None] * len(X))
