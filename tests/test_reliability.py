"""Forks, threads, the GIL, leaks, the cache's bound, reference cycles."""

from __future__ import annotations

import gc
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
import weakref

import numpy as np
import pytest
import torch
import torch.nn as nn

import cases
import conv_cases
import doublesparse as ds
from checks import densify
from inputs import make_input
from networks import NETWORKS

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")


def sparse(rng, shape=(12, 11), **options):
    return make_input(rng, 2, dict(c_in=4), shape=shape, integers=False, **options).sparse(ds)


def in_child(code: str, timeout: float = 60.0, **env: str) -> tuple[int, str]:
    """Exit status and what was printed. A child that hangs is killed with all its own children."""
    with tempfile.TemporaryFile(
        "w+"
    ) as output:  # no pipe: a grandchild could keep it open for ever
        command = [sys.executable, "-X", "faulthandler", "-c", code]
        options = dict(stdout=output, stderr=output, start_new_session=True)
        child = subprocess.Popen(command, env=dict(os.environ, **env), **options)
        try:
            status = child.wait(timeout)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            status = child.wait()
        output.seek(0)
        return status, output.read()


FORK = """
import os, sys, torch, doublesparse as ds
ops = ds.ops
torch.set_num_threads(4)
coords = torch.ones(2, 150, 150).nonzero().int().contiguous()
x, w = torch.ones(len(coords), 8), torch.ones(8, 8, 9)
geometry = ((150, 150), (3, 3), (1, 1), (1, 1), (1, 1), True)
pairs = ops.build_pairs(coords, coords, *geometry)
want = ops.conv(x, w, pairs, len(coords))          # the OpenMP pool exists now
pid = os.fork()
if pid == 0:                                       # only our kernels: torch's own would hang here
    again = ops.build_pairs(coords, coords, *geometry)
    got = ops.conv(x, w, again, len(coords))
    torch.set_num_threads(1)
    os._exit(0 if torch.equal(got, want) else 3)
_, status = os.waitpid(pid, 0)
again = ops.conv(x, w, pairs, len(coords))
sys.exit(os.waitstatus_to_exitcode(status) or not torch.equal(again, want))
"""


@needs_fork
def test_after_fork_kernels_run_serial():
    """libgomp's threads do not survive a fork; a child that asks for them hangs for ever."""
    status, text = in_child(FORK)
    assert status == 0, text


def test_two_python_threads_at_once(rng):
    """Layers, gradients and rulebooks of the same tensor from several threads: the same answers."""
    x = sparse(rng, ground="channels", shape=(40, 40))
    net = nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 4, 3)
    )
    want = net(x).to_dense()
    answers, errors = {}, []

    def work(number: int) -> None:
        try:
            for _ in range(8):
                mine = (
                    x
                    if number % 2
                    else ds.SparseTensor(
                        x.features, x.coords, x.spatial_shape, 2, ground=x.ground.values.flatten()
                    )
                )
                answers[number] = net(mine).to_dense()
                torch.autograd.grad(answers[number].sum(), net[0].weight)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not errors, errors
    assert len(answers) == 6 and all(torch.equal(a, want) for a in answers.values())


def test_kernels_release_the_gil(rng):
    """While one thread is inside a kernel, another one runs Python."""
    sample = conv_cases.conv_sample(
        rng, cases.random_plan(rng, 60000, 60000, 27, 0.9), 64, 64, 1, torch.float32, False
    )
    sample.call(ds.ops, "conv")
    started = time.perf_counter()
    sample.call(ds.ops, "conv")
    alone = time.perf_counter() - started
    ticks, stop = [], threading.Event()

    def tick() -> None:
        while not stop.is_set():
            ticks.append(time.perf_counter())
            time.sleep(alone / 50)

    thread = threading.Thread(target=tick)
    thread.start()
    begin = time.perf_counter()
    sample.call(ds.ops, "conv")
    end = time.perf_counter()
    stop.set()
    thread.join()
    inside = [t for t in ticks if begin + 0.2 * alone < t < end - 0.2 * alone]
    assert len(inside) >= 3, f"{len(inside)} ticks in {end - begin:.3f} s: the GIL was held"


