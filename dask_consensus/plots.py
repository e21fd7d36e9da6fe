"""Pictures of posteriors. Needs matplotlib, which is imported only when a picture is drawn."""

from __future__ import annotations

import itertools
import math
import textwrap
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from scipy.stats import gaussian_kde

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


Draws = npt.NDArray[np.float64]
Moments = tuple[Draws, Draws]
# The reference is a grey area. The others are lines in colours of Okabe and Ito's palette, which
# stay apart for colour-blind readers, and in dashes, which stay apart without any colour.
REFERENCE = "#c4c4c4"
STYLES = (("#d55e00", "-"), ("#0072b2", "--"), ("#009e73", "-."), ("#cc79a7", ":"))
INK = "#404040"
MAX_COLUMNS = 3
SHARD, COMBINED = STYLES[1][0], STYLES[0][0]
UNCONSTRAINED = "mean and sd, unconstrained: the logarithm of what must be positive"


def parameters(trees: Mapping[str, xr.DataTree]) -> dict[str, dict[str, Draws]]:
    """Lay out the parameters that all posteriors share, one number at a time.

    Parameters
    ----------
    trees : mapping of str to xarray.DataTree
        Results of fits by name, each with a ``posterior`` of dims ``chain`` and ``draw``. The
        first one is the reference: it gives the order.

    Returns
    -------
    dict
        For each parameter, by label (``mu``, or ``beta[age]`` for an entry of an array), the
        draws of each tree by name, shape ``(chain, draw)``. Entries that are constant in the
        reference, such as the zeros of a Cholesky factor, are left out.

    Raises
    ------
    ValueError
        If there are no trees, or no parameter that all of them have.
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
            where = ", ".join(
                str(variable[dim].values[i]) for dim, i in zip(dims, index, strict=True)
            )
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
        A figure that belongs to no window: save it with ``figure.savefig(path)``.

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    ValueError
        If there is nothing to compare, or more than five results.
    """
    if len(trees) > 1 + len(STYLES):
        raise ValueError(f"expected at most {1 + len(STYLES)} results to draw, got {len(trees)}")
    panels = parameters(trees)
    figure, axes = _panels(len(panels))
    for ax, (label, draws) in zip(axes, panels.items(), strict=True):
        _panel(ax, label, draws)
    _legend(figure, axes[0])
    _note(figure, "posterior densities, with their means on the axis")
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
        one standard deviation to either side, in unconstrained space, the anchor's share
        included where there is one. A shard whose precision is not positive definite has no
        standard deviation, and is drawn as its mean alone.
    reference : xarray.DataTree, optional
        Result of another fit of the same model, such as the full one, drawn as a grey band of
        one standard deviation to either side of its mean.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    ValueError
        If there is only one shard, the reference has other parameters, or a group is missing.
    """
    shards, last = (_group(tree, name).isel(round=-1) for name in ("shards", "rounds"))
    names, n_shards = _coordinates(tree), shards.sizes["shard"]
    if n_shards < 2:
        raise ValueError("expected the result of a fit to several shards, got one shard")
    band = None if reference is None else _unconstrained(reference, names)
    means, sds = shards["mean"].values, _sds_of(shards["precision"].values)
    diverged = shards["divergences"].values > 0

    position, gap = np.arange(n_shards), max(0.5, 0.03 * n_shards)
    size = 5 if n_shards <= 50 else 3
    figure, axes = _panels(len(names), height=min(1.0 + 0.16 * (n_shards + 2), 6.0))
    for j, (ax, name) in enumerate(zip(axes, names, strict=True)):
        _reference_band(ax, band, j, vertical=True)
        ax.hlines(position, means[:, j] - sds[:, j], means[:, j] + sds[:, j], color=SHARD, lw=1.5)
        ax.plot(means[:, j], position, "o", color=SHARD, ms=size, label="shard")
        if diverged.any():
            ax.plot(
                means[diverged, j], position[diverged],
                "o", color=SHARD, mfc="white", ms=size, label="shard with divergences",
            )  # fmt: skip
        ax.errorbar(
            last["mean"].values[j], n_shards + gap, xerr=last["sd"].values[j],
            fmt="D", color=COMBINED, ms=5, lw=2.5, label="all shards combined",
        )  # fmt: skip
        _bare(ax, name)
        ax.locator_params(axis="x", nbins=4)
        ax.set_ylim(n_shards + 2 * gap + 0.2, -0.2 - gap)
        every = math.ceil(n_shards / 6)
        ax.set_yticks(position[::every] if j % MAX_COLUMNS == 0 else [])
        if j % MAX_COLUMNS == 0:
            ax.set_ylabel("shard", fontsize=9, color=INK)
    _legend(figure, axes[0])
    _note(figure, UNCONSTRAINED)
    return figure


def rounds(tree: xr.DataTree, reference: xr.DataTree | None = None) -> Figure:
    """Draw how the combination moved from round to round, one panel a parameter.

    A last panel holds the movement of each round. Rounds of sampling are judged against their
    Monte Carlo error, drawn beside it, and end where the movement falls below; steps of Newton's
    method have none.

    Parameters
    ----------
    tree : xarray.DataTree
        Result of a fit. Means and standard deviations are those of ``tree["rounds"]``: after
        each round, in unconstrained space, before any correction.
    reference : xarray.DataTree, optional
        Result of another fit of the same model, such as the full one, drawn as a grey band of
        one standard deviation to either side of its mean.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    ValueError
        If the reference has other parameters, or a group is missing.
    """
    steps, names = _group(tree, "rounds"), _coordinates(tree)
    band = None if reference is None else _unconstrained(reference, names)
    number = np.arange(1, steps.sizes["round"] + 1)
    figure, (*axes, final) = _panels(len(names) + 1)
    for j, (ax, name) in enumerate(zip(axes, names, strict=True)):
        _reference_band(ax, band, j)
        ax.errorbar(
            number, steps["mean"].values[:, j], yerr=steps["sd"].values[:, j],
            fmt="o-", color=SHARD, ms=5, lw=1.5, label="combination",
        )  # fmt: skip
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
    _legend(figure, axes[0], final)
    _note(figure, f"by round: {UNCONSTRAINED}")
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

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    ValueError
        If the result was not corrected.
    """
    if "correction" not in tree.children:
        raise ValueError("expected a corrected result; tree.attrs['verdict'] says why it is not")
    correction = _group(tree, "correction")
    points, weight = correction["points"].values, correction["weights"].values
    turn = correction["turn"].values
    away = points - weight @ points
    covariance = np.atleast_2d(np.cov(points.T, aweights=weight, ddof=0))
    distance = np.sqrt(np.einsum("ij,ji->i", away, np.linalg.solve(covariance, away.T)))
    relative = weight * len(weight)

    figure, (left, right) = _panels(2, width=4.4, height=3.0)
    colors = [*(color for color, _ in STYLES), INK]
    for number in np.unique(turn):
        left.plot(
            distance[turn == number], relative[turn == number], ".", ms=3, alpha=0.5,
            color=colors[number % len(colors)], label=f"turn {number + 1}",
        )  # fmt: skip
    right.plot(np.arange(1, len(weight) + 1), np.sort(relative)[::-1], color=SHARD, lw=2)
    # Points of no weight to speak of would squeeze all others into a line.
    least = max(relative.min(), 1e-4) / 2
    left.set_xlim(0, 1.05 * distance[relative > least].max())
    for ax in (left, right):
        ax.axhline(1.0, color=INK, lw=1, ls=":")
        ax.set_yscale("log")
        ax.set_ylim(least, 3 * relative.max())
    _bare(left, "weight over distance")
    _bare(right, "weights in order")
    left.set_ylabel("weight, 1 if all were equal", fontsize=9, color=INK)
    left.set_xlabel("distance from the mean, in posterior sds", fontsize=9, color=INK)
    right.set_xlabel("point, heaviest first", fontsize=9, color=INK)
    right.locator_params(axis="x", nbins=5)
    left.legend(frameon=False, fontsize=9, markerscale=3, loc="lower left")
    figure.suptitle(
        f"k-hat {float(correction['k_hat']):.2f}, {len(weight):,} points as good as "
        f"{float(correction['ess']):,.0f} independent draws",
        x=0.01, ha="left", fontsize=10,
    )  # fmt: skip
    return figure


