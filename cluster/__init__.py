"""Reaching Ray clusters. Knows nothing of networks or pruning."""
