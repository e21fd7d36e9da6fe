"""Which method combines the shards, and from where it begins."""

from __future__ import annotations

from ..cluster.placement import Execution
from ..cluster.shards import Shards
from ..config import default
from ..plan.plan import Plan, _example
from ..shard.effects import obstacle
from ..shard.nuts import Settings
from ..shard.starts import prior_points
from .anchored import anchored
from .consensus import one_shot
from .gaussian import inverse
from .laplace import LaplaceApproximation, expanded, laplace
from .pilot import Pilot, run_pilot
from .reports import Combined, FitSettings

Guess = LaplaceApproximation | Pilot


def locate(plan: Plan, shards: Shards, execution: Execution) -> Guess | None:
    """Find where the posterior is: by climbing, or by a pilot where nothing can be climbed."""
    options, model = plan.options, plan.model
    if plan.n_shards == 1 or plan.method in ("consensus", "parametric"):
        return None
    because = obstacle(model)
    if not because:
        approximation = laplace(
            _job(plan),
            shards,
            execution,
            prior_points(model, _example(plan), options.seed, default("searches")),
            most=default("laplace-steps"),
        )
        if approximation is not None:
            return approximation
        because = "no mode was found"
    if options.method == "laplace":
        raise ValueError(f"method='laplace', but {because}; use method='anchored'")
    return run_pilot(
        model,
        shards,
        Settings(default("pilot-warmup"), default("pilot-samples"), options.target_accept_prob),
        execution,
        seed=options.seed,
        n_chains=default("pilot-chains"),
    )


def combine(
    plan: Plan,
    shards: Shards,
    guess: Guess | None,
    execution: Execution,
    before: Combined | None = None,
) -> Combined:
    """Combine the shards, in unconstrained space.

    A mode that was climbed needs no draws for a correction to follow. Rounds that a correction
    follows are few and short; `before` is a combination that was not good enough for it, and
    longer rounds go on from there.
    """
    options = plan.options
    settings = Settings(options.num_warmup, options.num_samples, options.target_accept_prob)
    if guess is None:
        parametric = options.method == "parametric"
        return one_shot(_job(plan), shards, settings, execution, parametric=parametric)
    corrected = not plan.uncorrected_because
    if isinstance(guess, LaplaceApproximation) and plan.method == "laplace" and before is None:
        return expanded(_job(plan), guess, (options.num_chains, options.num_samples))

    short = before is None and corrected
    few = max(default("round-samples"), 4 * plan.model.dim)
    settings = settings._replace(
        num_warmup=default("round-warmup"),
        num_samples=min(options.num_samples, few) if short else options.num_samples,
        adapt_mass=False,
    )
    if before is not None:
        mean, precision = before.mean, inverse(before.covariance) / plan.n_shards
    elif isinstance(guess, LaplaceApproximation):
        mean, precision = guess.mean, inverse(guess.covariance) / plan.n_shards
    else:
        mean, precision = guess.mean, guess.precision
    return anchored(
        _job(plan),
        shards,
        settings,
        execution,
        mean,
        precision,
        most=options.rounds or default("rounds-corrected" if short else "rounds"),
        informed=isinstance(guess, LaplaceApproximation) or before is not None,
        before=() if before is None else before.rounds,
    )


def _job(plan: Plan) -> FitSettings:
    options = plan.options
    return FitSettings(plan.model, options.num_chains, options.weights == "diagonal", options.seed)
