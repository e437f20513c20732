"""From settings to an estimator: priors, likelihoods and methods by their names."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Mapping
from typing import Any

from bnn.cli.errors import UserError, in_words
from bnn.cli.plan import Plan
from bnn.cli.settings import LIKELIHOODS, PRIORS, Settings


def _priors() -> Mapping[str, Callable[[float], Any]]:
    from bnn import priors

    return {
        "normal": lambda gain: priors.Normal("fan_in", gain=gain),
        "laplace": lambda gain: priors.Laplace("fan_in", gain=gain),
        "student_t": lambda gain: priors.StudentT("fan_in", gain=gain, df=4.0),
        "scale_mixture": lambda gain: priors.ScaleMixture(scale="fan_in", gain=gain),
        "spike_and_slab": lambda gain: priors.SpikeAndSlab(scale="fan_in", gain=gain),
        "horseshoe": lambda scale: priors.Horseshoe(scale=scale, scaling="fan_in"),
        "regularised_horseshoe": lambda scale: priors.RegularisedHorseshoe(scale=scale, scaling="fan_in"),
    }


def _likelihoods() -> Mapping[str, tuple[Callable[[Any], Any], Any]]:
    """How each is made from its number, and what the number is if it is not given; None: there is none."""
    from bnn import likelihoods

    return {
        "gaussian": (lambda _: None, None),  # the estimator's own: its noise has a prior for standardised targets
        "heteroscedastic": (lambda _: likelihoods.HeteroscedasticGaussian(), None),
        "student_t": (lambda df: likelihoods.StudentT(df=df), 4.0),
        "laplace": (lambda _: likelihoods.Laplace(), None),
        "mixture": (lambda components: likelihoods.MixtureDensity(int(components)), 3),
        "log_normal": (lambda _: likelihoods.LogNormal(), None),
        "gamma": (lambda _: likelihoods.Gamma(), None),
        "weibull": (lambda _: likelihoods.Weibull(), None),
        "beta": (lambda _: likelihoods.Beta(), None),
        "poisson": (lambda _: likelihoods.Poisson(), None),
        "negative_binomial": (lambda _: likelihoods.NegativeBinomial(), None),
    }


def estimator(settings: Settings, plan: Plan, *, verbose: bool) -> Any:
    """The estimator of these settings, not fitted.

    Raises:
        UserError: A name that is none, with the nearest; a setting that makes no sense.
    """
    from bnn.estimators import BayesianClassifier, BayesianRegressor

    check_device(settings.device)
    kind = BayesianClassifier if plan.classes else BayesianRegressor
    if plan.classes and settings.likelihood is not None:
        raise UserError(f"likelihood {settings.likelihood!r} is of numbers, and the target holds classes: leave it out")
    with in_words():
        return kind(
            hidden=tuple(settings.hidden),
            activation=settings.activation,
            prior=prior(settings.prior),
            likelihood=likelihood(settings.likelihood),
            method=method(settings),
            categorical=tuple(name for name, held in plan.features.items() if held == "category"),
            constant="drop",  # a rare category may be in none of the training rows; whole columns were checked before
            epochs=settings.epochs,
            lr=settings.lr,
            batch_size=settings.batch_size,
            device=settings.device,
            compile=settings.compile,  # type: ignore[arg-type] # checked by Settings
            random_state=settings.seed,
            verbose=verbose,
        )


def prior(text: str | None) -> Any:
    """``NAME`` or ``NAME:GAIN``; None: the estimator's own."""
    if text is None:
        return None
    name, value = _parted("prior", text, PRIORS)
    with in_words("prior: "):
        return _priors()[name](1.0 if value is None else value)


def likelihood(text: str | None) -> Any:
    """``NAME`` or ``NAME:NUMBER``; None: the estimator's own."""
    if text is None:
        return None
    name, value = _parted("likelihood", text, LIKELIHOODS)
    make, usual = _likelihoods()[name]
    if value is not None and usual is None:
        raise UserError(f"likelihood {name!r} takes no number, and {text!r} has one")
    with in_words("likelihood: "):
        return make(usual if value is None else value)


def _parted(what: str, text: str, known: tuple[str, ...]) -> tuple[str, float | None]:
    name, colon, number = text.partition(":")
    _known(what, name, known)
    if not colon:
        return name, None
    try:
        value = float(number)
    except ValueError:
        value = float("nan")
    if not 0 < value < float("inf"):
        raise UserError(f"{what} {text!r}: behind the colon stands a positive number")
    return name, value


def _known(what: str, name: str, known: Any) -> None:
    if name not in known:
        near = difflib.get_close_matches(name, list(known), n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UserError(f"unknown {what} {name!r}; {hint}known are {', '.join(known)}")


def method(settings: Settings) -> Any:
    """The method by its name, with its own settings.

    Raises:
        UserError: A name or a setting that is none.
    """
    from bnn.inference import METHODS, Auto, as_method

    _known("method", settings.method, METHODS)
    if not settings.set:
        return settings.method
    found = as_method(settings.method)
    if isinstance(found, Auto):
        raise UserError("--set is for the settings of a method that is named: give --method too")
    names = [
        f.name for f in dataclasses.fields(found) if isinstance(getattr(found, f.name), bool | int | float | str | None)
    ]
    for name in settings.set:
        _known(f"setting of the method {settings.method!r},", name, names)
    with in_words(f"method {settings.method}: "):
        return dataclasses.replace(found, **settings.set)


def check_device(name: str) -> None:
    """Raise `UserError` for a device that is not here."""
    import torch

    if name == "auto":
        return
    try:
        torch.zeros(1, device=torch.device(name))
    except Exception as error:
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"device {name!r} cannot be used here: {said}") from error
