"""Contenders in processes of their own: another interpreter, a fresh start, memory at its peak.

The protocol is a line each way. Parent to child: ``round``, or ``loss`` and a number. Child to parent, one JSON
object a line: first ``{"ready": notes}`` or ``{"gap": why}``, then ``{"value": ...}``. The end of the input ends the
child. It writes to a copy of its standard output, so that what libraries print does not disturb it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.frame import Contender, Gap, Options, Ready, make

ROOT = Path(__file__).resolve().parent.parent


def environment(threads: int) -> dict[str, str]:
    """Of a child: the same number of threads in torch and in whatever else reads such a variable."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    return os.environ | dict.fromkeys(names, str(threads)) | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}


class Child:
    """A contender that waits for its rounds in another process."""

    def __init__(self, contender: Contender, options: Options):
        python = options.pythons.get(contender.python)
        if python is None:
            raise Gap(f"no interpreter named for it: --{contender.python}-python")
        command = [python, "-m", "benchmarks.child", contender.make, json.dumps(dict(contender.settings))]
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  lives as long as the child
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=environment(options.threads), text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors,
        )  # fmt: skip
        self.notes: dict[str, Any] = self._answer()["ready"]

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.errors.seek(0)
            raise Gap(f"its process ended: {(self.errors.read().strip().splitlines() or ['?'])[-1][:200]}")
        answer: dict[str, Any] = json.loads(line)
        if "gap" in answer:
            raise Gap(answer["gap"])
        return answer

    def ask(self, line: str) -> Any:
        """One question, and its answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self._answer()["value"]

    def ready(self) -> Ready:
        """The contender as the runner takes it."""
        terms = self.notes.pop("terms")
        loss = (lambda size: self.ask(f"loss {size}")) if terms else None
        return Ready(lambda: self.ask("round"), loss, terms, self.notes)

    def close(self) -> None:
        """End it."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(timeout=30)
        self.process.stdout.close()
        self.errors.close()


def serve(contender: Contender) -> None:
    """The child's side; see the module."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def tell(**what: Any) -> None:
        out.write(json.dumps(what) + "\n")
        out.flush()

    try:
        ready = make(contender)
    except Gap as gap:
        tell(gap=str(gap))
        return
    tell(ready={**ready.notes, "terms": ready.terms if ready.loss else ""})
    for line in sys.stdin:
        if line.startswith("loss ") and ready.loss is not None:
            tell(value=list(ready.loss(float(line[5:]))))
        else:
            tell(value=ready.round())


def fresh(
    make_: str,
    settings: Mapping[str, Any],
    threads: int | None = None,
    python: str = sys.executable,
    limit: float | None = None,
) -> dict[str, Any]:
    """One call of ``module:function`` in a fresh process: what it returned, with its seconds and its peak of memory.

    Args:
        make_: As in `Contender.make`; the function returns a dict of JSON.
        settings: Its keywords.
        threads: None: as here.
        python: The interpreter.
        limit: Seconds; a call that takes longer is ended.

    Returns:
        What the function told, with ``seconds`` (from the start of the interpreter to its end) and ``peak`` bytes.

    Raises:
        Gap: It failed, or took too long.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "answer.json"
        command = [python, "-m", "benchmarks.child", make_, json.dumps(dict(settings)), "--once", str(out)]
        env = environment(threads or int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
        started = time.perf_counter()
        try:
            done = subprocess.run(
                command, cwd=ROOT, env=env, check=False, capture_output=True, text=True, timeout=limit
            )
        except subprocess.TimeoutExpired as error:
            raise Gap(f"not done after {limit:.0f} s") from error
        seconds = time.perf_counter() - started
        if done.returncode or not out.exists():
            raise Gap((done.stderr.strip().splitlines() or ["?"])[-1][:200])
        answer: dict[str, Any] = json.loads(out.read_text())
        return {**answer, "seconds": seconds}


def peak() -> int:
    """Bytes of memory that this process has had at its most (Linux)."""
    return _status("VmHWM:")


def resident() -> int:
    """Bytes of memory that this process has now (Linux)."""
    return _status("VmRSS:")


def _status(name: str) -> int:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError as error:
        raise Gap("this system does not tell the memory of a process") from error
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))
