"""Rows whose density is no number are found before anything is sampled, and named."""

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
import pytest

from dask_consensus.shard.undefined import undefined_rows

from . import fit, from_pandas
from .models import planned
from .test_marginal import data_of, read


def model(who, x, scale, y, *, n_who):
    slope = numpyro.sample("slope", dist.Normal(0, 5))
    tau = numpyro.sample("tau", dist.HalfNormal(2))
    with numpyro.plate("who", n_who):
        alpha = numpyro.sample("alpha", dist.Normal(0, tau))
    with numpyro.plate("rows", len(x)):
        numpyro.sample("obs", dist.Normal(alpha[who] + slope * x * jnp.sqrt(scale), 1), obs=y)


def table():
    rng = np.random.default_rng(0)
    who = np.repeat([f"patient {i}" for i in range(30)], 4)
    values = {"x": rng.normal(size=120), "scale": 1.0, "y": rng.normal(size=120)}
    return pd.DataFrame({"who": who} | values)


@pytest.mark.parametrize("n_shards", [1, 3])
def test_a_square_root_of_a_negative_value_in_one_group(n_shards):
    rows = table()
    rows.loc[rows["who"] == "patient 17", "scale"] = -2.0
    with pytest.raises(
        ValueError,
        match=r"density of 'obs' is not a number in 4 of 120 rows.*\n- shard \d: 4 of \d+ rows, "
        r"of 1 group of 'who' \(patient 17\); the first has x=.*, scale=-2\.0, y=.*\n.*jnp\.where",
    ):
        fit(from_pandas(rows), model, by="who", n_shards=n_shards, method="auto", local="summary")


def test_without_labels_the_groups_are_counted():
    rows = table()
    rows.loc[rows["who"].isin(["patient 17", "patient 18"]), "scale"] = -2.0
    with pytest.raises(ValueError, match=r"\n- shard \d: \d+ of \d+ rows, of \d groups? of 'who';"):
        fit(from_pandas(rows), model, by="who", n_shards=5)


def rooted(group, rate, y, *, n_group):
    tau = numpyro.sample("tau", dist.HalfNormal(2.0))
    with numpyro.plate("group", n_group):
        level = numpyro.sample("level", dist.Normal(0, tau))
    with numpyro.plate("rows", len(y)):
        numpyro.sample("obs", dist.Normal(level[group] * jnp.sqrt(rate), 1.0), obs=y)


def test_rows_are_told_by_number():
    values = {"rate": np.ones(20), "y": np.arange(20.0)}
    model = read(rooted, values, groups=["group"])
    codes = {"group": np.arange(20) // 4}
    assert undefined_rows(data_of(values, codes, padding=3), model) is None
    values["rate"][[3, 9, 10, 19]] = -1.0  # the last of them is what padding repeats
    undefined = undefined_rows(data_of(values, codes, padding=3), model)
    assert undefined.sites == ("obs",)
    assert undefined.rows.tolist() == [3, 9, 10, 19]
    assert undefined.codes.tolist() == [0, 2, 4]
    assert undefined.values == {"rate": -1.0, "y": 3.0}


def test_a_density_of_zero_is_another_matter():
    """Some parameters give these rows a density, and a search may find them."""

    def bounded(y):
        top = numpyro.sample("top", dist.HalfNormal(10.0))
        with numpyro.plate("rows", len(y)):
            numpyro.sample("obs", dist.Uniform(0.0, top), obs=y)

    values = {"y": np.full(20, 4.0)}
    assert undefined_rows(data_of(values), read(bounded, values)) is None


@pytest.mark.parametrize("name", ["intercepts", "positive", "decentered"])
def test_sound_models_are_defined(name):
    made = planned(name)
    assert undefined_rows(made.example, made.model) is None


def test_a_model_that_is_defined_far_from_zero_alone_is_no_mistake():
    """The smallest rows give the shift a bound that few points near zero are within."""

    def shifted(y):
        shift = numpyro.sample("shift", dist.Normal(0, 5))
        with numpyro.plate("rows", len(y)):
            log_z = jnp.log(y - shift)
            numpyro.factor("obs", dist.Normal(2, 0.5).log_prob(log_z) - log_z)

    values = {"y": np.append(np.full(30, 8.0), np.full(3, -2.9))}
    made = read(shifted, {"y": values["y"][:30]})
    assert undefined_rows(data_of(values), made) is None
