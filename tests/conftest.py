"""Seeds that are printed when a test fails, slow tests, one thread unless a test is about threads.

DOUBLESPARSE_TEST_SEED=n       shifts every seed; the failing one is printed
HYPOTHESIS_PROFILE=explore     new random examples, many of them (default: the same few every time)
pytest -m "slow or not slow"   everything, also what takes long
"""

from __future__ import annotations

import gc
import os
import random
import zlib

import hypothesis
import numpy as np
import pytest
import torch

import doublesparse as ds

COMMON = dict(
    deadline=None,
    print_blob=True,
    suppress_health_check=[
        hypothesis.HealthCheck.too_slow,
        hypothesis.HealthCheck.function_scoped_fixture,
        hypothesis.HealthCheck.filter_too_much,
    ],
)
hypothesis.settings.register_profile(
    "default", max_examples=10, derandomize=True, database=None, **COMMON
)
hypothesis.settings.register_profile("explore", max_examples=2000, **COMMON)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: takes long; run with -m 'slow or not slow'")


def pytest_collection_finish(session: pytest.Session) -> None:
    """Collected tests are no garbage: collections, of which tests make many, skip them."""
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("-m") or any("::" in arg for arg in config.args):
        return
    slow = [item for item in items if "slow" in item.keywords]
    config.hook.pytest_deselected(items=slow)
    items[:] = [item for item in items if "slow" not in item.keywords]


@pytest.fixture(autouse=True)
def seed(request: pytest.FixtureRequest) -> int:
    """One seed per test, from its name."""
    value = zlib.crc32(request.node.nodeid.encode()) % 2**31
    value += int(os.environ.get("DOUBLESPARSE_TEST_SEED", "0"))
    random.seed(value)
    np.random.seed(value % 2**32)
    torch.manual_seed(value)
    request.node.user_properties.append(("seed", value))
    return value


@pytest.fixture
def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo):
    report = yield
    if report.failed:
        report.sections.append(("seed", str(dict(item.user_properties).get("seed"))))
    return report


@pytest.fixture(autouse=True)
def plain_state():
    """Each test starts with one thread and with every layer on the sparse path."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    ds.set_crossover(None)
    yield
    ds.set_crossover("auto")
    torch.set_num_threads(threads)
