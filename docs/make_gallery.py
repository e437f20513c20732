"""Make the pictures of the gallery, docs/images/gallery/*.png: python docs/make_gallery.py [--out FOLDER] [--quick].

With the same versions of the libraries they are the same files again: every random number has its seed, and nothing of
the surroundings (date, program) is written into them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from sklearn.datasets import load_digits, make_moons
from torch import Tensor, nn

import bnn
from bnn import analysis, plots

PICTURES: dict[str, Callable[[], Any]] = {}
#: Epochs and draws are divided by this for a test; set by --quick.
SCALE = 1
UNSEEN = 7  # the digits from here on are kept from the network


def picture(make: Callable[[], Any]) -> Callable[[], Any]:
    """Enrol a function whose figure becomes ``gallery/NAME.png``."""
    PICTURES[make.__name__] = make
    return make


def curve(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """One input with a gap in it, and a target with noise 0.2."""
    rng = np.random.default_rng(seed)
    x = np.concatenate([rng.uniform(-3, -0.7, n // 2), rng.uniform(1, 3, n - n // 2)])
    y = np.sin(2 * x) + 0.3 * x + 0.2 * rng.standard_normal(n)
    return torch.tensor(x[:, None], dtype=torch.float32), torch.tensor(y, dtype=torch.float32)


def regression_model() -> bnn.BNN:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(1, 10), nn.Tanh(), nn.Linear(10, 1), nn.Flatten(0))
    return bnn.BNN(net, bnn.priors.Normal("fan_in", gain=3.0), bnn.likelihoods.Gaussian())


@cache
def gaussian() -> bnn.Posterior:
    method = bnn.FullRank(epochs=1000 // SCALE, batch_size=None)
    return bnn.fit(regression_model(), curve(80, 0), method, seed=0, progress=False)


@cache
def sampled() -> bnn.Posterior:
    method = bnn.NUTS(chains=4, num_samples=200 // SCALE, warmup=200 // SCALE, max_depth=5)
    return bnn.fit(regression_model(), curve(80, 0), method, seed=0, progress=False)


@cache
def rough() -> bnn.Posterior:
    """A fit with validation, in minibatches."""
    method = bnn.MeanField(epochs=400 // SCALE, batch_size=20, lr=0.01)
    return bnn.fit(regression_model(), curve(80, 0), method, seed=0, validation=curve(60, 2), progress=False)


@cache
def moons() -> tuple[tuple[Tensor, Tensor], bnn.Posterior]:
    x, y = make_moons(150, noise=0.15, random_state=0)
    data = torch.tensor(x, dtype=torch.float32), torch.tensor(y)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 2))
    model = bnn.BNN(net, bnn.priors.Normal("fan_in", gain=3.0), bnn.likelihoods.Categorical())
    method = bnn.Ensemble(members=10, of=bnn.MAP(epochs=500 // SCALE, batch_size=None))
    return data, bnn.fit(model, data, method, seed=0, progress=False)


@cache
def digits() -> tuple[dict[str, tuple[Tensor, Tensor]], bnn.Posterior]:
    """Images of 0 to 6 to train and to test, and of 7 to 9, which the network never sees."""
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)
    known, third = y < UNSEEN, torch.arange(len(y)) % 3 == 0
    sets = {
        "train": (x[known & ~third], y[known & ~third]),
        "test": (x[known & third], y[known & third]),
        "unseen": (x[~known], y[~known]),
    }
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 20), nn.ReLU(), nn.Linear(20, UNSEEN))
    model = bnn.BNN(net, bnn.priors.Normal("fan_in", gain=2.0), bnn.likelihoods.Categorical())
    method = bnn.MeanField(epochs=150 // SCALE, estimator="local", lr=0.01)
    return sets, bnn.fit(model, sets["train"], method, seed=0, progress=False)


@cache
def noisy_digits(noise: float) -> tuple[bnn.Prediction, Tensor]:
    sets, posterior = digits()
    x, y = sets["test"]
    moved = x + noise * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    return posterior.predict(moved), y


@picture
def predictive_band() -> Axes:
    x = torch.linspace(-4, 4, 200)[:, None]
    return plots.predictive_band(sampled().predict(x), x, data=curve(80, 0))


@picture
def predicted_against_observed() -> Axes:
    x, y = curve(120, 1)
    return plots.predicted_against_observed(sampled().predict(x), y)


@picture
def uncertainty_maps() -> Any:
    (x, y), posterior = moons()
    points = plots.grid(x, points=50)
    return plots.uncertainty_maps(posterior.predict(points.astype(np.float32)), points, data=(x, y))


@picture
def interval_calibration() -> Axes:
    x, y = curve(200, 1)
    return plots.interval_calibration(sampled().predict(x), y)


@picture
def pit_histogram() -> Axes:
    x, y = curve(200, 1)
    return plots.pit_histogram(sampled().predict(x), y)


@picture
def reliability() -> Axes:
    return plots.reliability(*noisy_digits(0.3))


@picture
def confusion() -> Axes:
    return plots.confusion(*noisy_digits(0.3))


@picture
def image_grid() -> Any:
    prediction, y = noisy_digits(0.0)
    return plots.image_grid(prediction, digits()[0]["test"][0].reshape(-1, 8, 8), y)


def doubt_and_errors() -> tuple[Tensor, Tensor]:
    prediction, y = noisy_digits(0.4)
    return prediction.entropy.total, 1 - analysis.accuracy(prediction, y).rows


@picture
def risk_coverage() -> Axes:
    return plots.risk_coverage(*doubt_and_errors(), loss_label="error rate")


@picture
def retention() -> Axes:
    return plots.retention(*doubt_and_errors(), loss_label="error rate")


def strangers() -> tuple[Tensor, Tensor]:
    sets, posterior = digits()
    return tuple(posterior.predict(sets[name][0]).entropy.epistemic for name in ("test", "unseen"))  # type: ignore[return-value]


@picture
def unusual_rows() -> Axes:
    names = ("digits 0 to 6", "digits 7 to 9, never seen")
    return plots.unusual_rows(*strangers(), score="mutual information of label and weights (nats)", names=names)


@picture
def detection_curve() -> Axes:
    return plots.detection_curve(*strangers())


@picture
def under_shift() -> Axes:
    tables = {f"{noise:.1f}": analysis.scores(*noisy_digits(noise)) for noise in (0.0, 0.2, 0.4, 0.6, 0.8)}
    return plots.under_shift(tables, "accuracy", shift_label="noise added to the images (standard deviation)")


@picture
def training_curves() -> Any:
    return plots.training_curves(rough().history)


@picture
def weights_against_prior() -> Any:
    return plots.weights_against_prior(rough())


@picture
def weight_grid() -> Any:
    return plots.weight_grid(digits()[1], "2.weight")


@picture
def information_by_layer() -> Axes:
    return plots.information_by_layer(analysis.layer_spread(rough()))


@picture
def k_hat() -> Axes:
    return plots.k_hat(analysis.psis(gaussian(), *curve(80, 0), num=1000))


@picture
def function_mixing() -> Any:
    return plots.function_mixing(sampled(), torch.linspace(-4, 4, 60)[:, None])


@picture
def mixing_by_part() -> Any:
    return plots.mixing_by_part(analysis.convergence(sampled(), *curve(80, 0)))


@picture
def comparison() -> Axes:
    model, data = regression_model(), curve(80, 0)
    point = bnn.fit(model, data, bnn.MAP(epochs=2000 // SCALE, batch_size=None), seed=0, progress=False)
    posteriors = {"NUTS": sampled(), "full rank": gaussian(), "mean field": rough(), "MAP": point}
    return plots.comparison(bnn.compare(posteriors, curve(120, 1)))


@picture
def prior_functions() -> Axes:
    x = torch.linspace(-4, 4, 120)[:, None]
    return plots.prior_functions(regression_model().prior_predictive(x, draws=300), x)


@picture
def before_and_after() -> Any:
    x = torch.linspace(-4, 4, 120)[:, None]
    wide = bnn.BNN(regression_model().net, bnn.priors.Normal(4.0), bnn.likelihoods.Gaussian())
    pair = (model.prior_predictive(x, draws=300) for model in (wide, regression_model()))
    return plots.before_and_after(*pair, x, titles=("weights of scale 4", "weights of scale 3 / √inputs"))


@picture
def class_balance() -> Axes:
    return plots.class_balance(digits()[1].model.prior_predictive(digits()[0]["test"][0], draws=300))


def main() -> None:
    global SCALE
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    folder = Path(__file__).parent / "images" / "gallery"
    parser.add_argument("--out", type=Path, default=folder, help="folder of the pictures")
    parser.add_argument("--only", nargs="*", choices=list(PICTURES), help="these alone")
    parser.add_argument("--quick", action="store_true", help="short fits: for a test, not for the eye")
    options = parser.parse_args()
    SCALE = 20 if options.quick else 1
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.only or PICTURES:
        drawn = PICTURES[name]()
        figure = (drawn if isinstance(drawn, Axes) else drawn[0]).figure
        path = options.out / f"{name}.png"
        figure.savefig(path, dpi=80, metadata={"Software": None})
        print(f"{path}, {path.stat().st_size / 1024:.0f} kB", flush=True)


if __name__ == "__main__":
    main()
