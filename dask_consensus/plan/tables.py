"""Small tables of text, for terminals and notebooks."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd

from .page import section

_RIGHT = ' class="dc-number"'
_NUMBER = re.compile(r"(about )?-?\d|none$|-$|$")


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
            frame[name] = column.str.pad(width, side="left" if self._numbers(name) else "right")
        aligned = ["  ".join(row).rstrip() for row in frame.itertuples(index=False)]
        return "\n".join([self.title, *(indent + line for line in aligned)])

    def html(self, *, unfolded: bool = True) -> str:
        """Mark the table up for a notebook, as a section of a :func:`.page.page`."""
        numbers = [self._numbers(i) for i in range(len(self.rows[0]) if self.rows else 0)]

        def line(cells: Sequence[str], tag: str) -> str:
            marked = (
                f"<{tag}{_RIGHT if number else ''}>{html.escape(cell)}</{tag}>"
                for cell, number in zip(cells, numbers, strict=True)
            )
            return f"<tr>{''.join(marked)}</tr>"

        head = f"<thead>{line(self.header, 'th')}</thead>" if self.header and self.rows else ""
        body = "".join(line(row, "td") for row in self.rows)
        table = f'<table class="dc-table">{head}<tbody>{body}</tbody></table>'
        return section(self.title, table, unfolded=unfolded)

    def _numbers(self, column: int) -> bool:
        """Tell whether a column holds numbers alone."""
        return all(_NUMBER.match(row[column]) for row in self.rows)
