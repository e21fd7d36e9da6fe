from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from dask_consensus import plots

pytest.importorskip("matplotlib")

NAMES = ["mu", "tau", "beta[age]"]
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
    }
    per_round = {
        "mean": (("round", "coordinate"), rng.standard_normal((n_rounds, D))),
        "sd": (("round", "coordinate"), rng.uniform(0.5, 2.0, (n_rounds, D))),
        "movement": ("round", np.append(np.nan, rng.uniform(0.01, 1.0, n_rounds - 1))),
        "noise": ("round", rng.uniform(0.01, 0.1, n_rounds)),
    }
    labels = {"coordinate": NAMES}
    groups = {
        "posterior": xr.Dataset({"mu": (("chain", "draw"), rng.standard_normal((1, 100)))}),
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
    return xr.DataTree.from_dict(groups)


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
    figure.savefig(tmp_path / "figure.png")


# --- subposteriors ---


def test_subposteriors_are_the_moments_of_the_last_round(tmp_path):
    one = tree()
    figure = plots.subposteriors(one)
    assert titles(figure) == NAMES
    last = one["shards"].isel(round=-1)
    for j, ax in enumerate(panels(figure)):
        mean = last["mean"].values[:, j]
        sd = np.sqrt(np.linalg.inv(last["precision"].values)[:, j, j])
        np.testing.assert_array_equal(lines(ax)["shard"].get_xdata(), mean)
        bars = spans(ax.collections[0])
        np.testing.assert_allclose(bars[:, :, 0], np.stack([mean - sd, mean + sd], axis=1))
        np.testing.assert_array_equal(bars[:, 0, 1], np.arange(SHARDS))
        combined = lines(ax)["all shards combined"].get_xdata()
        assert combined == pytest.approx(one["rounds"]["mean"].values[-1, j])
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
    assert titles(figure) == [*NAMES, "movement, in posterior sds"]
    *axes, final = panels(figure)
    steps, number = one["rounds"], [1, 2, 3, 4]
    for j, ax in enumerate(axes):
        mean, sd = steps["mean"].values[:, j], steps["sd"].values[:, j]
        np.testing.assert_array_equal(lines(ax)["combination"].get_xdata(), number)
        np.testing.assert_array_equal(lines(ax)["combination"].get_ydata(), mean)
        bars = spans(ax.containers[0].lines[2][0])
        np.testing.assert_allclose(bars[..., 1], np.stack([mean - sd, mean + sd], axis=1))
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
        np.testing.assert_allclose(ends, [mean - sd, mean + sd])


@pytest.mark.parametrize("draw", DRAWN)
def test_a_corrected_reference_is_a_band_of_its_correction(draw):
    full = tree(1, corrected=True)
    mean, sd = (full["correction"][name].values for name in ("mean", "sd"))
    for j, ax in enumerate(panels(draw(tree(), full))[:D]):
        ends = band(ax, axis=0 if draw is plots.subposteriors else 1)
        np.testing.assert_allclose(ends, [mean[j] - sd[j], mean[j] + sd[j]])


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


# --- what they share ---


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
