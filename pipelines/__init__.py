"""From Parquet to a pruned network: Ray Data, Ray Train, and the ``spikeprune`` command."""
