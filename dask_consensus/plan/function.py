"""Whether what was given is a model, and which arguments it has; decided without running it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any

from numpyro import handlers
from numpyro.primitives import Messenger

_NO_MODEL: tuple[tuple[Callable[[Any], bool], str], ...] = (
    (inspect.iscoroutinefunction, "is an async function: without await it does nothing"),
    (inspect.isasyncgenfunction, "is an async generator: nothing in it runs when it is called"),
    (inspect.isgeneratorfunction, "yields, so that nothing in it runs when it is called"),
)


def parameters_of(
    model: Callable[..., Any], given: Iterable[str] = ()
) -> dict[str, inspect.Parameter]:
    """Return the named parameters of a model that are free; data is passed by name.

    Where the model takes any (``**columns``), names that are `given` are among them.

    Raises
    ------
    TypeError
        If it is no function that draws its sites when it is called with data.
    """
    if not callable(model):
        raise TypeError(
            f"the model must be a function with NumPyro primitives, got {model!r}{_instead(model)}"
        )
    _check_runs(model)
    function, bound = _unwrapped(model)
    named = {}
    rest = []
    others: dict[str, inspect.Parameter] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            rest.append(str(parameter).partition(":")[0])
            if parameter.kind == parameter.VAR_KEYWORD:
                others = dict.fromkeys(given, parameter)
            continue
        if name in bound:
            continue
        if parameter.kind == parameter.POSITIONAL_ONLY:
            raise TypeError(
                f"argument {name!r} of the model is positional-only; columns are passed by name: "
                "remove the '/' from its signature"
            )
        named[name] = parameter
    named |= {name: one for name, one in others.items() if name not in named and name not in bound}
    if rest and not named:
        raise TypeError(
            f"the model {_name(model)} takes only {', '.join(rest)}, which name no columns: write "
            "its arguments out (def model(patient, weeks, fvc=None)), or name them in columns=; a "
            "decorator shows those of the function inside with functools.wraps"
        )
    return named


def _instead(given: object) -> str:
    """Say what to pass in place of a sampler; empty for anything else."""
    samples = type(given).__module__.startswith("numpyro.infer")
    return "; pass the function that it samples, which the fit samples itself" if samples else ""


def _check_runs(model: Callable[..., Any]) -> None:
    """Refuse what would draw no site when it is called, or always the same."""
    function: Any = model
    while True:
        if inspect.isclass(function):
            raise TypeError(
                f"the model {_name(function)} is a class, and to call it makes an instance: pass "
                "a function, or an instance whose __call__ is the model"
            )
        if isinstance(function, handlers.seed):
            raise TypeError(
                "the model is wrapped in numpyro.handlers.seed, so that every draw of its prior "
                "would be the same one: pass the model itself (its `fn`). The fit seeds it; its "
                "own randomness is named by seed="
            )
        if isinstance(function, Messenger):
            function = function.fn
        elif isinstance(function, functools.partial):
            function = function.func
        else:
            break
    called = function if inspect.isroutine(function) else type(function).__call__
    for is_such, why in _NO_MODEL:
        if is_such(called):
            raise TypeError(
                f"the model {_name(function)} {why}, and it has no sites. Make it a plain function"
            )


def _unwrapped(model: Callable[..., Any]) -> tuple[Callable[..., Any], frozenset[str]]:
    """Return the function inside NumPyro's handlers, and the arguments already bound by name."""
    # A handler used as a decorator does not show the signature of what it decorates.
    if isinstance(model, Messenger):
        return _unwrapped(model.fn)
    if isinstance(model, functools.partial):
        inner, bound = _unwrapped(model.func)
        return functools.partial(inner, *model.args), bound.union(model.keywords)
    return model, frozenset()


def _name(model: Any) -> str:
    return repr(getattr(model, "__qualname__", None) or type(model).__qualname__)
