"""Many draws as one pass: a student network that learns what a posterior predicts.

Korattikara, Rathod, Murphy and Welling (2015), "Bayesian dark knowledge", arXiv:1506.04416; Hinton, Vinyals and Dean
(2015), arXiv:1503.02531.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bnn.inputs import Inputs, as_inputs, input_leaves, num_rows
from bnn.model import arguments
from bnn.nets import mlp
from bnn.posterior import Posterior
from bnn.prediction import Prediction
from bnn.random import isolated, other_seed

#: The scale of a student stays within these, in standard deviations of the teacher's means.
_LOWEST, _HIGHEST = 1e-4, 1e4


class Student(nn.Module):
    """A network whose outputs are read as a prediction: ``forward(*inputs)`` gives ``{name: (n, ...)}``.

    Args:
        net: Gives ``(n, k)`` log-probabilities of classes, or ``(n, 2m)`` means and log-scales of m targets.
        classes: Whether targets are classes.
        loc: ``(m,)``, added to the means.
        scale: ``(m,)``, by which means and scales are multiplied.
        event: The shape of one row's target; that of its probabilities.
    """

    loc: Tensor
    scale: Tensor

    def __init__(self, net: nn.Module, *, classes: bool, loc: Tensor, scale: Tensor, event: tuple[int, ...]):
        super().__init__()
        self.net, self.classes, self.event = net, classes, event
        self.register_buffer("loc", loc)
        self.register_buffer("scale", scale)

    def forward(self, *args: Tensor, **kwargs: Tensor) -> dict[str, Tensor]:
        """``{"probabilities": (n, k)}``, or ``{"mean": (n, ...), "sd": (n, ...)}`` in the units of y."""
        return self.read(self.net(*args, **kwargs))

    def read(self, outputs: Tensor) -> dict[str, Tensor]:
        """What the network's outputs say."""
        if self.classes:
            return {"probabilities": outputs.softmax(1)}
        mean, log_scale = outputs.chunk(2, dim=1)
        sd = self.scale * log_scale.clamp(math.log(_LOWEST), math.log(_HIGHEST)).exp()
        found = {"mean": self.loc + self.scale * mean, "sd": sd}
        return {name: value.reshape(-1, *self.event) for name, value in found.items()}


@dataclass(frozen=True)
class Distilled:
    """A student, and how near it comes to its teacher on rows that it was not trained on."""

    #: A plain module; ``torch.export.export(net, (x,))`` records it.
    net: Student
    #: Mean Kullback-Leibler divergence a row from the teacher to the student, in nats. For numbers that of Gaussians
    #: with the teacher's mean and standard deviation, summed over the targets of a row.
    kl: float
    #: Root mean square difference of the means, in standard deviations of the teacher's prediction; of probabilities as
    #: they are.
    rmse: float
    #: How many rows that was measured on.
    rows: int

    def __repr__(self) -> str:
        return f"Distilled(kl={self.kl:.3g} nats a row, rmse={self.rmse:.3g}, on {self.rows} held-out rows)"


def distil(
    posterior: Posterior,
    x: Any,
    student: nn.Module | None = None,
    *,
    draws: int | None = None,
    held_out: float = 0.2,
    epochs: int = 500,
    lr: float = 5e-3,
    batch_size: int = 128,
    seed: int = 0,
) -> Distilled:
    """Train one network to give in one pass what the posterior gives with many draws.

    The loss is the divergence of the student from the predictive mixture: for classes ``KL(p_teacher || p_student)``;
    for numbers the cross entropy of a Gaussian, ``log s + (sd^2 + (mean - m)^2) / (2 s^2)``, whose best m and s are the
    mixture's own moments. What is lost is the rest of the mixture's shape, and which part is epistemic.

    Args:
        posterior: The teacher.
        x: Inputs without targets, as many and as varied as what will come: nothing is learned elsewhere.
        student: Takes the inputs, gives ``(n, k)`` log-probabilities of k classes, or ``(n, 2m)`` means and log-scales;
            it is copied. ``None``, for inputs ``(n, d)``: a perceptron with two hidden layers of 100.
        draws: Of the teacher, as in `bnn.Posterior.predict`.
        held_out: The share of the rows on which the answer is measured.
        epochs: Passes over the others.
        lr: Learning rate of Adam, which falls to 0 along a cosine.
        batch_size: Rows a step.
        seed: Of the student's weights, the rows held out and their order.

    Raises:
        ValueError: A likelihood with neither classes nor moments, or several labels a row; too few rows; inputs for
            which a student has to be given; a student whose outputs have another shape.
    """
    inputs = as_inputs(x, posterior.model.like)
    n = num_rows(inputs)
    held = round(held_out * n)
    if not 0 < held_out < 1 or held < 1 or n - held < 1:
        raise ValueError(f"held_out={held_out} of {n} rows leaves none to train on, or none to measure on")
    teacher = _Teacher.of(posterior.predict(inputs, draws, seed))
    with isolated(other_seed(seed, "student"), posterior.model.like.device), torch.enable_grad():
        order = torch.randperm(n, device=posterior.model.like.device)
        train, test = order[held:], order[:held]
        net = copy.deepcopy(student) if student is not None else _perceptron(inputs, teacher.width)
        own = teacher.student(net.to(posterior.model.like), train)
        _check(own, inputs, teacher.width)
        _train(own, teacher, inputs, train, epochs=epochs, lr=lr, batch_size=batch_size)
    own.eval()
    with torch.no_grad():
        outputs = _run(own.net, inputs, test)
        kl, rmse = teacher.loss(own, outputs, test) - teacher.entropy(test), teacher.rmse(own, outputs, test)
    return Distilled(own.requires_grad_(requires_grad=False), max(kl.item(), 0.0), rmse.item(), held)


