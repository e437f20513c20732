"""Fits that two processes make together: the same answer on both, and that of one process where it is to be equal."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import ranks
import torch
from click.testing import CliRunner
from torch import distributed as torch_distributed
from torch.distributed import HashStore

import bnn
from bnn import distributed
from bnn.cli import main
from bnn.data import ArraySource, as_source
from bnn.distributed import World
from bnn.inference.shared_rows import SharedArrays, own_gradients
from bnn.rendezvous import fresh

HERE = Path(__file__).parent
pytestmark = pytest.mark.skipif(not torch_distributed.is_gloo_available(), reason="this torch has no gloo")

#: Sums in another order: of a few hundred float32 terms near 1, over a dozen steps of lr 0.01.
TOLERANCE = {"rtol": 1e-4, "atol": 2e-5}
EXACT = ("map_batches", "map_whole", "map_one_row_left", "map_sampler", "map_stream")
FAST = (*EXACT, "map_iterable", "mean_field", "stopped", "ensemble", "resumed", "left", "together")
SLOW = ("map_dataset", "map_loader", "map_search", "map_norm", "anchored", "mixture", "chains", "ivon")


def launch(folder: Path, *names: str, timeout: float = 600, variables: Mapping[str, str] | None = None) -> list[str]:
    """Run jobs on two ranks; what each of them printed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    common |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **(variables or {})}
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "error", str(HERE / "ranks.py"), str(folder), *names],
            env=common | {"RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        told = [process.communicate(timeout=timeout)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(told)
    return told


def read(folder: Path, name: str) -> list[Any]:
    return [torch.load(folder / f"{name}-{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """All fast jobs, in one start of two processes; and the folder that they had."""
    folder = tmp_path_factory.mktemp("ranks")
    launch(folder, *FAST)
    return {name: read(folder, name) for name in FAST} | {"folder": [folder]}


def equal_on_both(first: Any, second: Any) -> None:
    assert first["values"].keys() == second["values"].keys()
    for name, value in first["values"].items():
        assert torch.equal(value, second["values"][name]), name


@pytest.mark.parametrize("name", EXACT)
def test_two_ranks_find_what_one_process_finds(name: str, results: dict[str, list[Any]], tmp_path: Path) -> None:
    first, second = results[name]
    one = ranks.JOBS[name](tmp_path)
    equal_on_both(first, second)
    assert first["steps"] == second["steps"]
    assert len(first["steps"]) == len(one["steps"])
    torch.testing.assert_close(first["loss"], one["loss"], **TOLERANCE)
    for key, value in one["values"].items():
        torch.testing.assert_close(first["values"][key], value, **TOLERANCE)


def test_a_variational_fit_holds_the_same_parameters_on_all_ranks_after_every_step(
    results: dict[str, list[Any]],
) -> None:
    first, second = results["mean_field"]
    assert len(set(first["steps"])) == 8  # two epochs of four batches, each of which moved
    assert first["steps"] == second["steps"]
    assert first["evidence"] == second["evidence"]
    equal_on_both(first, second)


def test_batches_of_a_loader_that_come_unevenly_count_by_rows(results: dict[str, list[Any]]) -> None:
    first, second = results["map_iterable"]
    assert first["steps"] == second["steps"]
    assert len(first["steps"]) == 2 * 3  # 30 and 30, 30 and 0, 11 and 0 rows: as many steps as the longer loader has
    equal_on_both(first, second)


def test_rank_0_decides_when_to_stop(results: dict[str, list[Any]]) -> None:
    first, second = results["stopped"]
    assert (first["epochs"], second["epochs"]) == (2, 2)
    assert (first["called"], second["called"]) == ([1, 2], [])
    equal_on_both(first, second)


def test_members_are_those_of_one_process_and_everywhere(results: dict[str, list[Any]], tmp_path: Path) -> None:
    first, second = results["ensemble"]
    one = ranks.JOBS["ensemble"](tmp_path)
    equal_on_both(first, second)
    for key, value in one["values"].items():
        torch.testing.assert_close(first["values"][key], value, **TOLERANCE)
    assert "fitted on 2 ranks" in first["notes"][-1]


def test_a_fit_on_two_ranks_goes_on_to_the_same_bytes(results: dict[str, list[Any]]) -> None:
    for result in results["resumed"]:
        for name, value in result["whole"].items():
            assert torch.equal(result["values"][name], value), name
    assert len(results["resumed"][0]["steps"]) == 12 - 3  # it had failed in step 6, after a state at step 3


def check_taken_up(result: dict[str, Any], size: int, before: int) -> None:
    """The answer of a run that nobody stopped, from step 3 on, and a note."""
    changed = f"ranks: {size} go on, where there were {before}: the noise of other ranks is new"
    assert result["notes"] == [changed, "went on from step 3"]
    assert len(result["steps"]) == 12 - 3
    for name, value in ranks.kept(*ranks.fit(ranks.rows(), ranks.MOVED))["values"].items():
        torch.testing.assert_close(result["values"][name], value, **TOLERANCE)


def test_one_process_goes_on_with_what_two_have_left(results: dict[str, list[Any]]) -> None:
    check_taken_up(ranks.taken_up(results["folder"][0]), 1, 2)


@pytest.mark.slow
def test_two_go_on_with_what_one_process_has_left(tmp_path: Path) -> None:
    ranks.left(tmp_path)
    launch(tmp_path, "taken_up")
    for result in read(tmp_path, "taken_up"):
        check_taken_up(result, 2, 1)


def test_work_is_spread_and_an_error_on_one_rank_reaches_the_others(results: dict[str, list[Any]]) -> None:
    first, second = results["together"]
    assert first["squares"] == second["squares"] == [(i * i, 1) for i in range(5)]
    assert first["told"] == "RankError: a call on another rank: rank 1 stopped with ValueError: three is bad"
    assert second["told"] == "ValueError: three is bad"
    assert "1 members cannot be shared out over 2 ranks" in first["few"]
    assert "the ranks fit different methods" in first["other"]
    assert "the ranks fit different methods" in second["other"]


def test_the_command_line_is_for_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    done = CliRunner().invoke(main, ["fit", "rows.csv", "--target", "y", "--out", "run"])
    assert done.exit_code == 2
    assert "torchrun has started 2: call bnn.fit in a script of your own" in done.output


@pytest.mark.parametrize("size", [1, 2, 3])
def test_ranks_of_a_new_start_read_nothing_of_the_one_before(size: int) -> None:
    """A store that is kept over restarts, as torchrun's is, with places and words of ranks that are gone."""
    store, told = HashStore(), list[list[str]]()
    for start, ranks_before in enumerate([3, 1, 3, size]):
        found: dict[int, Any] = {}

        def come(rank: int, size: int = ranks_before, found: dict[int, Any] = found) -> None:
            found[rank] = fresh(store, rank, size, timeout=20)

        threads = [Thread(target=come, args=(rank,)) for rank in range(ranks_before)]
        for thread in reversed(threads) if start % 2 else threads:  # rank 0 comes last, or first
            thread.start()
            time.sleep(0.05)
        for thread in threads:
            thread.join()
        for rank, own in found.items():
            assert not own.check([f"address {rank}"])
        found[0].set("address 0", str(start))
        told.append([own.get("address 0").decode() for own in found.values()])
    assert told == [["0"] * 3, ["1"], ["2"] * 3, ["3"] * size]


def test_ranks_that_do_not_come_are_not_waited_for_without_end() -> None:
    for rank, whom in ((0, "all ranks"), (1, "rank 0")):
        with pytest.raises(RuntimeError, match=f"{whom} did not come in time"):
            fresh(HashStore(), rank, 2, timeout=0.1)


def parts(source: ArraySource, size: int, monkeypatch: pytest.MonkeyPatch) -> list[list[bnn.data.Batch]]:
    """The batches of each of several ranks, which all draw the same order."""
    monkeypatch.setattr(World, "broadcast_", lambda self, tensors: None)
    found = []
    for rank in range(size):
        torch.manual_seed(0)
        found.append(list(SharedArrays(source, World(rank, size)).batches()))
    return found


@pytest.mark.parametrize("size", [2, 3, 5])
def test_the_parts_of_an_epoch_are_all_rows_once(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = ranks.model()
    source = as_source(ranks.rows(23), model.likelihood, model.like, 7)
    assert isinstance(source, ArraySource)
    found = parts(source, size, monkeypatch)
    steps = list(zip(*found, strict=True))
    assert [sum(len(batch.y) for batch in step) for step in steps] == [7, 7, 7, 2]
    assert all(sum(batch.share for batch in step) == pytest.approx(1.0) for step in steps)
    seen = torch.cat([batch.y for own in found for batch in own])
    assert torch.equal(seen.sort().values, ranks.rows(23)[1].sort().values)


def test_nothing_happens_without_init(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    assert distributed.world() == World(0, 1)
    with pytest.raises(ValueError, match=r"start the script by `torchrun"):
        distributed.init()
    assert distributed.each(lambda i: i + 1, [1, 2]) == [2, 3]


def summed(size: int, monkeypatch: pytest.MonkeyPatch) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradient of the first batch, and the sum of the parts of several ranks."""
    model = ranks.model()
    data = as_source(ranks.rows(23), model.likelihood, model.like, 7)
    assert isinstance(data, ArraySource)
    loss = bnn.MAP().loss(model, 23, compile="eager")
    torch.manual_seed(0)
    whole = loss.gradients(next(data.batches()))[0][0]
    shared = [own_gradients(loss, own[0])[0][0] for own in parts(data, size, monkeypatch)]
    return whole, torch.stack(shared).sum(0)


def test_the_parts_of_a_step_sum_to_its_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, shared = summed(3, monkeypatch)
    torch.testing.assert_close(shared, whole)


@pytest.mark.parametrize(
    ("old", "new"),
    [("[g * batch.share for g", "[g / 3 for g"), ("[g * batch.share for g", "[g for g")],
    ids=["ranks count alike, whatever their rows", "added up and not averaged"],
)
def test_control_parts_that_are_weighted_wrongly(
    old: str, new: str, patch_line: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    patch_line(sys.modules["bnn.inference.shared_rows"], "own_gradients", old, new)
    monkeypatch.setattr(sys.modules[__name__], "own_gradients", sys.modules["bnn.inference.shared_rows"].own_gradients)
    whole, shared = summed(3, monkeypatch)
    assert not torch.allclose(shared, whole, rtol=1e-3)


@pytest.mark.slow
def test_more_on_two_ranks(tmp_path: Path) -> None:
    """Loaders, a line search, batch statistics, anchored and variational members, NUTS, IVON."""
    launch(tmp_path, *SLOW, timeout=1200)
    found = {name: read(tmp_path, name) for name in SLOW}
    for first, second in found.values():
        equal_on_both(first, second)
    for name in ("map_dataset", "map_loader", "map_search", "anchored"):
        for key, value in ranks.JOBS[name](tmp_path)["values"].items():
            torch.testing.assert_close(found[name][0]["values"][key], value, rtol=1e-3, atol=1e-4)
    vectors = found["chains"][0]["values"]["vectors"]
    assert vectors.shape[:2] == (3, 30)
    assert not torch.allclose(vectors[0], vectors[2])
    locations = found["mixture"][0]["values"]["gaussian/loc"]  # of members that start at one place
    assert not torch.allclose(locations[0], locations[1], atol=1e-5)
    for key, value in found["map_norm"][0]["state"].items():
        assert torch.equal(value, found["map_norm"][1]["state"][key]), key


def torchrun(folder: Path, *names: str, restarts: int = 0, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["--max-restarts", str(restarts), str(HERE / "ranks.py"), str(folder), *names]
    started = subprocess.Popen(
        command,
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""} | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        told = started.communicate(timeout=300)
    except subprocess.TimeoutExpired:
        started.terminate()  # torchrun then ends its ranks, which hold the pipes too
        pytest.fail("\n".join(started.communicate()))
    return subprocess.CompletedProcess(command, started.returncode, *told)


@pytest.mark.slow
def test_a_rank_that_is_killed_costs_one_interval_at_most(tmp_path: Path) -> None:
    """torchrun starts all ranks again, and they go on from the last state to the same bytes."""
    done = torchrun(tmp_path, "killed", restarts=1)
    assert done.returncode == 0, done.stderr
    assert "exitcode: -9" in done.stderr
    for result in read(tmp_path, "killed"):
        assert result["notes"] == ["went on from step 10"]  # killed after 13 steps, with a state every 5
        for name, value in result["whole"].items():
            assert torch.equal(result["values"][name], value), name


@pytest.mark.slow
def test_a_rank_that_does_not_come_is_told_in_words(tmp_path: Path) -> None:
    launch(tmp_path, "late", variables={"TIMEOUT": "5"})
    told, _ = read(tmp_path, "late")
    assert "the others did not come" in told["told"]
    assert told["seconds"] < 20
