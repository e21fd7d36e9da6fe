"""Where draws of group effects are written: Zarr, by the workers, chunk by chunk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

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


class _Part(NamedTuple):
    """The arrays of the groups of one level."""

    n: int  # groups
    chunk: int  # of them in a chunk
    names: dict[str, str]  # site -> array


class DrawStore:
    """Arrays of draws, laid out at once and written block by block.

    Groups of a shard are neighbours there, but a chunk may hold those of several shards: who
    writes a chunk gets what each has of it, so that no two tasks write to one.
    """

    _BLOCK_BYTES = 2**28  # of draws that lie on the workers before they are written
    _CHUNK_GROUPS = 2**16  # at most

    def __init__(self, path: str) -> None:
        self._path = path
        self._parts: dict[str, _Part] = {}

    def create(
        self,
        dims: Mapping[str, tuple[str, ...]],
        shapes: Mapping[str, tuple[int, ...]],
        coords: Mapping[str, Any],
    ) -> int:
        """Lay out the arrays, and say how many draws are to be written at a time."""
        import dask.array as da

        draws = next(iter(shapes.values()))[1]
        numbers = {name: int(np.prod(shape[3:], dtype=int)) for name, shape in shapes.items()}
        of_draw = sum(shapes[name][2] * number for name, number in numbers.items())
        block = int(np.clip(self._BLOCK_BYTES // (4 * of_draw), 1, draws))
        variables = {}
        for dim in dict.fromkeys(its[2] for its in dims.values()):
            names = {name: variable_name(name) for name, its in dims.items() if its[2] == dim}
            n, most = shapes[next(iter(names))][2], max(numbers[name] for name in names)
            chunk = int(np.clip(_CHUNK // (4 * block * most), 1, min(self._CHUNK_GROUPS, n)))
            self._parts[dim] = _Part(n, chunk, names)
            for name, stored in names.items():
                chunks = (1, block, chunk, *shapes[name][3:])
                zeros = da.zeros(shapes[name], dtype=np.float32, chunks=chunks)
                variables[stored] = (dims[name], zeros)
        template = xr.Dataset(variables, dict(coords))
        template.to_zarr(self._path, group=_GROUP, mode="w-", compute=False, consolidated=False)
        return block

    def write(
        self,
        states: Sequence[Delayed],
        starts: Mapping[str, np.ndarray],
        chain: int,
        draws: slice,
    ) -> None:
        """Write what the shards hold of some draws; shard k begins at group ``starts[dim][k]``."""
        tasks = []
        for dim, (n, chunk, names) in self._parts.items():
            begin = starts[dim]
            for first in range(0, n, chunk):
                last = min(first + chunk, n)
                low, high = np.searchsorted(begin, [first, last - 1], side="right") - 1
                pieces = [
                    (max(first - begin[k], 0), min(last, begin[k + 1]) - begin[k])
                    for k in range(low, high + 1)
                ]
                where = (chain, draws, slice(first, last))
                held = list(states[low : high + 1])
                tasks.append(call(_write, self._path, names, where, pieces, held))
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
