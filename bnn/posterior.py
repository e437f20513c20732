"""The posterior: draws of every unknown, whatever method they came from, and what is done with them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import pyro
import torch
from torch import Tensor, nn

from bnn.approximations import Approximation, LocalGaussian, Values
from bnn.forward import forward_over_draws
from bnn.history import History
from bnn.inputs import Inputs, check_finite, input_batches, named_leaves, num_rows, row_shapes
from bnn.likelihoods import GaussianAverage
from bnn.linearised import Linearised
from bnn.model import BNN
from bnn.precision import autocast_for_network
from bnn.prediction import Prediction, Spread
from bnn.priors import Prior
from bnn.random import isolated, other_seed
from bnn.readings import InputDraws, is_reading

if TYPE_CHECKING:
    import xarray

#: Draws taken of a continuous posterior where nothing else is said.
DEFAULT_DRAWS = 200


class Evidence(NamedTuple):
    """An estimate of ``log p(y)``, in nats for the whole training set."""

    #: ``"elbo"``, a lower bound; ``"laplace"``, Laplace's approximation (exact for linear-Gaussian models).
    kind: str
    value: float
    #: Monte Carlo standard error; 0 where there is none.
    se: float


class Posterior:
    """What is known of a model's unknowns after seeing the data. It owns copies of all that it needs.

    Args:
        model: Copied.
        approximation: The distribution over the latents.
        points: ``{site: value}`` of the parameters that were learned without a prior.
        state: Buffers and frozen parameters of the network, as they were at the end of the fit.
        history: The course of the fit.
        settings: What produced it, for the record: method, seed, versions. JSON.
        input_shapes: The shapes of one row of each input seen in the fit, to explain a wrong input in words.
    """

    def __init__(
        self,
        model: BNN,
        approximation: Approximation,
        *,
        points: Mapping[str, Tensor],
        state: Mapping[str, Tensor],
        history: History | None = None,
        settings: Mapping[str, Any] | None = None,
        input_shapes: list[tuple[int, ...]] | None = None,
    ):
        self.model = model.copy()
        approximation.put_in(self.model.net)
        self.model.net.eval()  # no dropout and no batch statistics in predictions, whatever mode the net was left in
        self.approximation = approximation
        self.points = {name: value.detach().clone() for name, value in points.items()}
        self.state = {name: value.detach().clone() for name, value in state.items()}
        self.history = history or History()
        self.settings = dict(settings or {})
        self.input_shapes = input_shapes
        self._names = [name for name, p in self.model.net.named_parameters() if p.requires_grad]
        # Where each draw is a net of its own (an ensemble), it holds its own learned points and buffers too.
        self.tensor_names = [*self._names, *self.model.state()]

    def __repr__(self) -> str:
        shape = self.approximation.shape
        size = "continuous" if shape is None else f"{shape[0]} chains x {shape[1]} draws"
        return (
            f"Posterior({self.settings.get('method', self.approximation.kind)}, {size}, {len(self._names)} parameters)"
        )

    @cached_property
    def _likelihood_sites(self) -> list[str]:
        return [site.name for site in self.model.sites().latents if site.name.startswith("likelihood.")]

    @property
    def num_draws(self) -> int | None:
        """How many draws there are, over all chains; None where any number can be drawn."""
        shape = self.approximation.shape
        return None if shape is None else shape[0] * shape[1]

    def draws(self, num: int | None = None, seed: int = 0) -> Values:
        """Draws of every site, weights and likelihood parameters alike: ``{name: (num, *shape)}``.

        Args:
            num: How many; ``None``: all of a finite posterior, 200 of a continuous one.
            seed: Of a continuous posterior's draws, of which draw i does not depend on `num`. A finite one has no use
                for it: it gives `num` of its draws, evenly spaced over all chains.

        Raises:
            ValueError: More draws than a finite posterior has. They are not drawn twice.
        """
        have = self.num_draws
        num = num if num is not None else (have if have is not None else DEFAULT_DRAWS)
        if num < 1:
            raise ValueError(f"the number of draws is at least 1, not {num}")
        if have is not None and num > have:
            raise ValueError(f"this posterior has {have} draws; {num} cannot be taken without repeating some")
        device = self.model.like.device
        with (
            torch.no_grad(),
            isolated(other_seed(seed, "draws"), device),
            pyro.validation_enabled(False),
            autocast_for_network(device),
        ):
            values = self.approximation.sample(num)
            derived = [name for name in self._names if name not in values and name not in self.points]
            if not derived:
                return values
            weights = torch.func.vmap(lambda drawn: self.model.weights(drawn, {**self.points, **drawn}))(values)
        return {**values, **{name: weights[name] for name in derived}}

    def net(self, i: int, seed: int = 0) -> nn.Module:
        """Draw i as a plain module, in evaluation mode; of a continuous posterior, draw i of ``draws(..., seed)``."""
        have = self.num_draws
        if i < 0 or (have is not None and i >= have):
            raise IndexError(f"there is no draw {i}: this posterior has {have or 'draws 0, 1, ...'}")
        drawn = {name: value[i] for name, value in self.draws(have or i + 1, seed).items()}
        net = copy.deepcopy(self.model.net)
        values = {**drawn, **self.points, **self.state}
        with torch.no_grad():
            for name, tensor in [*net.named_parameters(), *net.named_buffers()]:
                if name in values:
                    tensor.copy_(values[name])
        return net

    def predict(
        self, x: Any, draws: int | Mapping[str, Tensor] | None = None, seed: int = 0, at_once: int | None = None
    ) -> Prediction:
        """The predictive distribution at x.

        Args:
            x: Inputs as in the fit: tensors or arrays, rows first; a Dataset or a loader, which is read batch by batch
                (targets that it gives are left out). Where inputs are uncertain: what was read, with the model's own
                `input_noise`, or ``posterior.model.read(x, noise=...)``.
            draws: How many, as in `draws`; or draws that were taken before. ``None``, where the network is linearised
                and the likelihood's average over Gaussian outputs is known: that average itself, without draws. Where
                inputs are uncertain, each draw of the weights has inputs of its own; of a posterior of fewer than 200
                draws ``None`` takes each several times, with other inputs.
            seed: Of the draws.
            at_once: Draws a call of the network; results do not depend on it.

        Raises:
            ValueError: Inputs that the network cannot take, or NaN and infinite values in them (with the rows); draws
                that lack a site, or of different numbers.
        """
        if at_once is not None and at_once < 1:
            raise ValueError(f"at_once is at least 1, not {at_once}")
        if draws is None and self.linear is not None and isinstance(self.model.likelihood, GaussianAverage):
            return self._predict_exactly(self.linear, x)
        values = self._checked(draws) if isinstance(draws, Mapping) else self.draws(draws, seed)
        num = len(next(iter(values.values()))) if values else 1
        readings = self.model.readings
        if readings is not None and draws is None:
            times = -(-DEFAULT_DRAWS // num)
            values, num = {name: value.repeat_interleave(times, 0) for name, value in values.items()}, num * times
        weights = {name: values[name] for name in self.tensor_names if name in values}
        own = None if readings is None else InputDraws(readings, num, seed)

        def run(inputs: Inputs) -> Tensor:
            if own is None:
                return forward_over_draws(self.model, weights, self.shared, inputs, num, at_once)
            assert isinstance(inputs, Mapping)
            parts = [
                forward_over_draws(self.model, weights, self.shared, part, num, at_once, own_inputs=True)
                for part in own.parts(inputs)
            ]
            return torch.cat(parts, dim=1)

        outputs = self._over(x, run if self.linear is None else self.linear.over_draws(values))
        return Prediction(self.model.likelihood, outputs, self.likelihood_latents(values, num))

    def _predict_exactly(self, linear: Linearised, x: Any) -> Prediction:
        """The Gaussian average over all weights: a single component."""
        covariances = []

        def moments(inputs: Inputs) -> Tensor:
            mean, covariance = linear.moments(inputs)
            covariances.append(covariance)
            return mean.unsqueeze(0)

        outputs = self._over(x, moments)
        spread = Spread(
            torch.cat(covariances).unsqueeze(0),
            lambda num: self._over(x, linear.over_draws(self.approximation.sample(num))),
        )
        return Prediction(self.model.likelihood, outputs, self.likelihood_latents(self.draws(1), 1), spread)

    @cached_property
    def linear(self) -> Linearised | None:
        """The network linearised, where the posterior was made for that."""
        local = self.approximation
        if not (isinstance(local, LocalGaussian) and local.linear):
            return None
        return Linearised(self.model, local, self.shared)

    @property
    def shared(self) -> Values:
        """What all draws have in common."""
        return {**self.state, **{name: v for name, v in self.points.items() if name in self._names}}

    def _over(self, x: Any, forward: Callable[[Inputs], Tensor]) -> Tensor:
        """What `forward` gives for inputs of any accepted form: ``(s, n)`` or ``(s, n, k)``."""
        known = self.model.readings is None
        count = (None if self.input_shapes is None else len(self.input_shapes)) if known else 1
        # A DataLoader takes a number from torch's random state whenever it is iterated over.
        device = self.model.like.device
        with pyro.validation_enabled(False), isolated(device=device), autocast_for_network(device):
            parts = [self._outputs(forward, inputs) for inputs in input_batches(x, self.model.like, count)]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def _outputs(self, forward: Callable[[Inputs], Tensor], x: Inputs) -> Tensor:
        readings = self.model.readings
        if readings is not None:
            if readings.by_value and not is_reading(x):
                raise ValueError(
                    "input_noise is one a value of the training set, and says nothing of these rows: predict at "
                    "posterior.model.read(x, noise=...)"
                )
            x = self.model.read(x)
        for name, leaf in named_leaves(x):
            check_finite(leaf, name)
        got = row_shapes(x)
        known = got if self.input_shapes is None or readings is not None else self.input_shapes
        other = f"a row of x has shape {_shapes(got)}, but the model was fitted on {_shapes(known)}"
        if isinstance(x, Tensor) and [tuple(x.shape)] == known:
            other += ": one row alone is x[None]"
        if [len(shape) for shape in got] != [len(shape) for shape in known]:
            raise ValueError(other)
        try:
            outputs = forward(x)
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            if got == known:
                raise
            raise ValueError(other) from error
        if outputs.dim() < 2 or outputs.shape[1] != num_rows(x):
            raise ValueError(
                f"the network gives outputs of shape {tuple(outputs.shape[1:])} for {num_rows(x)} rows of x"
            )
        return outputs

    def _checked(self, draws: Mapping[str, Tensor]) -> Values:
        """Draws that a caller has brought."""
        needed = [*self._names, *self._likelihood_sites]
        missing = [name for name in needed if name not in draws and name not in self.points]
        if missing:
            raise ValueError(f"these draws lack {missing}")
        sizes = {name: len(value) for name, value in draws.items()}
        if len(set(sizes.values())) > 1:
            raise ValueError(f"these draws differ in number: {sizes}")
        return dict(draws)

    def likelihood_latents(self, values: Mapping[str, Tensor], num: int) -> Values:
        """The likelihood's unknowns under each draw, fixed and learned ones repeated."""
        like = self.model.like
        own = {name: v for name, v in values.items() if name.startswith("likelihood.")}
        first = {name: v[0] for name, v in own.items()}
        points = {name: value for name, value in self.points.items() if name not in self._names}
        program = pyro.poutine.substitute(self.model.likelihood.latents, data={**points, **first})
        with torch.no_grad(), isolated(0, like.device), pyro.validation_enabled(False):
            fixed = pyro.poutine.condition(program, data=first)(like)
        return {name: own[name] if name in own else v.detach().expand(num, *v.shape) for name, v in fixed.items()}

    def to_arviz(self, x: Any = None, y: Any = None, **options: Any) -> xarray.DataTree:
        """The posterior in ArviZ's schema; see `bnn.analysis.to_arviz`."""
        from bnn.analysis import to_arviz

        return to_arviz(self, x, y, **options)

    @property
    def evidence(self) -> Evidence | None:
        """How probable the training data are under the model, comparable between models of the same data.

        None where the method has no estimate of it (points, ensembles, MCMC: `bnn.analysis.loo` compares those), under
        a temperature or sample weights, and where a network has dropout or batch statistics.
        """
        found = self.settings.get("evidence")
        return None if found is None else Evidence(found["kind"], found["value"], found.get("se", 0.0))

    def as_prior(self, covariance: Literal["auto", "full", "diag"] = "auto") -> Mapping[str, Prior] | Prior:
        """This posterior of the weights as the prior of the next data: ``bnn.BNN(net, posterior.as_prior(), ...)``.

        A Gaussian posterior is taken as it is, any other through the mean and covariance of its draws. What was learned
        of the likelihood's own unknowns (a noise scale) is not part of it. See `bnn.continual`.

        Args:
            covariance: ``"full"``: between all weights; ``"diag"``: standard deviations alone; ``"auto"``: what the
                posterior has, and what its draws can tell.

        Raises:
            ValueError: Weights without spread: points, single draws, what a last-layer method holds fixed.
        """
        from bnn.continual import as_prior

        return as_prior(self, covariance)

    def export(
        self,
        path: str | Path,
        example_inputs: Any = None,
        *,
        quantiles: Sequence[float] = (0.05, 0.5, 0.95),
        draws: int | None = None,
        seed: int = 0,
        format: Literal["pt2", "onnx"] | None = None,
    ) -> Path:
        """Write one file that takes inputs and gives predictions, without Pyro and without bnn; see docs/export.md.

        Args:
            path: ``model.pt2``, for ``torch.export.load``, or ``model.onnx``.
            example_inputs: A few rows of x; needed where the network takes several inputs, or whole numbers.
            quantiles: Levels of the predictive quantiles in the file; ``()``: none.
            draws: How many, as in `predict`; they are stored in the file.
            seed: Of the draws.
            format: ``"pt2"`` or ``"onnx"``, where the name of the file does not say.

        Returns:
            The path. The file gives ``{name: (n, ...)}``: mean, sd, epistemic_sd, aleatoric_sd, quantiles (levels
            last); probabilities (classes last), entropy, mutual_information; what the likelihood has of them.

        Raises:
            ValueError: What cannot be exported, and why: uncertain inputs; a network whose forward pass branches on
                values or fixes the number of rows; quantiles whose distribution function torch does not have.
        """
        from bnn.export import export_posterior

        return export_posterior(self, path, example_inputs, quantiles=quantiles, draws=draws, seed=seed, format=format)

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write a folder of tensors and JSON (nothing executable); see `bnn.files.save`."""
        from bnn.files import save

        return save(self, path, overwrite=overwrite)


def _shapes(shapes: list[tuple[int, ...]]) -> str:
    return str(shapes[0]) if len(shapes) == 1 else str(shapes)
