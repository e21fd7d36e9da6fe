"""Small tables of text, for terminals and notebooks."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd

_NUMBER = re.compile(r"(about )?\d|none$|-$|$")


class Table(NamedTuple):
    """A titled table; with an empty header, it holds names and what they stand for."""

    title: str
    header: tuple[str, ...]
    rows: Sequence[Sequence[str]]

    def text(self, indent: str = "  ") -> str:
        """Align the columns, text to the left and numbers to the right."""
        lines = [self.header, *self.rows] if self.header else self.rows
        frame = pd.DataFrame(lines)
        for name, column in frame.items():
            width = column.str.len().max()
            number = pd.DataFrame(self.rows)[name].map(lambda cell: bool(_NUMBER.match(cell)))
            frame[name] = column.str.pad(width, side="left" if number.all() else "right")
        aligned = ["  ".join(row).rstrip() for row in frame.itertuples(index=False)]
        return "\n".join([self.title, *(indent + line for line in aligned)])

    def html(self) -> str:
        """Mark the table up for a notebook."""
        frame = pd.DataFrame(self.rows, columns=self.header or None)
        with pd.option_context("display.max_colwidth", None):
            table = frame.to_html(index=False, header=bool(self.header), border=0, justify="left")
        return f"<h4>{html.escape(self.title)}</h4>{table}"
