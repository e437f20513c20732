"""The Pyro model of a network: priors on its parameters, a likelihood on its outputs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, cast

import pyro
import torch
from pyro import poutine
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.poutine.util import is_validation_enabled
from torch import Tensor, nn
from torch.distributions import biject_to, constraints

from bnn.inputs import Inputs, as_inputs
from bnn.layout import Site
from bnn.likelihoods import Likelihood, refuse_training_weights
from bnn.precision import HALF, network_region
from bnn.priors import Prior
from bnn.random import isolated
from bnn.readings import MEAN, SITE, Missing, Noise, is_reading, readings_of

if TYPE_CHECKING:
    from bnn.prediction import Prediction

_MEDIAN_OF = 101

Output = int | str | Callable[[Any], Tensor] | None


@dataclass(frozen=True)
class Sites:
    """The unknowns of a model: random ones, and points that are learned without a prior."""

    latents: list[Site]
    points: list[Site]


class BNN:
    """A Bayesian neural network: **a Pyro model** on which any Pyro algorithm, guide or handler runs.

    Its sites bear the network's own parameter names, in ``named_parameters()`` order within a prior's group; the data
    site is ``y``, in a plate ``data`` that scales by N/n, and nothing else does.

    Args:
        net: Any module. It is never altered. ``requires_grad=False`` parameters are constants.
        prior: One prior for all parameters, or ``{pattern: prior}`` over their names, as in a shell (`fnmatch`): the
            first pattern that matches wins. ``None`` in the place of a prior makes points of them: learned, but not
            random (a partly Bayesian network).
        likelihood: From network outputs to the distribution of y.
        output: Which part of a tuple or dict that the network returns is the output: an index, a key, or a function.
        input_noise: Standard deviation with which the inputs were read, in their units: one number, one a feature
            ``(d,)``, or one a value ``(N, d)`` of the training set. The true inputs are then unknowns, one row at a
            time: ``x_obs ~ Normal(x, input_noise)`` (Carroll et al. 2006, *Measurement Error in Nonlinear Models*).
        input_prior: The law of a row of true inputs, a Pyro Normal or MultivariateNormal; ``None``: a multivariate
            Gaussian, whose mean and covariance are estimated from all training inputs at the start of a fit.
        missing: ``"infer"``: NaN among the inputs is an entry that was not read, an unknown; ``None``: an error.

    Raises:
        ValueError: A pattern that matches no parameter, a parameter that no pattern matches, a name that Pyro needs,
            a prior whose shape does not fit.
        TypeError: Arguments that are not a module, a prior and a likelihood.
    """

    def __init__(
        self,
        net: nn.Module,
        prior: Prior | Mapping[str, Prior | None],
        likelihood: Likelihood,
        *,
        output: Output = None,
        input_noise: Noise = None,
        input_prior: TorchDistributionMixin | None = None,
        missing: Missing = None,
    ):
        if not isinstance(net, nn.Module):
            raise TypeError(f"net is a torch.nn.Module, not {type(net).__name__}")
        if not isinstance(likelihood, Likelihood):
            raise TypeError(f"likelihood is one of bnn.likelihoods (an instance), not {likelihood!r}")
        self.net = net
        self.prior = prior
        self.likelihood = likelihood
        self.output = output
        #: How the inputs were read; None where they are known.
        self.readings = readings_of(input_noise, input_prior, missing)
        params = {name: p for name, p in net.named_parameters() if p.requires_grad}
        _check_names(params)
        #: The second names of shared tensors: ``{name: first name}``.
        self.ties = _ties(net)
        self._groups = _grouped(params, prior)
        self.sites()  # a prior that does not fit is told now, not at the first fit

    def __repr__(self) -> str:
        sizes = sum(p.numel() for p in self.net.parameters() if p.requires_grad)
        parts = [f"{type(self.net).__name__} of {sizes} weights", f"prior={self.prior!r}"]
        parts += [f"likelihood={self.likelihood!r}", *([] if self.readings is None else [repr(self.readings)])]
        return f"BNN({', '.join(parts)})"

    @property
    def like(self) -> Tensor:
        """A tensor with the dtype and the device of the network's learned parameters."""
        # Looked through only as far as the first that is learned: prediction asks again and again.
        floating = (parameter for parameter in self.net.parameters() if parameter.is_floating_point())
        first = next(floating, None)
        if first is None:
            raise ValueError("the network has no floating-point parameters")
        # A frozen part may be in half precision.
        return (first if first.requires_grad else next((p for p in floating if p.requires_grad), first)).detach()

    def __call__(
        self,
        x: Inputs,
        y: Tensor | None = None,
        *,
        n_data: int | None = None,
        rows: Tensor | None = None,
        weight: Tensor | None = None,
        state: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """The Pyro program: sample weights and unknowns, run the network, sample (or observe) y.

        Args:
            x: Inputs with rows first: a tensor, a tuple (positional) or a dict (keyword arguments of the network). If
                they are uncertain: what was read, or what `read` made of it.
            y: Targets, or ``None`` to sample them.
            n_data: N of the whole data set, when (x, y) is a batch of it.
            rows: ``(n,)``, the indices of the batch's rows.
            weight: ``(n,)``, sample weights: they multiply log-densities.
            state: Buffers and frozen parameters to use in place of the network's own. In training mode the buffers are
                updated in place (batch statistics); without `state`, copies are, and the network stays as it is.

        Returns:
            y, ``(n,)`` or ``(n, k)``.
        """
        weights, latents = self.sample_unknowns()
        plate = None
        if self.readings is not None:
            reading = self.read(x, rows=rows)
            plate = _data_plate(reading[MEAN], n_data, rows)
            with plate, _weighted(weight):
                x = self.readings.sample(reading)
        outputs = self.forward(weights, x, state)
        if y is not None:
            y = self.likelihood.convert(y, outputs.dtype)
            if is_validation_enabled():
                self.likelihood.check(outputs, y)
        fn = self.likelihood.observation(outputs, latents)
        if y is not None and self.likelihood.weighs:
            own = self.likelihood.training_weights(outputs, latents, y)
            weight = own if weight is None else weight * own
        with plate or _data_plate(outputs, n_data, rows), _weighted(weight):
            result: Tensor = pyro.sample("y", fn, obs=y)
        return result

    def read(self, x: Any, noise: Any = None, rows: Tensor | None = None) -> dict[str, Tensor]:
        """What is known of the true inputs, given what was read: takes the place of x, wherever a model takes inputs.

        Args:
            x: ``(n, d)``, what was read; NaN where ``missing="infer"``.
            noise: Standard deviation of this reading, in the place of `input_noise`: one number, one a feature ``(d,)``
                or one a value ``(n, d)``.
            rows: ``(n,)``, the rows of the training set that these are, where `input_noise` is one a value.

        Returns:
            ``{"input.mean": (n, d)}``, the expected inputs, with ``"input.factor"``, ``(n, d, d)``, a root of the
            covariance of each row, where rows differ in it.

        Raises:
            ValueError: Inputs of this model are known; their law is not known yet; x or noise does not fit.
        """
        if self.readings is None:
            raise ValueError("the inputs of this model are known: give BNN(..., input_noise=) or missing='infer'")
        return self.readings.read(x if is_reading(x) else as_inputs(x, self.like), noise, rows)

    def with_inputs(self, x: Any) -> BNN:
        """This model with the law of the true inputs: the given `input_prior`, else estimated from all readings x.

        `bnn.fit` does this by itself. ``model.readings.law`` has the mean and the covariance.

        Args:
            x: ``(N, d)``, all that was read.

        Raises:
            ValueError: x does not fit, or leaves nothing to estimate the law from.
        """
        other = copy.copy(self)
        if self.readings is not None:
            x = as_inputs(x, self.like)
            other.readings = self.readings.learned(x)
        return other

    def given_inputs(self) -> BNN:
        """The same model of the same network, whose inputs are known."""
        other = copy.copy(self)
        other.readings = None
        return other

    def expected(self, x: Inputs) -> Inputs:
        """The inputs themselves, or the expected ones where they are uncertain."""
        return x if self.readings is None else self.read(x)[MEAN]

    def sample_unknowns(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The part of the Pyro program before the data: the weights, and the likelihood's own unknowns."""
        return self.sample_weights(), self.likelihood.latents(self.like)

    def sample_weights(self) -> dict[str, Tensor]:
        """The prior part of the Pyro program: every parameter, with hyper-parameters first: ``{name: weight}``."""
        weights: dict[str, Tensor] = {}
        for group, prior, params in self._groups:
            if prior is None:
                for name, param in params.items():
                    weights[name] = pyro.param(name, param.detach().clone)
            else:
                weights.update(prior({name: param.detach() for name, param in params.items()}, group))
        return weights

    def forward(self, weights: Mapping[str, Tensor], x: Inputs, state: Mapping[str, Tensor] | None = None) -> Tensor:
        """The network's output under these weights: ``(n,)`` or ``(n, k)``."""
        if state is None:
            state = {name: buffer.clone() for name, buffer in self.net.named_buffers()}
        tensors = {**state, **weights}
        tensors |= {name: tensors[first] for name, first in self.ties.items() if first in tensors}
        args, kwargs = arguments(x)
        with network_region(self.like.device):
            result = torch.func.functional_call(self.net, tensors, args, kwargs, tie_weights=False)
        return self.select(result)

    def select(self, result: Any) -> Tensor:
        """The part of what the network returns that is its output; one that autocast made half is brought back.

        Raises:
            TypeError: It returns several things, and `output` does not say which, or names none of them.
        """
        if callable(self.output):
            result = self.output(result)
        elif self.output is not None:
            if isinstance(result, Tensor):
                raise TypeError(f"the network returns a tensor: output={self.output!r} would take it apart")
            try:
                result = result[self.output]
            except (KeyError, IndexError, TypeError) as error:
                have = list(result) if isinstance(result, Mapping) else f"a {type(result).__name__}"
                raise TypeError(f"output={self.output!r} is no part of what the network returns: {have}") from error
        if not isinstance(result, Tensor):
            raise TypeError(
                f"the network returns a {type(result).__name__}; say which part is the output with "
                "BNN(..., output=...): an index, a key or a function"
            )
        return result.to(self.like.dtype) if result.dtype in HALF else result

    def state(self) -> dict[str, Tensor]:
        """Copies of the network's buffers and frozen parameters: what its forward pass needs beside the weights."""
        state = {name: buffer.detach().clone() for name, buffer in self.net.named_buffers()}
        state |= {name: p.detach().clone() for name, p in self.net.named_parameters() if not p.requires_grad}
        return state

    def sites(self, x: Inputs | None = None) -> Sites:
        """All unknowns, in the order in which the Pyro program meets them, each with a value to start from.

        That is the network's own weight, and for other latents (scales) the median of their prior. No data are needed,
        and nothing random moves.

        Args:
            x: Where the inputs are uncertain and given here, the numbers that stand for them, ``input.z``, are among
                the latents.
        """
        own = {name: param.detach() for name, param in self.net.named_parameters()}
        own |= {f"{name}.z": value for name, value in own.items()}
        latents, points = [], []
        with isolated(seed=0, device=self.like.device), pyro.get_param_store().scope():
            trace = poutine.trace(self.sample_unknowns).get_trace()
            nodes: dict[str, Any] = dict(trace.nodes)
            latent = [name for name, node in nodes.items() if node["type"] == "sample" and not node["is_observed"]]
            medians = {name: _median(nodes[name]["fn"]) for name in latent if name not in own}
        for name, node in nodes.items():
            if name in latent:
                latents.append(Site(name, {**own, **medians}[name], node["fn"].support))
            elif node["type"] == "param":
                constraint = node["kwargs"].get("constraint", constraints.real)
                points.append(Site(name, node["value"].detach().clone(), constraint))
        if x is not None and self.readings is not None:
            latents.append(Site(SITE, torch.zeros_like(self.read(x)[MEAN]), constraints.real))
        return Sites(latents, points)

    def prior_draw(self) -> dict[str, Tensor]:
        """One draw of all latents from the prior, from torch's present random state: ``{site: value}``."""
        with pyro.get_param_store().scope():
            nodes: dict[str, Any] = dict(poutine.trace(self.sample_unknowns).get_trace().iter_stochastic_nodes())
        return {name: node["value"] for name, node in nodes.items()}

    def trace(
        self,
        values: Mapping[str, Tensor],
        points: Mapping[str, Tensor],
        x: Inputs,
        y: Tensor,
        **batch: Any,
    ) -> poutine.Trace:
        """The Pyro trace at given values of the latents and of the learned points; further arguments as in a call."""
        program = poutine.condition(self, data=dict(values))
        program = poutine.substitute(program, data=dict(points))
        return poutine.trace(program).get_trace(x, y, **batch)

    def log_joint(self, params: Mapping[str, Tensor], x: Inputs, y: Tensor, n_data: int | None = None) -> Tensor:
        """log p(params) + (N/n) log p(y | x, params): a scalar, differentiable in `params`.

        Args:
            params: ``{site: value}`` for every latent site, in its own (constrained) space; learned points may be among
                them, else the present ones are used.
            x: Inputs, rows first.
            y: Targets.
            n_data: N of the whole set, when (x, y) is a batch.

        Raises:
            ValueError: A latent site is missing, a name is no site, or a value has the wrong shape; a likelihood with
                training weights, which have no place in a density.
        """
        refuse_training_weights(self.likelihood, "log_joint")
        sites = self.sites(x)
        latent = {site.name for site in sites.latents}
        points = {site.name: site.value for site in sites.points}
        missing, unknown = latent - set(params), set(params) - latent - set(points)
        if missing or unknown:
            raise ValueError(f"log_joint: missing sites {sorted(missing)}, unknown names {sorted(unknown)}")
        for site in [*sites.latents, *sites.points]:
            if site.name in params and params[site.name].shape != site.value.shape:
                got, expected = tuple(params[site.name].shape), tuple(site.value.shape)
                raise ValueError(f"log_joint: {site.name!r} has shape {got}, it should have {expected}")
        values = {name: value for name, value in params.items() if name in latent}
        points |= {name: value for name, value in params.items() if name in points}
        return torch.as_tensor(self.trace(values, points, x, y, n_data=n_data).log_prob_sum())

    def weights(self, values: Mapping[str, Tensor], points: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The network's parameters at given values of all latents: deterministic sites are worked out.

        Returns:
            ``{parameter name: weight}``, the parameters without a prior among them.
        """
        own = {name: value for name, value in points.items() if not name.startswith("likelihood.")}
        program = poutine.condition(self.sample_weights, data=dict(values))
        result: dict[str, Tensor] = poutine.substitute(program, data=own)()
        return result

    def copy(self) -> BNN:
        """A model with its own copy of the network, so that nothing done to it reaches the user's."""
        other = copy.copy(self)  # what __init__ has checked need not be checked again
        other.net = copy.deepcopy(self.net)
        params = {name: p for name, p in other.net.named_parameters() if p.requires_grad}
        other._groups = [(group, prior, {name: params[name] for name in own}) for group, prior, own in self._groups]
        return other

    def with_prior(self, prior: Prior | Mapping[str, Prior | None]) -> BNN:
        """The same model of the same network under another prior, given as to `BNN`."""
        other = copy.copy(self)
        other.prior = prior
        other._groups = _grouped({name: p for name, p in self.net.named_parameters() if p.requires_grad}, prior)
        other.sites()
        return other

    def prior_predictive(self, x: Any, draws: int = 200, seed: int = 0) -> Prediction:
        """What the model believes of y at x before it has seen any data; ``.outputs`` are functions from the prior.

        The network is run as in ``posterior.predict``: a copy, in evaluation mode. Learned points are at the values
        that a fit would start from. Where inputs are uncertain, their law has to be known: give `input_prior`, or take
        ``model.with_inputs(x_train)``.

        Args:
            x: Inputs, as in `bnn.Posterior.predict`.
            draws: Of all unknowns, the likelihood's among them. Draw i does not depend on their number.
            seed: Of the draws.

        Raises:
            ValueError: Inputs that the network cannot take; fewer than one draw.
        """
        from bnn.prior_predictive import prior_predictive

        return prior_predictive(self, x, draws, seed)

    def learned_prior_scales(self) -> list[str]:
        """The groups whose prior scale is itself random."""
        return [group for group, prior, _ in self._groups if prior is not None and prior.learned_scale()]


def _data_plate(like: Tensor, n_data: int | None, rows: Tensor | None) -> Any:
    """The plate of a batch of as many rows as `like` has: it scales by N/n, and nothing else does."""
    n = like.shape[0]
    if n_data is not None and n_data < n:
        raise ValueError(f"n_data, the rows of the whole set, is {n_data}, but this batch alone has {n}")
    if rows is None and n_data is not None:
        rows = torch.arange(n, device=like.device)
    return pyro.plate("data", n_data or n, subsample=rows)


def _median(fn: Any) -> Tensor:
    """The median of a prior, number by number; of numbers that depend on each other (a simplex) unconstrained ones."""
    draws: Tensor = fn.sample((_MEDIAN_OF,))
    support = Site("", draws, fn.support).base_support
    if not support.event_dim:
        return draws.median(0).values
    transform = biject_to(support)
    median: Tensor = transform(transform.inv(draws).median(0).values)
    return median


def _weighted(weight: Tensor | None) -> AbstractContextManager[Any]:
    """Log-densities times sample weights; rows of weight 0 are masked, since Pyro's scale must be positive."""
    stack = ExitStack()
    if weight is not None:
        there = weight > 0
        stack.enter_context(poutine.mask(mask=cast(torch.BoolTensor, there)))
        stack.enter_context(poutine.scale(scale=torch.where(there, weight, 1.0)))
    return stack


def arguments(x: Inputs) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """Inputs as a network's positional and keyword arguments."""
    if isinstance(x, Mapping):
        return (), dict(x)
    return (x if isinstance(x, tuple) else (x,)), {}


def _ties(net: nn.Module) -> dict[str, str]:
    """The second names of shared tensors.

    ``functional_call(tie_weights=True)`` would find them too, but leaves a module that stands in the network under two
    names with a foreign tensor: it swaps the one attribute twice, and restores what it found the second time.
    """
    first: dict[int, str] = {}
    seen: set[tuple[int, str]] = set()
    ties = {}
    for name, tensor in [
        *net.named_parameters(remove_duplicate=False),
        *net.named_buffers(remove_duplicate=False),
    ]:
        owner, _, attribute = name.rpartition(".")
        place = (id(net.get_submodule(owner)), attribute)
        if id(tensor) in first and place not in seen:
            ties[name] = first[id(tensor)]
        first.setdefault(id(tensor), name)
        seen.add(place)
    return ties


_Groups = list[tuple[str, Prior | None, dict[str, nn.Parameter]]]


def _grouped(params: Mapping[str, nn.Parameter], priors: Prior | Mapping[str, Prior | None]) -> _Groups:
    """Give each parameter to the first pattern that matches it."""
    left = dict(params)
    groups: _Groups = []
    for pattern, prior in (priors if isinstance(priors, Mapping) else {"*": priors}).items():
        if prior is not None and not isinstance(prior, Prior):
            raise TypeError(f"the prior of {pattern!r} is one of bnn.priors (an instance) or None, not {prior!r}")
        members = {name: left.pop(name) for name in list(left) if fnmatchcase(name, pattern)}
        if not members:
            taken = any(fnmatchcase(name, pattern) for name in params)
            why = "earlier patterns took all that it matches" if taken else f"the names are {sorted(params)}"
            raise ValueError(f"pattern {pattern!r} matches no parameter: {why}")
        groups.append((_group_name(pattern, [group for group, _, _ in groups]), prior, members))
    if left:
        raise ValueError(f"no pattern matches {sorted(left)}: add '*' with a prior (or None, for points) at the end")
    return groups


def _group_name(pattern: str, taken: list[str]) -> str:
    name = pattern.replace("*", "").strip(".") or "all"
    return name if name not in taken else pattern


def _check_names(params: Mapping[str, nn.Parameter]) -> None:
    if not params:
        raise ValueError("the network has no parameters with requires_grad=True: there is nothing to infer")
    for name, param in params.items():
        if isinstance(param, nn.parameter.UninitializedParameter):
            raise ValueError(
                f"the network's parameter {name!r} is of a lazy module and has no shape yet: run one batch through"
            )
        if name in ("y", "data", SITE) or name.startswith(("likelihood.", "prior.")):
            raise ValueError(f"the network's parameter {name!r} bears a name that the model needs: rename it")
