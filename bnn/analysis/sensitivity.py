"""Does the answer hang on the prior? Powers of the prior and of the likelihood, without another fit."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bnn.analysis import compatibility
from bnn.analysis.arviz import chained_draws
from bnn.analysis.density import log_likelihood_chunks, log_prior_by_site, refuse_other_targets, rows_of
from bnn.inputs import as_inputs, num_rows, slice_inputs
from bnn.posterior import Posterior

#: Function values that are looked at, numbers of one hyper-parameter, and draws of a continuous posterior.
_FUNCTIONS, _HYPER, _DRAWS = 20, 20, 4000
#: From here on a quantity moves: the change of a Gaussian whose mean shifts by 0.3 of its standard deviations when the
#: power is doubled (Kallioinen et al. 2024, section 2.4).
THRESHOLD = 0.05
#: Pareto shape up to which reweighted draws can be trusted (Vehtari et al. 2024, arXiv:1507.02646).
_PARETO = 0.7

_READINGS = {
    (False, True): "the data decide",
    (True, False): "the prior decides: it is strong, or the data say little",
    (True, True): "prior and data both decide: they may be in conflict",
    (False, False): "neither moves it much",
}


@dataclass(frozen=True)
class Moves:
    """How one quantity moves with the power of the prior, and with that of the likelihood."""

    #: ``f[3]``, the output at row 3; ``f[3, 0]`` of several outputs; or a site.
    name: str
    #: Distance per doubling of the power: `bnn.analysis.compatibility.power_scaling`.
    prior: float
    likelihood: float
    #: How far the posterior mean goes, in posterior standard deviations, per doubling of the power, to first order.
    prior_shift: float
    likelihood_shift: float

    @property
    def reading(self) -> str:
        """What this means, in words."""
        return _READINGS[self.prior >= THRESHOLD, self.likelihood >= THRESHOLD]

    @property
    def prior_matters(self) -> bool:
        """Whether the prior moves it by more than the threshold."""
        return self.prior >= THRESHOLD


@dataclass(frozen=True)
class Sensitivity:
    """What the posterior owes to the prior. ``str()`` is a table, with its reading in words."""

    #: Function values first, hyper-parameters after them.
    rows: tuple[Moves, ...]
    #: Pareto shapes of the reweighted draws, of prior and likelihood: above 0.7 the numbers are not to be trusted.
    k: tuple[float, float]

    @property
    def functions(self) -> tuple[Moves, ...]:
        """The rows of function values."""
        return tuple(row for row in self.rows if row.name.startswith("f["))

    def __getitem__(self, name: str) -> Moves:
        return next(row for row in self.rows if row.name == name)

    @property
    def reading(self) -> str:
        """All of it in a sentence or two."""
        functions = self.functions
        moved = [row for row in functions if row.prior_matters]
        conflict = [row for row in moved if row.likelihood >= THRESHOLD]
        words = [f"The prior moves {len(moved)} of {len(functions)} function values"]
        if moved:
            most = max(moved, key=lambda row: row.prior)
            words[0] += f", {most.name} the most: by {most.prior_shift:+.2f} standard deviations if its power doubles"
            words.append(f"{len(conflict)} of these are moved by the data, too")
        hyper = [row.name for row in self.rows if row.prior_matters and row not in functions]
        if hyper:
            words.append(f"It moves {', '.join(hyper)}")
        if max(self.k) > _PARETO:
            words.append(f"Do not trust this: k-hat is {max(self.k):.2f}, so that another prior takes another fit")
        return ". ".join(words) + "."

    def __str__(self) -> str:
        width = max(len(row.name) for row in self.rows)
        head = f"{'':{width}}  prior  (shift)  likelihood  (shift)"
        lines = [
            f"{row.name:{width}}  {row.prior:5.3f}  {row.prior_shift:+6.2f}   {row.likelihood:9.3f}  "
            f"{row.likelihood_shift:+6.2f}   {row.reading}"
            for row in self.rows
        ]
        return "\n".join([head, *lines, self.reading])


def sensitivity(
    posterior: Posterior,
    x: Any,
    y: Any,
    *,
    at: Any = None,
    sites: Sequence[str] | None = None,
    num: int | None = None,
    seed: int = 0,
) -> Sensitivity:
    """How far function values and hyper-parameters move when the prior, or the likelihood, is raised to a power.

    Power scaling (Kallioinen, Paananen, Bürkner and Vehtari 2024, arXiv:2107.14054) by ArviZ: draws are reweighted to
    powers 0.99 and 1.01. Nothing is fitted anew, so that the answer is about small changes, and about the draws: of an
    approximation as if it were the posterior. Single weights are not looked at: they can change places.

    A prior of many weights that none of them obeys (100 of scale 1 for a function of size 1) moves functions although
    nobody chose it for that; look at `bnn.BNN.prior_predictive` then, and at `bnn.priors.calibrate`.

    Args:
        posterior: Of the model's own density: temperature 1, no sample weights. Fitted on:
        x: The training inputs.
        y: Their targets.
        at: Inputs at which functions are looked at, 20 evenly spaced values of them; ``None``: x.
        sites: Whose prior is raised to a power: weights, ``prior.GROUP.scale``, ``likelihood.scale``; ``None``: all.
            In a hierarchical prior the top level is what was chosen: give the hyper-sites.
        num: Draws; ``None``: all of a finite posterior, 4,000 of a continuous one.
        seed: Of the draws.

    Raises:
        ValueError: Fewer than 100 draws; another target than the posterior; sites that the model does not have;
            uncertain inputs.
    """
    refuse_other_targets(posterior, "power scaling")
    batch = rows_of(posterior, x, y)
    values, shape = chained_draws(posterior, num if num or posterior.num_draws else _DRAWS, seed)
    if shape[0] * shape[1] < 100:
        raise ValueError(f"power scaling reweights draws, of which {shape[0] * shape[1]} are too few: 100 at least")
    prior = _log_prior(posterior, values, sites)
    data = torch.stack([chunk.double().sum(1) for chunk in log_likelihood_chunks(posterior, values, x, y)]).sum(0)
    looked = {**_functions(posterior, values, batch.x if at is None else at), **_hyper(posterior, values)}
    quantities = torch.stack(list(looked.values()), dim=1).double()  # (s, m)
    distances, shifts, k = [], [], []
    for part in (prior, data):
        density = part.cpu().reshape(shape).numpy()
        distances.append(compatibility.power_scaling(quantities.cpu().reshape(*shape, -1).numpy(), density))
        shifts.append(_shifts(quantities, part.to(quantities)))
        k.append(max(compatibility.smoothed(sign * 0.01 * density.ravel())[1] for sign in (-1, 1)))
    columns = zip(looked, *distances, *shifts, strict=True)
    return Sensitivity(tuple(Moves(name, *map(float, numbers)) for name, *numbers in columns), (k[0], k[1]))


def _shifts(quantities: Tensor, log_density: Tensor) -> npt.NDArray[np.float64]:
    """``d E[q] / d log2(power) = log(2) Cov(q, log p)``, in standard deviations of q: ``(m,)``."""
    centred = quantities - quantities.mean(0)
    covariance = (centred * (log_density - log_density.mean()).unsqueeze(1)).mean(0)
    scale = centred.square().mean(0).sqrt()
    moves = torch.where(scale > 0, math.log(2) * covariance / scale, 0.0)
    return np.asarray(moves.cpu())


def _log_prior(posterior: Posterior, values: Mapping[str, Tensor], sites: Sequence[str] | None) -> Tensor:
    """log p of these sites, ``(s,)``."""
    own = {site.name: values[site.name] for site in posterior.model.sites().latents if site.name in values}
    terms = log_prior_by_site(posterior.model, own, posterior.points)
    if sites is not None and (not sites or set(sites) - set(terms)):
        raise ValueError(f"sites are some of {list(terms)}, which have a prior here, not {list(sites)}")
    return torch.stack([terms[name] for name in (terms if sites is None else sites)]).sum(0)


def _functions(posterior: Posterior, values: Mapping[str, Tensor], at: Any) -> dict[str, Tensor]:
    """Function values by name, each ``(s,)``."""
    inputs = as_inputs(at, posterior.model.like)
    every = -(-num_rows(inputs) // _FUNCTIONS)
    outputs = posterior.predict(slice_inputs(inputs, slice(0, None, every)), values).outputs
    flat = outputs.reshape(*outputs.shape[:2], -1)  # (s, rows, k)
    found = {}
    for i, j in itertools.product(range(flat.shape[1]), range(flat.shape[2])):
        found[f"f[{i * every}]" if flat.shape[2] == 1 else f"f[{i * every}, {j}]"] = flat[:, i, j]
    return dict(list(found.items())[:: -(-len(found) // _FUNCTIONS)])


def _hyper(posterior: Posterior, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Unknowns that are no weights, number by number, each ``(s,)``."""
    weights = {name for name, _ in posterior.model.net.named_parameters()}
    found: dict[str, Tensor] = {}
    for site in posterior.model.sites().latents:
        if site.name not in weights and not site.name.endswith(".z"):
            flat = values[site.name].reshape(len(values[site.name]), -1)[:, :_HYPER]
            names = [site.name] if flat.shape[1] == 1 else [f"{site.name}[{i}]" for i in range(flat.shape[1])]
            found.update(zip(names, flat.unbind(1), strict=True))
    return found
