"""Where an estimator's network comes from: built from the table, or one's own."""

from __future__ import annotations

import copy
from abc import ABC
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from bnn.capture import Backend
from bnn.estimators.base import Estimator
from bnn.estimators.encoding import Constant, Encoder, Encoding, Missing, Unknown
from bnn.inference import Method
from bnn.likelihoods import Likelihood
from bnn.nets import mlp, tabular
from bnn.priors import Prior


class BuiltNet(Estimator, ABC):
    """A fully connected network (`bnn.nets.mlp`, or `bnn.nets.tabular` with embeddings) of the table's size.

    Args:
        hidden: Units of each hidden layer; ``()``: a linear model.
        activation: A name, as in `bnn.nets.mlp`.
        dropout: Share of units dropped in training, for ``method="mc_dropout"``.
        prior: Of the weights, as in `bnn.BNN`; None: ``bnn.priors.Normal("fan_in", gain=1)``; of
            classifiers ``gain=2``.
        likelihood: Of the targets: of standardised ones, where it has a location and a scale, of targets in their own
            units else (counts, positive numbers, bounded ones). None: Gaussian noise with a log-normal prior of its
            scale, one a target; classes: `bnn.likelihoods.Categorical`.
        method: A name or a method, as in `bnn.fit`. ``"auto"``: for a number a row, few rows, and the default prior and
            likelihood, `bnn.NUTS` over a model that learns prior scales and noise too; else what `bnn.Auto` takes, with
            `bnn.Laplace`, which sets the noise scale by the marginal likelihood, for numbers in the place of an
            ensemble (docs/estimators.md).
        standardise: Whether columns of numbers, and targets, are brought to mean 0 and standard deviation 1 inside.
        categorical: Columns that hold categories, beside those of texts and of true and false: names or positions.
        encoding: Of categories: ``"onehot"`` or ``"embedding"``.
        unknown: New categories at prediction: ``"warn"`` and take the row as of no known category (zeros; an embedding
            that only its prior tells of), or ``"error"``.
        missing: ``"impute"`` the training median, with an indicator column where numbers were missing in training, and
            make missing categories a level of their own; or ``"error"``.
        constant: Columns with one value: ``"error"``, or ``"drop"`` them with a warning.
        epochs: Passes over the data; None: what the method says. So for the next two.
        lr: Learning rate.
        batch_size: Rows a step.
        early_stopping: Whether rows are held out, and training ends when their log-density no longer rises.
        validation_fraction: The share held out.
        patience: Epochs without a better held-out log-density until then.
        draws: Draws of a prediction, as in `bnn.Posterior.predict`; None: its default.
        dtype: ``"float64"``, or ``"float32"``, which is faster for large networks.
        device: As in `bnn.fit`.
        compile: As in `bnn.fit`.
        random_state: A seed: the same numbers give the same fit. None: a fresh one; or a ``RandomState``.
        verbose: Whether to show a progress bar.
    """

    resizable = True

    def __init__(
        self,
        hidden: Sequence[int] = (50, 50),
        activation: str = "relu",
        *,
        dropout: float = 0.0,
        prior: Prior | Mapping[str, Prior | None] | None = None,
        likelihood: Likelihood | None = None,
        method: str | Method = "auto",
        standardise: bool = True,
        categorical: Sequence[str | int] = (),
        encoding: Encoding = "onehot",
        unknown: Unknown = "warn",
        missing: Missing = "impute",
        constant: Constant = "error",
        epochs: int | None = None,
        lr: float | None = None,
        batch_size: int | None = None,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        patience: int = 20,
        draws: int | None = None,
        dtype: str = "float64",
        device: str = "auto",
        compile: Backend = "auto",
        random_state: Any = 0,
        verbose: bool = False,
    ):
        self.hidden = hidden
        self.activation = activation
        self.dropout = dropout
        self.prior = prior
        self.likelihood = likelihood
        self.method = method
        self.standardise = standardise
        self.categorical = categorical
        self.encoding = encoding
        self.unknown = unknown
        self.missing = missing
        self.constant = constant
        self.epochs = epochs
        self.lr = lr
        self.batch_size = batch_size
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.patience = patience
        self.draws = draws
        self.dtype = dtype
        self.device = device
        self.compile = compile
        self.random_state = random_state
        self.verbose = verbose

    def _network(self, encoder: Encoder, outputs: int) -> nn.Module:
        settings = {"activation": self.activation, "dropout": self.dropout}
        if encoder.embedded:
            return tabular(encoder.width, encoder.embedded, self.hidden, outputs, **settings)  # type: ignore[arg-type]
        return mlp(encoder.width, self.hidden, outputs, **settings)  # type: ignore[arg-type]


class OwnNet(Estimator, ABC):
    """A network of one's own, which is given the encoded table: ``(n, D)`` numbers.

    With ``encoding="embedding"`` and columns of categories it is called with ``numeric`` ``(n, D)`` and ``categorical``
    ``(n, c)``, whole numbers of which 0 is an unknown category. For images and sequences see `bnn.fit`, or begin the
    network with `torch.nn.Unflatten`.

    Args:
        module: A `torch.nn.Module`, which stays as it is (each fit starts from a copy of it); or a function from
            numbers of inputs and outputs, ``(D, outputs)``, to a new one.
        prior: As in `BuiltNet`, and so are all others.
    """

    resizable = False

    def __init__(
        self,
        module: nn.Module | Callable[[int, int], nn.Module],
        *,
        prior: Prior | Mapping[str, Prior | None] | None = None,
        likelihood: Likelihood | None = None,
        method: str | Method = "auto",
        standardise: bool = True,
        categorical: Sequence[str | int] = (),
        encoding: Encoding = "onehot",
        unknown: Unknown = "warn",
        missing: Missing = "impute",
        constant: Constant = "error",
        epochs: int | None = None,
        lr: float | None = None,
        batch_size: int | None = None,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        patience: int = 20,
        draws: int | None = None,
        dtype: str = "float64",
        device: str = "auto",
        compile: Backend = "auto",
        random_state: Any = 0,
        verbose: bool = False,
    ):
        self.module = module
        self.prior = prior
        self.likelihood = likelihood
        self.method = method
        self.standardise = standardise
        self.categorical = categorical
        self.encoding = encoding
        self.unknown = unknown
        self.missing = missing
        self.constant = constant
        self.epochs = epochs
        self.lr = lr
        self.batch_size = batch_size
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.patience = patience
        self.draws = draws
        self.dtype = dtype
        self.device = device
        self.compile = compile
        self.random_state = random_state
        self.verbose = verbose

    def _network(self, encoder: Encoder, outputs: int) -> nn.Module:
        net = copy.deepcopy(self.module) if isinstance(self.module, nn.Module) else self.module(encoder.width, outputs)
        if not isinstance(net, nn.Module):
            raise TypeError(f"module is a torch.nn.Module, or a function that returns one, not {type(net).__name__}")
        return net
