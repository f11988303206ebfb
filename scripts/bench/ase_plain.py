"""ASE as one would write it down first: loops over states, actions and successors. The yardstick of `ase.py`.

It takes the same decisions as `robustrun.methods.safe_exploration.ASE` (best single analogy), action by action: sums
run in the same order and ties are broken in the same way.
"""

import numpy as np

F = np.float32


class PlainASE:
    """Directed ASE with dictionaries of counts, for small MDPs and short trials."""

    shielded = True

    def __init__(self, knowledge, start, *, gamma, horizon, tau, radius, update_frequency):
        self.k, self.start = knowledge, start
        self.gamma, self.horizon, self.tau, self.radius_of, self.every = (
            F(gamma),
            horizon,
            tau,
            radius,
            update_frequency,
        )
        self.n_states, self.n_actions = knowledge.context.shape
        self.pairs = [(s, a) for s in range(self.n_states) for a in range(self.n_actions)]
        self.safe = knowledge.initial_safe.copy()
        owner = [bool(row.any()) for row in self.safe]
        self.own = {}  # (s, a) -> {label: count}
        self.used = {}  # (s, a) -> {label: count}, copied from the best analogous pair
        self.radius = dict.fromkeys(self.pairs, 2.0)
        self.mask = {}
        for s, a in self.pairs:
            possible = {int(n) for n in knowledge.outcomes[knowledge.context[s, a]] if n >= 0}
            self.mask[s, a] = {n for n in possible if owner[n]} if self.safe[s, a] else possible
        self.goal = {int(s) for s in np.flatnonzero(knowledge.goal)}
        self.fail = {int(s) for s in np.flatnonzero(knowledge.unsafe)}
        self.terminal = self.goal | self.fail
        self.avoided = {(s, a) for s, a in self.pairs if s in self.fail}
        self.policy = [int(row.argmax()) for row in self.safe]
        self.observed = 0

    def act(self, state, coin, pick):
        return self.policy[state]

    def observe(self, s, a, successor):
        label = self.k.outcome(s, a, successor)
        own = self.own.setdefault((s, a), {})
        own[label] = own.get(label, 0) + 1
        members, delta = self.k.analogies.of(s * self.n_actions + a)
        for i, member in enumerate(members):
            radius = float(self.radius_of(sum(own.values()))) + (delta if np.ndim(delta) == 0 else delta[i])
            other = divmod(int(member), self.n_actions)
            if radius < self.radius[other]:
                self.radius[other] = radius
                self.used[other] = dict(own)
        due = self.observed % self.every == 0
        self.observed += 1
        if due:
            self.plan()

    def plan(self):
        self.rows = {}
        for (s, a), counts in self.used.items():
            outcomes = self.k.outcomes[self.k.context[s, a]]
            found = {int(outcomes[label]): n for label, n in counts.items() if outcomes[label] >= 0}
            total = sum(found.values())
            if total:
                self.rows[s, a] = {n: F(found[n] / total) for n in sorted(found)}
                if self.radius[s, a] < self.tau:
                    self.mask[s, a] &= set(found)
        self.update_safe()
        safe = {(int(s), int(a)) for s, a in np.argwhere(self.safe)}
        while True:
            q_goal, values = self.solve({p: F(self.k.reward[p[0]]) for p in self.pairs}, self.avoided)
            best = {s: max(range(self.n_actions), key=lambda a: (q_goal[s, a], -a)) for s in range(self.n_states)}
            z_goal = {(s, best[s]) for s in self.visited(best, values)}
            explore = set()
            if z_goal <= safe:
                break
            owners = {s for s, _ in safe}
            edge = {(s, a) for s, a in z_goal if s in owners and (s, a) not in safe}
            explore = self.to_explore(edge, safe)
            if explore:
                break
            self.avoided |= edge
        wanted = explore or z_goal
        q, _ = self.solve({p: F(p in wanted) for p in self.pairs}, set(self.pairs) - safe)
        on_the_way = set() if explore else {s for s, _ in z_goal}
        for s in range(self.n_states):
            allowed = [a for a in range(self.n_actions) if (s, a) in safe] or range(self.n_actions)
            source = q_goal if s in on_the_way else q
            self.policy[s] = max(allowed, key=lambda a: (source[s, a], -a))

    def backup(self, s, a, values):
        """Optimistic value, and the transitions that have it."""
        mask, row = self.mask[s, a], self.rows.get((s, a))
        top = max((values[n] for n in mask), default=None)
        best = max((n for n in mask if values[n] == top), default=None)
        if row is None:
            return (F(0), {}) if best is None else (top, {best: F(1)})
        items = list(row.items())
        expected = items[0][1] * values[items[0][0]]
        for n, t in items[1:]:
            expected = expected + t * values[n]
        moved, result = F(0), dict(row)
        for i, (n, t) in enumerate(items):
            before = F(0)
            for j, (m, u) in enumerate(items):
                if values[m] < values[n] or (values[m] == values[n] and j < i):
                    before = before + u
            mass = min(max(F(self.radius[s, a]) / F(2) - before, F(0)), t)
            if best is not None and values[n] < top:
                expected = expected + mass * (top - values[n])
                result[n] = t - mass
                moved = moved + mass
        if moved > 1e-6:
            result[best] = result.get(best, F(0)) + moved
        return expected, {n for n, t in result.items() if t > 1e-6}

    def solve(self, reward, forbidden):
        values = [F(0)] * self.n_states
        q = {}
        for _ in range(self.horizon):
            previous = values
            for s, a in self.pairs:
                if (s, a) in forbidden:
                    q[s, a] = F(-100)
                elif s in self.terminal:
                    q[s, a] = reward[s, a]
                else:
                    q[s, a] = reward[s, a] + self.gamma * self.backup(s, a, values)[0]
            values = [max(q[s, a] for a in range(self.n_actions)) for s in range(self.n_states)]
            if values == previous:
                break
        return q, previous

    def visited(self, policy, values):
        seen, frontier = {self.start}, {self.start}
        for _ in range(self.horizon):
            reached = set()
            for s in frontier - self.terminal:
                reached |= set(self.backup(s, policy[s], values)[1])
            frontier = reached - seen
            seen |= frontier
        return seen

    def to_explore(self, edge, safe):
        explore, seen = set(), set()
        while edge and not explore:
            seen |= edge
            following = set()
            for s, a in edge:
                if self.radius[s, a] >= self.tau:
                    members, delta = self.k.analogies.of(s * self.n_actions + a)
                    for i, member in enumerate(members):
                        other = divmod(int(member), self.n_actions)
                        near = (delta if np.ndim(delta) == 0 else delta[i]) <= self.tau
                        if near and other in safe and other[0] not in self.terminal:
                            explore.add(other)
                else:
                    for n in set(self.rows[s, a]) - self.terminal:
                        following |= {(n, b) for b in range(self.n_actions)}
            edge = following - seen - safe - self.avoided
        return explore

    def update_safe(self):
        safe = {(int(s), int(a)) for s, a in np.argwhere(self.safe)}
        goals = {(s, a) for s in self.goal for a in range(self.n_actions)}
        # Safe pairs without data may lead anywhere that is possible.
        succ = {p: set(self.rows.get(p, self.mask[p] if p in safe else ())) for p in self.pairs}
        candidates = {p for p in self.pairs if self.radius[p] < self.tau and p not in safe and p in self.rows}
        while True:
            reached = set()
            entered = ({n for p in safe for n in succ[p]} - self.fail) | {s for s, _ in safe}
            while True:
                fresh = {p for p in candidates - reached if p[0] in entered}
                if not fresh:
                    break
                reached |= fresh
                entered |= {n for p in fresh for n in succ[p]} - self.fail
            back = set(goals)
            while True:
                owners = {s for s, _ in safe | back}
                fresh = {p for p in reached - back if (succ[p] - self.fail) & owners}
                if not fresh:
                    break
                back |= fresh
            while True:
                owners = {s for s, _ in safe | back} | self.goal
                bad = {p for p in back - goals if succ[p] & self.fail or not succ[p] <= owners}
                if not bad:
                    break
                back -= bad
            if back - goals == candidates - goals:
                break
            candidates = back
        for p in safe | back:
            self.safe[p] = True
