"""A training step of mean-field variational inference by other PyTorch libraries, as their manuals write it."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from benchmarks.frame import Gap, Ready
from benchmarks.nets import constant, criterion, data_of, looped, losses, net_of, nll
from benchmarks.problems import LR, NOISE, PROBLEMS, Problem


def _perceptron(problem: Problem, layer: Callable[[int, int], nn.Module]) -> nn.Sequential:
    if problem.sizes is None:
        raise Gap("perceptrons only")
    layers: list[nn.Module] = []
    for a, b in pairwise(problem.sizes):
        layers += [layer(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def _stepped(problem: Problem, net: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], place: Any) -> Ready:
    optimizer = torch.optim.Adam(net.parameters(), lr=LR)

    def step(x: Tensor, y: Tensor) -> None:
        optimizer.zero_grad()
        loss(x, y).backward()
        optimizer.step()

    return looped(problem, data_of(problem), step, loss=losses(problem, place, lambda x, y: loss(x, y).detach()))


def _placing(net: nn.Sequential, mean: str, scale: str, to_own: Callable[[Tensor], Tensor]) -> Any:
    """Sets a layer's parameters: `mean` and `scale` are their names, with ``{}`` for ``weight`` or ``bias``."""

    def place(loc: dict[str, Tensor], scales: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name in loc:
                index, part = name.split(".")
                layer = net[int(index)]
                layer.get_parameter(mean.format(part)).copy_(loc[name])
                layer.get_parameter(scale.format(part)).copy_(to_own(scales[name]))

    return place


def _softplus_inverse(scale: Tensor) -> Tensor:
    return scale.double().expm1().log().to(scale.dtype)


def torchbnn(problem: str) -> Ready:
    """``BayesLinear`` and ``BKLLoss(reduction="sum")``."""
    import torchbnn as library

    work = PROBLEMS[problem]
    net = _perceptron(work, functools.partial(library.BayesLinear, 0.0, 1.0))
    nll, kl = criterion(work), library.BKLLoss(reduction="sum")
    place = _placing(net, "{}_mu", "{}_log_sigma", torch.log)
    return _stepped(work, net, lambda x, y: nll(net(x), y) + kl(net).sum() / work.rows, place)


def blitz(problem: str) -> Ready:
    """``BayesianLinear`` and ``sample_elbo``, one draw a step."""
    from blitz.modules import BayesianLinear
    from blitz.utils import variational_estimator

    work = PROBLEMS[problem]
    prior = torch.distributions.Normal(0.0, 1.0)
    estimated: Any = variational_estimator(type("Net", (nn.Sequential,), {}))
    net = estimated(*_perceptron(work, functools.partial(BayesianLinear, prior_dist=prior)))
    nll, share = criterion(work), 1 / work.rows
    place = _placing(net, "{}_mu", "{}_rho", _softplus_inverse)
    return _stepped(work, net, lambda x, y: net.sample_elbo(x, y, nll, 1, share), place)


def bayesian_torch(problem: str) -> Ready:
    """``LinearReparameterization``. Its `kl_loss` is a mean over the weights of a tensor: here it is their sum."""
    from bayesian_torch.layers import LinearReparameterization

    work = PROBLEMS[problem]

    def layer(a: int, b: int) -> nn.Module:
        made = LinearReparameterization(a, b)
        made.dnn_to_bnn_flag = True  # forward gives the outputs alone, and the divergence is not worked out twice
        return made

    net = _perceptron(work, layer)
    nll = criterion(work)
    layers = [layer for layer in net if isinstance(layer, LinearReparameterization)]

    def divergence() -> Tensor:
        total = torch.zeros(())
        for one in layers:
            parts = ((one.mu_weight, one.rho_weight, one.prior_weight_mu, one.prior_weight_sigma),)
            parts += ((one.mu_bias, one.rho_bias, one.prior_bias_mu, one.prior_bias_sigma),)
            for mu, rho, prior_mu, prior_sigma in parts:
                total = total + mu.numel() * one.kl_div(mu, torch.log1p(torch.exp(rho)), prior_mu, prior_sigma)
        return total

    place = _placing(net, "mu_{}", "rho_{}", _softplus_inverse)
    ready = _stepped(work, net, lambda x, y: nll(net(x), y) + divergence() / work.rows, place)
    told = "its own kl_loss is a mean over weights; summed here, as the bound has it"
    return Ready(ready.round, ready.loss, notes={"loss": told})


def torch_uncertainty(problem: str) -> Ready:
    """``BayesLinear`` and ``ELBOLoss``, whose divergence is a mean over layers: their number is put in its weight."""
    from torch_uncertainty.layers.bayesian import BayesLinear
    from torch_uncertainty.losses import ELBOLoss

    work = PROBLEMS[problem]
    net = _perceptron(work, functools.partial(BayesLinear, prior_sigma_1=1.0, prior_sigma_2=1.0))
    layers = sum(isinstance(layer, BayesLinear) for layer in net)
    elbo = ELBOLoss(net, criterion(work), kl_weight=layers / work.rows, num_samples=1)
    place = _placing(net, "{}_mu", "{}_sigma", _softplus_inverse)
    ready = _stepped(work, net, lambda x, y: elbo(x, y).sum(), place)
    told = "its own divergence is a mean over layers; weighted by their number here, which gives the sum"
    return Ready(ready.round, ready.loss, notes={"loss": told})


def tyxe(problem: str) -> Ready:
    """``VariationalBNN.fit``, an epoch a round."""
    # tyxe 0.0.2 calls a function that Pyro has no more: the one line that it needs.
    pyro.util.deep_getattr = lambda owner, name: operator.attrgetter(name)(owner)
    import tyxe as library

    work = PROBLEMS[problem]
    normal = pyro.distributions.Normal(torch.tensor(0.0), torch.tensor(1.0))
    likelihood = (
        library.likelihoods.Categorical(work.rows)
        if work.classes
        else library.likelihoods.HomoskedasticGaussian(work.rows, scale=NOISE)
    )
    store = pyro.get_param_store()
    own: dict[str, Any] = {"params": {}, "constraints": {}}
    guide = functools.partial(library.guides.AutoNormal, init_scale=0.1)
    bnn = library.VariationalBNN(net_of(work), library.priors.IIDPrior(normal), likelihood, guide)
    optimizer = pyro.optim.Adam({"lr": LR})
    elbo = pyro.infer.TraceMeanField_ELBO()

    def in_store(fn: Any, *args: Any) -> Any:
        with store.scope(own) as kept:
            found = fn(*args)
        own.update(kept)
        return found

    def place(loc: dict[str, Tensor], scale: dict[str, Tensor]) -> None:
        for name in loc:
            store[f"net_guide.net.{name}.loc"] = loc[name].clone()
            store[f"net_guide.net.{name}.scale"] = scale[name].clone()

    def value(x: Tensor, y: Tensor) -> float:
        return elbo.loss(bnn.model, bnn.guide, (x,), y) / work.rows - constant(work)

    def epoch(x: Tensor, y: Tensor) -> None:
        rows = torch.randperm(len(y)).split(work.batch)
        bnn.fit(((x.index_select(0, i), y.index_select(0, i)) for i in rows), optimizer, 1)

    return _epochs(work, functools.partial(in_store, epoch, *data_of(work)), in_store, losses(work, place, value))


def _epochs(work: Problem, epoch: Callable[[], None], in_store: Any, loss: Any) -> Ready:
    from benchmarks.frame import timed

    epoch()  # warm
    return Ready(lambda: timed(epoch, work.steps), None if loss is None else functools.partial(in_store, loss))


def posteriors(problem: str) -> Ready:
    """``posteriors.vi.diag`` with torchopt's Adam."""
    import torchopt
    from posteriors import vi
    from torch.func import functional_call

    work = PROBLEMS[problem]
    net, nll = net_of(work), criterion(work)
    normal = torch.distributions.Normal(0.0, 1.0, validate_args=False)

    def log_posterior(params: dict[str, Tensor], batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        x, y = batch
        outputs = functional_call(net, params, (x,))
        prior = sum(normal.log_prob(p).sum() for p in params.values())
        return -nll(outputs, y) + prior / work.rows, torch.zeros(())

    transform = vi.diag.build(log_posterior, torchopt.adam(lr=LR), temperature=1 / work.rows, init_log_sds=-2.0)
    state = [transform.init({name: p.detach().clone() for name, p in net.named_parameters()})]

    def step(x: Tensor, y: Tensor) -> None:
        state[0], _ = transform.update(state[0], (x, y))

    at: dict[str, Any] = {}

    def place(loc: dict[str, Tensor], scale: dict[str, Tensor]) -> None:
        at.update(loc=loc, scale=scale)

    def value(x: Tensor, y: Tensor) -> Tensor:
        return vi.diag.nelbo(at["loc"], at["scale"], (x, y), log_posterior, 1 / work.rows)[0].detach()

    return looped(work, data_of(work), step, loss=losses(work, place, value))


def ivon_opt(problem: str) -> Ready:
    """The authors' IVON optimiser; its loss is the likelihood's alone, the divergence stands in its step."""
    import ivon

    work = PROBLEMS[problem]
    net, loss_fn = net_of(work), criterion(work)
    optimizer = ivon.IVON(net.parameters(), lr=0.1, ess=work.rows, weight_decay=1 / work.rows, hess_init=0.1)

    def step(x: Tensor, y: Tensor) -> None:
        with optimizer.sampled_params(train=True):
            optimizer.zero_grad()
            loss_fn(net(x), y).backward()
        optimizer.step()

    return looped(work, data_of(work), step, loss=nll(work, net), terms="nll")
