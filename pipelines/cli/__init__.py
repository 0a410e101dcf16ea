"""The command ``spikeprune``: its verbs by group, and what they print."""

from pipelines.cli.main import main as main