# What the pictures share
def _panels(n: int, *, width: float = 3.2, height: float = 2.2) -> tuple[Figure, list[Axes]]:
    """Make a figure of `n` panels, in rows of at most three."""
    # Figure, unlike pyplot, opens no window and keeps no global state; saving it uses Agg.
    try:
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine
    except ImportError as error:
        raise ImportError(
            "plots need matplotlib: pip install 'dask_consensus[plots]'", name="matplotlib"
        ) from error
    n_columns = min(MAX_COLUMNS, n)
    n_rows = math.ceil(n / n_columns)
    figure = Figure(
        figsize=(width * n_columns, 0.6 + height * n_rows),
        dpi=150,
        layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.08),
    )
    axes = list(figure.subplots(n_rows, n_columns, squeeze=False).ravel())
    for ax in axes[n:]:
        ax.set_axis_off()
    return figure, axes[:n]


def _bare(ax: Axes, title: str) -> None:
    """Title a panel and leave out what is not read."""
    ax.set_title(title, loc="left", fontsize=11, fontweight="bold")
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(INK)
    ax.tick_params(labelsize=9, color=INK, labelcolor=INK)


def _reference_band(ax: Axes, band: Moments | None, j: int, *, vertical: bool = False) -> None:
    """Shade one standard deviation to either side of the mean of a coordinate."""
    if band is None:
        return
    mean, sd = band[0][j], band[1][j]
    span, line = (ax.axvspan, ax.axvline) if vertical else (ax.axhspan, ax.axhline)
    span(mean - sd, mean + sd, color=REFERENCE, linewidth=0, label="reference")
    line(mean, color=INK, linewidth=1)


