"""What is no model is refused before it runs, with the remedy."""

import functools

import numpy as np
import numpyro
import pytest
from numpyro.handlers import reparam, scope, seed
from numpyro.infer import MCMC, NUTS

from dask_consensus.plan.function import parameters_of


def model(weeks, fvc=None, *, n_patient): ...


def generator(weeks, fvc):
    yield numpyro.sample


async def coroutine(weeks, fvc): ...


async def both(weeks, fvc):
    yield weeks


def rest(*args, **kwargs): ...


def keywords(**sites): ...


class Model:
    def __init__(self, weeks, fvc): ...

    def __call__(self, weeks, fvc): ...

    def method(self, weeks, fvc): ...

    def yielding(self, weeks, fvc):
        yield weeks


class Yields:
    def __call__(self, weeks):
        yield weeks


@functools.wraps(model)
def wrapper(*args, **kwargs):
    return model(*args, **kwargs)


@pytest.mark.parametrize(
    "given",
    [model, Model(1, 2), Model(1, 2).method, wrapper, functools.partial(model, n_patient=3),
     reparam(config={})(model), scope(prefix="outer")(model), lambda weeks, fvc, **rest: 0],
)  # fmt: skip
def test_what_runs_is_a_model(given):
    assert list(parameters_of(given))[:2] == ["weeks", "fvc"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (3, r"must be a function with NumPyro primitives, got 3"),
        (
            MCMC(NUTS(model), num_warmup=1, num_samples=1),
            r"pass the function that it samples",
        ),
        (lambda weeks, /: 0, r"argument 'weeks' .* positional-only.*remove the '/'"),
        (Model, r"model 'Model' is a class.*an instance whose __call__ is the model"),
        (functools.partial(Model, fvc=1), r"model 'Model' is a class"),
        (generator, r"model 'generator' yields.*plain function"),
        (Model(1, 2).yielding, r"yielding' yields"),
        (Yields(), r"'Yields' yields"),
        (functools.partial(generator, fvc=1), r"'generator' yields"),
        (coroutine, r"'coroutine' is an async function.*plain function"),
        (both, r"'both' is an async generator"),
        (rest, r"'rest' takes only \*args, \*\*kwargs, which name no columns.*functools\.wraps"),
        (keywords, r"'keywords' takes only \*\*sites"),
        (seed(model, 0), r"numpyro\.handlers\.seed.*pass the model itself.*seed="),
        (functools.partial(reparam(seed(model, 0), config={}), n_patient=3), r"handlers\.seed"),
    ],
    # Names that are the same in every process: objects have addresses.
    ids=lambda part: part if isinstance(part, str) else "given",
)
def test_what_does_not_run_is_refused(given, message):
    with pytest.raises(TypeError, match=message):
        parameters_of(given)


def test_any_name_that_is_given_is_an_argument():
    assert list(parameters_of(keywords, ["weeks", "X"])) == ["weeks", "X"]
    assert list(parameters_of(lambda weeks, **rest: 0, ["X", "weeks"])) == ["weeks", "X"]
    assert list(parameters_of(functools.partial(keywords, X=1), ["X", "weeks"])) == ["weeks"]
    assert list(parameters_of(lambda weeks: 0, ["X"])) == ["weeks"]


def test_an_array_is_no_model():
    with pytest.raises(TypeError, match="must be a function"):
        parameters_of(np.zeros(3))
