"""Runs that are killed: `kill -9` at moments of the clock, inside writes too, again and again until the run has ended.

A fit is named by where it is, ``"test_kill:mean_field"``: a function ``(folder) -> Posterior`` of a module in this
folder, which calls ``bnn.fit(..., checkpoint=bnn.Checkpoint(folder, steps=...))``. To begin anew costs five seconds of
imports, so that one process, of one thread of torch's, imports everything and forks a child a run.

    with Killer() as killer:
        counts = killer.torture("test_kill:mean_field", tmp_path, kills=20, seed=0)
"""

from __future__ import annotations

import importlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
#: Seconds that every flush, rename and half of a file takes: most of a run then passes inside writes.
SLOW = 0.02
LIMIT = 120.0


class Killer:
    """A process from which runs are forked."""

    def __enter__(self) -> Killer:
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment()
        )
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(LIMIT)
        assert self._process.stdout is not None
        self._process.stdout.close()

    def run(
        self, fit: str, folder: Path, *, after: float | None = None, slow: float = SLOW, keep: Path | None = None
    ) -> dict[str, Any]:
        """One run, killed after so many seconds (None: never).

        Args:
            fit: See the module.
            folder: Of the checkpoint.
            after: Seconds from the fork, imports not among them.
            slow: Seconds that every part of a write takes at least.
            keep: Where the whole posterior is to be saved besides.

        Returns:
            ``killed``, ``seconds``, and of a run that ended its ``digest`` (of draws, predictions and losses) and
            ``notes``.
        """
        out = folder.with_name(f"{folder.name}.json")
        out.unlink(missing_ok=True)
        order = {"fit": fit, "folder": str(folder), "out": str(out), "after": after, "slow": slow}
        order["keep"] = None if keep is None else str(keep)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        if not answer["killed"]:
            assert answer["status"] == 0, f"{fit} failed with status {answer['status']}"
            answer |= json.loads(out.read_text(encoding="utf-8"))
        return answer

    def torture(self, fit: str, folder: Path, *, kills: int, seed: int = 0, slow: float = SLOW) -> dict[str, int]:
        """Kill a fit so many times in all; each time that it ends all the same, its bytes are those of one not killed.

        Args:
            fit: See the module.
            folder: For checkpoints.
            kills: How many.
            seed: Of the moments: uniform over the time that a whole run takes.
            slow: See `run`.

        Returns:
            How many kills came inside a write of a state, ``inside``, and how often a run ended, ``ended``.
        """
        moments = random.Random(seed)
        whole = self.run(fit, folder / "whole", slow=slow)
        done = inside = ended = 0
        while done < kills or not ended:
            place = folder / f"run{ended}"
            after = None if done >= kills else moments.uniform(0, whole["seconds"])
            began = time.time()
            found = self.run(fit, place, after=after, slow=slow)
            if found["killed"]:
                done += 1
                left = [*place.rglob("*.part"), *place.rglob("state.next.safetensors")]
                inside += any(path.stat().st_mtime >= began for path in left)
            else:
                assert found["digest"] == whole["digest"], f"{fit}, killed {done} times, ends with other bytes"
                ended += 1
        return {"inside": inside, "ended": ended}


