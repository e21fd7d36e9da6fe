from __future__ import annotations

import json
from typing import Any

import numpy as np
import numpyro.distributions as dist
import pandas as pd
import pytest
import xarray as xr
from scipy.stats import norm

from dask_consensus import plots
from dask_consensus.plots.scales import scales

from . import from_pandas

to_rgb = pytest.importorskip("matplotlib.colors").to_rgb

NAMES = TITLES = ["mu", "tau", "beta[age]"]
D, SHARDS, ROUNDS, POINTS = len(NAMES), 5, 4, 256
DRAWN = (plots.subposteriors, plots.rounds)


def tree(
    seed: int = 0, *, n_shards: int = SHARDS, n_rounds: int = ROUNDS, corrected: bool = False
) -> xr.DataTree:
    """The groups of a fit that the pictures read, filled with numbers."""
    rng = np.random.default_rng(seed)
    factor = rng.standard_normal((n_rounds, n_shards, D, 2 * D))
    shards = {
        "mean": (("round", "shard", "coordinate"), rng.standard_normal((n_rounds, n_shards, D))),
        "precision": (
            ("round", "shard", "coordinate", "coordinate_"),
            factor @ factor.swapaxes(-1, -2),
        ),
        "divergences": (("round", "shard"), np.zeros((n_rounds, n_shards), int)),
        "rows": (("round", "shard"), np.tile(np.arange(1, n_shards + 1), (n_rounds, 1))),
        "seconds": (("round", "shard"), rng.uniform(1, 2, (n_rounds, n_shards))),
        "compile_seconds": (("round", "shard"), rng.uniform(0, 1, (n_rounds, n_shards))),
    }
    per_round = {
        "mean": (("round", "coordinate"), rng.standard_normal((n_rounds, D))),
        "sd": (("round", "coordinate"), rng.uniform(0.5, 2.0, (n_rounds, D))),
        "movement": ("round", np.append(np.nan, rng.uniform(0.01, 1.0, n_rounds - 1))),
        "noise": ("round", rng.uniform(0.01, 0.1, n_rounds)),
    }
    labels = {"coordinate": NAMES}
    u = rng.standard_normal((1, 100, D))
    one, beta = ("chain", "draw"), ("chain", "draw", "term")
    unconstrained = {"mu": (one, u[..., 0]), "tau": (one, u[..., 1]), "beta": (beta, u[..., 2:])}
    values = {**unconstrained, "tau": (one, np.exp(u[..., 1]).astype(np.float32))}
    groups = {
        "posterior": xr.Dataset(values, {"term": ["age"]}),
        "unconstrained_posterior": xr.Dataset(unconstrained),
        "shards": xr.Dataset(shards, {**labels, "coordinate_": NAMES}),
        "rounds": xr.Dataset(per_round, {**labels, "round": np.arange(n_rounds)}),
    }
    if corrected:
        raw = rng.exponential(size=POINTS)
        groups["uncorrected"] = groups["posterior"]
        groups["correction"] = xr.Dataset(
            {
                "points": (("point", "coordinate"), 1 + 2 * rng.standard_normal((POINTS, D))),
                "mean": ("coordinate", np.arange(D) + 0.5),
                "sd": ("coordinate", np.arange(D) + 2.0),
                "weights": ("point", raw / raw.sum()),
                "iteration": ("point", np.repeat([0, 1], [64, POINTS - 64])),
                "k_hat": ((), 0.12),
                "ess": ((), 1 / ((raw / raw.sum()) ** 2).sum()),
            },
            labels,
        )
    made = xr.DataTree.from_dict(groups)
    supports = {"mu": "real", "tau": "positive", "beta": "real"}
    latents = [
        {"name": name, "support": support, "level": None, "unconstrained": [1] * (name == "beta")}
        for name, support in supports.items()
    ]
    made.attrs["model"] = json.dumps({"latents": latents})
    made.attrs["profile"] = json.dumps({"plan": 1.0, "rounds": 3.0, "compile": 0.5})
    return made


def drawn(number: Any, j: int) -> Any:
    """A number of a coordinate, on the scale of the model."""
    return np.exp(number) if NAMES[j] == "tau" else number


def panels(figure: Any) -> list[Any]:
    return [ax for ax in figure.axes if ax.axison]


