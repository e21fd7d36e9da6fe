"""Rows that are not plain: the recipes of the documentation, against SciPy on a dense grid."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
import pytest
import scipy.special
import scipy.stats
from jax.scipy.special import log_ndtr

from dask_consensus.frame.arrays import to_shard
from dask_consensus.frame.contents import changed
from dask_consensus.local.checks import _comparable
from dask_consensus.model.examples import Example
from dask_consensus.model.responses import responses
from dask_consensus.shard.at_draws import Design, Rows
from dask_consensus.shard.engine import engine_of
from dask_consensus.shard.mixtures import RowSite
from dask_consensus.shard.predictive import log_likelihoods, row_sites
from dask_consensus.shard.quadrature import Rule
from dask_consensus.shard_data import ShardData, Size, pad

from . import from_pandas, plan

PAGE = Path(__file__).parents[1] / "docs" / "models.md"


def recipes() -> dict[str, Callable[..., Any]]:
    """The models of the page, as they stand there."""
    scope = {"numpyro": numpyro, "dist": dist, "jnp": jnp, "log_ndtr": log_ndtr}
    blocks = re.findall(r"<!-- recipes? -->\n```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    for block in blocks:
        exec(block, scope)
    names = re.findall(r"^def (\w+)", "".join(blocks), re.MULTILINE)
    return {name: scope[name] for name in names if name != "effects"}


RECIPES = recipes()
NEWER = pytest.mark.skipif(
    not hasattr(dist, "RightCensoredDistribution"), reason="NumPyro is too old for censored rows"
)


def table() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    store = np.repeat(np.arange(9), rng.integers(4, 9, 9))
    n = len(store)
    made = pd.DataFrame({"store": store, "x": rng.normal(size=n)})
    loc = 0.5 + 0.4 * made["x"] + rng.normal(0, 0.8, 9)[store]
    made["y"] = loc + rng.normal(size=n)
    made["weight"] = rng.integers(1, 4, n)
    made["hours"] = rng.uniform(0.5, 3, n)
    made["calls"] = rng.poisson(np.exp(loc) * made["hours"])
    made["hidden"] = made["y"] > 1
    made["seen"] = made["y"].clip(upper=1)
    made["kept"] = made["y"].clip(lower=-0.99)
    made["asked"] = rng.random(n) < 0.7
    made["answer"] = (rng.random(n) < scipy.special.expit(loc)).astype(int)
    return made


NORMAL = scipy.stats.norm
DENSITIES: dict[str, Callable[[dict[str, np.ndarray], Any], Any]] = {
    "weighted": lambda t, loc: t["weight"] * NORMAL.logpdf(t["y"], loc),
    "exposed": lambda t, loc: scipy.stats.poisson.logpmf(t["calls"], np.exp(loc) * t["hours"]),
    "censored": lambda t, loc: np.where(
        t["hidden"], NORMAL.logsf(t["seen"], loc), NORMAL.logpdf(t["seen"], loc)
    ),
    "truncated": lambda t, loc: scipy.stats.truncnorm.logpdf(t["kept"], -1 - loc, np.inf, loc),
    "several": lambda t, loc: (
        NORMAL.logpdf(t["y"], loc)
        + t["asked"] * scipy.stats.bernoulli.logpmf(t["answer"], scipy.special.expit(loc))
    ),
}
DENSITIES["censored_by_hand"] = DENSITIES["censored"]


def expected(name: str, rows: pd.DataFrame, u: np.ndarray) -> float:
    """Log likelihood, effects of stores integrated out on a grid of 8 sds each way."""
    mu, tau, beta = u[0], np.exp(u[1]), u[2]
    z = np.linspace(-8, 8, 1601)
    total = 0.0
    for _, part in rows.groupby("store"):
        columns = {column: part[column].to_numpy() for column in part}
        loc = mu + tau * z[:, None] + beta * columns["x"]
        here = DENSITIES[name](columns, loc).sum(axis=1) + NORMAL.logpdf(z)
        total += scipy.special.logsumexp(here) + np.log(z[1] - z[0])
    return total


def shards(rows: pd.DataFrame, layout: Any) -> list[ShardData]:
    """Three shards of whole stores, padded to one shape."""
    parts = [to_shard(part, layout) for _, part in rows.groupby(rows["store"] % 3)]
    size = Size(max(part.rows for part in parts) + 4, (max(part.groups[0] for part in parts) + 1,))
    return [pad(part, size) for part in parts]


# What takes longest to compile is left to the slow tests.
@pytest.mark.parametrize(
    "name",
    [n if n in ("weighted", "several") else pytest.param(n, marks=[pytest.mark.slow, NEWER])
     for n in sorted(RECIPES)],
)  # fmt: skip
def test_shards_add_up_to_the_density(name):
    rows = table()
    made = plan(from_pandas(rows), RECIPES[name], by="store", n_shards=1)
    points = np.array([[0.5, -0.3, 0.4], [0.2, 0.1, 0.6], [0.9, -0.8, 0.1]])
    engine = engine_of(made.model)
    answers = [
        engine.values(data, points, points[0], Rule(21))
        for data in shards(rows, made.bindings.layout.typed(rows))
    ]
    told = sum(answer.log_likelihood for answer in answers)
    right = np.array([expected(name, rows, u) for u in points])
    # Data are rounded to single precision, and 21 nodes are good to 1e-5.
    np.testing.assert_allclose(told, right - right[0], rtol=0, atol=2e-4)


def test_every_recipe_is_tested():
    assert set(DENSITIES) == set(RECIPES)


@pytest.fixture(scope="module")
def holes() -> pd.DataFrame:
    rows = table().assign(y=lambda t: t["y"].where(t.index % 5 > 0))
    rows.loc[rows["store"] == 4, "y"] = np.nan
    return rows


def test_rows_without_a_response_are_left_out(holes):
    """As if they were not there; a store that has no other is none."""
    model, kept = RECIPES["weighted"], holes.dropna(subset=["y"])
    made = plan(from_pandas(holes), model, by="store", n_shards=2)
    without = plan(from_pandas(kept), model, by="store", n_shards=2)
    assert made.bindings.layout.responses == ("y",)
    assert made.survey.unanswered == len(holes) - len(kept) > 0
    assert not any(changed(made.survey.contents, without.survey.contents))
    assert made.survey.n_groups == without.survey.n_groups == 8
    assert f"{len(holes) - len(kept)} rows without a value of y: left out" in repr(made)
    layout = made.bindings.layout.typed(holes)
    one, other = to_shard(holes, layout), to_shard(kept, layout)
    assert one.contents == other.contents
    np.testing.assert_array_equal(one.arguments["y"], other.arguments["y"])


def test_what_lacks_more_than_a_response_is_refused(holes):
    some = holes.assign(answer=holes["answer"].where(holes.index % 7 > 0))
    with pytest.raises(ValueError, match=r"'weight' \(column 'weight'\): missing values, null"):
        plan(from_pandas(some.assign(weight=some["answer"])), RECIPES["weighted"], by="store")
    with pytest.raises(ValueError, match=r"'y'.*left out where all .* are missing.*handlers\.mask"):
        plan(from_pandas(some), RECIPES["several"], by="store")
    with pytest.raises(ValueError, match=r"'y'\): missing values, null or NaN \(47"):
        plan(from_pandas(holes.assign(y=np.nan)), RECIPES["weighted"], by="store")


@pytest.mark.parametrize(
    ("name", "expected", "needed"),
    [
        ("several", ("answer", "y"), {"store", "x"}),
        pytest.param("censored", ("seen",), {"store", "x"}, marks=NEWER),
        ("censored_by_hand", (), None),
    ],
)
def test_responses_are_what_nothing_depends_on(name, expected, needed):
    """Not weights, masks, or what tells who is censored; predictions need none of these either."""
    made = plan(from_pandas(table()), RECIPES[name], by="store", n_shards=1)
    rows, groups = made.example.size
    example = Example(made.example.arguments, rows, groups)
    assert set(responses(made.model, example)) == set(expected)
    if needed is not None:
        dtypes = {name: str(v.dtype) for name, v in made.example.arguments.items()}
        sites = row_sites(made.model, dtypes)
        assert {need for site in sites for need in site.needs} == needed
        assert [site.censored for site in sites] == [name == "censored"] * len(sites)


def test_what_is_censored_is_not_compared():
    sites = [
        RowSite(name, 0, (), 0, False, (), censored=name == "hidden") for name in ("obs", "hidden")
    ]
    assert _comparable((sites[0],)) == (sites[0],)
    with pytest.warns(UserWarning, match="site 'hidden' is censored.*it is left out"):
        assert _comparable(tuple(sites)) == (sites[0],)
    with pytest.raises(ValueError, match=r"site 'hidden' is censored.*loo"):
        _comparable((sites[1],))


def test_a_row_is_left_out_with_all_that_it_stands_for():
    made = plan(from_pandas(table()), RECIPES["weighted"], by="store", n_shards=1)
    dtypes = {name: str(v.dtype) for name, v in made.example.arguments.items()}
    u = np.array([[0.5, -0.3, 0.4], [0.2, 0.1, 0.6]])
    drawn = {"alpha": np.array([[0.3, -0.2], [0.9, 0.1]])}

    def told(weight: float) -> np.ndarray:
        rows = {
            "store": np.array([0, 1], np.int32),
            "x": np.array([1.0, 2.0], np.float32),
            "weight": np.array([weight, 1], made.example.arguments["weight"].dtype),
            "y": np.array([0.5, 0.0], np.float32),
        }
        design = Design(u.mean(axis=0), u, np.zeros((2, 1)))
        given = Rows(rows, (np.ones(2, bool),), (drawn,))
        return log_likelihoods(made.model, row_sites(made.model, dtypes), design, given, None)

    once, thrice = told(1), told(3)
    np.testing.assert_allclose(
        once[:, 0], NORMAL.logpdf(0.5, drawn["alpha"][:, 0] + u[:, 2]), rtol=1e-5
    )
    np.testing.assert_allclose(thrice, once * [3, 1], rtol=1e-6)
