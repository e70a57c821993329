"""Two models end to end: verified against each other, then latency, throughput and peak memory, a process for each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from intfa_onnx.bench.engines import ENGINES
from intfa_onnx.bench.timing import Ratio, Timing, ratio
from intfa_onnx.compare import check_same_outputs, relative_l2
from intfa_onnx.errors import IntfaError, ModelError, UnsupportedError


@dataclass(frozen=True)
class ModelTiming:
    """One model's figures; times in seconds, memory in bytes."""

    model: str  # its file's name
    session_start: float
    p50: float
    p95: float
    p99: float
    per_second: float  # runs
    peak_memory: int  # resident, of the whole process
    device_memory: int  # taken on the GPU by the session and its first run; 0 on the CPU
    rounds: tuple[float, ...]  # median latency of each round


@dataclass(frozen=True)
class ModelComparison:
    """Two models on the same inputs.

    Attributes:
        first: the baseline.
        second: the candidate.
        error: relative L2 of the candidate's outputs against the baseline's, the worst of them.
        faster: how many times faster the second is.
    """

    first: ModelTiming
    second: ModelTiming
    error: float
    faster: Ratio


def bench_models(
    model_a: str | os.PathLike[str],
    model_b: str | os.PathLike[str],
    feed: Mapping[str, np.ndarray],
    *,
    runtime: str = "cpu",
    threads: int = 1,
    rounds: int = 7,
    runs: int = 20,
    max_error: float = 0.2,
) -> ModelComparison:
    """Verify that two models compute the same, then time them in alternating rounds.

    Each model lives in its own process, which waits while the other works.

    Args:
        model_a: path of the baseline.
        model_b: path of the candidate.
        feed: one array per input.
        runtime: ``cpu`` or ``cuda`` (ONNX Runtime), or ``tensorrt``.
        threads: threads within one operator, on the CPU.
        rounds: alternations.
        runs: runs per round.
        max_error: relative L2 error of an output above which the candidate is wrong rather than imprecise, and gets no
            time.
    Raises:
        UnsupportedError: there is no such runtime.
        ModelError: the candidate's outputs are not the baseline's.
        IntfaError: a model does not load or run; carries the reason.
    """
    if runtime not in ENGINES:
        raise UnsupportedError(f"runtime {runtime!r} is unknown (supported: {', '.join(ENGINES)})")
    with tempfile.TemporaryDirectory() as folder:
        inputs = Path(folder, "inputs.npz")
        np.savez(inputs, **dict(feed))  # type: ignore[arg-type]  # the stub takes any name for allow_pickle
        workers: list[_Worker] = []
        try:
            for number, model in enumerate((model_a, model_b)):
                workers.append(_Worker(os.fspath(model), inputs, Path(folder, f"{number}.npz"), runtime, threads))
            error = _error(workers[0].outputs, workers[1].outputs, max_error)
            for _ in range(rounds):
                for worker in workers:
                    worker.round(runs)
            first, second = (worker.finish() for worker in workers)
        finally:
            for worker in workers:
                worker.close()
    return ModelComparison(first, second, error, ratio(Timing(first.rounds), Timing(second.rounds)))


class _Worker:
    """A child process that runs one model when told to; :mod:`intfa_onnx.bench.model_worker` has the protocol."""

    def __init__(self, model: str, inputs: Path, outputs: Path, runtime: str, threads: int) -> None:
        self.latencies: list[list[float]] = []
        self.model = model
        arguments = [model, str(inputs), str(outputs), runtime, str(threads)]
        command = [sys.executable, "-m", "intfa_onnx.bench.model_worker", *arguments]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            self.session_start: float = self._receive()["session_start"]
            with np.load(outputs) as archive:
                self.outputs = dict(archive)
        except BaseException:
            self.close()
            raise

    def round(self, runs: int) -> None:
        self._tell(runs)
        self.latencies.append(self._receive()["latencies"])

    def finish(self) -> ModelTiming:
        self._tell(0)
        memory = self._receive()
        every = np.concatenate(self.latencies)
        p50, p95, p99 = (float(p) for p in np.percentile(every, [50, 95, 99]))
        medians = tuple(float(np.median(r)) for r in self.latencies)
        per_second = float(1 / every.mean())
        return ModelTiming(
            Path(self.model).name, self.session_start, p50, p95, p99, per_second, **memory, rounds=medians
        )

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()

    def _tell(self, runs: int) -> None:
        assert self.process.stdin
        self.process.stdin.write(f"{runs}\n")
        self.process.stdin.flush()

    def _receive(self) -> dict:
        assert self.process.stdout
        line = self.process.stdout.readline()
        message = json.loads(line) if line else {"error": f"the process that ran '{self.model}' ended early"}
        if "error" in message:
            raise IntfaError(message["error"])
        return message


def _error(first: Mapping[str, np.ndarray], second: Mapping[str, np.ndarray], max_error: float) -> float:
    """Return the worst relative L2 error of an output; raise if it is above the limit or the outputs do not match."""
    check_same_outputs(first, second)
    errors = {name: relative_l2(a, second[name]) for name, a in first.items()}
    for name, error in errors.items():
        if not error <= max_error:
            raise ModelError(
                f"output {name!r} of the candidate is off by {error:.3g} of its norm (limit {max_error:g}); "
                "'intfa-onnx compare' shows how each output differs"
            )
    return max(errors.values(), default=0.0)
