"""Chains that were stopped anywhere go on to the same bytes: draws, statistics, records and predictions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from killing import Killer
from marks import some
from test_kill import problem

import bnn
import bnn.capture
from bnn.inference import Cyclical, DrawStore, RMSProp, read_store
from bnn.inference.chain_loop import ChainLoop
from bnn.inference.keeper import Keeper
from bnn.inference.mcmc.chees import _Batch
from bnn.inference.mcmc.record import Record
from bnn.inference.mcmc.sampler import _Chains
from bnn.inference.sgmcmc import _Underdamped
from bnn.inference.step_sizes import Metric

#: 20 rows in batches of 8, 8 and 4: kills fall at the beginning, in the middle and at the end of epochs.
_STEPS = {"chains": 2, "num_samples": 4, "keep_every": 3, "warmup": 8, "batch_size": 8, "lr": 1e-3}
_DRAWS = {"chains": 2, "num_samples": 4, "warmup": 22}
METHODS = {
    "SGLD": bnn.SGLD(**_STEPS),
    "SGHMC": bnn.SGHMC(**_STEPS),
    "cyclical": bnn.SGHMC(**_STEPS, schedule=Cyclical(cycles=2, exploration=0.5)),
    "RMSProp": bnn.SGLD(**_STEPS, preconditioner=RMSProp()),
    "NUTS": bnn.NUTS(**_DRAWS, max_depth=2, init="net"),
    "HMC": bnn.HMC(**_DRAWS, max_steps=2, keep_every=2),
    "ChEES": bnn.ChEES(**_DRAWS, max_steps=3),
}


#: The runs that nobody stopped.
WHOLE: dict[str, bnn.Posterior] = {}


class Killed(BaseException):
    """In the place of a signal that no program survives."""


@pytest.fixture
def fit(model, regression, quick, monkeypatch) -> Callable[..., bnn.Posterior]:
    """``fit(method, ..., kill_at=k)``: dead after its k-th step, or the end of its k-th draw of ChEES."""

    def run(method: str, *, kill_at: int | None = None, **options: object) -> bnn.Posterior:
        if not options and kill_at is None and method in WHOLE:
            return WHOLE[method]
        steps, data = [], options.pop("data", regression)

        def dying(self: Keeper, of: int = 1) -> bool:
            steps.append(due(self, of))
            if len(steps) == kill_at:
                raise Killed
            return steps[-1]

        due = Keeper.due
        with monkeypatch.context() as patch:
            patch.setattr(Keeper, "due", dying)
            posterior = quick(model, data, METHODS[method], **options)
        if not options and data is regression:
            WHOLE[method] = posterior
        return posterior

    return run


def until_done(fit: Callable[..., bnn.Posterior], method: str, kills: list[int], **options: object) -> bnn.Posterior:
    """Killed after so many steps, gone on with, killed again ... and at last left alone."""
    for kill_at in kills:
        try:
            return fit(method, kill_at=kill_at, **options)
        except Killed:
            continue
    return fit(method, **options)


def check_same(got: bnn.Posterior, expected: bnn.Posterior) -> None:
    mine, theirs = got.approximation.tensors(), expected.approximation.tensors()
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        assert torch.equal(value, theirs[name]), name
    for name in ("loss", "nll", "kl"):
        assert torch.equal(getattr(got.history, name), getattr(expected.history, name)), name
    same = ("backend", "epochs", "steps_per_epoch", "interrupted")
    assert [getattr(got.history, name) for name in same] == [getattr(expected.history, name) for name in same]
    assert got.settings == expected.settings
    assert got.input_shapes == expected.input_shapes
    x = torch.linspace(-1, 1, 12).view(4, 3)
    assert torch.equal(got.predict(x, draws=4).mean, expected.predict(x, draws=4).mean)
    assert got.state.keys() == expected.state.keys()


def every(steps: int, path: Path) -> bnn.Checkpoint:
    return bnn.Checkpoint(path, seconds=1e9, steps=steps)


# --------------------------------------------------------------------------------------------------- the same bytes


@pytest.mark.parametrize("method", some(METHODS, lambda name: name != "HMC"))
def test_a_run_killed_again_and_again_is_the_run_that_was_not(fit, tmp_path, method) -> None:
    """A state after every second step; each life lasts from 2 to 7 steps, so that what came after a state is lost."""
    expected = fit(method)
    place = every(2, tmp_path / "states")
    kills = [2 + k * k % 6 for k in range(400)]
    check_same(until_done(fit, method, kills, checkpoint=place), expected)


@pytest.mark.parametrize("method", METHODS)
def test_a_run_with_states_is_the_run_without_and_is_given_back_at_once(fit, tmp_path, method) -> None:
    expected, place = fit(method), every(3, tmp_path / "states")
    first = fit(method, checkpoint=place)
    check_same(first, expected)
    again = fit(method, checkpoint=place, kill_at=1)
    check_same(again, expected)
    assert again.history.seconds == first.history.seconds


@pytest.mark.parametrize("when", ["in the warm-up", "later"])
@pytest.mark.parametrize("method", ["SGHMC", "NUTS"])
def test_ctrl_c_gives_the_draws_so_far_and_the_next_call_goes_on(fit, tmp_path, monkeypatch, method, when) -> None:
    expected, place = fit(method), every(2, tmp_path / "states")
    due, asked, last = Keeper.due, [], 5 if when == "in the warm-up" else {"SGHMC": 16, "NUTS": 75}[method]

    def interrupting(self: Keeper, steps: int = 1) -> bool:
        asked.append(due(self, steps))
        if len(asked) == last:
            raise KeyboardInterrupt
        return asked[-1]

    monkeypatch.setattr(Keeper, "due", interrupting)
    if when == "in the warm-up":
        with pytest.raises(KeyboardInterrupt):
            fit(method, checkpoint=place)
    else:
        part = fit(method, checkpoint=place)
        assert part.history.interrupted
        mine, whole = (posterior.approximation.tensors()["vectors"] for posterior in (part, expected))
        assert 0 < mine.shape[1] < whole.shape[1]
        assert torch.equal(mine, whole[:, : mine.shape[1]])
    check_same(fit(method, checkpoint=place), expected)


# ------------------------------------------------------------------------------------------------------------ stores


def killed_in(fit: Callable[..., bnn.Posterior], method: str, step: int, **options: object) -> None:
    with pytest.raises(Killed):
        fit(method, kill_at=step, **options)


def test_a_store_of_ones_own_is_gone_on_with(fit, model, tmp_path) -> None:
    expected, place, path = fit("SGHMC"), every(2, tmp_path / "states"), tmp_path / "draws"
    killed_in(fit, "SGHMC", 15, checkpoint=place, store=path)
    assert read_store(path, model).approximation.shape == (2, 2)
    check_same(fit("SGHMC", checkpoint=place, store=path), expected)
    check_same(fit("SGHMC", checkpoint=place, store=path), expected)
    assert not (tmp_path / "states" / "draws.safetensors").exists()


def test_draws_in_the_folder_of_a_killed_run_are_read_with_their_statistics(fit, model, tmp_path) -> None:
    expected = fit("HMC").approximation
    killed_in(fit, "HMC", 50, checkpoint=every(3, tmp_path))
    read = read_store(tmp_path / "draws.safetensors", model).approximation
    draws = read.shape[1]
    assert 0 < draws < 4
    assert torch.equal(read.vectors, expected.vectors[:, :draws])
    assert read.statistics.keys() == expected.statistics.keys()
    for name, value in read.statistics.items():
        assert torch.equal(value, expected.statistics[name][:, :draws]), name


def test_a_store_that_was_there_before_is_never_taken(fit, tmp_path) -> None:
    path = tmp_path / "draws"
    fit("SGLD", store=path)
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match="another store="):
        fit("SGLD", checkpoint=tmp_path / "states", store=path)
    killed_in(fit, "SGLD", 15, checkpoint=every(2, tmp_path / "others"), store=tmp_path / "other draws")
    with pytest.raises(ValueError, match="holds the draws of another fit"):
        fit("SGLD", checkpoint=every(2, tmp_path / "others"), store=path)
    assert path.read_bytes() == before


def _truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def _flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-200] ^= 1  # in the first draws of the last chain
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("harm", "told"),
    [(_truncated, "damaged"), (_flipped, "draws of chain 1 are not those"), (Path.unlink, "is not there")],
)
def test_draws_that_were_harmed_are_refused_in_words(fit, tmp_path, harm, told) -> None:
    killed_in(fit, "SGHMC", 19, checkpoint=every(1, tmp_path))
    harm(tmp_path / "draws.safetensors")
    with pytest.raises(ValueError, match=told):
        fit("SGHMC", checkpoint=every(1, tmp_path))


def test_a_damaged_state_gives_way_to_the_one_before(fit, tmp_path) -> None:
    expected, place = fit("SGHMC"), every(5, tmp_path)
    killed_in(fit, "SGHMC", 17, checkpoint=place)
    _truncated(tmp_path / "state.safetensors")
    got = fit("SGHMC", checkpoint=place)
    check_same(got, expected)
    assert any("damaged" in note for note in got.history.notes)


@pytest.mark.parametrize("method", ["SGHMC", "ChEES"])
def test_a_full_disk_ends_the_fit_and_leaves_the_last_state(fit, tmp_path, monkeypatch, method) -> None:
    expected, place = fit(method), every(4, tmp_path)
    written, real = [], bnn.checkpoint.write_file

    def full(path: Path, content: bytes) -> Path:
        written.append(path)
        if len(written) == 4:
            raise OSError(28, "No space left on device")
        return real(path, content)

    with monkeypatch.context() as patch:
        patch.setattr("bnn.checkpoint.write_file", full)
        with pytest.raises(OSError, match="No space left"):
            fit(method, checkpoint=place)
    check_same(fit(method, checkpoint=place), expected)


def test_another_fit_does_not_go_on_from_these_states(fit, tmp_path, monkeypatch) -> None:
    killed_in(fit, "SGHMC", 9, checkpoint=every(2, tmp_path))
    monkeypatch.setitem(METHODS, "other", bnn.SGHMC(**_STEPS, friction=0.3))
    with pytest.raises(ValueError, match=r"another fit.*friction was 0.1, is 0.3"):
        fit("other", checkpoint=every(2, tmp_path))


# ----------------------------------------------------------------------------------------------------------- loaders


class Numbers(torch.utils.data.Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Rows that are a little different each time they are asked for, as augmented images are."""

    def __init__(self, x: torch.Tensor, y: torch.Tensor):
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.x[row] + 0.01 * torch.randn(3), self.y[row]


