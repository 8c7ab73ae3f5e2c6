"""Every example in a docstring and in the README runs as written."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import doublesparse as ds

README = Path(__file__).parent.parent / "README.md"
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE | doctest.IGNORE_EXCEPTION_DETAIL
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(ds.__path__, "doublesparse.")
    if not module.name.endswith(("._C", "__main__"))
)


@pytest.fixture(autouse=True)
def as_a_reader_would():
    """The defaults, not the test suite's, and the printing that the examples show."""
    ds.set_crossover("auto")
    with np.printoptions(legacy=False):
        yield


def run(test: doctest.DocTest) -> list[str]:
    output: list[str] = []
    doctest.DocTestRunner(optionflags=FLAGS).run(test, out=output.append, clear_globs=False)
    return output


@pytest.mark.parametrize("name", ["doublesparse", *MODULES])
def test_docstrings(name: str) -> None:
    module = importlib.import_module(name)
    for test in doctest.DocTestFinder(exclude_empty=True).find(module, name):
        torch.manual_seed(0)
        failures = run(test)
        assert not failures, "".join(failures)


def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)


@pytest.mark.skipif(not README.is_file(), reason="the README is not beside the tests")
def test_readme() -> None:
    assert len(blocks()) >= 3
    for i, block in enumerate(blocks()):
        if ">>>" in block:
            test = doctest.DocTestParser().get_doctest(block, {}, f"README {i}", str(README), 0)
            failures = run(test)
            assert not failures, "".join(failures)
        else:
            torch.manual_seed(i)
            exec(compile(block, f"README {i}", "exec"), {})


def test_readme_names_the_commands() -> None:
    text = README.read_text()
    for command in ("make test", "make demo", "make bench", "pip install ."):
        assert command in text
