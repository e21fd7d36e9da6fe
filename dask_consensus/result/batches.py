"""Whether the rows of an update are those of the fit, or of an update before, once more.

A job that runs twice, or a file that lies in two folders, adds the same rows again, which no
posterior tells: it is only too narrow. So a tree keeps what each addition held in a few numbers
(`frame/contents.py`), and an update that holds just the same says so.
"""

from __future__ import annotations

import json

import xarray as xr

from ..frame.contents import changed
from ..shard_data import Contents
from .recall import Recalled

BATCHES = "batches"
"""Attribute of a tree that holds them."""
_KEPT = 400  # the latest; some hundred bytes a column each

Batch = tuple[str, int, Contents]
"""What it was, its number of rows, and what these held."""


def batches_of(tree: xr.DataTree, recalled: Recalled) -> list[Batch]:
    """Read what was added so far, the fit itself first."""
    if BATCHES in tree.attrs:
        return [
            (what, rows, Contents(tuple(checksums), tuple(map(tuple, sums))))
            for what, rows, checksums, sums in json.loads(tree.attrs[BATCHES])
        ]
    if recalled.contents is None or recalled.n_rows is None or int(tree.attrs["n_updates"]):
        return []
    return [("the fit", recalled.n_rows, recalled.contents)]


def written(batches: list[Batch]) -> str:
    """Write them down as JSON, the latest of them."""
    return json.dumps([[what, rows, *contents] for what, rows, contents in batches[-_KEPT:]])


def seen_before(batches: list[Batch], rows: int, contents: Contents) -> str:
    """Say which of them held just what these rows hold; empty if none did."""
    for what, then, held in batches:
        alike = then == rows and len(held.checksums) == len(contents.checksums)
        if alike and not any(changed(held, contents)):
            return what
    return ""
