"""What the scripts share: their options, and the file that holds their rows."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .machine import facts, in_own_process

RESULTS = Path(__file__).parents[1] / "results"
Row = dict[str, Any]


def parse(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None, toy: Mapping[str, Any]
) -> argparse.Namespace:
    """Add the options that all scripts have, and read the command line.

    ``--toy`` puts other defaults in place of the script's.
    """
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON file")
    parser.add_argument("--again", action="store_true", help="measure what is in the file, too")
    parser.add_argument("--table", action="store_true", help="only print what is in the file")
    parser.add_argument("--toy", action="store_true", help="a few rows, in this process: a test")
    args = parser.parse_args(argv)
    if args.toy:
        if args.results.resolve() == RESULTS:
            parser.error("--toy needs --results FOLDER, not to write over what was measured")
        parser.set_defaults(**toy)
        args = parser.parse_args(argv)
    return args


class Store:
    """Rows of a script in one JSON file, each with the machine and the commit it was measured on.

    A row is named by a key, some of its fields. What is in the file is not measured again, so that
    a run can be interrupted and resumed.
    """

    def __init__(self, args: argparse.Namespace, name: str) -> None:
        self.path = args.results / f"{name}.json"
        self._again, self._here = args.again, args.toy
        self._measured: list[Mapping[str, Any]] = []

    def rows(self) -> list[Row]:
        """Everything in the file."""
        return json.loads(self.path.read_text()) if self.path.exists() else []

    def get(self, key: Mapping[str, Any]) -> Row | None:
        """The row of this key; None where it is to be measured."""
        if self._again and key not in self._measured:
            return None
        return next((row for row in self.rows() if _same(row, key)), None)

    def put(self, key: Mapping[str, Any], row: Mapping[str, Any]) -> Row:
        """Write all rows and this one, in place of the one of its key; whole or not at all."""
        rows = [other for other in self.rows() if not _same(other, key)] + [{**key, **row}]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(".part")
        part.write_text("[\n" + ",\n".join(json.dumps(each) for each in rows) + "\n]\n")
        part.replace(self.path)
        self._measured.append(key)
        return rows[-1]

    def measure(self, key: Mapping[str, Any], function: Callable[..., Row], *arguments: Any) -> Row:
        """Return the row of this key, measured in a process of its own if it is not there."""
        row = self.get(key)
        if row is not None:
            return row
        machine = facts()
        row = function(*arguments) if self._here else in_own_process(function, *arguments)
        return self.put(key, {**row, "machine": machine})


def _same(row: Mapping[str, Any], key: Mapping[str, Any]) -> bool:
    return all(row.get(name) == value for name, value in key.items())
