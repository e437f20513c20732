"""Figures: what is drawn, by the numbers in it, and what is left untouched."""

import math

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

import bnn
from bnn import plots
from bnn.approximations import Draws
from bnn.history import History
from bnn.likelihoods import Bernoulli, Categorical, Gaussian
from bnn.plots.style import BLUE, SKY, VERMILLION
from bnn.posterior import Posterior
from bnn.prediction import Prediction


def gaussian(outputs: Tensor, scale: float = 1.0) -> Prediction:
    return Prediction(Gaussian(), outputs, {"likelihood.scale": torch.full((len(outputs),), scale)})


def history(steps: int, per_epoch: int, validation: int = 0) -> History:
    step = torch.arange(1, steps + 1, dtype=torch.float32)
    return History(
        loss=3 / step.sqrt(),
        nll=2 / step.sqrt(),
        kl=1 / step.sqrt(),
        steps_per_epoch=per_epoch,
        epochs=math.ceil(steps / per_epoch),
        validation=-((torch.arange(validation) - 3.0) ** 2),
        validation_epochs=list(range(1, validation + 1)),
    )


def posterior(chains: int = 1, draws: int = 4, net: nn.Module | None = None, **prior: bool) -> Posterior:
    """Weights that are 7, 8, 9, ... in turn, under a Normal(0, 2) prior."""
    net = net or nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    model = bnn.BNN(net, bnn.priors.Normal(2.0, **prior), Gaussian(1.0))
    values = {
        site.name: torch.full((chains, draws, *site.value.shape), 7.0 + i)
        for i, site in enumerate(model.sites().latents)
    }
    return Posterior(model, Draws(values), points={}, state=model.state())


@pytest.fixture(autouse=True)
def nothing_global():
    """After every test here matplotlib's settings and pyplot's figures are as they were."""
    settings, figures = dict(mpl.rcParams), plt.get_fignums()
    yield
    assert dict(mpl.rcParams) == settings
    assert plt.get_fignums() == figures


def labels(ax) -> list[str]:
    return [text.get_text() for text in ax.get_legend().get_texts()]


def rows_of(ax, label: str) -> np.ndarray:
    (line,) = (line for line in ax.get_lines() if line.get_label() == label)
    return np.asarray(line.get_xydata())


def band_heights(ax, label: str, x: float) -> tuple[float, float]:
    """Lower and upper end of a band at one of its inputs."""
    (area,) = (area for area in ax.collections if area.get_label() == label)
    vertices = area.get_paths()[0].vertices
    ends = vertices[np.isclose(vertices[:, 0], x), 1]
    return float(ends.min()), float(ends.max())


def spread_lines(rows: int = 30, draws: int = 201) -> tuple[Tensor, Prediction]:
    """Draws whose means at every x lie evenly on [-1, 1], with noise of scale 2; x in no order."""
    x = torch.linspace(0, 1, rows).flip(0)
    return x, gaussian(torch.linspace(-1, 1, draws)[:, None].expand(draws, rows), scale=2.0)


def test_band_has_mean_both_bands_and_data_in_order():
    x, prediction = spread_lines()
    ax = plots.predictive_band(prediction, x, data=(x, torch.zeros(30)), level=0.8, x_label="age (years)")
    total, mean = "80 % of new observations fall here", "80 % sure that the mean is here"
    assert labels(ax) == [total, mean, "predicted mean", "training data"]
    assert ax.get_xlabel() == "age (years)"
    drawn = rows_of(ax, "predicted mean")
    assert (np.diff(drawn[:, 0]) > 0).all()
    np.testing.assert_allclose(drawn[:, 1], 0, atol=1e-6)
    assert len(rows_of(ax, "training data")) == 30
    # The middle 80 % of the even spread on [-1, 1] is [-0.8, 0.8].
    assert band_heights(ax, mean, 0.0) == pytest.approx((-0.8, 0.8), abs=1e-5)
    low, high = (float(end[0]) for end in prediction.interval(0.8))
    assert band_heights(ax, total, 0.0) == pytest.approx((low, high), abs=1e-5)
    assert low < -0.8


