"""Small tables of text, for terminals and notebooks."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from typing import NamedTuple

_NUMBER = re.compile(r"(about )?\d|none$|-$|$")


class Table(NamedTuple):
    """A titled table; a table without a header holds names and what they stand for.

    Attributes
    ----------
    title : str
    header : tuple of str
        Empty for none.
    rows : list of sequences of str
        All of the same length.
    """

    title: str
    header: tuple[str, ...]
    rows: Sequence[Sequence[str]]

    def _columns(self) -> list[tuple[list[str], bool]]:
        """Return the cells of each column, its header among them, and whether it holds numbers."""
        columns = zip(*self.rows, strict=True)
        numbers = [(column, all(map(_NUMBER.match, column))) for column in columns]
        heads = [[name] for name in self.header] or [[] for _ in numbers]
        return [
            (head + list(column), number)
            for head, (column, number) in zip(heads, numbers, strict=True)
        ]

    def text(self, indent: str = "  ") -> str:
        """Align the columns, text to the left and numbers to the right."""
        aligned = []
        for cells, number in self._columns():
            width = max(map(len, cells))
            aligned.append([cell.rjust(width) if number else cell.ljust(width) for cell in cells])
        lines = ["  ".join(row).rstrip() for row in zip(*aligned, strict=True)]
        return "\n".join([self.title, *(indent + line for line in lines)])

    def html(self) -> str:
        """Mark the table up for a notebook."""
        columns = self._columns()
        styles = ["right" if number else "left" for _, number in columns]
        rows = []
        for number, row in enumerate(zip(*(cells for cells, _ in columns), strict=True)):
            tag = "th" if self.header and number == 0 else "td"
            cells = zip(row, styles, strict=True)
            rows.append(
                "<tr>"
                + "".join(
                    f'<{tag} style="text-align: {style}">{html.escape(cell)}</{tag}>'
                    for cell, style in cells
                )
                + "</tr>"
            )
        return f"<h4>{html.escape(self.title)}</h4><table>{''.join(rows)}</table>"
