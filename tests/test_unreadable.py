"""Files that cannot be read: the error is the reader's own, and names the file besides."""

import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest

from dask_consensus.frame.unreadable import files_named

from . import plan


def model(g, x, y=None, *, n_g):
    raise AssertionError("no model is read before the rows are")


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    rows = pd.DataFrame({"g": np.arange(40) % 5, "x": rng.normal(size=40), "y": 1.0})
    for number in range(4):
        rows[number::4].to_parquet(tmp_path / f"part.{number}.parquet")
    return tmp_path


def cut(path):
    path.write_bytes(path.read_bytes()[:200])


def flipped(path):
    content = bytearray(path.read_bytes())
    for at in range(4, 40):
        content[at] ^= 0x55
    path.write_bytes(content)


def without_x(path):
    pd.read_parquet(path).drop(columns="x").to_parquet(path)


@pytest.mark.parametrize(
    ("filesystem", "harm", "told"),
    [
        ("fsspec", cut, "part.2.parquet: "),
        ("arrow", cut, "part.2.parquet: "),
        ("fsspec", lambda path: path.write_bytes(b""), "part.2.parquet: "),
        ("fsspec", flipped, "part.2.parquet: "),
        # Arrow's own file systems fill a column that a file lacks: the survey tells of that.
        ("fsspec", without_x, "part.2.parquet: it has no column 'x'"),
    ],
    ids=["cut", "cut, by Arrow", "empty", "bytes flipped", "without a column"],
)
def test_the_file_is_named(folder, filesystem, harm, told):
    frame = dd.read_parquet(folder, columns=["g", "x", "y"], filesystem=filesystem)
    harm(folder / "part.2.parquet")
    with pytest.raises(Exception) as caught, files_named(frame):  # noqa: PT011  the reader's own
        frame.compute(scheduler="synchronous")
    (note,) = caught.value.__notes__
    assert told in note
    assert "part.1" not in note


@pytest.mark.parametrize("error", [ValueError, KeyError, TimeoutError, ConnectionError])
def test_other_errors_are_left_alone(folder, error):
    """A model's own, or a cluster's: no file is looked at."""
    frame = dd.read_parquet(folder)
    cut(folder / "part.2.parquet")
    with pytest.raises(error, match="mine") as caught, files_named(frame):
        raise error("mine")
    assert not hasattr(caught.value, "__notes__")


def test_a_plan_says_so(folder):
    frame = dd.read_parquet(folder)
    cut(folder / "part.3.parquet")
    with pytest.raises(Exception) as caught:  # noqa: PT011  the reader's own
        plan(frame, model, by="g")
    assert any("part.3.parquet: " in note for note in caught.value.__notes__)
