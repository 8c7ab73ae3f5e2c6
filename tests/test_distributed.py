"""Two processes under torchrun: gradients, statistics and parameters of the single process.

The oracle is dense torch in float64 on the whole batch; where inactive sites do not exist, the
package on the whole batch in one process, whose meaning other tests hold.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
import torch.nn as nn

import distributed_child as child
import doublesparse as ds

needs_gloo = pytest.mark.skipif(
    not (torch.distributed.is_available() and torch.distributed.is_gloo_available()),
    reason="this torch is built without torch.distributed or without gloo",
)
LIMIT = 180.0  # seconds: a job that hangs is killed, whatever its children do


def under_torchrun(folder: Path) -> list[dict]:
    """What each process saved. `--standalone` picks a free port."""
    script = Path(child.__file__)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={child.N_RANKS}", str(script), str(folder)]
    with tempfile.TemporaryFile("w+") as output:
        options = dict(stdout=output, stderr=output, start_new_session=True, cwd=script.parent)
        job = subprocess.Popen(command, env=dict(os.environ, OMP_NUM_THREADS="1"), **options)
        try:
            status = job.wait(LIMIT)
        except subprocess.TimeoutExpired:
            status = "no answer"
        finally:
            if job.poll() is None:
                os.killpg(job.pid, signal.SIGKILL)
                job.wait()
        output.seek(0)
        assert status == 0, f"torchrun: {status}\n{output.read()[-6000:]}"
    return [torch.load(folder / f"{rank}.pt") for rank in range(child.N_RANKS)]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict]:
    return under_torchrun(tmp_path_factory.mktemp("ranks"))


def whole(make, kind: str, dense: bool = True, steps: tuple[str, ...] = ()) -> dict:
    """One process: a step on the samples of all, after steps on other batches."""
    net = child.seeded(make)
    result = {}
    for name in (*steps, kind):
        net.zero_grad()
        parts = [child.share_of(name, rank) for rank in range(child.N_RANKS)]
        leaves = [p.features.clone().requires_grad_() for p in parts]
        given = [p.replace(features=f) for p, f in zip(parts, leaves, strict=True)]
        x = torch.cat([p.to_dense() for p in given]) if dense else ds.collate(given)
        out = net(x)
        out = out if isinstance(out, tuple) else (out,)
        sizes = [p.batch_size for p in parts]
        by_rank = list(zip(*(o.split(sizes) for o in out), strict=True))
        sum(child.loss_of(o, rank) for rank, o in enumerate(by_rank)).backward()
        result = dict(
            out=[[t.detach() for t in o] for o in by_rank],
            grads={n: p.grad for n, p in net.named_parameters()},
            leaf=[f.grad for f in leaves],
            buffers=dict(net.named_buffers()),
            sizes=sizes,
        )
    if dense:
        net.eval()
        result["eval"] = net(x).detach().split(sizes)
    return result


def close(a, b) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-10, atol=1e-12)


def assert_single_process(ranks: list[dict], key, want: dict, n_ranks: int = 2) -> None:
    """Outputs, gradients (of the mean over processes) and running buffers."""
    for rank, results in enumerate(ranks):
        got = results[key]
        for a, b in zip(got["out"], want["out"][rank], strict=True):
            assert close(a, b), f"{key}: output of process {rank}"
        for name, grad in want["grads"].items():
            assert close(got["grads"][name] * n_ranks, grad), f"{key}: gradient of {name}"
        leaf = want["leaf"][rank]
        assert close(got["leaf"], torch.zeros_like(got["leaf"]) if leaf is None else leaf), key
        assert got["buffers"].keys() == want["buffers"].keys()
        for name, buffer in want["buffers"].items():
            assert close(got["buffers"][name], buffer), f"{key}: {name} of process {rank}"
            assert torch.equal(got["buffers"][name], ranks[0][key]["buffers"][name]), "other bits"


@needs_gloo
@pytest.mark.parametrize("kind", child.SHARES)
def test_data_parallel_gives_the_gradients_of_one_process(kind, ranks):
    """Unmodified torch; a process with no active site, or with no sample, among the kinds."""
    assert_single_process(ranks, ("dense", kind), whole(child.dense_net, kind))


@needs_gloo
@pytest.mark.parametrize("ours", (False, True), ids=("SyncBatchNorm", "SparseBatchNorm"))
@pytest.mark.parametrize("kind", child.SHARES)
def test_synchronized_statistics(kind, ours, ranks):
    """`convert_sync_batchnorm` models on the CPU, and `SparseBatchNorm(process_group=...)`."""
    want = whole(child.norm_net, kind)
    assert any(b.abs().sum() > 0 for b in want["buffers"].values())
    assert_single_process(ranks, ("norm", kind, ours), want)


@needs_gloo
@pytest.mark.parametrize("ours", (False, True), ids=("SyncBatchNorm", "SparseBatchNorm"))
@pytest.mark.parametrize("name", child.NORM_OPTIONS)
def test_options_of_a_synchronized_norm(name, ours, ranks):
    """Two steps, then evaluation: cumulative averages, no running statistics, no affine map."""
    options = child.NORM_OPTIONS[name]
    want = whole(lambda: child.norm_net(**options), "even", steps=("uneven",))
    assert_single_process(ranks, ("options", name, ours), want)
    if options.get("tracked", True):  # else an evaluation takes the statistics of its own batch
        for rank, results in enumerate(ranks):
            assert close(results["options", name, ours]["eval"], want["eval"][rank])


@needs_gloo
@pytest.mark.parametrize("name", ("plain", "static"))
def test_networks_where_inactive_sites_do_not_exist(name, ranks):
    """Submanifold, strided, inverse convolutions; one process has no active site at all."""
    assert child.share_of("active only", 1).sites.n_sites == 0
    want = whole(child.ActiveNet, "active only", dense=False)
    assert_single_process(ranks, ("active", name), want)


@needs_gloo
def test_synchronized_statistics_of_dense_tensors(ranks):
    """`SparseBatchNorm` takes them in a group too, also where torch's layer refuses the CPU."""
    want = whole(child.norm_net, "uneven")
    for rank, results in enumerate(ranks):
        got = results["dense input"]
        assert close(got["out"][0], want["out"][rank][0])
        for name, grad in want["grads"].items():
            assert close(got["grads"][name] * child.N_RANKS, grad)
        assert all(close(got["buffers"][n], b) for n, b in want["buffers"].items())


