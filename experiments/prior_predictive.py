"""What does a prior over weights believe of functions, by depth, width and family?

Three questions, in the order of the file; functions are of one input, networks fully connected:

(a) Depth and width under ``Normal("fan_in")``: how large are functions, how steep, how wiggly, and how far from
    Gaussian is a value of them?
(b) The same under ``Normal(1)``, of which every layer multiplies the size by the root of the width.
(c) Families of equal variance at one depth and width: do heavier tails of weights reach the functions?

    python experiments/prior_predictive.py             # about two minutes
    python experiments/prior_predictive.py --quick     # seconds, and less precise
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import torch
from frame import Study, experiment
from matplotlib.figure import Figure
from tables import Table
from torch import Tensor, nn

import bnn
from bnn.plots import prior_functions
from bnn.priors import measures


@dataclass(frozen=True)
class Config:
    """Every number of the experiment, and where it comes from."""

    # A second moment from 400 draws has a relative error of sqrt(2 / 400) = 7 % if f is Gaussian, more in heavy tails.
    draws: int = 400
    depths: tuple[int, ...] = (1, 2, 4, 8)  # hidden layers
    widths: tuple[int, ...] = (5, 20, 100)
    # Weights of variance gain^2 / fan-in, biases of variance gain^2: a unit's input has a variance of 1 to 2 gain^2.
    gains: tuple[float, ...] = (1.0, 2.0)
    # (c) two hidden layers of 20 units: narrow enough that single weights matter.
    family_depth: int = 2
    family_width: int = 20
    grid: int = 81  # inputs, evenly spaced on (-3, 3): a step of 0.075
    seed: int = 0


QUICK = Config(draws=100, depths=(1, 4), widths=(5, 20), grid=31)

#: Weights of variance 1 / fan-in: Laplace's is 2 scale^2, Student's t's df / (df - 2) scale^2. The horseshoe has none,
#: so that only its quantiles and crossings mean something.
FAMILIES: dict[str, bnn.priors.Prior] = {
    "Normal": bnn.priors.Normal("fan_in"),
    "Laplace": bnn.priors.Laplace("fan_in", gain=1 / math.sqrt(2)),
    "StudentT, df=3": bnn.priors.StudentT("fan_in", df=3.0, gain=1 / math.sqrt(3)),
    "Horseshoe": bnn.priors.Horseshoe("units", scaling="fan_in"),
}


def mlp(depth: int, width: int) -> nn.Module:
    layers: list[nn.Module] = []
    for i in range(depth):
        layers += [nn.Linear(1 if i == 0 else width, width), nn.Tanh()]
    return nn.Sequential(*layers, nn.Linear(width, 1), nn.Flatten(0))


def inputs(config: Config) -> Tensor:
    return torch.linspace(-3, 3, config.grid).unsqueeze(1)  # (grid, 1)


def believed(config: Config, net: nn.Module, prior: bnn.priors.Prior) -> bnn.Prediction:
    model = bnn.BNN(net, prior, bnn.likelihoods.Gaussian(1.0))
    return model.prior_predictive(inputs(config), config.draws, seed=config.seed)


def described(config: Config, prediction: bnn.Prediction) -> dict[str, float]:
    """The measures, and the kurtosis of f at a single input: 3 for a Gaussian."""
    x = inputs(config)
    middle = prediction.outputs[:, config.grid // 4].double()  # (draws,), at x = -1.5
    away = middle - middle.mean()
    return {
        "spread": measures.spread(prediction, x),
        "largest": measures.magnitude(prediction, x, level=0.9),
        "slope": measures.slope(prediction, x),
        "crossings": measures.crossings(prediction, x),
        "kurtosis": float(away.pow(4).mean() / away.square().mean() ** 2),
    }


def priors(config: Config) -> dict[str, bnn.priors.Prior]:
    kept = {f'Normal("fan_in", gain={g:g})': bnn.priors.Normal("fan_in", gain=g) for g in config.gains}
    return {**kept, "Normal(1)": bnn.priors.Normal(1.0)}


def by_size(config: Config, name: str, depth: int, width: int) -> dict[str, Any]:
    """(a) and (b): one prior, depth and width."""
    numbers = described(config, believed(config, mlp(depth, width), priors(config)[name]))
    return {"prior": name, "depth": depth, "width": width, **numbers}


def by_family(config: Config, name: str) -> dict[str, Any]:
    """(c): one family."""
    net = mlp(config.family_depth, config.family_width)
    return {"prior": name, **described(config, believed(config, net, FAMILIES[name]))}


MEASURES = {key: (key, ".3g") for key in ("spread", "largest", "slope", "crossings", "kurtosis")}


BANDS = "six functions, and where half and 90 % of all are"


def draw_sizes(config: Config) -> Figure:
    """Rows: widths. Columns: depths. At the largest gain."""
    figure = Figure(figsize=(2.6 * len(config.depths), 2.1 * len(config.widths)), layout="constrained")
    panels = figure.subplots(len(config.widths), len(config.depths), sharex=True, sharey=True, squeeze=False)
    prior = bnn.priors.Normal("fan_in", gain=config.gains[-1])
    for row, width in zip(panels, config.widths, strict=True):
        for ax, depth in zip(row, config.depths, strict=True):
            prior_functions(believed(config, mlp(depth, width), prior), inputs(config), ax, num=6)
            ax.get_legend().remove()
            ax.set(title=f"depth {depth}, width {width}", xlabel="", ylabel="")
    figure.suptitle(f'Normal("fan_in", gain={config.gains[-1]:g}): {BANDS}')
    figure.supxlabel("x")
    figure.supylabel("f")
    return figure


def draw_families(config: Config) -> Figure:
    figure = Figure(figsize=(2.6 * len(FAMILIES), 2.9), layout="constrained")
    net = mlp(config.family_depth, config.family_width)
    panels = figure.subplots(1, len(FAMILIES))
    for ax in panels[1:-1]:
        ax.sharey(panels[0])  # those of equal variance; the horseshoe has none
    for ax, (name, prior) in zip(panels, FAMILIES.items(), strict=True):
        prior_functions(believed(config, net, prior), inputs(config), ax, num=6)
        ax.get_legend().remove()
        ax.set(title=name, xlabel="", ylabel="")
    figure.suptitle(f"weights of equal variance, and the horseshoe, which has none: {BANDS}", fontsize=9)
    figure.supxlabel("x")
    figure.supylabel("f")
    return figure


@experiment(Config(), quick=QUICK)
def main(study: Study[Config]) -> None:
    config = study.config
    sizes = [(name, depth, width) for name in priors(config) for depth in config.depths for width in config.widths]
    results = {
        "size": [
            study.unit(f"size-{i}-depth-{size[1]}-width-{size[2]}", functools.partial(by_size, config, *size))
            for i, size in enumerate(sizes)
        ],
        "family": [
            study.unit(f"family-{i}", functools.partial(by_family, config, name)) for i, name in enumerate(FAMILIES)
        ],
    }
    study.figure("depth_width", draw_sizes(config))
    study.figure("families", draw_families(config))
    size = {"prior": ("prior", ""), "depth": ("depth", ""), "width": ("width", ""), **MEASURES}
    note = "The horseshoe has no variance: its spread, slope and kurtosis are those of these draws alone."
    family = f"families at depth {config.family_depth} and width {config.family_width}"
    text = (
        f"tanh networks with biases, {config.draws} draws, x in (-3, 3). Spread: standard deviation of f. Largest: "
        "90 % of all |f| are below. Slope: root mean square of f'. Crossings: sign changes of f. Kurtosis: of f at "
        "x = -1.5; 3 for a Gaussian."
    )
    tables = [
        Table("depth and width", size, results["size"]),
        Table(family, {"prior": ("prior", ""), **MEASURES}, results["family"], note),
    ]
    study.finish(results, tables, text)


if __name__ == "__main__":
    main()
