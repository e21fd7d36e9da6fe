from pathlib import Path

import dask.dataframe as dd
import numpyro
import numpyro.distributions as dist
import xarray as xr

from dask_consensus.simulate import lung_function

visits = lung_function(300, seed=1)
ddf = dd.from_pandas(visits[visits.index % 97 != 0], npartitions=3)
ddf["Years"] = (7 * ddf["Weeks"] + 5) / 365.25
ddf["Liters"] = ddf["FVC"] / 1000
ddf["Sex"] = ddf["Sex"].astype("category")
names = {"patient": "Patient", "years": "Years", "sex": "Sex", "liters": "Liters"}


def model(patient, years, sex, liters=None, *, n_patient, n_sex):
    level = numpyro.sample("level", dist.Normal(3, 1).expand([n_sex]).to_event(1))
    slope = numpyro.sample("slope", dist.Normal(0, 1))
    tau = numpyro.sample("tau", dist.HalfNormal(1))
    sigma = numpyro.sample("sigma", dist.HalfNormal(1))
    with numpyro.plate("patients", n_patient):
        alpha = numpyro.sample("alpha", dist.Normal(0, tau))
    with numpyro.plate("visits", len(years)):
        mean = level[sex] + alpha[patient] + slope * years
        numpyro.sample("obs", dist.Normal(mean, sigma), obs=liters)


# As in "Getting started", which has left its fit here if it was run before.
kept = Path("_build/visits.nc")
if kept.exists():
    tree = xr.open_datatree(kept)
else:
    tree = ddf.consensus.fit(model, by="Patient", columns=names, n_shards=4, progress=False)
