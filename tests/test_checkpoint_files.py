"""The files of a checkpoint: full disks, damage, another fit's, and what cannot be kept."""

from __future__ import annotations

import dataclasses
import errno
import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from interruptions import Broken, broken_at, digest
from test_checkpoint import CASES, MAP, Case, X, Y, mlp, model
from torch import Tensor, nn

import bnn
from bnn.checkpoint import SURROUNDINGS, Saver, pack, unpack
from bnn.inference.identity import described

CASE = CASES["mean_field"]


def stopped(folder: Path, step: int = 4) -> bnn.Checkpoint:
    """A fit of six steps that was broken off, with a state after each."""
    place = bnn.Checkpoint(folder, steps=1)
    with broken_at(step), pytest.raises(Broken):
        CASE.fit(place)
    return place


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk(call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place, real, calls = stopped(tmp_path), getattr(os, call), []

    def full(*args: Any, **options: Any) -> None:
        calls.append(args)
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        with pytest.raises(
            OSError, match=r"the fit ends, since its state \(.* bytes\) cannot be written to .*No space"
        ):
            CASE.fit(place)
    assert not list(tmp_path.glob("*.part"))
    assert digest(CASE.fit(place)) == digest(CASE.fit())


def test_a_file_in_the_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file"):
        CASE.fit(bnn.Checkpoint(tmp_path / "file"))


@pytest.mark.parametrize("where", [0.0, 0.1, 0.5, 0.9])
def test_a_flipped_bit_in_the_last_state(where: float, tmp_path: Path) -> None:
    place = stopped(tmp_path)
    last = tmp_path / "state.safetensors"
    flip(last, int(where * last.stat().st_size))
    posterior = CASE.fit(place)
    assert [note for note in posterior.history.notes if "is damaged" in note and "the one before it was taken" in note]
    assert "went on from step 2" in posterior.history.notes
    assert digest(posterior) == digest(CASE.fit())


def test_every_flipped_bit_is_seen(tmp_path: Path) -> None:
    saver = Saver(bnn.Checkpoint(tmp_path), {"fit": 1})
    saver.write({"a": torch.arange(5.0), "b": torch.zeros(0), "c": torch.ones(2, 2).bool()}, {"step": 3})
    last = tmp_path / "state.safetensors"
    content = last.read_bytes()
    for place in range(len(content)):
        flip(last, place)
        try:
            state = saver.read()
        except ValueError:
            pass
        else:  # a space of the header's padding
            assert state is not None
            assert state.numbers == {"step": 3}
            assert torch.equal(state.tensors["a"], torch.arange(5.0))
        last.write_bytes(content)


def test_both_states_damaged(tmp_path: Path) -> None:
    place = stopped(tmp_path)
    for path in tmp_path.glob("state*"):
        path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(
        ValueError, match=r"state.safetensors is damaged.*state.before.safetensors is damaged.*no state"
    ):
        CASE.fit(place)


OTHERS: dict[str, tuple[Case, str]] = {
    "lr": (Case(dataclasses.replace(CASE.method, lr=0.5)), "method.lr was 0.01, is 0.5"),  # type: ignore[call-arg]
    "method": (Case(MAP()), "method.class was 'bnn.inference.mean_field.MeanField', is 'bnn.inference.map.MAP'"),
    "seed": (dataclasses.replace(CASE, options=lambda: {"seed": 4}), "seed was 3, is 4"),
    "rows": (dataclasses.replace(CASE, data=lambda: (X[1:], Y[1:])), "data.rows was 20, is 19"),
    "numbers": (dataclasses.replace(CASE, data=lambda: (X, Y + 1)), "data.arrays was"),
    "weight": (
        dataclasses.replace(CASE, options=lambda: {"weight": torch.ones(20)}),
        "data.weighted was False, is True",
    ),
    "held-out": (dataclasses.replace(CASE, options=lambda: {"validation": (X, Y)}), "validation was None, is"),
    "prior": (dataclasses.replace(CASE, model=functools.partial(model, bnn.priors.Normal(2.0))), "prior.scale was 1.0"),
    "likelihood": (
        dataclasses.replace(CASE, model=lambda: bnn.BNN(mlp(), bnn.priors.Normal(1.0), bnn.likelihoods.Gaussian(0.1))),
        "likelihood.repr was",
    ),
    "network": (
        dataclasses.replace(
            CASE,
            model=lambda: bnn.BNN(
                nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1)),
                bnn.priors.Normal(1.0),
                bnn.likelihoods.Gaussian(),
            ),
        ),
        r"network.1 was 'Tanh\(\)', is 'ReLU\(\)'",
    ),
    "backend": (dataclasses.replace(CASE, compile="graph"), "compile was 'eager', is 'graph'"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_fit_is_refused_with_what_differs(name: str, tmp_path: Path) -> None:
    place = stopped(tmp_path, 2)
    before = (tmp_path / "state.safetensors").read_bytes()
    case, told = OTHERS[name]
    with pytest.raises(ValueError, match=rf"is how far another fit has come: .*{told}"):
        case.fit(place)
    assert (tmp_path / "state.safetensors").read_bytes() == before


def test_what_is_told_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another version, and other weights of the network to start from: they have been left behind."""
    place = stopped(tmp_path, 2)
    monkeypatch.setattr("bnn.inference.identity.versions", lambda: {"torch": "1.0", "bnn-toolkit": "0.1.0"})
    other = dataclasses.replace(
        CASE, model=lambda: bnn.BNN(_shifted(), bnn.priors.Normal(1.0), bnn.likelihoods.Gaussian())
    )
    posterior = other.fit(place)
    notes = " ".join(posterior.history.notes)
    assert "went on under another torch (it was" in notes
    assert "went on under another start of the network" in notes
    assert digest(posterior) == digest(CASE.fit())


def _shifted() -> nn.Module:
    net = mlp()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1)
    return net


def test_without_a_seed() -> None:
    with pytest.raises(ValueError, match="give it a seed"):
        bnn.fit(model(), (X, Y), MAP(), seed=None, checkpoint="nowhere")
    assert not Path("nowhere").exists()


class Odd(torch.optim.SGD):
    """An optimiser with something in its state that no file takes."""

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        self.state[self.param_groups[0]["params"][0]]["odd"] = object()
        return super().step(closure)


def test_an_optimiser_that_cannot_be_kept_is_told_at_once(tmp_path: Path) -> None:
    with (
        broken_at(2),
        pytest.raises(TypeError, match=r"odd is a builtins.object, which cannot"),
    ):
        Case(MAP(optimizer=Odd)).fit(bnn.Checkpoint(tmp_path))


def test_what_is_packed_comes_back() -> None:
    value = {
        "a": [1, 2.5, None, True, "text", float("inf")],
        3: (torch.arange(3), {"b": (), "c": [], "d": {}}),
        "a/0": torch.ones(2, dtype=torch.bfloat16),
        "nested": {"a": [torch.zeros(1)], "0": torch.ones(())},
    }
    tensors: dict[str, Tensor] = {}
    again = unpack(pack(value, tensors, "here"), tensors, torch.device("cpu"))
    assert repr(again) == repr(value)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (lambda optimizer, steps: 1, lambda optimizer, steps: 2),
        (functools.partial(torch.optim.SGD, momentum=0.9), functools.partial(torch.optim.SGD, momentum=0.8)),
        (torch.ones(3), torch.ones(4)),
        (nn.Linear(1, 1), nn.Linear(1, 1)),
    ],
)
def test_settings_are_told_apart(one: Any, other: Any) -> None:
    assert described(one) != described(other)
    assert described(one) == described(one)
    assert "0x" not in repr(described(one))


def test_what_killed_writes_have_left_is_taken_away(tmp_path: Path) -> None:
    saver = Saver(bnn.Checkpoint(tmp_path), {})
    old, new = tmp_path / ".state.next.safetensors.a.part", tmp_path / ".state.next.safetensors.b.part"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    assert saver.read() is None
    assert not old.exists()
    assert new.exists()  # of another process that writes, perhaps


def test_intervals() -> None:
    with pytest.raises(ValueError, match="seconds is at least 0"):
        bnn.Checkpoint("a", seconds=-1)
    with pytest.raises(ValueError, match="steps is a whole number"):
        bnn.Checkpoint("a", steps=0)


def test_when_a_state_is_due(tmp_path: Path) -> None:
    by_steps = Saver(bnn.Checkpoint(tmp_path, seconds=1e9, steps=3), {})
    assert [by_steps.due() for _ in range(3)] == [False, False, True]
    by_steps.write({}, {})
    assert not by_steps.due(2)
    assert Saver(bnn.Checkpoint(tmp_path, seconds=0.0), {}).due()
    assert SURROUNDINGS not in by_steps.identity
