"""``ddf.consensus``: what is registered on DataFrames; it holds the frame and delegates."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Unpack

import dask
import dask.dataframe as dd
import numpy as np
import pandas as pd
from dask.dataframe.extensions import register_dataframe_accessor

from .config import FitOptions, Options

if TYPE_CHECKING:
    import os

    import xarray as xr

    from .fit import LazyFit
    from .formula.lazy import Again, LazyFormula
    from .plan.plan import Plan
    from .update import LazyUpdate

    Earlier = xr.DataTree | str | os.PathLike[str]  # what may be updated


@register_dataframe_accessor("consensus")
class ConsensusAccessor:
    """Fit NumPyro models to the rows of a Dask DataFrame, shard by shard."""

    def __init__(self, frame: dd.DataFrame) -> None:
        self._frame = frame

    def plan(
        self,
        model: Callable[..., Any] | str,
        *,
        by: Hashable | Sequence[Hashable] | None = None,
        columns: Mapping[str, Hashable | Sequence[Hashable]] | None = None,
        family: str | None = None,
        link: str | None = None,
        priors: Mapping[str, Any] | None = None,
        progress: bool | None = None,
        **options: Unpack[FitOptions],
    ) -> Plan:
        """Say what `fit` would do, without sampling anything.

        Reads the model by tracing it on a small sample of the frame, and passes over the rows
        once to count them. Parameters are those of :meth:`fit`.

        Returns
        -------
        Plan
            Prints as tables: sites and their roles, tempering, shards, padding, arguments.

        Raises
        ------
        ValueError, TypeError
            Whatever would make `fit` fail or give another posterior and can be known now; the
            message names the culprit and the remedy.

        Examples
        --------
        `ddf` and `model` are those of the example of :meth:`fit`.

        >>> plan = ddf.consensus.plan(model, by="group", n_shards=4)
        >>> plan.n_shards, plan.method
        (4, 'laplace')
        >>> print(plan)
        fit
        ...
        sites
          site   role      shape    support   distribution  in each shard
          mu     shared    ()       real      Normal        to the power w
          tau    shared    ()       positive  HalfNormal    to the power w
          alpha  local     (group)  real      Normal        whole
          obs    observed  (rows)                           whole
        ...
        """
        if isinstance(model, str):
            lazy = self._formula(model, by, columns, (family, link, priors), progress, options)
            planned: Any = lazy.plan()
            return planned
        _check_no_formula(family, link, priors)
        return self._lazy(model, by, columns, progress, options).plan()

    def fit(
        self,
        model: Callable[..., Any] | str,
        *,
        by: Hashable | Sequence[Hashable] | None = None,
        columns: Mapping[str, Hashable | Sequence[Hashable]] | None = None,
        family: str | None = None,
        link: str | None = None,
        priors: Mapping[str, Any] | None = None,
        progress: bool | None = None,
        compute: bool = True,
        update: Earlier | tuple[Earlier, dd.DataFrame] | None = None,
        **options: Unpack[FitOptions],
    ) -> xr.DataTree | LazyFit | LazyUpdate | LazyFormula:
        """Fit a NumPyro model, or a formula, to the frame.

        Rows are re-partitioned by group key into balanced shards, every shard contributes what
        its own rows say under its share of the prior, the contributions are combined in
        unconstrained space, and the combination is corrected to the full model's posterior, with a
        verdict on whether that succeeded.

        Parameters
        ----------
        model : callable or str
            A formula, ``"y ~ x + C(day) + (1 + x | store)"``, of which a model is made, its groups
            the keys. Or an ordinary NumPyro model. Its arguments are passed by name: a key of
            `columns`, or a column of the frame, or a default. The argument fed by a `by` column
            receives codes 0..n-1, local to the shard, and ``n_<argument>`` the number of groups, a
            Python int.
            Rows without a value of the response, which the model observes and nothing depends on,
            are left out.
        by : column or list of columns, optional
            Group key; nested keys outermost first. No outermost group is split. Without it rows
            are exchangeable.
        columns : mapping, optional
            Argument of the model -> column, where their names differ; or -> a list of columns, or a
            pattern (``"x*"``), for an argument that receives a matrix, ``(rows, columns)``. A
            column of lists or arrays of one length is a matrix, too. Categories are numbered in the
            order that the column gives them, or sorted; they, and the names of columns, label the
            result.
        family : str, optional
            With a formula: "gaussian", the default, "student", "bernoulli", "binomial", "poisson",
            "negativebinomial", "gamma", "beta" or "ordered".
        link : str, optional
            With a formula: of the mean; by default identity, logit or log, as the family has it.
        priors : mapping, optional
            With a formula: parameter -> its prior, ``"Normal(0, 1)"`` or a distribution of NumPyro,
            where it shall not be Bambi's. The plan names all parameters with their priors.
        progress : bool, optional
            Show one live line: the phase, shards done, what was found, and when it may end; by
            default only in a terminal or notebook. Every phase is logged as well, by the logger
            ``dask_consensus``, at level INFO.
        compute : bool
            False returns a lazy object that has run nothing; its ``compute()`` does, under the
            configuration of the moment when it was made.
        update : DataTree, or str or path of a store, or tuple of one and Dask DataFrame, optional
            The result of an earlier fit of the same model, or the `store` where it is kept, to
            which the rows of this frame are added; `by` and `columns` are those of that fit. The
            old rows are not read. Where groups have old and new rows they are needed,
            ``update=(tree, ddf_old)``, and those of these groups are read; all of them are where
            the new rows move the posterior further than what is known of the old ones reaches, or
            the model has crossed effects.
        method : {"auto", "laplace", "anchored", "consensus", "parametric", "nuts"}
            How shards are combined into what is then corrected. Newton's method on all shards,
            local effects integrated out, which samples nothing ("laplace"); anchored rounds of
            NUTS; or one round under the tempered prior, then averages of the shards'
            draws weighted by precision (Scott et al. 2016), or draws from the product of
            Gaussians (Neiswanger et al. 2014). Or no shards: NUTS on all rows together ("nuts").
            "auto" is "laplace" where local effects can be integrated out, which reaches the answer
            soonest, else "anchored". Where all rows are in one shard it is "nuts" in place of
            "anchored", where shared parameters are many for the rows, and where a correction's
            verdict would be bad.
        n_shards : int, optional
            Number of shards; rows / `rows_per_shard` if absent.
        rows_per_shard : int, optional
            Rows a shard should have, where `n_shards` does not say it. Configured default 50,000.
        num_warmup : int, optional
            NUTS transitions discarded by each chain, wherever shards are sampled. Configured
            default 1000; 100 in anchored rounds (``anchored.num-warmup``), which start warm.
        num_samples : int, optional
            Draws of each chain of the result, and NUTS transitions that each chain on a shard
            keeps, but in an anchored round that a correction follows: there no more than 250
            (``anchored.num-samples``), or four a shared dimension. Configured default 1000.
        num_chains : int, optional
            Chains of the result. Corrected draws, and those of "laplace", are independent: their
            chains are one sample in parts, for tools that compare chains. Those of NUTS on all rows
            are chains, each from a start of its own. Configured default 4. If given, also chains on
            each of several shards that are sampled, else these have one (``shard-chains``), and so
            has a result that nothing corrects.
        target_accept_prob : float, optional
            Of NUTS. Configured default 0.8.
        rounds : int, optional
            Most anchored rounds. Configured default 2 where a correction follows, else 5.
        weights : {"full", "diagonal"}
            Weigh draws of shards by their precision matrices, or by the precision of each
            coordinate alone; "laplace" has no draws to weigh.
        seed : int
            Equal seeds give equal draws, on any scheduler and any number of workers.
        correct : {"auto", True, False}
            Weight the combination by the full model's posterior wherever the local effects can be
            integrated out ("auto"); insist on it (True: an error where they cannot, and no NUTS in
            its place); or leave the method as published (False).
        split_every : int, optional
            Contributions added by one task of the reduction tree. Configured default 8.
        resources : mapping, optional
            What a worker must have to work on shards, such as ``{"GPU": 1}``; reading, shuffling
            and reducing run anywhere. Needs a distributed client.
        shards_per_task : int or "auto"
            Shards that one task takes. On a GPU those of one shape are sampled at once, and "auto"
            takes as many as its memory holds; on a CPU they follow one another, and more than one
            only makes fewer tasks for the scheduler.

        local : {"summary", "draws", None}
            Effects of groups, where they can be integrated out: mean, sd, 5%, 50% and 95% quantile
            of every site that has an entry a group ("summary"); or draws of them, each belonging to
            a draw of the shared parameters.
        local_draws : int, optional
            Draws of the shared parameters at which the effects are found, taken evenly from those
            of the result. Configured default 12 (``local.draws``), up to 256 of few rows; the plan
            says what each costs.
        store : str, optional
            Folder or URL, which this process and the workers can write to, where the fit keeps what
            it finds as it goes: the same call goes on from there, after a crash, in another process
            or on another cluster, to the same bits. Draws of the effects of groups are written
            there by the workers, as Zarr, and ``tree["local"]`` reads them when it is used. Once
            the fit has finished, `update` takes it in place of the result.

        Returns
        -------
        xarray.DataTree
            ``posterior`` with dims (chain, draw, ...); ``uncorrected``, the combination before its
            correction; ``shards`` with each shard's diagnostics, dims (round, shard); ``rounds``;
            ``correction``; ``local`` with the effects of groups, dims (statistic, <key>, ...) or
            (chain, draw, <key>, ...), of several levels with a key each. ``attrs["verdict"]`` says
            what may be believed. Or the lazy object.

        Raises
        ------
        ValueError, TypeError
            On bad input, before sampling wherever it can be known then; the message names the
            column, site, group, shard or option, and the remedy.
        StoreMismatch
            If `store` holds a fit of another model, with other settings or of other data, saying
            what differs.
        RuntimeError
            If the cluster is gone, has no worker that can take a task for
            ``consensus.worker-timeout`` seconds, or loses each worker that tries a task.

        Warns
        -----
        UserWarning
            If a group is larger than a shard, or the verdict is bad; if a file of `store` is
            damaged, naming it, before what it held is computed again.

        Notes
        -----
        NUTS runs on shards with the methods "anchored", "consensus" and "parametric"; where local
        effects cannot be integrated out, "auto" being "anchored" or "nuts" then; and where a
        correction has failed, in longer rounds, or on all rows where one shard holds them.
        Elsewhere nothing is sampled: Newton's method finds the mode, and the full posterior is
        evaluated at points around it. `plan` says which it will be, and which options have no
        effect on it.

        Examples
        --------
        Forty groups of five rows, in four shards:

        >>> import dask.dataframe as dd
        >>> import numpy as np
        >>> import numpyro
        >>> import numpyro.distributions as dist
        >>> import pandas as pd
        >>> import dask_consensus
        >>> rng = np.random.default_rng(0)
        >>> group = np.repeat([f"g{i:02d}" for i in range(40)], 5)
        >>> y = np.repeat(rng.normal(2, 1, 40), 5) + rng.normal(0, 1, 200)
        >>> ddf = dd.from_pandas(pd.DataFrame({"group": group, "y": y}), npartitions=2)

        >>> def model(group, y=None, *, n_group):
        ...     mu = numpyro.sample("mu", dist.Normal(0, 10))
        ...     tau = numpyro.sample("tau", dist.HalfNormal(5))
        ...     with numpyro.plate("groups", n_group):
        ...         alpha = numpyro.sample("alpha", dist.Normal(mu, tau))
        ...     with numpyro.plate("rows", len(group)):
        ...         numpyro.sample("obs", dist.Normal(alpha[group], 1), obs=y)

        >>> tree = ddf.consensus.fit(model, by="group", n_shards=4, progress=False)
        >>> print(tree.attrs["verdict"])
        Good: this is the full model's posterior. ... means are within ...
        >>> dict(tree["posterior"]["tau"].sizes)
        {'chain': 4, 'draw': 1000}
        >>> tree["local"]["alpha"].sel(group="g07")["statistic"].values.tolist()
        ['mean', 'sd', 'q05', 'q50', 'q95']
        """
        lazy: LazyFit | LazyUpdate | LazyFormula
        if isinstance(model, str):
            given = (family, link, priors)
            lazy = self._formula(model, by, columns, given, progress, options, update)
            return lazy.compute() if compute else lazy
        _check_no_formula(family, link, priors)
        lazy = self._lazy(model, by, columns, progress, options)
        if update is not None:
            from .update import LazyUpdate, update_of

            fit, (tree, old) = lazy, update_of(update)
            lazy = LazyUpdate(self._frame, model, by, columns, fit.options, progress, tree, old)
        return lazy.compute() if compute else lazy

    def predict(
        self,
        tree: xr.DataTree,
        model: Callable[..., Any] | str | None = None,
        *,
        columns: Mapping[str, Hashable | Sequence[Hashable]] | None = None,
        statistics: Sequence[str] | None = None,
        kind: Literal["predictive", "expected", "effects"] = "predictive",
        draws: int | None = None,
        check_verdict: bool = True,
    ) -> dd.DataFrame:
        """Set a prediction, or the row's own effects, beside each row of the frame.

        Nothing is computed yet. Rows stay where they are, in their order; columns that the response
        comes from may be missing, or empty.

        Parameters
        ----------
        tree : DataTree
            What `fit` returned, as it was, or read from netCDF or Zarr. Its effects of groups are
            used: of a summary as normal distributions given the shared parameters, draws as they
            are.
        model : callable, optional
            The model that was fitted; of a formula it is in the tree.
        columns : mapping, optional
            Argument of the model -> column, or columns, where they have other names than in the
            fit.
        statistics : list of str, optional
            Of ``mean``, ``sd``, quantiles by their percentage (``q05``, ``q97.5``), and
            probabilities of values of discrete sites (``p0``, ``p1``). The default is mean, sd, q05
            and q95; the probabilities of all categories of a categorical site.
        kind : {"predictive", "expected", "effects"}
            Of what would be observed, noise included; of its expected value, given which only the
            parameters are uncertain; or of the model's own latent and deterministic sites with one
            entry a row (a true value behind a measurement, over-dispersion), given the row's
            response. These are the posterior's of rows that were fitted; of others of known groups
            they are given the effects of these as they were. Rows without a response, or of groups
            never seen, have NaN.
        draws : int, optional
            Draws of all unknowns that are averaged over; 128, or more if there are more than 32
            shared parameters and effects a group.
        check_verdict : bool
            False predicts by a fit whose verdict is bad, too.

        Returns
        -------
        dask.dataframe.DataFrame
            The frame, its partitions and its index, with a column ``<site>_<statistic>`` of floats
            for each observed site that follows the rows, or each that is not
            (``<site>[i]_<statistic>`` where a row has several entries), and, where groups have
            effects, ``new_group``: whether the fit has not seen the group, whose effects are then
            drawn from the population. Of effects on several levels that is the innermost;
            ``new_<key>`` says the same of each level outside.

        Raises
        ------
        ValueError
            At once if the tree is another model's, was not to be relied on, or has no effects of
            groups though rows need them; if the likelihood is a ``numpyro.factor``; if a column is
            missing, or one that would be added is there. When computed, if a partition has missing
            or infinite values, categories that the fit had not, or keys of another kind; the
            message names the column and the rows.

        Examples
        --------
        `ddf`, `model` and `tree` are those of the example of :meth:`fit`.

        >>> ddf.consensus.predict(tree, model).columns.tolist()
        ['group', 'y', 'obs_mean', 'obs_sd', 'obs_q05', 'obs_q95', 'new_group']

        A group that the fit has not seen is drawn from the population:

        >>> new = dd.from_pandas(pd.DataFrame({"group": ["g07", "z"]}), npartitions=1)
        >>> new.consensus.predict(tree, model).compute()["new_group"].tolist()
        [False, True]
        """
        from .local.predictions import predict

        again = self._again(tree, model, columns)
        answer = predict(
            again.frame,
            tree,
            again.model,
            columns=again.columns,
            statistics=statistics,
            kind=kind,
            draws=draws,
            check_verdict=check_verdict,
        )
        return again.without(answer)

    def check(
        self,
        tree: xr.DataTree,
        model: Callable[..., Any] | str | None = None,
        *,
        statistics: Sequence[str] = ("mean", "sd", "q05", "q50", "q95", "zeros"),
        by: Hashable | None = None,
        columns: Mapping[str, Hashable | Sequence[Hashable]] | None = None,
        draws: int = 100,
        check_verdict: bool = True,
    ) -> xr.Dataset:
        """Compare the data with data that the fitted model would make.

        A posterior predictive check (Gelman, Meng, Stern 1996): at each of some draws of all
        unknowns every row is made anew where it lies, in groups that keep their effects, and a few
        statistics are compared. :func:`dask_consensus.plots.checks` draws the result.

        Parameters
        ----------
        tree, model, columns, check_verdict
            As for :meth:`predict`; the response must be there.
        statistics : list of str
            Of ``mean``, ``sd``, ``min``, ``max``, ``zeros`` (the share of zeros), and quantiles by
            their percentage (``q05``).
        by : column, optional
            Compare the rows of each of its values apart.
        draws : int
            Data sets that are made; more where there are many shared parameters.

        Returns
        -------
        xarray.Dataset
            Of each observed site: ``<site>``, the statistics of the data, dims (statistic[, by]);
            ``<site>_replicated``, those of the data sets made, dims (draw, statistic[, by]);
            ``<site>_p``, the share of these below the data's: near 0 or 1 the model does not make
            such data. Quantiles are interpolated in histograms of 4,096 bins (512 with `by`). Rows
            that a mask of the model leaves out are not compared.

        Raises
        ------
        ValueError
            As :meth:`predict`; and if a statistic is unknown, or `by` is missing, has missing or
            too many values.

        Examples
        --------
        `ddf`, `model` and `tree` are those of the example of :meth:`fit`.

        >>> made = ddf.consensus.check(tree, model, statistics=["mean", "sd"])
        >>> dict(made["obs_replicated"].sizes)
        {'draw': 100, 'statistic': 2}
        >>> bool(((made["obs_p"] > 0.01) & (made["obs_p"] < 0.99)).all())
        True
        """
        from .local.checks import check

        again = self._again(tree, model, columns)
        return check(
            again.frame,
            tree,
            again.model,
            statistics=statistics,
            by=by,
            columns=again.columns,
            draws=draws,
            check_verdict=check_verdict,
        )

    def loo(
        self,
        tree: xr.DataTree,
        model: Callable[..., Any] | str | None = None,
        *,
        unit: Literal["row", "group"] = "row",
        by: Hashable | Sequence[Hashable] | None = None,
        columns: Mapping[str, Hashable | Sequence[Hashable]] | None = None,
        draws: int | None = None,
        subsample: int | None = None,
        check_verdict: bool = True,
    ) -> Any:
        """Estimate how well the model predicts rows, or groups, that it was not given.

        Leave-one-out cross-validation by importance sampling (PSIS-LOO: Vehtari, Gelman, Gabry
        2017, Statistics and Computing 27), where the rows lie. The frame must be the one that was
        fitted.

        Parameters
        ----------
        tree, model, columns, check_verdict
            As for :meth:`predict`. Where rows are left out, a summary's effects are taken as normal
            given the shared parameters; draws (``local="draws"``) as they are, which is what
            ``arviz.loo`` does.
        unit : {"row", "group"}
            What is left out, one at a time. ``"row"``: how well further rows of the same groups are
            predicted. ``"group"``: how well all rows of a new group are, together; the group's
            effects are integrated out, as in the fit's correction (Merkle, Furr, Rabe-Hesketh 2019,
            Psychometrika 84). The rows are sent to shards anew.
        by : column or list of columns, optional
            With ``unit="group"``, where the model sees no groups: those to leave out. By default
            the `by` of the fit; of several levels, the outermost that carries effects.
        draws : int, optional
            Draws of all unknowns, at least 50; those that the tree has at most. By default 400, and
            up to 4,000 where there are fewer rows than 50,000: the fewer the draws, the better do
            rows seem to be predicted whose Pareto shape is large.
        subsample : int, optional
            Leave out about so many rows, at least 100, chosen at random, and estimate the others
            from few draws and how far these are off where all are used (Magnusson et al. 2019): for
            more than some million rows. ``subsampling_se`` is the error that this adds; elpd of
            each row is not given, so that only an ArviZ that knows of it can compare the result.

        Returns
        -------
        ELPDData
            Of the ArviZ that is installed, for its ``compare``: elpd (nats), its standard error,
            p_loo, and elpd and the Pareto shape of each row, in the order of the frame, or of each
            group, labelled by its keys and in their order. :meth:`pointwise` has these as a table.

        Raises
        ------
        ValueError
            As :meth:`predict`; if the rows are not those that were fitted: of rows, their number
            and groups are compared, of groups all values; and if there are no groups, or groups
            whose effects cannot be integrated out.
        ImportError
            Without ArviZ.

        Examples
        --------
        `ddf`, `model` and `tree` are those of the example of :meth:`fit`.

        >>> left_out = ddf.consensus.loo(tree, model)
        >>> int(left_out.n_data_points)
        200
        >>> bool(left_out.se > 0)
        True
        """
        from .local.loo import loo

        again = self._again(tree, model, columns)
        return loo(
            again.frame,
            tree,
            again.model,
            unit=unit,
            by=by,
            columns=again.columns,
            draws=draws,
            subsample=subsample,
            check_verdict=check_verdict,
        )

    def pointwise(
        self,
        tree: xr.DataTree,
        model: Callable[..., Any] | str | None = None,
        *,
        unit: Literal["row", "group"] = "row",
        by: Hashable | Sequence[Hashable] | None = None,
        columns: Mapping[str, Hashable | Sequence[Hashable]] | None = None,
        draws: int | None = None,
        check_verdict: bool = True,
    ) -> dd.DataFrame:
        """Say of each row, or group, what :meth:`loo` adds up, with its parameters.

        The rows may be some of those that were fitted. That they are is not checked, but for their
        groups: of a row that was not fitted, `elpd` says nothing.

        Returns
        -------
        dask.dataframe.DataFrame
            Three columns: ``elpd``, the log predictive density of what was left out (nats),
            ``lpd``, that with it left in, and ``pareto_k``, beyond about 0.7 of which the first
            cannot be trusted; all are NaN for a row without a response. Of rows, lazily, beside
            those of the frame; of groups, all found
            already, beside their keys and their numbers of ``rows``.

        Examples
        --------
        `ddf`, `model` and `tree` are those of the example of :meth:`fit`.

        >>> ddf.consensus.pointwise(tree, model).columns.tolist()
        ['group', 'y', 'elpd', 'lpd', 'pareto_k']
        """
        from .local.loo import pointwise

        again = self._again(tree, model, columns)
        answer = pointwise(
            again.frame,
            tree,
            again.model,
            unit=unit,
            by=by,
            columns=again.columns,
            draws=draws,
            check_verdict=check_verdict,
        )
        return again.without(answer)

    def _formula(
        self,
        text: str,
        by: Hashable | Sequence[Hashable] | None,
        columns: Mapping[str, Hashable | Sequence[Hashable]] | None,
        given: tuple[str | None, str | None, Mapping[str, Any] | None],
        progress: bool | None,
        options: FitOptions,
        update: Earlier | tuple[Earlier, dd.DataFrame] | None = None,
    ) -> LazyFormula:
        checked = Options.frozen(**options)
        for name, value in (("by", by), ("columns", columns)):
            if value is not None:
                raise ValueError(
                    f"{name}= is for models: it follows from the formula {text!r}, whose groups "
                    "are the keys, as store is in 'y ~ x + (1 | store)'"
                )
        from .formula.lazy import LazyFormula
        from .update import update_of

        family, link, priors = given
        if update is not None and any(one is not None for one in given):
            raise ValueError("family, link and priors of an update are those of the earlier fit")
        return LazyFormula(
            self._frame,
            text,
            family or "gaussian",
            link,
            priors,
            checked,
            progress,
            None if update is None else update_of(update),
        )

    def _again(
        self,
        tree: xr.DataTree,
        model: Callable[..., Any] | str | None,
        columns: Mapping[str, Hashable | Sequence[Hashable]] | None,
    ) -> Again:
        from .formula.lazy import met_again

        return met_again(self._frame, tree, model, columns)

    def _lazy(
        self,
        model: Callable[..., Any],
        by: Hashable | Sequence[Hashable] | None,
        columns: Mapping[str, Hashable | Sequence[Hashable]] | None,
        progress: bool | None,
        options: FitOptions,
    ) -> LazyFit:
        checked = Options.frozen(**options)
        from .fit import LazyFit

        return LazyFit(self._frame, model, by, columns, checked, progress)


def _check_no_formula(
    family: str | None, link: str | None, priors: Mapping[str, Any] | None
) -> None:
    for name, value in (("family", family), ("link", link), ("priors", priors)):
        if value is not None:
            raise ValueError(
                f"{name}= is for formulas, as in fit('y ~ x', family='bernoulli'): a model has it "
                "in its code"
            )


@pd.api.extensions.register_dataframe_accessor("consensus")
def of_pandas(frame: pd.DataFrame) -> ConsensusAccessor:
    """Give a pandas DataFrame what a Dask one has; it becomes one of a single partition."""
    objects = [values for _, values in frame.items() if pd.api.types.is_object_dtype(values)]
    held = [value for values in objects for value in values.dropna().head(1)]
    # Dask would write lists and arrays as text.
    lists = any(isinstance(value, list | tuple | np.ndarray) for value in held)
    with dask.config.set({"dataframe.convert-string": False} if lists else {}):
        return ConsensusAccessor(dd.from_pandas(frame, npartitions=1, sort=False))
