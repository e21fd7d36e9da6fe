"""Advice that is given works: each reason's remedy is followed, and what it promises happens."""

from __future__ import annotations

import json
import warnings
from typing import Any, NamedTuple

import dask
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
import pytest
import scipy.stats

from dask_consensus.shard.engine import AdaptiveQuadrature

from . import from_pandas
from .models import normal_rows
from .test_importance import effects


@pytest.fixture(autouse=True)
def synchronous():
    with dask.config.set(scheduler="synchronous"):
        yield


class Fitted(NamedTuple):
    tree: Any
    reasons: dict[str, dict[str, Any]]

    @property
    def good(self) -> bool:
        return bool(self.tree.attrs["verdict_good"])


def fit(table, model, configured=None, **options) -> Fitted:
    """Fit, whatever the verdict is; its reasons by their codes."""
    with dask.config.set(configured or {}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Not to be relied on|.*not independent", UserWarning)
        tree = from_pandas(table).consensus.fit(model, progress=False, **options)
    reasons = json.loads(tree.attrs["verdict_reasons"])
    return Fitted(tree, {reason["code"]: reason for reason in reasons})


def assert_advised(fitted: Fitted, code: str, remedy: str) -> None:
    assert code in fitted.reasons, fitted.tree.attrs["verdict"]
    assert remedy in fitted.reasons[code]["remedy"]
    assert fitted.reasons[code]["value"] is None or (
        fitted.reasons[code]["value"] > fitted.reasons[code]["threshold"]
        or code in ("ess", "shard-ess")
    )


def location(y=None):
    """Data that lie far from where chains begin."""
    mu = numpyro.sample("mu", dist.Normal(0, 1000))
    normal_rows(mu, numpyro.sample("sigma", dist.HalfNormal(5)), y, "y")


@pytest.fixture(scope="module")
def far():
    return pd.DataFrame({"y": np.random.default_rng(0).normal(100, 1, size=60)})


# Sampling


@pytest.mark.slow
def test_longer_warm_up_lowers_r_hat(far):
    options = {"method": "nuts", "num_samples": 400, "num_chains": 2}
    short, long = (fit(far, location, num_warmup=n, **options) for n in (10, 400))
    assert_advised(short, "r-hat", "raise num_warmup")
    assert "r-hat" not in long.reasons
    assert long.good
    worst = [float(fitted.tree["shards"]["r_hat"].max()) for fitted in (short, long)]
    assert worst[1] < 1.05 < worst[0]


@pytest.mark.slow
def test_more_draws_are_more_effective_draws(far):
    options = {"method": "nuts", "num_warmup": 300, "num_chains": 1}
    few, more, many = (fit(far, location, num_samples=n, **options) for n in (20, 250, 1500))
    assert_advised(few, "shard-ess", "raise num_samples")
    assert_advised(more, "ess", "raise num_samples")
    assert not {"shard-ess", "ess"} & set(many.reasons)
    ess = [float(fitted.tree["shards"]["ess"].min()) for fitted in (few, more, many)]
    assert ess[0] < 50 <= ess[1] < 400 <= ess[2]


def funnel(y=None):
    """A scale that nothing but its own effects tells of."""
    log_scale = numpyro.sample("log_scale", dist.Normal(0, 1.5))
    effects = numpyro.sample("effects", dist.Normal(0, jnp.exp(log_scale)).expand([3]).to_event(1))
    normal_rows(effects.sum(), 3.0, y, "y")


@pytest.mark.slow
def test_shorter_steps_diverge_less():
    table = pd.DataFrame({"y": np.random.default_rng(1).normal(0, 3, size=8)})
    options = {"method": "nuts", "num_warmup": 400, "num_samples": 1000, "num_chains": 1}
    wide, narrow = (
        fit(table, funnel, target_accept_prob=share, **options) for share in (0.6, 0.99)
    )
    assert_advised(wide, "divergences", "raise target_accept_prob")
    assert "divergences" not in narrow.reasons
    counts = [int(fitted.tree["shards"]["divergences"].sum()) for fitted in (wide, narrow)]
    assert counts[1] < counts[0] / 2


# The correction

# Weights alone, few of them at first.
WEIGHTS = {
    "consensus.correction.emulator-error": 0.0,
    "consensus.correction.first-points": 64,
    "consensus.correction.later-points": 1024,
}


def small(y=None):
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    normal_rows(mu, numpyro.sample("sigma", dist.HalfNormal(5)), y, "y")


@pytest.fixture(scope="module")
def nine():
    return pd.DataFrame({"y": np.random.default_rng(2).normal(size=9)})


def test_more_iterations_give_more_points(nine):
    once, often = (
        fit(nine, small, WEIGHTS | {"consensus.correction.iterations": n}, n_shards=3)
        for n in (1, 8)
    )
    for code in ("ess", "sd-error"):
        assert_advised(once, code, "raise consensus.correction.iterations (now 1)")
        assert code not in often.reasons
    assert often.good
    assert float(often.tree["correction"]["ess"]) > 400 > float(once.tree["correction"]["ess"])


def test_few_rows_whose_correction_fails_are_sampled_together(nine):
    once = WEIGHTS | {"consensus.correction.iterations": 1}
    tree, reasons = fit(nine, small, once, num_warmup=300)
    assert (tree.attrs["method_used"], reasons) == ("nuts", {})
    assert dict(tree["posterior"]["mu"].sizes) == {"chain": 4, "draw": 1000}
    assert "correction" not in tree.children
    # Of so few points none lies where some of the mass is.
    few = "ess, sd-error, tail"
    failed = f"because the correction of a Gaussian about its mode failed ({few}): 4 chains"
    assert failed in tree.attrs["verdict"]
    # Too few draws say no more than the points did; and more rows than a shard has are left.
    for options in ({"num_warmup": 300, "num_samples": 20}, {"n_shards": 1, "rows_per_shard": 8}):
        kept = fit(nine, small, once, **options)
        assert kept.tree.attrs["method_used"] == "laplace"
        assert set(kept.reasons) == set(few.split(", "))
        told = "NUTS on all rows did no better (" in kept.tree.attrs["verdict"]
        assert told is ("num_samples" in options)


@pytest.mark.slow
def test_more_iterations_follow_what_the_first_points_miss():
    """A tau of all scales, whose log has a long left tail: one proposal misses it."""
    y = np.random.default_rng(7).normal(size=60)
    table = pd.DataFrame({"g": np.arange(60), "y": y})
    options = {"by": "g", "n_shards": 3}
    once, often = (
        fit(table, effects, WEIGHTS | {"consensus.correction.iterations": n}, **options)
        for n in (1, 8)
    )
    assert_advised(once, "k-hat", "raise consensus.correction.iterations (now 1)")
    assert "k-hat" not in often.reasons
    k_hats = [float(fitted.tree["correction"]["k_hat"]) for fitted in (once, often)]
    assert k_hats[1] < k_hats[0]


@pytest.mark.slow
def test_nuts_needs_no_weights():
    y = np.random.default_rng(7).normal(size=60)
    table = pd.DataFrame({"g": np.arange(60), "y": y})
    once = fit(table, effects, WEIGHTS | {"consensus.correction.iterations": 1}, by="g", n_shards=3)
    assert_advised(once, "k-hat", "use method='nuts'")
    alone = fit(table, effects, by="g", method="nuts")
    assert "k-hat" not in alone.reasons


@pytest.mark.slow
def test_a_prior_with_lighter_tails_has_no_mass_far_out():
    """Two classes that one line separates: the likelihood never falls."""
    x = np.linspace(-2, 2, 40)
    table = pd.DataFrame({"x": x, "y": (x > 0).astype(int)})

    def logistic(prior):
        def model(x, y=None):
            slope = numpyro.sample("slope", prior)
            with numpyro.plate("rows", len(y)):
                numpyro.sample("y", dist.Bernoulli(logits=slope * x), obs=y)

        return model

    heavy, light = (
        fit(table, logistic(prior), n_shards=2)
        for prior in (dist.Cauchy(0, 2.5), dist.Normal(0, 2.5))
    )
    assert_advised(heavy, "tail", "give it a prior with lighter tails")
    assert "tail" not in light.reasons
    assert light.good


# The combination


def test_a_correction_makes_an_approximation_good(nine):
    uncorrected, corrected = (
        fit(nine, small, n_shards=3, correct=correct) for correct in (False, "auto")
    )
    assert_advised(uncorrected, "approximate-error", "leave correct at 'auto'")
    assert corrected.good


def skewed(y=None):
    """A rate with few data a shard: the posterior of its log is skewed, in closed form."""
    rate = numpyro.sample("rate", dist.Gamma(1, 1))
    with numpyro.plate("rows", len(y)):
        numpyro.sample("y", dist.Exponential(rate), obs=y)


@pytest.fixture
def obstacle(monkeypatch):
    """As if no likelihood could be had: nothing is corrected, and no mode is looked for."""
    monkeypatch.setattr(AdaptiveQuadrature, "obstacle", property(lambda self: "of the test"))


def off(fitted: Fitted, y: np.ndarray) -> float:
    """Error of the mean of the log rate, in sds; Gamma(1 + n, 1 + sum) in closed form."""
    exact = scipy.stats.loggamma(1 + len(y))
    mean = exact.mean() - np.log(1 + y.sum())
    return abs(float(np.log(fitted.tree["posterior"]["rate"]).mean()) - mean) / exact.std()


@pytest.mark.slow
def test_anchored_rounds_err_less_than_one_shot(obstacle):
    y = np.random.default_rng(3).exponential(size=16)
    table = pd.DataFrame({"y": y})
    options = {"n_shards": 8, "num_samples": 2000}
    one_shot = fit(table, skewed, method="consensus", **options)
    assert_advised(one_shot, "approximate-error", "use method='anchored'")
    rounds = fit(table, skewed, method="anchored", **options)
    assert off(rounds, y) < off(one_shot, y)
    fewer = fit(table, skewed, method="consensus", **options | {"n_shards": 2})
    assert off(fewer, y) < off(one_shot, y)


@pytest.mark.slow
def test_more_rounds_stand_still(obstacle):
    """A pilot knows one shard of one row: the first round leads far from where it was."""
    y = np.random.default_rng(3).exponential(size=8)
    table = pd.DataFrame({"y": y})
    options = {"n_shards": 8, "num_samples": 10_000, "num_warmup": 200, "method": "anchored"}
    two, many = (fit(table, skewed, rounds=n, **options) for n in (2, 10))
    assert_advised(two, "moving", "raise rounds (now 2)")
    assert "moving" not in many.reasons


def standardised(x, y=None):
    scaled = (x - x.mean()) / x.std()
    normal_rows(numpyro.sample("beta", dist.Normal(0, 1)) * scaled, 1.0, y, "y")


@pytest.mark.slow
def test_rows_that_are_sampled_together_are_not_coupled():
    rng = np.random.default_rng(4)
    table = pd.DataFrame({"x": rng.normal(size=80), "y": rng.normal(size=80)})
    brief = {"num_warmup": 200, "num_samples": 300}
    several = fit(table, standardised, n_shards=2, rounds=2, **brief)
    alone = fit(table, standardised, method="nuts", **brief)
    assert_advised(several, "coupled", "use method='nuts'")
    assert "coupled" not in alone.reasons
    assert alone.good


def mixture(ordered):
    location = dist.Normal(0, 5).expand([2]).to_event(1)
    if ordered:
        location = dist.TransformedDistribution(location, dist.transforms.OrderedTransform())

    def model(y=None):
        mu = numpyro.sample("mu", location)
        halves = dist.Categorical(jnp.array([0.5, 0.5]))
        with numpyro.plate("rows", len(y)):
            numpyro.sample("y", dist.MixtureSameFamily(halves, dist.Normal(mu, 1.0)), obs=y)

    return model


@pytest.mark.slow
def test_ordered_components_have_one_mode():
    rng = np.random.default_rng(5)
    y = np.concatenate([rng.normal(-2, 1, 150), rng.normal(2, 1, 150)])
    free, ordered = (
        fit(pd.DataFrame({"y": y}), mixture(o), n_shards=3, correct=False) for o in (False, True)
    )
    assert_advised(free, "modes", "order the components")
    assert "modes" not in ordered.reasons


# Local effects


def outlying_pairs():
    """Groups whose rows disagree: of heavy-tailed errors each has a density of two humps."""
    rng = np.random.default_rng(6)
    g = np.repeat(np.arange(12), 5)
    y = np.where(np.arange(60) % 2, 4.0, -4.0) + 0.3 * rng.normal(size=60) + rng.normal(size=12)[g]
    return pd.DataFrame({"g": g, "y": y})


def humps(decentred):
    def model(g, y=None, *, n_g):
        mu = numpyro.sample("mu", dist.Normal(0, 5))
        tau = numpyro.sample("tau", dist.HalfNormal(5))
        with numpyro.plate("g", n_g):
            if decentred:
                effect = mu + tau * numpyro.sample("z", dist.Normal(0, 1))
            else:
                effect = numpyro.sample("effect", dist.Normal(mu, tau))
        with numpyro.plate("rows", len(y)):
            numpyro.sample("y", dist.StudentT(2.0, effect[g], 0.1), obs=y)

    return model


def exact_humps(table):
    """Mean and sd of mu and log tau on a grid, each group's integral on another."""
    mu, log_tau = np.linspace(-10, 10, 81), np.linspace(0, 3, 46)
    b, step = np.linspace(-40, 40, 8001, retstep=True)
    log_rows = np.array(
        [
            scipy.stats.t.logpdf((rows.to_numpy()[:, None] - b) / 0.1, 2).sum(axis=0)
            for _, rows in table.groupby("g")["y"]
        ]
    )
    likelihood = np.exp(log_rows - log_rows.max(axis=1, keepdims=True)) * step
    density = np.array(
        [
            [np.log(likelihood @ scipy.stats.norm.pdf(b, m, np.exp(s))).sum() for s in log_tau]
            for m in mu
        ]
    )
    density += scipy.stats.norm.logpdf(mu, 0, 5)[:, None]
    density += scipy.stats.halfnorm.logpdf(np.exp(log_tau), scale=5) + log_tau
    density = np.exp(density - density.max())
    density /= density.sum()
    means, sds = [], []
    for values, shares in ((mu, density.sum(axis=1)), (log_tau, density.sum(axis=0))):
        means.append(shares @ values)
        sds.append(np.sqrt(shares @ (values - means[-1]) ** 2))
    return np.array(means), np.array(sds)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_a_second_hump_of_a_group_is_integrated(seed):
    """What is promised, an error of so many sds, holds: five times that is not exceeded."""
    table = outlying_pairs()
    fitted = fit(table, humps(decentred=False), by="g", n_shards=2, seed=seed)
    mean, sd = exact_humps(table)
    off = np.abs(fitted.tree["correction"]["mean"] - mean) / sd
    told = list(json.loads(fitted.tree.attrs["accuracy"]).values())
    assert (off < 5 * np.array(told)).all()


@pytest.mark.slow
def test_nuts_integrates_nothing():
    table = outlying_pairs()
    never = {"consensus.verdict.integration-error": 0.0}
    several = fit(table, humps(decentred=False), never, by="g", n_shards=2)
    assert_advised(several, "integration", "use method='nuts'")
    alone = fit(table, humps(decentred=False), never, by="g", method="nuts")
    assert not {"integration", "modes-not-found", "coupling"} & set(alone.reasons)


@pytest.mark.slow
def test_nuts_needs_no_hessian_between_groups():
    """No small model couples groups and hides it from the plan: a limit of nothing stands in."""
    y = np.random.default_rng(7).normal(size=40)
    table = pd.DataFrame({"g": np.arange(40), "y": y})
    limit = {"consensus.verdict.coupling": 0}
    several = fit(table, effects, limit, by="g", n_shards=2)
    if "coupling" in several.reasons:
        assert_advised(several, "coupling", "use method='nuts'")
    assert "coupling" not in fit(table, effects, limit, by="g", method="nuts").reasons


# Shards


@pytest.mark.slow
def test_a_strange_shards_rows_are_unlike_the_rest():
    rng = np.random.default_rng(8)
    place = np.repeat(np.arange(8), 40)
    table = pd.DataFrame({"place": place, "y": rng.normal(size=320) + 3.0 * (place == 5)})
    everywhere = fit(table, small, by="place", n_shards=8)
    assert_advised(everywhere, "strange-shard", "compare them with the rest")
    # The report leads to the rows: the shard that is named has the mean that is far away.
    k = int(everywhere.reasons["strange-shard"]["where"].split(",")[0].removeprefix("shard "))
    means = everywhere.tree["shards"]["mean"].sel(coordinate="mu").isel(round=-1).to_numpy()
    assert k == np.abs(means - np.median(means)).argmax()
    assert fit(table[table["place"] != 5], small, by="place", n_shards=7).good


def regions(centred):
    """Shared effects under a scale that is shared, too: centred, they have a peak of no width."""

    def model(county, region, y=None, *, n_county, n_region):
        tau = numpyro.sample("tau", dist.HalfNormal(1))
        spread = numpyro.sample("spread", dist.HalfNormal(1))
        sigma = numpyro.sample("sigma", dist.HalfNormal(1))
        if centred:
            effect = numpyro.sample("r", dist.Normal(0, spread).expand([n_region]).to_event(1))
        else:
            z = numpyro.sample("z", dist.Normal(0, 1).expand([n_region]).to_event(1))
            effect = spread * z
        with numpyro.plate("counties", n_county):
            alpha = numpyro.sample("alpha", dist.Normal(0, tau))
        normal_rows(effect[region] + alpha[county], sigma, y, "y")

    return model


@pytest.mark.slow
def test_a_scale_of_shared_effects_is_written_apart():
    rng = np.random.default_rng(1)
    county = rng.integers(0, 300, 6000)
    region = pd.Categorical.from_codes(county % 12, [f"r{i}" for i in range(12)])
    y = rng.normal(0, 0.5, 300)[county] + rng.normal(0, 0.7, 12)[county % 12]
    names = [f"c{code}" for code in county]
    table = pd.DataFrame({"county": names, "region": region, "y": y + rng.normal(size=6000)})
    centred, apart = (fit(table, regions(c), by="county", n_shards=4) for c in (True, False))
    assert "non-centred" in centred.reasons["modes"]["remedy"]
    assert apart.good