def titles(figure: Any) -> list[str]:
    return [ax.get_title(loc="left") for ax in panels(figure)]


def lines(ax: Any) -> dict[str, Any]:
    """Marks of a panel by what the legend calls them; of an error bar, the points."""
    found = {line.get_label(): line for line in ax.get_lines()}
    return found | {bars.get_label(): bars.lines[0] for bars in ax.containers}


def spans(segments: Any) -> np.ndarray:
    """Both ends of every bar: ``(bar, end, xy)``."""
    return np.array(segments.get_segments())


def legend(figure: Any) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def band(ax: Any, axis: int) -> list[float]:
    """Ends of the grey band of a reference."""
    grey = next(patch for patch in ax.patches if patch.get_label() == "reference")
    bounds = grey.get_bbox()
    return [(bounds.x0, bounds.y0)[axis], (bounds.x1, bounds.y1)[axis]]


def save(figure: Any, tmp_path: Any) -> None:
    """Render: much of what can go wrong, goes wrong here."""
    figure.savefig(tmp_path / "figure.png", dpi=40)


# --- subposteriors ---


def test_subposteriors_are_the_moments_of_the_last_round(tmp_path):
    one = tree()
    figure = plots.subposteriors(one)
    assert titles(figure) == TITLES
    last = one["shards"].isel(round=-1)
    for j, ax in enumerate(panels(figure)):
        mean = last["mean"].values[:, j]
        sd = np.sqrt(np.linalg.inv(last["precision"].values)[:, j, j])
        np.testing.assert_allclose(lines(ax)["shard"].get_xdata(), drawn(mean, j), rtol=1e-6)
        bars = spans(ax.collections[0])
        ends = drawn(np.stack([mean - sd, mean + sd], axis=1), j)
        np.testing.assert_allclose(bars[:, :, 0], ends, rtol=1e-6)
        np.testing.assert_array_equal(bars[:, 0, 1], np.arange(SHARDS))
        combined = lines(ax)["all shards combined"].get_xdata()
        assert combined == pytest.approx(drawn(one["rounds"]["mean"].values[-1, j], j))
    save(figure, tmp_path)


def test_subposteriors_with_diagonal_weights():
    one, diagonal = tree(), tree()
    precision = np.random.default_rng(1).uniform(1, 4, (ROUNDS, SHARDS, D))
    dims = ("round", "shard", "coordinate")
    shards = one["shards"].to_dataset().drop_vars(["precision", "coordinate_"])
    diagonal["shards"] = xr.DataTree(shards.assign(precision=(dims, precision)))
    bars = spans(panels(plots.subposteriors(diagonal))[0].collections[0])
    np.testing.assert_allclose(np.ptp(bars[..., 0], axis=1), 2 / np.sqrt(precision[-1, :, 0]))


def test_divergences_are_marked():
    one = tree()
    assert "shard with divergences" not in legend(plots.subposteriors(one))
    one["shards"]["divergences"].values[-1, 2] = 7
    figure = plots.subposteriors(one)
    assert "shard with divergences" in legend(figure)
    marked = lines(panels(figure)[0])["shard with divergences"]
    np.testing.assert_array_equal(marked.get_ydata(), [2])


@pytest.mark.parametrize("defect", [np.nan, -1.0])
def test_a_shard_without_a_standard_deviation_is_its_mean_alone(defect, tmp_path):
    one = tree()
    one["shards"]["precision"].values[-1, 1] = defect * np.eye(D)
    figure = plots.subposteriors(one)
    for ax in panels(figure):
        # Matplotlib drops ends that are not finite.
        ends = [len(bar) for bar in ax.collections[0].get_segments()]
        assert ends == [2, 0, 2, 2, 2]
        assert np.isfinite(lines(ax)["shard"].get_xdata()).all()
    save(figure, tmp_path)


@pytest.mark.parametrize("n_shards", [2, 6, 7, 200])
def test_any_number_of_shards(n_shards, tmp_path):
    figure = plots.subposteriors(tree(n_shards=n_shards))
    ticks = panels(figure)[0].get_yticks()
    assert ticks[0] == 0
    assert 2 <= len(ticks) <= 6
    assert ticks[-1] < n_shards
    assert figure.get_figheight() < 8
    save(figure, tmp_path)


