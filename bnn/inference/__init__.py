"""Inference: every method behind one argument, all on the same Pyro model.

A new method is one file with a frozen dataclass (`bnn.inference.base.Method`) and one line in `METHODS`.
"""

from __future__ import annotations

import difflib
import logging
import reprlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyro
import torch

from bnn.capture import Backend
from bnn.checkpoint import Checkpoint, Saver
from bnn.data import Data
from bnn.distributed import World, world
from bnn.inference.auto import Auto
from bnn.inference.base import GradientMethod, Method, Run
from bnn.inference.dropout import MCDropout
from bnn.inference.ensemble import Ensemble
from bnn.inference.flow import Flow
from bnn.inference.gaussian import FullRank, LowRank
from bnn.inference.identity import identity_of
from bnn.inference.ivon import IVON
from bnn.inference.laplace import Laplace, log_marginal_likelihood
from bnn.inference.last_layer import LastLayer
from bnn.inference.loop import NonFiniteLossError, Progress
from bnn.inference.map import MAP
from bnn.inference.mcmc import HMC, NUTS, ChEES
from bnn.inference.mean_field import MeanField
from bnn.inference.objective import Objective
from bnn.inference.ranks import fit_on, same_model
from bnn.inference.readings import read_data
from bnn.inference.sgmcmc import SGHMC, SGLD
from bnn.inference.step_sizes import Constant, Cyclical, Polynomial, RMSProp
from bnn.inference.store import DrawStore, read_store
from bnn.inference.svgd import SVGD
from bnn.inference.swag import SWAG
from bnn.inference.variational import Variational
from bnn.inference.vbll import VBLL
from bnn.inputs import ArrayLike
from bnn.locks import held
from bnn.model import BNN
from bnn.posterior import Posterior
from bnn.precision import autocast_for_network, check_precision, network_dtype
from bnn.random import fresh_seed

_log = logging.getLogger(__name__)

#: The names that ``bnn.fit(method=...)`` takes, and what each stands for.
METHODS: dict[str, Callable[[], Method]] = {
    "map": MAP,
    "mean_field": MeanField,
    "full_rank": FullRank,
    "low_rank": LowRank,
    "flow": Flow,
    "ivon": IVON,
    "ensemble": Ensemble,
    "swag": SWAG,
    "multi_swag": lambda: Ensemble(of=SWAG()),
    "mc_dropout": MCDropout,
    "sgld": SGLD,
    "sghmc": SGHMC,
    "svgd": SVGD,
    "hmc": HMC,
    "nuts": NUTS,
    "chees": ChEES,
    "laplace": Laplace,
    "last_layer": LastLayer,
    "vbll": VBLL,
    "auto": Auto,
}

__all__ = [
    "HMC",
    "IVON",
    "MAP",
    "METHODS",
    "NUTS",
    "SGHMC",
    "SGLD",
    "SVGD",
    "SWAG",
    "VBLL",
    "Auto",
    "ChEES",
    "Constant",
    "Cyclical",
    "DrawStore",
    "Ensemble",
    "Flow",
    "FullRank",
    "GradientMethod",
    "Laplace",
    "LastLayer",
    "LowRank",
    "MCDropout",
    "MeanField",
    "Method",
    "NonFiniteLossError",
    "Objective",
    "Polynomial",
    "Progress",
    "RMSProp",
    "Variational",
    "fit",
    "log_marginal_likelihood",
    "read_store",
]


