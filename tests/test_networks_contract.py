"""Every kind of network fits under four kinds of method, captured, and is saved, loaded and predicts the same.

Warnings are errors here (pyproject.toml), a `CaptureWarning` among them; the backend is asserted all the same.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from marks import some
from networks import KINDS, Kind, make_kind
from torch import Tensor, nn

import bnn
from bnn.files import posterior as files
from bnn.inputs import Inputs
from bnn.model import arguments
from bnn.posterior import Posterior

#: Rows, all in one batch: one program a fit.
ROWS = 10
STEPS = bnn.MAP(epochs=4, batch_size=None)
METHODS = {
    "map": STEPS,
    "mean field": bnn.MeanField(epochs=2, batch_size=None),
    "last layer": bnn.Laplace(of=STEPS, weights="last_layer"),
    "ensemble": bnn.Ensemble(members=2, of=STEPS),
}
#: Kinds that are under every method every day, one for each way in which networks differ; MAP is for all.
WITH_ALL = {"mlp", "conv, batch norm", "rnn", "multi-head attention", "tied embedding"}
WITH_ALL |= {"named inputs", "returns a dict"}
#: Kinds without a last layer of their own, and what is said of them.
NO_LAST_LAYER = {"tied embedding": "shared weights count where they stand first: {'out.weight': 'embedding.weight'}"}


def model_of(kind: Kind, net: nn.Module | None = None) -> bnn.BNN:
    likelihood = bnn.likelihoods.Gaussian()
    return bnn.BNN(net or kind.build(), bnn.priors.Normal(1.0), likelihood, output=kind.output)


def fitted(name: str, method: str, **options: str) -> tuple[bnn.Posterior, Inputs, Tensor]:
    net, x, y = make_kind(KINDS[name], ROWS)
    options = {"compile": "graph", **options}
    posterior = bnn.fit(model_of(KINDS[name], net), (x, y), METHODS[method], progress=False, **options)
    return posterior, x, y


def outputs_of(net: nn.Module, kind: Kind, x: Inputs) -> Tensor:
    """What a plain module gives."""
    args, kwargs = arguments(x)
    with torch.no_grad():
        found = net(*args, **kwargs)
    return found if kind.output is None else found[kind.output]


def check_predictions(posterior: bnn.Posterior, name: str, x: Inputs, folder: Path) -> None:
    """Predictions are those of the draws as plain modules, and of the posterior read back.

    To rounding: memory that is aligned otherwise lets torch choose other kernels for some recurrent cells, and batched
    draws add up in another order. A float32 has 7 digits.
    """
    draws = 3 if posterior.num_draws is None else None
    here = posterior.predict(x, draws)
    back = bnn.load(posterior.save(folder / "run"), model_of(KINDS[name])).predict(x, draws)
    torch.testing.assert_close(back.mean, here.mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(back.std, here.std, rtol=1e-5, atol=1e-6)
    if posterior.num_draws is not None:
        nets = [outputs_of(posterior.net(i).eval(), KINDS[name], x) for i in range(posterior.num_draws)]
        torch.testing.assert_close(here.mean, torch.stack(nets).mean(0), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "method"),
    some(itertools.product(KINDS, METHODS), lambda pair: pair[1] == "map" or pair[0] in WITH_ALL),
)
def test_a_kind_of_network_fits_and_comes_back(name: str, method: str, tmp_path: Path) -> None:
    if method == "last layer" and name in NO_LAST_LAYER:
        with pytest.raises(ValueError, match="there is no last layer") as caught:
            fitted(name, method)
        assert NO_LAST_LAYER[name] in str(caught.value)
        return
    posterior, x, _ = fitted(name, method)
    assert posterior.history.backend == "graph"
    assert posterior.history.notes == [] or method == "ensemble"
    loss = posterior.history.loss
    assert loss.isfinite().all()
    if method != "mean field":  # whose loss has the noise of a draw
        assert loss[-1] < loss[0]
    assert posterior.predict(x, 3 if posterior.num_draws is None else None).mean.shape == (ROWS, 1)
    check_predictions(posterior, name, x, tmp_path)


@pytest.mark.parametrize(
    ("owner", "attribute", "old", "new", "name"),
    [
        pytest.param(Posterior, "__init__", "self.model.net.eval()", "pass", "batch norm", id="training mode"),
        pytest.param(Posterior, "__init__", "self.model.net.eval()", "pass", "dropout", id="dropout on"),
        pytest.param(Posterior, "shared", "{**self.state,", "{", "batch norm", id="buffers of the start"),
        pytest.param(
            files, "_tensors", '"state": posterior.state', '"state": {}', "batch norm", id="buffers not saved"
        ),
        pytest.param(
            bnn.BNN,
            "forward",
            "tensors |= {name: tensors[first] for name, first in self.ties.items() if first in tensors}",
            "pass",
            "shared weight",
            id="ties",
        ),
    ],
)
def test_control_predictions_differ(owner, attribute, old, new, name, patch_line, tmp_path) -> None:
    patch_line(owner, attribute, old, new)
    posterior, x, _ = fitted(name, "map", compile="eager")
    with pytest.raises((AssertionError, ValueError)):
        check_predictions(posterior, name, x, tmp_path)