# ------------------------------------------------------------------ memory
def resident() -> int:
    """Bytes of this process in memory."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except OSError:
        pytest.skip("no /proc on this system")


def growth(work, times: int) -> int:
    """Bytes that `times` more rounds add, after as many rounds to warm up."""
    for _ in range(times):
        work()
    gc.collect()
    before = resident()
    for _ in range(times):
        work()
    gc.collect()
    return resident() - before


def tiny_calls(rng) -> list:
    calls = []
    for case in cases.OP_CASES:
        sample = next(iter(case.samples(rng, torch.float32, True)))
        calls.append(lambda c=case, s=sample: s.call(ds.ops, c.name))
    return calls


def test_no_leak_over_raw_calls(rng):
    """7000 calls here; 100 000 in the slow test."""
    for case, work in zip(cases.OP_CASES, tiny_calls(rng), strict=True):
        grown = growth(work, 500)
        assert grown < 500 * 1000, f"{case.name}: {grown} bytes over 500 calls"


def reference_counts(args: dict) -> dict[str, int]:
    return {n: sys.getrefcount(args[n]) for n in args if torch.is_tensor(args[n])}


def test_no_leak_of_references(rng):
    """Arguments are not kept: their reference counts return to what they were."""
    for case in cases.OP_CASES:
        sample = next(iter(case.samples(rng, torch.float32, True)))
        sample.call(ds.ops, case.name)
        gc.collect()
        before = reference_counts(sample.args)
        for _ in range(20):
            sample.call(ds.ops, case.name)
        gc.collect()
        after = reference_counts(sample.args)
        assert after == before, f"{case.name}: {before} -> {after}"


@pytest.mark.slow
def test_no_leak_over_100_000_calls(rng):
    calls = tiny_calls(rng)

    def work() -> None:
        for call in calls:
            call()

    times = 100_000 // len(calls)
    grown = growth(work, times)
    assert grown < 16 * times, f"{grown} bytes over {times * len(calls)} calls"


def test_no_leak_in_training(rng):
    x = sparse(rng, ground="channels")
    net = nn.Sequential(
        nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)
    )

    def step() -> None:
        fresh = ds.SparseTensor(x.features, x.coords, x.spatial_shape, 2, ground=1.0)
        net(fresh).to_dense().sum().backward()

    assert growth(step, 150) < 150 * 4000


def test_no_reference_cycles(rng):
    """Tensors, sites and rulebooks die when their last user goes, not at the next collection."""
    gc.collect()
    gc.disable()
    try:
        x = sparse(rng, ground="channels")
        net = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.MaxPool2d(2), nn.Conv2d(4, 4, 1))
        y = net(x)
        y.to_dense().sum().backward()
        watched = [weakref.ref(o) for o in (x.sites, y.sites, x.features, y.features)]
        del x, y
        assert all(w() is None for w in watched)
    finally:
        gc.enable()


def test_the_cache_honours_its_bound(rng):
    """Rulebooks of many geometries: the least recently used ones go, and come back when asked."""
    cached, weight = ds._cache.cached_bytes, torch.ones(1, 4, 3, 3)
    ds.set_cache_limit(1_000_000)
    try:
        kept, answers = [], []
        for seed in range(12):
            x = sparse(np.random.default_rng(seed), shape=(60, 60))
            answers.append(ds.functional.conv2d(x, weight, padding=1).features)
            kept.append(x)
            assert cached() <= 1_000_000
        assert cached() > 0, "this proves nothing: nothing was remembered"
        assert not kept[0].sites.cache, "the least recently used entry is still there"
        again = ds.functional.conv2d(kept[0], weight, padding=1)
        assert torch.equal(again.features, answers[0])
        ds.set_cache_limit(0)
        assert cached() == 0
        again = ds.functional.conv2d(kept[1], weight, padding=1)
        assert torch.equal(again.features, answers[1])
    finally:
        ds.set_cache_limit(2**30)


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
@pytest.mark.parametrize("name", NETWORKS)
def test_inference_mode_leaves_nothing_that_training_trips_over(name, dtype, rng):
    """What depends on geometry alone is remembered from one to the other."""
    make, shape, batch = NETWORKS[name]
    net = make().to(dtype)
    x = make_input(rng, len(shape), {}, channels=3, shape=shape, batch=batch, dtype=dtype,
                   integers=False, kind="strokes", ground="channels").sparse(ds)  # fmt: skip
    for crossover in (None, "auto"):
        ds.set_crossover(crossover)
        with torch.inference_mode():
            net.eval()(x)
        densify(net.train()(x)).float().sum().backward()


def test_results_do_not_alias_arguments(rng):
    """Writing to an output in place must not change the input."""
    x = sparse(rng, ground="channels")
    before = x.features.clone()
    for f in (
        lambda t: ds.functional.conv2d(t, torch.ones(4, 4, 1, 1)),
        lambda t: ds.functional.max_pool2d(t, 1),
        lambda t: t * 1,
        lambda t: torch.cat([t, t], 1),
        lambda t: torch.relu(t),
    ):
        f(x).features.zero_()
        assert torch.equal(x.features, before)
    x.to_dense().zero_()
    assert torch.equal(x.features, before)


def test_run_after_run_the_same_bits(rng):
    x = sparse(rng, ground="channels", shape=(40, 40))
    net = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.BatchNorm2d(8), nn.MaxPool2d(2))
    first = None
    for threads in (1, 4, 2, 4, 4):
        torch.set_num_threads(threads)
        fresh = ds.SparseTensor(x.features, x.coords, x.spatial_shape, 2, ground=0.5)
        net.zero_grad()
        out = net(fresh).to_dense()
        out.square().sum().backward()
        now = [out.detach(), *[p.grad.clone() for p in net.parameters()]]
        first = first or now
        assert all(torch.equal(a, b) for a, b in zip(first, now, strict=True))
