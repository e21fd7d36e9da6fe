"""What a formula says, and which NumPyro model that is."""
