"""Files behind a frame that cannot be read, named where reading it failed.

The errors of pyarrow and pandas say what is wrong with a file, and of a thousand files do not say
which one it is.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import dask.dataframe as dd
import fsspec
import pyarrow.parquet as pq

_FILES = 2_000  # whose footers are read at most
_BYTES = 2**30  # of all of them, up to which they are read whole where no footer tells
_NAMED = 3
_AT_ONCE = 8


@contextlib.contextmanager
def files_named(frame: dd.DataFrame) -> Iterator[None]:
    """Within, an error of reading Parquet files gets a note that names those at fault."""
    try:
        yield
    except Exception as error:
        if not (_of_reading(error) and not getattr(error, "__notes__", ())):
            raise
        with contextlib.suppress(Exception):  # what failed once may well fail again
            found = _at_fault(frame)
            if found:
                error.add_note(found)
        raise


def _of_reading(error: Exception) -> bool:
    """Tell errors of files, and of columns that one lacks, from those of models and clusters."""
    if isinstance(error, KeyError):
        return "not in index" in str(error)
    of_files = isinstance(error, OSError) and not isinstance(error, TimeoutError | ConnectionError)
    return of_files or type(error).__module__.startswith("pyarrow")


def _at_fault(frame: dd.DataFrame) -> str:
    """Name files that cannot be read, or that lack columns; empty if none is found."""
    problems = []
    for read in _readings(frame):
        system, paths = _files(read)
        look = partial(_problem, system, list(map(str, read.columns)))
        found = _looked_at(partial(look, whole=False), paths[:_FILES])
        if not found and sum(map(system.size, paths[:_FILES])) < _BYTES:
            found = _looked_at(partial(look, whole=True), paths[:_FILES])
        problems += found
    named = "; ".join(problems[:_NAMED])
    more = f"; and {len(problems) - _NAMED:,} more" if len(problems) > _NAMED else ""
    return f"Of the files that the frame is read from, these are at fault: {named}{more}" * bool(
        named
    )


def _looked_at(look: Callable[[str], str], paths: list[str]) -> list[str]:
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        return [
            f"{path}: {why}"
            for path, why in zip(paths, threads.map(look, paths), strict=True)
            if why
        ]


def _readings(frame: dd.DataFrame) -> list[Any]:
    """Take the parts of a frame's expression that read Parquet."""
    from dask.dataframe.dask_expr.io.parquet import ReadParquet

    return list(frame.expr.find_operations(ReadParquet))


def _files(read: Any) -> tuple[Any, list[str]]:
    """List the files of a reading, and the file system they are in."""
    given = read.operand("path")
    options = read.operand("storage_options") or {}
    system, paths = None, []
    for one in [given] if isinstance(given, str) else list(given):
        system, path = fsspec.core.url_to_fs(str(one), **options)
        inside = system.isdir(path)
        found = system.find(path) if inside else system.glob(path) if "*" in path else [path]
        paths += [name for name in found if not inside or name.endswith((".parquet", ".parq"))]
    return system, paths


def _problem(system: Any, wanted: list[str], path: str, *, whole: bool) -> str:
    """Say what is wrong with a file, by its footer or by what is wanted of it; empty if nothing."""
    try:
        with system.open(path) as file:
            content = pq.ParquetFile(file)
            missing = [name for name in wanted if name not in content.schema_arrow.names]
            if whole and not missing:
                content.read(columns=wanted)
    except Exception as error:
        return next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")
    shown = ", ".join(map(repr, itertools.islice(missing, _NAMED)))
    return f"it has no column {shown}" if missing else ""
