"""The losses are Pyro's own, on the same draws: values and gradients to 1e-5."""

import functools

import pyro
import pytest
import torch
from networks import make
from pyro import distributions as dist
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
    init_to_value,
)
from torch import Tensor

import bnn
from bnn.data import Batch
from bnn.random import isolated

N = 300  # rows of the whole set, of which a batch has 16
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


def model(prior: bnn.priors.Prior | None = None) -> tuple[bnn.BNN, Tensor, Tensor]:
    net, x, y = make("mlp", 16)
    return bnn.BNN(net, prior or bnn.priors.Normal(0.7), bnn.likelihoods.Gaussian()), x, y


class Fixed(dist.Normal):
    """A Gaussian whose draw is made of given noise: to hand Pyro's guide the draws that ours took."""

    noise: Tensor

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        return self.loc + self.scale * self.noise


@pytest.mark.parametrize("backend", ["eager", "graph"])
@pytest.mark.parametrize("learned", [False, True])
def test_mean_field_is_trace_mean_field_elbo(backend: str, learned: bool) -> None:
    """Gaussian sites in closed form, the noise scale (and a learned prior scale) at the draw, as Pyro does."""
    prior = bnn.priors.Normal(dist.HalfCauchy(1.0)) if learned else bnn.priors.Normal(0.7)
    bayes, x, y = model(prior)
    loss = bnn.MeanField(init_scale=0.3).loss(bayes, N, compile=backend)  # type: ignore[arg-type]
    with isolated(5):
        gradients, stats = loss.gradients(Batch(x, y))
    with isolated(5):
        noise = torch.randn_like(loss.loc)

    layout = loss.latents
    loc, log_scale = loss.loc.detach().clone().requires_grad_(), loss.log_scale.detach().clone().requires_grad_()

    def guide(*args: object, **kwargs: object) -> None:
        pieces = zip(layout.names, layout.transforms, *(layout.free(v) for v in (loc, log_scale, noise)), strict=True)
        for name, transform, m, s, eps in pieces:
            fn = Fixed(m, s.exp())
            fn.noise = eps
            whole = dist.TransformedDistribution(fn, [transform]) if m.dim() == 0 else fn
            pyro.sample(name, whole.to_event(m.dim()))

    elbo = TraceMeanField_ELBO().differentiable_loss(bayes, guide, x, y, n_data=N) / N
    elbo.backward()
    torch.testing.assert_close(stats[0], elbo.detach(), **CLOSE)
    torch.testing.assert_close(gradients[0], loc.grad, **CLOSE)
    torch.testing.assert_close(gradients[1], log_scale.grad, **CLOSE)


def test_closed_forms_are_the_expectations() -> None:
    """KL(Normal || Laplace) against quadrature on a grid; KL(Normal || Normal) against torch's own."""
    from bnn.distributions import GAUSSIAN_CROSS_ENTROPY

    m, s, prior_m, prior_s = (torch.tensor([v], dtype=torch.float64) for v in (0.3, 0.8, -0.2, 0.6))
    grid = torch.linspace(-12, 12, 200_001, dtype=torch.float64)
    q = dist.Normal(m, s).log_prob(grid).exp()
    for family in (dist.Normal, dist.Laplace):  # the elastic net: test_priors_laws.py
        closed = GAUSSIAN_CROSS_ENTROPY[family]
        expected = -torch.trapezoid(q * family(prior_m, prior_s).log_prob(grid), grid)  # type: ignore[call-arg]
        torch.testing.assert_close(closed(m, s, prior_m, prior_s), expected, rtol=1e-7, atol=1e-9)
        at_point = -family(prior_m, prior_s).log_prob(m).sum()  # type: ignore[call-arg]
        torch.testing.assert_close(closed(m, None, prior_m, prior_s), at_point)
        scalar = closed(m.expand(4), s.expand(4), prior_m[0], prior_s[0])
        torch.testing.assert_close(scalar, 4 * expected, rtol=1e-7, atol=1e-9)


GUIDES = {
    "normal": AutoNormal,
    "diagonal": AutoDiagonalNormal,
    "low rank": functools.partial(AutoLowRankMultivariateNormal, rank=3),
    "full": AutoMultivariateNormal,
    "delta": AutoDelta,
}


@pytest.mark.parametrize("backend", ["eager", "graph"])
@pytest.mark.parametrize("name", GUIDES)
def test_guided_inference_is_trace_elbo(name: str, backend: str) -> None:
    bayes, x, y = model(bnn.priors.Normal(dist.HalfCauchy(1.0)))
    loss = bnn.Variational(guide=GUIDES[name]).loss(bayes, N, compile=backend)  # type: ignore[arg-type]
    with isolated(5):
        gradients, stats = loss.gradients(Batch(x, y))

    start = {site.name: site.value for site in bayes.sites().latents}
    guide = GUIDES[name](bayes, init_loc_fn=init_to_value(values=start))
    with isolated(1):
        guide(x, y, n_data=N)
    with torch.no_grad():  # the low-rank factor starts at random
        for name, value in loss._guide.layout.unflatten(loss.guide).items():  # type: ignore[union-attr, arg-type]
            dict(guide.named_parameters())[name].copy_(value)
    with isolated(5):
        elbo = Trace_ELBO().differentiable_loss(bayes, guide, x, y, n_data=N) / N
    elbo.backward()
    torch.testing.assert_close(stats[0], elbo.detach(), **CLOSE)
    theirs = torch.cat([p.grad.flatten() for _, p in guide.named_parameters()])  # type: ignore[union-attr]
    torch.testing.assert_close(gradients[0], theirs, **CLOSE)


def test_a_guide_function_is_trained_through_its_params() -> None:
    bayes, x, y = model()
    names = [(site.name, site.value.shape) for site in bayes.sites().latents]

    def guide(x: Tensor, y: Tensor | None = None) -> None:
        for name, shape in names:
            loc = pyro.param(f"{name}.loc", torch.zeros(shape))
            scale = pyro.param(f"{name}.scale", torch.full(shape, 0.1), constraint=dist.constraints.positive)
            family = dist.LogNormal if name == "likelihood.scale" else dist.Normal
            pyro.sample(name, family(loc, scale).to_event(len(shape)))

    loss = bnn.Variational(guide=guide).loss(bayes, N)
    gradients, _ = loss.gradients(Batch(x, y))
    assert (gradients[0] != 0).all()
    posterior = bnn.fit(bayes, (x, y), bnn.Variational(guide=guide, epochs=200), progress=False)
    assert posterior.history.backend == "graph"
    assert posterior.history.loss[-20:].mean() < posterior.history.loss[:20].mean()
    assert "likelihood.scale.loc" not in pyro.get_param_store()


@pytest.mark.parametrize(
    ("guide", "message"),
    [
        (lambda: pyro.sample("0.weight", dist.Normal(torch.zeros(20, 8), 1.0).to_event(2)), "no sample site for"),
        (lambda x: x.mean(), "reads its arguments"),
    ],
)
def test_a_guide_that_cannot_work_is_refused_in_words(guide: object, message: str) -> None:
    bayes, x, y = model()
    with pytest.raises(ValueError, match=message):
        bnn.fit(bayes, (x, y), bnn.Variational(guide=guide), progress=False)  # type: ignore[arg-type]


def test_an_autoguide_instance_is_refused_in_words() -> None:
    bayes, x, y = model()
    with pytest.raises(ValueError, match="give the class AutoNormal"):
        bnn.fit(bayes, (x, y), bnn.Variational(guide=AutoNormal(bayes)), progress=False)