@dataclass(frozen=True)
class _Teacher:
    """What there is to learn: probabilities ``(n, k)``, or means and standard deviations ``(n, m)``."""

    probs: Tensor | None
    mean: Tensor | None
    sd: Tensor | None
    event: tuple[int, ...]

    @classmethod
    def of(cls, found: Prediction) -> _Teacher:
        fields = found.likelihood.fields
        if "probs" in fields:
            probs = found.probs if found.likelihood.labels else torch.stack([1 - found.probs, found.probs], dim=1)
            if probs.dim() != 2:
                raise ValueError(f"{found.likelihood!r} has several labels a row: a student learns one")
            return cls(probs, None, None, ())
        if not {"mean", "variance"} <= fields:
            raise ValueError(f"{found.likelihood!r} has neither probabilities nor moments: nothing to distil")
        return cls(
            None,
            found.mean.flatten(1) if found.event else found.mean.unsqueeze(1),
            found.std.reshape(len(found.std), -1),
            found.event,
        )

    @property
    def width(self) -> int:
        """How many outputs a student has."""
        if self.probs is not None:
            return self.probs.shape[1]
        assert self.mean is not None
        return 2 * self.mean.shape[1]

    def student(self, net: nn.Module, train: Tensor) -> Student:
        if self.mean is None or self.sd is None:
            none = torch.zeros(0)
            return Student(net, classes=True, loc=none, scale=none, event=())
        scale = (self.mean[train].var(0, correction=0) + self.sd[train].square().mean(0)).sqrt()
        return Student(net, classes=False, loc=self.mean[train].mean(0), scale=scale, event=self.event)

    def loss(self, student: Student, outputs: Tensor, rows: Tensor) -> Tensor:
        """Mean cross entropy a row, but for constants."""
        if self.probs is not None:
            return -(self.probs[rows] * outputs.log_softmax(1)).sum(1).mean()
        mean, sd = self._moments(rows)
        own = student.read(outputs)
        m, s = own["mean"].reshape(mean.shape), own["sd"].reshape(mean.shape)
        return (s.log() + 0.5 * (sd.square() + (mean - m).square()) / s.square()).sum(1).mean()

    def entropy(self, rows: Tensor) -> Tensor:
        """The least that `loss` can be."""
        if self.probs is not None:
            return torch.special.entr(self.probs[rows]).sum(1).mean()
        return (self._moments(rows)[1].log() + 0.5).sum(1).mean()

    def rmse(self, student: Student, outputs: Tensor, rows: Tensor) -> Tensor:
        """See `Distilled`."""
        own = student.read(outputs)
        if self.probs is not None:
            return (own["probabilities"] - self.probs[rows]).square().mean().sqrt()
        mean, sd = self._moments(rows)
        return ((own["mean"].reshape(mean.shape) - mean) / sd).square().mean().sqrt()

    def _moments(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        assert self.mean is not None
        assert self.sd is not None
        return self.mean[rows], self.sd[rows]


def _train(
    student: Student, teacher: _Teacher, x: Inputs, rows: Tensor, *, epochs: int, lr: float, batch_size: int
) -> None:
    optimizer = torch.optim.Adam(student.parameters(), lr=lr)
    steps = epochs * -(-len(rows) // batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    student.train()
    for _ in range(epochs):
        for batch in rows[torch.randperm(len(rows), device=rows.device)].split(batch_size):
            optimizer.zero_grad()
            teacher.loss(student, _run(student.net, x, batch), batch).backward()
            optimizer.step()
            schedule.step()


def _run(net: nn.Module, x: Inputs, rows: Tensor) -> Tensor:
    args, kwargs = arguments(_taken(x, rows))
    outputs: Tensor = net(*args, **kwargs)
    return outputs


def _taken(x: Inputs, rows: Tensor) -> Inputs:
    if isinstance(x, Tensor):
        return x[rows]
    return tuple(leaf[rows] for leaf in x) if isinstance(x, tuple) else {name: leaf[rows] for name, leaf in x.items()}


def _perceptron(x: Inputs, width: int) -> nn.Module:
    if len(input_leaves(x)) > 1 or not isinstance(x, Tensor) or x.dim() != 2 or not x.is_floating_point():
        raise ValueError(f"give a student: a network from inputs like x to ({num_rows(x)}, {width}) outputs")
    return mlp(x.shape[1], (100, 100), width, activation="tanh")


def _check(student: Student, x: Inputs, width: int) -> None:
    with torch.no_grad():
        shape = tuple(_run(student.net, x, torch.arange(min(2, num_rows(x)))).shape)
    if len(shape) != 2 or shape[1] != width:
        raise ValueError(f"the student gives outputs of shape {shape}, where (n, {width}) is right")
