"""The notebook runs, and what is committed of it is whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "notebooks" / "why_shards_disagree.ipynb"


def test_it_runs():
    # A process of its own: this one turns warnings of Jupyter's libraries into errors.
    command = [sys.executable, "-m", "pytest", "-q", "-W", "default", "-p", "no:cacheprovider"]
    run = subprocess.run(
        [*command, "--nbmake", "--nbmake-timeout=600", str(NOTEBOOK)],
        env=os.environ | {"DASK_CONSENSUS_NOTEBOOK_SMALL": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr


def test_committed_outputs_are_of_one_run_without_errors():
    cells = [c for c in json.loads(NOTEBOOK.read_text())["cells"] if c["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} <= {
        "stream", "display_data", "execute_result",
    }  # fmt: skip
    # Warnings would show the folders of whoever ran it.
    assert not any(output.get("name") == "stderr" for output in outputs)
    assert NOTEBOOK.stat().st_size < 1_000_000
