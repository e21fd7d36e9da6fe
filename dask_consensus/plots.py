"""Pictures of posteriors. Needs matplotlib, which is imported only when a picture is drawn.

Functions that draw raise ImportError without matplotlib, and ValueError for a result that lacks
what they draw. Figures belong to no window: save one with ``figure.savefig(path)``.
"""

from __future__ import annotations

import math
import textwrap
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from scipy.stats import gaussian_kde

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Draws = npt.NDArray[np.float64]
# The reference is a grey area. The others are lines in colours of Okabe and Ito's palette, which
# stay apart for colour-blind readers, and in dashes, which stay apart without any colour.
REFERENCE = "#c4c4c4"
STYLES = (("#d55e00", "-"), ("#0072b2", "--"), ("#009e73", "-."), ("#cc79a7", ":"))
INK = "#404040"
MAX_COLUMNS = 3
_LABELLED = 12  # values of a column that are named under a picture
SHARD, COMBINED = STYLES[1][0], STYLES[0][0]
UNCONSTRAINED = "mean and sd, unconstrained: the logarithm of what must be positive"


def parameters(trees: Mapping[str, xr.DataTree]) -> dict[str, dict[str, Draws]]:
    """Lay out the parameters that all posteriors share, one number at a time.

    Parameters
    ----------
    trees : mapping of str to xarray.DataTree
        Results of fits by name. The first one is the reference: it gives the order.

    Returns
    -------
    dict
        For each parameter, by label (``mu``, or ``beta[age]`` for an entry of an array), the
        ``(chain, draw)`` draws of each tree by name. Entries that are constant in the reference,
        such as the zeros of a Cholesky factor, are left out; ValueError if none remains.

    Examples
    --------
    `ddf`, `model` and `tree` are those of the example of ``DataFrame.consensus.fit``.

    >>> list(parameters({"fit": tree}))
    ['mu', 'tau']
    """
    if not trees:
        raise ValueError("expected at least one result to compare, got none")
    scalars = {name: dict(_scalars(tree)) for name, tree in trees.items()}
    reference, *others = scalars.values()
    labels = [
        label
        for label, draws in reference.items()
        if np.ptp(draws) > 0 and all(label in other for other in others)
    ]
    if not labels:
        names = ", ".join(trees)
        raise ValueError(f"the posteriors of {names} have no varying parameter in common")
    return {label: {name: scalars[name][label] for name in trees} for label in labels}


def _scalars(tree: xr.DataTree) -> Iterator[tuple[str, Draws]]:
    """Yield the label and the ``(chain, draw)`` draws of every entry of a posterior."""
    for name, variable in tree["posterior"].data_vars.items():
        dims = [dim for dim in variable.dims if dim not in ("chain", "draw")]
        draws = variable.transpose("chain", "draw", *dims)
        for index in np.ndindex(draws.shape[2:]):
            entry = zip(dims, index, strict=True)
            where = ", ".join(str(variable[dim].values[i]) for dim, i in entry)
            label = f"{name}[{where}]" if dims else str(name)
            yield label, np.asarray(draws.values[(..., *index)], dtype=np.float64)


def compare(trees: Mapping[str, xr.DataTree]) -> Figure:
    """Draw the posterior densities of several fits over each other, one panel a parameter.

    Parameters
    ----------
    trees : mapping of str to xarray.DataTree
        Results of fits by name, up to five. The first one is the reference, drawn as a grey
        area; the others are lines. A short line on the axis marks each mean.

    Returns
    -------
    matplotlib.figure.Figure

    Examples
    --------
    `ddf`, `model` and `tree` are those of the example of ``DataFrame.consensus.fit``.

    >>> how = {"by": "group", "n_shards": 4, "local": None, "progress": False}
    >>> other = ddf.consensus.fit(model, correct=False, **how)
    >>> figure = compare({"corrected": tree, "not corrected": other})
    >>> [ax.get_title(loc="left") for ax in figure.axes]
    ['mu', 'tau']
    """
    if len(trees) > 1 + len(STYLES):
        raise ValueError(f"expected at most {1 + len(STYLES)} results to draw, got {len(trees)}")
    panels = parameters(trees)
    figure, axes = _panels(len(panels))
    for ax, (label, draws) in zip(axes, panels.items(), strict=True):
        _panel(ax, label, draws)
    _explain(figure, "posterior densities, with their means on the axis", axes[0])
    return figure