@needs_gloo
def test_synchronized_statistics_have_the_same_bits_run_after_run(ranks):
    for results in ranks:
        first, again = results["norm", "uneven", False], results["again"]
        for kind in ("grads", "buffers"):
            assert all(torch.equal(v, again[kind][n]) for n, v in first[kind].items())
        assert torch.equal(first["leaf"], again["leaf"])


@needs_gloo
def test_fully_sharded(ranks):
    """FSDP2: one step of SGD on shards is one step on the whole."""
    net = child.seeded(child.dense_net)
    want = whole(child.dense_net, "no site")
    for rank, results in enumerate(ranks):
        got = results["fsdp"]
        assert got["sharded"], "this proves nothing: the parameters are whole"
        assert close(got["out"][0], want["out"][rank][0])
        for name, p in net.named_parameters():
            stepped = p.detach() - 0.125 * want["grads"][name] / child.N_RANKS
            assert close(got["parameters"][name], stepped), name


# ------------------------------------------------------------------ without processes
@needs_gloo
def test_pruned_weights(ranks):
    """Masked weights stay zero on every process; the steps are those of the whole batch."""
    want = child.masked(list(range(child.N_RANKS)))
    for rank in ranks:
        assert rank["masked"]["revived"] == 0
        for name, value in rank["masked"]["state"].items():
            assert torch.equal(value, ranks[0]["masked"]["state"][name]), name
            if value.dtype is torch.bool:
                assert torch.equal(value, want["state"][name])
            else:
                assert torch.allclose(value, want["state"][name], rtol=1e-9, atol=1e-12)


def test_dataclasses_replace(rng):
    """FSDP rebuilds what goes in and out of its modules with it."""
    x = child.share_of("even", 0)
    for y in (x, x.replace(ground=None), x.replace(ground=0.0)):
        z = dataclasses.replace(y, features=2 * y.features)
        assert z.sites is y.sites and torch.equal(z.features, 2 * y.features)
        assert (z.ground is None) == (y.ground is None)
    state = dataclasses.replace(x.ground, values=3 * x.ground.values)
    assert torch.equal(state.values, 3 * x.ground.values) and state.axes == x.ground.axes
    with pytest.raises(ValueError, match="rows"):
        dataclasses.replace(x, features=x.features[1:])


def test_conversion_needs_processes():
    with pytest.raises(RuntimeError, match="init_process_group"):
        ds.nn.SparseBatchNorm.convert_sync_batchnorm(nn.Sequential(nn.BatchNorm2d(3)))


def test_sync_batch_norm_alone():
    """Where nothing is to be synchronised it is `nn.BatchNorm2d`; dense tensors stay torch's."""
    x = child.share_of("even", 0)
    sync, plain = nn.SyncBatchNorm(3).double(), nn.BatchNorm2d(3).double()
    assert close(sync(x).to_dense(), plain(x.to_dense()))
    assert close(sync(x.to_dense()), plain(x.to_dense()))
    assert close(sync.running_var, plain.running_var)
    assert close(sync.eval()(x).to_dense(), plain.eval()(x.to_dense()))


def test_sync_batch_norm_in_a_group_of_one(tmp_path):
    if not torch.distributed.is_available():
        pytest.skip("this torch is built without torch.distributed")
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        x = child.share_of("even", 0)
        plain = nn.BatchNorm2d(3).double()
        want = plain(x.to_dense())
        group = torch.distributed.group.WORLD
        for norm in (nn.SyncBatchNorm(3), ds.nn.SparseBatchNorm(3, process_group=group)):
            norm = norm.double()
            assert close(norm(x).to_dense(), want)
            assert close(norm.running_var, plain.running_var)
        own = ds.nn.SparseBatchNorm.convert_sync_batchnorm(nn.SyncBatchNorm(3).double())
        assert close(own(x.to_dense()), want) and own.process_group is group
        rows = torch.randn(5, 3, dtype=torch.float64)
        assert close(own(rows), nn.BatchNorm1d(3).double()(rows))
        with pytest.raises(ValueError, match="SparseBatchNorm"):
            own(rows[0])
        with pytest.raises(ValueError):
            nn.SyncBatchNorm(3).double()(x.to_dense())  # torch's own refusal of a dense CPU tensor
    finally:
        torch.distributed.destroy_process_group()
