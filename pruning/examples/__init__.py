"""Which examples to train on: scores, inclusion probabilities, subsets and weights, policies, diagnostics."""
