"""What a prior believes: functions drawn from it, and the scale that makes them as they were asked to be."""

import dataclasses
import functools
import importlib
import math

import likelihoods
import numpy as np
import priors
import pytest
import torch
from networks import KINDS, make_kind
from pyro import distributions as dist
from torch import Tensor, nn

import bnn
from bnn import plots
from bnn.inputs import slice_inputs
from bnn.likelihoods import Bernoulli, Categorical, Gaussian
from bnn.prediction import Prediction
from bnn.prior_predictive import prior_as_posterior
from bnn.priors import Normal, calibrate, measures
from bnn.random import generator_state

calibrate_module = importlib.import_module("bnn.priors.calibrate")  # the name in bnn.priors is the function
rescaled_module = importlib.import_module("bnn.priors.rescaled")


def along(n: int = 21) -> Tensor:
    return torch.linspace(-2, 2, n).unsqueeze(1)


def tanh_net(k: int = 1, width: int = 20) -> nn.Module:
    return nn.Sequential(nn.Linear(1, width), nn.Tanh(), nn.Linear(width, k))


def relu_net(depth: int, width: int = 50) -> nn.Module:
    """Without biases: `depth` hidden layers."""
    layers: list[nn.Module] = []
    for i in range(depth):
        layers += [nn.Linear(4 if i == 0 else width, width, bias=False), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, 1, bias=False))


def check_close(got: float, expected: float, error: float, sigmas: float = 4.5) -> None:
    assert abs(got - expected) < sigmas * error, f"{got} is not {expected} within {sigmas} times {error}"


# ---------------------------------------------------------------------------------------------------- prior predictive


def linear_variances(draws: int = 1500) -> None:
    """Of ``w x + b``: ``s^2 (|x|^2 + 1)``, with the noise on top of it; relative error sqrt(2 / draws)."""
    net, x = nn.Linear(3, 1), torch.randn(4, 3)
    prediction = bnn.BNN(net, Normal(0.7), Gaussian(0.5)).prior_predictive(x, draws)
    expected = 0.49 * (x.square().sum(1) + 1)
    error = math.sqrt(2 / draws)
    for got, value in zip(prediction.outputs[..., 0].var(0), expected, strict=True):
        check_close(float(got / value), 1.0, error)
    for got, value in zip(prediction.variance.total[:, 0], expected + 0.25, strict=True):
        check_close(float(got / value), 1.0, error)


def test_a_linear_network_has_its_known_prior():
    linear_variances()


def test_a_wrong_scale_would_be_seen(patch_line):
    patch_line(bnn.priors.LocationScale, "law", "loc, scale, shape", "loc, 1.2 * scale, shape")
    with pytest.raises(AssertionError, match="is not"):
        linear_variances()


def second_moments() -> None:
    """At He's scale ``E f^2 = 2 |x|^2 / d`` at any depth of a ReLU net, exactly at any width (He et al. 2015)."""
    x = torch.ones(1, 4)
    for depth in (1, 5):
        model = bnn.BNN(relu_net(depth), Normal("fan_in", gain=math.sqrt(2)), Gaussian(1.0))
        squares = model.prior_predictive(x, draws=500).outputs.square().flatten().double()
        check_close(float(squares.mean()), 2.0, float(squares.std()) / math.sqrt(len(squares)))


def test_depth_leaves_the_variance_of_relu_networks_at_he_scale():
    second_moments()


def test_a_lost_fan_in_would_be_seen(patch_line):
    patch_line(bnn.priors.scaled.Scaled, "own_scale", "math.sqrt(inputs)", "math.sqrt(inputs / 2)")
    with pytest.raises(AssertionError, match="is not"):
        second_moments()