def test_band_of_a_single_draw_shows_no_uncertainty_of_the_mean():
    x = torch.linspace(0, 1, 5)
    ax = plots.predictive_band(gaussian(torch.zeros(1, 5)), x[:, None])
    assert labels(ax) == ["90 % of new observations fall here", "predicted mean"]


def test_band_of_one_output_among_several():
    x = torch.linspace(0, 1, 5)
    prediction = gaussian(torch.stack([torch.zeros(3, 5), torch.ones(3, 5)], dim=-1))
    ax = plots.predictive_band(prediction, x, output=1, data=(x, torch.ones(5, 2)))
    np.testing.assert_allclose(rows_of(ax, "predicted mean")[:, 1], 1)
    with pytest.raises(ValueError, match="2 outputs"):
        plots.predictive_band(prediction, x)


def test_band_is_over_one_input():
    prediction = gaussian(torch.zeros(2, 5))
    with pytest.raises(ValueError, match=r"\(5, 2\)"):
        plots.predictive_band(prediction, torch.zeros(5, 2))
    with pytest.raises(ValueError, match="4 rows, the prediction has 5"):
        plots.predictive_band(prediction, torch.zeros(4))


def test_predicted_against_observed_tells_covered_from_missed():
    """Standard normal predictions: 90 % intervals end at 1.645."""
    y = torch.tensor([0.0, 1.6, 1.7, -3.0])
    ax = plots.predicted_against_observed(gaussian(torch.zeros(1, 4)), y, y_label="length (m)")
    assert "interval holds the observed value: 2 of 4" in labels(ax)
    assert "interval misses it: 2 of 4" in labels(ax)
    assert ax.get_title() == "90 % intervals hold 50 % of the observed values"
    assert ax.get_xlabel() == "observed length (m)"
    looks = [(c.lines[0].get_marker(), c.lines[0].get_color(), len(c.lines[0].get_xdata())) for c in ax.containers]
    assert looks == [("o", BLUE, 2), ("D", VERMILLION, 2)]  # shape as well as colour
    ends = np.asarray(ax.containers[0].lines[2][0].get_segments())[:, :, 1]
    np.testing.assert_allclose(ends, [[-1.645, 1.645]] * 2, atol=1e-3)


def test_predicted_against_observed_of_a_wrong_shape():
    with pytest.raises(ValueError, match=r"\(4, 1\).*\(4,\)"):
        plots.predicted_against_observed(gaussian(torch.zeros(1, 4)), torch.zeros(4, 1))


def test_training_curves_are_means_over_epochs():
    recorded = history(40, per_epoch=4)
    axes = plots.training_curves(recorded)
    assert [ax.get_title().split(":")[0].split(" =")[0] for ax in axes] == ["loss", "nll", "kl"]
    for ax, values in zip(axes, (recorded.loss, recorded.nll, recorded.kl), strict=True):
        curve = rows_of(ax, "mean")
        np.testing.assert_allclose(curve[:, 0], np.arange(1, 11))
        np.testing.assert_allclose(curve[:, 1], values.reshape(10, 4).mean(1), rtol=1e-6)


def test_training_curves_mark_the_best_epoch_of_validation():
    axes = plots.training_curves(history(10, per_epoch=1, validation=10))
    assert len(axes) == 4
    assert labels(axes[-1]) == ["best: epoch 4"]
    np.testing.assert_allclose(rows_of(axes[-1], "best: epoch 4"), [[4, 0]])


def test_training_curves_of_a_long_fit_stay_readable():
    """100,000 steps in 1,000 epochs: a few hundred points, whole epochs each, and the steep start out of the panel."""
    axes = plots.training_curves(history(100_000, per_epoch=100))
    curve = rows_of(axes[0], "mean")
    assert 100 < len(curve) <= 300
    assert curve[-1, 0] == 1000
    np.testing.assert_allclose(curve[:, 0], np.round(curve[:, 0]))
    assert axes[0].get_ylim()[1] < curve[0, 1]
    assert any("starts at" in text.get_text() for text in axes[0].texts)