def test_one_shard_has_no_subposteriors():
    with pytest.raises(ValueError, match="several shards, got one shard"):
        plots.subposteriors(tree(n_shards=1))


# --- rounds ---


def test_rounds_are_those_of_the_tree(tmp_path):
    one = tree()
    figure = plots.rounds(one)
    assert titles(figure) == [*TITLES, "movement, in posterior sds"]
    *axes, final = panels(figure)
    steps, number = one["rounds"], [1, 2, 3, 4]
    for j, ax in enumerate(axes):
        mean, sd = steps["mean"].values[:, j], steps["sd"].values[:, j]
        np.testing.assert_array_equal(lines(ax)["combination"].get_xdata(), number)
        middle = lines(ax)["combination"].get_ydata()
        np.testing.assert_allclose(middle, drawn(mean, j), rtol=1e-6)
        bars = spans(ax.containers[0].lines[2][0])
        ends = drawn(np.stack([mean - sd, mean + sd], axis=1), j)
        np.testing.assert_allclose(bars[..., 1], ends, rtol=1e-6)
    for label, name in (("movement", "movement"), ("Monte Carlo error", "noise")):
        np.testing.assert_array_equal(lines(final)[label].get_ydata(), steps[name].values)
        np.testing.assert_array_equal(lines(final)[label].get_xdata(), number)
    assert final.get_yscale() == "log"
    assert legend(figure) == ["combination", "movement", "Monte Carlo error"]
    save(figure, tmp_path)


@pytest.mark.parametrize("n_rounds", [1, 2, 30])
@pytest.mark.parametrize("noise", [0.05, 0.0, np.nan])
def test_any_number_of_rounds_with_or_without_a_monte_carlo_error(n_rounds, noise, tmp_path):
    one = tree(n_rounds=n_rounds)
    one["rounds"]["noise"].values[:] = noise
    figure = plots.rounds(one)
    assert all(len(ax.get_xticks()) <= 8 for ax in panels(figure))
    save(figure, tmp_path)


def test_rounds_without_a_monte_carlo_error_do_not_mention_it(tmp_path):
    one = tree()
    one["rounds"]["noise"].values[:] = np.nan
    figure = plots.rounds(one)
    assert legend(figure) == ["combination", "movement"]
    final = panels(figure)[-1]
    (line,) = final.get_lines()
    np.testing.assert_array_equal(line.get_ydata(), one["rounds"]["movement"].values)
    assert final.get_yscale() == "log"
    save(figure, tmp_path)


def test_a_monte_carlo_error_of_later_rounds_alone_is_drawn(tmp_path):
    one = tree()  # Newton's steps, then rounds of sampling that go on from there
    one["rounds"]["noise"].values[:2] = np.nan
    figure = plots.rounds(one)
    assert legend(figure) == ["combination", "movement", "Monte Carlo error"]
    drawn = lines(panels(figure)[-1])["Monte Carlo error"].get_ydata()
    np.testing.assert_array_equal(np.isfinite(drawn), [False, False, True, True])
    save(figure, tmp_path)


# --- a reference beside them ---


@pytest.mark.parametrize("draw", DRAWN)
def test_a_reference_is_a_band_of_its_last_round(draw):
    full = tree(1, n_shards=1, n_rounds=1)
    figure = draw(tree(), full)
    assert legend(figure)[0] == "reference"
    last = full["rounds"].isel(round=-1)
    for j, ax in enumerate(panels(figure)[:D]):
        mean, sd = last["mean"].values[j], last["sd"].values[j]
        ends = band(ax, axis=0 if draw is plots.subposteriors else 1)
        expected = drawn(np.array([mean - sd, mean + sd]), j)
        np.testing.assert_allclose(ends, expected, rtol=1e-6)


@pytest.mark.parametrize("draw", DRAWN)
def test_a_corrected_reference_is_a_band_of_its_correction(draw):
    full = tree(1, corrected=True)
    mean, sd = (full["correction"][name].values for name in ("mean", "sd"))
    for j, ax in enumerate(panels(draw(tree(), full))[:D]):
        ends = band(ax, axis=0 if draw is plots.subposteriors else 1)
        expected = drawn(np.array([mean[j] - sd[j], mean[j] + sd[j]]), j)
        np.testing.assert_allclose(ends, expected, rtol=1e-6)