def _panel(ax: Axes, label: str, posteriors: Mapping[str, Draws]) -> None:
    """Draw one parameter: a density for each posterior, and a short line at its mean."""
    # A few runaway draws of one method must not squeeze all densities into a needle.
    limits = np.array([np.quantile(draws, (0.001, 0.999)) for draws in posteriors.values()])
    grid = np.linspace(limits[:, 0].min(), limits[:, 1].max(), 400)
    for position, (name, draws) in enumerate(posteriors.items()):
        # Within the range of the draws only: a kernel knows nothing of a bound at zero, and
        # would show a standard deviation as possibly negative.
        inside = grid[(grid >= draws.min()) & (grid <= draws.max())]
        height = gaussian_kde(draws.ravel())(inside)
        if position == 0:
            color = INK
            ax.fill_between(inside, height, color=REFERENCE, linewidth=0, label=name)
        else:
            color, dashes = STYLES[position - 1]
            ax.plot(inside, height, color=color, linestyle=dashes, linewidth=2, label=name)
        ax.axvline(draws.mean(), ymax=0.08, color=color, linewidth=2)
    _bare(ax, label)
    ax.spines["left"].set_visible(False)
    ax.set_ylim(bottom=0)
    ax.set_yticks([])
    ax.locator_params(axis="x", nbins=4)


def subposteriors(tree: xr.DataTree, reference: xr.DataTree | None = None) -> Figure:
    """Draw what each shard alone says of every parameter, one panel a parameter.

    Parameters
    ----------
    tree : xarray.DataTree
        Result of a fit to several shards. Its last round is drawn: the mean of every shard and
        one sd to either side, unconstrained, any anchor's share included. A shard whose precision
        is not positive definite has no sd, and is drawn as its mean alone.
    reference : xarray.DataTree, optional
        Another fit of the same model, drawn as a grey band: its mean, one sd to either side.

    Returns
    -------
    matplotlib.figure.Figure

    Examples
    --------
    `ddf`, `model` and `tree` are those of the example of ``DataFrame.consensus.fit``.

    >>> len(subposteriors(tree).axes)
    2
    """
    shards, last = (_group(tree, name).isel(round=-1) for name in ("shards", "rounds"))
    names, n_shards = _coordinates(tree), shards.sizes["shard"]
    if n_shards < 2:
        raise ValueError("expected the result of a fit to several shards, got one shard")
    means, sds = shards["mean"].values, _sds_of(shards["precision"].values)
    diverged = np.zeros(n_shards, bool)
    if "divergences" in shards:  # Newton steps sample nothing
        diverged = shards["divergences"].values > 0
    position, gap = np.arange(n_shards), max(0.5, 0.03 * n_shards)
    size = 5 if n_shards <= 50 else 3
    figure, axes = _panels(len(names), height=min(1.0 + 0.16 * (n_shards + 2), 6.0))
    _reference_bands(axes, names, reference, vertical=True)
    for j, (ax, name) in enumerate(zip(axes, names, strict=True)):
        ax.hlines(position, means[:, j] - sds[:, j], means[:, j] + sds[:, j], color=SHARD, lw=1.5)
        ax.plot(means[:, j], position, "o", color=SHARD, ms=size, label="shard")
        if diverged.any():
            (hollow,) = ax.plot(means[diverged, j], position[diverged], "o", color=SHARD, ms=size)
            hollow.set(mfc="white", label="shard with divergences")
        ax.errorbar(
            last["mean"].values[j], n_shards + gap, xerr=last["sd"].values[j],
            fmt="D", color=COMBINED, ms=5, lw=2.5, label="all shards combined",
        )  # fmt: skip
        leftmost = j % MAX_COLUMNS == 0
        _bare(ax, name, y="shard" if leftmost else "")
        ax.locator_params(axis="x", nbins=4)
        ax.set_ylim(n_shards + 2 * gap + 0.2, -0.2 - gap)
        ax.set_yticks(position[:: math.ceil(n_shards / 6)] if leftmost else [])
    _explain(figure, UNCONSTRAINED, axes[0])
    return figure


