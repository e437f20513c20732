"""Is the training loss the model's? Batches, N / n and the KL weight, against densities computed another way."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bnn.analysis.density import log_likelihood_chunks, log_prior, log_q, of_draws, rows_of, vectors_of
from bnn.approximations import Values
from bnn.data import Batch
from bnn.inference.base import GradientMethod
from bnn.inference.objective import Objective
from bnn.inputs import slice_inputs
from bnn.layout import Layout
from bnn.model import BNN
from bnn.posterior import Posterior
from bnn.random import isolated, other_seed

#: Evaluations of the loss, and draws of the reference.
_SEEDS, _DRAWS = 16, 400
#: Standard errors that a difference has to be larger than, and the share of the value: rounding.
_ERRORS, _SHARE = 6.0, 1e-3


@dataclass(frozen=True)
class LossCheck:
    """Terms of a training loss in nats for all rows: over the batches of an epoch, and as they should be."""

    #: Negative log-likelihood: over an epoch of ragged batches; of all rows at once; and from the model itself.
    nll_epoch: float
    nll_whole: float
    nll_model: float
    #: Divergence from the prior (the negative log prior of a point): the loss's, and from the model itself (NaN where
    #: q has no density).
    kl_loss: float
    kl_model: float
    #: What is wrong, by name: ``"n_over_batch"``, ``"likelihood_weight"``, ``"kl_weight"``.
    flags: tuple[str, ...]

    @property
    def good(self) -> bool:
        """Whether nothing is wrong."""
        return not self.flags

    def __str__(self) -> str:
        if self.good:
            return "the training loss is the model's, in batches and as a whole"
        words = {
            "n_over_batch": f"batches add up to {self.nll_epoch / self.nll_whole:.3g} of the negative log-likelihood "
            "of all rows: the factor N / n is missing or wrong",
            "likelihood_weight": f"the loss has {self.nll_whole / self.nll_model:.3g} times the model's negative "
            "log-likelihood",
            "kl_weight": f"the loss has {self.kl_loss / self.kl_model:.3g} times the divergence from the prior",
        }
        return "; ".join(f"{flag}: {words[flag]}" for flag in self.flags)


def check_loss(
    method: GradientMethod, model: BNN, data: tuple[Any, Any], *, batch_size: int | None = None, seed: int = 0
) -> LossCheck:
    """Set a method's loss, at its start, against the model's density of the same data.

    Three things are asked. Do the losses of the batches of an epoch, the last one smaller, add up to the loss of all
    rows (each at the same draws of the weights)? Is the loss of all rows the model's log-likelihood, which is computed
    here without the data plate of the Pyro program? And is its KL term ``E_q[log q - log p]``?

    Args:
        method: One that minimises a loss: MAP, variational methods.
        model: Not altered.
        data: ``(x, y)``.
        batch_size: Of the epoch; ``None``: so that there are three full batches and a smaller one.
        seed: Of the start and of all draws.

    Raises:
        TypeError: The method has no loss of a single copy of the parameters.
    """
    if not isinstance(method, GradientMethod):
        raise TypeError(f"{type(method).__name__} minimises no loss: there is nothing to check")
    objective = method.loss(model, len(data[1]), seed=seed, compile="eager")
    if objective.members is not None or objective.needs_rows:
        raise TypeError(
            f"the loss of {type(method).__name__} has parameters for every member or row: it is not checked"
        )
    objective.eval()
    posterior = objective.posterior()
    batch = rows_of(posterior, *data)
    n = len(batch.y)
    size = batch_size or max(1, math.ceil(n / 3.5))
    parts = [Batch(slice_inputs(batch.x, slice(i, i + size)), batch.y[i : i + size]) for i in range(0, n, size)]
    whole, epoch = [], []
    for i in range(_SEEDS):
        own = other_seed(seed, f"loss {i}")
        whole.append(_stats(objective, batch, own))
        epoch.append(torch.stack([_stats(objective, part, own) * len(part.y) / n for part in parts]).sum(0))
    losses, epochs = torch.stack(whole) * n, torch.stack(epoch) * n  # (seeds, 3): loss, nll, kl
    nll, kl = _reference(posterior, batch, seed, free=objective.bound)
    flags = []
    if _differ(epochs[:, 1] - losses[:, 1], torch.zeros(1), float(losses[:, 1].mean())):
        flags.append("n_over_batch")
    if _differ(losses[:, 1], nll, float(nll.mean())):
        flags.append("likelihood_weight")
    if kl is not None and (_differ(losses[:, 2], kl, float(kl.mean())) or _weighted(losses, method.temperature)):
        flags.append("kl_weight")
    return LossCheck(
        float(epochs[:, 1].mean()),
        float(losses[:, 1].mean()),
        float(nll.mean()),
        float(losses[:, 2].mean()),
        math.nan if kl is None else float(kl.mean()),
        tuple(flags),
    )


def _stats(objective: Objective, batch: Batch, seed: int) -> Tensor:
    """Loss, nll and kl per datum."""
    with isolated(seed, objective.temperature.device):
        return objective.gradients(batch)[1].double().cpu()


def _weighted(losses: Tensor, temperature: float) -> bool:
    """Whether the loss is something else than nll + T kl."""
    gap = losses[:, 0] - losses[:, 1] - temperature * losses[:, 2]
    return bool(gap.abs().max() > _SHARE * losses.abs().max())


def _reference(posterior: Posterior, batch: Batch, seed: int, *, free: bool) -> tuple[Tensor, Tensor | None]:
    """-log p(y | w), and log q - log p (of a point: -log p), at draws: ``(s,)`` each.

    Densities over the unconstrained numbers if `free`; points are modes in the coordinates of the values themselves.
    """
    values = posterior.draws(None if posterior.num_draws else _DRAWS, seed)
    nll = -data_log_likelihood(posterior, values, batch)
    latents = {name: values[name] for name in Layout(posterior.model.sites().latents).names}
    prior = log_prior(posterior.model, latents, posterior.points).cpu()
    if posterior.num_draws is not None:
        return nll, -prior
    vectors, layout = vectors_of(posterior, values), Layout(posterior.model.sites().latents)
    if free:
        prior = prior + torch.func.vmap(layout.log_abs_det)(vectors).double().cpu()
    try:
        return nll, log_q(posterior.approximation, vectors).cpu() - prior
    except TypeError:
        return nll, None


def data_log_likelihood(posterior: Posterior, values: Values, batch: Batch) -> Tensor:
    """log p(y | w) of all rows at draws, by the network itself: ``(s,)``, float64."""
    chunks = log_likelihood_chunks(of_draws(posterior, values), values, batch.x, batch.y)
    return torch.stack([chunk.double().sum(1) for chunk in chunks]).sum(0).cpu()


def _differ(one: Tensor, two: Tensor, scale: float) -> bool:
    errors = [float(t.std()) / math.sqrt(len(t)) if len(t) > 1 else 0.0 for t in (one, two)]
    return abs(float(one.mean() - two.mean())) > _ERRORS * math.hypot(*errors) + _SHARE * abs(scale)


@dataclass(frozen=True)
class HistoryCheck:
    """The negative log-likelihood that a fit recorded at its end, against that of its posterior; per datum, in nats."""

    recorded: float
    model: float
    #: n / N: what the one would be of the other if N / n were left out.
    share: float
    flagged: bool

    def __str__(self) -> str:
        said = f"training loss: recorded {self.recorded:.3g} nats a row, the model says {self.model:.3g}"
        return f"{said}; {self.share:.3g} of that would be without the factor N / n" if self.flagged else said


def check_history(posterior: Posterior, x: Any, y: Any, *, seed: int = 0) -> HistoryCheck | None:
    """Whether the fit scaled its batches to the whole data: from what it recorded, after the fact.

    None where nothing was recorded in batches. Flagged is what is much nearer to n / N of the right number than to the
    number itself: training with dropout, a posterior that has moved since, and noise stay unflagged.

    Args:
        posterior: Any.
        x: All training inputs.
        y: Their targets.
        seed: Of the draws.
    """
    history = posterior.history
    steps = history.steps_per_epoch
    recorded = history.nll[-5 * steps :] if steps > 1 else history.nll[:0]
    recorded = recorded[recorded.isfinite()].double()
    if len(recorded) < 2:
        return None
    batch = rows_of(posterior, x, y)
    have = posterior.num_draws
    values = posterior.draws(min(have or 100, 100), seed)
    truth = float(-data_log_likelihood(posterior, values, batch).mean()) / len(batch.y)
    found, error = float(recorded.mean()), float(recorded.std()) / math.sqrt(len(recorded))
    share = 1 / steps
    off, near = abs(found - truth), abs(found - share * truth)
    flagged = off > _ERRORS * error and off > 0.3 * abs(truth) and near < 0.3 * off
    return HistoryCheck(found, truth, share, flagged)
