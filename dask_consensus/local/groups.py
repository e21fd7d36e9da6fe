"""Which groups there are, in the order of shards, and how their keys label results."""

from __future__ import annotations

from collections.abc import Sequence, Set
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..cluster.shards import Shards
from ..cluster.tasks import compute
from ..frame.labels import readable
from ..result.names import variable_name
from .frame import KEY

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
        return {
            name: (self.dim, key[order], {KEY: i})
            for i, (name, key) in enumerate(self.keys.items())
        }


def groups_at(
    plan: Plan, shards: Shards, levels: Sequence[int], taken: Set[str]
) -> tuple[Groups, ...]:
    """Bring the keys of all groups of some levels to the client, as they read in the frame.

    Those of inner groups are told apart by the keys around them, which are coordinates too: of one
    level under their own names (``region``), of several as ``region_of_county``, since ``region``
    is then a dimension. `taken` are names that a coordinate may not have: an underscore is added.
    """
    labels = compute(shards.labels)
    found: list[Groups] = []
    names = set(taken)
    for level in levels:
        groups = _groups_at(plan, [of_shard[level] for of_shard in labels], level, names, levels)
        names |= {groups.rows, *groups.keys}
        found.append(groups)
    return tuple(found)


def _groups_at(
    plan: Plan, labels: Sequence[Sequence[Any]], level: int, taken: set[str], levels: Sequence[int]
) -> Groups:
    layout, forms = plan.bindings.layout, plan.survey.forms(plan.bindings.layout)
    several, own = len(levels) > 1, str(layout.by[level])
    rows = free_name(f"{own}_rows" if several else "rows", taken)
    keys: dict[str, np.ndarray] = {}
    for i in range(level + 1):
        kinds = [found.what for found in plan.survey.found[i]]
        values = np.concatenate([of_shard[i] for of_shard in labels])
        name = f"{layout.by[i]}_of_{own}" if several and i < level else str(layout.by[i])
        dim = free_name(name, taken | {rows, *keys})
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
