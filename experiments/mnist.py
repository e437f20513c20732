"""Digits: how often is a Bayesian network wrong, how sure is it, how many weights does it need, what of other images?

Two networks. That of Bayes by Backprop (Blundell et al. 2015, arXiv:1505.05424), 784-400-400-10, by mean-field VI under
a mixture of a wide and a narrow Gaussian, and under one Gaussian; and LeNet-5 by several methods. Asked of each: error,
log-density and calibration on the test set; what is left when the weights with the least signal-to-noise are taken out;
whether images that are no digits are told by their entropy; and what turning and noise do.

Settings were chosen on the last 10,000 rows of the training set, which no fit sees; the test set is for the tables.
Strangers are made of the test set's own images and of scikit-learn's digits (`images.strangers`), since no other set is
at hand: AUROC beside published ones is of other strangers.

    python experiments/mnist.py --nets mlp-400        # on one core
    python experiments/mnist.py --nets lenet          # at the same time, on another
    python experiments/mnist.py                       # both, or what is missing of them; tables and figures
    python experiments/mnist.py --all                 # 784-800-800-10 as well
    python experiments/mnist.py --quick               # seconds: scikit-learn's digits, small
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mnist_figures as figures
import torch
from frame import Study, experiment, which
from images import SHIFTS, Images, Parts, digits, mnist, strangers
from mnist_published import accuracy_rows, stranger_rows
from tables import Table, with_error
from torch import Tensor, nn

import bnn
from bnn import analysis
from bnn.approximations import Gaussian
from bnn.priors import Prior


@dataclass(frozen=True)
class Config:
    """Every number of the experiment, and where it comes from."""

    nets: tuple[str, ...] = which(("mlp-400", "lenet"))  # mlp-WIDTH: two hidden layers
    laws: tuple[str, ...] = which(("cold mixture", "mixture", "Gaussian"))  # of mean-field, the fully connected net
    methods: tuple[str, ...] = which(("ensemble", "MC dropout", "SWAG", "Laplace", "mean field"))  # of LeNet-5
    source: str = "mnist"  # or digits: scikit-learn's, magnified
    rows: int = 50_000  # of training; the 10,000 after them are for validation
    batch_size: int = 128  # as in the paper
    epochs: int = 100  # of mean-field over the fully connected net; the paper took 600 without a falling rate
    lr: float = 1e-3
    init_scale: float = 0.1
    start_epochs: int = 10  # of the mode at which mean-field starts: it saves it the time in which all is noise
    start_prior: float = 0.2  # standard deviation, of that mode
    wide: float = 0.14  # the mixture, out of the paper's grid: exp(-2), exp(-6), 1/4
    narrow: float = 0.0025
    weight: float = 0.25
    cold: float = 0.1  # temperature, see `mean_field`
    gaussian: float = 0.1  # standard deviation
    lenet_epochs: int = 20
    lenet_lr: float = 2e-3
    lenet_prior: float = 0.3  # standard deviation: for 50,000 rows a weight decay of 2e-4
    members: int = 10  # as published
    dropout: float = 0.2
    draws: int = 50
    shift_rows: int = 2000  # of the test set
    rotations: tuple[float, ...] = (15.0, 30.0, 45.0, 60.0, 90.0)  # degrees
    noises: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5)  # standard deviations of pixels in (0, 1)
    removed: tuple[float, ...] = (0.0, 0.5, 0.75, 0.95, 0.98)  # shares of the weights, as in the paper
    seed: int = 0


QUICK = Config(
    nets=("mlp-50", "lenet"),
    source="digits",
    laws=("cold mixture", "Gaussian"),
    methods=("ensemble", "Laplace"),
    rows=600,
    batch_size=50,
    epochs=10,
    start_epochs=6,
    start_prior=1.0,
    lenet_epochs=6,
    lenet_prior=1.0,
    members=2,
    draws=4,
    shift_rows=100,
    rotations=(90.0,),
    noises=(0.5,),
    removed=(0.0, 0.5, 0.98),
)
ALL = Config(nets=("mlp-400", "mlp-800", "lenet"))


# ---------------------------------------------------------------------------------------------------- networks and fits


class Pixels(nn.Module):
    """Images as rows of numbers from 0 to 2, as in the paper, which divides by 126."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) * (255 / 126)


