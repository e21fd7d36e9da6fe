"""What makes a combination the full model's posterior, and proves it."""
