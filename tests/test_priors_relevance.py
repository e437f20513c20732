"""A horseshoe over inputs finds the relevant ones; a Gaussian prior does not.

"Finds": with the relevance ``r_j = P(|w_j| > 0.1 | data)`` of input j, a tenth of the true weights and of the noise,

1. the inputs of ``r_j > 1/2`` (the median-probability rule) are the three relevant ones, for every data set;
2. the margin, the smallest r_j of a relevant input less the largest of an irrelevant one, is above 1/2 by two standard
   errors over data sets.
"""

from __future__ import annotations

import functools
import math

import pytest
import torch
from torch import Tensor, nn

import bnn
from bnn.priors import Normal, Prior, RegularisedHorseshoe, global_scale
from bnn.random import isolated

INPUTS, ROWS, HELD_OUT, DATA_SETS = 20, 60, 400, 3
RELEVANT = {2: 1.0, 7: -1.0, 11: 1.0}
PRIORS: dict[str, Prior] = {
    "horseshoe": RegularisedHorseshoe("inputs", scale=global_scale(3, INPUTS, ROWS)),
    "normal": Normal(1.0),
}


def rows(seed: int) -> tuple[Tensor, Tensor]:
    with isolated(seed):
        x = torch.randn(ROWS + HELD_OUT, INPUTS)
        y = sum(weight * x[:, j] for j, weight in RELEVANT.items()) + torch.randn(len(x))
    return x, y.unsqueeze(1)


@functools.lru_cache
def fitted(prior: str, seed: int) -> tuple[Tensor, Tensor]:
    """Relevance of every input, and the held-out log-density of every row."""
    x, y = rows(seed)
    model = bnn.BNN(nn.Linear(INPUTS, 1, bias=False), PRIORS[prior], bnn.likelihoods.Gaussian(1.0))
    method = bnn.MeanField(epochs=200, batch_size=None, lr=0.05, draws=2)
    posterior = bnn.fit(model, (x[:ROWS], y[:ROWS]), method, seed=0, compile="eager", progress=False)
    relevance = (posterior.draws(400)["weight"][:, 0].abs() > 0.1).float().mean(0)
    return relevance, posterior.predict(x[ROWS:], 400).log_prob(y[ROWS:])


def check_finds(prior: str) -> None:
    margins = []
    for seed in range(DATA_SETS):
        relevance = fitted(prior, seed)[0]
        assert {j for j in range(INPUTS) if relevance[j] > 0.5} == set(RELEVANT), f"data set {seed}: {relevance}"
        margins.append(
            min(relevance[j] for j in RELEVANT) - max(r for j, r in enumerate(relevance) if j not in RELEVANT)
        )
    margin = torch.stack(margins)
    assert margin.mean() - 2 * margin.std() / math.sqrt(DATA_SETS) > 0.5, margin


def test_a_horseshoe_finds_three_of_twenty_inputs():
    check_finds("horseshoe")


def test_a_gaussian_prior_does_not():
    with pytest.raises(AssertionError, match="data set 0"):
        check_finds("normal")


@pytest.mark.slow
def test_the_horseshoe_predicts_better():
    """Paired differences of the held-out log-density a row: above 0 by three standard errors, over data sets pooled."""
    pairs = [fitted("horseshoe", seed)[1] - fitted("normal", seed)[1] for seed in range(DATA_SETS)]
    difference = torch.cat(pairs)
    assert difference.mean() > 3 * difference.std() / math.sqrt(len(difference))


@pytest.mark.slow
def test_control_one_scale_for_all_inputs(patch_line, monkeypatch):
    """Without local scales there is nothing to find with."""
    from bnn.priors.horseshoe import Shrinking

    patch_line(Shrinking, "_sample", "spread(tau.to(param) * local)", "spread(tau.to(param) * torch.ones_like(local))")
    monkeypatch.setitem(PRIORS, "broken", PRIORS["horseshoe"])
    with pytest.raises(AssertionError):
        check_finds("broken")
