"""Which groups there are, in the order of shards, and how their keys label results."""

from __future__ import annotations

from collections.abc import Set
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..cluster.shards import Shards
from ..cluster.tasks import compute
from ..frame.labels import readable
from ..result.names import variable_name

if TYPE_CHECKING:
    from ..plan.plan import Plan


class Groups(NamedTuple):
    """The groups of a level, in the order of shards."""

    dim: str
    keys: dict[str, np.ndarray]  # (groups,) of each key column down to theirs
    rows: str  # what their numbers of rows are called

    @property
    def n(self) -> int:
        """Number of groups."""
        return len(self.keys[self.dim])

    def order(self) -> np.ndarray:
        """Return the order that sorts them by their keys, outermost first."""
        return np.lexsort([sortable(key) for key in list(self.keys.values())[::-1]])

    def coords(self, order: np.ndarray) -> dict[str, Any]:
        """Make coordinates of their keys."""
        return {name: (self.dim, key[order]) for name, key in self.keys.items()}


def groups_at(plan: Plan, shards: Shards, level: int, taken: Set[str]) -> Groups:
    """Bring the keys of all groups of a level to the client, as they read in the frame.

    `taken` are names that a key's coordinate may not have: an underscore is then added to it.
    """
    layout, forms = plan.bindings.layout, plan.survey.forms(plan.bindings.layout)
    of_shards = [labels[level] for labels in compute(shards.labels)]
    rows = free_name("rows", taken)
    keys: dict[str, np.ndarray] = {}
    for i in range(level + 1):
        kinds = [found.what for found in plan.survey.found[i]]
        values = np.concatenate([labels[i] for labels in of_shards])
        dim = free_name(str(layout.by[i]), taken | {rows, *keys})
        keys[dim] = readable(values, forms[i], kinds, plan.key_dtypes[i])
    return Groups(dim, keys, rows)


def free_name(name: str, taken: Set[str]) -> str:
    """Name a key, or the numbers of rows, as nothing else is."""
    name = variable_name(name)
    while name in taken:
        name += "_"
    return name


def sortable(key: np.ndarray) -> np.ndarray:
    """Turn keys into what NumPy sorts."""
    return np.asarray(key.astype(str)) if key.dtype == object else key
