"""On which scale is a parameter drawn? What a tree says of its coordinates.

Shards are combined in unconstrained space, and their means and precisions are kept there. Where
one number of a site follows from one number of that space (the logarithm of what must be positive,
say), it is drawn as the model knows it; else, as on a simplex, it is drawn unconstrained.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import xarray as xr

Numbers = npt.NDArray[np.float64]
# Of single precision, in which values are computed.
_ROUNDING = 1e-4


class Scale(NamedTuple):
    """How a coordinate is named and drawn: ``shift + factor * function(u)``."""

    label: str
    function: Callable[[Numbers], Numbers]
    shift: float = 0.0
    factor: float = 1.0

    def __call__(self, u: Numbers) -> Numbers:
        """Draw unconstrained numbers on the scale."""
        # What leaves the range of floats is not drawn, and warns of nothing.
        with np.errstate(over="ignore"):
            return self.shift + self.factor * self.function(np.asarray(u, np.float64))


def group(tree: xr.DataTree, name: str) -> xr.Dataset:
    """Return a group of a tree, or say that it is no fit's."""
    if name not in tree.children:
        raise ValueError(f"expected the result of a fit, got a tree without the group {name}")
    return tree.children[name].to_dataset()


def coordinates(tree: xr.DataTree) -> list[str]:
    """Name the coordinates of the unconstrained space."""
    return [str(name) for name in group(tree, "rounds")["coordinate"].values]


def scales(tree: xr.DataTree, *, constrained: bool) -> list[Scale]:
    """Choose the scale of each coordinate; those of the model where `constrained` asks for them."""
    names = coordinates(tree)
    chosen = []
    for name, (site, entry, support) in zip(names, _entries(tree, names), strict=True):
        scale = _scale_of(tree, site, entry, support) if constrained else None
        chosen.append(scale or Scale(_unconstrained(name, support), _identity))
    return chosen


def _entries(tree: xr.DataTree, names: list[str]) -> list[tuple[str, tuple[int, ...], str]]:
    """Say of which entry of which site each coordinate is, and its support.

    Names bear labels; which numbers these stand for tells the order of the shared sites. Of a tree
    that remembers no model the supports are unknown, and nothing is asked of the entries.
    """
    told = json.loads(tree.attrs.get("model", "{}")).get("latents", ())
    entries = [
        (latent["name"], index, latent["support"])
        for latent in told
        if latent["level"] is None
        for index in np.ndindex(*latent["unconstrained"])
    ]
    return entries or [(name, (), "") for name in names]


def _unconstrained(name: str, support: str) -> str:
    function = _function(support)
    if function is _identity:
        return name
    if support in ("positive", "nonnegative"):
        return f"log {name}"
    return f"logit {name}" if support == "unit interval" else f"{name}, unconstrained"


def _function(support: str) -> Callable[[Numbers], Numbers] | None:
    """Return NumPyro's transformation to a support, up to a shift and a factor; None if vectors."""
    if support == "real":
        return _identity
    if support in ("positive", "nonnegative") or support.startswith(("greater", "less")):
        return np.exp
    if support in ("unit interval", "circular") or "interval" in support or support[:1] == "[":
        return _logistic
    return _softplus if support == "softplus positive" else None


def _scale_of(tree: xr.DataTree, site: str, entry: tuple[int, ...], support: str) -> Scale | None:
    """Find shift and factor from draws in both spaces; None if no straight line joins them."""
    name, function = site.replace("/", "."), _function(support)
    if function is None or "unconstrained_posterior" not in tree.children:
        return None
    inner, outer = group(tree, "unconstrained_posterior"), group(tree, "posterior")
    if name not in inner or name not in outer or inner[name].shape != outer[name].shape:
        return None
    index: Any = (slice(None), slice(None), *entry)
    u = function(inner[name].values[index].astype(np.float64).ravel())
    x = outer[name].values[index].astype(np.float64).ravel()
    label = _label(outer[name], entry)
    shift, factor = 0.0, 1.0
    if not np.allclose(x, u, rtol=_ROUNDING) and np.ptp(u) > 0:
        factor = float(np.cov(u, x)[0, 1] / np.var(u, ddof=1))
        shift = float(x.mean() - factor * u.mean())
    # A bound that depends on other parameters makes another line of each draw.
    if np.abs(x - shift - factor * u).max() > _ROUNDING * (np.ptp(x) + np.abs(x).max()):
        return None
    return Scale(label, function, shift, factor)


def _label(variable: xr.DataArray, entry: tuple[int, ...]) -> str:
    """Name an entry by its labels, as ``beta[age]``."""
    dims = [dim for dim in variable.dims if dim not in ("chain", "draw")]
    where = ", ".join(str(variable[dim].values[i]) for dim, i in zip(dims, entry, strict=True))
    return f"{variable.name}[{where}]" if dims else str(variable.name)


def note(chosen: list[Scale], constrained: bool) -> str:
    """Say what the marks are: of which scale, and which spread."""
    if not constrained:
        return "mean and sd, unconstrained"
    bent = any(scale.function is not _identity for scale in chosen)
    if any(scale.label.endswith("unconstrained") for scale in chosen):
        return "median and central 68%; of some parameters unconstrained, as their titles say"
    return "median and central 68%" if bent else "mean and sd"


def _identity(u: Numbers) -> Numbers:
    return u


def _logistic(u: Numbers) -> Numbers:
    return 1.0 / (1.0 + np.exp(-u))


def _softplus(u: Numbers) -> Numbers:
    return np.logaddexp(u, 0.0)
