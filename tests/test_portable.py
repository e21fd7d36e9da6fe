from __future__ import annotations

import functools
import importlib
import os
import pickle
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import cloudpickle
import dask.dataframe as dd
import numpy as np
import numpyro
import pandas as pd
import pytest

from dask_consensus.model.portable import code_of, is_local, pickle_by_value, unpicklable

from . import plan

# The user's code, each way to reach a helper one line of the model.
HELPER = "VALUE = 1.0\n"
FILES = {
    "constants_of_mine.py": HELPER,
    "helpers_of_mine/__init__.py": "",
    "helpers_of_mine/sub.py": """
import constants_of_mine
import helpers_of_mine                      # in a circle

def f():
    return constants_of_mine.VALUE

def again():
    return helpers_of_mine.sub.f()
""",
    "helpers_of_mine/relative.py": """
from . import sub
from .sub import f

def g():
    from .sub import f as inner
    return inner() + 0 * (f() + sub.f())
""",
    "helpers_of_mine/kinds.py": """
import functools
import jax
import numpyro.distributions as dist
from constants_of_mine import VALUE
from helpers_of_mine.sub import f

class Adder:
    unit = 1.0
    def __init__(self, by): self.by = by
    def add(self, x): return x + self.by * f() * self.unit
    @staticmethod
    def static(): return f()

class Normal(dist.Normal):
    def log_prob(self, value): return super().log_prob(value) * f()

@functools.lru_cache
def cached(n): return f() * n

@jax.jit
def jitted(x): return x * f()

@functools.partial(jax.jit, static_argnames="n")
def jitted_for(x, n): return x * f() * n

def decorated(function):
    @functools.wraps(function)
    def wrapper(*args): return function(*args) * f()
    return wrapper

@decorated
def one(): return 1.0

bound = Adder(1.0).add
table = {"f": f, "nested": [lambda: f()]}
""",
    "model_of_mine.py": """
import functools
import numpyro, numpyro.distributions as dist
import constants_of_mine
import helpers_of_mine.sub
import helpers_of_mine.kinds as kinds
import helpers_of_mine.relative
from helpers_of_mine.sub import f, again
from helpers_of_mine.kinds import Adder, Normal, one

WAYS = {
    "module": lambda: constants_of_mine.VALUE,
    "attribute": lambda: helpers_of_mine.sub.f(),
    "function": lambda: f(),
    "circle": lambda: again(),
    "relative": lambda: helpers_of_mine.relative.g(),
    "default": lambda g=f: g(),
    "partial": lambda: functools.partial(kinds.decorated(lambda x: x), 1.0)(),
    "instance": lambda: Adder(1.0).add(0.0),
    "static": lambda: Adder.static(),
    "bound": lambda: kinds.bound(0.0),
    "table": lambda: kinds.table["nested"][0](),
    "cached": lambda: kinds.cached(1),
    "jitted": lambda: kinds.jitted(1.0),
    "jitted for": lambda: kinds.jitted_for(1.0, n=1),
    "decorated": lambda: one(),
    "by name": lambda: getattr(helpers_of_mine.sub, "f")(),
    "distribution": lambda: Normal(0.0, 1.0).log_prob(0.0) / dist.Normal(0.0, 1.0).log_prob(0.0),
}

def _imported():
    import constants_of_mine as later
    from helpers_of_mine import sub
    return later.VALUE + 0 * sub.f()

WAYS["imported as it runs"] = _imported

def model_of(way):
    value = WAYS[way]
    def model(y):
        mu = numpyro.sample("mu", dist.Normal(0, 1))
        with numpyro.plate("rows", len(y)):
            numpyro.sample("obs", dist.Normal(mu + value(), 1), obs=y)
    return model
""",
}
WAYS = (
    *("module", "attribute", "function", "circle", "relative", "default", "partial", "instance"),
    *("static", "bound", "table", "cached", "jitted", "jitted for", "decorated", "by name"),
    *("distribution", "imported as it runs"),
)


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The user's modules, imported."""
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    yield importlib.import_module("model_of_mine")
    for name in [name for name in sys.modules if "of_mine" in name]:
        del sys.modules[name]


def reload_all(path: Path, value: str | None = None) -> ModuleType:
    """Edit the constant at the bottom of all, and reload what stands on it."""
    if value is not None:
        # Another length: the time of the file may be that of the byte code.
        (path / "constants_of_mine.py").write_text(f"VALUE = {value}  # edited\n")
    names = ["constants_of_mine", *(f"helpers_of_mine.{m}" for m in ("sub", "relative", "kinds"))]
    for name in [*names, "model_of_mine"]:
        if name in sys.modules:
            importlib.reload(sys.modules[name])
    return sys.modules["model_of_mine"]


