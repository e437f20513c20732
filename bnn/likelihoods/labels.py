"""Labels: one of k classes, yes or no, ordered grades."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyro
import torch
import torch.nn.functional as F
from pyro import distributions as dist
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from bnn.distributions import cast
from bnn.likelihoods.base import Likelihood, Missing, Support, diagonal_root
from bnn.likelihoods.tails import log1mexp


class Categorical(Likelihood):
    """One of k classes: outputs ``(n, k)`` are unnormalised log-probabilities, targets ``(n,)`` integers in 0..k-1.

    Or a class for each pixel: outputs ``(n, k, h, w)``, targets ``(n, h, w)``, for any dimensions after the classes. A
    prediction's ``probs`` have the classes last.

    Args:
        smoothing: Label smoothing e, as the density that it is: ``p(y) = (1 - e) softmax(outputs)_y + e / k``, labels
            that are wrong with probability e. (Training against smoothed targets is no density of a label.)
        class_weights: One positive number a class, by which the training loss of its rows is multiplied. Training
            weights, no density: `log_prob`, MCMC, Laplace and leave-one-out know nothing of them, or refuse them.
        missing: See `Likelihood`; the label of a missing target is -100.
    """

    fields = frozenset({"probs", "entropy"})
    labels = True

    def __init__(
        self, smoothing: float = 0.0, *, class_weights: Sequence[float] | None = None, missing: Missing = None
    ):
        if not 0 <= smoothing < 1:
            raise ValueError(f"smoothing is a probability below 1, not {smoothing}")
        self.smoothing = float(smoothing)
        self.class_weights = None if class_weights is None else tuple(float(w) for w in class_weights)
        if self.class_weights is not None:
            if not all(0 < w < float("inf") for w in self.class_weights):
                raise ValueError(f"class_weights are positive numbers, one a class, not {self.class_weights}")
            self.weighs = f"class_weights={self.class_weights}"
        super().__init__(missing=missing, settings={"smoothing": self.smoothing, "class_weights": self.class_weights})

    def distribution(self, outputs: Tensor, latents: Mapping[str, Tensor]) -> TorchDistributionMixin:
        """``Categorical``: softmax over the classes, mixed with the uniform distribution under smoothing."""
        logits = outputs.movedim(1, -1)
        if self.smoothing:
            logits = _smoothed(logits, self.smoothing)
        return dist.Categorical(logits=logits).to_event(outputs.dim() - 2)

    def fisher_root(self, outputs: Tensor, latents: Mapping[str, Tensor]) -> Tensor:
        """``diag(sqrt p) - p sqrt(p)'``, whose square is ``diag(p) - p p'``; see `OutputFisher`.

        Under smoothing the columns of ``(1 - e) (diag(p) - p p')``, divided by the roots of the mixture.
        """
        probs = outputs.movedim(1, -1).flatten(1, -2) if outputs.dim() > 2 else outputs.unsqueeze(1)
        probs = probs.softmax(-1)  # (n, pixels, k)
        if self.smoothing:
            k = probs.shape[-1]
            mixed = (1 - self.smoothing) * probs + self.smoothing / k
            slopes = torch.diag_embed(probs) - probs.unsqueeze(-1) * probs.unsqueeze(-2)
            roots = (1 - self.smoothing) * slopes / mixed.sqrt().unsqueeze(-2)
        else:
            sqrt = probs.sqrt()
            roots = torch.diag_embed(sqrt) - probs.unsqueeze(-1) * sqrt.unsqueeze(-2)
        if outputs.dim() == 2:
            return roots.squeeze(1)
        n, pixels, k, _ = roots.shape
        eye = torch.eye(pixels, dtype=roots.dtype, device=roots.device)
        return torch.einsum("npcd,pq->ncpdq", roots, eye).reshape(n, k * pixels, k * pixels)

    def training_weights(self, outputs: Tensor, latents: Mapping[str, Tensor], y: Tensor) -> Tensor:
        """The weight of each row's class; see `Likelihood.training_weights`."""
        weights = outputs.new_tensor(self.class_weights)
        return weights[y.long().clamp(min=0)]  # a missing label counts nothing anyway

    def event(self, outputs: Tensor) -> tuple[int, ...]:
        """``()``, or the dimensions after the classes."""
        if outputs.dim() < 2:
            raise ValueError(
                f"a Categorical likelihood needs outputs of shape (n, k), one a class; the network gives "
                f"{tuple(outputs.shape)}"
            )
        if self.class_weights is not None and (outputs.dim() > 2 or outputs.shape[1] != len(self.class_weights)):
            raise ValueError(
                f"class_weights are {len(self.class_weights)} numbers for rows of one label each, outputs (n, "
                f"{len(self.class_weights)}); the network gives {tuple(outputs.shape)}"
            )
        return tuple(outputs.shape[2:])

    def check(self, outputs: Tensor, y: Tensor) -> None:
        """Targets are integers below the number of outputs, one a row (or one a pixel)."""
        shape = (len(outputs), *self.event(outputs))
        check_labels(y, shape, outputs, outputs.shape[1], self.absent(y), f"the network has {outputs.shape[1]} outputs")


def _smoothed(logits: Tensor, smoothing: float) -> Tensor:
    """log of ``(1 - e) p + e / k``."""
    k = logits.shape[-1]
    uniform = logits.new_tensor(smoothing / k).log()
    return torch.logaddexp(logits.log_softmax(-1) + logits.new_tensor(1 - smoothing).log(), uniform)


def check_labels(y: Tensor, shape: tuple[int, ...], outputs: Tensor, k: int, absent: Tensor, since: str) -> None:
    """Raise unless targets are integers in 0..k-1 of this shape.

    Args:
        y: Targets.
        shape: That they should have.
        outputs: For messages.
        k: The number of classes.
        absent: Which targets are missing.
        since: Why there are k.
    """
    one_hot = k > 1 and y.shape == (*shape, k)
    if y.is_floating_point() or y.is_complex():
        cure = "y.argmax(-1), if it is one-hot" if one_hot else "y.long()"
        raise TypeError(f"class labels are integers from 0; y has dtype {y.dtype}: {cure}")
    if y.shape != shape:
        words = "(n,)" if len(shape) == 1 else f"{shape}"
        raise ValueError(
            f"class labels have shape {words}; y has shape {tuple(y.shape)}, the network gives {tuple(outputs.shape)}"
            + (": y.argmax(-1), if it is one-hot" if one_hot else "")
            + (": y.squeeze(-1)" if y.shape == (*shape, 1) else "")
        )
    outside = (((y < 0) | (y >= k)) & ~absent).nonzero()
    if len(outside):
        where = tuple(outside[0].tolist())
        raise ValueError(
            f"class labels must lie in 0..{k - 1}, since {since}; "
            f"{len(outside)} rows do not, the first is row {where[0]} with label {y[where].item()}"
        )


class Bernoulli(Likelihood):
    """Yes or no: outputs are log-odds, targets 0 or 1 of the same shape ``(n,)`` or ``(n, k)`` (k labels a row).

    Args:
        missing: See `Likelihood`.
    """

    fields = frozenset({"mean", "variance", "probs", "entropy"})
    support = Support("0 or 1", lambda y: (y == 0) | (y == 1))
    filler = 1.0

    def __init__(self, *, missing: Missing = None) -> None:
        super().__init__(missing=missing)

    def distribution(self, outputs: Tensor, latents: Mapping[str, Tensor]) -> TorchDistributionMixin:
        """``Bernoulli(logits=outputs)``, per output independent."""
        return dist.Bernoulli(logits=outputs).to_event(outputs.dim() - 1)

    def fisher_root(self, outputs: Tensor, latents: Mapping[str, Tensor]) -> Tensor:
        """``sqrt(p (1 - p))``, for each output by itself; see `OutputFisher`."""
        probs = outputs.sigmoid()
        return diagonal_root(outputs, (probs * (1 - probs)).sqrt())


class Ordinal(Likelihood):
    """Ordered grades 0..K-1, by a score and K - 1 cut points: ``P(y <= j) = sigmoid(cut_j - outputs)``.

    McCullagh, JRSS B 42 (1980). The cut points are unknown. They are kept as the latent ``likelihood.levels``,
    ``(K,)``: the probabilities of the grades at a score of 0, with a Dirichlet prior. ``cut_j = logit(levels_0 + ... +
    levels_j)`` are then in order; `cut_points` works them out. (The prior is the "induced Dirichlet" of Betancourt,
    Ordinal Regression, 2019.) A constant added to scores and cut points changes nothing: leave out the last bias.

    Args:
        grades: K.
        levels: The Dirichlet's concentration, one number for all grades; 1 is uniform over their probabilities.
        missing: See `Likelihood`; the label of a missing target is -100.
    """

    fields = frozenset({"probs", "entropy"})
    labels = True

    def __init__(self, grades: int, levels: float = 1.0, *, missing: Missing = None):
        if grades < 2 or not levels > 0:
            raise ValueError(f"there are at least 2 grades, and levels is positive; not {grades} and {levels}")
        self.grades, self._prior = grades, dist.Dirichlet(torch.full((grades,), float(levels)))
        super().__init__(missing=missing, settings={"grades": grades, "levels": float(levels)})

    def latents(self, like: Tensor) -> dict[str, Tensor]:
        """The levels; see `Likelihood.latents`."""
        return {"likelihood.levels": pyro.sample("likelihood.levels", cast(self._prior, like))}

    def cut_points(self, latents: Mapping[str, Tensor]) -> Tensor:
        """``(..., K - 1)``, increasing; from ``{"likelihood.levels": (..., K)}``, such as ``posterior.draws()``."""
        levels = latents["likelihood.levels"]
        below = levels.cumsum(-1)[..., :-1]
        above = levels.flip(-1).cumsum(-1).flip(-1)[..., 1:]
        tiny = torch.finfo(levels.dtype).tiny
        return below.clamp(min=tiny).log() - above.clamp(min=tiny).log()

    def distribution(self, outputs: Tensor, latents: Mapping[str, Tensor]) -> TorchDistributionMixin:
        """``Categorical`` over the grades, per output independent."""
        return dist.Categorical(logits=self._log_probs(outputs, latents)).to_event(outputs.dim() - 1)

    def _log_probs(self, outputs: Tensor, latents: Mapping[str, Tensor]) -> Tensor:
        """log p of each grade, last: ``sigmoid(a) - sigmoid(b) = sigmoid(a) sigmoid(-b) (1 - exp(b - a))``."""
        cuts = self._cuts(outputs, latents)
        scores = outputs.unsqueeze(-1)
        below, above = F.logsigmoid(cuts - scores), F.logsigmoid(scores - cuts)
        gaps = log1mexp(cuts[..., 1:] - cuts[..., :-1])
        inner = below[..., 1:] + above[..., :-1] + gaps
        return torch.cat([below[..., :1], inner, above[..., -1:]], dim=-1)

    def _cuts(self, outputs: Tensor, latents: Mapping[str, Tensor]) -> Tensor:
        """The cut points, shaped so that they broadcast against the outputs."""
        cuts = self.cut_points(latents)
        ones = (1,) * (outputs.dim() + 1 - cuts.dim())
        return cuts.reshape(*cuts.shape[:-1], *ones, cuts.shape[-1])

    def fisher_root(self, outputs: Tensor, latents: Mapping[str, Tensor]) -> Tensor:
        """The root of ``sum_j p_j (d log p_j / d output)^2``; see `OutputFisher`."""
        passed = torch.sigmoid(outputs.unsqueeze(-1) - self._cuts(outputs, latents))  # P(y > j)
        scores = torch.cat([-passed[..., :1], 1 - passed[..., 1:] - passed[..., :-1], 1 - passed[..., -1:]], dim=-1)
        probs = self._log_probs(outputs, latents).exp()
        return diagonal_root(outputs, (probs * scores.square()).sum(-1).sqrt())

    def check(self, outputs: Tensor, y: Tensor) -> None:
        """Targets are integers below the number of grades, of the outputs' shape."""
        shape = (len(outputs), *self.event(outputs))
        check_labels(y, shape, outputs, self.grades, self.absent(y), f"there are {self.grades} grades")