@pytest.mark.parametrize("kind", ["dataset", "loader"])
def test_datasets_that_shuffle_and_draw_go_on_in_the_middle_of_an_epoch(fit, regression, tmp_path, kind) -> None:
    data = Numbers(*regression)
    if kind == "loader":
        data = torch.utils.data.DataLoader(data, batch_size=8, shuffle=True)
    expected = fit("SGHMC", data=data)
    kills = [2 + k * k % 6 for k in range(400)]
    check_same(until_done(fit, "SGHMC", kills, checkpoint=every(2, tmp_path), data=data), expected)


def test_a_loader_that_keeps_no_place_goes_on_at_the_start_of_the_epoch_and_says_so(fit, regression, tmp_path) -> None:
    x, y = regression
    rows = torch.utils.data.TensorDataset(x, y)

    class Loader:
        def __iter__(self):
            return iter(torch.utils.data.DataLoader(rows, batch_size=8))

    options = {"data": Loader(), "n_data": 20}
    expected = fit("SGHMC", **options)
    killed_in(fit, "SGHMC", 4, checkpoint=every(1, tmp_path), **options)
    with pytest.warns(UserWarning, match="from the start of epoch 4"):
        got = fit("SGHMC", checkpoint=every(1, tmp_path), **options)
    check_same(got, expected)  # this one gives its rows in the same order


