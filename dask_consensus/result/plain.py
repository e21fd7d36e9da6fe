"""How a tree is taken apart into arrays and texts, as records hold, and put together again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import xarray as xr

from ..local.store import DrawStore

Plain = dict[str, Any]


def plain_tree(tree: xr.DataTree) -> Plain:
    """Take a tree apart: groups, of variables, of dims, values and attributes.

    Draws of effects that lie in the store of the fit already, to be read when they are used, are
    named alone.
    """
    groups: Plain = {}
    for path, node in tree.subtree_with_keys:
        dataset = node.to_dataset(inherit=False)
        if dataset.chunks:
            groups[path] = {"in_store": True}
            continue
        groups[path] = {
            "variables": {str(name): _variable(dataset, name) for name in dataset.data_vars},
            "coords": {str(name): _variable(dataset, name) for name in dataset.coords},
            "attrs": dict(dataset.attrs),
        }
    return groups


def tree_of(plain: Mapping[str, Any], url: str) -> xr.DataTree:
    """Put it together again; `url` is that of the store."""
    return xr.DataTree.from_dict({path: _dataset(told, url) for path, told in plain.items()})


def _variable(dataset: xr.Dataset, name: Any) -> Plain:
    array = dataset[name]
    values = array.to_numpy()
    if values.dtype.kind == "T":  # NumPy's texts of any length
        values = values.astype(object)
    return {"dims": list(map(str, array.dims)), "values": values, "attrs": dict(array.attrs)}


def _dataset(told: Mapping[str, Any], url: str) -> xr.Dataset:
    if "in_store" in told:
        return DrawStore(url).opened()
    variables, coords = (
        {name: (one["dims"], one["values"], one["attrs"]) for name, one in told[kind].items()}
        for kind in ("variables", "coords")
    )
    return xr.Dataset(variables, coords, told["attrs"])