def in_another_process(pickled: list[bytes], path: Path) -> list[str]:
    """Call functions in a process that cannot import the user's modules."""
    (path / "pickled").write_bytes(cloudpickle.dumps(pickled))
    code = (
        "import pickle; functions = pickle.load(open('pickled', 'rb'));"
        "print(*(float(pickle.loads(f)()) for f in functions))"
    )
    where = path / "elsewhere"
    where.mkdir(exist_ok=True)
    (where / "pickled").write_bytes((path / "pickled").read_bytes())
    run = subprocess.run([sys.executable, "-c", code], cwd=where, capture_output=True, text=True)
    assert not run.returncode, run.stderr
    return run.stdout.split()


def test_code_travels_and_names_itself_whatever_way_it_is_reached(mine, tmp_path):
    first = {way: pickle_by_value(mine.WAYS[way]) for way in WAYS}
    assert set(in_another_process(list(first.values()), tmp_path)) == {"1.0"}
    assert {way: pickle_by_value(mine.WAYS[way]) for way in WAYS} == first

    again = reload_all(tmp_path)
    unchanged = {way: pickle_by_value(again.WAYS[way]) for way in WAYS}
    assert [way for way in WAYS if unchanged[way] != first[way]] == []

    edited = reload_all(tmp_path, "2.0")
    second = {way: pickle_by_value(edited.WAYS[way]) for way in WAYS}
    assert [way for way in WAYS if second[way] == first[way]] == []
    assert set(in_another_process(list(second.values()), tmp_path)) == {"2.0"}


def test_a_helper_alone_is_reloaded(mine, tmp_path):
    """Only what was edited is reloaded, as one does by hand; the model's module is not."""
    first = pickle_by_value(mine.WAYS["attribute"])
    (tmp_path / "constants_of_mine.py").write_text("VALUE = 3.0  # edited\n")
    importlib.reload(sys.modules["constants_of_mine"])
    second = pickle_by_value(mine.WAYS["attribute"])
    assert first != second
    assert in_another_process([second], tmp_path) == ["3.0"]


def test_handlers_and_partials_carry_what_they_hold(mine, tmp_path):
    def fn(scale: float) -> float:
        return scale * mine.WAYS["attribute"]()

    wrapped = (
        functools.partial(fn, 1.0),
        numpyro.handlers.reparam(functools.partial(fn, 1.0), config=mine.kinds.table),
        numpyro.handlers.scale(functools.partial(fn, 1.0), scale=2.0),
    )
    pickled = [pickle_by_value(one) for one in wrapped]
    assert in_another_process(pickled, tmp_path) == ["1.0"] * 3


def test_loading_leaves_the_users_classes_alone(mine):
    adder = mine.Adder
    method = adder.add
    pickled = pickle_by_value(mine.WAYS["instance"])
    loaded = cloudpickle.loads(pickled)
    assert loaded() == 1.0
    assert adder.add is method
    assert cloudpickle.loads(pickled)() == 1.0


def test_nothing_stays_registered(mine):
    before = cloudpickle.list_registry_pickle_by_value()
    pickle_by_value(mine.WAYS["bound"])
    assert cloudpickle.list_registry_pickle_by_value() == before
    cloudpickle.register_pickle_by_value(mine)
    try:
        pickle_by_value(mine.WAYS["bound"])
        assert "model_of_mine" in cloudpickle.list_registry_pickle_by_value()
    finally:
        cloudpickle.unregister_pickle_by_value(mine)


def test_what_is_installed_is_not_local(mine):
    assert is_local(mine)
    for module in (np, numpyro, functools, importlib, pytest, sys, sys.modules["dask_consensus"]):
        assert not is_local(module)


def frame() -> dd.DataFrame:
    y = np.random.default_rng(0).normal(size=200)
    return dd.from_pandas(pd.DataFrame({"y": y}), npartitions=2)


def fitted(model: Any, **options: Any) -> float:
    settings = {"n_shards": 2, "num_samples": 200, "progress": False}
    return float(frame().consensus.fit(model, **settings, **options)["posterior"]["mu"].mean())


def test_an_edited_helper_is_compiled_anew(mine, tmp_path):
    first = fitted(mine.model_of("attribute"))
    token = plan(frame(), mine.model_of("attribute")).model.token
    assert plan(frame(), reload_all(tmp_path).model_of("attribute")).model.token == token
    second = fitted(reload_all(tmp_path, "2.0").model_of("attribute"))
    # The prior has the weight of one of 201 rows.
    assert second - first == pytest.approx(-200 / 201, abs=0.02)


@pytest.mark.distributed
@pytest.mark.parametrize(
    "way",
    [
        pytest.param("attribute", marks=pytest.mark.slow),
        pytest.param("instance", marks=pytest.mark.slow),
        "imported as it runs",
    ],
)
def test_workers_need_not_import_what_a_model_reaches(mine, tmp_path, cluster, way):
    path = list(sys.path)
    sys.path.remove(str(tmp_path))  # workers begin with the path of this process
    with cluster(2, 1) as client:
        sys.path[:] = path
        assert not any(str(tmp_path) in found for found in client.run(lambda: sys.path).values())
        first = fitted(mine.model_of(way))
        second = fitted(reload_all(tmp_path, "2.0").model_of(way))
    assert second - first == pytest.approx(-200 / 201, abs=0.02)


