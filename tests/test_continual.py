"""A posterior as the prior of the next data: exact where it can be."""

import pytest
import torch
from linear import NOISE, linear_regression
from methods import MODE
from torch import Tensor, nn

import bnn
from bnn import continual
from bnn.approximations import Draws, LocalGaussian
from bnn.approximations.correlated import FullRank
from bnn.layout import Layout


def laplace(model: bnn.BNN, x: Tensor, y: Tensor) -> bnn.Posterior:
    """Exact in a linear-Gaussian model, and deterministic: LBFGS finds the mode."""
    method = bnn.Laplace(of=MODE, covariance="full", tune=None)
    return bnn.fit(model, (x, y), method, compile="graph", progress=False)


def moments(posterior: bnn.Posterior) -> tuple[Tensor, Tensor]:
    approximation = posterior.approximation
    assert isinstance(approximation, LocalGaussian)
    root = torch.zeros(len(approximation.centre), len(approximation.where), dtype=torch.float64)
    root[approximation.where] = approximation._spread(torch.eye(len(approximation.where), dtype=torch.float64)).mT
    return approximation.centre, root @ root.mT


def check_stream() -> None:
    """Half of the rows, then the other half: the posterior of all rows, to rounding."""
    problem = linear_regression()
    first = laplace(problem.model, problem.x[:30], problem.y[:30])
    net = nn.Linear(3, 1, bias=False).double()
    second = bnn.BNN(net, first.as_prior(), bnn.likelihoods.Gaussian(NOISE))
    mean, covariance = moments(laplace(second, problem.x[30:], problem.y[30:]))
    torch.testing.assert_close(mean, problem.mean, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(covariance, problem.covariance, rtol=1e-6, atol=1e-10)


def test_a_stream_gives_the_posterior_of_all_rows() -> None:
    check_stream()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("root[start:stop, :start] @ noise", "0 * (root[start:stop, :start] @ noise)"),
        ("scale_tril=own", "scale_tril=1.1 * own"),
    ],
)
def test_controls_of_the_joint_density(patch_line, old: str, new: str) -> None:
    patch_line(continual.JointNormal, "__call__", old, new)
    with pytest.raises(AssertionError):
        check_two_sites()


def check_two_sites() -> None:
    """The density of parameters sampled one after the other is that of one Gaussian over all of them."""
    net = nn.Linear(2, 2).double()
    torch.manual_seed(0)
    a = torch.randn(6, 6, dtype=torch.float64)
    root = torch.linalg.cholesky(a @ a.mT + torch.eye(6, dtype=torch.float64))
    loc = {name: torch.randn_like(p) for name, p in net.named_parameters()}
    model = bnn.BNN(net, continual.JointNormal(loc, root), bnn.likelihoods.Gaussian(1.0))
    values = {name: torch.randn_like(value) for name, value in loc.items()}
    x, y = torch.zeros(1, 2, dtype=torch.float64), values["bias"][None]
    flat, mean = (torch.cat([v[name].flatten() for name in loc]) for v in (values, loc))
    expected = torch.distributions.MultivariateNormal(mean, scale_tril=root).log_prob(flat)
    noise = torch.distributions.Normal(values["bias"], 1.0).log_prob(y[0]).sum()
    torch.testing.assert_close(model.log_joint(values, x, y) - noise, expected)


def test_the_joint_density_is_that_of_one_gaussian() -> None:
    check_two_sites()


