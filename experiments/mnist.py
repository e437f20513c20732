"""Digits: how often is a Bayesian network wrong, how sure is it, how many weights does it need, what of other images?

Two networks. That of Bayes by Backprop (Blundell et al. 2015, arXiv:1505.05424), 784-400-400-10, by mean-field VI under
a mixture of a wide and a narrow Gaussian, on images as they are and on shifted ones; and LeNet-5 by several methods.
Asked of each: error, log-density and calibration on the test set; what is left when the weights with the least
signal-to-noise are taken out; whether images that are no digits are told by their entropy; what turning and noise do.

Settings were chosen on the last 10,000 rows of the training set, which no fit sees; the test set is for the tables.
Strangers are made of the test set's own images and of scikit-learn's digits (`images.strangers`), since no other set is
at hand: AUROC beside published ones is of other strangers.

    python experiments/mnist.py --nets mlp-400        # on one core
    python experiments/mnist.py --nets lenet          # at the same time, on another
    python experiments/mnist.py                       # both, or what is missing of them; tables and figures
    python experiments/mnist.py --all                 # 784-800-800-10, and more priors, methods and members: overnight
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
from frame import Study, experiment
from images import Parts, digits, mnist
from mnist_published import PUBLISHED, accuracy_rows, stranger_rows
from mnist_scores import evaluated, pruned
from mnist_setup import ALL, QUICK, Config, ShiftedBatches, decay, lenet, mlp
from tables import Table
from torch import nn

import bnn
from bnn.priors import Prior


@dataclass(frozen=True)
class Bench:
    """The data, and fits of them that go on where they were: a fit that is done is not done again."""

    study: Study[Config]
    parts: Parts

    def fit(
        self,
        name: str,
        net: nn.Module,
        prior: Prior,
        method: bnn.inference.Method,
        batches: ShiftedBatches | None = None,
    ) -> bnn.Posterior:
        model = bnn.BNN(net, prior, bnn.likelihoods.Categorical())
        rows = len(self.parts.train.y)
        # Fits are told apart by their own settings: another number of draws of the prediction trains nothing anew.
        settings = [repr(net), repr(batches and batches.shifted), repr(prior), method.settings(), rows]
        own = re.sub("0x[0-9a-f]+", "", json.dumps(settings))
        return bnn.fit(
            model,
            batches or tuple(self.parts.train),
            method,
            n_data=rows if batches else None,
            seed=self.study.config.seed,
            progress=False,
            checkpoint=self.study.out / "states" / f"{name}-{hashlib.sha256(own.encode()).hexdigest()[:8]}",
        )

    def mode(self, name: str, net: nn.Module, prior: Prior, epochs: int, lr: float) -> bnn.Posterior:
        batch = self.study.config.batch_size
        return self.fit(name, net, prior, bnn.MAP(epochs=epochs, lr=lr, batch_size=batch, schedule=decay))


def mean_field(bench: Bench, width: int, law: str) -> dict[str, Any]:
    """The fully connected net under one prior, or a point that is trained as long: what weights without doubt can do.

    A weight that is worth having costs some two nats of the divergence, and the whole training set has a few thousand
    nats to give for its last errors: at temperature 1 few of half a million weights pay. So a posterior at the
    temperature ``cold``, which is less than Bayes, stands beside the one at 1, which is Bayes.
    """
    config = bench.study.config
    torch.manual_seed(config.seed)
    shifted = law.startswith("shifted ")
    net, law = mlp(width, config.shift if shifted else 0), law.removeprefix("shifted ")
    name = f"mlp-{width}{'-shifted' if shifted else ''}"
    mode = functools.partial(bench.mode, net=net, prior=bnn.priors.Normal(config.start_prior), lr=config.lr)
    if law == "point":
        point = mode(f"{name}-point", epochs=config.start_epochs + config.epochs)
        return {**evaluated(config, point, bench.parts), "removed": pruned(config, point, bench.parts.test)}
    start = mode(f"{name}-start", epochs=config.start_epochs)
    priors: dict[str, Prior] = {
        "mixture": bnn.priors.ScaleMixture(config.wide, config.narrow, config.weight),
        "cold mixture": bnn.priors.ScaleMixture(config.wide, config.narrow, config.weight),
        "Gaussian": bnn.priors.Normal(config.gaussian),
    }
    cold = law == "cold mixture"
    method = bnn.MeanField(
        epochs=config.epochs if cold else config.warm_epochs,
        lr=config.lr,
        batch_size=config.batch_size,
        schedule=decay,
        init=start,
        init_scale=config.init_scale,
        temperature=config.cold if cold else 1.0,
    )
    posterior = bench.fit(f"{name}-{law.replace(' ', '-')}", net, priors[law], method)
    return {**evaluated(config, posterior, bench.parts), "removed": pruned(config, posterior, bench.parts.test)}


def convolutional(bench: Bench, method: str) -> dict[str, Any]:
    """LeNet-5 by one method."""
    config = bench.study.config
    torch.manual_seed(config.seed)
    prior = bnn.priors.Normal(config.lenet_prior)
    net, batches = lenet(config.shift), None
    if method == "MC dropout":
        net = lenet(dropout=config.dropout)
        batches = ShiftedBatches(bench.parts.train, config.batch_size, config.shift)
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
    posterior = bench.fit(f"lenet-{method.replace(' ', '-')}", net, prior, methods[method](), batches)
    return evaluated(config, posterior, bench.parts)


def row(study: Study[Config], name: str, net: str, method: str, found: dict[str, Any]) -> dict[str, Any]:
    head = {"net": net, "method": method, "parameters": found["parameters"]}
    return {**head, "chosen_on": found["validation"]["error"], **found["test"], "minutes": study.seconds[name] / 60}


@experiment(Config(), quick=QUICK, everything=ALL)
def main(study: Study[Config]) -> None:
    config = study.config
    parts = mnist(study, config.rows) if config.source == "mnist" else digits(config.seed, (config.rows, 300), size=28)
    bench, found = Bench(study, parts), {}
    for net in config.nets:
        for way in config.methods if net == "lenet" else config.laws:
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
        {
            "net": f"{net}, {way}",
            "strangers": name,
            **scores,
            **({"mutual_information": None} if way.endswith("point") else {}),
        }
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
    text = f"{config.source}, {len(parts.train.y):,} training rows, {len(parts.test.y):,} test rows."
    if config.source == "mnist" and light:
        if (study.data_dir / PUBLISHED).exists():
            tables += [accuracy_rows(study, rows), stranger_rows(study)]
        else:
            text += f" Published figures are left out: there is no {PUBLISHED} in {study.data_dir}."
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
        text,
    )


if __name__ == "__main__":
    main()
