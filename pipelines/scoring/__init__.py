"""Scores of whole datasets on Ray Data, rankings, and subsets drawn from them."""
