"""Which method an estimator runs: what `bnn.fit` takes, with the training settings that were given beside it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from bnn.estimators.sampled import SAMPLER, WORK, is_of_classes
from bnn.forward import depends_on_mode
from bnn.inference import MAP, NUTS, Auto, Laplace, MeanField, Method, as_method
from bnn.inference.auto import choose
from bnn.inference.base import Run
from bnn.likelihoods import Gaussian
from bnn.model import BNN

#: Optimiser steps that training is given under "auto": standardised tables need fewer than `bnn.Auto` gives any net.
#: More for many rows: at least so many epochs.
_STEPS, _EPOCHS, _BATCH = 1500, 50, 128


@dataclasses.dataclass(frozen=True)
class Chosen:
    """A method, and why it was chosen where ``method="auto"`` chose it."""

    method: Method
    why: str | None = None
    #: Whether it is for the model of `bnn.estimators.sampled`, in the place of the one that was given.
    sampled: bool = False


def chosen(
    method: str | Method,
    model: BNN,
    rows: int,
    run: Run,
    training: Mapping[str, Any],
    *,
    own: bool,
    stream: bool,
    resizable: bool = False,
) -> Chosen:
    """The method to fit by.

    ``"auto"`` is, in this order: `bnn.NUTS` over the model of `bnn.estimators.sampled`, where that can be made and
    unknowns times rows are at most `WORK`; `bnn.NUTS` where `bnn.Auto` takes it; `bnn.Laplace`, which sets the noise
    scale by the marginal likelihood, where there is one to set, prior and likelihood are the estimator's own and every
    layer is linear (a joint mode of weights and noise scale takes part of the noise for signal); what `bnn.Auto` takes.
    Under `stream` it is `bnn.MeanField`, whose posterior can be a prior of many weights.

    Args:
        method: As in `bnn.fit`.
        model: What is fitted.
        rows: Of training.
        run: As in `bnn.fit`: weights and held-out rows bear on the choice.
        training: Settings of gradient training (epochs, lr, ...) that were given; under ``"auto"`` they ask for it.
        own: Whether prior and likelihood are the estimator's defaults.
        stream: Whether the posterior is to be the prior of further rows.
        resizable: Whether the network can be made anew, with two outputs in the place of one.

    Raises:
        ValueError: An unknown name; training settings for a method that does not train.
        TypeError: No method.
    """
    method = as_method(method)
    if isinstance(method, Auto):
        few = _few(model, rows, run, training) if own and resizable and not stream else None
        if few is not None:
            return Chosen(SAMPLER, few, sampled=True)
        found = _auto(model, rows, run, training, own=own, stream=stream)
        return Chosen(trained(found.method, training), found.why)
    return Chosen(trained(method, training))


def _few(model: BNN, rows: int, run: Run, training: Mapping[str, Any]) -> str | None:
    """Why the model of `bnn.estimators.sampled` can be sampled, in words; None where it cannot."""
    gaussian = isinstance(model.likelihood, Gaussian) and not model.likelihood.event(torch.zeros(2))
    one = gaussian and model.output is not None  # one output, of one target
    if not (one or is_of_classes(model)) or training:
        return None
    if run.weight is not None or run.validation is not None or depends_on_mode(model.net):
        return None
    unknowns = sum(site.value.numel() for site in model.sites().latents)
    if unknowns * rows > WORK:
        return None
    learned = "noise by the network, prior scales learned" if one else "prior scales learned"
    return f"{unknowns} unknowns times {rows} rows are few; {learned}"


def _auto(model: BNN, rows: int, run: Run, training: Mapping[str, Any], *, own: bool, stream: bool) -> Chosen:
    epochs = enough_epochs(rows)
    if stream:
        return Chosen(MeanField(epochs=epochs), "the posterior is to be the prior of the next rows")
    found, why = choose(model, rows, run)
    if training and isinstance(found, NUTS):
        # A callback goes with training, so that what trains is chosen.
        found, why = choose(model, rows, dataclasses.replace(run, callbacks=(lambda _: None,)))
        why = f"{', '.join(training)} asked for training"
    plain = run.weight is None and run.validation is None and not depends_on_mode(model.net)
    noise = any(site.name.startswith("likelihood.") for site in model.sites().latents)
    if own and noise and plain and not isinstance(found, NUTS) and _linear_layers(model.net):
        return Chosen(Laplace(of=MAP(epochs=epochs)), f"{why}; its noise scale is set by the marginal likelihood")
    return Chosen(found if isinstance(found, NUTS) else trained(found, {"epochs": epochs}), why)


def enough_epochs(rows: int) -> int:
    """Epochs that training is given under "auto"."""
    return max(_EPOCHS, -(-_STEPS * min(_BATCH, rows) // rows))


def _linear_layers(net: nn.Module) -> bool:
    """Whether all parameters belong to linear layers, whose curvature has Kronecker factors."""
    holders = [module for module in net.modules() if any(True for _ in module.parameters(recurse=False))]
    return all(isinstance(module, nn.Linear) for module in holders)


def trained(method: Method, training: Mapping[str, Any]) -> Method:
    """The method with these training settings, or with them in the method that it is made of.

    Raises:
        ValueError: It has none of them.
    """
    if not training:
        return method
    fields = {field.name for field in dataclasses.fields(method)}
    if set(training) <= fields:
        return dataclasses.replace(method, **training)
    inner = getattr(method, "of", None)
    if isinstance(inner, Method):
        return dataclasses.replace(method, **{"of": trained(inner, training)})
    unknown = sorted(set(training) - fields)
    raise ValueError(
        f"{', '.join(unknown)}: {type(method).__name__} has no such setting (its own are {', '.join(sorted(fields))}); "
        "give the settings with the method, as in method=bnn.MAP(epochs=200)"
    )
