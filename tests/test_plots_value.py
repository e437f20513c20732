"""Figures of scores, diagnostics and comparisons: what is drawn, by the numbers in it."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

import bnn
from bnn import analysis, plots
from bnn.analysis import Compared, Comparison, ImportanceCheck, LayerSpread, estimate
from bnn.analysis.convergence import EFFECTIVE
from bnn.approximations import Draws
from bnn.likelihoods import Bernoulli, Categorical, Gaussian
from bnn.plots.style import BLUE, GREY, MAP, VERMILLION, ink
from bnn.posterior import Posterior
from bnn.prediction import Prediction


@pytest.fixture(autouse=True)
def nothing_global():
    """After every test here matplotlib's settings and pyplot's figures are as they were, and what was drawn renders."""
    settings, figures = dict(mpl.rcParams), plt.get_fignums()
    yield
    assert dict(mpl.rcParams) == settings
    assert plt.get_fignums() == figures


def drawn(ax) -> None:
    """Render: warnings are errors, so that clipped titles, empty axes and missing glyphs would be found."""
    first = ax if not isinstance(ax, np.ndarray) else ax[0]
    first.figure.canvas.draw()


def labels(ax) -> list[str]:
    return [text.get_text() for text in ax.get_legend().get_texts()]


def line(ax, label: str) -> np.ndarray:
    (found,) = (found for found in ax.get_lines() if found.get_label() == label)
    return np.asarray(found.get_xydata(), dtype=float)


def gaussian(outputs: Tensor, scale: float = 1.0) -> Prediction:
    return Prediction(Gaussian(), outputs, {"likelihood.scale": torch.full((len(outputs),), scale)})


def classes(probs: list[list[float]]) -> Prediction:
    """A single draw with these probabilities."""
    return Prediction(Categorical(), torch.tensor([probs], dtype=torch.float64).log(), {})


# ------------------------------------------------------------------------------------------------------------- maps


def plane(points: int = 12) -> tuple[np.ndarray, Prediction]:
    """Draws of f = ±x1: the epistemic standard deviation at (x1, x2) is |x1|, the noise is 2 everywhere."""
    x = plots.grid(torch.tensor([[-1.0, 0.0], [1.0, 3.0]]), points=points, margin=0.0)
    first = torch.tensor(x[:, 0])
    return x, gaussian(torch.stack([first, -first]), scale=2.0)


def test_maps_show_both_standard_deviations_on_one_scale():
    x, prediction = plane()
    axes = plots.uncertainty_maps(prediction, x, data=torch.tensor([[0.0, 1.0]]), unit="mm")
    epistemic, aleatoric = (ax.collections[0].get_array() for ax in axes)
    np.testing.assert_allclose(epistemic, np.abs(x[:, 0]), atol=1e-6)
    np.testing.assert_allclose(aleatoric, 2.0, rtol=1e-6)
    assert [ax.collections[0].get_clim() for ax in axes] == [(0.0, pytest.approx(2.0))] * 2
    assert axes[0].get_xlim() == (-1, 1)
    assert axes[0].get_ylim() == (0, 3)
    assert "epistemic" in axes[0].get_title()
    assert "aleatoric" in axes[1].get_title()
    assert labels(axes[0]) == ["training data"]
    assert axes[0].figure.axes[2].get_ylabel() == "standard deviation (mm)"
    drawn(axes)


def test_maps_of_labels_show_the_two_parts_of_the_entropy():
    """Two draws that are sure of opposite classes: log 2, all of it from not knowing the network."""
    x = plots.grid(torch.tensor([[0.0, 0.0], [1.0, 1.0]]), points=3)
    outputs = torch.tensor([[50.0, 0.0], [0.0, 50.0]])[:, None].expand(2, 9, 2)
    axes = plots.uncertainty_maps(Prediction(Categorical(), outputs, {}), x, data=(x[:4], torch.tensor([0, 1, 1, 0])))
    np.testing.assert_allclose(axes[0].collections[0].get_array(), math.log(2), rtol=1e-5)
    np.testing.assert_allclose(axes[1].collections[0].get_array(), 0, atol=1e-6)
    assert labels(axes[0]) == ["training data, class 0", "training data, class 1"]
    markers = [found.get_marker() for found in axes[0].get_lines()]
    assert len(set(markers)) == 2  # told apart by shape


def test_the_grid_goes_beyond_the_rows():
    x = plots.grid(torch.tensor([[0.0, -1.0], [10.0, 1.0]]), points=5, margin=0.1)
    assert x.shape == (25, 2)
    np.testing.assert_allclose([x.min(0), x.max(0)], [[-1, -1.2], [11, 1.2]])


def test_maps_of_what_is_no_plane():
    x, prediction = plane(4)
    with pytest.raises(ValueError, match=r"\(16, 1\)"):
        plots.uncertainty_maps(prediction, x[:, :1])
    with pytest.raises(ValueError, match="15 rows, the prediction has 16"):
        plots.uncertainty_maps(prediction, x[:15])
    two = gaussian(torch.zeros(2, 16, 2))
    with pytest.raises(ValueError, match="2 outputs"):
        plots.uncertainty_maps(two, x)


# ------------------------------------------------------------------------------------------------------ calibration


def test_pit_bars_are_shares_against_what_is_expected():
    """Targets at given quantiles of a standard normal: six of ten in the lowest of four bars."""
    levels = torch.tensor([0.1] * 6 + [0.4, 0.6, 0.9, 0.9])
    y = torch.distributions.Normal(0.0, 1.0).icdf(levels)
    ax = plots.pit_histogram(gaussian(torch.zeros(1, 10)), y, bins=4)
    (bars,) = (patch for patch in ax.patches if patch.get_label() == "this model")
    np.testing.assert_allclose(bars.get_data().values, [2.4, 0.4, 0.4, 0.8])
    from scipy.stats import binom

    (band,) = (area for area in ax.collections if "95 %" in area.get_label())
    heights = band.get_paths()[0].vertices[:, 1]
    np.testing.assert_allclose(sorted(set(heights)), 4 * binom.ppf([0.025, 0.975], 10, 0.25) / 10)
    with pytest.raises(ValueError, match="at least 2"):
        plots.pit_histogram(gaussian(torch.zeros(1, 10)), y, bins=1)
    drawn(ax)


def test_the_bars_of_reliability_are_the_consistency_bands():
    confidence = torch.tensor([[0.9, 0.1]] * 20).tolist()
    prediction, y = classes(confidence), torch.zeros(20, dtype=torch.long)
    found = analysis.reliability(prediction, y)
    ax = plots.reliability(prediction, y)
    (bars,) = (area for area in ax.collections if "95 %" in area.get_label())
    ((low, high),) = (segment[:, 1] for segment in bars.get_segments())
    assert (low, high) == (found.low[8], found.high[8])
    assert "chance alone" in ax.get_title()
    drawn(ax)


# ---------------------------------------------------------------------------------------------------- selective, OOD


def test_risk_coverage_by_hand():
    """The most certain two rows are right, the third wrong, the last right."""
    ax = plots.risk_coverage([1.0, 2.0, 3.0, 4.0], [0.0, 0.0, 1.0, 0.0], loss_label="error rate")
    np.testing.assert_allclose(
        line(ax, "least certain rows left out first"), [[0.25, 0], [0.5, 0], [0.75, 1 / 3], [1, 0.25]]
    )
    assert line(ax, "rows left out at random")[:, 1].tolist() == [0.25, 0.25]
    np.testing.assert_allclose(line(ax, "worst rows left out first (best possible)")[:, 1], [0, 0, 0, 0.25])
    assert ax.get_ylabel() == "error rate of these rows"
    drawn(ax)


def test_retention_starts_at_nothing_and_ends_at_the_mean_loss():
    ax = plots.retention([1.0, 2.0, 3.0, 4.0], [0.0, 0.0, 1.0, 0.0])
    np.testing.assert_allclose(line(ax, "least certain rows left out first")[:, 1], [0, 0, 0, 0.25, 0.25])
    assert line(ax, "rows left out at random").tolist() == [[0, 0], [1, 0.25]]
    drawn(ax)


def test_selective_curves_would_show_an_uncertainty_that_is_upside_down(patch_line):
    """Control: an order by certainty is above chance."""
    patch_line(plots.selective, "risk_coverage", "curves(uncertainty, loss)", "curves([-u for u in uncertainty], loss)")
    ax = plots.selective.risk_coverage([1.0, 2.0, 3.0, 4.0], [0.0, 0.0, 0.0, 1.0])
    assert (line(ax, "least certain rows left out first")[:, 1] >= 0.25).all()


def test_the_detection_curve_is_scikit_learns():
    from sklearn.metrics import roc_curve

    rng = np.random.default_rng(0)
    inside, outside = rng.integers(0, 9, 50), rng.integers(3, 14, 40)  # with ties
    ax = plots.detection_curve(inside, outside)
    false, true, _ = roc_curve(np.repeat([0, 1], [50, 40]), np.concatenate([inside, outside]), drop_intermediate=False)
    np.testing.assert_allclose(line(ax, "this score"), np.column_stack([false, true]))
    found = analysis.detection(inside, outside)
    assert f"{found.auroc:.3f}" in ax.get_title()
    ((x, y),) = line(ax, f"finds 95 % of them at {100 * found.fpr95:.0f} % false alarms")
    assert x == found.fpr95
    assert y >= 0.95
    drawn(ax)


def test_unusual_rows_are_shares_of_their_kind():
    ax = plots.unusual_rows([0.0] * 3 + [1.0], [1.0, 1.0], score="doubt (nats)", names=("known", "strange"))
    first, second = (patch.get_data().values for patch in ax.patches)
    assert (first[0], first[-1], second[-1]) == (75, 25, 100)
    assert labels(ax) == ["known (4)", "strange (2)"]
    assert [patch.get_fill() for patch in ax.patches] == [True, False]  # told apart without colour
    assert ax.get_xlabel() == "doubt (nats)"
    drawn(ax)


def test_under_shift_has_the_scores_and_their_intervals_in_order():
    tables = {name: {"accuracy": estimate(torch.tensor(rows))} for name, rows in
              {"none": [1.0, 1.0, 0.0, 1.0], "fog": [0.0, 1.0, 0.0, 0.0]}.items()}  # fmt: skip
    ax = plots.under_shift(tables, "accuracy", shift_label="weather")
    (container,) = ax.containers
    assert container.lines[0].get_ydata().tolist() == [0.75, 0.25]
    half = 1.96 * 0.5 / 2  # std of three ones and a zero is 1/2
    np.testing.assert_allclose(container.lines[2][0].get_segments()[0][:, 1], [0.75 - half, 0.75 + half])
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["none", "fog"]
    with pytest.raises(ValueError, match=r"no score 'rmse' of \['none', 'fog'\]"):
        plots.under_shift(tables, "rmse")
    drawn(ax)


# ------------------------------------------------------------------------------------------ convergence, approximation


def chains(apart: float, draws: int = 200) -> Posterior:
    """Four chains of independent draws of w in f = w x, one of them moved by `apart`; the bias is exact."""
    net = nn.Linear(1, 1)
    model = bnn.BNN(net, bnn.priors.Normal(1.0), Gaussian(1.0))
    generator = torch.Generator().manual_seed(0)
    values = {
        site.name: torch.randn((4, draws, *site.value.shape), generator=generator) for site in model.sites().latents
    }
    values["weight"][0] += apart
    return Posterior(model, Draws(values), points={}, state=model.state())


def test_function_mixing_finds_the_inputs_where_chains_differ():
    """Chains that differ in the slope agree at x = 0."""
    x = torch.tensor([[-2.0], [-1.0], [0.0], [1.0], [2.0]])
    axes = plots.function_mixing(chains(8.0), x, x_label="age")
    fine, beyond = line(axes[0], "fine: 1"), line(axes[0], "beyond the limit: 4")
    assert fine[:, 0].tolist() == [0.0]
    assert sorted(beyond[:, 0]) == [-2, -1, 1, 2]
    outputs = chains(8.0).predict(x, chains(8.0).draws()).outputs[..., 0]
    found = analysis.mixing(outputs, (4, 200))
    np.testing.assert_allclose(fine[0, 1], found.rhat[2])
    assert axes[0].get_xlabel() == "age"
    marks = {
        made.get_marker() for made in axes[0].get_lines() if "limit:" in made.get_label() or "fine" in made.get_label()
    }
    assert marks == {"o", "D"}  # told apart by shape
    drawn(axes)


def test_function_mixing_of_several_inputs_is_by_row_and_needs_chains(quick, model, regression):
    with pytest.raises(ValueError, match="none of a sampler"):
        plots.function_mixing(quick(model, regression, bnn.MeanField(epochs=1)), regression[0])


def test_mixing_by_part_has_every_part_and_both_limits():
    found = analysis.convergence(chains(0.0), torch.randn(6, 1), torch.randn(6, 1))
    axes = plots.mixing_by_part(found)
    names = [tick.get_text() for tick in axes[0].get_yticklabels()]
    assert names == ["functions", "log joint", "weights weight", "weights bias"]
    medians = [made for made in axes[0].get_lines() if made.get_marker() == "o"]
    assert [made.get_markerfacecolor() for made in medians] == [BLUE, BLUE, "white", "white"]
    assert medians[0].get_xdata()[0] == pytest.approx(np.nanmedian(found.functions.rhat))
    (limit,) = (made for made in axes[1].get_lines() if made.get_label().startswith("limit"))
    assert limit.get_xdata() == [EFFECTIVE, EFFECTIVE]
    assert labels(axes[1])[1:] == ["asked by the verdict", "weights: for information"]
    drawn(axes)


def test_k_hat_of_equal_weights_is_the_line_of_equal_shares():
    check = ImportanceCheck(-math.inf, 0.67, 1000, 0.0, 0.0, 3, torch.zeros(1000))
    ax = plots.k_hat(check)
    np.testing.assert_allclose(line(ax, "this approximation"), line(ax, "exact draws: equal weights"))
    assert "500 draws carry half of the weight" in labels(ax)
    assert ax.get_title().endswith(": weighting can correct it")
    one = torch.zeros(1000)
    one[7] = 20.0
    ax = plots.k_hat(replace(check, k=1.5, log_ratios=one))
    assert line(ax, "this approximation")[0, 1] == pytest.approx(1 / (1 + 999 * math.exp(-20)))
    assert "1 draw carries half of the weight" in labels(ax)
    assert ax.get_title().endswith(": weighting cannot correct it")
    drawn(ax)


def test_information_by_layer_tells_prior_and_point_from_what_was_learned():
    layers = {
        "0.weight": LayerSpread(0.3, 1.0, 0.9, 10, 10),
        "1.weight": LayerSpread(1.0, 0.0, 0.001, 20, 20),
        "1.bias": LayerSpread(0.0, 1.0, 9.0, 1, 1),
    }
    ax = plots.information_by_layer(layers)
    widths = [patch.get_width() for container in ax.containers for patch in container]
    assert widths == [0.9, 0.001, 9.0]
    kinds = ["learned from the data", "is its prior: the data said nothing", "is a point: no uncertainty left"]
    assert labels(ax) == kinds
    assert [container[0].get_hatch() for container in ax.containers] == ["", "///", "..."]
    texts = [text.get_text().strip() for text in ax.texts]
    assert texts == ["9 nats in 10 weights", "0.02 nats in 20 weights", "9 nats in 1 weight"]
    with pytest.raises(ValueError, match="no random layer"):
        plots.information_by_layer({})
    drawn(ax)


# ------------------------------------------------------------------------------------------------------- comparison


def compared(rows: dict[str, Tensor]) -> Comparison:
    best = next(iter(rows.values()))
    found = {
        name: Compared(estimate(values), estimate(values - best), None, 1.0, None) for name, values in rows.items()
    }
    weights = dict.fromkeys(rows, 1 / len(rows))
    return Comparison(found, "held_out", "", weights, weights, None)


def test_comparison_draws_paired_intervals_and_says_what_they_decide():
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(50, generator=generator, dtype=torch.float64)
    noise = torch.randn(50, generator=generator, dtype=torch.float64)
    rows = {"a": base, "b": base + 0.2 * (noise - noise.mean()) - 0.01, "c": base + 0.2 * (noise - noise.mean()) - 1.0}
    ax = plots.comparison(compared(rows))
    assert labels(ax) == ["the best: a", "not told apart from the best", "worse"]
    for container, middle in zip(ax.containers, (-0.01, -1.0), strict=True):
        assert container.lines[0].get_xdata()[0] == pytest.approx(middle)
        ends = container.lines[2][0].get_segments()[0][:, 0]
        half = 1.96 * float(0.2 * noise.std()) / math.sqrt(50)
        np.testing.assert_allclose(ends, [middle - half, middle + half], rtol=1e-6)
    assert [text.get_text().split("\n")[0] for text in ax.get_yticklabels()] == ["a", "b", "c"]
    assert "50 rows" in ax.get_xlabel()
    drawn(ax)


def test_comparison_would_show_unpaired_intervals(patch_line):
    """Control: intervals of another width than the paired ones would be seen."""
    old = "row.difference.mean, row.difference.standard_error"
    patch_line(plots.choosing, "comparison", old, "row.difference.mean, row.log_density.standard_error")
    rows = {"a": torch.arange(10.0), "b": torch.arange(10.0) - 1.0}
    (container,) = plots.choosing.comparison(compared(rows)).containers
    assert np.ptp(container.lines[2][0].get_segments()[0][:, 0]) > 1  # the paired one is 0


# ----------------------------------------------------------------------------------------------------- weights, labels


def test_weight_grid_has_mean_spread_and_sign():
    net = nn.Linear(3, 2)
    model = bnn.BNN(net, bnn.priors.Normal(1.0), Gaussian(1.0))
    values = torch.tensor([[1.0, 2.0, 3.0], [-1.0, -2.0, -3.0]]).expand(1, 4, 2, 3).clone()
    values[0, 0] *= -1  # one of four draws has the other signs
    made = Posterior(model, Draws({"weight": values, "bias": torch.zeros(1, 4, 2)}), points={}, state={})
    axes = plots.weight_grid(made, "weight")
    mean, spread, sign = (np.asarray(ax.images[0].get_array()) for ax in axes)
    np.testing.assert_allclose(mean, [[0.5, 1, 1.5], [-0.5, -1, -1.5]])
    np.testing.assert_allclose(spread, values[0].numpy().std(0))
    np.testing.assert_allclose(sign, 0.75)
    assert axes[2].images[0].get_clim() == (0.5, 1)
    with pytest.raises(ValueError, match=r"'0\.weight'; there are \['weight', 'bias'\]"):
        plots.weight_grid(made, "0.weight")
    assert plots.weight_grid(made, "bias")[0].images[0].get_array().shape == (1, 2)
    drawn(axes)


def test_confusion_counts_rows_and_says_how_certain_they_were():
    prediction = classes([[0.8, 0.2], [0.6, 0.4], [0.3, 0.7], [0.9, 0.1]])
    ax = plots.confusion(prediction, torch.tensor([0, 0, 1, 1]), names=["cat", "dog"])
    cells = {text.get_position(): text.get_text() for text in ax.texts}
    assert cells == {(0, 0): "2\n70 %", (1, 1): "1\n70 %", (0, 1): "1\n90 %"}  # (predicted, true)
    np.testing.assert_allclose(ax.images[0].get_array(), [[1, 0], [0.5, 0.5]])
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["cat", "dog"]
    with pytest.raises(ValueError, match="2 classes and 1 names"):
        plots.confusion(prediction, torch.tensor([0, 0, 1, 1]), names=["cat"])
    drawn(ax)


def test_confusion_of_yes_and_no():
    prediction = Prediction(Bernoulli(), torch.tensor([[2.0, -2.0, -2.0]]), {})
    ax = plots.confusion(prediction, torch.tensor([1.0, 0.0, 1.0]))
    assert {text.get_position(): text.get_text()[0] for text in ax.texts} == {(1, 1): "1", (0, 0): "1", (0, 1): "1"}


def test_image_grid_has_the_most_and_the_least_certain():
    probs = [[0.5, 0.5], [0.99, 0.01], [0.7, 0.3], [0.1, 0.9], [0.55, 0.45]]
    images = torch.arange(5.0)[:, None, None, None].expand(5, 1, 2, 2)
    axes = plots.image_grid(classes(probs), images, torch.tensor([0, 0, 1, 1, 0]), num=2, names=["cat", "dog"])
    assert [int(ax.images[0].get_array()[0, 0]) for ax in axes] == [1, 3, 0, 4]
    assert [ax.get_title() for ax in axes][:2] == ["cat (99 %)", "dog (90 %)"]
    assert (axes[0].get_ylabel(), axes[2].get_ylabel()) == ("most certain", "least certain")
    by_hand = plots.image_grid(
        classes(probs), images, torch.tensor([0, 0, 1, 1, 0]), num=1, uncertainty=[5.0, 4.0, 1.0, 2.0, 3.0]
    )
    assert by_hand[0].get_title() == "0 (70 %)\nis 1"
    colours = plots.image_grid(classes(probs), torch.rand(5, 3, 4, 4), num=1)
    assert colours[0].images[0].get_array().shape == (4, 4, 3)
    with pytest.raises(ValueError, match="images has 4 rows"):
        plots.image_grid(classes(probs), images[:4])
    with pytest.raises(ValueError, match=r"\(5, 7, 2, 2\)"):
        plots.image_grid(classes(probs), torch.zeros(5, 7, 2, 2))
    drawn(axes)


# ----------------------------------------------------------------------------------------------------------- for all


def test_every_figure_draws_on_the_axes_that_it_is_given():
    axes = Figure(figsize=(24, 24)).subplots(5, 5).ravel()
    x, prediction = plane(4)
    y = torch.zeros(16)
    labelled = classes([[0.9, 0.1]] * 16)
    layers = {"w": LayerSpread(0.3, 1.0, 0.9, 10, 10)}
    check = ImportanceCheck(0.1, 0.67, 100, 0.0, 0.0, 3, torch.zeros(100))
    sampled = chains(0.0, 40)
    made = [
        *plots.uncertainty_maps(prediction, x, axes[0:2]),
        plots.pit_histogram(prediction, y, axes[2]),
        plots.risk_coverage(torch.rand(9), torch.rand(9), axes[3]),
        plots.retention(torch.rand(9), torch.rand(9), axes[4]),
        plots.unusual_rows(torch.rand(9), torch.rand(9), axes[5]),
        plots.detection_curve(torch.rand(9), torch.rand(9), axes[6]),
        plots.under_shift({"a": analysis.scores(prediction, y)}, "crps", axes[7]),
        *plots.function_mixing(sampled, torch.randn(3, 1), axes[8:10]),
        *plots.mixing_by_part(analysis.convergence(sampled, torch.randn(3, 1)), axes[10:12]),
        plots.k_hat(check, axes[12]),
        plots.information_by_layer(layers, axes[13]),
        plots.comparison(compared({"a": torch.rand(5), "b": torch.rand(5)}), axes[14]),
        *plots.weight_grid(sampled, "weight", axes[15:18]),
        plots.confusion(labelled, torch.zeros(16, dtype=torch.long), axes[18]),
        *plots.image_grid(labelled, torch.rand(16, 2, 2), axes=axes[19:23], num=2),
    ]
    assert made == list(axes[:23])
    for function in (plots.weight_grid, plots.mixing_by_part, plots.function_mixing, plots.uncertainty_maps):
        assert "axes" in function.__code__.co_varnames


def test_every_public_figure_is_in_the_gallery():
    root = Path(__file__).parent.parent / "docs"
    page = (root / "gallery.md").read_text(encoding="utf-8")
    for name in set(plots.__all__) - {"grid"}:
        assert f"images/gallery/{name}.png" in page, f"plots.{name} is not in docs/gallery.md"
        assert (root / "images" / "gallery" / f"{name}.png").stat().st_size < 150_000


def test_maps_and_inks_differ_in_grey():
    """Luminance falls all the way along the colour map; a limit and what is beyond it differ; text is read on it."""
    weights = [0.2126, 0.7152, 0.0722]
    along = mpl.colormaps[MAP](np.linspace(0, 1, 50))[:, :3] @ weights
    assert (np.diff(along) < 0).all()
    assert along[0] - along[-1] > 0.7
    blue, grey, red = (float(np.dot(mpl.colors.to_rgb(c), weights)) for c in (BLUE, GREY, VERMILLION))
    assert abs(blue - grey) > 0.05
    assert abs(blue - red) > 0.02  # beside another marker
    assert (ink("white"), ink("#08306b")) == ("#000000", "white")
