"""What did the model's own code raise, and where? Without the frames of JAX and NumPyro."""

from __future__ import annotations

import linecache
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpyro

_PACKAGE = Path(__file__).parents[1]
# Between the user's lines stand dozens of these, which say nothing of the model.
_LIBRARIES = tuple(str(Path(str(library.__file__)).parent) for library in (jax, numpyro))
_FOREIGN = (str(_PACKAGE), *_LIBRARIES)


def shortened(error: BaseException) -> BaseException:
    """Leave only the user's own lines in a traceback, if there are any, and what JAX says out."""
    frames = list(_frames(error.__traceback__))
    users = [f for f in frames if not f.tb_frame.f_code.co_filename.startswith(_FOREIGN)]
    kept = users or frames
    following: types.TracebackType | None = None
    for frame in reversed(kept):
        following = types.TracebackType(following, frame.tb_frame, frame.tb_lasti, frame.tb_lineno)
    notes = getattr(error, "__notes__", [])
    error.__notes__ = [note for note in notes if "JAX has removed its internal frames" not in note]
    # JAX chains the whole of its traceback to what it has shortened.
    for chained in (error.__cause__, error.__context__):
        if type(chained).__name__ in ("UnfilteredStackTrace", "JaxStackTraceBeforeTransformation"):
            error.__cause__ = error.__context__ = None
    return error.with_traceback(following)


def line_of(error: BaseException, function: Callable[..., Any]) -> str:
    """Name the line of the user's code that an error came from: file, number, text.

    That is the last one outside of libraries and of this package; the model's own if there is none.
    """
    for frame in reversed(list(_frames(error.__traceback__))):
        name = frame.tb_frame.f_code.co_filename
        if "site-packages" not in name and not name.startswith(_FOREIGN):
            text = linecache.getline(name, frame.tb_lineno).strip()
            return f"{Path(name).name}, line {frame.tb_lineno}" + (f": {text}" if text else "")
    return f"in {getattr(function, '__name__', 'the model')}"


def _frames(traceback: types.TracebackType | None) -> Iterator[types.TracebackType]:
    while traceback is not None:
        yield traceback
        traceback = traceback.tb_next
