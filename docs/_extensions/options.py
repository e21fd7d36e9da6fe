"""Keys of the configuration as tables, from the lines of ``consensus.yaml`` and their comments."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

_LINE = re.compile(
    r"^(?P<indent> +)(?P<key>[a-z0-9-]+):(?: +(?P<value>[^#]*?))?(?: +# *(?P<says>.*))?$"
)


class Key(NamedTuple):
    """A key without its section, its default as written, and what the file says of it."""

    name: str
    default: str
    says: str


class Section(NamedTuple):
    """Keys under one heading; that of the first section is empty."""

    name: str
    says: str
    keys: list[Key]


def sections(text: str) -> list[Section]:
    """Read sections and keys of the file, with the comments beside them."""
    found = [Section("", "", [])]
    for line in text.splitlines():
        match = _LINE.match(line)
        if match is None:
            continue
        key, value, says = (match[name] or "" for name in ("key", "value", "says"))
        if not value:
            found.append(Section(key, says, []))
        else:
            section = found[-1] if len(match["indent"]) > 2 else found[0]
            section.keys.append(Key(key, value, says))
    return found


def markdown(found: list[Section]) -> Iterator[str]:
    """Write a table for each section."""
    for section in found:
        prefix = f"{section.name}." if section.name else ""
        title = f"`consensus.{section.name}`" if section.name else "`consensus`"
        yield f"**{title}**{': ' if section.says else ''}{section.says}\n\n"
        yield "| key | default | what it is |\n|---|---|---|\n"
        for key in section.keys:
            says = key.says.replace("|", "\\|")
            yield f"| `{prefix}{key.name}` | `{key.default}` | {says} |\n"
        yield "\n"