def test_training_curves_of_an_unfinished_epoch_and_of_nothing():
    assert len(rows_of(plots.training_curves(history(10, per_epoch=4))[0], "mean")) == 3
    with pytest.raises(ValueError, match="no steps"):
        plots.training_curves(History())
    with pytest.raises(ValueError, match="3 panels need 3 axes, not 2"):
        plots.training_curves(history(10, per_epoch=1), Figure().subplots(1, 2))


def histogram(ax, label: str) -> tuple[np.ndarray, np.ndarray]:
    (patch,) = (patch for patch in ax.patches if patch.get_label() == label)
    data = patch.get_data()
    return np.asarray(data.values), np.asarray(data.edges)


@pytest.mark.parametrize("centred", [True, False])
def test_weights_against_their_prior(centred):
    """The prior's histogram has the mean and the standard deviation 2 that it was given, up to five standard errors."""
    axes = plots.weights_against_prior(posterior(centred=centred))
    titles = ["0.weight (6 numbers)", "0.bias (3 numbers)", "1.weight (3 numbers)", "1.bias (1 number)"]
    assert [ax.get_title() for ax in axes] == titles
    assert labels(axes[0]) == ["posterior", "prior"]
    for ax, count in zip(axes, (6, 3, 3, 1), strict=True):
        density, edges = histogram(ax, "prior")
        middle, mass = (edges[1:] + edges[:-1]) / 2, density * np.diff(edges)
        assert mass.sum() == pytest.approx(0.99, abs=0.011)  # the range leaves out 1 %
        mean = (mass * middle).sum() / mass.sum()
        deviation = math.sqrt((mass * (middle - mean) ** 2).sum() / mass.sum())
        error = 2 / math.sqrt(500 * count)
        assert abs(mean) < 5 * error
        assert abs(deviation - 2) < 5 * error + 0.1  # 0.09 of it is the tail that was left out


def test_weights_of_the_posterior_are_where_they_are():
    axes = plots.weights_against_prior(posterior(), names=["1.bias", "0.weight"])
    for ax, value in zip(axes, (10.0, 7.0), strict=True):
        density, edges = histogram(ax, "posterior")
        (filled,) = density.nonzero()[0]
        assert edges[filled] <= value <= edges[filled + 1]
        assert density[filled] * (edges[1] - edges[0]) == pytest.approx(1)


