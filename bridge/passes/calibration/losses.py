"""How far a network's answers are from those of another one that it learns from.

Hinton, Vinyals and Dean, "Distilling the knowledge in a neural network", 2015.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

TEMPERATURE = 4.0
"""What both networks' scores are divided by. On images that the other network is sure of, and of training images there
are hardly any else, its softmax says little more than a label would; softened, how unlikely it finds each wrong class
counts, too."""


def divergence(scores: Tensor, taught: Tensor) -> Tensor:
    """Kullback-Leibler divergence of softened class `scores` ``[B, K]`` from `taught` ones, in nats.

    Times the temperature's square, so that its gradients are as large as those of an unsoftened one.
    """
    found, wanted = ((one / TEMPERATURE).log_softmax(1) for one in (scores, taught))
    return F.kl_div(found, wanted, log_target=True, reduction="batchmean") * TEMPERATURE**2
