"""The training loop: data in every form, optimisers, schedules, averaging, early stopping, callbacks, errors."""

import functools
import itertools

import pytest
import torch
from networks import make
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

import bnn
from bnn.inference import GradientMethod, Progress

ROWS = 48


def problem() -> tuple[bnn.BNN, Tensor, Tensor]:
    net, x, y = make("mlp", ROWS)
    return bnn.BNN(net, bnn.priors.Normal(1.0), bnn.likelihoods.Gaussian(0.3)), x, y


def fit(data: object = None, method: GradientMethod | None = None, **options: object) -> bnn.Posterior:
    model, x, y = problem()
    method = method or bnn.MAP(epochs=3, batch_size=16)
    return bnn.fit(model, (x, y) if data is None else data, method, progress=False, **options)  # type: ignore[arg-type]


class Rows(Dataset):  # type: ignore[type-arg]
    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        return self.x[i], self.y[i]


def test_every_form_of_data_gives_the_same_full_batch_fit() -> None:
    _, x, y = problem()
    method = bnn.MAP(epochs=5, batch_size=None)
    forms = {
        "tensors": (x, y),
        "arrays": (x.double().numpy(), y.numpy()),
        "list": [x, y],
        "tensor dataset": TensorDataset(x, y),
        "dataset": Rows(x, y),
        "loader": DataLoader(TensorDataset(x, y), batch_size=ROWS),
    }
    losses = {name: fit(data, method).history.loss for name, data in forms.items()}
    for name, loss in losses.items():
        torch.testing.assert_close(
            loss, losses["tensors"], rtol=1e-4, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}"
        )


def test_an_epoch_meets_every_row_once_in_a_new_order() -> None:
    from bnn.data import as_source

    model, _, _ = problem()
    x = torch.arange(10.0)[:, None].expand(10, 8)
    source = as_source((x, x[:, :1]), model.likelihood, model.like, 4)
    epochs = [[batch.y.flatten().tolist() for batch in source.batches()] for _ in range(2)]
    assert [len(batch) for batch in epochs[0]] == [4, 4, 2]
    assert all(sorted(itertools.chain(*epoch)) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1]


def test_same_seed_same_fit_other_seed_another() -> None:
    one, same, other = (fit(method=bnn.MeanField(epochs=3, batch_size=16), seed=s) for s in (1, 1, 2))
    assert torch.equal(one.history.loss, same.history.loss)
    assert all(torch.equal(a, b) for a, b in zip(one.draws(3).values(), same.draws(3).values(), strict=True))
    assert not torch.equal(one.history.loss, other.history.loss)
    assert fit(seed=None).settings["seed"] != fit(seed=None).settings["seed"]


def test_accumulation_is_a_larger_batch() -> None:
    """Without shuffling, two batches of 24 averaged are one of 48: the same gradient, as rows are weighed alike."""
    _, x, y = problem()
    loader = DataLoader(TensorDataset(x, y), batch_size=24)
    small = fit(loader, bnn.MAP(epochs=6, accumulate=2))
    whole = fit((x, y), bnn.MAP(epochs=6, batch_size=None))
    assert small.history.loss.shape == whole.history.loss.shape == (6,)
    torch.testing.assert_close(small.draws()["0.weight"], whole.draws()["0.weight"], rtol=1e-4, atol=1e-5)


def test_clipping_bounds_the_step_of_sgd() -> None:
    sgd = functools.partial(torch.optim.SGD)
    model, _, _ = problem()
    start = torch.cat([p.detach().flatten() for p in model.net.parameters()])
    posterior = fit(method=bnn.MAP(epochs=1, batch_size=None, lr=1.0, optimizer=sgd, clip_norm=1e-3))
    end = torch.cat([v.flatten() for v in posterior.draws().values()])
    assert float((end - start).norm()) == pytest.approx(1e-3, rel=1e-3)


def test_a_schedule_is_stepped_once_a_step_over_all_steps() -> None:
    seen: list[float] = []

    def schedule(optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
        assert steps == 9  # 3 epochs of 3 batches
        scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, total_iters=steps)
        original = scheduler.step
        scheduler.step = lambda *a: (seen.append(scheduler.get_last_lr()[0]), original(*a))[1]  # type: ignore
        return scheduler

    fit(method=bnn.MAP(epochs=3, batch_size=16, lr=0.1, schedule=schedule))
    assert len(seen) == 9
    assert seen[0] == pytest.approx(0.1)
    assert seen[-1] == pytest.approx(0.1 * (1 - 0.9 * 8 / 9))