def environment() -> dict[str, str]:
    """One thread, which a fork takes along whole."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONPATH": f"{HERE.parent}:{HERE}"}


def fresh(fit: str, folder: Path, *, after: float | None = None) -> dict[str, Any] | None:
    """The same in a process of its own; None of one that was killed. `after` counts its imports too."""
    out = folder.with_name(f"{folder.name}.json")
    out.unlink(missing_ok=True)
    order = {"fit": fit, "folder": str(folder), "out": str(out), "slow": SLOW, "keep": None}
    process = subprocess.Popen([sys.executable, __file__, json.dumps(order)], env=environment())
    try:
        status = process.wait(LIMIT if after is None else after)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return None
    assert status == 0
    return dict(json.loads(out.read_text(encoding="utf-8")))


def main() -> None:
    """Fork a child for every order on the standard input."""
    _warm_up()
    for line in sys.stdin:
        order = json.loads(line)
        fit = _named(order["fit"])  # imported once
        started = time.monotonic()
        child = os.fork()
        if not child:
            os.close(0)
            os.dup2(2, 1)  # what a fit prints is no answer
            _child(fit, order)
        killed = _watch(child, order["after"])
        status = 0 if killed else _Status.last
        print(
            json.dumps({"killed": killed, "status": status, "seconds": time.monotonic() - started}),
            flush=True,
        )


def _warm_up() -> None:
    """Import all that a fit imports on its way."""
    import safetensors.torch
    import torch

    import bnn

    assert safetensors.torch.save
    model = bnn.BNN(torch.nn.Linear(1, 1), bnn.priors.Normal(1.0), bnn.likelihoods.Gaussian(1.0))
    bnn.fit(model, (torch.ones(2, 1), torch.ones(2, 1)), bnn.MAP(epochs=1), progress=False, compile="graph")


class _Status:
    last = 0


def _watch(child: int, after: float | None) -> bool:
    """Wait for a child, and kill it when its time has come."""
    end = time.monotonic() + (LIMIT if after is None else after)
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            _Status.last = os.waitstatus_to_exitcode(status)
            return False
        if time.monotonic() >= end:
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            _Status.last = os.waitstatus_to_exitcode(status)
            return _Status.last == -signal.SIGKILL
        time.sleep(0.0005)


def _child(fit: Callable[[Path], Any], order: dict[str, Any]) -> None:
    status = 1
    try:
        _run(fit, order)
        status = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def _run(fit: Callable[[Path], Any], order: dict[str, Any]) -> None:
    import torch

    torch.set_num_threads(1)
    if order["slow"]:
        _make_slow(order["slow"])
    posterior = fit(Path(order["folder"]))
    if order["keep"]:
        posterior.save(order["keep"])
    answer = {"digest": digest(posterior), "notes": posterior.history.notes}
    Path(order["out"]).write_text(json.dumps(answer), encoding="utf-8")


def digest(posterior: Any) -> str:
    """Of all that has to be the same bytes: draws, predictions, the losses, the evidence."""
    import torch

    import bnn.checkpoint

    draws = posterior.draws()
    history = posterior.history
    shapes = posterior.input_shapes or [(3,)]
    inputs = [torch.linspace(-1, 1, 5).reshape(5, *[1] * len(shape)).expand(5, *shape) for shape in shapes]
    x = inputs[0] if len(inputs) == 1 else tuple(inputs)
    own = {"loss": history.loss, "nll": history.nll, "kl": history.kl, "validation": history.validation}
    own["prediction"] = posterior.predict(x).mean
    told = f"{posterior.settings.get('evidence')} {history.epochs} {history.steps_per_epoch}"
    return bnn.checkpoint.digest({**{f"draws/{name}": value for name, value in draws.items()}, **own}, told)


def _make_slow(seconds: float) -> None:
    """Writes that take their time, in this process alone."""
    fsync, replace, fdopen = os.fsync, os.replace, os.fdopen

    def slow_fsync(handle: Any) -> None:
        time.sleep(seconds)
        fsync(handle)

    def slow_replace(*args: Any, **options: Any) -> None:
        time.sleep(seconds)
        replace(*args, **options)
        time.sleep(seconds)

    def slow_fdopen(*args: Any, **options: Any) -> Any:
        file = fdopen(*args, **options)
        return _Halves(file, seconds) if "b" in str(args[1:]) else file

    os.fsync, os.replace, os.fdopen = slow_fsync, slow_replace, slow_fdopen  # type: ignore[assignment]


class _Halves:
    """A file that is written in two halves, with a pause between them."""

    def __init__(self, file: Any, seconds: float):
        self._file, self._seconds = file, seconds

    def __enter__(self) -> _Halves:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, content: bytes) -> None:
        half = len(content) // 2
        self._file.write(content[:half])
        self._file.flush()
        time.sleep(self._seconds)
        self._file.write(content[half:])


def _named(fit: str) -> Callable[[Path], Any]:
    module, _, name = fit.partition(":")
    return getattr(importlib.import_module(module), name)  # type: ignore[no-any-return]


if __name__ == "__main__":
    if len(sys.argv) > 1:
        given = json.loads(sys.argv[1])
        _run(_named(given["fit"]), given)
    else:
        main()
