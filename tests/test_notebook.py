"""The notebooks run, and what is committed of them is whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
each_notebook = pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
# Two minutes each, or more; all of them are executed before a release.
LONG = ("clusters", "flights_etl", "why_shards_disagree")


@pytest.mark.parametrize(
    "notebook",
    [
        pytest.param(path, id=path.stem, marks=[pytest.mark.slow] if path.stem in LONG else [])
        for path in NOTEBOOKS
    ],
)
def test_it_runs(notebook):
    # A process of its own: this one turns warnings of Jupyter's libraries into errors.
    command = [sys.executable, "-m", "pytest", "-q", "-W", "default", "-p", "no:cacheprovider"]
    run = subprocess.run(
        [*command, "--nbmake", "--nbmake-timeout=600", str(notebook)],
        env=os.environ | {"DASK_CONSENSUS_NOTEBOOK_SMALL": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr


@each_notebook
def test_committed_outputs_are_of_one_run_without_errors(notebook):
    cells = [c for c in json.loads(notebook.read_text())["cells"] if c["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} <= {
        "stream", "display_data", "execute_result",
    }  # fmt: skip
    # Warnings would show the folders of whoever ran it.
    assert not any(output.get("name") == "stderr" for output in outputs)
    assert notebook.stat().st_size < 1_000_000