def test_averaging_is_the_mean_of_the_last_iterates() -> None:
    iterates: list[Tensor] = []

    def keep(progress: Progress) -> None:
        iterates.append(progress.objective.theta.detach().clone())

    posterior = fit(method=bnn.MAP(epochs=8, batch_size=None, average=0.5), callbacks=[keep])
    mean = torch.stack(iterates[4:]).mean(0)
    torch.testing.assert_close(torch.cat([v.flatten() for v in posterior.draws().values()]), mean)


def test_early_stopping_goes_back_to_the_best() -> None:
    model, x, y = problem()
    # A step so long that the first epoch is the best: after it the fit gets worse.
    method = bnn.MAP(epochs=50, batch_size=None, lr=5.0, patience=3)
    held_out = (x[:8], y[:8])
    posterior = bnn.fit(model, (x, y), method, validation=held_out, progress=False)
    scores = posterior.history.validation
    best = int(scores.argmax())
    assert posterior.history.epochs == best + 1 + 3 < 50
    assert posterior.history.validation_epochs == list(range(1, posterior.history.epochs + 1))
    now = float(posterior.predict(x[:8]).log_prob(y[:8]).mean())
    assert now == pytest.approx(float(scores[best]), rel=1e-5)


def test_callbacks_see_the_epoch_and_may_stop() -> None:
    seen: list[Progress] = []

    def callback(progress: Progress) -> bool:
        seen.append(progress)
        return progress.epoch == 2

    history = fit(method=bnn.MeanField(epochs=9, batch_size=16), callbacks=[callback]).history
    assert [p.epoch for p in seen] == [1, 2]
    assert history.epochs == 2
    assert history.loss.shape == (6,)
    assert seen[1].loss == pytest.approx(float(history.loss[3:].mean()), rel=1e-5)
    assert seen[1].loss == pytest.approx(seen[1].nll + seen[1].kl, rel=1e-5)


def test_ctrl_c_keeps_what_there_is() -> None:
    def interrupt(progress: Progress) -> None:
        if progress.epoch == 2:
            progress.objective.gradients = stop  # type: ignore[method-assign]

    def stop(*args: object) -> None:
        raise KeyboardInterrupt

    posterior = fit(method=bnn.MAP(epochs=9, batch_size=16), callbacks=[interrupt])
    assert posterior.history.interrupted
    assert posterior.history.epochs == 2
    assert posterior.draws()["0.weight"].isfinite().all()


def test_ctrl_c_between_two_epochs_keeps_what_there_is() -> None:
    def interrupt(progress: Progress) -> None:
        if progress.epoch == 2:
            raise KeyboardInterrupt

    history = fit(method=bnn.MAP(epochs=9, batch_size=16), callbacks=[interrupt]).history
    assert history.interrupted
    assert len(history.loss) == 6


def test_a_loss_that_is_not_finite_stops_and_names_the_step() -> None:
    sgd = functools.partial(torch.optim.SGD)
    with pytest.raises(bnn.NonFiniteLossError, match=r"at step \d+ .*try a smaller lr") as error:
        fit(method=bnn.MAP(epochs=200, batch_size=None, lr=1e3, optimizer=sgd))
    assert "nan" in str(error.value) or "inf" in str(error.value)


@pytest.mark.parametrize("temperature", [1.0, 0.25])
def test_temperature_weighs_the_divergence(temperature: float) -> None:
    history = fit(method=bnn.MeanField(epochs=2, temperature=temperature)).history
    torch.testing.assert_close(history.loss, history.nll + temperature * history.kl)


def test_sample_weights_count_rows() -> None:
    """A weight of 2 is a row that is there twice; of 0, one that is not there."""
    model, x, y = problem()
    weight = torch.ones(ROWS)
    weight[0], weight[1] = 2.0, 0.0
    loss = bnn.MAP().loss(model, ROWS)
    weighted = loss(x, y, weight=weight)
    twice = loss(torch.cat([x[:1], x[:1], x[2:]]), torch.cat([y[:1], y[:1], y[2:]]))
    torch.testing.assert_close(weighted, twice)
    assert fit(weight=weight.numpy()).history.loss.isfinite().all()


