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


# What takes long to import and is not needed before a fit. Dask and distributed bring none of it;
# together they took 1.4 s of CPU, and this package 0.02 s beyond.
HEAVY = (
    "jax",
    "numpyro",
    "scipy",
    "matplotlib",
    "arviz",
    "arviz_stats",
    "zarr",
    "netCDF4",
    "IPython",
)


def test_importing_the_package_is_quick():
    """It imports nothing that is heavy, yet registers the accessor, and finds what comes later."""
    code = (
        "import sys, dask.dataframe as dd, distributed; before = set(sys.modules)\n"
        "import dask_consensus\n"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "ours = [name for name in sys.modules if name.startswith('dask_consensus')]\n"
        f"print(*new & set({HEAVY}), len(ours) < 20, hasattr(dd.DataFrame, 'consensus'))\n"
        "print(dask_consensus.plots.compare.__name__, 'plots' in dir(dask_consensus))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["True", "True", "compare", "True"]


def test_what_the_package_does_not_have():
    with pytest.raises(AttributeError, match="module 'dask_consensus' has no attribute 'plot'"):
        dask_consensus.plot  # noqa: B018
