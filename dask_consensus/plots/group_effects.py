"""Which groups differ, and how surely? Effects in order, with their intervals."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from ..local.frame import tree_to_frame
from .panels import COMBINED, INK, REFERENCE, bare, explain, panels

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LABELLED = 30  # groups that are named beside the picture
_LINES = 120  # and that have a line each; of more the lines would run together
_DRAWN = 2_000  # taken evenly from the order of all


def effects(
    tree: xr.DataTree,
    sites: str | Sequence[str] | None = None,
    *,
    key: Hashable | None = None,
) -> Figure:
    """Draw the effects of groups in order, one panel an effect: a caterpillar plot.

    Parameters
    ----------
    tree : xarray.DataTree
        Result of a fit with group effects, a summary of them or draws: mean of each group, and the
        interval from its 5% to its 95% quantile. Up to 30 groups are named; of more than 2,000
        some are drawn, evenly from the order.
    sites : str or list of str, optional
        Which effects, by the name of the site; one entry of several as ``"ab[0]"``. All of them by
        default.
    key : hashable, optional
        Of effects on several levels, the key column of the groups; by default the innermost.

    Returns
    -------
    matplotlib.figure.Figure

    Examples
    --------
    `ddf`, `model` and `tree` are those of the example of ``DataFrame.consensus.fit``.

    >>> [ax.get_title(loc="left") for ax in effects(tree, "alpha").axes]
    ['alpha']
    """
    table = tree_to_frame(tree, key).compute()
    known = [str(name)[: -len("_mean")] for name in table if str(name).endswith("_mean")]
    chosen = known if sites is None else _chosen(known, sites)
    keys = _keys(table, known)
    shown = min(len(table), _LABELLED if len(table) <= _LABELLED else 20)
    figure, axes = panels(len(chosen), height=max(2.4, 0.6 + 0.17 * shown))
    for ax, label in zip(axes, chosen, strict=True):
        _caterpillar(ax, table, label, keys)
    groups = f"{len(table):,} groups of {', '.join(map(str, keys)) or 'rows'}"
    explain(figure, f"{groups}, in the order of their means: 5% to 95% quantile", axes[0])
    return figure


def _chosen(known: Sequence[str], sites: str | Sequence[str]) -> list[str]:
    """Find the labels of sites: the site's own, or those of its entries."""
    chosen = []
    for site in [sites] if isinstance(sites, str) else sites:
        of_site = [label for label in known if site in (label, label.partition("[")[0])]
        if not of_site:
            raise ValueError(f"no group has an effect {site!r}; there are {', '.join(known)}")
        chosen += of_site
    return chosen


def _keys(table: pd.DataFrame, known: Sequence[str]) -> list[Hashable]:
    """Tell the columns of keys: those that stand before the first effect."""
    first = list(table.columns).index(f"{known[0]}_mean")
    return list(table.columns[:first])


def _caterpillar(ax: Axes, table: pd.DataFrame, label: str, keys: Sequence[Hashable]) -> None:
    """Draw the mean and the interval of each group, lowest mean at the bottom."""
    ordered = table.sort_values(f"{label}_mean", kind="stable")
    if len(ordered) > _DRAWN:
        ordered = ordered.iloc[np.linspace(0, len(ordered) - 1, _DRAWN).astype(int)]
    mean, low, high = (ordered[f"{label}_{name}"].to_numpy() for name in ("mean", "q05", "q95"))
    at = np.arange(len(ordered))
    if len(at) <= _LINES:
        ax.hlines(at, low, high, color=REFERENCE, lw=2.5 if len(at) <= 50 else 1.5, label="90%")
        ax.plot(mean, at, "o", color=COMBINED, ms=4 if len(at) <= 50 else 2.5, label="mean")
    else:
        ax.fill_betweenx(at, low, high, color=REFERENCE, linewidth=0, label="90%")
        ax.plot(mean, at, color=COMBINED, lw=2, label="mean")
    if low.min() < 0 < high.max():
        ax.axvline(0, color=INK, lw=1, ls=":")
    bare(ax, label)
    ax.locator_params(axis="x", nbins=4)
    ax.set_ylim(-0.7, len(at) - 0.3)
    if len(at) <= _LABELLED:
        names = ordered[keys].astype(str).agg(", ".join, axis=1) if keys else at
        ax.set_yticks(at, list(names))
        ax.tick_params(axis="y", labelsize=8)
    else:
        ax.set_yticks([])
