"""What happens inside one shard: NumPyro and JAX, no Dask."""
