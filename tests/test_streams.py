"""Data that are read from disk piece by piece."""

import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

import bnn
from bnn import streams
from bnn.data import Batch, as_source
from bnn.distributed import World
from bnn.streams import StreamSource
from bnn.streams.mapped import Mapped, is_mapped

N, D = 1000, 3


def table(n: int = N) -> np.ndarray[Any, Any]:
    """Inputs that tell which row they are, and a target."""
    x = np.arange(n * D, dtype=np.float32).reshape(n, D)
    return np.column_stack([x, x.sum(1) / n]).astype(np.float32)


def model(likelihood: Any = None) -> bnn.BNN:
    outputs = nn.Linear(D, 3) if likelihood is not None else nn.Sequential(nn.Linear(D, 1), nn.Flatten(0))
    return bnn.BNN(outputs, bnn.priors.Normal(1.0), likelihood or bnn.likelihoods.Gaussian(1.0))


def on_disk(path: Path, values: np.ndarray[Any, Any]) -> Any:
    np.save(path, values)
    return np.load(path, mmap_mode="r")


def parquet(path: Path, values: np.ndarray[Any, Any], group: int = 100) -> Path:
    columns = {**{f"x{i}": values[:, i] for i in range(values.shape[1] - 1)}, "y": values[:, -1]}
    pl.DataFrame(columns).write_parquet(path, row_group_size=group)
    return path


@pytest.fixture(params=["mapped", "parquet", "two files"])
def stream(request: pytest.FixtureRequest, tmp_path: Path) -> streams.Stream:
    values = table()
    if request.param == "mapped":
        mapped = on_disk(tmp_path / "all.npy", values)
        return streams.MemoryMapped(mapped[:, :-1], mapped[:, -1], piece=70, memory=4000)
    if request.param == "parquet":
        return streams.Parquet(parquet(tmp_path / "all.parquet", values), target="y", piece=100, memory=4000)
    parquet(tmp_path / "part-0.parquet", values[:333])
    parquet(tmp_path / "part-1.parquet", values[333:])
    return streams.Parquet(str(tmp_path / "part-*.parquet"), target="y", piece=100, memory=4000)


def rows_of(batch: Batch) -> list[int]:
    """Which rows a batch has."""
    assert isinstance(batch.x, torch.Tensor)
    return (batch.x[:, 0] / D).round().long().tolist()


def source(stream: streams.Stream, batch_size: int | None = 64, ranks: World | None = None) -> StreamSource:
    one = model()
    return StreamSource(stream, one.likelihood, one.like, batch_size, ranks)


def test_rows_come_in_order_outside_a_fit(stream: streams.Stream) -> None:
    x, y = (np.concatenate(parts) for parts in zip(*stream, strict=True))
    assert np.array_equal(x, table()[:, :-1])
    assert np.array_equal(y, table()[:, -1])
    assert len(stream) == N


def test_an_epoch_has_every_row_once_in_full_batches_and_another_order_each_time(stream: streams.Stream) -> None:
    epochs = []
    torch.manual_seed(0)
    data = source(stream)
    for _ in range(2):
        batches = list(data.batches())
        assert [len(batch.y) for batch in batches] == [64] * 15 + [40]
        assert all(torch.equal(batch.y, batch.x.sum(1) / N) for batch in batches if isinstance(batch.x, torch.Tensor))
        epochs.append([row for batch in batches for row in rows_of(batch)])
    assert data.sizes == {64: 15, 40: 1}
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(N))
    assert epochs[0] != epochs[1]
    # Pieces are mixed: of neighbours on disk few are neighbours in the epoch.
    assert sum(abs(a - b) == 1 for a, b in pairwise(epochs[0])) < 0.05 * N
    torch.manual_seed(0)
    assert [row for batch in source(stream).batches() for row in rows_of(batch)] == epochs[0]


