"""``python -m pipelines.cli`` is ``spikeprune``."""

import sys

from pipelines.cli.main import main

sys.exit(main())
