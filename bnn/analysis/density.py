"""Densities at draws: of the model (the log joint), of an approximation (log q), and of each row (log-likelihoods).

Never scaled to a whole data set, and never through the data plate of the Pyro program: an independent way to the
numbers that a training loss is made of.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping
from functools import singledispatch
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from bnn.approximations import (
    Approximation,
    Correlated,
    Draws,
    Flow,
    Gaussian,
    Iterates,
    LocalGaussian,
    LowRank,
    Mixture,
    Values,
)
from bnn.approximations.blocks import Block, Dense, Diagonal, Kronecker
from bnn.data import Batch, as_batch
from bnn.inputs import num_rows, slice_inputs
from bnn.layout import Layout
from bnn.likelihoods import refuse_training_weights
from bnn.model import BNN
from bnn.posterior import Posterior
from bnn.random import other_seed

#: Numbers at a time, over draws and rows or over draws and weights.
_CHUNK = 16_000_000
#: Draws of uncertain inputs over which the likelihood of a row is averaged.
_INPUT_DRAWS = 100


def rows_of(posterior: Posterior, x: Any, y: Any) -> Batch:
    """Inputs and targets of a posterior's model, checked.

    Raises:
        ValueError: They do not fit; uncertain inputs; a likelihood that is a training weight and no density.
    """
    model = posterior.model
    if model.readings is not None:
        raise ValueError("the inputs of this model are uncertain: its log joint has an unknown for every row")
    refuse_training_weights(model.likelihood, "a log joint")
    return as_batch(x, y, model.likelihood, model.like)


def refuse_other_targets(posterior: Posterior, what: str) -> None:
    """Raise `ValueError` where draws are of something else than p(w | y): of a tempered or weighted posterior."""
    settings = [posterior.settings, posterior.settings.get("of")]
    tempered = any(isinstance(part, dict) and part.get("temperature", 1.0) != 1 for part in settings)
    if posterior.settings.get("weighted") or tempered:
        raise ValueError(f"{what} needs the posterior itself: temperature 1, and no sample weights")
    refuse_training_weights(posterior.model.likelihood, what)


def log_likelihood(posterior: Posterior, x: Any, y: Any, *, num: int | None = None, seed: int = 0) -> Tensor:
    """log p(y_i | x_i, draw) from any posterior, row by row, unscaled: ``(s, n)``.

    Args:
        posterior: Any; one whose predictions are those of a linearised network is evaluated as that.
        x: Inputs, n rows.
        y: Their targets.
        num: Draws; see `bnn.Posterior.draws`.
        seed: Of the draws.
    """
    return torch.cat(list(log_likelihood_chunks(posterior, posterior.draws(num, seed), x, y)), dim=1)


def log_likelihood_chunks(posterior: Posterior, values: Mapping[str, Tensor], x: Any, y: Any) -> Iterator[Tensor]:
    """As `log_likelihood` at given draws, some rows at a time: memory does not grow with n."""
    model = posterior.model
    batch = as_batch(x if model.readings is None else model.read(x), y, model.likelihood, model.like)
    count = len(next(iter(values.values())))
    width = math.prod(posterior.predict(slice_inputs(batch.x, slice(0, 1)), values).outputs.shape[2:])
    step = max(1, _CHUNK // (4 * count * width))
    for start in range(0, num_rows(batch.x), step):
        rows = slice(start, start + step)
        part = Batch(slice_inputs(batch.x, rows), batch.y[rows])
        if model.readings is None:
            yield posterior.predict(part.x, values).log_prob_draws(part.y)
        else:
            yield marginal(posterior, values, part)


def marginal(posterior: Posterior, values: Mapping[str, Tensor], batch: Batch) -> Tensor:
    """``log p(y | w)`` of each draw and row where inputs are uncertain: averaged over draws of these, ``(s, n)``."""
    each = (posterior.predict(batch.x, values, seed=i).log_prob_draws(batch.y) for i in range(_INPUT_DRAWS))
    return functools.reduce(torch.logaddexp, each) - math.log(_INPUT_DRAWS)


def of_draws(posterior: Posterior, values: Mapping[str, Tensor]) -> Posterior:
    """A posterior of these draws alone, of the network itself: not of one that was linearised."""
    approximation = Draws({name: value.unsqueeze(0) for name, value in values.items()})
    return Posterior(posterior.model, approximation, points=posterior.points, state=posterior.state)


def log_joint(posterior: Posterior, vectors: Tensor, batch: Batch) -> Tensor:
    """log p(y, w) at rows of unconstrained numbers, as a density over them (Jacobian included): ``(s,)``, float64.

    Args:
        posterior: Its model, learned points and buffers are used.
        vectors: ``(s, D)``, in the order of ``Layout(posterior.model.sites().latents)``.
        batch: All rows.
    """
    model, layout = posterior.model, Layout(posterior.model.sites().latents)
    step = max(1, _CHUNK // max(1, layout.size))
    parts = []
    with torch.no_grad(), pyro.validation_enabled(False):
        for start in range(0, len(vectors), step):
            part = vectors[start : start + step]
            values = torch.func.vmap(layout.unflatten)(part)
            prior = log_prior(model, values, posterior.points)
            if not layout.plain:
                prior = prior + torch.func.vmap(layout.log_abs_det)(part).double()
            weights = _with_derived(posterior, values)
            data = log_likelihood_chunks(of_draws(posterior, weights), weights, batch.x, batch.y)
            parts.append(prior + torch.stack([chunk.double().sum(1) for chunk in data]).sum(0))
    return torch.cat(parts)


def log_prior(model: BNN, values: Mapping[str, Tensor], points: Mapping[str, Tensor]) -> Tensor:
    """log p of all unknowns at draws ``{site: (s, *shape)}``, as a density over their own values: ``(s,)``, float64."""
    return torch.stack(list(log_prior_by_site(model, values, points).values())).sum(0)


def log_prior_by_site(model: BNN, values: Mapping[str, Tensor], points: Mapping[str, Tensor]) -> Values:
    """As `log_prior`, of each unknown given those before it: ``{site: (s,)}``, float64."""

    def one(row: Values) -> Values:
        program = poutine.substitute(poutine.condition(model.sample_unknowns, data=row), data=dict(points))
        nodes: dict[str, Any] = dict(poutine.trace(program).get_trace().nodes)
        return {
            name: scale_and_mask(node["fn"].log_prob(node["value"]).double(), node["scale"], node["mask"]).sum()
            for name, node in nodes.items()
            if node["type"] == "sample"
            and not poutine.util.site_is_subsample(node)
            and not node["infer"].get("_deterministic")
        }

    with torch.no_grad(), pyro.validation_enabled(False), pyro.get_param_store().scope():
        result: Values = torch.func.vmap(one)(dict(values))
        return result


def _with_derived(posterior: Posterior, values: Values) -> Values:
    """Draws with the weights that follow from them (of priors that are not centred)."""
    names = [name for name, p in posterior.model.net.named_parameters() if p.requires_grad]
    if all(name in values or name in posterior.points for name in names):
        return values
    weights = torch.func.vmap(lambda row: posterior.model.weights(row, {**posterior.points, **row}))(values)
    return {**values, **{name: weights[name] for name in names if name in weights}}


def vectors_of(posterior: Posterior, values: Mapping[str, Tensor]) -> Tensor:
    """Draws as rows of unconstrained numbers, ``(s, D)``."""
    layout = Layout(posterior.model.sites().latents)
    return torch.func.vmap(layout.flatten)({name: values[name] for name in layout.names})


def draw_chunks(posterior: Posterior, num: int, seed: int) -> Iterator[Values]:
    """`num` draws, some at a time: of a continuous posterior never all in memory, of a finite one as views."""
    size = Layout(posterior.model.sites().latents).size
    step = max(1, min(num, _CHUNK // max(1, size)))
    held = None if posterior.num_draws is None else posterior.draws(num, seed)
    for i, start in enumerate(range(0, num, step)):
        if held is None:
            own = seed if i == 0 else other_seed(seed, f"chunk {i}")
            yield posterior.draws(min(step, num - start), own)
        else:
            yield {name: value[start : start + step] for name, value in held.items()}


@singledispatch
def log_q(approximation: Approximation, vectors: Tensor) -> Tensor:
    """log q at rows of unconstrained numbers ``(s, D)``: ``(s,)``, float64.

    Raises:
        TypeError: This kind of posterior has no density: draws, a guide that is code, dropout masks.
    """
    raise TypeError(
        f"a posterior of kind {approximation.kind!r} is known by its draws and has no density q that could be set "
        "against the model's"
    )


@log_q.register
def _(approximation: Gaussian, vectors: Tensor) -> Tensor:
    loc, log_scale = approximation.loc.double(), approximation.log_scale.double()
    standard = (vectors.double() - loc) / log_scale.exp()
    return -0.5 * standard.square().sum(1) - log_scale.sum() - _half_log_two_pi(len(loc))


@log_q.register
def _(approximation: Correlated, vectors: Tensor) -> Tensor:
    tensors = {name: value.double() for name, value in approximation.tensors().items()}
    return type(approximation)(approximation.layout, **tensors).log_prob(vectors.double())


@log_q.register
def _(approximation: Flow, vectors: Tensor) -> Tensor:
    return approximation.log_prob(vectors).double()


@log_q.register
def _(approximation: Iterates, vectors: Tensor) -> Tensor:
    scale = (approximation.variance.double() / 2).sqrt()
    if not bool((scale > 0).all()):
        raise TypeError("some weights did not move while SWAG gathered its iterates: it has no density over them")
    count = max(2, len(approximation.deviations))
    factor = approximation.deviations.double().T / math.sqrt(2 * (count - 1)) / scale.unsqueeze(1)
    gaussian = LowRank(approximation.layout, approximation.mean.double(), scale.log(), factor)
    return gaussian.log_prob(vectors.double())


@log_q.register
def _(approximation: LocalGaussian, vectors: Tensor) -> Tensor:
    """Over the numbers that are random; the others stay where they are."""
    moves = (vectors - approximation.centre)[:, approximation.where].double()
    blocks = [block.to(moves) for block in approximation.blocks]
    pieces = moves.split([block.size for block in blocks], dim=1)
    standard = torch.cat([whitened(block, piece) for block, piece in zip(blocks, pieces, strict=True)], dim=1)
    log_det = torch.stack([block.log_det() for block in blocks]).sum()
    return -0.5 * standard.square().sum(1) - 0.5 * log_det - _half_log_two_pi(moves.shape[1])


@log_q.register
def _(approximation: Mixture, vectors: Tensor) -> Tensor:
    if approximation.own:
        raise TypeError("each member of this mixture has buffers or points of its own, so that there is no one density")
    each = torch.stack([log_q(part, vectors) for part in approximation.parts])
    return each.logsumexp(0) - math.log(len(each))


@singledispatch
def whitened(block: Block, moves: Tensor) -> Tensor:
    """``R^-1 move`` of each row ``(s, d)``: the noise that `Block.spread` would make it from."""
    raise TypeError(f"no inverse is known of a {block.kind} block")


@whitened.register
def _(block: Dense, moves: Tensor) -> Tensor:
    upper = bool((block.root.tril(-1) == 0).all())
    return torch.linalg.solve_triangular(block.root, moves.mT, upper=upper).mT


@whitened.register
def _(block: Diagonal, moves: Tensor) -> Tensor:
    return moves / block.scale


@whitened.register
def _(block: Kronecker, moves: Tensor) -> Tensor:
    matrix = moves.reshape(-1, *block.scale.shape)
    matrix = block.left.mT @ matrix if block.left.numel() else matrix
    matrix = matrix @ block.right if block.right.numel() else matrix
    return (matrix / block.scale).flatten(1)


def _half_log_two_pi(size: int) -> float:
    return 0.5 * math.log(2 * math.pi) * size
