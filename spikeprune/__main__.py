"""``python -m spikeprune`` is ``spikeprune``."""

import sys

from pipelines.cli.main import main

sys.exit(main())
