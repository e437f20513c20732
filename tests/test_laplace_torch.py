"""Laplace against laplace-torch on the same trained networks: covariances, marginal likelihoods, predictions.

laplace-torch 0.3 reaches its full matrix through float32 identity columns (1e-7 off); all else agrees to rounding.
"""

from __future__ import annotations

import functools
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import bnn
from bnn.inference.laplace import kron as kron_module
from bnn.inference.laplace import layers as layers_module
from bnn.random import isolated

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # its dependencies use deprecated parts of torch
    try:
        import laplace
        from laplace.curvature import CurvlinopsEF
    except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision built for another torch
        pytest.skip(f"laplace-torch cannot be imported: {error}", allow_module_level=True)

pytestmark = pytest.mark.filterwarnings("ignore")
NOISE, PRIOR, ROWS = 0.4, 0.7, 50


def mlp(k: int) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 7), nn.Tanh(), nn.Linear(7, 6), nn.Tanh(), nn.Linear(6, k))


def conv(k: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 3, 3, padding=1, stride=2), nn.Tanh(), nn.Flatten(), nn.Linear(27, k))


NETS: dict[str, tuple[Any, tuple[int, ...]]] = {"mlp": (mlp, (4,)), "conv": (conv, (1, 6, 6))}


@functools.cache
def trained(name: str, task: str) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """A net in float64, after 100 steps of Adam, its data, and other inputs."""
    make, shape = NETS[name]
    k = 3 if task == "classification" else 2
    with isolated(11):
        net = make(k).double()
        x, new = torch.randn(ROWS, *shape).double(), torch.randn(9, *shape).double()
        y = x.flatten(1)[:, :k].sin() + 0.1 * torch.randn(ROWS, k).double()
        if task == "classification":
            y = (3 * y + torch.randn(ROWS, k).double()).argmax(1)
        loss_fn = nn.CrossEntropyLoss() if task == "classification" else nn.MSELoss()
        optimizer = torch.optim.Adam(net.parameters(), 1e-2)
        for _ in range(100):
            optimizer.zero_grad()
            loss_fn(net(x), y).backward()
            optimizer.step()
    return net, x, y, new


def ours(name: str, task: str, noise: float = NOISE, **settings: Any) -> bnn.Posterior:
    net, x, y, _ = trained(name, task)
    likelihood = bnn.likelihoods.Categorical() if task == "classification" else bnn.likelihoods.Gaussian(noise)
    model = bnn.BNN(net, bnn.priors.Normal(PRIOR), likelihood)
    return bnn.fit(model, (x, y), bnn.Laplace(of="net", **settings), progress=False)


def theirs(name: str, task: str, weights: str, covariance: str, noise: float = NOISE, **options: Any) -> Any:
    net, x, y, _ = trained(name, task)
    if task == "regression":
        options["sigma_noise"] = noise
    with isolated(0):
        found = laplace.Laplace(
            net, task, subset_of_weights=weights, hessian_structure=covariance, prior_precision=PRIOR**-2, **options
        )
        found.fit(DataLoader(TensorDataset(x, y), batch_size=20))
    return found


def covariance_of(posterior: bnn.Posterior) -> Tensor:
    local = posterior.approximation
    return local.output_covariance(torch.eye(len(local.where)).double()[None])[0]


def their_covariance(found: Any) -> Tensor:
    if hasattr(found, "posterior_variance"):
        return torch.diag(found.posterior_variance)
    if hasattr(found, "posterior_covariance"):
        return found.posterior_covariance
    return found.posterior_precision.inv_square_form(torch.eye(found.n_params).double()[None])[0]


def check(name: str, task: str, covariance: str, weights: str) -> None:
    posterior, found = ours(name, task, covariance=covariance, weights=weights), theirs(name, task, weights, covariance)
    expected = their_covariance(found).detach()
    torch.testing.assert_close(covariance_of(posterior), expected, rtol=1e-4, atol=1e-6 * float(expected.abs().max()))
    evidence = posterior.settings["evidence"]["value"]
    assert evidence == pytest.approx(float(found.log_marginal_likelihood()), rel=1e-4)
    new = trained(name, task)[3]
    mean, variance = found._glm_predictive_distribution(new)
    got = posterior.linear.moments(new)
    torch.testing.assert_close(got[0], mean, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(got[1], variance, rtol=1e-4, atol=1e-6)
    if task == "regression":
        prediction = posterior.predict(new)
        torch.testing.assert_close(
            prediction.variance.epistemic, variance.diagonal(dim1=-2, dim2=-1), rtol=1e-4, atol=1e-6
        )


@pytest.mark.parametrize("weights", ["all", "last_layer"])
@pytest.mark.parametrize("covariance", ["full", "kron", "diag"])
@pytest.mark.parametrize("task", ["regression", "classification"])
@pytest.mark.parametrize("name", ["mlp", "conv"])
def test_the_two_agree(name: str, task: str, covariance: str, weights: str) -> None:
    check(name, task, covariance, weights)


@pytest.mark.parametrize("covariance", ["full", "kron", "diag"])
def test_the_empirical_fishers_of_classes_agree(covariance: str) -> None:
    """For regression laplace-torch's is twice the sum of squared gradients at unit noise (it squares those of the
    squared error), and goes with 1 / noise^2: tests/test_laplace.py holds ours to the definition.
    """
    posterior = ours("mlp", "classification", covariance=covariance, curvature="empirical_fisher")
    found = theirs("mlp", "classification", "all", covariance, backend=CurvlinopsEF)
    expected = their_covariance(found).detach()
    torch.testing.assert_close(covariance_of(posterior), expected, rtol=1e-4, atol=1e-6 * float(expected.abs().max()))


def test_sampled_class_probabilities_agree() -> None:
    """Over 4,000 draws each, within Monte Carlo error."""
    posterior, found = ours("mlp", "classification"), theirs("mlp", "classification", "all", "kron")
    new, num = trained("mlp", "classification")[3], 4000
    outputs = posterior.predict(new, draws=num)
    expected = found(new, pred_type="glm", link_approx="mc", n_samples=num)
    error = outputs.outputs.softmax(-1).std(0) * (2 / num) ** 0.5
    assert ((outputs.probs - expected).abs() < 5 * error).all()


@pytest.mark.parametrize(
    ("owner", "name", "old", "new", "net"),
    [
        pytest.param(layers_module, "_add_factors", "* (n / len(a))", "* 1.0", "conv", id="positions not averaged"),
        pytest.param(kron_module, "_blocks", 'layer.sums["a"] / n', 'layer.sums["a"] / (n - 1)', "mlp", id="N"),
        pytest.param(
            kron_module.KroneckerCurvature, "block", "self._one(prior)", "2 * self._one(prior)", "mlp", id="prior"
        ),
    ],
)
def test_control_wrong_factors_are_found(patch_line, owner, name, old, new, net) -> None:
    patch_line(owner, name, old, new)
    with pytest.raises(AssertionError):
        check(net, "classification", "kron", "all")


def test_tuned_prior_scales_agree() -> None:
    """One prior precision by the marginal likelihood: theirs by 2,000 steps of Adam, ours by L-BFGS."""
    posterior = ours("mlp", "regression", scales="group", tune="after")
    found = theirs("mlp", "regression", "all", "kron")
    found.optimize_prior_precision(method="marglik", n_steps=2000, lr=1e-2, init_prior_prec=PRIOR**-2)
    scale = PRIOR * posterior.settings["hyper"]["scale of all times"]
    assert scale**-2 == pytest.approx(float(found.prior_precision), rel=1e-3)
