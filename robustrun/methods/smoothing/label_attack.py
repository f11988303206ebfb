"""Label-flipping attacks on an undefended classifier: logistic regression retrained on the flipped labels."""

import torch
from torch import Tensor


def fit_logistic(
    features: Tensor,
    labels: Tensor,
    *,
    penalty: float = 1e-3,
    start: Tensor | None = None,
    tolerance: float = 1e-8,
    max_iterations: int = 30,
) -> Tensor:
    """Weights (B, k) of B logistic regressions on the same `features` (n, k), each with its own `labels` (B, n).

    Minimises the mean loss plus penalty / 2 |w|^2 by Newton's method, all problems at once, to a gradient norm of
    `tolerance`; a column of ones in the features is the intercept.
    """
    n, k = features.shape
    y = labels.to(features.dtype)
    w = features.new_zeros(len(y), k) if start is None else start.clone()
    products = (features[:, :, None] * features[:, None, :]).flatten(1)  # every Hessian is a mixture of these
    ridge = penalty * torch.eye(k, dtype=features.dtype, device=features.device)
    for _ in range(max_iterations):
        p = torch.sigmoid(w @ features.T)
        gradient = (p - y) @ features / n + penalty * w
        if gradient.norm(dim=1).amax() <= tolerance:
            break
        hessian = ((p * (1 - p)) @ products / n).view(-1, k, k) + ridge
        step = torch.linalg.solve(hessian, gradient)
        # a full step can overshoot where the fit is nearly separable: no longer than 5 in score, a safe trust region
        length = (step @ features.T).abs().amax(1, keepdim=True).clamp_min(5.0) / 5.0
        w = w - step / length
    return w


def influence_order(
    features: Tensor, labels: Tensor, weights: Tensor, queries: Tensor, penalty: float = 1e-3
) -> Tensor:
    """Training points (m, n) by how much flipping each raises the loss of the query's predicted class, first most.

    First-order influence on logistic regression with `weights` (k,). Source: Koh and Liang (ICML 2017), eq. 2,
    for a flipped label.
    """
    n, k = features.shape
    p = torch.sigmoid(features @ weights)
    hessian = (features.T * (p * (1 - p))) @ features / n
    hessian += penalty * torch.eye(k, dtype=features.dtype, device=features.device)
    score = queries @ weights
    # d loss(predicted class) / d score = -(1 - s) for class 1 and s for class 0, at the predicted class
    slope = torch.sigmoid(score) - (score >= 0).to(features.dtype)
    influence = -(torch.linalg.solve(hessian, queries.T * slope).T @ features.T) * (2 * labels - 1)
    return influence.argsort(dim=1, descending=True)


def distance_order(features: Tensor, labels: Tensor, queries: Tensor, predictions: Tensor) -> Tensor:
    """Training points (m, n): those of the query's predicted class from near to far, then the others."""
    distance = torch.cdist(queries, features)
    other = labels[None, :] != predictions[:, None]
    return (distance + other * (distance.amax() + 1)).argsort(dim=1)


def flips_to_break(
    features: Tensor, labels: Tensor, queries: Tensor, order: Tensor, *, penalty: float = 1e-3, batch: int = 128
) -> Tensor:
    """Fewest flips along each query's `order` (m, n) found to change its prediction; n + 1 where none was found.

    Bisection on the number of flips with a retrained classifier for each trial; predictions need not be monotone
    in it, so this is an upper bound on the least number, as any attack is.
    """
    n = len(features)
    clean = fit_logistic(features, labels[None], penalty=penalty)[0]
    found = []
    for start in range(0, len(queries), batch):
        query, path = queries[start : start + batch], order[start : start + batch]
        rank = path.argsort(dim=1)
        answer = query @ clean >= 0
        weights = clean.expand(len(query), -1)
        # the majority of a class flipped is enough in practice: look no further than half of the labels
        low = torch.zeros(len(query), dtype=torch.long, device=features.device)
        high = torch.full_like(low, n // 2 + 1)
        broken = torch.zeros_like(answer)
        while (high - low > 1).any():
            middle = torch.where(high - low > 1, (low + high) // 2, high)
            flipped = labels ^ (rank < middle[:, None]).long()
            weights = fit_logistic(features, flipped, penalty=penalty, start=weights, tolerance=1e-6)
            changed = ((query * weights).sum(1) >= 0) != answer
            searching = high - low > 1
            broken |= changed & searching
            high = torch.where(changed & searching, middle, high)
            low = torch.where(~changed & searching, middle, low)
        found.append(torch.where(broken, high, n + 1))
    return torch.cat(found)