@pytest.mark.parametrize("draw", DRAWN)
def test_a_correction_that_failed_is_no_reference(draw):
    full = tree(1, corrected=True)
    # No group of this name: the posterior is the combination, the points are not usable.
    del full["uncorrected"]
    last = full["rounds"].isel(round=-1)
    axis = 0 if draw is plots.subposteriors else 1
    ends = band(panels(draw(tree(), full))[0], axis)
    assert np.mean(ends) == pytest.approx(last["mean"].values[0])


@pytest.mark.parametrize("draw", DRAWN)
def test_a_reference_with_other_parameters_is_an_error(draw):
    other = tree()
    renamed = other["rounds"].to_dataset().assign_coords(coordinate=["mu", "tau", "x"])
    other["rounds"] = xr.DataTree(renamed)
    with pytest.raises(
        ValueError, match=r"reference has parameters mu, tau, x, .* mu, tau, beta\[age\]"
    ):
        draw(tree(), other)


@pytest.mark.parametrize("draw", DRAWN)
def test_a_tree_that_is_no_fit_is_an_error(draw):
    draws = xr.DataTree.from_dict({"posterior": tree()["posterior"].to_dataset()})
    with pytest.raises(ValueError, match="tree without the group"):
        draw(draws)
    with pytest.raises(ValueError, match="tree without the group rounds"):
        draw(tree(), draws)


# --- weights ---


def test_weights_over_distance_and_in_order(tmp_path):
    one = tree(corrected=True)
    figure = plots.weights(one)
    assert titles(figure) == ["weight over distance", "weights in order"]
    left, right = panels(figure)
    correction = one["correction"].to_dataset()
    points, relative = correction["points"].values, POINTS * correction["weights"].values

    covariance = np.cov(points.T, aweights=relative, ddof=0)
    away = points - np.average(points, axis=0, weights=relative)
    expected = np.sqrt(np.sum(away @ np.linalg.inv(covariance) * away, axis=1))
    for number in (0, 1):
        chosen = correction["iteration"].values == number
        drawn = lines(left)[f"iteration {number + 1}"]
        np.testing.assert_allclose(drawn.get_xdata(), expected[chosen])
        np.testing.assert_allclose(drawn.get_ydata(), relative[chosen])
    np.testing.assert_allclose(right.get_lines()[0].get_ydata(), np.sort(relative)[::-1])
    assert right.get_lines()[0].get_xdata()[-1] == POINTS

    ess = f"{float(correction['ess']):.0f}"
    assert figure.get_suptitle() == f"k-hat 0.12, 256 points as good as {ess} independent draws"
    save(figure, tmp_path)


def test_points_without_weight_do_not_squeeze_the_others(tmp_path):
    one = tree(corrected=True)
    one["correction"]["weights"].values[:10] = 0.0
    one["correction"]["points"].values[:10] = 1e3
    figure = plots.weights(one)
    left, right = panels(figure)
    assert left.get_xlim()[1] < 10
    assert left.get_ylim()[0] == right.get_ylim()[0] == pytest.approx(0.5e-4)
    save(figure, tmp_path)


def test_weights_of_an_uncorrected_fit_are_an_error():
    with pytest.raises(ValueError, match="expected a corrected result"):
        plots.weights(tree())


# --- on which scale ---


def scaled(prior: Any, shape: tuple[int, ...] = ()) -> tuple[xr.DataTree, Any]:
    """A tree of one parameter, and NumPyro's own transformation to its support."""
    from numpyro.distributions.transforms import biject_to

    from dask_consensus.model.roles import _support_name

    u = np.random.default_rng(0).normal(
        size=(1, 50, *biject_to(prior.support).inverse_shape(shape))
    )
    transform = biject_to(prior.support)
    dims = [("chain", "draw", *(f"{name}{i}" for i in range(len(shape)))) for name in ("a", "b")]
    names = ["x"] if not shape else [f"x[{i}]" for i in range(u.shape[-1])]
    rounds = {"mean": (("round", "coordinate"), np.zeros((1, len(names))))}
    groups = {
        "posterior": xr.Dataset({"x": (dims[0], np.asarray(transform(u)))}),
        "unconstrained_posterior": xr.Dataset({"x": (dims[1], u)}),
        "rounds": xr.Dataset(rounds, {"coordinate": names}),
    }
    made = xr.DataTree.from_dict(groups)
    latent = {"name": "x", "support": _support_name(prior.support), "level": None}
    latent["unconstrained"] = u.shape[2:]
    made.attrs["model"] = json.dumps({"latents": [latent]})
    return made, transform


