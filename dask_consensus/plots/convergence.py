"""Has the combination arrived? Means, sds and movement, round by round."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from .panels import COMBINED, INK, SHARD, bare, explain, panels, plain_log
from .reference import bands
from .scales import group, note, scales

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure


def rounds(
    tree: xr.DataTree, reference: xr.DataTree | None = None, *, constrained: bool = True
) -> Figure:
    """Draw how the combination moved from round to round, one panel a parameter.

    A last panel holds the movement of each round. Rounds of sampling are judged against their
    Monte Carlo error, drawn beside it, and end where the movement falls below; steps of Newton's
    method have none.

    Parameters
    ----------
    tree : xarray.DataTree
        Result of a fit. What is drawn is the combination of ``tree["rounds"]`` after each round,
        before any correction: its median and central 68%.
    reference : xarray.DataTree, optional
        Another fit of the same model, drawn as a grey band: its median and central 68%.
    constrained : bool
        Whether parameters are drawn as the model has them; else in the unconstrained space in which
        shards are combined, mean and sd. See :func:`subposteriors`.

    Returns
    -------
    matplotlib.figure.Figure

    Examples
    --------
    `ddf`, `model` and `tree` are those of the example of ``DataFrame.consensus.fit``.

    >>> [ax.get_title(loc="left") for ax in rounds(tree).axes]
    ['mu', 'tau', 'movement, in posterior sds']
    """
    steps, chosen = group(tree, "rounds"), scales(tree, constrained=constrained)
    number = np.arange(1, steps.sizes["round"] + 1)
    figure, (*axes, final) = panels(len(chosen) + 1)
    bands(axes, chosen, tree, reference)
    means, sds = steps["mean"].values.T, steps["sd"].values.T
    for ax, scale, mean, sd in zip(axes, chosen, means, sds, strict=True):
        middle = scale(mean)
        ends = np.sort([scale(mean - sd), scale(mean + sd)], axis=0)
        spread = np.stack([middle - ends[0], ends[1] - middle])
        ax.errorbar(
            number, middle, spread, fmt="o-", color=SHARD, ms=5, lw=1.5, label="combination"
        )
        bare(ax, scale.label)
        ax.locator_params(axis="y", nbins=4)
    movement, noise = steps["movement"].values, steps["noise"].values
    final.plot(number, movement, "o-", color=COMBINED, ms=5, lw=1.5, label="movement")
    # Steps of Newton's method draw nothing, so they have no Monte Carlo error.
    if not np.isnan(noise).all():
        final.plot(number, noise, "s--", color=INK, ms=3, lw=1.5, label="Monte Carlo error")
    # A single round of sampling has not moved.
    if np.nanmax(np.append(movement, noise), initial=0.0) > 0:
        plain_log(final)
    bare(final, "movement, in posterior sds")
    for ax in (*axes, final):
        ax.set_xlim(0.6, number[-1] + 0.4)
        ax.set_xticks(number[:: math.ceil(len(number) / 8)])
    explain(figure, f"by round: {note(chosen, constrained)}", axes[0], final)
    return figure
