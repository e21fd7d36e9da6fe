"""Effects that a fit has found, once other groups have arrived.

Their own rows are what they were. The summary of each stays that of the posterior at which it was
found, and says which; its normal distribution given the shared parameters is moved to the new mean
of these, so that predictions go on from it.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import xarray as xr

from ..shard.effects import MOST_WIDER
from .frame import group_dims, keys_of
from .groups import free_name, sortable
from .summary import GIVEN_SHARED

_HOLDS = (
    "effects of each group at the posterior of the update that {update!r} names, 0 for the first "
    "fit; a group whose rows came later than its last is at the posterior of that time, which "
    "differs by what the shared parameters have moved since"
)


def with_kept(
    tree: xr.DataTree,
    found: Mapping[str, xr.Dataset],
    moved: np.ndarray,
    number: int,
) -> dict[str, xr.Dataset]:
    """Set effects found in an update beside those that a tree holds.

    Parameters
    ----------
    tree : DataTree
        Of the fit before.
    found : mapping of Datasets
        What :func:`..effects.local_effects` found of the groups that have new rows.
    moved : (d,) array
        By how much the mean of the shared parameters has moved, unconstrained.
    number : int
        Of the update.

    Returns
    -------
    dict of Datasets
        Likewise. Draws belong to draws of one posterior: of them those found now are all, and so
        are those of effects on several levels. A tree without effects stays without: those of some
        groups would pass for those of all.
    """
    if not found or "local" not in tree.children:
        return {}
    new, old = found["local"], tree["local"].to_dataset()
    if "statistic" not in new.dims or "statistic" not in old.dims:
        told = "draws of the effects of the groups with rows of the last update; of others none"
        return dict(found) | {"local": new.assign_attrs(holds=told)}
    dim, *others = map(str, group_dims(new))
    if others:
        told = (
            "effects on several levels of the groups with rows of the last update; of others none"
        )
        return dict(found) | {"local": new.assign_attrs(holds=told)}
    taken = {*map(str, new.variables), *map(str, new.dims)}
    update = next((str(n) for n, a in old.data_vars.items() if a.attrs.get("counts")), "")
    if not update:
        update = free_name("update", taken)
        old = old.assign({update: (dim, np.zeros(old.sizes[dim], np.int64))})
    new = new.assign({update: (dim, np.full(new.sizes[dim], number, np.int64))})
    both = xr.concat([old, new], dim, data_vars="minimal", join="exact")
    both[update].attrs = {"long_name": "update in which the effects were found", "counts": 1}
    keys = dict(keys_of(both, dim))
    last = np.flatnonzero(~pd.DataFrame(keys).duplicated(keep="last").to_numpy())
    order = last[np.lexsort([sortable(key[last]) for key in list(keys.values())[::-1]])]
    local = both.isel({dim: order}).assign_attrs(
        new.attrs | {"holds": _HOLDS.format(update=update)}
    )
    given = tree["local"].children[GIVEN_SHARED].to_dataset(inherit=False)
    given = xr.concat([_moved(given, moved), found[f"local/{GIVEN_SHARED}"]], dim, join="exact")
    return {"local": local, f"local/{GIVEN_SHARED}": given.isel({dim: order})}


def _moved(given: xr.Dataset, moved: np.ndarray) -> xr.Dataset:
    """Bring normal distributions given the shared parameters to another mean of these."""
    mean, slope, widening, covariance = (
        given[name].to_numpy() for name in ("mean", "slope", "widening", "covariance")
    )
    sds = np.exp(MOST_WIDER * np.tanh(widening @ moved / MOST_WIDER))
    return given.assign(
        mean=given["mean"].copy(data=(mean + slope @ moved).astype(mean.dtype)),
        covariance=given["covariance"].copy(
            data=(covariance * sds[:, :, None] * sds[:, None, :]).astype(covariance.dtype)
        ),
    )
