"""A common-rail diesel injector, shot by shot: the quantity injected and the pressure trace at its inlet.

Two orifices in series (needle seat, spray holes) at the end of a line from a rail of constant pressure. The line
is solved by the method of characteristics (water hammer: a wave runs to the rail and comes back reflected), the
needle is ballistic. Everything is an array program over the shots; only time is a loop. SI units inside.
"""

from typing import NamedTuple

import numpy as np

TRACE = 16  # samples of the pressure trace
_DT = 5e-6  # s
_END = 3.6e-3  # s
_LINE_LENGTH, _LINE_AREA = 0.30, np.pi / 4 * 2.4e-3**2  # m, m^2
_REFLECTION = 0.80
_LIFT = 0.25e-3  # m, of the needle at most


class Shots(NamedTuple):
    """(n,) each: rail pressure bar, energising time ms, fuel temperature C, speed rpm, cylinder pressure bar;
    and the injector's hidden state: hole area and needle speed (factors), delay shift (ms)."""

    rail: np.ndarray
    energise: np.ndarray
    temperature: np.ndarray
    speed: np.ndarray
    cylinder: np.ndarray
    area: np.ndarray
    needle: np.ndarray
    delay: np.ndarray


class Injection(NamedTuple):
    """quantity (n,) mm^3 a shot; trace (n, 16) bar above rail pressure at 0.25, 0.45, ... 3.25 ms."""

    quantity: np.ndarray
    trace: np.ndarray


def sample(n: int, seed: int, *, area_mean: float = 1.0) -> Shots:
    """Operating points and injector states; `area_mean` below 1 is a coked nozzle."""
    rng = np.random.default_rng(seed)
    rail = rng.uniform(250, 1800, n)
    temperature = rng.uniform(20, 90, n)
    speed = rng.uniform(800, 4000, n)
    load = rng.uniform(0, 1, n)
    cylinder = np.clip(35 + 0.01 * (speed - 800) + 45 * load + rng.normal(0, 3, n), 30, 120)
    energise = np.exp(rng.uniform(np.log(0.22), np.log(1.6), n))
    area = np.clip(rng.normal(area_mean, 0.04, n), 0.88, 1.12)
    needle = np.clip(rng.normal(1, 0.08, n), 0.76, 1.24)
    delay = np.clip(rng.normal(0, 0.02, n), -0.06, 0.06)
    return Shots(rail, energise, temperature, speed, cylinder, area, needle, delay)


class _Needle(NamedTuple):
    """Opens at `opens` with speed `up`, closes from `closes` and height `peak` with speed `down` (s, m/s, m)."""

    opens: np.ndarray
    closes: np.ndarray
    up: np.ndarray
    down: np.ndarray
    peak: np.ndarray

    @staticmethod
    def of(shots: Shots) -> "_Needle":
        viscosity = np.exp(-0.02 * (shots.temperature - 40))
        opens = 1e-3 * (0.14 + 0.10 * np.sqrt(800 / shots.rail) * (0.9 + 0.1 * viscosity) + shots.delay)
        closing = 1e-3 * (0.10 + 0.08 * np.sqrt(800 / shots.rail) + 0.5 * shots.delay)
        up = 0.60 * np.sqrt(shots.rail / 1000) * shots.needle * (1.03 - 0.03 * viscosity)
        down = 0.95 * np.sqrt(shots.rail / 1000) * np.sqrt(shots.needle)
        closes = np.maximum(1e-3 * shots.energise + closing, opens)
        return _Needle(opens, closes, up, down, np.minimum(_LIFT, up * (closes - opens)))

    def lift(self, t: float) -> np.ndarray:
        rising = np.clip(self.up * (t - self.opens), 0, _LIFT)
        falling = np.maximum(self.peak - self.down * (t - self.closes), 0)
        return np.where(t < self.opens, 0.0, np.where(t < self.closes, rising, falling))


def simulate(shots: Shots, *, dt: float = _DT, impedance: float = 1.0, reflection: float = _REFLECTION) -> Injection:
    """Simulate all shots at once; float64, because the flow's root subtracts large terms.

    dt: time step in seconds (a divisor of 5e-6). impedance, reflection: factor on the line's impedance and the
    rail's reflection; both 0 leave an injector without a line.
    """
    p0, pc, warm = 1e5 * shots.rail, 1e5 * shots.cylinder, shots.temperature - 40
    stiffness, slope = 1.40e9 * (1 - 3e-3 * warm), 10.0
    rho = 830 * (1 - 7.5e-4 * warm) * (1 + slope * p0 / stiffness) ** (1 / slope)
    sound = np.sqrt((stiffness + slope * p0) / rho)
    holes = 0.86 * 8 * (np.pi / 4) * 0.125e-3**2 * shots.area
    z = impedance * rho * sound / _LINE_AREA
    lag = np.rint(2 * _LINE_LENGTH / sound / dt).astype(int)
    needle = _Needle.of(shots)

    n, steps = len(p0), round(_END / dt)
    ring = np.zeros((lag.max() + 1, n))  # past waves towards the rail; before the first, none
    every = np.arange(n)
    sampled = {round((0.25 + 0.2 * j) * 1e-3 / dt): j for j in range(TRACE)}
    quantity, trace = np.zeros(n), np.zeros((n, TRACE))
    for k in range(steps):
        seat = 0.65 * np.pi * 1.8e-3 * 0.5 * needle.lift(k * dt)
        area = seat * holes / np.sqrt(seat**2 + holes**2)
        back = -reflection * ring[(k - lag) % len(ring), every]
        b = 2 * area**2 / rho
        flow = 0.5 * (-b * z + np.sqrt(b**2 * z**2 + 4 * b * np.maximum(p0 + 2 * back - pc, 0)))
        forward = back - z * flow
        ring[k % len(ring)] = forward
        if k in sampled:
            trace[:, sampled[k]] = (forward + back) / 1e5
        quantity += flow * dt
    return Injection(quantity * 1e9, trace)