def test_draws_are_of_their_seed_alone_and_nothing_global_moves():
    model = bnn.BNN(tanh_net(), Normal(1.0), Gaussian())
    state = generator_state()
    first, more = model.prior_predictive(along(), 5), model.prior_predictive(along(), 9)
    assert torch.equal(generator_state(), state)
    torch.testing.assert_close(first.outputs, more.outputs[:5])
    assert torch.equal(first.latents["likelihood.scale"], more.latents["likelihood.scale"][:5])
    assert not torch.equal(first.outputs, model.prior_predictive(along(), 5, seed=1).outputs)


@pytest.mark.parametrize("name", likelihoods.TABLE)
def test_every_likelihood_has_a_prior_predictive(name):
    model = likelihoods.model_of(likelihoods.TABLE[name])
    x = torch.randn(6, next(p for p in model.net.parameters()).shape[1]).to(model.like)
    prediction = model.prior_predictive(x, draws=7)
    assert prediction.num_draws == 7
    assert prediction.sample(3).shape[:2] == (3, 6)


@pytest.mark.parametrize("name", ["batch norm", "dropout", "lstm", "two inputs", "named inputs", "returns a dict"])
def test_the_network_is_run_in_evaluation_mode_and_stays_as_it_was(name):
    kind = KINDS[name]
    net, x, _ = make_kind(kind, 5)
    net.train()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    model = bnn.BNN(net, Normal(1.0), Gaussian(), output=kind.output)
    outputs = model.prior_predictive(x, draws=4).outputs
    assert net.training
    for key, value in net.state_dict().items():
        assert torch.equal(value, before[key])
    # Evaluation mode: no dropout, and a row's output does not depend on the other rows.
    part = model.prior_predictive(slice_inputs(x, slice(0, 2)), draws=4).outputs
    torch.testing.assert_close(part, outputs[:, :2])


def test_learned_points_stay_where_a_fit_starts():
    net = nn.Linear(1, 1)
    model = bnn.BNN(net, {"weight": None, "*": Normal(2.0)}, Gaussian("learned"))
    prediction = model.prior_predictive(along(3), draws=50)
    slopes = (prediction.outputs[:, 2, 0] - prediction.outputs[:, 0, 0]) / 4
    torch.testing.assert_close(slopes, net.weight.detach().flatten().expand(50))
    assert torch.equal(prediction.latents["likelihood.scale"], torch.ones(50))


def test_uncertain_inputs_are_drawn_too():
    x = torch.zeros(1, 1)
    law = dist.MultivariateNormal(torch.zeros(1), torch.eye(1))
    model = bnn.BNN(nn.Linear(1, 1, bias=False), Normal(1.0), Gaussian(1.0), input_noise=1.0, input_prior=law)
    outputs = model.prior_predictive(x, draws=2000).outputs.flatten()
    # x given a reading of 0 is N(0, 1/2), and w is N(0, 1): E (w x)^2 = 1/2, its square 9/4 on average.
    check_close(float(outputs.square().mean()), 0.5, math.sqrt((9 / 4 - 1 / 4) / 2000))


def test_no_draws_and_wrong_inputs_are_told():
    model = bnn.BNN(tanh_net(), Normal(1.0), Gaussian())
    with pytest.raises(ValueError, match="at least 1, not 0"):
        model.prior_predictive(along(), draws=0)
    with pytest.raises(ValueError, match="NaN"):
        model.prior_predictive(torch.tensor([[math.nan]]))


# ------------------------------------------------------------------------------------------------------------- measures

X = torch.tensor([3.0, 0.0, 1.0])  # not in order
F = torch.tensor([[2.0, -1.0, 1.0], [-4.0, 1.0, 3.0]])  # two functions


def gaussian(outputs: Tensor) -> Prediction:
    return Prediction(Gaussian(), outputs, {"likelihood.scale": torch.ones(len(outputs))})