def rounds(tree: xr.DataTree, reference: xr.DataTree | None = None) -> Figure:
    """Draw how the combination moved from round to round, one panel a parameter.

    A last panel holds the movement of each round. Rounds of sampling are judged against their
    Monte Carlo error, drawn beside it, and end where the movement falls below; steps of Newton's
    method have none.

    Parameters
    ----------
    tree : xarray.DataTree
        Result of a fit. Means and sds are those of ``tree["rounds"]``: unconstrained, after each
        round, before any correction.
    reference : xarray.DataTree, optional
        Another fit of the same model, drawn as a grey band: its mean, one sd to either side.

    Returns
    -------
    matplotlib.figure.Figure

    Examples
    --------
    `ddf`, `model` and `tree` are those of the example of ``DataFrame.consensus.fit``.

    >>> [ax.get_title(loc="left") for ax in rounds(tree).axes]
    ['mu', 'tau', 'movement, in posterior sds']
    """
    steps, names = _group(tree, "rounds"), _coordinates(tree)
    number = np.arange(1, steps.sizes["round"] + 1)
    figure, (*axes, final) = _panels(len(names) + 1)
    _reference_bands(axes, names, reference)
    means, sds = steps["mean"].values.T, steps["sd"].values.T
    for ax, name, mean, sd in zip(axes, names, means, sds, strict=True):
        ax.errorbar(number, mean, sd, fmt="o-", color=SHARD, ms=5, lw=1.5, label="combination")
        _bare(ax, name)
        ax.locator_params(axis="y", nbins=4)
    movement, noise = steps["movement"].values, steps["noise"].values
    final.plot(number, movement, "o-", color=COMBINED, ms=5, lw=1.5, label="movement")
    # Steps of Newton's method draw nothing, so they have no Monte Carlo error.
    if not np.isnan(noise).all():
        final.plot(number, noise, "s--", color=INK, ms=3, lw=1.5, label="Monte Carlo error")
    # A single round of sampling has not moved.
    if np.nanmax(np.append(movement, noise), initial=0.0) > 0:
        final.set_yscale("log")
    _bare(final, "movement, in posterior sds")
    for ax in (*axes, final):
        ax.set_xlim(0.6, number[-1] + 0.4)
        ax.set_xticks(number[:: math.ceil(len(number) / 8)])
    _explain(figure, f"by round: {UNCONSTRAINED}", axes[0], final)
    return figure


def weights(tree: xr.DataTree) -> Figure:
    """Draw the importance weights of a correction.

    To the left, each point's weight over its distance from the posterior mean: weights that grow
    with the distance would mean tails that the proposals do not reach. To the right, the weights
    in order: the flatter, the more points count.

    Parameters
    ----------
    tree : xarray.DataTree
        Result of a fit that was corrected.

    Returns
    -------
    matplotlib.figure.Figure

    Examples
    --------
    `ddf`, `model` and `tree` are those of the example of ``DataFrame.consensus.fit``.

    >>> [ax.get_title(loc="left") for ax in weights(tree).axes]
    ['weight over distance', 'weights in order']
    """
    if "correction" not in tree.children:
        raise ValueError("expected a corrected result; tree.attrs['verdict'] says why it is not")
    correction = _group(tree, "correction")
    weight, iteration = correction["weights"].values, correction["iteration"].values
    distance, relative = _distances(correction["points"].values, weight), weight * len(weight)
    figure, (left, right) = _panels(2, width=4.4, height=3.0)
    colors = [*(color for color, _ in STYLES), INK]
    for i in np.unique(iteration):
        left.plot(
            distance[iteration == i], relative[iteration == i], ".", ms=3, alpha=0.5,
            color=colors[i % len(colors)], label=f"iteration {i + 1}",
        )  # fmt: skip
    right.plot(np.arange(1, len(weight) + 1), np.sort(relative)[::-1], color=SHARD, lw=2)
    # Points of no weight to speak of would squeeze all others into a line.
    least = max(relative.min(), 1e-4) / 2
    left.set_xlim(0, 1.05 * distance[relative > least].max())
    for ax in (left, right):
        ax.axhline(1.0, color=INK, lw=1, ls=":")
        ax.set_yscale("log")
        ax.set_ylim(least, 3 * relative.max())
    distances = "distance from the mean, in posterior sds"
    _bare(left, "weight over distance", x=distances, y="weight, 1 if all were equal")
    _bare(right, "weights in order", x="point, heaviest first")
    right.locator_params(axis="x", nbins=5)
    left.legend(frameon=False, fontsize=9, markerscale=3, loc="lower left")
    k_hat, ess = float(correction["k_hat"]), float(correction["ess"])
    quality = f"k-hat {k_hat:.2f}, {len(weight):,} points as good as {ess:,.0f} independent draws"
    figure.suptitle(quality, x=0.01, ha="left", fontsize=10)
    return figure


