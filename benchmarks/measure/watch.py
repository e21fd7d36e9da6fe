"""A process that answers one question after another, and is ended when one takes too long."""

from __future__ import annotations

import multiprocessing
import re
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

Row = dict[str, Any]
PATH = re.compile(r"(?<![\w/])/(?:[^\s/'\":,]+/)+([^\s/'\":,]+)")  # absolute; its last part
Answers = Callable[[dict[str, Any]], Row]


class Watched:
    """Answers keys in a process of its own, which keeps its compiled code between them.

    Parameters
    ----------
    make : callable
        A module-level function whose result, made in that process, takes a key and returns a row.
    arguments : tuple
        What it is called with.
    seconds : float
        That one answer may take, compiling included. Then the process is ended, the row says so,
        and the next key gets a new process.
    here : bool
        No process at all, for tests.
    """

    def __init__(
        self, make: Callable[..., Answers], arguments: tuple, seconds: float, here: bool = False
    ) -> None:
        self._make, self._arguments, self.seconds = make, arguments, seconds
        self._here = make(*arguments) if here else None
        self._process: Any = None
        self._pipe: Any = None

    def __enter__(self) -> Watched:
        return self

    def __exit__(self, *_: Any) -> None:
        self._end()

    def __call__(self, key: dict[str, Any]) -> Row:
        """Answer one key; ``failed`` says why there is no answer."""
        if self._here is not None:
            return self._here(key)
        if self._process is None:
            self._begin()
        try:
            self._pipe.send(key)
            if self._pipe.poll(self.seconds):
                return self._pipe.recv()
            failed = f"no answer in {self.seconds:g} s"
        except (EOFError, ConnectionError):
            failed = "the process ended"
        self._end()
        return {"failed": failed, "code": "crash"}

    def _begin(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_answer, args=(theirs, self._make, self._arguments), daemon=True
        )
        self._process.start()
        theirs.close()

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._pipe.close()
        self._process = None


def _answer(pipe: Connection, make: Callable[..., Answers], arguments: tuple) -> None:
    answers = make(*arguments)
    while True:
        try:
            key = pipe.recv()
        except EOFError:
            return
        try:
            row = answers(key)
        except Exception as error:
            # Where it came from is for whoever watches: a row is kept, and names no paths.
            traceback.print_exc(limit=-12)
            said = "".join(traceback.format_exception_only(error)).strip()
            row = {"failed": PATH.sub(r"\1", said), "code": "crash"}
        pipe.send(row)