def test_weights_leave_the_random_state_and_follow_the_seed(monkeypatch):
    monkeypatch.setattr(plots.weights, "_PRIOR_DRAWS", 10)
    made = posterior()
    before = torch.random.get_rng_state()
    first, again, other = (plots.weights_against_prior(made, names=["0.bias"], seed=seed)[0] for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    np.testing.assert_array_equal(histogram(first, "prior")[0], histogram(again, "prior")[0])
    assert not np.array_equal(histogram(first, "prior")[0], histogram(other, "prior")[0])


def test_weights_by_unknown_names_and_of_deep_networks(monkeypatch):
    monkeypatch.setattr(plots.weights, "_PRIOR_DRAWS", 10)
    with pytest.raises(ValueError, match=r"no parameters with a prior: \['7'\]"):
        plots.weights_against_prior(posterior(), names=["7"])
    deep = posterior(net=nn.Sequential(*[nn.Linear(1, 1) for _ in range(8)]))
    axes = plots.weights_against_prior(deep)
    assert len(axes) == 12
    assert "12 of 16" in axes[0].figure.get_suptitle()


def test_interval_calibration_of_known_coverage():
    """Targets at the quantiles (i - 1/2) / n of the prediction: every interval holds its share, up to 1/n."""
    rows = 100
    levels = (torch.arange(rows) + 0.5) / rows
    y = torch.distributions.Normal(0.0, 1.0).icdf(levels)
    prediction = gaussian(torch.zeros(1, rows))
    curve = rows_of(plots.interval_calibration(prediction, y), "this model")
    assert len(curve) == 19
    np.testing.assert_allclose(curve[:, 1], curve[:, 0], atol=1.01 / rows)
    narrow = rows_of(plots.interval_calibration(gaussian(torch.zeros(1, rows), 0.3), y, levels=[0.9]), "this model")
    assert narrow[0, 1] < 0.5  # Phi(0.3 x 1.645) gives 0.38
    with pytest.raises(ValueError, match="strictly between 0 and 1"):
        plots.interval_calibration(prediction, y, levels=[0.5, 1.0])


def test_interval_calibration_s_band_is_binomial():
    from scipy.stats import binom

    label = "where a calibrated model stays, 95 % (50 rows)"
    ax = plots.interval_calibration(gaussian(torch.zeros(1, 50)), torch.zeros(50), levels=[0.5])
    assert label in labels(ax)
    assert band_heights(ax, label, 0.5) == pytest.approx(tuple(binom.ppf([0.025, 0.975], 50, 0.5) / 50))


def test_reliability_shows_confidence_and_accuracy_by_bin():
    """Log-odds of log 3 (probability 3/4) and log 9 (9/10), four rows each; three and all of them right."""
    outputs = torch.tensor([[math.log(3.0)] * 4 + [math.log(9.0) + 1e-3] * 4])
    y = torch.tensor([1.0, 1, 1, 0, 1, 1, 1, 1])
    ax = plots.reliability(Prediction(Bernoulli(), outputs, {}), y)
    np.testing.assert_allclose(rows_of(ax, "this model (number: rows)"), [[0.75, 0.75], [0.9, 1.0]], atol=1e-3)
    assert ax.get_title().startswith("calibration error (ECE) 5 %; chance alone gives up to ")
    assert [text.get_text() for text in ax.texts].count("4") == 2


def test_reliability_of_classes_leaves_out_empty_bins():
    outputs = torch.tensor([[[5.0, 0, 0]] * 6])
    ax = plots.reliability(Prediction(Categorical(), outputs, {}), torch.zeros(6, dtype=torch.long), bins=4)
    assert len(rows_of(ax, "this model (number: rows)")) == 1


def draw_all(axes) -> list:
    x, prediction = spread_lines()
    y = torch.linspace(-2, 2, 30)
    yes_or_no = Prediction(Bernoulli(), prediction.outputs, {})
    return [
        plots.predictive_band(prediction, x, axes[0]),
        plots.predicted_against_observed(prediction, y, axes[1]),
        plots.interval_calibration(prediction, y, axes[2]),
        plots.reliability(yes_or_no, (y > 0).float(), axes[3]),
        *plots.training_curves(history(10, 2), axes[4:7]),
        *plots.weights_against_prior(posterior(), axes[7:11]),
    ]


def test_every_figure_draws_on_the_axes_that_it_is_given():
    axes = Figure(figsize=(20, 20)).subplots(3, 4).ravel()
    assert draw_all(axes) == list(axes[:11])


def test_every_figure_can_be_written_without_pyplot(tmp_path):
    x, prediction = spread_lines()
    for i, ax in enumerate([plots.predictive_band(prediction, x), plots.training_curves(history(10, 2))[0]]):
        ax.figure.savefig(tmp_path / f"{i}.png")
        assert (tmp_path / f"{i}.png").stat().st_size > 1000


def test_the_colours_differ_in_grey():
    """Luminance (ITU-R BT.709) of colours that stand beside each other."""

    def luminance(colour: str) -> float:
        return float(np.dot(mpl.colors.to_rgb(colour), [0.2126, 0.7152, 0.0722]))

    assert abs(luminance(BLUE) - luminance(SKY)) > 0.15
