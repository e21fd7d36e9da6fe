"""What a variable or dimension of the result is called."""

from __future__ import annotations

from collections.abc import Hashable, Sequence


def variable_name(site: str) -> str:
    """Name a variable or dimension after a site or plate; a slash would be a path in the tree."""
    name = site.replace("/", ".")
    return f"{name}_" if name in ("chain", "draw") else name


def named_columns(names: Sequence[Hashable]) -> str:
    """Name columns in an error: ``a column 'x'``, ``columns 'x' and 'y'``."""
    *first, last = [repr(name) for name in names]
    return f"columns {', '.join(first)} and {last}" if first else f"a column {last}"
