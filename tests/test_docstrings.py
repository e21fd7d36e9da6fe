"""Examples in docstrings run, and every public function has one.

The example of ``fit`` is run once. Those of what follows a fit go on from it: they see its names.
"""

from __future__ import annotations

import doctest
import importlib
import pkgutil
from typing import Any

import pytest

import dask_consensus
from dask_consensus import ConsensusAccessor, plots
from dask_consensus.simulate import lung_function

FLAGS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
MODULES = [info.name for info in pkgutil.walk_packages(dask_consensus.__path__, "dask_consensus.")]
FIT = "dask_consensus.accessor.ConsensusAccessor.fit"
PUBLIC = [
    *(getattr(ConsensusAccessor, name) for name in vars(ConsensusAccessor) if name[0] != "_"),
    *(getattr(plots, name) for name in plots.__all__ if callable(getattr(plots, name))),
    dask_consensus.summary,
    dask_consensus.tree_to_frame,
    lung_function,
]


def run(example: doctest.DocTest) -> dict[str, Any]:
    """Run the examples of a docstring; the names they leave."""
    failed, _ = doctest.DocTestRunner(optionflags=FLAGS).run(example, clear_globs=False)
    assert not failed
    return example.globs


@pytest.fixture(scope="module")
def names_of_fit() -> dict[str, Any]:
    module = importlib.import_module("dask_consensus.accessor")
    (example,) = (e for e in doctest.DocTestFinder().find(module) if e.name == FIT)
    return {name: value for name, value in run(example).items() if name not in vars(module)}


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str, names_of_fit: dict[str, Any]):
    module = importlib.import_module(name)
    for example in doctest.DocTestFinder().find(module, extraglobs=names_of_fit):
        if example.examples and example.name != FIT:
            run(example)


@pytest.mark.parametrize("function", PUBLIC, ids=lambda function: function.__name__)
def test_what_is_public_has_an_example(function: Any):
    assert ">>>" in function.__doc__
