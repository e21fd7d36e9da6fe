"""A summary of more groups than a client is to hold: workers write it to Zarr, chunk by chunk.

The client holds the keys of the groups, which label it, and nothing else of them. Shards are asked
some at a time, so that what lies on the workers, too, is bounded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import xarray as xr

from ..cluster.journal import recalled
from ..cluster.mapreduce import Answer, each, map_reduce
from ..cluster.shards import Shards
from ..cluster.tasks import broadcast, call, compute
from ..model.model import ShardModel
from ..shard.summaries import STATISTICS
from ..shard_data import ShardData
from .few_draws import representative
from .levels import Level, entry_coords
from .store import GROUP, lay_out, writing
from .summary import (
    Quality,
    Report,
    Variable,
    checked,
    quality_of,
    report_of,
    summarize,
    variables_of,
)

if TYPE_CHECKING:
    from dask.delayed import Delayed

    from ..plan.plan import Plan

_CHUNK = 2**15  # groups
_BLOCK = 2**28  # bytes that lie on the workers before they are written


class _Chunk(NamedTuple):
    """Neighbouring groups of a level, in the order of shards."""

    level: int  # its place among those that are returned
    first: int
    last: int  # one beyond


def written_summary(
    plan: Plan,
    shards: Shards,
    draws: np.ndarray,
    levels: tuple[Level, ...],
    shared: tuple[Any, ...],
) -> dict[str, xr.Dataset]:
    """Have workers write what :func:`.summary.summary` brings to the client, and open it.

    Groups are in the order of shards, and numbers in single precision.
    """
    store = plan.options.store
    assert store is not None
    few = representative(draws, plan.local_draws)
    given = [broadcast((*shared, few))]
    (told,) = map_reduce(
        each(summarize), shards.some([0]), [()], given, _nothing, title="group effects, a shard"
    ).reports
    variables = variables_of(plan, levels, told)
    given.append(broadcast(variables))
    totals = [its.groups.n for its in levels]
    with writing("summaries", store):
        _lay_out(plan, levels, variables, told, store)
        starts = [
            np.cumsum([0, *(size.groups[its.level] for size in shards.sizes)]) for its in levels
        ]
        of_group = sum(4 * its.of(told).size // len(told.of_levels[its.level].rows) + 4
                       for its in variables)  # fmt: skip
        qualities: dict[int, list[Quality]] = {}
        for block, chunks in _blocks(starts, totals, of_group):
            title = f"group effects, {starts[0][block[-1] + 1]:,} of {totals[0]:,} groups"
            some = shards.some(block)
            write = partial(_write, some, block, given, title, starts, chunks, variables, store)
            found: _Written = recalled(
                title,
                ["summaries written", list(some.data), given, list(map(list, chunks))],
                write,
                partial(_holds, store, chunks, variables),
            )
            qualities |= dict(zip(block, found.qualities, strict=True))
    attributes = checked(plan, levels, list(qualities.values()), len(few))
    nodes = dict.fromkeys(its.node for its in variables)
    opened = {
        _path(node): xr.open_zarr(store, group=_path(node), consolidated=False) for node in nodes
    }
    return opened | {GROUP: opened[GROUP].assign_attrs(attributes)}


def _path(node: str) -> str:
    return f"{GROUP}/{node}" if node else GROUP


def _lay_out(
    plan: Plan,
    levels: Sequence[Level],
    variables: Sequence[Variable],
    told: Report,
    store: str,
) -> None:
    """Lay out arrays for all groups."""
    import dask.array as da

    coords: dict[str, Any] = {"statistic": list(STATISTICS), **entry_coords(plan, levels)}
    for its in levels:
        coords |= its.groups.coords(np.arange(its.groups.n))
    nodes: dict[str, dict[str, Any]] = {}
    for variable in variables:
        shape = list(variable.of(told).shape)
        shape[variable.axis] = levels[variable.level].groups.n
        chunks = list(shape)
        chunks[variable.axis] = min(_CHUNK, shape[variable.axis])
        zeros = da.zeros(shape, dtype=_dtype(variable), chunks=chunks)
        text = {"long_name": variable.long_name} if variable.long_name else {}
        nodes.setdefault(variable.node, {})[variable.name] = (variable.dims, zeros, text)
    templates = {
        _path(node): xr.Dataset(its, {} if node else coords) for node, its in nodes.items()
    }
    lay_out(store, templates, {_path(node): list(its) for node, its in nodes.items()})


def _dtype(variable: Variable) -> Any:
    return np.int64 if variable.part == "rows" else np.float32


def _blocks(
    starts: Sequence[np.ndarray], totals: Sequence[int], of_group: int
) -> list[tuple[list[int], list[_Chunk]]]:
    """Say which shards are asked together, and which chunks are written of what they say.

    A shard that lies in chunks of two blocks is asked in both.
    """
    n_shards = len(starts[0]) - 1
    groups = np.sum([np.diff(its) for its in starts], axis=0)
    written = [0] * len(starts)
    blocks: list[tuple[list[int], list[_Chunk]]] = []
    size = 0
    for k in range(n_shards):
        size += int(groups[k]) * of_group
        whole = k == n_shards - 1
        if size < _BLOCK and not whole:
            continue
        chunks = []
        first_shard = k
        for level, (begin, total) in enumerate(zip(starts, totals, strict=True)):
            upto = int(begin[k + 1])
            for first in range(written[level], upto if whole else upto - _CHUNK + 1, _CHUNK):
                last = min(first + _CHUNK, total)
                chunks.append(_Chunk(level, first, last))
                at = int(np.searchsorted(begin, first, side="right")) - 1
                first_shard, written[level] = min(first_shard, at), last
        if chunks:
            blocks.append((list(range(first_shard, k + 1)), chunks))
            size = 0
    return blocks


class _Written(NamedTuple):
    """What is known of what was written."""

    qualities: list[list[Quality]]  # of each shard at each level
    checksums: list[str]  # of the chunks


def _write(
    some: Shards,
    block: Sequence[int],
    given: Sequence[Delayed],
    title: str,
    starts: Sequence[np.ndarray],
    chunks: Sequence[_Chunk],
    variables: Sequence[Variable],
    store: str,
) -> _Written:
    """Ask the shards of a block, and write its chunks."""
    mapped = map_reduce(
        each(_summarized_and_kept),
        some,
        [()] * some.n,
        given,
        _nothing,
        title=title,
        keep_states=True,
        recorded=False,
    )
    tasks = []
    for chunk in chunks:
        begin = starts[chunk.level]
        low, high = np.searchsorted(begin, [chunk.first, chunk.last - 1], side="right") - 1
        pieces = [
            (max(chunk.first - at, 0), min(chunk.last, upto) - at)
            for at, upto in pairwise(map(int, begin[low : high + 2]))
        ]
        held = list(mapped.states[low - block[0] : high + 1 - block[0]])
        its = [one for one in variables if one.level == chunk.level]
        tasks.append(call(_write_chunk, store, its, chunk, pieces, held))
    return _Written(mapped.reports, compute(tasks))


def _holds(
    store: str, chunks: Sequence[_Chunk], variables: Sequence[Variable], written: _Written
) -> bool:
    """Tell whether what was written is there still."""
    there = [
        call(_checksum, store, [one for one in variables if one.level == its.level], its)
        for its in chunks
    ]
    return bool(compute(there) == written.checksums)


_Shared = tuple[ShardModel, np.ndarray, int, np.ndarray]


def _summarized_and_kept(data: ShardData, shared: _Shared, variables: Sequence[Variable]) -> Answer:
    """Summarize the effects of one shard's groups, and leave that where it is; on a worker."""
    report = report_of(data, shared)
    told = {(its.node, its.name): its.of(report).astype(_dtype(its)) for its in variables}
    return Answer(None, [quality_of(its) for its in report.of_levels], told)


