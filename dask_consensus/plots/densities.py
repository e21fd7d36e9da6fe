"""Which posteriors differ, and by how much? Their densities over each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, cast

import numpy as np
import numpy.typing as npt
import xarray as xr
from scipy.stats import gaussian_kde

from .panels import INK, REFERENCE, STYLES, bare, explain, panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Draws = npt.NDArray[np.float64]
# A fit's result, its posterior (or another group of draws), or that as a plain dataset.
Posterior = xr.DataTree | xr.Dataset


def parameters(trees: Mapping[str, Posterior]) -> dict[str, dict[str, Draws]]:
    """Lay out the parameters that all posteriors share, one number at a time.

    Parameters
    ----------
    trees : mapping of str to xarray.DataTree
        Results of fits by name, or groups of draws, such as ``tree["uncorrected"]``. The first one
        is the reference: it gives the order.

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
    scalars = {name: dict(_scalars(_draws_of(tree, name))) for name, tree in trees.items()}
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


def _draws_of(tree: Posterior, name: str) -> xr.Dataset:
    """Return the draws of a result, or of a group of one."""
    if not isinstance(tree, xr.DataTree | xr.Dataset):
        raise TypeError(
            f"expected the result of a fit, a group of it or a Dataset of draws, got "
            f"{type(tree).__name__} for {name!r}"
        )
    if isinstance(tree, xr.DataTree):
        tree = (tree["posterior"] if "posterior" in tree.children else tree).to_dataset()
    if not {"chain", "draw"} <= set(tree.dims):
        raise ValueError(
            f"{name!r} has no draws: expected the result of a fit, a group of it such as "
            f"tree['uncorrected'], or a Dataset with dims chain and draw"
        )
    return tree


def _scalars(posterior: xr.Dataset) -> Iterator[tuple[str, Draws]]:
    """Yield the label and the ``(chain, draw)`` draws of every entry of a posterior."""
    for name, variable in posterior.data_vars.items():
        dims = [dim for dim in variable.dims if dim not in ("chain", "draw")]
        draws = variable.transpose("chain", "draw", *dims)
        for index in np.ndindex(draws.shape[2:]):
            entry = zip(dims, index, strict=True)
            where = ", ".join(str(variable[dim].values[i]) for dim, i in entry)
            label = f"{name}[{where}]" if dims else str(name)
            yield label, np.asarray(draws.values[(..., *index)], dtype=np.float64)


def compare(trees: Posterior | Sequence[Posterior] | Mapping[str, Posterior]) -> Figure:
    """Draw the posterior densities of several fits over each other, one panel a parameter.

    Parameters
    ----------
    trees : mapping of str to xarray.DataTree
        Results of fits by name, up to five. The first one is the reference, drawn as a grey
        area; the others are lines. A short line on the axis marks each mean. A group of draws will
        do in place of a result, ``tree["uncorrected"]`` say, or a Dataset. A list is named after
        the methods; a single result is drawn beside the combination before its correction, where
        there is one.

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

    >>> [text.get_text() for text in compare(tree).legends[0].get_texts()]
    ['corrected', 'before its correction']
    """
    named = _named(trees)
    if len(named) > 1 + len(STYLES):
        raise ValueError(f"expected at most {1 + len(STYLES)} results to draw, got {len(named)}")
    shared = parameters(named)
    figure, axes = panels(len(shared))
    for ax, (label, draws) in zip(axes, shared.items(), strict=True):
        _panel(ax, label, draws)
    explain(figure, "posterior densities, with their means on the axis", axes[0])
    return figure


def _named(
    trees: Posterior | Sequence[Posterior] | Mapping[str, Posterior],
) -> dict[str, Posterior]:
    """Name results that came without names."""
    if isinstance(trees, xr.DataTree) and "uncorrected" in trees.children:
        return {"corrected": trees, "before its correction": trees.children["uncorrected"]}
    if isinstance(trees, xr.DataTree | xr.Dataset):
        return {"posterior": trees}
    # Trees and datasets are mappings too.
    if isinstance(trees, Mapping):
        return dict(cast("Mapping[str, Posterior]", trees))
    named: dict[str, Posterior] = {}
    for number, tree in enumerate(trees, 1):
        name = _method(tree) or str(number)
        named[name if name not in named else f"{name} ({number})"] = tree
    return named


def _method(tree: Posterior) -> str:
    """Say how a posterior was found, if it says so itself."""
    attrs = getattr(tree, "attrs", {})
    method = str(attrs.get("method_used", ""))
    corrected = isinstance(tree, xr.DataTree) and "uncorrected" in tree.children
    return f"{method}, corrected" if method and corrected else method


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
            ax.fill_between(inside, height, color=REFERENCE, linewidth=0, label=name)
            # Longer than the others, which may lie on it.
            ax.axvline(draws.mean(), ymax=0.14, color=INK, linewidth=2)
        else:
            color, dashes = STYLES[position - 1]
            ax.plot(inside, height, color=color, linestyle=dashes, linewidth=2, label=name)
            ax.axvline(draws.mean(), ymax=0.08, color=color, linewidth=2)
    bare(ax, label)
    ax.spines["left"].set_visible(False)
    ax.set_ylim(bottom=0)
    ax.set_yticks([])
    ax.locator_params(axis="x", nbins=4)
