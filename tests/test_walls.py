"""A shard knows no Dask; where shards live nobody knows JAX; numbers cross as NumPy."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import dask_consensus

ROOT = Path(dask_consensus.__file__).parent
MODULES = {
    ".".join(["dask_consensus", *path.relative_to(ROOT).with_suffix("").parts]).removesuffix(
        ".__init__"
    ): path
    for path in sorted(ROOT.rglob("*.py"))
}
DASK_WORLD = {
    "dask",
    "distributed",
    "pandas",
    "xarray",
    "dask_consensus.cluster",
    "dask_consensus.frame",
}
JAX_WORLD = {"jax", "jaxlib", "numpyro", "dask_consensus.shard", "dask_consensus.model"}
INSIDE = {"dask_consensus.shard", "dask_consensus.model"}
OUTSIDE = {"dask_consensus.cluster", "dask_consensus.frame"}
NEUTRAL = {"dask_consensus", "dask_consensus.shard_data", "dask_consensus.wanted"}


def imports(module: str, typing: bool = True) -> set[str]:
    """Names a module imports, in full; `typing` counts those under TYPE_CHECKING."""
    path = MODULES[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    found = set()
    for node in _nodes(ast.parse(path.read_text()), typing):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - max(node.level - 1, 0)]
            base = ".".join([*(above if node.level else []), *filter(None, [node.module])])
            names = {f"{base}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else base for name in names}
    return found


def _nodes(tree: ast.AST, typing: bool) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if not typing and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        yield node
        yield from _nodes(node, typing)


def within(name: str, packages: set[str]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


# The floor that ties both worlds together; neither looks up at it.
TOP = {module for module in MODULES if not within(module, INSIDE | OUTSIDE)} - NEUTRAL


@pytest.mark.parametrize("module", sorted(set(MODULES) - TOP - NEUTRAL))
def test_two_worlds(module: str):
    inside = within(module, INSIDE)
    forbidden = TOP | (DASK_WORLD if inside else JAX_WORLD)
    assert not {name for name in imports(module) if within(name, forbidden)}


def test_gaussians_are_numpy_and_scipy():
    known = {"numpy", "scipy", *sys.stdlib_module_names}
    assert {name.split(".")[0] for name in imports("dask_consensus.combination.gaussian")} <= known


def test_no_circles():
    graph = {m: imports(m, typing=False) & set(MODULES) - {m} for m in MODULES}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError


def test_importing_the_package_is_quick():
    """It imports neither JAX nor NumPyro, yet registers the accessor."""
    code = (
        "import sys, dask_consensus, dask.dataframe as dd; "
        "print(*{'jax', 'numpyro'} & set(sys.modules), hasattr(dd.DataFrame, 'consensus'))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["True"]
