"""Data that the model makes spread as closed forms say; the data's own statistics are right."""

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
import pytest

from dask_consensus import plots

from . import fit, from_pandas
from .test_plots import titles
from .test_predictions import COLUMNS, FIT, model, table


@pytest.fixture(scope="module")
def fitted():
    frame = table(groups=60)
    frame["half"] = np.where(frame["x"] > 0, "upper", "lower")
    tree = fit(from_pandas(frame), model, by="who", columns=COLUMNS, **FIT)
    return frame, tree


def test_the_data_are_summed_up_as_pandas_does(fitted):
    frame, tree = fitted
    wanted = ["mean", "sd", "min", "max", "q10", "q50", "zeros"]
    found = from_pandas(frame, 4).consensus.check(tree, model, statistics=wanted, draws=40)
    y = frame["y"]
    expected = [y.mean(), y.std(ddof=0), y.min(), y.max(), y.quantile(0.1), y.median(), 0.0]
    # A bin of the histogram is half a thousandth of the range.
    np.testing.assert_allclose(found["obs"], expected, atol=3e-3 * np.ptp(y))
    np.testing.assert_allclose(found["obs"][:4], expected[:4], rtol=1e-5)
    assert found["obs_replicated"].dims == ("draw", "statistic")
    assert int(found["rows"]) == len(frame)
    of_halves = from_pandas(frame, 4).consensus.check(tree, model, by="half", draws=40)
    assert of_halves["half"].values.tolist() == ["lower", "upper"]
    grouped = frame.groupby("half")["y"]
    np.testing.assert_allclose(of_halves["obs"].sel(statistic="mean"), grouped.mean(), rtol=1e-5)
    medians = of_halves["obs"].sel(statistic="q50")
    np.testing.assert_allclose(medians, grouped.median(), atol=0.02)
    np.testing.assert_array_equal(of_halves["rows"], grouped.size())


def test_replicas_spread_as_the_posterior_and_the_noise_say(fitted):
    """The mean of all rows: its posterior variance, nearly sigma^2 / n, and that of the noise."""
    frame, tree = fitted
    lazy = from_pandas(frame, 4)
    made = lazy.consensus.check(tree, model, statistics=["mean", "sd"], draws=800)
    mean, sd = (made["obs_replicated"].sel(statistic=name).to_numpy() for name in ("mean", "sd"))
    sigma, n = float(tree["posterior"]["sigma"].mean()), len(frame)
    assert abs(mean.mean() - frame["y"].mean()) < 0.01
    # Shrinkage takes a little of the first; 800 draws tell an sd to 2.5%.
    assert 0.9 < mean.std() / (sigma * np.sqrt(2 / n)) < 1.08
    assert abs(sd.mean() / frame["y"].std() - 1) < 0.02
    again = lazy.repartition(npartitions=4).consensus.check(
        tree, model, statistics=["mean", "sd"], draws=800
    )
    np.testing.assert_array_equal(made["obs_replicated"], again["obs_replicated"])


@pytest.mark.parametrize("who", [3, 777])
def test_rows_of_a_group_share_its_effect_wherever_they_lie(fitted, who):
    """Two rows in two partitions; of a group that was seen, and of one that was not."""
    tree = fitted[1]
    two = pd.DataFrame({"who": [who, who], "x": 0.0, "y": [0.0, 0.1]})
    made = from_pandas(two, 2).consensus.check(tree, model, statistics=["mean", "sd"], draws=800)
    shared = tree["posterior"].to_dataset().mean()
    sigma = float(shared["sigma"])
    if who == 3:
        effect = float(tree["local"]["alpha"].sel(who=who, statistic="sd"))
    else:
        effect = float(np.sqrt((tree["posterior"]["tau"] ** 2).mean()))
    spread = made["obs_replicated"].sel(statistic="mean").std()
    assert float(spread) == pytest.approx(np.sqrt(effect**2 + sigma**2 / 2), rel=0.09)
    # Half of the difference of two rows has the noise alone.
    within = np.sqrt((made["obs_replicated"].sel(statistic="sd") ** 2).mean())
    assert float(within) == pytest.approx(sigma / np.sqrt(2), rel=0.09)


