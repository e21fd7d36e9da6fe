"""How the rows of a frame reach balanced shards: Dask and pandas, never JAX."""
