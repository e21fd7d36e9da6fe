"""Which method combines the shards, and from where it begins."""

from __future__ import annotations

from ..cluster.shards import Shards
from ..plan.forecast import POINTS
from ..plan.plan import Plan
from ..shard.engine import engine_of
from ..shard.nuts import NutsSettings
from ..shard.starts import prior_points
from .anchored import AnchoredSettings, anchored
from .ascent import Peak
from .consensus import one_shot
from .crossed import crossed_mode
from .gaussian import inverse
from .laplace import draws_of, laplace
from .pilot import run_pilot
from .reports import Combined, FitSettings, Guess
from .subposterior import SamplingFailed


def locate(plan: Plan, shards: Shards) -> Guess | None:
    """Find where the posterior is: its mode, or a pilot's place where no mode can be found.

    Returns
    -------
    Guess or None
        None for one-shot methods and NUTS on all rows, which need none; and where one shard holds
        all rows, of which no mode was found.
    """
    options, model = plan.options, plan.model
    if plan.method in ("consensus", "parametric", "nuts"):
        return None
    because = engine_of(model).obstacle
    if model.crossed and not because:
        return _crossed(plan, shards)
    ridges: list[Peak] = []
    if not because:
        starts = prior_points(model, plan.example, options.seed, POINTS)
        corrected = not plan.uncorrected_because
        approximation, ridges = laplace(
            _fit_settings(plan), shards, starts, options.laplace, corrected=corrected
        )
        if approximation is not None:
            others = (*approximation.others, *approximation.along)
            shard_precision = inverse(approximation.covariance) / plan.n_shards
            return Guess(
                approximation.mean,
                shard_precision,
                informed=True,
                modes=approximation.modes,
                approximation=approximation,
                landmarks=[place.u for place in (*others, *ridges)],
            )
        because = "no mode was found"
    if plan.may_give_up:
        return None
    if options.method == "laplace" or plan.n_shards == 1:
        remedy = "anchored" if plan.n_shards > 1 else "nuts"
        raise ValueError(f"method='laplace', but {because}; use method='{remedy}'")
    pilot = options.pilot
    nuts = NutsSettings(pilot.num_warmup, pilot.num_samples, options.target_accept_prob)
    guess = run_pilot(model, shards, nuts, seed=options.seed, n_chains=pilot.num_chains)
    return guess._replace(landmarks=[*guess.landmarks, *(ridge.u for ridge in ridges)])


def _crossed(plan: Plan, shards: Shards) -> Guess | None:
    """Find the mode of a model with crossed effects, these integrated out."""
    starts = prior_points(plan.model, plan.example, plan.options.seed, POINTS)
    found = crossed_mode(plan.model, shards, plan.example, starts)
    if found is None and plan.may_give_up:
        return None
    if found is None:
        names = ", ".join(one.site for one in plan.model.crossed)
        raise ValueError(
            f"no mode was found with the crossed effects ({names}) integrated out: is the model "
            "identified, with priors that hold every parameter? method='nuts' samples it whole"
        )
    approximation, crossed = found
    return Guess(
        approximation.mean,
        inverse(approximation.covariance) / plan.n_shards,
        informed=True,
        modes=approximation.modes,
        approximation=approximation,
        crossed=crossed,
    )


def combine(plan: Plan, shards: Shards, guess: Guess | None) -> Combined:
    """Combine the shards, in unconstrained space, by the plan's method.

    A mode needs no draws for a correction to follow; rounds that a correction follows are few and
    short.
    """
    options = plan.options
    if guess is None:
        parametric = options.method == "parametric"
        return one_shot(_fit_settings(plan), plan.one_shot_nuts, shards, parametric=parametric)
    if plan.method == "laplace" and guess.approximation is not None:
        shape = (options.num_chains, options.num_samples)
        return draws_of(_fit_settings(plan), guess.approximation, shape)
    try:
        return _rounds(plan, shards, guess, short=not plan.uncorrected_because)
    except SamplingFailed as error:
        if guess.approximation is not None or engine_of(plan.model).obstacle:
            raise
        effects = ", ".join(site.name for site in plan.model.local)
        where = f" with the local effects ({effects}) integrated out" if effects else ""
        raise SamplingFailed(
            f"no mode of the posterior was found{where}, and sampling the shards instead failed: "
            f"{error} Where a site has a scale that is a site itself, write it non-centred "
            "(scale * z, z standard normal), or use n_shards=1."
        ) from error


def combine_longer(plan: Plan, shards: Shards, guess: Guess, before: Combined) -> Combined:
    """Go on from a combination that was not good enough for a correction, by longer rounds."""
    nearer = guess._replace(
        mean=before.mean,
        shard_precision=inverse(before.covariance) / plan.n_shards,
        informed=True,
        rounds=before.rounds,
    )
    return _rounds(plan, shards, nearer, short=False)


def _rounds(plan: Plan, shards: Shards, guess: Guess, *, short: bool) -> Combined:
    nuts, most = plan.round_nuts(short=short), plan.most_rounds(short=short)
    return anchored(AnchoredSettings(_fit_settings(plan), nuts, most, guess), shards)


def _fit_settings(plan: Plan) -> FitSettings:
    options = plan.options
    diagonal = options.weights == "diagonal"
    return FitSettings(plan.model, plan.chains_sampled, diagonal, options.seed)
