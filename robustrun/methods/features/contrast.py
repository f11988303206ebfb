"""The contrastive objective: two views of an image belong together, and apart from all others."""

import torch
import torch.nn.functional as F
from torch import Tensor


def nt_xent(first: Tensor, second: Tensor, temperature: float = 0.5) -> Tensor:
    """Normalised temperature-scaled cross-entropy, the mean over all 2 B views; `first`, `second` (B, k).

    Each view is to pick its partner among the 2 B - 1 others by cosine similarity. Source: Chen et al., "A simple
    framework for contrastive learning of visual representations" (ICML 2020), equation 1.
    """
    views = F.normalize(torch.cat([first, second]), dim=1)
    similarity = views @ views.T / temperature
    similarity.fill_diagonal_(-torch.inf)
    partner = torch.arange(len(views), device=views.device).roll(len(first))
    return F.cross_entropy(similarity, partner)
