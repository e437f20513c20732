"""Draws in a file: written as they come, mapped and not held, read back after a crash, and never trusted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch import nn

import bnn
from bnn.approximations import Chains
from bnn.inference import DrawStore, read_store
from bnn.layout import Layout

QUICK = bnn.SGLD(num_samples=6, keep_every=2, warmup=4, chains=3, lr=1e-3)


@pytest.fixture
def stored(model, regression, quick, tmp_path) -> tuple[bnn.Posterior, Path]:
    path = tmp_path / "runs" / "draws.safetensors"
    return quick(model, regression, QUICK, store=path), path


# ------------------------------------------------------------------------------------------------------ round trips


def test_a_streamed_run_is_the_run_in_memory(stored, model, regression, quick) -> None:
    posterior, path = stored
    in_memory = quick(model, regression, QUICK).draws()
    for other in (posterior, read_store(path, model)):
        assert other.approximation.shape == (3, 6)
        for name, value in other.draws().items():
            assert torch.equal(value, in_memory[name]), name


def test_a_stored_run_predicts_and_saves_like_any_other(stored, model, regression, tmp_path) -> None:
    posterior, path = stored
    read = read_store(path, model)
    assert read.settings["method"] == "SGLD"
    assert read.settings["n_data"] == 20
    assert read.input_shapes == [(3,)]
    assert not read.history.interrupted
    expected = posterior.predict(regression[0], 5).mean
    read.save(tmp_path / "saved")
    for other in (read, bnn.load(tmp_path / "saved", model)):
        assert torch.equal(other.predict(regression[0], 5).mean, expected)


def test_the_file_is_a_safetensors_file(stored) -> None:
    from safetensors.torch import load_file

    posterior, path = stored
    tensors = load_file(path)
    assert torch.equal(tensors["vectors"], posterior.approximation.tensors()["vectors"])
    assert tensors["counts"].tolist() == [6, 6, 6]


def test_buffers_are_in_the_file(regression, quick, tmp_path) -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    model = bnn.BNN(net, bnn.priors.Normal(1.0), bnn.likelihoods.Gaussian(0.5))
    net(regression[0])  # takes statistics
    posterior = quick(model, regression, QUICK, store=tmp_path / "draws")
    fresh = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    read = read_store(tmp_path / "draws", bnn.BNN(fresh, bnn.priors.Normal(1.0), bnn.likelihoods.Gaussian(0.5)))
    assert int(read.state["1.num_batches_tracked"]) == 1
    assert torch.equal(read.predict(regression[0]).mean, posterior.predict(regression[0]).mean)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("path", [None, "file"])
def test_a_store_keeps_what_is_appended(tmp_path, dtype, path) -> None:
    rows = torch.randn(4, 3, 5).to(dtype)
    state = {"odd": torch.tensor([True, False, True]), "deep": torch.randn(3, 3).double()}
    store = DrawStore(3, 6, 5, dtype, path and tmp_path / path, state=state)
    for row in rows:
        store.append(row)
    assert torch.equal(store.finished(), rows.transpose(0, 1))
    assert torch.equal(store.finished(2), rows[:2].transpose(0, 1))


@pytest.mark.parametrize(
    ("counts", "shape"), [([6, 6, 6], (3, 6)), ([6, 6, 1], (2, 6)), ([6, 5, 4], (3, 4)), ([6, 0, 0], (1, 6))]
)
def test_chains_that_are_not_equally_far_keep_most_draws(counts, shape) -> None:
    store = DrawStore(3, 6, 2, torch.float32)
    for chain, count in enumerate(counts):
        for draw in range(count):
            store.append_to(chain, torch.full((2,), float(10 * chain + draw)))
    kept = store.finished()
    assert kept.shape == (*shape, 2)
    assert all(kept[c, d, 0] == 10 * c + d for c in range(shape[0]) for d in range(shape[1]))


# --------------------------------------------------------------------------------------------------- what can happen


def test_a_killed_run_is_read_back_up_to_what_it_had(model, tmp_path) -> None:
    """Killed in the act by a signal that cannot be caught."""
    path = tmp_path / "draws"
    script = """
        import os, signal, sys, torch, bnn
        from torch import nn
        net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
        model = bnn.BNN(net, bnn.priors.Normal(1.0), bnn.likelihoods.Gaussian())
        def kill(progress):
            if progress.step == 30:
                os.kill(os.getpid(), signal.SIGKILL)
        method = bnn.SGLD(num_samples=50, keep_every=2, warmup=10, chains=2)
        data = (torch.randn(20, 3), torch.randn(20, 1))
        bnn.fit(model, data, method, store=sys.argv[1], compile="eager", progress=False, callbacks=[kill])
    """
    ran = subprocess.run([sys.executable, "-c", textwrap.dedent(script), path], check=False, timeout=300)
    assert ran.returncode == -signal.SIGKILL
    posterior = read_store(path, model)
    assert posterior.approximation.shape == (2, 10)
    assert posterior.history.interrupted
    assert all(bool(value.isfinite().all()) for value in posterior.draws().values())
    assert posterior.predict(torch.randn(4, 3)).mean.shape == (4, 1)


def test_ctrl_c_leaves_what_there_is_in_the_file(model, regression, quick, tmp_path) -> None:
    def stop(progress: bnn.inference.Progress) -> None:
        if progress.step == 10:
            raise KeyboardInterrupt

    posterior = quick(model, regression, QUICK, store=tmp_path / "draws", callbacks=[stop])
    assert posterior.history.interrupted
    assert posterior.approximation.shape == (3, 3)
    read = read_store(tmp_path / "draws", model)
    assert torch.equal(read.approximation.tensors()["vectors"], posterior.approximation.tensors()["vectors"])


def test_nothing_is_written_over(stored, model, regression, quick) -> None:
    path = stored[1]
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match="another store="):
        quick(model, regression, QUICK, store=path)
    assert path.read_bytes() == before


@pytest.mark.skipif(sys.platform != "linux", reason="the disk is asked for its room on Linux only")
def test_a_disk_without_room_is_told_and_left_as_it_was(tmp_path) -> None:
    with pytest.raises(OSError, match="cannot hold all draws"):
        DrawStore(1, 2**40, 2**10, torch.float64, tmp_path / "draws")
    assert not (tmp_path / "draws").exists()


@pytest.mark.parametrize("method", ["map", "mean_field", "svgd"])
def test_methods_without_chains_refuse_a_store(model, regression, quick, tmp_path, method) -> None:
    with pytest.raises(ValueError, match="makes no chains"):
        quick(model, regression, method, store=tmp_path / "draws")
    assert not (tmp_path / "draws").exists()


# ------------------------------------------------------------------------------------------------------------ memory


def resident(kind: str) -> int:
    """Bytes of this process in memory: ``RssAnon``, its own, or ``RssFile``, mapped from files."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(kind):
            return int(line.split()[1]) * 1024
    raise AssertionError(kind)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_streamed_run_does_not_hold_its_draws(regression, quick, tmp_path) -> None:
    """Draws of 128 MB, of which less than an eighth is the process's own, in the run and in predictions from it."""
    net = nn.Sequential(nn.Linear(3, 5000), nn.Tanh(), nn.Linear(5000, 1))
    model = bnn.BNN(net, bnn.priors.Normal(1.0), bnn.likelihoods.Gaussian(0.5))
    method = bnn.SGLD(num_samples=640, keep_every=1, warmup=0, chains=2, lr=1e-9)
    quick(model, regression, bnn.SGLD(num_samples=2, keep_every=1, warmup=0, chains=2, lr=1e-9)).predict(regression[0])
    before = resident("RssAnon")
    posterior = quick(model, regression, method, store=tmp_path / "draws")
    size = os.path.getsize(tmp_path / "draws")
    assert size > 128_000_000
    assert resident("RssAnon") - before < size / 8
    read = read_store(tmp_path / "draws", model)
    for each in (posterior, read):
        each.predict(regression[0], draws=10)
        assert resident("RssAnon") - before < size / 8


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_prediction_touches_only_its_draws(model, tmp_path) -> None:
    """Pages of a file just read back are in memory only if something has touched them."""
    layout = Layout(model.sites().latents)
    whole = torch.zeros(2, 2_000_000, layout.size)
    _ = DrawStore(2, 1_000_000, layout.size, torch.float32, tmp_path / "draws")
    size = os.path.getsize(tmp_path / "draws")
    del whole
    mapped = torch.from_file(str(tmp_path / "draws"), shared=False, size=size // 4, dtype=torch.float32)
    vectors = mapped[-2_000_000 * layout.size :].view(2, 1_000_000, layout.size)
    before = resident("RssFile")
    drawn = Chains(layout, vectors).sample(50)
    assert len(drawn["0.weight"]) == 50
    assert resident("RssFile") - before < size / 8


# ----------------------------------------------------------------------------------------------------- hostile files


def rewritten(path: Path, change: object) -> None:
    """The header of a safetensors file, changed; the data as they are."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    change(header)  # type: ignore[operator]
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


def _record(header, **changes):
    record = json.loads(header["__metadata__"]["record"]) | changes
    header["__metadata__"]["record"] = json.dumps({k: v for k, v in record.items() if v != "gone"})


HEADERS = {
    "a table beyond the end": lambda h: h["vectors"].update(shape=[3, 6000, h["vectors"]["shape"][2]]),
    "offsets beyond the end": lambda h: h["vectors"].update(data_offsets=[24, 10**12]),
    "negative offsets": lambda h: h["vectors"].update(data_offsets=[-8, 24]),
    "tables that overlap": lambda h: h["counts"].update(data_offsets=h["vectors"]["data_offsets"]),
    "no table": lambda h: h.update(other=h.pop("vectors")),
    "no counts": lambda h: h.update(other=h.pop("counts")),
    "counts of another dtype": lambda h: h["counts"].update(dtype="F64"),
    "a flat table": lambda h: h["vectors"].update(shape=[3 * 6 * h["vectors"]["shape"][2]]),
    "other numbers a draw": lambda h: h["vectors"].update(shape=[3, 6 * h["vectors"]["shape"][2], 1]),
    "more chains than counts": lambda h: h["vectors"].update(shape=[6, 3, h["vectors"]["shape"][2]]),
    "another format": lambda h: h["__metadata__"].update(format="bnn draws 2"),
    "no metadata": lambda h: h.pop("__metadata__"),
    "no record": lambda h: h["__metadata__"].pop("record"),
    "a record that is no JSON": lambda h: h["__metadata__"].update(record="import os"),
    "a record that is a list": lambda h: h["__metadata__"].update(record="[]"),
    "a deep record": lambda h: h["__metadata__"].update(record="[" * 100_000),
    "a record without sites": lambda h: _record(h, sites="gone"),
    "settings that are none": lambda h: _record(h, settings=3),
    "shapes that are none": lambda h: _record(h, input_shapes=[["3"]]),
    "another likelihood": lambda h: _record(h, likelihood="Categorical()"),
    "another network": lambda h: _record(h, sites={}),
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_file_with_a_wrong_header_is_refused(stored, model, name) -> None:
    path = stored[1]
    rewritten(path, HEADERS[name])
    with pytest.raises(ValueError, match=r"damaged|newer bnn|this model|in this"):
        read_store(path, model)


@pytest.mark.parametrize("counts", [[7, 6, 6], [-1, 6, 6], [0, 0, 0], [2**62, 0, 0]])
def test_a_file_with_wrong_counts_is_refused(stored, model, counts) -> None:
    path = stored[1]
    data = bytearray(path.read_bytes())
    begin = 8 + int.from_bytes(data[:8], "little")
    data[begin : begin + 24] = torch.tensor(counts).numpy().tobytes()
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"counts|no draw yet"):
        read_store(path, model)


@pytest.mark.parametrize("content", [b"", b"\x00" * 7, b"\xff" * 100, b"\x80\x04N.", b"{}"])
def test_what_is_no_store_is_refused(model, tmp_path, content) -> None:
    (tmp_path / "draws").write_bytes(content)
    with pytest.raises(ValueError, match="damaged"):
        read_store(tmp_path / "draws", model)


def test_a_file_cut_short_is_refused(stored, model) -> None:
    path = stored[1]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="damaged"):
        read_store(path, model)


def test_a_file_that_is_not_there(model, tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="no file"):
        read_store(tmp_path / "nothing", model)


# ------------------------------------------------------------------------------------------------------------- chains


def test_chains_give_evenly_spaced_draws_of_named_sites(model) -> None:
    layout = Layout(model.sites().latents)
    vectors = torch.randn(2, 5, layout.size)
    chains = Chains(layout, vectors)
    assert chains.shape == (2, 5)
    for num, rows in ((1, [0]), (2, [0, 9]), (4, [0, 3, 6, 9]), (10, list(range(10)))):
        drawn = chains.sample(num)
        for i, row in enumerate(rows):
            expected = layout.unflatten(vectors.flatten(0, 1)[row])
            for name, value in expected.items():
                torch.testing.assert_close(drawn[name][i], value)


def test_chains_keep_their_statistics_in_files(model, regression, tmp_path) -> None:
    layout = Layout(model.sites().latents)
    chains = Chains(layout, torch.randn(2, 5, layout.size), {"energy": torch.randn(2, 5)})
    bnn.Posterior(model, chains, points={}, state=model.state()).save(tmp_path / "saved")
    loaded = bnn.load(tmp_path / "saved", model).approximation
    assert isinstance(loaded, Chains)
    assert torch.equal(loaded.statistics["energy"], chains.statistics["energy"])
    assert torch.equal(loaded.vectors, chains.vectors)


@pytest.mark.parametrize("shape", [(2, 5), (0, 5, 22), (2, 0, 22), (2, 5, 3)])
def test_chains_of_a_wrong_shape_are_refused(model, shape) -> None:
    with pytest.raises(ValueError, match="chains have shape"):
        Chains(Layout(model.sites().latents), torch.zeros(shape))
    layout = Layout(model.sites().latents)
    with pytest.raises(ValueError, match="energy"):
        Chains(layout, torch.zeros(2, 5, layout.size), {"energy": torch.zeros(2, 4)})