def mlp(width: int) -> nn.Module:
    hidden = [nn.Linear(784, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()]
    return nn.Sequential(Pixels(), *hidden, nn.Linear(width, 10))


def lenet(dropout: float = 0.0) -> nn.Module:
    """LeNet-5 with rectifiers; dropout before its last two layers."""
    net: nn.Module = bnn.nets.lenet(size=28, activation="relu")
    for name in ("linear2", "out") if dropout else ():
        setattr(net, name, nn.Sequential(nn.Dropout(dropout), getattr(net, name)))
    return net


def decay(optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)


@dataclass(frozen=True)
class Bench:
    """The data, and fits of them that go on where they were: a fit that is done is not done again."""

    study: Study[Config]
    parts: Parts

    def fit(self, name: str, net: nn.Module, prior: Prior, method: bnn.inference.Method) -> bnn.Posterior:
        model = bnn.BNN(net, prior, bnn.likelihoods.Categorical())
        # Fits are told apart by their own settings: another number of draws of the prediction trains nothing anew.
        own = re.sub("0x[0-9a-f]+", "", json.dumps([repr(prior), method.settings(), len(self.parts.train.y)]))
        states = self.study.out / "states" / f"{name}-{hashlib.sha256(own.encode()).hexdigest()[:8]}"
        seed = self.study.config.seed
        return bnn.fit(model, tuple(self.parts.train), method, seed=seed, progress=False, checkpoint=states)

    def mode(self, name: str, net: nn.Module, prior: Prior, epochs: int, lr: float) -> bnn.Posterior:
        batch = self.study.config.batch_size
        return self.fit(name, net, prior, bnn.MAP(epochs=epochs, lr=lr, batch_size=batch, schedule=decay))


def mean_field(bench: Bench, width: int, law: str) -> dict[str, Any]:
    """The fully connected net under one prior; its start beside it, as what weights without doubt can do.

    A weight that is worth having costs some two nats of the divergence, and the whole training set has a few thousand
    nats to give for its last errors: at temperature 1 few of half a million weights pay. So a posterior at the
    temperature ``cold``, which is less than Bayes, stands beside the one at 1, which is Bayes.
    """
    config = bench.study.config
    torch.manual_seed(config.seed)
    net = mlp(width)
    start = bench.mode(f"mlp-{width}-start", net, bnn.priors.Normal(config.start_prior), config.start_epochs, config.lr)
    if law == "point":
        return {**evaluated(config, start, bench.parts), "removed": pruned(config, start, bench.parts.test)}
    priors: dict[str, Prior] = {
        "mixture": bnn.priors.ScaleMixture(config.wide, config.narrow, config.weight),
        "cold mixture": bnn.priors.ScaleMixture(config.wide, config.narrow, config.weight),
        "Gaussian": bnn.priors.Normal(config.gaussian),
    }
    method = bnn.MeanField(
        epochs=config.epochs,
        lr=config.lr,
        batch_size=config.batch_size,
        schedule=decay,
        init=start,
        init_scale=config.init_scale,
        temperature=config.cold if law == "cold mixture" else 1.0,
    )
    posterior = bench.fit(f"mlp-{width}-{law.replace(' ', '-')}", net, priors[law], method)
    return {**evaluated(config, posterior, bench.parts), "removed": pruned(config, posterior, bench.parts.test)}


def convolutional(bench: Bench, method: str) -> dict[str, Any]:
    """LeNet-5 by one method."""
    config = bench.study.config
    torch.manual_seed(config.seed)
    net, prior = (
        lenet(config.dropout if method == "MC dropout" else 0.0),
        bnn.priors.Normal(config.lenet_prior),
    )
    training: dict[str, Any] = {
        "epochs": config.lenet_epochs,
        "lr": config.lenet_lr,
        "batch_size": config.batch_size,
        "schedule": decay,
    }
    mode = functools.partial(bench.mode, "lenet-start", net, prior, config.lenet_epochs, config.lenet_lr)
    methods: dict[str, Callable[[], bnn.inference.Method]] = {
        "ensemble": lambda: bnn.Ensemble(members=config.members, of=bnn.MAP(**training)),
        "MC dropout": lambda: bnn.MCDropout(**training),
        # From the mode on at a constant rate: it is the moving about that SWAG learns from.
        "SWAG": lambda: bnn.SWAG(init=mode(), epochs=config.lenet_epochs, batch_size=config.batch_size),
        "Laplace": lambda: bnn.Laplace(of=mode(), weights="last_layer", covariance="full", tune="after"),
        "mean field": lambda: bnn.MeanField(**training, init=mode(), estimator="flipout"),
    }
    return evaluated(config, bench.fit(f"lenet-{method.replace(' ', '-')}", net, prior, methods[method]()), bench.parts)


# ----------------------------------------------------------------------------------------------------------- evaluation


def scored(prediction: bnn.Prediction, y: Tensor) -> dict[str, float]:
    """Error in percent, negative log-density in nats, calibration error; standard errors over the rows."""
    accuracy = analysis.accuracy(prediction, y)
    found = {"error": 100 * (1 - accuracy.mean), "error_se": 100 * accuracy.standard_error}
    for name, score in (("nll", analysis.nll), ("ece", analysis.expected_calibration_error)):
        value = score(prediction, y)
        found |= {name: value.mean, f"{name}_se": value.standard_error}
    return found


def evaluated(config: Config, posterior: bnn.Posterior, parts: Parts) -> dict[str, Any]:
    """Everything that is asked of a posterior but for what can be taken out of it."""
    draws = posterior.draws(posterior.num_draws or config.draws)
    predict = functools.partial(posterior.predict, draws=draws)
    inside = predict(parts.test.x)
    few = parts.test.rows(slice(config.shift_rows))
    found: dict[str, Any] = {
        "parameters": sum(p.numel() for p in posterior.model.net.parameters()),
        "validation": scored(predict(parts.validation.x), parts.validation.y),
        "test": scored(inside, parts.test.y),
        "strangers": {},
        "shifts": [],
    }
    if posterior.num_draws is not None and posterior.num_draws > 1:
        outputs = inside.outputs.unsqueeze(1)
        each = [scored(bnn.Prediction(inside.likelihood, own, {}), parts.test.y) for own in outputs]
        found["members"] = {
            k: v for key in ("error", "nll", "ece") for k, v in with_error(key, [m[key] for m in each]).items()
        }
    outside = strangers(few, config.seed)
    if config.source == "mnist":
        outside["other digits"] = digits(size=28).train.x
    for name, x in outside.items():
        there = predict(x)
        found["strangers"][name] = {
            "entropy": analysis.detection(inside.entropy.total, there.entropy.total).auroc,
            "mutual_information": analysis.detection(inside.entropy.epistemic, there.entropy.epistemic).auroc,
            "confidence": float(there.probs.max(1).values.mean()),
        }
    for kind, levels in (("rotation", (0.0, *config.rotations)), ("noise", (0.0, *config.noises))):
        for level in levels:
            there = predict(SHIFTS[kind](few.x, level))
            entropy = float(there.entropy.total.mean())
            found["shifts"].append({"kind": kind, "level": level, "entropy": entropy, **scored(there, few.y)})
    return found


def pruned(config: Config, posterior: bnn.Posterior, test: Images) -> dict[str, Any]:
    """The test error when the weights with the least signal-to-noise are 0 (the paper, section 5.1 and figure 4).

    Signal-to-noise is the mean over the standard deviation; of a point, whose weights have no noise, the weight's size.
    Biases stay.
    """
    draws = posterior.draws(posterior.num_draws or config.draws)
    law = posterior.approximation
    if isinstance(law, Gaussian):
        mean, scale = (law.layout.unflatten(v) for v in (law.loc, law.log_scale.exp()))
        signal = {name: mean[name].abs() / scale[name] for name in mean if name.endswith("weight")}
    else:
        signal = {name: value[0].abs() for name, value in draws.items() if name.endswith("weight")}
    every = torch.cat([value.flatten() for value in signal.values()]).sort().values
    rows = []
    for share in config.removed:
        least = every[min(int(share * len(every)), len(every) - 1)]
        kept = {name: draws[name] * (value >= least) for name, value in signal.items()}
        prediction = posterior.predict(test.x, draws={**draws, **kept})
        rows.append({"removed": 100 * share, "kept": int((every >= least).sum()), **scored(prediction, test.y)})
    decibel = 20 * every.clamp(min=1e-4).log10()
    counts, edges = torch.histogram(decibel, 60)
    return {"rows": rows, "decibel": edges.tolist(), "weights": counts.tolist()}


# -------------------------------------------------------------------------------------------------------- the whole run


def row(study: Study[Config], name: str, net: str, method: str, found: dict[str, Any]) -> dict[str, Any]:
    head = {"net": net, "method": method, "parameters": found["parameters"]}
    return {**head, "chosen_on": found["validation"]["error"], **found["test"], "minutes": study.seconds[name] / 60}


@experiment(Config(), quick=QUICK, everything=ALL)
def main(study: Study[Config]) -> None:
    config = study.config
    parts = mnist(study, config.rows) if config.source == "mnist" else digits(config.seed, (config.rows, 300), size=28)
    bench, found = Bench(study, parts), {}
    for net in config.nets:
        ways = config.methods if net == "lenet" else ("point", *config.laws)
        for way in ways:
            work = functools.partial(convolutional, bench, way)
            if net != "lenet":
                work = functools.partial(mean_field, bench, int(net.removeprefix("mlp-")), way)
            name = f"{net}-{way.replace(' ', '-')}"
            found[net, way] = study.unit(name, work)
    rows = [row(study, f"{net}-{way.replace(' ', '-')}", net, way, each) for (net, way), each in found.items()]
    for (net, way), each in found.items():
        if "members" in each:
            rows.append(
                {"net": net, "method": f"a member of the {way}", "parameters": each["parameters"], **each["members"]}
            )
    dense = {f"{net}, {way}": each for (net, way), each in found.items() if "removed" in each}
    light = {way: each for (net, way), each in found.items() if net == "lenet"}
    removed = [{"net": name, **one} for name, each in dense.items() for one in each["removed"]["rows"]]
    outside = [
        {"net": f"{net}, {way}", "strangers": name, **scores}
        for (net, way), each in found.items()
        for name, scores in each["strangers"].items()
    ]
    columns = {
        "net": ("network", ""),
        "method": ("method", ""),
        "parameters": ("weights", ",d"),
        "chosen_on": ("validation error, %", ".2f"),
        "error": ("test error, %", ".2f"),
        "nll": ("−log-density, nats", ".4f"),
        "ece": ("calibration error", ".4f"),
        "minutes": ("minutes", ".0f"),
    }
    note = "± one standard error over test rows of one fit; of the members of an ensemble, over these."
    tables = [Table("test set", columns, rows, note)]
    if light and config.source == "mnist":
        tables += [accuracy_rows(study, rows), stranger_rows(study)]
    if dense:
        kept = {"removed": ("weights removed, %", "g"), "kept": ("kept", ",d"), "error": ("test error, %", ".2f")}
        tables.append(Table("fewer weights", {"net": ("network", ""), **kept, "nll": ("−log-density", ".4f")}, removed))
        study.figure("weights", figures.weights({name: each["removed"] for name, each in dense.items()}))
    auroc = {"entropy": ("AUROC of the entropy", ".3f"), "mutual_information": ("of the mutual information", ".3f")}
    heading = {"net": ("network, method", ""), "strangers": ("images", "")}
    tables.append(
        Table("strangers", {**heading, **auroc, "confidence": ("mean confidence", ".3f")}, outside, "0.5 is chance.")
    )
    shown = light or dense
    study.figure("strangers", figures.strangers(parts.test, config.seed, outside, config.source == "mnist"))
    study.figure("shift", figures.shift({name: each["shifts"] for name, each in shown.items()}))
    study.finish(
        {"test": rows, "removed": removed, "strangers": outside, "units": {", ".join(k): v for k, v in found.items()}},
        tables,
        f"{config.source}, {len(parts.train.y):,} training rows, {len(parts.test.y):,} test rows.",
    )


if __name__ == "__main__":
    main()
