"""Networks of other libraries as they are: spikingjelly, snntorch, norse, and plain modules.

::

    network = wrap(model, example)          # one forward pass tells what drives what
    pruned = prune(network, loader, sparsity=0.9)

No library is imported unless the model is its own.
"""

from snn.adapters.library import Library, library_of
from snn.adapters.network import Adapted, Trace, wrap

__all__ = ["Adapted", "Library", "Trace", "library_of", "wrap"]
