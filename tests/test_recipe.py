"""The conda recipe asks for what setup.cfg asks for, and what users may set is written down."""

from __future__ import annotations

import configparser
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import get_type_hints

import pytest
import yaml
from packaging.requirements import Requirement

from dask_consensus.config import FitOptions

ROOT = Path(__file__).parents[1]
# What conda calls otherwise; its dask brings what the extra `dataframe` of pip's does.
CONDA = {"matplotlib": "matplotlib-base", "netCDF4": "netcdf4"}


def recipe() -> dict:
    return yaml.safe_load((ROOT / "recipe" / "recipe.yaml").read_text())


def declared() -> configparser.ConfigParser:
    found = configparser.ConfigParser()
    found.read(ROOT / "setup.cfg")
    return found


def in_conda(requirements: str) -> set[str]:
    """Requirements of pip, as a recipe writes them."""
    parsed = map(Requirement, requirements.strip().splitlines())
    return {f"{CONDA.get(each.name, each.name)} {each.specifier}" for each in parsed}


def test_the_recipe_asks_for_what_the_package_asks_for():
    found, options = recipe(), declared()["options"]
    python, *run = found["requirements"]["run"]
    assert python == "python >=${{ python_min }}"
    assert options["python_requires"] == f">={found['context']['python_min']}"
    assert set(run) == in_conda(options["install_requires"])
    extras = declared()["options.extras_require"]
    optional = set().union(*(in_conda(extras[each]) for each in ("plots", "store", "formulas")))
    assert set(found["requirements"]["run_constraints"]) == optional
    build = yaml.safe_load(
        re.search(r"requires = (\[.*\])", (ROOT / "pyproject.toml").read_text()).group(1)
    )
    assert {line.replace(" ", "") for line in found["requirements"]["host"]} >= set(build)


def test_the_recipe_says_what_the_package_says():
    found, metadata = recipe(), declared()["metadata"]
    assert found["package"]["name"] == metadata["name"]
    assert found["context"]["version"] == metadata["version"]
    assert found["about"]["summary"] == metadata["description"]
    assert found["about"]["license"] == metadata["license"]
    assert f"version: {metadata['version']}" in (ROOT / "CITATION.cff").read_text()


def test_the_recipe_can_be_rendered():
    """Its parser refuses fields that it does not know, and licenses that are none."""
    rattler = pytest.importorskip("rattler_build")
    (rendered,) = rattler.Stage0Recipe.from_file(str(ROOT / "recipe" / "recipe.yaml")).render()
    assert rendered.recipe.to_dict()["build"]["noarch"] == "python"


def test_extras_that_users_ask_for_are_there():
    extras = {
        key: set(in_conda(value)) for key, value in declared()["options.extras_require"].items()
    }
    assert {"plots", "store", "formulas", "gpu", "docs", "test", "lint"} == set(extras)
    assert extras["formulas"] <= extras["test"] & extras["docs"]
    # Tests and documentation use what users are told to install.
    assert (extras["plots"] | extras["store"]) <= extras["test"]
    assert extras["plots"] <= extras["docs"]


def test_the_package_says_that_it_is_typed():
    package = declared()["options.package_data"]["dask_consensus"].split()
    assert all((ROOT / "dask_consensus" / name).is_file() for name in package)
    assert "py.typed" in package


def test_every_option_of_fit_is_documented():
    from dask_consensus import ConsensusAccessor

    documented = re.findall(r"^        (\w+) : ", ConsensusAccessor.fit.__doc__, re.MULTILINE)
    assert set(get_type_hints(FitOptions)) <= set(documented)


def test_every_variable_of_the_environment_is_documented():
    """Those that the package reads itself, or sets; keys of the configuration have their own."""
    read = set()
    for path in (ROOT / "dask_consensus").rglob("*.py"):
        text = path.read_text()
        read |= set(re.findall(r"environ[^\n]*?\"([A-Z][A-Z_]+)\"", text))
        read |= set(re.findall(r"_VARIABLE[^=\n]* = \"([A-Z][A-Z_]+)\"", text))
    pages = "".join(page.read_text() for page in (ROOT / "docs").glob("*.md"))
    assert {"XLA_PYTHON_CLIENT_PREALLOCATE", "MALLOC_TRIM_THRESHOLD_"} <= read
    assert not {name for name in read if name not in pages}


def test_a_variable_of_the_environment_sets_a_default():
    """As the page on configuration writes it: sections set off by two underscores."""
    page = (ROOT / "docs" / "configuration.md").read_text()
    name, value = re.search(r"`(DASK_CONSENSUS__\w+)=(\w+)`", page).groups()
    key = name.removeprefix("DASK_").lower().replace("__", ".").replace("_", "-")
    code = f"import dask_consensus, dask; print(dask.config.get({key!r}))"
    run = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {name: value}, capture_output=True, text=True
    )
    assert run.stdout.strip() == value, run.stderr
