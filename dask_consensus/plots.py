"""Pictures of posteriors. Needs matplotlib, which is imported only when a picture is drawn."""

from __future__ import annotations

import math
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
    # Figure, unlike pyplot, opens no window and keeps no global state; saving it uses Agg.
    try:
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine
    except ImportError as error:
        raise ImportError(
            "plots need matplotlib: pip install 'dask_consensus[plots]'", name="matplotlib"
        ) from error

    if len(trees) > 1 + len(STYLES):
        raise ValueError(f"expected at most {1 + len(STYLES)} results to draw, got {len(trees)}")
    panels = parameters(trees)
    n_columns = min(MAX_COLUMNS, len(panels))
    n_rows = math.ceil(len(panels) / n_columns)
    figure = Figure(
        figsize=(3.2 * n_columns, 0.6 + 2.2 * n_rows),
        dpi=150,
        layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.08),
    )
    axes = figure.subplots(n_rows, n_columns, squeeze=False).ravel()
    for ax, (label, draws) in zip(axes, panels.items(), strict=False):
        _panel(ax, label, draws)
    for ax in axes[len(panels) :]:
        ax.set_axis_off()

    figure.legend(
        *axes[0].get_legend_handles_labels(),
        loc="outside upper left",
        ncols=len(trees),
        frameon=False,
        fontsize=10,
    )
    figure.supxlabel(
        "posterior densities, with their means on the axis",
        x=0.01,
        ha="left",
        fontsize=9,
        color=INK,
    )
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

    ax.set_title(label, loc="left", fontsize=11, fontweight="bold")
    ax.set_ylim(bottom=0)
    ax.set_yticks([])
    ax.spines[["left", "top", "right"]].set_visible(False)
    ax.spines["bottom"].set_color(INK)
    ax.tick_params(axis="x", labelsize=9, color=INK, labelcolor=INK)
    ax.locator_params(axis="x", nbins=4)
