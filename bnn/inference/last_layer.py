"""The exact posterior of a linear last layer over fixed features, and its exact evidence."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bnn.approximations.blocks import from_precision
from bnn.data import Data, Source, as_source
from bnn.distributions import base, loc_and_scale
from bnn.inference.base import Method, Run
from bnn.inference.laplace.curvature import precise
from bnn.inference.laplace.evidence import HyperParameters, tuned
from bnn.inference.laplace.method import LocalTerms, check_of, local_posterior, refuse_weight
from bnn.inference.laplace.mode import Mode, Of, find_mode
from bnn.inference.laplace.selection import last_layer
from bnn.inference.laplace.unknowns import Scales, Unknowns
from bnn.inference.map import MAP
from bnn.inference.readings import refuse_uncertain_inputs
from bnn.inputs import row_shapes
from bnn.likelihoods import Gaussian
from bnn.model import BNN
from bnn.posterior import Posterior
from bnn.random import isolated, other_seed

_ROWS = 1024


@dataclass(frozen=True, kw_only=True)
class LastLayer(Method):
    """Bayesian linear regression on the features of a trained network: the posterior of the last layer is exact.

    With features z (a 1 for the bias among them), Gaussian noise and a Gaussian prior, each output's weights have the
    posterior of Bishop (2006), section 3.3, and the evidence is his equation 3.86. Noise scale and prior scales that
    are random, or learned points of the likelihood, are set by evidence times prior; all other weights stay at the
    mode.

    Args:
        of: Where the features come from: a `bnn.MAP` with training settings; a posterior of it; or ``"net"``, the
            network as it is. While features are trained, hyper-parameters are at the median of their prior.
        tune: ``"after"`` training, or ``None``: hyper-parameters stay where they start.
        scales: As in `bnn.Laplace`.

    Raises (from `fit`):
        ValueError: A likelihood that is not Gaussian, a prior of the last layer that is not, or a network that does not
            end in a linear layer. `bnn.VBLL` and ``bnn.Laplace(weights="last_layer")`` take classes.
    """

    of: Of = field(default_factory=MAP)
    tune: Literal["after"] | None = "after"
    scales: Scales = "model"

    def __post_init__(self) -> None:
        """Raise `ValueError` or `TypeError` for a setting that makes no sense, with its name."""
        check_of(self.of)
        if self.tune not in ("after", None):
            raise ValueError(f"tune is 'after' or None, not {self.tune!r}")
        if self.scales not in ("model", "group", "layer"):
            raise ValueError(f"scales is 'model', 'group' or 'layer', not {self.scales!r}")

    def fit(self, model: BNN, data: Data, run: Run) -> Posterior:
        """Train the features, then solve for the last layer; see `bnn.fit`."""
        started = time.perf_counter()
        refuse_weight(run)
        refuse_uncertain_inputs(model, "LastLayer")
        if not isinstance(model.likelihood, Gaussian) or model.likelihood.missing:
            raise ValueError(
                f"the last layer's posterior is exact under Gaussian noise only, not under {model.likelihood!r}: use "
                "bnn.VBLL, or bnn.Laplace(weights='last_layer')"
            )
        unknowns = Unknowns(model, self.scales, tuned=self.tune is not None)
        mode = find_mode(self.of, model, data, run, unknowns)
        source = as_source(data, model.likelihood, model.like, _ROWS, n_data=run.n_data)
        with isolated(other_seed(run.seed, "last layer"), model.like.device):
            posterior = self._solve(model, source, mode, unknowns)
        posterior.history.seconds = mode.earlier_seconds + time.perf_counter() - started
        posterior.settings |= {"seed": run.seed, "compile": posterior.history.backend}
        return posterior

    def _solve(self, model: BNN, source: Source, mode: Mode, unknowns: Unknowns) -> Posterior:
        model = model.copy()
        model.net.eval()
        first = next(source.batches())
        layer = linear_layer(model, last_layer(model, unknowns.weights.names, first.x), unknowns)
        sums = _sums(model, layer, mode, source, self.of.temperature if isinstance(self.of, MAP) else 1.0)
        hyper = HyperParameters(model, unknowns, mode)

        def evidence(vector: Tensor) -> Tensor:
            return _solution(layer, sums, hyper, vector).evidence

        vector = hyper.start if self.tune is None else tuned(hyper, evidence)
        with torch.no_grad():
            solution = _solution(layer, sums, hyper, vector)
        weights = {**mode.weights, **layer.values(solution.mean.to(model.like))}
        mode = dataclasses.replace(mode, weights=weights, hyper=vector)
        record = {"kind": "laplace", "value": float(solution.evidence)}
        return local_posterior(
            model,
            unknowns,
            mode,
            LocalTerms(layer.names, [from_precision(p) for p in solution.precision], linear=True, order=layer.order()),
            {**self.settings(), "evidence": record, "hyper": unknowns.record(vector), "n_data": source.n},
            mode.input_shapes or row_shapes(first.x),
        )


@dataclass(frozen=True)
class LinearLayer:
    """A linear layer with k outputs, of which the weight, and perhaps the bias, is random."""

    module: nn.Linear
    #: The parameters that are random, the weight first.
    names: list[str]

    @property
    def columns(self) -> int:
        """How many random numbers one output has."""
        return self.module.in_features + len(self.names) - 1

    def order(self) -> Tensor:
        """``(k * columns,)``: of the parameters' numbers, joined, those of one output after those of another."""
        k, d = self.module.out_features, self.module.in_features
        weight = torch.arange(k * d).view(k, d)
        biases = (k * d + torch.arange(k)).view(k, 1)
        return (torch.cat([weight, biases], dim=1) if len(self.names) > 1 else weight).reshape(-1)

    def values(self, rows: Tensor) -> dict[str, Tensor]:
        """The parameters from one row an output, ``(k, columns)``."""
        parts = [rows[:, : self.module.in_features], rows[:, -1]]
        return dict(zip(self.names, parts, strict=False))

    def rows(self, values: Mapping[str, Tensor]) -> Tensor:
        """The inverse of `values`."""
        weight, *bias = (values[name] for name in self.names)
        return torch.cat([weight, *(value.unsqueeze(1) for value in bias)], dim=1)

    def inputs(self, features: Tensor) -> Tensor:
        """Features ``(n, d)`` with a 1 for the bias, where it is random: ``(n, columns)``."""
        return features if len(self.names) == 1 else torch.cat([features, torch.ones_like(features[:, :1])], dim=1)

    def gaussian(self, trace: Any, factors: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The prior's locations and scales, ``(k, columns)`` each.

        Raises:
            ValueError: It is not Gaussian.
        """
        locs, scales = {}, {}
        for name in self.names:
            fn, shape = trace.nodes[name]["fn"], trace.nodes[name]["value"].shape
            if not isinstance(base(fn), torch.distributions.Normal):
                raise ValueError(f"a Bayesian last layer needs a Gaussian prior; that of {name!r} is {base(fn)}")
            loc, scale = loc_and_scale(fn)
            scale = scale * factors[name] if name in factors else scale
            locs[name], scales[name] = loc.expand(shape), scale.expand(shape)
        return self.rows(locs), self.rows(scales)


def linear_layer(model: BNN, name: str, unknowns: Unknowns) -> LinearLayer:
    """The last layer.

    Raises:
        ValueError: It is not linear, or its weight is not random.
    """
    module = model.net.get_submodule(name)
    prefix = f"{name}." if name else ""
    weights = unknowns.weights.names
    if not isinstance(module, nn.Linear) or f"{prefix}weight" not in weights:
        raise ValueError(
            f"a Bayesian last layer is a torch.nn.Linear whose weight has a prior; the last one here is {name!r}, a "
            f"{type(module).__name__}"
        )
    return LinearLayer(module, [own for own in (f"{prefix}weight", f"{prefix}bias") if own in weights])


@contextmanager
def features_of(layer: LinearLayer) -> Iterator[list[Tensor]]:
    """What goes into the layer when the network runs: a list of one tensor ``(n, d)`` a pass."""
    seen: list[Tensor] = []

    def keep(module: nn.Linear, args: tuple[Tensor, ...]) -> None:
        if args[0].dim() != 2:
            raise ValueError(f"the last layer takes features of shape (n, d), here {tuple(args[0].shape)}")
        seen.append(args[0].to(module.weight.dtype))  # autocast may have made them half

    handle = layer.module.register_forward_pre_hook(keep)
    try:
        yield seen
    finally:
        handle.remove()


@dataclass(frozen=True)
class _Sums:
    """Sums over the data, divided by the temperature: the likelihood's sufficient statistics."""

    #: Z' Z ``(p, p)``, Z' Y ``(p, k)``, the sums of squares of Y ``(k,)``, and how many rows.
    inner: Tensor
    cross: Tensor
    squares: Tensor
    rows: float


def _sums(model: BNN, layer: LinearLayer, mode: Mode, source: Source, temperature: float) -> _Sums:
    shared = {**mode.state, **{name: v for name, v in mode.points.items() if not name.startswith("likelihood.")}}
    # A bias that is no random number is taken off the targets.
    fixed = len(layer.names) == 1 and bool(layer.module._parameters["bias"] is not None)
    inner: Tensor | float = 0.0
    cross: Tensor | float = 0.0
    squares: Tensor | float = 0.0
    for batch in source.batches():
        with torch.no_grad(), features_of(layer) as seen:
            outputs = model.forward(mode.weights, batch.x, shared)
        model.likelihood.check(outputs, batch.y)
        z = layer.inputs(seen[0]).to(precise(outputs))
        y = batch.y.reshape(len(z), -1).to(z)
        if fixed:
            y = y - (outputs.reshape(y.shape) - seen[0] @ mode.weights[layer.names[0]].T).to(y)
        inner, cross, squares = inner + z.T @ z, cross + z.T @ y, squares + y.square().sum(0)
    inner, cross, squares = (torch.as_tensor(value) / temperature for value in (inner, cross, squares))
    return _Sums(inner, cross, squares, source.n / temperature)


@dataclass(frozen=True)
class _Solution:
    """One Gaussian an output, and the log evidence of all."""

    #: ``(k, p)`` and ``(k, p, p)``.
    mean: Tensor
    precision: Tensor
    evidence: Tensor


def _solution(layer: LinearLayer, sums: _Sums, hyper: HyperParameters, vector: Tensor) -> _Solution:
    found, latents, trace = hyper.at(vector)
    loc, scale = layer.gaussian(trace, found.factors)
    noise = latents["likelihood.scale"].expand(len(loc)).square()
    prior = scale.square().reciprocal()
    precision = sums.inner / noise.view(-1, 1, 1) + torch.diag_embed(prior)
    right = sums.cross.T / noise.unsqueeze(1) + prior * loc
    root = torch.linalg.cholesky(precision)
    mean = torch.cholesky_solve(right.unsqueeze(-1), root).squeeze(-1)
    fit = sums.squares / noise + (prior * loc * loc).sum(1) - (mean * right).sum(1)
    log_dets = prior.log().sum(1) - 2 * root.diagonal(dim1=-2, dim2=-1).log().sum(1)
    evidence = 0.5 * (log_dets - fit - sums.rows * (2 * math.pi * noise).log())
    return _Solution(mean, precision, evidence.sum())
