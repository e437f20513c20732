"""Make the picture of the README, docs/images/uncertainty.png: python docs/make_images.py [--out FOLDER] [--quick].

With the same versions of the libraries it is the same file again: every random number has its seed, and nothing of the
surroundings (date, program) is written into it.
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "images", help="folder of the picture")
    parser.add_argument("--quick", action="store_true", help="a few epochs: for a test, not for the eye")
    options = parser.parse_args()

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.4, 3.4), layout="constrained")
        left, right = figure.subplots(1, 2)
        band(left, epochs=2 if options.quick else 2000)
        unseen(right, epochs=2 if options.quick else 400)
        options.out.mkdir(parents=True, exist_ok=True)
        path = options.out / "uncertainty.png"
        figure.savefig(path, dpi=120, metadata={"Software": None})
    print(f"{path}, {path.stat().st_size / 1024:.0f} kB")


if __name__ == "__main__":
    main()
