"""What does each shard say, and what does it cost? One mark a shard."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from .panels import COMBINED, INK, REFERENCE, SHARD, bare, columns, explain, panels
from .reference import bands
from .scales import group, note, scales

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Numbers = npt.NDArray[np.float64]


def subposteriors(
    tree: xr.DataTree, reference: xr.DataTree | None = None, *, constrained: bool = True
) -> Figure:
    """Draw what each shard alone says of every parameter, one panel a parameter.

    Parameters
    ----------
    tree : xarray.DataTree
        Result of a fit to several shards. Its last round is drawn, any anchor's share included: the
        median of every shard and its central 68%, by the normal distribution that stands for the
        shard in unconstrained space. A shard whose precision is not positive definite has no
        spread, and is drawn as its median alone.
    reference : xarray.DataTree, optional
        Another fit of the same model, drawn as a grey band: its median and central 68%.
    constrained : bool
        Whether parameters are drawn as the model has them, so that a standard deviation is
        positive; else in the unconstrained space in which shards are combined, mean and sd, where
        their spreads are those of the Gaussians that are added up. Entries of vectors that are
        bound to each other, as on a simplex, are drawn unconstrained either way.

    Returns
    -------
    matplotlib.figure.Figure

    Examples
    --------
    `ddf`, `model` and `tree` are those of the example of ``DataFrame.consensus.fit``.

    >>> [ax.get_title(loc="left") for ax in subposteriors(tree).axes]
    ['mu', 'tau']
    >>> [ax.get_title(loc="left") for ax in subposteriors(tree, constrained=False).axes]
    ['mu', 'log tau']
    """
    shards, last = (group(tree, name).isel(round=-1) for name in ("shards", "rounds"))
    chosen, n_shards = scales(tree, constrained=constrained), shards.sizes["shard"]
    if n_shards < 2:
        raise ValueError("expected the result of a fit to several shards, got one shard")
    means, sds = shards["mean"].values, _sds_of(shards["precision"].values)
    diverged = np.zeros(n_shards, bool)
    if "divergences" in shards:  # Newton steps sample nothing
        diverged = shards["divergences"].values > 0
    position, gap = np.arange(n_shards), max(0.5, 0.03 * n_shards)
    size = 5 if n_shards <= 50 else 3
    figure, axes = panels(len(chosen), height=min(1.0 + 0.16 * (n_shards + 2), 6.0))
    bands(axes, chosen, tree, reference, vertical=True)
    for j, (ax, scale) in enumerate(zip(axes, chosen, strict=True)):
        middle = scale(means[:, j])
        low, high = (scale(means[:, j] + side * sds[:, j]) for side in (-1, 1))
        ax.hlines(position, low, high, color=SHARD, lw=1.5)
        ax.plot(middle, position, "o", color=SHARD, ms=size, label="shard")
        if diverged.any():
            (hollow,) = ax.plot(middle[diverged], position[diverged], "o", color=SHARD, ms=size)
            hollow.set(mfc="white", label="shard with divergences")
        mean, sd = last["mean"].values[j], last["sd"].values[j]
        center, *ends = scale(mean + sd * np.array([0.0, -1.0, 1.0]))
        ax.errorbar(
            center, n_shards + gap, xerr=[[center - min(ends)], [max(ends) - center]],
            fmt="D", color=COMBINED, ms=5, lw=2.5, label="all shards combined",
        )  # fmt: skip
        leftmost = j % columns(len(chosen)) == 0
        bare(ax, scale.label, y="shard" if leftmost else "")
        ax.locator_params(axis="x", nbins=4)
        ax.set_ylim(n_shards + 2 * gap + 0.2, -0.2 - gap)
        ax.set_yticks(position[:: math.ceil(n_shards / 6)] if leftmost else [])
    explain(figure, note(chosen, constrained), axes[0])
    return figure


def balance(tree: xr.DataTree) -> Figure:
    """Draw the size of every shard and the time that it took, and where the fit's time went.

    Parameters
    ----------
    tree : xarray.DataTree
        Result of a fit. Rows and seconds are those of ``tree["shards"]``, seconds added up over
        the rounds; the seconds of the phases are those of ``tree.attrs["profile"]``. The passes of
        the correction are not timed shard by shard.

    Returns
    -------
    matplotlib.figure.Figure

    Examples
    --------
    `ddf`, `model` and `tree` are those of the example of ``DataFrame.consensus.fit``.

    >>> [ax.get_title(loc="left") for ax in balance(tree).axes]
    ['rows', 'seconds', 'seconds by phase']
    """
    shards = group(tree, "shards")
    rows = shards["rows"].values[-1]
    work = np.nansum(shards["seconds"].values, axis=0)
    compiling = np.nansum(shards["compile_seconds"].values, axis=0)
    phases = json.loads(tree.attrs.get("profile", "{}"))
    phases = {name: seconds for name, seconds in phases.items() if name != "compile"}
    n, position = len(rows), np.arange(len(rows))
    figure, axes = panels(2 + bool(phases), height=min(1.4 + 0.14 * n, 4.5))
    thick = 0.8 if n <= 60 else 1.0
    axes[0].barh(position, rows, thick, color=SHARD)
    axes[0].axvline(rows.mean(), color=INK, lw=1, ls=":", label="mean")
    axes[1].barh(position, work, thick, color=SHARD, label="work on the shard")
    if compiling.max(initial=0.0) > 0.02 * (work + compiling).max():  # else it cannot be seen
        waiting = "compiling, or waiting for it"
        axes[1].barh(position, compiling, thick, left=work, color=REFERENCE, label=waiting)
    axes[1].axvline(work.mean(), color=INK, lw=1, ls=":")
    for ax, title in zip(axes, ("rows", "seconds"), strict=False):
        bare(ax, title, y="shard" if ax is axes[0] else "")
        ax.locator_params(axis="x", nbins=4)
        ax.set_ylim(n - 0.4, -0.6)
        ax.set_yticks(position[:: math.ceil(n / 6)] if ax is axes[0] else [])
    if phases:
        _phases(axes[2], phases)
    explain(figure, _evenness(rows, work), axes[0], axes[1])
    return figure


def _phases(ax: Axes, phases: dict[str, float]) -> None:
    """Draw the seconds of the phases, in their order."""
    ax.barh(list(phases), list(phases.values()), 0.7, color=COMBINED)
    bare(ax, "seconds by phase")
    ax.invert_yaxis()
    ax.locator_params(axis="x", nbins=4)


def _evenness(rows: Numbers, work: Numbers) -> str:
    """Say how much larger the largest shard is than the mean."""
    text = f"the largest of {len(rows):,} shards has {rows.max() / rows.mean():.2f} times the mean"
    text += " rows"
    if work.mean() > 0:
        text += f"; the slowest took {work.max() / work.mean():.2f} times the mean seconds"
    return text


def _sds_of(precision: Numbers) -> Numbers:
    """Take sds ``(shard, d)`` of precisions; NaN where one is not positive definite."""
    # Diagonal weights come with one precision a coordinate.
    d = precision.shape[1]
    full = precision if precision.ndim == 3 else precision[:, :, None] * np.eye(d)
    sds = np.full((len(full), d), np.nan)
    for sd, matrix in zip(sds, full, strict=True):
        if np.isfinite(matrix).all() and np.linalg.eigvalsh(matrix)[0] > 0:
            sd[:] = np.sqrt(np.linalg.inv(matrix).diagonal())
    return sds
