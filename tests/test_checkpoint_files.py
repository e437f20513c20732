"""The files of a checkpoint: full disks, damage, another fit's, and what cannot be kept."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from interruptions import Broken, broken_at, digest
from test_checkpoint import CASES, MAP, Case, X, Y, mlp, model
from torch import Tensor, nn

import bnn
from bnn import locks
from bnn.checkpoint import SURROUNDINGS, Saver
from bnn.data import as_source
from bnn.inference.identity import _constant, _module, described
from bnn.locks import held
from bnn.packed import pack, unpack

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
    "numbers": (dataclasses.replace(CASE, data=lambda: (X, Y + 1)), "data.arrays had other numbers"),
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


def test_of_many_differences_a_few_are_told(tmp_path: Path) -> None:
    Saver(bnn.Checkpoint(tmp_path), {"sites": dict.fromkeys("abcdef", 1)}).write({}, {})
    with pytest.raises(ValueError, match=r"sites.d was 1, is 2; and 2 more. Give"):
        Saver(bnn.Checkpoint(tmp_path), {"sites": dict.fromkeys("abcdef", 2)}).read()


def test_another_fit_is_refused_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the loss is captured; of a method in parts too, whose states are in a folder below."""
    case = CASES["laplace"]
    with broken_at(3), pytest.raises(Broken):
        case.fit(bnn.Checkpoint(tmp_path, steps=1))
    assert [path.parent.name for path in tmp_path.rglob("state.safetensors")] == ["mode"]
    monkeypatch.setattr("bnn.inference.fit_on", None)
    with pytest.raises(ValueError, match="seed was 3, is 4"):
        dataclasses.replace(case, options=lambda: {"seed": 4}).fit(bnn.Checkpoint(tmp_path))


def test_fits_in_folders_below_are_their_own(tmp_path: Path) -> None:
    whole = CASE.fit()
    with broken_at(3), pytest.raises(Broken):
        Case(MAP()).fit(bnn.Checkpoint(tmp_path / "mode", steps=1))
    assert digest(CASE.fit(bnn.Checkpoint(tmp_path))) == digest(whole)


# Two fits at once -----------------------------------------------------------------------------------------------------


def test_a_folder_is_one_fit_s_at_a_time(tmp_path: Path) -> None:
    """Of this process, of another, and free after `kill -9` even if a child of the dead one lives on."""
    ready, waits = os.pipe(), os.pipe()
    child = os.fork()
    if not child:
        with held(tmp_path):
            if not os.fork():  # as a worker of a DataLoader
                os.close(ready[1])
                os.close(waits[1])
                os.read(waits[0], 1)
                os._exit(0)
            os.write(ready[1], b"1")
            time.sleep(60)
        os._exit(0)
    os.read(ready[0], 1)
    try:
        with pytest.raises(ValueError, match=rf"is in use by process {child} on .*: wait for it"):
            CASE.fit(bnn.Checkpoint(tmp_path))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        with held(tmp_path), pytest.raises(ValueError, match="in use by another fit of this process"):
            CASE.fit(bnn.Checkpoint(tmp_path))
        assert digest(CASE.fit(bnn.Checkpoint(tmp_path))) == digest(CASE.fit())
    finally:
        for handle in (*ready, *waits):
            os.close(handle)
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def test_a_disk_without_locks_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def without(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.lockf", without)
    with pytest.warns(UserWarning, match="on a disk without locks"), held(tmp_path):
        pass


def test_control_without_the_lock(patch_line: Any, tmp_path: Path) -> None:
    patch_line(locks, "_lock", "fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)", "None")
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        test_a_folder_is_one_fit_s_at_a_time(tmp_path)


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


class Plain:
    """A setting that says nothing of itself, and is a part of itself."""

    def __init__(self, rate: float):
        self.rate, self.own = rate, [self]

    def times(self, steps: int) -> float:
        return self.rate * steps


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (lambda optimizer, steps: 1, lambda optimizer, steps: 2),
        (functools.partial(torch.optim.SGD, momentum=0.9), functools.partial(torch.optim.SGD, momentum=0.8)),
        (torch.ones(3), torch.ones(4)),
        (nn.Linear(1, 1), nn.Linear(1, 1)),
        (np.arange(2000.0), np.arange(2000.0) * (np.arange(2000) != 1000)),
        (Plain(1), Plain(2)),
        (Plain(1).times, Plain(2).times),
        (lambda rate, *, by=1: rate, lambda rate, *, by=2: rate),
    ],
)
def test_settings_are_told_apart(one: Any, other: Any) -> None:
    assert described(one) != described(other)
    assert described(one) == described(one)
    assert "0x" not in repr(described(one))


def test_sets_are_told_in_one_order() -> None:
    """That of their tables is another one in every process where they are of texts; here, where numbers collide."""
    one, other = {0, 8}, {8, 0}
    assert repr(one) != repr(other)
    assert described(one) == described(other)
    assert _constant(frozenset([0, 8])) == _constant(frozenset([8, 0]))


def test_networks_of_one_s_own_are_told_apart_by_what_they_do() -> None:
    one, other = (type("Net", (nn.Linear,), {"forward": forward})(3, 1) for forward in (_once, _twice))
    assert _module(one) != _module(other)
    assert _module(one) == _module(type(one)(3, 1))
    assert "forward" not in _module(nn.Linear(3, 1))


def _once(net: nn.Linear, x: Tensor) -> Tensor:
    return nn.functional.linear(x, net.weight)


def _twice(net: nn.Linear, x: Tensor) -> Tensor:
    return 2 * nn.functional.linear(x, net.weight)


def test_loaders_of_other_batches_are_told_apart() -> None:
    rows = torch.utils.data.TensorDataset(X, Y)
    loaders = [
        torch.utils.data.DataLoader(rows, batch_size=8),
        torch.utils.data.DataLoader(rows, batch_size=4),
        torch.utils.data.DataLoader(rows, batch_size=8, shuffle=True),
        torch.utils.data.DataLoader(rows, batch_size=8, drop_last=True),
    ]
    own = model()
    found = [as_source(loader, own.likelihood, own.like, None).identity() for loader in loaders]
    assert all(found[i] != found[j] for i in range(4) for j in range(i))


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
