"""What an update will do, before anything runs, and how that reads."""

from __future__ import annotations

import html
import textwrap
from dataclasses import dataclass

from .plan import Plan
from .show import notes_of, tables_of
from .tables import Table


@dataclass(frozen=True, repr=False)
class PlannedUpdate:
    """What will be added to an earlier fit.

    Attributes
    ----------
    new : Plan
        Of the new rows; what it says of methods is of a fit of these alone.
    rows_before : int
        Of the earlier fit, updates included.
    number : int
        Of the update.
    together : str
        Why all rows are fitted together; empty if the new ones are added.
    """

    new: Plan
    rows_before: int
    number: int
    together: str = ""

    def __repr__(self) -> str:
        parts = [table.text() for table in self._tables()]
        parts += [textwrap.fill(f"note: {n}", 96, subsequent_indent="  ") for n in self._notes()]
        return "\n\n".join(parts)

    def _repr_html_(self) -> str:
        parts = [table.html() for table in self._tables()]
        parts += [f"<p><em>note:</em> {html.escape(note)}</p>" for note in self._notes()]
        return f"<div>{''.join(parts)}</div>"

    def _tables(self) -> list[Table]:
        plan = self.new
        if self.together:
            told = f"the {self.rows_before:,} rows of the earlier fit, in a new one"
            new = ["new rows", f"{plan.survey.rows:,}"]
            return [Table("update", (), [new, ["fitted with", told]]), tables_of(plan)[1]]
        rows = [
            ["new rows", f"{plan.survey.rows:,}"],
            ["added to", f"a fit of {self.rows_before:,} rows, as update {self.number}"],
            ["shards", f"{plan.n_shards:,}, of new rows alone"],
            ["prior", "in the earlier posterior, and not added again"],
        ]
        if plan.bindings.layout.by:
            rows.insert(1, ["groups", f"{plan.survey.n_groups:,}"])
        return [Table("update", (), rows), tables_of(plan)[1]]

    def _notes(self) -> list[str]:
        """Say what must be known; which options have an effect is another thing in a fit."""
        if self.together:
            return [f"all rows are fitted together, since {self.together}: it costs a whole fit"]
        idle = ("method", "rounds", "weights")
        given = [name for name in idle if name in self.new.options.given]
        notes = [f"{name} has no effect: rows are added to what a fit has found" for name in given]
        return notes + [note for note in notes_of(self.new) if " has no effect" not in note]
