"""Six mixtures of normals inside the action box, and the noise prediction right for each."""

import math
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

import edq_mujoco as edq


@dataclass(frozen=True)
class Mixture:
    """Normals with one std in all directions; data are clamped to the box, as actions are."""

    means: tuple[tuple[float, ...], ...]
    std: float
    weights: tuple[float, ...]
    about: str

    @property
    def act_dim(self) -> int:
        return len(self.means[0])

    def sample(self, size: int, generator: torch.Generator) -> Tensor:
        """`[size, A]`."""
        weights = torch.tensor(self.weights)
        mode = torch.multinomial(
            weights,
            size,
            replacement=True,
            generator=generator,
        )
        noise = torch.randn(size, self.act_dim, generator=generator)
        return (torch.tensor(self.means)[mode] + self.std * noise).clamp(-1, 1)


def even(
    means: list[tuple[float, ...]],
    std: float,
    about: str,
) -> Mixture:
    """Equal weights."""
    return Mixture(
        tuple(means),
        std,
        (1 / len(means),) * len(means),
        about,
    )


ANGLES = [k * math.pi / 4 for k in range(8)]
RING = [(0.7 * math.cos(angle), 0.7 * math.sin(angle)) for angle in ANGLES]
GRID = product((-0.7, 0.0, 0.7), repeat=2)
CHECKER = [(x, y) for x, y in GRID if (x == 0) == (y == 0)]
THREE = ((-0.7,), (0.0,), (0.7,))
MIXTURES = {
    "one mode": even([(0.5,)], 0.1, "at 0.5"),
    "far modes": even([(-0.8,), (0.8,)], 0.1, "±0.8, 1.6 apart"),
    "near modes": even([(-0.5,), (0.5,)], 0.1, "±0.5, 1.0 apart"),
    "three modes": Mixture(
        THREE,
        0.1,
        (0.5, 0.2, 0.3),
        "-0.7, 0, 0.7 (50, 20, 30 %)",
    ),
    "ring": even(RING, 0.05, "2-D, eight on a circle, 0.54 apart"),
    "checker": even(
        CHECKER,
        0.1,
        "2-D, corners and centre, 0.99 apart",
    ),
}


class ExactActor:
    """The noise prediction that is right for a mixture: E[eps | a_t], from E[a_0 | a_t].

    It belongs to the mixture before data are clamped to the box, which moves 2 % of the far modes.
    """

    def __init__(
        self,
        mixture: Mixture,
        sde: edq.MeanRevertingSDE,
    ):
        self.sde = sde
        self.act_dim = mixture.act_dim
        self.std = mixture.std
        self.means = torch.tensor(mixture.means)
        self.log_weights = torch.tensor(mixture.weights).log()

    def __call__(self, a_t: Tensor, t: int, obs: Tensor | None) -> Tensor:
        """a_t `[..., A]` -> `[..., A]`; -sigma_t times the gradient of log p(a_t)."""
        keep = torch.exp(-self.sde.theta_bar[t])
        sigma = self.sde.sigma[t]
        var = (keep * self.std) ** 2 + sigma**2  # of a_t given the mode
        offset = a_t.unsqueeze(-2) - keep * self.means  # [..., modes, A]
        log_density = -offset.square().sum(-1) / (2 * var)
        mean = torch.softmax(self.log_weights + log_density, -1) @ self.means
        a0 = mean + keep * self.std**2 / var * (a_t - keep * mean)
        return (a_t - keep * a0) / sigma


def mode_of(x: Tensor, mixture: Mixture) -> tuple[Tensor, Tensor]:
    """The nearest mode of each sample and how far it is, `[n]`."""
    far, mode = torch.cdist(x, torch.tensor(mixture.means)).min(1)
    return mode, far


def between(x: Tensor, mixture: Mixture) -> float:
    """Share of samples farther than three std from every mode."""
    _, far = mode_of(x, mixture)
    return float((far > 3 * mixture.std).float().mean())


def mode_std(x: Tensor, mixture: Mixture, mode: int) -> tuple[float, float]:
    """Std and share of the samples nearest to a mode (1-D)."""
    nearest, _ = mode_of(x, mixture)
    mine = x[nearest == mode]
    std = float(mine.std()) if len(mine) > 1 else 0.0
    return std, len(mine) / len(x)
