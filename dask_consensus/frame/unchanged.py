"""Whether the frame that reached the shards is the one that was counted.

A frame is read twice, once to count its rows and once to send them to shards. A step that draws at
random, or a file that is written anew in between, gives other rows the second time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..shard_data import Contents, Summary
from .arrays import Layout
from .contents import add_contents, changed
from .survey import Survey


class FrameChanged(RuntimeError, ValueError):
    """The frame gives other rows each time it is computed."""


def frame_changed(what: str) -> FrameChanged:
    """Make the error that says so; the class itself must unpickle, coming from a worker."""
    return FrameChanged(
        f"the frame changed between two passes over it: {what}. A fit needs the same rows twice. "
        "Keep them (`ddf = ddf.persist()`), seed what draws at random, or write the frame to "
        "Parquet and read that"
    )


def unchanged(survey: Survey, layout: Layout) -> Callable[[Sequence[Summary]], None]:
    """Return a check of what all shards hold against what was counted; it raises `FrameChanged`."""

    def check(shards: Sequence[Summary]) -> None:
        _compare("rows", survey.rows, sum(shard.size.rows for shard in shards))
        if layout.by and survey.groups_exact:
            groups = sum(shard.size.groups[0] for shard in shards)
            _compare(f"groups of {layout.by[0]!r}", survey.n_groups, groups)
        now = add_contents([shard.contents for shard in shards])
        others = [i for i, other in enumerate(changed(survey.contents, now)) if other]
        if others:
            # Floats are weighed by the other columns, and change with them.
            first = min(others, key=lambda i: (any(survey.contents.sums[i]), i))
            raise frame_changed(_other_values(layout, first, survey.contents, now))

    return check


def _compare(what: str, then: int, now: int) -> None:
    if then != now:
        raise frame_changed(f"{then:,} {what} were counted, {now:,} reached the shards")


def _other_values(layout: Layout, number: int, then: Contents, now: Contents) -> str:
    """Say which column is not what it was."""
    name = [*layout.by, *(column.label for column in layout.direct)][number]
    seen = [_summary(contents, number) for contents in (then, now)]
    return f"column {name!r} held other values when it was read again ({seen[0]}, now {seen[1]})"


def _summary(contents: Contents, number: int) -> str:
    """Write what is summed up of a column."""
    weight, total, *_ = contents.sums[number]
    if not weight:
        return f"checksum {contents.checksums[number]:016x}"
    return f"weighted mean {total / weight:.12g}"
