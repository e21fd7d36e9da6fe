"""Where draws of group effects are written: Zarr, by the workers, chunk by chunk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import xarray as xr

from ..cluster.tasks import call, compute
from ..result.names import variable_name

if TYPE_CHECKING:
    from dask.delayed import Delayed

_GROUP = "local"
_CHUNK = 2**24  # bytes of a chunk of one site, about


def check_store(store: str | None) -> None:
    """Refuse a store that exists, or that nothing can be written to, before anything runs.

    An empty folder is left behind.

    Raises
    ------
    FileExistsError
        Nothing is overwritten.
    OSError
        If it cannot be written to from here.
    ImportError
        Without Zarr.
    """
    if store is None:
        return
    try:
        import zarr  # noqa: F401
    except ImportError as error:
        raise ImportError("store= writes Zarr: install dask_consensus[store], or zarr") from error
    import fsspec

    system, path = fsspec.core.url_to_fs(store)
    if system.exists(path) and (not system.isdir(path) or system.ls(path)):
        raise FileExistsError(
            f"store {store!r} exists already, and nothing is overwritten: remove it, or give "
            "another"
        )
    probe = f"{path.rstrip('/')}/.probe"
    try:
        system.makedirs(path, exist_ok=True)
        system.pipe_file(probe, b"")
        system.rm_file(probe)
    except OSError as error:
        raise OSError(
            f"store {store!r} cannot be written to ({error}): give a folder or URL that this "
            "process and the workers can write to"
        ) from error


class DrawStore:
    """Arrays of draws, laid out at once and written block by block.

    Groups of a shard are neighbours there, but a chunk may hold those of several shards: who
    writes a chunk gets what each has of it, so that no two tasks write to one.
    """

    _BLOCK_BYTES = 2**28  # of draws that lie on the workers before they are written
    _CHUNK_GROUPS = 2**16  # at most

    def __init__(self, path: str) -> None:
        self._path = path
        self._names: dict[str, str] = {}
        self._chunk = 0
        self._n = 0

    def create(
        self,
        dims: Mapping[str, tuple[str, ...]],
        shapes: Mapping[str, tuple[int, ...]],
        coords: Mapping[str, Any],
    ) -> int:
        """Lay out the arrays, and say how many draws are to be written at a time."""
        import dask.array as da

        _, draws, self._n = next(iter(shapes.values()))[:3]
        numbers = [int(np.prod(shape[3:], dtype=int)) for shape in shapes.values()]
        block = int(np.clip(self._BLOCK_BYTES // (4 * self._n * sum(numbers)), 1, draws))
        self._chunk = int(
            np.clip(_CHUNK // (4 * block * max(numbers)), 1, min(self._CHUNK_GROUPS, self._n))
        )
        variables = {}
        for name, shape in shapes.items():
            self._names[name] = variable_name(name)
            chunks = (1, block, self._chunk, *shape[3:])
            variables[self._names[name]] = (
                dims[name],
                da.zeros(shape, dtype=np.float32, chunks=chunks),
            )
        template = xr.Dataset(variables, dict(coords))
        template.to_zarr(self._path, group=_GROUP, mode="w-", compute=False, consolidated=False)
        return block

    def write(
        self, states: Sequence[Delayed], starts: np.ndarray, chain: int, draws: slice
    ) -> None:
        """Write what the shards hold of some draws; shard k begins at group ``starts[k]``."""
        tasks = []
        for first in range(0, self._n, self._chunk):
            last = min(first + self._chunk, self._n)
            low, high = np.searchsorted(starts, [first, last - 1], side="right") - 1
            pieces = [
                (max(first - starts[k], 0), min(last, starts[k + 1]) - starts[k])
                for k in range(low, high + 1)
            ]
            where = (chain, draws, slice(first, last))
            tasks.append(
                call(_write, self._path, self._names, where, pieces, list(states[low : high + 1]))
            )
        compute(tasks)

    def opened(self) -> xr.Dataset:
        """Read the arrays, when they are used."""
        return xr.open_zarr(self._path, group=_GROUP, consolidated=False)


def _write(
    path: str,
    names: Mapping[str, str],
    where: tuple[int, slice, slice],
    pieces: Sequence[tuple[int, int]],
    states: Sequence[Mapping[str, np.ndarray]],
) -> None:
    """Write one chunk of every site; runs on a worker."""
    import zarr

    chain, draws, groups = where
    arrays = zarr.open_group(path, path=_GROUP, mode="r+")
    for name, stored in names.items():
        parts = [
            state[name][:, low:high] for state, (low, high) in zip(states, pieces, strict=True)
        ]
        array = cast(zarr.Array, arrays[stored])
        array[chain : chain + 1, draws, groups] = np.concatenate(parts, axis=1)[None]
