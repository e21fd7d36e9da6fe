"""Where shards live and how results travel: Dask and pandas, never JAX."""
