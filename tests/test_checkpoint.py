"""A fit that was broken off goes on to the same bytes: every gradient method, every form of data, every setting."""

from __future__ import annotations

import dataclasses
import functools
import random
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from interruptions import Broken, broken_at, digest, resumed
from marks import some
from methods import TABLE
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import bnn
from bnn.inference import GradientMethod, Method, Variational, states
from bnn.priors import Normal

X = torch.linspace(-1, 1, 60).reshape(20, 3).sin()
Y = X.sum(1, keepdim=True) + 0.1 * torch.linspace(-9, 9, 20).cos().unsqueeze(1)


def mlp(*, dropout: bool = False, norm: bool = False) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        between = [*([nn.Dropout(0.2)] if dropout else []), *([nn.BatchNorm1d(4)] if norm else [])]
        return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), *between, nn.Linear(4, 1))


def model(prior: Any = None, **net: bool) -> bnn.BNN:
    return bnn.BNN(mlp(**net), prior or Normal(1.0), bnn.likelihoods.Gaussian())


def own_guide(x: Any = None, y: Any = None) -> None:
    for name, shape in {"0.weight": (4, 3), "0.bias": (4,), "2.weight": (1, 4), "2.bias": (1,)}.items():
        loc = pyro.param(f"{name}.loc", torch.full(shape, 0.1))
        pyro.sample(name, pyro.distributions.Normal(loc, 0.1).to_event(len(shape)))
    pyro.sample("likelihood.scale", pyro.distributions.LogNormal(pyro.param("noise", torch.tensor(-1.0)), 0.1))


class Rows(Dataset):  # type: ignore[type-arg]
    """A map-style Dataset that draws random numbers of its own."""

    def __len__(self) -> int:
        return len(Y)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        return X[i] + 0.01 * torch.randn(3), Y[i]


