"""What will be done, and whether it can be."""
