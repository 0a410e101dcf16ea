"""OrderDP: the highest losses of a random subset."""

from math import sqrt

import numpy as np

from pruning.examples.policies.chosen import Unweighted, highest
from pruning.examples.policies.settings import Settings
from pruning.examples.sampling import Ints


class Orderdp(Unweighted):
    """OrderDP (Jin et al., ICLR 2026, arXiv 2606.08574): the ``m`` highest losses of a random subset.

    Each epoch draws s of the N examples uniformly and trains on the m of them whose last known losses are the
    highest, with weights 1: biased for the mean loss, unbiased for the paper's surrogate, in which a loss
    weighs by the chance that its rank is selected. The paper needs no annealing (set ``anneal_epochs`` to 0).
    Its default is s = 0.5 N and m = 0.6 s, that is r = 0.7; its code has other pairs for other ratios, and
    ``s = sqrt(m N)`` comes close to them. We know the rule from that code and a detailed summary, and could
    not verify the pairs behind the paper's tables.

    Args:
        settings: shared settings.
        candidates: ``s / N``, from ``m / N`` to 1; ``sqrt(m / N)`` when not given.
    """

    name = "orderdp"
    score = "loss"
    rescore_every = 0

    def __init__(self, settings: Settings, *, candidates: float | None = None) -> None:
        super().__init__(settings)
        keep = 1 - min(settings.ratio, settings.ratio if settings.ratio_from is None else settings.ratio_from)
        if candidates is not None and not 0 < candidates <= 1:
            raise ValueError(f"candidates: {candidates!r} must be in (0, 1]")
        if candidates is not None and candidates < keep:
            raise ValueError(f"candidates: {candidates!r} must be at least 1 - ratio, {keep:.3g}")
        self.candidates = candidates

    def chosen(self, epoch: int) -> Ints:
        """The highest losses among the candidates."""
        s, size = self.settings, self.settings.size_at(epoch)
        share = sqrt(size / s.num_present) if self.candidates is None else self.candidates
        candidates = np.zeros(s.num_examples, bool)
        drawn = max(size, round(share * s.num_present))
        candidates[self.random_part(s.positions, drawn, epoch)] = True
        return highest(self.scores, size, s.seed, candidates, epoch)
