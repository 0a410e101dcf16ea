"""Examples at rest: Parquet folders, their manifest, and how rows become tensors."""
