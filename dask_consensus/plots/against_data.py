"""Does the model make data like those that there are? Checks, and calibration of predictions."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.stats import gaussian_kde

from .panels import COMBINED, REFERENCE, bare, explain, panels

if TYPE_CHECKING:
    import dask.dataframe as dd
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Numbers = npt.NDArray[np.float64]
_LABELLED = 12  # values of a column that are named under a picture
_BINS = 10  # of rows, by their predicted mean
_TIES = 0.02  # share of rows that are equal to a quantile, beyond which quantiles are of steps


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
    compared = list(_compared(check))
    if not compared:
        raise ValueError("expected what ddf.consensus.check returned, with statistics that vary")
    # Names of groups stand aslant below and take room of their own.
    figure, axes = panels(len(compared), height=2.2 if compared[0][3] is None else 3.0)
    for ax, (title, observed, replicated, by) in zip(axes, compared, strict=True):
        if by is None:
            _replicas(ax, float(observed), replicated)
        else:
            _replicas_by(ax, observed, replicated, by)
        bare(ax, title)
    explain(figure, "statistics of the rows, and of rows that the model made", axes[0])
    return figure


def _compared(
    check: xr.Dataset,
) -> Iterator[tuple[str, Numbers, Numbers, npt.NDArray[np.generic] | None]]:
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


def _replicas(ax: Axes, observed: float, replicated: Numbers) -> None:
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


def _replicas_by(
    ax: Axes, observed: Numbers, replicated: Numbers, by: npt.NDArray[np.generic]
) -> None:
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


class _Sums(NamedTuple):
    """What rows say of their predictions: ``(bin,)`` sums, and ``(quantile,)`` numbers of rows."""

    n: Numbers
    predicted: Numbers
    observed: Numbers
    squares: Numbers
    below: Numbers
    ties: Numbers


def calibration(
    predicted: dd.DataFrame | pd.DataFrame, observed: Hashable, site: str | None = None
) -> Figure:
    """Draw what was observed over what was predicted.

    To the left rows in ten bins of equal size by their predicted mean: the mean of what was
    observed there, two standard errors to either side. For a yes-or-no response that is a
    reliability diagram. To the right the share of rows below each quantile that was predicted;
    that panel is left out where a quantile is a step of a discrete response.

    Rows that the model was fitted to look a little better than new ones would: predict rows that
    were held out.

    Parameters
    ----------
    predicted : dask.dataframe.DataFrame or pandas.DataFrame
        What ``ddf.consensus.predict`` returned, computed or not, of rows whose response is known;
        those where it is missing are left out. More quantiles make more of the right panel:
        ``statistics=["mean", "q05", "q25", "q50", "q75", "q95"]``.
    observed : column
        The column of the response.
    site : str, optional
        The observed site, if there are several.

    Returns
    -------
    matplotlib.figure.Figure

    Examples
    --------
    `ddf`, `model` and `tree` are those of the example of ``DataFrame.consensus.fit``.

    >>> figure = calibration(ddf.consensus.predict(tree, model), observed="y")
    >>> [ax.get_title(loc="left") for ax in figure.axes]
    ['obs: means', 'obs: quantiles']
    """
    site = _site(predicted, site)
    if observed not in predicted.columns:
        raise ValueError(f"no column {observed!r}; there are {', '.join(map(str, predicted))}")
    levels = {
        float(match[1]) / 100: match[0]
        for name in predicted.columns
        if (match := re.fullmatch(rf"{re.escape(site)}_q(\d+(?:\.\d+)?)", str(name)))
    }
    names = [f"{site}_mean", *levels.values(), observed]
    edges, sums = _sums(predicted[names], names)
    n = int(sums.n.sum())
    stepped = not levels or sums.ties.max(initial=0.0) > _TIES * n
    figure, axes = panels(1 if stepped else 2, width=4.0, height=3.4)
    _means(axes[0], sums)
    bare(axes[0], f"{site}: means", x="predicted", y="observed")
    if not stepped:
        _quantiles(axes[1], np.array(list(levels)), sums, n)
        bare(axes[1], f"{site}: quantiles", x="level of the quantile", y="share of rows below")
    explain(figure, f"{n:,} rows in {len(edges) + 1} bins; two standard errors, rows taken as "
            "independent", axes[0])  # fmt: skip
    return figure


def _site(predicted: dd.DataFrame | pd.DataFrame, site: str | None) -> str:
    """Find the site of the predictions."""
    sites = [str(name)[: -len("_mean")] for name in predicted if str(name).endswith("_mean")]
    if site is None and len(sites) == 1:
        return sites[0]
    if site not in sites:
        raise ValueError(
            "expected what ddf.consensus.predict returned, with a mean among its statistics, "
            f"and site= as one of {', '.join(sites) or '(none here)'}; got {site!r}"
        )
    return str(site)


def _sums(frame: dd.DataFrame | pd.DataFrame, names: Sequence[Hashable]) -> tuple[Numbers, _Sums]:
    """Sum up rows, where they lie, in bins of their predicted mean."""
    lazy = not isinstance(frame, pd.DataFrame)
    inner = np.linspace(0, 1, _BINS + 1)[1:-1]
    quantiles = frame[names[0]].quantile(list(inner))
    edges = np.unique((quantiles.compute() if lazy else quantiles).to_numpy(np.float64))
    if lazy:
        import dask

        delayed = [dask.delayed(_sums_of)(part, names, edges) for part in frame.to_delayed()]
        parts = dask.compute(*delayed)
    else:
        parts = (_sums_of(frame, names, edges),)
    return edges, _Sums(*(np.sum(field, axis=0) for field in zip(*parts, strict=True)))


def _sums_of(part: pd.DataFrame, names: Sequence[Hashable], edges: Numbers) -> _Sums:
    """Sum up the rows of a partition."""
    part = part.dropna(subset=[names[-1]])
    mean, *quantiles, y = (part[name].to_numpy(np.float64) for name in names)
    bins = np.searchsorted(edges, mean, side="right")
    n, predicted, observed, squares = (
        np.bincount(bins, weights=values, minlength=len(edges) + 1).astype(np.float64)
        for values in (np.ones_like(y), mean, y, y * y)
    )
    below = np.array([np.sum(y < q) + 0.5 * np.sum(y == q) for q in quantiles])
    ties = np.array([float(np.sum(y == q)) for q in quantiles])
    return _Sums(n, predicted, observed, squares, below, ties)


def _means(ax: Axes, sums: _Sums) -> None:
    """Draw the mean of what was observed in each bin over the mean of what was predicted."""
    full = sums.n > 1
    n, x, y = sums.n[full], sums.predicted[full] / sums.n[full], sums.observed[full] / sums.n[full]
    variance = np.maximum(sums.squares[full] / n - y**2, 0.0) * n / (n - 1)
    if len(x):
        ax.axline((x[0], x[0]), slope=1, color=REFERENCE, lw=3, label="calibrated")
    error = 2 * np.sqrt(variance / n)
    ax.errorbar(x, y, error, fmt="o", color=COMBINED, ms=5, lw=1.5, label="rows")
    ax.locator_params(nbins=5)


def _quantiles(ax: Axes, levels: Numbers, sums: _Sums, n: int) -> None:
    """Draw the share of rows below each quantile."""
    order = np.argsort(levels)
    share = sums.below[order] / n
    error = 2 * np.sqrt(share * (1 - share) / n)
    ax.axline((0, 0), slope=1, color=REFERENCE, lw=3)
    ax.errorbar(levels[order], share, error, fmt="o", color=COMBINED, ms=5, lw=1.5)
    ax.set_xlim(0, 1)
    ax.set_ylim(0, 1)
