"""What a NumPyro model is, read: its sites, their roles, what it must not do."""
