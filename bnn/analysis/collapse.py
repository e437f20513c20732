"""Has a posterior collapsed, to the prior or to a point? Layer by layer, from the moments of its draws."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from bnn.analysis.density import draw_chunks
from bnn.posterior import DEFAULT_DRAWS, Posterior
from bnn.random import isolated, other_seed

#: Weights of a layer that are looked at, evenly spaced over it.
_WEIGHTS = 500
#: Median ratio of standard deviations, posterior to prior, below which a layer is a point.
POINT = 1e-3
#: Nats a weight, beyond what sampling errors of the moments give, below which a layer is its prior.
PRIOR = 0.01


@dataclass(frozen=True)
class LayerSpread:
    """What the data have done to one named parameter: medians (and a mean) over its weights."""

    #: Standard deviation of the posterior over that of the prior.
    ratio: float
    #: Distance of the posterior's mean from the prior's, in standard deviations of the prior.
    shift: float
    #: Mean over weights of KL(N(mean, sd of the posterior) || N(mean, sd of the prior)), nats, less what moments from
    #: so many draws give on average where there is no difference.
    information: float
    #: Numbers that the parameter has, and how many of them were looked at.
    size: int
    looked_at: int

    @property
    def is_point(self) -> bool:
        """Whether nearly nothing is left of the prior's spread."""
        return self.ratio < POINT

    @property
    def is_prior(self) -> bool:
        """Whether the marginal laws of the weights are those of the prior, as far as so many draws can tell."""
        noise = self.looked_at**-0.5  # a single weight's figures, from 200 draws, are off by a tenth
        near = abs(self.ratio - 1) < 0.1 + 0.3 * noise and self.shift < 0.2 + 0.2 * noise
        return near and self.information < PRIOR * (1 + 6 * noise)


def layer_spread(posterior: Posterior, *, num: int | None = None, seed: int = 0) -> dict[str, LayerSpread]:
    """Posterior against prior, for every random parameter of the network: ``{name: LayerSpread}``.

    Of a symmetric posterior (hidden units can change places and signs) the marginal laws are near the prior's also
    where the data say a lot; for chains this is then no warning. A Gaussian that sits in one of the modes has no such
    excuse.

    Args:
        posterior: Any.
        num: Draws; ``None``: 200, or all that there are if these are fewer.
        seed: Of the draws, and of as many of the prior.
    """
    have = posterior.num_draws
    num = num or (DEFAULT_DRAWS if have is None else min(have, DEFAULT_DRAWS))
    model = posterior.model
    own = [name for name, p in model.net.named_parameters() if p.requires_grad]
    shapes = {name: p.numel() for name, p in model.net.named_parameters()}
    found: dict[str, list[Tensor]] = {}
    for values in draw_chunks(posterior, num, seed):
        for name in own:
            if name in values:
                found.setdefault(name, []).append(_picked(values[name]))
    names = list(found)
    prior: dict[str, list[Tensor]] = {name: [] for name in names}
    with isolated(other_seed(seed, "prior"), model.like.device), torch.no_grad():
        for _ in range(max(num, DEFAULT_DRAWS)):
            drawn = model.prior_draw()
            if not all(name in drawn for name in names):
                drawn |= model.weights(drawn, posterior.points)
            for name in names:
                prior[name].append(_picked(drawn[name].unsqueeze(0)))
    return {name: _compared(torch.cat(found[name]), torch.cat(prior[name]), shapes[name]) for name in names}


def _picked(values: Tensor) -> Tensor:
    """Some weights of each draw, evenly spaced: ``(s, m)``, float64."""
    flat = values.detach().reshape(len(values), -1)
    count = min(_WEIGHTS, flat.shape[1])
    places = torch.linspace(0, flat.shape[1] - 1, count, dtype=torch.float64).round().long()
    return flat[:, places.to(flat.device)].double()


def _compared(values: Tensor, prior: Tensor, size: int) -> LayerSpread:
    mean, scale = values.mean(0), values.std(0) if len(values) > 1 else torch.zeros_like(values[0])
    # Quantiles: a prior may have no moments. For a Gaussian half the width between them is the standard deviation.
    levels = torch.tensor([0.1587, 0.5, 0.8413], dtype=values.dtype, device=values.device)
    low, centre, high = torch.quantile(prior, levels, dim=0)
    wide = ((high - low) / 2).clamp(min=1e-300)
    ratio, shift = scale / wide, (mean - centre).abs() / wide
    divergence = 0.5 * (ratio.square() + shift.square() - 1) - ratio.clamp(min=1e-12).log()
    # In expectation: 1 / (2 s) from the mean and 1 / (4 s) from the deviation of s draws; of a median and a width from
    # quantiles pi / 2 and about 2.2 as much.
    bias = 0.75 / max(1, len(values) - 1) + (math.pi / 4 + 0.55) / len(prior)
    information = float(divergence.mean()) - bias
    return LayerSpread(float(ratio.median()), float(shift.median()), information, size, values.shape[1])
