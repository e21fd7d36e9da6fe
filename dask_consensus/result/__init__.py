"""What the user holds in the end, and whether it may be believed."""
