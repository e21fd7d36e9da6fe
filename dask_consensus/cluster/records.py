"""How a value is written as one file that anybody can read, and read without being trusted.

A record is a Parquet file: one row for each array, with its path in the value, its dtype, shape and
bytes; how these make up the value, with all that is no array, is JSON in the metadata. Nothing is
pickled. What reading makes are numbers, texts, containers, arrays, and named tuples of this
package that are imported already.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

_PACKAGE = __name__.partition(".")[0]
_PLAIN = "biufcMmSU"  # kinds of dtypes whose bytes say all
_TOLD = b"dask_consensus"  # key of the metadata


class UnrecordableError(TypeError):
    """A value holds what no record can hold."""


class UnreadableError(ValueError):
    """A file is no record, or not that of this name."""


def encoded(name: str, value: Any) -> bytes:
    """Write a value under a name, which the record bears as well.

    Raises
    ------
    UnrecordableError
        If it holds anything but numbers, texts, arrays, containers, and named tuples of this
        package.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    parts = _Parts()
    told = {"name": name, "value": parts.told(value, "value")}
    schema = pa.schema(
        {
            "path": pa.string(),
            "dtype": pa.string(),
            "shape": pa.list_(pa.int64()),
            "order": pa.string(),
            "bytes": pa.large_binary(),
        },
        metadata={_TOLD: json.dumps(told, allow_nan=False).encode()},
    )
    columns = zip(*parts.arrays, strict=True) if parts.arrays else ([],) * len(schema)
    table = pa.table([list(column) for column in columns], schema=schema)
    with io.BytesIO() as file:
        pq.write_table(
            table, file, compression="zstd", use_dictionary=False, write_statistics=False
        )
        return file.getvalue()


def decoded(name: str, content: bytes) -> Any:
    """Read the value that was written under a name.

    Raises
    ------
    UnreadableError
        If the content is not that of such a record.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(pa.BufferReader(content))
        told = json.loads(table.schema.metadata[_TOLD])
        if told["name"] != name:
            raise UnreadableError(f"it is the record of {told['name']!r}")
        rows = table.to_pylist()
        return _made(told["value"], [_array(row) for row in rows])
    except (pa.ArrowException, ValueError, TypeError, KeyError, IndexError, OSError) as error:
        raise UnreadableError(str(error)) from error


def digest(value: Any, foreign: Callable[[Any], Any]) -> str:
    """Return the SHA-256 of a value; `foreign` turns what no record can hold into what it can.

    Raises
    ------
    UnrecordableError
        If it cannot.
    """
    parts = _Parts(foreign)
    told = parts.told(value, "")
    sha = hashlib.sha256(json.dumps(told).encode())
    for _, dtype, shape, _, content in parts.arrays:
        sha.update(f"{dtype}{shape}".encode())
        sha.update(content)
    return sha.hexdigest()


def _refuse(value: Any) -> Any:
    raise UnrecordableError(f"a record cannot hold {type(value).__qualname__}")


class _Parts:
    """Takes a value apart: arrays, and JSON that refers to them by number."""

    def __init__(self, foreign: Callable[[Any], Any] = _refuse) -> None:
        self.arrays: list[tuple[str, str, list[int], str, bytes]] = []
        self._foreign = foreign

    def told(self, value: Any, path: str) -> Any:
        """Say in terms of JSON what a value is."""
        if value is None or isinstance(value, bool | str) or type(value) is int:
            return value
        if type(value) is float:
            return value if math.isfinite(value) else {"float": str(value)}
        if isinstance(value, np.ndarray):
            return {"array": self._put(value, path)}
        if isinstance(value, np.generic):
            return {"scalar": self._put(np.asarray(value), path)}
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            kind = f"{type(value).__module__}:{type(value).__qualname__}"
            fields = {
                name: self.told(part, f"{path}.{name}")
                for name, part in zip(value._fields, value, strict=True)
            }
            return {"named": kind, "fields": fields}
        if type(value) in (list, tuple):
            parts = [self.told(part, f"{path}[{i}]") for i, part in enumerate(value)]
            return {type(value).__name__: parts}
        if type(value) is dict:
            pairs = [
                [self.told(key, path), self.told(part, f"{path}[{key!r}]")]
                for key, part in value.items()
            ]
            return {"dict": pairs}
        if type(value) in (set, frozenset):
            told = [self.told(part, path) for part in value]
            return {type(value).__name__: sorted(told, key=json.dumps)}
        if type(value) is bytes:
            return {"bytes": value.hex()}
        if type(value).__module__.partition(".")[0] in ("jax", "jaxlib"):
            return self.told(np.asarray(value), path)
        return self.told(self._foreign(value), path)

    def _put(self, array: np.ndarray, path: str) -> int:
        dtype, order, shape = array.dtype.str, "C", list(array.shape)
        if array.dtype.kind == "O":
            dtype, content = "json", _texts(array)
        elif array.dtype.kind in _PLAIN:
            # The order of the last bits of a product depends on that in memory.
            if array.flags.f_contiguous and not array.flags.c_contiguous:
                order = "F"
            content = array.tobytes(order)  # type: ignore[arg-type]
        else:
            raise UnrecordableError(f"a record cannot hold an array of {array.dtype}")
        self.arrays.append((path, dtype, shape, order, content))
        return len(self.arrays) - 1


def _texts(array: np.ndarray) -> bytes:
    """Write an array of objects, texts most likely, as JSON."""
    values = array.ravel().tolist()
    for value in values:
        if value is not None and type(value) not in (str, int, bool):
            raise UnrecordableError(f"a record cannot hold an array of {type(value).__qualname__}")
    return json.dumps(values).encode()


def _array(row: dict[str, Any]) -> np.ndarray:
    shape, content = tuple(row["shape"]), row["bytes"]
    if row["dtype"] == "json":
        values = json.loads(content)
        array = np.empty(len(values), object)
        array[:] = values
        return array.reshape(shape)
    dtype = np.dtype(row["dtype"])
    if dtype.kind not in _PLAIN:
        raise UnreadableError(f"arrays of {dtype} are not read")
    # A copy lies where arrays lie, and may be written to.
    return np.frombuffer(content, dtype).reshape(shape, order=row["order"]).copy(row["order"])


def _made(told: Any, arrays: list[np.ndarray]) -> Any:
    """Put a value together again."""
    if not isinstance(told, dict):
        return told
    kind, *_ = told
    parts = told[kind]
    if kind == "array":
        return arrays[parts]
    if kind == "scalar":
        return arrays[parts][()]
    if kind == "float":
        return float(parts)
    if kind == "bytes":
        return bytes.fromhex(parts)
    if kind == "dict":
        return {_made(key, arrays): _made(part, arrays) for key, part in parts}
    if kind == "named":
        fields = {name: _made(part, arrays) for name, part in told["fields"].items()}
        return _named_tuple(parts)(**fields)
    containers: dict[str, Any] = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}
    return containers[kind](_made(part, arrays) for part in parts)


def _named_tuple(kind: str) -> Any:
    """Find a class of this package by its name, among what is imported: nothing is run."""
    module, _, name = kind.partition(":")
    if module.partition(".")[0] == _PACKAGE:
        found = vars(sys.modules[module]).get(name) if module in sys.modules else None
        if isinstance(found, type) and issubclass(found, tuple) and hasattr(found, "_fields"):
            return found
    raise UnreadableError(f"{kind!r} is no named tuple of {_PACKAGE}")
