"""Measurements: each module runs ours beside the alternative and prints ratios."""
