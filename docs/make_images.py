"""Make the pictures of the documentation, docs/images/*.png: python docs/make_images.py [--out FOLDER] [--quick].

With the same versions of the libraries they are the same files again: every random number has its seed, and nothing of
the surroundings (date, program) is written into them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.datasets import load_diabetes, load_digits
from torch import nn

import bnn

BLUE, ORANGE = "#2166ac", "#d6604d"
STYLE = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.titlelocation": "left"}
UNSEEN = 7  # the digits from here on are kept from the network


def band(axes: Axes, epochs: int) -> None:
    """Diabetes, one measurement: the mean, what is not known of it, and where a patient lies."""
    measurements, progression = load_diabetes(return_X_y=True)
    x, y = 21 * measurements[:, [2]], (progression - 150) / 77  # both of about zero mean and unit variance
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(1, 20), nn.ReLU(), nn.Linear(20, 1), nn.Flatten(0))
    model = bnn.BNN(net, prior=bnn.priors.Normal("fan_in", gain=2.0), likelihood=bnn.likelihoods.Gaussian())
    method = bnn.MeanField(epochs=epochs, batch_size=None, estimator="local")
    posterior = bnn.fit(model, (x, y), method, seed=0, progress=False)

    grid = np.linspace(-4.5, 6.5, 121)
    pred = posterior.predict(grid[:, None], draws=4000)
    of_mean = pred.outputs.quantile(torch.tensor([0.05, 0.95]), dim=0)
    axes.fill_between(grid, *pred.interval(0.9), color=BLUE, alpha=0.18, lw=0, label="where a patient lies")
    axes.fill_between(grid, *of_mean, color=BLUE, alpha=0.45, lw=0, label="where the mean lies")
    axes.plot(grid, pred.mean, color=BLUE, lw=1.5)
    axes.plot(x[:, 0], y, ".", color="black", ms=4, mew=0, alpha=0.7, label="442 patients")
    axes.set(
        title="Far from the data, the band widens",
        xlabel="body mass index (standard deviations)",
        ylabel="disease after a year (standard deviations)",
        xlim=(grid[0], grid[-1]),
    )
    axes.legend(loc="upper left", frameon=False, title="90 % intervals", alignment="left")


def unseen(axes: Axes, epochs: int) -> None:
    """Handwritten digits: mutual information of label and weights, for digits seen and never seen in training."""
    images, labels = load_digits(return_X_y=True)
    images = images / 16
    known = labels < UNSEEN
    held_out = known & (np.arange(len(labels)) % 4 == 0)
    train = known & ~held_out
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 20), nn.ReLU(), nn.Linear(20, UNSEEN))
    model = bnn.BNN(net, prior=bnn.priors.Normal("fan_in", gain=2.0), likelihood=bnn.likelihoods.Categorical())
    method = bnn.MeanField(epochs=epochs, estimator="local")
    posterior = bnn.fit(model, (images[train], labels[train]), method, seed=0, progress=False)

    bins = np.linspace(0, 0.7, 36)
    groups = ((held_out, BLUE, "0 to 6, other images"), (~known, ORANGE, "7, 8 and 9, never seen"))
    for rows, colour, label in groups:
        information = posterior.predict(images[rows]).entropy.epistemic.numpy()
        share = np.full(len(information), 100 / len(information))
        axes.hist(information, bins, weights=share, color=colour, alpha=0.65, label=label)
    axes.set(
        title="Digits that it has never seen stand out",
        xlabel="mutual information of label and weights (nats)",
        ylabel="% of the images",
        xlim=(bins[0], bins[-1]),
    )
    axes.legend(loc="upper right", frameon=False)


def uncertainty(*, quick: bool) -> Figure:
    """The picture of the README."""
    figure = Figure(figsize=(8.4, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    band(left, epochs=2 if quick else 2000)
    unseen(right, epochs=2 if quick else 400)
    return figure


GRID = torch.linspace(-3, 3, 61).unsqueeze(1)


def tanh_net(depth: int, width: int = 50, outputs: int = 1) -> nn.Module:
    """A network of one input."""
    layers: list[nn.Module] = []
    for i in range(depth):
        layers += [nn.Linear(1 if i == 0 else width, width), nn.Tanh()]
    return nn.Sequential(*layers, nn.Linear(width, outputs))


def functions(
    axes: Axes, net: nn.Module, prior: bnn.priors.Prior, title: str, draws: int, limit: float, num: int
) -> None:
    """Functions drawn from a prior; what lies outside the limits is cut off."""
    model = bnn.BNN(net, prior, bnn.likelihoods.Gaussian(1.0))
    bnn.plots.prior_functions(model.prior_predictive(GRID, draws), GRID, axes, num=num)
    axes.get_legend().remove()
    axes.set(title=title, xlabel="", ylabel="", ylim=(-limit, limit))


def prior_sizes(*, quick: bool) -> Figure:
    """Depth and width, with the scale divided by the root of the fan-in and without."""
    figure = Figure(figsize=(8.4, 4.6), layout="constrained")
    panels = figure.subplots(2, 4, sharex=True, sharey="row")
    rows = ((bnn.priors.Normal("fan_in"), 'Normal("fan_in")', 4), (bnn.priors.Normal(1.0), "Normal(1.0)", 25))
    for row, (prior, name, limit) in zip(panels, rows, strict=True):
        for axes, (depth, width) in zip(row, ((1, 5), (1, 50), (3, 50), (8, 50)), strict=True):
            title = f"{depth} {'layer' if depth == 1 else 'layers'} of {width}"
            functions(axes, tanh_net(depth, width), prior, title, 20 if quick else 400, limit, num=4)
        row[0].set_ylabel(f"{name}\nf(x)")
    return figure


def prior_families(*, quick: bool) -> Figure:
    """Families of weights at one size of network, each weight of variance 1 / fan-in where it has one."""
    priors = {
        "Normal": bnn.priors.Normal("fan_in"),
        "StudentT(df=3)": bnn.priors.StudentT("fan_in", df=3.0, gain=3**-0.5),
        "SpikeAndSlab(0.1)": bnn.priors.SpikeAndSlab(0.1, 10**0.5, 0.01, scale="fan_in"),
        "RegularisedHorseshoe": bnn.priors.RegularisedHorseshoe("units", scaling="fan_in"),
    }
    figure = Figure(figsize=(8.4, 2.5), layout="constrained")
    for axes, (name, prior) in zip(figure.subplots(1, 4, sharey=True), priors.items(), strict=True):
        functions(axes, tanh_net(1, 10), prior, name, 20 if quick else 400, 8, num=8)
    return figure


def prior_calibrated(*, quick: bool) -> Figure:
    """Before and after: the range of functions, and the balance of classes."""
    draws = 40 if quick else 400
    figure = Figure(figsize=(8.4, 5.0), layout="constrained")
    above, below = figure.subplots(2, 2)
    measures = bnn.priors.measures
    model = bnn.BNN(tanh_net(2), bnn.priors.Normal(1.0), bnn.likelihoods.Gaussian())
    found = bnn.priors.calibrate(model, GRID, measures.spread, 1.0, draws=draws)
    pair = (model.prior_predictive(GRID, draws), found.model.prior_predictive(GRID, draws))
    titles = (f"Normal(1.0): spread {found.before.value:.2g}", f"Normal({found.factor:.2g}): spread 1")
    bnn.plots.before_and_after(*pair, GRID, above, titles=titles)
    above[1].get_legend().remove()

    images = torch.from_numpy(load_digits().data[:200]).float() / 16
    net = nn.Sequential(nn.Linear(64, 50), nn.ReLU(), nn.Linear(50, 10))
    model = bnn.BNN(net, bnn.priors.Normal(1.0), bnn.likelihoods.Categorical())
    found = bnn.priors.calibrate(model, images, measures.confidence, 0.3, draws=draws)
    for axes, one, scale in zip(below, (model, found.model), ("1.0", f"{found.factor:.2g}"), strict=True):
        prediction = one.prior_predictive(images, draws)
        bnn.plots.class_balance(prediction, axes)
        axes.set_title(f"Normal({scale}): confidence {measures.confidence(prediction):.2g}")
    return figure


PICTURES = (uncertainty, prior_sizes, prior_families, prior_calibrated)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "images", help="folder of the pictures")
    parser.add_argument("--quick", action="store_true", help="a few epochs and draws: for a test, not for the eye")
    parser.add_argument("--only", choices=[picture.__name__ for picture in PICTURES], help="one of them")
    options = parser.parse_args()

    options.out.mkdir(parents=True, exist_ok=True)
    for picture in PICTURES:
        if options.only in (None, picture.__name__):
            path = options.out / f"{picture.__name__}.png"
            with matplotlib.rc_context(STYLE):
                picture(quick=options.quick).savefig(path, dpi=120, metadata={"Software": None})
            print(f"{path}, {path.stat().st_size / 1024:.0f} kB")


if __name__ == "__main__":
    main()