def checks(check: xr.Dataset) -> Figure:
    """Draw statistics of the data over those of data that the model made, one panel each.

    Parameters
    ----------
    check : xarray.Dataset
        What ``ddf.consensus.check`` returned. Replicas are a grey area, the data a line; with `by`
        they are bars from the 5% to the 95% quantile and points; those of many values are in the
        order of the data's.

    Returns
    -------
    matplotlib.figure.Figure

    Examples
    --------
    `ddf`, `model` and `tree` are those of the example of ``DataFrame.consensus.fit``.

    >>> made = ddf.consensus.check(tree, model, statistics=["mean", "sd"])
    >>> [ax.get_title(loc="left") for ax in checks(made).axes]
    ['obs: mean', 'obs: sd']
    """
    panels = list(_compared(check))
    if not panels:
        raise ValueError("expected what ddf.consensus.check returned, with statistics that vary")
    figure, axes = _panels(len(panels))
    for ax, (title, observed, replicated, by) in zip(axes, panels, strict=True):
        if by is None:
            _replicas(ax, float(observed), replicated)
        else:
            _replicas_by(ax, observed, replicated, by)
        _bare(ax, title)
    _explain(figure, "statistics of the rows, and of rows that the model made", axes[0])
    return figure


def _compared(
    check: xr.Dataset,
) -> Iterator[tuple[str, Draws, Draws, npt.NDArray[np.generic] | None]]:
    """Yield title, data, replicas and values of `by` for each entry of each statistic."""
    by = next((name for name in check.coords if name != "statistic"), None)
    values = None if by is None else check[by].to_numpy()
    for name in check.data_vars:
        if f"{name}_replicated" not in check:
            continue
        entries = [dim for dim in check[name].dims if dim not in ("statistic", by)]
        order = ["statistic", *entries, *([] if by is None else [by])]
        data = check[name].transpose(*order).to_numpy()
        made = check[f"{name}_replicated"].transpose("draw", *order).to_numpy()
        for index in np.ndindex(data.shape[: 1 + len(entries)]):
            replicated = made[(slice(None), *index)]
            if np.isfinite(replicated).all() and np.ptp(replicated) > 0:
                entry = f"[{', '.join(map(str, index[1:]))}]" if entries else ""
                statistic = check["statistic"].values[index[0]]
                yield f"{name}{entry}: {statistic}", data[index], replicated, values


def _replicas(ax: Axes, observed: float, replicated: Draws) -> None:
    values, counts = np.unique(replicated, return_counts=True)
    if len(values) < len(replicated) / 4:  # of whole numbers
        ax.bar(
            values, counts, np.diff(values).min(initial=1.0) * 0.9, color=REFERENCE, label="model"
        )
    else:
        grid = np.linspace(replicated.min(), replicated.max(), 200)
        height = gaussian_kde(replicated)(grid)
        ax.fill_between(grid, height, color=REFERENCE, linewidth=0, label="model")
    ax.axvline(observed, color=COMBINED, lw=2, label="data")
    ax.set_yticks([])
    ax.set_ylim(bottom=0)
    ax.locator_params(axis="x", nbins=4)


def _replicas_by(ax: Axes, observed: Draws, replicated: Draws, by: npt.NDArray[np.generic]) -> None:
    few = len(observed) <= _LABELLED
    order = np.arange(len(observed)) if few else np.argsort(observed, kind="stable")
    low, high = np.quantile(replicated[:, order], [0.05, 0.95], axis=0)
    at = np.arange(len(order))
    ax.vlines(
        at, low, high, color=REFERENCE, lw=max(1.0, min(6.0, 160 / len(at))), label="model, 90%"
    )
    ax.plot(at, observed[order], ".", ms=6 if len(at) < 50 else 3, color=COMBINED, label="data")
    ax.set_xlim(-0.7, len(at) - 0.3)
    labels = [str(value) for value in by[order]]
    if few:
        long = len("".join(labels)) > 24
        ax.set_xticks(at, labels, rotation=30 if long else 0, ha="right" if long else "center")
    else:
        ax.set_xticks([])


# What the pictures share