def _write_chunk(
    store: str,
    variables: Sequence[Variable],
    chunk: _Chunk,
    pieces: Sequence[tuple[int, int]],
    held: Sequence[Mapping[tuple[str, str], np.ndarray]],
) -> str:
    """Write the groups of a chunk, and return a checksum; runs on a worker."""
    import zarr

    root = zarr.open_group(store, path=GROUP, mode="r+")
    sha = hashlib.sha256()
    for its in variables:
        parts = [
            told[its.node, its.name][(*[slice(None)] * its.axis, slice(low, high))]
            for told, (low, high) in zip(held, pieces, strict=True)
        ]
        values = np.ascontiguousarray(np.concatenate(parts, axis=its.axis))
        array: Any = root[f"{its.node}/{its.name}" if its.node else its.name]
        array[_at(its, chunk)] = values
        sha.update(values.tobytes())
    return sha.hexdigest()


def _checksum(store: str, variables: Sequence[Variable], chunk: _Chunk) -> str:
    """Return the checksum of a chunk, empty if it cannot be read; runs on a worker."""
    import zarr

    sha = hashlib.sha256()
    try:
        root = zarr.open_group(store, path=GROUP, mode="r")
        for its in variables:
            array: Any = root[f"{its.node}/{its.name}" if its.node else its.name]
            sha.update(np.ascontiguousarray(array[_at(its, chunk)]).tobytes())
    except Exception:  # whatever a damaged chunk is to its codecs
        return ""
    return sha.hexdigest()


def _at(variable: Variable, chunk: _Chunk) -> tuple[slice, ...]:
    return (*[slice(None)] * variable.axis, slice(chunk.first, chunk.last))


def _nothing(_: list[None]) -> None:
    return None