# What cannot travel is named

LOCK = threading.Lock()


class Holder:
    def __init__(self, part: Any) -> None:
        self.part = part

    def __call__(self) -> Any:
        return self.part

    def method(self) -> Any:
        return self.part


def uses_global() -> Any:
    return LOCK


def _closing(part: Any) -> Any:
    def closes() -> Any:
        return part

    def outer() -> Any:
        return closes()

    return outer


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (
            uses_global,
            r"the global variable 'LOCK', which 'uses_global' uses \(of type _thread.lock",
        ),
        (
            _closing(LOCK),
            r"the variable 'part' of the function '_closing.<locals>.closes' \(of type",
        ),
        (_closing(x for x in "ab"), r"the variable 'part' .* \(of type builtins.generator\)"),
        (Holder(LOCK), r"the attribute 'part' of a Holder"),
        (Holder(LOCK).method, r"the attribute 'part' of a Holder"),
        (functools.partial(_closing, part=LOCK), r"argument 'part' of a partial"),
        (functools.partial(_closing, LOCK), r"argument 0 of a partial"),
        (lambda lock=LOCK: lock, r"a default of '<lambda>'"),
        (lambda: [LOCK], r"global variable 'LOCK'"),
        (_closing([1, LOCK]), r"the variable 'part' .* \(of type builtins.list\)"),
    ],
)
def test_what_cannot_be_pickled_is_named(function, name):
    assert re.search(name, unpicklable(function))


def test_a_model_over_a_lock_names_it():
    lock = threading.Lock()

    def model(y):
        mu = numpyro.sample("mu", numpyro.distributions.Normal(0, 1))
        assert lock
        with numpyro.plate("rows", len(y)):
            numpyro.sample("obs", numpyro.distributions.Normal(mu, 1), obs=y)

    rows = dd.from_pandas(pd.DataFrame({"y": [0.0, 1.0, 2.0]}), npartitions=1)
    with pytest.raises(ValueError, match=r"because the variable 'lock' of .*model.*beforehand"):
        plan(rows, model)


# What names code wherever it stands

NAMED = """
import numpy as np
OFFSET = np.arange(3.0)
NAMES = {"a", "b", "c", "d", "e"}

class Scale:
    known = frozenset({"u", "v", "w", "x"})
    def __init__(self, size): self.size = size
    def __call__(self): return self.size

SCALE = Scale(2.0)

def model(y, k=3):
    inner = lambda x: x + OFFSET.sum()
    return inner(k) * SCALE() if "a" in {"a", "b", "c"} and NAMES else y
"""


def code_in(source, name="m"):
    """The name of the code of a model that was loaded from its pickle, as plans have it."""
    space = {"__name__": "__main__", "__file__": f"/somewhere/{name}.py"}
    exec(compile(source, f"/tmp/ipykernel_{name}/1.py", "exec", dont_inherit=True), space)
    return code_of(pickle.loads(pickle_by_value(space["model"])))


def test_code_has_one_name_wherever_it_stands():
    assert code_in(NAMED) == code_in(f"# a line\n\n{NAMED}", "other")


def test_code_has_one_name_run_as_a_script_and_imported(tmp_path, monkeypatch):
    """So that a store begun by `python train.py` goes on after `from train import model`."""
    (tmp_path / "train_of_mine.py").write_text(NAMED)
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("train_of_mine")
    monkeypatch.setitem(sys.modules, "train_of_mine", module)
    found = code_of(pickle.loads(pickle_by_value(module.model)))
    assert found == code_in(NAMED) == code_of(module.model)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("x + OFFSET", "x - OFFSET"),
        ("arange(3.0)", "arange(4.0)"),
        ("k=3", "k=4"),
        ("Scale(2.0)", "Scale(2.5)"),
        ("return self.size", "return self.size + 0"),
        ('{"a", "b", "c"}', '{"a", "b", "z"}'),
        ('"d", "e"}', '"d", "f"}'),
        ('"w", "x"}', '"w", "y"}'),
        ("else y", "else k"),
    ],
)
def test_other_code_has_another_name(before, after):
    assert before in NAMED
    assert code_in(NAMED.replace(before, after)) != code_in(NAMED)


@pytest.mark.slow
def test_code_has_one_name_in_every_process():
    """Where sets of texts have another order."""
    code = "from tests.test_portable import NAMED, code_in; print(code_in(NAMED))"
    names = set()
    for seed in "123":
        environment = os.environ | {"PYTHONHASHSEED": seed}
        run = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env=environment,
        )
        names.add(run.stdout.split()[-1])
    assert names == {code_in(NAMED)}
