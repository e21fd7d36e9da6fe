"""A model's function with all the code of the user's own that it reaches, as bytes.

cloudpickle takes a function of an importable module by name: a worker must then be able to import
the module, and the bytes stay the same when its code changes. Here what lies in *local* modules,
the user's scripts and packages outside of `site-packages` and the standard library, goes by value:
functions, classes, and of a module that code refers to (``helpers.f``) the attributes that code
names. Compiled code depends on nothing but what the bytes hold, so that they may name it.
"""

from __future__ import annotations

import copyreg
import dis
import functools
import hashlib
import importlib
import importlib.util
import io
import site
import sys
import sysconfig
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import cloudpickle
from cloudpickle import cloudpickle as internals

_LOCK = threading.RLock()  # cloudpickle's registry is one a process
_INSTALLED = {  # whoever works on these has them outside of `site-packages`
    *("cloudpickle", "dask", "dask_consensus", "distributed", "jax", "jaxlib", "numpy", "numpyro"),
    *("pandas", "pyarrow", "scipy", "xarray"),
}
_CACHED = type(lru_cache(len))


def pickle_by_value(function: Callable[..., Any]) -> bytes:
    """Pickle a function with the code and the globals it uses, not by the names of its modules.

    Workers then need not be able to import the user's code, and the bytes change whenever it does.
    Functions of installed packages stay references.
    """
    return _pickled(function, _Pickler)


def code_of(function: Callable[..., Any]) -> str:
    """Return the SHA-256 of a function's code, and of all that goes with it.

    It is the same wherever the code stands, on which line and in which file, and in any process of
    one version of Python.
    """
    return hashlib.sha256(_pickled(function, _CodeAlone)).hexdigest()


def _pickled(function: Callable[..., Any], pickler: type[_Pickler]) -> bytes:
    names: set[str] = set()
    imports: set[str] = set()
    with _LOCK:
        while True:
            before = len(names), len(imports)
            carried = {name: sys.modules[name] for name in sorted(imports)}
            with _registered(), io.BytesIO() as buffer:
                reached = Carried(function, carried) if carried else function
                pickler(buffer, names, imports).dump(reached)
                pickled = buffer.getvalue()
            # What is named in one module may be an attribute of another, passed already.
            if before == (len(names), len(imports)):
                return _with_own_identifiers(pickled)


def is_local(module: Any) -> bool:
    """Tell whether a module is the user's own: Python code outside of where packages are put."""
    if not isinstance(module, ModuleType) or module.__name__ == "__main__":
        return False
    if module.__name__.partition(".")[0] in _INSTALLED:
        return False
    file = getattr(module, "__file__", None)
    paths = [file] if file else list(getattr(module, "__path__", ()))
    return bool(paths) and all(_is_local_path(str(path)) for path in paths)


def unpicklable(function: Callable[..., Any]) -> str:
    """Name what of a function cannot be pickled: a variable, as the user's code has it."""
    found = _unpicklable(function, set())
    return found or "something that it uses (an open file, a lock or a client, perhaps)"


