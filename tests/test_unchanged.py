from __future__ import annotations

import pickle
import uuid
from collections.abc import Callable

import dask
import dask.dataframe as dd
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dask_consensus.cluster.placement import Execution
from dask_consensus.cluster.shards import persist
from dask_consensus.frame.arrays import Column, Layout
from dask_consensus.frame.assign import assign, shards
from dask_consensus.frame.contents import add_contents, changed, contents_of
from dask_consensus.frame.survey import check, survey
from dask_consensus.frame.unchanged import FrameChanged, frame_changed, unchanged
from dask_consensus.shard_data import summary_of

from . import QUICK

COLUMNS = (
    Column("x", "x", "value"),
    Column("n", "n", "value"),
    Column("sex", "sex", "category", categories=("f", "m")),
    Column("y", "y", "value"),
)
LAYOUTS = {
    "grouped": Layout(("g",), (Column("g", "g", "group", level=0), *COLUMNS)),
    "exchangeable": Layout((), COLUMNS),
}


def rows_of(seed: int = 0, rows: int = 600) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "g": rng.integers(0, 40, rows),
            "x": rng.normal(size=rows),
            "n": rng.integers(0, 9, rows),
            "sex": pd.Categorical(rng.choice(["f", "m"], rows)),
            "y": 1e4 + rng.normal(size=rows),
        }
    )


class Changing:
    """A frame in two partitions that is another one each time it is read."""

    def __init__(self, change: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
        self.change, self.reads = change, [0, 0]
        self.token = uuid.uuid4()  # Dask takes frames of equal tokens for one

    def read(self, number: int) -> pd.DataFrame:
        self.reads[number] += 1
        rows = rows_of()
        rows = self.change(rows) if self.reads[number] > 1 else rows
        return rows[rows["g"] % 2 == number]

    def frame(self) -> dd.DataFrame:
        return dd.from_map(self.read, range(2), meta=rows_of().iloc[:0])


def drawn_anew(column: str) -> Callable[[pd.DataFrame], pd.DataFrame]:
    return lambda rows: rows.assign(**{column: rows_of(1)[column]})


def permuted(column: str) -> Callable[[pd.DataFrame], pd.DataFrame]:
    """The values change places among the rows of a group."""

    def change(rows: pd.DataFrame) -> pd.DataFrame:
        rng = np.random.default_rng(2)
        mixed = rows.groupby("g")[column].transform(lambda part: rng.permutation(part.to_numpy()))
        return rows.assign(**{column: mixed.astype(rows[column].dtype)})

    return change


def one_row(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.assign(y=rows["y"].where(rows.index != 7, 1e4))


CHANGES = {
    "lost": (lambda rows: rows.iloc[:-1], "600 rows were counted, 599 reached the shards"),
    "doubled": (lambda rows: pd.concat([rows, rows.iloc[-3:]]), "600 rows were counted, 603"),
    "regrouped": (lambda rows: rows.assign(g=rows["g"].replace(4, 6)), "'g'"),
    **{f"{name} drawn anew": (drawn_anew(name), f"column '{name}' held") for name in ("x", "y")},
    "n drawn anew": (drawn_anew("n"), "column 'n' held other values .*checksum"),
    "sex drawn anew": (drawn_anew("sex"), "column 'sex' held"),
    "x permuted": (permuted("x"), "column 'x' held"),
    "y permuted": (permuted("y"), "column 'y' held"),
    "n permuted": (permuted("n"), "column"),
    "one row": (one_row, "column 'y' held .*weighted mean"),
    "nothing": (lambda rows: rows, ""),
    "only the order": (lambda rows: rows.sample(frac=1, random_state=1), ""),
    "only the last bits": (
        lambda rows: rows.assign(y=np.nextafter(rows["y"], 0), x=np.nextafter(rows["x"], 9)),
        "",
    ),
}


@pytest.mark.parametrize("n_shards", [1, 3])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize(("change", "message"), CHANGES.values(), ids=CHANGES)
def test_rows_that_change_between_passes(change, message, layout, n_shards):
    if "'g'" in message and not layout.by:
        return
    frame = Changing(change).frame()
    with dask.config.set(scheduler="sync"):
        counted = survey(frame, layout).compute()
        check(counted, layout)
        unpadded = shards(frame, layout, assign(counted, frame, layout, n_shards=n_shards))
        execution = Execution(progress=False)
        if not message:
            persist(unpadded, execution, unchanged(counted, layout))
            return
        with pytest.raises(FrameChanged, match=message) as error:
            persist(unpadded, execution, unchanged(counted, layout))
    assert "ddf.persist()" in str(error.value)


def model(g, x, y=None, *, n_g):
    mu = numpyro.sample("mu", dist.Normal(0, 10))
    with numpyro.plate("g", n_g):
        a = numpyro.sample("a", dist.Normal(mu, 1))
    with numpyro.plate("rows", len(x)):
        numpyro.sample("obs", dist.Normal(a[g] + x, 1), obs=y)


@pytest.mark.parametrize("n_shards", [1, 3])
def test_a_fit_of_a_frame_that_draws_at_random_stops(n_shards):
    def noisy(rows: pd.DataFrame) -> pd.DataFrame:
        return rows.assign(y=np.random.default_rng().normal(size=len(rows)))

    frame = dd.from_pandas(rows_of(), npartitions=2).map_partitions(noisy, meta=rows_of().iloc[:0])
    with pytest.raises(ValueError, match="column 'y' held other values"):
        frame.consensus.fit(model, by="g", n_shards=n_shards, **QUICK)


@given(st.integers(0, 2**32 - 1), st.integers(1, 5))
def test_contents_add_up_whatever_the_order(seed, n_parts):
    rng = np.random.default_rng(seed)
    columns = [rng.integers(0, 9, 50), rng.random(50) < 0.5, rng.normal(size=50) * 1e9]
    hashes = [rng.integers(0, 2**63, 50).astype(np.uint64)]
    whole = contents_of(hashes, columns)
    where = rng.integers(0, n_parts, 50)
    parts = [
        contents_of([h[where == i] for h in hashes], [c[where == i] for c in columns])
        for i in range(n_parts)
    ]
    assert not any(changed(whole, add_contents(parts)))
    columns[1] = ~columns[1]
    assert changed(whole, contents_of(hashes, columns)) == [False, False, True, True]


def test_a_shard_lost_with_its_worker_must_be_the_same():
    from dask_consensus.cluster.shards import _pad
    from dask_consensus.frame.arrays import to_shard

    layout = LAYOUTS["grouped"]
    one, other = (to_shard(rows_of(seed), layout) for seed in (0, 1))
    summary = summary_of(one)
    assert _pad(one, summary.size, summary).size == summary.size
    with pytest.raises(RuntimeError, match="lost with its worker"):
        _pad(other, summary.size, summary)


def test_the_error_travels():
    error = frame_changed("something")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
