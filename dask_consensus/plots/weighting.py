"""How even are the weights of a correction? Over distance, and in order."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from .panels import INK, SHARD, STYLES, bare, panels, plain_log
from .scales import group

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure

Numbers = npt.NDArray[np.float64]


def weights(tree: xr.DataTree) -> Figure:
    """Draw the importance weights of a correction, and say their k-hat.

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
    correction = group(tree, "correction")
    weight, iteration = correction["weights"].values, correction["iteration"].values
    distance, relative = _distances(correction["points"].values, weight), weight * len(weight)
    figure, (left, right) = panels(2, width=4.4, height=3.0)
    colors = [*(color for color, _ in STYLES), INK]
    marks = "o^sDv"
    for i in np.unique(iteration):
        left.plot(
            distance[iteration == i], relative[iteration == i], marks[i % len(marks)], ms=2.2,
            mew=0, alpha=0.6, color=colors[i % len(colors)], label=f"iteration {i + 1}",
        )  # fmt: skip
    right.plot(np.arange(1, len(weight) + 1), np.sort(relative)[::-1], color=SHARD, lw=2)
    # Points of no weight to speak of would squeeze all others into a line.
    least = max(relative.min(), 1e-4) / 2
    left.set_xlim(0, 1.05 * distance[relative > least].max())
    for ax in (left, right):
        ax.axhline(1.0, color=INK, lw=1, ls=":")
        ax.set_ylim(least, 3 * relative.max())
        plain_log(ax)
    distances = "distance from the mean, in posterior sds"
    bare(left, "weight over distance", x=distances, y="weight, 1 if all were equal")
    bare(right, "weights in order", x="point, heaviest first")
    right.locator_params(axis="x", nbins=5)
    left.legend(frameon=False, fontsize=9, markerscale=3, loc="lower left")
    k_hat, ess = float(correction["k_hat"]), float(correction["ess"])
    quality = f"k-hat {k_hat:.2f}{_limit(tree)}, {len(weight):,} points as good as {ess:,.0f} "
    figure.suptitle(f"{quality}independent draws", x=0.01, ha="left", fontsize=10)
    return figure


def _limit(tree: xr.DataTree) -> str:
    """Say up to which k-hat the verdict accepts weights, if the tree tells."""
    accepted = json.loads(tree.attrs.get("verdict_thresholds", "{}")).get("k_hat")
    return "" if accepted is None else f" (good below {accepted:g})"


def _distances(points: Numbers, weight: Numbers) -> Numbers:
    """Mahalanobis distances of weighted ``(point, d)`` points from their mean."""
    covariance = np.atleast_2d(np.cov(points.T, aweights=weight, ddof=0))
    away = points - weight @ points
    return np.sqrt(np.einsum("ij,ji->i", away, np.linalg.solve(covariance, away.T)))