@pytest.mark.parametrize(
    ("measure", "expected"),
    [
        (measures.spread, math.sqrt((18 + 2 + 2) / 3)),
        (measures.magnitude, 4.0),
        (functools.partial(measures.magnitude, level=0.5), 1.0),
        # slopes on (0, 1) and (1, 3): 2 and 0.5; 2 and -3.5; weighted by the lengths
        (measures.slope, math.sqrt(((4 + 2 * 0.25) / 3 + (4 + 2 * 12.25) / 3) / 2)),
        (measures.crossings, 1.0),
    ],
)
def test_measures_of_functions_by_hand(measure, expected):
    assert measure(gaussian(F), X) == pytest.approx(expected)
    assert measure(gaussian(F.unsqueeze(-1)), X.unsqueeze(1)) == pytest.approx(expected)


def test_measures_of_classes_by_hand():
    p = torch.tensor([[[0.5, 0.25, 0.25], [0.0, 0.5, 0.5]]], dtype=torch.float64).expand(2, 2, 3)
    prediction = Prediction(Categorical(), p.log(), {})
    assert measures.confidence(prediction) == pytest.approx(0.5)
    assert measures.entropy(prediction) == pytest.approx((1.5 * math.log(2) + math.log(2)) / 2)
    shares = np.array([0.25, 0.375, 0.375])
    assert measures.balance(prediction) == pytest.approx(-(shares * np.log(shares)).sum() / math.log(3))
    yes = Prediction(Bernoulli(), torch.tensor([[[0.0, math.log(3)]]]), {})
    assert measures.confidence(yes) == pytest.approx((0.5 + 0.75) / 2)


def test_measures_that_do_not_apply_say_so():
    with pytest.raises(ValueError, match="two draws"):
        measures.spread(gaussian(F[:1]), X)
    with pytest.raises(ValueError, match="Gaussian has no classes"):
        measures.balance(gaussian(F), X)
    with pytest.raises(ValueError, match="functions of one input"):
        measures.slope(gaussian(F), torch.randn(3, 2))
    with pytest.raises(ValueError, match="some in x are equal"):
        measures.crossings(gaussian(F), torch.zeros(3))
    with pytest.raises(ValueError, match="strictly between"):
        measures.magnitude(gaussian(F), level=1.0)


# ------------------------------------------------------------------------------------------------------------ calibrate


def test_the_scale_of_a_linear_network_is_the_known_one():
    """``sd f = s sqrt(mean |x|^2 + 1)``; with the same random numbers the factor is target / before, exactly."""
    x = torch.randn(10, 3)
    model = bnn.BNN(nn.Linear(3, 1), Normal(1.0), Gaussian())
    found = calibrate(model, x, measures.spread, 0.25, draws=800)
    assert found.factor == pytest.approx(0.25 / found.before.value, rel=1e-5)
    assert found.after.value == pytest.approx(0.25, rel=1e-5)
    exact = 0.25 / math.sqrt(float(x.square().sum(1).mean()) + 1)
    assert isinstance(found.prior, Normal)
    assert found.prior.scale == found.factor
    check_close(found.factor, exact, exact * found.before.error / found.before.value)
    check_close(found.fresh.value, 0.25, math.hypot(found.fresh.error, found.after.error))
    assert model.prior.scale == 1.0  # the model is as it was
    assert "asked for 0.25" in str(found)


def test_the_error_is_that_of_other_seeds():
    """The jackknife against 40 seeds; a standard deviation from 40 numbers has a relative error of 11 %."""
    model = bnn.BNN(nn.Linear(1, 1, bias=False), Normal(1.0), Gaussian(1.0))
    each = [
        calibrate_module._measured(model.prior_predictive(along(5), 60, s), along(5), measures.spread)
        for s in range(40)
    ]
    spread = float(np.std([one.value for one in each]))
    error = math.sqrt(np.mean([one.error**2 for one in each]))
    check_close(error / spread, 1.0, math.sqrt(1 / 80 + 1 / (2 * 19 * 40)))


TARGETS = [
    (Gaussian(), measures.spread, 4.0),
    (Gaussian(), measures.magnitude, 4.0),
    (Gaussian(), measures.slope, 0.3),
    (Gaussian(), measures.crossings, 0.7),
    (Categorical(), measures.confidence, 0.9),
    (Categorical(), measures.entropy, 0.3),
    (Categorical(), measures.balance, 0.9),
]


