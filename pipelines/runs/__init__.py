"""A run from its config to its folder: checks before it starts, what it is known by, how it is shown."""