def fit(
    model: BNN,
    data: Data,
    method: str | Method = "mean_field",
    *,
    seed: int | None = 0,
    validation: Any = None,
    weight: Any = None,
    n_data: int | None = None,
    device: str | torch.device = "auto",
    compile: Backend = "auto",
    progress: bool = True,
    callbacks: Sequence[Callable[[Progress], Any]] = (),
    store: str | Path | None = None,
    checkpoint: str | Path | Checkpoint | None = None,
) -> Posterior:
    """Infer a model's unknowns from data.

    What changes the answer is a setting of the method; what does not is a keyword here. The user's network, its mode
    and its buffers, the random state, Pyro's parameter store and the default dtype are afterwards as they were.

    Args:
        model: Network, prior and likelihood.
        data: ``(x, y)`` of tensors or arrays (rows first), a torch Dataset, or a DataLoader. Floating values take the
            network's dtype; x may be a tuple (several inputs) or a dict (keyword inputs).
        method: A name in `METHODS`, or a method with settings such as ``bnn.MeanField(epochs=200, lr=1e-2)``.
        seed: Of everything random; ``None`` takes a fresh one (it is kept in ``posterior.settings``).
        validation: ``(x, y)`` held out, on which the log-density is computed each epoch; see `patience`.
        weight: ``(n,)``, sample weights: each row counts as this many.
        n_data: N, where a loader does not tell.
        device: Where to compute; ``"auto"``: where the network is.
        compile: ``"eager"`` (through Pyro at every step), ``"graph"`` (captured), ``"inductor"`` (captured and
            compiled), or ``"auto"``: graph or inductor, decided before the first step from counts.
            ``posterior.history.backend`` says what ran.
        progress: Show a progress bar.
        callbacks: Called after each epoch with a `Progress`; returning True stops the fit.
        store: For MCMC: a new file into which the draws are written as they come, and from which the posterior reads
            them, so that they need not fit in memory; see `bnn.inference.read_store`.
        checkpoint: A folder into which the fit writes how far it has come (every minute; `bnn.Checkpoint` says
            otherwise). The same call goes on from there, to the same bytes as a fit that was never interrupted, and
            gives back a finished fit at once; see docs/checkpoints.md.

    Raises:
        OSError: A state cannot be written, for a full disk, say; the last one is kept.
        ValueError: Data that do not fit the model, unknown names, parameters in half precision, in words; `checkpoint`
            holds another fit, and in what it differs.
        NonFiniteLossError: The loss became NaN or infinite.
    """
    method = as_method(method)
    if not isinstance(model, BNN):
        raise TypeError(f"model is a bnn.BNN, not {type(model).__name__}")
    check_precision(model.net)
    if device != "auto" and torch.device(device) != model.like.device:
        model = model.copy()
        model.net.to(device)
    ranks = world()
    model = same_model(ranks, method, model)
    run = Run(
        seed=ranks.gather(fresh_seed())[0] if seed is None else seed,
        validation=validation,
        weight=weight,
        n_data=n_data,
        compile=compile,
        progress=progress and ranks.rank == 0,
        callbacks=tuple(callback if ranks.rank == 0 else _says_nothing for callback in callbacks),
        store=store,
    )
    if store is not None and not method.makes_chains:
        raise ValueError(f"store= is for the draws of MCMC; {type(method).__name__} makes no chains: leave it out")
    with ExitStack() as around:
        around.enter_context(pyro.get_param_store().scope())
        around.enter_context(autocast_for_network(model.like.device))
        if model.readings is not None:
            model, data, run = read_data(model, data, run)
        if checkpoint is not None:
            if seed is None:
                raise ValueError("a fit that goes on has to draw the same numbers again: give it a seed, seed=0")
            place = checkpoint if isinstance(checkpoint, Checkpoint) else Checkpoint(checkpoint)
            run = replace(run, checkpoint=Saver(place, identity_of(method, model, data, run)))
            with ranks.together("the checkpoint"):
                around.enter_context(_kept(run.checkpoint, ranks))
        _log.info("fitting %r by %s, seed %d", model, type(method).__name__, run.seed)
        posterior = fit_on(ranks, method, model, data, run)
        if network_dtype() is not None:
            posterior.settings["autocast"] = str(network_dtype())
    history = posterior.history
    _log.info(
        "%s: %d epochs in %.1f s, run as %s", type(method).__name__, history.epochs, history.seconds, history.backend
    )
    for note in history.notes:
        _log.info("%s", note)
    return posterior


@contextmanager
def _kept(saver: Saver | None, ranks: World) -> Iterator[None]:
    """Keep a checkpoint to this fit, whose it is; rank 0 does that for all."""
    assert saver is not None
    with held(saver.folder) if ranks.rank == 0 else nullcontext():
        saver.check()
        yield


def _says_nothing(progress: Progress) -> None:
    """In the place of a callback, which rank 0 calls for all."""


def as_method(method: str | Method) -> Method:
    """A method, from its name if that is what was given.

    Raises:
        ValueError: An unknown name, with the nearest.
        TypeError: No method.
    """
    if isinstance(method, str):
        if method not in METHODS:
            near = difflib.get_close_matches(method, METHODS, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(f"unknown method {method!r}; {hint}known are {', '.join(METHODS)}")
        method = METHODS[method]()
    given: object = method
    if not isinstance(given, Method):
        said, hint = reprlib.repr(given), ""
        if isinstance(given, type):
            hint = f": call it, bnn.{given.__name__}()"
        elif isinstance(given, ArrayLike):
            said, hint = f"a {type(given).__name__}", ": x and y are one argument, bnn.fit(model, (x, y), ...)"
        raise TypeError(f"method is a name or a method of bnn.inference, not {said}{hint}")
    return given
