"""What every inference method is: a frozen record of the settings that change its answer."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor

from bnn.capture import Backend
from bnn.checkpoint import Saver
from bnn.data import Data
from bnn.layout import Layout
from bnn.model import BNN
from bnn.posterior import Posterior
from bnn.precision import check_precision
from bnn.random import isolated, other_seed

if TYPE_CHECKING:
    from bnn.inference.objective import Objective

Init = Literal["net", "prior"] | Posterior


@dataclass(frozen=True)
class Run:
    """What a fit is given besides its method: nothing here changes what is being computed, but for seed and data."""

    seed: int
    validation: Any = None
    weight: Any = None
    n_data: int | None = None
    compile: Backend = "auto"
    progress: bool = True
    callbacks: Sequence[Callable[..., Any]] = ()
    store: str | Path | None = None
    #: Where the fit writes how far it has come; None: nowhere.
    checkpoint: Saver | None = None


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """An inference method. Its fields are the settings that change the answer."""

    #: Whether it makes chains of draws, which `bnn.fit` can write to a file as they come.
    makes_chains: ClassVar[bool] = False

    @abstractmethod
    def fit(self, model: BNN, data: Data, run: Run) -> Posterior:
        """Infer the model's unknowns from the data."""

    def settings(self) -> dict[str, Any]:
        """The settings as JSON, the method's name among them."""
        values = {f.name: _plain(getattr(self, f.name)) for f in dataclasses.fields(self)}
        return {"method": type(self).__name__, **values}


@dataclass(frozen=True, kw_only=True)
class IterativeMethod(Method):
    """A method that starts somewhere and moves on.

    Args:
        temperature: T in ``nll + T * kl``: the target is ``p(y | w)^(1/T) p(w)``; 1 is Bayes.
        init: Where to start: ``"net"``, the network's own weights; ``"prior"``, a draw; or another `Posterior`.
    """

    temperature: float = 1.0
    init: Init = "net"

    def __post_init__(self) -> None:
        """Raise `ValueError` for a setting that makes no sense, with its name."""
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature is positive, not {self.temperature}")
        if not isinstance(self.init, Posterior) and self.init not in ("net", "prior"):
            raise ValueError(f"init is 'net', 'prior' or a Posterior, not {self.init!r}")

    def start(self, model: BNN, layout: Layout) -> Tensor:
        """The unconstrained vector to start from, ``(D,)``."""
        values = {site.name: site.value for site in layout.sites}
        if isinstance(self.init, Posterior):
            known = self.init.draws()
            missing = [name for name in values if name not in known]
            if missing:
                raise ValueError(f"the posterior to start from does not know {missing}")
            return torch.func.vmap(layout.flatten)({name: known[name] for name in values}).mean(0)
        if self.init == "prior":
            values |= model.prior_draw()
        return layout.flatten(values)


@dataclass(frozen=True, kw_only=True)
class GradientMethod(IterativeMethod):
    """A method that minimises a loss by stochastic gradients.

    The loss is per datum, so that `lr` means what it means in PyTorch.

    Args:
        epochs: Passes over the data.
        lr: Learning rate.
        batch_size: Rows a step; ``None``: all. A DataLoader keeps its own.
        optimizer: Called with the parameters and ``lr=``: ``torch.optim.Adam``,
            ``functools.partial(torch.optim.SGD, momentum=0.9)``. It sees a few flat vectors.
        schedule: Called with the optimiser and the number of steps; returns a learning-rate scheduler, which is stepped
            once an optimiser step.
        clip_norm: Largest norm of the gradient of the loss (over all parameters); ``None``: no limit.
        accumulate: Batches whose gradients are averaged into one step.
        average: The share of the steps, from the end, over which the iterates are averaged (Polyak and Juditsky 1992);
            0: the last iterate.
        patience: With ``fit(validation=...)``: stop after this many epochs without a better held-out log-density, and
            go back to the best; ``None``: run all epochs.
        input_draws: K, where the inputs are uncertain (`bnn.BNN`): the likelihood of a row is its average over K fresh
            draws of the row's inputs in every step, ``log (1/K) sum_k p(y | x_k, w)``, a lower bound that is exact as K
            grows (Burda, Grosse and Salakhutdinov 2016, arXiv:1509.00519). K = 1 would fit slopes that are too small.
    """

    epochs: int = 500
    lr: float = 1e-2
    batch_size: int | None = 128
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.Adam
    schedule: Callable[[torch.optim.Optimizer, int], torch.optim.lr_scheduler.LRScheduler] | None = None
    clip_norm: float | None = None
    accumulate: int = 1
    average: float = 0.0
    patience: int | None = None
    input_draws: int = 32

    def __post_init__(self) -> None:
        """See `IterativeMethod`."""
        super().__post_init__()
        for name in ("epochs", "accumulate", "input_draws", "batch_size", "patience"):
            value = getattr(self, name)
            optional = name in ("batch_size", "patience")
            if not (isinstance(value, int) and value >= 1) and not (value is None and optional):
                raise ValueError(f"{name} is a whole number from 1{' or None' if optional else ''}, not {value!r}")
        for name in ("lr", "clip_norm"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} is positive, not {value}")
        if not 0 <= self.average < 1:
            raise ValueError(f"average is a share of the steps, at least 0 and below 1, not {self.average}")

    @abstractmethod
    def objective(self, model: BNN, n_data: int, backend: Backend = "auto") -> Objective:
        """The loss to minimise."""

    def loss(self, model: BNN, n_data: int, *, seed: int = 0, compile: Backend = "graph") -> Objective:
        """The training loss as a module, for one's own loop: any optimiser, Lightning, DDP.

        ``loss(x, y)`` returns the loss per datum with its gradient; ``loss.posterior()`` ends the loop. Of the
        settings, `temperature` and `init` apply; epochs, learning rate and so on are the loop's.

        Args:
            model: Copied.
            n_data: N, the rows of the whole training set.
            seed: Of the starting point.
            compile: See `bnn.fit`; ``"auto"`` would have to know the number of steps, and is ``"graph"`` here.
        """
        check_precision(model.net)
        with isolated(other_seed(seed, "fit"), model.like.device):
            return self.objective(model, n_data, compile)

    def fit(self, model: BNN, data: Data, run: Run) -> Posterior:
        """Minimise the loss; see `bnn.fit`."""
        from bnn.inference.loop import optimise

        return optimise(self, self.objective, model, data, run)


def _plain(value: Any) -> Any:
    """A setting as JSON."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, Method):
        return value.settings()
    if isinstance(value, type):
        return f"{value.__module__}.{value.__qualname__}"
    return repr(value)
