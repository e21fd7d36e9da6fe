"""Effects of crossed factors: found in the model, curved as they should be, and integrated out."""

from types import SimpleNamespace

import dask
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
import pytest

from dask_consensus.cluster.tasks import compute
from dask_consensus.combination import crossed
from dask_consensus.combination.ascent import Peak
from dask_consensus.combination.crossed import mirrored
from dask_consensus.fit import shard_rows
from dask_consensus.model.crossed import MOST_CROSSED, Crossed, coordinates
from dask_consensus.shard.crossed import curvature
from dask_consensus.shard.engine import engine_of
from dask_consensus.shard.quadrature import Rule

from . import fit, from_pandas, plan
from .test_resume import Crash, Passes, assert_same

ITEMS, GROUPS = 20, 12
LIKE_A_USER = {"by": "g", "n_shards": 2, "method": "auto", "correct": "auto", "local": "summary"}


def table(rows: int = 240, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    group, item = rng.integers(0, GROUPS, rows), rng.integers(0, ITEMS, rows)
    group[:GROUPS], item[:ITEMS] = np.arange(GROUPS), np.arange(ITEMS)
    x, a, b = rng.normal(size=rows), rng.normal(0, 0.7, GROUPS), rng.normal(0, 0.5, ITEMS)
    eta = 0.3 + a[group] + b[item]
    y = (rng.random(rows) < 1 / (1 + np.exp(-eta))).astype(np.int64)
    return pd.DataFrame({"g": group, "item": item, "x": x, "y": y, "z": rng.normal(eta, 1.0)})


def effects(size=ITEMS, name="b"):
    with numpyro.plate("items", size):
        return numpyro.sample(name, dist.Normal(0, 0.5))


def local(n_g):
    with numpyro.plate("groups", n_g):
        return numpyro.sample("a", dist.Normal(0, 0.7))


def normal(item, g, n_g, z=None):
    mu = numpyro.sample("mu", dist.Normal(0, 2))
    b, a = effects(), local(n_g)
    with numpyro.plate("rows", item.shape[0]):
        numpyro.sample("obs", dist.Normal(mu + a[g] + b[item], 1.0), obs=z)


def binary(x, item, g, n_g, y=None):
    """Two numbers an item, non-centred, beside an intercept of each group."""
    mu = numpyro.sample("mu", dist.Normal(0, 2))
    tau = numpyro.sample("tau", dist.HalfNormal(1))
    with numpyro.plate("items", ITEMS):
        raw = numpyro.sample("raw", dist.Normal(0, 1).expand([2]).to_event(1))
    b = numpyro.deterministic("b", tau * raw)
    a = local(n_g)
    with numpyro.plate("rows", x.shape[0]):
        logits = mu + a[g] + b[item, 0] + b[item, 1] * x
        numpyro.sample("obs", dist.Bernoulli(logits=logits), obs=y)


def alone(x, item, z=None):
    """No effects of groups."""
    mu = numpyro.sample("mu", dist.Normal(0, 2))
    b = effects()
    with numpyro.plate("rows", x.shape[0]):
        numpyro.sample("obs", dist.StudentT(5.0, mu + b[item], 1.0), obs=z)


def of_all(item, g, n_g, z=None):
    """An item's effect less their mean: no row has one to itself."""
    mu = numpyro.sample("mu", dist.Normal(0, 2))
    b, a = effects(), local(n_g)
    with numpyro.plate("rows", item.shape[0]):
        numpyro.sample("obs", dist.Normal(mu + a[g] + b[item] - b.mean(), 1.0), obs=z)


def few(item, g, n_g, z=None):
    mu = numpyro.sample("mu", dist.Normal(0, 2))
    b, a = effects(10), local(n_g)
    with numpyro.plate("rows", item.shape[0]):
        numpyro.sample("obs", dist.Normal(mu + a[g] + b[item // 2], 1.0), obs=z)


def table_of_items(item, g, n_g, z=None):
    """The column looks something else up, too."""
    mu = numpyro.sample("mu", dist.Normal(0, 2))
    b, a = effects(), local(n_g)
    with numpyro.plate("rows", item.shape[0]):
        loc = mu + a[g] + b[item] * jnp.linspace(0.0, 1.0, ITEMS)[item]
        numpyro.sample("obs", dist.Normal(loc, 1.0), obs=z)


@pytest.mark.parametrize(
    ("model", "factors"),
    [
        (normal, (Crossed("b", "item", 0, ITEMS, 1, ()),)),
        (binary, (Crossed("raw", "item", 0, ITEMS, 2, (2,)),)),
        (of_all, ()),
        (few, ()),
        (table_of_items, ()),
    ],
    ids=lambda it: it.__name__ if callable(it) else "",
)
def test_what_rows_look_up_by_a_column_is_crossed(model, factors):
    assert plan(from_pandas(table()), model, **LIKE_A_USER).model.crossed == factors


def test_methods_that_sample_shards_know_of_no_crossed_effects():
    made = plan(from_pandas(table()), normal, **LIKE_A_USER | {"method": "anchored"})
    assert not made.model.crossed


@pytest.mark.parametrize("model", [normal, binary, alone], ids=lambda it: it.__name__)
def test_curvature_is_that_of_gradients(model):
    frame = from_pandas(table())
    made = plan(frame, model, **LIKE_A_USER)
    (data,) = compute([shard_rows(frame, made, False).data[0]])
    u = np.random.default_rng(1).normal(0, 0.3, made.model.dim)
    which, _ = coordinates(made.model)
    found = curvature(made.model, data, u[None])
    engine = engine_of(made.model)
    rule = Rule(engine.gradient_nodes[min(1, len(engine.gradient_nodes) - 1)])
    score = engine.gradient(data, u[None], 0.0, rule)
    np.testing.assert_allclose(found.gradient[0], score.gradient[0, which], atol=1e-9)
    step = 1e-4
    points = u + step * np.eye(made.model.dim)[which]
    either = [engine.gradient(data, p, 0.0, rule).gradient for p in (points, 2 * u - points)]
    hessian = (either[0] - either[1])[:, which] / (2 * step)
    # Scores of rows are taken to be linear in the effects, which those of binary rows nearly are.
    tolerance = 0.01 if model is binary else 1e-5
    np.testing.assert_allclose(found.precision[0], -hessian, atol=tolerance * abs(hessian).max())


def test_normal_rows_have_the_closed_form():
    rows = table()
    tree = fit(from_pandas(rows), normal, **LIKE_A_USER)
    assert tree.attrs["verdict_good"], tree.attrs["verdict"]
    ones = np.ones((len(rows), 1))
    items, groups = np.eye(ITEMS)[rows["item"]], np.eye(GROUPS)[rows["g"]]
    noise = np.linalg.inv(np.eye(len(rows)) + 0.49 * groups @ groups.T)
    design = np.concatenate([ones, items], axis=1)
    prior = np.diag([1 / 4, *[1 / 0.25] * ITEMS])
    covariance = np.linalg.inv(design.T @ noise @ design + prior)
    mean, sd = covariance @ design.T @ noise @ rows["z"], np.sqrt(np.diag(covariance))
    told = tree["posterior"]
    draws = np.column_stack([told["mu"].values.ravel(), told["b"].values.reshape(-1, ITEMS)])
    assert np.abs((draws.mean(axis=0) - mean) / sd).max() < 0.02
    assert np.abs(draws.std(axis=0) / sd - 1).max() < 0.03
    exact = covariance / np.outer(sd, sd)
    assert np.abs(np.corrcoef(draws.T) - exact)[0].max() < 0.15  # noise of 500 draws
    assert "local" in tree.children
    assert "given_shared" not in tree["local"].children


def test_a_plan_says_what_is_crossed():
    made = plan(from_pandas(table()), normal, **LIKE_A_USER)
    text = repr(made)
    assert "local and crossed effects integrated out" in text
    assert "crossed, by item" in text
    assert "b: 20 effects that meet in all shards" in " ".join(text.split())
    # What they take is not known beforehand, and no number pretends that it is.
    told = made.forecast()
    assert list(told.seconds) == ["shard"]
    shown = " ".join(repr(told).split())
    assert "not in these numbers: the seconds of the 20 crossed effects." in shown
    assert "memory a worker at least" in shown
    assert "timed here" not in shown
    assert "forecast: in part" in told._repr_html_()
    assert "but not how long crossed effects take" in text


def test_too_many_levels_are_refused():
    def wide(item, g, n_g, z=None):
        mu = numpyro.sample("mu", dist.Normal(0, 2))
        b, a = effects(MOST_CROSSED + 1), local(n_g)
        with numpyro.plate("rows", item.shape[0]):
            numpyro.sample("obs", dist.Normal(mu + a[g] + b[item], 1.0), obs=z)

    with pytest.raises(ValueError, match=r"2,049 crossed effects \(b \(2,049\)\) are more than"):
        plan(from_pandas(table()), wide, **LIKE_A_USER)


@pytest.mark.slow
def test_rows_are_added_to_crossed_effects_by_fitting_all():
    """Old rows say something of each item that new rows have, too."""
    rows, more = table(), table(seed=1).assign(g=lambda rows: rows["g"] + 100)
    frame, new = from_pandas(rows), from_pandas(more)
    tree = fit(frame, normal, **LIKE_A_USER)
    with pytest.raises(ValueError, match=r"update=: crossed effects \(b\) .*\(tree, ddf_old\)"):
        new.consensus.fit(normal, update=tree)
    other = tree.copy()
    other.attrs["n_rows"] = 241
    with pytest.raises(ValueError, match="ddf_old has 240 rows, and the tree is of 241"):
        new.consensus.fit(normal, update=(other, frame))
    lazy = new.consensus.fit(normal, update=(tree, frame), compute=False)
    assert "it costs a whole fit" in " ".join(repr(lazy.plan()).split())
    options = {name: value for name, value in LIKE_A_USER.items() if name != "by"}
    both = fit(new, normal, update=(tree, frame), **options)
    whole = fit(from_pandas(pd.concat([more, rows])), normal, **LIKE_A_USER)
    assert both.attrs["n_rows"] == 480
    for name in ("mu", "b"):
        np.testing.assert_array_equal(both["posterior"][name], whole["posterior"][name])


@pytest.mark.slow
def test_a_store_keeps_little_of_many_crossed_effects(monkeypatch, tmp_path):
    """Crashed again and again, to the same bits; no record has a Hessian for each point."""
    monkeypatch.setattr(crossed, "_WORTH_KEEPING", 0)
    options = LIKE_A_USER | {"local": None}
    frame, path = from_pandas(table()), str(tmp_path / "store")
    with dask.config.set(scheduler="synchronous"):
        passes = Passes(monkeypatch)
        whole = fit(frame, normal, **options)
        total, done = len(passes.ran), 0
        for number in (3, total // 4, total // 4, total // 4):
            passes.ran.clear()
            passes.crash = number
            with pytest.raises(Crash):
                fit(frame, normal, **options, store=path)
            done += len(passes.ran)
        passes.ran.clear()
        assert_same(fit(frame, normal, **options, store=path), whole)
        # A climb that was broken off is begun again: six looks or so, each time.
        assert total <= done + len(passes.ran) < total + 4 * 10
        largest = max(file.stat().st_size for file in (tmp_path / "store").rglob("*.parquet"))
        assert largest < 8 * ITEMS**2 * 10 + 200_000
        passes.ran.clear()
        assert_same(fit(frame, normal, **options, store=path), whole)
        assert passes.ran == []


def unlike(item, g, n_g, z=None):
    """One level of 400 is treated otherwise, of which a small sample has no row."""
    mu = numpyro.sample("mu", dist.Normal(0, 2))
    b, a = effects(400), local(n_g)
    with numpyro.plate("rows", item.shape[0]):
        own = jnp.where(item == 333, 0.0, b[item])
        numpyro.sample("obs", dist.Normal(mu + a[g] + own, 1.0), obs=z)


@pytest.mark.parametrize(
    ("model", "level", "message"),
    [
        (unlike, 333, r"do not look crossed effects up .*b by item"),
        (normal, ITEMS, r"'item' holds levels from 0 to 20, but site 'b' has 20"),
    ],
    ids=["unlike", "beyond"],
)
def test_what_a_sample_of_rows_does_not_show_is_refused(model, level, message):
    rows = table()
    rows.loc[np.flatnonzero(rows["item"] == 7)[-1], "item"] = level
    frame = from_pandas(rows)
    made = plan(frame, model, **LIKE_A_USER)
    assert made.model.crossed
    (data,) = (d for d in compute(list(shard_rows(frame, made, False).data)) if level in _items(d))
    with pytest.raises(ValueError, match=message):
        curvature(made.model, data, np.full((1, made.model.dim), 0.3))


def _items(data):
    return data.arguments["item"]


class Shape:
    """A log density of the parameters beside crossed effects."""

    model = SimpleNamespace(
        shared=[SimpleNamespace(name=name, size=1, unconstrained=()) for name in ("a", "tau", "b")],
        crossed=[SimpleNamespace(site="b")],
    )

    def __init__(self, log_density):
        self.log_density_of = log_density

    def log_density(self, points, title):
        return self.log_density_of(points)


@pytest.mark.parametrize(
    ("mode", "log_density", "images"),
    [
        (0.8, lambda u: -((u[:, 0] ** 2 - 0.64) ** 2) * 50 - (u[:, 1] + 1) ** 2, 1),
        (0.8, lambda u: -((u[:, 0] - 0.8) ** 2) * 50 - (u[:, 1] + 1) ** 2, 0),
        (0.8, lambda u: -((u[:, 0] / 20) ** 2) - (u[:, 1] + 1) ** 2, 0),  # flat between: one place
    ],
    ids=["even", "one", "flat"],
)
def test_mirror_images_beside_crossed_effects_are_counted(mode, log_density, images):
    best = Peak(np.array([mode, -1.0]), np.diag([0.01, 0.5]), 0.0)
    assert mirrored(Shape(log_density), best) == images
    assert mirrored(Shape(log_density), best, [best._replace(u=np.array([-mode, -1.0]))]) == 0


def test_exchanged_sites_beside_crossed_effects_are_counted():
    """Two coordinates, of which only the sum and the product are known."""
    best = Peak(np.array([1.0, -0.5]), 0.001 * np.eye(2), 0.0)

    def log_density(u):
        return -500 * ((u.sum(axis=1) - 0.5) ** 2 + (u.prod(axis=1) + 0.5) ** 2)

    assert mirrored(Shape(log_density), best) == 1