class Stream(IterableDataset):  # type: ignore[type-arg]
    """A stream that cannot tell where it is."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(zip(X, Y, strict=True))


class StatefulStream(IterableDataset):  # type: ignore[type-arg]
    """A stream that can."""

    place = 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        start, self.place = self.place, 0
        for self.place in range(start + 1, len(Y) + 1):
            yield X[self.place - 1], Y[self.place - 1]
        self.place = 0

    def state_dict(self) -> dict[str, Any]:
        return {"place": self.place}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.place = state["place"]


class StatefulLoader:
    """The protocol of torchdata's StatefulDataLoader: shuffled by a generator of its own, part of its state."""

    def __init__(self) -> None:
        self.dataset = TensorDataset(X, Y)
        self.generator = torch.Generator().manual_seed(5)
        self.order: Tensor | None = None
        self.given = 0
        self.goes_on = False

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        if not self.goes_on:
            self.order, self.given = torch.randperm(len(Y), generator=self.generator), 0
        self.goes_on = False
        return self._batches()

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        assert self.order is not None
        parts = self.order.split(8)
        for rows in parts[self.given :]:
            self.given += 1
            yield X[rows], Y[rows]

    def state_dict(self) -> dict[str, Any]:
        return {"generator": self.generator.get_state(), "order": self.order, "place": (self.given,)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.generator.set_state(state["generator"])
        self.order, (self.given,), self.goes_on = state["order"], state["place"], True


@dataclass(frozen=True)
class Case:
    """A fit."""

    method: Method
    model: Callable[[], bnn.BNN] = model
    data: Callable[[], Any] = lambda: (X, Y)
    options: Callable[[], dict[str, Any]] = dict
    #: Through Pyro, since most of what is tested here is not the captured program.
    compile: str = "eager"

    def fit(self, checkpoint: bnn.Checkpoint | None = None) -> bnn.Posterior:
        options: dict[str, Any] = {"seed": 3, "compile": self.compile, "progress": False, **self.options()}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return bnn.fit(self.model(), self.data(), self.method, checkpoint=checkpoint, **options)


def small(method: Any) -> Any:
    """The quick form of a method, in batches of 8 of the 20 rows."""
    return dataclasses.replace(method, batch_size=8) if isinstance(method, GradientMethod) else method


METHODS = {name: line for name, line in TABLE.items() if name != "auto" and not type(line.quick).makes_chains}
MAP = functools.partial(bnn.MAP, epochs=4, batch_size=8)
HELD = {"validation": (X[:6] + 0.5, Y[:6])}
SCHEDULES = torch.optim.lr_scheduler


def once(optimizer: Any, steps: int) -> Any:
    return SCHEDULES.OneCycleLR(optimizer, 0.05, total_steps=steps)


def in_turn(optimizer: Any, steps: int) -> Any:
    warm = SCHEDULES.LinearLR(optimizer, 0.1, total_iters=3)
    return SCHEDULES.SequentialLR(optimizer, [warm, SCHEDULES.MultiStepLR(optimizer, [2, 3])], [3])


def stop_after_three(progress: bnn.inference.Progress) -> bool:
    return progress.epoch == 3


CASES: dict[str, Case] = {
    **{name: Case(small(line.quick), functools.partial(model, dropout=line.dropout)) for name, line in METHODS.items()},
    "captured": Case(bnn.MeanField(epochs=4, batch_size=8), compile="graph"),
    "ivon captured": Case(bnn.IVON(epochs=4, batch_size=8), compile="graph"),
    "ensemble captured": Case(bnn.Ensemble(members=2, of=bnn.IVON(epochs=4, batch_size=8)), compile="graph"),
    "all rows": Case(bnn.MeanField(epochs=9, batch_size=None, draws=2)),
    "lbfgs": Case(MAP(lr=0.5, batch_size=None, optimizer=functools.partial(torch.optim.LBFGS, max_iter=3))),
    "momentum": Case(MAP(optimizer=functools.partial(torch.optim.SGD, momentum=0.9))),
    "rmsprop": Case(MAP(optimizer=torch.optim.RMSprop)),
    "one cycle": Case(MAP(schedule=once)),
    "schedules in turn": Case(MAP(schedule=in_turn)),
    "accumulate and clip": Case(MAP(accumulate=2, clip_norm=0.1)),
    "average": Case(MAP(average=0.6)),
    "early stopping": Case(MAP(epochs=20, lr=0.3, patience=2), options=lambda: HELD),
    "held-out rows": Case(bnn.MeanField(epochs=4, batch_size=8), options=lambda: HELD),
    "a callback stops": Case(MAP(epochs=9), options=lambda: {"callbacks": [stop_after_three]}),
    "weights": Case(MAP(), options=lambda: {"weight": torch.linspace(0.5, 1.5, 20)}),
    "dropout and batch statistics": Case(MAP(), functools.partial(model, dropout=True, norm=True)),
    "their ensemble": Case(bnn.Ensemble(members=2, of=MAP()), functools.partial(model, dropout=True, norm=True)),
    "points under ivon": Case(
        bnn.IVON(epochs=4, batch_size=8), functools.partial(model, {"0.*": None, "*": Normal(1.0)})
    ),
    "points under full rank": Case(
        bnn.FullRank(epochs=4, batch_size=8), functools.partial(model, {"0.*": None, "*": Normal(1.0)})
    ),
    "local noise": Case(bnn.MeanField(epochs=4, batch_size=8, estimator="local")),
    "flipout": Case(bnn.MeanField(epochs=4, batch_size=8, estimator="flipout")),
    "autoguide": Case(Variational(epochs=3, batch_size=8, guide=pyro.infer.autoguide.AutoDiagonalNormal)),
    "own guide": Case(Variational(epochs=3, batch_size=8, guide=own_guide)),
    "uncertain inputs": Case(
        bnn.MeanField(epochs=3, batch_size=8, local="learned"),
        lambda: bnn.BNN(mlp(), Normal(1.0), bnn.likelihoods.Gaussian(0.1), input_noise=0.1),
    ),
    "ensemble of mean field": Case(bnn.Ensemble(members=2, of=bnn.MeanField(epochs=4, batch_size=8))),
    "ensemble from the prior": Case(bnn.Ensemble(members=2, of=MAP(), start="prior")),
    "anchored": Case(
        bnn.Ensemble(members=2, of=MAP(), anchored=True),
        lambda: bnn.BNN(mlp(), Normal(1.0), bnn.likelihoods.Gaussian(0.3)),
    ),
    "laplace, tuned on the way": Case(bnn.Laplace(of=MAP(epochs=5), tune_every=2, scales="layer")),
    "dataset": Case(MAP(), data=Rows),
    "ensemble on a dataset": Case(bnn.Ensemble(members=2, of=MAP()), data=Rows),
    "plain loader": Case(MAP(), data=lambda: DataLoader(Rows(), batch_size=8, shuffle=True), compile="graph"),
    "stream with a place": Case(MAP(), data=StatefulStream, options=lambda: {"n_data": 20}),
    "loader with a place": Case(MAP(accumulate=2), data=StatefulLoader),
}


#: Besides all methods, what runs by default; the rest runs by `make test-slow`.
SHOWN = {"captured", "lbfgs", "early stopping", "dataset", "loader with a place", "stream with a place"}
SHOWN |= {"dropout and batch statistics"}
DEFAULT = {*METHODS, *SHOWN} - {"flow", "full_rank", "low_rank"}
DEFAULT_CONTROLS = {"the random state"}


@pytest.mark.parametrize("name", some(CASES, DEFAULT))
def test_it_goes_on_to_the_same_bytes(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    whole = case.fit()
    steps = len(whole.history.loss)
    breaks = sorted(random.Random(name).sample(range(1, steps + 1), min(2, steps)))
    posterior = resumed(case.fit, tmp_path, breaks)
    assert digest(posterior) == digest(whole), f"{name}, broken off at {breaks} of {steps} steps"
    with broken_at(steps):  # it has ended: there is no step left
        assert digest(case.fit(bnn.Checkpoint(tmp_path))) == digest(whole)


def test_the_table_of_methods_is_covered() -> None:
    assert set(TABLE) - {"auto", "sgld", "sghmc", "hmc", "nuts", "chees"} <= set(CASES)


def test_a_state_changes_nothing(tmp_path: Path) -> None:
    case = CASES["captured"]
    often = case.fit(bnn.Checkpoint(tmp_path, steps=1))
    assert digest(often) == digest(case.fit())


def test_every_step_can_be_the_last(tmp_path: Path) -> None:
    case = CASES["ivon"]
    whole = digest(case.fit())
    for step in range(1, 7):
        assert digest(resumed(case.fit, tmp_path / str(step), [step], every=1)) == whole, step


def test_a_loader_without_a_place_goes_on_from_the_start_of_an_epoch(tmp_path: Path) -> None:
    method, place = MAP(), bnn.Checkpoint(tmp_path, steps=1)

    def fit(checkpoint: bnn.Checkpoint | None = None) -> bnn.Posterior:
        return bnn.fit(model(), Stream(), method, n_data=20, compile="eager", progress=False, checkpoint=checkpoint)

    whole = fit()
    with broken_at(6), pytest.raises(Broken):
        fit(place)
    with pytest.warns(UserWarning, match="does not tell where in an epoch it is: .* start of epoch 2") as told:
        posterior = fit(place)
    assert len(told) == 1
    assert "went on from step 3" in posterior.history.notes
    assert digest(posterior) == digest(whole)  # the order of this one does not change


def test_ctrl_c_keeps_the_posterior_so_far_and_the_next_call_goes_on(tmp_path: Path) -> None:
    case, place = CASES["mean_field"], bnn.Checkpoint(tmp_path, steps=1)
    with broken_at(5, KeyboardInterrupt):
        stopped = case.fit(place)
    assert stopped.history.interrupted
    assert len(stopped.history.loss) == 4
    assert stopped.history.notes[-1] == "interrupted after step 4; the next call goes on from step 4"
    posterior = case.fit(place)
    assert not posterior.history.interrupted
    assert "went on from step 4" in posterior.history.notes
    assert digest(posterior) == digest(case.fit())


def test_the_record_counts_all_calls(tmp_path: Path) -> None:
    case = CASES["laplace"]
    posterior = resumed(case.fit, tmp_path, [3, 5], every=1)
    assert posterior.history.notes == ["went on from step 2", "went on from step 4"]
    again = case.fit(bnn.Checkpoint(tmp_path))
    assert again.history.notes[-1] == "found finished, after step 6"


def test_the_seconds_of_all_calls_are_counted(tmp_path: Path) -> None:
    """Two epochs with a pause after each, one in the call that is broken off."""
    case = dataclasses.replace(CASES["mean_field"], options=lambda: {"callbacks": [lambda _: time.sleep(0.5)]})
    resumed(case.fit, tmp_path, [5], every=1)
    assert case.fit(bnn.Checkpoint(tmp_path)).history.seconds > 1


def test_auto_goes_on_with_what_it_chose(tmp_path: Path) -> None:
    case = Case(bnn.Auto(), functools.partial(model, dropout=True), options=lambda: {"callbacks": [stop_after_three]})
    whole = case.fit()
    posterior = resumed(case.fit, tmp_path, [2], every=1)
    assert posterior.settings["auto"].startswith("Ensemble")
    assert digest(posterior) == digest(whole)


def test_where_arrays_lie_does_not_matter() -> None:
    """The last bit of a product of matrices goes by that, and numpy's lie elsewhere in every process."""
    from bnn.data import as_source

    unaligned = torch.zeros(61)[1:].view(20, 3)
    assert unaligned.data_ptr() % 64
    for batch_size in (None, 8):
        source = as_source((unaligned, Y), bnn.likelihoods.Gaussian(), Y, batch_size)
        assert not any(leaf.data_ptr() % 64 for batch in source.batches() for leaf in batch.leaves)


@pytest.mark.slow
def test_compiled(tmp_path: Path) -> None:
    case = dataclasses.replace(CASES["captured"], compile="inductor")
    assert digest(resumed(case.fit, tmp_path, [5])) == digest(case.fit())


#: What is left out: the fit that shows it, the function that does it, and the piece of its source.
CONTROLS = {
    "the random state": ("captured", "put_back", 'set_generator_state(kept["random"], self._device)', "pass"),
    "the optimiser": ("captured", "put_back", 'restore(training.optimizer, kept["optimizer"])', "pass"),
    "the schedule": ("one cycle", "put_back", 'training.scheduler.load_state_dict(kept["schedule"])', "pass"),
    "the average": ("average", "put_back", 'steps = kept["average"]', "steps = (None, 0)"),
    "the best so far": ("early stopping", "put_back", 'kept["best"] is not None', "False"),
    "the noise": ("ivon", "remember", 'objective.given_tensors |= kept["given"]', "pass"),
    "whose turn the mirror image is": ("ivon", "remember", 'kept["remembered"]', "objective.remembered"),
    "the iterates": ("swag", "remember", 'kept["gathered"]', "{}"),
    "batch statistics": ("dropout and batch statistics", "remember", 'objective.state |= kept["buffers"]', "pass"),
    "batches to skip": ("captured", "batches", "range(at.batches)", "range(at.batches - 1)"),
    "the order": ("captured", "batches", "set_generator_state(at.order, self._device)", "pass"),
    "the loader": ("loader with a place", "batches", "source.rest(self._loader)", "source.batches()"),
}
OWNERS = {
    "put_back": (states.States, "_put_back"),
    "remember": (states, "_remember"),
    "batches": (states.States, "batches"),
}


@pytest.mark.parametrize("name", some(CONTROLS, DEFAULT_CONTROLS))
def test_control(name: str, tmp_path: Path, patch_line: Callable[..., None]) -> None:
    """What is not put back is seen."""
    shown_by, function, old, new = CONTROLS[name]
    case = CASES[shown_by]
    whole = case.fit()
    steps = len(whole.history.loss)
    patch_line(*OWNERS[function], old, new)
    step = 2 * (steps // 3)
    assert digest(resumed(case.fit, tmp_path, [step + step % 2], every=1)) != digest(whole)
