"""How what the shards say becomes one posterior."""
