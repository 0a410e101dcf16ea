"""One training function under every launcher: the loop, its data, its score table, its checkpoints."""
