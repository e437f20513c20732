"""What an estimator samples under "auto" where rows are few: its network, prior and noise, and where chains start.

The model holds simpler ones as special cases, so that the training rows decide and nobody has to: a prior scale for
each layer's weights and biases (Neal, Bayesian Learning for Neural Networks, 1996); of a regressor, besides, a scale of
the noise that the network gives (constant, if the scale of that output is small), and tails between Student's t and a
Gaussian.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from pyro import distributions as dist
from torch import Tensor, nn

from bnn.approximations import Draws
from bnn.capture import Backend, have_compiler
from bnn.inference import MAP, NUTS, Ensemble, Method
from bnn.likelihoods import Categorical, HeteroscedasticStudentT
from bnn.model import BNN
from bnn.posterior import Posterior
from bnn.priors import Hierarchical, Normal, Prior, fan_in
from bnn.random import isolated, other_seed

#: Unknowns times rows up to which a fit takes minutes on one core; docs/estimators.md has the measurements.
WORK = 1_200_000
#: Trajectories of at most 2^7 - 1 steps are what a fit can pay for; chains in one program cost little more than one.
SAMPLER = NUTS(chains=4, warmup=200, num_samples=100, max_depth=7)
#: The modes at which chains start, one each: found by whole batches, at a cost of a few trajectories.
MODE = MAP(epochs=1000, lr=0.02, batch_size=None)
#: Of the log of the noise scale of standardised targets: as of the one scale elsewhere (`bnn.estimators.outputs`).
_NOISE_LOC, _NOISE_SCALE = -1.0, 1.0
#: A mode takes a part of the noise for signal: its noise scale is too small by about so much, in logs.
_TOO_SMALL = 0.3
#: Where the scale of the noise's own weights, and degrees of freedom above 2, start.
_UNEVEN, _EXCESS = 0.3, 5.0


def to_sample(
    simple: BNN, network: Callable[[int], nn.Module], sampler: Method, fit: Callable[..., Posterior], seed: int
) -> tuple[BNN, Method]:
    """The model with learned scales, and the sampler with the points at which its chains start.

    Of classes it is the simple model under another prior, and chains start from draws of that: they meet (R-hat of
    functions 1.01 on wine). Of numbers see `model_to_sample` and `start_at_modes`.

    Args:
        simple: With fixed prior scales; for classes, or with one output and one noise scale.
        network: Makes the network anew with so many outputs.
        sampler: `SAMPLER`.
        fit: `bnn.fit` with all but model and method.
        seed: Of what else chains start from.
    """
    if is_of_classes(simple):
        prior = Hierarchical(dist.HalfNormal(1.0), scaling="fan_in")
        return BNN(simple.net, prior, simple.likelihood, output=simple.output), sampler
    model = model_to_sample(network(2))
    return model, start_at_modes(sampler, fit, simple, model, seed)


def is_of_classes(model: BNN) -> bool:
    """Whether the likelihood is a classifier's own."""
    return isinstance(model.likelihood, Categorical)


def model_to_sample(net: nn.Module) -> BNN:
    """The model of a network with two outputs whose last layer is called ``out``."""
    half_normal = partial(dist.HalfNormal, 1.0)
    like = next(net.parameters())
    prior: dict[str, Prior | None] = {
        "*out.weight": Hierarchical(half_normal(), per="unit", scaling="fan_in"),
        "*out.bias": Normal(like.new_tensor([1.0, _NOISE_SCALE]), loc=like.new_tensor([0.0, _NOISE_LOC])),
    }
    if len(list(net.parameters())) > len(prior):  # a linear model has no other
        prior["*"] = Hierarchical(half_normal(), scaling="fan_in")
    return BNN(net, prior, HeteroscedasticStudentT())


def backend_for(requested: Backend, model: BNN) -> Backend:
    """What a program of so many leapfrog steps is run by: ``"auto"`` is ``"inductor"`` where there is a hidden layer.

    Under learned scales of a network trajectories are as long as they may be, some 38,000 steps in all: four times what
    `bnn.NUTS` reckons with when it chooses.
    """
    hidden = len(list(model.net.parameters())) > 2
    return "inductor" if requested == "auto" and hidden and have_compiler() else requested


def start_at_modes(sampler: Method, fit: Callable[..., Posterior], simple: BNN, model: BNN, seed: int) -> Method:
    """The sampler with a mode of the simple model for each chain to start from.

    Args:
        sampler: `SAMPLER`.
        fit: `bnn.fit` with all but model and method.
        simple: With one output, one noise scale and fixed prior scales.
        model: From `model_to_sample`.
        seed: Of what else chains start from.
    """
    assert isinstance(sampler, NUTS)
    modes = fit(simple, method=Ensemble(members=sampler.chains, of=MODE))
    return replace(sampler, init=_starts(model, modes, seed))


def _starts(model: BNN, modes: Posterior, seed: int) -> Posterior:
    """Points of the model to sample at which its mean is that of a mode, its noise even: chain i at mode i."""
    known = modes.draws()
    noise = known["likelihood.scale"].reshape(-1).log() + _TOO_SMALL
    values: dict[str, Tensor] = {}
    with isolated(other_seed(seed, "start")):
        for site in model.sites().latents:
            name = site.name
            if name.endswith(".z"):
                weights = known[name.removesuffix(".z")]
                z = weights * math.sqrt(fan_in(weights.shape[1:]))
                values[name] = _with_noise(z) if z.shape[1:] != site.value.shape else z
            elif name in known and name != "likelihood.scale":
                values[name] = torch.cat([known[name], noise[:, None].to(known[name])], dim=1)
            else:
                values[name] = _first(name, site.value.to(noise)).expand(len(noise), *site.value.shape)
    draws = Draws({name: value.unsqueeze(1) for name, value in values.items()})
    return Posterior(model, draws, points={}, state=model.state(), settings={"method": "modes"})


def _with_noise(z: Tensor) -> Tensor:
    """Weights ``(chains, 1, h)`` out of the last hidden layer, with small random ones to the second output."""
    return torch.cat([z, 0.1 * torch.randn_like(z)], dim=1)


def _first(name: str, like: Tensor) -> Tensor:
    if name == "likelihood.excess":
        return torch.full_like(like, _EXCESS)
    value = torch.ones_like(like)
    if like.dim():  # the scales of the two outputs: mean, log of the noise scale
        value[1] = _UNEVEN
    return value