def _panels(n: int, *, width: float = 3.2, height: float = 2.2) -> tuple[Figure, list[Axes]]:
    """Make a figure of `n` panels, in rows of at most three."""
    # Figure, unlike pyplot, opens no window and keeps no global state; saving it uses Agg.
    try:
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine
    except ImportError as error:
        message = "plots need matplotlib: pip install 'dask_consensus[plots]'"
        raise ImportError(message, name="matplotlib") from error
    n_columns = min(MAX_COLUMNS, n)
    n_rows = math.ceil(n / n_columns)
    size = (width * n_columns, 0.6 + height * n_rows)
    figure = Figure(size, dpi=150, layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.08))
    axes = list(figure.subplots(n_rows, n_columns, squeeze=False).ravel())
    for ax in axes[n:]:
        ax.set_axis_off()
    return figure, axes[:n]


def _bare(ax: Axes, title: str, *, x: str = "", y: str = "") -> None:
    """Title a panel and its axes, and leave out what is not read."""
    ax.set_xlabel(x, fontsize=9, color=INK)
    ax.set_ylabel(y, fontsize=9, color=INK)
    ax.set_title(title, loc="left", fontsize=11, fontweight="bold")
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(INK)
    ax.tick_params(labelsize=9, color=INK, labelcolor=INK)


def _reference_bands(
    axes: list[Axes], names: list[str], reference: xr.DataTree | None, *, vertical: bool = False
) -> None:
    """Shade one sd to either side of another fit's mean, corrected if it was, in each panel."""
    if reference is None:
        return
    expected = _coordinates(reference)
    if expected != names:
        raise ValueError(
            f"the reference has parameters {', '.join(expected)}, the result has {', '.join(names)}"
        )
    moments = _group(reference, "rounds").isel(round=-1)
    if "uncorrected" in reference.children:
        moments = _group(reference, "correction")
    for ax, mean, sd in zip(axes, moments["mean"].values, moments["sd"].values, strict=True):
        span, line = (ax.axvspan, ax.axvline) if vertical else (ax.axhspan, ax.axhline)
        span(mean - sd, mean + sd, color=REFERENCE, linewidth=0, label="reference")
        line(mean, color=INK, linewidth=1)


def _explain(figure: Figure, note: str, *axes: Axes) -> None:
    """Say above all panels what the marks of `axes` mean, and below what is drawn."""
    keys = [key for ax in axes for key in zip(*ax.get_legend_handles_labels(), strict=True)]
    handles, labels = zip(*keys, strict=True)
    # As many to a line as the width holds, at about 0.08 inch a letter.
    columns = int(figure.get_figwidth() / (0.6 + 0.08 * max(map(len, labels))))
    columns = max(1, min(columns, len(labels)))
    figure.legend(
        handles, labels, loc="outside upper left", ncols=columns, frameon=False, fontsize=10
    )
    note = textwrap.fill(note, int(14 * figure.get_figwidth()))
    figure.supxlabel(note, x=0.01, ha="left", fontsize=9, color=INK)


# What they read


def _group(tree: xr.DataTree, name: str) -> xr.Dataset:
    if name not in tree.children:
        raise ValueError(f"expected the result of a fit, got a tree without the group {name}")
    return tree.children[name].to_dataset()


def _coordinates(tree: xr.DataTree) -> list[str]:
    return [str(name) for name in _group(tree, "rounds")["coordinate"].values]


def _sds_of(precision: Draws) -> Draws:
    """Take sds ``(shard, d)`` of precisions; NaN where one is not positive definite."""
    # Diagonal weights come with one precision a coordinate.
    d = precision.shape[1]
    full = precision if precision.ndim == 3 else precision[:, :, None] * np.eye(d)
    sds = np.full((len(full), d), np.nan)
    for sd, matrix in zip(sds, full, strict=True):
        if np.isfinite(matrix).all() and np.linalg.eigvalsh(matrix)[0] > 0:
            sd[:] = np.sqrt(np.linalg.inv(matrix).diagonal())
    return sds


def _distances(points: Draws, weight: Draws) -> Draws:
    """Mahalanobis distances of weighted ``(point, d)`` points from their mean."""
    covariance = np.atleast_2d(np.cov(points.T, aweights=weight, ddof=0))
    away = points - weight @ points
    return np.sqrt(np.einsum("ij,ji->i", away, np.linalg.solve(covariance, away.T)))
