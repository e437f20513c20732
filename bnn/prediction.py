"""The predictive distribution: a mixture over draws, kept as the likelihood's parameters under each.

Where the outputs are Gaussian themselves (a linearised network), a component is the likelihood's average over them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor
from torch.distributions import Distribution

from bnn.distributions import base
from bnn.inputs import as_tensor
from bnn.likelihoods import GaussianAverage, Likelihood, quantiles
from bnn.random import isolated, other_seed

if TYPE_CHECKING:
    import pandas as pd
    import xarray

_BISECTIONS = 200  # at most: the bracket of a quantile is halved until it is narrow beside the quantile itself
_NARROW = 1e-12
_CHUNK = 4_000_000  # numbers at a time where a computation goes over draws, rows and levels


class Decomposition(NamedTuple):
    """A measure of uncertainty, and what it is made of."""

    #: Of the predictive distribution.
    total: Tensor
    #: From not knowing the weights; more data make it smaller.
    epistemic: Tensor
    #: From the noise in y; more data do not.
    aleatoric: Tensor


@dataclass(frozen=True)
class Spread:
    """How far the outputs of each component of a prediction spread: Gaussian around ``Prediction.outputs``."""

    #: ``(s, n, k, k)``, of each row's outputs; k = 1 for outputs ``(n,)``.
    covariance: Tensor
    #: From a number to so many joint draws of the outputs at all rows, ``(num, n)`` or ``(num, n, k)``, from torch's
    #: present random state: each from one draw of the weights.
    draw: Callable[[int], Tensor]


class Prediction:
    """p(y | x, data) at n inputs: the equal mixture of the likelihood over s draws of the unknowns.

    Every field is exact for that mixture; nothing is replaced by one Gaussian. A field that does not apply raises
    `AttributeError` and names the likelihood.

    Args:
        likelihood: The family of y.
        outputs: ``(s, n)`` or ``(s, n, k)``, the network's outputs under each draw.
        latents: The likelihood's own unknowns, ``{name: (s, *shape)}``.
        spread: Where the outputs are not points but Gaussian, with means `outputs`: everything is then averaged over
            them in closed form. For a likelihood that has one (`bnn.likelihoods.GaussianAverage`).
    """

    def __init__(
        self, likelihood: Likelihood, outputs: Tensor, latents: Mapping[str, Tensor], spread: Spread | None = None
    ):
        self.likelihood, self.outputs, self.latents, self.spread = likelihood, outputs, dict(latents), spread

    def __repr__(self) -> str:
        return f"Prediction({self.likelihood!r}, draws={self.num_draws}, rows={self.num_rows})"

    @property
    def num_draws(self) -> int:
        """S, the number of draws."""
        return self.outputs.shape[0]

    @property
    def num_rows(self) -> int:
        """N, the number of inputs."""
        return self.outputs.shape[1]

    def distribution(self, rows: slice = slice(None), draws: Any = slice(None)) -> TorchDistributionMixin:
        """The distribution of y under each draw at some rows, draws stacked as rows: batch shape ``(s * n,)``."""
        outputs = self.outputs[draws][:, rows]
        if self.spread is None:
            return self._by_row(self.likelihood.distribution, outputs, draws)
        per_row = self._latents_by_row(outputs, draws)
        assert isinstance(self.likelihood, GaussianAverage)
        return self.likelihood.averaged(
            outputs.flatten(0, 1), per_row, self.spread.covariance[draws][:, rows].flatten(0, 1)
        )

    def observation(self, rows: slice = slice(None)) -> TorchDistributionMixin:
        """As `distribution`, of what is recorded of y: see `bnn.likelihoods.Likelihood.observation`."""
        if self.spread is not None:
            fn = self.distribution(rows)
            return fn if self.likelihood.missing is None else self.likelihood.masked(fn)
        return self._by_row(self.likelihood.observation, self.outputs[:, rows], slice(None))

    def marginal(self, rows: slice = slice(None)) -> Distribution:
        """As `distribution`, of each number of y by itself: batch shape ``(s * n,)`` or ``(s * n, k)``."""
        return quantiles.marginal(self.distribution(rows))

    @property
    def event(self) -> tuple[int, ...]:
        """The shape of y at one row."""
        return tuple(self.distribution(slice(0, 1), slice(0, 1)).event_shape)

    @property
    def discrete(self) -> bool:
        """Whether y is a count or a label."""
        return quantiles.is_discrete(self.marginal(slice(0, 1)))

    def _by_row(self, family: Callable[..., Any], outputs: Tensor, draws: Any) -> TorchDistributionMixin:
        """A distribution of the likelihood under these outputs, ``(s, n, ...)``: one for each draw and row.

        Numbers of the likelihood come as ``(s * n, 1)`` beside outputs ``(s * n, k)``. One's own likelihood that takes
        columns of the outputs, ``(s * n,)``, needs them like these, and would else make a square of all rows.
        """
        flat, event = outputs.flatten(0, 1), self.likelihood.event(outputs[0])
        if self.likelihood.intervals and family == self.likelihood.distribution:
            event = event[:-1]
        for like in (outputs, outputs.flatten(2)[..., 0] if outputs.dim() > 2 else outputs):
            fn: Any = family(flat, self._latents_by_row(like, draws))
            if (*fn.batch_shape, *fn.event_shape) == (len(flat), *event):
                return fn
        raise ValueError(
            f"{self.likelihood!r} gives a distribution of shape {(*fn.batch_shape, *fn.event_shape)} for outputs "
            f"{tuple(flat.shape)}, where {(len(flat), *event)} is right: its unknowns come as one value a row here"
        )

    def _latents_by_row(self, outputs: Tensor, draws: Any) -> dict[str, Tensor]:
        s, n = outputs.shape[:2]
        per_row = {}
        for name, value in self.latents.items():
            value = value[draws]
            ones = (1,) * max(outputs.dim() - 1 - value.dim(), 0)
            value = value.reshape(s, 1, *ones, *value.shape[1:])
            per_row[name] = value.expand(s, n, *value.shape[2:]).flatten(0, 1)
        return per_row

    @cached_property
    def mean(self) -> Tensor:
        """E[y]: ``(n,)`` or ``(n, k)``, in the units of y."""
        self._needs("mean")
        return self.means.mean(0)

    @cached_property
    def means(self) -> Tensor:
        """E[y] under each draw: ``(s, n)`` or ``(s, n, k)``."""
        self._needs("mean")
        return self._over_draws(quantiles.mean(self.distribution()))

    @cached_property
    def variance(self) -> Decomposition:
        """Var[y], in squared units of y: variance over draws of the mean, plus mean over draws of the noise variance.

        The law of total variance; each part has the shape of `mean`.
        """
        self._needs("variance")
        fn = self._by_row(self.likelihood.distribution, self.outputs, slice(None))
        epistemic = self._over_draws(quantiles.mean(fn)).var(0, correction=0)
        aleatoric = self._over_draws(quantiles.variance(fn)).mean(0)
        if self.spread is not None:
            own = self.spread.covariance.diagonal(dim1=-2, dim2=-1)
            epistemic = epistemic + own.reshape(self.outputs.shape).mean(0)
        return Decomposition(epistemic + aleatoric, epistemic, aleatoric)

    @property
    def std(self) -> Tensor:
        """Standard deviation of y, noise included, in the units of y; the shape of `mean`."""
        self._needs("variance", "std")
        return self.variance.total.sqrt()

    @cached_property
    def probs(self) -> Tensor:
        """Class probabilities ``(n, k)``, the classes last; for Bernoulli, P(y = 1) in the shape of y."""
        self._needs("probs")
        return self._over_draws(base(self.distribution()).probs).mean(0)  # type: ignore[attr-defined]

    @cached_property
    def entropy(self) -> Decomposition:
        """Entropy of the predicted label, in nats; epistemic is the mutual information of label and weights.

        Houlsby et al. (2011), arXiv:1112.5745. Shape ``(n,)``; for Bernoulli the shape of y, each label by itself.
        """
        self._needs("entropy")
        aleatoric = self._over_draws(base(self.distribution()).entropy()).mean(0)
        family = type(base(self.distribution()))
        total = family(probs=self.probs).entropy()  # type: ignore[call-arg]
        return Decomposition(total, (total - aleatoric).clamp(min=0), aleatoric)

    def quantile(self, q: float | Sequence[float] | Tensor) -> Tensor:
        """Quantiles of y: the shape of `mean`, with a leading dimension if `q` has one.

        Those of the mixture itself: its distribution function is inverted by bisection, between the smallest and the
        largest quantile among the draws. Of counts, the smallest whose probability of not being exceeded is at least q.
        Where a likelihood of one's own has no distribution function, of 1,000 draws of y under each draw.
        """
        self._needs("quantile")
        levels = torch.as_tensor(q, dtype=self.outputs.dtype, device=self.outputs.device)
        if not bool(((levels > 0) & (levels < 1)).all()):
            raise ValueError(f"quantile levels lie strictly between 0 and 1, not {q}")
        return torch.stack(
            [torch.cat([self._quantile(level, rows) for rows in self._chunks()]) for level in levels.reshape(-1)]
        ).reshape(*levels.shape, self.num_rows, *self.event)

    def _quantile(self, level: Tensor, rows: slice) -> Tensor:
        fn = self.marginal(rows)
        try:
            ends = quantiles.quantile_range(fn, level)
        except NotImplementedError:
            drawn = quantiles.draws(self.distribution(rows))
            pooled = drawn.reshape(len(drawn), self.num_draws, -1, *self.event).flatten(0, 1)
            return pooled.kthvalue(max(1, math.ceil(float(level) * len(pooled))), dim=0).values
        shape = (self.num_draws, -1, *self.event)
        low, high = ends[0].reshape(shape).min(0).values, ends[1].reshape(shape).max(0).values
        if quantiles.is_discrete(fn):
            return self._count_quantile(fn, level, low - 1, high)
        narrow = max(_NARROW, 2 * torch.finfo(low.dtype).eps)
        # Around 0 nothing is narrow beside the quantile: there, beside the first bracket.
        least = torch.where((low < 0) & (high > 0), high - low, 0.0)
        for _ in range(_BISECTIONS):
            middle = low + (high - low) / 2
            # Beside the quantile, not beside the bracket: of positive targets that may span many powers of ten.
            wide = high - low > narrow * torch.maximum(middle.abs(), least)
            if not bool(wide.any()):
                break
            below = self._mean_cdf(fn, middle) < level
            low, high = torch.where(wide & below, middle, low), torch.where(wide & ~below, middle, high)
        return low + (high - low) / 2

    def _count_quantile(self, fn: Distribution, level: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """The smallest whole number of which the distribution function reaches a level: not `low`, at most `high`."""
        ends, low, high = high, low.double(), high.double()  # whole numbers that single precision does not tell apart
        middle = torch.floor((low + high) / 2)
        while bool(((low < middle) & (middle < high)).any()):
            below = self._mean_cdf(fn, middle) < level
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
            middle = torch.floor((low + high) / 2)
        return high.to(ends)

    def cdf(self, y: Any) -> Tensor:
        """P(Y <= y | x, data) of each number of y by itself, in the shape of `mean`: y broadcasts against it.

        Raises:
            NotImplementedError: A likelihood of one's own whose distribution has no distribution function.
        """
        self._needs("quantile", "cdf")
        values = as_tensor(y, "y", self.outputs).to(self.outputs.dtype).expand(self.num_rows, *self.event)
        return torch.cat([self._mean_cdf(self.marginal(rows), values[rows]) for rows in self._chunks()])

    def _mean_cdf(self, fn: Distribution, y: Tensor) -> Tensor:
        below = quantiles.cdf(fn, y.expand(self.num_draws, *y.shape).flatten(0, 1))
        return below.reshape(self.num_draws, *y.shape).mean(0)

    def _chunks(self) -> list[slice]:
        """Rows at a time, so that no step over all draws holds too many numbers."""
        step = max(1, _CHUNK // max(1, self.outputs[:, :1].numel()))
        return [slice(start, start + step) for start in range(0, self.num_rows, step)]

    def interval(self, level: float = 0.9) -> tuple[Tensor, Tensor]:
        """The equal-tailed interval that holds y with this probability: lower and upper ends, shaped as `mean`."""
        self._needs("quantile", "interval")
        if not 0 < level < 1:
            raise ValueError(f"an interval's level lies strictly between 0 and 1, not {level}")
        low, high = self.quantile([(1 - level) / 2, (1 + level) / 2])
        return low, high

    def sample(self, num: int, seed: int = 0) -> Tensor:
        """Draws of y, ``(num, n)`` or ``(num, n, k)``: each from one draw of the weights for all rows, so joint.

        With `num` up to s every draw of the weights is used at most once.
        """
        if num < 1:
            raise ValueError(f"sample draws at least once, not {num} times")
        s, device = self.num_draws, self.outputs.device
        if self.spread is not None:
            with isolated(other_seed(seed, "draws"), device):
                outputs = self.spread.draw(num)
            latents = {name: value[torch.arange(num) % s] for name, value in self.latents.items()}
            return Prediction(self.likelihood, outputs, latents).sample(num, seed)
        with isolated(other_seed(seed, "noise"), device):
            chosen = torch.cat([torch.randperm(s, device=device) for _ in range(-(-num // s))])[:num]
            drawn = self.distribution(draws=chosen).sample()
        return drawn.reshape(num, self.num_rows, *drawn.shape[1:])

    def log_prob(self, y: Any) -> Tensor:
        """log p(y | x, data) for each row, ``(n,)``, summed over outputs: the log of the mean density over draws."""
        return self.log_prob_draws(y).logsumexp(0) - math.log(self.num_draws)

    def log_prob_draws(self, y: Any) -> Tensor:
        """log p(y | x, draw) for each draw and row, ``(s, n)``: unscaled, one datum each.

        Missing targets (``missing="mask"``) count nothing: 0 for a row without any.
        """
        y = self.targets(y)
        parts = []
        for rows in self._chunks():
            part = y[rows].expand(self.num_draws, *y[rows].shape).flatten(0, 1)
            parts.append(self.observation(rows).log_prob(part).reshape(self.num_draws, -1))
        return torch.cat(parts, dim=1)

    def targets(self, y: Any) -> Tensor:
        """Targets as a tensor beside the prediction, checked.

        Raises:
            ValueError: They do not fit, in words.
            TypeError: They are no numbers.
        """
        y = self.likelihood.convert(as_tensor(y, "y", self.outputs), self.outputs.dtype)
        self.likelihood.check_numbers(y)
        self.likelihood.check(self.outputs[0], y)
        return y

    def to_dataframe(
        self,
        *,
        level: float = 0.9,
        classes: Sequence[Any] | None = None,
        targets: Sequence[str] | None = None,
        index: Any = None,
    ) -> pd.DataFrame:
        """A pandas frame with a line for each row: what the likelihood has of the following columns.

        ``mean``, ``sd`` (noise included), ``epistemic_sd``, ``aleatoric_sd``, ``lower_90`` and ``upper_90`` (the ends
        of `interval`), ``entropy``, ``mutual_information``, ``probability_CLASS`` (``probability`` of yes or no). Of
        several targets a column each, ``mean_TARGET``.

        Args:
            level: Of the interval.
            classes: Their names, in their order; by default 0, 1, ...
            targets: Their names, where there are several; by default 0, 1, ...
            index: Of the frame.
        """
        from bnn.frames import to_dataframe

        return to_dataframe(self, level=level, classes=classes, targets=targets, index=index)

    def to_xarray(
        self,
        *,
        quantiles: Sequence[float] = (0.05, 0.5, 0.95),
        draws: int = 0,
        seed: int = 0,
        classes: Sequence[Any] | None = None,
        targets: Sequence[str] | None = None,
        index: Any = None,
    ) -> xarray.Dataset:
        """An xarray Dataset with the dimensions ``row``, ``target``, ``quantile``, ``class`` and ``draw``.

        Its variables are those of `to_dataframe`, with ``quantiles`` in the place of the interval, ``probabilities``,
        and ``draws`` of y (`sample`) if any are asked for.

        Args:
            quantiles: Their levels; ``()``: none.
            draws: How many draws of y, each joint over rows.
            seed: Of these draws.
            classes: As in `to_dataframe`.
            targets: As in `to_dataframe`.
            index: Coordinates of the rows.
        """
        from bnn.frames import to_xarray

        return to_xarray(
            self, quantiles=quantiles, draws=draws, seed=seed, classes=classes, targets=targets, index=index
        )

    def _over_draws(self, value: Tensor) -> Tensor:
        return value.reshape(self.num_draws, self.num_rows, *value.shape[1:])

    def _needs(self, field: str, asked: str | None = None) -> None:
        """Raise where the likelihood lacks a field that `asked` (itself, if not given) stands on."""
        if field not in self.likelihood.fields:
            fields = self.likelihood.fields
            derived = {name for name, base in (("std", "variance"), ("interval", "quantile")) if base in fields}
            have = ", ".join(sorted(fields | derived | {"log_prob", "sample"}))
            raise AttributeError(
                f"a prediction under {type(self.likelihood).__name__} has no {asked or field}: it has {have}"
            )