@pytest.mark.parametrize(("likelihood", "measure", "target"), TARGETS, ids=[m.__name__ for _, m, _ in TARGETS])
def test_every_measure_can_be_met(likelihood, measure, target):
    model = bnn.BNN(tanh_net(3), Normal("fan_in"), likelihood)
    found = calibrate(model, along(), measure, target, draws=120)
    step = 0.02 if measure is measures.crossings else 1e-5  # it moves by whole crossings of single functions
    assert found.after.value == pytest.approx(target, abs=step)
    check_close(found.fresh.value, target, math.hypot(found.fresh.error, found.after.error))


PRIORS = {name: line for name, line in priors.TABLE.items() if not line.conv}


def rescaled_draws(name: str) -> None:
    """The draws of the rescaled prior are the rescaled draws: the same function values at the same seed."""
    net = nn.Linear(3, 2, bias=False).double()
    model = bnn.BNN(net, PRIORS[name].make({"weight": net.weight.detach()}), Gaussian(1.0))
    x = torch.randn(5, 3).double()
    factor = 2.5
    new = model.with_prior(rescaled_module.rescaled(model.prior, factor))
    centre = calibrate_module._centres(model, {"*": model.prior})
    prior = prior_as_posterior(model, 8)
    functions = calibrate_module._Functions(prior, prior.draws(), centre, x, 0)
    torch.testing.assert_close(new.prior_predictive(x, 8).outputs, functions.at(factor).outputs)


@pytest.mark.parametrize("name", PRIORS)
def test_every_prior_with_a_scale_is_rescaled_exactly(name):
    prior = PRIORS[name].make({"weight": torch.zeros(2, 3)})
    if isinstance(prior, bnn.priors.Function):
        with pytest.raises(ValueError, match="has no scale that a factor could multiply"):
            rescaled_module.rescaled(prior, 2.0)
    else:
        rescaled_draws(name)


def test_a_wrong_rescaling_would_be_seen(monkeypatch):
    def wrong(prior, factor):
        return dataclasses.replace(prior, scale=prior.scale * factor)  # the slab forgotten

    monkeypatch.setattr(rescaled_module, "rescaled", wrong)
    with pytest.raises(AssertionError, match="not close"):
        rescaled_draws("regularised horseshoe")


def test_a_factor_that_is_not_applied_would_be_seen(patch_line):
    patch_line(rescaled_module, "_times", "scale * factor", "scale")
    with pytest.raises(AssertionError, match="not close"):
        rescaled_draws("laplace")


HYPER = [
    dist.HalfCauchy(0.5),
    dist.HalfNormal(0.5),
    dist.Exponential(2.0),
    dist.Gamma(2.0, 3.0),
    dist.InverseGamma(3.0, 1.0),
    dist.LogNormal(0.3, 0.5),
    dist.Weibull(0.5, 2.0),
    dist.Uniform(0.1, 0.6),
]


@pytest.mark.parametrize("hyper", HYPER, ids=lambda fn: type(fn).__name__)
def test_hyper_priors_are_multiplied(hyper):
    """The density of ``factor * s`` is ``p(s) / factor``."""
    values, factor = torch.tensor([0.15, 0.35, 0.55]), 3.0
    new = rescaled_module.times(hyper, factor).log_prob(values * factor)
    torch.testing.assert_close(new, hyper.log_prob(values) - math.log(factor))


def test_a_hyper_prior_that_cannot_be_multiplied_is_told():
    with pytest.raises(ValueError, match="a hyper-prior that a factor can multiply is"):
        rescaled_module.rescaled(Normal(dist.Beta(2.0, 2.0)), 2.0)


