"""Statistics over rows that another shard does not have: what the small sample does not show."""

from __future__ import annotations

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
import pytest

from dask_consensus.fit import LazyFit, shard_rows
from dask_consensus.plan.coupling import around, near_zero, with_coupling
from dask_consensus.plan.plan import Plan
from dask_consensus.shard.additivity import changed_terms
from dask_consensus.shard.subsets import piece, shapes
from dask_consensus.shard_data import ShardData, Size

from . import fit, from_pandas
from .models import ZOO, frame, normal_rows
from .test_roles import compiled_helper, far_from_zero, single_precision

N = 3000


def table() -> pd.DataFrame:
    """Rows of 150 groups; `sparse` is nonzero in 0.5% of rows, `rarest` in two."""
    rng = np.random.default_rng(0)
    sparse = np.where(rng.random(N) < 0.005, rng.gamma(2.0, size=N), 0.0)
    rarest = np.zeros(N)
    rarest[[700, 2100]] = 3.0, 5.0
    columns = {"sparse": sparse, "rarest": rarest, "x": rng.normal(size=N), "y": rng.normal(size=N)}
    letters = pd.Categorical(rng.choice(list("abc"), N, p=[0.5, 0.495, 0.005]))
    return pd.DataFrame(columns | {"g": rng.integers(0, 150, N), "kind": letters})


def coupled(rows: Any, model: Any, points: Any = None, **options: Any) -> tuple[str, ...]:
    """Terms that the plan does not name and real shards do."""
    lazy: LazyFit = rows.consensus.fit(model, compute=False, progress=False, **options)
    plan: Plan = lazy.plan()
    assert plan.model.coupled == ()
    shards = shard_rows(lazy.frame, plan, progress=False)
    points = near_zero(plan) if points is None else points
    return with_coupling(plan, shards, points).model.coupled


def beta() -> Any:
    return numpyro.sample("beta", dist.Normal(0, 1))


def share_of(value: Any) -> Any:
    return value / jnp.maximum(value.max(), 1e-6)


def sparse_maximum(sparse, y):
    normal_rows(beta() * share_of(sparse), 1.0, y)


def rarest_maximum(rarest, y):
    normal_rows(beta() * share_of(rarest), 1.0, y)


def sparse_mean(sparse, y):
    normal_rows(beta() * (sparse - sparse.mean()), 1.0, y)


def any_extreme(x, y):
    normal_rows(beta() * jnp.where((x > 2.2).any(), x, 0.0), 1.0, y)


def many_rows(y):
    normal_rows(beta(), 1.0 if len(y) < 100 else 2.0, y)


def prior_of_many_rows(y):
    normal_rows(numpyro.sample("beta", dist.Normal(0, 1 if len(y) < 100 else 2)), 1.0, y)


def rare_category(kind, y, n_kind):
    there = jnp.zeros(n_kind).at[kind].set(1.0)
    normal_rows(beta() * there[n_kind - 1], 1.0, y)


def product_of_two(sparse, x, y):
    normal_rows(beta() * share_of(jnp.abs(sparse * x)), 1.0, y)


def effects(g: Any, n_g: int, scale: Any = 1.0) -> Any:
    tau = numpyro.sample("tau", dist.HalfNormal(1))
    with numpyro.plate("g", n_g):
        return numpyro.sample("alpha", dist.Normal(0, tau * scale))[g]


def maximum_beside_effects(g, sparse, y, n_g):
    normal_rows(effects(g, n_g) + beta() * share_of(sparse), 1.0, y)


def largest_group(g, y, n_g):
    rows = jax.ops.segment_sum(jnp.ones_like(y), g, n_g)
    normal_rows(effects(g, n_g, jnp.where(rows.max() > 8, rows / 20, 1.0)), 1.0, y)


def many_groups(g, y, n_g):
    normal_rows(effects(g, n_g, 1.0 if n_g < 30 else 2.0), 1.0, y)


