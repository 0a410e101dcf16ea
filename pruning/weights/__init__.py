"""Which weights to keep: calibration, criteria, exact allocation, masks."""
