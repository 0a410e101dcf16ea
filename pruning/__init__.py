"""What to train on (``pruning.examples``) and what to keep (``pruning.weights``).

Needs torch and numpy only, and networks that offer ``synapses()`` and ``readout``.
"""
