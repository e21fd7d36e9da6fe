"""What a variable or dimension of the result is called."""

from __future__ import annotations


def variable_name(site: str) -> str:
    """Name a variable or dimension after a site or plate; a slash would be a path in the tree."""
    name = site.replace("/", ".")
    return f"{name}_" if name in ("chain", "draw") else name
