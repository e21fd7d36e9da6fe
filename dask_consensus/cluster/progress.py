"""One line that tells how far a pass over the shards has come."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tqdm.auto import tqdm


class Progress:
    """One line that tells how many shards are done and what they reported.

    `show` is None where only a terminal or a notebook should show it; `note` turns the reports so
    far into the end of the line; `unit` is what is counted.
    """

    def __init__(
        self,
        title: str,
        total: int,
        show: bool | None,
        note: Callable[[list[Any]], str] = lambda _: "",
        unit: str = "shard",
    ) -> None:
        self._reports: list[Any] = []
        self._note = note
        self._bar = tqdm(
            desc=title, total=total, unit=unit, disable=None if show is None else not show
        )

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def tell(self, reports: Sequence[Any]) -> None:
        """Count the shards of one more task."""
        self._reports += reports
        self._bar.set_postfix_str(self._note(self._reports), refresh=False)
        self._bar.update(len(reports))
