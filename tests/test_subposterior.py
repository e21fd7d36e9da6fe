"""Shards sampled at once, as on a GPU, give the draws of one at a time."""

import numpy as np
import pytest

from dask_consensus.combination import subposterior
from dask_consensus.config import Options
from dask_consensus.model.model import precision
from dask_consensus.shard import device
from dask_consensus.shard.coordinates import whitened
from dask_consensus.shard.marginal import modes_at
from dask_consensus.shard.nuts import NutsSettings, sample_shard, sample_shards
from dask_consensus.shard.starts import Start
from dask_consensus.shard.target import PriorFactor

from . import fit, from_pandas
from .models import ZOO, frame
from .test_marginal import data_of, read, slopes


@pytest.mark.slow
def test_batches_give_the_same_draws(monkeypatch):
    rows = from_pandas(frame(((12, 15, 9, 14, 10, 13, 8, 11),)), npartitions=5)
    short = {
        "num_warmup": 5,
        "num_samples": 10,
        "num_chains": 2,
        "rounds": 1,
        "weights": "diagonal",
    }
    options = {"by": "county", "n_shards": 4, "seed": 1, **short}
    # Vectorised sums round otherwise, by 1e-16, and transitions amplify it: fifteen of them, in
    # double precision, by less than the million that is allowed for.
    with precision(True):
        one = fit(rows, ZOO["intercepts"].model, **options)
        monkeypatch.setattr(subposterior, "accelerated", lambda: True)
        several = fit(rows, ZOO["intercepts"].model, **options, shards_per_task=3)
    for name, draws in one["posterior"].data_vars.items():
        np.testing.assert_allclose(several["posterior"][name], draws, rtol=1e-10, atol=1e-10)
    np.testing.assert_array_equal(several["shards"]["divergences"], one["shards"]["divergences"])


@pytest.mark.slow
def test_batches_that_start_at_an_anchor_do_too():
    rng = np.random.default_rng(0)
    code = np.repeat(np.arange(20), 5)
    data = [
        data_of({"x": rng.normal(size=100), "y": rng.normal(size=100)}, {"g": code})
        for _ in range(3)
    ]
    mean, anchor = np.array([0.0, 0.0, -0.3, -0.3, 0.0]), np.diag([20.0, 30, 40, 40, 100])
    keys = [(0, 1, k) for k in range(3)]
    settings = NutsSettings(5, 5, adapt_mass=False)
    with precision(True):
        model = read(slopes, {"x": rng.normal(size=9), "y": rng.normal(size=9)}, groups=["g"])
        factors = [PriorFactor(weight, mean, anchor) for weight in (0.2, 0.3, 0.5)]
        modes = [modes_at(model, one, mean) for one in data]
        starts = [(Start(mean, mode.local, mode.variances, 0.5),) for mode in modes]
        space = whitened(mean, 2 * anchor)
        several = sample_shards(
            model, data, factors, settings, keys, coordinates=space, starts=starts
        )
        for i in range(3):
            draws, ends = sample_shard(
                model, data[i], factors[i], settings, keys[i], coordinates=space, starts=starts[i]
            )
            # Roundings of ten transitions, as above.
            np.testing.assert_allclose(several[i][0].u, draws.u, atol=1e-10)
            np.testing.assert_allclose(several[i][1][0].local["b"], ends[0].local["b"], atol=1e-10)


def test_several_shards_a_task_change_nothing_on_a_cpu():
    rows = from_pandas(frame(((12, 15, 9, 14, 10, 13, 8, 11),)), npartitions=5)
    options = {"by": "county", "n_shards": 4, "num_warmup": 50, "num_samples": 50}
    one = fit(rows, ZOO["intercepts"].model, **options)
    several = fit(rows, ZOO["intercepts"].model, **options, shards_per_task="auto")
    np.testing.assert_array_equal(several["posterior"]["mu"], one["posterior"]["mu"])


def test_memory_bounds_a_batch(monkeypatch):
    assert device.memory() == 0  # this is a CPU

    class Model:
        x64 = False

        def local_shapes(self, rows, groups):
            return {"a": (groups[0], 2)}

    single, double = Model(), Model()
    double.x64 = True

    def fits(gigabytes, model=single, rows=50_000, groups=5_000):
        return device.shards_that_fit(model, rows, (groups,), 3, gigabytes << 30)

    assert fits(0) == 1
    # All memory is not taken, and a shard needs more than its own data and local sites.
    each = 4 * (3 * 50_000 + 2 * 5_000)
    assert 1 < fits(141) < (141 << 30) / each
    # Twice the memory takes twice the shards, but for rounding down; doubles are twice as wide.
    assert fits(282) - 2 * fits(141) in (0, 1)
    assert fits(141) - 2 * fits(141, double) in (0, 1)
    assert fits(141, rows=100_000) < fits(141) > fits(141, groups=10_000)