@pytest.mark.parametrize("make_init", [lambda p: "net", lambda p: "prior", lambda p: p])
def test_starts(make_init) -> None:
    posterior = fit()
    init = make_init(posterior)
    model, _, _ = problem()
    loss = bnn.MAP(init=init).loss(model, ROWS, seed=3)
    if init == "net":
        expected = torch.cat([p.detach().flatten() for p in model.net.parameters()])
    elif init == "prior":
        assert 0.7 < float(loss.theta.detach().std()) < 1.3  # Normal(1), 201 weights: 0.7 is 6 standard errors away
        return
    else:
        expected = torch.cat([v[0].flatten() for v in posterior.draws().values()])
    torch.testing.assert_close(loss.theta.detach(), expected)


def test_points_and_noise_are_learned_beside_the_weights() -> None:
    """The learned noise of a network that cannot fit anything is the standard deviation of the targets."""
    torch.manual_seed(0)
    x, y = torch.zeros(400, 2), 1.7 * torch.randn(400, 1)
    model = bnn.BNN(
        torch.nn.Linear(2, 1), {"bias": None, "*": bnn.priors.Normal(1.0)}, bnn.likelihoods.Gaussian("learned")
    )
    posterior = bnn.fit(model, (x, y), bnn.MAP(epochs=400, batch_size=None, lr=0.05), progress=False)
    assert set(posterior.points) == {"bias", "likelihood.scale"}
    assert float(posterior.points["likelihood.scale"]) == pytest.approx(float(y.std(correction=0)), rel=1e-3)
    assert float(posterior.points["bias"]) == pytest.approx(float(y.mean()), abs=1e-3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "epochs"),
        ({"lr": -1.0}, "lr"),
        ({"batch_size": 0}, "batch_size"),
        ({"average": 1.0}, "average"),
        ({"temperature": 0.0}, "temperature"),
        ({"init": "zeros"}, "init"),
    ],
)
def test_settings_without_meaning_are_refused_by_name(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bnn.MAP(**settings)


def test_a_training_loop_of_ones_own() -> None:
    """The module is the loss of the fit: the same steps, whoever takes them."""
    model, x, y = problem()
    loss = bnn.MeanField(init_scale=0.05).loss(model, ROWS, seed=0)
    assert {name for name, _ in loss.named_parameters()} == {"loc", "log_scale"}
    optimizer = torch.optim.Adam(loss.parameters(), lr=1e-2)
    values = []
    for _ in range(200):
        optimizer.zero_grad()
        value = loss(x, y)
        value.backward()
        optimizer.step()
        values.append(float(value.detach()))
    assert sum(values[-20:]) < sum(values[:20])
    posterior = loss.posterior()
    torch.testing.assert_close(posterior.approximation.tensors()["loc"], loss.loc.detach())
    assert posterior.predict(x).mean.shape == (ROWS, 1)


def test_the_loss_module_moves_to_another_dtype() -> None:
    model, x, y = problem()
    loss = bnn.MAP().loss(model, ROWS).double()
    value = loss(x.double(), y.double())
    assert value.dtype == torch.float64
    torch.testing.assert_close(value.float(), bnn.MAP().loss(model, ROWS)(x, y))


def test_a_last_batch_of_one_row_under_batch_norm_is_told_before_the_first_step() -> None:
    net, x, y = make("batch norm", 33)
    model = bnn.BNN(net, bnn.priors.Normal(1.0), bnn.likelihoods.Gaussian())
    with pytest.raises(ValueError, match="33 rows in batches of 16 leave a last batch of one row"):
        bnn.fit(model, (x, y), bnn.MAP(batch_size=16), progress=False)


@pytest.mark.parametrize(
    ("method", "message"),
    [("meanfield", "did you mean 'mean_field'"), (bnn.MeanField, r"call it, bnn.MeanField\(\)")],
)
def test_a_method_that_is_none_gets_a_hint(method: object, message: str) -> None:
    model, x, y = problem()
    with pytest.raises((ValueError, TypeError), match=message):
        bnn.fit(model, (x, y), method, progress=False)  # type: ignore[arg-type]