def test_no_more_than_the_memory_is_held(tmp_path: Path) -> None:
    """4000 bytes are 250 rows of four floats: a batch is made of rows of so many at most, and of those left over."""
    mapped = on_disk(tmp_path / "all.npy", table())
    data = source(streams.MemoryMapped(mapped[:, :-1], mapped[:, -1], piece=50, memory=4000), 50)
    torch.manual_seed(0)
    batches = list(data.batches())
    for first in range(0, 20, 5):
        together = {row // 50 for batch in batches[first : first + 5] for row in rows_of(batch)}
        assert len(together) == 5


@pytest.mark.parametrize("size", [2, 3])
def test_ranks_share_an_epoch(stream: streams.Stream, size: int) -> None:
    parts = [list(source(stream, 64, World(rank, size)).batches()) for rank in range(size)]
    assert {len(part) for part in parts} == {16}
    for step in zip(*parts, strict=True):
        rows = sum(len(batch.y) for batch in step)
        assert [batch.share for batch in step] == pytest.approx([len(batch.y) / rows for batch in step])
    assert sorted(row for part in parts for batch in part for row in rows_of(batch)) == list(range(N))


def test_more_ranks_than_pieces_are_told(tmp_path: Path) -> None:
    file = parquet(tmp_path / "all.parquet", table())
    with pytest.raises(ValueError, match="3 ranks share 2 pieces"):
        source(streams.Parquet(file, target="y", piece=500), 64, World(0, 3))


def test_a_fit_to_mapped_arrays_finds_what_one_to_arrays_finds(tmp_path: Path) -> None:
    values = table(90) / 100
    mapped = on_disk(tmp_path / "all.npy", values)
    net = nn.Sequential(nn.Linear(D, 1), nn.Flatten(0))
    one = bnn.BNN(net, bnn.priors.Normal(1.0), bnn.likelihoods.Gaussian(1.0))
    method = bnn.MAP(epochs=4, batch_size=None)
    weight = np.linspace(0, 2, 90, dtype=np.float32)
    first, second = (
        bnn.fit(one, data, method, progress=False, compile="graph", weight=weight).approximation.tensors()
        for data in ((mapped[:, :-1], mapped[:, -1]), (values[:, :-1], values[:, -1]))
    )
    for name, value in first.items():
        torch.testing.assert_close(value, second[name])


def test_mapped_arrays_are_recognised(tmp_path: Path) -> None:
    mapped, one = on_disk(tmp_path / "all.npy", table()), model()
    assert isinstance(as_source((mapped[:, :-1], mapped[:, -1]), one.likelihood, one.like, 10), StreamSource)
    assert isinstance(as_source((mapped[:, :-1], table()[:, -1]), one.likelihood, one.like, 10), StreamSource)
    assert is_mapped(mapped[::2, 1:])
    assert not is_mapped(mapped * 2)  # of the same class, and in memory
    assert not is_mapped(np.array(mapped))


@pytest.mark.parametrize(
    "view",
    [
        lambda a: a,
        lambda a: a[:, 1:3],
        lambda a: a[:, -1],
        lambda a: a[17:600:3],
        lambda a: a[::-1, ::-1],
        lambda a: a.reshape(N, 2, 2)[:, :, 1],
        lambda a: a.reshape(N, 2, 2).transpose(0, 2, 1),
    ],
    ids=["all", "columns", "one column", "stride", "backwards", "inner", "turned"],
)
@pytest.mark.parametrize("mode", ["r", "r+", "c"])
def test_parts_of_a_mapped_array_are_read_as_they_are(view: Callable[[Any], Any], mode: Any, tmp_path: Path) -> None:
    values = table()
    np.save(tmp_path / "all.npy", values)
    mapped = np.load(tmp_path / "all.npy", mmap_mode=mode)
    if mode != "r":
        mapped[5] = values[5] = -1
    read = Mapped(view(mapped), "x")
    expected = view(values)
    assert np.array_equal(read(0, len(expected)), expected)
    assert np.array_equal(read(3, 9), expected[3:9])


def test_other_dtypes_and_byte_orders(tmp_path: Path) -> None:
    x, y = table()[:, :-1].astype(">f8"), (np.arange(N) % 3).astype(np.int16)
    both = (on_disk(tmp_path / "x.npy", x), on_disk(tmp_path / "y.npy", y))
    one = model(bnn.likelihoods.Categorical())
    batch = next(as_source(both, one.likelihood, one.like, 10).batches())
    assert isinstance(batch.x, torch.Tensor)
    assert (batch.x.dtype, batch.y.dtype) == (torch.float32, torch.int16)
    assert torch.equal(batch.y, (batch.x[:, 0] / D).round().long() % 3)


def test_several_inputs(tmp_path: Path) -> None:
    values = on_disk(tmp_path / "all.npy", table())
    for x in ((values[:, :2], values[:, 2:3]), {"a": values[:, :2], "b": values[:, 2:3]}):
        data = source(streams.MemoryMapped(x, values[:, -1], piece=70))
        batch = next(data.batches())
        first, second = batch.leaves[:2]
        assert (first.shape, second.shape) == ((64, 2), (64, 1))
        assert torch.equal(first[:, 0] + 2, second[:, 0])


def test_wrong_rows_are_told_by_number(tmp_path: Path) -> None:
    values = table()
    values[777, 1] = np.nan
    mapped = on_disk(tmp_path / "all.npy", values)
    method, one = bnn.MAP(epochs=1), model()
    with pytest.raises(ValueError, match=r"^row 777: x has NaN or infinite values$"):
        bnn.fit(one, (mapped[:, :-1], mapped[:, -1]), method, progress=False, compile="graph")
    file = parquet(tmp_path / "all.parquet", values)
    with pytest.raises(ValueError, match=r"all\.parquet, row 777: x has NaN or infinite values$"):
        bnn.fit(one, streams.Parquet(file, target="y"), method, progress=False, compile="graph")
    with pytest.raises(ValueError, match=r"all\.parquet, row 777: x has NaN"):
        streams.moments(streams.Parquet(file, target="y"))
    labels = np.zeros(N, dtype=np.int64)
    labels[901] = 7
    y = on_disk(tmp_path / "y.npy", labels)
    two = model(bnn.likelihoods.Categorical())
    with pytest.raises(ValueError, match=r"^row 901: .*label 7"):
        bnn.fit(two, (np.array(table()[:, :-1]), y), method, progress=False, compile="graph")


def test_bad_files_and_columns_are_told(tmp_path: Path) -> None:
    values = table()
    file = parquet(tmp_path / "all.parquet", values)
    pl.DataFrame({"x0": ["a"], "y": [1.0]}).write_parquet(tmp_path / "text.parquet")
    pl.DataFrame({"x0": [], "y": []}, schema={"x0": pl.Float32, "y": pl.Float32}).write_parquet(tmp_path / "no.parquet")
    (tmp_path / "broken.parquet").write_bytes(file.read_bytes()[:-50])
    cases: list[tuple[type[Exception], str, Callable[[], Any]]] = [
        (ValueError, "no column 'xx0'; the nearest are x0", lambda: streams.Parquet(file, target="xx0")),
        (FileNotFoundError, "no file", lambda: streams.Parquet(tmp_path / "none.parquet", target="y")),
        (ValueError, "no numbers but String", lambda: streams.Parquet(tmp_path / "text.parquet", target="y")),
        (ValueError, "has no rows", lambda: streams.Parquet(tmp_path / "no.parquet", target="y")),
        (ValueError, "cannot be read as Parquet", lambda: streams.Parquet(tmp_path / "broken.parquet", target="y")),
        (
            ValueError,
            "column by column",
            lambda: streams.MemoryMapped(on_disk(tmp_path / "f.npy", np.asfortranarray(values)), values[:, 0]),
        ),
        (ValueError, "equally many", lambda: streams.MemoryMapped(values, values[:5, 0])),
    ]
    for kind, told, call in cases:
        with pytest.raises(kind, match=told):
            call()


def test_files_that_store_a_column_in_another_kind_are_told(tmp_path: Path) -> None:
    pl.DataFrame({"x": [1.0, 2.0], "y": [0, 1]}).write_parquet(tmp_path / "1.parquet")
    pl.DataFrame({"x": [1.0, 2.0], "y": [0.0, 0.5]}).write_parquet(tmp_path / "2.parquet")
    one = bnn.BNN(nn.Linear(1, 1), bnn.priors.Normal(1.0), bnn.likelihoods.Categorical())
    data = streams.Parquet(str(tmp_path / "*.parquet"), target="y")
    with pytest.raises(ValueError, match=r"\.parquet, row 0: "):
        list(StreamSource(data, one.likelihood, one.like, 2).batches())


def test_a_file_that_has_become_shorter_is_told(tmp_path: Path) -> None:
    mapped = on_disk(tmp_path / "all.npy", table(100_000))
    data = streams.MemoryMapped(mapped[:, :-1], mapped[:, -1], piece=100)
    with (tmp_path / "all.npy").open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(OSError, match="has become shorter"):
        data.read(5)


def test_moments_and_scaling(stream: streams.Stream) -> None:
    values = table().astype(np.float64)
    x, y = streams.moments(stream)
    for found, part in ((x, values[:, :-1]), (y, values[:, -1])):
        np.testing.assert_allclose(found.mean, part.mean(0), rtol=1e-12)
        np.testing.assert_allclose(found.std, part.std(0), rtol=1e-12)
    inputs, targets = (np.concatenate(parts) for parts in zip(*stream.scaled(x, y), strict=True))
    assert inputs.dtype == np.float32
    np.testing.assert_allclose(inputs.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(inputs.std(0), 1, rtol=1e-5)
    np.testing.assert_allclose(y.unscale(targets), values[:, -1], rtol=1e-5, atol=1e-5)


def test_predictions_of_a_stream_are_those_of_its_rows(stream: streams.Stream) -> None:
    x, _ = streams.moments(stream)
    scaled = stream.scaled(x)
    method = bnn.MeanField(epochs=1, batch_size=256)
    posterior = bnn.fit(model(), scaled, method, progress=False, compile="graph")
    parts = list(streams.predict(posterior, scaled, draws=7, rows=64))
    whole = posterior.predict(x.scale(table()[:, :-1]), draws=7)
    torch.testing.assert_close(torch.cat([part.mean for part in parts]), whole.mean)
    torch.testing.assert_close(posterior.predict(scaled, draws=7).mean, whole.mean)
    assert max(len(part.mean) for part in parts) == 64


class Endless(IterableDataset[Any]):
    """Rows that are made as they are asked for."""

    def __iter__(self) -> Any:
        return iter([(torch.ones(D), torch.tensor(1.0))] * 100)


def test_any_loader_streams(tmp_path: Path) -> None:
    posterior = bnn.fit(
        model(),
        DataLoader(Endless(), batch_size=30),
        bnn.MAP(epochs=2),
        n_data=100,
        progress=False,
        compile="graph",
    )
    assert posterior.history.steps_per_epoch == 4
    parts = list(streams.predict(posterior, DataLoader(Endless(), batch_size=30)))
    assert [len(part.mean) for part in parts] == [30, 30, 30, 10]


def test_a_fit_to_a_stream_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    mapped = on_disk(tmp_path / "all.npy", table())
    stream = streams.MemoryMapped(mapped[:, :-1], mapped[:, -1], piece=70, memory=4000)
    x, _ = streams.moments(stream)
    scaled, method, one = stream.scaled(x), bnn.MeanField(epochs=2, batch_size=128), model()
    whole = bnn.fit(one, scaled, method, progress=False, compile="graph").approximation.tensors()
    steps = []

    def stop(self: Any, *arguments: Any) -> Any:
        steps.append(1)
        if len(steps) == 6:
            raise RuntimeError("power failure")
        return read(self, *arguments)

    place = bnn.checkpoint.Checkpoint(tmp_path / "state", steps=2)
    read = bnn.inference.Objective.gradients
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bnn.inference.Objective, "gradients", stop)
        with pytest.raises(RuntimeError, match="power failure"):
            bnn.fit(one, scaled, method, progress=False, compile="graph", checkpoint=place)
    resumed = bnn.fit(one, scaled, method, progress=False, compile="graph", checkpoint=place)
    assert "went on from step 4" in " ".join(resumed.history.notes)
    for name, value in resumed.approximation.tensors().items():
        assert torch.equal(value, whole[name]), name


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
@pytest.mark.parametrize("how", ["mapped", "parquet", "in_memory"])
def test_peak_memory_does_not_grow_with_the_rows(how: str, tmp_path: Path) -> None:
    """From 2^17 to 2^21 rows, 16 to 270 MB: by less than 10 % of the process; arrays in memory by far more."""
    peaks = []
    for times in (1, 16):
        path = tmp_path / (f"{times}.parquet" if how == "parquet" else f"{times}.npy")
        rows = np.random.default_rng(0).standard_normal((times * 2**17, 33), dtype=np.float32)
        if how == "parquet":
            parquet(path, rows, group=16_384)
        else:
            np.save(path, rows)
        del rows
        told = subprocess.run(
            [sys.executable, str(Path(__file__).parent / "streaming.py"), str(path), how],
            check=True,
            capture_output=True,
            text=True,
        )
        peaks.append(int(told.stdout))
        path.unlink()
    growth = peaks[1] / peaks[0] - 1
    print(f"{how}: {peaks[0] / 2**20:.0f} MB, {peaks[1] / 2**20:.0f} MB")
    assert (growth > 0.5) if how == "in_memory" else (growth < 0.1)
