"""What the documents show is what there is, and what happens."""

from __future__ import annotations

import ast
import json
import re
import sys
from pathlib import Path

import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
import pytest
import yaml

import dask_consensus
from dask_consensus import plots
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


MODULES = ("plots", "simulate")


def public(of: object) -> list[str]:
    return [name for name in vars(of) if name[0] != "_"]


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


PAGES = sorted(f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md"))


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md", *PAGES])
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


def test_a_verdict_names_the_section_on_each_of_its_reasons():
    page = (ROOT / reasons.PAGE).read_text()
    headings = re.findall(r"^#+ (.*)$", page, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", each.lower()).replace(" ", "-") for each in headings}
    codes = re.findall("^### (.*)$", page.partition("## The reasons")[2], re.MULTILINE)
    for code in codes:
        made = [reasons.Reason(code, 1.0, 0.5, "", "", "") for code in (code, code)]
        assert reasons.sections(made) == f"docs/verdict.md#{code}"
        assert code in anchors
    # And other pages link them by what they are called.
    for document in ["README.md", *PAGES]:
        text = (ROOT / document).read_text()
        linked = re.findall(r"\]\((?:docs/)?verdict\.md#([\w-]+)\)", text)
        assert set(linked) <= anchors, document


def test_the_tables_of_options_have_every_key_and_its_default():
    """They are made from the lines of the file; here it is read as YAML."""
    sys.path.insert(0, str(ROOT / "docs" / "_extensions"))
    try:
        import options
    finally:
        del sys.path[0]
    text = (PACKAGE / "consensus.yaml").read_text()
    told = {
        f"{section.name}.{key.name}".removeprefix("."): (yaml.safe_load(key.default), key.says)
        for section in options.sections(text)
        for key in section.keys
    }
    expected = {}
    for key, value in yaml.safe_load(text)["consensus"].items():
        nested = value if isinstance(value, dict) else {"": value}
        expected |= {f"{key}.{name}".removesuffix("."): one for name, one in nested.items()}
    assert {key: default for key, (default, _) in told.items()} == expected
    assert all(says for _, says in told.values())


def test_the_page_of_the_api_has_every_public_name():
    page = (ROOT / "docs" / "api.md").read_text()
    listed = set(re.findall(r"^   ([\w.]+)$", page, re.MULTILINE))
    expected = {f"DataFrame.consensus.{name}" for name in public(dask_consensus.ConsensusAccessor)}
    expected |= {n for n in dask_consensus.__all__ if n not in ("ConsensusAccessor", *MODULES)}
    expected |= {name for name in plots.__all__ if callable(getattr(plots, name))}
    simulate = dask_consensus.simulate
    expected |= {
        f"simulate.{name}"
        for name in public(simulate)
        if getattr(getattr(simulate, name), "__module__", "") == simulate.__name__
    }
    assert {"DataFrame.consensus.fit", "summary", "compare", "simulate.Truth"} <= expected
    assert expected <= listed


def test_every_picture_is_drawn_on_its_page():
    page = (ROOT / "docs" / "pictures.md").read_text()
    public = [
        name
        for name, each in vars(plots).items()
        if name[0] != "_" and getattr(each, "__annotations__", {}).get("return") == "Figure"
    ]
    assert sorted(re.findall("^## (.*)$", page, re.MULTILINE)) == sorted(public)
    assert set(public) < set(plots.__all__)
    assert all(f"plots.{name}(" in page for name in public)


def test_the_crossovers_are_those_of_what_was_measured():
    """Where straight lines between logarithms of seconds cross, to two digits."""
    rows = json.loads((ROOT / "benchmarks" / "results" / "rivals.json").read_text())
    took: dict[tuple[str, str], dict[int, float]] = {}
    for row in rows:
        took.setdefault((row["model"], row["who"]), {})[row["rows"]] = np.log(row["seconds"])
    page = (ROOT / "docs" / "which_method.md").read_text()
    for who in ("lme4", "glmmTMB", "GPBoost"):
        told = re.search(rf"^\| {who} \|(.*)\|(.*)\|$", page, re.MULTILINE).groups()
        for model, text in zip(("slopes", "binary"), told, strict=True):
            ours, theirs = took[model, "this package"], took[model, who]
            sizes = sorted(set(ours) & set(theirs))
            longer = [theirs[n] - ours[n] for n in sizes]
            number = float(re.search(r"[\d,]+", text).group().replace(",", ""))
            if max(longer) < 0:
                assert number == sizes[-1]
                assert longer[-1] > -0.1
            else:
                crossing = np.exp(np.interp(0, longer, np.log(sizes)))
                assert number == pytest.approx(crossing, rel=0.05)


def test_the_rules_of_thumb_are_those_of_what_was_measured():
    rows = json.loads((ROOT / "benchmarks" / "results" / "scale.json").read_text())
    rows = [row for row in rows if row["model"] == "slopes" and not row["gpu"]]
    assert len(rows) > 4
    page = (ROOT / "docs" / "scaling.md").read_text()
    seconds = re.search(r"approx (\S+) \+ (\S+) .times", page).groups()
    memory = re.search(r"about (\d+) MiB and (\d+) for every", page).groups()
    millions = np.array([row["rows"] for row in rows]) / 1e6
    for (start, each), measured in (
        (seconds, [row["seconds"] for row in rows]),
        (memory, [max(row["worker_mib"]) for row in rows]),
    ):
        np.testing.assert_allclose(float(start) + float(each) * millions, measured, rtol=0.1)
