"""Posterior to prior: what was learned from some data is what is believed before the next.

    p(w | data 1, data 2)  ~  p(data 2 | w) p(w | data 1)

so that a model learns from a stream, one batch of data after the other, without keeping the old ones. Exact where the
posterior is Gaussian and known exactly (linear-Gaussian models); with variational posteriors this is variational
continual learning (Nguyen et al. 2018, arXiv:1710.10628), with Laplace's the online Laplace approximation (Ritter et
al. 2018, arXiv:1805.07810).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import singledispatch
from typing import TYPE_CHECKING, Literal

import pyro
import torch
from pyro import distributions as dist
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.transforms import ReshapeTransform

from bnn.approximations import Approximation, Gaussian, LocalGaussian
from bnn.approximations.correlated import FullRank, LowRank
from bnn.likelihoods import Likelihood, Positive
from bnn.priors import Normal, Prior

if TYPE_CHECKING:
    from bnn.posterior import Posterior

#: Weights up to which a covariance between all of them is kept: 64 MB in single precision.
LARGEST_JOINT = 4000
#: Draws from which the moments of a posterior are taken that has no others.
_DRAWS = 4000
#: Draws a weight from which a covariance is taken: with 10, independent, its smallest eigenvalue is half of what it is.
_DRAWS_A_WEIGHT = 10


@dataclass(frozen=True, eq=False, repr=False)
class JointNormal(Prior):
    """One Gaussian over several parameters together: ``w ~ N(loc, root root')``.

    Parameters are sampled one after the other, each given those before it, so that every site bears its own name.

    Args:
        loc: ``{parameter: mean}``, shaped as the parameters; their order is that of `root`.
        root: ``(D, D)``, the lower Cholesky factor of the covariance of all numbers, D of them.
    """

    loc: Mapping[str, Tensor]
    root: Tensor

    def __post_init__(self) -> None:
        """Raise `ValueError` where root and means do not fit."""
        size = sum(value.numel() for value in self.loc.values())
        if tuple(self.root.shape) != (size, size):
            raise ValueError(f"root has shape {tuple(self.root.shape)}; the means are {size} numbers")

    def __repr__(self) -> str:
        return f"JointNormal({', '.join(self.loc)}; {self._fingerprint()})"

    def _fingerprint(self) -> str:
        """What tells two of them apart in the record of a saved posterior."""
        mean = torch.cat([value.flatten() for value in self.loc.values()])
        return f"norms {float(mean.norm()):.6g} and {float(self.root.norm()):.6g}"

    def learned_scale(self) -> bool:
        """It is fixed."""
        return False

    def __call__(self, params: Mapping[str, Tensor], group: str) -> dict[str, Tensor]:
        """Sample every parameter given the earlier ones; see `Prior`."""
        if set(params) != set(self.loc):
            raise ValueError(f"this prior is over {sorted(self.loc)}, but the group has {sorted(params)}")
        weights: dict[str, Tensor] = {}
        like = next(iter(params.values()))
        root = self.root.to(like)
        noise = root.new_zeros(0)  # what the parameters so far stand for, in standard normal numbers
        for name, mean in self.loc.items():
            start, stop = len(noise), len(noise) + mean.numel()
            centre = mean.to(root).flatten() + root[start:stop, :start] @ noise
            own = root[start:stop, start:stop]
            flat = dist.MultivariateNormal(centre, scale_tril=own)
            shaped = dist.TransformedDistribution(flat, [ReshapeTransform(torch.Size([mean.numel()]), mean.shape)])
            weights[name] = pyro.sample(name, shaped)
            away = (weights[name].flatten() - centre)[:, None]
            noise = torch.cat([noise, torch.linalg.solve_triangular(own, away, upper=False)[:, 0]])
        return {name: weights[name] for name in params}


def as_prior(posterior: Posterior, covariance: Literal["auto", "full", "diag"] = "auto") -> Mapping[str, Prior] | Prior:
    """The posterior of the weights as the prior of the next data; see `Posterior.as_prior`."""
    if covariance not in ("auto", "full", "diag"):
        raise ValueError(f"covariance is 'auto', 'full' or 'diag', not {covariance!r}")
    names = [name for name, p in posterior.model.net.named_parameters() if p.requires_grad]
    learned = {site.name for site in posterior.model.sites().points}
    points = [name for name in names if name in learned]
    if points:
        raise ValueError(
            f"{', '.join(points)} were learned as points, which are no distribution: they cannot be a prior"
        )
    latents = posterior.model.sites().latents
    sites = {site.name: site.value for site in latents if site.base_support is constraints.real}
    moments = _moments(posterior.approximation) if all(name in sites for name in names) else None
    if moments is None:
        return _from_draws(posterior, names, covariance)
    loc, root, layout_names, sizes = moments
    places = dict(zip(layout_names, torch.arange(sum(sizes)).split(sizes), strict=True))
    rows = torch.cat([places[name] for name in names]).to(loc.device)
    shapes = {name: sites[name].shape for name in names}
    if covariance == "full" and len(rows) > LARGEST_JOINT:
        raise ValueError(f"a covariance between {len(rows)} weights is more than the {LARGEST_JOINT} kept: give 'diag'")
    if root.dim() == 1 or covariance == "diag" or (covariance == "auto" and len(rows) > LARGEST_JOINT):
        scale = root if root.dim() == 1 else root.norm(dim=1)
        return _independent(loc[rows], scale[rows], shapes)
    return _joint(loc[rows], root[rows], shapes)


def likelihood_as_prior(posterior: Posterior) -> Likelihood:
    """The likelihood, with what was learned of its own positive unknowns as their prior before the next data.

    Each unknown that had a prior has a log-normal one, with mean and standard deviation of the logarithms of its draws:
    exact where they are Gaussian, as under `bnn.MeanField`. What they say of the weights, and of each other, is lost.
    Unknowns without spread (the noise scale of `bnn.Laplace`, tuned to a point) keep their prior, and so do those of a
    likelihood inside another (`bnn.likelihoods.Truncated`).
    """
    likelihood = posterior.model.likelihood
    found: dict[str, Positive] = {}
    for name, what in likelihood._unknowns.items():
        if isinstance(what, TorchDistributionMixin):
            loc, scale = _logs(posterior, f"likelihood.{name}")
            if bool((scale > 0).all()) and bool(loc.isfinite().all()):
                found[name] = dist.LogNormal(loc, scale)
    other = copy.copy(likelihood)
    other._unknowns = {**likelihood._unknowns, **found}
    return other


def _logs(posterior: Posterior, site: str) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the logarithm of a positive unknown, in double precision."""
    moments = _moments(posterior.approximation)
    if moments is None:
        logs = posterior.draws()[site].double().log()
        return logs.mean(0), logs.std(0)
    loc, root, names, sizes = moments  # a Gaussian over unconstrained numbers, which logarithms are
    place = names.index(site)
    rows = slice(sum(sizes[:place]), sum(sizes[: place + 1]))
    scale = root[rows] if root.dim() == 1 else root[rows].norm(dim=1)
    (value,) = [each.value for each in posterior.model.sites().latents if each.name == site]
    return loc[rows].double().reshape(value.shape), scale.double().reshape(value.shape)


def _from_draws(posterior: Posterior, names: list[str], covariance: str) -> Mapping[str, Prior] | Prior:
    """The Gaussian of the same mean and covariance as the draws."""
    values = posterior.draws(posterior.num_draws or _DRAWS)
    flat = torch.cat([values[name].flatten(1) for name in names], dim=1)
    num, size = flat.shape
    shapes = {name: values[name].shape[1:] for name in names}
    if num < 2:
        raise ValueError("a single draw has no spread: a prior needs a posterior, not a point (method='map')")
    enough = num > _DRAWS_A_WEIGHT * size
    if covariance == "full" and not enough:
        raise ValueError(f"{num} draws do not tell the covariance of {size} weights: give covariance='diag'")
    if covariance == "full" or (covariance == "auto" and enough and size <= LARGEST_JOINT):
        return _joint(flat.mean(0), (flat - flat.mean(0)).mT / math.sqrt(num - 1), shapes)
    return _independent(flat.mean(0), flat.std(0), shapes)


def _independent(loc: Tensor, scale: Tensor, shapes: Mapping[str, torch.Size]) -> dict[str, Prior]:
    if not bool((scale > 0).all()):
        raise ValueError(
            "some weights have no spread in this posterior (a last-layer method leaves the others at points): it "
            "cannot be a prior; fit a method over all weights"
        )
    sizes = [shape.numel() for shape in shapes.values()]
    parts = zip(shapes.items(), loc.split(sizes), scale.split(sizes), strict=True)
    return {name: Normal(scale=s.reshape(shape), loc=m.reshape(shape)) for (name, shape), m, s in parts}


def _joint(loc: Tensor, wide: Tensor, shapes: Mapping[str, torch.Size]) -> JointNormal:
    """From any root ``(D, d)`` of the covariance, which is not squared: single precision would lose its small parts."""
    upper = torch.linalg.qr(wide.mT, mode="r").R
    sizes_of = upper.diagonal().abs()
    if len(sizes_of) < len(loc) or bool((sizes_of <= torch.finfo(loc.dtype).eps * sizes_of.max()).any()):
        _independent(loc, wide.norm(dim=1), shapes)  # says so, where some weights have no spread at all
        raise ValueError("the posterior's covariance is singular: it cannot be a prior; give covariance='diag'")
    root = upper.mT * upper.diagonal().sign()
    sizes = [shape.numel() for shape in shapes.values()]
    means = {name: part.reshape(shape) for (name, shape), part in zip(shapes.items(), loc.split(sizes), strict=True)}
    return JointNormal(means, root)


_Moments = tuple[Tensor, Tensor, list[str], list[int]]


@singledispatch
def _moments(approximation: Approximation) -> _Moments | None:
    """Mean ``(D,)`` and standard deviations ``(D,)`` or a root ``(D, d)`` of the covariance, over a layout's numbers.

    None: not known but by draws.
    """
    return None


@_moments.register
def _(approximation: Gaussian) -> _Moments | None:
    layout = approximation.layout
    return approximation.loc, approximation.log_scale.exp(), layout.names, layout.sizes


@_moments.register
def _(approximation: FullRank) -> _Moments | None:
    layout = approximation.layout
    return approximation.loc, approximation.root(), layout.names, layout.sizes


@_moments.register
def _(approximation: LowRank) -> _Moments | None:
    layout = approximation.layout
    if layout.size > LARGEST_JOINT:
        return approximation.loc, approximation.marginal_scale(), layout.names, layout.sizes
    noise = torch.eye(approximation.noise_size).to(approximation.loc)
    return approximation.loc, approximation.deviation(noise).mT, layout.names, layout.sizes


@_moments.register
def _(approximation: LocalGaussian) -> _Moments | None:
    layout, where = approximation.layout, approximation.where
    if len(where) > LARGEST_JOINT:
        return None
    root = approximation.centre.new_zeros(layout.size, len(where))
    noise = torch.eye(len(where)).to(approximation.centre)
    root[where] = approximation._spread(noise).mT
    return approximation.centre, root, layout.names, layout.sizes