def test_a_prior_draw_has_the_joint_covariance() -> None:
    net = nn.Linear(1, 1).double()
    root = torch.tensor([[1.0, 0.0], [0.9, 0.3]], dtype=torch.float64)
    loc = {"weight": torch.full((1, 1), 2.0).double(), "bias": torch.full((1,), -1.0).double()}
    model = bnn.BNN(net, continual.JointNormal(loc, root), bnn.likelihoods.Gaussian(1.0))
    drawn = [model.prior_draw() for _ in range(2000)]
    flat = torch.stack([torch.cat([d["weight"].flatten(), d["bias"]]) for d in drawn])
    z = torch.linalg.solve_triangular(root, (flat - torch.tensor([2.0, -1.0])).mT, upper=False)
    # Means with an error of 1 / sqrt(2000), products with at most sqrt(2 / 2000); 5 comparisons at 4.5 errors.
    assert (z.mean(1).abs() < 4.5 / 2000**0.5).all()
    assert ((z @ z.mT / 2000 - torch.eye(2)).abs() < 4.5 * (2 / 2000) ** 0.5).all()


def test_mean_field_gives_independent_normals(model, regression) -> None:
    posterior = bnn.fit(model, regression, bnn.MeanField(epochs=2), compile="eager", progress=False)
    prior = posterior.as_prior()
    assert list(prior) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    tensors = posterior.approximation.tensors()
    assert torch.equal(prior["0.weight"].loc.flatten(), tensors["loc"][:12])
    assert torch.equal(prior["0.weight"].scale.flatten(), tensors["log_scale"][:12].exp())
    again = bnn.BNN(model.net, prior, model.likelihood)
    assert bnn.fit(again, regression, bnn.MeanField(epochs=1), compile="eager", progress=False).num_draws is None


def made(model: bnn.BNN, approximation) -> bnn.Posterior:
    return bnn.Posterior(model, approximation, points={}, state=model.state())


def test_full_rank_is_taken_as_it_is_and_its_diagonal_on_request() -> None:
    problem = linear_regression()
    layout = Layout(problem.model.sites().latents)
    factor = torch.tensor([[-1.0, 0, 0], [0.5, -2.0, 0], [0.1, 0.3, 0.2]], dtype=torch.float64)
    approximation = FullRank(layout, problem.mean, factor)
    posterior = made(problem.model, approximation)
    joint = posterior.as_prior()
    torch.testing.assert_close(joint.root, approximation.root())
    torch.testing.assert_close(posterior.as_prior("diag")["weight"].scale[0], approximation.marginal_scale())


def test_draws_give_their_mean_and_covariance() -> None:
    problem = linear_regression()
    values = torch.randn(1, 50, 1, 3, dtype=torch.float64)
    prior = made(problem.model, Draws({"weight": values})).as_prior()
    torch.testing.assert_close(prior.root @ prior.root.mT, torch.cov(values[0, :, 0].mT))
    few = made(problem.model, Draws({"weight": values[:, :4]}))
    assert list(few.as_prior()) == ["weight"]
    with pytest.raises(ValueError, match="4 draws do not tell the covariance of 3 weights"):
        few.as_prior("full")


def test_points_cannot_be_a_prior(model, regression) -> None:
    point = bnn.fit(model, regression, bnn.MAP(epochs=1), compile="eager", progress=False)
    with pytest.raises(ValueError, match="single draw"):
        point.as_prior()
    learned = bnn.BNN(model.net, {"0.*": None, "*": bnn.priors.Normal(1.0)}, model.likelihood)
    partly = bnn.fit(learned, regression, bnn.MeanField(epochs=1), compile="eager", progress=False)
    with pytest.raises(ValueError, match=r"0\.weight, 0\.bias were learned as points"):
        partly.as_prior()


def test_another_group_than_that_of_the_posterior_is_told(model) -> None:
    prior = continual.JointNormal({"weight": torch.zeros(1, 3)}, torch.eye(3))
    with pytest.raises(ValueError, match="but the group has"):
        bnn.BNN(model.net, prior, model.likelihood)
    with pytest.raises(ValueError, match="the means are 3 numbers"):
        continual.JointNormal({"weight": torch.zeros(1, 3)}, torch.eye(4))


def test_priors_of_other_posteriors_differ_in_the_record() -> None:
    one, two = (continual.JointNormal({"weight": torch.full((1, 2), v)}, torch.eye(2)) for v in (1.0, 2.0))
    assert repr(one) != repr(two)