# ---------------------------------------------------------------------------------------------------------- controls

#: A state in which nothing of the kind is put back: method, owner, function, the line, what stands there instead.
CONTROLS = {
    "random state": ("NUTS", Keeper, "go_on", "set_generator_state(self._state.tensors[_RANDOM], self._device)", "0"),
    "draws that are made": ("NUTS", Record, "resume", 'self.counts = list(loop["counts"])', "0"),
    "draws that are kept": ("SGHMC", DrawStore, "__init__", "torch.tensor(resume or [0] * chains)", "self.counts + 0"),
    "mass matrix": ("NUTS", _Chains, "run", "record.resume(", "_without_mass(self, record.resume)("),
    "momenta": ("SGHMC", _Underdamped, "restore", 'state.get("velocity")', "None"),
    "order of an epoch": ("SGHMC", ChainLoop, "_rest_of_epoch", "set_generator_state(self.epoch_random, ", "str("),
    "place in an epoch": ("SGHMC", ChainLoop, "_rest_of_epoch", "for _ in range(taken):", "for _ in range(0):"),
    "preconditioner": ("RMSProp", Metric, "restore", "self._mean.copy_(mean)", "0"),
    "momenta of trajectories": (
        "ChEES",
        _Batch,
        "run",
        "*state, p = record.resume(self.backends) or first",
        "*state, p = [*(record.resume(self.backends) or first)[:-1], first[-1]]",
    ),
}


