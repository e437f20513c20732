"""The method that suits the size of network and data."""

from __future__ import annotations

from dataclasses import dataclass, replace

from bnn.data import Data, as_source
from bnn.distributed import world
from bnn.forward import depends_on_mode
from bnn.inference.base import Method, Run
from bnn.inference.ensemble import Ensemble
from bnn.inference.map import MAP
from bnn.inference.mcmc import NUTS
from bnn.inference.mean_field import MeanField
from bnn.model import BNN
from bnn.posterior import Posterior

#: Weights times rows up to which NUTS takes minutes on two cores: docs/methods/which.md has the measurements.
NUTS_WORK = 200_000
#: Optimiser steps that training aims at: an epoch more or less for few rows, and none too many for a million.
_STEPS = 6_000
_BATCH = 128


@dataclass(frozen=True, kw_only=True)
class Auto(Method):
    """Chooses by counts, never by trying: the same network, data and settings make the same choice anywhere.

    1. NUTS, where weights times rows are at most 200,000 and the density is one: every parameter has a prior, no sample
       weights, no held-out rows, no dropout or batch statistics in the network. It is the reference for all others.
    2. Else an ensemble of five networks under the prior (`bnn.MAP`), which comes nearest to it at the cost of a fit.
    3. `bnn.MeanField`, where a mode does not exist: under a learned prior scale.

    The evidence is in docs/methods/which.md. ``posterior.settings["auto"]`` says what was chosen and why, and so does
    the history; ``posterior.settings["method"]`` is the method that ran.
    """

    def fit(self, model: BNN, data: Data, run: Run) -> Posterior:
        """Choose, and fit; see `bnn.fit`."""
        from bnn.inference.ranks import fit_on

        rows = as_source(data, model.likelihood, model.like, _BATCH, n_data=run.n_data, weight=run.weight).n
        method, why = choose(model, rows, run)
        if run.checkpoint is not None:  # a fit goes on with what was chosen, or says that it is another now
            run = replace(run, checkpoint=run.checkpoint.part("", {"auto": type(method).__name__}))
        posterior = fit_on(world(), method, model, data, run)
        posterior.settings["auto"] = f"{type(method).__name__}: {why}"
        posterior.history.notes.insert(0, f"auto chose {posterior.settings['auto']}")
        return posterior


def choose(model: BNN, rows: int, run: Run) -> tuple[Method, str]:
    """The method for this model and so many rows, and why."""
    sites = model.sites()
    weights = sum(site.value.numel() for site in sites.latents)
    reason = _no_density(model, run)
    if reason is None and weights * rows <= NUTS_WORK:
        return NUTS(num_samples=500, warmup=500, max_depth=8), f"{weights} unknowns times {rows} rows are few"
    reason = reason or f"{weights} unknowns times {rows} rows are too many for NUTS"
    epochs = max(20, -(-_STEPS * min(_BATCH, rows) // rows))
    if model.learned_prior_scales() or not sites.latents:
        if not sites.latents:
            return MAP(epochs=epochs), "no parameter has a prior, so that there are points alone to fit"
        return MeanField(epochs=epochs), f"{reason}, and under a learned prior scale there is no mode"
    return Ensemble(members=5, of=MAP(epochs=epochs)), reason


def _no_density(model: BNN, run: Run) -> str | None:
    """Why there is no density to sample from, in words; None where there is one."""
    points = [site.name for site in model.sites().points]
    kinds = depends_on_mode(model.net)
    if points:
        return f"{points[0]} is a point without a prior"
    if run.weight is not None:
        return "sample weights are no density"
    if run.validation is not None or run.callbacks:
        return "held-out rows and callbacks go with training"
    return f"the network has {kinds[0]}" if kinds else None
