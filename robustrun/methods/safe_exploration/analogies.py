"""Analogies: which state-action pairs behave alike, and by how much they may differ."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Analogies:
    """Groups of analogous pairs, in compressed rows.

    Pair `p = s * n_actions + a` is analogous to `members[indptr[g] : indptr[g + 1]]` with `g = group[p]`; the
    pair itself is among them. `delta` bounds, member by member, the L1 distance between the two outcome
    distributions (Delta in the paper); None means that all of them are 0. Pairs that do not appear are unrelated
    (Delta = 2). The relation must be symmetric. Sharing a group between pairs is what keeps large equivalence
    classes small.

    Source: Roderick et al. 2021, section 2 (analogies).
    """

    group: np.ndarray
    indptr: np.ndarray
    members: np.ndarray
    delta: np.ndarray | None = None

    @classmethod
    def none(cls, n_pairs: int) -> "Analogies":
        """Every pair is analogous to itself alone."""
        pairs = np.arange(n_pairs)
        return cls(pairs, np.arange(n_pairs + 1), pairs)

    @classmethod
    def from_classes(cls, classes: np.ndarray) -> "Analogies":
        """Pairs with equal entries in `classes` (n_pairs,) are analogous; a negative entry is analogous to nothing."""
        classes = np.asarray(classes).ravel()
        alone = classes < 0
        distinct = np.where(alone, classes.max(initial=0) + 1 + np.arange(classes.size), classes)
        group = np.unique(distinct, return_inverse=True)[1]
        members = np.argsort(group, kind="stable")
        return cls(group, np.append(0, np.cumsum(np.bincount(group))), members)

    @classmethod
    def from_edges(
        cls, n_pairs: int, first: np.ndarray, second: np.ndarray, delta: np.ndarray | None = None
    ) -> "Analogies":
        """Pair `first[i]` is analogous to `second[i]`, and the other way round, within `delta[i]`."""
        own = np.arange(n_pairs)
        apart = first != second
        rows = np.concatenate([own, first[apart], second[apart]])
        members = np.concatenate([own, second[apart], first[apart]])
        bounds = np.zeros(len(first)) if delta is None else np.asarray(delta, dtype=float)
        bounds = np.concatenate([np.zeros(n_pairs), bounds[apart], bounds[apart]])
        order = np.lexsort((bounds, members, rows))  # of an edge given twice the tighter bound is kept
        rows, members, bounds = rows[order], members[order], bounds[order]
        fresh = np.append(True, (rows[1:] != rows[:-1]) | (members[1:] != members[:-1]))
        rows, members, bounds = rows[fresh], members[fresh], bounds[fresh]
        indptr = np.append(0, np.cumsum(np.bincount(rows, minlength=n_pairs)))
        return cls(own, indptr, members, bounds if bounds.any() else None)

    def of(self, pair: int) -> tuple[np.ndarray, np.ndarray | float]:
        """The pairs analogous to `pair` (itself included) and their Delta."""
        group = self.group[pair]
        span = slice(self.indptr[group], self.indptr[group + 1])
        return self.members[span], 0.0 if self.delta is None else self.delta[span]

    def any_member(self, flags: np.ndarray) -> np.ndarray:
        """For each pair, whether any pair analogous to it is flagged; `flags` and the result are (n_pairs,)."""
        return np.logical_or.reduceat(flags[self.members], self.indptr[:-1])[self.group]

    def close_to(self, pairs: np.ndarray, delta: float) -> np.ndarray:
        """All pairs analogous to any of `pairs` within `delta`."""
        groups = np.unique(self.group[pairs])
        if not groups.size:
            return groups
        sizes = self.indptr[groups + 1] - self.indptr[groups]
        starts = np.repeat(self.indptr[groups] - np.append(0, np.cumsum(sizes)[:-1]), sizes)
        entries = starts + np.arange(sizes.sum())
        if self.delta is not None:
            entries = entries[self.delta[entries] <= delta]
        return np.unique(self.members[entries])
