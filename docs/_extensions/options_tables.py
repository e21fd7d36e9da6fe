"""The directive ``options-tables``: every key of the configuration, read from its file."""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING, Any

from options import markdown, sections
from sphinx.util.docutils import SphinxDirective

if TYPE_CHECKING:
    from docutils.nodes import Node
    from sphinx.application import Sphinx

FILE = "consensus.yaml"


class OptionsTables(SphinxDirective):
    """Tables of all keys."""

    def run(self) -> list[Node]:
        """Parse the tables as the page's own Markdown."""
        source = resources.files("dask_consensus").joinpath(FILE)
        self.env.note_dependency(str(source))
        return self.parse_text_to_nodes("".join(markdown(sections(source.read_text()))))


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive."""
    app.add_directive("options-tables", OptionsTables)
    return {"version": "1", "parallel_read_safe": True}