@pytest.mark.parametrize(
    ("prior", "inner"),
    [
        (dist.Normal(0, 1), "x"),
        (dist.HalfNormal(1), "log x"),
        (dist.Beta(1, 1), "logit x"),
        (dist.Uniform(-2, 5), "x, unconstrained"),
        (dist.TruncatedNormal(0, 1, low=1.5), "x, unconstrained"),
        (dist.TruncatedNormal(0, 1, high=-1.5), "x, unconstrained"),
        (dist.VonMises(0, 1), "x, unconstrained"),
    ],
    ids=["real", "positive", "unit", "interval", "above", "below", "circular"],
)
def test_a_scale_is_that_of_numpyro(prior, inner):
    one, transform = scaled(prior)
    (scale,) = scales(one, constrained=True)
    assert scale.label == "x"
    far = np.linspace(-6, 6, 13)  # subposteriors lie outside of the posterior's draws
    expected = np.asarray(transform(far.astype(np.float32)))
    np.testing.assert_allclose(scale(far), expected, rtol=2e-3, atol=1e-3)
    (scale,) = scales(one, constrained=False)
    assert scale.label == inner
    np.testing.assert_array_equal(scale(far), far)


def test_what_has_no_scale_of_its_own_says_that_it_is_unconstrained():
    one, _ = scaled(dist.Dirichlet(np.ones(3)), (3,))
    labels = ["x[0], unconstrained", "x[1], unconstrained"]
    assert [scale.label for scale in scales(one, constrained=True)] == labels
    # A bound that is another parameter: no line joins the draws in both spaces.
    one, _ = scaled(dist.Uniform(0, 1))
    one["posterior"]["x"] = one["posterior"]["x"] * np.linspace(1, 2, 50)
    assert [scale.label for scale in scales(one, constrained=True)] == ["x, unconstrained"]


@pytest.mark.parametrize("draw", DRAWN)
def test_unconstrained_numbers_stand_under_names_that_say_so(draw):
    one = tree()
    figure = draw(one, constrained=False)
    assert titles(figure)[:D] == ["mu", "log tau", "beta[age]"]
    label = "shard" if draw is plots.subposteriors else "combination"
    points = lines(panels(figure)[1])[label]
    found = points.get_xdata() if label == "shard" else points.get_ydata()
    means = one["shards"].isel(round=-1) if label == "shard" else one["rounds"]
    np.testing.assert_array_equal(found, means["mean"].values[:, 1])
    # A tree that does not tell supports is drawn as it is, and says so.
    del one.attrs["model"]
    assert all(title.endswith("unconstrained") for title in titles(draw(one))[:D])


# --- compare ---


def test_compare_takes_a_tree_a_list_or_groups():
    one = tree(corrected=True)
    two = tree(1)
    two.attrs["method_used"] = one.attrs["method_used"] = "laplace"
    assert legend(plots.compare(one)) == ["corrected", "before its correction"]
    assert legend(plots.compare(two)) == ["posterior"]
    assert legend(plots.compare([one, two, two])) == [
        "laplace, corrected",
        "laplace",
        "laplace (3)",
    ]
    groups = {"a": one["posterior"], "b": one["uncorrected"].to_dataset()}
    assert legend(plots.compare(groups)) == ["a", "b"]
    assert legend(plots.compare(one["uncorrected"])) == ["posterior"]
    with pytest.raises(ValueError, match="'a' has no draws"):
        plots.compare({"a": one["rounds"]})
    with pytest.raises(TypeError, match="a Dataset of draws, got int for 'a'"):
        plots.compare({"a": 1})


# --- balance ---