def test_data_that_the_model_does_not_make_are_told():
    """Counts with more zeros than a Poisson distribution has; a mask leaves some rows out."""

    def counts(x, flag, count=None):
        mu = numpyro.sample("mu", dist.Normal(0, 2))
        with numpyro.plate("rows", len(x)), numpyro.handlers.mask(mask=flag):
            numpyro.sample("obs", dist.Poisson(jnp.exp(mu)), obs=count)

    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"x": rng.normal(size=2000), "flag": np.arange(2000) < 1500})
    frame["count"] = rng.poisson(3.0, 2000) * (rng.random(2000) > 0.2)
    frame.loc[1500:, "count"] = 1000
    tree = fit(from_pandas(frame), counts, **FIT)
    found = from_pandas(frame).consensus.check(tree, counts)
    p = found["obs_p"]
    assert float(p.sel(statistic="zeros")) == float(p.sel(statistic="sd")) == 1.0
    assert 0.2 < float(p.sel(statistic="mean")) < 0.8
    counted = frame["count"][:1500]
    assert int(found["rows"]) == 1500
    assert found["obs"].sel(statistic=["q05", "q50", "q95"]).values.tolist() == [
        *np.quantile(counted, [0.05, 0.5, 0.95], method="inverted_cdf")
    ]
    np.testing.assert_allclose(found["obs"].sel(statistic="zeros"), (counted == 0).mean())


def test_the_picture_has_a_panel_for_each_statistic_that_varies(fitted):
    frame, tree = fitted
    lazy = from_pandas(frame)
    made = lazy.consensus.check(tree, model, draws=40)
    names = ["mean", "sd", "q05", "q50", "q95"]
    assert titles(plots.checks(made)) == [f"obs: {name}" for name in names]
    by = lazy.consensus.check(tree, model, by="half", statistics=["mean"], draws=40)
    (ax,) = plots.checks(by).axes
    (points,) = [line for line in ax.lines if line.get_label() == "data"]
    np.testing.assert_array_equal(points.get_ydata(), by["obs"][0])
    with pytest.raises(ValueError, match=r"expected what ddf\.consensus\.check returned"):
        plots.checks(made.drop_vars("obs_replicated"))


BAD = {
    "a statistic": ({"statistics": ["median"]}, "'median' is none of"),
    "no statistic": ({"statistics": []}, "names nothing"),
    "text": ({"statistics": "mean"}, "list of names"),
    "one draw": ({"draws": 1}, "at least 2"),
    "by what is not there": ({"by": "sex"}, "no column 'sex'"),
    "by what has no value": ({"by": "hole"}, "'hole' has missing values"),
    "by too much": ({"by": "x"}, "has .* values, more than"),
    "histograms of too much": ({"by": "who"}, "leave quantiles out"),
}


@pytest.mark.parametrize("what", BAD)
def test_what_cannot_be_compared_is_refused(fitted, what, monkeypatch):
    frame, tree = fitted
    monkeypatch.setattr("dask_consensus.local.checks._MOST_VALUES", 100)
    monkeypatch.setattr("dask_consensus.local.checks._MOST", 100_000)
    frame = frame.assign(hole=np.where(frame["x"] > 0, 1.0, np.nan))
    options, message = BAD[what]
    with pytest.raises(ValueError, match=message):
        from_pandas(frame).consensus.check(tree, model, **options)
    with pytest.raises(ValueError, match="no column 'y'"):
        from_pandas(frame[["who", "x"]]).consensus.check(tree, model)
    lazy = from_pandas(frame)
    none = lazy[lazy["x"] > 100]
    with pytest.raises(ValueError, match="no rows"):
        none.consensus.check(tree, model)