def _without_mass(chains: _Chains, resume: Callable[..., Any]) -> Callable[..., Any]:
    def resumed(backends: list[str]) -> Any:
        begun = resume(backends)
        if begun is None:
            return None
        state = chains.packing.unpack(begun)
        return chains.packing.pack({**state, "inverse_mass": torch.ones_like(state["inverse_mass"])})

    return resumed


@pytest.mark.parametrize("what", CONTROLS)
def test_what_is_not_put_back_is_missed(fit, patch_line, monkeypatch, tmp_path, what) -> None:
    method, owner, name, line, instead = CONTROLS[what]
    monkeypatch.setattr("bnn.inference.mcmc.sampler._without_mass", _without_mass, raising=False)
    kills = [{"SGHMC": 14, "RMSProp": 6, "NUTS": 72, "ChEES": 12}[method]]
    expected = fit(method)
    check_same(until_done(fit, method, kills, checkpoint=every(1, tmp_path / "right")), expected)
    patch_line(owner, name, line, instead)
    with pytest.raises((AssertionError, IndexError)):
        check_same(until_done(fit, method, kills, checkpoint=every(1, tmp_path / "wrong")), expected)


# ------------------------------------------------------------------------------------------------------------ killed


def _killed(method: bnn.inference.Method, folder: Path, compile: bnn.capture.Backend) -> bnn.Posterior:
    model, data = problem()
    place = bnn.Checkpoint(folder, seconds=3600, steps=1)
    return bnn.fit(model, data, method, progress=False, compile=compile, checkpoint=place)


def sghmc(folder: Path) -> bnn.Posterior:
    return _killed(
        bnn.SGHMC(**_STEPS | {"num_samples": 10, "warmup": 30}, preconditioner=RMSProp()), folder, compile="eager"
    )


def nuts(folder: Path) -> bnn.Posterior:
    """Captured anew in every life."""
    return _killed(bnn.NUTS(chains=2, num_samples=6, warmup=22, max_depth=3, init="net"), folder, compile="graph")


@pytest.fixture(scope="module")
def killer() -> Iterator[Killer]:
    with Killer() as killer:
        yield killer


@pytest.mark.slow
def test_a_few_kills(killer: Killer, tmp_path: Path) -> None:
    assert killer.torture("test_checkpoint_chains:sghmc", tmp_path, kills=4)["ended"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sghmc", "nuts"])
def test_20_kills(killer: Killer, name: str, tmp_path: Path) -> None:
    found = killer.torture(f"test_checkpoint_chains:{name}", tmp_path, kills=20, seed=1)
    print(name, found)
    assert found["inside"], "no kill came inside a write: the moments prove less than they should"