def test_balance_has_the_rows_and_the_seconds_of_every_shard(tmp_path):
    one = tree()
    figure = plots.balance(one)
    assert titles(figure) == ["rows", "seconds", "seconds by phase"]
    rows, seconds, phases = panels(figure)
    assert [bar.get_width() for bar in rows.patches] == [1, 2, 3, 4, 5]
    work = one["shards"]["seconds"].sum("round").values
    compiling = one["shards"]["compile_seconds"].sum("round").values
    widths = [bar.get_width() for bar in seconds.patches]
    np.testing.assert_allclose(widths, np.append(work, compiling))
    # What is compiled is part of the phases, not one of them.
    assert [bar.get_width() for bar in phases.patches] == [1.0, 3.0]
    assert "the largest of 5 shards has 1.67 times the mean rows" in figure.get_supxlabel()
    save(figure, tmp_path)
    del one.attrs["profile"]
    assert titles(plots.balance(one)) == ["rows", "seconds"]
    save(plots.balance(tree(n_shards=400)), tmp_path)


# --- effects of groups ---


def with_effects(n: int, drawn: bool = False) -> xr.DataTree:
    rng = np.random.default_rng(0)
    coords = {"g": [f"g{i}" for i in range(n)]}
    if drawn:
        values = {"a": (("chain", "draw", "g"), rng.normal(size=(1, 40, n)))}
    else:
        a = np.sort(rng.normal(size=(5, n, 2)), axis=0)[[2, 0, 1, 2, 3]]
        values = {"a": (("statistic", "g", "entry"), a), "b": (("statistic", "g"), a[..., 0])}
        values["rows"] = ("g", np.ones(n))
        coords["statistic"] = ["mean", "sd", "q05", "q50", "q95"]
    return xr.DataTree.from_dict({"local": xr.Dataset(values, coords)})


@pytest.mark.parametrize("n", [1, 12, 60, 5000])
def test_effects_stand_in_the_order_of_their_means(n, tmp_path):
    one = with_effects(n)
    figure = plots.effects(one)
    assert titles(figure) == ["a[0]", "a[1]", "b"]
    means = one["local"]["a"].sel(statistic="mean").values.T
    for ax, mean in zip(panels(figure)[:2], means, strict=True):
        expected = np.sort(mean)[np.linspace(0, n - 1, min(n, 2000)).astype(int)]
        np.testing.assert_array_equal(lines(ax)["mean"].get_xdata(), expected)
        names = [f"g{i}" for i in np.argsort(mean)] if n <= 30 else []
        assert [text.get_text() for text in ax.get_yticklabels()] == names
    assert f"{n:,} groups of g" in figure.get_supxlabel().replace("\n", " ")
    save(figure, tmp_path)


def test_effects_of_draws_and_of_chosen_sites():
    assert titles(plots.effects(with_effects(5, drawn=True))) == ["a"]
    assert titles(plots.effects(with_effects(5), ["b", "a[1]"])) == ["b", "a[1]"]
    with pytest.raises(
        ValueError, match=r"no group has an effect 'c'; there are a\[0\], a\[1\], b"
    ):
        plots.effects(with_effects(5), "c")
    with pytest.raises(ValueError, match="no group effects"):
        plots.effects(tree())


# --- calibration ---


def predictions(seed: int = 0, n: int = 2000) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    mean = rng.normal(size=n)
    quantiles = {f"obs_q{100 * p:g}": mean + norm.ppf(p) for p in (0.05, 0.5, 0.975)}
    return pd.DataFrame({"obs_mean": mean, **quantiles, "y": mean + rng.normal(size=n)})


def test_calibration_is_the_share_of_rows_below_each_quantile(tmp_path):
    frame = predictions()
    figure = plots.calibration(frame, "y")
    assert titles(figure) == ["obs: means", "obs: quantiles"]
    means, quantiles = panels(figure)
    (points,) = quantiles.containers[0].lines[:1]
    np.testing.assert_array_equal(points.get_xdata(), [0.05, 0.5, 0.975])
    names = ["obs_q5", "obs_q50", "obs_q97.5"]
    shares = [(frame["y"] < frame[name]).mean() for name in names]
    np.testing.assert_allclose(points.get_ydata(), shares)
    # Bins of pandas, and a standard error as everyone writes it.
    bins = frame.groupby(pd.qcut(frame["obs_mean"], 10))
    bars = spans(means.containers[0].lines[2][0])
    center = bins["y"].mean().to_numpy()
    half = 2 * bins["y"].std().to_numpy() / np.sqrt(bins.size())
    np.testing.assert_allclose(bars[:, 0, 0], bins["obs_mean"].mean())
    np.testing.assert_allclose(bars[..., 1], np.stack([center - half, center + half], axis=1))
    save(figure, tmp_path)


