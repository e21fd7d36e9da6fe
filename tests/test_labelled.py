from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
import pytest

from dask_consensus.result.names import coordinate_labels

from . import from_pandas, plan
from .models import frame, normal_rows

COLUMNS = {"X": ["x", "z", "share"], "smoking": "smoking", "county": "county", "y": "y"}


def sizes_from_data(county, X, smoking, y, n_county, n_smoking):
    """Axes that grow, of any kind of site."""
    k = X.shape[1]
    share = numpyro.sample("share", dist.Dirichlet(jnp.ones(n_smoking)))
    table = numpyro.sample("table", dist.Normal(0, 1).expand([2, k, n_smoking]).to_event(3))
    with numpyro.plate("features", k):
        z = numpyro.sample("z", dist.Normal(0, 1))
    beta = numpyro.deterministic("beta", 2 * z)
    numpyro.sample("contrasts", dist.Normal(0, 1).expand([n_smoking - 1]).to_event(1))
    numpyro.sample("three", dist.Normal(0, 1).expand([3]).to_event(1))
    with numpyro.plate("counties", n_county):
        slopes = numpyro.sample("slopes", dist.Normal(0, 1).expand([k]).to_event(1))
    loc = jnp.sum(X * (beta + slopes[county] + table[0, :, smoking]), axis=1) + share[smoking]
    normal_rows(loc, 1.0, y)


def sizes_in_code(county, X, smoking, y, n_county):
    """Axes that cannot grow: the number is written down."""
    beta = numpyro.sample("beta", dist.Normal(0, 1).expand([3]).to_event(1))
    scale = numpyro.sample("scale", dist.HalfNormal(1).expand([3]).to_event(1))
    level = numpyro.sample("level", dist.Normal(0, 1).expand([3]).to_event(1))
    cuts = numpyro.sample("cuts", dist.Normal(0, 1).expand([3]).to_event(1))
    with numpyro.plate("smoking", 3):
        spread = numpyro.sample("spread", dist.HalfNormal(1))
    with numpyro.plate("counties", n_county):
        slopes = numpyro.sample("slopes", dist.Normal(0, 1).expand([3]).to_event(1))
    loc = X @ (beta * scale) + jnp.sum(X * slopes[county], axis=1)
    normal_rows(loc + level[smoking] + jnp.sum(cuts * jnp.arange(3)), spread[smoking], y)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (
            sizes_from_data,
            {
                "share": ("smoking",),
                "table": ("", "X", "smoking"),
                "z": ("X",),
                "beta": ("X",),
                "slopes": ("", "X"),
            },
        ),
        (
            sizes_in_code,
            {"beta": ("X",), "scale": ("X",), "level": ("smoking",), "spread": ("smoking",)},
        ),
    ],
)
def test_axes_that_bear_labels(model, expected):
    made = plan(from_pandas(frame()), model, by="county", columns=COLUMNS)
    assert made.model.labelled == expected
    assert made.labels == {"X": ("x", "z", "share"), "smoking": ("current", "ex", "never")}


def test_coordinates_bear_labels():
    """Entries that have none bear their numbers; a vector on the simplex is another one inside."""
    made = plan(from_pandas(frame()), sizes_from_data, by="county", columns=COLUMNS)
    names = coordinate_labels(made.model, made.labels)
    assert len(names) == made.model.dim == len(made.model.coordinate_names())
    assert names[:4] == ["share[0]", "share[1]", "table[0, x, current]", "table[0, x, ex]"]
    assert {"z[x]", "contrasts[1]", "three[2]"} < set(names)
    # Labels that read alike tell no coordinates apart.
    alike = coordinate_labels(made.model, made.labels | {"X": ("x", "x", "z")})
    assert alike == made.model.coordinate_names()


def test_the_only_column_is_told_from_what_it_does_not_feed():
    def model(X, y):
        beta = numpyro.sample("beta", dist.Normal(0, jnp.array([2.0])).to_event(1))
        level = numpyro.sample("level", dist.Normal(0, jnp.array([2.0])).to_event(1))
        normal_rows(level + X @ beta, 1.0, y)

    made = plan(from_pandas(frame()), model, columns={"X": ["x"], "y": "y"})
    assert made.model.labelled == {"beta": ("X",)}
    assert made.labels == {"X": ("x",)}


def test_names_without_a_matrix_or_a_category_are_none():
    made = plan(from_pandas(frame()), lambda x, y: normal_rows(x, numpyro.sample(
        "sigma", dist.HalfNormal(jnp.ones(3)).to_event(1))[0], y))  # fmt: skip
    assert made.model.labelled == {}


def test_lists_have_no_names():
    table = pd.DataFrame({"v": [[0.1, 0.2]] * 40, "y": np.arange(40.0)})

    def model(v, y):
        beta = numpyro.sample("beta", dist.Normal(0, 1).expand([v.shape[1]]).to_event(1))
        normal_rows(v @ beta, 1.0, y)

    made = table.consensus.plan(model)
    assert made.model.labelled == {"beta": ("v",)}
    assert made.labels == {}
    assert "v         v[0], v[1]  a matrix, (rows, 2)" in repr(made)
