"""Effects of groups, given the shared parameters."""
