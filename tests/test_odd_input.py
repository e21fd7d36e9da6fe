"""What frames and models may hold that is odd: it works, or its name and a remedy are said."""

import re

import dask
import dask.dataframe as dd
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
import pytest

from dask_consensus.model.model import precision
from dask_consensus.plan.show import warn_before_sampling
from dask_consensus.result.names import named_columns

from . import from_pandas, plan


def model(g, x, y, *, n_g):
    slope = numpyro.sample("slope", dist.Normal(0, 5))
    with numpyro.plate("g", n_g):
        alpha = numpyro.sample("alpha", dist.Normal(0, 1))
    with numpyro.plate("rows", len(x)):
        numpyro.sample("obs", dist.Normal(alpha[g] + slope * x, 1), obs=y)


def table() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {"g": np.arange(60) // 6, "x": rng.normal(size=60), "y": rng.normal(size=60)}
    )


def told(made) -> tuple:
    return made.survey.rows, made.survey.n_groups, made.survey.contents


@pytest.mark.parametrize("key", [">i8", ">i4", ">u2", ">f8"])
def test_the_order_of_bytes_is_no_matter(key):
    plain = table()
    turned = plain.assign(
        g=plain["g"].to_numpy().astype(key), x=plain["x"].to_numpy().astype(">f8"),
        y=plain["y"].to_numpy().astype(">f8"),
    )  # fmt: skip
    ours, theirs = (plan(from_pandas(rows), model, by="g") for rows in (plain, turned))
    assert told(ours) == told(theirs)


@pytest.mark.parametrize("wrap", [lambda i: [i], lambda i: (i,), lambda i: np.array([i])])
def test_a_key_that_is_a_list_is_refused(wrap):
    with dask.config.set({"dataframe.convert-string": False}):
        rows = from_pandas(table().assign(g=[wrap(i) for i in table()["g"]]))
        with pytest.raises(ValueError, match=r"key 'g': values of type \w+.*as text, ddf\['g'\]"):
            plan(rows, model, by="g")
        as_text = rows.assign(g=rows["g"].astype(str))
        assert plan(as_text, model, by="g").survey.n_groups == 10


def with_kind(g, x, kind, y, *, n_g, n_kind):
    level = numpyro.sample("level", dist.Normal(0, 5).expand([n_kind]).to_event(1))
    with numpyro.plate("g", n_g):
        alpha = numpyro.sample("alpha", dist.Normal(0, 1))
    with numpyro.plate("rows", len(x)):
        numpyro.sample("obs", dist.Normal(alpha[g] + level[kind], 1), obs=y)


def test_categories_that_differ_between_partitions():
    """Others are refused, and the remedy works; another order is no matter."""
    first, second = table()[:30], table()[30:]
    kinds = np.resize(["a", "b"], 30)
    parts = [
        first.assign(kind=pd.Categorical(kinds)),
        second.assign(kind=pd.Categorical(np.where(kinds == "a", "c", "b"))),
    ]
    meta = parts[0].iloc[:0]
    rows = dd.from_map(lambda i: parts[i], [0, 1], meta=meta, enforce_metadata=False)
    with pytest.raises(
        ValueError, match=r"column 'kind'\): values that are not among.*15, .*"
    ) as e:
        plan(rows, with_kind, by="g")
    remedy = str(e.value).rsplit("(`", 1)[1].removesuffix("`)")
    collected = eval(remedy, {"ddf": rows})
    assert plan(collected, with_kind, by="g").bindings.constants == {"n_kind": 3}
    turned = [parts[0], second.assign(kind=pd.Categorical(kinds, categories=["b", "a"]))]
    rows = dd.from_map(lambda i: turned[i], [0, 1], meta=meta, enforce_metadata=False)
    plain = from_pandas(table().assign(kind=pd.Categorical(np.resize(kinds, 60))), 2)
    assert told(plan(rows, with_kind, by="g")) == told(plan(plain, with_kind, by="g"))


def test_categories_that_differ_may_be_keys():
    first, second = table()[:33], table()[33:]
    parts = [part.assign(g=part["g"].astype(str).astype("category")) for part in (first, second)]
    rows = dd.from_map(lambda i: parts[i], [0, 1], meta=parts[0].iloc[:0], enforce_metadata=False)
    assert plan(rows, model, by="g").survey.n_groups == 10


def test_columns_of_several_levels_are_read():
    rows = table()
    rows.columns = pd.MultiIndex.from_tuples([("who", "g"), ("what", "x"), ("what", "y")])
    columns = {"g": ("who", "g"), "x": ("what", "x"), "y": ("what", "y")}
    made = plan(from_pandas(rows), model, by=("who", "g"), columns=columns)
    assert told(made) == told(plan(from_pandas(table()), model, by="g"))


@pytest.mark.parametrize("draw", [np.random.normal, lambda: np.random.default_rng().normal()])
def test_random_numbers_of_numpy_are_refused(draw):
    def random(x, y):
        slope = numpyro.sample("slope", dist.Normal(0, 5))
        with numpyro.plate("rows", len(x)):
            numpyro.sample("obs", dist.Normal(slope * x + draw(), 1), obs=y)

    with pytest.raises(ValueError, match=r"density of obs .*random numbers \(of NumPy.*by fun"):
        plan(from_pandas(table()), random)


def test_a_level_that_hides_what_differs_is_refused():
    """Before the densities of all points are the same number, and their weights tie."""
    rows = from_pandas(table().assign(y=table()["y"] + 1e8))
    with pytest.raises(ValueError, match=r"'y'\): 32-bit floats are too coarse.*centre the column"):
        plan(rows, model, by="g")


def test_a_level_that_drowns_what_differs_is_warned_of():
    """In double precision, before the densities of most points are the same number."""
    with precision(True):
        near = plan(from_pandas(table().assign(y=table()["y"] + 1e6)), model, by="g", n_shards=2)
        assert not any("column 'y'" in note for note in near.notes())
        for n_shards in (1, 2):
            rows = from_pandas(table().assign(y=table()["y"] + 1e9))
            made = plan(rows, model, by="g", n_shards=n_shards)
            message = r"'y'\) has values near 1e\+09 with a spread of \d.*weights tie. Centre the"
            assert any(re.search(message, note) for note in made.notes())
            with pytest.warns(UserWarning, match=message):
                warn_before_sampling(made)


def test_all_columns_that_stand_in_the_way_are_named():
    assert named_columns(["obs_mean"]) == "a column 'obs_mean'"
    assert named_columns(["elpd", "lpd", 3]) == "columns 'elpd', 'lpd' and 3"
