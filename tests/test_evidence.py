"""The evidence beside a fit, and leave-one-out, against the closed forms of Bayesian linear regression."""

import pytest
import torch
from linear import NOISE, PRIOR, linear_regression
from methods import MODE, TABLE
from torch import Tensor, nn

import bnn
from bnn.analysis import loo
from bnn.inference import loop


def log_evidence(x: Tensor, y: Tensor) -> float:
    """log N(y; 0, noise^2 I + prior^2 X X')."""
    covariance = NOISE**2 * torch.eye(len(x)) + PRIOR**2 * x @ x.T
    return float(torch.distributions.MultivariateNormal(torch.zeros(len(x)).double(), covariance).log_prob(y[:, 0]))


def check_bound() -> None:
    """The ELBO of the Gaussian family that holds the posterior is the evidence; of mean field, that minus its KL."""
    problem = linear_regression()
    data = (problem.x, problem.y)
    exact = log_evidence(*data)
    full = bnn.fit(problem.model, data, bnn.FullRank(epochs=150, batch_size=None), compile="graph", progress=False)
    gap = -0.5 * float(torch.logdet(problem.precision) - problem.precision.diagonal().log().sum())
    mean_field = bnn.fit(problem.model, data, TABLE["mean_field"].exact, compile="graph", progress=False)
    for posterior, expected in ((full, exact), (mean_field, exact - gap)):
        evidence = posterior.evidence
        assert evidence.kind == "elbo"
        # 0.02 nats are left of the optimisation: KL is quadratic in the errors that test_methods allows.
        assert abs(evidence.value - expected) < 4 * evidence.se + 0.02, f"{evidence} against {expected}"
        assert evidence.se < 0.5


def test_the_bound_is_the_evidence_where_q_can_be_the_posterior() -> None:
    check_bound()


def test_control_the_bound_of_a_batch_taken_for_that_of_all_rows(patch_line) -> None:
    patch_line(loop, "elbo", "-objective.n_data * total", "-0.9 * objective.n_data * total")
    with pytest.raises(AssertionError, match="against"):
        check_bound()


def test_laplace_has_the_exact_evidence() -> None:
    problem = linear_regression()
    method = bnn.Laplace(of=MODE, covariance="full", tune=None)
    evidence = bnn.fit(problem.model, (problem.x, problem.y), method, progress=False).evidence
    assert evidence.kind == "laplace"
    assert evidence.value == pytest.approx(log_evidence(problem.x, problem.y), rel=1e-6)


def test_minibatches_give_the_same_bound_within_its_error() -> None:
    problem = linear_regression()
    method = bnn.MeanField(epochs=1, batch_size=None)
    whole = bnn.fit(problem.model, (problem.x, problem.y), method, compile="eager", progress=False)
    part = bnn.fit(
        problem.model,
        (problem.x, problem.y),
        bnn.MeanField(epochs=1, batch_size=25, lr=1e-9, init=whole),
        compile="eager",
        progress=False,
    )
    # 4 errors of each; an epoch of three ragged batches is weighted by rows.
    assert abs(part.evidence.value - whole.evidence.value) < 4 * (part.evidence.se + whole.evidence.se) + 1
    assert part.evidence.se > 0


def test_no_evidence_where_there_is_none(model, regression) -> None:
    x, y = regression
    quick = {"compile": "eager", "progress": False}
    assert bnn.fit(model, (x, y), bnn.MAP(epochs=1), **quick).evidence is None
    assert bnn.fit(model, (x, y), bnn.MeanField(epochs=1, temperature=0.5), **quick).evidence is None
    assert bnn.fit(model, (x, y), bnn.MeanField(epochs=1), weight=torch.ones(20), **quick).evidence is None


def test_no_evidence_where_predictions_are_of_another_model(regression) -> None:
    for middle in (nn.Dropout(0.5), nn.BatchNorm1d(4)):
        net = nn.Sequential(nn.Linear(3, 4), middle, nn.Linear(4, 1))
        given = bnn.BNN(net, bnn.priors.Normal(1.0), bnn.likelihoods.Gaussian(1.0))
        assert bnn.fit(given, regression, bnn.MeanField(epochs=1), compile="eager", progress=False).evidence is None
    points = bnn.BNN(nn.Linear(3, 1), bnn.priors.Normal(1.0), bnn.likelihoods.Gaussian("learned"))
    assert bnn.fit(points, regression, bnn.MeanField(epochs=1), compile="eager", progress=False).evidence is None


def test_leave_one_out_refuses_what_is_no_posterior(model, regression) -> None:
    quick = {"compile": "eager", "progress": False}
    tempered = bnn.fit(model, regression, bnn.MeanField(epochs=1, temperature=0.5), **quick)
    weighted = bnn.fit(model, regression, bnn.MeanField(epochs=1), weight=torch.ones(20), **quick)
    for posterior in (tempered, weighted):
        with pytest.raises(ValueError, match="temperature 1, and no sample weights"):
            loo(posterior, *regression)


def test_the_evidence_is_saved(model, regression, tmp_path) -> None:
    posterior = bnn.fit(model, regression, bnn.MeanField(epochs=1), compile="eager", progress=False)
    posterior.save(tmp_path / "run")
    assert bnn.load(tmp_path / "run", model).evidence == posterior.evidence


def exact_loo(x: Tensor, y: Tensor) -> float:
    total = 0.0
    for i in range(len(x)):
        rest = [j for j in range(len(x)) if j != i]
        precision = x[rest].T @ x[rest] / NOISE**2 + torch.eye(x.shape[1]).double() / PRIOR**2
        covariance = torch.linalg.inv(precision)
        mean = x[i] @ covariance @ x[rest].T @ y[rest, 0] / NOISE**2
        variance = NOISE**2 + x[i] @ covariance @ x[i]
        total += float(torch.distributions.Normal(mean, variance.sqrt()).log_prob(y[i, 0]))
    return total


def test_leave_one_out_is_the_exact_one() -> None:
    problem = linear_regression()
    posterior = bnn.fit(
        problem.model,
        (problem.x, problem.y),
        bnn.Laplace(of=MODE, covariance="full", tune=None, predictive="draws"),
        progress=False,
    )
    found = loo(posterior, problem.x, problem.y, num=4000)
    # The Monte Carlo error of log-mean-exp over 4,000 draws, 60 rows: some hundredths of a nat.
    assert found.elpd == pytest.approx(exact_loo(problem.x, problem.y), abs=0.15)
    assert 2 < found.p < 4
    assert found.bad == 0


def test_leave_one_out_needs_draws(model, regression) -> None:
    posterior = bnn.fit(model, regression, bnn.MAP(epochs=1), compile="eager", progress=False)
    with pytest.raises(ValueError, match="1 are too few"):
        loo(posterior, *regression)
