"""A chain of N point masses on massless rods: equations of motion in closed form, batched, for any N.

The tensions of the rods solve a tridiagonal system, because a rod touches only its two neighbours. This gives the
accelerations with O(N) work a state, where the mass matrix of the angles costs O(N^3).
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def _per_link(values: float | Sequence[float], links: int, name: str) -> tuple[float, ...]:
    values = (float(values),) * links if isinstance(values, (int, float)) else tuple(map(float, values))
    if len(values) != links:
        raise ValueError(f"{name} must be one number or {links}, one a link, not {len(values)}")
    return values


class NLinkPendulum:
    """The planar N-link pendulum, damped at each link by a torque -damping * (its absolute angular velocity).

    A state is (q_1 ... q_N, u_1 ... u_N): angles from straight down in radians and angular velocities in rad/s.
    Every method takes states (B, 2N) of any floating type and device.

    Args:
        links: N, at least 1.
        masses: in kg, one or N numbers.
        lengths: of the rods in m, one or N numbers; 1 / N by default.
        gravity: in m/s^2.
        damping: in N m s, at least 0.

    Raises:
        ValueError: there is no link, a list has not one number a link, or a mass, length or damping is out of range.
    """

    def __init__(
        self,
        links: int,
        *,
        masses: float | Sequence[float] = 1.0,
        lengths: float | Sequence[float] | None = None,
        gravity: float = 9.81,
        damping: float = 0.3,
    ) -> None:
        if links < 1:
            raise ValueError(f"a pendulum has at least one link, not {links}")
        self.links = links
        self.masses = _per_link(masses, links, "masses")
        self.lengths = _per_link(1.0 / links if lengths is None else lengths, links, "lengths")
        self.damping = _per_link(damping, links, "damping")
        if min(*self.masses, *self.lengths, 1.0) <= 0 or min(self.damping) < 0:
            raise ValueError("masses and lengths must be positive, and damping at least 0")
        self.gravity = gravity

    def _row(self, values: Sequence[float], like: Tensor) -> Tensor:
        return torch.tensor(values, dtype=like.dtype, device=like.device)

    def field(self, x: Tensor) -> Tensor:
        """The time derivative (u, du/dt) of the states, (B, 2N)."""
        q, u = x.chunk(2, dim=1)
        return torch.cat([u, self.accelerations(q.T.contiguous(), u.T.contiguous()).T], 1)

    def accelerations(self, q: Tensor, u: Tensor) -> Tensor:
        """Angular accelerations (N, B) from angles and angular velocities, both (N, B).

        Let e_i be the unit vector along rod i and n_i the normal to it in the direction of growing angle. The
        mass at its end is subject to gravity, to the tensions T_i, T_{i+1} along its two rods, and to the forces
        +-(damping u / l) n that carry the rods' damping torques. The relative acceleration of a rod's ends is
        l (du/dt) n - l u^2 e: its part along e gives the tensions (tridiagonal), its part along n the result.
        """
        masses, lengths, damping = (self._row(v, q).unsqueeze(1) for v in (self.masses, self.lengths, self.damping))
        push = -damping / lengths * u  # the damping torque as a force along n_i on mass i, and its opposite on i - 1
        cosine, sine = torch.cos(q), torch.sin(q)
        drop = self.gravity * torch.cat([cosine[:1], torch.zeros_like(cosine[1:])])  # gravity moves all but the pivot
        swing = self.gravity * torch.cat([sine[:1], torch.zeros_like(sine[1:])])
        # cos and sin of q_{i+1} - q_i.
        cos_gap = cosine[1:] * cosine[:-1] + sine[1:] * sine[:-1]
        sin_gap = sine[1:] * cosine[:-1] - cosine[1:] * sine[:-1]
        # Forces along n_j seen along e_i: n_{i+1}.e_i = -sin_gap, n_i.e_{i+1} = sin_gap.
        inverse = 1.0 / masses
        load = lengths * u * u + drop  # everything but the tensions, along e_i
        load[:-1] += push[1:] * sin_gap * inverse[:-1]
        load[1:] += push[:-1] * -sin_gap * inverse[:-1]
        tension = _solve_chain(inverse, cos_gap, load)
        # Along n_i: mass i minus mass i - 1.
        result = push * inverse - swing
        result[1:] += push[1:] * inverse[:-1]
        result[:-1] += (tension[1:] * sin_gap - push[1:] * cos_gap) * inverse[:-1]
        result[1:] += (tension[:-1] * -sin_gap - push[:-1] * cos_gap) * inverse[:-1]
        return result / lengths

    def mass_matrix(self, q: Tensor) -> Tensor:
        """M_ij = A_ij cos(q_i - q_j), symmetric positive definite, (B, N, N) from angles (B, N)."""
        return self._inertia(q) * torch.cos(q.unsqueeze(2) - q.unsqueeze(1))

    def _inertia(self, like: Tensor) -> Tensor:
        """A_ij = l_i l_j (mass that hangs from the outer of links i and j)."""
        lengths = self._row(self.lengths, like)
        carried = self._carried(like)
        index = torch.arange(self.links, device=like.device)
        return carried[torch.maximum(index.unsqueeze(1), index)] * torch.outer(lengths, lengths)

    def _carried(self, like: Tensor) -> Tensor:
        """The mass that hangs from each link, (N,)."""
        return self._row(self.masses, like).flip(0).cumsum(0).flip(0)

    def energy(self, x: Tensor) -> Tensor:
        """Kinetic plus potential energy above rest in joules, (B,)."""
        return self.energy_and_gradient(x)[0]

    def energy_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """E (B,) and its gradient by the state (B, 2N). Along the motion, dE/dt = -sum_i damping_i u_i^2."""
        q, u = x.chunk(2, dim=1)
        lengths = self._row(self.lengths, x)
        weight = self.gravity * lengths * self._carried(x)
        speed = lengths * u
        cosine, sine = torch.cos(q), torch.sin(q)
        masses = self._row(self.masses, x)
        vx, vy = (speed * cosine).cumsum(1), (speed * sine).cumsum(1)  # velocity of each mass
        # Momentum of everything that hangs from link i: a sum from the far end.
        px, py = ((masses * v).flip(1).cumsum(1).flip(1) for v in (vx, vy))
        kinetic = 0.5 * (masses * (vx * vx + vy * vy)).sum(1)
        # 1 - cos q = 2 sin^2(q / 2) keeps its digits near rest.
        potential = (2 * weight * torch.sin(0.5 * q) ** 2).sum(1)
        by_angle = speed * (py * cosine - px * sine) + weight * sine
        by_velocity = lengths * (px * cosine + py * sine)
        return kinetic + potential, torch.cat([by_angle, by_velocity], 1)

    def positions(self, q: Tensor) -> Tensor:
        """Where the masses are, (B, N, 2) as (right, down) in metres, from angles (B, N)."""
        lengths = self._row(self.lengths, q)
        return torch.stack([(lengths * torch.sin(q)).cumsum(1), (lengths * torch.cos(q)).cumsum(1)], 2)


def _solve_chain(inverse: Tensor, coupling: Tensor, load: Tensor) -> Tensor:
    """Tensions T (N, B) of (1/m_{i-1} + 1/m_i) T_i - c_{i-1} T_{i-1} / m_{i-1} - c_i T_{i+1} / m_i = load_i.

    1 / m_0 is zero (the pivot does not move). The matrix is positive definite, so that elimination needs no
    pivoting. `inverse` (N, 1) holds 1 / m, `coupling` (N - 1, B) the cosines c.
    """
    diagonal, off = inverse.clone(), -coupling * inverse[:-1]
    diagonal[1:] += inverse[:-1]
    pivots, loads = [diagonal[0]], [load[0]]
    for i in range(1, len(load)):
        factor = off[i - 1] / pivots[-1]
        pivots.append(diagonal[i] - factor * off[i - 1])
        loads.append(load[i] - factor * loads[-1])
    tensions = [loads[-1] / pivots[-1]]
    for i in reversed(range(len(load) - 1)):
        tensions.append((loads[i] - off[i] * tensions[-1]) / pivots[i])
    return torch.stack(tensions[::-1])
