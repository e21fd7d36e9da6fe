"""Where shards live and how results execution: Dask and pandas, never JAX."""
