"""Every kind of network is captured, whichever way its weights are drawn: no silent fall-back to eager.

Warnings are errors here (pyproject.toml), and a fall-back warns; the backend is asserted all the same.
"""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager

import pyro
import pytest
import torch
from marks import some
from networks import NETWORKS, make

import bnn
from bnn.data import Batch
from bnn.inference import Objective
from bnn.random import isolated

METHODS = {
    "map": bnn.MAP(),
    "mean_field": bnn.MeanField(),
    "mean_field, 3 draws": bnn.MeanField(draws=3),
    "local": bnn.MeanField(estimator="local"),
    "flipout": bnn.MeanField(estimator="flipout"),
    "autonormal": bnn.Variational(guide=pyro.infer.autoguide.AutoNormal),
}
#: Methods of which every kind of network takes long; those here have something of their own in several draws, or in
#: Pyro's guide: the mapped and the unrolled ones, batch statistics, masks.
WIDE = {
    "mean_field, 3 draws": ["mlp", "batch norm", "dropout"],
    "autonormal": ["mlp", "batch norm", "shared weight"],
    "local": ["mlp", "batch norm", "conv", "shared module"],
    "flipout": ["mlp", "batch norm", "conv", "shared module"],
}
#: Layers whose weights noise in the activations cannot reach, by network: the rest of its parameters is reached.
UNREACHED = {
    "layer norm": ["1."],
    "batch norm": ["1."],
    "lstm": ["lstm."],
    "attention": ["encoder.norm", "encoder.self_attn"],
    "shared module": ["first."],
    "shared weight": ["first.", "second."],
}


@contextmanager
def handler_calls() -> Iterator[list[int]]:
    """Counts the messages that Pyro's handlers process."""
    original = pyro.poutine.runtime.apply_stack
    count = [0]

    def counted(message: object) -> None:
        count[0] += 1
        original(message)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pyro.poutine.runtime, "apply_stack", counted)
        patch.setattr(pyro.primitives, "apply_stack", counted)
        yield count


def objective(name: str, method: bnn.inference.GradientMethod, backend: str, rows: int = 16) -> tuple[Objective, Batch]:
    net, x, y = make(name, rows)
    model = bnn.BNN(net, bnn.priors.Normal(1.0), bnn.likelihoods.Gaussian())
    return method.loss(model, 100, compile=backend), Batch(x, y)


def evaluate(
    loss: Objective, batch: Batch, seed: int
) -> tuple[list[torch.Tensor], torch.Tensor, dict[str, torch.Tensor]]:
    with isolated(seed):
        gradients, stats = loss.gradients(batch)
    return gradients, stats, loss.state


@pytest.mark.filterwarnings("ignore:(local|flipout) noise does not reach:UserWarning")
@pytest.mark.parametrize(
    ("method", "name"),
    some(itertools.product(METHODS, NETWORKS), lambda pair: pair[0] not in WIDE or pair[1] in WIDE[pair[0]]),
)
def test_a_captured_step_is_the_eager_step_without_pyro(name: str, method: str) -> None:
    eager, first = objective(name, METHODS[method], "eager")
    graph, _ = objective(name, METHODS[method], "graph")
    evaluate(eager, first, 0), evaluate(graph, first, 0)  # capture, on the first batch and seed
    _, x, y = make(name, 16, seed=1)
    second = Batch(x, y)
    for seed in (1, 2):
        expected, got = evaluate(eager, second, seed), evaluate(graph, second, seed)
        for a, b in zip([*expected[0], expected[1]], [*got[0], got[1]], strict=True):
            torch.testing.assert_close(b, a, rtol=1e-5, atol=1e-6)
        for key, value in expected[2].items():
            torch.testing.assert_close(got[2][key], value, rtol=1e-5, atol=1e-6)
    with handler_calls() as count:
        for _ in range(50):
            graph.gradients(second)
    assert graph.backends == ["graph"]
    assert count[0] == 0


def test_the_handler_count_sees_an_eager_step() -> None:
    loss, batch = objective("mlp", METHODS["mean_field"], "eager")
    loss.gradients(batch)
    with handler_calls() as count:
        loss.gradients(batch)
    assert count[0] > 5  # four weights, the noise scale, the plate, y


#: What local reparameterisation leaves out besides: layers that a row meets at several positions.
NOT_LOCAL = {"conv": ["0."], "attention": ["encoder.linear"]}


@pytest.mark.parametrize(
    ("name", "estimator"),
    some(
        [*itertools.product(UNREACHED, ("local", "flipout")), ("conv", "local")],
        lambda pair: pair[0] not in {"attention", "lstm"},
    ),
)
def test_parameters_that_layer_noise_does_not_reach_are_named(name: str, estimator: str) -> None:
    loss, batch = objective(name, bnn.MeanField(estimator=estimator), "graph")
    with pytest.warns(UserWarning, match="does not reach") as caught:
        loss.gradients(batch)
    assert len(caught) == 1
    note = loss.notes[0]
    for parameter, _ in loss.model.net.named_parameters():
        left_out = UNREACHED.get(name, []) + (NOT_LOCAL.get(name, []) if estimator == "local" else [])
        expected = any(parameter.startswith(prefix) for prefix in left_out)
        assert (repr(parameter) in note) == expected, parameter


def test_batch_statistics_move_in_training_and_only_there() -> None:
    loss, batch = objective("batch norm", METHODS["mean_field"], "graph")
    before = {name: value.clone() for name, value in loss.state.items()}
    loss.gradients(batch)
    assert not torch.equal(loss.state["1.running_mean"], before["1.running_mean"])
    assert int(loss.state["1.num_batches_tracked"]) == 1
    loss.eval()
    moved = {name: value.clone() for name, value in loss.state.items()}
    loss.gradients(batch)
    assert all(torch.equal(loss.state[name], value) for name, value in moved.items())


def test_a_ragged_last_batch_has_a_graph_of_its_own() -> None:
    net, x, y = make("mlp", 40)
    model = bnn.BNN(net, bnn.priors.Normal(1.0), bnn.likelihoods.Gaussian())
    losses = [
        bnn.fit(model, (x, y), bnn.MeanField(epochs=3, batch_size=16), compile=backend, progress=False).history
        for backend in ("eager", "graph")
    ]
    assert [h.backend for h in losses] == ["eager", "graph"]
    assert losses[1].steps_per_epoch == 3
    torch.testing.assert_close(losses[1].loss, losses[0].loss, rtol=1e-5, atol=1e-6)


@pytest.mark.inductor
@pytest.mark.parametrize("name", ["mlp", "dropout"])
def test_inductor_gives_the_same_numbers_from_the_same_seed(name: str) -> None:
    net, x, y = make(name, 32)
    model = bnn.BNN(net, bnn.priors.Normal(1.0), bnn.likelihoods.Gaussian())
    history, draws = {}, {}
    for backend in ("eager", "graph", "inductor"):
        method = bnn.MeanField(epochs=5, batch_size=16)
        posterior = bnn.fit(model, (x, y), method, compile=backend, progress=False)
        history[backend], draws[backend] = posterior.history, posterior.draws(3)
        assert posterior.history.backend == backend
    for backend in ("graph", "inductor"):
        torch.testing.assert_close(history[backend].loss, history["eager"].loss, rtol=1e-5, atol=1e-6)
        for key, value in draws["eager"].items():
            torch.testing.assert_close(draws[backend][key], value, rtol=1e-4, atol=1e-5)
