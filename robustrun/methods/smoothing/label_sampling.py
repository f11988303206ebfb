"""Label-noise smoothing by sampling instead of the Chernoff bound: what determinism is compared with."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from robustrun.methods.smoothing.binomial import clopper_pearson_lower
from robustrun.methods.smoothing.label_hat import RidgeHat
from robustrun.methods.smoothing.label_radius import kl_radius, np_radius


@dataclass(frozen=True)
class SampledVotes:
    """`prediction` (m,) the most frequent class, `votes` (m,) its count in `samples` labellings; `log_bound` (m,)
    upper bound on log P(any other class), `radius_kl` and `radius_np` (m,), each point with confidence
    1 - `alpha`."""

    prediction: Tensor
    votes: Tensor
    log_bound: Tensor
    radius_kl: Tensor
    radius_np: Tensor


def noisy_labels(labels: Tensor, q: float, samples: int, classes: int, generator: torch.Generator) -> Tensor:
    """(samples, n) labels, each kept with probability 1 - q and otherwise replaced by one of the other classes."""
    shape, device = (samples, len(labels)), labels.device
    replaced = torch.rand(shape, generator=generator, device=device, dtype=torch.float64) < q
    shift = torch.randint(1, classes, shape, generator=generator, device=device)
    return (labels + shift * replaced) % classes


def sampled_votes(
    hat: RidgeHat,
    labels: Tensor,
    classes: int,
    queries: Tensor,
    q: float,
    regularisation: float,
    *,
    samples: int,
    generator: torch.Generator,
    alpha: float = 0.001,
    batch: int = 64,
) -> SampledVotes:
    """Votes of ridge classifiers fitted to `samples` noisy labellings; two classes are cut at a score of 1/2.

    Of labels (n,), for queries (m, k) of features. A first `batch` of labellings selects each point's class and the
    `samples` after it count the votes, so that the Clopper-Pearson bound (level `alpha`) is valid. The alphas are
    never formed: a labelling costs O((n + m) r).
    """
    weights = hat.weights(queries, regularisation)

    def count(size: int) -> Tensor:
        noisy = noisy_labels(labels, q, size, classes, generator)
        # one regression for all labellings: their one-hot columns side by side
        columns = one_hot(noisy, classes).to(weights.dtype).permute(1, 0, 2).flatten(1)
        scores = hat.scores(weights, columns).view(len(queries), size, classes)
        chosen = (scores[..., 1] >= 0.5).long() if classes == 2 else scores.argmax(2)
        return one_hot(chosen, classes).sum(1)

    prediction = count(batch).argmax(1)
    counts = sum(count(min(batch, samples - done)) for done in range(0, samples, batch))
    votes = counts.gather(1, prediction[:, None]).squeeze(1)
    lower = torch.as_tensor(clopper_pearson_lower(votes.cpu().numpy(), samples, alpha), device=weights.device)
    log_bound = torch.log1p(-lower)
    radii = (radius(log_bound, q, len(hat), classes) for radius in (kl_radius, np_radius))
    return SampledVotes(prediction, votes, log_bound, *radii)
