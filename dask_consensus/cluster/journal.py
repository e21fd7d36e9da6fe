"""What shards have answered already: to the same question they are not asked again.

A fit is arithmetic on what its shards answer to one question after another, and its randomness is
named. So it is enough to keep the answers, each under the SHA-256 of its question: what function,
of which shards, with which arguments. The same fit, begun again, asks the same questions, finds the
answers up to where the one before it ended, and goes on from there to the same bits. An answer is
written once it is there; of a pass that takes long each task's share as well, where it was made.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, NoReturn

from dask.delayed import Delayed, delayed
from distributed import warn

from .client import current_work
from .records import UnrecordableError, decoded, digest, encoded
from .store import Missing, Store

WORTH = 5.0
"""Seconds of work from which on the share of one task in a pass is kept by itself."""


class NotKept(RuntimeError):
    """An answer that was to be read needs rows, and no rows were sent to shards."""


class Asked(Delayed):
    """A task that can tell what it is asked; `what` holds it."""

    __slots__ = ("what",)
    what: tuple[Any, ...]

    @classmethod
    def of(cls, task: Delayed, *what: Any) -> Asked:
        """Have a task tell it."""
        asked = cls(task.key, task.dask, task._length, layer=task._layer)
        asked.what = what
        return asked


class Journal:
    """The answers that a store holds for one fit.

    Parameters
    ----------
    store : Store
    name : str
        Small letters and digits that name the fit; what another has written is not found.
    """

    def __init__(self, store: Store, name: str) -> None:
        self.store, self.name = store, name
        self._finished = f"finished-{name}"
        self.files = store.files()
        self.complete = self.get(self._finished) is not Missing
        """Whether all answers are there, so that no rows need be sent to shards."""
        self.begun = bool(self.files)
        """Whether the fit had begun before."""

    def get(self, name: str) -> Any:
        """Read what is kept under a name, `Missing` if it is not."""
        return self.store.get(name, self.files.get(name, ()))

    def put(self, name: str, value: Any) -> Any:
        """Keep a value, and return it as it will be read again."""
        value, file = kept(self.store, name, value)
        if file:
            self.files.setdefault(name, []).append(file)
        return value

    def finish(self) -> None:
        """Say that all answers are there, and remove the shares that they were added up from."""
        if not self.complete:
            self.put(self._finished, True)
            self.store.remove_shares()

    def shards(self, whose: str) -> Any:
        """Read what each shard holds, `Missing` if that is not known."""
        return self.get(self._shards(whose))

    def put_shards(self, whose: str, summaries: Sequence[Any]) -> None:
        """Keep what each shard holds."""
        self.put(self._shards(whose), list(summaries))

    def _shards(self, whose: str) -> str:
        return "-".join(filter(None, ["shards", whose, self.name]))

    def name_of(self, title: str, question: Any) -> str:
        """Name a question; empty where it is not asked of rows, or says not all that it asks.

        What does not depend on rows is asked of this cluster, whatever another has answered.
        """
        teller = _Teller()
        try:
            found = digest([self.name, question], teller)
        except UnrecordableError:
            return ""
        slug = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")[:40] or "answer"
        return f"{slug}-{found[:32]}" if teller.of_rows else ""

    def recall(
        self,
        title: str,
        question: Any,
        answer: Callable[[], Any],
        holds: Callable[[Any], bool] = lambda _: True,
    ) -> Any:
        """Read the answer to a question, if it `holds`, or have it given, and keep it."""
        name = self.name_of(title, question)
        if not name:
            return answer()
        known = self.get(name)
        if known is not Missing and holds(known):
            return known
        self.check_rows()
        return self.put(name, answer())

    def check_rows(self) -> None:
        """Refuse to ask shards whose rows were not sent.

        Raises
        ------
        NotKept
        """
        if self.complete:
            raise NotKept("the store does not hold all that it should")


def recalled(
    title: str,
    question: Sequence[Any],
    answer: Callable[[], Any],
    holds: Callable[[Any], bool] = lambda _: True,
) -> Any:
    """Read the answer to a question, tasks perhaps, if this fit keeps a journal that has it.

    It is given, and kept, if that has not, or if it `holds` no longer.
    """
    journal = current_work().journal
    if journal is None:
        return answer()
    return journal.recall(title or _title(question), list(question), answer, holds)


def absent(n: int, *name: Any) -> list[Delayed]:
    """Make tasks that stand for what `n` shards would hold, and were not asked to."""
    names = current_work().names
    tasks = [delayed(_not_there, pure=False, traverse=False)() for _ in range(n)]
    names.update((task.key, (*name, k)) for k, task in enumerate(tasks))
    return tasks


def kept(store: Store, name: str, value: Any) -> tuple[Any, str]:
    """Write a value; return it as it will be read again, to the order in memory, and the file.

    A full disk costs a fit no more than what is kept of it. Runs anywhere.
    """
    try:
        content = encoded(name, value)
    except UnrecordableError:
        return value, ""
    file = ""
    try:
        file = store.put(name, content)
    except OSError as error:
        warn(
            f"store {store.url!r} takes no more ({error.strerror or error}): the fit goes on, and "
            "what is not written would have to be computed again after a crash",
            UserWarning,
        )
    return decoded(name, content), file


class Share(NamedTuple):
    """Where one task's share in a pass is kept: its name, and the files that may hold it."""

    store: Store
    name: str
    files: tuple[str, ...]
    always: bool  # not only where it took long

    def given_by(self, answer: Callable[[], Any]) -> Any:
        """Read it, or have it given, and keep it; runs on a worker."""
        known = self.store.get(self.name, self.files)
        if known is not Missing:
            return known
        began = time.perf_counter()
        given = answer()
        if self.always or time.perf_counter() - began > WORTH:
            given, _ = kept(self.store, self.name, given)
        return given


class _Teller:
    """Says what tasks, functions and models are, in terms that a digest takes."""

    def __init__(self) -> None:
        self.of_rows = False

    def __call__(self, value: Any) -> Any:
        if isinstance(value, Delayed):
            known = current_work().names.get(value.key)
            if known is None and isinstance(value, Asked):
                known = value.what
            if known is None:
                raise UnrecordableError("a task that does not say what it is asked")
            self.of_rows |= known[0] == "rows" or known[0] == "state"
            return ["task", *known]
        if isinstance(value, partial):
            return ["partial", value.func, list(value.args), value.keywords]
        if isinstance(value, slice):
            return ["slice", value.start, value.stop, value.step]
        if hasattr(value, "identity"):
            return ["model", value.identity]
        if hasattr(value, "function") and hasattr(value, "scope"):
            return value.function  # what can be stopped is the same function
        name = getattr(value, "__qualname__", "<")
        if callable(value) and "<" not in name:
            return ["function", value.__module__, name]
        raise UnrecordableError(f"a question of {type(value).__qualname__}")


def _not_there() -> NoReturn:
    raise NotKept("the rows of a finished fit were not sent to shards")


def _title(tasks: Sequence[Any]) -> str:
    """Name what tasks are asked by the function of the first."""
    asked = next((task.what for task in tasks if isinstance(task, Asked)), None)
    return "answer" if asked is None else str(getattr(asked[1], "__name__", "answer"))
