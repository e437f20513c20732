"""What MCMC samples from: the whole-data posterior density of a model over its flat unconstrained vector."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from bnn.data import Batch, Data, as_source
from bnn.inference.base import IterativeMethod, Run
from bnn.inference.mcmc.machine import Potential
from bnn.inference.particles import starts, what_is_fixed
from bnn.inference.point import PointLoss
from bnn.inputs import row_shapes
from bnn.layout import Layout
from bnn.likelihoods import refuse_training_weights
from bnn.model import BNN
from bnn.precision import network_dtype


class Target:
    """The potential energy ``U = -log p(y | w) / T - log p(w)`` of the unconstrained vector, Jacobian included.

    The network is in evaluation mode, since a density is a function: no dropout.

    Args:
        method: Its temperature and start.
        model: Not altered.
        data: As in `bnn.fit`; a loader is read once, and all rows are held.
        run: As in `bnn.fit`.

    Raises:
        ValueError: Learned points, sample weights, batch statistics that were never taken.
    """

    def __init__(self, method: IterativeMethod, model: BNN, data: Data, run: Run):
        self.method = method
        name = type(method).__name__
        refuse_what_is_no_density(model, run.weight, name)
        refuse_validation(run, name)
        if run.callbacks:
            raise ValueError(f"{name} has no epochs, after which callbacks= would be called: leave it out")
        source = as_source(data, model.likelihood, model.like, None, n_data=run.n_data)
        batches = list(source.batches())
        leaves = [torch.cat(same) for same in zip(*(batch.leaves for batch in batches), strict=True)]
        self.batch = Batch.rebuild(batches[0].structure, leaves)
        n = len(self.batch.y)
        if n != source.n:
            raise ValueError(f"n_data is {source.n}, but the loader gave {n} rows: MCMC needs all of them")
        sites = model.sites()
        local = model.sites(self.batch.x).latents[len(sites.latents) :]
        self.objective = PointLoss(method, model, n, coordinates="unconstrained", local=local)
        #: What is kept of a draw: the unknowns of the rows come last, and are not.
        self.kept = Layout(sites.latents)
        self.objective.eval()
        self.objective.input_shapes = row_shapes(self.batch.x)
        self.objective.check(self.batch)
        self.notes = what_is_fixed(self.objective.model)
        #: What the density depends on besides the point: arguments of a captured program.
        self.tensors = [*self.objective.state.values(), self.objective.temperature, *self.batch.leaves]
        self.size = self.objective.latents.size
        if network_dtype() is not None:
            raise ValueError(
                f"{name} cannot run under autocast to {network_dtype()}: the density of a point has to be right to "
                "many digits for a proposal to be accepted. Call fit outside of it"
            )
        if not self.kept.size:
            raise ValueError("no parameter has a prior: there is nothing to sample")

    def potential(self, tensors: list[Tensor]) -> Potential:
        """The gradient and value of U at a point ``(D,)``, given `tensors`, perhaps in other clothes (traced)."""
        names = list(self.objective.state)
        rest = list(tensors)
        state = {name: rest.pop(0) for name in names}
        temperature = rest.pop(0)
        batch = Batch.rebuild(self.batch.structure, rest)

        def energy(theta: Tensor) -> Tensor:
            terms = self.objective.terms({"theta": theta}, {}, batch, dict(state))
            return terms.nll / temperature + terms.kl

        def gradient(theta: Tensor) -> tuple[Tensor, Tensor]:
            g, u = torch.func.grad_and_value(energy)(theta)
            return g, u

        return gradient

    def starts(self, chains: int) -> Tensor:
        """Where the chains start, ``(chains, D)``: apart from each other, so that R-hat can tell."""
        q = starts(self.method, self.objective.model, self.kept, chains)
        q = torch.cat([q, torch.randn(chains, self.size - self.kept.size, dtype=q.dtype, device=q.device)], dim=1)
        if self.method.init == "net" or bool((q[:1] == q).all(1).sum() > 1):
            q = q + 0.1 * torch.randn_like(q)
        return q


def refuse_validation(run: Run, method: str) -> None:
    """Raise `ValueError` for held-out rows, which a sampler has no use for."""
    if run.validation is not None:
        raise ValueError(f"{method} takes no validation: score its posterior, posterior.predict(x).log_prob(y)")


def refuse_what_is_no_density(model: BNN, weight: Any, method: str) -> None:
    """Raise `ValueError` for what has no place in a density over all unknowns."""
    points = [site.name for site in model.sites().points]
    if points:
        raise ValueError(
            f"{method} samples every unknown, and {', '.join(points)} have no prior: give them one (a pattern mapped "
            "to None makes points, likelihoods say 'learned'), or freeze them with requires_grad=False"
        )
    if weight is not None:
        raise ValueError(f"{method} samples a density, and weight= makes training weights of rows: leave it out")
    refuse_training_weights(model.likelihood, method)
    for name, module in model.net.named_modules():
        if not isinstance(module, _BatchNorm):
            continue
        if not module.track_running_stats:
            raise ValueError(
                f"{name!r} takes statistics of every batch, so that no density of a row exists: use LayerNorm"
            )
        if not module.num_batches_tracked:
            raise ValueError(
                f"{name!r} has batch statistics that were never taken, and {method} holds them fixed: train the "
                "network first (MAP), or use LayerNorm or GroupNorm"
            )