def test_only_the_chosen_priors_change():
    model = bnn.BNN(tanh_net(), {"0.bias": None, "0.*": Normal(2.0), "*": Normal("fan_in")}, Gaussian())
    found = calibrate(model, along(), measures.spread, 3.0, patterns=["*"], draws=100)
    assert found.after.value == pytest.approx(3.0, rel=1e-5)
    assert found.prior["0.bias"] is None
    assert found.prior["0.*"] is model.prior["0.*"]
    assert found.prior["*"].gain == found.factor != 1
    # The last layer is linear, so that the factor is known.
    assert found.factor == pytest.approx(3.0 / found.before.value, rel=1e-5)


def test_what_cannot_be_reached_is_told_with_what_can():
    """A ReLU net without biases looks the same at every scale: the number of its zero crossings does not move."""
    net = nn.Sequential(nn.Linear(1, 20, bias=False), nn.ReLU(), nn.Linear(20, 1, bias=False))
    model = bnn.BNN(net, Normal("fan_in"), Gaussian())
    with pytest.raises(ValueError, match=r"no factor on the scales reaches 5: between factors 0\.000977 and 1.02e\+03"):
        calibrate(model, along(), measures.crossings, 5.0, draws=40)
    with pytest.raises(ValueError, match="the measure goes from"):
        calibrate(model, along(), measures.spread, -1.0, draws=40)


def test_other_mistakes_of_a_calibration_are_told():
    model = bnn.BNN(tanh_net(), {"0.*": None, "*": Normal(1.0)}, Gaussian())
    with pytest.raises(ValueError, match=r"patterns are some of \['\*'\]"):
        calibrate(model, along(), measures.spread, 1.0, patterns=["0.*"])
    with pytest.raises(ValueError, match="40 draws at least"):
        calibrate(model, along(), measures.spread, 1.0, draws=39)


def test_a_model_under_another_prior_is_of_the_same_network():
    model = bnn.BNN(tanh_net(), Normal(1.0), Gaussian())
    other = model.with_prior({"0.*": Normal(2.0), "*": Normal(3.0)})
    assert other.net is model.net
    assert repr(model.prior) == "Normal()"
    with pytest.raises(ValueError, match="no pattern matches"):
        model.with_prior({"0.*": Normal(2.0)})


# ---------------------------------------------------------------------------------------------------------------- plots


def test_functions_and_bands_are_drawn():
    prediction = gaussian(torch.arange(202.0).reshape(101, 2))
    ax = plots.prior_functions(prediction, torch.tensor([1.0, 0.0]), level=0.9, num=3)
    lines = [line.get_xydata() for line in ax.get_lines()]
    np.testing.assert_allclose(lines, [[[0, 2 * i + 1], [1, 2 * i]] for i in range(3)])
    band = ax.collections[0].get_paths()[0].get_extents()
    np.testing.assert_allclose([band.y0, band.y1], [10, 191], rtol=1e-5)  # 5 % and 95 % of 0, 2, ..., 200, plus 1
    assert ax.get_legend_handles_labels()[1] == ["90 % of the functions", "50 % of the functions"]
    assert plots.prior_functions(prediction, torch.tensor([1.0, 0.0]), ax) is ax
    with pytest.raises(ValueError, match="x has 3 rows"):
        plots.prior_functions(prediction, torch.zeros(3))


def test_before_and_after_share_their_scale():
    first, second = plots.before_and_after(gaussian(F), gaussian(10 * F), X)
    assert first.get_ylim() == second.get_ylim()
    assert (first.get_title(), second.get_title()) == ("before", "after")


def test_class_shares_are_counted():
    # shares .73 and .27; .22 and .78
    p = torch.tensor([[[0.96, 0.04], [0.5, 0.5]], [[0.22, 0.78], [0.22, 0.78]]])
    ax = plots.class_balance(Prediction(Categorical(), p.log(), {}))
    heights = [bar.get_height() for bar in ax.patches]  # 20 bins
    assert heights == pytest.approx([0.25 if i in (4, 5, 14, 15) else 0 for i in range(20)])
    assert ax.get_lines()[0].get_xdata()[0] == 0.5
