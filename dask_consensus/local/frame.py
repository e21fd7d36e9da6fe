"""Effects of groups as a Dask DataFrame, to be joined to others."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import dask.dataframe as dd
import numpy as np
import pandas as pd
import xarray as xr

KEY = "key"  # attribute of the coordinate of a key: its number, 0 the outermost
_ROWS = 250_000  # of a partition


def tree_to_frame(
    tree: xr.DataTree, key: Hashable | None = None, *, rows_per_partition: int = _ROWS
) -> dd.DataFrame:
    """Lay the effects of groups out as a table, one row a group.

    Parameters
    ----------
    tree : DataTree
        A fit's result with group effects, as it was returned, or read from netCDF or Zarr.
    key : hashable, optional
        Of effects on several levels, the key column of the groups that are wanted; by default the
        innermost.
    rows_per_partition : int
        Groups of a partition of the table.

    Returns
    -------
    dask.dataframe.DataFrame
        The key columns, ``<site>_<statistic>`` of each site and statistic (``alpha_mean``, and
        ``ab[0]_mean`` where a group has several), ``<site>_shrinkage`` and ``rows``. Of draws the
        statistics are taken when the table is computed.

    Raises
    ------
    ValueError
        If the tree has no group effects, or none of such groups.

    Examples
    --------
    `tree` is that of the example of ``DataFrame.consensus.fit``.

    >>> effects = tree_to_frame(tree)
    >>> effects.columns.tolist()[:4]
    ['group', 'alpha_mean', 'alpha_sd', 'alpha_q05']
    >>> len(effects)
    40
    """
    if "local" not in tree.children:
        raise ValueError(f"the tree has no group effects: {why_none(tree)}")
    local = tree["local"].to_dataset()
    dims = group_dims(local)
    if key is None:
        key = dims[-1]
    elif str(key) not in map(str, dims):
        raise ValueError(
            f"key={key!r}: there are effects of the groups of {', '.join(map(str, dims))}"
        )
    dim = next(name for name in dims if str(name) == str(key))
    starts = range(0, local.sizes[dim], rows_per_partition)
    slices = [slice(start, start + rows_per_partition) for start in starts]
    others = [name for name in dims if name != dim]
    local = _of_one_level(local.drop_dims(others), dim)
    meta = _table(local.isel({dim: slice(0, 0)}), dim)
    return dd.from_map(_part, slices, local=local, key=dim, meta=meta)


def why_none(tree: xr.DataTree) -> str:
    """Say why a tree has no effects of groups, and what to do."""
    because = tree.attrs.get("no_local_because", "")
    if not because or because == "local=None":
        return "fit with local='summary' or 'draws'; print(plan) says why a model has none"
    return str(because)


def group_dims(local: xr.Dataset) -> list[Hashable]:
    """Return the dimensions along which there is one entry a group, the outermost first."""
    firsts = {_first_dim(array) for array in local.data_vars.values()}
    dims = [dim for dim in local.dims if dim in firsts]
    return sorted(dims, key=lambda dim: len(keys_of(local, dim)))


def dim_of(local: xr.Dataset, variable: str) -> Hashable:
    """Return the dimension of the groups of a variable."""
    return _first_dim(local[variable])


def _first_dim(array: xr.DataArray) -> Hashable:
    return next(dim for dim in array.dims if dim not in ("chain", "draw", "statistic"))


def keys_of(local: xr.Dataset, dim: Hashable) -> list[tuple[str, np.ndarray]]:
    """Return the names and values of the keys of groups, outermost first.

    Files have coordinates in an order of their own; where groups lie is theirs by number.
    """
    named = [(str(n), c) for n, c in local.coords.items() if c.dims == (dim,)]
    named.sort(key=lambda one: one[1].attrs.get(KEY, len(named)))
    return [(name, coord.to_numpy()) for name, coord in named]


def _of_one_level(local: xr.Dataset, dim: Hashable) -> xr.Dataset:
    """Name keys and numbers of rows as if there were one level."""
    plain = {
        str(name): str(name).removesuffix(f"_of_{dim}")
        for name, coord in local.coords.items()
        if coord.dims == (dim,) and name != dim
    }
    plain |= {f"{dim}_rows": "rows"}
    taken = {*map(str, local.variables)}
    return local.rename(
        {old: new for old, new in plain.items() if old in taken and new not in taken}
    )


def _part(groups: slice, local: xr.Dataset, key: Hashable) -> pd.DataFrame:
    return _table(local.isel({key: groups}), key)


def _table(local: xr.Dataset, key: Hashable) -> pd.DataFrame:
    """Make the table of some groups."""
    columns: dict[str, Any] = dict(keys_of(local, key))
    for name, array in local.data_vars.items():
        if "draw" in array.dims:
            columns |= _columns(str(name), summarized(array), key)
        elif "statistic" in array.dims:
            columns |= _columns(str(name), array, key)
        else:
            for label, values in _entries(str(name), array, key):
                columns[label] = values
    return pd.DataFrame(columns)


def summarized(array: xr.DataArray) -> xr.DataArray:
    """Take the statistics of a summary of draws, of ``(chain, draw, ...)``."""
    values = array.to_numpy().astype(np.float64)
    over = (0, 1)
    if not values.size:
        told = np.zeros((5, *values.shape[2:]))
    else:
        quantiles = np.quantile(values, [0.05, 0.5, 0.95], axis=over)
        told = np.stack([values.mean(axis=over), values.std(axis=over), *quantiles])
    coords = {"statistic": ["mean", "sd", "q05", "q50", "q95"]}
    return xr.DataArray(told, coords, ("statistic", *array.dims[2:]))


def _columns(name: str, array: xr.DataArray, key: Hashable) -> dict[str, np.ndarray]:
    """Make a column of each statistic of each entry."""
    return {
        f"{label}_{statistic}": values
        for statistic in array["statistic"].to_numpy()
        for label, values in _entries(name, array.sel(statistic=statistic), key)
    }


def _entries(name: str, array: xr.DataArray, key: Hashable) -> list[tuple[str, np.ndarray]]:
    """Name what a group has several of: ``ab[0, 1]``."""
    values = array.transpose(key, ...).to_numpy()
    if values.ndim == 1:
        return [(name, values)]
    return [
        (f"{name}[{', '.join(map(str, index))}]", values[(slice(None), *index)])
        for index in np.ndindex(values.shape[1:])
    ]