def _legend(figure: Figure, *axes: Axes) -> None:
    """Say once, above all panels, what their marks mean."""
    keys = [ax.get_legend_handles_labels() for ax in axes]
    handles, labels = (list(itertools.chain(*column)) for column in zip(*keys, strict=True))
    # As many to a line as the width holds, at about 0.08 inch a letter.
    columns = int(figure.get_figwidth() / (0.6 + 0.08 * max(map(len, labels))))
    figure.legend(
        handles, labels, loc="outside upper left",
        ncols=max(1, min(columns, len(labels))), frameon=False, fontsize=10,
    )  # fmt: skip


def _note(figure: Figure, text: str) -> None:
    """Say below all panels what their axes are."""
    text = textwrap.fill(text, int(14 * figure.get_figwidth()))
    figure.supxlabel(text, x=0.01, ha="left", fontsize=9, color=INK)


# Moments in unconstrained space
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
    for k, one in enumerate(full):
        if np.isfinite(one).all() and np.linalg.eigvalsh(one)[0] > 0:
            sds[k] = np.sqrt(np.linalg.inv(one).diagonal())
    return sds


def _unconstrained(tree: xr.DataTree, names: Sequence[str]) -> Moments:
    """Take means and sds of a result, after its correction if it has one."""
    expected = _coordinates(tree)
    if expected != list(names):
        raise ValueError(
            f"the reference has parameters {', '.join(expected)}, the result has {', '.join(names)}"
        )
    if "uncorrected" in tree.children:
        correction = _group(tree, "correction")
        return correction["mean"].values, correction["sd"].values
    last = _group(tree, "rounds").isel(round=-1)
    return last["mean"].values, last["sd"].values