@pytest.mark.parametrize(
    ("model", "term"),
    [
        (sparse_maximum, "obs"),
        (rarest_maximum, "obs"),
        (sparse_mean, "obs"),
        (any_extreme, "obs"),
        (many_rows, "obs"),
        (prior_of_many_rows, "beta"),
        (rare_category, "obs"),
        (product_of_two, "obs"),
        (maximum_beside_effects, "obs"),
        (largest_group, "alpha"),
        (many_groups, "alpha"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_the_small_sample_hides_shows_on_real_shards(model, term: str):
    by = "g" if "g" in model.__code__.co_varnames else None
    assert coupled(from_pandas(table()), model, by=by, n_shards=5) == (term,)


def test_two_shards_are_looked_at_together():
    """In a shard of one year nothing shows that the model asks for the latest."""
    year = {"year": np.repeat([1.0, 2.0], 40).astype("float32"), "y": np.zeros(80, "float32")}
    plan = from_pandas(pd.DataFrame(year)).consensus.plan(
        sparse_maximum, columns={"sparse": "year"}
    )
    data = [
        ShardData({"sparse": year["year"][i : i + 40], "y": year["y"][:40]}, np.ones(40, bool), ())
        for i in (0, 40)
    ]
    size = shapes([one.size for one in data], 2)
    first, second = (piece(one, {}, Size(20, ()), 0) for one in data)
    points = near_zero(plan)
    assert changed_terms([first], plan.model, points, size, 0) == ()
    assert changed_terms([first, second], plan.model, points, size, 0) == ("obs",)


# One in four of the zoo is quick; all of it takes a minute of compiling.
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow) if i % 4 else name for i, name in enumerate(ZOO)],
)
def test_sound_models_are_left_alone(name: str):
    case = ZOO[name]
    rows = frame(((9, 4, 16, 5), (5, 12, 7), (30, 3)))
    assert coupled(from_pandas(rows), case.model, by=list(case.by) or None, n_shards=2) == ()


@pytest.mark.parametrize("model", [single_precision, compiled_helper])
def test_models_of_single_precision_are_left_alone(model):
    rows = pd.concat([frame(seed=seed) for seed in range(5)])
    assert coupled(from_pandas(rows), model, n_shards=3) == ()


@pytest.mark.parametrize("name", ["intercepts", "data_of_groups", "nested_in_priors"])
def test_rounding_of_large_numbers_is_no_coupling(name: str):
    case = ZOO[name]
    rows = far_from_zero(frame(((9, 4, 16, 5), (5, 12, 7), (30, 3))))
    assert coupled(from_pandas(rows), case.model, by=list(case.by), n_shards=2) == ()


def coupled_where_mu_is_large(x, y):
    mu = numpyro.sample("mu", dist.Normal(0, 100))
    normal_rows(mu + jnp.where(mu > 50, x - x.mean(), 0.0), 1.0, y)


def test_coupling_at_the_answer_alone_is_seen_there():
    rows = from_pandas(table())
    assert coupled(rows, coupled_where_mu_is_large, n_shards=3) == ()
    answer = around(np.array([90.0]), np.eye(1))
    assert coupled(rows, coupled_where_mu_is_large, answer, n_shards=3) == ("obs",)


BRIEF = {"num_warmup": 100, "num_samples": 200, "n_shards": 3, "method": "auto", "correct": "auto"}


def test_it_is_warned_of_and_judged():
    with pytest.warns(UserWarning, match="density of obs in one group .*x / ddf.x.max") as caught:
        tree = fit(from_pandas(table()), sparse_maximum, **BRIEF)
    assert len(caught) == 1
    reasons = json.loads(tree.attrs["verdict_reasons"])
    assert [reason["where"] for reason in reasons if reason["code"] == "coupled"] == ["obs"]


def test_it_is_judged_where_only_the_answer_shows_it():
    rows = table().assign(y=lambda t: t["y"] + 90)
    tree = fit(from_pandas(rows), coupled_where_mu_is_large, **BRIEF)
    reasons = json.loads(tree.attrs["verdict_reasons"])
    assert "coupled" in [reason["code"] for reason in reasons]
    assert "off by an unknown amount" in tree.attrs["verdict"]


def test_rows_that_depend_on_each_other_in_one_shard_are_sampled_together():
    tree = fit(from_pandas(table()), sparse_maximum, **(BRIEF | {"n_shards": 1}))
    assert "coupled" not in tree.attrs["verdict_reasons"]
    assert tree.attrs["method_used"] == "nuts"
    assert "together, because groups depend on each other (obs)" in tree.attrs["verdict"]
