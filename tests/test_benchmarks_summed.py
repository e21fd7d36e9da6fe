"""References whose effects are summed by hand, against closed forms."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy.stats import multivariate_normal, norm

from benchmarks.cases.drawn import COEFFICIENTS, WIDE, WIDER_SPREADS, drawn_trial, recipe
from benchmarks.cases.summed import NODES, Parts, _marginal
from benchmarks.measure.watch import PATH


@pytest.mark.parametrize("effects", [1, 2])
def test_sum_over_normal_effects_has_its_closed_form(effects: int) -> None:
    rng = np.random.default_rng(effects)
    group = np.repeat([0, 1, 2], [1, 4, 9])
    along = rng.normal(size=(len(group), effects))
    y = rng.normal(size=len(group))
    with jax.enable_x64(True):
        parts = Parts(
            shared=lambda: numpyro.sample("mu", dist.Normal(0.0, 1.0)) and None,
            rows=lambda values: (jnp.full(len(y), values["mu"]), jnp.asarray(along)),
            density=lambda values, mean: dist.Normal(mean, 0.7).log_prob(jnp.asarray(y)),
            group=group,
            effects=effects,
        )
        value = float(_marginal(parts, {"mu": jnp.asarray(0.3)}, NODES))
    together = (group[:, None] == group) * (along @ along.T) + 0.49 * np.eye(len(y))
    # Gauss-Hermite is exact on a normal density around its own mode.
    assert value == pytest.approx(multivariate_normal.logpdf(y, 0.3 * np.ones(len(y)), together))


def test_sum_over_effects_of_binary_rows_is_that_of_a_dense_grid() -> None:
    y, z = np.array([1.0, 0.0, 1.0, 1.0]), np.linspace(-12.0, 12.0, 20_001)
    with jax.enable_x64(True):
        parts = Parts(
            shared=lambda: None,
            rows=lambda values: (jnp.full(4, 0.2), jnp.full((4, 1), 2.0)),
            density=lambda values, mean: dist.Bernoulli(logits=mean).log_prob(jnp.asarray(y)),
            group=np.zeros(4, int),
            effects=1,
        )
        value = float(_marginal(parts, {}, NODES))
    p = 1.0 / (1.0 + np.exp(-0.2 - 2.0 * z))
    whole = np.trapezoid(norm.pdf(z) * p**3 * (1.0 - p), z)
    assert value == pytest.approx(np.log(whole), abs=1e-3)  # the error of 15 nodes


def test_no_path_of_a_machine_is_kept_in_a_row() -> None:
    said = (
        "OSError: '/home/somebody/lib/site-packages/part.py': no 1/2 of it, see https://x.org/a/b"
    )
    kept = "OSError: 'part.py': no 1/2 of it, see https://x.org/a/b"
    assert PATH.sub(r"\1", said) == kept


def test_wider_recipes_can_be_drawn_and_are_wide() -> None:
    recipes = [recipe(WIDE + i) for i in range(300)]
    frames = [drawn_trial(WIDE + i).at(0).frame() for i in range(22)]
    assert all(np.isfinite(frame.to_numpy(float)).all() for frame in frames)
    assert {each.prior for each in recipes} == set(COEFFICIENTS)
    assert {each.spread for each in recipes} == set(WIDER_SPREADS)
    assert {1e-3, 1.0, 1e4} <= {each.unit for each in recipes}
    assert any(each.correlated for each in recipes)
    assert all(1 <= each.groups <= each.rows for each in recipes if each.effects)