def test_calibration_of_partitions_without_missing_responses():
    frame = predictions()
    frame.loc[::7, "y"] = np.nan
    whole = panels(plots.calibration(frame.dropna(), "y"))[1].containers[0].lines[0].get_ydata()
    figure = plots.calibration(from_pandas(frame, 4), "y")
    parts = panels(figure)[1].containers[0].lines[0].get_ydata()
    np.testing.assert_allclose(parts, whole)
    assert figure.get_supxlabel().startswith("1,714 rows in 10 bins")


def test_calibration_of_a_yes_or_no_response_has_no_quantiles():
    rng = np.random.default_rng(0)
    p = rng.uniform(size=500)
    frame = pd.DataFrame({"obs_mean": p, "obs_q05": 0.0, "obs_q95": 1.0, "y": rng.random(500) < p})
    assert titles(plots.calibration(frame, "y")) == ["obs: means"]


def test_calibration_of_what_is_no_prediction():
    with pytest.raises(ValueError, match=r"what ddf\.consensus\.predict returned"):
        plots.calibration(pd.DataFrame({"y": [1.0]}), "y")
    two = predictions().assign(other_mean=0.0)
    with pytest.raises(ValueError, match="site= as one of obs, other; got None"):
        plots.calibration(two, "y")
    with pytest.raises(ValueError, match="no column 'z'"):
        plots.calibration(predictions(), "z")


# --- what they share ---


def test_a_notebook_shows_a_figure_that_belongs_to_no_window():
    png, size = plots.compare(tree())._repr_png_()
    assert png.startswith(b"\x89PNG")
    assert size == {"width": 960, "height": 280}


@pytest.mark.parametrize("color", ["deuteranomaly", "protanomaly", "tritanomaly"])
def test_colours_stay_apart_for_colour_blind_readers(color):
    """As they are seen by Machado, Oliveira and Fernandes (2009, table 1, severity 1)."""
    seen = {
        "protanomaly": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
                        [-0.003882, -0.048116, 1.051998]],
        "deuteranomaly": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
                          [-0.011820, 0.042940, 0.968881]],
        "tritanomaly": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602],
                        [0.004733, 0.691367, 0.303900]],
    }  # fmt: skip
    colors = [to_rgb(color) for color in (*(c for c, _ in plots.STYLES), plots.INK, "white")]
    linear = np.array(colors) ** 2.2 @ np.array(seen[color]).T
    distance = np.linalg.norm(linear[:, None] - linear[None], axis=-1)
    # The difference of two greys that most readers tell apart, of brightness 0.5 and 0.6.
    assert distance[~np.eye(len(colors), dtype=bool)].min() > np.sqrt(3) * (0.6**2.2 - 0.5**2.2) / 2


@pytest.mark.parametrize("draw", [*DRAWN, plots.weights])
def test_one_parameter_fits_on_a_narrow_figure(draw, tmp_path):
    one = tree(corrected=True)
    narrow = {
        name: group.to_dataset().isel(
            {dim: slice(1) for dim in ("coordinate", "coordinate_") if dim in group.dims}
        )
        for name, group in one.children.items()
    }
    save(draw(xr.DataTree.from_dict(narrow)), tmp_path)


@pytest.mark.parametrize("draw", [*DRAWN, plots.weights])
def test_a_result_read_from_a_file_is_drawn_alike(draw, tmp_path):
    tree(corrected=True).to_netcdf(tmp_path / "tree.nc")
    with xr.open_datatree(tmp_path / "tree.nc") as read:
        assert titles(draw(read)) == titles(draw(tree(corrected=True)))


def test_a_real_result_can_be_drawn():
    """What a default fit holds, not what the trees made here hold."""
    from .test_importance import fit, regression

    rng = np.random.default_rng(0)
    x, z, noise = rng.normal(size=(3, 300))
    real = fit(pd.DataFrame({"x": x, "z": z, "y": 1 + x - z + noise}), regression, n_shards=3)
    for draw in (plots.subposteriors, plots.rounds, plots.weights):
        assert len(panels(draw(real))) >= 2
    assert len(panels(plots.compare({"all": real, "again": real}))) == 3