def _unpicklable(value: Any, seen: set[int]) -> str:
    seen.add(id(value))
    for what, part in _parts(value):
        if id(part) not in seen and not _can_be_pickled(part):
            deeper = _unpicklable(part, seen)
            return deeper or f"{what} (of type {type(part).__module__}.{type(part).__qualname__})"
    return ""


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield what a function or an object holds, and how its code refers to it."""
    name = getattr(value, "__qualname__", type(value).__qualname__)
    if isinstance(value, MethodType):
        yield f"the object of {name!r}", value.__self__
        value = value.__func__
    if isinstance(value, functools.partial):
        yield "the function of a partial", value.func
        yield from ((f"argument {i} of a partial", part) for i, part in enumerate(value.args))
        yield from ((f"argument {key!r} of a partial", p) for key, p in value.keywords.items())
    elif isinstance(value, FunctionType):
        cells = zip(value.__code__.co_freevars, value.__closure__ or (), strict=True)
        for variable, cell in cells:
            with suppress(ValueError):  # not yet set
                yield f"the variable {variable!r} of the function {name!r}", cell.cell_contents
        for code in _codes(value):
            for variable in code.co_names:
                if variable in value.__globals__ and not isinstance(
                    value.__globals__[variable], ModuleType
                ):
                    part = value.__globals__[variable]
                    yield f"the global variable {variable!r}, which {name!r} uses", part
        defaults = [*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
        yield from ((f"a default of {name!r}", part) for part in defaults)
    elif not isinstance(value, type | ModuleType):
        attributes = getattr(value, "__dict__", {})
        yield from ((f"the attribute {key!r} of a {name}", p) for key, p in attributes.items())


def _can_be_pickled(value: Any) -> bool:
    try:
        cloudpickle.dumps(value)
    except Exception:
        return False
    return True


class Carried:
    """A function that imports local modules as it runs, and those modules.

    They stand in for modules of the same names while it runs; whoever calls it holds the lock under
    which models run.
    """

    def __init__(self, function: Callable[..., Any], modules: dict[str, ModuleType]) -> None:
        self.function, self.modules = function, modules

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        """Run the function."""
        before = {name: sys.modules.get(name) for name in self.modules}
        sys.modules.update(self.modules)
        try:
            return self.function(*arguments, **keywords)
        finally:
            for name, module in before.items():
                del sys.modules[name]
                if module is not None:
                    sys.modules[name] = module


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc,unused-ignore]
    """Pickles local modules by value, and adds to the names in the code that it passes."""

    def __init__(self, file: io.BytesIO, names: set[str], imports: set[str]) -> None:
        super().__init__(file)
        self.names, self.imports = names, imports

    def reducer_override(self, obj: Any) -> Any:
        """Say how an object is made again."""
        if isinstance(obj, ModuleType) and is_local(obj):
            named = {name: value for name, value in vars(obj).items() if name in self.names}
            # The module is there before what it holds, which may refer to it.
            return ModuleType, (obj.__name__,), named, None, None, _fill
        if isinstance(obj, _CACHED) and _goes_by_value(obj):
            # A wrapper written in C, which would go by its name.
            return _cached, (obj.__wrapped__, obj.cache_parameters())
        if isinstance(obj, type) and _goes_by_value(obj):
            # To pickle an instance leaves this in its class: there from the start, it changes none.
            copyreg._slotnames(obj)  # type: ignore[attr-defined]
        if isinstance(obj, FunctionType) and _goes_by_value(obj):
            for code in _codes(obj):
                self.names |= _names_of(code)
                self.imports |= _imports_of(code, obj.__globals__.get("__package__") or "")
        return super().reducer_override(obj)


class _CodeAlone(_Pickler):
    """Leaves out where code stands; what it writes is not to be loaded."""

    def persistent_id(self, obj: Any) -> Any:
        """Say what a set holds: it has another order in every process."""
        return ("set", sorted(map(repr, obj))) if type(obj) in (set, frozenset) else None

    def reducer_override(self, obj: Any) -> Any:
        """Say what an object is."""
        if isinstance(obj, CodeType):
            names = (obj.co_names, obj.co_varnames, obj.co_freevars, obj.co_cellvars)
            counts = (obj.co_argcount, obj.co_posonlyargcount, obj.co_kwonlyargcount, obj.co_flags)
            told = [repr((obj.co_name, *names, counts)), obj.co_code, obj.co_exceptiontable]
            return list, ([*told, *map(_constant, obj.co_consts)],)
        reduced = super().reducer_override(obj)
        if isinstance(obj, FunctionType | type) and isinstance(reduced, tuple):
            # The same code is in `__main__` where it is run, and in a module where it is imported.
            return reduced[0], *(_anywhere(part, obj.__module__) for part in reduced[1:])
        return reduced

    def _function_getnewargs(self, func: FunctionType) -> Any:
        code, names, *rest = super()._function_getnewargs(func)
        for name in ("__file__", "__path__", "__name__", "__package__"):
            names.pop(name, None)
        return code, names, *rest


def _anywhere(part: Any, module: str) -> Any:
    """Leave out of what makes a function or a class its module, and what is imported beside it."""
    if isinstance(part, tuple):
        return tuple(_anywhere(one, module) for one in part)
    if type(part) is dict:
        beside = ("__module__", "_cloudpickle_submodules")
        return {key: value for key, value in part.items() if key not in beside}
    return "" if isinstance(part, str) and part == module else part


def _constant(value: Any) -> Any:
    """Write out a constant of code: equal texts may be one object, or several."""
    if isinstance(value, frozenset | CodeType):
        return value
    return f"{type(value).__name__} {value!r}"


def _fill(module: ModuleType, attributes: dict[str, Any]) -> None:
    vars(module).update(attributes)


def _goes_by_value(function: Any) -> bool:
    """Tell whether a function is not one that an installed module has under its name."""
    module = sys.modules.get(getattr(function, "__module__", None) or "")
    if module is None or module.__name__ == "__main__" or is_local(module):
        return True
    return isinstance(function, FunctionType) and not internals._should_pickle_by_reference(
        function
    )


def _cached(function: Callable[..., Any], parameters: dict[str, Any]) -> Callable[..., Any]:
    return functools.lru_cache(**parameters)(function)


@contextmanager
def _registered() -> Iterator[None]:
    """Have cloudpickle take the content of local modules by value."""
    known = cloudpickle.list_registry_pickle_by_value()
    mine = {module.__name__ for module in list(sys.modules.values()) if is_local(module)} - known
    mine &= set(sys.modules)
    try:
        for name in mine:
            cloudpickle.register_pickle_by_value(sys.modules[name])
        yield
    finally:
        # By name: a module may be gone from `sys.modules`.
        internals._PICKLE_BY_VALUE_MODULES.difference_update(mine)


def _with_own_identifiers(pickled: bytes) -> bytes:
    """Name classes after what they are, where cloudpickle names them at random.

    Code that was reloaded unchanged then has the same bytes, in any process; and to load them makes
    classes of their own, where cloudpickle would overwrite the user's with copies.
    """
    identifiers = [name.encode() for name in internals._DYNAMIC_CLASS_TRACKER_BY_CLASS.values()]
    found = sorted((pickled.find(name), name) for name in identifiers if name in pickled)
    content = pickled
    for _, name in found:
        content = content.replace(name, b"")
    for i, (_, name) in enumerate(found):
        own = hashlib.sha256(content + str(i).encode()).hexdigest()[: len(name)]
        pickled = pickled.replace(name, own.encode())
    return pickled


# What code refers to


def _codes(function: FunctionType) -> Iterator[CodeType]:
    """Yield the code of a function, and of functions written in it."""
    waiting = [function.__code__]
    while waiting:
        code = waiting.pop()
        yield code
        waiting.extend(constant for constant in code.co_consts if isinstance(constant, CodeType))


def _names_of(code: CodeType) -> set[str]:
    """Return names in code, and texts that may name an attribute."""
    texts = {text for text in code.co_consts if isinstance(text, str) and text.isidentifier()}
    return texts.union(code.co_names)


def _imports_of(code: CodeType, package: str) -> set[str]:
    """Return the local modules that code imports as it runs, and their packages."""
    found: set[str] = set()
    constants: list[Any] = []
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_CONST", "LOAD_SMALL_INT"):
            constants.append(instruction.argval)
        if instruction.opname == "IMPORT_NAME":
            level, attributes = constants[-2:]
            name = instruction.argval
            if level:
                name = importlib.util.resolve_name("." * level + name, package)
            below = [f"{name}.{attribute}" for attribute in attributes or ()]
            for module in [name, *below]:
                if is_local(_loaded(module)):
                    parts = module.split(".")
                    found |= {".".join(parts[: i + 1]) for i in range(len(parts))}
    return {name for name in found if name in sys.modules}


def _loaded(name: str) -> ModuleType | None:
    """Return a module, imported now if it is local: the code would do so the next moment."""
    with suppress(Exception):
        if name not in sys.modules:
            spec = importlib.util.find_spec(name)
            if spec is not None and spec.origin and _is_local_path(spec.origin):
                importlib.import_module(name)
    return sys.modules.get(name)


# Where code lies


@lru_cache(maxsize=4096)
def _is_local_path(path: str) -> bool:
    """Tell whether a file of Python code lies outside of where packages are put."""
    if path.endswith((".so", ".pyd", ".dylib")) or path in ("built-in", "frozen"):
        return False
    if {"site-packages", "dist-packages"} & set(Path(path).parts):
        return False
    return not any(Path(path).resolve().is_relative_to(place) for place in _places())


@lru_cache(maxsize=1)
def _places() -> tuple[Path, ...]:
    """Return where the standard library and installed packages lie."""
    paths = sysconfig.get_paths()
    places = [paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    places += [*site.getsitepackages(), site.getusersitepackages()]
    return tuple(Path(place).resolve() for place in places)
