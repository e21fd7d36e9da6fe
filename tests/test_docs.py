"""What the documents show is what there is, and what happens."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
import pytest

import dask_consensus
from dask_consensus.result import reasons

from . import from_pandas
from .models import normal_rows

ROOT = Path(__file__).parents[1]
PACKAGE = Path(dask_consensus.__file__).parent


def fenced(document: str, language: str) -> list[str]:
    """The code blocks of a document in one language."""
    text = (ROOT / document).read_text()
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def files_in_tree(tree: str) -> set[str]:
    """Paths of the files that an indented tree names, from its root."""
    folders: list[str] = []
    files = set()
    for line in tree.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        name = line.split()[0]
        del folders[depth:]
        if name.endswith("/"):
            folders.append(name)
        else:
            files.add("".join([*folders, name]))
    return files


def test_the_architecture_names_every_file_of_the_package():
    (tree,) = (block for block in fenced("ARCHITECTURE.md", "") if block.startswith("dask_"))
    files = (path for path in PACKAGE.rglob("*") if path.suffix in (".py", ".yaml"))
    assert files_in_tree(tree) == {
        path.relative_to(PACKAGE.parent).as_posix() for path in files if path.is_file()
    }


def test_the_architecture_names_tests_that_exist():
    """Tests are cited as ``test_file.py::test_name``."""
    cited = re.findall(r"(test_\w+\.py)::(test_\w+)", (ROOT / "ARCHITECTURE.md").read_text())
    assert cited
    missing = [
        f"{file}::{name}"
        for file, name in cited
        if f"def {name}(" not in (ROOT / "tests" / file).read_text()
    ]
    assert not missing


def level(y=None):
    normal_rows(numpyro.sample("mu", dist.Normal(0, 5)), 1.0, y)


@pytest.mark.distributed
@pytest.mark.filterwarnings("ignore:Port 8787 is already in use")
def test_the_page_on_clusters_starts_one():
    (block,) = (b for b in fenced("docs/clusters.md", "python") if "with LocalCluster(" in b)
    patients = np.repeat(np.arange(40), 5)
    y = np.random.default_rng(0).normal(size=200)
    names = {"ddf": from_pandas(pd.DataFrame({"patient": patients, "y": y})), "model": level}
    exec(block, names)
    assert names["tree"].attrs["verdict_good"]


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md"])
def test_python_blocks_compile(document: str):
    for block in fenced(document, "python"):
        compile(block, document, "exec")


@pytest.mark.parametrize("document", ["ARCHITECTURE.md", "CONTRIBUTING.md"])
def test_links_to_files_of_the_repository(document: str):
    targets = re.findall(r"\]\((?!\w+:)([^)#]+)\)", (ROOT / document).read_text())
    assert not [target for target in targets if not (ROOT / target).exists()]


def test_every_reason_of_a_verdict_has_its_section():
    """Codes are those in the calls that make reasons, headings those of the page it names."""
    tree = ast.parse(Path(reasons.__file__).read_text())
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    made = [call.args[0] for call in calls if getattr(call.func, "id", "") == "Reason"]
    assert made
    assert all(isinstance(code, ast.Constant) for code in made)  # else nothing here sees it
    codes = {code.value for code in made}
    assert codes >= reasons.SIZE_UNKNOWN
    page = (ROOT / reasons.PAGE).read_text()
    headings = re.findall(r"^### (.*)$", page.partition("## The reasons")[2], re.MULTILINE)
    assert len(headings) == len(set(headings))
    assert set(headings) == codes
