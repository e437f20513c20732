"""Inputs that were read with noise, or not at all: the settings of a model, and the law of what is true.

Shapes: `n` rows, `d` features. What was read is ``x_obs ~ Normal(x, noise)``, entry by entry; the true x of a row has a
Gaussian law. Given the reading, ``x_i = c_i + L_i z_i`` with ``z_i ~ Normal(0, I)``: a *reading* is
``{"input.mean": c}``, ``(n, d)``, with ``"input.factor"``, L, ``(n, d, d)``, where it differs between rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import pyro
import torch
from pyro import distributions as dist
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor
from torch.distributions import Distribution

from bnn.distributions import base, in_words
from bnn.input_law import InputLaw, estimate
from bnn.inputs import Inputs, as_tensor
from bnn.random import isolated, other_seed

#: The site of the standard normal numbers that stand for the true inputs, ``(n, d)``.
SITE = "input.z"
MEAN, FACTOR = "input.mean", "input.factor"

Noise = float | Tensor | None
Missing = Literal["infer"] | None

#: Bytes that the factors of all rows may take.
_MEMORY = 8 * 2**30


@dataclass(frozen=True, eq=False)
class Readings:
    """How the inputs of a model were read; see `bnn.BNN`.

    Args:
        noise: Standard deviation of the reading, in the units of x: ``()``, ``(d,)`` or ``(N, d)``, not negative.
        missing: Whether NaN stands for an entry that was not read.
        prior: The law of a row, where it was given.
        law: The same once it is known, given or estimated.
    """

    noise: Tensor
    missing: bool
    prior: TorchDistributionMixin | None = None
    law: InputLaw | None = None

    def __repr__(self) -> str:
        noise = in_words(self.noise)
        if self.by_value:  # a digest, so that other numbers of this shape are told apart when a file is read
            digest = hashlib.sha256(self.noise.numpy().tobytes()).hexdigest()[:12]
            noise = f"one a value, {tuple(self.noise.shape)}, {digest}"
        parts = [f"input_noise={noise}"]
        parts += [] if self.prior is None else [f"input_prior={in_words(self.prior)}"]
        return ", ".join([*parts, *(["missing='infer'"] if self.missing else [])])

    @property
    def by_value(self) -> bool:
        """Whether every value of the training set has a noise of its own."""
        return self.noise.dim() == 2

    def read(self, x: Inputs, noise: Noise = None, rows: Tensor | None = None) -> dict[str, Tensor]:
        """The law of the true inputs given what was read; what is a reading already stays as it is.

        Args:
            x: ``(n, d)``, in the network's dtype and on its device.
            noise: Of this reading, in the place of the model's: ``()``, ``(d,)`` or ``(n, d)``.
            rows: ``(n,)``, the rows of the training set that these are, where every value has a noise of its own.

        Raises:
            ValueError: The law is not known yet; x or the noise does not fit; NaN where nothing may be missing.
        """
        if is_reading(x):
            return dict(x)  # type: ignore[arg-type]
        law = self._known()
        own = None if noise is None else checked_noise(noise, "noise")
        tensor = self.checked(x)
        variance = self.variance(tensor, own, rows)
        found = law.given(tensor, variance)
        reading = {MEAN: found.mean.to(tensor)}
        if own is not None or self._differ:
            n, d = tensor.shape
            if n * d * d * tensor.dtype.itemsize > _MEMORY:
                raise ValueError(f"{n} rows of {d} features have covariances that take {n * d * d:,} numbers: too many")
            reading[FACTOR] = found.factor.to(tensor)[found.pattern.to(tensor.device)]
        return reading

    def true_inputs(self, reading: Mapping[str, Tensor], z: Tensor) -> Tensor:
        """``c + L z``.

        Args:
            reading: Of n rows.
            z: ``(..., n, d)``.

        Returns:
            ``(..., n, d)``.
        """
        if FACTOR in reading:
            return reading[MEAN] + (reading[FACTOR] @ z.unsqueeze(-1)).squeeze(-1)
        return reading[MEAN] + z @ self._factor.to(z).T

    def sample(self, reading: Mapping[str, Tensor]) -> Tensor:
        """The part of the Pyro program that belongs to a row: sample its true inputs, ``(n, d)``."""
        mean = reading[MEAN]
        zero, one = mean.new_zeros(()), mean.new_ones(())
        fn = dist.Normal(zero.expand(mean.shape), one.expand(mean.shape))
        fn.__dict__["unexpanded"] = (zero, one)  # see bnn.distributions.expanded
        return self.true_inputs(reading, pyro.sample(SITE, fn.to_event(1)))

    def learned(self, x: Tensor) -> Readings:
        """With the law of the true inputs: the given one, else estimated from all readings x, ``(N, d)``.

        Raises:
            ValueError: x does not fit; a feature that was never read, or varies less than its noise alone would.
        """
        x = self.checked(x).cpu()
        variance = self.variance(x, None, None).expand(x.shape)
        if self.prior is not None:
            return self
        there = ~x.isnan()
        counts = there.sum(0)
        if bool((counts < 2).any()):
            j = int((counts < 2).nonzero()[0])
            raise ValueError(f"feature {j} of x was read in {int(counts[j])} rows: give input_prior=, or leave it out")
        squares = torch.where(there, variance, 0.0).sum(0) / counts
        away = torch.where(there, x - x.nansum(0) / counts, 0.0)
        seen = away.double().square().sum(0) / counts
        if bool((squares >= seen).logical_and(squares > 0).any()):
            j = int((squares >= seen).logical_and(squares > 0).nonzero()[0])
            raise ValueError(
                f"feature {j} of x has standard deviation {float(seen[j].sqrt()):.4g}, and input_noise alone would "
                f"make it {float(squares[j].sqrt()):.4g}: nothing is left of the true inputs. Give a smaller "
                "input_noise, or input_prior="
            )
        return replace(self, law=estimate(x, variance))

    def checked(self, x: Inputs) -> Tensor:
        """Inputs that can be uncertain: one floating tensor ``(n, d)``, without what may not be missing.

        Raises:
            ValueError: They are not.
        """
        if not isinstance(x, Tensor) or x.dim() != 2 or not x.is_floating_point():
            what = f"{tuple(x.shape)} of {x.dtype}" if isinstance(x, Tensor) else f"a {type(x).__name__}"
            raise ValueError(f"uncertain inputs are one tensor of floating-point numbers (n, d), not {what}")
        if self.law is not None and x.shape[1] != len(self.law.mean):
            raise ValueError(f"x has {x.shape[1]} features, but the law of the true inputs is of {len(self.law.mean)}")
        bad = ~x.isfinite() if not self.missing else x.isinf()
        if bool(bad.any()):
            where = bad.any(1).nonzero().flatten().tolist()
            hint = "" if self.missing or not bool(x.isnan().any()) else "; missing='infer' makes unknowns of NaN"
            raise ValueError(
                f"x has NaN or infinite values in {len(where)} of {len(x)} rows: "
                f"{', '.join(map(str, where[:5]))}{', ...' if len(where) > 5 else ''}{hint}"
            )
        return x

    def variance(self, x: Tensor, noise: Tensor | None, rows: Tensor | None) -> Tensor:
        """The squared noise of each value: ``(1, d)`` or ``(n, d)``."""
        scale = self.noise if noise is None else noise
        if noise is None and self.by_value and rows is not None:
            scale = scale[rows.cpu()]
        if scale.dim() == 2 and scale.shape != x.shape:
            what = "input_noise" if noise is None else "noise"
            hint = "" if noise is not None else "; for other rows than those of the fit, model.read(x, noise=...)"
            raise ValueError(f"{what} has shape {tuple(scale.shape)}, but x has {tuple(x.shape)}{hint}")
        if scale.dim() == 1 and len(scale) != x.shape[1]:
            raise ValueError(f"the noise has {len(scale)} values, but x has {x.shape[1]} features")
        return scale.square().expand(len(x) if scale.dim() == 2 else 1, x.shape[1])

    def _known(self) -> InputLaw:
        if self.law is None:
            raise ValueError(
                "the distribution of the true inputs is not known yet: bnn.fit estimates it from the training inputs. "
                "Elsewhere take model.with_inputs(x), or give input_prior="
            )
        return self.law

    @property
    def _differ(self) -> bool:
        """Whether rows differ in more than their mean: by the settings, not by the data."""
        return self.by_value or self.missing

    @cached_property
    def _factor(self) -> Tensor:
        """L where all rows share it, ``(d, d)``."""
        law = self._known()
        variance = self.variance(law.mean.unsqueeze(0), None, None)
        return law.given(law.mean.unsqueeze(0), variance).factor[0]


class InputDraws:
    """True inputs of consecutive rows under each of s draws, independent between draws and rows.

    They depend on the seed and on the place of a row, and not on how the rows come in batches.

    Args:
        readings: Of the model.
        draws: s.
        seed: Of the numbers.
    """

    #: Rows whose numbers come from one seed.
    ROWS = 256

    def __init__(self, readings: Readings, draws: int, seed: int):
        self.readings, self.draws, self.seed = readings, draws, seed
        self._place = 0
        self._block = -1
        self._z = torch.zeros(0)

    def parts(self, reading: Mapping[str, Tensor]) -> Iterator[Tensor]:
        """The next rows, some at a time: ``(s, m, d)`` each."""
        start, n = 0, len(reading[MEAN])
        while start < n:
            block, first = divmod(self._place, self.ROWS)
            size = min(n - start, self.ROWS - first)
            z = self._numbers(block, reading[MEAN])[:, first : first + size]
            yield self.readings.true_inputs({name: part[start : start + size] for name, part in reading.items()}, z)
            start, self._place = start + size, self._place + size

    def _numbers(self, block: int, like: Tensor) -> Tensor:
        if block != self._block:
            shape = (self.draws, self.ROWS, like.shape[1])
            with isolated(other_seed(self.seed, f"inputs {block}"), like.device):
                self._z = torch.randn(shape, dtype=like.dtype, device=like.device)
            self._block = block
        return self._z


def is_reading(x: object) -> bool:
    """Whether inputs are a reading already."""
    return isinstance(x, Mapping) and MEAN in x


def readings_of(noise: object, prior: object, missing: object) -> Readings | None:
    """The settings of `bnn.BNN` as one; None where nothing is uncertain.

    Raises:
        ValueError, TypeError: They make no sense.
    """
    if missing not in (None, "infer"):
        raise ValueError(f"missing is 'infer' (NaN among the inputs are unknowns) or None (an error), not {missing!r}")
    if noise is None and missing is None:
        if prior is not None:
            raise ValueError("input_prior is the law of uncertain inputs: give input_noise= or missing='infer' too")
        return None
    scale = torch.zeros((), dtype=torch.float64) if noise is None else checked_noise(noise, "input_noise")
    if noise is not None and missing is None and not bool((scale > 0).any()):
        raise ValueError("input_noise is 0 everywhere: inputs that are known exactly need none")
    return Readings(scale, missing == "infer", prior, None if prior is None else _law(prior))  # type: ignore[arg-type]


def checked_noise(noise: object, name: str) -> Tensor:
    """A standard deviation, ``()``, ``(d,)`` or ``(n, d)``, in double precision.

    Raises:
        ValueError: Another shape, or numbers that are negative or not finite.
    """
    scale = as_tensor(noise, name, torch.zeros((), dtype=torch.float64)).double()
    if scale.dim() > 2 or not bool(((scale >= 0) & scale.isfinite()).all()):
        raise ValueError(
            f"{name} is a standard deviation, not negative: one number, one a feature (d,) or one a value (N, d); it "
            f"has shape {tuple(scale.shape)}" + (f" and a value {scale.min().item():.4g}" if scale.numel() else "")
        )
    return scale


def _law(prior: object) -> InputLaw:
    """A prior that was given as a law."""
    fn = base(prior) if isinstance(prior, Distribution) else None
    if not isinstance(fn, dist.Normal | dist.MultivariateNormal) or not isinstance(prior, Distribution):
        raise TypeError(f"input_prior is a pyro.distributions.Normal or MultivariateNormal over a row, not {prior!r}")
    shape = (*prior.batch_shape, *prior.event_shape)
    if len(shape) != 1:
        raise ValueError(f"input_prior is over one row, (d,), with a value for every feature; it has shape {shape}")
    mean = fn.mean.detach().double().expand(shape).cpu()
    if isinstance(fn, dist.MultivariateNormal):
        return InputLaw(mean, fn.covariance_matrix.detach().double().cpu())
    return InputLaw(mean, fn.variance.detach().double().expand(shape).cpu().diag())
