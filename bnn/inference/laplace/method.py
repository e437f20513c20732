"""The Laplace approximation: a Gaussian at the mode, with the curvature there as its precision."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from bnn.approximations import LocalGaussian
from bnn.approximations.blocks import Block
from bnn.data import Data, Source, as_source
from bnn.inference.base import Method, Run
from bnn.inference.laplace.curvature import Covariance, Curvature, Kind, Place, exact_curvature
from bnn.inference.laplace.evidence import Evidence, HyperParameters, by_output, tuned
from bnn.inference.laplace.kron import kron_curvature
from bnn.inference.laplace.mode import Mode, Of, find_mode
from bnn.inference.laplace.selection import random_weights
from bnn.inference.laplace.unknowns import Scales, Unknowns, unknowns_trace
from bnn.inference.map import MAP
from bnn.inference.readings import refuse_uncertain_inputs
from bnn.inputs import row_shapes
from bnn.layout import Layout
from bnn.likelihoods import refuse_training_weights
from bnn.model import BNN
from bnn.posterior import Posterior
from bnn.random import isolated, other_seed

#: Rows a batch of the curvature.
_ROWS = 1024


@dataclass(frozen=True, kw_only=True)
class Laplace(Method):
    """A Gaussian at the mode with covariance ``(H + P)^-1``: H the likelihood's curvature there, P the prior's.

    MacKay (1992), Neural Computation 4; Daxberger et al. (2021), arXiv:2106.14806. Latents that are no weights (noise
    scale, prior scales) are hyper-parameters: they are set by the marginal likelihood times their prior, as are the
    likelihood's learned points under a flat prior. Numbers that the model fixes stay as they are.

    Args:
        of: The mode: a `bnn.MAP` with the training settings; a posterior of it, which is taken as it is; or ``"net"``,
            the network's own weights as they are.
        covariance: ``"full"``; ``"kron"``, Kronecker factors a layer (`bnn.inference.laplace.kron` says of which);
            ``"diag"``.
        weights: Which are random: ``"all"``, ``"last_layer"``, or patterns of their names. The others stay at the mode.
        curvature: ``"ggn"``, the generalised Gauss-Newton matrix, or ``"empirical_fisher"``.
        predictive: ``"linear"``, the network linearised at the mode (Immer, Korzepa and Bauer 2021, arXiv:2008.08400);
            or ``"draws"``, the network itself under drawn weights.
        tune: When to set the hyper-parameters: ``"during"`` training, every `tune_every` epochs, and after it (Immer et
            al. 2021, arXiv:2104.04975); ``"after"`` it; ``None``: they stay where they start, at the median of their
            prior or the value in the posterior that is started from.
        tune_every: Epochs.
        scales: Further hyper-parameters, where something is tuned: a factor on the scale of every Gaussian prior, for
            each prior ``"group"`` or each ``"layer"``; ``"model"``: none.

    Raises (from `fit`):
        ValueError: A prior without curvature (L1); sample weights; layers that ``"kron"`` does not know, by name.
    """

    of: Of = field(default_factory=MAP)
    covariance: Covariance = "kron"
    weights: Literal["all", "last_layer"] | tuple[str, ...] | list[str] = "all"
    curvature: Kind = "ggn"
    predictive: Literal["linear", "draws"] = "linear"
    tune: Literal["during", "after"] | None = "during"
    tune_every: int = 50
    scales: Scales = "model"

    def __post_init__(self) -> None:
        """Raise `ValueError` or `TypeError` for a setting that makes no sense, with its name."""
        check_of(self.of)
        choices = {
            "covariance": ("full", "kron", "diag"),
            "curvature": ("ggn", "empirical_fisher"),
            "predictive": ("linear", "draws"),
            "tune": ("during", "after", None),
            "scales": ("model", "group", "layer"),
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is one of {', '.join(map(repr, known))}, not {getattr(self, name)!r}")
        if isinstance(self.weights, str) and self.weights not in ("all", "last_layer"):
            raise ValueError(f"weights is 'all', 'last_layer' or a list of name patterns, not {self.weights!r}")
        if self.tune_every < 1:
            raise ValueError(f"tune_every is a number of epochs from 1, not {self.tune_every}")
        if self.tune is None and self.scales != "model":
            raise ValueError(f"scales={self.scales!r} says what to tune: tune='during' or 'after' says when")

    def fit(self, model: BNN, data: Data, run: Run) -> Posterior:
        """Find the mode, take the curvature there, set the hyper-parameters; see `bnn.fit`."""
        started = time.perf_counter()
        refuse_weight(run)
        refuse_training_weights(model.likelihood, "Laplace")
        refuse_uncertain_inputs(model, "Laplace")
        source = as_source(data, model.likelihood, model.like, _ROWS, n_data=run.n_data)
        with isolated(other_seed(run.seed, "curvature"), model.like.device):
            fit = _Fit(self, model, source, Unknowns(model, self.scales, tuned=self.tune is not None))
        mode = find_mode(
            self.of, model, data, run, fit.unknowns, fit.retuned if self.tune == "during" else None, self.tune_every
        )
        with isolated(other_seed(run.seed, "curvature"), model.like.device):
            posterior = fit.posterior(mode)
        posterior.history.seconds = mode.earlier_seconds + time.perf_counter() - started
        posterior.settings |= {"seed": run.seed, "compile": posterior.history.backend}
        return posterior


class _Fit:
    """What a fit needs again whenever it takes the curvature."""

    def __init__(self, method: Laplace, model: BNN, source: Source, unknowns: Unknowns):
        self.method, self.source, self.unknowns = method, source, unknowns
        self.model = model.copy()
        self.model.net.eval()
        self.first = next(source.batches())
        self.names = random_weights(self.model, method.weights, unknowns, self.first.x)
        self.temperature = method.of.temperature if isinstance(method.of, MAP) else 1.0

    def retuned(self, mode: Mode) -> Tensor:
        """Hyper-parameters for the mode so far."""
        with isolated(0, self.model.like.device):
            evidence = self.evidence(mode)
            return tuned(evidence.hyper, evidence)

    def evidence(self, mode: Mode) -> Evidence:
        """The marginal likelihood around a mode."""
        hyper = HyperParameters(self.model, self.unknowns, mode)
        return Evidence(hyper, self.names, self.curvature(mode), self.method.curvature, self.temperature)

    def curvature(self, mode: Mode) -> Curvature:
        """The curvature at a mode."""
        hyper = self.unknowns.hyper(mode.hyper)
        own = {name: value for name, value in mode.points.items() if not name.startswith("likelihood.")}
        fixed = {name: value for name, value in mode.weights.items() if name not in self.names}
        place = Place(
            self.model,
            {name: mode.weights[name] for name in self.names},
            {**mode.state, **own, **fixed},
            unknowns_trace(self.model, mode.weights, hyper, mode.points)[0],
            self.method.curvature,
            by_output(self.unknowns, mode.hyper),
        )
        if self.method.covariance == "kron":
            return kron_curvature(place, self.source)
        return exact_curvature(place, self.source, self.method.covariance)

    def posterior(self, mode: Mode) -> Posterior:
        """The Gaussian at a mode, with its hyper-parameters tuned there."""
        likelihood, y = self.model.likelihood, self.first.y
        evidence = self.evidence(mode)
        likelihood.check(evidence.curvature.outputs[: len(y)], y[: len(evidence.curvature.outputs)])
        vector = evidence.hyper.start if self.method.tune is None else tuned(evidence.hyper, evidence)
        value = float(evidence(vector).detach())
        mode = dataclasses.replace(mode, hyper=vector)
        record = {"evidence": {"kind": "laplace", "value": value}, "hyper": self.unknowns.record(vector)}
        return local_posterior(
            self.model,
            self.unknowns,
            mode,
            LocalTerms(self.names, evidence.blocks(vector), linear=self.method.predictive == "linear"),
            {**self.method.settings(), **record, "n_data": self.source.n},
            mode.input_shapes or row_shapes(self.first.x),
        )


@dataclass(frozen=True)
class LocalTerms:
    """A Gaussian over some weights."""

    #: The weights, in the order of the blocks.
    names: list[str]
    blocks: Sequence[Block]
    linear: bool
    #: ``(d,)``: which of the weights' numbers, joined, each number of the blocks is; None: all, in order.
    order: Tensor | None = None


def local_posterior(
    model: BNN,
    unknowns: Unknowns,
    mode: Mode,
    terms: LocalTerms,
    settings: dict[str, object],
    input_shapes: list[tuple[int, ...]] | None,
) -> Posterior:
    """The posterior of a Gaussian around a mode.

    Args:
        model: Its network is in evaluation mode.
        unknowns: Of the model.
        mode: With its final hyper-parameters.
        terms: The Gaussian.
        settings: For the record.
        input_shapes: See `Posterior`.
    """
    hyper = unknowns.hyper(mode.hyper.to(model.like))
    layout = Layout(model.sites().latents)
    centre = layout.flatten({**mode.weights, **hyper.latents}).to(model.like.device)
    places = dict(zip(layout.names, torch.arange(layout.size, device=centre.device).split(layout.sizes), strict=True))
    where = torch.cat([places[name] for name in terms.names])
    where = where if terms.order is None else where[terms.order]
    return Posterior(
        model,
        LocalGaussian(layout, centre, where, terms.blocks, linear=terms.linear),
        points={**mode.points, **hyper.points},
        state=mode.state,
        history=mode.history,
        settings=settings,
        input_shapes=input_shapes,
    )


def check_of(of: object) -> None:
    """Raise `TypeError` for what is no mode."""
    if not (isinstance(of, MAP | Posterior) or of == "net"):
        raise TypeError(f"of is a bnn.MAP (with settings), a Posterior of it, or 'net'; not {of!r}")


def refuse_weight(run: Run) -> None:
    """Raise `ValueError` for sample weights."""
    if run.weight is not None:
        raise ValueError(
            "weight= cannot be used with a Laplace approximation: weights on rows make no density of the data, and its "
            "curvature and evidence are those of a density. Repeat rows instead"
        )