@pytest.mark.parametrize(
    ("resources", "error", "message"),
    [
        ("GPU", TypeError, "resources must be a mapping"),
        ({"GPU": 0}, ValueError, "positive amounts"),
        ({"GPU": 1}, ValueError, "create a distributed.Client first"),
    ],
)
def test_resources_are_checked_before_anything_runs(resources, error, message):
    rows = from_pandas(frame(((5, 5),)))
    with pytest.raises(error, match=message):
        fit(rows, ZOO["intercepts"].model, by="county", resources=resources)


@pytest.mark.parametrize("together", [0, 1.5, "all"])
def test_shards_a_task_are_a_number_or_auto(together):
    rows = from_pandas(frame(((5, 5),)))
    with pytest.raises((ValueError, TypeError), match="shards_per_task"):
        fit(rows, ZOO["intercepts"].model, by="county", shards_per_task=together)


@pytest.mark.distributed
def test_only_workers_with_the_resource_work_on_shards():
    from distributed import Client, Nanny, Scheduler, SpecCluster

    rows = from_pandas(frame(((12, 12, 12, 12),)), npartitions=4)
    nanny = {"nthreads": 1, "dashboard": False}
    workers = {
        "with": {"cls": Nanny, "options": {**nanny, "resources": {"GPU": 1}}},
        "without": {"cls": Nanny, "options": nanny},
    }
    options = {"dashboard": False, "host": "127.0.0.1", "port": 0}
    with (
        SpecCluster(workers, {"cls": Scheduler, "options": options}) as cluster,
        Client(cluster) as client,
    ):
        small = {"by": "county", "n_shards": 4, "num_warmup": 50, "num_samples": 50}
        with pytest.raises(ValueError, match=r"no worker has the resources TPU=1.*offer GPU=1"):
            fit(rows, ZOO["intercepts"].model, **small, resources={"TPU": 1})
        fit(rows, ZOO["intercepts"].model, **small, resources={"GPU": 1})
        compiled = client.run(_compiled_kernels)
        known = client.scheduler_info()["workers"]
        names = {address: worker["id"] for address, worker in known.items()}
    assert {names[address]: count > 0 for address, count in compiled.items()} == {
        "with": True,
        "without": False,
    }


def _compiled_kernels():
    from dask_consensus.shard import compiling

    return len(compiling._COMPILED)


def test_options_keep_what_was_asked():
    options = Options.frozen(resources={"GPU": 1}, shards_per_task="auto")
    assert options.resources == {"GPU": 1}
    assert options.shards_per_task == "auto"


def test_joint_skewness_is_what_all_coordinates_do_to_one():
    rng = np.random.default_rng(0)
    b = rng.normal(size=400_000)
    # Uncorrelated with b and yet its function: E[a^3] = sqrt(8), E[a b^2] = sqrt(2).
    a = (b**2 - 1) / np.sqrt(2)
    u = np.column_stack([3.0 * a + 5.0, b])
    joint_skew = subposterior.joint_skewness(u - u.mean(axis=0))
    # Four standard errors of the mean of what is averaged.
    averaged = np.column_stack([a, b]) * (a**2 + b**2)[:, None]
    error = np.abs(joint_skew - [np.sqrt(8) + np.sqrt(2), 0.0])
    np.testing.assert_array_less(error, 4 * averaged.std(axis=0) / np.sqrt(len(b)))


def test_joint_skewness_of_normal_draws_has_the_known_variance():
    rng = np.random.default_rng(1)
    d, n = 10, 400
    joint = [subposterior.joint_skewness(rng.normal(size=(n, d))) for _ in range(300)]
    # A variance of 3,000 values near normal errs by sqrt(2 / 3,000), four times that; and what
    # is known to first order only is off by some d / n of itself twice, in mean and covariance.
    np.testing.assert_allclose(
        np.var(joint), 2 * (d + 2) / n, rtol=4 * np.sqrt(2 / 3000) + 2 * d / n
    )
