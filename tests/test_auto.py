"""What `auto` chooses, that it says so, and that the choice follows from counts."""

import pytest
import torch
from pyro import distributions as dist
from torch import nn

import bnn
from bnn.inference import auto
from bnn.inference.auto import NUTS_WORK, choose
from bnn.inference.base import Run


def model(*layers: nn.Module, prior=None, likelihood=None) -> bnn.BNN:
    net = nn.Sequential(nn.Linear(3, 20), *(layers or (nn.Tanh(),)), nn.Linear(20, 1))
    return bnn.BNN(net, prior or bnn.priors.Normal(1.0), likelihood or bnn.likelihoods.Gaussian())


SIZE = 3 * 20 + 20 + 20 + 1 + 1
FEW, MANY = NUTS_WORK // SIZE, NUTS_WORK // SIZE + 1
CASES = {
    "few": (model(), FEW, Run(seed=0), bnn.NUTS, "are few"),
    "many": (model(), MANY, Run(seed=0), bnn.Ensemble, "too many for NUTS"),
    "points": (model(likelihood=bnn.likelihoods.Gaussian("learned")), FEW, Run(seed=0), bnn.Ensemble, "is a point"),
    "weights": (model(), FEW, Run(seed=0, weight=torch.ones(3)), bnn.Ensemble, "sample weights"),
    "validation": (model(), FEW, Run(seed=0, validation=(0, 0)), bnn.Ensemble, "held-out rows"),
    "dropout": (model(nn.Dropout(0.1)), FEW, Run(seed=0), bnn.Ensemble, "has Dropout"),
    "no dropout": (model(nn.Dropout(0.0)), FEW, Run(seed=0), bnn.NUTS, "are few"),
    "batch statistics": (model(nn.BatchNorm1d(20)), FEW, Run(seed=0), bnn.Ensemble, "has BatchNorm1d"),
    "a learned prior scale": (
        model(prior=bnn.priors.Normal(dist.HalfCauchy(1.0))),
        MANY,
        Run(seed=0),
        bnn.MeanField,
        "learned prior scale",
    ),
    "points alone": (
        model(prior={"*": None}, likelihood=bnn.likelihoods.Gaussian("learned")),
        FEW,
        Run(seed=0),
        bnn.MAP,
        "points alone",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_choice_follows_from_counts(name: str) -> None:
    given, rows, run, expected, why = CASES[name]
    method, reason = choose(given, rows, run)
    assert type(method) is expected
    assert why in reason


def test_it_says_what_it_chose(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto, "_STEPS", 5)
    x = torch.randn(12, 3)
    small = bnn.BNN(nn.Linear(3, 1), bnn.priors.Normal(1.0), bnn.likelihoods.Gaussian("learned"))
    posterior = bnn.fit(small, (x, x[:, :1]), "auto", compile="eager", progress=False)
    assert posterior.settings["method"] == "Ensemble"
    assert posterior.settings["auto"].startswith("Ensemble: likelihood.scale is a point")
    assert posterior.history.notes[0] == f"auto chose {posterior.settings['auto']}"


def test_steps_do_not_grow_with_the_rows() -> None:
    for rows, least, most in ((100, 6000, 6000), (100_000, 15_000, 16_000)):
        method, _ = choose(model(), max(rows, MANY), Run(seed=0))
        steps = method.of.epochs * -(-max(rows, MANY) // 128)
        assert least <= steps <= most or rows == 100
