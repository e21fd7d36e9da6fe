"""Where draws of group effects are written: Zarr, by the workers, chunk by chunk."""

from __future__ import annotations

import contextlib
import hashlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import fsspec
import numpy as np
import xarray as xr

from ..cluster.tasks import call, compute
from ..result.names import variable_name

if TYPE_CHECKING:
    from dask.delayed import Delayed

GROUP = "local"
_CHUNK = 2**24  # bytes of a chunk of one site, about


class _Part(NamedTuple):
    """The arrays of the groups of one level."""

    n: int  # groups
    chunk: int  # of them in a chunk
    names: dict[str, str]  # site -> array


class _Chunk(NamedTuple):
    """One chunk of every site of a level."""

    dim: str
    names: dict[str, str]  # site -> array
    where: tuple[int, slice, slice]  # chain, draws, groups


class DrawStore:
    """Arrays of draws, laid out at once and written block by block.

    Groups of a shard are neighbours there, but a chunk may hold those of several shards: who
    writes a chunk gets what each has of it, so that no two tasks write to one.
    """

    _BLOCK_BYTES = 2**28  # of draws that lie on the workers before they are written
    _CHUNK_GROUPS = 2**16  # at most

    def __init__(self, url: str) -> None:
        self._path = url
        self._parts: dict[str, _Part] = {}

    def create(
        self,
        dims: Mapping[str, tuple[str, ...]],
        shapes: Mapping[str, tuple[int, ...]],
        coords: Mapping[str, Any],
    ) -> int:
        """Lay out the arrays, unless they are, and say how many draws are written at a time."""
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
        lay_out(self._path, {GROUP: xr.Dataset(variables, dict(coords))}, {GROUP: list(variables)})
        return block

    def write(
        self,
        states: Sequence[Delayed],
        starts: Mapping[str, np.ndarray],
        chain: int,
        draws: slice,
    ) -> list[str]:
        """Write what the shards hold of some draws; shard k begins at group ``starts[dim][k]``.

        Returns
        -------
        list of str
            Checksums, by which :meth:`holds` knows again what was written.
        """
        tasks = []
        for dim, names, where in self._chunks(chain, draws):
            begin, first, last = starts[dim], where[2].start, where[2].stop
            low, high = np.searchsorted(begin, [first, last - 1], side="right") - 1
            pieces = [
                (max(first - begin[k], 0), min(last, begin[k + 1]) - begin[k])
                for k in range(low, high + 1)
            ]
            held = list(states[low : high + 1])
            tasks.append(call(_write, self._path, names, where, pieces, held))
        return compute(tasks)

    def holds(self, chain: int, draws: slice, checksums: Sequence[str]) -> bool:
        """Tell whether what was written is there still; a warning names what is not."""
        chunks = self._chunks(chain, draws)
        there = compute([call(_checksum, self._path, its.names, its.where) for its in chunks])
        damaged = [
            its for its, now, then in zip(chunks, there, checksums, strict=True) if now != then
        ]
        if damaged:
            groups = damaged[0].where[2]
            warnings.warn(
                f"{GROUP} of store {self._path!r} is damaged (draws {draws.start} to "
                f"{draws.stop - 1} of chain {chain}, groups {groups.start} to "
                f"{groups.stop - 1} of {damaged[0].dim!r}): they are computed again",
                UserWarning,
                stacklevel=2,
            )
        return not damaged

    def _chunks(self, chain: int, draws: slice) -> list[_Chunk]:
        """Say where the chunks of some draws of all groups lie."""
        return [
            _Chunk(dim, names, (chain, draws, slice(first, min(first + chunk, n))))
            for dim, (n, chunk, names) in self._parts.items()
            for first in range(0, n, chunk)
        ]

    def opened(self) -> xr.Dataset:
        """Read the arrays, when they are used."""
        return xr.open_zarr(self._path, group=GROUP, consolidated=False)


def lay_out(
    url: str, templates: Mapping[str, xr.Dataset], written: Mapping[str, Sequence[str]]
) -> None:
    """Lay out groups of arrays, unless all are there, and as they should be.

    Of each group, the outermost first, there is a template, and the names of the arrays that will
    be `written` later.
    """
    if all(_is_laid_out(url, group, its, written[group]) for group, its in templates.items()):
        return
    system, root = fsspec.core.url_to_fs(url)
    with contextlib.suppress(FileNotFoundError):
        system.rm(f"{root.rstrip('/')}/{GROUP}", recursive=True)
    for group, template in templates.items():
        template.to_zarr(url, group=group, mode="w-", compute=False, consolidated=False)


def _is_laid_out(url: str, group: str, template: xr.Dataset, written: Sequence[str]) -> bool:
    try:
        there = xr.open_zarr(url, group=group, consolidated=False)
        same = there.drop_vars(written).identical(template.drop_vars(written))
        return same and all(
            there[name].dims == template[name].dims
            and there[name].dtype == template[name].dtype
            and there[name].shape == template[name].shape
            and there[name].chunks == template[name].chunks
            for name in written
        )
    except Exception:  # whatever comes of damaged metadata
        return False


@contextlib.contextmanager
def writing(what: str, url: str) -> Iterator[None]:
    """Within, an error of a disk or a network says what was written where."""
    try:
        yield
    except OSError as error:
        error.add_note(
            f"While {what} of effects were written to {url}. Nothing else is lost: "
            "called again with the same store=, the fit goes on from there."
        )
        raise


def _write(
    path: str,
    names: Mapping[str, str],
    where: tuple[int, slice, slice],
    pieces: Sequence[tuple[int, int]],
    states: Sequence[Mapping[str, np.ndarray]],
) -> str:
    """Write one chunk of every site, and return its checksum; runs on a worker."""
    import zarr

    chain, draws, groups = where
    arrays = zarr.open_group(path, path=GROUP, mode="r+")
    sha = hashlib.sha256()
    for name, stored in names.items():
        parts = [
            state[name][:, low:high] for state, (low, high) in zip(states, pieces, strict=True)
        ]
        array = cast(zarr.Array, arrays[stored])
        values = np.concatenate(parts, axis=1)[None]
        array[chain : chain + 1, draws, groups] = values
        sha.update(values.tobytes())
    return sha.hexdigest()


def _checksum(path: str, names: Mapping[str, str], where: tuple[int, slice, slice]) -> str:
    """Return the checksum of one chunk of every site, empty if it cannot be read; on a worker."""
    import zarr

    chain, draws, groups = where
    sha = hashlib.sha256()
    try:
        arrays = zarr.open_group(path, path=GROUP, mode="r")
        for stored in names.values():
            array = cast(zarr.Array, arrays[stored])
            values = np.asarray(array[chain : chain + 1, draws, groups])
            sha.update(values.tobytes())
    except Exception:  # whatever a damaged chunk is to its codecs
        return ""
    return sha.hexdigest()
