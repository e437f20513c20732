"""Mean-field variational inference: an independent Gaussian for every unconstrained number."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from bnn.approximations import Approximation, Gaussian
from bnn.capture import Backend
from bnn.data import Batch
from bnn.inference.base import GradientMethod, IterativeMethod
from bnn.inference.divergence import kl_divergence, local_divergence, runs
from bnn.inference.draws import mean_over_draws
from bnn.inference.local import LayerNoise, LayerUses
from bnn.inference.objective import Objective, Params, Terms
from bnn.layout import Layout
from bnn.model import BNN
from bnn.noise import standard_normal
from bnn.priors import fan_in
from bnn.random import isolated
from bnn.readings import SITE


@dataclass(frozen=True, kw_only=True)
class MeanField(GradientMethod):
    """Variational inference with independent Gaussians, by reparameterised gradients (Bayes by Backprop).

    Minimises ``E_q[-log p(y | w)] + T KL(q || p)``, q = Normal(loc, exp(log_scale)) over the unconstrained numbers.
    The divergence is in closed form wherever one is known (`bnn.inference.divergence`). Blundell et al. (2015),
    arXiv:1505.05424; Kingma and Welling (2014), arXiv:1312.6114.

    Args:
        draws: Weight draws a step, over which the likelihood term is averaged.
        estimator: How noise enters linear and convolutional layers. ``"weights"``: one draw of the weights for all
            rows. ``"local"``: local reparameterisation, independent Gaussian activations (Kingma et al. 2015,
            arXiv:1506.02557), for linear layers that a row meets once. ``"flipout"``: one draw with pseudo-independent
            signs a row (Wen et al. 2018, arXiv:1803.04386). Both leave the loss as it is in expectation and lower the
            variance of its gradient; parameters that they do not reach are drawn ordinarily, and the history says
            which.
        init_scale: Standard deviation that q starts from, for a weight divided by sqrt(fan-in).
        local: How uncertain inputs are treated (`bnn.BNN`). ``"draws"``: averaged over in the likelihood
            (`input_draws`). ``"learned"``: a Gaussian of its own for every row, ``Normal(m_i, s_i)`` over the numbers
            that stand for its inputs, trained beside the weights (Kingma and Welling 2014); data are arrays then.
    """

    draws: int = 1
    estimator: Literal["weights", "local", "flipout"] = "weights"
    init_scale: float = 0.1
    local: Literal["draws", "learned"] = "draws"

    def __post_init__(self) -> None:
        """See `GradientMethod`."""
        super().__post_init__()
        if self.draws < 1:
            raise ValueError(f"draws is at least 1, not {self.draws}")
        if not self.init_scale > 0:
            raise ValueError(f"init_scale is positive, not {self.init_scale}")
        if self.estimator not in ("weights", "local", "flipout"):
            raise ValueError(f"estimator is 'weights', 'local' or 'flipout', not {self.estimator!r}")
        if self.local not in ("draws", "learned"):
            raise ValueError(f"local is 'draws' or 'learned', not {self.local!r}")

    def objective(self, model: BNN, n_data: int, backend: Backend = "auto") -> Objective:
        """The loss; see `GradientMethod.loss`."""
        return MeanFieldLoss(self, model, n_data, backend)


def narrow(method: IterativeMethod, model: BNN, latents: Layout, scale: float) -> tuple[Tensor, Tensor]:
    """Means and logarithms of standard deviations to start from, ``(D,)`` each: the deviations fan-in aware.

    Raises:
        ValueError: The model has no latents.
    """
    if not latents.size:
        raise ValueError("no parameter has a prior: there is nothing to infer but points, which method='map' fits")
    loc = method.start(model, latents)
    own = {name for name, _ in model.net.named_parameters()}
    inputs = [fan_in(site.value.shape) if site.name in own else 1 for site in latents.sites]
    log_scales = [
        loc.new_full((size,), math.log(scale / math.sqrt(count)))
        for size, count in zip(latents.sizes, inputs, strict=True)
    ]
    return loc, torch.cat(log_scales)


class _Parts(NamedTuple):
    """What all draws of a step have in common."""

    loc: Tensor
    log_scale: Tensor
    scale: Tensor
    points: Params
    #: Means and logarithms of deviations of the batch's rows, ``(n, d)`` each; None: no row has a Gaussian.
    rows: tuple[Tensor, Tensor] | None


class MeanFieldLoss(Objective):
    """The negative evidence lower bound per datum."""

    method: MeanField
    bound = True

    _reached: frozenset[str] | None = None

    def initial(self) -> dict[str, Tensor]:
        """Around the starting point, narrow: wide weights drown the signal before anything is learned."""
        loc, log_scale = narrow(self.method, self.model, self.latents, self.method.init_scale)
        return {"loc": loc, "log_scale": log_scale, **self._rows_start()}

    def _rows_start(self) -> dict[str, Tensor]:
        """Every row at what its reading says."""
        if self.method.local == "draws":
            return {}
        readings = self.model.readings
        if readings is None or readings.law is None:
            raise ValueError(
                "local='learned' is for uncertain inputs whose law is known: BNN(..., input_noise=) or "
                "missing='infer', and, in a loop of one's own, model.with_inputs(x)"
            )
        self.needs_rows = True
        shape = (self.n_data, len(readings.law.mean))
        return {name: self.temperature.new_zeros(shape) for name in ("input_loc", "input_log_scale")}

    def terms(self, params: Params, points: Params, batch: Batch, state: dict[str, Tensor]) -> Terms:
        """The likelihood term averaged over the draws, and the divergence."""
        log_scale = params["log_scale"]
        parts = _Parts(params["loc"], log_scale, log_scale.exp(), points, self._rows(params, batch))
        in_layers = self.method.estimator != "weights"
        if in_layers and self._reached is None:
            self._reached = self._find_reached(parts, batch, state)
        draws, loc = self.method.draws, parts.loc
        shape = (draws, 0) if in_layers else (draws, *loc.shape)
        noise = [standard_normal(shape, loc)]
        if parts.rows is not None:
            noise.append(standard_normal((draws, *parts.rows[0].shape), loc))

        def one(own: Sequence[Tensor], buffers: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
            terms = self._one(parts, own, batch, buffers)
            return terms.nll, terms.kl

        return Terms(*mean_over_draws(one, noise, state, self.mapped))

    def _rows(self, params: Params, batch: Batch) -> tuple[Tensor, Tensor] | None:
        if not self.needs_rows:
            return None
        if batch.rows is None:
            raise ValueError("local='learned' has parameters for every row of the data: give rows=, which these are")
        loc, log_scale = (params[name].index_select(0, batch.rows) for name in ("input_loc", "input_log_scale"))
        return loc, log_scale

    def _one(self, parts: _Parts, noise: Sequence[Tensor], batch: Batch, state: dict[str, Tensor]) -> Terms:
        """The terms at one draw of the weights (or, for noise in the layers, at one draw of the activations)."""
        in_layers = self.method.estimator != "weights"
        draw = self._draw(parts) if in_layers else parts.loc + parts.scale * noise[0]
        values = self.latents.unflatten(draw)
        inputs = {} if parts.rows is None else {SITE: parts.rows[0] + parts.rows[1].exp() * noise[1]}
        with self._layer_noise(parts, values):
            nll, trace = self.data_nll({**values, **inputs}, parts.points, batch, state)
        kl = kl_divergence(self.latents, trace, parts.loc, parts.log_scale, draw)
        if parts.rows is not None:
            kl = kl + local_divergence(trace.nodes[SITE], *parts.rows)
        return Terms(nll, kl)

    def _draw(self, parts: _Parts) -> Tensor:
        """Noise for the sites that get none in a layer, the mean for the others."""
        pieces = zip(self.latents.names, *(v.split(self.latents.sizes) for v in (parts.loc, parts.scale)), strict=True)
        reached = self._reached or frozenset()
        return torch.cat([m if name in reached else m + s * standard_normal(m.shape, m) for name, m, s in pieces])

    def _layer_noise(self, parts: _Parts, values: dict[str, Tensor]) -> AbstractContextManager[Any]:
        if self.method.estimator == "weights":
            return nullcontext()
        reached = self._reached or frozenset()
        locs, scales = (self.latents.free(vector) for vector in (parts.loc, parts.scale))
        moments = {
            id(values[name]): (m, s)
            for name, m, s in zip(self.latents.names, locs, scales, strict=True)
            if name in reached
        }
        return LayerNoise(moments, self.method.estimator)

    def _find_reached(self, parts: _Parts, batch: Batch, state: dict[str, Tensor]) -> frozenset[str]:
        """The weights that the estimator reaches: used in one layer only, their divergence in closed form."""
        estimator = self.method.estimator
        assert estimator != "weights"
        values = self.latents.unflatten(parts.loc)
        state = {name: value.clone() for name, value in state.items()}
        with torch.no_grad(), isolated(device=parts.loc.device), LayerUses(values, estimator) as uses:
            _, trace = self.data_nll(values, parts.points, batch, state)
        closed = {self.latents.names[i] for run in runs(self.latents, trace) if run.closed for i in run.sites}
        reached = frozenset(closed & set(uses.reached))
        weights = {name for name, _ in self.model.net.named_parameters()} & set(self.latents.names)
        if weights - reached:
            note = f"{self.method.estimator} noise does not reach {sorted(weights - reached)}: drawn as weights"
            self.notes.append(note)
            warnings.warn(note, stacklevel=2)
        return reached

    def approximation(self, params: Params) -> Approximation:
        """The Gaussian itself."""
        return Gaussian(self.latents, params["loc"], params["log_scale"])
